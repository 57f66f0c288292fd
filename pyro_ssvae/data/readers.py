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

__all__ = ["as_images", "read_idx", "read_npz"]

_IDX_UINT8 = 0x08


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, the format of MNIST; ``.gz`` is unpacked in memory.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not such a file, or is truncated or otherwise damaged.
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
    content = file.read(math.prod(shape) + 1)
    if len(content) != math.prod(shape):
        found = "more" if len(content) > math.prod(shape) else len(content)
        raise ValueError(
            f"{path} is damaged: its header promises {math.prod(shape)} values, it holds {found}; delete it and fetch "
            "it again."
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def read_npz(
    path: str | os.PathLike[str], required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """Read the required arrays from an npz file, and the optional ones that it holds, without unpickling.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an npz file, is damaged, lacks arrays, or holds Python objects.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; give the path of an .npz file.")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is not an .npz file (a zip archive of arrays), or an incomplete one; write it by "
            f"numpy.savez(path, {', '.join(f'{name}=...' for name in required)})."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            if missing := [name for name in required if name not in file.files]:
                raise ValueError(
                    f"{path} lacks {', '.join(missing)}; it holds {', '.join(file.files) or 'nothing'}. Needed: "
                    f"{', '.join(required)}" + (f"; optional: {', '.join(optional)}." if optional else ".")
                )
            names = [name for name in (*required, *optional) if name in file.files]
            return {name: _read_member(file, name, path) for name in names}
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}); write or fetch it again.") from error


def _read_member(file: Any, name: str, path: Path) -> NDArray[Any]:
    try:
        array = file[name]
    except ValueError as error:
        raise ValueError(
            f"{name} in {path} cannot be read as plain numbers ({error}); object arrays would have to be unpickled, "
            "which is refused. Save it with a numeric dtype."
        ) from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} in {path} is not an array; write the file by numpy.savez.")
    return array


def as_images(x: NDArray[Any]) -> NDArray[Any]:
    """Return images with channels first.

    ``(N, H, W)`` gets a channel axis, ``(N, H, W, C)`` with C of 1, 3 or 4 becomes ``(N, C, H, W)``; arrays of other
    shapes are returned unchanged.
    """
    if x.ndim == 3:
        return x[:, None]
    return np.moveaxis(x, -1, 1) if x.ndim == 4 and x.shape[-1] in (1, 3, 4) else x
