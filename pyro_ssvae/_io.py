"""Reading and writing small files: atomically, and without unpickling."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml

from pyro_ssvae.errors import RunFolderError


def one_line(error: BaseException) -> str:
    """Return the type and the text of an error on one line, cut after 200 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{'...' if len(text) > 200 else ''}".removesuffix(": ")


@contextmanager
def writing(what: str | Path, hint: str = "") -> Iterator[None]:
    """Raise ``RunFolderError``, which names what cannot be written, in place of an ``OSError``."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(f"Cannot write {what}: {error}.{hint}") from error


def write_file(path: Path, content: bytes, what: str = "", hint: str = "") -> Path:
    """Write a file atomically, in a folder that is made if needed; return the path. Errors are those of `writing`."""
    with writing(f"{what}{path}", hint):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return path


def check_output(path: Path) -> None:
    """Raise ``OSError`` if a path is a folder, or its folder does not exist."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder {path.parent} of {path.name} does not exist; make it first.")


@contextmanager
def atomic_open(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file next to ``path`` for writing, and rename it to ``path`` if no error occurs.

    Readers see the old file or the new one, never a part of one; after an error nothing is left behind. A symbolic link
    stays, and what it points to is replaced; a device or a pipe, such as ``/dev/stdout``, is written to.
    """
    check_output(path)
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            yield file
        return
    path = path.resolve() if path.is_symlink() else path
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write bytes to ``path`` by :func:`atomic_open`."""
    with atomic_open(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON by :func:`atomic_open`."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, or raise ``ValueError`` if the file does not hold one."""
    value = _read(path, "JSON", json.loads)
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(value).__name__}.")
    return value


def read_yaml(path: Path) -> Any:
    """Read a YAML file, or raise ``ValueError`` if it is unreadable."""
    return _read(path, "YAML", yaml.safe_load)


def _read(path: Path, what: str, parse: Callable[[str], Any]) -> Any:
    check_path(path, "a text file")
    try:
        return parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is a binary file, and text is needed.") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is not readable {what}: {' '.join(str(error).split())}") from error


def check_path(path: Path, needed: str, test: Callable[[Path], bool] = Path.is_file) -> None:
    """Raise ``FileNotFoundError``, with near names in the folder, unless a path passes the test."""
    if not test(path):
        state = "is a folder" if path.is_dir() else "is a file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {state}; {needed} is needed.{suggest_names(path)}")


def suggest_names(path: Path, known: Sequence[str] = ()) -> str:
    """Return a sentence with names like that of a path that does not exist, of those known and those beside it."""
    missing = next((part for part in (*reversed(path.parents), path) if not part.exists()), None)
    if missing is None:
        return ""
    with suppress(OSError):
        known = [*known, *os.listdir(missing.parent)]
    near = [str(missing.parent / name) for name in difflib.get_close_matches(missing.name, known)]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def suggest_conversion(path: Path) -> str:
    """Return a sentence on converting a Matrix Market file, at a path or in that folder, for none reads it."""
    found = [path] if path.is_file() else [*path.glob("*.mtx*"), *path.glob("*/*.mtx*")] if path.is_dir() else []
    file = next((file for file in found if file.name.endswith((".mtx", ".mtx.gz"))), None)
    if file is None:
        return ""
    return (
        f" Convert {file} by scipy.sparse.save_npz('cells.npz', scipy.io.mmread({str(file)!r}).T.tocsr()), or with "
        f"names by scanpy.read_10x_mtx({str(file.parent)!r}).write('cells.h5ad')."
    )


def check_memory(num_bytes: int, what: str) -> None:
    """Raise ``ValueError`` if something would take more memory than is available, where the system (Linux) tells."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return
    if num_bytes > available:
        raise ValueError(f"{what} would take {num_bytes / 1e9:,.1f} GB of memory, {available / 1e9:,.1f} GB are free.")
