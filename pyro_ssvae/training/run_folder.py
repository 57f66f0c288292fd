"""The folder of a run: settings, metrics, checkpoint, model, label split, figures and result."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from pyro_ssvae._io import one_line, read_json, read_yaml, suggest_names, write_file, write_json, writing
from pyro_ssvae.data.labels import LabelSplit
from pyro_ssvae.errors import RunFolderError
from pyro_ssvae.models.serialization import CONFIG, WEIGHTS
from pyro_ssvae.training.checkpoint import pack, unpack

try:
    import fcntl
except ImportError:  # on Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

EXTENDING = ("max_epochs", "max_steps", "max_minutes", "patience")
"""Settings that may change when a run is continued, because they only extend it."""

FREE = ("device", "compile", "data_dir")
"""Settings of the machine, which may change whenever a run is continued."""

_STAGES = ("m1", "stacked", "joint")  # folders of M1+M2 in the folder of the run, in their order
_held: dict[str, tuple[int, int]] = {}  # by folder: the descriptor of its lock, and the thread that holds it


class RunFolder:
    """Paths, formats and state of one run; every file is written atomically, and nothing is ever unpickled.

    A run has not started (no ``config.yaml``), was stopped before its first checkpoint, can be continued (a
    checkpoint), or is finished (``result.json``, which is written last). Methods raise ``RunFolderError`` for what
    cannot be locked, read, written (the file of before stays) or continued.

    Args:
        path: The folder; made by :meth:`lock`.

    Raises:
        ValueError: For an empty name.
    """

    def __init__(self, path: str | Path) -> None:
        if not str(path).strip():
            raise ValueError("The name of the run folder is empty; give one, for example out='runs/mine'.")
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.csv"
        self.checkpoint = self.path / "checkpoints" / "last.pt"
        self.model = self.path / "model"
        self.split = self.path / "split.npz"
        self.tensorboard = self.path / "tensorboard"
        self.figures = self.path / "figures"
        self.result = self.path / "result.json"
        self._lock = self.path / ".lock"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder, keep other processes out of it, and remove what a process that was killed left half written.

        A thread that holds the lock may lock the folder again. Afterwards folders that were made and are still empty
        are removed.
        """
        key = self._key
        if key in _held and _held[key][1] == threading.get_ident():
            yield
            return
        missing = [part for part in (self.path, *self.path.parents) if not part.exists()]
        try:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                descriptor = _acquire(self._lock)
            except OSError as error:
                raise RunFolderError(f"Cannot make the run folder {self.path}: {error}.") from error
            _held[key] = descriptor, threading.get_ident()
            try:
                self._remove_temporary_files()
                yield
            finally:
                del _held[key]
                if _is_same(descriptor, self._lock):
                    self._lock.unlink()
                os.close(descriptor)
        finally:
            with suppress(OSError):  # not empty
                for part in missing:
                    part.rmdir()

    def _remove_temporary_files(self) -> None:
        for folder in (self.path, self.checkpoint.parent, self.model, self.figures):
            for file in folder.glob(".*.*.tmp"):
                if file.stem.rpartition(".")[2].isdecimal():  # as atomic_open names them
                    file.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise ``RunFolderError`` if the folder was locked, and has been removed or is another one now."""
        held = _held.get(self._key)
        if held is not None:
            replaced = self._lock.exists() and not _is_same(held[0], self._lock)
            if replaced or not self.path.is_dir():
                raise RunFolderError(f"{self.path} was removed or replaced while the run was writing to it.")

    @property
    def _key(self) -> str:
        return os.path.realpath(self.path)  # which, unlike Path.resolve, accepts links that lead to themselves

    def runs(self) -> list[RunFolder]:
        """Return the runs of the stages of M1+M2 that have started, or else this run."""
        stages = [RunFolder(self.path / stage) for stage in _STAGES]
        return [stage for stage in stages if stage.config.is_file()] or [self]

    @property
    def has_progress(self) -> bool:
        """Whether there is a checkpoint, or a result, that a new run would replace."""
        return any(run.checkpoint.is_file() or run.result.is_file() for run in self.runs())

    @property
    def has_model(self) -> bool:
        """Whether there is a saved model."""
        return all((self.model / name).is_file() for name in (CONFIG, WEIGHTS))

    @property
    def is_finished(self) -> bool:
        """Whether there is a result, and the files that were written before it."""
        return all(path.is_file() for path in (self.config, self.metrics, self.result)) and self.has_model

    # Settings.

    def read_config(self) -> dict[str, Any]:
        """Return the settings of the run."""
        if not self.config.is_file():
            raise RunFolderError(
                f"{self.path} holds no run (no config.yaml). Give the folder that an earlier run wrote."
                f"{suggest_names(self.path)}"
            )
        try:
            config = read_yaml(self.config)
        except (ValueError, OSError) as error:
            raise RunFolderError(str(error)) from error
        if not isinstance(config, dict) or not ("training" in config or "command" in config):
            raise RunFolderError(f"{self.config} is not the configuration of a run; choose another folder.")
        sections = (name for name in ("flags", "training", "objective", "model") if name in config)
        if wrong := [name for name in sections if not isinstance(config[name], dict)]:
            raise RunFolderError(f"{self.config} is damaged: {wrong[0]} must hold settings by name.")
        return config

    def write_config(self, config: Mapping[str, Any]) -> bool:
        """Write the settings of a run that starts, or what changed in those of one that is continued.

        A result of before the change is removed. Returns whether anything was written.
        """
        config = _as_plain(config)
        if self.config.is_file() and not set(_differences(self.read_config(), config)) - set(FREE):
            return False
        with writing(self.config):
            self.result.unlink(missing_ok=True)
        write_file(self.config, yaml.safe_dump(config, sort_keys=False).encode())
        return True

    def write_split(self, split: LabelSplit) -> None:
        """Write the label split, or compare it with the one that is there; replace a damaged one, and say so."""
        problem = ""
        try:
            if LabelSplit.load(self.split) == split:
                return
            if self.checkpoint.is_file():
                raise RunFolderError(
                    f"{self.split} is another label split than that of the data; use the data of before."
                )
        except FileNotFoundError:
            problem = "is missing" if self.checkpoint.is_file() else ""
        except (ValueError, TypeError, OSError):
            problem = "is damaged"
        if problem:
            print(f"{self.split} {problem}; it is written again, from the data.", file=sys.stderr)
        with writing(self.split):
            split.save(self.split)

    # State of training.

    def find_state(self, config: Mapping[str, Any], *, resume: bool) -> dict[str, Any] | None:
        """Return the state of training from which a run with these settings goes on; ``None`` for a new run.

        A run that was stopped before its first checkpoint starts afresh; one with a checkpoint needs ``resume``.
        """
        if not self.checkpoint.is_file():
            self._check_unstarted()
            return None
        if not resume:
            raise RunFolderError(
                f"{self.path} already holds a run. Continue it with resume=True (--resume {self.path}), or choose "
                "another folder."
            )
        if self.config.is_file():
            self._check_settings(config)
        else:
            print(f"{self.config} is missing; it is written again, from the settings that are given.", file=sys.stderr)
        return self.read_checkpoint()

    def _check_unstarted(self) -> None:
        """Raise ``RunFolderError`` if a folder without a checkpoint holds what a new run must not replace."""
        if not self.config.is_file():
            return
        if self.result.is_file():
            raise RunFolderError(
                f"{self.path} holds a finished run without its checkpoint ({self.checkpoint.name}), which cannot be "
                "continued. Choose another folder."
            )
        self.read_config()  # the configuration of another program must not be replaced
        print(f"The run in {self.path} was stopped before its first checkpoint; it starts afresh.", file=sys.stderr)

    def _check_settings(self, config: Mapping[str, Any]) -> None:
        """Raise ``RunFolderError`` if the run has other settings, but for those that may change."""
        before = self.read_config()
        if before.get("model", {}).get("data") != _as_plain(config.get("model", {}).get("data")):
            raise RunFolderError(
                f"{self.path} holds a run on other data: range, scale or names of classes differ. Choose another "
                "folder, or use the data of before."
            )
        for section in ("training", "objective", "model"):
            if section in before and section in config:
                refuse_changes(self.path, before[section], config[section], (*EXTENDING, *FREE))

    def write_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the training state."""
        self._write(self.checkpoint, pack(state))

    def read_checkpoint(self) -> dict[str, Any]:
        """Return the training state, with tensors on the CPU."""
        try:
            return unpack(self.checkpoint.read_bytes())
        except FileNotFoundError as error:
            raise RunFolderError(f"{self.path} has no checkpoint yet ({self.checkpoint.name}).") from error
        except MemoryError:
            raise
        except Exception as error:  # a damaged file gives errors of many types
            raise RunFolderError(
                f"The checkpoint {self.checkpoint} is unreadable ({one_line(error)}). The model of the last "
                f"evaluation, if any, is in {self.model}; to train again, choose another folder, or remove it."
            ) from error

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Write all rows of ``metrics.csv``; columns are the union of the rows' names, blanks where absent."""
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._write(self.metrics, text.getvalue().encode())

    def write_result(self, result: dict[str, Any]) -> None:
        """Write ``result.json``, after everything else."""
        with writing(self.result):
            write_json(self.result, result)

    def read_result(self) -> dict[str, Any]:
        """Return ``result.json``."""
        return read_json(self.result)

    def _write(self, path: Path, content: bytes) -> None:
        self.check()
        kept = f" The last good checkpoint is {self.checkpoint}." if self.checkpoint.is_file() else ""
        write_file(path, content, hint=kept)


def refuse_changes(folder: Path, before: Mapping[str, Any], after: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Raise ``RunFolderError`` if settings of a run differ from those that are wanted, but for ``allowed`` ones."""
    found = {name: pair for name, pair in _differences(before, after).items() if name not in allowed}
    if found:
        told = ", ".join(f"{name} is {old[:60]} there and {new[:60]} here" for name, (old, new) in found.items())
        raise RunFolderError(
            f"{folder} holds a run with other settings: {told}. Choose another folder, or leave them as they were; "
            f"resume=True may change {', '.join(EXTENDING)}."
        )


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return what differs between nested settings, by its last name, as JSON."""
    found: dict[str, tuple[str, str]] = {}
    for name in [*before, *(name for name in after if name not in before)]:
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found |= _differences(old, new)
        elif (pair := (json.dumps(_as_plain(old)), json.dumps(_as_plain(new))))[0] != pair[1]:
            found[str(name).split(".")[-1]] = pair
    return found


def _as_plain(value: Any) -> Any:
    """Return settings as JSON holds them: lists for tuples, and no object in two places."""
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise TypeError(f"settings must hold numbers, strings, lists and dictionaries: {error}.") from error


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            told = f"{path.parent} is in use by {holder}; wait for it, or choose another folder."
            raise RunFolderError(told) from None
        except OSError:  # a file system without locks
            pass
        if _is_same(descriptor, path):
            break
        os.close(descriptor)  # its holder removed the file in between
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
    return descriptor


def _is_same(descriptor: int, path: Path) -> bool:
    """Return whether a descriptor is that of the file that is at a path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False
