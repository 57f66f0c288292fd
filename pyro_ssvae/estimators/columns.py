"""Columns of words as integer codes, and back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode_categories", "encode_categories", "find_categories"]

Categories = Mapping[int, NDArray[Any]]
"""The sorted categories of columns, by the position of the column."""

_MAX_LEVELS = 1000
_MISSING = (None, "")


def find_categories(X: Any) -> dict[int, NDArray[Any]]:
    """Return the categories of the columns that hold words, or have the type ``category`` of pandas.

    Raises:
        ValueError: For a column of more than 1,000 different words.
    """
    found = {}
    for position, values, declared in _object_columns(X):
        if not (declared or any(map(_is_word, values))):
            continue
        known = {value for value in values if not _is_missing(value)}
        if len(known) > _MAX_LEVELS:
            raise ValueError(
                f"Column {position} of X holds {len(known)} different words, as names do; leave it out, or group them "
                f"into at most {_MAX_LEVELS} categories."
            )
        mixed = len({isinstance(value, str) for value in known}) > 1
        levels = np.empty(len(known), dtype=object)
        levels[:] = sorted(known, key=str if mixed else None)
        found[position] = levels
    return found


def encode_categories(X: Any, categories: Categories) -> Any:
    """Return a table with codes 0, 1, ... in place of categories, and NaN in place of missing and unknown ones."""
    columns = {position: values for position, values, _ in _object_columns(X)}
    if not columns and not categories:
        return X
    codes = {}
    for position in {*columns, *categories}:
        values = columns[position] if position in columns else _column(X, position)
        lookup = {level: float(code) for code, level in enumerate(categories.get(position, ()))}
        if position in categories:
            codes[position] = np.array([lookup.get(value, np.nan) for value in values])
        else:
            codes[position] = np.array([np.nan if _is_missing(value) else value for value in values], dtype=object)
    if hasattr(X, "isetitem"):
        X = X.copy()
        for position, values in codes.items():
            X.isetitem(position, values)
        return X
    table = np.array(X, dtype=object)
    for position, values in codes.items():
        table[:, position] = values
    return table


def decode_categories(rows: NDArray[Any], categories: Categories) -> NDArray[Any]:
    """Return rows with categories in place of codes; of type ``object`` if there are any."""
    if not categories:
        return rows
    table = rows.astype(object)
    for position, levels in categories.items():
        table[:, position] = levels[np.rint(rows[:, position]).astype(int)]
    return table


def _object_columns(X: Any) -> Iterator[tuple[int, NDArray[Any], bool]]:
    """Yield position and values of columns that are not of a numeric type, and whether they are declared categories."""
    if hasattr(X, "iloc") and hasattr(X, "dtypes"):  # of pandas
        for position, dtype in enumerate(X.dtypes):
            if not re.match("u?int|float|bool|double|date|time|complex", str(dtype), re.I):
                yield position, _column(X, position), str(dtype) == "category"
        return
    if isinstance(X, (list, tuple)):
        X = _as_objects(X)
    if isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind in "OU":
        for position in range(X.shape[1]):
            yield position, X[:, position], False


def _as_objects(X: Any) -> Any:
    try:
        return np.array(X, dtype=object) if np.asarray(X).dtype.kind in "OU" else X
    except ValueError:  # not rectangular
        return X


def _column(X: Any, position: int) -> NDArray[Any]:
    column = X.iloc[:, position] if hasattr(X, "iloc") else np.asarray(X, dtype=object)[:, position]
    return np.asarray(column, dtype=object)


def _is_missing(value: Any) -> bool:
    return value in _MISSING if value is None or isinstance(value, str) else str(value) in ("nan", "<NA>", "NaT")


def _is_word(value: Any) -> bool:
    if not isinstance(value, str) or not value:
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False
