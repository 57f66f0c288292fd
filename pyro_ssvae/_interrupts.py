"""Ctrl-C and SIGTERM: training stops after the current step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


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
