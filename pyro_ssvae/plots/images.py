"""Figures of images: what the model generates, and how it explains given rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pyro_ssvae._checks import as_count
from pyro_ssvae.models import SemiSupervisedModel
from pyro_ssvae.models.base import fork_random_state, get_device
from pyro_ssvae.plots.image_grid import cell_size, draw_image_grid, new_image_grid, to_rgb
from pyro_ssvae.plots.inputs import (
    as_class_names,
    as_classes,
    as_image_shape,
    check_rows,
    decode_means,
    encode_means,
    in_batches,
)
from pyro_ssvae.plots.style import ALARM, INK, new_figure, set_title

__all__ = ["plot_analogies", "plot_reconstructions", "plot_samples"]

_PAIRS_PER_BAND = 10


def plot_samples(
    model: SemiSupervisedModel,
    *,
    num_per_class: int = 10,
    class_names: Sequence[str] | None = None,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Figure:
    """Draw images of every class from the generative model, one row per class.

    Args:
        model: The model, with ``K`` classes.
        num_per_class: Images per class.
        class_names: ``K`` names.
        image_shape: Shape of the image that a row of another shape holds, as ``(1, 28, 28)``.
        value_range: Values of x shown as black and as white.
        seed: Of the draws of z.

    Returns:
        Means of p(x|y,z), with z drawn from its prior.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If rows are no images, or an argument does not fit the model.

    Example:
        >>> from pyro_ssvae import M2
        >>> m2 = M2((1, 8, 8), num_classes=3, latent_dim=2, hidden_dims=(8,))
        >>> figure = plot_samples(m2, num_per_class=4)
    """
    names = as_class_names(class_names, model.num_classes)
    num_per_class = as_count(num_per_class, "num_per_class", least=1)
    shape = as_image_shape(model.event_shape, image_shape)
    y = torch.arange(model.num_classes, device=get_device(model)).repeat_interleave(num_per_class)
    with fork_random_state(model, seed):
        x, _ = model.generate(len(y), y)
    tiles = to_rgb(x, shape, value_range).reshape(model.num_classes, num_per_class, *shape[1:], 3)
    figure = new_image_grid(tiles, names)
    set_title(figure, "Generated images of each class", "mean of p(x|y,z), z drawn from p(z)")
    return figure


def plot_analogies(
    model: SemiSupervisedModel,
    x: Tensor,
    y: Any = None,
    *,
    num_rows: int = 10,
    class_names: Sequence[str] | None = None,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Show images in the left column and, beside each, all classes in its style.

    Args:
        model: The model, with ``K`` classes.
        x: Rows with shape ``(N, *event_shape)``, scaled as in training.
        y: Their classes, with shape ``(N,)``; predicted where not given.
        num_rows: How many rows of ``x`` are shown, at most, from the first on.
        class_names: ``K`` names.
        image_shape: Shape of the image that a row of another shape holds, as ``(1, 28, 28)``.
        value_range: Values of x shown as black and as white.

    Returns:
        Means of p(x|y',z) for every class y', with z the mean of q(z|x,y).

    Raises:
        TypeError: If ``x`` is no floating-point tensor, or ``y`` holds no numbers.
        ValueError: If rows are no images, or an argument does not fit the model.

    Example:
        >>> from pyro_ssvae import M2
        >>> m2 = M2((1, 8, 8), num_classes=3, latent_dim=2, hidden_dims=(8,))
        >>> figure = plot_analogies(m2, torch.rand(4, 1, 8, 8))
    """
    names = as_class_names(class_names, model.num_classes)
    shape = as_image_shape(model.event_shape, image_shape)
    rows = check_rows(model, x)
    num_rows = as_count(num_rows, "num_rows", least=1)
    known = None if y is None else as_classes(y, "y", len(rows), model.num_classes)[:num_rows]
    rows = rows[:num_rows]
    source_y = in_batches(model.predict, rows) if known is None else known
    z = encode_means(model, rows, source_y)
    classes = torch.arange(model.num_classes).repeat(len(rows))
    decoded = decode_means(model, classes, z.repeat_interleave(model.num_classes, 0))
    sources = to_rgb(rows, shape, value_range)[:, None]
    images = to_rgb(decoded, shape, value_range).reshape(len(rows), -1, *sources.shape[2:])
    tiles = np.concatenate([sources, images], axis=1)
    figure = new_image_grid(tiles, column_names=["given", *names], lead=1)
    which = "predicted" if known is None else "true"
    set_title(
        figure,
        "Analogies: every class in the style of the given image",
        f"mean of p(x|y,z) for each y, z the mean of q(z|x,y) at the {which} class",
    )
    return figure


def plot_reconstructions(
    model: SemiSupervisedModel,
    x: Tensor,
    y: Any = None,
    *,
    num_rows: int = 20,
    class_names: Sequence[str] | None = None,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Show images above their reconstructions, with the predicted class and its probability.

    Args:
        model: The model, with ``K`` classes.
        x: Rows with shape ``(N, *event_shape)``, scaled as in training.
        y: Their true classes, with shape ``(N,)``; where given, wrong predictions are in red.
        num_rows: How many rows of ``x`` are shown, at most, from the first on.
        class_names: ``K`` names.
        image_shape: Shape of the image that a row of another shape holds, as ``(1, 28, 28)``.
        value_range: Values of x shown as black and as white.

    Returns:
        Pairs of x and the mean of p(x|y',z), with y' the predicted class and z the mean of
        q(z|x,y').

    Raises:
        TypeError: If ``x`` is no floating-point tensor, or ``y`` holds no numbers.
        ValueError: If rows are no images, or an argument does not fit the model.

    Example:
        >>> from pyro_ssvae import M2
        >>> m2 = M2((1, 8, 8), num_classes=3, latent_dim=2, hidden_dims=(8,))
        >>> figure = plot_reconstructions(m2, torch.rand(4, 1, 8, 8), y=[0, 1, 2, 0])
    """
    names = as_class_names(class_names, model.num_classes)
    shape = as_image_shape(model.event_shape, image_shape)
    rows = check_rows(model, x)
    num_rows = as_count(num_rows, "num_rows", least=1)
    known = None if y is None else as_classes(y, "y", len(rows), model.num_classes)[:num_rows]
    rows = rows[:num_rows]
    probability, predicted = in_batches(model.predict_proba, rows).max(-1)
    decoded = decode_means(model, predicted, encode_means(model, rows, predicted))
    pairs = np.stack([to_rgb(rows, shape, value_range), to_rgb(decoded, shape, value_range)])
    truth = predicted if known is None else known
    captions = [
        f"{names[k]}\n{_percent(p)}" + ("" if k == t else f"\nis {names[t]}")
        for k, p, t in zip(
            predicted.tolist(),
            probability.tolist(),
            truth.tolist(),
            strict=True,
        )
    ]
    wrong = (truth != predicted).numpy()
    figure = _pairs_figure(pairs, captions, wrong)
    set_title(
        figure,
        "Images and their reconstructions",
        "above: x; below: mean of p(x|y,z) at the predicted class, which is named with its q(y|x)",
    )
    return figure


def _percent(p: float) -> str:
    """Return a probability in percent, never rounded up to certainty."""
    return ">99%" if 0.99 < p < 1.0 else f"{p:.0%}"


def _pairs_figure(
    pairs: NDArray[np.float64],
    captions: Sequence[str],
    wrong: NDArray[np.bool_],
) -> Figure:
    """Draw pairs ``(2, N, H, W, 3)`` in bands, with a caption under each, red where wrong."""
    bands = math.ceil(len(captions) / _PAIRS_PER_BAND)
    columns = min(len(captions), _PAIRS_PER_BAND)
    lines = [line for caption in captions for line in caption.split("\n")]
    width, height = cell_size(pairs, 2 * bands, columns, longest_label=max(map(len, lines)))
    most_lines = 1 + max(caption.count("\n") for caption in captions)
    band_height = 2 * height + 0.13 * most_lines + 0.12
    figure = new_figure(width * columns + 0.3, bands * band_height + 0.5)
    for band, axes in enumerate(figure.subplots(bands, 1, squeeze=False)[:, 0]):
        part = slice(band * _PAIRS_PER_BAND, (band + 1) * _PAIRS_PER_BAND)
        tiles = pairs[:, part]
        # An incomplete band is filled up with white, so that all bands have one scale.
        fill = [(0, 0), (0, columns - tiles.shape[1]), (0, 0), (0, 0), (0, 0)]
        tiles = np.pad(tiles, fill, constant_values=1.0)
        draw_image_grid(axes, tiles, (), captions[part])
        axes.set_yticks([])
        for label, bad in zip(axes.get_xticklabels(), wrong[part], strict=True):
            label.set_color(ALARM if bad else INK)
    return figure
