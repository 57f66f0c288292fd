"""Images below a folder: which there are, of which class and part, and reading them."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pyro_ssvae._arguments import check_choice
from pyro_ssvae._io import check_memory, check_path, suggest_conversion
from pyro_ssvae._warnings import warn
from pyro_ssvae.data.labels import UNLABELLED
from pyro_ssvae.data.readers import IMAGES
from pyro_ssvae.data.storage import ItemSource

_PREVIEW_SIZE = 32
_SEEN_FOR_COLOUR = 64
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # others, such as EPS, would start external programs
_MAX_PIXELS = 2**26  # of one image: 8192 x 8192
_MAX_RATIO = 100  # of its sides
_DEPTHS = (8, 10, 12, 14)  # bits that cameras and scanners store in files of 16
_PAGED_SUFFIXES = (".gif", ".png", ".tif", ".tiff", ".webp")  # JPEG files of phones hold further versions of the image
_PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_UNLABELLED = re.compile("(unlabell?ed|unsup(ervised)?|nolabels?)(images?|data|set)?")


class _Images(NamedTuple):
    """Images ``(N, C, S, S)``, uint8, or their source; names of classes ``(N,)``, empty where unknown; parts.

    The parts are ``train``, ``validation`` and ``test``; ``files`` are paths below the folder.
    """

    x: Any
    classes: NDArray[np.str_]
    parts: NDArray[np.str_]
    files: list[str]


def read_folder(
    path: str | os.PathLike[str],
    image_size: int,
    *,
    classes_in_names: bool = False,
    on_error: str = "raise",
    on_disk: bool = False,
) -> _Images:
    """Read every image below a folder, in the order of their paths, or open them, to be read when they are needed.

    Images are resized to fill a square of ``image_size`` pixels a side and cropped at the centre. Transparent ones are
    drawn over white. If all are grey, there is one channel, otherwise three.
    """
    check_choice("on_error", on_error, ("raise", "skip"))
    folder, files = _list_images(path)
    x: Any
    if on_disk:
        x = _open_files(folder, files, 3 if _preview(folder, files) else 1, image_size)
    else:
        x, files = _read_files(folder, files, image_size, on_error)
    parts, classes = np.array([_locate(file, classes_in_names) for file in files]).T
    _check_classes(folder, classes)
    _check_parts(folder, parts, classes)
    names = [str((folder / file).relative_to(path)) for file in files]
    return _Images(x, classes, np.where(parts == "", "train", parts), names)


def read_single(file: Path, image_size: int) -> _Images:
    """Return one image, as :func:`read_folder` does those of a folder; its class is unknown."""
    x, _ = _read_files(file.parent, [Path(file.name)], image_size, "raise")
    return _Images(x, np.array([""]), np.array(["train"]), [file.name])


def is_image(path: Path) -> bool:
    """Return whether the name of a file ends as that of an image."""
    return path.suffix.lower() in IMAGES


def _read_files(
    folder: Path, files: list[Path], image_size: int, on_error: str
) -> tuple[NDArray[np.uint8], list[Path]]:
    """Return images ``(N, C, S, S)`` and their files, without those that cannot be read if they are skipped."""
    check_memory(2 * 3 * image_size**2 * len(files), f"{len(files)} images of {image_size} x {image_size} pixels")
    x = np.empty((len(files), image_size, image_size, 3), dtype=np.uint8)
    read: list[Path] = []
    problems: list[str] = []
    brightest: list[int | None] = []
    for file in files:
        try:
            x[len(read)], value = _read_image(folder / file, image_size)
            brightest.append(value)
            read.append(file)
        except ValueError as error:
            problems.append(f"{file} ({error})")
    if problems:
        message = f"{len(problems)} of {len(files)} images in {folder} cannot be read: {'; '.join(problems[:10])}"
        message += "; ..." if len(problems) > 10 else "."
        if on_error == "raise" or not read:
            advice = ", or leave them out by on_error='skip'" if read else ""
            raise ValueError(f"{message} Repair or remove them{advice}.")
        warn(f"{message} They are left out.")
    _warn_about_depth(folder, brightest)
    _warn_about_pages(folder, read)
    x = x[: len(read)] if _is_coloured(x[: len(read)]) else x[: len(read), ..., :1]
    return np.moveaxis(x, -1, 1).copy(), read


def _preview(folder: Path, files: list[Path]) -> bool:
    """Return whether some of many images are in colour, and warn as :func:`_read_files` does."""
    chosen = files[:: 1 + len(files) // _SEEN_FOR_COLOUR]
    seen, brightest = zip(*(_read_or_refuse(folder / file, _PREVIEW_SIZE) for file in chosen), strict=True)
    _warn_about_depth(folder, brightest)
    _warn_about_pages(folder, chosen)
    return any(map(_is_coloured, seen))


def open_images(path: str | os.PathLike[str], event_shape: Sequence[int]) -> ItemSource:
    """Return the source of the images below a folder, brought to a shape ``(C, S, S)`` when they are read."""
    channels, *sides = event_shape if len(event_shape) == 3 else (0, 0, 0)
    if channels not in (1, 3) or sides[0] != sides[1]:
        raise ValueError(f"{path} is a folder of images, and examples have shape {tuple(event_shape)}.")
    return _open_files(*_list_images(path), channels, sides[0])


def _open_files(folder: Path, files: list[Path], channels: int, size: int) -> ItemSource:
    def load(number: int) -> NDArray[np.uint8]:
        x, _ = _read_or_refuse(folder / files[number], size)
        return np.moveaxis(x, -1, 0) if channels == 3 else np.asarray(Image.fromarray(x).convert("L"))[None]

    return ItemSource(len(files), load, (channels, size, size), workers=min(8, os.cpu_count() or 1))


def has_colour(path: str | os.PathLike[str]) -> bool:
    """Return whether an image below a folder is in colour; those that cannot be read are passed over."""
    folder, files = _list_images(path)
    for file in files:
        with suppress(ValueError):  # which is told when the data is read, unless such images are left out
            if _is_coloured(_read_image(folder / file, _PREVIEW_SIZE)[0]):
                return True
    return False


def _list_images(path: str | os.PathLike[str]) -> tuple[Path, list[Path]]:
    """Return the deepest folder that holds every image, and the images' paths below it."""
    folder = Path(path)
    check_path(folder, "a folder of images", Path.is_dir)
    found = [file.relative_to(folder) for file in _walk(folder) if is_image(file)]
    hidden = re.compile(r"\..*|__MACOSX")
    files = sorted(file for file in found if not any(map(hidden.fullmatch, file.parts)) and (folder / file).is_file())
    if not files:
        looked = f"looked for {', '.join(IMAGES)} at any depth."
        raise ValueError(f"{folder} holds no image; {looked}{suggest_conversion(folder)}")
    common = os.path.commonpath([file.parent for file in files])
    return folder / common, [file.relative_to(common) for file in files]


def _walk(folder: Path, root: Path | None = None) -> Iterator[Path]:
    """Yield the files below a folder, also by symbolic links to other folders."""
    root = (root or folder).resolve()
    with suppress(PermissionError):
        for inside in folder.iterdir():
            linked = inside.resolve() if inside.is_symlink() and inside.is_dir() else None
            # Files of a folder that lies in the other one would be found twice, or without end.
            if linked is None or not (linked.is_relative_to(root) or root.is_relative_to(linked)):
                yield from _walk(inside, root) if inside.is_dir() else (inside,)


def _is_coloured(x: NDArray[np.uint8]) -> bool:
    return bool((x != x[..., :1]).any())


def _locate(file: Path, classes_in_names: bool) -> tuple[str, str]:
    """Return part and class of an image by its path below the folder, empty where unknown."""
    folders = list(file.parts[:-1])
    part = _PARTS.get(folders[0].lower(), "") if folders else ""
    if part:
        del folders[0]
    if folders:
        return part, "" if _means_unlabelled(folders[0]) else folders[0]
    return part, file.stem.partition("_")[0] if classes_in_names and "_" in file.stem else ""


def _means_unlabelled(name: str) -> bool:
    return _UNLABELLED.fullmatch(re.sub("[^a-z]", "", name.lower())) is not None


def warn_about_single_folder(path: Path, files: Sequence[str]) -> None:
    """Warn if images without classes, ``files`` below a folder, lie in a single folder that may be that of a class."""
    name = os.path.basename(os.path.commonpath([os.path.dirname(file) for file in files]))
    if name and name.lower() not in _PARTS and not _means_unlabelled(name):
        warn(
            f"{path} holds only one folder of images, {name}, which is not taken as a class: its images are "
            "unlabelled. To train with classes, put the images of each into a folder of its own."
        )


def _check_classes(folder: Path, classes: NDArray[np.str_]) -> None:
    """Raise ``ValueError`` if the name of a class is one of the words by which tables mark unlabelled examples."""
    if found := [name for name in np.unique(classes).tolist() if name and name.strip() in UNLABELLED]:
        raise ValueError(
            f"{folder} holds images of the class {found[0]!r}, a word that marks unlabelled examples. If it is a "
            "class, rename it; if its images have none, put them into a folder unlabelled."
        )


def _check_parts(folder: Path, parts: NDArray[np.str_], classes: NDArray[np.str_]) -> None:
    """Raise ``ValueError`` if the folder ``train`` is rather a class, as it stands beside classes and holds none."""
    beside = sorted({*classes[(parts == "") & (classes != "")].tolist()})
    if beside and (parts == "train").any() and not (classes[parts == "train"] != "").any():
        raise ValueError(
            f"{folder} holds the folder train, without folders of classes, beside the classes "
            f"{', '.join(beside[:10])}. Rename it if it is a class too; name it unlabelled if its images have none."
        )


def _warn_about_depth(folder: Path, brightest: Sequence[int | None]) -> None:
    """Warn if images of 16 bits use a small part of their range; ``brightest`` has their largest values, else None."""
    deep = [value for value in brightest if value is not None]
    largest = max(deep, default=65_535)
    depth = next((bits for bits in _DEPTHS if largest < 2**bits), None)
    if depth is not None:
        warn(
            f"The images of 16 bits in {folder} ({len(deep)}) hold no value above {largest:,} of 65,535, so that at "
            f"most {largest // 256 + 1} of 256 grey levels are left of them. If their depth is {depth} bits, multiply "
            f"the values in the files by {2 ** (16 - depth)}."
        )


def _warn_about_pages(folder: Path, files: Sequence[Path]) -> None:
    """Warn about the first file below a folder that has several pages or frames."""
    for file in files:
        pages = 1
        if file.suffix.lower() in _PAGED_SUFFIXES:
            with suppress(Exception), Image.open(folder / file, formats=_FORMATS) as image:  # damage is found elsewhere
                pages = getattr(image, "n_frames", 1)
        if pages > 1:
            warn(
                f"{folder / file} has {pages} pages or frames, of which only the first is read, as of all such images. "
                "Save each page as a file of its own to use all of them."
            )
            return


def _read_or_refuse(file: Path, size: int) -> tuple[NDArray[np.uint8], int | None]:
    """Return what :func:`_read_image` does; its error names the file."""
    try:
        return _read_image(file, size)
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}. Repair or remove it.") from error


def _read_image(file: Path, size: int) -> tuple[NDArray[np.uint8], int | None]:
    """Return a square of colours ``(S, S, 3)``, and the largest value in the file if it has 16 bits, else ``None``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower
            # A path would be mapped into memory, by which Pillow mixes up the pixels of turned TIFF images.
            with open(file, "rb") as stream, Image.open(stream, formats=_FORMATS) as image:
                width, height = image.size
                if width * height > _MAX_PIXELS or max(image.size) > _MAX_RATIO * min(image.size):
                    raise ValueError(
                        f"{width} x {height} pixels; at most {_MAX_PIXELS // 10**6} million are read, and one side at "
                        f"most {_MAX_RATIO} times the other"
                    )
                picture, brightest = _reduce_depth(image)
                with suppress(Exception):  # damaged EXIF entries are no reason to refuse an image
                    picture = ImageOps.exif_transpose(picture)
                picture = picture.convert("RGBA")
    except UnidentifiedImageError:
        raise ValueError("no image, or damaged") from None
    except Exception as error:  # Pillow's readers raise errors of many types for damaged files
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    width, height = (max(size, round(size / min(picture.size) * side)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    picture = picture.resize((width, height), Image.Resampling.LANCZOS).crop((left, top, left + size, top + size))
    return np.asarray(picture), brightest


def _reduce_depth(image: Image.Image) -> tuple[Image.Image, int | None]:
    """Return a grey image of 16 bits with 8 bits, and others unchanged, and the largest value if there are 16 bits.

    Pillow would clip grey images, and takes the upper 8 bits of coloured ones, whose largest value is rounded up here.
    """
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):  # PNG has at most 16 bits
        raise ValueError("values of 32 bits, or signed ones, whose range is unknown; convert them to 8 or 16 bits")
    is_deep = ";16" in str(getattr(image, "tile", ""))  # how the values are unpacked, until they are loaded
    image.load()
    if not image.mode.startswith("I"):
        extrema: Any = image.convert("RGB").getextrema() if is_deep else ()
        return image, 256 * max(high for _, high in extrema) + 255 if is_deep else None
    values = np.asarray(image)
    reduced = Image.fromarray((values // 257).astype(np.uint8))
    reduced.info = image.info  # which may have the orientation
    return reduced, int(values.max())
