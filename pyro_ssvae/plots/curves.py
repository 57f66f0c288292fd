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
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from pyro_ssvae.plots.style import ACCENT, ALARM, FAINT, INK, new_figure, set_title, style_axes

__all__ = ["plot_training_curves"]

_SECOND, _THIRD = "#ffa90e", "#832db6"
_PER_ROW = 3
_WIDE = 5.0  # ratio of the largest to the smallest value at which a logarithmic axis begins
_CLOCK = ("step", "epoch", "seconds")

_Columns = dict[str, NDArray[np.float64]]


class _Panel(NamedTuple):
    """What one small plot shows.

    Attributes:
        title: What it is.
        unit: Of the vertical axis.
        lines: Columns of the metrics and their names in the legend.
        log: Whether the axis is logarithmic where values are positive and far apart; otherwise it
            is linear.
        zero: Whether a linear axis starts at zero.
        cut: Whether the axis leaves out the first evaluations where they are far below all later
            ones.
    """

    title: str
    unit: str
    lines: Mapping[str, str]
    log: bool = False
    zero: bool = False
    cut: bool = False


_PANELS = (
    _Panel("Validation error", "%", {"validation_error": ""}, log=True),
    _Panel("Training loss", "nats per row", {"train_loss": ""}, log=True),
    _Panel(
        "Bound on log p (higher is better)",
        "nats per row",
        {
            "bound_unlabelled": "unlabelled rows",
            "bound_labelled": "labelled rows",
            "bound": "training rows",
            "validation_bound": "validation rows",
        },
        cut=True,
    ),
    _Panel(
        "Cross-entropy of labelled rows",
        "nats per row",
        {"classification_loss": ""},
        log=True,
    ),
    _Panel("Consistency loss", "nats per row", {"consistency_loss": ""}, log=True),
    _Panel("KL of q(z|·) to p(z)", "nats per row", {"kl_z": ""}, zero=True),
    _Panel("Latents in use", "", {"active_units": ""}, zero=True),
    _Panel(
        "q(y|x) on validation rows",
        "nats",
        {"entropy_y": "mean entropy", "mutual_information": "mutual information"},
        zero=True,
    ),
    _Panel("Mean energy", "nats per row", {"energy_of_data": "data", "energy_of_samples": "generated rows"}),
    _Panel(
        "Energy of data minus samples", "nats per row", {"energy_gap": "training", "energy_difference": "evaluation"}
    ),
    _Panel("Norm of the energy's gradient on data", "nats per unit", {"energy_gradient_norm": ""}, log=True),
    _Panel(
        "Norm of the loss's gradient, unclipped",
        "nats per unit",
        {
            "gradient_norm_energy": "energy",
            "gradient_norm_generator": "generator",
            "gradient_norm_critic": "entropy's networks",
        },
        log=True,
    ),
    _Panel("Loss of negative augmentation", "nats per row", {"negative_loss": ""}, log=True),
    _Panel("Entropy estimate of the generator", "nats, up to a constant", {"entropy": ""}),
    _Panel("Spread of samples over that of data", "", {"std_ratio": ""}, zero=True),
    _Panel("Learning rate", "", {"learning_rate": ""}, zero=True),
)


def plot_training_curves(metrics: str | os.PathLike[str] | Sequence[Mapping[str, Any]]) -> Figure:
    """Show how a run went, in a small plot for each measure, and mark its best evaluation.

    Args:
        metrics: The ``metrics.csv`` of a run folder, or its rows, for example
            ``fit(...).metrics``. Needed is the column ``step``; other columns may be missing,
            cells may be blank, and columns of other names are shown where they hold numbers.

    Returns:
        The curves against the step. The best evaluation is the one whose weights the run keeps:
        the last of those with the least validation error.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no row, no step, or a known column holds something else than
            numbers.

    Example:
        >>> rows = [{"step": 10, "validation_error": 0.3}, {"step": 20, "validation_error": 0.1}]
        >>> plot_training_curves(rows).get_suptitle()
        'Training: best validation error 10.00% at step 20 of 20'
    """
    columns = _as_columns(metrics)
    steps = columns["step"]
    best = _best_row(columns.get("validation_error"))
    panels = [panel for panel in _panels(columns) if any(name in columns for name in panel.lines)]
    if not panels:
        raise ValueError(
            f"The metrics hold {', '.join(columns)} and nothing to plot against the step; at "
            "least one further column of numbers is needed, for example train_loss."
        )
    num_columns = 2 if len(panels) in (2, 4) else min(_PER_ROW, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    figure = new_figure(3.1 * num_columns + 0.2, 2.1 * num_rows + 0.6)
    panes = figure.subplots(num_rows, num_columns, sharex=True, squeeze=False).ravel()
    for axes, panel in zip(panes, panels, strict=False):
        _draw(axes, panel, columns, best)
        # On all of them, or rows of plots with nothing below would be spaced differently.
        axes.tick_params(labelbottom=True)
    panes[0].set_xlim(0.0, 1.03 * np.nanmax(steps))
    for axes in panes[len(panels) :]:
        axes.remove()
    title = "Training"
    if best is not None:
        error = columns["validation_error"][best]
        title += f": best validation error {error:.2%} at step {steps[best]:,.0f}"
        title += f" of {np.nanmax(steps):,.0f}"
    set_title(figure, title, _note(columns, best))
    return figure


def _as_columns(metrics: str | os.PathLike[str] | Sequence[Mapping[str, Any]]) -> _Columns:
    """Return columns of numbers, NaN where a cell is blank, leaving out columns without any."""
    if isinstance(metrics, (str, os.PathLike)):
        source = str(Path(metrics))
        with open(metrics, newline="", encoding="utf-8") as file:
            rows: list[Mapping[str, Any]] = list(csv.DictReader(file))
    else:
        source, rows = "metrics", list(metrics)
    if not rows:
        raise ValueError(
            f"{source} holds no row; at least one evaluation is needed. Let the run get to its "
            "first one, or evaluate more often (evaluate_every)."
        )
    names = dict.fromkeys(name for row in rows for name in row if isinstance(name, str))
    known = {name for panel in _PANELS for name in panel.lines} | set(_CLOCK)
    columns: _Columns = {}
    for name in names:
        try:
            values = np.array([_as_number(row.get(name)) for row in rows])
        except (TypeError, ValueError) as error:
            if name in known:
                raise ValueError(
                    f"Column {name} of {source} must hold numbers or blanks: {error}. Hand "
                    "in the metrics.csv of a run, or rows of numbers."
                ) from error
            continue
        if np.isfinite(values).any():
            columns[name] = np.where(np.isfinite(values), values, np.nan)
    if "step" not in columns:
        raise ValueError(
            f"{source} holds {', '.join(names) or 'no column'}; a column of numbers 'step' is "
            "needed, as in the metrics.csv that fit writes."
        )
    timed = np.isfinite(columns["step"])
    columns = {name: values[timed] for name, values in columns.items()}
    return {name: values for name, values in columns.items() if np.isfinite(values).any()}


def _as_number(cell: Any) -> float:
    blank = cell is None or (isinstance(cell, str) and not cell.strip())
    return math.nan if blank else float(cell)


def _best_row(error: NDArray[np.float64] | None) -> int | None:
    """Return the row of the least error, the last of equals."""
    return None if error is None else int(np.flatnonzero(error == np.nanmin(error))[-1])


def _panels(columns: _Columns) -> list[_Panel]:
    """Return the known panels and one for each further column."""
    known = {name for panel in _PANELS for name in panel.lines} | set(_CLOCK)
    return [*_PANELS, *(_Panel(name, "", {name: ""}) for name in columns if name not in known)]


def _draw(axes: Axes, panel: _Panel, columns: _Columns, best: int | None) -> None:
    factor = 100.0 if panel.unit == "%" else 1.0
    shown = {name: columns[name] * factor for name in panel.lines if name in columns}
    if best is not None:
        axes.axvline(columns["step"][best], color=ALARM, linewidth=0.8, linestyle=":")
    for (name, values), colour in zip(shown.items(), (ACCENT, _SECOND, _THIRD), strict=False):
        # Blank cells are skipped: a measure may be taken more rarely than others.
        taken = np.isfinite(values)
        marker = "o" if taken.sum() < 12 else ""
        axes.plot(
            columns["step"][taken],
            values[taken],
            color=colour,
            linewidth=1.3,
            marker=marker,
            markersize=3,
            label=panel.lines[name],
        )
        if name == "validation_error" and best is not None:
            axes.plot(columns["step"][best], values[best], "o", color=ALARM, markersize=5)
    axes.set_title(panel.title, loc="left", fontsize=9, color=INK)
    axes.set_ylabel(panel.unit)
    style_axes(axes, grid=True)
    _scale(axes, panel, np.stack(list(shown.values())))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    )
    if len(shown) > 1:
        axes.legend(fontsize=7.5, frameon=False, labelcolor=INK)


def _scale(axes: Axes, panel: _Panel, values: NDArray[np.float64]) -> None:
    """Choose the vertical axis, and name it where it is not linear or not whole."""
    low, high = np.nanmin(values), np.nanmax(values)
    if panel.log and low > 0.0 and high / low >= _WIDE:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(
            LogLocator(10.0, subs=(1.0,) if high / low > 300.0 else (1.0, 2.0, 5.0), numticks=8)
        )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel(f"{panel.unit} (log)".strip())
    elif (panel.zero or panel.log) and low >= 0.0:
        axes.set_ylim(bottom=0.0)
    elif panel.cut:
        later_values = values[:, values.shape[1] // 10 :]
        later = np.min(later_values, initial=high, where=np.isfinite(later_values))
        if high - low > 3.0 * (high - later) > 0.0:
            margin = 0.05 * (high - later)
            axes.set_ylim(later - margin, high + margin)
            axes.set_ylabel(f"{panel.unit} (start cut off)")
    elif panel.zero:
        axes.axhline(0.0, color=FAINT, linewidth=0.7)


def _note(columns: _Columns, best: int | None) -> str:
    parts = ["horizontal: training steps"]
    if "seconds" in columns:
        seconds = float(np.nanmax(columns["seconds"]))
        parts.append(f"{seconds / 60:.1f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds")
    if "epoch" in columns:
        parts.append(f"{np.nanmax(columns['epoch']):,.0f} epochs")
    if best is not None:
        parts.append("dotted: the evaluation whose weights are kept")
    return " · ".join(parts)
