"""Validation of arguments: arrays, labels, numbers and devices, with errors that name the remedy.

An argument of the wrong type raises ``TypeError``, a wrong value ``ValueError``. ``name`` is the name of the caller's
argument, for the message.
"""

from __future__ import annotations

import math
import operator
import os
import re
import warnings
from collections.abc import Sequence
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "MAX_CLASSES",
    "as_array",
    "as_bool",
    "as_count",
    "as_device",
    "as_examples",
    "as_images",
    "as_labels",
    "as_path",
    "as_scale",
    "as_seed",
    "to_numpy",
]

MAX_CLASSES = 65_536
_MAX_SEED = 2**32 - 1
_NUMBERS = "biuf"  # numpy's kinds: bool, signed, unsigned, floating
_CHANNELS = (1, 3, 4)  # of grey and coloured images, and of those with opacity
_MAX_DENSE = 2**30  # bytes


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
    elif hasattr(values, "toarray"):  # of scipy.sparse
        values = _densify(values, "toarray", name)
    if any(map(np.ma.is_masked, values if isinstance(values, (list, tuple)) else (values,))):
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


def _densify(values: Any, method: str, name: str) -> Any:
    size = math.prod(values.shape) * values.dtype.itemsize
    if size > _MAX_DENSE:
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
    if hasattr(values, "columns"):  # a pandas table of several dtypes, or with missing integers
        dtypes = zip(values.columns, values.dtypes, strict=True)
        other = [str(column) for column, dtype in dtypes if not re.match("u?int|float|bool|double", str(dtype), re.I)]
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
    values: Any, name: str = "x", *, event_shape: Sequence[int] | None = None, allow_empty: bool = False
) -> Tensor:
    """Return finite numbers ``(N, *event_shape)`` as a CPU tensor that owns its memory; N may be 0 if ``allow_empty``.

    The tensor is uint8 where the values were uint8, float32 otherwise. Images get channels first, by
    :func:`as_images`.
    """
    array = to_numpy(values, name)
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
    array = as_images(array, name, event_shape)
    try:
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and is found below
            dtype = np.uint8 if array.dtype == np.uint8 else np.float32
            numbers = np.array(array, dtype=dtype, order="C")
        bad = np.flatnonzero(~np.isfinite(numbers).all(axis=tuple(range(1, numbers.ndim))))
    except MemoryError:
        raise MemoryError(f"A copy of {name}, {array.shape}, does not fit into memory; use fewer examples.") from None
    if len(bad):
        count = int((~np.isfinite(numbers[bad])).sum())
        places = ", ".join(f"{name}[{i}]" for i in bad[:3]) + (", ..." if len(bad) > 3 else "")
        raise ValueError(
            f"{name} holds {count} values that are NaN, infinite or beyond float32, in {len(bad)} of {len(array)} "
            f"examples, the first in {places}; all must be finite. Drop those examples or fill the values in."
        )
    return torch.from_numpy(numbers)


def as_images(x: NDArray[Any], name: str = "x", event_shape: Sequence[int] | None = None) -> NDArray[Any]:
    """Return images with channels first, and other arrays unchanged.

    With an ``event_shape``, examples are brought to it if a channel axis of size 1, or moving the last axis, does so.
    Without, ``(N, H, W)`` gets a channel axis, and ``(N, H, W, C)`` becomes ``(N, C, H, W)`` if C is 1, 3 or 4 and H is
    not. What looks like images, but may have its channels first or last, is left as it is, with a warning.
    """
    if x.ndim not in (3, 4):
        return x
    converted = x[:, None] if x.ndim == 3 else np.moveaxis(x, -1, 1)
    if event_shape is not None:
        return converted if converted.shape[1:] == tuple(event_shape) != x.shape[1:] else x
    if x.ndim == 3:
        return converted
    first, height, last = x.shape[1:]
    if (first in _CHANNELS) != (last in _CHANNELS):
        return converted if last in _CHANNELS else x
    if first != last and (first in _CHANNELS or first == height):
        warnings.warn(
            f"{name} has examples of shape {x.shape[1:]}, taken as {first} channels of {height} x {last} pixels. If "
            f"the last axis holds the channels, pass numpy.moveaxis({name}, -1, 1).",
            UserWarning,
            stacklevel=4,
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
                "example. Values that are no classes cannot be learned."
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


def as_count(value: Any, name: str, *, least: int = 0) -> int:
    """Return an integer of at least ``least``."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name}={value!r} is of type {type(value).__name__}; an integer of at least {least} is needed, for "
            f"example {name}={max(least, 100)}."
        ) from None
    if number < least:
        raise ValueError(f"{name}={number} is too small; it must be at least {least}.")
    return number


def as_bool(value: Any, name: str) -> bool:
    """Return a truth value."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}={value!r} is of type {type(value).__name__}; True or False is needed.")
    return bool(value)


def as_path(value: Any, name: str) -> Path:
    """Return a path, its ``~`` expanded."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name}={value!r} is of type {type(value).__name__}; a path is needed, as a str or Path.")
    if not str(value):
        raise ValueError(f"{name} is empty; a path is needed.")
    return Path(value).expanduser()


def as_seed(seed: Any) -> int:
    """Return a seed, an integer from 0 to 2^32 - 1."""
    number = as_count(seed, "seed")
    if number > _MAX_SEED:
        raise ValueError(f"seed={number} is too large; it must be at most {_MAX_SEED}.")
    return number


def as_scale(scale: Any, x: Tensor) -> float:
    """Return the divisor of stored values, positive and finite: as given, else 255 for uint8 and 1 for floats."""
    if scale is None:
        return 255.0 if x.dtype == torch.uint8 else 1.0
    try:
        if isinstance(scale, (bool, str)):
            raise TypeError
        number = float(scale)
    except (TypeError, ValueError):
        raise TypeError(f"scale={scale!r} is no number; pass what maps x to [0, 1], 255 for 8-bit images.") from None
    if not (math.isfinite(number) and number > 0):
        raise ValueError(
            f"scale={number} must be positive and finite: the model sees x / scale (255 for 8-bit images, 1 for "
            "values that need no scaling)."
        )
    return number


def as_device(device: torch.device | str) -> torch.device:
    """Return a device that exists, a CUDA device with its index; ``"auto"`` is CUDA if there is a GPU, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={str(device)!r} is unknown; use auto, cpu, cuda or cuda:INDEX.") from error
    if found.type != "cuda":
        return found
    if not torch.cuda.is_available():
        raise ValueError(
            f"device={str(device)!r} needs CUDA, and PyTorch finds no CUDA device here (no GPU, no driver, or a "
            "CPU-only build of PyTorch). Use the CPU (leave out --cuda), or install a CUDA build on a machine with a "
            "GPU."
        )
    index = torch.cuda.current_device() if found.index is None else found.index
    if index >= torch.cuda.device_count():
        raise ValueError(
            f"device={str(device)!r} does not exist; this machine has {torch.cuda.device_count()} CUDA device(s), "
            "counted from 0."
        )
    return torch.device("cuda", index)
