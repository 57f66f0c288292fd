"""Tables in Markdown: a line for each configuration, made from the results of its seeds."""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]
Results = dict[str, list[Result]]
"""Results by family and name of the configuration, such as ``"m2-default-100"``, in the order of the seeds."""
Column = Callable[[list[Result]], str]
"""Formats one cell from the results of a configuration."""


def load_results(folder: Path) -> Results:
    """Return the results of a folder by configuration, each list in the order of the seeds."""
    found: dict[str, dict[int, Result]] = defaultdict(dict)
    for path in folder.glob("*.json"):
        if parts := re.fullmatch(r"(.+)-seed(\d+)-[0-9a-f]{10}", path.stem):
            found[parts[1]][int(parts[2])] = json.loads(path.read_text())
    return {name: [by_seed[seed] for seed in sorted(by_seed)] for name, by_seed in found.items()}


def load_json(path: Path) -> Any:
    """Return the content of a file, or ``None`` if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else None


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, or the empty string without rows."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(header) + " |", "|" + " --- |" * len(header), *lines]) if lines else ""


def build_table(results: Results, first: str, rows: dict[str, str], columns: dict[str, Column]) -> str:
    """Return a Markdown table with one line per configuration.

    Args:
        results: All results.
        first: Header of the first column.
        rows: What the first column says, by name of the configuration.
        columns: The other columns by header.
    """
    present = {words: group for name, words in rows.items() if (group := results.get(name))}
    lines = [[words, *(column(group) for column in columns.values())] for words, group in present.items()]
    return format_table([first, *columns], lines)


def get_values(group: list[Result], key: str) -> list[Any]:
    """Return the values of a key, leaving out results that lack it."""
    return [result[key] for result in group if result.get(key) is not None]


def format_mean(
    values: Sequence[float],
    digits: int = 2,
    factor: float = 1.0,
    worst: Callable[[Sequence[float]], float] | None = None,
) -> str:
    """Return mean ± standard deviation, and the worst value in brackets; "–" without values.

    Args:
        values: The values, one per seed.
        digits: Digits after the decimal point.
        factor: Multiplies every value; 100 for percentages.
        worst: ``max`` or ``min``, whichever picks the worst value; ``None`` leaves the brackets out.
    """
    values = [factor * value for value in values]
    if not values:
        return "–"
    text = f"{statistics.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.{digits}f}"
        text += f" ({worst(values):.{digits}f})" if worst else ""
    return text


# Makers of columns


def mean(key: str, digits: int = 2, factor: float = 1.0, worst: Any = None) -> Column:
    """Mean ± standard deviation over the seeds."""
    return lambda group: format_mean(get_values(group, key), digits, factor, worst)


def percent(key: str, digits: int = 2, worst: Any = None) -> Column:
    """Mean ± standard deviation of a fraction, in percent."""
    return mean(key, digits, 100.0, worst)


def average(key: str, digits: int = 1, factor: float = 1.0) -> Column:
    """Mean over the seeds."""
    return lambda group: f"{factor * statistics.mean(get_values(group, key)):,.{digits}f}"


def each(key: str, digits: int = 2, factor: float = 100.0) -> Column:
    """The values of all seeds."""
    return lambda group: " / ".join(f"{factor * value:.{digits}f}" for value in get_values(group, key))


def last(key: str, digits: int, factor: float = 1.0) -> Column:
    """The value at the last evaluation of the first seed."""
    return lambda group: f"{factor * group[0]['curves'][-1][key]:.{digits}f}"


def lookup(numbers: dict[int, str]) -> Column:
    """A published number, by number of labels."""
    return lambda group: numbers[group[0]["num_labels"]]


def count_seeds(group: list[Result]) -> str:
    """Return the number of seeds, and of those whose training failed."""
    failed = sum("failed" in result for result in group)
    return f"{len(group)}, {failed} failed" if failed else str(len(group))
