"""Figures of images: samples, reconstructions, analogies, interpolations and traversals."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pyro_ssvae._checks import as_count
from pyro_ssvae.models import DDGM, M1, SemiSupervisedModel
from pyro_ssvae.models.base import fork_random_state
from pyro_ssvae.plots.image_grid import cell_size, draw_image_grid, new_image_grid, to_rgb, to_tiles
from pyro_ssvae.plots.inputs import (
    as_class_names,
    as_image_shape,
    check_examples,
    complete_classes,
    decode_means,
    encode_means,
    map_batches,
    select_examples,
)
from pyro_ssvae.plots.style import ALARM, INK, new_figure, set_title

__all__ = ["plot_analogies", "plot_interpolations", "plot_reconstructions", "plot_samples", "plot_traversals"]

_PAIRS_PER_BAND = 10
_TRAVERSAL = (-3.0, -2.25, -1.5, -0.75, 0.0, 0.75, 1.5, 2.25, 3.0)


@functools.singledispatch
def plot_samples(
    model: M1 | SemiSupervisedModel | DDGM,
    *,
    num_columns: int = 10,
    class_names: Sequence[str] | None = None,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Figure:
    """Draw images from the generative model: one row per class, or a square grid for M1 and a DDGM.

    Args:
        model: The model.
        num_columns: Images per row.
        class_names: Names of the ``K`` classes of a model that has classes.
        image_shape: Shape of the images where examples are stored in another shape, for example ``(1, 28, 28)``.
        value_range: Values of x shown as black and as white.
        seed: Seed of the draws of z.

    Returns:
        Means of p(x|y,z) or p(x|z), with z drawn from its prior; for a DDGM samples in the order of their energies.

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
    if model.num_classes is None:
        names, y, num_images = [], None, num_columns**2
        title, note = "Generated images", "mean of p(x|z), z drawn from p(z)"
    else:
        names = as_class_names(class_names, model.num_classes)
        y = torch.arange(model.num_classes).repeat_interleave(num_columns)
        num_images = len(y)
        title, note = "Generated images of each class", "mean of p(x|y,z), z drawn from p(z)"
    with fork_random_state(model, seed):
        z = model.prior().sample((num_images,))
    x = decode_means(model, y, z)
    figure = new_image_grid(to_tiles(x, shape, value_range, num_columns), names)
    set_title(figure, title, note)
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
    captions, wrong, predicted = [""] * len(x), np.zeros(len(x), bool), None
    note = "above: x; below: mean of p(x|z) at the mean of q(z|x)"
    if model.num_classes is not None:
        names = as_class_names(class_names, model.num_classes)
        probability, predicted = map_batches(model.predict_proba, x).max(-1)
        true = torch.where(y < 0, predicted, y)
        wrong = (true != predicted).numpy()
        captions = [
            f"{names[k]}\n{_format_percent(p)}" + ("" if k == t else f"\nis {names[t]}")
            for k, p, t in zip(predicted.tolist(), probability.tolist(), true.tolist(), strict=True)
        ]
        note = "above: x; below: mean of p(x|y,z) at the predicted class, which is named with its q(y|x)"
    decoded = decode_means(model, predicted, encode_means(model, x, predicted))
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


@functools.singledispatch
def plot_analogies(
    model: SemiSupervisedModel | DDGM,
    x: Tensor,
    y: Any = None,
    *,
    num_images: int = 10,
    class_names: Sequence[str] | None = None,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Draw analogies between images.

    For a model with classes: images in the left column and, at the right of each, an image of every class decoded from
    the same z. For a :class:`pyro_ssvae.DDGM`: images a, b, c, and what is to c as b is to a by :meth:`DDGM.analogy`,
    from latents that :meth:`DDGM.invert` finds, whose images (G) are shown too; ``num_images`` and ``class_names`` are
    not accepted.

    Args:
        model: The model.
        x: Examples with shape ``(N, *event_shape)``, scaled as in training; for a DDGM a, b, c, one after another.
        y: Their classes, with shape ``(N,)``; predicted where not given or -1. For a DDGM they affect only the caption.
        num_images: Largest number of examples shown, from the first on.
        class_names: ``K`` names.
        image_shape: Shape of the images where examples are stored in another shape, for example ``(1, 28, 28)``.
        value_range: Values of x shown as black and as white.

    Returns:
        For a model with classes, means of p(x|y',z) for every class y', with z the mean of q(z|x,y).

    Raises:
        TypeError: If ``x`` is not a floating-point tensor, or ``y`` holds no numbers.
        ValueError: If examples are not images, or an argument does not fit the model.

    Example:
        >>> from pyro_ssvae import M2
        >>> m2 = M2((1, 8, 8), num_classes=3, latent_dim=2, hidden_dims=(8,))
        >>> figure = plot_analogies(m2, torch.rand(4, 1, 8, 8))
    """
    if model.num_classes is None:
        raise ValueError(f"Analogies need a model with classes or a DDGM, not {type(model).__name__} without classes.")
    names = as_class_names(class_names, model.num_classes)
    shape = as_image_shape(model.event_shape, image_shape)
    x, y = select_examples(model, x, y, num_images)
    z = encode_means(model, x, complete_classes(model, x, y))
    classes = torch.arange(model.num_classes).repeat(len(x))
    decoded = decode_means(model, classes, z.repeat_interleave(model.num_classes, 0))
    given = to_rgb(x, shape, value_range)[:, None]
    tiles = np.concatenate([given, to_tiles(decoded, shape, value_range, model.num_classes)], axis=1)
    figure = new_image_grid(tiles, column_names=["given", *names], lead=1)
    which = "predicted" if bool((y < 0).all()) else "true" if bool((y >= 0).all()) else "true or predicted"
    note = f"mean of p(x|y,z) for each y; z is the mean of q(z|x,y) at the {which} class"
    set_title(figure, "Analogies: every class in the style of the given image", note)
    return figure


@functools.singledispatch
def plot_interpolations(
    model: Any,
    start: Tensor,
    end: Tensor,
    *,
    steps: int = 10,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Draw examples between pairs of latents, along two paths for each.

    For :class:`pyro_ssvae.M1`, along a straight line and along an arc between the latents of given images. For a
    :class:`pyro_ssvae.DDGM`, along straight lines of latents and of features; for one of points in the plane as curves
    over the density, without the options.

    Args:
        model: An M1 or a DDGM.
        start: The ``N`` first ends: examples ``(N, *event_shape)`` for M1, latents ``(N, L)`` for a DDGM.
        end: The other ends, with the shape of ``start``.
        steps: Images of each interpolation, both ends included.
        image_shape: Shape of the images where examples are stored in another shape, for example ``(1, 28, 28)``.
        value_range: Values of x shown as black and as white.

    Returns:
        Two rows of images for each pair, for M1 with the given images at the left and the right.

    Raises:
        TypeError: If examples are not floating-point tensors.
        ValueError: If examples are not images, or do not fit the model or each other.

    Example:
        >>> from pyro_ssvae import M1
        >>> m1 = M1((1, 8, 8), latent_dim=2, hidden_dims=(8,))
        >>> figure = plot_interpolations(m1, torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8))
    """
    shape = as_image_shape(model.event_shape, image_shape)
    start, end = check_examples(model, start, "start"), check_examples(model, end, "end")
    rows = []
    for spherical in (False, True):
        path = model.interpolate(start, end, steps=steps, spherical=spherical).cpu()  # (steps, N, *event)
        rows.append(torch.cat([start[None].cpu(), path, end[None].cpu()]).transpose(0, 1))
    x = torch.stack(rows, 1).flatten(0, 2)  # (N * 2 * (steps + 2), *event)
    tiles = to_tiles(x, shape, value_range, steps + 2)
    figure = new_image_grid(tiles, ["straight", "arc"] * len(start), rows_per_group=2)
    set_title(figure, "Interpolations of z between two images", "left and right: given images; between: mean of p(x|z)")
    return figure


def plot_traversals(
    model: M1,
    x: Tensor,
    *,
    num_latents: int = 10,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Draw how an image changes with single latents: those whose posterior means vary most over the examples.

    Args:
        model: The model.
        x: Examples with shape ``(N, *event_shape)``, scaled as in training; the first one is changed.
        num_latents: Largest number of latents shown.
        image_shape: Shape of the images where examples are stored in another shape, for example ``(1, 28, 28)``.
        value_range: Values of x shown as black and as white.

    Returns:
        A row of images for each latent, set to values from -3 to 3.

    Raises:
        TypeError: If ``x`` is not a floating-point tensor.
        ValueError: If examples are not images, or do not fit the model.

    Example:
        >>> from pyro_ssvae import M1
        >>> figure = plot_traversals(M1((1, 8, 8), latent_dim=2, hidden_dims=(8,)), torch.rand(4, 1, 8, 8))
    """
    shape = as_image_shape(model.event_shape, image_shape)
    x = check_examples(model, x)
    std = map_batches(model.transform, x).std(0, correction=0)
    chosen = std.argsort(descending=True)[: as_count(num_latents, "num_latents", least=1)].tolist()
    images = torch.cat([model.traverse(x[:1], dim, _TRAVERSAL).squeeze(1).cpu() for dim in chosen])
    names = [f"z[{dim}] ({std[dim]:.2f})" for dim in chosen]
    tiles = to_tiles(images, shape, value_range, len(_TRAVERSAL))
    figure = new_image_grid(tiles, names, [f"{value:g}" for value in _TRAVERSAL])
    note = "mean of p(x|z) with one latent set to the value above; in brackets: std of its posterior mean over examples"
    set_title(figure, "Traversals of single latents", note)
    return figure
