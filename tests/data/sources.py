"""Five hundred rows with some labels, in every kind of source that rows are read from; idx files."""

import struct

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from pyro_ssvae.data import ExampleSource

N = 500
X = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32).round(3)
X[:, 1] = np.maximum(X[:, 1], 0.0)
Y = np.where(np.arange(N) % 7 == 0, np.arange(N) % 3, -1)


def idx(array):
    """Return an array of bytes as the content of an idx file, the format of MNIST."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


class Chunked:
    """An array as Zarr and HDF5 have them: slices are read, and rows are stored in chunks."""

    def __init__(self, values, rows):
        self.values, self.shape, self.dtype, self.chunks = values, values.shape, values.dtype, (rows, values.shape[1])

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        return self.values[rows]


class Scaled(ExampleSource):
    """A source of one's own."""

    def __init__(self):
        super().__init__((N, 6), np.float64)

    def load(self, rows, out):
        out[:] = (X[rows] * 4) / 4


class Items(torch.utils.data.Dataset):
    """A data set of PyTorch."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def make_dataset():
    return Items([(torch.from_numpy(row), int(y)) for row, y in zip(X, Y, strict=True)])


def make_npy(folder):
    np.save(folder / "x.npy", X)
    return folder / "x.npy"


def make_padded(folder, columns=0):
    np.save(folder / "padded.npy", np.pad(X, ((3, 2), (0, columns))))
    return np.load(folder / "padded.npy", mmap_mode="r")


def make_shards(folder):
    for number, part in enumerate(np.split(X, [130, 131, 400])):
        np.save(folder / f"part{number}.npy", part)
    return folder


def make_parquet(folder):
    for number, part in enumerate(np.split(X, [200])):
        table = pd.DataFrame(part, columns=[*"abcdef"])
        table.to_parquet(folder / f"{number}.parquet", row_group_size=70)
    return str(folder)


def make_sparse(folder):
    sparse.save_npz(folder / "x.npz", sparse.csr_matrix(X))
    return folder / "x.npz"


SOURCES = {
    "path": make_npy,
    "memmap": lambda folder: np.load(make_npy(folder), mmap_mode="r"),
    "part of a memmap": lambda folder: np.load(make_npy(folder), mmap_mode="r+")[:],
    "middle of a memmap": lambda folder: make_padded(folder)[3:-2],
    "columns of a memmap": lambda folder: make_padded(folder, 2)[3:-2, :6],
    "shards": make_shards,
    "parquet": make_parquet,
    "sparse file": make_sparse,
    "chunked": lambda folder: Chunked(X.astype(np.float64), 60),
    "sparse": lambda folder: sparse.csr_matrix(X),
    "dataset": lambda folder: make_dataset(),
    "own": lambda folder: Scaled(),
}
