"""Data sets by name: in a folder, downloaded, or in scikit-learn (``digits``); names of classes of other data sets."""

from __future__ import annotations

import http.client
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Subset

from pyro_ssvae._arguments import as_path
from pyro_ssvae._arrays import as_images
from pyro_ssvae._io import one_line, suggest_conversion, suggest_names
from pyro_ssvae.data.readers import read_idx, read_npz
from pyro_ssvae.data.sources import Source, select_last
from pyro_ssvae.errors import DataUnavailableError

DATASET_NAMES = ("mnist", "fashion_mnist", "cifar10", "digits")
_STALL_SECONDS = 10.0  # without a byte from a server
_IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
_DIGITS_TEST = 450
_DIGITS_VALIDATION = 147

Arrays = dict[str, NDArray[Any]]


class _Files(NamedTuple):
    """Where a data set's files are searched for, and what they must hold."""

    class_name: str  # in torchvision.datasets
    subfolder: str  # of the unpacked files, below torchvision's root
    folders: tuple[str, ...]  # that may hold them
    event_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    num_validation: int
    first: str = "train-images-idx3-ubyte (or .gz) and its three companions"


_DIGITS = tuple("0123456789")
_FASHION = tuple("T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(","))
_FASHION_FOLDERS = ("FashionMNIST", "fashion_mnist", "fashion-mnist", "fashionmnist")
_CIFAR10 = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
_BATCHES = "cifar-10-batches-py"
_FILES = {
    "mnist": _Files("MNIST", "MNIST/raw", ("MNIST", "mnist"), (1, 28, 28), _DIGITS, 10_000),
    "fashion_mnist": _Files("FashionMNIST", "FashionMNIST/raw", _FASHION_FOLDERS, (1, 28, 28), _FASHION, 10_000),
    "cifar10": _Files("CIFAR10", _BATCHES, (_BATCHES,), (3, 32, 32), _CIFAR10, 5_000, "data_batch_1 and others"),
}


def load_named(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    num_validation: int | None = None,
    seed: int = 0,
    allow_download: bool = True,
) -> Source:
    """Return a data set by name, as ``SemiSupervisedData.from_name`` says; only ``digits`` uses the seed."""
    data_dir = None if data_dir is None else as_path(data_dir, "data_dir")
    if name not in DATASET_NAMES:
        raise ValueError(
            f"There is no data set named {name!r}; known: {', '.join(DATASET_NAMES)}. For your own files use FILE.npz, "
            "a folder of images or, in Python, SemiSupervisedData.from_arrays."
            f"{suggest_names(Path(name), DATASET_NAMES)}{suggest_conversion(Path(name))}"
        )
    if name == "digits":
        return _load_digits(num_validation, seed)
    files = _FILES[name]
    arrays = _load_files(name, files, get_data_folder(data_dir), allow_download)
    indices = np.arange(len(arrays["x_train"]))
    num_validation = files.num_validation if num_validation is None else num_validation
    return Source(
        arrays["x_train"],
        arrays["y_train"],
        validation=select_last(indices, num_validation, len(indices)),
        name=name,
        x_test=arrays["x_test"],
        y_test=arrays["y_test"],
        num_classes=10,
        class_names=files.class_names,
        scale=255.0,
    )


def get_data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of data sets: as given, else ``PYRO_SSVAE_DATA``, else ``~/.cache/pyro_ssvae``."""
    given = os.environ.get("PYRO_SSVAE_DATA") or "~/.cache/pyro_ssvae" if data_dir is None else data_dir
    root = as_path(given, "data_dir").absolute()
    if root.exists() and not root.is_dir():
        raise ValueError(
            f"data_dir={root} is a file; give the folder that holds the data sets (an .npz file is read by "
            "SemiSupervisedData.from_npz)."
        )
    return root


def find_classes(x: Any, given: Any, y: Any, num_classes: int | None) -> list[str] | None:
    """Return the names of classes in the attribute ``classes`` of a data set, as those of torchvision have it.

    They are not taken where they do not fit: labels ``y`` that were ``given`` beside the data set ``x`` or that are no
    indices of names, or another number of classes.
    """
    dataset = x.dataset if isinstance(x, DataLoader) else x
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None) if isinstance(dataset, Dataset) else None
    changed = given is not None or getattr(dataset, "target_transform", None) is not None
    if changed or y is None or not isinstance(names, (list, tuple)) or num_classes not in (None, len(names)):
        return None
    are_names = all(isinstance(name, str) for name in names) and len({*names}) == len(names)
    return list(names) if are_names and all(type(k) is int and -1 <= k < len(names) for k in y) else None


def _load_files(name: str, files: _Files, root: Path, allow_download: bool) -> Arrays:
    problems: list[str] = []
    for folder in _find_candidates(name, files, root):
        try:
            if (arrays := _read_arrays(name, folder, files)) is not None:
                return arrays
        except (OSError, RuntimeError, ValueError) as error:
            problems.append(one_line(error))
    if allow_download:
        try:
            if (arrays := _read_arrays(name, _download(files, root), files)) is not None:
                return arrays
        except (OSError, RuntimeError, ValueError) as error:
            problems.append(f"the download failed ({one_line(error)})")
    else:
        problems.append("downloading was switched off")
    raise DataUnavailableError(
        f"{name} is not available: looked for {files.first} in {files.subfolder}, or {name}.npz, in {root} and "
        f"one folder deeper; {'; '.join(problems)}. Name a folder that holds the files by --data-dir DIR (data_dir=) "
        "or the environment variable PYRO_SSVAE_DATA; the data set digits needs no download."
    )


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
            key: next(filter(Path.is_file, (path / stem, path / f"{stem}.gz")), None)
            for key, stem in _IDX_FILES.items()
        }
        arrays = {key: read_idx(file) for key, file in found.items() if file is not None}
        if len(arrays) < len(found):
            return None
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
    rest = np.sort(rest)
    number = _DIGITS_VALIDATION if num_validation is None else num_validation
    if number > (largest := len(rest) - len(_DIGITS)):
        raise ValueError(
            f"num_validation={number} examples cannot be held out of {len(rest)} training examples of digits; at most "
            f"{largest}."
        )
    validation = np.arange(0)
    if number:
        strata = y[rest] if number >= len(_DIGITS) else None  # stratifying needs an example of every class
        _, validation = train_test_split(rest, test_size=number, stratify=strata, random_state=seed)
    return Source(
        x,
        y,
        validation=np.sort(validation),
        name="digits",
        test=np.sort(test),
        num_classes=10,
        class_names=_DIGITS,
        scale=16.0,
    )


def _download(files: _Files, root: Path) -> Path:
    """Download a data set through torchvision, and return its folder.

    It is downloaded to a temporary folder, where torchvision checks MD5 sums, and only then moved below ``root``: an
    interrupted download leaves nothing that a later run could take for data.
    """
    import torchvision.datasets

    dataset = getattr(torchvision.datasets, files.class_name)
    root.mkdir(parents=True, exist_ok=True)
    target = root / files.subfolder
    before = socket.getdefaulttimeout()
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=root) as partial:
        try:
            socket.setdefaulttimeout(_STALL_SECONDS)  # torchvision sets none, and would wait forever
            dataset(partial, train=False, download=True)
        except http.client.HTTPException as error:
            raise OSError(f"the connection broke off: {error!r}") from error
        finally:
            socket.setdefaulttimeout(before)
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted((Path(partial) / files.subfolder).iterdir()):
            if file.suffix != ".gz":
                os.replace(file, target / file.name)
    return target
