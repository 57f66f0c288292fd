"""Commands that meet faulty disks, folders and files of their run; see ``faults.py``."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from fault_runs import TRAIN, Commands, Setup, check_ending, choose_file, compare
from faults import Failure, choose

__all__ = ["Disk"]

_NEWNS, _CAPABILITIES = 0x20000, 0x20080522  # of unshare(2) and capset(2)

# Faults. Each gets the folder of the run and random numbers, and yields what is done in the process of the command;
# afterwards the fault is removed, where that is possible.

Fault = Callable[[Path, np.random.Generator], Any]


def _drop_capabilities() -> None:
    """Let the permissions of files hold for root too."""
    ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(_CAPABILITIES, 0), (ctypes.c_uint32 * 6)())


@contextmanager
def _read_only(out: Path, rng: np.random.Generator) -> Iterator[Setup]:
    folders = [path for path in (out, *out.rglob("*")) if path.is_dir()] or [out.parent]
    chosen = folders if rng.random() < 0.5 else [choose(folders, rng)]
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
    """Put the run on a disk with little space, or limit the size of files where this process may not mount one."""
    used = sum(path.stat().st_size // 1024 + 4 for path in out.rglob("*"))
    size = used + int(10.0 ** rng.uniform(1.0, 2.6))
    mounted = ctypes.CDLL(None).unshare(_NEWNS) == 0 and not subprocess.call(["mount", "--make-rprivate", "/"])
    if mounted:
        kept = shutil.copytree(out.parent, out.parent.with_name(f"{out.parent.name}-kept"))
        mounted = not subprocess.call(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(out.parent)])
    if not mounted:
        with _small_files(out, rng) as setup:
            yield setup
        return
    shutil.copytree(kept, out.parent, dirs_exist_ok=True)
    yield None
    subprocess.check_call(["mount", "-o", "remount,size=1g", str(out.parent)])


@contextmanager
def _set_aside(path: Path, out: Path) -> Iterator[None]:
    aside = out.with_name("aside")
    if path.exists():
        path.rename(aside)
    yield
    path.unlink()
    if aside.exists():
        aside.rename(path)


@contextmanager
def _file_for_folder(out: Path, rng: np.random.Generator) -> Iterator[None]:
    places = [out, out / "checkpoints", out / "model", out / "figures", out / "tensorboard"]
    path = choose(places, rng) if out.exists() else out
    with _set_aside(path, out):
        path.write_text("a file")
        yield None


@contextmanager
def _link(out: Path, rng: np.random.Generator) -> Iterator[None]:
    with _set_aside(out, out):
        out.symlink_to(choose([out.name, "nowhere/at/all", "/dev/null", "/proc/self"], rng))
        yield None


@contextmanager
def _output(out: Path, rng: np.random.Generator) -> Iterator[Setup]:
    """Let standard output or error be a full disk, or a pipe that nobody reads."""
    full, stream = rng.random() < 0.5, int(rng.integers(1, 3))

    def setup() -> None:
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(os.open("/dev/full", os.O_WRONLY) if full else writing, stream)

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
    _output: ("new", "done"),
}
_EVENTS = ("folder deleted", "given twice", "killed at a rename")


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
        argv = train if state == "new" or rng.random() < 0.4 else choose(others, rng)
        if isinstance(fault, str):
            self._disturb(fault, train, out, rng)
            words = f"{fault}, {state} run"
        else:
            before = _read_files(out) if fault is _damaged else {}
            words = f"{fault.__name__[1:]}, {state} run, {' '.join(argv[:2]) if argv[0] == 'train' else argv[0]}"
            with fault(out, rng) as setup:
                silent = fault is _output  # Python's own status is 120 then
                damaged = _read_files(out) if fault is _damaged else {}
                ended = self.commands.start(argv, setup, new=silent).wait()
                check_ending(ended, f"{words}:", (0, 2, 120, -signal.SIGPIPE) if silent else (0, 2), silent=silent)
        for path in (out / "samples.npz", out / "samples.png"):
            path.unlink(missing_ok=True)
        again = self.commands.start(train).wait()
        check_ending(again, f"{words}, then train again:", (0, 2) if fault is _damaged else (0,))
        if again.status == 2 and str(out) not in again.text:
            raise Failure("dead", f"{words}, then train again: {again.text.strip().splitlines()[-1]}")
        if fault is _damaged and state == "done":  # a file that the command had no need of stays as it was damaged
            for path, content in before.items():
                if content != damaged.get(path) and damaged.get(path) == _read_files(out).get(path):
                    _restore(path, content)
        if again.status == 0:
            compare(out, self.commands.root / "done", words)

    def _disturb(self, event: str, train: list[str], out: Path, rng: np.random.Generator) -> None:
        """Delete the folder of a running command, give it twice at once, or kill it where it renames a file."""
        setup, count = None, 2 if event == "given twice" else 1
        if event == "killed at a rename":
            left = iter(range(int(rng.integers(40))))

            def setup() -> None:
                for name in ("replace", "rename"):
                    setattr(os, name, partial(_rename_or_die, getattr(os, name), left))

        running = [self.commands.start(train, setup) for _ in range(count)]
        if event == "folder deleted":
            time.sleep(float(rng.uniform(0.0, 2.0)))
            shutil.rmtree(out, ignore_errors=True)
        for command in running:
            check_ending(command.wait(), f"{event}:", (0, 2) if setup is None else (0, -signal.SIGKILL))


def _read_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _restore(path: Path, content: bytes) -> None:
    if path.is_dir():
        path.rmdir()
    path.write_bytes(content)


def _rename_or_die(rename: Callable[..., None], left: Iterator[int], *args: Any, **options: Any) -> None:
    """Rename a file, or, where nothing is left, end as a killed process does, with a temporary file and a lock."""
    if next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*args, **options)
