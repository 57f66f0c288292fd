"""Training that is killed, or that meets faulty disks, folders and files; see ``faults.py``."""

from __future__ import annotations

import csv
import ctypes
import fcntl
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning_fabric  # noqa: F401  imported here, so that a forked command need not do so
import matplotlib.pyplot  # noqa: F401  likewise
import numpy as np
import sklearn.manifold  # noqa: F401  likewise

import pyro_ssvae as ss
from pyro_ssvae.cli.main import main

Generator = np.random.Generator
Setup = Callable[[], Any]
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
_NEWNS, _CAPABILITIES = 0x20000, 0x20080522  # of unshare(2) and capset(2)


class Failure(Exception):
    """A case that failed: a key of ``faults.FAILURES``, and what happened."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, " ".join(message.split())[:300])


def choose(items: Sequence[Any], rng: Generator) -> Any:
    """Return one of a sequence at random."""
    return items[int(rng.integers(len(items)))]


def choose_file(folder: Path, rng: Generator) -> Path:
    """Return a file below a folder."""
    return choose(sorted(path for path in folder.rglob("*") if path.is_file()), rng)


def make_points(path: Path) -> None:
    """Write an npz file of 60 points of two classes."""
    x = np.random.default_rng(0).normal(size=(60, 4))
    y = (x[:, 0] > 0).astype(np.int64)
    np.savez(path, x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])


class Ended(NamedTuple):
    """How a command ended: its status, negative if a signal ended it, and what it printed."""

    status: int
    text: str


class Command:
    """A command line of the console script, running in a copy of this process or, if ``new``, a new interpreter."""

    def __init__(self, argv: Sequence[str], setup: Setup | None = None, *, new: bool = False) -> None:
        self.argv = argv
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 2**20)  # what is printed fits; a file would meet the limits of a disk
        fork = multiprocessing.get_context("fork")
        self.process = fork.Process(target=self._run, args=(writing, setup, new))
        self.process.start()
        os.close(writing)
        self.pipe = os.fdopen(reading, errors="replace")

    def _run(self, output: int, setup: Setup | None, new: bool) -> None:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
        if setup is not None:
            setup()
        if new:
            os.execv(sys.executable, [sys.executable, "-m", "pyro_ssvae", *self.argv])
        sys.exit(main(self.argv))

    def wait(self) -> Ended:
        """Wait for the end."""
        with self.pipe:
            text = self.pipe.read()
        self.process.join()
        status = self.process.exitcode or 0
        if "FAULTS_LOUD" in os.environ:
            print(f"$ pyro-ssvae {' '.join(self.argv)}   # status {status}\n{text}", file=sys.__stderr__, flush=True)
        return Ended(status, text)


def check_ending(ended: Ended, words: str, allowed: Sequence[int] = (0, 2), *, silent: bool = False) -> None:
    """Raise ``Failure`` unless a command ended as it may, without a traceback and, if not silent, with a message."""
    lines = ended.text.strip().splitlines() or [""]
    if "Traceback (most recent call last)" in ended.text:
        raise Failure("foreign", f"{words} {' '.join(lines[-12:])}")
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
            mine, other = _read_run(out / stage), _read_run(reference / stage)
        except Exception as error:
            raise Failure("corrupt", f"{words} unreadable: {type(error).__name__}: {error}") from error
        try:
            np.testing.assert_equal(mine, other)
        except AssertionError as error:
            raise Failure("different", f"{words} not as in an uninterrupted run: {error}") from error


def _read_run(folder: Path) -> dict[str, Any]:
    """Return the result, metrics and weights of a run, without times and versions."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    result = json.loads((folder / "result.json").read_text())
    result = {k: v for k, v in result.items() if k not in ("device", "versions") and not k.endswith("seconds")}
    weights = {name: weight.numpy() for name, weight in ss.load(folder).state_dict().items()}
    return {"result.json": result, "metrics.csv": rows, "weights": weights}


class Kills:
    """Kills a training command, once or twice, and gives the same command again."""

    def __init__(self, root: Path, numbers: Sequence[int]) -> None:
        self.seconds, self.root = dict[str, float](), root
        for name in dict.fromkeys(_TURNS[number % len(_TURNS)] for number in numbers):
            started = time.monotonic()
            command = Command(["train", *_COMMANDS[name], "--out", str(root / name)], new=True)
            check_ending(command.wait(), f"train {name}, uninterrupted:", (0,))
            self.seconds[name] = time.monotonic() - started

    def __call__(self, number: int, rng: Generator, folder: Path) -> None:
        """Run a case."""
        name = _TURNS[number % len(_TURNS)]
        argv, words = ["train", *_COMMANDS[name], "--out", str(folder / "run")], f"train {name},"
        for _ in range(1 + int(rng.random() < 0.3)):
            kind = choose([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT], rng)
            command = Command(argv, new=True)
            moment = _wait_for_moment(command, folder / "run", self.seconds[name], rng)
            if command.process.is_alive():
                os.kill(command.process.pid or 0, kind)
            ended = command.wait()
            words += f" {kind.name} {moment},"
            if "<frozen importlib" not in ended.text:  # while Python imports modules, it answers a signal itself
                # Python ends itself by SIGINT where a KeyboardInterrupt that we caught had stopped code in a string.
                check_ending(ended, f"{words} first:", (0, -kind, -signal.SIGINT, 130, 143))
        check_ending(Command(argv, new=True).wait(), f"{words} the same again:", (0,))
        compare(folder / "run", self.root / name, words)


def _wait_for_moment(command: Command, out: Path, seconds: float, rng: Generator) -> str:
    """Wait for a time, or until a file appears and a moment more; return what was waited for."""
    delay = float(rng.uniform(0.0, seconds))
    if rng.random() < 0.4:
        command.process.join(delay)
        return f"after {delay:.2f} s of {seconds:.1f}"
    pattern = choose(_MOMENTS if "m1m2" in command.argv else _MOMENTS[:-1], rng)  # the last is a stage of M1+M2
    while command.process.is_alive() and not any(out.rglob(pattern)):
        time.sleep(0.001)
    time.sleep(float(rng.exponential(0.1)))
    return f"after {pattern}"


class Commands:
    """Starts commands, and copies runs on the points: ``done``, and ``half``, which was interrupted."""

    def __init__(self, root: Path) -> None:
        self.root = root
        make_points(root / "points.npz")
        check_ending(self.start([*TRAIN, "--out", str(root / "done")]).wait(), "uninterrupted:", (0,))
        command, metrics = self.start([*TRAIN, "--out", str(root / "half")]), root / "half" / "metrics.csv"
        while command.process.is_alive() and not (metrics.is_file() and metrics.read_text().count("\n") > 3):
            time.sleep(0.002)
        command.process.terminate()
        check_ending(command.wait(), "interrupted:", (130,))

    def start(self, argv: Sequence[str], setup: Setup | None = None, *, new: bool = False) -> Command:
        """Start a command in the folder of the points."""
        return Command(argv, lambda: (os.chdir(self.root), setup and setup()), new=new)

    def copy(self, state: str, folder: Path) -> Path:
        """Return a run in a state, in a folder; where it is ``new``, nothing is there."""
        if state != "new":
            shutil.copytree(self.root / state, folder / "run")
        return folder / "run"


# Faults. Each gets the folder of the run and random numbers, and yields what is done in the process of the command;
# afterwards the fault is removed.


def _drop_capabilities() -> None:
    """Let the permissions of files hold for root too."""
    ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(_CAPABILITIES, 0), (ctypes.c_uint32 * 6)())


@contextmanager
def _read_only(out: Path, rng: Generator) -> Iterator[Setup]:
    folders = [path for path in (out, *out.rglob("*")) if path.is_dir()] or [out.parent]
    chosen = folders if rng.random() < 0.5 else [choose(folders, rng)]
    for path in chosen:
        path.chmod(0o555)
    yield _drop_capabilities
    for path in chosen:
        path.chmod(0o755)


@contextmanager
def _small_files(out: Path, rng: Generator) -> Iterator[Setup]:
    size = int(10.0 ** rng.uniform(0.0, 5.5))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@contextmanager
def _full_disk(out: Path, rng: Generator) -> Iterator[Setup | None]:
    """Put the run on a disk with little space, or limit the size of files where this process may not mount one."""
    used = sum(path.stat().st_size // 1024 + 4 for path in out.rglob("*"))
    size, kept = used + int(10.0 ** rng.uniform(1.0, 2.6)), out.parent.with_name(f"{out.parent.name}-kept")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(out.parent)]
    shutil.copytree(out.parent, kept)
    if (
        ctypes.CDLL(None).unshare(_NEWNS)
        or subprocess.call(["mount", "--make-rprivate", "/"])
        or subprocess.call(mount)
    ):
        with _small_files(out, rng) as setup:
            yield setup
        return
    shutil.copytree(kept, out.parent, dirs_exist_ok=True)
    yield None
    subprocess.check_call(["mount", "-o", "remount,size=1g", str(out.parent)])


@contextmanager
def _in_place(out: Path, rng: Generator) -> Iterator[None]:
    """Put a file where a folder is due, or a link where the folder of the run is."""
    link = rng.random() < 0.4
    path = (
        out if link or not out.exists() else out / choose(["", "checkpoints", "model", "figures", "tensorboard"], rng)
    )
    aside = out.with_name("aside")
    if path.exists():
        path.rename(aside)
    if link:
        path.symlink_to(choose([out.name, "nowhere/at/all", "/dev/null", "/proc/self"], rng))
    else:
        path.write_text("a file")
    yield
    path.unlink()
    if aside.exists():
        aside.rename(path)


@contextmanager
def _output(out: Path, rng: Generator) -> Iterator[Setup]:
    """Let standard output or error be a full disk, or a pipe that nobody reads."""
    full, stream = rng.random() < 0.5, int(rng.integers(1, 3))

    def setup() -> None:
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(os.open("/dev/full", os.O_WRONLY) if full else writing, stream)

    yield setup


@contextmanager
def _damaged(out: Path, rng: Generator) -> Iterator[None]:
    """Delete or damage a file of the run, or put a folder in its place; it stays so."""
    path = choose_file(out, rng)
    content, how = path.read_bytes(), int(rng.integers(5))
    path.unlink()
    if how == 1:
        path.mkdir()
    elif how > 1:
        path.write_bytes([b"", rng.bytes(100), content[: len(content) // 2]][how - 2])
    yield


_FAULTS: dict[Any, str] = {  # with the states of the run in which they make a difference
    _damaged: "half done half done half done",
    _read_only: "new half done",
    _small_files: "new half done",
    _full_disk: "new half",
    _in_place: "new half done new half",
    _output: "new done",
}
_EVENTS = ("folder deleted", "given twice", "killed at a rename")
_KINDS = [(fault, state) for fault, states in _FAULTS.items() for state in states.split()]
_KINDS += [(event, state) for event in _EVENTS for state in ("new", "half")]


class Disk:
    """Gives commands under a fault, and trains by the same command as before once the fault is removed."""

    def __init__(self, root: Path, numbers: Sequence[int]) -> None:
        self.commands = Commands(root)

    def __call__(self, number: int, rng: Generator, folder: Path) -> None:
        """Run a case."""
        fault, state = _KINDS[8 * number % len(_KINDS)]  # 8 and the number of kinds have no common divisor
        out = self.commands.copy(state, folder)
        train = [*TRAIN, "--out", str(out)]
        words, good, bad = f"{fault if isinstance(fault, str) else fault.__name__[1:]}, {state} run", {}, {}
        if isinstance(fault, str):
            self._disturb(fault, train, out, rng)
        else:
            others = [["train", "m2", "--resume"], ["info"], ["report"], ["sample"]]
            argv = train if state == "new" or rng.random() < 0.4 else [*choose(others, rng), str(out)]
            words += f", {' '.join(argv[:3])}"
            good, silent = _read_files(out), fault is _output  # Python's own status is 120 then
            with fault(out, rng) as setup:
                bad = _read_files(out) if fault is _damaged else good
                ended = self.commands.start(argv, setup, new=silent).wait()
                check_ending(ended, f"{words}:", (0, 2, 120, -signal.SIGPIPE) if silent else (0, 2), silent=silent)
        for path in (out / "samples.npz", out / "samples.png"):
            path.unlink(missing_ok=True)
        again = self.commands.start(train).wait()
        check_ending(again, f"{words}, then train again:", (0, 2) if fault is _damaged else (0,))
        if again.status == 2:
            if str(out) not in again.text:
                raise Failure("dead", f"{words}, then train again: {again.text.strip().splitlines()[-1]}")
            return
        for path in good if state == "done" else ():  # a file that the command had no need of stays as it was damaged
            if good[path] != bad.get(path) == _read_files(out).get(path):
                shutil.rmtree(path, ignore_errors=True)
                path.write_bytes(good[path])
        compare(out, self.commands.root / "done", words)

    def _disturb(self, event: str, train: list[str], out: Path, rng: Generator) -> None:
        """Delete the folder of a running command, give it twice at once, or kill it where it renames a file."""
        left = iter(range(int(rng.integers(40))))

        def rename_or_die(source: Any, target: Any, rename: Callable[..., None] = os.rename) -> None:
            """Rename a file, or end as a killed process does, with a temporary file and a lock."""
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)

        def setup() -> None:
            if event == "killed at a rename":
                os.replace = os.rename = rename_or_die

        running = [self.commands.start(train, setup) for _ in range(2 if event == "given twice" else 1)]
        if event == "folder deleted":
            time.sleep(float(rng.uniform(0.0, 2.0)))
            shutil.rmtree(out, ignore_errors=True)
        for command in running:
            check_ending(command.wait(), f"{event}:", (0, -signal.SIGKILL if "kill" in event else 2))


def _read_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
