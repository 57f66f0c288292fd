"""Tables of the step benchmark, from what benchmarks/step.py wrote."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from table_format import Result, format_table, load_json

__all__ = ["CONTENDERS", "find_median", "make_step_tables"]

CONTENDERS = {
    "tutorial": "stock Pyro, as in its tutorial",
    "pyroved": "pyroved",
    "hand-written": "PyTorch by hand",
    "ours-eager": "this package, exact, eager",
    "ours": "this package, exact, compiled",
    "ours-top-k-eager": "this package, top-k, eager",
    "ours-top-k": "this package, top-k, compiled",
}
"""What the tables call each contender, in their order."""


def find_median(results: list[Result], contender: str, classes: int, threads: int, labelled: int = 0) -> float | None:
    """Return the median milliseconds of a step, or ``None`` if it was not measured."""
    setting = {"contender": contender, "classes": classes, "threads": threads, "labelled": labelled}
    for one in results:
        if setting.items() <= one.items():
            times = [time for visit in one["visits"] for time in visit]
            return statistics.median(times) if times else None
    return None


def make_step_tables(folder: Path) -> dict[str, str]:
    """Return the tables by name, from ``step-cpu.json`` and ``floor-cpu.json`` in a folder."""
    results = (load_json(folder / "step-cpu.json") or {"results": []})["results"]
    floor = load_json(folder / "floor-cpu.json") or {"steps": [], "profile": []}
    return {
        **{f"step_{classes}": _make_step_table(results, classes, 0) for classes in (10, 100, 1000)},
        "step_10_labelled": _make_step_table(results, 10, 100),
        "floor": _make_floor_table(results, floor["steps"]),
        "profile": _make_profile_table(floor["profile"]),
    }


def _make_step_table(results: list[Result], classes: int, labelled: int) -> str:
    present = [one for one in results if (one["classes"], one["labelled"]) == (classes, labelled)]
    threads = sorted({one["threads"] for one in present})
    rows = []
    for name, words in CONTENDERS.items():
        own = [one for one in present if one["contender"] == name]
        cells = []
        for number in threads if own else ():
            time = find_median(present, name, classes, number, labelled)
            base = find_median(present, "tutorial", classes, number, labelled)
            missing = next((one["reason"] for one in own if one["threads"] == number and one["reason"]), "–")
            cells += [missing if time is None else format_milliseconds(time)]
            cells += ["–" if time is None or base is None else f"{base / time:.2f}"]
        memory = [one["peak_mib"] - one["base_mib"] for one in own if "peak_mib" in one]
        if own:
            rows.append([words, *cells, f"{max(memory):,}" if memory else "–"])
    columns = [f"{name}, {number} thread{'s' * (number > 1)}" for number in threads for name in ("ms", "× tutorial")]
    return format_table(["step", *columns, "memory of the step, MiB"], rows)


def format_milliseconds(time: float) -> str:
    """Return a time with three digits."""
    places = 2 if time < 10 else 1 if time < 100 else 0
    return f"{time:,.{places}f}"


def _make_floor_table(results: list[Result], steps: list[dict[str, Any]]) -> str:
    threads = sorted({step["threads"] for step in steps})
    rows = []
    for step in steps[: len(steps) // max(1, len(threads))]:  # the settings of the first number of threads
        key = (step["classes"], step["sum"])
        cells = [f"{step['classes']:,} classes, {step['sum']}", f"{step['gflop']:.2f}", f"{step['gb']:.2f}"]
        for one in (one for one in steps if (one["classes"], one["sum"]) == key):
            measured = find_median(
                results, "ours" if step["sum"] == "exact" else "ours-top-k", step["classes"], one["threads"]
            )
            at_best = one["products"] + one["moving"] + one["activations"]
            cells += [f"{at_best:,.1f}", "–" if measured is None else f"{measured:,.1f}"]
        rows.append(cells)
    columns = [f"{name}, {number} thread{'s' * (number > 1)}" for number in threads for name in ("at best", "measured")]
    return format_table(["step", "GFLOP", "GB", *columns], rows)


def _make_profile_table(profile: list[dict[str, Any]]) -> str:
    kinds = list(profile[0]["milliseconds"]) if profile else []
    rows = [[CONTENDERS[one["contender"]], *(f"{one['milliseconds'][kind]:.1f}" for kind in kinds)] for one in profile]
    return format_table(["step, milliseconds", *kinds], rows)
