"""Figures of a DDGM: samples, nearest images, interpolations, analogies, energies, features, points in the plane."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageSequence
from torch import Tensor

from pyro_ssvae._arguments import as_count
from pyro_ssvae._io import write_file
from pyro_ssvae.evaluation.image_metrics import CORRUPTIONS, corrupt_images, find_nearest, sample_images
from pyro_ssvae.evaluation.samples import Grid
from pyro_ssvae.models.base import fork_random_state
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.plots import style
from pyro_ssvae.plots.images import plot_analogies, plot_interpolations, plot_samples

_SPACES = ("z", "features")
_NEAREST_ROWS = 4
_BINS = 10
_MAX_FEATURES = 64
_FEATURE_SAMPLES = 2000
_EXTENT = 4.5  # half a side of the square that is drawn, or more, to hold data beyond it
_GRID_SIZE = 181
_PATH_STEPS = 25
_FRAME_MILLISECONDS = 150
_LAST_FRAME_MILLISECONDS = 2000
_DOTS_PER_INCH = 80  # of a frame
_COLOURS = 128  # of a movie's palette


@plot_samples.register
def _(model: DDGM, *, num_columns: int = 10, seed: int = 0, **view: Any) -> Figure:
    num_columns = as_count(num_columns, "num_columns", least=1)
    x = sample_images(model, num_columns**2, seed)
    x = x[model.energy(x).cpu().argsort()]
    note = "x = G(z), in the order of their energies, the lowest first"
    return style.new_image_grid(style.to_tiles(model, x, num_columns, **view), "Generated images", note)


@plot_interpolations.register
def _(model: DDGM, start: Tensor, end: Tensor, *, steps: int = 10, **view: Any) -> Figure:
    if tuple(model.event_shape) == (2,):
        return _draw_paths(model, start, end)
    paths = [model.interpolate(start, end, steps=steps, space=space).cpu() for space in _SPACES]
    images = torch.stack(paths).transpose(0, 2).transpose(1, 2)  # (N, 2, steps, *event)
    return style.new_image_grid(
        style.to_tiles(model, images, steps, **view),
        "Interpolations between two samples",
        "along straight lines of z, and of features f(x)",
        row_names=_SPACES * len(start),
        rows_per_group=2,
    )


@plot_analogies.register
def _(model: DDGM, x: Tensor, y: Any = None, **view: Any) -> Figure:
    x = style.check_examples(model, x)
    if len(x) % 3:
        raise ValueError(f"x holds {len(x)} images; analogies take three each: a, b and c.")
    with fork_random_state(model, 0):  # of the starting points of the inversion
        z = model.invert(x)
        a, b, c = z.view(-1, 3, model.latent_dim).unbind(1)
        answers = [model.analogy(a, b, c, space=space).cpu() for space in _SPACES]
        decoded = model.generate_from(z).cpu()
    given = torch.stack([x.cpu(), decoded], 1).view(-1, 6, *model.event_shape)  # a, G, b, G, c, G
    note = "G: the image of the generator that is nearest to the one at its left"
    if y is not None:
        first, second, third = style.as_classes(y, "y", len(x), model.num_classes, allow_unlabelled=True).view(-1, 3).T
        if bool(((first == second) & (second != third) & (first >= 0) & (third >= 0)).all()):
            note += "\na and b are of one class, c of another: the answer should be c's class in b's style"
    return style.new_image_grid(
        style.to_tiles(model, torch.cat([given, torch.stack(answers, 1)], 1), 8, **view),
        "Analogies: a is to b as c is to …",
        note,
        column_names=["a", "G", "b", "G", "c", "G", "by z", "by f"],
        lead=6,
    )


def plot_nearest(
    model: DDGM,
    x: Tensor,
    *,
    num_columns: int = 10,
    value_range: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Figure:
    """Draw four rows of generated images, each above the nearest of the training images ``x``, to reveal copies."""
    num_columns = as_count(num_columns, "num_columns", least=1)
    x = style.check_examples(model, x)
    samples = sample_images(model, _NEAREST_ROWS * num_columns, seed)
    distance, index = find_nearest(samples, x)
    tiles = [style.to_tiles(model, images, num_columns, value_range) for images in (samples, x[index])]
    return style.new_image_grid(
        np.stack(tiles, 1).reshape(-1, *tiles[0].shape[1:]),
        "Generated images and the nearest training images",
        f"median distance {float(distance.median()):.2f}",
        row_names=["sample", "nearest"] * _NEAREST_ROWS,
        rows_per_group=2,
    )


def plot_energies(model: DDGM, x: Tensor, *, seed: int = 0) -> Figure:
    """Draw box plots of the energies of real, generated and corrupted images ``(N, C, H, W)``, preferably held-out."""
    x = style.check_examples(model, x)
    if x.dim() != 4:
        raise ValueError(f"Energies of corrupted images need examples (C, H, W), not {tuple(model.event_shape)}.")
    generator = torch.Generator().manual_seed(seed)
    images = {"real": x, "generated": sample_images(model, len(x), seed)}
    images |= {kind: corrupt_images(x, kind, generator) for kind in CORRUPTIONS}
    energies = [model.energy(part).cpu().numpy() for part in images.values()]
    figure, axes = style.new_axes(6.4, 3.6)
    boxes = axes.boxplot(energies, whis=(5, 95), showfliers=False, widths=0.55, patch_artist=True)
    for box, median, name in zip(boxes["boxes"], boxes["medians"], images, strict=True):
        box.set(facecolor="#c5dff4" if name in ("real", "generated") else "#e6e6e6", edgecolor=style.FAINT)
        median.set(color=style.INK, linewidth=1.5)
    axes.set_xticklabels(list(images))
    axes.set_ylabel("energy, nats")
    style.style_axes(axes)
    style.set_title(figure, "Energies", "line: median; box: 25% to 75%; whiskers: 5% to 95%")
    return figure


def plot_features_and_latents(model: DDGM, *, seed: int = 0) -> Figure:
    r"""Draw how much each feature of samples depends on each latent.

    .. math:: \eta^2_{ij} = \frac{\mathrm{Var}_{z_j}\, \mathbb E[f_i(G(z)) \mid z_j]}{\mathrm{Var}\, f_i(G(z))}

    is the share of a feature's variance that one latent explains alone (the correlation ratio; a first-order Sobol
    index), estimated from 2000 samples by means in ten bins of equal counts and corrected for chance (Kelley's ε²). The
    rest is due to interactions of latents. Shown are the 64 features of the largest variance.
    """
    with fork_random_state(model, seed):
        z = model.prior().sample((_FEATURE_SAMPLES,))
        features = torch.cat([model.features(model.generate_from(part)) for part in z.split(500)])
    features = features[:, features.var(0).argsort(descending=True)[:_MAX_FEATURES]]
    shares = _correlation_ratios(z.double().cpu().numpy(), features.double().cpu().numpy())  # (L, F)
    shares = shares[:, np.lexsort((-shares.max(0), shares.argmax(0)))]
    width, height = np.clip([1.6 + 0.14 * shares.shape[1], 1.5 + 0.14 * shares.shape[0]], [5.0, 2.2], [11.0, 8.0])
    figure, axes = style.new_axes(float(width), float(height))
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=max(float(shares.max()), 1e-3), aspect="auto")
    style.style_axes(axes, frame=False)
    axes.set(xlabel="feature, by the latent that explains most of it", ylabel="latent")
    style.add_colour_bar(figure, image, axes, "share explained", aspect=25)
    total = float(np.clip(shares.sum(0).mean(), 0.0, 1.0))
    style.set_title(figure, "Features and latents", f"latents one by one explain {total:.0%} of a feature's variance")
    return figure


def _correlation_ratios(z: NDArray[np.float64], features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the corrected shares, with shape ``(L, F)``."""
    variance, mean = features.var(0), features.mean(0)
    between = np.zeros((z.shape[1], features.shape[1]))
    for latent, order in enumerate(z.argsort(0).T):
        for part in np.array_split(features[order], _BINS):
            between[latent] += len(part) / len(z) * (part.mean(0) - mean) ** 2
    shares = between / np.where(variance > 0.0, variance, np.inf)
    return np.where(variance > 0.0, 1.0 - (1.0 - shares) * (len(z) - 1) / (len(z) - _BINS), 0.0)


def plot_class_shares(found: dict[str, Any], class_names: Sequence[str]) -> Figure:
    """Draw the share of each class among generated images and, where there are any, among held-out ones."""
    figure, axes = style.new_axes(max(4.0, 1.6 + 0.45 * len(class_names)), 3.2)
    shares = axes.bar(range(len(class_names)), [100.0 * share for share in found["class_shares"]], color=style.ACCENT)
    axes.bar_label(shares, fmt="%.1f", padding=3, fontsize=8)
    real = "real_class_shares" in found
    if real:
        axes.plot([100.0 * share for share in found["real_class_shares"]], "_", color=style.INK, markersize=16.0)
    style.name_ticks(axes, class_names)
    axes.set_ylabel("share, %")
    style.style_axes(axes)
    style.set_title(figure, "Classes of generated images", "line: share among held-out images" if real else "")
    return figure


def plot_landscape(model: DDGM, x: Tensor, *, num_samples: int = 2000, title: str = "", seed: int = 0) -> Figure:
    """Draw data, samples over the model's density, and the energy, on a square.

    The square is [-4.5, 4.5]², or a larger one that holds the data. At most ``num_samples`` points of data ``(N, 2)``
    and as many samples are shown, of a model of points in the plane.
    """
    if tuple(model.event_shape) != (2,):
        raise ValueError(f"A landscape needs a model with event shape (2,), not {tuple(model.event_shape)}.")
    x = style.check_examples(model, x)
    with fork_random_state(model, seed):
        samples = model.sample(num_samples).cpu()
    grid = _make_grid(x)
    energy = model.energy(grid.points()).view(grid.size, grid.size).cpu().numpy()
    figure = style.new_figure(11.0, 3.9)
    left, middle, right = figure.subplots(1, 3)
    left.scatter(*x[:num_samples].cpu().T.numpy(), s=2.0, color=style.INK, linewidths=0.0)
    _style_plane(left, "Data", grid)
    _draw_density(middle, model, grid)
    middle.scatter(*samples.T.numpy(), s=2.0, color=style.ACCENT, alpha=0.6, linewidths=0.0)
    _style_plane(middle, "Samples over the density exp(−E)/Z (square root)", grid)
    options: dict[str, Any] = {"origin": "lower", "extent": (*_limits(grid), *_limits(grid)), "cmap": "viridis"}
    levels = right.imshow(energy - energy.min(), vmin=0.0, vmax=12.0, **options)
    _style_plane(right, "Energy above its minimum", grid)
    style.add_colour_bar(figure, levels, right, "nats", extend="max", shrink=0.85)
    if title:
        style.set_title(figure, title)
    return figure


def _draw_paths(model: DDGM, start: Tensor, end: Tensor) -> Figure:
    """Draw paths of samples between latents ``(N, L)``, along lines of z and of features, over the density."""
    figure = style.new_figure(7.6, 4.2)
    panels = figure.subplots(1, 2)
    found = [model.interpolate(start, end, steps=_PATH_STEPS, space=space).cpu() for space in _SPACES]
    grid = _make_grid(torch.cat(found))
    for axes, paths, title in zip(panels, found, ("Lines of z", "Lines of features f(x)"), strict=True):
        _draw_density(axes, model, grid)
        for colour, path in zip(style.class_colours(paths.shape[1]), paths.transpose(0, 1).numpy(), strict=True):
            axes.plot(*path.T, color=colour, linewidth=1.4)
            axes.plot(*path[0], "o", color=colour, markersize=5.0, markerfacecolor="white")
            axes.plot(*path[-1], "o", color=colour, markersize=5.0)
        _style_plane(axes, title, grid)
    note = "from the ring to the dot; grey: the density exp(−E)/Z (square root)"
    style.set_title(figure, "Interpolations between two samples", note)
    return figure


def _make_grid(x: Tensor) -> Grid:
    """Return a grid that holds points of any shape ``(..., 2)``."""
    return Grid(max(_EXTENT, 1.05 * float(x.abs().max())), _GRID_SIZE)


def _limits(grid: Grid) -> tuple[float, float]:
    return -grid.extent, grid.extent


def _draw_density(axes: Axes, model: DDGM, grid: Grid) -> None:
    density = grid.probabilities(model.score_samples).sqrt().numpy()
    axes.imshow(density, origin="lower", extent=(*_limits(grid), *_limits(grid)), cmap="Greys", vmin=0.0)


def _style_plane(axes: Axes, title: str, grid: Grid) -> None:
    style.style_axes(axes, title=title, frame=False)
    axes.set(xlim=_limits(grid), ylim=_limits(grid), xticks=[], yticks=[], aspect="equal")


class Movie:
    """A movie of training, written as an animated GIF; ``steps`` holds the training step of each frame."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self._frames: list[Image.Image] = []

    @classmethod
    def load(cls, path: str | Path) -> Movie:
        """Return a movie that :meth:`save` wrote, to continue it, or raise ``ValueError`` if it is none."""
        movie = cls()
        try:
            with Image.open(path) as file:
                movie.steps = [int(step) for step in file.info["comment"].split()]
                movie._frames = [_to_frame(frame) for frame in ImageSequence.Iterator(file)]
        except (KeyError, ValueError, OSError, SyntaxError) as error:
            raise ValueError(f"{path} is no movie of training ({type(error).__name__}); remove it.") from error
        return movie

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, figure: Figure, step: int) -> None:
        """Add a figure as the next frame, that of a training step."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, bbox_inches=None)
        self._frames.append(_to_frame(Image.open(buffer)))
        self.steps.append(step)

    def cut(self, step: int) -> None:
        """Remove the frames of a step and of all later ones, for a run that is resumed from an earlier checkpoint."""
        kept = sum(known < step for known in self.steps)
        del self.steps[kept:], self._frames[kept:]

    def save(self, path: str | Path) -> Path:
        """Write the movie, of at least one frame, atomically."""
        buffer = io.BytesIO()
        first, *rest = self._frames
        durations = [_FRAME_MILLISECONDS] * len(rest) + [_LAST_FRAME_MILLISECONDS]
        comment = " ".join(map(str, self.steps)).encode()
        first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, comment=comment)
        return write_file(Path(path), buffer.getvalue())


def _to_frame(image: Image.Image) -> Image.Image:
    return image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
