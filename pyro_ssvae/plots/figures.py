"""The figures of a run, by the class of its model, and saving them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyro_ssvae._checks import as_count
from pyro_ssvae.data import SemiSupervisedData, prepare
from pyro_ssvae.evaluation.reference_classifier import get_held_out
from pyro_ssvae.models import Model
from pyro_ssvae.plots.classification import plot_confusion_matrix, plot_reliability
from pyro_ssvae.plots.curves import plot_training_curves
from pyro_ssvae.plots.inputs import as_image_shape, map_batches
from pyro_ssvae.plots.style import save_figure

__all__ = [
    "figures",
    "get_class_names",
    "get_classifier_figures",
    "get_held_out_examples",
    "get_image_options",
    "save_figures",
]


@functools.singledispatch
def figures(
    model: nn.Module, data: SemiSupervisedData, *, image_shape: Sequence[int] | None, max_points: int, seed: int
) -> dict[str, Callable[[], Figure]]:
    """Return the figures of a trained model, as functions that draw them, by file name without ending.

    This is a :func:`functools.singledispatch` function of the class of the model. A class of your own inherits the
    figures of its base class, or gets others by ``@figures.register(MyModel)``; an unknown class has none.

    Args:
        model: The trained model.
        data: The data that it was trained on.
        image_shape: Shape of the images where examples are stored in another shape, for example ``(1, 28, 28)``.
        max_points: Largest number of held-out examples in a figure that shows many, such as the latent map.
        seed: Seed of everything drawn at random.
    """
    return {}


def save_figures(
    model: nn.Module,
    data: SemiSupervisedData,
    metrics_path: str | os.PathLike[str] | None,
    folder: str | os.PathLike[str],
    *,
    image_shape: Sequence[int] | None = None,
    max_points: int = 2000,
    seed: int = 0,
) -> list[Path]:
    """Save the :func:`figures` of a trained model, and its training curves, as PNG files.

    Figures of data show test examples, or validation examples if there are none; without either they are left out.

    Args:
        model: The trained model.
        data: The data that it was trained on.
        metrics_path: The ``metrics.csv`` of the run; there are no curves if it is ``None``, missing or without a row.
        folder: Folder of the files; created if needed. Each file is written atomically.
        image_shape: Shape of the images where examples are stored in another shape, for example ``(1, 28, 28)``.
        max_points: Largest number of held-out examples in a figure that shows many, such as the latent map.
        seed: Seed of everything drawn at random. The same seed and model give the same files.

    Returns:
        The files, in the order in which they were written.

    Raises:
        ValueError: If model and data do not fit each other.
        RunFolderError: If a figure cannot be written.

    Example:
        >>> import tempfile
        >>> from pyro_ssvae import M2, SemiSupervisedData
        >>> x, y = torch.rand(8, 5), torch.arange(8) % 2
        >>> data = SemiSupervisedData.from_arrays(x, y, x_test=x, y_test=y)
        >>> m2 = M2(data.event_shape, data.num_classes, latent_dim=2, hidden_dims=(8,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in save_figures(m2, data, None, folder)]
        ['feature_means.png', 'latent_map.png', 'confusion_matrix.png', 'reliability.png']
    """
    event_shape = tuple(getattr(model, "event_shape", data.event_shape))
    num_classes = getattr(model, "num_classes", None)
    if event_shape != data.event_shape or (num_classes is not None and num_classes < (data.num_classes or 0)):
        raise ValueError(
            f"The model takes examples of shape {event_shape} and {num_classes or 'no'} classes, the data has "
            f"{data.event_shape} and {data.num_classes or 'no'}. Pass the data that the model was trained on."
        )
    max_points = as_count(max_points, "max_points", least=1)
    drawings = figures(model, data, image_shape=image_shape, max_points=max_points, seed=seed)
    if metrics_path is not None and _has_rows(Path(metrics_path)):
        drawings = {**drawings, "training_curves": functools.partial(plot_training_curves, metrics_path)}
    return [save_figure(draw(), Path(folder) / f"{name}.png") for name, draw in drawings.items()]


def _has_rows(metrics: Path) -> bool:
    return metrics.is_file() and len(metrics.read_text(encoding="utf-8").split("\n", 2)) > 2


def get_held_out_examples(data: SemiSupervisedData) -> tuple[str, Tensor, Tensor]:
    """Return what the held-out data is called, its examples scaled as in training, and its classes."""
    part, x, y = get_held_out(data)
    return f"{part} data", prepare(x, scale=data.scale), y


def get_class_names(model: Model, data: SemiSupervisedData) -> list[str]:
    """Return a name for each class of the model, which may have more classes than the data."""
    return [*data.class_names, *map(str, range(len(data.class_names), model.num_classes or 0))]


def get_image_options(data: SemiSupervisedData, image_shape: Sequence[int] | None) -> dict[str, Any] | None:
    """Return ``image_shape`` and ``value_range`` for plot functions of images, or ``None`` if the data are no images.

    Black is 0 or the smallest value in the data if it is negative; white is 1 or the largest value if it exceeds 1.
    """
    try:
        as_image_shape(data.event_shape, image_shape)
    except ValueError:
        if image_shape is not None:
            raise
        return None
    low, high = prepare(torch.stack([data.x.min(), data.x.max()]), scale=data.scale).tolist()
    return {"image_shape": image_shape, "value_range": (min(0.0, low), max(1.0, high))}


def get_classifier_figures(
    model: Model, x: Tensor, y: Tensor, names: Sequence[str], part: str
) -> dict[str, Callable[[], Figure]]:
    """Return the figures of predictions for examples of known class; none if no class is known."""
    known = y >= 0
    if not known.any():
        return {}
    predict = functools.cache(lambda: map_batches(model.predict_proba, x[known]))
    return {
        "confusion_matrix": lambda: plot_confusion_matrix(
            y[known], predict().argmax(-1), names, title=f"Confusion matrix, {part}"
        ),
        "reliability": lambda: plot_reliability(predict(), y[known], title=f"Reliability, {part}"),
    }
