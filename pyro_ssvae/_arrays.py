"""What users pass as examples and labels, as arrays and tensors: with errors that name the remedy."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_ssvae._arguments import MAX_CLASSES
from pyro_ssvae._warnings import warn

NUMERIC = re.compile("u?int|float|bool|double", re.I)  # dtypes of pandas
_NUMBERS = "biuf"  # numpy's kinds: bool, signed, unsigned, floating
CHANNELS = (1, 3, 4)  # of grey and coloured images, and of those with opacity
MAX_DENSE = 2**30  # bytes of a sparse matrix, once it is dense
_MOST_OFFSET = 1e4  # mean of a column, in standard deviations, up to which single precision keeps enough of its values
_FAR = 50.0  # range of a column over that without its outermost value, from which this value is far from all others
_LEAST_VALUES = 10  # different ones, for which a value can be far from them
_MOST_CHECKED = 10_000  # rows
_NARROW = 4  # side of images up to which, beside one as many times as long, they are probably none
_DARK = 32  # brightest value of images of 8 bits from which on they are not taken for images of fewer bits


def as_text(value: Any) -> str:
    """Return a word or number as text: whole numbers alike, be they integers or, as beside NaN, floats."""
    return str(int(value)) if isinstance(value, (float, np.floating)) and value.is_integer() else str(value)


def as_array(values: Any, name: str) -> NDArray[Any]:
    """Return an array, a tensor on any device, a table or nested lists as a plain array that may share their memory.

    Sparse values are made dense if they then take at most 1 GiB. An array whose mask hides values is refused.
    """
    if isinstance(values, Tensor):
        values = values.detach()
        values = (values if values.layout == torch.strided else _densify(values, "to_dense", name)).cpu()
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()  # numpy has no bfloat16
        values = values.numpy()
    elif hasattr(values, "obs") and hasattr(values, "X"):  # an AnnData
        if values.X is None:
            raise ValueError(f"{name}, an AnnData, has no .X; set it, for example to {name}.layers['counts'].")
        values = as_array(values.X.to_memory() if hasattr(values.X, "to_memory") else values.X, name)  # if backed
    elif hasattr(values, "to_pandas") and (not hasattr(values, "__array__") or not holds_numbers(values)):
        values = values.to_pandas()  # also of a data set of Hugging Face
    elif hasattr(values, "toarray"):  # of scipy.sparse
        values = _densify(values, "toarray", name)
    parts = values if isinstance(values, (list, tuple)) else (values,)
    if any(isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part) for part in parts):
        raise ValueError(
            f"{name} is a masked array, and hidden values cannot be trained on; leave out those examples, or fill the "
            f"values in: {name}.filled(...)."
        )
    if not (isinstance(values, (Sequence, Number)) or hasattr(values, "__array__")):
        raise TypeError(
            f"{name} is of type {type(values).__name__}; pass an array, a tensor, a table of numbers or nested lists. "
            "Read a generator by list(...), a torch Dataset by torch.stack([x for x, _ in dataset])."
        )
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is no rectangular array ({error}); all examples must have the same shape.") from error


def holds_numbers(table: Any) -> bool:
    """Return whether all columns of a table of polars or PyArrow are numbers; as one array, durations become such."""
    return all(np.asarray(column).dtype.kind in _NUMBERS for column in table[:1])


def _densify(values: Any, method: str, name: str) -> Any:
    size = math.prod(values.shape) * values.dtype.itemsize
    if size > MAX_DENSE:
        raise ValueError(
            f"{name} is sparse, and would take {size / 2**30:.1f} GiB as the dense array that is needed. Reduce its "
            f"columns first, for example by sklearn.decomposition.TruncatedSVD(100).fit_transform({name})."
        )
    return getattr(values, method)()


def to_numpy(values: Any, name: str) -> NDArray[Any]:
    """Return real numbers as :func:`as_array` does."""
    array = as_array(values, name)
    if array.dtype.kind in _NUMBERS:
        return array
    values = values.to_pandas() if hasattr(values, "to_pandas") else values  # columns of polars or PyArrow
    if hasattr(values, "columns"):  # a pandas table of several dtypes, or with missing integers
        dtypes = zip(values.columns, values.dtypes, strict=True)
        other = [str(column) for column, dtype in dtypes if not NUMERIC.match(str(dtype))]
        if other:
            raise TypeError(
                f"{name} has columns that are not numeric: {', '.join(other[:10])}. Leave them out, or encode them, as "
                "pandas.get_dummies does."
            )
        return np.asarray(values.to_numpy(dtype=np.float64, na_value=np.nan))
    raise TypeError(
        f"{name} has dtype {array.dtype}; bool, integer and real dtypes are allowed. Convert it, for example by "
        f"{name}.astype('float32')."
    )


def as_examples(
    values: Any,
    name: str = "x",
    *,
    event_shape: Sequence[int] | None = None,
    allow_empty: bool = False,
    allow_missing: bool = False,
    columns: Sequence[str] = (),
) -> Tensor:
    """Return finite numbers ``(N, *event_shape)`` as a CPU tensor that owns its memory; N may be 0 if ``allow_empty``.

    The tensor is uint8 where the values were uint8, float32 otherwise. Images get channels first, by
    :func:`as_images`. If ``allow_missing``, values of tables may be NaN. Errors name ``columns``.
    """
    array = to_numpy(values, name)
    check_shape(array, name, allow_empty=allow_empty)
    array = as_images(array, name, event_shape)
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is found below
        dtype = np.uint8 if array.dtype == np.uint8 else np.float32
        numbers = torch.from_numpy(np.array(array, dtype=dtype, order="C"))
    check_finite(numbers, name, allow_missing=allow_missing and array.ndim == 2, columns=columns)
    return numbers


def check_shape(array: NDArray[Any], name: str, *, allow_empty: bool = False) -> None:
    """Raise ``ValueError`` for an array that holds no examples ``(N, *event_shape)``."""
    if array.ndim < 2:
        raise ValueError(
            f"{name} has shape {array.shape}; (N, D) or (N, channels, height, width) is needed. Use "
            f"{name}.reshape(-1, 1) for one number per example, {name}.reshape(1, -1) for a single example."
        )
    if 0 in array.shape[1:] or (len(array) == 0 and not allow_empty):
        raise ValueError(
            f"{name} has shape {array.shape} and thus no values; at least one example with at least one number is "
            "needed. Check how it was loaded or sliced."
        )


def check_finite(
    x: Tensor, name: str, *, allow_missing: bool = False, rows: Any = None, columns: Sequence[str] = ()
) -> None:
    """Raise ``ValueError`` for examples ``(N, *event_shape)`` that are infinite or, unless allowed, NaN.

    ``rows``, ``(N,)``, are their numbers in the message, if not 0 to N - 1, and ``columns`` the names of columns.
    """
    if not x.is_floating_point() or x.sum().isfinite():  # a sum takes a tenth of the time
        return
    good = ~x.isinf() if allow_missing else x.isfinite()
    if good.all():
        return
    bad: Tensor = ~good
    examples = bad.flatten(1).any(1).nonzero().flatten().tolist()
    places = ", ".join(f"{name}[{i if rows is None else rows[i]}]" for i in examples[:3]) + (
        ", ..." if len(examples) > 3 else ""
    )
    remedy = "Leave out those examples, or fill the values in"
    if x.dim() == 2:
        wrong = bad.any(0).nonzero().flatten().tolist()
        shown = ", ".join(str(columns[column] if len(columns) else column) for column in wrong[:5])
        places += f", column {shown}{', ...' if len(wrong) > 5 else ''}"
    if x.dim() == 2 and not allow_missing:
        remedy += "; M1 and M2 take missing values (NaN) if their training examples had some, or with missing=True"
    raise ValueError(
        f"{name} holds {int(bad.sum())} values that are {'' if allow_missing else 'NaN, '}infinite or beyond float32, "
        f"in {len(examples)} of {len(x)} examples, the first in {places}; all must be finite. {remedy}."
    )


def holds_missing(*parts: Tensor) -> bool:
    """Return whether a value is NaN."""
    real = (x for x in parts if x.is_floating_point())
    return not all(bool(x.sum().isfinite()) or bool((~x.isnan()).all()) for x in real)


def check_table(x: NDArray[Any], name: str, columns: Sequence[Any], *, offsets: bool = True) -> None:
    """Raise ``ValueError`` for columns that hold no value but NaN, and warn of those with a value far from others.

    Unless ``offsets`` are taken care of, warn of columns with these, too.
    """
    if x.dtype.kind == "f" and len(x) and (empty := np.flatnonzero(np.isnan(x).all(0)).tolist()):
        shown = ", ".join(str(columns[column]) for column in empty[:10])
        raise ValueError(f"No row of {name} has a value in column {shown}; leave such columns out.")
    _warn_about_far_values(x, columns)
    if offsets:
        _warn_about_offsets(x, columns)


def find_offsets(x: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return the means of columns where they far exceed the deviation, zeros elsewhere, or ``None`` if none does."""
    with warnings.catch_warnings(), np.errstate(over="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # of columns without a value
        means, deviations = np.nanmean(x, 0), np.nanstd(x, 0)
    far = (deviations > 0) & (np.abs(means) > _MOST_OFFSET * deviations)
    if not far.any():
        return None
    whole = (np.isnan(x[:, far]) | (x[:, far] == np.rint(x[:, far]))).all(0)
    offsets = np.zeros(x.shape[1])
    offsets[far] = np.where(whole, np.rint(means[far]), means[far])
    return offsets


def _warn_about_offsets(x: NDArray[Any], names: Sequence[Any]) -> None:
    """Warn of columns of a table whose values differ too little for single precision; of its first rows."""
    offsets = find_offsets(np.asarray(x[:_MOST_CHECKED], np.float64)) if len(x) else None
    if offsets is not None:
        large = [f"{name} ({offset:g})" for name, offset in zip(names, offsets, strict=True) if offset]
        warn(
            f"The mean of column {', '.join(large[:5])} is more than 10,000 times the standard deviation, and training "
            "in single precision loses such differences: subtract the mean first."
        )


def _warn_about_far_values(x: NDArray[Any], names: Sequence[Any]) -> None:
    """Warn of columns of a table with a value far from all others, a code for missing ones, say; of its first rows."""
    x, found = np.asarray(x[:_MOST_CHECKED], np.float64), []
    if not len(x):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of columns without a value
        low, high = np.nanmin(x, 0), np.nanmax(x, 0)
        for end in (low, high):
            others = np.where(x == end, np.nan, x)
            least, most = np.nanmin(others, 0), np.nanmax(others, 0)
            far = (most > least) & (high - low > _FAR * (most - least))
            for column in np.flatnonzero(far).tolist():
                if len(np.unique(others[:, column])) > _LEAST_VALUES:
                    number = int((x[:, column] == end[column]).sum())
                    found.append(
                        f"Column {names[column]} has the value {end[column]:g} in {number} of {len(x)} rows, and "
                        f"others from {least[column]:g} to {most[column]:g}"
                    )
    if found:
        more = f" ({len(found) - 1} more columns have such a value)" if len(found) > 1 else ""
        warn(
            f"{found[0]}{more}. If it stands for a missing value, leave the cells empty (NaN); if it is an error, "
            "leave out the rows: the scale of a column is that of its largest values."
        )


def choose_scale(x: Tensor) -> float:
    """Return what training examples are divided by: 255 for pixels of 8 bits, which reach 255 in tables; otherwise 1.

    Images of zeros and ones are not divided either; those of other values far below 255 are, with a warning.
    """
    largest = int(x.max()) if x.dtype == torch.uint8 and x.numel() else 0
    if largest <= 1 or (x.dim() == 2 and largest < 255):
        return 1.0
    if largest < _DARK:
        warn(
            f"The images are of 8 bits, and no value exceeds {largest}: they are divided by 255, and so are nearly "
            f"black. If {largest} is white, pass scale={largest}, or divide them by it."
        )
    return 255.0


def value_range(x: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest value that is not NaN; zeros where there is none."""
    x = x[~x.isnan()] if holds_missing(x) else x.detach()
    low, high = x.aminmax() if x.numel() else (0.0, 0.0)
    return float(low), float(high)


def as_images(x: NDArray[Any], name: str = "x", event_shape: Sequence[int] | None = None) -> NDArray[Any]:
    """Return images with channels first, and other arrays unchanged.

    With an ``event_shape``, examples are brought to it if a channel axis of size 1, or moving the last axis, does so.
    Without, ``(N, H, W)`` gets a channel axis, with a warning if H or W is small beside the other, and ``(N, H, W, C)``
    becomes ``(N, C, H, W)`` if C is 1, 3 or 4 and H is not. Where the channels may be the first or the last axis, as
    for 4 x 5 x 3, they are taken as first, with a warning.
    """
    if x.ndim not in (3, 4):
        return x
    converted = x[:, None] if x.ndim == 3 else np.moveaxis(x, -1, 1)
    if event_shape is not None:
        return converted if converted.shape[1:] == tuple(event_shape) != x.shape[1:] else x
    if x.ndim == 3:
        short, long = sorted(x.shape[1:])
        if short <= _NARROW and long >= _NARROW * short:
            warn(
                f"{name} has examples of shape {x.shape[1:]}, taken as grey images, which training mirrors and shifts. "
                f"Give other arrays, such as time series, as a table: {name}.reshape(len({name}), -1)."
            )
        return converted
    first, height, last = x.shape[1:]
    before, after = ((size in CHANNELS) + (size == 1) for size in (first, last))  # how probably they are channels
    if after > before and height != last:
        return converted
    if after >= before and last not in (1, first) and (after or first == height):
        warn(
            f"{name} has examples of shape {x.shape[1:]}, taken as {first} channels of {height} x {last} pixels. If "
            f"the last axis holds the channels, pass numpy.moveaxis({name}, -1, 1)."
        )
    return x


def as_labels(values: Any, name: str, num_examples: int, *, allow_unlabelled: bool = False) -> Tensor:
    """Return whole numbers from 0, the classes of N examples, as a CPU tensor ``(N,)``, int64, that owns its memory.

    Floats are accepted where they are whole, a column ``(N, 1)`` is flattened, and -1 or NaN marks unlabelled examples
    if ``allow_unlabelled``.
    """
    array = to_numpy(values, name)
    array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if array.ndim != 1:
        raise ValueError(
            f"{name} has shape {array.shape}; one class index per example is needed, shape ({num_examples},). Use "
            f"{name}.argmax(-1) for one-hot labels."
        )
    if len(array) != num_examples:
        raise ValueError(
            f"{name} holds {len(array)} labels for {num_examples} examples; pass one for each"
            + (", -1 where it is unknown." if allow_unlabelled else ".")
        )
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), -1, array) if allow_unlabelled else array
        if (wrong := ~(np.isfinite(array) & (array == np.floor(array)))).any():
            first = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"{name}[{first}] is {array[first]}; labels are whole numbers or words, and -1 marks an unlabelled "
                "example. A continuous y (regression) is not supported."
            )
    least = -1 if allow_unlabelled else 0
    if num_examples and (array.min() < least or array.max() >= MAX_CLASSES):
        if array.min() == -1 and not allow_unlabelled:
            raise ValueError(
                f"{name} holds -1 (unlabelled) {int((array == -1).sum())} times; every label must be known here. "
                "Leave those examples out."
            )
        raise ValueError(
            f"{name} holds labels from {array.min()} to {array.max()}; classes are counted from 0 (at most "
            f"{MAX_CLASSES}), and -1 marks an unlabelled example. Encode classes as 0, 1, 2, ... or as words."
        )
    return torch.from_numpy(np.array(array, dtype=np.int64))
