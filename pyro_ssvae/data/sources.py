"""The user's own examples: npz files, folders of images, and data sets of PyTorch; what is held out of them."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pyro_ssvae._arguments import as_count, as_path, as_scale
from pyro_ssvae._arrays import as_examples
from pyro_ssvae._io import check_memory, check_path
from pyro_ssvae.data.labels import Indices, LabelSplit, draw_label_split, encode_labels, select_last, warn_about_labels
from pyro_ssvae.data.readers import read_npz

__all__ = [
    "Source",
    "as_held_out",
    "draw_held_out",
    "has_colour",
    "load_folder",
    "load_npz",
    "read_dataset",
    "read_folder",
    "split_source",
]

_PREVIEW_SIZE = 32
_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # others, such as EPS, would start external programs
_MAX_PIXELS = 2**26  # of one image: 8192 x 8192
_MAX_RATIO = 100  # of its sides
_PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_UNLABELLED = re.compile("(unlabell?ed|unsup(ervised)?|nolabels?)(images?|data|set)?")


class Source(NamedTuple):
    """The examples of a training file, which of them are for validation, and test examples.

    ``x`` has shape ``(N, *event_shape)``, uint8 or float32, and its labels ``y`` ``(N,)``, int64, -1 where unknown;
    ``y`` is ``None`` where no labels were given. ``ids``, ``(N,)``, are the examples' indices in the original file, and
    ``validation``, ``(V,)``, indices into ``x``.
    """

    x: NDArray[Any]
    y: Indices | None
    x_test: NDArray[Any]
    y_test: Indices
    ids: Indices
    validation: Indices
    name: str
    num_classes: int | None = None
    class_names: tuple[str, ...] = ()
    scale: float | None = None
    feature_names: tuple[str, ...] = ()
    categories: Mapping[str, tuple[str, ...]] = MappingProxyType({})


def load_npz(
    path: str | os.PathLike[str], *, num_validation: int | None, num_classes: int | None, scale: float | None
) -> Source:
    """Read an npz file; see ``SemiSupervisedData.from_npz``."""
    file = as_path(path, "path")
    arrays = read_npz(file, ("x_train",), ("y_train", "x_test", "y_test"))
    x = as_examples(arrays.pop("x_train"), "x_train", allow_missing=True)
    x_test, y_test = as_held_out(arrays.get("x_test"), arrays.get("y_test"), "test", x)
    labels = encode_labels({"y_train": arrays.get("y_train"), "y_test": y_test}, [len(x), len(x_test)], num_classes)
    y_train = labels.y["y_train"].numpy() if "y_train" in arrays else None
    usable = np.arange(len(x)) if y_train is None else np.flatnonzero(y_train >= 0)
    return Source(
        *(x.numpy(), y_train, x_test.numpy(), labels.y["y_test"].numpy()),
        ids=np.arange(len(x)),
        validation=select_last(usable, 0 if num_validation is None else num_validation, len(x)),
        name=file.stem,
        num_classes=labels.num_classes,
        class_names=labels.class_names,
        scale=scale,
    )


def load_folder(
    path: str | os.PathLike[str],
    *,
    image_size: int,
    num_validation: int | None,
    num_test: int | None,
    seed: int,
    classes_in_names: bool,
    on_error: str,
) -> Source:
    """Read a folder of images, and draw test and validation examples; see ``SemiSupervisedData.from_folder``."""
    folder = as_path(path, "path")
    images = read_folder(folder, image_size, classes_in_names=classes_in_names, on_error=on_error)
    parts = {part: np.flatnonzero(images.parts == part) for part in ("train", "validation", "test")}
    words = {f"{folder.name}/{part}": images.classes[index] for part, index in parts.items()}
    labels = encode_labels(words, [len(index) for index in parts.values()])
    y = np.empty(len(images.x), dtype=np.int64)
    for index, known in zip(parts.values(), labels.y.values(), strict=True):
        y[index] = known.numpy()
    validation, test = draw_held_out(y, parts, num_validation, num_test, seed)
    rest = np.setdiff1d(np.arange(len(y)), test)
    return Source(
        *(images.x[rest], None if labels.num_classes is None else y[rest], images.x[test], y[test]),
        ids=rest,
        validation=np.flatnonzero(np.isin(rest, validation)),
        name=folder.name,
        num_classes=labels.num_classes,
        class_names=labels.class_names,
    )


class _Images(NamedTuple):
    """Images ``(N, C, S, S)``, uint8, the names of their classes ``(N,)``, empty where unknown, and of their parts.

    The parts are ``train``, ``validation`` and ``test``; ``files`` are paths below the folder.
    """

    x: NDArray[np.uint8]
    classes: NDArray[np.str_]
    parts: NDArray[np.str_]
    files: list[str]


def read_folder(
    path: str | os.PathLike[str], image_size: int, *, classes_in_names: bool = False, on_error: str = "raise"
) -> _Images:
    """Read every image below a folder, in the order of their paths.

    Images are resized to fill a square of ``image_size`` pixels a side and cropped at the centre. Transparent ones are
    drawn over white. If all are grey, there is one channel, otherwise three.
    """
    image_size = as_count(image_size, "image_size", least=1)
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r} must be 'raise' or 'skip'.")
    folder, files = _list_images(path)
    check_memory(2 * 3 * image_size**2 * len(files), f"{len(files)} images of {image_size} x {image_size} pixels")
    x = np.empty((len(files), image_size, image_size, 3), dtype=np.uint8)
    read: list[Path] = []
    problems: list[str] = []
    for file in files:
        try:
            x[len(read)] = _read_image(folder / file, image_size)
            read.append(file)
        except ValueError as error:
            problems.append(f"{file} ({error})")
    if problems:
        message = f"{len(problems)} of {len(files)} images in {folder} cannot be read: {'; '.join(problems[:10])}"
        message += "; ..." if len(problems) > 10 else "."
        if on_error == "raise" or not read:
            raise ValueError(f"{message} Repair or remove them, or leave them out in Python by on_error='skip'.")
        warnings.warn(f"{message} They are left out.", UserWarning, stacklevel=5)
    parts, classes = np.array([_locate(file, classes_in_names) for file in read]).T
    _check_parts(folder, parts, classes)
    x = x[: len(read)] if _is_coloured(x[: len(read)]) else x[: len(read), ..., :1]
    names = [str((folder / file).relative_to(path)) for file in read]
    return _Images(np.moveaxis(x, -1, 1).copy(), classes, np.where(parts == "", "train", parts), names)


def has_colour(path: str | os.PathLike[str]) -> bool:
    """Return whether an image below a folder is in colour; ``ValueError`` if one before it cannot be read."""
    folder, files = _list_images(path)
    return any(_is_coloured(_read_image(folder / file, _PREVIEW_SIZE)) for file in files)


def _list_images(path: str | os.PathLike[str]) -> tuple[Path, list[Path]]:
    """Return the deepest folder that holds every image, and the images' paths below it."""
    folder = Path(path)
    check_path(folder, "a folder of images", Path.is_dir)
    found = [file.relative_to(folder) for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES]
    hidden = re.compile(r"\..*|__MACOSX")
    files = sorted(file for file in found if not any(map(hidden.fullmatch, file.parts)) and (folder / file).is_file())
    if not files:
        raise ValueError(f"{folder} holds no image; looked for {', '.join(sorted(_SUFFIXES))} at any depth.")
    common = os.path.commonpath([file.parent for file in files])
    return folder / common, [file.relative_to(common) for file in files]


def _is_coloured(x: NDArray[np.uint8]) -> bool:
    """Return whether the channels, along the last axis, differ anywhere."""
    return bool((x != x[..., :1]).any())


def _locate(file: Path, classes_in_names: bool) -> tuple[str, str]:
    """Return part and class of an image by its path below the folder, empty where unknown."""
    folders = list(file.parts[:-1])
    part = _PARTS.get(folders[0].lower(), "") if folders else ""
    if part:
        del folders[0]
    if folders:
        unlabelled = _UNLABELLED.fullmatch(re.sub("[^a-z]", "", folders[0].lower()))
        return part, "" if unlabelled else folders[0]
    return part, file.stem.partition("_")[0] if classes_in_names and "_" in file.stem else ""


def _check_parts(folder: Path, parts: NDArray[np.str_], classes: NDArray[np.str_]) -> None:
    """Raise ``ValueError`` if the folder ``train`` is rather a class, as it stands beside classes and holds none."""
    beside = sorted({*classes[(parts == "") & (classes != "")].tolist()})
    if beside and (parts == "train").any() and not (classes[parts == "train"] != "").any():
        raise ValueError(
            f"{folder} holds the folder train, without folders of classes, beside the classes "
            f"{', '.join(beside[:10])}. Rename it if it is a class too; name it unlabelled if its images have none."
        )


def _read_image(file: Path, size: int) -> NDArray[np.uint8]:
    """Return a square of colours ``(S, S, 3)``; raise ``ValueError`` if the file is damaged or too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower
            with Image.open(file, formats=_FORMATS) as image:
                width, height = image.size
                if width * height > _MAX_PIXELS or max(image.size) > _MAX_RATIO * min(image.size):
                    raise ValueError(
                        f"{width} x {height} pixels; at most {_MAX_PIXELS // 10**6} million are read, and one side at "
                        f"most {_MAX_RATIO} times the other"
                    )
                picture = _reduce_depth(image).convert("RGBA")
    except UnidentifiedImageError:
        raise ValueError("no image, or damaged") from None
    except Exception as error:  # Pillow's readers raise errors of many types for damaged files
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    width, height = (max(size, round(size / min(picture.size) * side)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    picture = picture.resize((width, height), Image.Resampling.LANCZOS).crop((left, top, left + size, top + size))
    return np.asarray(picture)


def _reduce_depth(image: Image.Image) -> Image.Image:
    """Return a grey image of 16 bits with 8 bits, and others unchanged; Pillow would clip it."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65_535:
        raise ValueError("values of 32 bits, whose range is unknown; convert them to 8 or 16 bits")
    return Image.fromarray((values // 257).astype(np.uint8))


def draw_held_out(
    y: Indices, parts: dict[str, Indices], num_validation: int | None, num_test: int | None, seed: int
) -> tuple[Indices, Indices]:
    """Return the indices of validation and test examples: those in folders of these names, else drawn.

    They are drawn among the training examples with a label, if there are any, and then stratified by class; one of each
    class stays for training where the numbers allow it.
    """
    train = parts["train"]
    pool = train[y[train] >= 0] if (y[train] >= 0).any() else train
    numbers = {"test": num_test, "validation": num_validation}
    sizes = [_count_drawn(part, number, len(pool), len(parts[part])) for part, number in numbers.items()]
    if sum(sizes) >= len(pool):
        raise ValueError(
            f"num_validation + num_test = {sum(sizes)} of {len(pool)} examples leave none to train on; add some, or "
            "pass num_validation=0 and num_test=0."
        )
    order = _stratify(np.random.default_rng(seed).permutation(pool), y)
    drawn = {"test": np.sort(order[: sizes[0]]), "validation": order[sizes[0] : sum(sizes)]}
    return np.append(parts["validation"], drawn["validation"]), np.append(parts["test"], drawn["test"])


def _stratify(order: Indices, y: Indices) -> Indices:
    """Return indices in an order of which every first part is stratified by ``y``; one of each class comes last.

    scikit-learn's splitters refuse classes of one example, and parts smaller than the number of classes.
    """
    _, classes, counts = np.unique(y[order], return_inverse=True, return_counts=True)
    rank = np.empty(len(order), dtype=np.int64)  # of an example in its class
    rank[np.argsort(classes, kind="stable")] = np.concatenate([np.arange(count) for count in counts])
    size = counts[classes]
    return order[np.argsort((rank + 0.5) / size + (rank == size - 1), kind="stable")]


def _count_drawn(part: str, given: int | None, available: int, num_in_folder: int) -> int:
    """Return how many examples are drawn for a part: none if it has a folder, else a tenth by default."""
    number = 0 if given is None else as_count(given, f"num_{part}")
    if num_in_folder and number:
        raise ValueError(f"num_{part}={number}: there is a folder of {part} images already; leave num_{part} out.")
    return max(1, available // 10) if given is None and not num_in_folder else number


def split_source(source: Source, num_labels: Any, seed: int, balanced: bool) -> dict[str, Any]:
    """Hold validation examples out, draw the labels that are kept, and return what ``SemiSupervisedData`` holds."""
    validation = source.validation
    train = np.setdiff1d(np.arange(len(source.x)), validation)
    known, split = np.full(len(source.x), -1) if source.y is None else source.y, None
    y, y_validation = (torch.tensor(known[index]) for index in (train, validation))
    if source.y is not None:
        labelled = draw_label_split(known[train], num_labels, source.num_classes or 1, seed, balanced)
        y = torch.full_like(y, -1).index_copy(0, torch.tensor(labelled), y[labelled])
        split = LabelSplit(source.ids[train[labelled]], source.ids[validation], seed, balanced)
        if source.num_classes is not None:
            warn_about_labels(y, source.class_names, torch.tensor(known), stacklevel=5)
    x, x_validation = (torch.tensor(source.x[index]) for index in (train, validation))
    return {
        **{"x": x, "y": y, "x_validation": x_validation, "y_validation": y_validation},
        **{"x_test": torch.tensor(source.x_test), "y_test": torch.tensor(source.y_test)},
        **{"num_classes": source.num_classes, "name": source.name, "class_names": source.class_names},
        **{"scale": as_scale(source.scale, x), "split": split, "seed": seed},
        **{"feature_names": source.feature_names, "categories": dict(source.categories)},
    }


def as_held_out(x: Any, y: Any, part: str, train: Tensor) -> tuple[Tensor, Any]:
    """Return validation or test examples, none if they were not given, and their labels as given."""
    if x is None:
        if y is not None:
            raise ValueError(f"y_{part} was given without x_{part}; pass both, or neither.")
        return train.new_empty((0, *train.shape[1:])), None
    x, y = read_dataset(x, y, f"x_{part}")
    examples = as_examples(x, f"x_{part}", event_shape=train.shape[1:], allow_empty=True, allow_missing=True)
    if examples.shape[1:] != train.shape[1:] or examples.dtype != train.dtype:
        raise ValueError(
            f"x_{part} has examples of shape {tuple(examples.shape[1:])} and dtype {examples.dtype}, x has "
            f"{tuple(train.shape[1:])} and {train.dtype}; both must be alike, in the same units."
        )
    return examples, y


def read_dataset(x: Any, y: Any, name: str) -> tuple[Any, Any]:
    """Return the examples and labels of a PyTorch ``Dataset`` or ``DataLoader``, and other arguments unchanged.

    Items are read once, in order, and a loader's batches are ignored. An item is an example, or a pair of example and
    label; labels that are given as ``y`` take precedence.

    Raises:
        TypeError: If the data set has no length, or its items are something else.
    """
    dataset: Any = x.dataset if isinstance(x, DataLoader) else x
    if not isinstance(dataset, Dataset):
        return x, y
    kind = type(dataset).__name__
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError(f"{name} is a {kind} without a length; read its examples into an array first.")
    items = [dataset[index] for index in range(len(dataset))]
    pairs = [item if isinstance(item, (tuple, list)) else (item,) for item in items]
    if not pairs or {len(pair) for pair in pairs} - {1, 2} or len({len(pair) for pair in pairs}) > 1:
        raise TypeError(f"The items of {name}, a {kind}, must be examples x or pairs (x, y); make arrays of it.")
    examples = [np.asarray(pair[0]) for pair in pairs]
    if len(pairs[0]) == 2 and y is None:
        y = [pair[1].item() if hasattr(pair[1], "item") else pair[1] for pair in pairs]
    return examples, y
