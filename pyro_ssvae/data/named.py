"""Data sets by name: found in a folder, otherwise downloaded; ``digits`` comes with scikit-learn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_ssvae._arguments import as_bool, as_count, as_path
from pyro_ssvae._arrays import as_images
from pyro_ssvae._io import suggest_names
from pyro_ssvae.data.download import download
from pyro_ssvae.data.readers import read_idx, read_npz
from pyro_ssvae.data.sources import Source
from pyro_ssvae.data.splits import select_last
from pyro_ssvae.errors import DataUnavailableError

__all__ = ["DATASET_NAMES", "get_data_folder", "load_named"]

DATASET_NAMES = ("mnist", "fashion_mnist", "cifar10", "digits")
_DIGITS = tuple("0123456789")
_IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
_IDX_DESCRIPTION = "train-images-idx3-ubyte (or .gz) and its three companions in "
_DIGITS_TEST = 450
_DIGITS_VALIDATION = 147

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class _Files:
    """Where a data set's files are searched for, and what they must hold."""

    class_name: str  # in torchvision.datasets
    folders: tuple[str, ...]  # torchvision's own first
    subfolder: str  # of the unpacked files, below torchvision's root
    event_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    num_validation: int
    description: str


_FASHION = tuple("T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(","))
_CIFAR10 = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
_FILES = {
    "mnist": _Files(
        "MNIST", ("MNIST", "mnist"), "MNIST/raw", (1, 28, 28), _DIGITS, 10_000, f"{_IDX_DESCRIPTION}MNIST/raw"
    ),
    "fashion_mnist": _Files(
        class_name="FashionMNIST",
        folders=("FashionMNIST", "fashion_mnist", "fashion-mnist", "fashionmnist"),
        subfolder="FashionMNIST/raw",
        event_shape=(1, 28, 28),
        class_names=_FASHION,
        num_validation=10_000,
        description=f"{_IDX_DESCRIPTION}FashionMNIST/raw",
    ),
    "cifar10": _Files(
        class_name="CIFAR10",
        folders=("cifar-10-batches-py",),
        subfolder="cifar-10-batches-py",
        event_shape=(3, 32, 32),
        class_names=_CIFAR10,
        num_validation=5_000,
        description="the folder cifar-10-batches-py",
    ),
}


def load_named(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    num_validation: int | None = None,
    seed: int = 0,
    allow_download: bool = True,
) -> Source:
    """Return a data set by name; see :meth:`~pyro_ssvae.SemiSupervisedData.from_name`.

    Only ``digits`` uses the seed: it draws stratified test and validation examples.
    """
    allow_download = as_bool(allow_download, "download")
    if not isinstance(name, str):
        raise TypeError(f"name={name!r} is of type {type(name).__name__}; use one of {', '.join(DATASET_NAMES)}.")
    data_dir = None if data_dir is None else as_path(data_dir, "data_dir")
    if name not in DATASET_NAMES:
        raise ValueError(
            f"There is no data set named {name!r}; known: {', '.join(DATASET_NAMES)}. For your own files use FILE.npz, "
            "a folder of images or, in Python, SemiSupervisedData.from_arrays."
            f"{suggest_names(Path(name), DATASET_NAMES)}"
        )
    if name == "digits":
        return _load_digits(num_validation, seed)
    files = _FILES[name]
    arrays = _load_files(name, files, get_data_folder(data_dir), allow_download)
    examples = (arrays["x_train"], arrays["y_train"], arrays["x_test"], arrays["y_test"])
    indices = np.arange(len(arrays["x_train"]))
    num_validation = files.num_validation if num_validation is None else num_validation
    return Source(
        *examples,
        ids=indices,
        validation=select_last(indices, num_validation, len(indices)),
        name=name,
        num_classes=10,
        class_names=files.class_names,
        scale=255.0,
    )


def get_data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of data sets: as given, else ``PYRO_SSVAE_DATA``, else ``~/.cache/pyro_ssvae``.

    Raises:
        ValueError: If it is a file.
    """
    given = data_dir or os.environ.get("PYRO_SSVAE_DATA") or "~/.cache/pyro_ssvae"
    root = as_path(given, "data_dir").absolute()
    if root.exists() and not root.is_dir():
        raise ValueError(
            f"data_dir={root} is a file; give the folder that holds the data sets (an .npz file is read by "
            "SemiSupervisedData.from_npz)."
        )
    return root


def _load_files(name: str, files: _Files, root: Path, allow_download: bool) -> Arrays:
    problems: list[str] = []
    for folder in _find_candidates(name, files, root):
        try:
            if (arrays := _read_arrays(name, folder, files)) is not None:
                return arrays
        except (OSError, RuntimeError, ValueError) as error:
            problems.append(_to_one_line(error))
    if not allow_download:
        problems.append("downloading was switched off")
    else:
        try:
            folder = download(files.class_name, files.subfolder, root)
            if (arrays := _read_arrays(name, folder, files)) is not None:
                return arrays
            problems.append(f"the download left no such files in {folder}")
        except (OSError, RuntimeError, ValueError) as error:
            problems.append(f"the download failed ({_to_one_line(error)})")
    raise DataUnavailableError(
        f"{name} is not available: looked for {files.description}, or {name}.npz, in {root} and one folder deeper; "
        f"{'; '.join(problems)}. Name a folder that holds the files by --data-dir DIR (data_dir=) or the environment "
        "variable PYRO_SSVAE_DATA; the data set digits needs no download."
    )


def _to_one_line(error: BaseException) -> str:
    """Return an error's text on one line; torchvision's errors have several."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def _find_candidates(name: str, files: _Files, root: Path) -> Iterator[Path]:
    """Yield the existing npz files and folders that may hold a data set.

    MNIST and Fashion-MNIST have the same file names, so a folder must have the data set's name.
    """
    try:
        bases = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    except OSError:  # no such folder, or one that may not be listed
        bases = [root]
    yield from (path for base in bases if (path := base / f"{name}.npz").is_file())
    named = [root] if root.name in files.folders else []
    named += [root] if root.name == "raw" and root.parent.name in files.folders else []
    named += [base / folder for base in bases for folder in files.folders]
    for folder in named:
        yield from (path for path in (folder / "raw", folder) if path.is_dir())


def _read_arrays(name: str, path: Path, files: _Files) -> Arrays | None:
    """Return the checked arrays of a file or folder, channels first, labels int64; ``None`` if some are missing."""
    if path.suffix == ".npz":
        arrays = read_npz(path, tuple(_IDX_FILES))
    elif name == "cifar10":
        arrays = _read_cifar10(path)
    else:
        found = {
            key: [file for file in (path / stem, path / f"{stem}.gz") if file.is_file()]
            for key, stem in _IDX_FILES.items()
        }
        if not all(found.values()):
            return None
        arrays = {key: read_idx(paths[0]) for key, paths in found.items()}
    for part in ("train", "test"):
        x, y = as_images(arrays[f"x_{part}"], event_shape=files.event_shape), arrays[f"y_{part}"]
        y = y.reshape(-1) if path.suffix == ".npz" else y
        whole = np.array_equal(y, np.clip(y, 0, 9)) and y.dtype.kind in "iu" and y.ndim == 1
        if x.shape[1:] != files.event_shape or x.dtype != np.uint8 or len(x) != len(y) or not whole:
            raise ValueError(
                f"{path} holds {part} images {x.dtype} {x.shape} with labels {y.dtype} {y.shape}, not uint8 (N, "
                f"{', '.join(map(str, files.event_shape))}) with labels 0 to 9 (N,)"
            )
        arrays |= {f"x_{part}": x, f"y_{part}": y.astype(np.int64)}
    return arrays


def _read_cifar10(folder: Path) -> Arrays:
    """Read torchvision's folder; its class checks every file's MD5 sum before it unpickles it."""
    from torchvision.datasets import CIFAR10

    arrays: Arrays = {}
    for key, train in (("train", True), ("test", False)):
        part = CIFAR10(str(folder.parent), train=train, download=False)
        arrays |= {f"x_{key}": part.data, f"y_{key}": np.asarray(part.targets)}
    return arrays


def _load_digits(num_validation: int | None, seed: int) -> Source:
    """Return scikit-learn's 1,797 digits; test and validation examples are stratified by seed."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x, y = digits.images.astype(np.uint8)[:, None], digits.target.astype(np.int64)
    rest, test = train_test_split(np.arange(len(y)), test_size=_DIGITS_TEST, stratify=y, random_state=seed)
    rest.sort()
    test.sort()
    num_validation = _DIGITS_VALIDATION if num_validation is None else as_count(num_validation, "num_validation")
    largest = len(rest) - len(_DIGITS)
    if num_validation > largest:
        raise ValueError(
            f"num_validation={num_validation} examples cannot be held out of {len(rest)} training examples of digits; "
            f"at most {largest}."
        )
    validation = np.empty(0, dtype=np.int64)
    if num_validation:
        indices = np.arange(len(rest))
        strata = y[rest] if num_validation >= len(_DIGITS) else None  # stratifying needs an example of every class
        _, validation = train_test_split(indices, test_size=num_validation, stratify=strata, random_state=seed)
        validation.sort()
    examples = (x[rest], y[rest], x[test], y[test])
    return Source(
        *examples,
        ids=rest,
        validation=validation,
        name="digits",
        num_classes=10,
        class_names=_DIGITS,
        scale=16.0,
    )
