"""Figures of the result pages, from result files."""

from __future__ import annotations

from typing import Any

from table_format import DOCS, Result, load_results

from pyro_ssvae.plots.style import ACCENT, FAINT, new_axes, new_figure, save_figure, set_title, style_axes


def draw_figures() -> None:
    """Draw validation metrics during training: of M2 by its alpha, and of energies of classes, a line for each seed."""
    results = load_results(DOCS / "results")
    runs = {"pure-small-alpha": "α too small", "pure-large-alpha": "α too large"}
    runs["no-pose-100"] = "default, without pose latents"
    columns = {
        "val/error": "validation error, %",
        "val/entropy_y": "H(q(y|x)), nats",
        "val/mutual_information": "mutual information of x and y, nats",
        "val/kl_z": "KL of z, nats",
    }
    figure = new_figure(10.0, 6.2)
    for axes, (column, label) in zip(figure.subplots(2, 2).flat, columns.items(), strict=True):
        for (name, words), colour in zip(runs.items(), ("#0072B2", "#D55E00", "#009E73"), strict=True):
            _draw_line(axes, results[f"m2-{name}"][0], column, color=colour, label=words)
        axes.set(xlabel="step", ylabel=label)
        style_axes(axes)
        if column in ("val/entropy_y", "val/mutual_information"):
            axes.axhline(2.302585, color="grey", linewidth=0.8, linestyle=":")
            axes.annotate("log 10", (0.98, 2.302585), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    _use_log_axis(figure.axes[0], 3, 5, 10, 20, 40)
    figure.axes[0].legend(frameon=False)
    set_title(figure, "M2 at 100 labels with too small and too large a weight of the cross-entropy")
    save_figure(figure, DOCS / "_static" / "pure-m2.png")

    runs = {"ddgm-classes": "100 labels and every other example", "ddgm-classes-labels-alone": "the 100 labels alone"}
    figure, axes = new_axes(6.0, 3.2)
    for (name, words), colour in zip(runs.items(), (ACCENT, FAINT), strict=True):
        for number, result in enumerate(results[name]):
            _draw_line(axes, result, "val/error", color=colour, label="" if number else words)
    _use_log_axis(axes, 2, 3, 5, 10, 20, 50)
    axes.set(xlabel="steps", ylabel="validation error, %")
    style_axes(axes, grid=True)
    axes.legend(frameon=False, fontsize=8)
    set_title(figure, "Energies of classes from 100 labels", "A line for each seed; logarithmic axis.")
    save_figure(figure, DOCS / "results" / "ddgm-classes.png")


def _draw_line(axes: Any, result: Result, column: str, **style: Any) -> None:
    lines = [line for line in result["curves"] if column in line]
    values = [(100.0 if column == "val/error" else 1.0) * line[column] for line in lines]
    axes.plot([line["step"] for line in lines], values, **style)


def _use_log_axis(axes: Any, *ticks: int) -> None:
    axes.set_yscale("log")
    axes.set_yticks(ticks, map(str, ticks))
    axes.minorticks_off()
