"""Validation of arguments: arrays, labels, numbers and devices, with errors that name the remedy.

An argument of the wrong type raises ``TypeError``, a wrong value ``ValueError``. ``name`` is the name of the caller's
argument, for the message.
"""

from __future__ import annotations

import math
import operator
import reprlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "MAX_CLASSES",
    "MAX_SEED",
    "as_count",
    "as_device",
    "as_examples",
    "as_labels",
    "as_num_classes",
    "as_scale",
    "as_seed",
    "show",
    "to_numpy",
]

MAX_CLASSES = 65_536
MAX_SEED = 2**32 - 1
_NUMBERS = "biuf"  # numpy's kinds: bool, signed, unsigned, floating


def to_numpy(values: Any, name: str) -> NDArray[Any]:
    """Return real numbers (an array, a tensor on any device, nested lists) as an array that may share their memory."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        if values.layout != torch.strided:
            raise TypeError(f"{name} is a sparse tensor; pass a dense one: {name}.to_dense().")
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()  # numpy has no bfloat16
        values = values.numpy()
    if hasattr(values, "toarray"):
        raise TypeError(
            f"{name} is a sparse matrix; pass a dense array, {name}.toarray(), or fewer columns where memory does not "
            "suffice, for example by sklearn.decomposition.TruncatedSVD."
        )
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is no rectangular array ({error}); all examples must have the same shape.") from error
    if array.dtype.kind not in _NUMBERS:
        raise TypeError(
            f"{name} has dtype {array.dtype}; bool, integer and real dtypes are allowed. Convert it, for example by "
            f"{name}.astype('float32') (classes by numpy.unique(y, return_inverse=True)[1]), and mark missing labels "
            "by -1."
        )
    return array


def as_examples(values: Any, name: str = "x", *, allow_empty: bool = False) -> Tensor:
    """Return finite numbers ``(N, *event_shape)`` as a CPU tensor that owns its memory; N may be 0 if ``allow_empty``.

    The tensor is uint8 where the values were uint8, float32 otherwise.
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
    if array.dtype == np.uint8:
        return torch.from_numpy(np.array(array, order="C"))
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is found below
        numbers = np.array(array, dtype=np.float32, order="C")
    bad = ~np.isfinite(numbers)
    if bad.any():
        raise ValueError(
            f"{name} holds {int(bad.sum())} values that are NaN, infinite or beyond float32, the first in "
            f"{name}[{int(np.argwhere(bad)[0, 0])}]; all must be finite. Drop those examples or fill the values in."
        )
    return torch.from_numpy(numbers)


def as_labels(values: Any, name: str, num_examples: int, *, allow_unlabelled: bool = False) -> Tensor:
    """Return whole numbers from 0, the classes of N examples, as a CPU tensor ``(N,)``, int64, that owns its memory.

    Floats are accepted where they are whole, and -1, for unlabelled examples, if ``allow_unlabelled``.
    """
    array = to_numpy(values, name)
    if array.ndim != 1:
        raise ValueError(
            f"{name} has shape {array.shape}; one class index per example is needed, shape ({num_examples},). Use "
            f"{name}.reshape(-1) for a column, {name}.argmax(-1) for one-hot labels."
        )
    if len(array) != num_examples:
        raise ValueError(
            f"{name} holds {len(array)} labels for {num_examples} examples; pass one for each"
            + (", -1 where it is unknown." if allow_unlabelled else ".")
        )
    if array.dtype.kind == "f" and (wrong := ~(np.isfinite(array) & (array == np.floor(array)))).any():
        first = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"{name}[{first}] is {array[first]}; labels are whole numbers, and -1 (not NaN) marks an unlabelled "
            "example. Replace NaN by -1 and encode classes as 0, 1, 2, ...; a continuous y (regression) is not "
            "supported."
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
            f"{MAX_CLASSES}), and -1 marks an unlabelled example. Encode classes as 0, 1, 2, ..., for example by "
            "numpy.unique(y, return_inverse=True)[1]."
        )
    return torch.from_numpy(np.array(array, dtype=np.int64))


def as_num_classes(num_classes: int | None, labels: dict[str, Tensor]) -> int | None:
    """Return the number of classes: as given, else one more than the largest label, ``None`` if no label is known.

    Args:
        num_classes: K, or ``None``.
        labels: Labels with shape ``(N,)`` each, -1 where unknown, by the names of the caller's arguments.
    """
    largest = {name: int(y.max()) for name, y in labels.items() if len(y)}
    if num_classes is None:
        found = max(largest.values(), default=-1)
        if found == 0:
            raise ValueError(
                "The labels hold class 0 alone, which does not determine the number of classes; pass num_classes=..."
            )
        return found + 1 if found > 0 else None
    num_classes = as_count(num_classes, "num_classes", least=1)
    if num_classes > MAX_CLASSES:
        raise ValueError(f"num_classes={num_classes} is too large; at most {MAX_CLASSES}.")
    for name, label in largest.items():
        if label >= num_classes:
            raise ValueError(
                f"{name} holds label {label}, but num_classes={num_classes} allows 0 to {num_classes - 1}. Raise "
                "num_classes or encode the classes as 0, 1, 2, ..."
            )
    return num_classes


def as_count(value: Any, name: str, *, least: int = 0, most: int | None = None) -> int:
    """Return an integer of at least ``least`` and at most ``most``."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{show(name, value)}; an integer of at least {least} is needed, for example "
            f"{name}={max(least, min(100, most or 100))}."
        ) from None
    if number < least:
        raise ValueError(f"{name}={number} is too small; it must be at least {least}.")
    if most is not None and number > most:
        raise ValueError(f"{name}={reprlib.repr(number)} is too large; it must be at most {most}.")
    return number


def show(name: str, value: Any) -> str:
    """Return an argument, shortened, and its type, for a message."""
    return f"{name}={' '.join(reprlib.repr(value).split())} is of type {type(value).__name__}"


def as_seed(seed: Any) -> int:
    """Return a seed, an integer from 0 to 2^32 - 1."""
    return as_count(seed, "seed", most=MAX_SEED)


def as_scale(scale: Any, x: Tensor) -> float:
    """Return the divisor of stored values, positive and finite: as given, else 255 for uint8 and 1 for floats."""
    if scale is None:
        return 255.0 if x.dtype == torch.uint8 else 1.0
    try:
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
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"{show('device', device)}; a name is needed: auto, cpu, cuda or cuda:INDEX.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    known = "use one device: auto, cpu, cuda or cuda:INDEX"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={str(device)!r} is unknown; {known}.") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device={str(device)!r} is not supported; {known}.")
    if found.type == "cpu":
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
