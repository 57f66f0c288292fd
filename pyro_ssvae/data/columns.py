"""Columns of words as integer codes, and back: of DataFrames, and of arrays and lists of objects."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Categories", "decode_categories", "encode_categories", "find_categories"]

Categories = Mapping[int, Any]
"""Sequences of the categories of columns, by the position of the column."""

_MAX_LEVELS = 100
_WITH_COMMAS = re.compile(r"[-+]?\d[\d.]*(,\d+)+(\.\d+)?")


class _Column(NamedTuple):
    """A column that is not of a numeric type; ``declared`` are the categories of the type ``category`` of pandas."""

    name: str
    values: NDArray[Any]
    declared: Sequence[Any] | None = None


def find_categories(X: Any, *, strict: bool = False) -> dict[int, NDArray[Any]]:
    """Return the categories of columns that hold words, sorted, or have the type ``category``, in its order.

    Categories that do not occur are left out unless ``strict``.

    Raises:
        ValueError: For a column of numbers and some words, of numbers with commas, or of more than 100 categories.
    """
    found = {}
    for position, column in _object_columns(X).items():
        known = [value for value in column.values if not _is_missing(value)]
        if column.declared is None:
            words = [value for value in known if _is_word(value)]
            if not words:
                continue
            if all(map(_WITH_COMMAS.fullmatch, words)):
                raise ValueError(
                    f"Column {column.name} holds numbers with commas, such as {words[0]!r}; write them with a decimal "
                    "point, and without separators of thousands."
                )
            if 2 * len(words) <= len(known):
                raise ValueError(
                    f"Column {column.name} holds numbers and {len(words)} other values, such as {words[0][:40]!r}; "
                    "correct these, or leave the cells empty."
                )
            by_text = {str(value): value for value in known}
            categories = [by_text[text] for text in sorted(by_text)]
        else:
            occurring = set(known)
            categories = [value for value in column.declared if strict or value in occurring]
        if len(categories) > _MAX_LEVELS:
            raise ValueError(
                f"Column {column.name} holds {len(categories)} different words, such as {str(categories[0])[:40]!r}; "
                f"at most {_MAX_LEVELS} are taken as categories. Leave out names, dates and texts, group them, or "
                "encode them as numbers."
            )
        found[position] = np.fromiter(categories, dtype=object, count=len(categories))
    return found


def encode_categories(X: Any, categories: Categories, *, strict: bool = False) -> Any:
    """Return a table with codes 0, 1, ... in place of categories, and NaN in place of missing values.

    Values that are no category are NaN too unless ``strict``.

    Raises:
        ValueError: With ``strict``, for a value that is neither a category nor, in the other columns, a number.
    """
    columns, encoded = _object_columns(X), {}
    for position in {*columns, *categories}:
        name, values, _ = columns.get(position) or _read_column(X, position)
        if position in categories:
            encoded[position] = _encode(name, values, categories[position], strict)
            continue
        encoded[position] = np.array([np.nan if _is_missing(value) else value for value in values], dtype=object)
        try:
            encoded[position] = encoded[position].astype(np.float64)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"Column {name} must hold numbers: {error}.") from error
    if not encoded:
        return X
    table = X.copy() if hasattr(X, "isetitem") else np.array(X, dtype=object)
    for position, values in encoded.items():
        if hasattr(table, "isetitem"):
            table.isetitem(position, values)
        else:
            table[:, position] = values
    return table


def decode_categories(rows: NDArray[Any], categories: Categories) -> NDArray[Any]:
    """Return rows with categories in place of codes; of type ``object`` if there are any."""
    if not categories:
        return rows
    table = rows.astype(object)
    for position, levels in categories.items():
        table[:, position] = np.asarray(levels, dtype=object)[np.rint(rows[:, position]).astype(int)]
    return table


def _encode(name: str, values: NDArray[Any], levels: Sequence[Any], strict: bool) -> NDArray[np.float64]:
    codes = {str(level): code for code, level in enumerate(levels)}
    encoded = np.array([np.nan if _is_missing(value) else codes.get(str(value), -1) for value in values], np.float64)
    if (unknown := encoded == -1).any() and strict:
        raise ValueError(
            f"Column {name} holds {values[unknown][0]!r}, which is none of {', '.join(map(str, levels[:10]))}, the "
            "words that it had in training. Leave those rows out."
        )
    return np.where(unknown, np.nan, encoded)


def _object_columns(X: Any) -> dict[int, _Column]:
    """Return the columns that are not of a numeric type, by position."""
    if hasattr(X, "iloc") and hasattr(X, "columns"):  # of pandas
        kinds = enumerate(map(str, X.dtypes))
        numeric = re.compile("u?int|float|bool|double|date|time|complex", re.I)
        return {position: _read_column(X, position) for position, kind in kinds if not numeric.match(kind)}
    if isinstance(X, (list, tuple)):
        try:
            X = np.array(X, dtype=object) if np.asarray(X).dtype.kind in "OU" else X
        except ValueError:  # not rectangular
            return {}
    is_table = isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind in "OU"
    return {position: _read_column(X, position) for position in range(X.shape[1])} if is_table else {}


def _read_column(X: Any, position: int) -> _Column:
    if hasattr(X, "iloc"):
        column = X.iloc[:, position]
        return _Column(str(column.name), np.asarray(column, dtype=object), getattr(column.dtype, "categories", None))
    table = X if isinstance(X, np.ndarray) else np.asarray(X, dtype=object)
    return _Column(f"{position} of X", table[:, position].astype(object))


def _is_missing(value: Any) -> bool:
    return not value if isinstance(value, str) else value is None or str(value) in ("nan", "<NA>", "NaT")


def _is_word(value: Any) -> bool:
    try:
        float(value)
    except ValueError:
        return isinstance(value, str)
    except TypeError:
        pass
    return False
