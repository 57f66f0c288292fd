"""Tables of the step benchmark, from what benchmarks/step.py wrote."""

from __future__ import annotations

import statistics
from pathlib import Path

from table_format import Result, format_table, load_json

CONTENDERS = {  # what the tables call each contender, in their order
    "tutorial": "stock Pyro, as in its tutorial",
    "pyroved": "pyroved",
    "hand-written": "PyTorch by hand",
    "ours-eager": "this package, exact, eager",
    "ours": "this package, exact, compiled",
    "ours-top-k-eager": "this package, top-k, eager",
    "ours-top-k": "this package, top-k, compiled",
}


def find_median(results: list[Result], **setting: int | str) -> float | None:
    """Return the median milliseconds of a step, or ``None`` if it was not measured."""
    found = next((one for one in results if setting.items() <= one.items()), {"visits": []})
    times = [time for visit in found["visits"] for time in visit]
    return statistics.median(times) if times else None


def make_step_tables(folder: Path) -> dict[str, str]:
    """Return the tables by name, from ``step-cpu.json`` and ``floor-cpu.json`` in a folder."""
    results = load_json(folder / "step-cpu.json", {"results": []})["results"]
    floor = load_json(folder / "floor-cpu.json", {"steps": [], "profile": []})
    found = {f"step_{classes}": _make_step_table(results, classes, 0) for classes in (10, 100, 1000)}
    kinds = list(floor["profile"][0]["milliseconds"]) if floor["profile"] else []
    rows = [
        [CONTENDERS[one["contender"]], *(f"{one['milliseconds'][k]:.1f}" for k in kinds)] for one in floor["profile"]
    ]
    found["profile"] = format_table(["step, milliseconds", *kinds], rows)
    found["step_10_labelled"] = _make_step_table(results, 10, 100)
    return {**found, "floor": _make_floor_table(results, floor["steps"])}


def _name_columns(threads: list[int], *names: str) -> list[str]:
    return [f"{name}, {number} thread{'s' * (number > 1)}" for number in threads for name in names]


def _make_step_table(results: list[Result], classes: int, labelled: int) -> str:
    present = [one for one in results if (one["classes"], one["labelled"]) == (classes, labelled)]
    threads, rows = sorted({one["threads"] for one in present}), []
    for name, words in CONTENDERS.items():
        own = {one["threads"]: one for one in present if one["contender"] == name}
        cells = []
        for number in threads if own else ():
            time, base = (find_median(present, contender=who, threads=number) for who in (name, "tutorial"))
            reason = own.get(number, {}).get("reason") or "–"
            # Times have three digits.
            cells += [f"{time:,.{2 if time < 10 else 1 if time < 100 else 0}f}" if time else reason]
            cells += [f"{base / time:.2f}" if time and base else "–"]
        memory = [one["peak_mib"] - one["base_mib"] for one in own.values() if "peak_mib" in one]
        if own:
            rows.append([words, *cells, f"{max(memory):,}" if memory else "–"])
    return format_table(["step", *_name_columns(threads, "ms", "× tutorial"), "memory of the step, MiB"], rows)


def _make_floor_table(results: list[Result], steps: list[Result]) -> str:
    threads, rows = sorted({step["threads"] for step in steps}), []
    for step in (one for one in steps if one["threads"] == threads[0]):
        classes, kind = step["classes"], step["sum"]
        cells = [f"{classes:,} classes, {kind}", f"{step['gflop']:.2f}", f"{step['gb']:.2f}"]
        for one in (one for one in steps if (one["classes"], one["sum"]) == (classes, kind)):
            setting = {"classes": classes, "threads": one["threads"], "labelled": 0}
            measured = find_median(results, contender="ours" if kind == "exact" else "ours-top-k", **setting)
            cells.append(f"{one['products'] + one['moving'] + one['activations']:,.1f}")
            cells.append("–" if measured is None else f"{measured:,.1f}")
        rows.append(cells)
    return format_table(["step", "GFLOP", "GB", *_name_columns(threads, "at best", "measured")], rows)
