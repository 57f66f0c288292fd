"""Figures of latents and features of a DDGM: interpolations, analogies, and how features depend on latents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pyro_ssvae._checks import as_count
from pyro_ssvae.evaluation import Grid
from pyro_ssvae.models import DDGM
from pyro_ssvae.models.base import fork_random_state
from pyro_ssvae.plots.image_grid import new_image_grid, to_rgb
from pyro_ssvae.plots.inputs import as_image_shape, check_examples
from pyro_ssvae.plots.style import INK, class_colours, new_figure, set_title, style_axes

__all__ = ["plot_arithmetic", "plot_features_and_latents", "plot_paths", "plot_plane_paths"]

_BINS = 10
_MAX_FEATURES = 64


def plot_paths(
    model: DDGM,
    *,
    num_rows: int = 4,
    steps: int = 10,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Figure:
    """Show samples between pairs of draws, along lines in the space of z and of features.

    Args:
        model: The model.
        num_rows: Number of pairs of draws; each has two rows of images.
        steps: Number of images of each path, both ends included.
        image_shape: Shape of the images that examples of another shape hold, for example ``(1, 28, 28)``.
        value_range: Values of x shown as black and as white.
        seed: Seed of the draws of z; the caller's random state is left as it was.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If the model is not one of images, or for fewer than two steps.
    """
    num_rows = as_count(num_rows, "num_rows", least=1)
    shape = as_image_shape(model.event_shape, image_shape)
    with fork_random_state(model, seed):
        start, end = model.prior().sample((2, num_rows))
        paths = [model.interpolate(start, end, steps=steps, space=space) for space in ("z", "features")]
    images = torch.stack(paths).permute(2, 0, 1, *range(3, paths[0].dim() + 1)).cpu()  # (pairs, 2, steps, ...)
    tiles = to_rgb(images.flatten(0, 2), shape, value_range).reshape(2 * num_rows, steps, *shape[1:], 3)
    figure = new_image_grid(tiles, num_rows * ["z", "features"])
    set_title(figure, "From one draw to another", "along straight lines of z, and of features f(x)")
    return figure


def plot_plane_paths(model: DDGM, *, num_paths: int = 6, steps: int = 25, extent: float = 4.5, seed: int = 0) -> Figure:
    """Show points generated between draws, along lines of z and of features, and an analogy, over the density.

    Args:
        model: A model of points in the plane.
        num_paths: Number of pairs of draws.
        steps: Number of points of each path, both ends included.
        extent: The square [-extent, extent]² is shown, and the density normalised on it.
        seed: Seed of the draws of z; the caller's random state is left as it was.

    Returns:
        A figure of paths in z and in features, each from a ring to a dot, and of three draws a, b, c with the
        analogies.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If the model is not one of points in the plane, or for fewer than two steps.
    """
    if tuple(model.event_shape) != (2,):
        raise ValueError(f"Paths in the plane need a model with event shape (2,), not {tuple(model.event_shape)}.")
    num_paths = as_count(num_paths, "num_paths", least=1)
    with fork_random_state(model, seed):
        start, end = model.prior().sample((2, num_paths))
        a, b, c = model.prior().sample((3, 1))
        paths = [model.interpolate(start, end, steps=steps, space=space).cpu() for space in ("z", "features")]
        corners = torch.cat([model.generate_from(z) for z in (a, b, c)]).cpu()
        answers = [model.analogy(a, b, c, space=space).cpu() for space in ("z", "features")]
    grid = Grid(extent=extent, size=181)
    density = grid.probabilities(model.score_samples).sqrt().numpy()
    figure = new_figure(11.0, 3.9)
    panels = figure.subplots(1, 3)
    for axes in panels:
        axes.imshow(density, origin="lower", extent=(-extent, extent, -extent, extent), cmap="Greys")
    for axes, x, title in zip(panels, paths, ("Lines of z", "Lines of features f(x)"), strict=False):
        axes.set_title(title, fontsize=9, color=INK)
        for colour, path in zip(class_colours(num_paths), x.transpose(0, 1).numpy(), strict=True):
            axes.plot(*path.T, color=colour, linewidth=1.4)
            axes.plot(*path[0], "o", color=colour, markersize=5.0, markerfacecolor="white")
            axes.plot(*path[-1], "o", color=colour, markersize=5.0)
    _draw_analogy(panels[2], *torch.cat([corners, *answers]).tolist())
    for axes in panels:
        style_axes(axes, frame=False)
        axes.set(xlim=(-extent, extent), ylim=(-extent, extent), xticks=[], yticks=[])
        axes.set_aspect("equal")
    set_title(figure, "From one draw to another", "over exp(−E)/Z, root scale; from ring to dot")
    return figure


def _draw_analogy(axes: Axes, *points: Sequence[float]) -> None:
    """Draw arrows between five points: from a to b, and from c to the answers by z and by features."""
    axes.set_title("a is to b as c is to …", fontsize=9, color=INK)
    a, b, c, by_z, by_features = ((x, y) for x, y in points)
    first, second = class_colours(2)
    for start, end, colour in ((a, b, INK), (c, by_z, first), (c, by_features, second)):
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0})
    named = {"a": (a, INK), "b": (b, INK), "c": (c, INK), "by z": (by_z, first), "by f": (by_features, second)}
    for name, (point, colour) in named.items():
        axes.plot(*point, "o", color=colour, markersize=4.0)
        axes.annotate(name, point, (4, 4), textcoords="offset points", fontsize=8, color=colour)


def plot_arithmetic(
    model: DDGM,
    x: Tensor,
    *,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    note: str = "",
    seed: int = 0,
) -> Figure:
    """Show analogies, what is to c as b is to a, by arithmetic on latents and on features.

    The latents of given images are found by :meth:`pyro_ssvae.DDGM.invert`; samples from these latents are shown beside
    the images.

    Args:
        model: The model.
        x: Images with shape ``(3 N, *event_shape)``, scaled as in training: N times a, b and c.
        image_shape: Shape of the images that examples of another shape hold, for example ``(1, 28, 28)``.
        value_range: Values of x shown as black and as white.
        note: Further text below the figure.
        seed: Seed of the starting points; the caller's random state is left as it was.

    Raises:
        TypeError: If ``x`` is no floating-point tensor.
        ValueError: If ``x`` does not hold images of the model's event shape, or not three for each analogy.
    """
    shape = as_image_shape(model.event_shape, image_shape)
    x = check_examples(model, x)
    if not len(x) or len(x) % 3:
        raise ValueError(f"x holds {len(x)} images; analogies take three each: a, b and c.")
    with fork_random_state(model, seed):
        z = model.invert(x)
        a, b, c = z.view(-1, 3, model.latent_dim).unbind(1)
        found = [model.analogy(a, b, c, space=space) for space in ("z", "features")]
        again = model.generate_from(z)
    triples = [images.cpu().view(-1, 3, *model.event_shape) for images in (x, again)]
    answers = torch.stack(found, 1).cpu()
    images = torch.cat([torch.stack(triples, 2).flatten(1, 2), answers], 1)  # (N, 8, *event)
    tiles = to_rgb(images.flatten(0, 1), shape, value_range).reshape(*images.shape[:2], *shape[1:], 3)
    figure = new_image_grid(tiles, (), ["a", "G", "b", "G", "c", "G", "by z", "by f"], lead=6)
    legend = "G: the generator's nearest image"
    set_title(figure, "a is to b as c is to …", f"{legend}\n{note}" if note else legend)
    return figure


def plot_features_and_latents(model: DDGM, *, num_samples: int = 2000, seed: int = 0) -> Figure:
    r"""Show how much each feature of samples depends on each latent.

    .. math:: \eta^2_{ij} = \frac{\mathrm{Var}_{z_j}\, \mathbb E[f_i(G(z)) \mid z_j]}{\mathrm{Var}\, f_i(G(z))}

    the share of a feature's variance that one latent explains alone (the correlation ratio; a first-order Sobol
    index), estimated from means in ten bins of equal counts and corrected for chance (Kelley's ε²). The rest is due to
    interactions of latents.

    Args:
        model: The model; at most 64 features, those of the largest variance, are shown.
        num_samples: Number of draws of z.
        seed: Seed of the draws; the caller's random state is left as it was.

    Raises:
        TypeError: If a number is no integer.
        ValueError: For fewer than 100 samples.
    """
    num_samples = as_count(num_samples, "num_samples", least=100)
    with fork_random_state(model, seed):
        z = model.prior().sample((num_samples,))
        features = torch.cat([model.features(model.generate_from(part)) for part in z.split(500)])
    features = features[:, features.var(0).argsort(descending=True)[:_MAX_FEATURES]]
    shares = _correlation_ratios(z.double().cpu().numpy(), features.double().cpu().numpy())  # (L, F)
    shares = shares[:, np.lexsort((-shares.max(0), shares.argmax(0)))]
    width = float(np.clip(1.6 + 0.14 * shares.shape[1], 5.0, 11.0))
    figure = new_figure(width, float(np.clip(1.5 + 0.14 * shares.shape[0], 2.2, 8.0)))
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=max(float(shares.max()), 1e-3), aspect="auto")
    style_axes(axes, frame=False)
    axes.set_xlabel("feature, by the latent that explains most of it")
    axes.set_ylabel("latent")
    bar = figure.colorbar(image, ax=axes, aspect=25)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=0, labelcolor=INK)
    bar.set_label("share explained", fontsize=8, color=INK)
    alone = float(np.clip(shares.sum(0).mean(), 0.0, 1.0))
    set_title(figure, "Features and latents", f"latents one by one explain {alone:.0%} of a feature's variance")
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
