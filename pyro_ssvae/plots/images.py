"""Figures of images: samples, reconstructions, analogies, interpolations and traversals."""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pyro_ssvae._arguments import as_count
from pyro_ssvae.models import SemiSupervisedModel
from pyro_ssvae.models.base import fork_random_state, get_device
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.models.generation import generate_x, mean_of
from pyro_ssvae.models.m1 import M1
from pyro_ssvae.plots import style

_PAIRS_PER_BAND = 10
_TRAVERSAL = (-3.0, -2.25, -1.5, -0.75, 0.0, 0.75, 1.5, 2.25, 3.0)


@functools.singledispatch
def plot_samples(
    model: M1 | SemiSupervisedModel | DDGM,
    *,
    num_columns: int = 10,
    class_names: Sequence[str] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Figure:
    """Draw images from the generative model: a row of ``num_columns`` per class, or a square for M1 and a DDGM.

    They are means of p(x|y,z) or p(x|z), with z drawn from its prior; for a DDGM samples in the order of their
    energies.

    Example:
        >>> from pyro_ssvae import M2
        >>> m2 = M2((1, 8, 8), num_classes=3, latent_dim=2, hidden_dims=(8,))
        >>> figure = plot_samples(m2, num_columns=4)
    """
    num_columns = as_count(num_columns, "num_columns", least=1)
    names: Sequence[str] = ()
    y, num_rows, title, given = None, num_columns, "Generated images", "z"
    if model.num_classes is not None:
        names, num_rows = style.as_class_names(class_names, model.num_classes), model.num_classes
        y = torch.arange(num_rows, device=get_device(model)).repeat_interleave(num_columns)
        title, given = f"{title} of each class", "y,z"
    with fork_random_state(model, seed):
        means = mean_of(generate_x(model, num_rows * num_columns, y)[0])
    tiles = style.to_tiles(model, means, num_columns, value_range)
    return style.new_image_grid(tiles, title, f"mean of p(x|{given}), z drawn from p(z)", row_names=names)


def plot_reconstructions(
    model: M1 | SemiSupervisedModel,
    x: Tensor,
    y: Any = None,
    *,
    num_images: int = 20,
    class_names: Sequence[str] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Figure:
    """Draw images above their reconstructions: ``num_images`` of ``x``, at random and of all classes alike.

    A reconstruction is the mean of p(x|y',z) at the predicted class y' and the mean of q(z|x,y'), with y' and its
    probability below, red where ``y`` is another class; for M1 the mean of p(x|z) at the mean of q(z|x).
    """
    x, y = style.select_examples(model, x, y, num_images, seed)
    captions, wrong, predicted = [""] * len(x), [False] * len(x), None
    note = "above: x; below: mean of p(x|z) at the mean of q(z|x)"
    if model.num_classes is not None:
        names = style.as_class_names(class_names, model.num_classes)
        probability, predicted = model.predict_proba(x).cpu().max(-1)
        true = torch.where(y < 0, predicted, y)
        wrong = (true != predicted).tolist()
        captions = [
            f"{names[k]}\n{'>99%' if 0.99 < p < 1.0 else f'{p:.0%}'}" + ("" if k == t else f"\nis {names[t]}")
            for k, p, t in zip(predicted.tolist(), probability.tolist(), true.tolist(), strict=True)
        ]
        note = "above: x; below: mean of p(x|y,z) at the predicted class, which is named with its q(y|x)"
    decoded = style.decode_means(model, predicted, style.encode_means(model, x, predicted))
    pairs = [style.to_tiles(model, images, len(x), value_range) for images in (x, decoded)]
    colours = [style.ALARM if is_wrong else style.INK for is_wrong in wrong]
    figure = _draw_pairs(np.concatenate(pairs), captions, colours)
    style.set_title(figure, "Images and their reconstructions", note)
    return figure


def _draw_pairs(pairs: NDArray[np.float64], captions: Sequence[str], colours: Sequence[str]) -> Figure:
    """Draw pairs ``(2, N, H, W, 3)`` in bands of ten, with a caption in its colour below each, in lines that fit."""
    num_bands, num_columns = math.ceil(len(captions) / _PAIRS_PER_BAND), min(len(captions), _PAIRS_PER_BAND)
    longest = max(len(line) for caption in captions for line in caption.split("\n"))
    width, height = style.cell_size(pairs, 2 * num_bands, num_columns, longest_label=longest)
    most = max(1, int(width / style.CHARACTER))  # characters of a line that fit below a cell
    captions = ["\n".join(textwrap.fill(line, most) for line in caption.split("\n")) for caption in captions]
    num_lines = max(caption.count("\n") + bool(caption) for caption in captions)
    figure = style.new_figure(width * num_columns + 0.3, num_bands * (2 * height + 0.14 * num_lines + 0.12) + 0.8)
    # An incomplete band is padded with white, so that all bands have one scale.
    missing = [(0, 0), (0, num_bands * num_columns - len(captions)), (0, 0), (0, 0), (0, 0)]
    bands = np.split(np.pad(pairs, missing, constant_values=1.0), num_bands, axis=1)
    for band, axes in enumerate(figure.subplots(num_bands, 1, squeeze=False)[:, 0]):
        part = slice(band * num_columns, (band + 1) * num_columns)
        style.draw_image_grid(axes, bands[band], (), captions[part])
        for label, colour in zip(axes.get_xticklabels(), colours[part], strict=True):
            label.set_color(colour)
    return figure


@functools.singledispatch
def plot_analogies(
    model: SemiSupervisedModel | DDGM,
    x: Tensor,
    y: Any = None,
    *,
    num_images: int = 10,
    class_names: Sequence[str] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Figure:
    """Draw analogies between images.

    For a model with classes: at the left ``num_images`` of ``x``, at random and of all classes alike, and at the right
    the mean of p(x|y',z) for every class y', with z the mean of q(z|x,y); y is predicted where it is not given or -1.

    For a :class:`pyro_ssvae.DDGM`: images a, b, c (one after another in ``x``), and what is to c as b is to a by
    :meth:`DDGM.analogy`, from latents that :meth:`DDGM.invert` finds, whose images (G) are shown too; ``y`` affects
    only the caption, and ``num_images``, ``class_names`` and ``seed`` are not accepted.
    """
    if model.num_classes is None:
        raise ValueError(f"Analogies need a model with classes or a DDGM, not {type(model).__name__} without classes.")
    names = style.as_class_names(class_names, model.num_classes)
    x, y = style.select_examples(model, x, y, num_images, seed)
    decoded = style.decode_classes(model, x, style.complete_classes(model, x, y))
    shown = torch.cat([x.cpu()[:, None], decoded], 1)
    which = "predicted" if bool((y < 0).all()) else "true" if bool((y >= 0).all()) else "true or predicted"
    return style.new_image_grid(
        style.to_tiles(model, shown, shown.shape[1], value_range),
        "Analogies: every class in the style of the given image",
        f"mean of p(x|y,z) for each y; z is the mean of q(z|x,y) at the {which} class",
        column_names=["given", *names],
        lead=1,
    )


@functools.singledispatch
def plot_interpolations(
    model: Any,
    start: Tensor,
    end: Tensor,
    *,
    steps: int = 10,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Draw ``steps`` examples between each of ``N`` pairs of ends, both included, along two paths.

    For :class:`pyro_ssvae.M1`, ``start`` and ``end`` are images, and the paths a straight line and an arc between their
    latents. For a :class:`pyro_ssvae.DDGM`, they are latents ``(N, L)``, and the paths straight lines of latents and of
    features; for one of points in the plane as curves over the density, without the options.
    """
    start, end = style.check_examples(model, start, "start"), style.check_examples(model, end, "end")
    rows = []
    for spherical in (False, True):
        path = model.interpolate(start, end, steps=steps, spherical=spherical).cpu()  # (steps, N, *event)
        rows.append(torch.cat([start[None].cpu(), path, end[None].cpu()]).transpose(0, 1))
    x = torch.stack(rows, 1).flatten(0, 2)  # (N * 2 * (steps + 2), *event)
    return style.new_image_grid(
        style.to_tiles(model, x, steps + 2, value_range),
        "Interpolations of z between two images",
        "left and right: given images; between: mean of p(x|z)",
        row_names=["straight", "arc"] * len(start),
        rows_per_group=2,
    )


def plot_traversals(
    model: M1,
    x: Tensor,
    *,
    num_latents: int = 10,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Draw how the first image changes with single latents, set to values from -3 to 3.

    These are the ``num_latents`` latents whose posterior means vary most over the examples.
    """
    if not isinstance(model, M1):
        raise ValueError(f"Traversals need an M1, not {type(model).__name__}; for its classes see plot_analogies.")
    x = style.check_examples(model, x)
    std = model.transform(x).cpu().std(0, correction=0)
    chosen = std.argsort(descending=True)[: as_count(num_latents, "num_latents", least=1)].tolist()
    images = torch.cat([model.traverse(x[:1], dim, _TRAVERSAL).squeeze(1).cpu() for dim in chosen])
    return style.new_image_grid(
        style.to_tiles(model, images, len(_TRAVERSAL), value_range),
        "Traversals of single latents",
        "mean of p(x|z) with one latent set to the value above; in brackets: std of its posterior mean over examples",
        row_names=[f"z[{dim}] ({std[dim]:.2f})" for dim in chosen],
        column_names=[f"{value:g}" for value in _TRAVERSAL],
    )
