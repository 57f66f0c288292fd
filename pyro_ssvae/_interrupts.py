"""Ctrl-C while the console script imports the package, which takes seconds, ends the process in silence."""

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


_is_script = os.path.basename(sys.argv[0]).startswith("pyro-ssvae") or sys.orig_argv[1:3] == ["-m", "pyro_ssvae"]
if _is_script and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _quit)
