"""Folders of images, with one subfolder per class or the class in the files' names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

__all__ = ["LabelledImages", "has_colour", "read_folder"]

_PREVIEW_SIZE = 32
_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")  # others, such as EPS, would start external programs


class LabelledImages(NamedTuple):
    """Images ``(N, C, S, S)``, uint8, their labels ``(N,)``, -1 where unknown, and the names of the classes."""

    x: NDArray[np.uint8]
    y: NDArray[np.int64]
    class_names: tuple[str, ...]


def read_folder(path: str | os.PathLike[str], image_size: int) -> LabelledImages:
    """Read every image below a folder, in the order of their paths.

    The class of an image is the subfolder that it lies in; for an image directly in the folder, the part of its name
    before the first ``_``, as in ``cat_017.png``; otherwise it is unknown. Images are resized to fill a square of
    ``image_size`` pixels a side and cropped at the centre. Transparent ones are drawn over white. If all are grey,
    there is one channel, otherwise three.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no image, one is damaged, or the size is not positive.
    """
    if image_size < 1:
        raise ValueError(f"image_size={image_size} must be at least 1.")
    folder = Path(path).expanduser()
    files = _list_images(folder)
    x = np.stack([_read_image(file, image_size) for file in files])  # (N, S, S, 3)
    names = [_get_class_name(file, folder) for file in files]
    class_names = tuple(sorted({name for name in names if name is not None}))
    y = np.array([-1 if name is None else class_names.index(name) for name in names], dtype=np.int64)
    return LabelledImages(np.moveaxis(x if _is_coloured(x) else x[..., :1], -1, 1).copy(), y, class_names)


def has_colour(path: str | os.PathLike[str]) -> bool:
    """Return whether an image below a folder is in colour, with the errors of :func:`read_folder`."""
    return any(_is_coloured(_read_image(file, _PREVIEW_SIZE)) for file in _list_images(Path(path).expanduser()))


def _list_images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give one that holds images.")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    if not files:
        raise ValueError(f"{folder} holds no image; looked for {', '.join(sorted(_SUFFIXES))} at any depth.")
    return files


def _is_coloured(x: NDArray[np.uint8]) -> bool:
    """Return whether the channels, along the last axis, differ anywhere."""
    return bool((x != x[..., :1]).any())


def _get_class_name(file: Path, folder: Path) -> str | None:
    if file.parent != folder:
        return file.relative_to(folder).parts[0]
    label, separator, _ = file.stem.partition("_")
    return label if separator and label else None


def _read_image(file: Path, size: int) -> NDArray[np.uint8]:
    try:
        with Image.open(file, formats=_FORMATS) as image:
            picture = image.convert("RGBA")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as an image ({error}); repair or remove it.") from error
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    scale = size / min(picture.size)
    width, height = (max(size, round(scale * side)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    picture = picture.resize((width, height), Image.Resampling.LANCZOS).crop((left, top, left + size, top + size))
    return np.asarray(picture)
