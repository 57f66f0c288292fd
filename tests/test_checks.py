import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from pyro_ssvae._arguments import MAX_CLASSES, as_count, as_scale, as_seed
from pyro_ssvae._arrays import as_examples, as_labels


class Endless:
    """A data set that has an item for every index."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return np.zeros(2)


class Table:
    """What is used of a pandas DataFrame."""

    columns, dtypes = ["age", "town", "day"], ["Int64", "object", "datetime64[ns]"]

    def __array__(self, dtype=None, copy=None):
        return np.array([[1, "Oslo", None]], dtype=object)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.zeros((3, 2), dtype=np.uint8), torch.uint8),
        (np.zeros((3, 2), dtype=np.int64), torch.float32),
        (np.zeros((3, 2), dtype=np.uint16), torch.float32),
        (np.zeros((3, 2), dtype=bool), torch.float32),
        (np.zeros((3, 2), dtype=np.float64), torch.float32),
        (np.zeros((3, 2), dtype=np.float16), torch.float32),
        (np.zeros((3, 2), dtype=">f8"), torch.float32),
        (torch.zeros(3, 2, dtype=torch.uint8), torch.uint8),
        (torch.zeros(3, 2, dtype=torch.bfloat16), torch.float32),
        (torch.zeros(3, 2, requires_grad=True), torch.float32),
        ([[0, 1], [1, 0], [2, 2]], torch.float32),
        ([torch.zeros(2), torch.zeros(2), torch.zeros(2)], torch.float32),
        (csr_array(np.zeros((3, 2))), torch.float32),
        (torch.zeros(3, 2).to_sparse(), torch.float32),
        (np.ma.array(np.zeros((3, 2)), mask=False), torch.float32),
        (np.matrix(np.zeros((3, 2))), torch.float32),
    ],
)
def test_examples_of_any_numeric_dtype(values, dtype):
    examples = as_examples(values)
    assert examples.dtype == dtype
    assert examples.shape == (3, 2)
    assert not examples.requires_grad


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_examples_are_a_copy(dtype):
    values = np.zeros((3, 2), dtype=dtype)
    examples = as_examples(values)
    values[:] = 1
    assert not examples.any()


def test_examples_of_read_only_and_strided_arrays():
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)[:, ::2]
    values.setflags(write=False)
    examples = as_examples(values)
    assert examples.tolist() == values.tolist()
    assert examples.is_contiguous()


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        (np.array([["a"], ["b"]]), TypeError, "dtype <U1.*bool, integer and real.*astype"),
        (np.array([[None], [1]], dtype=object), TypeError, "dtype object"),
        (np.array([[1j]]), TypeError, "dtype complex128"),
        (torch.empty(10**6, 10**6, layout=torch.sparse_coo), ValueError, "x is sparse, and would take 3725.3 GiB"),
        (csr_array((10**6, 10**6)), ValueError, r"x is sparse, and would take 7450.6 GiB.*TruncatedSVD\(100\)"),
        (np.ma.array([[1.0], [2.0]], mask=[[0], [1]]), ValueError, "x is a masked array, and hidden values"),
        ([np.ma.array([1.0, 2.0], mask=[0, 1])], ValueError, "x is a masked array, and hidden values"),
        ((row for row in [[1.0]]), TypeError, r"x is of type generator; pass an array.*list\(...\)"),
        ({"a": [1.0]}, TypeError, "x is of type dict; pass"),
        (None, TypeError, "x is of type NoneType; pass"),
        (Endless(), TypeError, "x is of type Endless; pass.*torch.stack"),
        (Table(), TypeError, "columns that are not numeric: town, day. Leave"),
        ([[1, 2], [3]], ValueError, "no rectangular array.*same shape"),
        (np.zeros(5), ValueError, r"shape \(5,\); \(N, D\) or .* is needed.*reshape\(-1, 1\)"),
        (np.float64(3), ValueError, r"shape \(\); \(N, D\) or"),
        (np.zeros((0, 2)), ValueError, "no values; at least one example"),
        (np.zeros((2, 0)), ValueError, "no values; at least one example"),
        (
            [[0.0], [np.nan]],
            ValueError,
            r"1 values that are NaN.*in 1 of 2 examples, the first in x\[1\], column 0;.*Leave out",
        ),
        ([[np.inf], [0.0]], ValueError, r"the first in x\[0\], column 0;"),
        (
            np.full((5, 2), np.nan),
            ValueError,
            r"10 values .* in 5 of 5 examples, the first in x\[0\], x\[1\], x\[2\], ",
        ),
        ([[1e300]], ValueError, "beyond float32"),
    ],
)
def test_examples_refused(values, error, text):
    with pytest.raises(error, match=text):
        as_examples(values, "x")


@pytest.mark.parametrize(
    "values",
    [
        [0, 1, -1],
        [0.0, 1.0, -1.0],
        [0.0, 1.0, np.nan],
        [[0], [1], [-1]],
        np.array([0, 1, -1], dtype=np.int8),
        torch.tensor([0, 1, -1], dtype=torch.int32),
    ],
)
def test_labels(values):
    labels = as_labels(values, "y", 3, allow_unlabelled=True)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 1, -1]


def test_labels_of_bool_and_of_no_examples():
    assert as_labels([True, False], "y", 2).tolist() == [1, 0]
    assert as_labels([], "y_test", 0).tolist() == []


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        (["cat", "dog"], TypeError, "dtype <U3"),
        ([[0, 1], [1, 0]], ValueError, r"shape \(2, 2\).*argmax\(-1\) for one-hot"),
        ([0, 1, 1], ValueError, "3 labels for 2 examples.*-1 where it is unknown"),
        ([0, 0.5], ValueError, r"y\[1\] is 0.5; labels are whole numbers"),
        ([0, np.inf], ValueError, r"y\[1\] is inf"),
        ([0, -2], ValueError, "labels from -2 to 0; classes are counted from 0"),
        ([-1, MAX_CLASSES], ValueError, f"labels from -1 to {MAX_CLASSES}.*Encode"),
    ],
)
def test_labels_refused(values, error, text):
    with pytest.raises(error, match=text):
        as_labels(values, "y", 2, allow_unlabelled=True)


def test_unlabelled_examples_refused_where_labels_must_be_known():
    with pytest.raises(ValueError, match="y_test holds -1 .unlabelled. 2 times; every label must be known"):
        as_labels([-1, -1, 0], "y_test", 3)


def test_counts_and_seeds():
    assert as_count(np.int32(3), "n") == 3
    assert as_seed(2**32 - 1) == 2**32 - 1
    with pytest.raises(ValueError, match="seed=-1 is too small"):
        as_seed(-1)
    with pytest.raises(ValueError, match="too large"):
        as_seed(2**32)
    with pytest.raises(TypeError, match="seed=None is of type NoneType"):
        as_seed(None)


def test_scale():
    assert as_scale(None, torch.zeros(1, dtype=torch.uint8)) == 255.0
    assert as_scale(None, torch.zeros(1)) == 1.0
    assert as_scale(16, torch.zeros(1)) == 16.0


@pytest.mark.parametrize(
    ("scale", "error"),
    [(0, ValueError), (np.inf, ValueError), (np.nan, ValueError), ("255", TypeError), (True, TypeError)],
)
def test_scale_refused(scale, error):
    with pytest.raises(error, match="scale="):
        as_scale(scale, torch.zeros(1))
