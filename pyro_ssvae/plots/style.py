"""The common look of all figures, and writing them as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
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
    "add_colour_bar",
    "class_colours",
    "name_ticks",
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
_CLASS_COLOURS = "#3f90da #ffa90e #bd1f01 #94a4a2 #832db6 #a96b59 #e76300 #b9ac70 #717581 #92dadd".split()


class _NotebookFigure(Figure):
    """A figure that a notebook displays although it was not made by pyplot."""

    def _repr_png_(self) -> bytes:
        return to_png(self)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty white figure; width and height are in inches."""
    return _NotebookFigure(figsize=(width, height), dpi=_DPI, facecolor="white", layout="constrained")


def to_png(figure: Figure) -> bytes:
    """Return a figure as a PNG file, the same bytes for the same figure."""
    buffer = io.BytesIO()
    metadata = {"Software": None}  # no version of matplotlib
    figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight", pad_inches=0.1, metadata=metadata)
    return buffer.getvalue()


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, atomically, and return the path.

    Raises:
        RunFolderError: If the file cannot be written.
    """
    content = to_png(figure)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise RunFolderError(f"Cannot write the figure {path}: {error}. Free space, or use another folder.") from error
    return path


def class_colours(num_classes: int) -> NDArray[np.float64]:
    """Return a colour per class, ``(K, 4)``: distinct ones up to 10 classes, else from a continuous map."""
    if num_classes <= len(_CLASS_COLOURS):
        return to_rgba_array(_CLASS_COLOURS[:num_classes])
    return np.asarray(matplotlib.colormaps["viridis"](np.linspace(0.0, 1.0, num_classes)))


def set_title(figure: Figure, title: str, note: str = "") -> None:
    """Put a title above a figure and a note in grey below it, both at the left."""
    figure.suptitle(title, x=0.0, ha="left", fontsize=11, color=INK)
    if note:
        figure.supxlabel(note, x=0.0, ha="left", fontsize=8, color=FAINT)


def style_axes(axes: Axes, *, title: str = "", grid: bool = False, frame: bool = True) -> None:
    """Give axes the common look: white, small labels, a title at the left, left and bottom spines or none."""
    axes.set_title(title, loc="left", fontsize=9, color=INK)
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


def add_colour_bar(
    figure: Figure, mappable: ScalarMappable, axes: Axes | list[Axes], label: str, **options: Any
) -> None:
    """Add a colour bar in the common look; ``options`` are those of ``figure.colorbar``."""
    bar = figure.colorbar(mappable, ax=axes, **options)
    bar.outline.set_visible(False)
    bar.ax.tick_params(which="both", labelsize=8, length=0, labelcolor=INK)
    bar.set_label(label, fontsize=8, color=INK)


def name_ticks(axes: Axes, names: Sequence[str], *, vertical: bool = False, most: int = 40) -> None:
    """Name the positions 0, 1, ... of an axis: at most ``most`` of them, long names on the horizontal axis slanted."""
    step = -(-len(names) // most)
    ticks, shown = np.arange(0, len(names), step), list(names)[::step]
    if vertical:
        axes.set_yticks(ticks, shown)
    elif max(map(len, shown)) > 3:
        axes.set_xticks(ticks, shown, rotation=40.0, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(ticks, shown)
