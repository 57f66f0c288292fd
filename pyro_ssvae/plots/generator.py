"""Figures of an energy model of images: samples, their nearest training images and classes, and energies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pyro_ssvae._checks import as_count, to_numpy
from pyro_ssvae.evaluation.image_metrics import (
    CORRUPTIONS,
    compute_energies,
    corrupt_images,
    find_nearest,
    sample_images,
)
from pyro_ssvae.models import DDGM
from pyro_ssvae.plots.image_grid import new_image_grid, to_rgb
from pyro_ssvae.plots.inputs import as_class_names, as_image_shape, check_examples
from pyro_ssvae.plots.style import ACCENT, FAINT, INK, new_figure, set_title, style_axes

__all__ = ["plot_class_shares", "plot_energies", "plot_generated", "plot_nearest"]


def plot_generated(
    model: DDGM,
    *,
    num_rows: int = 10,
    num_columns: int = 10,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Figure:
    """Show generated images in the order of their energies, the smallest first.

    Args:
        model: The model.
        num_rows: Rows of images.
        num_columns: Images in a row.
        image_shape: Shape of the images that examples of another shape hold, for example ``(1, 28, 28)``.
        value_range: Values of x shown as black and as white.
        seed: Seed of the draws of z; the caller's random state is left as it was.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If the model is not one of images.
    """
    num_rows, num_columns = as_count(num_rows, "num_rows", least=1), as_count(num_columns, "num_columns", least=1)
    shape = as_image_shape(model.event_shape, image_shape)
    x = sample_images(model, num_rows * num_columns, seed)
    x = x[model.energy(x).cpu().argsort()]
    figure = new_image_grid(to_rgb(x, shape, value_range).reshape(num_rows, num_columns, *shape[1:], 3))
    set_title(figure, "Generated images", "x = G(z), those of least energy first")
    return figure


def plot_nearest(
    model: DDGM,
    x: Tensor,
    *,
    num_rows: int = 4,
    num_columns: int = 10,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Figure:
    """Show generated images above the nearest training image, to reveal memorised ones.

    Args:
        model: The model.
        x: Training images with shape ``(N, *event_shape)``, scaled as in training.
        num_rows: Rows of pairs.
        num_columns: Pairs in a row.
        image_shape: Shape of the images that examples of another shape hold, for example ``(1, 28, 28)``.
        value_range: Values of x shown as black and as white.
        seed: Seed of the draws of z; the caller's random state is left as it was.

    Raises:
        TypeError: If a number is no integer, or ``x`` no floating-point tensor.
        ValueError: If ``x`` does not hold images, or does not have the model's event shape.
    """
    num_rows, num_columns = as_count(num_rows, "num_rows", least=1), as_count(num_columns, "num_columns", least=1)
    shape = as_image_shape(model.event_shape, image_shape)
    x = check_examples(model, x)
    drawn = sample_images(model, num_rows * num_columns, seed)
    distance, place = find_nearest(drawn, x)
    size = (num_rows, num_columns, *shape[1:], 3)
    pairs = [to_rgb(part, shape, value_range).reshape(size) for part in (drawn, x[place])]
    tiles = np.stack(pairs, 1).reshape(2 * num_rows, *size[1:])
    figure = new_image_grid(tiles, ["drawn", "nearest"] * num_rows)
    set_title(
        figure, "Generated images and the nearest training images", f"median distance {float(distance.median()):.2f}"
    )
    return figure


def plot_energies(model: DDGM, x: Tensor, *, seed: int = 0) -> Figure:
    """Show quantiles of the energies of real, generated and corrupted images.

    Args:
        model: The model.
        x: Images with shape ``(N, C, H, W)``, scaled as in training, preferably held-out ones.
        seed: Seed of all draws; the caller's random state is left as it was.

    Raises:
        TypeError: If ``x`` is no floating-point tensor.
        ValueError: If ``x`` does not have the model's event shape.
    """
    x = check_examples(model, x)
    generator = torch.Generator().manual_seed(seed)
    groups = {"real": x, "generated": sample_images(model, len(x), seed)}
    groups |= {kind: corrupt_images(x, kind, generator) for kind in CORRUPTIONS}
    energies = {name: compute_energies(model, images) for name, images in groups.items()}
    figure = new_figure(6.4, 0.45 * len(groups) + 1.0)
    axes = figure.subplots()
    for height, (name, values) in enumerate(reversed(energies.items())):
        low, lower, middle, upper, high = torch.quantile(values, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])).tolist()
        colour = INK if name in ("real", "generated") else FAINT
        axes.plot([low, high], [height, height], color=colour, linewidth=1.0)
        axes.plot([lower, upper], [height, height], color=colour, linewidth=5.0, solid_capstyle="butt")
        axes.plot(middle, height, "o", color="white", markersize=3.5, markeredgecolor=INK, markeredgewidth=0.6)
    axes.set_yticks(range(len(energies)), list(reversed(energies)))
    axes.set_xlabel("energy, nats")
    style_axes(axes)
    set_title(figure, "Energies", "thick: the middle half; thin: 5 % to 95 %")
    return figure


def plot_class_shares(
    shares: Any, class_names: Sequence[str] | None = None, real_shares: Any = None, *, title: str = "Generated classes"
) -> Figure:
    """Show the share of each class among generated and real images.

    Args:
        shares: Share of each class among generated images, with shape ``(K,)``: ``class_shares`` of
            :func:`pyro_ssvae.evaluation.measure_generated_images`.
        class_names: ``K`` names; ``None`` for "0", "1", ...
        real_shares: The same of real images, ``real_class_shares`` there; ``None`` to show none.
        title: Title of the figure.

    Raises:
        TypeError: If shares are not numbers.
        ValueError: If they are no shares of at least two classes, or differ in number from each other or the names.

    Example:
        >>> figure = plot_class_shares([0.4, 0.6], ["cat", "dog"], real_shares=[0.5, 0.5])
        >>> [float(bar.get_height()) for bar in figure.axes[0].patches]
        [40.0, 60.0]
    """
    generated = _as_shares(shares, "shares")
    names = as_class_names(class_names, len(generated))
    place = np.arange(len(names))
    figure = new_figure(float(np.clip(1.6 + 0.45 * len(names), 4.0, 11.0)), 3.2)
    axes = figure.subplots()
    axes.bar(place, 100.0 * generated, 0.7, color=ACCENT, label="generated")
    if real_shares is not None:
        real = _as_shares(real_shares, "real_shares")
        if len(real) != len(generated):
            raise ValueError(f"real_shares holds {len(real)} classes, shares {len(generated)}; they must be the same.")
        axes.plot(place, 100.0 * real, "_", color=INK, markersize=16.0, markeredgewidth=2.0, label="real")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2, fontsize=8, frameon=False, labelcolor=INK)
    turned = max(map(len, names)) > 3
    axes.set_xticks(place, names, rotation=40.0 if turned else 0.0, ha="right" if turned else "center")
    axes.set_ylim(0.0, None)
    axes.set_ylabel("share, %")
    style_axes(axes)
    least = int(generated.argmin())
    set_title(figure, title, f"least: {names[least]}, {generated[least]:.1%}")
    return figure


def _as_shares(values: Any, name: str) -> NDArray[np.float64]:
    shares = to_numpy(values, name).astype(np.float64)
    if shares.ndim != 1 or len(shares) < 2 or not (shares >= 0.0).all() or abs(shares.sum() - 1.0) > 1e-3:
        raise ValueError(
            f"{name} has shape {shares.shape} and sums to {shares.sum():g}; shares of at least two classes, (K,), "
            "are needed, none negative and of sum 1."
        )
    return shares
