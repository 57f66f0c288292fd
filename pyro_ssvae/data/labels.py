"""Labels: as class indices, -1 where unknown, and which examples keep theirs."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_ssvae._arguments import as_count, as_path, as_seed
from pyro_ssvae._arrays import as_array, as_labels, as_text, to_numpy
from pyro_ssvae._io import atomic_open
from pyro_ssvae._warnings import warn
from pyro_ssvae.data.readers import read_npz

UNLABELLED = ("", "-1", "-1.0", "nan", "<NA>", "NaT")
_ENOUGH = 3  # labels of a class, beside which a class with one label is conspicuous

Names = tuple[str, ...]
Indices = NDArray[np.int64]


class Labels(NamedTuple):
    """Class indices of several sets, ``(N,)`` each, int64, -1 where unknown; the number of classes and their names."""

    y: dict[str, Tensor]
    num_classes: int | None
    class_names: Names


def encode_labels(
    given: Mapping[str, Any],
    sizes: Sequence[int],
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
) -> Labels:
    """Encode labels, of which the first are those for training, as ``SemiSupervisedData.from_arrays`` documents it.

    ``given`` holds labels by the names of the caller's arguments, ``None`` for unlabelled examples, and ``sizes`` the
    numbers of examples.
    """
    names = None if class_names is None else _as_names(class_names)
    arrays = {
        name: np.full(size, -1) if values is None else read_labels(values, name)
        for (name, values), size in zip(given.items(), sizes, strict=True)
    }
    if any(array.dtype.kind == "U" for array in arrays.values()):
        arrays, names = _encode_words(arrays, names, num_classes)
    sized = zip(arrays.items(), sizes, strict=True)
    y = {name: as_labels(array, name, size, allow_unlabelled=True) for (name, array), size in sized}
    if num_classes is None and names is None:
        y, names = _number_classes(y)
    largest = {name: int(labels.max()) for name, labels in y.items() if len(labels)}
    if num_classes is None:
        num_classes = max(len(names or ()), 1 + max(largest.values(), default=-1)) or None
    for name, label in largest.items():
        if label >= (num_classes or 1):
            raise ValueError(
                f"{name} holds label {label}, but num_classes={num_classes} allows 0 to {(num_classes or 1) - 1}. "
                "Raise num_classes or encode the classes as 0, 1, 2, ..."
            )
    names = tuple(map(str, range(num_classes or 0))) if names is None else names
    if len(names) != (num_classes or 0):
        raise ValueError(
            f"num_classes={num_classes}, and the labels hold {len(names)} classes ({_join(names)}); label an example "
            "of each, or leave num_classes out."
            if class_names is None
            else f"class_names holds {len(names)} names for {num_classes} classes; give one for each."
        )
    return Labels(y, num_classes, names)


def warn_about_labels(y: Tensor, class_names: Names, given: Tensor) -> None:
    """Warn if no training example, or none of a class, has a label, or if labels look mistyped.

    ``y``, ``(N,)``, are the labels that training sees, and ``given`` those before some were hidden or held out.
    """
    counts = torch.bincount(y[y >= 0], minlength=len(class_names))
    missing = [name for name, n in zip(class_names, counts.tolist(), strict=True) if n == 0]
    messages = _find_mistyped(given, class_names)
    if not counts.any():
        messages.append(
            "No training example has a label: q(y|x) is then a clustering, its classes in no particular order. Labels "
            "are whole numbers from 0 in y."
        )
    elif missing:
        messages.append(
            f"No training example is labelled as class {_join(tuple(missing))}: nothing ties these classes to their "
            "names. Label an example of each, or use balanced=True."
        )
    for message in messages:
        warn(message)


def _find_mistyped(y: Tensor, class_names: Names) -> list[str]:
    """Return what to say of a class with one label among classes with more, and of names that are almost equal."""
    counts = torch.bincount(y[y >= 0], minlength=len(class_names)).tolist()
    single = tuple(name for name, count in zip(class_names, counts, strict=True) if count == 1)
    alike: dict[str, list[str]] = {}
    for name in class_names:
        alike.setdefault("".join(unicodedata.normalize("NFKC", name).split()).casefold(), []).append(repr(name))
    found = [
        f"The classes {' and '.join(names)} differ only by case, spaces or coding; if they are one, give it one name."
        for names in alike.values()
        if len(names) > 1
    ]
    found += [
        f"{name!r} is a class; if it marks unlabelled examples, give None or an empty text instead."
        for name in class_names
        if name.casefold() in ("none", "null")
    ]
    if single and max(counts) >= _ENOUGH:
        found.append(f"Only one example has the label {_join(single)}: is it mistyped?")
    return found


def _as_names(class_names: Any) -> Names:
    if isinstance(class_names, str) or not hasattr(class_names, "__iter__"):
        raise TypeError(f"class_names={class_names!r} must be a list of names.")
    names = tuple(map(str, class_names))
    if len(set(names)) < len(names):
        raise ValueError(f"class_names={names!r} must differ from each other.")
    return names


def read_labels(values: Any, name: str) -> NDArray[Any]:
    """Return labels as an array of numbers, -1 or NaN where unknown, or of strings, ``""`` where unknown."""
    if isinstance(values, (str, os.PathLike)):
        raise TypeError(
            f"{name}={str(values)!r} is one text, and one label for each example is needed. Read labels first, "
            "y = numpy.load('y.npy'), say; from_table(table, label='COLUMN') takes them from a table."
        )
    if isinstance(values, np.ma.MaskedArray):
        values = np.ma.filled(values.astype(object), "")
    dtype = getattr(values, "dtype", None)
    if getattr(dtype, "kind", None) in ("i", "u") and not isinstance(dtype, np.dtype):
        values = values.astype(object)  # integers of pandas, which become real numbers where some are missing
    array = as_array(values, name)
    if array.dtype.kind not in "OSUT":
        return array
    if array.dtype.kind == "T":  # strings of variable length, some of them missing
        array = array.astype(object)
    if array.dtype.kind != "O":
        return _as_words(array)
    array = np.asarray(np.frompyfunc(_decode, 1, 1)(array), dtype=object)
    allowed = (str, Real, np.bool_)
    if wrong := [label for label in array.flat if not isinstance(label, allowed) and str(label) not in UNLABELLED]:
        raise TypeError(
            f"{name} holds a label of type {type(wrong[0]).__name__}; labels are whole numbers or words, and None or "
            "-1 marks an unlabelled example."
        )
    words = _as_words(array)
    known = array[words != ""]
    if any(isinstance(label, str) for label in known):
        return words
    # As real numbers, integers beyond 2^53 would not be told apart; those of more than 64 bits are refused later.
    whole = all(isinstance(label, Integral) and not isinstance(label, bool) for label in known)
    whole = whole and all(abs(int(label)) < 2**63 for label in known)
    numbers = np.full(array.shape, -1, np.int64 if whole else np.float64)
    numbers[words != ""] = known.astype(numbers.dtype)
    return numbers


def _decode(label: Any) -> Any:
    if isinstance(label, bytes):
        return label.decode("utf-8", "replace")
    return "" if label is None else label  # the word None may be a class


def _as_words(array: NDArray[Any]) -> NDArray[Any]:
    """Return labels as strings, ``""`` where unknown."""
    if array.dtype.kind in "Of":
        array = np.frompyfunc(as_text, 1, 1)(array)
    words = np.char.decode(array, "utf-8", "replace") if array.dtype.kind == "S" else array.astype(str)
    return np.where(np.isin(np.char.strip(words), UNLABELLED), "", words)


def _encode_words(
    arrays: dict[str, NDArray[Any]], names: Names | None, num_classes: int | None
) -> tuple[dict[str, NDArray[Any]], Names]:
    """Return indices into the names; these are the sorted words of the first array that has any, if not given."""
    words = {name: _as_words(array) for name, array in arrays.items()}
    if names is None:
        found = (tuple(sorted({*np.unique(w).tolist()} - {""})) for w in words.values())
        names = next(filter(None, found), ())
        if len(names) == 1 and num_classes is None:
            raise ValueError(f"The labels hold class {names[0]!r} alone; label an example of another class.")
    index = {"": -1} | {name: number for number, name in enumerate(names)}
    encoded = {}
    for name, array in words.items():
        unique, inverse = np.unique(array, return_inverse=True)
        if unknown := [word for word in unique.tolist() if word not in index]:
            raise ValueError(
                f"{name} holds the class {unknown[0]!r}, which is none of {_join(names)}. Leave those examples out, "
                "or, before training, name all classes by class_names."
            )
        encoded[name] = np.array([index[word] for word in unique.tolist()], dtype=int)[inverse.reshape(array.shape)]
    return encoded, names


def _number_classes(y: dict[str, Tensor]) -> tuple[dict[str, Tensor], Names]:
    """Return labels without gaps between the classes, and the classes' former numbers as names."""
    found = sorted({label for labels in y.values() for label in labels.unique().tolist()} - {-1})
    names = tuple(map(str, found))
    if found == [1] and any((labels < 0).any() for labels in y.values()):
        raise ValueError(
            "The labels are -1 and 1, and -1 marks an unlabelled example. If these are two classes, pass y > 0; if -1 "
            "means unlabelled, pass num_classes=..."
        )
    if len(found) == 1:
        raise ValueError(
            f"The labels hold class {names[0]} alone, which does not determine the number of classes; label an example "
            "of another class, or pass num_classes=..., or class_names with all of them."
        )
    if found == list(range(len(found))):
        return y, names
    warn(
        f"The classes {_join(names)} are numbered from 0 in this order, and data.class_names has their names. Pass "
        f"num_classes={found[-1] + 1} to keep the numbers."
    )
    numbers = torch.tensor(found)
    return {name: torch.where(x < 0, x, torch.searchsorted(numbers, x)) for name, x in y.items()}, names


def _join(names: Names) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


@dataclass(frozen=True, eq=False)
class LabelSplit:
    """The examples that keep their label and those for validation, as indices into the original training file.

    ``labelled`` ``(L,)`` and ``validation`` ``(V,)`` become sorted and read-only; ``seed`` is that of the draw, and
    ``balanced`` whether every class got the same number of labels. Indices that are no integers raise ``TypeError``,
    negative or repeated ones, and those in both, ``ValueError``.
    """

    labelled: Indices
    validation: Indices
    seed: int
    balanced: bool

    def __post_init__(self) -> None:
        """Check and sort the indices."""
        for name in ("labelled", "validation"):
            object.__setattr__(self, name, _as_indices(getattr(self, name), name))
        object.__setattr__(self, "seed", as_seed(self.seed))
        object.__setattr__(self, "balanced", bool(self.balanced))
        if len(both := np.intersect1d(self.labelled, self.validation)):
            raise ValueError(
                f"Example {both[0]} is both labelled and held out for validation; remove it from labelled or from "
                "validation."
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LabelSplit):
            return NotImplemented
        return (self.seed, self.balanced) == (other.seed, other.balanced) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in ("labelled", "validation")
        )

    def __repr__(self) -> str:
        return (
            f"LabelSplit({len(self.labelled)} labelled, {len(self.validation)} validation, "
            f"seed={self.seed}, balanced={self.balanced})"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the split as an npz file, atomically, in a folder that exists; no suffix is added to the path."""
        seed, balanced = np.int64(self.seed), np.bool_(self.balanced)
        with atomic_open(as_path(path, "path")) as file:
            np.savez(file, labelled=self.labelled, validation=self.validation, seed=seed, balanced=balanced)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LabelSplit:
        """Read a split that :meth:`save` wrote; ``FileNotFoundError`` or ``ValueError`` if there is none."""
        arrays = read_npz(path, ("labelled", "validation", "seed", "balanced"))
        seed, balanced = arrays["seed"], arrays["balanced"]
        if seed.shape != () or balanced.shape != ():
            raise ValueError(f"{path} does not hold a label split: seed and balanced are no scalars.")
        return cls(arrays["labelled"], arrays["validation"], seed=seed.item(), balanced=balanced.item())


def _as_indices(values: Any, name: str) -> Indices:
    array = to_numpy(values, name)
    if array.size == 0:
        array = np.empty(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(
            f"{name} has shape {array.shape} and dtype {array.dtype}; indices are needed, integers with shape (L,)."
        )
    indices = np.sort(array.astype(np.int64))
    if len(indices) and (indices[0] < 0 or len(np.unique(indices)) < len(indices)):
        raise ValueError(f"{name} holds negative or repeated indices; give each example once, counted from 0.")
    indices.setflags(write=False)
    return indices


def draw_label_split(
    y: Indices, num_labels: int | Literal["all"], num_classes: int, seed: int = 0, balanced: bool = True
) -> Indices:
    """Return the examples that keep their label, ascending indices into labels ``(N,)``, -1 where unknown.

    With ``balanced``, every class gives ``num_labels // num_classes`` examples: the first of a random permutation of
    its examples, class after class with one generator, ``numpy.random.default_rng(seed)``. The remainder is given, one
    each, to classes that are drawn at random afterwards among those with an example left. Otherwise the examples are
    the first of a random permutation of all of them, and a class may get no label at all. With ``"all"``, or a larger
    number than have labels, every one that has a label is returned.
    """
    rng = np.random.default_rng(seed)
    known = np.flatnonzero(y >= 0)
    wanted = _as_num_labels(num_labels, len(known))
    if wanted == len(known):
        return known
    if not balanced:
        return np.sort(rng.permutation(known)[:wanted])
    by_class = [rng.permutation(np.flatnonzero(y == c)) for c in range(num_classes)]
    counts = _divide_labels(np.array([len(indices) for indices in by_class]), wanted, rng)
    return np.sort(np.concatenate([indices[:n] for indices, n in zip(by_class, counts, strict=True)]))


def _as_num_labels(num_labels: int | Literal["all"], available: int) -> int:
    """Return how many labels are kept, at most as many as there are."""
    if isinstance(num_labels, str):
        if num_labels != "all":
            raise ValueError(f"num_labels={num_labels!r} must be an integer or 'all'.")
        return available
    wanted = as_count(num_labels, "num_labels")
    if wanted > available:
        warn(f"num_labels={wanted}: only {available} examples have a label, and all of them keep it.")
    return min(wanted, available)


def _divide_labels(sizes: Indices, num_labels: int, rng: np.random.Generator) -> Indices:
    """Return how many labels each class keeps, given the number of its examples."""
    counts = np.full(len(sizes), num_labels // len(sizes))
    remainder = num_labels % len(sizes)
    not_exhausted = np.flatnonzero(sizes > counts)
    if (sizes < counts).any() or remainder > len(not_exhausted):
        smallest = int(sizes.min())
        largest = len(sizes) * smallest + int((sizes > smallest).sum())
        raise ValueError(
            f"num_labels={num_labels} cannot be drawn class-balanced: class {int(sizes.argmin())} has {smallest} "
            f"examples. Largest possible: num_labels={largest}; or use num_labels='all', or balanced=False."
        )
    counts[rng.permutation(not_exhausted)[:remainder]] += 1
    return counts
