"""Runs of the command line that are killed, or meet faulty disks, folders and files; see ``faults.py``."""

from __future__ import annotations

import csv
import ctypes
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning_fabric  # noqa: F401  imported here, so that a forked command need not do so
import matplotlib.pyplot  # noqa: F401
import numpy as np
import sklearn.manifold  # noqa: F401
import torch
from faults import Failure

import pyro_ssvae as ss
from pyro_ssvae.cli.main import main

__all__ = ["TRAIN", "Commands", "Disk", "Kills", "choose_file", "judge", "make_points"]

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
_NEWNS, _CAPABILITIES = 0x20000, 0x20080522  # of unshare(2) and capset(2)


def make_points(path: Path) -> None:
    """Write an npz file of 60 points of two classes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    y = (x[:, 0] > 0).astype(np.int64)
    np.savez(path, x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])


def choose_file(folder: Path, rng: np.random.Generator) -> Path:
    """Return a file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return files[int(rng.integers(len(files)))]


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
            print(
                f"$ pyro-ssvae {' '.join(self.argv)}   # status {self.ended}\n{text}", file=sys.__stderr__, flush=True
            )
        return Ended(self.ended or 0, text)


def judge(ended: Ended, words: str, allowed: Sequence[int] = (0, 2)) -> None:
    """Raise ``Failure`` unless a command ended as it may, without a traceback, and with a message after an error."""
    lines = ended.text.strip().splitlines() or [""]
    if "Traceback (most recent call last)" in ended.text:
        raise Failure("foreign", f"{words} {lines[-1]}")
    if ended.status not in allowed:
        raise Failure("dead" if ended.status == 2 else "foreign", f"{words} status {ended.status}, {lines[-1]}")
    if ended.status == 2 and not any(len(line) > 10 for line in lines if line.startswith("error: ")):
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
                judge(Command(argv, new=True).wait(), f"train {name}, uninterrupted:", (0,))
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
                judge(ended, f"{words} first:", (0, -kind, 130, 143))
        judge(Command(argv, new=True).wait(), f"{words} the same again:", (0,))
        compare(out, reference, words)


def _wait_for_moment(command: Command, out: Path, seconds: float, rng: np.random.Generator) -> str:
    """Wait for a time, or until a file appears and a moment more; return what was waited for."""
    started, delay = time.monotonic(), rng.uniform(0.0, seconds)
    if rng.random() < 0.4:
        while command.is_running() and time.monotonic() - started < delay:
            time.sleep(0.002)
        return f"after {delay:.2f} s of {seconds:.1f}"
    pattern = str(rng.choice(_MOMENTS))
    while command.is_running() and not any(out.rglob(pattern)):
        time.sleep(0.001)
    more = float(rng.exponential(0.1))
    while command.is_running() and more > 0.0:
        time.sleep(0.002)
        more -= 0.002
    return f"after {pattern}"


class Commands:
    """Starts commands, and copies runs on the points: ``done``, and ``half``, which was interrupted."""

    def __init__(self, root: Path) -> None:
        self.root = root
        make_points(root / "points.npz")
        command = self.start([*TRAIN, "--out", str(root / "done")])
        judge(command.wait(), "uninterrupted:", (0,))
        command = self.start([*TRAIN, "--out", str(root / "half")])
        metrics = root / "half" / "metrics.csv"
        while command.is_running() and not (metrics.is_file() and len(metrics.read_text().splitlines()) > 3):
            time.sleep(0.002)
        os.kill(command.pid, signal.SIGTERM)
        judge(command.wait(), "interrupted:", (130,))

    def start(self, argv: Sequence[str], setup: Setup | None = None) -> Command:
        """Start a command in the folder of the points."""

        def enter() -> None:
            os.chdir(self.root)
            if setup is not None:
                setup()

        return Command(argv, enter)

    def copy(self, state: str, folder: Path) -> Path:
        """Return a run in a state, in a folder; where it is ``new``, nothing is there."""
        if state != "new":
            shutil.copytree(self.root / state, folder / "run")
        return folder / "run"


# Faults. Each gets the folder of the run and random numbers, and yields what is done in the process of the command;
# afterwards the fault is removed, where that is possible.

Fault = Callable[[Path, np.random.Generator], Any]


def _drop_capabilities() -> None:
    """Let the permissions of files hold for root too."""
    ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(_CAPABILITIES, 0), (ctypes.c_uint32 * 6)())


@contextmanager
def _read_only(out: Path, rng: np.random.Generator) -> Iterator[Setup]:
    folders = [path for path in (out, *out.rglob("*")) if path.is_dir()] or [out.parent]
    chosen = folders if rng.random() < 0.5 else [folders[int(rng.integers(len(folders)))]]
    for path in chosen:
        path.chmod(0o555)
    yield _drop_capabilities
    for path in chosen:
        path.chmod(0o755)


@contextmanager
def _small_files(out: Path, rng: np.random.Generator) -> Iterator[Setup]:
    size = int(10.0 ** rng.uniform(0.0, 5.5))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@contextmanager
def _full_disk(out: Path, rng: np.random.Generator) -> Iterator[Setup | None]:
    size = int(10.0 ** rng.uniform(1.0, 2.6))
    used = sum(path.stat().st_size // 1024 + 4 for path in out.rglob("*"))
    kept = out.with_name("kept")
    shutil.copytree(out, kept) if out.exists() else kept.mkdir()
    out.mkdir(exist_ok=True)
    mounted = ctypes.CDLL(None).unshare(_NEWNS) == 0 and not subprocess.call(["mount", "--make-rprivate", "/"])
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(out), "-o"]
    if not mounted or subprocess.call([*mount, f"size={used + size}k"], stderr=subprocess.DEVNULL):
        with _small_files(out, rng) as setup:  # where this process may not mount
            yield setup
        return
    shutil.copytree(kept, out, dirs_exist_ok=True)
    yield None
    subprocess.check_call(["mount", "-o", "remount,size=1g", str(out)])


@contextmanager
def _file_for_folder(out: Path, rng: np.random.Generator) -> Iterator[None]:
    places = [out, out / "checkpoints", out / "model", out / "figures", out / "tensorboard"]
    path = places[int(rng.integers(len(places)))] if out.exists() else out
    aside = path.with_name("aside")
    if path.exists():
        path.rename(out.parent / "aside")
    path.write_text("a file")
    yield None
    if path.is_file():
        path.unlink()
    if (out.parent / aside.name).exists() and not path.exists():
        (out.parent / aside.name).rename(path)


@contextmanager
def _link(out: Path, rng: np.random.Generator) -> Iterator[None]:
    target = [out.name, "nowhere/at/all", "/dev/null", "/proc/self"][int(rng.integers(4))]
    if out.exists():
        out.rename(out.parent / "aside")
    out.symlink_to(target)
    yield None
    out.unlink()
    if (out.parent / "aside").exists():
        (out.parent / "aside").rename(out)


@contextmanager
def _left_over(out: Path, rng: np.random.Generator) -> Iterator[None]:
    """Leave what a killed process leaves: temporary files, empty folders, a lock with the number of a dead process."""
    dead = os.fork() or os._exit(0)
    os.waitpid(dead, 0)
    out.mkdir(exist_ok=True)
    (out / "checkpoints").mkdir(exist_ok=True)
    for name in (".result.json", ".config.yaml", "checkpoints/.last.pt", ".metrics.csv"):
        path = out / name
        path.with_name(f"{path.name}.{dead}.tmp").write_bytes(rng.bytes(50))
    yield None


@contextmanager
def _output(out: Path, rng: np.random.Generator) -> Iterator[Setup]:
    """Let standard output be a full disk, or closed."""
    full, stream = rng.random() < 0.5, int(rng.integers(1, 3))

    def setup() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), stream) if full else os.close(stream)

    yield setup


@contextmanager
def _damaged(out: Path, rng: np.random.Generator) -> Iterator[None]:
    """Delete or damage a file of the run, or put a folder in its place."""
    path = choose_file(out, rng)
    content = path.read_bytes()
    how = int(rng.integers(5))
    path.unlink()
    if how == 1:
        path.mkdir()
    elif how > 1:
        path.write_bytes([b"", rng.bytes(100), content[: len(content) // 2]][how - 2])
    yield None


_FAULTS: dict[Fault, Sequence[str]] = {  # with the states of the run in which they make a difference
    _damaged: ("half", "done", "half", "done", "half", "done"),
    _read_only: ("new", "half", "done"),
    _small_files: ("new", "half", "done"),
    _full_disk: ("new", "half"),
    _file_for_folder: ("new", "half", "done"),
    _link: ("new", "half"),
    _left_over: ("new", "half"),
    _output: ("new", "done"),
}
_EVENTS = ("deleted", "twice", "killed")  # of the folder while a command runs, or of the command


class Disk:
    """Gives commands under a fault, and trains by the same command as before once the fault is removed."""

    def __init__(self, seed: int, root: Path) -> None:
        self.seed = seed
        self.commands = Commands(root)
        self.kinds = [(fault, state) for fault, states in _FAULTS.items() for state in states]
        self.kinds += [(event, state) for event in _EVENTS for state in ("new", "half")]
        self.order = np.random.default_rng(seed).permutation(len(self.kinds))

    def __call__(self, number: int, folder: Path) -> None:
        """Run a case."""
        rng = np.random.default_rng((self.seed, 1, number))
        fault, state = self.kinds[self.order[number % len(self.order)]]
        out = self.commands.copy(state, folder)
        train = [*TRAIN, "--out", str(out)]
        others = [["train", "m2", "--resume", str(out)], ["info", str(out)], ["report", str(out)], ["sample", str(out)]]
        argv = train if state == "new" or rng.random() < 0.4 else others[int(rng.integers(4))]
        if isinstance(fault, str):
            self._disturb(fault, train, out, rng)
            words = f"{fault} while running, {state} run,"
        else:
            words = f"{fault.__name__[1:]}, {state} run, {' '.join(argv[:2]) if argv[0] == 'train' else argv[0]}"
            with fault(out, rng) as setup:
                judge(self.commands.start(argv, setup).wait(), f"{words}:", (0, 2))
        for path in (out / "samples.npz", out / "samples.png"):
            path.unlink(missing_ok=True)
        again = self.commands.start(train).wait()
        judge(again, f"{words}, then train again:", (0, 2) if fault is _damaged else (0,))
        if again.status == 2 and str(out) not in again.text:
            raise Failure("dead", f"{words}, then train again: {again.text.strip().splitlines()[-1]}")
        if again.status == 0:
            compare(out, self.commands.root / "done", words)

    def _disturb(self, event: str, train: list[str], out: Path, rng: np.random.Generator) -> None:
        """Delete the folder of a running command, give the command twice at the same time, or kill it."""
        running = [self.commands.start(train) for _ in range(1 + (event == "twice"))]
        if event != "twice":
            time.sleep(float(rng.uniform(0.0, 2.0)))
            if event == "deleted":
                shutil.rmtree(out, ignore_errors=True)
            elif running[0].is_running():
                os.kill(running[0].pid, signal.SIGKILL)
        for command in running:
            judge(command.wait(), f"{event} while running:", (0, 2, *(-signal.SIGKILL,) * (event == "killed")))
