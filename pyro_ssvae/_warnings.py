"""Warnings that point at the caller's program, however deep in this package they arise."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

_CALLED_THROUGH = {"pyro_ssvae", "contextlib", "functools", "pyro", "sklearn", "torch"}


def warn(message: str) -> None:
    """Give a ``UserWarning`` of the innermost line outside of this package and the libraries that call it."""
    frame: FrameType | None = sys._getframe(1)
    stacklevel = 2
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _CALLED_THROUGH:
        frame, stacklevel = frame.f_back, stacklevel + 1
    warnings.warn(message, UserWarning, stacklevel=stacklevel)
