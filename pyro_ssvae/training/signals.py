"""Ctrl-C and SIGTERM during training, as requests to stop after the step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Yield a list that gets the first SIGINT or SIGTERM, as a request to stop; a second SIGINT interrupts at once."""
    received: list[int] = []

    def handle(number: int, _: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received[:] = [number]

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, handle) for number in numbers}  # only the main thread can catch signals
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
