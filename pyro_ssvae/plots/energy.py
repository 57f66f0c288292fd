"""Figures of an energy model of points in the plane, and a movie of its training."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageSequence
from torch import Tensor

from pyro_ssvae._io import write_atomically
from pyro_ssvae.errors import RunFolderError
from pyro_ssvae.evaluation import Grid
from pyro_ssvae.models import DDGM
from pyro_ssvae.models.base import fork_random_state
from pyro_ssvae.plots.style import ACCENT, INK, new_figure, set_title, style_axes

__all__ = ["Movie", "plot_landscape"]

_DOTS_PER_INCH = 80  # of a frame
_COLOURS = 128  # of a movie's palette


def plot_landscape(
    model: DDGM, x: Tensor, *, num_samples: int = 2000, extent: float = 4.5, title: str = "", seed: int = 0
) -> Figure:
    """Show data, generated points over the model's density, and the energy.

    Args:
        model: A model of points in the plane.
        x: Data with shape ``(N, 2)``, scaled as in training.
        num_samples: Number of generated points.
        extent: The square [-extent, extent]² is shown, and the density normalised on it.
        title: Title of the figure.
        seed: Seed of the points; the caller's random state is left as it was.

    Raises:
        ValueError: If the model is not one of points in the plane.
    """
    if tuple(model.event_shape) != (2,):
        raise ValueError(f"A landscape needs a model with event shape (2,), not {tuple(model.event_shape)}.")
    with fork_random_state(model, seed):
        samples = model.sample(num_samples).cpu()
    grid = Grid(extent=extent, size=181)
    density = grid.probabilities(model.score_samples) / grid.cell**2
    energy = model.energy(grid.points()).view(grid.size, grid.size).cpu()
    figure = new_figure(11.0, 3.9)
    first, second, third = figure.subplots(1, 3)
    first.scatter(*x[:num_samples].cpu().T.numpy(), s=2.0, color=INK, linewidths=0.0)
    first.set_title("Data", fontsize=9, color=INK)
    side = (-extent, extent, -extent, extent)
    image = second.imshow(density.sqrt().numpy(), origin="lower", extent=side, cmap="Greys")
    second.scatter(*samples.T.numpy(), s=2.0, color=ACCENT, alpha=0.6, linewidths=0.0)
    second.set_title("Generated points over exp(−E)/Z (root scale)", fontsize=9, color=INK)
    image.set_clim(0.0, float(density.sqrt().max()))
    least = float(energy.min())
    levels = third.imshow((energy - least).numpy(), origin="lower", extent=side, cmap="viridis", vmin=0.0, vmax=12.0)
    third.set_title("Energy above its least, nats", fontsize=9, color=INK)
    figure.colorbar(levels, ax=third, extend="max", shrink=0.85)
    for axes in (first, second, third):
        _set_square(axes, extent)
    if title:
        set_title(figure, title)
    return figure


def _set_square(axes: Axes, extent: float) -> None:
    style_axes(axes, frame=False)
    axes.set_xlim(-extent, extent)
    axes.set_ylim(-extent, extent)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])


class Movie:
    """A movie of training, written as an animated GIF.

    Args:
        frame_seconds: Duration of each frame but the last one, which is shown for two seconds.

    Raises:
        ValueError: For a duration that is not positive.

    Attributes:
        steps: Training step of each frame.
    """

    def __init__(self, frame_seconds: float = 0.15) -> None:
        if not frame_seconds > 0.0:
            raise ValueError(f"frame_seconds={frame_seconds} must be positive.")
        self.frame_seconds = frame_seconds
        self.steps: list[int] = []
        self._frames: list[Image.Image] = []

    @classmethod
    def load(cls, path: str | Path, frame_seconds: float = 0.15) -> Movie:
        """Return a movie that :meth:`save` wrote, to continue it.

        Raises:
            ValueError: If the file is no such movie.
        """
        movie = cls(frame_seconds)
        try:
            with Image.open(path) as file:
                movie.steps = [int(step) for step in file.info["comment"].split()]
                movie._frames = [_frame(frame) for frame in ImageSequence.Iterator(file)]
        except (KeyError, ValueError, OSError, SyntaxError) as error:
            raise ValueError(f"{path} is no movie of training ({type(error).__name__}); remove it.") from error
        if len(movie.steps) != len(movie):
            raise ValueError(f"{path} holds {len(movie)} frames of {len(movie.steps)} steps; remove it.")
        return movie

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, figure: Figure, step: int | None = None) -> None:
        """Add a figure as the next frame.

        Args:
            figure: The figure.
            step: Training step that it shows; ``None`` for one more than the frame before.
        """
        figure.set_dpi(_DOTS_PER_INCH)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3]
        self._frames.append(_frame(Image.fromarray(pixels)))
        self.steps.append(self.steps[-1] + 1 if step is None and self.steps else step or 0)

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
        durations = [round(1000 * self.frame_seconds)] * (len(self._frames) - 1) + [2000]
        buffer = io.BytesIO()
        first, *rest = self._frames
        comment = " ".join(map(str, self.steps)).encode()
        first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, comment=comment)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, buffer.getvalue())
        except OSError as error:
            raise RunFolderError(f"Cannot write the movie {path}: {error}.") from error
        return path


def _frame(image: Image.Image) -> Image.Image:
    return image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
