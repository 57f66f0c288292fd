"""Figures of a DDGM of points in the plane, and a movie of its training."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from PIL import Image, ImageSequence
from torch import Tensor

from pyro_ssvae._io import write_atomically
from pyro_ssvae.errors import RunFolderError
from pyro_ssvae.evaluation.toy_metrics import Grid
from pyro_ssvae.models.base import fork_random_state
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.plots.style import ACCENT, INK, add_colour_bar, class_colours, new_figure, set_title, style_axes

__all__ = ["Movie", "draw_paths", "plot_landscape"]

_GRID = Grid(extent=4.5, size=181)
_PATH_STEPS = 25
_FRAME_MILLISECONDS = 150
_LAST_FRAME_MILLISECONDS = 2000
_DOTS_PER_INCH = 80  # of a frame
_COLOURS = 128  # of a movie's palette


def plot_landscape(model: DDGM, x: Tensor, *, num_samples: int = 2000, title: str = "", seed: int = 0) -> Figure:
    """Draw data, samples over the model's density, and the energy, on the square [-4.5, 4.5]².

    Args:
        model: A model of points in the plane.
        x: Data with shape ``(N, 2)``, scaled as in training.
        num_samples: Number of samples, and the largest number of points of data.
        title: Title of the figure.
        seed: Seed of the samples.

    Raises:
        ValueError: If the model is not one of points in the plane.
    """
    if tuple(model.event_shape) != (2,):
        raise ValueError(f"A landscape needs a model with event shape (2,), not {tuple(model.event_shape)}.")
    with fork_random_state(model, seed):
        samples = model.sample(num_samples).cpu()
    energy = model.energy(_GRID.points()).view(_GRID.size, _GRID.size).cpu().numpy()
    figure = new_figure(11.0, 3.9)
    left, middle, right = figure.subplots(1, 3)
    left.scatter(*x[:num_samples].cpu().T.numpy(), s=2.0, color=INK, linewidths=0.0)
    _style_plane(left, "Data")
    _draw_density(middle, model)
    middle.scatter(*samples.T.numpy(), s=2.0, color=ACCENT, alpha=0.6, linewidths=0.0)
    _style_plane(middle, "Samples over the density exp(−E)/Z (square root)")
    levels = _draw_grid(right, energy - energy.min(), cmap="viridis", vmin=0.0, vmax=12.0)
    _style_plane(right, "Energy above its minimum")
    add_colour_bar(figure, levels, right, "nats", extend="max", shrink=0.85)
    if title:
        set_title(figure, title)
    return figure


def draw_paths(model: DDGM, start: Tensor, end: Tensor) -> Figure:
    """Draw paths of samples between latents ``(N, L)``, along lines of z and of features, over the density."""
    figure = new_figure(7.6, 4.2)
    panels = figure.subplots(1, 2)
    for axes, space, title in zip(panels, ("z", "features"), ("Lines of z", "Lines of features f(x)"), strict=True):
        paths = model.interpolate(start, end, steps=_PATH_STEPS, space=space).transpose(0, 1).cpu().numpy()
        _draw_density(axes, model)
        for colour, path in zip(class_colours(len(paths)), paths, strict=True):
            axes.plot(*path.T, color=colour, linewidth=1.4)
            axes.plot(*path[0], "o", color=colour, markersize=5.0, markerfacecolor="white")
            axes.plot(*path[-1], "o", color=colour, markersize=5.0)
        _style_plane(axes, title)
    note = "from the ring to the dot; grey: the density exp(−E)/Z (square root)"
    set_title(figure, "Interpolations between two samples", note)
    return figure


def _draw_density(axes: Axes, model: DDGM) -> None:
    _draw_grid(axes, _GRID.probabilities(model.score_samples).sqrt().numpy(), cmap="Greys", vmin=0.0)


def _draw_grid(axes: Axes, values: NDArray[np.float64], **options: Any) -> AxesImage:
    extent = (-_GRID.extent, _GRID.extent, -_GRID.extent, _GRID.extent)
    return axes.imshow(values, origin="lower", extent=extent, **options)


def _style_plane(axes: Axes, title: str) -> None:
    style_axes(axes, title=title, frame=False)
    limits = (-_GRID.extent, _GRID.extent)
    axes.set(xlim=limits, ylim=limits, xticks=[], yticks=[], aspect="equal")


class Movie:
    """A movie of training, written as an animated GIF.

    Attributes:
        steps: Training step of each frame.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self._frames: list[Image.Image] = []

    @classmethod
    def load(cls, path: str | Path) -> Movie:
        """Return a movie that :meth:`save` wrote, to continue it.

        Raises:
            ValueError: If the file is no such movie.
        """
        movie = cls()
        try:
            with Image.open(path) as file:
                movie.steps = [int(step) for step in file.info["comment"].split()]
                movie._frames = [_to_frame(frame) for frame in ImageSequence.Iterator(file)]
        except (KeyError, ValueError, OSError, SyntaxError) as error:
            raise ValueError(f"{path} is no movie of training ({type(error).__name__}); remove it.") from error
        if len(movie.steps) != len(movie):
            raise ValueError(f"{path} holds {len(movie)} frames of {len(movie.steps)} steps; remove it.")
        return movie

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, figure: Figure, step: int) -> None:
        """Add a figure as the next frame, that of a training step."""
        figure.set_dpi(_DOTS_PER_INCH)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3]
        self._frames.append(_to_frame(Image.fromarray(pixels)))
        self.steps.append(step)

    def cut(self, step: int) -> None:
        """Remove the frames of a step and of all later ones, for a run that is resumed from an earlier checkpoint."""
        kept = sum(known < step for known in self.steps)
        del self.steps[kept:], self._frames[kept:]

    def save(self, path: str | Path) -> Path:
        """Write the movie atomically.

        Raises:
            ValueError: If there is no frame.
            RunFolderError: If the file cannot be written.
        """
        if not self._frames:
            raise ValueError("A movie needs at least one frame; add figures first.")
        path = Path(path)
        buffer = io.BytesIO()
        first, *rest = self._frames
        durations = [_FRAME_MILLISECONDS] * len(rest) + [_LAST_FRAME_MILLISECONDS]
        comment = " ".join(map(str, self.steps)).encode()
        first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, comment=comment)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, buffer.getvalue())
        except OSError as error:
            raise RunFolderError(f"Cannot write the movie {path}: {error}.") from error
        return path


def _to_frame(image: Image.Image) -> Image.Image:
    return image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
