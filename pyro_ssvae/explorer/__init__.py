"""The explorer: one HTML page in which a trained model runs, with a map of its data, without server or network."""

from __future__ import annotations

import base64
import gzip
import html
import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pyro_ssvae._arguments import as_path, checked
from pyro_ssvae._io import write_file
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.features import track
from pyro_ssvae.explorer.payload import Payload, make_payload
from pyro_ssvae.export import as_onnx, trace
from pyro_ssvae.models.base import Model

__all__ = ["explore"]

_SCRIPTS = ("core", "model", "map", "decode", "answer", "own_image", "own_row", "ddgm", "main")  # in their order
_VENDORED = {"ort": "ort.wasm.bundle.min.mjs.gz", "wasm": "ort-wasm-simd-threaded.wasm.gz"}


@checked
def explore(
    model: Model,
    data: SemiSupervisedData,
    path: str | os.PathLike[str],
    *,
    projection: Literal["pca", "umap"] = "pca",
    num_rows: int = 10_000,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write a self-contained HTML page in which one can explore a model and its data in a browser.

    The page holds the networks of the model, as ONNX, a runtime for them, and rows of the data. It is opened from disk,
    and loads nothing from the network. Needs ``pip install 'pyro-ssvae[export]'``.

    Args:
        model: A trained M1, M2, M1+M2 or DDGM.
        data: The data that it was trained on.
        path: The page to write, usually ``explorer.html``.
        projection: How latents become a map: ``"pca"``, or ``"umap"`` (needs umap-learn), which has no inverse.
        num_rows: Largest number of rows on the map, drawn at random: up to a fifth test rows, then training rows with a
            label, then others.
        seed: Seed of the choice of rows and of draws.
        progress: Whether to show progress, on standard error.

    Returns:
        The path of the page.

    Raises:
        MissingPackageError: If onnx, or umap-learn for ``projection="umap"``, is not installed.
        IsADirectoryError: If the path is a folder.
        RunFolderError: If the page cannot be written.
        TypeError: For a model of another kind.
        ValueError: If the data does not fit the model, or an argument is out of range.
    """
    path = as_path(path, "path")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it.")
    model.check_data(data)
    page = _fill_page(make_payload(model, data, projection, num_rows, seed, progress), progress)
    return write_file(path, page.encode(), hint=" Free space, or choose another path.")


def _fill_page(payload: Payload, progress: bool) -> str:
    """Return the template with styles, scripts, runtime and contents in it."""
    web, vendor = files("pyro_ssvae.explorer") / "web", files("pyro_ssvae.explorer") / "vendor"
    blobs = {name: (vendor / file).read_bytes() for name, file in _VENDORED.items()}
    blobs |= {f"array-{name}": _zip(array.tobytes()) for name, array in payload.arrays.items()}
    networks = payload.networks.items()
    blobs |= {
        f"graph-{name}": _zip(as_onnx(trace(network), network, {}))
        for name, network in track(networks, "networks of the page", len(networks), progress)
    }
    meta = {
        **payload.meta,
        "arrays": {name: [str(array.dtype), list(array.shape)] for name, array in payload.arrays.items()},
        "graphs": {name: {"inputs": [*network.inputs], "outputs": [*network.outputs]} for name, network in networks},
    }
    parts = {
        "META": json.dumps(meta, allow_nan=False).replace("<", "\\u003c"),  # cannot end the element around it
        "TITLE": html.escape(f"{meta['kind'].upper().replace('M1M2', 'M1+M2')} on {meta['data']}"),
        "LICENCE": html.escape((vendor / "LICENSE").read_text(encoding="utf-8")),
        "STYLE": (web / "style.css").read_text(encoding="utf-8"),
        "SCRIPT": "\n".join((web / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS),
        "BLOBS": "\n".join(
            f'<script type="text/plain" id="blob-{name}">{base64.b64encode(blob).decode()}</script>'
            for name, blob in blobs.items()
        ),
    }
    page = (web / "page.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        page = page.replace(f"<!--{name}-->", text)
    return page


def _zip(content: bytes) -> bytes:
    return gzip.compress(content, 9, mtime=0)
