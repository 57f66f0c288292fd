"""Parquet files: groups of their rows as arrays, which are read when they are needed, and single columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class _RowGroup:
    """Rows of a Parquet file that are stored together, as an array; ``encode`` makes numbers of their DataFrame.

    ``read`` returns the table of a group. Parts of it are mostly read one after the other, as by ``predict``, so it
    should remember the last one: a group can only be decoded whole.
    """

    def __init__(
        self, file: Any, read: Callable[[int], Any], number: int, like: NDArray[Any], encode: Callable[[Any], Any]
    ) -> None:
        self._read, self._number, self._encode = read, number, encode
        self.shape = self.chunks = (file.metadata.row_group(number).num_rows, like.shape[1])
        self.dtype = np.result_type(like, np.int16)  # of 8 bits none could be missing

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        table = self._read(self._number).slice(rows.start, rows.stop - rows.start)
        return np.asarray(self._encode(table.to_pandas()))


def open_row_groups(files: Sequence[Path], encode: Callable[[Any], Any]) -> list[_RowGroup]:
    """Return the row groups of files with the same columns; ``encode`` makes an array of numbers of a DataFrame.

    Raises:
        ImportError: If pyarrow is not installed.
        ValueError: If the columns of a file differ, or there are no rows.
    """
    import pyarrow.parquet

    opened = [pyarrow.parquet.ParquetFile(file) for file in files]
    names = opened[0].schema_arrow.names
    for file, one in zip(files, opened, strict=True):
        if one.schema_arrow.names != names:
            raise ValueError(f"{file} has other columns than {files[0]}; all must have the same, in the same order.")
    like = np.asarray(encode(opened[0].schema_arrow.empty_table().to_pandas()))
    groups = []
    for one in opened:
        read = lru_cache(maxsize=1)(one.read_row_group)
        groups += [_RowGroup(one, read, number, like, encode) for number in range(one.num_row_groups)]
    if not groups:
        raise ValueError("it has no rows")
    return groups


def read_column(files: Sequence[Any], name: str) -> Any:
    """Return a column of Parquet files, which fits into memory."""
    import pandas

    return pandas.concat([part.column(0).to_pandas() for part in _iterate(files, name)], ignore_index=True)


def find_values(files: Sequence[Any], name: str, most: int = 1000) -> Any:
    """Return different values in a column of Parquet files: all of them, or somewhat more than ``most``."""
    import pandas

    found: set[Any] = set()
    for part in _iterate(files, name):
        if len(found) <= most:
            found.update(part.column(0).unique().to_pylist())
    return pandas.Series(sorted(found, key=str), dtype=object)


def _iterate(files: Sequence[Any], name: str) -> Iterator[Any]:
    return (part for file in files for part in file.iter_batches(columns=[name]))
