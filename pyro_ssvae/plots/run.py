"""All figures of a run, written to its folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_ssvae._checks import as_count
from pyro_ssvae.data import SemiSupervisedData, prepare
from pyro_ssvae.evaluation.reference_classifier import REFINING_STEPS
from pyro_ssvae.models import DDGM, M1, Model, SemiSupervisedModel
from pyro_ssvae.plots.autoencoder import (
    plot_autoencoding,
    plot_interpolations,
    plot_prior_samples,
    plot_traversals,
)
from pyro_ssvae.plots.classification import plot_confusion_matrix, plot_reliability
from pyro_ssvae.plots.curves import plot_training_curves
from pyro_ssvae.plots.features import plot_feature_means
from pyro_ssvae.plots.generator import plot_energies, plot_generated, plot_nearest
from pyro_ssvae.plots.images import plot_analogies, plot_reconstructions, plot_samples
from pyro_ssvae.plots.inputs import as_image_shape, in_batches
from pyro_ssvae.plots.latent import plot_latent_map
from pyro_ssvae.plots.relations import plot_arithmetic, plot_features_and_latents, plot_paths, plot_plane_paths
from pyro_ssvae.plots.style import save_figure

__all__ = ["save_figures"]

_MOST_CLASSES_OF_IMAGES = 20  # analogies have a column for each
_MOST_LABELLED = 500
_MOST_ANALOGIES = 6


def save_figures(
    model: Model,
    data: SemiSupervisedData,
    metrics_path: str | os.PathLike[str] | None,
    folder: str | os.PathLike[str],
    *,
    image_shape: Sequence[int] | None = None,
    max_points: int = 2000,
    seed: int = 0,
) -> list[Path]:
    """Write the figures that make sense for a trained model and its data, as PNG.

    Images get samples, analogies and reconstructions, tables get the class means of their
    features. The rest is for both: latent map, confusion matrix, reliability, training curves.
    A model without classes gets interpolations and traversals of its latents instead of what needs classes.
    An energy model gets generated images beside the nearest ones of training, paths and analogies, energies, and how
    features and latents relate; with classes the confusion matrix and reliability too.
    What is said about rows is said of test rows, in their absence of validation rows, and without
    either left out.

    Args:
        model: The trained model.
        data: The data that it was trained on.
        metrics_path: The ``metrics.csv`` of the run; without it, or where it holds no row, there
            are no curves.
        folder: Where the figures go; made where needed. Files are written all or nothing.
        image_shape: Shape of the image that a row of another shape holds, as ``(1, 28, 28)``.
        max_points: Rows of the latent map, at most, beside labelled ones.
        seed: Of everything drawn at random. The same seed and model give the same files.

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
    too_few = model.num_classes is not None and model.num_classes < data.num_classes
    if tuple(model.event_shape) != data.event_shape or too_few:
        raise ValueError(
            f"The model takes rows of shape {tuple(model.event_shape)} and "
            f"{model.num_classes} classes, the data has {data.event_shape} and {data.num_classes}. "
            "Hand in the data that the model was trained on."
        )
    max_points = as_count(max_points, "max_points", least=1)
    if isinstance(model, M1):
        drawings = _of_autoencoder(model, data, image_shape, max_points, seed)
    elif isinstance(model, SemiSupervisedModel):
        drawings = _of_classes(model, data, image_shape, max_points, seed)
    elif isinstance(model, DDGM):
        drawings = _of_generator(model, data, image_shape, max_points, seed)
    else:
        drawings = {}
    if metrics_path is not None and _has_rows(Path(metrics_path)):
        path = metrics_path
        drawings["training_curves"] = lambda: plot_training_curves(path)
    return [save_figure(draw(), Path(folder) / f"{name}.png") for name, draw in drawings.items()]


def _of_classes(
    model: SemiSupervisedModel,
    data: SemiSupervisedData,
    image_shape: Sequence[int] | None,
    max_points: int,
    seed: int,
) -> dict[str, Callable[[], Figure]]:
    """Return the drawings of a model with classes."""
    names = _names(model.num_classes, data)
    part, x, y = _held_out_rows(data)
    drawings: dict[str, Callable[[], Figure]] = {}
    if _is_image(data.event_shape, image_shape):
        drawings |= _of_images(model, data, x, y, names, image_shape, seed)
    else:
        given = (x, y) if len(x) else (None, None)
        drawings["feature_means"] = lambda: plot_feature_means(
            model,
            *given,
            class_names=names,
            seed=seed,
        )
    if len(x):
        shown, classes, labelled = _rows_of_map(data, x, y, max_points)
        drawings["latent_map"] = lambda: plot_latent_map(
            model, shown, classes, labelled=labelled, class_names=names, seed=seed
        )
        drawings |= _of_predictions(model, x, y, names, part)
    return drawings


def _of_predictions(
    model: Model, x: Tensor, y: Tensor, names: Sequence[str], part: str
) -> dict[str, Callable[[], Figure]]:
    """Return the drawings of a classifier."""
    probabilities = in_batches(model.predict_proba, x)
    return {
        "confusion_matrix": lambda: plot_confusion_matrix(
            y, probabilities.argmax(-1), names, title=f"Confusion matrix, {part}"
        ),
        "reliability": lambda: plot_reliability(probabilities, y, title=f"Reliability, {part}"),
    }


def _of_autoencoder(
    model: M1,
    data: SemiSupervisedData,
    image_shape: Sequence[int] | None,
    max_points: int,
    seed: int,
) -> dict[str, Callable[[], Figure]]:
    """Return the drawings of a model without classes; those of latents are made on held-out rows, if there are any."""
    _, x, y = _held_out_rows(data)
    drawings: dict[str, Callable[[], Figure]] = {}
    if _is_image(data.event_shape, image_shape):
        options: dict[str, Any] = {"image_shape": image_shape, "value_range": _value_range(data)}
        drawings["samples"] = lambda: plot_prior_samples(model, seed=seed, **options)
        if len(x) >= 2:
            pairs = min(4, len(x) // 2)
            drawings |= {
                "reconstructions": lambda: plot_autoencoding(model, x, **options),
                "interpolations": lambda: plot_interpolations(model, x[:pairs], x[pairs : 2 * pairs], **options),
                "traversals": lambda: plot_traversals(model, x[:max_points], **options),
            }
    if len(x) >= 2:
        drawings["latent_map"] = lambda: plot_latent_map(
            model,
            x[:max_points],
            y[:max_points],
            class_names=data.class_names,
            note="M1 has not seen the classes that colour the points.",
            seed=seed,
        )
    return drawings


def _of_generator(
    model: DDGM, data: SemiSupervisedData, image_shape: Sequence[int] | None, max_points: int, seed: int
) -> dict[str, Callable[[], Figure]]:
    """Return the drawings of an energy model."""
    drawings: dict[str, Callable[[], Figure]] = {
        "features_and_latents": lambda: plot_features_and_latents(model, seed=seed)
    }
    part, x, y = _held_out_rows(data)
    if _is_image(data.event_shape, image_shape):
        options: dict[str, Any] = {"image_shape": image_shape, "value_range": _value_range(data), "seed": seed}
        train = prepare(data.x, scale=data.scale)
        drawings |= {
            "samples": lambda: plot_generated(model, **options),
            "samples_refined": lambda: plot_generated(model, latent_steps=REFINING_STEPS, **options),
            "nearest": lambda: plot_nearest(model, train, **options),
            "paths": lambda: plot_paths(model, **options),
        }
        if len(x) >= 3:
            chosen, note = _analogies(y, seed)
            drawings["arithmetic"] = lambda: plot_arithmetic(model, x[chosen], note=note, **options)
        if len(x) and len(data.event_shape) == 3:
            drawings["energies"] = lambda: plot_energies(model, x[:max_points], seed=seed)
    elif data.event_shape == (2,):
        drawings["paths"] = lambda: plot_plane_paths(model, seed=seed)
    if len(x) and model.num_classes is not None:
        drawings |= _of_predictions(model, x, y, _names(model.num_classes, data), part)
    return drawings


def _analogies(y: Tensor, seed: int) -> tuple[Tensor, str]:
    """Return rows a, b and c of analogies, one after another, with what to expect of the answers.

    Where classes allow, a and b are of one class and c of another, so that the answer can be judged.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs = (torch.bincount(y) >= 2).nonzero().squeeze(-1)
    if len(pairs) == 0 or len(y.unique()) < 2:
        count = min(3 * _MOST_ANALOGIES, len(y) // 3 * 3)
        return torch.randperm(len(y), generator=generator)[:count], ""

    def draw(rows: Tensor, count: int) -> Tensor:
        return rows[torch.randperm(len(rows), generator=generator)[:count]]

    order = draw(pairs, len(pairs)).tolist()
    chosen = []
    for number in range(_MOST_ANALOGIES):
        same = y == order[number % len(order)]
        chosen += [draw(same.nonzero().squeeze(-1), 2), draw((~same).nonzero().squeeze(-1), 1)]
    return torch.cat(chosen), "a and b are of one class, c of another: the answer should be c's class in b's style"


def _names(num_classes: int, data: SemiSupervisedData) -> list[str]:
    """Return a name for each class of the model, which may have more than the data has names for."""
    return [*data.class_names, *map(str, range(data.num_classes, num_classes))]


def _value_range(data: SemiSupervisedData) -> tuple[float, float]:
    """Return the values shown as black and as white."""
    span = prepare(torch.stack([data.x.min(), data.x.max()]), scale=data.scale)
    return min(0.0, float(span[0])), max(1.0, float(span[1]))


def _has_rows(metrics: Path) -> bool:
    return metrics.is_file() and len(metrics.read_text(encoding="utf-8").split("\n", 2)) > 2


def _held_out_rows(data: SemiSupervisedData) -> tuple[str, Tensor, Tensor]:
    """Return test rows as the model sees them, in their absence validation rows, possibly none."""
    if len(data.x_test):
        return "test rows", prepare(data.x_test, scale=data.scale), data.y_test
    return "validation rows", prepare(data.x_validation, scale=data.scale), data.y_validation


def _is_image(event_shape: Sequence[int], image_shape: Sequence[int] | None) -> bool:
    if image_shape is not None:
        return True
    try:
        as_image_shape(event_shape)
    except ValueError:
        return False
    return True


def _of_images(
    model: SemiSupervisedModel,
    data: SemiSupervisedData,
    x: Tensor,
    y: Tensor,
    names: Sequence[str],
    image_shape: Sequence[int] | None,
    seed: int,
) -> dict[str, Callable[[], Figure]]:
    """Return the drawings of images; without held-out rows, labelled training rows are shown."""
    if not len(x):
        chosen = data.labelled_index
        x, y = prepare(data.x[chosen], scale=data.scale), data.y[chosen]
    options: dict[str, Any] = {
        "class_names": names,
        "image_shape": image_shape,
        "value_range": _value_range(data),
    }
    drawings: dict[str, Callable[[], Figure]] = {
        "samples": lambda: plot_samples(model, seed=seed, **options),
    }
    if len(x):
        if model.num_classes <= _MOST_CLASSES_OF_IMAGES:
            sources = _one_of_each_class(y)
            drawings["analogies"] = lambda: plot_analogies(model, x[sources], **options)
        drawings["reconstructions"] = lambda: plot_reconstructions(model, x, y, **options)
    return drawings


def _one_of_each_class(y: Tensor) -> Tensor:
    """Return the first row of each class, with at most ten entries."""
    return torch.stack([torch.nonzero(y == k)[0, 0] for k in y.unique()[:10]])


def _rows_of_map(
    data: SemiSupervisedData,
    x: Tensor,
    y: Tensor,
    max_points: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return held-out and labelled training rows, their classes, and which are the latter."""
    chosen = data.labelled_index[:_MOST_LABELLED]
    rows = torch.cat([x[:max_points], prepare(data.x[chosen], scale=data.scale)])
    classes = torch.cat([y[:max_points], data.y[chosen]])
    return rows, classes, torch.arange(len(rows)) >= len(x[:max_points])
