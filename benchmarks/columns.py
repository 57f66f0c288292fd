"""Columns of the tables: what they show of the results of all seeds of a configuration."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from table_format import Column, Result

Key = str | Callable[[Result], Any]  # of a value in a result, or what computes it


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
