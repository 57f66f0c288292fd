"""The user's own examples: npz files, folders of images, and data sets of PyTorch; what is held out of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pyro_ssvae._arguments import as_path, as_scale
from pyro_ssvae._arrays import as_examples, choose_scale, to_numpy
from pyro_ssvae.data.images import read_folder, warn_about_single_folder
from pyro_ssvae.data.labels import Indices, LabelSplit, draw_label_split, encode_labels, warn_about_labels
from pyro_ssvae.data.readers import read_npz
from pyro_ssvae.data.storage import ExampleSource, open_source, sample_rows
from pyro_ssvae.data.tables import read_table, select_columns


class Source(NamedTuple):
    """The examples of a training file, which of them are held out, and those of a test file.

    ``x`` has shape ``(N, *event_shape)``, uint8 or float32: an array, a tensor or an ``ExampleSource``. Its labels
    ``y``, ``(N,)``, int64, are -1 where unknown; ``y`` is ``None`` where no labels were given. ``validation``,
    ``(V,)``, and ``test``, ``(T,)``, are indices into ``x``.
    """

    x: Any
    y: Indices | None
    validation: Indices
    name: str
    test: Indices = np.arange(0)
    x_test: Any = None
    y_test: Any = None
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
        x,
        y_train,
        validation=select_last(usable, 0 if num_validation is None else num_validation, len(x)),
        name=file.stem,
        x_test=x_test,
        y_test=labels.y["y_test"],
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
    on_disk: bool,
) -> Source:
    """Read a folder of images, and draw test and validation examples; see ``SemiSupervisedData.from_folder``."""
    folder = as_path(path, "path")
    if on_disk and on_error != "raise":
        raise ValueError(f"on_error={on_error!r} reads every image first; on_disk=True is with on_error='raise' only.")
    images = read_folder(folder, image_size, classes_in_names=classes_in_names, on_error=on_error, on_disk=on_disk)
    parts = {part: np.flatnonzero(images.parts == part) for part in ("train", "validation", "test")}
    words = {f"{folder.name}/{part}": images.classes[index] for part, index in parts.items()}
    labels = encode_labels(words, [len(index) for index in parts.values()])
    if labels.num_classes is None:
        warn_about_single_folder(folder, images.files)
    y = np.empty(len(images.x), dtype=np.int64)
    for index, known in zip(parts.values(), labels.y.values(), strict=True):
        y[index] = known.numpy()
    numbers = {"test": num_test, "validation": num_validation}
    for part, number in numbers.items():
        if len(parts[part]) and number:
            raise ValueError(f"num_{part}={number}: there is a folder of {part} images already; leave num_{part} out.")
        numbers[part] = 0 if len(parts[part]) else number
    validation, test = draw_held_out(y, parts["train"], numbers["validation"], numbers["test"], seed)
    return Source(
        images.x,
        None if labels.num_classes is None else y,
        validation=np.union1d(parts["validation"], validation),
        name=folder.name,
        test=np.union1d(parts["test"], test),
        num_classes=labels.num_classes,
        class_names=labels.class_names,
        scale=255.0,
    )


def draw_held_out(
    y: Indices, train: Indices, num_validation: int | None, num_test: int | None, seed: int
) -> tuple[Indices, Indices]:
    """Draw validation and test examples, by default a tenth each, and return their indices, ascending.

    They are drawn among the training examples with a label, if there are any, and then stratified by class; one of each
    class stays for training where the numbers allow it.
    """
    pool = train[y[train] >= 0] if (y[train] >= 0).any() else train
    tenth = max(1, len(pool) // 10)
    num_validation = tenth if num_validation is None else num_validation
    num_test = tenth if num_test is None else num_test
    held_out = num_validation + num_test
    if held_out >= len(pool):
        raise ValueError(
            f"num_validation + num_test = {held_out} of {len(pool)} examples leave none to train on; add some, or pass "
            "num_validation=0 and num_test=0."
        )
    order = _stratify(np.random.default_rng(seed).permutation(pool), y)
    return np.sort(order[num_test:held_out]), np.sort(order[:num_test])


def _stratify(order: Indices, y: Indices) -> Indices:
    """Return indices in an order of which every first part is stratified by ``y``; one of each class comes last.

    scikit-learn's splitters refuse classes of one example, and parts smaller than the number of classes.
    """
    _, classes, counts = np.unique(y[order], return_inverse=True, return_counts=True)
    rank = np.empty(len(order), dtype=np.int64)  # of an example in its class
    rank[np.argsort(classes, kind="stable")] = np.concatenate([np.arange(count) for count in counts])
    size = counts[classes]
    return order[np.argsort((rank + 0.5) / size + (rank == size - 1), kind="stable")]


def split_source(source: Source, num_labels: Any, seed: int, balanced: bool) -> dict[str, Any]:
    """Hold examples out, draw the labels that are kept, and return what ``SemiSupervisedData`` holds."""
    validation, test, x = source.validation, source.test, source.x
    held_out = np.union1d(validation, test)
    train = np.setdiff1d(np.arange(len(x)), held_out)
    known = np.full(len(x), -1) if source.y is None else source.y
    y, split = np.full(len(train), -1), None
    if source.y is not None:
        labelled = draw_label_split(known[train], num_labels, source.num_classes or 1, seed, balanced)
        y[labelled] = known[train[labelled]]
        split = LabelSplit(train[labelled], validation, seed, balanced)
        if source.num_classes is not None:
            warn_about_labels(torch.tensor(y), source.class_names, torch.tensor(np.delete(known, test)))
    x_train: Any = x.without(held_out) if isinstance(x, ExampleSource) else torch.as_tensor(x[train])
    x_test, y_test = np.asarray(x[test]), known[test]
    if source.x_test is not None:
        x_test, y_test = np.concatenate([x_test, source.x_test]), np.concatenate([y_test, source.y_test])
    scale = choose_scale(sample_rows(x_train)) if source.scale is None else source.scale
    return {
        "x": x_train,
        "y": torch.tensor(y),
        "x_validation": torch.as_tensor(x[validation]),
        "y_validation": torch.tensor(known[validation]),
        "x_test": torch.from_numpy(x_test),
        "y_test": torch.from_numpy(y_test),
        "scale": as_scale(scale, x_train),
        "split": split,
        "seed": seed,
        "categories": dict(source.categories),
        **{field: getattr(source, field) for field in ("name", "num_classes", "class_names", "feature_names")},
    }


def select_last(indices: Indices, num_validation: int, num_examples: int) -> Indices:
    """Return the last ``num_validation`` of ``indices``, the labelled ones of ``num_examples`` training examples."""
    largest = min(len(indices), num_examples - 1)
    if num_validation > largest:
        raise ValueError(
            f"num_validation={num_validation} examples cannot be held out of {num_examples} training examples, "
            f"{len(indices)} of them with labels; at most {largest}."
        )
    return indices[len(indices) - num_validation :]


def find_names(x: Any) -> tuple[str, ...]:
    """Return the names of the columns of a table, or a source, if it has any that are text, each once."""
    is_table = any(hasattr(x, name) for name in ("iloc", "to_pandas", "var_names"))
    names = tuple(getattr(x, "columns", getattr(x, "var_names", ()))) if is_table else ()
    names = x.names if isinstance(x, ExampleSource) else names
    return names if all(isinstance(name, str) for name in names) and len({*names}) == len(names) else ()


def has_names(x: Any, names: Sequence[str]) -> bool:
    """Return whether something is a table whose columns are taken by the ``names`` that they had in training.

    A DataFrame without names, whose columns pandas counts from 0, is not, unless these numbers are the names.
    """
    if not hasattr(x, "iloc"):
        return hasattr(x, "var_names") or hasattr(x, "to_pandas")
    columns = [*getattr(x, "columns", ())]
    return bool(columns) and (columns != [*range(len(columns))] or {*names} <= {*map(str, columns)})


def as_held_out(x: Any, y: Any, part: str, train: Tensor, names: Sequence[str] = ()) -> tuple[Tensor, Any]:
    """Return validation or test examples, none if they were not given, and their labels as given.

    Columns of a table are taken by their ``names``, if it has any, else in their order.
    """
    if x is None:
        if y is not None:
            raise ValueError(f"y_{part} was given without x_{part}; pass both, or neither.")
        return torch.empty((0, *train.shape[1:]), dtype=train.dtype), None
    x, y = read_dataset(x, y, f"x_{part}", names)
    x = select_columns(read_table(x), names) if names and has_names(x, names) else x
    x = x[:].numpy() if isinstance(x, ExampleSource) else x
    allowed: Any = {"allow_empty": True, "allow_missing": True, "columns": names}
    examples = as_examples(x, f"x_{part}", event_shape=train.shape[1:], **allowed)
    if examples.shape[1:] != train.shape[1:] or examples.dtype != train.dtype:
        raise ValueError(
            f"x_{part} has examples of shape {tuple(examples.shape[1:])} and dtype {examples.dtype}, x has "
            f"{tuple(train.shape[1:])} and {train.dtype}; both must be alike, in the same units."
        )
    return examples, y


def read_dataset(x: Any, y: Any, name: str, names: Sequence[str] = ()) -> tuple[Any, Any]:
    """Return the examples and labels of a PyTorch ``Dataset`` or ``DataLoader``, and other arguments unchanged.

    An item is an example, or a pair of example and label; labels that are given as ``y`` take precedence. Of what stays
    on disk the examples are a source, of the columns ``names`` if they have names. A data set without length, or with
    other items, raises ``TypeError``.
    """
    dataset: Any = x.dataset if isinstance(x, DataLoader) else x
    encode = (lambda table: to_numpy(select_columns(table, names), name)) if names else None
    source = open_source(x, None, encode, names)
    if not isinstance(dataset, Dataset):
        return x if source is None else source, y
    kind = type(dataset).__name__
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError(f"{name} is a {kind} without a length; read its examples into an array first.")
    if source is not None:
        has_labels = y is None and isinstance(dataset[0], (tuple, list)) and len(dataset[0]) == 2
        return source, [_to_python(dataset[index][1]) for index in range(len(dataset))] if has_labels else y
    pairs = [
        item if isinstance(item, (tuple, list)) else (item,) for item in map(dataset.__getitem__, range(len(dataset)))
    ]
    if {len(pair) for pair in pairs} not in ({1}, {2}):
        raise TypeError(f"The items of {name}, a {kind}, must be examples x or pairs (x, y); make arrays of it.")
    if len(pairs[0]) == 2 and y is None:
        y = [_to_python(pair[1]) for pair in pairs]
    return [np.asarray(pair[0]) for pair in pairs], y


def _to_python(label: Any) -> Any:
    return label.item() if hasattr(label, "item") else label
