"""The curves of a training run."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from pyro_ssvae.plots.style import ACCENT, ALARM, FAINT, INK, escape, new_figure, set_title, style_axes

_COLOURS = (ACCENT, "#ffa90e", "#832db6", FAINT)

_Columns = dict[str, NDArray[np.float64]]


class _Panel(NamedTuple):
    """One panel of the figure."""

    title: str
    unit: str
    lines: Mapping[str, str]  # columns of the metrics, and their names in the legend
    good: str = ""  # how the curves of a good run look
    axis: str = ""  # "log" if values are positive and far apart, "zero": from zero, "cut": without a far lower start


_BOUNDS = {"train/bound_unlabelled": "unlabelled", "train/bound_labelled": "labelled"}
_BOUNDS |= {"train/bound": "training", "val/bound": "validation"}
_ENERGIES = [{f"{part}/energy_data": "data", f"{part}/energy_samples": "samples"} for part in ("train", "val")]
_GAPS = {"train/energy_gap": "training", "val/energy_gap": "validation"}
_CLASSES = {"val/entropy_y": "mean entropy", "val/mutual_information": "mutual information"}
_GRADIENTS = {f"train/gradient_norm_{part}": part for part in ("energy", "generator")}
_EXAMPLE, _BOUNDED, _CLOSE = "nats per example", "does not grow without end", "data and samples stay close"
_KL = "KL from posterior to prior of z"
_PANELS = (
    _Panel("Validation error", "%", {"val/error": ""}, "falls, then stays low", "log"),
    _Panel("Training loss", _EXAMPLE, {"train/loss": ""}, "falls, then levels off", "log"),
    _Panel("Bound on log p", _EXAMPLE, _BOUNDS, "rises, then levels off", "cut"),
    _Panel("Classification loss", _EXAMPLE, {"train/classification_loss": ""}, "falls", "log"),
    _Panel("Consistency loss", _EXAMPLE, {"train/consistency_loss": ""}, "stays small or falls", "log"),
    _Panel(_KL, _EXAMPLE, {"val/kl_z": ""}, "above 1 (z is used), then levels off", "zero"),
    _Panel("Active latents", "", {"val/active_units": ""}, "above 0, then constant", "zero"),
    _Panel("q(y|x) on validation data", "nats", _CLASSES, "entropy falls to 0, information rises to log K", "zero"),
    _Panel("Mean energy, training", "nats", _ENERGIES[0], _CLOSE),
    _Panel("Mean energy, validation", "nats", _ENERGIES[1], _CLOSE),
    _Panel("Energy of data minus samples", "nats", _GAPS, "stays near 0"),
    _Panel(
        "Gradient of the energy in x, norm", "nats per unit of x", {"train/energy_gradient_norm": ""}, _BOUNDED, "log"
    ),
    _Panel("Gradient of the loss, norm before clipping", "", _GRADIENTS, _BOUNDED, "log"),
    _Panel("Loss of negative augmentation", _EXAMPLE, {"train/negative_loss": ""}, "falls", "log"),
    _Panel("Entropy of the generator (estimate)", "nats + constant", {"train/entropy": ""}),
    _Panel("Standard deviation of samples", "", {"train/sample_std": ""}, "not near 0 (collapse)", "zero"),
    _Panel("Standard deviation, samples / data", "", {"val/std_ratio": ""}, "near 1; near 0 is collapse", "zero"),
    _Panel("Learning rate", "", {"learning_rate": ""}, axis="zero"),
)
_KNOWN = {name for panel in _PANELS for name in panel.lines} | {"step", "epoch", "seconds"}


def plot_training_curves(metrics: str | os.PathLike[str] | Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the metrics of a run against the training step, a panel for each, and mark the best evaluation.

    ``metrics`` is the path of the ``metrics.csv`` of a run, or its rows, for example ``fit(...).metrics``. The column
    ``step`` is required. Other columns may be missing, cells may be blank, and columns with unknown names get a panel
    each if they hold numbers. The best evaluation is the last one with the smallest ``val/error`` or, without that
    column, the largest ``val/bound``. :func:`~pyro_ssvae.fit` may choose a later one, whose error is higher by no more
    than chance.

    Raises:
        ValueError: If there is no row or no step, or a known column holds anything but numbers.

    Example:
        >>> rows = [{"step": 10, "val/error": 0.3}, {"step": 20, "val/error": 0.1}]
        >>> plot_training_curves(rows).get_suptitle()
        'Training: smallest validation error 10.00% at step 20 of 20'
    """
    columns = _read_columns(metrics)
    steps = columns["step"]
    best, title = _find_best(columns)
    further = [_Panel(escape(name), "", {name: ""}) for name in columns if name not in _KNOWN]
    panels = [panel for panel in (*_PANELS, *further) if any(name in columns for name in panel.lines)]
    if not panels:
        raise ValueError(f"The metrics hold only {', '.join(columns)}; at least one more column of numbers is needed.")
    num_columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    num_grid_rows = math.ceil(len(panels) / num_columns)
    figure = new_figure(3.1 * num_columns + 0.2, 2.1 * num_grid_rows + 0.6)
    panes = figure.subplots(num_grid_rows, num_columns, sharex=True, squeeze=False).ravel()
    for axes, panel in zip(panes, panels, strict=False):
        _draw(axes, panel, columns, best)
        axes.tick_params(labelbottom=True)  # on all panels, which are then spaced equally
    panes[0].set_xlim(0.0, 1.03 * np.nanmax(steps))
    for axes in panes[len(panels) :]:
        axes.remove()
    set_title(figure, title, _describe(columns, best))
    return figure


def _read_columns(metrics: str | os.PathLike[str] | Sequence[Mapping[str, Any]]) -> _Columns:
    """Return the columns that hold numbers, NaN where a cell is blank."""
    if isinstance(metrics, (str, os.PathLike)):
        source = str(Path(metrics))
        with open(metrics, newline="", encoding="utf-8") as file:
            rows: list[Mapping[str, Any]] = list(csv.DictReader(file))
    else:
        source, rows = "metrics", list(metrics)
    if not rows:
        raise ValueError(f"{source} holds no row; train until the first evaluation (evaluate_every).")
    columns: _Columns = {}
    names = dict.fromkeys(name for row in rows for name in row if isinstance(name, str))
    for name in names:
        try:
            cells = ["" if row.get(name) is None else row[name] for row in rows]
            values = np.array([math.nan if str(cell).strip() == "" else float(cell) for cell in cells])
        except (TypeError, ValueError) as error:
            if name in _KNOWN:
                raise ValueError(f"Column {name} of {source} must hold numbers or blanks: {error}.") from error
            continue
        columns[name] = np.where(np.isfinite(values), values, np.nan)
    if not np.isfinite(columns.get("step", np.nan)).any():
        found = ", ".join(names) or "no column"
        raise ValueError(f"{source} holds {found}; a column of numbers 'step' is needed, as fit writes it.")
    has_step = np.isfinite(columns["step"])
    columns = {name: values[has_step] for name, values in columns.items()}
    return {name: values for name, values in columns.items() if np.isfinite(values).any()}


def _find_best(columns: _Columns) -> tuple[int | None, str]:
    """Return the index of the best evaluation, the last of equals, if there is one, and the title of the figure."""
    steps = columns["step"]
    for name, choose, words in (
        ("val/error", np.nanmin, "smallest validation error {:.2%}"),
        ("val/bound", np.nanmax, "highest validation bound {:,.2f} nats"),
    ):
        if name in columns:
            value = choose(columns[name])
            best = int(np.flatnonzero(columns[name] == value)[-1])
            return best, f"Training: {words.format(value)} at step {steps[best]:,.0f} of {np.nanmax(steps):,.0f}"
    return None, "Training"


def _draw(axes: Axes, panel: _Panel, columns: _Columns, best: int | None) -> None:
    factor = 100.0 if panel.unit == "%" else 1.0
    shown = {name: columns[name] * factor for name in panel.lines if name in columns}
    if best is not None:
        axes.axvline(columns["step"][best], color=ALARM, linewidth=0.8, linestyle=":")
    for (name, values), colour in zip(shown.items(), _COLOURS, strict=False):
        filled = np.isfinite(values)  # lines skip blank cells: a metric may be computed less often than others
        line: dict[str, Any] = {"color": colour, "linewidth": 1.3, "markersize": 3, "label": panel.lines[name]}
        axes.plot(columns["step"][filled], values[filled], marker="o" if filled.sum() < 12 else "", **line)
        if name == "val/error" and best is not None:
            axes.plot(columns["step"][best], values[best], "o", color=ALARM, markersize=5)
    axes.set_ylabel(panel.unit)
    style_axes(axes, title=panel.title, grid=True)
    if panel.good:
        axes.set_title(panel.title, loc="left", fontsize=9, color=INK, pad=14.0)
        hint: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": 7}
        axes.annotate(f"good: {panel.good}", (0.0, 1.0), (0.0, 4.0), color=FAINT, **hint)
    _scale(axes, panel, np.stack(list(shown.values())))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if len(shown) > 1:
        axes.legend(loc="best", fontsize=7.5, frameon=False, labelcolor=INK)


def _scale(axes: Axes, panel: _Panel, values: NDArray[np.float64]) -> None:
    """Choose the vertical axis, and label it where it is logarithmic or cut off."""
    low, high = np.nanmin(values), np.nanmax(values)
    if panel.axis == "log" and low > 0.0 and high / low >= 5.0:
        axes.set_yscale("log")
        digits = (1.0,) if high / low > 300.0 else (1.0, 2.0, 5.0)
        axes.yaxis.set_major_locator(LogLocator(10.0, subs=digits, numticks=8))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel(f"{panel.unit} (log)".strip())
    elif panel.axis in ("zero", "log") and low >= 0.0:
        axes.set_ylim(bottom=0.0)
    elif panel.axis == "cut":  # without the first evaluations if they are far below all later ones
        later_values = values[:, values.shape[1] // 10 :]
        later = np.min(later_values, initial=high, where=np.isfinite(later_values))
        if high - low > 3.0 * (high - later) > 0.0:
            margin = 0.05 * (high - later)
            axes.set_ylim(later - margin, high + margin)
            axes.set_ylabel("nats (start cut off)")
    elif panel.axis == "zero":
        axes.axhline(0.0, color=FAINT, linewidth=0.7)


def _describe(columns: _Columns, best: int | None) -> str:
    parts = ["horizontal: training steps"]
    if "seconds" in columns:
        seconds = float(np.nanmax(columns["seconds"]))
        parts.append(f"{seconds / 60:.1f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds")
    if "epoch" in columns:
        parts.append(f"{np.nanmax(columns['epoch']):,.0f} epochs")
    if best is not None:
        parts.append("dotted: the evaluation named above; best_step in result.json may be later")
    return " · ".join(parts)
