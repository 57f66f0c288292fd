"""Examples that stay on disk, or in a sparse matrix, and are read when they are needed."""

from __future__ import annotations

import math
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyro_ssvae._arguments import as_path
from pyro_ssvae._arrays import MAX_DENSE, as_images, check_finite, check_shape, to_numpy
from pyro_ssvae._io import check_path, suggest_conversion
from pyro_ssvae.data.readers import SHARDS, is_on_disk, list_shards, open_annotated, open_row_groups, reading, unmap
from pyro_ssvae.data.tables import locate_columns

_BLOCK = 2**16  # bytes of an array that are read at once: enough for disks, and few enough to be mixed well
_LOCK = threading.RLock()  # held while a source reads that only one thread may read; HDF5 has such a lock, too
_SAMPLED_ROWS, _SAMPLED_VALUES, _SAMPLED_BYTES = 4096, 2**24, 2**30


class ExampleSource(ABC):
    """Examples that are read when they are needed, in place of the tensor ``x`` of a data set.

    A subclass defines :meth:`load`, and calls the constructor with shape and type of what is stored. As of a tensor,
    ``source[index]`` are some examples, which are read, ``len(source)`` is their number, and ``source.split(1000)``
    yields all of them in parts.

    Args:
        shape: ``(N, *stored)``; images may have their channels first or last, or no axis of channels.
        dtype: A numpy type of numbers.
        event_shape: Shape of an example, if images should be brought to it.

    Attributes:
        shape: ``(N, *event_shape)``.
        dtype: ``torch.uint8`` where 8-bit integers are stored, otherwise ``torch.float32``.
        is_integer: Whether integers are stored.
        bounds: Where blocks of rows start that are best read at once, and N, ``(B + 1,)``; ``None`` if any rows are
            read equally fast.
        workers: Number of threads that may read at the same time; 0 if reading ahead does not pay.
        names: Names of the columns, if they have any.
    """

    names: tuple[str, ...] = ()
    bounds: NDArray[np.int64] | None = None
    workers: int = 1

    def __init__(self, shape: Sequence[int], dtype: Any, event_shape: Sequence[int] | None = None) -> None:
        stored = np.broadcast_to(np.empty((), dtype), shape)
        to_numpy(stored[:0], "x")  # which refuses types that are no numbers
        check_shape(stored, "x")
        self._stored_shape, self._stored_dtype = tuple(shape[1:]), stored.dtype
        self.shape = torch.Size(as_images(stored, "x", event_shape).shape)
        self.is_integer = stored.dtype.kind in "iu"
        self.dtype = torch.uint8 if stored.dtype == np.uint8 else torch.float32

    @abstractmethod
    def load(self, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Read rows, ascending and each once, into ``out``, ``(B, *stored)``."""

    def read(self, indices: ArrayLike) -> Tensor:
        """Return the examples with these numbers, shape ``(B, *event_shape)``, of type :attr:`dtype`.

        Raises:
            ValueError: If a value is infinite, or NaN where :attr:`sample` has no NaN.
        """
        rows = np.asarray(indices, dtype=np.int64)
        x = self._read(rows)
        check_finite(x, "x", allow_missing=x.dim() == 2 and self.holds_missing, rows=self._number(rows))
        return x

    def _number(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of rows in the file, for messages."""
        return rows

    def _read(self, indices: NDArray[np.int64], real: Any = np.float32) -> Tensor:
        ascending = bool((np.diff(indices) > 0).all())
        rows, inverse = (indices, None) if ascending else np.unique(indices, return_inverse=True)
        out = np.empty((len(rows), *self._stored_shape), np.uint8 if self.dtype == torch.uint8 else real)
        lock: Any = _LOCK if self.workers == 1 else nullcontext()
        with lock, np.errstate(over="ignore"):  # what overflows becomes infinite, and is found
            self.load(rows, out)
        out = np.ascontiguousarray(as_images(out, "x", self.shape[1:]))
        return torch.from_numpy(out if inverse is None else out[inverse])

    @cached_property
    def sample(self) -> Tensor:
        """Up to 4,096 evenly spaced examples, for statistics, checks, choices of defaults and figures."""
        number = min(len(self), _SAMPLED_ROWS, max(64, _SAMPLED_VALUES // self[0].numel()))
        if self.bounds is None or number == len(self):
            return self._read(space(0, len(self), number))
        size = self.numel() * self.element_size() // (len(self.bounds) - 1)
        starts = space(0, len(self.bounds) - 1, min(256, max(8, _SAMPLED_BYTES // max(1, size))))
        each = -(-number // len(starts))
        return self._read(np.concatenate([space(self.bounds[start], self.bounds[start + 1], each) for start in starts]))

    @cached_property
    def holds_missing(self) -> bool:
        """Whether a value of :attr:`sample` is NaN."""
        return self.dtype != torch.uint8 and bool(self.sample.isnan().any())

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Tensor:
        if isinstance(index, (int, np.integer)) or (isinstance(index, Tensor) and index.dim() == 0):
            return self._read(np.array([range(len(self))[int(index)]]))[0]  # raises IndexError, which ends iteration
        if isinstance(index, slice):
            return self.read(np.arange(*index.indices(len(self))))
        rows = np.asarray(index)
        rows = rows if rows.size else rows.astype(np.int64)
        if rows.dtype == bool and rows.shape != (len(self),):
            raise IndexError(f"A mask of {len(self)} examples has shape ({len(self)},); this one has {rows.shape}.")
        rows = np.flatnonzero(rows) if rows.dtype == bool else np.where(rows < 0, rows + len(self), rows)
        if wrong := rows[(rows < 0) | (rows >= len(self))].tolist():
            raise IndexError(f"There are {len(self)} examples, counted from 0, and number {wrong[0]} was asked for.")
        return self.read(rows)

    def __deepcopy__(self, _: Any) -> ExampleSource:
        return self  # which nothing changes

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all examples, ``size`` at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def split_unchecked(self, size: int) -> Iterator[NDArray[Any]]:
        """Yield all examples as arrays, ``size`` at a time: uint8 where :attr:`dtype` is, otherwise float64."""
        starts = range(0, len(self), size)
        return (self._read(np.arange(low, min(low + size, len(self))), np.float64).numpy() for low in starts)

    def without(self, rows: ArrayLike) -> ExampleSource:
        """Return the source of all examples but those with these numbers."""
        left_out = np.unique(np.asarray(rows, dtype=np.int64))
        return _RemainingSource(self, left_out) if len(left_out) else self

    def dim(self) -> int:
        """Return the number of axes of :attr:`shape`."""
        return len(self.shape)

    def numel(self) -> int:
        """Return the number of values."""
        return self.shape.numel()

    def element_size(self) -> int:
        """Return the bytes of a value in memory."""
        return self.dtype.itemsize

    def is_floating_point(self) -> bool:
        """Return whether :attr:`dtype` is that of real numbers."""
        return self.dtype.is_floating_point


def sample_rows(x: Tensor | ExampleSource) -> Tensor:
    """Return examples in memory as they are, and those that stay on disk as a sample."""
    return x.sample if isinstance(x, ExampleSource) else x


def space(low: int, high: int, number: int) -> NDArray[np.int64]:
    """Return up to ``number`` evenly spaced integers from ``low`` to ``high - 1``."""
    return np.unique(np.linspace(low, high - 1, min(number, high - low)).astype(np.int64))


class ItemSource(ExampleSource):
    """Examples of which a function returns one by its number, ``(*shape,)``: items of a data set, or files."""

    def __init__(
        self, number: int, load: Callable[[int], Any], event_shape: Sequence[int] | None = None, workers: int = 1
    ) -> None:
        self.workers, self._load_item = workers, load
        first = np.asarray(load(0))
        super().__init__((number, *first.shape), first.dtype, event_shape)

    def load(self, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Read items one by one."""
        for place, row in enumerate(rows.tolist()):
            item = np.asarray(self._load_item(row))
            if item.shape != out.shape[1:]:
                raise ValueError(f"x[{row}] has shape {item.shape}, and x[0] {out.shape[1:]}; all must be alike.")
            if not np.can_cast(item.dtype, out.dtype, "same_kind"):
                raise ValueError(f"x[{row}] is of type {item.dtype}, and x[0] {self._stored_dtype}; all must be alike.")
            out[place] = item


class _RemainingSource(ExampleSource):
    """The rows of a source without some of them."""

    def __init__(self, source: ExampleSource, left_out: NDArray[np.int64]) -> None:
        self.workers, self._source = source.workers, source
        self._shifts = left_out - np.arange(len(left_out))  # numbers from which on one more row is left out
        shape = (len(source) - len(left_out), *source._stored_shape)
        super().__init__(shape, source._stored_dtype, source.shape[1:])
        if source.bounds is not None:
            self.bounds = np.unique(source.bounds - np.searchsorted(left_out, source.bounds))

    def _number(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows + np.searchsorted(self._shifts, rows, side="right")

    def load(self, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        self._source.load(self._number(rows), out)


class _SelectedSource(ExampleSource):
    """Some columns of a source of rows."""

    def __init__(self, source: ExampleSource, columns: NDArray[np.int64]) -> None:
        self.workers, self.bounds, self._source, self._columns = source.workers, source.bounds, source, columns
        super().__init__((len(source), len(columns)), source._stored_dtype)

    def load(self, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        for low in range(0, len(rows), 1000):  # complete rows may be many times as long
            part = rows[low : low + 1000]
            complete = np.empty((len(part), *self._source._stored_shape), out.dtype)
            self._source.load(part, complete)
            out[low : low + 1000] = complete[:, self._columns]


class _SparseSource(ExampleSource):
    """Rows of a sparse matrix in memory."""

    workers = 0

    def __init__(self, matrix: Any, event_shape: Sequence[int] | None = None) -> None:
        self._matrix = matrix.tocsr()
        super().__init__(matrix.shape, matrix.dtype, event_shape)

    def load(self, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        out[:] = self._matrix[rows].toarray()


class _ArraySource(ExampleSource):
    """Rows of one array after the other, each with ``shape`` and ``dtype``, of which ``array[low:high]`` reads rows."""

    def __init__(self, arrays: Sequence[Any], event_shape: Sequence[int] | None = None) -> None:
        if wrong := [array for array in arrays if array.shape[1:] != arrays[0].shape[1:]]:
            raise ValueError(f"A part has rows of shape {wrong[0].shape[1:]}, the first one {arrays[0].shape[1:]}.")
        self._arrays = [unmap(array) for array in arrays if array.shape[0]] or arrays[:1]
        self._starts = np.cumsum([0, *(array.shape[0] for array in self._arrays)])
        dtype = np.result_type(*(array.dtype for array in self._arrays))
        super().__init__((int(self._starts[-1]), *arrays[0].shape[1:]), dtype, event_shape)
        pairs = zip(self._starts[:-1], self._arrays, strict=True)
        self.bounds = np.concatenate([first + np.arange(0, a.shape[0], _count_rows(a)) for first, a in pairs])
        self.bounds = np.append(self.bounds, self._starts[-1])

    def load(self, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Read a slice of each block, and choose its rows."""
        assert self.bounds is not None
        edges = np.flatnonzero(np.diff(np.searchsorted(self.bounds, rows, side="right"))) + 1
        for low, high in zip([0, *edges], [*edges, len(rows)], strict=True):
            if low < high:
                part = rows[low:high]
                number = int(np.searchsorted(self._starts, part[0], side="right")) - 1
                values = self._arrays[number][part[0] - self._starts[number] : part[-1] - self._starts[number] + 1]
                values = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
                out[low:high] = values if len(values) == high - low else values[part - part[0]]


def _count_rows(array: Any) -> int:
    """Return how many rows of an array are best read at once: those of a chunk, or some KiB."""
    chunks = getattr(array, "chunks", None)
    if chunks:
        first = chunks[0]
        return int(first if isinstance(first, int) else max(first))  # dask has a tuple of sizes
    return max(1, _BLOCK // max(1, int(np.prod(array.shape[1:])) * np.dtype(array.dtype).itemsize))


def open_source(
    x: Any,
    event_shape: Sequence[int] | None = None,
    encode: Callable[[Any], Any] | None = None,
    names: Sequence[str] = (),
) -> ExampleSource | None:
    """Return the source of what stays on disk, or is too large for memory as a dense array; ``None`` for all else.

    What stays on disk is listed in ``SemiSupervisedData.from_arrays``; a folder of images does where ``event_shape`` is
    known. ``encode`` makes an array of numbers of a DataFrame, whose columns by default must be numbers; of an AnnData
    the columns ``names`` are read, by default all.
    """
    if isinstance(x, ExampleSource):
        return x
    if isinstance(x, (str, os.PathLike)):
        return _open_path(as_path(x, "x"), event_shape, encode or (lambda table: to_numpy(table, "x")), names)
    if hasattr(x, "obs") and hasattr(x, "var_names"):
        return _open_annotated(x, names)
    dataset: Any = x.dataset if isinstance(x, DataLoader) else x
    if isinstance(dataset, Dataset) and hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        return _open_dataset(dataset, event_shape)
    is_mapped = isinstance(x, np.memmap) and getattr(x, "_mmap", None) is not None
    if is_mapped or (hasattr(x, "shape") and hasattr(x, "dtype") and hasattr(x, "chunks")):
        return _ArraySource([x], event_shape)
    if not isinstance(x, Tensor) and hasattr(x, "tocsr"):
        item_size = 1 if x.dtype == np.uint8 else max(4, x.dtype.itemsize)  # on the way to a dense tensor
        if math.prod(x.shape) * item_size > MAX_DENSE:
            return _SparseSource(x, event_shape)
    # A sparse matrix of a backed AnnData, whose slices are read.
    return _ArraySource([x], event_shape) if hasattr(x, "to_memory") and hasattr(x, "dtype") else None


def _open_annotated(cells: Any, names: Sequence[str]) -> ExampleSource | None:
    source, found = open_source(cells.X), tuple(map(str, cells.var_names))
    if source is not None:
        source.names = found
        if len(names) and found != tuple(names):
            source = _SelectedSource(source, locate_columns(found, names))
            source.names = tuple(names)
    return source


def _open_dataset(dataset: Any, event_shape: Sequence[int] | None) -> ExampleSource | None:
    """Return the source of a data set of PyTorch, or ``None`` if it fits into memory."""

    def load(number: int) -> Any:
        item = dataset[number]
        if isinstance(item, (tuple, list)) and len(item) not in (1, 2):
            kind = type(dataset).__name__
            raise TypeError(f"The items of x, a {kind}, must be examples x or pairs (x, y); make arrays of it.")
        return item[0] if isinstance(item, (tuple, list)) else item

    number = len(dataset)
    if not number or 4 * number * np.asarray(load(0)).size <= MAX_DENSE:
        return None
    return ItemSource(number, load, event_shape)


def _open_path(
    path: Path, event_shape: Sequence[int] | None, encode: Callable[[Any], Any], names: Sequence[str]
) -> ExampleSource | None:
    check_path(path, "a file or folder of examples", Path.exists)
    files = list_shards(path)
    if not files:
        if event_shape is None:
            raise ValueError(
                f"{path} holds no .npy, .parquet or .zarr; from_folder(..., on_disk=True) reads images."
                f"{suggest_conversion(path)}"
            )
        from pyro_ssvae.data.images import open_images  # which needs this module

        return open_images(path, event_shape)
    if path.suffix == ".npz" and not is_on_disk(path):
        raise ValueError(f"{path} holds no sparse matrix; SemiSupervisedData.from_npz reads .npz files with x_train.")
    suffix = files[0].suffix
    if suffix == ".h5ad":
        return _open_annotated(open_annotated(path), names)
    with reading(path):
        if suffix == ".npy":
            return _ArraySource([np.load(file, mmap_mode="r", allow_pickle=False) for file in files], event_shape)
        if suffix == ".npz":
            from scipy import sparse

            return _SparseSource(sparse.load_npz(path), event_shape)
        if suffix == ".parquet":
            groups, found = open_row_groups(files, encode)
            source = _ArraySource(groups, event_shape)
            source.names = found
            return source
        if suffix == ".zarr":
            import zarr

            arrays = [zarr.open(str(file), mode="r") for file in files]
            if not all(hasattr(array, "shape") for array in arrays):
                raise ValueError("it holds a group; pass one array of it, or, of an AnnData, anndata.read_zarr(PATH)")
            return _ArraySource(arrays, event_shape)
    known = f"{', '.join(SHARDS)}, .npz (a sparse matrix) and .h5ad"
    words = f"is of no kind that is read; these are {known}, and folders of the first three. from_table reads tables."
    raise ValueError(f"{path} {words}{suggest_conversion(path)}")
