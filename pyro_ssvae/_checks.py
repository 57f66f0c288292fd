"""Validation of arguments: numbers, paths and devices, with errors that name the remedy.

An argument of the wrong type raises ``TypeError``, a wrong value ``ValueError``. ``name`` is the name of the caller's
argument, for the message.
"""

from __future__ import annotations

import math
import operator
import os
import reprlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "MAX_CLASSES",
    "MAX_SEED",
    "as_bool",
    "as_count",
    "as_device",
    "as_path",
    "as_scale",
    "as_seed",
    "show",
]

MAX_CLASSES = 65_536
MAX_SEED = 2**32 - 1


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
    return as_count(seed, "seed", most=MAX_SEED)


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
