"""Columns of results, written to CSV, Parquet or .npy files as they are computed."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from pyro_ssvae._io import atomic_open
from pyro_ssvae.errors import MissingPackageError

Columns = Mapping[str, Sequence[Any]]


def write_columns(parts: Iterable[Columns], path: Path | None, number: int) -> None:
    """Write columns of ``number`` rows, some rows at a time, to a file by its ending, or as CSV to standard output.

    A file ``.npy`` gets the columns of real numbers alone, as float32 ``(N, D)``. No file is left behind by an error.
    """
    if path is None:
        for text in _format_csv(parts):
            print(text, end="")
        return
    with atomic_open(path) as file:
        if path.suffix == ".parquet":
            _write_parquet(parts, file)
        elif path.suffix == ".npy":
            _write_npy(parts, file, number)
        else:
            file.writelines(text.encode() for text in _format_csv(parts))
    print(f"{number} rows in {path}", file=sys.stderr)


def _format_csv(parts: Iterable[Columns]) -> Iterable[str]:
    for count, columns in enumerate(parts):
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        if count == 0:
            rows.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            rows.writerow([f"{value:.6g}" if isinstance(value, np.floating) else value for value in row])
        yield text.getvalue()


def _write_parquet(parts: Iterable[Columns], file: Any) -> None:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetWriter
    except ImportError as error:
        raise MissingPackageError("Parquet files are written by pyarrow: pip install 'pyro-ssvae[tables]'.") from error
    with ExitStack() as stack:
        writer = None
        for columns in parts:
            table = pyarrow.table(dict(columns))
            writer = writer or stack.enter_context(ParquetWriter(file, table.schema))
            writer.write_table(table)


def _write_npy(parts: Iterable[Columns], file: Any, number: int) -> None:
    for count, columns in enumerate(parts):
        real = [values for values in map(np.asarray, columns.values()) if values.dtype.kind == "f"]
        x = np.stack(real, 1).astype("<f4")
        if count == 0:
            header = {"descr": "<f4", "fortran_order": False, "shape": (number, x.shape[1])}
            np.lib.format.write_array_header_1_0(file, header)
        file.write(x.tobytes())
