"""The explorer: one HTML page in which a trained model runs, with a map of its data, without server or network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pyro_ssvae._arguments import checked

if TYPE_CHECKING:
    from pyro_ssvae.data.dataset import SemiSupervisedData
    from pyro_ssvae.models.base import Model

__all__ = ["explore"]


@checked
def explore(
    model: Model,
    data: SemiSupervisedData,
    path: str | os.PathLike[str],
    *,
    projection: Literal["pca", "umap"] = "pca",
    num_rows: int = 10_000,
    seed: int = 0,
) -> Path:
    """Write a self-contained HTML page in which one can explore a model and its data in a browser.

    The page holds the networks of the model, as ONNX, a runtime for them, and rows of the data. It is opened from disk,
    and loads nothing from the network. Needs ``pip install 'pyro-ssvae[export]'``.

    Args:
        model: A trained M1, M2, M1+M2 or DDGM.
        data: The data that it was trained on.
        path: The page to write, usually ``explorer.html``.
        projection: How latents become a map: ``"pca"``, or ``"umap"`` (needs umap-learn), which has no inverse.
        num_rows: Number of rows on the map: every labelled training row, others at random, and a fifth of test rows.
        seed: Seed of the choice of rows and of draws.

    Returns:
        The path of the page.

    Raises:
        MissingPackageError: If onnx, or umap-learn for ``projection="umap"``, is not installed.
        RunFolderError: If the page cannot be written.
        TypeError: For a model of another kind.
        ValueError: If the data does not fit the model, or an argument is out of range.
    """
    from pyro_ssvae.explorer.page import write_page
    from pyro_ssvae.explorer.payload import make_payload

    model.check_data(data)
    return write_page(Path(path), make_payload(model, data, projection, num_rows, seed))
