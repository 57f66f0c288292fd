"""Commands of the console script, how they end, and training that is killed and repeated; see ``faults.py``."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning_fabric  # noqa: F401  imported here, so that a forked command need not do so
import matplotlib.pyplot  # noqa: F401  likewise
import numpy as np
import sklearn.manifold  # noqa: F401  likewise
import torch
from faults import Failure, choose

import pyro_ssvae as ss
from pyro_ssvae.cli.main import main

__all__ = ["TRAIN", "Commands", "Ended", "Kills", "Setup", "choose_file", "compare", "check_ending", "make_points"]

Setup = Callable[[], None]
_COMMANDS = {
    "m2": ["m2", "--data", "digits", "--training.max_steps", "12"],
    "m1": ["m1", "--data", "digits", "--training.max_steps", "12", "--num-samples", "2"],
    "m1m2": ["m1m2", "--data", "digits", "--training.max_steps", "12", "--m1-epochs", "1"],
    "ddgm_2d": ["ddgm_2d", "--training.max_steps", "12", "--num-samples", "100", "--frames", "3"],
    "ddgm": ["ddgm", "--data", "digits", "--training.max_steps", "12", "--num-samples", "100"],
}
_TURNS = ("m2", "m1m2", "m1", "ddgm_2d", "m2", "m1m2", "m1", "ddgm")  # ddgm trains a classifier for a minute
TRAIN = "train m2 --data points.npz --likelihood gaussian --num-labels 8 --latent-dim 2 --hidden-dims [8]".split()
TRAIN += "--training.max_steps 60 --training.batch_size 20 --training.evaluate_every 4".split()
"""A short run, of a second, on the points of :func:`make_points`."""
_MOMENTS = ("config.yaml", "checkpoints/*", ".*.tmp", "model/*", "metrics.csv", "figures/*", "result.json", "stacked")
_VOLATILE = ("device", "versions")


def make_points(path: Path) -> None:
    """Write an npz file of 60 points of two classes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    y = (x[:, 0] > 0).astype(np.int64)
    np.savez(path, x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])


def choose_file(folder: Path, rng: np.random.Generator) -> Path:
    """Return a file below a folder."""
    return choose(sorted(path for path in folder.rglob("*") if path.is_file()), rng)


class Ended(NamedTuple):
    """How a command ended: its status, negative if a signal ended it, and what it printed."""

    status: int
    text: str


class Command:
    """A running command line of the console script, in a process of its own.

    Args:
        argv: Its arguments.
        setup: Called in the new process first.
        new: Whether the process starts a new interpreter; otherwise it is a copy of this one, which is faster.
    """

    def __init__(self, argv: Sequence[str], setup: Setup | None = None, *, new: bool = False) -> None:
        self.argv = argv
        reading, writing = os.pipe()
        fcntl.fcntl(writing, 1031, 2**20)  # F_SETPIPE_SZ: what is printed fits, a file would meet the limits of a disk
        self.pid = os.fork()
        if not self.pid:
            self._run(writing, setup, new)
        os.close(writing)
        self.pipe, self.ended = os.fdopen(reading, errors="replace"), None

    def _run(self, output: int, setup: Setup | None, new: bool) -> None:
        status = 70
        try:
            os.dup2(output, 1)
            os.dup2(output, 2)
            if setup is not None:
                setup()
            if new:
                os.execv(sys.executable, [sys.executable, "-m", "pyro_ssvae", *self.argv])
            sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
            status = main(self.argv)
            sys.stdout.flush()
        except SystemExit as stopped:
            status = stopped.code if isinstance(stopped.code, int) else 1
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)

    def is_running(self) -> bool:
        """Return whether the process has not ended."""
        if self.ended is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.ended = os.waitstatus_to_exitcode(status) if pid else None
        return self.ended is None

    def wait(self) -> Ended:
        """Wait for the end."""
        while self.is_running():
            time.sleep(0.005)
        with self.pipe:
            text = self.pipe.read()
        if "FAULTS_LOUD" in os.environ:
            heading = f"$ pyro-ssvae {' '.join(self.argv)}   # status {self.ended}"
            print(heading, text, sep="\n", file=sys.__stderr__, flush=True)
        return Ended(self.ended or 0, text)


def check_ending(ended: Ended, words: str, allowed: Sequence[int] = (0, 2), *, silent: bool = False) -> None:
    """Raise ``Failure`` unless a command ended as it may, without a traceback and, if not silent, with a message."""
    lines = ended.text.strip().splitlines() or [""]
    if "Traceback (most recent call last)" in ended.text:
        raise Failure("foreign", f"{words} " + "\n    ".join(lines[-12:]))
    if ended.status not in allowed:
        raise Failure("dead" if ended.status == 2 else "foreign", f"{words} status {ended.status}, {lines[-1]}")
    if ended.status == 2 and not silent and not any(len(line) > 10 for line in lines if line.startswith("error: ")):
        raise Failure("foreign", f"{words} status 2 without a message, {lines[-1]}")


def _list_files(out: Path) -> set[str]:
    """Return the names of all files; those of TensorBoard hold the time."""
    return {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file() and p.parent.name != "tensorboard"}


def compare(out: Path, reference: Path, words: str) -> None:
    """Raise ``Failure`` unless a run has the files, metrics, result and weights of another, to the last bit."""
    found, wanted = _list_files(out), _list_files(reference)
    if found != wanted:
        odd = f"too many {sorted(found - wanted)[:3]}, missing {sorted(wanted - found)[:3]}"
        raise Failure("corrupt", f"{words} other files than an uninterrupted run: {odd}")
    for result in sorted(reference.rglob("result.json")):
        stage = result.parent.relative_to(reference)
        try:
            (mine, rows, weights), other = _read_run(out / stage), _read_run(reference / stage)
        except Exception as error:
            raise Failure("corrupt", f"{words} unreadable: {type(error).__name__}: {error}") from error
        odd = [name for name in other[0] if mine.get(name) != other[0][name] and not name.endswith("seconds")]
        odd = [name for name in odd if name not in _VOLATILE] + ["metrics.csv"] * (rows != other[1])
        same = weights.keys() == other[2].keys()
        odd += [] if same and all(torch.equal(weights[n], other[2][n]) for n in weights) else ["weights"]
        if odd:
            raise Failure("different", f"{words} {', '.join(odd[:4])} differ from an uninterrupted run")


def _read_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, str]], dict[str, torch.Tensor]]:
    with open(folder / "metrics.csv", newline="") as file:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    return json.loads((folder / "result.json").read_text()), rows, ss.load(folder).state_dict()


class Kills:
    """Kills a training command, once or twice, and gives the same command again."""

    def __init__(self, seed: int, root: Path) -> None:
        self.seed, self.root = seed, root

    def _get_reference(self, name: str) -> tuple[Path, float]:
        """Return the folder of an uninterrupted run, made by the first case that needs it, and its seconds."""
        folder = self.root / f"uninterrupted-{name}"
        with open(self.root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "seconds").is_file():
                started = time.monotonic()
                argv = ["train", *_COMMANDS[name], "--out", str(folder / "run")]
                check_ending(Command(argv, new=True).wait(), f"train {name}, uninterrupted:", (0,))
                (folder / "seconds").write_text(str(time.monotonic() - started))
        return folder / "run", float((folder / "seconds").read_text())

    def __call__(self, number: int, folder: Path) -> None:
        """Run a case."""
        rng = np.random.default_rng((self.seed, 0, number))
        name = _TURNS[number % len(_TURNS)]
        reference, seconds = self._get_reference(name)
        out = folder / "run"
        argv = ["train", *_COMMANDS[name], "--out", str(out)]
        words = f"train {name},"
        for _ in range(1 + int(rng.random() < 0.3)):
            kind = signal.Signals(int(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])))
            command = Command(argv, new=True)
            moment = _wait_for_moment(command, out, seconds, rng)
            if command.is_running():
                os.kill(command.pid, kind)
            ended = command.wait()
            words += f" {kind.name} {moment},"
            if "<frozen importlib" not in ended.text:  # while Python imports modules, it answers a signal itself
                # Python ends itself by SIGINT where a KeyboardInterrupt that we caught had stopped code in a string.
                check_ending(ended, f"{words} first:", (0, -kind, -signal.SIGINT, 130, 143))
        check_ending(Command(argv, new=True).wait(), f"{words} the same again:", (0,))
        compare(out, reference, words)


def _wait_for_moment(command: Command, out: Path, seconds: float, rng: np.random.Generator) -> str:
    """Wait for a time, or until a file appears and a moment more; return what was waited for."""
    started, delay = time.monotonic(), rng.uniform(0.0, seconds)
    if rng.random() < 0.4:
        while command.is_running() and time.monotonic() - started < delay:
            time.sleep(0.002)
        return f"after {delay:.2f} s of {seconds:.1f}"
    pattern = str(rng.choice(_MOMENTS if "m1m2" in command.argv else _MOMENTS[:-1]))  # the last is a stage of M1+M2
    while command.is_running() and not any(out.rglob(pattern)):
        time.sleep(0.001)
    time.sleep(float(rng.exponential(0.1)))
    return f"after {pattern}"


class Commands:
    """Starts commands, and copies runs on the points: ``done``, and ``half``, which was interrupted."""

    def __init__(self, root: Path) -> None:
        self.root = root
        make_points(root / "points.npz")
        command = self.start([*TRAIN, "--out", str(root / "done")])
        check_ending(command.wait(), "uninterrupted:", (0,))
        command = self.start([*TRAIN, "--out", str(root / "half")])
        metrics = root / "half" / "metrics.csv"
        while command.is_running() and not (metrics.is_file() and len(metrics.read_text().splitlines()) > 3):
            time.sleep(0.002)
        os.kill(command.pid, signal.SIGTERM)
        check_ending(command.wait(), "interrupted:", (130,))

    def start(self, argv: Sequence[str], setup: Setup | None = None, *, new: bool = False) -> Command:
        """Start a command in the folder of the points."""

        def enter() -> None:
            os.chdir(self.root)
            if setup is not None:
                setup()

        return Command(argv, enter, new=new)

    def copy(self, state: str, folder: Path) -> Path:
        """Return a run in a state, in a folder; where it is ``new``, nothing is there."""
        if state != "new":
            shutil.copytree(self.root / state, folder / "run")
        return folder / "run"
