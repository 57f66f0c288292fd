"""Readers of array files: idx (the format of MNIST, also gzipped), npz and Parquet; nothing is unpickled."""

from __future__ import annotations

import gzip
import math
import mmap
import os
import struct
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_ssvae._arguments import as_path
from pyro_ssvae._io import check_memory, check_path, suggest_conversion
from pyro_ssvae.errors import MissingPackageError

_IDX_UINT8 = 0x08
_MOST_VALUES = 1000
IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # ends of their names
SHARDS = (".npy", ".parquet", ".zarr")  # of files of rows, of which a folder may hold several


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, the format of MNIST; ``.gz`` is unpacked in memory."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and fetch it again.") from error
    rank = content[3] if len(content) > 3 and content[:3] == bytes((0, 0, _IDX_UINT8)) else 0
    start = 4 + 4 * rank
    shape = struct.unpack(f">{rank}I", content[4:start]) if len(content) >= start else ()
    if not rank or len(content) - start != math.prod(shape):
        raise ValueError(
            f"{path} is damaged, or not an idx file of unsigned bytes: it starts with {content[:4].hex() or 'nothing'} "
            f"and {max(0, len(content) - start)} values follow for the shape {shape}; delete it and fetch it again."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def read_npz(
    path: str | os.PathLike[str], required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """Read the required arrays from an npz file, and the optional ones that it holds, without unpickling."""
    path = as_path(path, "path")
    check_path(path, "an .npz file")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is not an .npz file (a zip archive of arrays), or an incomplete one; write it by "
            f"numpy.savez(path, {', '.join(f'{name}=...' for name in required or optional[:1])})."
            f"{suggest_conversion(path)}"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            held = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            if missing := [name for name in required if name not in held]:
                raise ValueError(
                    f"{path} lacks {', '.join(missing)}; it holds {', '.join(held) or 'nothing'}. Needed: "
                    f"{', '.join(required)}" + (f"; optional: {', '.join(optional)}." if optional else ".")
                )
            names = [name for name in (*required, *optional) if name in held]
            check_memory(2 * sum(archive.getinfo(f"{name}.npy").file_size for name in names), str(path))
            return {name: _read_member(archive, name, path) for name in names}
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, UnicodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); write or fetch it again.") from error


def _read_member(archive: zipfile.ZipFile, name: str, path: Path) -> NDArray[Any]:
    try:
        with archive.open(f"{name}.npy") as file:
            array = np.asarray(np.lib.format.read_array(file, allow_pickle=False))
            if file.read(1):
                raise ValueError("it holds more bytes than its header promises")
            return array
    except (zipfile.BadZipFile, zlib.error, EOFError):
        raise
    except Exception as error:  # a damaged header gives errors of many types
        raise ValueError(
            f"{name} in {path} cannot be read as plain numbers ({' '.join(str(error).split())}); object arrays would "
            "have to be unpickled, which is refused. Write it by numpy.savez, with a numeric dtype."
        ) from error


class _FileRows:
    """Rows of a file, as an array; a file that is mapped would count as memory of the process."""

    def __init__(self, array: Any, offset: int) -> None:
        self.shape, self.dtype, self._offset, self._path = array.shape, array.dtype, offset, array.filename
        self._open()

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        size = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        content = os.pread(self._file, (rows.stop - rows.start) * size, self._offset + int(rows.start) * size)
        return np.frombuffer(content, self.dtype).reshape(-1, *self.shape[1:])


def unmap(array: Any) -> Any:
    """Return the rows of a memory-mapped array, or of a part of it, as they lie in its file; others unchanged."""
    mapped = getattr(array, "_mmap", None)
    if mapped is None or array.filename is None or array.mode == "c" or not array.flags.c_contiguous:
        return array
    if not hasattr(os, "pread"):
        return array
    start = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY  # of the map in the file
    return _FileRows(array, start + array.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data)


class _RowGroup:
    """Rows of a Parquet file that are stored together, as an array; ``encode`` makes numbers of their DataFrame."""

    def __init__(
        self, file: Any, read: Callable[[int], Any], number: int, like: NDArray[Any], encode: Callable[[Any], Any]
    ) -> None:
        self._read, self._number, self._encode = read, number, encode
        self.shape = self.chunks = (file.metadata.row_group(number).num_rows, like.shape[1])
        self.dtype = np.result_type(like, np.int16)  # of 8 bits none could be missing

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        table = self._read(self._number).slice(rows.start, rows.stop - rows.start)
        return np.asarray(self._encode(table.to_pandas()))


def open_row_groups(files: Sequence[Path], encode: Callable[[Any], Any]) -> tuple[list[_RowGroup], tuple[str, ...]]:
    """Return the row groups of files, and the names of their columns.

    Columns that differ, and files without rows, raise ``ValueError``.
    """
    import pyarrow.parquet

    opened = [pyarrow.parquet.ParquetFile(file) for file in files]
    names = opened[0].schema_arrow.names
    for file, one in zip(files, opened, strict=True):
        if one.schema_arrow.names != names:
            raise ValueError(f"{file} has other columns than {files[0]}; all must have the same, in the same order.")
    empty = opened[0].schema_arrow.empty_table().to_pandas()
    like = np.asarray(encode(empty))
    groups = []
    for one in opened:
        read = lru_cache(maxsize=1)(one.read_row_group)  # parts of a group, which is decoded whole, come one by one
        groups += [_RowGroup(one, read, number, like, encode) for number in range(one.num_row_groups)]
    if not groups:
        raise ValueError("it has no rows")
    return groups, tuple(map(str, empty.columns))


def open_annotated(path: Path) -> Any:
    """Return the AnnData in a file, which stays on disk."""
    with reading(path):
        import anndata

        cells = anndata.read_h5ad(path, backed="r")
        if cells.X is None:
            raise ValueError("it holds an AnnData without .X; set it, for example to .layers['counts']")
        return cells


def read_tables(files: Sequence[Path], num_rows: int) -> Iterator[Any]:
    """Yield the rows of Parquet files as DataFrames, so many at a time; raise ``ImportError`` without pyarrow."""
    from pyarrow.parquet import ParquetFile

    return (part.to_pandas() for file in files for part in ParquetFile(file).iter_batches(num_rows))


def read_column(files: Sequence[Any], name: str) -> Any:
    """Return a column of Parquet files, which fits into memory."""
    import pandas

    return pandas.concat([part.column(0).to_pandas() for part in _iterate(files, name)], ignore_index=True)


def find_values(files: Sequence[Any], name: str) -> Any:
    """Return different values in a column of Parquet files: all of them, or somewhat more than 1,000.

    Those of a categorical have the type ``category``, and its order.
    """
    import pandas
    from pyarrow.types import is_nested

    found: set[Any] = set()
    declared: dict[Any, None] = {}
    for part in _iterate(files, name):
        if is_nested(part.column(0).type):
            return part.column(0).to_pandas()  # of which pyarrow finds no different ones, and which no table may hold
        if len(found) <= _MOST_VALUES:
            found.update(part.column(0).unique().to_pylist())
        if hasattr(part.column(0), "dictionary"):
            declared |= dict.fromkeys(part.column(0).dictionary.to_pylist())
    values = pandas.Series(sorted(found, key=str), dtype=object)
    return values.astype(pandas.CategoricalDtype([*declared])) if declared else values


def _iterate(files: Sequence[Any], name: str) -> Iterator[Any]:
    return (part for file in files for part in file.iter_batches(columns=[name]))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise ``MissingPackageError`` where a reader is not installed, and ``ValueError`` for a damaged file."""
    try:
        yield
    except ImportError as error:
        name = error.name or "its reader"
        raise MissingPackageError(f"{path} is read by {name}, which is not installed: pip install {name}.") from error
    except (OSError, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def list_shards(path: Path) -> list[Path]:
    """Return the files of a path: itself, or those in a folder whose names end as that of the first one."""
    found = sorted(_find_shards(path)) if path.is_dir() and path.suffix != ".zarr" else [path]
    return [file for file in found if file.suffix == found[0].suffix]


def _find_shards(folder: Path) -> Iterator[Path]:
    return (file for file in folder.iterdir() if file.suffix in SHARDS and not file.name.startswith("."))


def _is_hidden(file: Path) -> bool:
    return any(part.startswith(".") or part.endswith(".zarr") for part in file.parts)


def is_on_disk(path: Path) -> bool:
    """Return whether a path is a file or folder of rows that can be read when they are needed, and not of images."""
    if path.suffix == ".npz":  # of scipy, and not one with x_train
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as file:
            return "format.npy" in file.namelist()
    if path.suffix in (*SHARDS, ".h5ad"):
        return True
    if not path.is_dir():
        return False
    shard = min(_find_shards(path), default=None)
    if shard is None:
        return False
    inside = (file.relative_to(path) for depth in ("*", "*/*") for file in path.glob(depth))
    if image := next((file for file in inside if file.suffix.lower() in IMAGES and not _is_hidden(file)), None):
        raise ValueError(f"{path} holds rows, {shard.name}, and images, {image}; move one of both elsewhere.")
    return True
