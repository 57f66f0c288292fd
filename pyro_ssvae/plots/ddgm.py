"""Figures of a DDGM: samples, nearest training images, interpolations, analogies, energies, features and latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pyro_ssvae._checks import as_count
from pyro_ssvae.evaluation.image_metrics import (
    CORRUPTIONS,
    compute_energies,
    corrupt_images,
    find_nearest,
    sample_images,
)
from pyro_ssvae.models.base import fork_random_state
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.plots.ddgm_toy import draw_paths
from pyro_ssvae.plots.image_grid import new_image_grid, to_tiles
from pyro_ssvae.plots.images import plot_analogies, plot_interpolations, plot_samples
from pyro_ssvae.plots.inputs import as_classes, as_image_shape, check_examples
from pyro_ssvae.plots.style import (
    ACCENT,
    FAINT,
    INK,
    add_colour_bar,
    name_ticks,
    new_figure,
    set_title,
    style_axes,
)

__all__ = ["plot_energies", "plot_features_and_latents", "plot_nearest"]

_SPACES = ("z", "features")
_NEAREST_ROWS = 4
_BINS = 10
_MAX_FEATURES = 64
_FEATURE_SAMPLES = 2000


@plot_samples.register
def _(
    model: DDGM,
    *,
    num_columns: int = 10,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Figure:
    num_columns = as_count(num_columns, "num_columns", least=1)
    shape = as_image_shape(model.event_shape, image_shape)
    x = sample_images(model, num_columns**2, seed)
    x = x[model.energy(x).cpu().argsort()]
    figure = new_image_grid(to_tiles(x, shape, value_range, num_columns))
    set_title(figure, "Generated images", "x = G(z), in the order of their energies, the lowest first")
    return figure


@plot_interpolations.register
def _(
    model: DDGM,
    start: Tensor,
    end: Tensor,
    *,
    steps: int = 10,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    if tuple(model.event_shape) == (2,):
        return draw_paths(model, start, end)
    shape = as_image_shape(model.event_shape, image_shape)
    paths = [model.interpolate(start, end, steps=steps, space=space).cpu() for space in _SPACES]
    images = torch.stack(paths).transpose(0, 2).transpose(1, 2)  # (N, 2, steps, *event)
    tiles = to_tiles(images.flatten(0, 2), shape, value_range, steps)
    figure = new_image_grid(tiles, _SPACES * len(start), rows_per_group=2)
    set_title(figure, "Interpolations between two samples", "along straight lines of z, and of features f(x)")
    return figure


@plot_analogies.register
def _(
    model: DDGM,
    x: Tensor,
    y: Any = None,
    *,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    shape = as_image_shape(model.event_shape, image_shape)
    x = check_examples(model, x)
    if len(x) % 3:
        raise ValueError(f"x holds {len(x)} images; analogies take three each: a, b and c.")
    with fork_random_state(model, 0):  # of the starting points of the inversion
        z = model.invert(x)
        a, b, c = z.view(-1, 3, model.latent_dim).unbind(1)
        answers = [model.analogy(a, b, c, space=space).cpu() for space in _SPACES]
        decoded = model.generate_from(z).cpu()
    given = torch.stack([x.cpu(), decoded], 1).view(-1, 6, *model.event_shape)  # a, G, b, G, c, G
    images = torch.cat([given, torch.stack(answers, 1)], 1)
    tiles = to_tiles(images.flatten(0, 1), shape, value_range, 8)
    figure = new_image_grid(tiles, column_names=["a", "G", "b", "G", "c", "G", "by z", "by f"], lead=6)
    note = "G: the image of the generator that is nearest to the one at its left"
    if y is not None:
        first, second, third = as_classes(y, "y", len(x), model.num_classes, allow_unlabelled=True).view(-1, 3).T
        if bool(((first == second) & (second != third) & (first >= 0) & (third >= 0)).all()):
            note += "\na and b are of one class, c of another: the answer should be c's class in b's style"
    set_title(figure, "Analogies: a is to b as c is to …", note)
    return figure


def plot_nearest(
    model: DDGM,
    x: Tensor,
    *,
    num_columns: int = 10,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Figure:
    """Draw four rows of generated images, each above the nearest training image, to reveal memorised ones.

    Args:
        model: The model.
        x: Training images with shape ``(N, *event_shape)``, scaled as in training.
        num_columns: Images in a row.
        image_shape: Shape of the images where examples are stored in another shape, for example ``(1, 28, 28)``.
        value_range: Values of x shown as black and as white.
        seed: Seed of the draws of z.

    Raises:
        TypeError: If ``x`` is not a floating-point tensor, or a number not an integer.
        ValueError: If examples are not images, or do not fit the model.
    """
    num_columns = as_count(num_columns, "num_columns", least=1)
    shape = as_image_shape(model.event_shape, image_shape)
    x = check_examples(model, x)
    samples = sample_images(model, _NEAREST_ROWS * num_columns, seed)
    distance, index = find_nearest(samples, x)
    tiles = [to_tiles(images, shape, value_range, num_columns) for images in (samples, x[index])]
    pairs = np.stack(tiles, 1).reshape(-1, *tiles[0].shape[1:])
    figure = new_image_grid(pairs, ["sample", "nearest"] * _NEAREST_ROWS, rows_per_group=2)
    note = f"median distance {float(distance.median()):.2f}"
    set_title(figure, "Generated images and the nearest training images", note)
    return figure


def plot_energies(model: DDGM, x: Tensor, *, seed: int = 0) -> Figure:
    """Draw box plots of the energies of real, generated and corrupted images.

    Args:
        model: The model.
        x: Images with shape ``(N, C, H, W)``, scaled as in training, preferably held-out ones.
        seed: Seed of all draws.

    Raises:
        TypeError: If ``x`` is not a floating-point tensor.
        ValueError: If ``x`` does not have the model's event shape.
    """
    x = check_examples(model, x)
    generator = torch.Generator().manual_seed(seed)
    images = {"real": x, "generated": sample_images(model, len(x), seed)}
    images |= {kind: corrupt_images(x, kind, generator) for kind in CORRUPTIONS}
    energies = [compute_energies(model, part).numpy() for part in images.values()]
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    boxes = axes.boxplot(energies, whis=(5, 95), showfliers=False, widths=0.55, patch_artist=True)
    for box, median, name in zip(boxes["boxes"], boxes["medians"], images, strict=True):
        box.set(facecolor="#c5dff4" if name in ("real", "generated") else "#e6e6e6", edgecolor=FAINT)
        median.set(color=INK, linewidth=1.5)
    axes.set_xticklabels(list(images))
    axes.set_ylabel("energy, nats")
    style_axes(axes)
    set_title(figure, "Energies", "line: median; box: 25% to 75%; whiskers: 5% to 95%")
    return figure


def plot_features_and_latents(model: DDGM, *, seed: int = 0) -> Figure:
    r"""Draw how much each feature of samples depends on each latent.

    .. math:: \eta^2_{ij} = \frac{\mathrm{Var}_{z_j}\, \mathbb E[f_i(G(z)) \mid z_j]}{\mathrm{Var}\, f_i(G(z))}

    is the share of a feature's variance that one latent explains alone (the correlation ratio; a first-order Sobol
    index), estimated from 2000 samples by means in ten bins of equal counts and corrected for chance (Kelley's ε²). The
    rest is due to interactions of latents.

    Args:
        model: The model; of its features the 64 of the largest variance are shown.
        seed: Seed of the draws of z.
    """
    with fork_random_state(model, seed):
        z = model.prior().sample((_FEATURE_SAMPLES,))
        features = torch.cat([model.features(model.generate_from(part)) for part in z.split(500)])
    features = features[:, features.var(0).argsort(descending=True)[:_MAX_FEATURES]]
    shares = _correlation_ratios(z.double().cpu().numpy(), features.double().cpu().numpy())  # (L, F)
    shares = shares[:, np.lexsort((-shares.max(0), shares.argmax(0)))]
    width, height = np.clip([1.6 + 0.14 * shares.shape[1], 1.5 + 0.14 * shares.shape[0]], [5.0, 2.2], [11.0, 8.0])
    figure = new_figure(float(width), float(height))
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=max(float(shares.max()), 1e-3), aspect="auto")
    style_axes(axes, frame=False)
    axes.set(xlabel="feature, by the latent that explains most of it", ylabel="latent")
    add_colour_bar(figure, image, axes, "share explained", aspect=25)
    total = float(np.clip(shares.sum(0).mean(), 0.0, 1.0))
    set_title(figure, "Features and latents", f"latents one by one explain {total:.0%} of a feature's variance")
    return figure


def _correlation_ratios(z: NDArray[np.float64], features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the corrected shares, with shape ``(L, F)``."""
    order = z.argsort(0)
    variance = features.var(0)
    between = np.zeros((z.shape[1], features.shape[1]))
    for latent in range(z.shape[1]):
        for part in np.array_split(features[order[:, latent]], _BINS):
            between[latent] += len(part) / len(z) * (part.mean(0) - features.mean(0)) ** 2
    shares = np.divide(between, variance, out=np.zeros_like(between), where=variance > 0.0)
    adjusted: NDArray[np.float64] = 1.0 - (1.0 - shares) * (len(z) - 1) / (len(z) - _BINS)
    return np.where(variance > 0.0, adjusted, 0.0)


def plot_class_shares(found: dict[str, Any], class_names: Sequence[str]) -> Figure:
    """Draw the share of each class among generated images and, where there are any, among held-out ones."""
    figure = new_figure(max(4.0, 1.6 + 0.45 * len(class_names)), 3.2)
    axes = figure.subplots()
    shares = axes.bar(range(len(class_names)), [100.0 * share for share in found["class_shares"]], color=ACCENT)
    axes.bar_label(shares, fmt="%.1f", padding=3, fontsize=8)
    real = "real_class_shares" in found
    if real:
        axes.plot([100.0 * share for share in found["real_class_shares"]], "_", color=INK, markersize=16.0)
    name_ticks(axes, class_names)
    axes.set_ylabel("share, %")
    style_axes(axes)
    set_title(figure, "Classes of generated images", "line: share among held-out images" if real else "")
    return figure
