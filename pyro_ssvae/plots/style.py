"""What all figures share: the look, checks of arguments, outputs of models in batches, grids of images, files."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray
from torch import Tensor

from pyro_ssvae._arguments import as_count, as_seed
from pyro_ssvae._arrays import CHANNELS, as_array, as_labels
from pyro_ssvae._io import write_file
from pyro_ssvae._warnings import warn
from pyro_ssvae.models import Model, generation
from pyro_ssvae.models.generation import mean_of
from pyro_ssvae.networks.variational import evaluation_mode

INK = "#222222"
FAINT = "#8a8a8a"
ACCENT = "#3f90da"
ALARM = "#bd1f01"
CHARACTER = 0.075  # inches, of a label
_DPI = 150
_CELL = 0.55  # inches
_MAX_SIDE = 11.0  # inches
_MAX_RATIO = 3  # of the sides of a tile
_MAX_UPRIGHT = 6  # characters of a column's name that fit above a cell of this width
_MIN_RESOLUTION = 64  # pixels of a tile, so that gaps are thin compared with 8x8 images too
_BATCH_SIZE = 1000

# Distinct under the common colour-vision deficiencies (Petroff, 2021, https://arxiv.org/abs/2107.02270).
_CLASS_COLOURS = "#3f90da #ffa90e #bd1f01 #94a4a2 #832db6 #a96b59 #e76300 #b9ac70 #717581 #92dadd".split()


class _NotebookFigure(Figure):
    """A figure that a notebook displays although it was not made by pyplot, with fonts for names in any script."""

    def _repr_png_(self) -> bytes:
        return to_png(self)

    def draw(self, renderer: Any) -> None:
        texts: list[Any] = self.findobj(Text)
        default = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
        shown = {one for text in texts for one in text.get_text() if one.isprintable()}
        further = _find_fonts(frozenset(ord(one) for one in shown if not default.get_char_index(ord(one))))
        for text in texts if further else ():
            text.set_fontfamily([*dict.fromkeys([*text.get_fontfamily(), *further])])
        super().draw(renderer)


@lru_cache
def _find_fonts(lacking: frozenset[int]) -> tuple[str, ...]:
    """Return installed fonts that have the characters, by their codes, that the default font lacks.

    Warns:
        UserWarning: If there is no font with some of them.
    """
    fonts = [font for font in font_manager.fontManager.ttflist if not font.name.startswith("Last Resort")]  # of boxes
    held: dict[str, set[int]] = {}
    for font in fonts if lacking else ():
        with suppress(OSError, RuntimeError):  # of files that were removed or damaged
            opened = font_manager.get_font(font.fname)
            held.setdefault(font.name, set()).update(code for code in lacking if opened.get_char_index(code))
    found: list[str] = []
    while missed := lacking & set().union(*held.values()):
        found.append(max(held, key=lambda name: (len(held[name] & missed), "Sans" in name)))
        lacking -= held[found[-1]]
    if lacking:
        warn(
            f"No installed font has {' '.join(map(chr, sorted(lacking)[:10]))}, so that figures have boxes in their "
            "place. Install one that has them, such as Noto Sans CJK for Chinese, Japanese and Korean."
        )
    return tuple(found)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty white figure; width and height are in inches."""
    return _NotebookFigure(figsize=(width, height), dpi=_DPI, facecolor="white", layout="constrained")


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty white figure and its only axes; width and height are in inches."""
    figure = new_figure(width, height)
    return figure, figure.subplots()


def to_png(figure: Figure) -> bytes:
    """Return a figure as a PNG file, the same bytes for the same figure."""
    buffer = io.BytesIO()
    metadata = {"Software": None}  # no version of matplotlib
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ ", UserWarning)  # missing in all fonts, which was told once
        figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight", pad_inches=0.1, metadata=metadata)
    return buffer.getvalue()


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, and return the path, or raise ``RunFolderError``."""
    return write_file(path, to_png(figure), "the figure ", " Free space, or use another folder.")


def class_colours(num_classes: int) -> NDArray[np.float64]:
    """Return a colour per class, ``(K, 4)``: distinct ones up to 10 classes, else from the map turbo."""
    if num_classes <= len(_CLASS_COLOURS):
        return to_rgba_array(_CLASS_COLOURS[:num_classes])
    return np.asarray(matplotlib.colormaps["turbo"](np.linspace(0.0, 1.0, num_classes)))


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
        label.set(fontsize=9, color=INK)
    for side, spine in axes.spines.items():
        spine.set(visible=frame and side in ("left", "bottom"), color=INK, linewidth=0.7)
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


def encode_means(model: Any, x: Tensor, y: Tensor | None) -> Tensor:
    """Return the means of q(z|x,y), or of q(z|x) if ``y`` is ``None``, ``(N, L)``, on the CPU."""
    return _map(model, lambda *args: mean_of(model.encode(*args)), x, y)


def decode_means(model: Any, y: Tensor | None, z: Tensor) -> Tensor:
    """Return the means of p(x|y,z), or of p(x|z) if ``y`` is ``None``, ``(N, *event)``, on the CPU."""
    return _map(model, lambda z, y=None: generation.decode_means(model, y, z), z, y)


def decode_classes(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """Return the means of p(x|y',z) of every class y' at the mean z of q(z|x,y), ``(N, K, *event)``, on the CPU."""
    z = encode_means(model, x, y).repeat_interleave(model.num_classes, 0)
    classes = torch.arange(model.num_classes).repeat(len(x))
    return decode_means(model, classes, z).unflatten(0, (len(x), -1))


def _map(model: Any, function: Callable[..., Tensor], values: Tensor, y: Tensor | None) -> Tensor:
    """Return a function of a model at values and classes ``(N, ...)``, computed in batches, on the CPU."""
    like = next(model.parameters())
    given = [values.to(like), *([] if y is None else [y.to(like.device)])]
    with torch.no_grad(), evaluation_mode(model):
        batches = zip(*(tensor.split(_BATCH_SIZE) for tensor in given), strict=True)
        return torch.cat([function(*batch).cpu() for batch in batches])


def complete_classes(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """Return ``y``, shape ``(N,)``, with the predicted class in place of -1."""
    return y if bool((y >= 0).all()) else torch.where(y < 0, model.predict(x).cpu(), y)


def check_examples(model: Model, x: Any, name: str = "x") -> Tensor:
    """Return at least one example that the model can take, detached."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        given = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"{name} must be a floating-point tensor, scaled as in training; got {given}. "
            f"Convert it, for example by torch.as_tensor({name}).float() / 255 for 8-bit pixels."
        )
    event_shape = tuple(model.event_shape)
    if tuple(x.shape[1:]) != event_shape or len(x) == 0:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; the model takes examples of shape {event_shape}, so "
            f"(N, {', '.join(map(str, event_shape))}) with N of at least 1. For one example use {name}.unsqueeze(0)."
        )
    return x.detach()


def select_examples(model: Model, x: Any, y: Any, num_images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return at most ``num_images`` examples, drawn from all classes alike and sorted, and classes, -1 if unknown."""
    x = check_examples(model, x)
    num_images = as_count(num_images, "num_images", least=1)
    y = as_classes(torch.full((len(x),), -1) if y is None else y, "y", len(x), model.num_classes, allow_unlabelled=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(as_seed(seed)))
    if len(x) <= num_images:
        return x, y
    rank = torch.zeros_like(y)  # of an example in its class, in this order
    for k in y.unique():
        same = y[order] == k
        rank[same] = torch.arange(int(same.sum()))
    chosen = order[rank.argsort(stable=True)[:num_images]]
    chosen = chosen[y[chosen].argsort(stable=True)]
    return x[chosen], y[chosen]


def as_classes(
    values: Any, name: str, num_examples: int, num_classes: int | None, *, allow_unlabelled: bool = False
) -> Tensor:
    """Return class indices, ``(N,)``, int64, on the CPU, below ``num_classes`` if that is known."""
    if any(isinstance(value, str) for value in as_array(values, name).ravel()[:1].tolist()):
        raise TypeError(f"{name} holds words; numbers of classes are needed: their places in class_names.")
    y = as_labels(values, name, num_examples, allow_unlabelled=allow_unlabelled)
    if num_classes is not None and len(y) and int(y.max()) >= num_classes:
        raise ValueError(
            f"{name} holds class {int(y.max())}; there are {num_classes} classes, so 0 to {num_classes - 1} are "
            "allowed. Pass labels that belong to this model, or all class names."
        )
    return y


def as_class_names(class_names: Sequence[str] | None, num_classes: int) -> list[str]:
    """Return a name for each class: those given, else "0", "1", ..."""
    names = [str(name) for name in (range(num_classes) if class_names is None else class_names)]
    if len(names) != num_classes:
        raise ValueError(f"class_names holds {len(names)} names for {num_classes} classes; give one for each class.")
    return [escape(name) for name in names]


def escape(name: str) -> str:
    """Return a name as matplotlib writes it: there a dollar sign begins a formula."""
    return name.replace("$", r"\$")


def as_image_shape(event_shape: Sequence[int]) -> tuple[int, ...]:
    """Return channels, height and width of examples that are images, ``(C, H, W)`` or ``(H, W)``; 4: with opacity."""
    shape = tuple(event_shape)
    if len(shape) != 2 and (len(shape) != 3 or shape[0] not in CHANNELS):
        raise ValueError(
            f"Examples of shape {shape} are not images: (H, W), or (C, H, W) with 1, 3 or 4 channels, are allowed. "
            "Give the model pixels in such a shape; for tables use plot_latent_map, or plot_feature_means if there are "
            "classes."
        )
    return (1, *shape)[-3:]


def to_tiles(
    model: Model,
    x: Tensor,
    num_columns: int,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> NDArray[np.float64]:
    """Return examples of a model as colours in [0, 1], row by row, with shape ``(rows, num_columns, H, W, 3)``.

    Images with opacity lie on white.
    Pixels of an image with one side more than three times as long as the other are repeated along the shorter one.
    """
    channels, height, width = as_image_shape(model.event_shape)
    low, high = value_range if np.shape(value_range) == (2,) else (0.0, 0.0)
    if not low < high:
        raise ValueError(f"value_range={value_range} must be (low, high), for example (0.0, 1.0).")
    images = x.detach().double().cpu().reshape(-1, num_columns, channels, height, width).movedim(2, -1).numpy()
    colours = np.clip((images - low) / (high - low), 0.0, 1.0)
    if channels == 4:
        colours = 1.0 - colours[..., 3:] * (1.0 - colours[..., :3])
    for axis, short, long in ((2, height, width), (3, width, height)):
        colours = colours.repeat(max(1, math.ceil(long / (_MAX_RATIO * short))), axis)
    return np.broadcast_to(colours, (*colours.shape[:-1], 3))


def cell_size(
    tiles: NDArray[np.float64], num_grid_rows: int, num_columns: int, *, longest_label: int = 0
) -> tuple[float, float]:
    """Return width and height of a cell in inches, for ``longest_label`` characters unless there are many cells."""
    height, width = (size / max(tiles.shape[-3:-1]) for size in tiles.shape[-3:-1])
    wanted = max(_CELL, longest_label * CHARACTER / width)
    size = min(wanted, _MAX_SIDE / max(num_grid_rows * height, num_columns * width))
    return width * size, height * size


def new_image_grid(
    tiles: NDArray[np.float64],
    title: str,
    note: str,
    *,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    lead: int = 0,
    rows_per_group: int = 1,
) -> Figure:
    """Return a figure of one grid of images; for the other arguments see :func:`draw_image_grid`."""
    num_grid_rows, num_columns = tiles.shape[:2]
    width, height = cell_size(tiles, num_grid_rows, num_columns)
    longest_row, longest_column = (max(map(len, names), default=0) for names in (row_names, column_names))
    margin_left = 0.2 + CHARACTER * longest_row + (width / 4 if lead else 0.0)
    margin_top = 0.6 + CHARACTER * 0.6 * longest_column
    is_slanted = longest_column > _MAX_UPRIGHT * width / _CELL
    margin_right = CHARACTER * 0.8 * len(column_names[-1]) if is_slanted else 0.0
    figure, axes = new_axes(margin_left + width * num_columns + margin_right, margin_top + height * num_grid_rows)
    draw_image_grid(axes, tiles, row_names, column_names, lead=lead, rows_per_group=rows_per_group)
    axes.tick_params(axis="y", labelsize=min(8.0, 64.0 * height))
    axes.xaxis.tick_top()
    if is_slanted:
        axes.set_xticks(axes.get_xticks(), column_names, rotation=40.0, ha="left", rotation_mode="anchor")
    set_title(figure, title, note)
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
    """Draw images ``(rows, columns, H, W, 3)`` as a single one: separate axes for each would take seconds.

    The gap is wider after ``lead`` columns, and between groups of ``rows_per_group`` rows if these are more than one.
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
