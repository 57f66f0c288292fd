"""Readers of array files: idx (the format of MNIST, also gzipped) and npz; nothing is unpickled."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_ssvae._io import check_memory, check_path

__all__ = ["read_idx", "read_npz"]

_IDX_UINT8 = 0x08
_ENCRYPTED = 0x1  # in the flags of a zip archive's member
_MAX_RATIO = 1100  # of unpacked to packed bytes; deflate, at most 1032


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, the format of MNIST; ``.gz`` is unpacked in memory.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not such a file, is truncated or otherwise damaged, or takes more memory than there is.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return _read_idx(file, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and fetch it again.") from error


def _read_idx(file: gzip.GzipFile | BufferedReader, path: Path) -> NDArray[np.uint8]:
    head = file.read(4)
    if len(head) < 4 or head[:3] != bytes((0, 0, _IDX_UINT8)) or not 1 <= head[3] <= 4:
        raise ValueError(
            f"{path} is not an idx file of unsigned bytes (it starts with {head.hex() or 'nothing'}, expected 00000801 "
            "to 00000804); delete it and fetch it again."
        )
    sizes = file.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise ValueError(f"{path} ends within its header; delete it and fetch it again.")
    shape = struct.unpack(f">{head[3]}I", sizes)
    promised, limit = math.prod(shape), path.stat().st_size * (_MAX_RATIO if path.suffix == ".gz" else 1)
    check_memory(min(promised, limit), str(path))
    content = file.read(min(promised, limit) + 1)
    if len(content) != promised:
        found = "more" if len(content) > promised else len(content)
        raise ValueError(
            f"{path} is damaged: its header promises {promised} values, it holds {found}; delete it and fetch it again."
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def read_npz(
    path: str | os.PathLike[str], required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """Read the required arrays from an npz file, and the optional ones that it holds, without unpickling.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an npz file, is damaged, lacks arrays, holds Python objects, or takes more memory than
            there is.
    """
    path = Path(path).expanduser()
    check_path(path, "an .npz file")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is not an .npz file (a zip archive of arrays), or an incomplete one; write it by "
            f"numpy.savez(path, {', '.join(f'{name}=...' for name in required or optional[:1])})."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            held = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            if missing := [name for name in required if name not in held]:
                raise ValueError(
                    f"{path} lacks {', '.join(missing)}; it holds {', '.join(held) or 'nothing'}. Needed: "
                    f"{', '.join(required)}" + (f"; optional: {', '.join(optional)}." if optional else ".")
                )
            members = {name: archive.getinfo(f"{name}.npy") for name in (*required, *optional) if name in held}
            _check_members(members, path)
            return {name: _read_member(archive, member, name, path) for name, member in members.items()}
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, UnicodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); write or fetch it again.") from error


def _check_members(members: dict[str, zipfile.ZipInfo], path: Path) -> None:
    """Check, by the directory of the archive, that members can be read and fit into memory."""
    for name, member in members.items():
        if member.flag_bits & _ENCRYPTED:
            raise ValueError(f"{name} in {path} is encrypted; unpack the file and write it again by numpy.savez.")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} in {path} is compressed by an unusual method; write it by numpy.savez.")
        if member.file_size > _MAX_RATIO * min(member.compress_size, path.stat().st_size):
            raise ValueError(f"{path} is damaged: {name} cannot be as large as its directory says; write it again.")
    check_memory(2 * sum(member.file_size for member in members.values()), str(path))


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, path: Path) -> NDArray[Any]:
    try:
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            promised, held = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
        if promised != held and not dtype.hasobject:
            raise ValueError(f"its header promises {promised} bytes, it holds {held}")
        with archive.open(member) as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
    except (zipfile.BadZipFile, zlib.error, EOFError, MemoryError):
        raise
    except Exception as error:  # a damaged header gives errors of many types
        raise ValueError(
            f"{name} in {path} cannot be read as plain numbers ({' '.join(str(error).split())}); object arrays would "
            "have to be unpickled, which is refused. Write it by numpy.savez, with a numeric dtype."
        ) from error
