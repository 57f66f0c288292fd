"""Tables in Markdown: a line for each configuration, made from the results of its seeds."""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"

Result = dict[str, Any]
Results = dict[str, list[Result]]  # by family and name of the configuration, in the order of the seeds
Column = Callable[[list[Result]], str]  # formats one cell from the results of a configuration
Key = str | Callable[[Result], Any]  # of a value in a result, or what computes it


def load_results(folder: Path) -> Results:
    found: dict[str, dict[int, Result]] = defaultdict(dict)
    for path in folder.glob("*.json"):
        if parts := re.fullmatch(r"(.+)-seed(\d+)-[0-9a-f]{10}", path.stem):
            found[parts[1]][int(parts[2])] = json.loads(path.read_text())
    return {name: [by_seed[seed] for seed in sorted(by_seed)] for name, by_seed in found.items()}


def load_json(path: Path, missing: Any) -> Any:
    """Return the content of a file, or ``missing`` if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else missing


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, or the empty string without rows."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(header) + " |", "|" + " --- |" * len(header), *lines]) if lines else ""


def build_table(results: Results, first: str, rows: dict[str, str], columns: dict[str, Column]) -> str:
    """Return a Markdown table: ``first`` is the header of the first column, whose cells are those of ``rows``."""
    present = [(words, results[name]) for name, words in rows.items() if results.get(name)]
    lines = [[words, *(column(group) for column in columns.values())] for words, group in present]
    return format_table([first, *columns], lines)


def fill_table(entries: Iterable[Result], columns: dict[str, str]) -> str:
    """Return a table with a line for each entry; columns are format strings of its values by their header."""
    return format_table([*columns], [[cell.format(**entry) for cell in columns.values()] for entry in entries])


def mark(table: str, best: Callable[[list[float]], float]) -> str:
    """Return a table of numbers with the best of each line in bold."""
    head, rows = table.splitlines()[:2], [line[2:-2].split(" | ") for line in table.splitlines()[2:]]
    for row in rows:
        number = best([float(cell) for cell in row[1:]])
        row[1:] = [f"**{cell}**" if float(cell) == number else cell for cell in row[1:]]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in rows)])


def get_values(group: list[Result], key: Key) -> list[Any]:
    """Return the values of a key, leaving out results that lack it."""
    values = [key(result) if callable(key) else result.get(key) for result in group]
    return [value for value in values if value is not None]


def format_mean(values: Sequence[float], digits: int = 2, factor: float = 1.0, worst: Any = None) -> str:
    """Return mean ± standard deviation, and in brackets the worst value, which ``worst`` picks; "–" without values."""
    values = [factor * value for value in values]
    text = f"{statistics.mean(values):.{digits}f}" if values else "–"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.{digits}f}"
        text += f" ({worst(values):.{digits}f})" if worst else ""
    return text


def points(key: Key, sign: str = "") -> Column:
    """Mean ± standard error over the seeds of a fraction, in percent."""

    def format_points(group: list[Result]) -> str:
        values = [100.0 * value for value in get_values(group, key)]
        error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):{sign}.1f}{error}" if values else ""

    return format_points


def minus(first: str, second: str) -> Column:
    """Mean ± standard error of the difference of two fractions of a result, in points."""
    return points(lambda one: one[first] - one[second] if first in one else None, "+")


def mean(key: Key, digits: int = 2, factor: float = 1.0, worst: Any = None) -> Column:
    """Mean ± standard deviation over the seeds."""
    return lambda group: format_mean(get_values(group, key), digits, factor, worst)


def percent(key: Key, digits: int = 2, worst: Any = None) -> Column:
    """Mean ± standard deviation of a fraction, in percent."""
    return mean(key, digits, 100.0, worst)


def average(key: Key, digits: int = 1, factor: float = 1.0) -> Column:
    """Mean over the seeds."""
    return lambda group: f"{factor * statistics.mean(get_values(group, key)):,.{digits}f}"


def each(key: Key, digits: int = 2, factor: float = 100.0) -> Column:
    """The values of all seeds."""
    return lambda group: " / ".join(f"{factor * value:.{digits}f}" for value in get_values(group, key))


def last(key: str, digits: int, factor: float = 1.0) -> Column:
    """The value at the last evaluation of the first seed."""
    return lambda group: f"{factor * group[0]['curves'][-1][key]:.{digits}f}"


def count_seeds(group: list[Result]) -> str:
    """Return the number of seeds, and of those whose training failed."""
    failed = sum("failed" in result for result in group)
    return f"{len(group)}, {failed} failed" if failed else str(len(group))
