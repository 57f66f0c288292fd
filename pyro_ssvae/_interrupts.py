"""Ctrl-C while the console script imports the package, which takes seconds, ends the process in silence.

The handler is set when this module is imported, first of all: to import any module of the package imports torch.
"""

import os
import signal
import sys

__all__ = ["restore"]


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
