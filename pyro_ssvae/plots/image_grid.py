"""Grids of many images, drawn as one image, with names of rows and columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pyro_ssvae.plots.style import new_figure, style_axes

__all__ = ["cell_size", "draw_image_grid", "new_image_grid", "to_rgb", "to_tiles"]

_CELL = 0.55  # inches
_MAX_SIDE = 11.0  # inches
_CHARACTER = 0.075  # inches, of a label
_MAX_UPRIGHT = 6  # characters of a column's name that fit above a cell
_SLANT = 40.0  # degrees
_MIN_RESOLUTION = 64  # pixels of a tile, so that gaps are thin compared with 8x8 images too


def to_rgb(x: Tensor, shape: tuple[int, int, int], value_range: tuple[float, float]) -> NDArray[np.float64]:
    """Return images as colours, clipped to [0, 1], with shape ``(N, H, W, 3)``.

    Args:
        x: Examples with shape ``(N, *event)``.
        shape: Channels (1 or 3), height and width of an example.
        value_range: Values of x shown as black and as white.

    Raises:
        ValueError: If the range is empty.
    """
    low, high = value_range
    if not low < high:
        raise ValueError(f"value_range={value_range} must be (low, high), for example (0.0, 1.0).")
    images = x.detach().double().cpu().reshape(-1, *shape).permute(0, 2, 3, 1).numpy()
    colours = np.clip((images - low) / (high - low), 0.0, 1.0)
    return np.broadcast_to(colours, (*colours.shape[:3], 3))


def to_tiles(
    x: Tensor, shape: tuple[int, int, int], value_range: tuple[float, float], num_columns: int
) -> NDArray[np.float64]:
    """Return images as :func:`to_rgb`, arranged row by row, with shape ``(N / num_columns, num_columns, H, W, 3)``."""
    return to_rgb(x, shape, value_range).reshape(-1, num_columns, *shape[1:], 3)


def cell_size(
    tiles: NDArray[np.float64], num_grid_rows: int, num_columns: int, *, longest_label: int = 0
) -> tuple[float, float]:
    """Return width and height of a cell in inches, smaller where there are many cells.

    Args:
        tiles: Images with shape ``(..., H, W, 3)``.
        num_grid_rows: Rows of the grid.
        num_columns: Columns of the grid.
        longest_label: Characters that must fit below a cell.
    """
    height, width = (size / max(tiles.shape[-3:-1]) for size in tiles.shape[-3:-1])
    wanted = max(_CELL, longest_label * _CHARACTER / width)
    size = min(wanted, _MAX_SIDE / max(num_grid_rows * height, num_columns * width))
    return width * size, height * size


def new_image_grid(
    tiles: NDArray[np.float64],
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    *,
    lead: int = 0,
    rows_per_group: int = 1,
) -> Figure:
    """Return a figure of one grid of images; for the arguments see :func:`draw_image_grid`."""
    num_grid_rows, num_columns = tiles.shape[:2]
    width, height = cell_size(tiles, num_grid_rows, num_columns)
    margin_left = 0.2 + _CHARACTER * max(map(len, row_names), default=0)
    margin_top = 0.6 + _CHARACTER * 0.6 * max(map(len, column_names), default=0)
    margin_left += width / 4 if lead else 0.0
    figure = new_figure(margin_left + width * num_columns, margin_top + height * num_grid_rows)
    axes = figure.subplots()
    draw_image_grid(axes, tiles, row_names, column_names, lead=lead, rows_per_group=rows_per_group)
    axes.tick_params(axis="y", labelsize=min(8.0, 64.0 * height))
    axes.xaxis.tick_top()
    if max(map(len, column_names), default=0) > _MAX_UPRIGHT:
        slant: dict[str, Any] = {"rotation": _SLANT, "ha": "left", "rotation_mode": "anchor"}
        axes.set_xticks(axes.get_xticks(), column_names, **slant)
    return figure


def draw_image_grid(
    axes: Axes,
    tiles: NDArray[np.float64],
    row_names: Sequence[str],
    column_names: Sequence[str],
    *,
    lead: int = 0,
    rows_per_group: int = 1,
) -> None:
    """Draw images in rows and columns, as a single image: separate axes for each would take seconds.

    Args:
        axes: The axes to draw on.
        tiles: Colours in [0, 1], with shape ``(rows, columns, H, W, 3)``.
        row_names: Names of the first rows.
        column_names: Names of the first columns.
        lead: Number of columns after which the gap is wider; 0 for none.
        rows_per_group: Rows that belong together; the gap between groups of more than one row is wider.
    """
    num_grid_rows, num_columns, height, width, _ = tiles.shape
    zoom = math.ceil(_MIN_RESOLUTION / max(height, width))
    height, width = height * zoom, width * zoom
    gap = max(1, max(height, width) // 16)
    top = np.arange(num_grid_rows) * (height + gap)
    if rows_per_group > 1:
        top += np.arange(num_grid_rows) // rows_per_group * 3 * gap
    left = np.arange(num_columns) * (width + gap)
    left[lead:] += 4 * gap if lead else 0
    canvas = np.ones((top[-1] + height, left[-1] + width, 3))
    for y, row in zip(top, tiles, strict=True):
        for x, tile in zip(left, row, strict=True):
            canvas[y : y + height, x : x + width] = tile.repeat(zoom, 0).repeat(zoom, 1)
    axes.imshow(canvas)
    style_axes(axes, frame=False)
    axes.set_yticks(top[: len(row_names)] + (height - 1) / 2, row_names)
    axes.set_xticks(left[: len(column_names)] + (width - 1) / 2, column_names)
