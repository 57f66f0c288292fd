"""The table and the figure of training steps in docs/benchmarks.md, from what benchmarks/step.py kept."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from pyro_ssvae.plots.style import ACCENT, FAINT, INK, new_figure, save_figure, set_title, style_axes

__all__ = ["markdown", "median", "write_page", "write_section"]

TUTORIAL, BY_HAND = "tutorial", "hand-written"  # what all are compared with

Result = dict[str, Any]
Words = dict[str, str]


def write_page(docs: Path, words: Words) -> None:
    """Write the figures, and the tables between the two markers of ``docs/benchmarks.md``.

    Args:
        docs: The folder of the documentation, with ``benchmarks/step-DEVICE.json`` inside.
        words: What each contender is called.

    Raises:
        ValueError: If the page lacks the markers.
    """
    paths = sorted((docs / "benchmarks").glob("step-*.json"))
    for path in paths:
        save_figure(_figure(json.loads(path.read_text()), words), docs / "_static" / f"{path.stem}.png")
    write_section(docs / "benchmarks.md", "step", markdown(paths, words, figures=True))


def write_section(page: Path, name: str, content: str) -> None:
    """Write what stands between ``<!-- name:start -->`` and ``<!-- name:end -->`` on a page.

    Raises:
        ValueError: If the page lacks these lines.
    """
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    before, found, rest = page.read_text().partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} must hold the lines {start} and {end}; the tables go between them.")
    page.write_text(f"{before}{start}\n\n{content}\n\n{end}{after}" if content else f"{before}{start}\n{end}{after}")


def markdown(paths: list[Path], words: Words, *, figures: bool = False) -> str:
    """Return the tables of result files, a section for each."""
    return "\n\n".join(_section(path, json.loads(path.read_text()), words, figures) for path in paths)


def median(result: Result) -> float | None:
    """Return the median milliseconds of a step, or ``None`` where none was measured."""
    times = _times(result)
    return statistics.median(times) if times else None


def _times(result: Result) -> list[float]:
    return [time for visit in result["visits"] for time in visit]


def _section(path: Path, stored: dict[str, Any], words: Words, figures: bool) -> str:
    device = path.stem.removeprefix("step-")
    results = [result for result in stored["results"] if result["contender"] in words]
    title = {"cpu": "CPU", "cuda": "CUDA"}.get(device, device)
    parts = [f"**{title}.** {_machine(stored['machine'])}. {stored['rows']} unlabelled rows a step."]
    if stored["machine"]["bf16"] == "emulated" and any("bf16" in result["contender"] for result in results):
        parts.append("This CPU has no bf16 arithmetic: PyTorch emulates it, which is why these rows are slow here.")
    if figures:
        parts.append(f"![Milliseconds of a training step by contender](_static/{path.stem}.png)")
    for classes, labelled in sorted({(result["classes"], result["labelled"]) for result in results}):
        group = [result for result in results if (result["classes"], result["labelled"]) == (classes, labelled)]
        beside = f", {labelled} labelled rows beside them" if labelled else ""
        parts.append(f"{classes} classes{beside}:\n\n" + _table(group, words))
    return "\n\n".join(parts)


def _machine(machine: dict[str, Any]) -> str:
    words = [machine["GPU"], f"CUDA {machine['CUDA']}"] if "GPU" in machine else []
    words += [machine["CPU"], f"{machine['cores']} cores", machine["instructions"], f"{machine['memory, GiB']} GiB"]
    if "OMP_WAIT_POLICY" in machine:
        words.append(f"OMP_WAIT_POLICY={machine['OMP_WAIT_POLICY']}")
    return ", ".join(words + [machine["system"], *(f"{key} {machine[key]}" for key in ("Python", "PyTorch", "Pyro"))])


def _table(results: list[Result], words: Words) -> str:
    header = [
        "step", "threads", "median, ms", "middle half, ms", "least, ms",
        "× the tutorial's speed", "× PyTorch by hand's", "peak memory, MiB", "of it the step's",
    ]  # fmt: skip
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    order = list(words)
    for result in sorted(results, key=lambda one: (one["threads"], order.index(one["contender"]))):
        base = {one["contender"]: median(one) for one in results if one["threads"] == result["threads"]}
        lines.append("| " + " | ".join(_row(result, base, words)) + " |")
    return "\n".join(lines)


def _row(result: Result, base: dict[str, float | None], words: Words) -> list[str]:
    times, own = _times(result), median(result)
    first = [words[result["contender"]], str(result["threads"])]
    if own is None:
        return [*first, result["reason"], *["–"] * 6]
    low, _, high = statistics.quantiles(times, method="inclusive") if len(times) > 1 else (own, own, own)
    note = f" ({result['reason']})" if result["reason"] else ""
    return [
        *first,
        f"{_number(own)}{note}",
        f"{_number(low)} to {_number(high)}",
        _number(min(times)),
        _ratio(base.get(TUTORIAL), own),
        _ratio(base.get(BY_HAND), own),
        f"{result['peak_mib']:,}",
        f"{result['peak_mib'] - result['base_mib']:,}",
    ]


def _number(milliseconds: float) -> str:
    """Three digits, as more would be noise."""
    places = 2 if milliseconds < 10 else 1 if milliseconds < 100 else 0
    return f"{milliseconds:,.{places}f}"


def _ratio(base: float | None, own: float) -> str:
    return "–" if base is None else f"{base / own:.2f}"


def _figure(stored: dict[str, Any], words: Words) -> Figure:
    """One panel for each number of classes, a bar for each contender and number of threads."""
    results = [result for result in stored["results"] if not result["labelled"] and result["contender"] in words]
    classes = sorted({result["classes"] for result in results})
    names = [name for name in words if any(result["contender"] == name for result in results)]
    figure = new_figure(1.6 + 2.9 * max(1, len(classes)), 0.9 + 0.42 * len(names))
    panels = figure.subplots(1, max(1, len(classes)), sharey=True, squeeze=False)[0]
    for axes, number in zip(panels, classes, strict=False):
        _panel(axes, [result for result in results if result["classes"] == number], names)
        axes.set_title(f"{number:,} classes", fontsize=9, color=INK, loc="left")
    panels[0].set_yticks(range(len(names)), [words[name] for name in names])
    panels[0].invert_yaxis()
    note = f"{stored['rows']} unlabelled rows, medians; logarithmic axis. No bar: not measured, the table says why."
    set_title(figure, "Milliseconds of one training step of M2", note)
    return figure


def _panel(axes: Axes, results: list[Result], names: list[str]) -> None:
    threads = sorted({result["threads"] for result in results})
    height = 0.8 / len(threads)
    measured = [own for own in map(median, results) if own]
    for result in results:
        own = median(result)
        if own is None:
            continue
        place = threads.index(result["threads"])
        y = names.index(result["contender"]) + (place - (len(threads) - 1) / 2) * height
        colour = ACCENT if result["contender"].startswith("ours") else FAINT
        axes.barh(y, own, 0.92 * height, color=colour, alpha=1.0 if place == 0 else 0.6)
        thread = f", {result['threads']} threads" if place else ""
        axes.annotate(f"{_number(own)}{thread}", (own, y), (2, 0), textcoords="offset points", va="center", fontsize=6)
    axes.set_xscale("log")
    if measured:
        axes.set_xlim(min(measured) / 4, 4 * max(measured))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("ms")
    style_axes(axes)
