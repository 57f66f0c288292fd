"""Tables: files, DataFrames and what converts to one; columns of words, of arrays and lists too, become codes."""

from __future__ import annotations

import difflib
import gzip
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_ssvae._arguments import as_path
from pyro_ssvae._arrays import NUMERIC, as_array, as_text
from pyro_ssvae._io import check_memory, check_path
from pyro_ssvae._warnings import warn
from pyro_ssvae.errors import MissingPackageError

Categories = Mapping[int, Any]
"""Sequences of the categories of columns, by the position of the column."""

_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
_GROWTH = {".gz": 20, ".parquet": 10}  # of memory over the size of the file; 3 for text
_NUMBERS = ("boolean", "decimal", "floating", "integer", "integer-na", "mixed-integer-float")
_KINDS = (*_NUMBERS, "categorical", "empty", "mixed-integer", "string")  # of columns, in the words of pandas
# Labels that are empty: what pandas reads as such but for None, which may be a class.
_EMPTY = ("", *"#N/A #NA -1.#IND -1.#QNAN -NaN -nan 1.#IND 1.#QNAN <NA> N/A NA NULL NaN n/a nan null".split())
_MAX_LEVELS = 100
_FEW_LEVELS = 20  # of a column, which may then be one of categories though most of them are numbers
_FOR_MISSING = ("missing", "n/a", "na", "nan", "none", "null", "unknown")  # in any case
_MANY_UNKNOWN = 10  # rows, from which a column without a known word is probably coded in another way
_WITH_COMMAS = re.compile(r"[-+]?\d[\d.]*(,\d+)+(\.\d+)?")
_WITH_UNIT = re.compile(r"[-+<>]?\s*[$€£]?\s*\d[\d.,]*\s*[%$€£]?")  # and the words are no plain numbers


def is_table(name: Any) -> bool:
    """Return whether a path ends as those of tables do."""
    return str(name).lower().endswith(_SUFFIXES)


def is_numeric(column: Any) -> bool:
    """Return whether a column of pandas has a type of numbers."""
    return bool(NUMERIC.match(str(column.dtype)))


def _is_frame(X: Any) -> bool:
    return hasattr(X, "iloc") and hasattr(X, "columns")


def read_table(source: Any, label: str | None = None) -> Any:
    """Return a DataFrame whose columns have names, each once; ``label`` is looked up in ``.obs`` of an AnnData."""
    if isinstance(source, (str, os.PathLike)):
        table = _read_file(as_path(source, "source"), label)
    elif hasattr(source, "obs") and hasattr(source, "var_names"):
        table = _import_pandas().DataFrame(as_array(source, "source"), columns=source.var_names)
        if label is not None:
            if label in table:
                raise ValueError(f"A gene and a column of .obs are named {label}; rename the column.")
            table = table.assign(**{label: select_columns(source.obs, [label])[label].to_numpy()})
    else:
        table = source.to_pandas() if hasattr(source, "to_pandas") else source
    if not _is_frame(table):
        raise TypeError(
            f"source is of type {type(source).__name__}; pass the path of a table ({', '.join(_SUFFIXES)}) or a "
            "DataFrame. SemiSupervisedData.from_arrays reads arrays."
        )
    table = with_text_names(table)
    _check_names(table.columns)
    return table


def with_text_names(table: Any) -> Any:
    """Return a DataFrame whose columns have texts as names: also those of numbers, or of tuples (a MultiIndex)."""
    return table.set_axis([*map(str, table.columns)], axis=1)


def _check_names(names: Any) -> None:
    if twice := names[names.duplicated()].tolist():
        raise ValueError(f"Two columns of the table are named {twice[0]}; rename one of them.")


def _find_separator(path: Path) -> str:
    """Return the separator that is most frequent in the first line of a text file, outside of quotation marks."""
    with (
        gzip.open(path, "rt", errors="replace")
        if path.suffix.lower() == ".gz"
        else open(path, errors="replace") as file
    ):
        lines = (re.sub(r'"[^"]*"', "", line) for line in iter(lambda: file.readline(2**20), ""))
        header = next((line for line in lines if line.strip()), "")
    return "\t" if "\t" in header and ".tsv" in path.name.lower() else max(",;\t|", key=header.count)


def _import_pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise MissingPackageError("Tables are read by pandas: pip install 'pyro-ssvae[tables]'.") from error
    return pandas


def _read_file(path: Path, label: str | None) -> Any:
    if not is_table(path):
        raise ValueError(f"{path} is no table by its name; {', '.join(_SUFFIXES)} are read.")
    check_path(path, "a table")
    pandas = _import_pandas()
    suffix = path.suffix.lower()
    check_memory(_GROWTH.get(suffix, 3) * path.stat().st_size, str(path))
    try:
        return pandas.read_parquet(path) if suffix == ".parquet" else _read_text(path, label)
    except ImportError as error:
        raise MissingPackageError("Parquet files are read by pyarrow: pip install 'pyro-ssvae[tables]'.") from error
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        hint = ". Save it as UTF-8." if isinstance(error, UnicodeError) else ""
        raise ValueError(f"{path} cannot be read as a table: {' '.join(str(error).split())}{hint}") from error


def _read_text(path: Path, label: str | None) -> Any:
    pandas = _import_pandas()
    options = {"sep": _find_separator(path), "skipinitialspace": True, "low_memory": False}
    first = pandas.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, **options)
    _check_names(first.iloc[0][first.iloc[0] != ""])  # which pandas would rename
    table = pandas.read_csv(path, **options)
    if len(table) and not isinstance(table.index, pandas.RangeIndex):  # rows are longer than the header
        row = pandas.read_csv(path, nrows=1, dtype=str, keep_default_na=False, **options)
        if row.iloc[0, -1] == "" and table.iloc[:, -1].isna().all():
            raise ValueError(
                "its rows have one cell more than its header, and the last one is empty. Remove the separator at "
                "the end of the rows; or, if the first cells are names of rows, put a name before the header."
            )
    if options["sep"] == ";":  # as spreadsheets write it where the comma marks decimals
        other = pandas.read_csv(path, decimal=",", **options)
        table = max((table, other), key=lambda read: len(read.select_dtypes("number").columns))
    if label in table and table[label].hasnans and not is_numeric(table[label]):
        only: dict[str, Any] = {"usecols": [label], "keep_default_na": False, "na_values": _EMPTY}
        table[label] = pandas.read_csv(path, **options, **only)[label]
    nameless = [name for name in table if name.startswith("Unnamed: ") and table[name].isna().all()]
    table = table.drop(columns=nameless)  # of separators at the end of lines
    return table.iloc[:, 1:] if "Unnamed: 0" in table.columns[:1] else table  # the index that pandas and R write


def select_columns(table: Any, names: Iterable[str]) -> Any:
    """Return the columns of these names, or raise ``ValueError`` with the names that there are."""
    table = with_text_names(table)
    found = table.columns.tolist()
    known = set(found)
    if missing := [name for name in names if name not in known]:
        near = difflib.get_close_matches(missing[0], found, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Columns: {', '.join(found[:20])}."
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise ValueError(f"The table has no column {', '.join(missing[:10])}{more}. {hint}")
    return table[list(names)]


def locate_columns(found: Iterable[str], names: Sequence[str]) -> NDArray[np.int64]:
    """Return where columns of a table are, by their names; errors as of :func:`select_columns`."""
    columns = _import_pandas().Index(found)
    _check_names(columns)
    select_columns(_import_pandas().DataFrame(columns=columns), names)
    return np.asarray(columns.get_indexer(list(names)))


def find_words(table: Any) -> dict[str, tuple[str, ...]]:
    """Return the words in the columns of words, by their names; raise what :func:`find_categories` raises."""
    columns = find_categories(table, strict=True)
    return {table.columns[position]: tuple(map(as_text, words)) for position, words in columns.items()}


def encode_rows(table: Any, names: Sequence[str], categories: Mapping[str, Sequence[str]]) -> NDArray[Any]:
    """Return the columns ``names`` of a table as numbers ``(N, D)``, words as codes, NaN where a value is missing.

    They are int64 if all columns hold integers (which models divide by the scale of training), otherwise float64. A
    column that is missing, or holds a word that is no number or none of its categories, raises ``ValueError``.
    """
    by_position = {position: categories[name] for position, name in enumerate(names) if name in categories}
    rows = encode_categories(select_columns(table, names), by_position, strict=True)
    whole = not categories and all(isinstance(kind, np.dtype) and kind.kind in "iu" for kind in rows.dtypes)
    return rows.to_numpy(dtype=np.int64) if whole else rows.to_numpy(dtype=np.float64, na_value=np.nan)


class _Column(NamedTuple):
    """A column that is not of a numeric type; ``declared`` are the categories of the type ``category`` of pandas."""

    name: str
    values: NDArray[Any]
    declared: Sequence[Any] | None = None


def find_categories(X: Any, *, strict: bool = False) -> dict[int, NDArray[Any]]:
    """Return the categories of columns that hold words, sorted, or have the type ``category``, in its order.

    Categories that do not occur are left out, unless ``strict`` and there are at most 100. Dates, durations, lists and
    other objects raise ``TypeError``; numbers and a few words, numbers with commas or signs, and more than 100
    categories, ``ValueError``.
    """
    if _is_frame(X):
        _check_kinds(X)
    found = {}
    for position, column in _object_columns(X).items():
        known = [value for value in column.values if not _is_missing(value)]
        if column.declared is None:
            words = [value for value in known if _is_word(value)]
            if not words:
                continue
            _check_words(column.name, words, known)
            categories = [value for _, value in sorted({str(value): value for value in known}.items())]
        else:
            occurring = set(known)
            all_of_them = strict and len(column.declared) <= _MAX_LEVELS
            categories = [value for value in column.declared if all_of_them or value in occurring]
        if len(categories) > _MAX_LEVELS:
            raise ValueError(
                f"Column {column.name} holds {len(categories)} different words, such as {str(categories[0])[:40]!r}; "
                f"at most {_MAX_LEVELS} are taken as categories. Leave out names, dates and texts, group them, or "
                "encode them as numbers."
            )
        found[position] = np.fromiter(categories, dtype=object, count=len(categories))
    return found


def _check_words(name: str, words: Sequence[str], known: Sequence[Any]) -> None:
    """Raise ``ValueError`` if the words in a column are numbers with signs, or errors among numbers.

    Numbers and words together are categories if half of the values are words, or a tenth of few different values, such
    as 2, 3, 4 and "5more", unless these words stand for missing values.
    """
    if all(map(_WITH_COMMAS.fullmatch, words)):
        raise ValueError(
            f"Column {name} holds numbers with commas, such as {words[0]!r}; write them with a decimal point, and "
            "without separators of thousands."
        )
    if all(map(_WITH_UNIT.fullmatch, words)):
        raise ValueError(f"Column {name} holds numbers with signs, such as {words[0]!r}; write the numbers alone.")
    few = len(set(map(str, known))) <= _FEW_LEVELS and 10 * len(words) >= len(known)
    for_missing = all(word.strip().lower() in _FOR_MISSING or not any(map(str.isalpha, word)) for word in words)
    if 2 * len(words) <= len(known) and (for_missing or not few):
        raise ValueError(
            f"Column {name} holds numbers and {len(words)} other values, such as {words[0][:40]!r}; correct these, or "
            "leave the cells empty."
        )


def _check_kinds(table: Any) -> None:
    infer_dtype = _import_pandas().api.types.infer_dtype
    for name, column in table.items():
        kind = infer_dtype(column, skipna=True)
        if kind == "unknown-array":  # of PyArrow, such as its dictionaries
            kind = infer_dtype(np.asarray(column, dtype=object), skipna=True)
        if kind not in _KINDS:
            hint = "Give dates and durations as numbers, of days, say, or leave the column out."
            raise TypeError(f"Column {name} holds values of kind {kind}; numbers and words are allowed. {hint}")


def encode_categories(X: Any, categories: Categories, *, strict: bool = False) -> Any:
    """Return a table with codes for categories, NaN for missing values and, unless ``strict``, for unknown words."""
    if categories:
        shape = X.shape if hasattr(X, "shape") else np.array(X, dtype=object).shape
        if len(shape) != 2 or max(categories) >= shape[1]:
            return X  # which has other columns, as the caller finds
    columns, encoded = _object_columns(X), {}
    for position in {*columns, *categories}:
        name, values, _ = columns.get(position) or _read_column(X, position)
        if position in categories:
            encoded[position] = _encode(name, values, categories[position], strict)
            continue
        known = (np.nan if _is_missing(value) else value for value in values)
        try:
            encoded[position] = np.fromiter(known, dtype=object, count=len(values)).astype(np.float64)
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
        codes = np.rint(rows[:, position]).astype(int).clip(0, len(levels) - 1)  # a model of one word draws 0 or 1
        table[:, position] = np.asarray(levels, dtype=object)[codes]
    return table


def _encode(name: str, values: NDArray[Any], levels: Sequence[Any], strict: bool) -> NDArray[np.float64]:
    codes = {as_text(level): code for code, level in enumerate(levels)}

    def find(text: str) -> float:
        return codes.get(text, codes.get(f"{text}.0", -1))  # as models of earlier versions have whole numbers

    encoded = np.array([np.nan if _is_missing(value) else find(as_text(value)) for value in values], np.float64)
    unknown = encoded == -1
    shown = ", ".join(map(str, levels[:10])) + (f" and {len(levels) - 10} more" if len(levels) > 10 else "")
    if not strict and unknown.sum() >= _MANY_UNKNOWN and (unknown | np.isnan(encoded)).all():
        warn(
            f"Column {name} holds none of the words that it had in training, {shown}, but words such as "
            f"{values[unknown][0]!r}, which are treated as missing. Check how they are written, and their type."
        )
    if unknown.any() and strict:
        raise ValueError(
            f"Column {name} holds {values[unknown][0]!r} in row {int(unknown.argmax())} ({int(unknown.sum())} such "
            f"rows), which is none of the words that it had in training: {shown}. Leave those rows out, or leave the "
            "cell empty if it may be empty in training."
        )
    return np.where(unknown, np.nan, encoded)


def _object_columns(X: Any) -> dict[int, _Column]:
    """Return the columns that are not of a numeric type, by position."""
    if _is_frame(X):
        kinds = enumerate(map(str, X.dtypes))
        return {position: _read_column(X, position) for position, kind in kinds if not NUMERIC.match(kind)}
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
    return value is None or str(value) in ("", "nan", "<NA>", "NaT")  # also the words: numpy.array(["a", nan])


def _is_word(value: Any) -> bool:
    try:
        float(value)
    except ValueError:
        return isinstance(value, str)
    except TypeError:
        pass
    return False
