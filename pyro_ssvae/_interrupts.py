"""Ctrl-C and SIGTERM.

While the console script imports the package, which takes seconds, Ctrl-C ends the process in silence: its handler is
set when this module is imported, first of all, because to import any module of the package imports torch. Training
stops after the current step.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any


def _quit(*_: object) -> None:
    os._exit(130)


def restore() -> None:
    """Let Ctrl-C raise ``KeyboardInterrupt`` again."""
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_start = sys.orig_argv[1:3]
_is_script = _start == ["-m", "pyro_ssvae"] or os.path.basename("".join(_start[:1])).startswith("pyro-ssvae")
if _is_script and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _quit)


class SignalHandler:
    """Converts the first SIGINT or SIGTERM to a request to stop; a second SIGINT interrupts at once.

    Used as a context manager; outside the main thread, where signals cannot be caught, it does nothing.

    Attributes:
        received: The first signal received, or ``None``.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> SignalHandler:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
