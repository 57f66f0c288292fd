"""How figures look, and how they are written."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pyro_ssvae._io import write_atomically
from pyro_ssvae.errors import RunFolderError

__all__ = [
    "ACCENT",
    "ALARM",
    "FAINT",
    "INK",
    "class_colours",
    "new_figure",
    "save_figure",
    "set_title",
    "style_axes",
    "to_png",
]

INK = "#222222"
FAINT = "#8a8a8a"
ACCENT = "#3f90da"
ALARM = "#bd1f01"
_DPI = 150

# Ten colours that stay apart under the common colour-vision deficiencies.
# Accessible Color Sequences for Data Visualization (Petroff, 2021),
# https://arxiv.org/abs/2107.02270.
_CLASS_COLOURS = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)


class _NotebookFigure(Figure):
    """A figure that shows itself in notebooks, although pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        return to_png(self)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty white figure; width and height are in inches."""
    return _NotebookFigure(
        figsize=(width, height),
        dpi=_DPI,
        facecolor="white",
        layout="constrained",
    )


def to_png(figure: Figure) -> bytes:
    """Return a figure as a PNG file, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(
        buffer,
        format="png",
        dpi=_DPI,
        bbox_inches="tight",
        pad_inches=0.1,
        metadata={"Software": None},
    )
    return buffer.getvalue()


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, all or nothing, and return the path.

    Raises:
        RunFolderError: If the file cannot be written.
    """
    content = to_png(figure)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        remedy = "Make space, or give a folder that can be written to."
        raise RunFolderError(f"Cannot write the figure {path}: {error}. {remedy}") from error
    return path


def class_colours(num_classes: int) -> NDArray[np.float64]:
    """Return a colour per class, ``(K, 4)``: distinct up to 10, then of a continuous map."""
    if num_classes <= len(_CLASS_COLOURS):
        return to_rgba_array(list(_CLASS_COLOURS[:num_classes]))
    return np.asarray(matplotlib.colormaps["viridis"](np.linspace(0.0, 1.0, num_classes)))


def set_title(figure: Figure, title: str, note: str = "") -> None:
    """Put a title above a figure and a fainter note below it, both at the left."""
    figure.suptitle(title, x=0.0, ha="left", fontsize=11, color=INK)
    if note:
        figure.supxlabel(note, x=0.0, ha="left", fontsize=8, color=FAINT)


def style_axes(axes: Axes, *, grid: bool = False, frame: bool = True) -> None:
    """Give axes the common look: white, small labels, left and bottom spines or none."""
    axes.set_facecolor("white")
    axes.set_axisbelow(True)
    axes.grid(False)
    if grid:
        axes.grid(True, color="#e6e6e6", linewidth=0.7)
    axes.tick_params(which="both", labelsize=8, colors=INK, labelcolor=INK, width=0.7)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(9)
        label.set_color(INK)
    for side, spine in axes.spines.items():
        spine.set_visible(frame and side in ("left", "bottom"))
        spine.set_color(INK)
        spine.set_linewidth(0.7)
    if not frame:
        axes.tick_params(which="both", length=0)
