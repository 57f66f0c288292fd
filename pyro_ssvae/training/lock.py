"""A lock on a folder: one process, and in it one thread, works there; a process that has ended holds nothing."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyro_ssvae.errors import RunFolderError

try:
    import fcntl
except ImportError:  # on Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

__all__ = ["check_lock", "lock_folder"]

_NAME = ".lock"
_held: dict[Path, tuple[int, int]] = {}  # by folder: the descriptor of its lock, and the thread that holds it


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make a folder and lock it; afterwards remove the folders that were made and are still empty.

    A thread that holds the lock may lock the folder again, which has no effect.

    Raises:
        RunFolderError: If another process or thread holds the lock, or the folder cannot be made.
    """
    key = folder.resolve()
    if key in _held and _held[key][1] == threading.get_ident():
        yield
        return
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = _acquire(folder)
        except OSError as error:
            raise RunFolderError(f"Cannot make the run folder {folder}: {error}.") from error
        _held[key] = descriptor, threading.get_ident()
        try:
            yield
        finally:
            del _held[key]
            if _is_lock(descriptor, folder):
                (folder / _NAME).unlink()
            os.close(descriptor)
    finally:
        with suppress(OSError):  # not empty
            for part in missing:
                part.rmdir()


def check_lock(folder: Path) -> None:
    """Raise ``RunFolderError`` if a folder that was locked has been removed, or is another one now."""
    held = _held.get(folder.resolve())
    if held is not None and (not folder.is_dir() or ((folder / _NAME).exists() and not _is_lock(held[0], folder))):
        raise RunFolderError(f"{folder} was removed or replaced while the run was writing to it.")


def _acquire(folder: Path) -> int:
    """Return the descriptor of the locked file."""
    while True:
        descriptor = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise RunFolderError(f"{folder} is in use by {holder}; wait for it, or choose another folder.") from None
        except OSError:  # a file system without locks
            pass
        if _is_lock(descriptor, folder):
            break
        os.close(descriptor)  # its holder removed the file in between
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
    return descriptor


def _is_lock(descriptor: int, folder: Path) -> bool:
    """Return whether a descriptor is that of the present lock file of a folder."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(folder / _NAME))
    except OSError:
        return False
