"""Checks at the door: what a user hands in becomes tensors, or an error that says what to do."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "MAX_CLASSES",
    "as_count",
    "as_labels",
    "as_num_classes",
    "as_examples",
    "as_scale",
    "as_seed",
    "to_numpy",
]

MAX_CLASSES = 65_536
_MAX_SEED = 2**32 - 1
_NUMBERS = "biuf"  # numpy's kinds: bool, signed, unsigned, floating


def to_numpy(values: Any, name: str) -> NDArray[Any]:
    """Return an array of numbers, possibly sharing memory with ``values``.

    Args:
        values: Array, tensor on any device, or nested lists.
        name: What the caller's argument is called.

    Raises:
        TypeError: If the values are not real numbers.
        ValueError: If the rows have different lengths.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        if values.layout != torch.strided:
            raise TypeError(f"{name} is a sparse tensor; hand in a dense one: {name}.to_dense().")
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()  # numpy has no bfloat16
        values = values.numpy()
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is no rectangular array ({error}); all rows must have the same shape.") from error
    if array.dtype.kind not in _NUMBERS:
        raise TypeError(
            f"{name} has dtype {array.dtype}; bool, integer and real dtypes are allowed. Convert "
            f"it, for example by {name}.astype('float32') (classes by numpy.unique(y, "
            "return_inverse=True)[1]), and mark missing labels by -1."
        )
    return array


def as_examples(values: Any, name: str = "x", *, allow_empty: bool = False) -> Tensor:
    """Return rows as a CPU tensor that owns its memory.

    Args:
        values: Numbers with shape ``(N, *event)``, at least one event axis.
        name: What the caller's argument is called.
        allow_empty: Whether N may be 0.

    Returns:
        Rows with shape ``(N, *event)``: uint8 where they were uint8, float32 otherwise.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If there are no rows, rows without numbers, or values that are not finite.
    """
    array = to_numpy(values, name)
    if array.ndim < 2:
        raise ValueError(
            f"{name} has shape {array.shape}; rows are needed, (N, D) or (N, channels, height, "
            f"width). Use {name}.reshape(-1, 1) for one number per row, {name}.reshape(1, -1) "
            "for a single row."
        )
    if 0 in array.shape[1:] or (len(array) == 0 and not allow_empty):
        raise ValueError(
            f"{name} has shape {array.shape} and thus no values; at least one row with at least "
            "one number is needed. Check how it was loaded or sliced."
        )
    if array.dtype == np.uint8:
        return torch.from_numpy(np.array(array, order="C"))
    with np.errstate(over="ignore"):  # what overflows is infinite, and found below
        numbers = np.array(array, dtype=np.float32, order="C")
    bad = ~np.isfinite(numbers)
    if bad.any():
        row = int(np.argwhere(bad)[0, 0])
        raise ValueError(
            f"{name} holds {int(bad.sum())} values that are NaN, infinite or beyond float32, the "
            f"first in row {row}; all must be finite. Drop those rows or fill the values in."
        )
    return torch.from_numpy(numbers)


def as_labels(values: Any, name: str, num_rows: int, *, allow_unlabelled: bool = False) -> Tensor:
    """Return class indices as a CPU tensor that owns its memory.

    Args:
        values: Whole numbers with shape ``(N,)``; floats are accepted where they are whole.
        name: What the caller's argument is called.
        num_rows: N, the number of rows that they belong to.
        allow_unlabelled: Whether -1, meaning unlabelled, may occur.

    Returns:
        Labels with shape ``(N,)``, int64.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If shape, wholeness or range are wrong.
    """
    array = to_numpy(values, name)
    if array.ndim != 1:
        raise ValueError(
            f"{name} has shape {array.shape}; one class index per row is needed, shape "
            f"({num_rows},). Use {name}.reshape(-1) for a column, {name}.argmax(-1) for one-hot "
            "rows."
        )
    if len(array) != num_rows:
        raise ValueError(
            f"{name} holds {len(array)} labels for {num_rows} rows; hand in one for each row"
            + (", -1 where it is unknown." if allow_unlabelled else ".")
        )
    if array.dtype.kind == "f" and not (np.isfinite(array) & (array == np.floor(array))).all():
        row = int(np.flatnonzero(~(np.isfinite(array) & (array == np.floor(array))))[0])
        raise ValueError(
            f"{name}[{row}] is {array[row]}; labels are whole numbers, and -1 (not NaN) marks an "
            "unlabelled row. Replace NaN by -1 and encode classes as 0, 1, 2, ..."
        )
    least = -1 if allow_unlabelled else 0
    if num_rows and (array.min() < least or array.max() >= MAX_CLASSES):
        if array.min() == -1 and not allow_unlabelled:
            raise ValueError(
                f"{name} holds -1 (unlabelled) {int((array == -1).sum())} times; only training "
                "rows may be unlabelled. Drop those rows, or move them into x with y = -1."
            )
        raise ValueError(
            f"{name} holds labels from {array.min()} to {array.max()}; classes are counted from 0 "
            f"(at most {MAX_CLASSES}), and -1 marks an unlabelled training row. Encode classes as "
            "0, 1, 2, ..., for example by numpy.unique(y, return_inverse=True)[1]."
        )
    return torch.from_numpy(np.array(array, dtype=np.int64))


def as_num_classes(num_classes: int | None, labels: dict[str, Tensor]) -> int:
    """Return the number of classes: as given, or one more than the largest label.

    Args:
        num_classes: What the user said, if anything.
        labels: Labels with shape ``(N,)`` each, by the names of the user's arguments.

    Raises:
        TypeError: If ``num_classes`` is not an integer.
        ValueError: If it is too small for the labels, or cannot be told from them.
    """
    largest = max((int(y.max()) for y in labels.values() if len(y)), default=-1)
    if num_classes is None:
        if largest < 1:
            found = "no label" if largest < 0 else "class 0 alone"
            raise ValueError(
                f"The labels hold {found}, which does not tell the number of classes; hand it in as num_classes=..."
            )
        return largest + 1
    num_classes = as_count(num_classes, "num_classes", least=1)
    if num_classes > MAX_CLASSES:
        raise ValueError(f"num_classes={num_classes} is too large; at most {MAX_CLASSES}.")
    for name, y in labels.items():
        if len(y) and int(y.max()) >= num_classes:
            raise ValueError(
                f"{name} holds label {int(y.max())}, but num_classes={num_classes} allows "
                f"0 to {num_classes - 1}. Raise num_classes or encode the classes as 0, 1, 2, ..."
            )
    return num_classes


def as_count(value: Any, name: str, *, least: int = 0) -> int:
    """Return an integer of at least ``least``.

    Raises:
        TypeError: If the value is not an integer.
        ValueError: If it is too small.
    """
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name}={value!r} is of type {type(value).__name__}; an integer of at least {least} "
            f"is needed, for example {name}={max(least, 100)}."
        ) from None
    if number < least:
        raise ValueError(f"{name}={number} is too small; it must be at least {least}.")
    return number


def as_seed(seed: Any) -> int:
    """Return a seed, an integer from 0 to 2^32 - 1.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is out of range.
    """
    number = as_count(seed, "seed")
    if number > _MAX_SEED:
        raise ValueError(f"seed={number} is too large; it must be at most {_MAX_SEED}.")
    return number


def as_scale(scale: Any, x: Tensor) -> float:
    """Return the number that divides stored values: as given, else 255 for uint8 and 1 for floats.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is not positive and finite.
    """
    if scale is None:
        return 255.0 if x.dtype == torch.uint8 else 1.0
    try:
        number = float(scale)
    except (TypeError, ValueError):
        raise TypeError(f"scale={scale!r} is no number; hand in what maps x to [0, 1], 255 for 8-bit images.") from None
    if not (math.isfinite(number) and number > 0):
        raise ValueError(
            f"scale={number} must be positive and finite: x / scale is what the model sees "
            "(255 for 8-bit images, 1 for values that are ready)."
        )
    return number
