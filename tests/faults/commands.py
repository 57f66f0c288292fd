"""Commands in processes of their own, under faults that the tests of this folder cause."""

from __future__ import annotations

import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TRAIN = "train m2 --data points.npz --likelihood gaussian --num-labels 8 --latent-dim 2 --hidden-dims [8]".split()
TRAIN += "--training.max_steps 60 --training.batch_size 20 --training.evaluate_every 4 --out run".split()


def make_points(path: Path) -> None:
    """Write 60 points of two classes."""
    x = np.random.default_rng(0).normal(size=(60, 4))
    y = (x[:, 0] > 0).astype(np.int64)
    np.savez(path, x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])


def run(folder: Path, fault: str = "", number: int = 0) -> None:
    """Give the command in a folder, under a fault, and write to ``log`` what it prints."""
    from pyro_ssvae.cli.main import main

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    os.chdir(folder)
    where = "/dev/null" if fault == "small files" else "log"  # which would be cut off
    log = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
    if fault == "killed at a rename":
        os.replace = os.rename = _count_down(number)
    if fault == "small files":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**number, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if fault == "output":
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(os.open("/dev/full", os.O_WRONLY) if number % 2 else writing, 1 + number // 2)
        os.execv(sys.executable, [sys.executable, "-m", "pyro_ssvae", *TRAIN])
    sys.exit(main(TRAIN))


def _count_down(left: int, rename: Callable[..., None] = os.rename) -> Callable[..., None]:
    """Return a function that renames files, and at last ends the process as it was killed."""

    def rename_or_die(source: Any, target: Any, **options: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target, **options)

    return rename_or_die
