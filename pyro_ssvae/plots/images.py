"""Figures of images for M1 and models with classes: samples, and reconstructions of given images."""

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
from pyro_ssvae.models import M1, SemiSupervisedModel
from pyro_ssvae.models.base import fork_random_state, get_device
from pyro_ssvae.plots.image_grid import cell_size, draw_image_grid, new_image_grid, to_rgb, to_tiles
from pyro_ssvae.plots.inputs import (
    as_class_names,
    as_image_shape,
    decode_means,
    encode_means,
    map_batches,
    select_examples,
)
from pyro_ssvae.plots.style import ALARM, INK, new_figure, set_title

__all__ = ["plot_reconstructions", "plot_samples"]

_PAIRS_PER_BAND = 10


def plot_samples(
    model: M1 | SemiSupervisedModel,
    *,
    num_columns: int = 10,
    class_names: Sequence[str] | None = None,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Figure:
    """Draw images from the generative model: one row per class, or a square grid for M1.

    Args:
        model: The model, with ``K`` classes or none.
        num_columns: Images per row.
        class_names: ``K`` names.
        image_shape: Shape of the images where examples are stored in another shape, for example ``(1, 28, 28)``.
        value_range: Values of x shown as black and as white.
        seed: Seed of the draws of z.

    Returns:
        Means of p(x|y,z) or p(x|z), with z drawn from its prior.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If examples are not images, or an argument does not fit the model.

    Example:
        >>> from pyro_ssvae import M2
        >>> m2 = M2((1, 8, 8), num_classes=3, latent_dim=2, hidden_dims=(8,))
        >>> figure = plot_samples(m2, num_columns=4)
    """
    num_columns = as_count(num_columns, "num_columns", least=1)
    shape = as_image_shape(model.event_shape, image_shape)
    names: list[str] = []
    with fork_random_state(model, seed):
        if isinstance(model, SemiSupervisedModel):
            names = as_class_names(class_names, model.num_classes)
            y = torch.arange(model.num_classes, device=get_device(model)).repeat_interleave(num_columns)
            x, _ = model.generate(len(y), y)
        else:
            x = model.generate(num_columns**2)
    figure = new_image_grid(to_tiles(x, shape, value_range, num_columns), names)
    if names:
        set_title(figure, "Generated images of each class", "mean of p(x|y,z), z drawn from p(z)")
    else:
        set_title(figure, "Generated images", "mean of p(x|z), z drawn from p(z)")
    return figure


def plot_reconstructions(
    model: M1 | SemiSupervisedModel,
    x: Tensor,
    y: Any = None,
    *,
    num_images: int = 20,
    class_names: Sequence[str] | None = None,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Draw images above their reconstructions, with the predicted class and its probability if there are classes.

    Args:
        model: The model, with ``K`` classes or none.
        x: Examples with shape ``(N, *event_shape)``, scaled as in training.
        y: True classes with shape ``(N,)``, -1 where unknown; wrong predictions are shown in red. Not used for M1.
        num_images: Largest number of examples shown, from the first on.
        class_names: ``K`` names.
        image_shape: Shape of the images where examples are stored in another shape, for example ``(1, 28, 28)``.
        value_range: Values of x shown as black and as white.

    Returns:
        Pairs of x and its reconstruction: the mean of p(x|y',z) at the predicted class y' and the mean of q(z|x,y');
        for M1 the mean of p(x|z) at the mean of q(z|x).

    Raises:
        TypeError: If ``x`` is not a floating-point tensor, or ``y`` holds no numbers.
        ValueError: If examples are not images, or an argument does not fit the model.

    Example:
        >>> from pyro_ssvae import M2
        >>> m2 = M2((1, 8, 8), num_classes=3, latent_dim=2, hidden_dims=(8,))
        >>> figure = plot_reconstructions(m2, torch.rand(4, 1, 8, 8), y=[0, 1, 2, -1])
    """
    shape = as_image_shape(model.event_shape, image_shape)
    x, y = select_examples(model, x, y, num_images)
    captions, wrong = [""] * len(x), np.zeros(len(x), bool)
    if isinstance(model, SemiSupervisedModel):
        names = as_class_names(class_names, model.num_classes)
        probability, predicted = map_batches(model.predict_proba, x).max(-1)
        decoded = decode_means(model, predicted, encode_means(model, x, predicted))
        true = torch.where(y < 0, predicted, y)
        wrong = (true != predicted).numpy()
        captions = [
            f"{names[k]}\n{_format_percent(p)}" + ("" if k == t else f"\nis {names[t]}")
            for k, p, t in zip(predicted.tolist(), probability.tolist(), true.tolist(), strict=True)
        ]
        note = "above: x; below: mean of p(x|y,z) at the predicted class, which is named with its q(y|x)"
    else:
        decoded = map_batches(model.reconstruct, x)
        note = "above: x; below: mean of p(x|z) at the mean of q(z|x)"
    pairs = np.stack([to_rgb(x, shape, value_range), to_rgb(decoded, shape, value_range)])
    figure = _draw_pairs(pairs, captions, wrong)
    set_title(figure, "Images and their reconstructions", note)
    return figure


def _format_percent(p: float) -> str:
    """Return a probability in percent, never rounded up to 100%."""
    return ">99%" if 0.99 < p < 1.0 else f"{p:.0%}"


def _draw_pairs(pairs: NDArray[np.float64], captions: Sequence[str], wrong: NDArray[np.bool_]) -> Figure:
    """Draw pairs ``(2, N, H, W, 3)`` in bands of ten, with a caption below each, red where ``wrong``."""
    num_bands = math.ceil(len(captions) / _PAIRS_PER_BAND)
    num_columns = min(len(captions), _PAIRS_PER_BAND)
    lines = [line for caption in captions for line in caption.split("\n")]
    width, height = cell_size(pairs, 2 * num_bands, num_columns, longest_label=max(map(len, lines)))
    num_lines = max(caption.count("\n") + bool(caption) for caption in captions)
    band_height = 2 * height + 0.13 * num_lines + 0.12
    figure = new_figure(width * num_columns + 0.3, num_bands * band_height + 0.5)
    for band, axes in enumerate(figure.subplots(num_bands, 1, squeeze=False)[:, 0]):
        part = slice(band * _PAIRS_PER_BAND, (band + 1) * _PAIRS_PER_BAND)
        tiles = pairs[:, part]
        # An incomplete band is padded with white, so that all bands have one scale.
        missing = [(0, 0), (0, num_columns - tiles.shape[1]), (0, 0), (0, 0), (0, 0)]
        draw_image_grid(axes, np.pad(tiles, missing, constant_values=1.0), (), captions[part])
        for label, is_wrong in zip(axes.get_xticklabels(), wrong[part], strict=True):
            label.set_color(ALARM if is_wrong else INK)
    return figure
