"""Rows of tables and of files of arrays with their labels: in memory, or on disk where they are large."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_ssvae._arguments import as_path
from pyro_ssvae._arrays import MAX_DENSE, as_examples, check_table
from pyro_ssvae._io import check_path
from pyro_ssvae.data.labels import encode_labels
from pyro_ssvae.data.readers import find_values, is_on_disk, list_shards, open_annotated, read_column, reading
from pyro_ssvae.data.sources import Source, as_held_out, draw_held_out
from pyro_ssvae.data.storage import ExampleSource, open_source
from pyro_ssvae.data.tables import (
    encode_rows,
    find_words,
    is_numeric,
    locate_columns,
    read_table,
    select_columns,
    with_text_names,
)

_MOST_HELD_OUT = 10_000  # rows for validation, and for testing, by default, if the others stay on disk
_FEWEST_TO_SHARE = 100  # labelled rows, of which by default a tenth is held out; an error on fewer says nothing


class _Rows(NamedTuple):
    """Examples, in memory or on disk, their labels if there are any, and what is known of their columns."""

    x: Any
    labels: Any
    names: tuple[str, ...] = ()
    categories: Mapping[str, tuple[str, ...]] = MappingProxyType({})


def load_table(
    source: Any,
    label: str | None,
    *,
    test: Any,
    num_validation: int | None,
    num_test: int | None,
    num_classes: int | None,
    seed: int,
) -> Source:
    """Read a table or a file of arrays, and draw test and validation rows; see ``SemiSupervisedData.from_table``."""
    if test is not None and num_test:
        raise ValueError(f"num_test={num_test}: the test rows are those of test; leave num_test out.")
    rows = _read_rows(source, label)
    where = label if label is not None and is_label_file(label) else f"column {label}"
    x: Any = rows.x
    x_test, test_labels = as_held_out(None, None, "test", x)
    if test is not None:
        if not rows.names or where == label:
            raise ValueError(f"test={test!r}: test rows are for tables whose labels are a column; leave test out.")
        table, test_labels = _split_labels(read_table(test, label), label, "test table")
        x_test, _ = as_held_out(encode_rows(table, rows.names, rows.categories), None, "test", x, rows.names)
    given = {where: rows.labels, f"{where} of the test rows": test_labels}
    known = encode_labels(given, [len(x), len(x_test)], num_classes)
    y, y_test = (part.numpy() for part in known.y.values())
    by_default = _choose_held_out(rows, y)
    num_validation = by_default if num_validation is None else num_validation
    num_test = 0 if test is not None else by_default if num_test is None else num_test
    validation, drawn = draw_held_out(y, np.arange(len(x)), num_validation, num_test, seed)
    return Source(
        x,
        None if rows.labels is None else y,
        validation=validation,
        name=Path(source).name.split(".")[0] if isinstance(source, (str, os.PathLike)) else "table",
        test=drawn,
        x_test=x_test,
        y_test=y_test,
        num_classes=known.num_classes,
        class_names=known.class_names,
        feature_names=rows.names,
        categories=rows.categories,
    )


def _choose_held_out(rows: _Rows, y: NDArray[np.int64]) -> int | None:
    """Return how many rows are held out for validation, and for testing; ``None`` is a tenth."""
    number = len(y) if rows.labels is None else int((y >= 0).sum())
    if rows.labels is not None and number < _FEWEST_TO_SHARE:
        return 0
    return _MOST_HELD_OUT if isinstance(rows.x, ExampleSource) and number > 10 * _MOST_HELD_OUT else None


def is_label_file(label: str) -> bool:
    """Return whether ``label`` names a file of labels, and not a column."""
    return str(label).endswith(".npy")


def read_label_file(path: str) -> Any:
    """Return the labels in a .npy file."""
    file = as_path(path, "label")
    check_path(file, "a .npy file with a label for every row")
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        how = "write labels by numpy.save, words as strings and not as objects"
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())}); {how}.") from error


def _read_rows(source: Any, label: str | None) -> _Rows:
    """Return the rows of a source, in memory if they take at most 1 GiB, and the labels in a column or a file."""
    if label is not None and is_label_file(label):
        return _read_rows(source, None)._replace(labels=read_label_file(label))
    path = as_path(source, "source") if isinstance(source, (str, os.PathLike)) else None
    if path is not None and path.suffix == ".h5ad":
        check_path(path, "an AnnData")
        source = open_annotated(path)
    if hasattr(source, "obs") and hasattr(source, "var_names"):
        return _read_annotated(source, label)
    if path is None or not is_on_disk(path):
        return _encode_table(read_table(source, label), label)
    check_path(path, "a table, or a file or folder of rows", Path.exists)
    shards = list_shards(path)
    if shards[0].suffix == ".parquet":
        return _read_parquet(shards, label)
    labels = None if label is None else read_label_column(path, label)
    x: Any = open_source(path)
    if 4 * x.numel() <= MAX_DENSE:
        x.holds_missing = True  # of all rows, and not of a sample alone
        x = x[:]
    return _Rows(x, labels)


def _read_annotated(cells: Any, label: str | None) -> _Rows:
    """Return the rows of an AnnData, and a column of its ``obs`` as labels."""
    labels = None if label is None else select_columns(cells.obs, [label])[label]
    if label is not None:
        _check_labels(labels, label)
    x = open_source(cells)
    if x is None or x.numel() * max(4, cells.X.dtype.itemsize) <= MAX_DENSE:
        return _encode_table(read_table(cells), None)._replace(labels=labels)
    locate_columns(x.names, ())  # which refuses a name that occurs twice
    return _Rows(x, labels, x.names)


def read_label_column(path: Path, label: str) -> Any:
    """Return a column of Parquet files, or of ``obs`` of an AnnData, in a file or folder of rows."""
    files = list_shards(path)
    if files[0].suffix == ".parquet":
        return read_column(_open_parquet(files, label), label)
    if path.suffix == ".h5ad":
        return select_columns(open_annotated(path).obs, [label])[label]
    raise ValueError(f"label={label}: {path} has no columns; name a .npy file with a label for every row.")


def _encode_table(table: Any, label: str | None) -> _Rows:
    table, labels = _split_labels(table, label)
    names, categories = tuple(table.columns), find_words(table)
    numbers = encode_rows(table, names, categories)
    check_table(numbers, "the table", names)
    return _Rows(as_examples(numbers, "table", allow_missing=True, columns=names), labels, names, categories)


def _split_labels(table: Any, label: str | None, what: str = "table") -> tuple[Any, Any]:
    if label is None:
        return table, None
    labels = select_columns(table, [label])[label]
    table = table.drop(columns=label)
    if not len(table.columns):
        raise ValueError(f"The {what} has no column but {label}; examples need at least one.")
    if labels.isna().all() and what == "test table":
        raise ValueError(f"No row of the {what} has a label in column {label}; label some rows, or leave test out.")
    _check_labels(labels, label)
    return table, labels


def _check_labels(labels: Any, label: str) -> None:
    if labels.isna().all():
        raise ValueError(
            f"No row has a label in column {label}; label some rows. Without labels M1 learns latents, and M2 "
            "clusters: SemiSupervisedData.from_table(table, None, num_classes=K)."
        )


def _read_parquet(files: Sequence[Path], label: str | None) -> _Rows:
    """Return the rows of Parquet files with the same columns, in memory if they take at most 1 GiB."""
    opened = _open_parquet(files, label)
    import pandas

    table = with_text_names(opened[0].schema_arrow.empty_table().to_pandas())
    if 4 * sum(file.metadata.num_rows for file in opened) * len(table.columns) <= MAX_DENSE:
        return _encode_table(pandas.concat(map(read_table, files), ignore_index=True), label)
    words = {name: find_values(opened, name) for name in table if name != label and not is_numeric(table[name])}
    table = pandas.DataFrame({**table, **words} | ({} if label is None else {label: read_column(opened, label)}))
    table, labels = _split_labels(table, label)
    names, categories = tuple(table.columns), find_words(table)
    path = files[0].parent if len(files) > 1 else files[0]
    return _Rows(
        open_source(path, None, lambda table: encode_rows(table, names, categories)), labels, names, categories
    )


def _open_parquet(files: Sequence[Path], label: str | None) -> list[Any]:
    """Return Parquet files with the same columns, of which ``label`` is one; otherwise raise ``ValueError``."""
    with reading(files[0]):
        from pyarrow.parquet import ParquetFile

        opened = [ParquetFile(file) for file in files]
    names = [sorted(file.schema_arrow.names) for file in opened]
    if other := [file for file, found in zip(files, names, strict=True) if found != names[0]]:
        raise ValueError(f"{other[0]} has other columns than {files[0]}; all files of a folder must have the same.")
    select_columns(opened[0].schema_arrow.empty_table().to_pandas(), [] if label is None else [label])
    return opened
