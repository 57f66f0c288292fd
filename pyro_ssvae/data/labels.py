"""Labels as class indices: from whole numbers or words, with -1 for unlabelled examples."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyro_ssvae._arguments import MAX_CLASSES, as_count
from pyro_ssvae._arrays import as_array, as_labels

__all__ = ["Labels", "encode_labels", "encode_targets", "select_known", "warn_about_labels"]

_UNLABELLED = ("", "-1", "-1.0", "nan", "None", "<NA>", "NaT")

_ENOUGH = 3  # labels of a class, beside which a class with one label is conspicuous

Names = tuple[str, ...]


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

    Args:
        given: Labels by the names of the caller's arguments; ``None`` for unlabelled examples.
        sizes: Numbers of examples.
        num_classes: K; if ``None``, as many as names, one more than the largest label, or no classes.
        class_names: K names; if ``None``, the words or numbers found.

    Raises:
        TypeError: If labels are neither numbers nor words, or another argument has the wrong type.
        ValueError: If shapes disagree, or a label is no class.
    """
    names = None if class_names is None else _as_names(class_names)
    if num_classes is not None and as_count(num_classes, "num_classes", least=1) > MAX_CLASSES:
        raise ValueError(f"num_classes={num_classes} is too large; at most {MAX_CLASSES}.")
    arrays = {
        name: np.full(size, -1) if values is None else _read(values, name)
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
    _check_largest(largest, num_classes or 1)
    names = tuple(map(str, range(num_classes or 0))) if names is None else names
    if len(names) != (num_classes or 0):
        raise ValueError(f"class_names holds {len(names)} names for {num_classes} classes; give one for each.")
    return Labels(y, num_classes, names)


def warn_about_labels(y: Tensor, class_names: Names, given: Tensor) -> None:
    """Warn if no training example, or none of a class, has a label, or if labels look mistyped.

    Args:
        y: Labels ``(N,)`` that training sees, -1 where unknown.
        class_names: Names of the classes.
        given: Labels ``(M,)`` before some were hidden or held out.
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
        shown = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        messages.append(
            f"No training example is labelled as class {shown}: nothing ties these classes to their names. Label an "
            "example of each, or use balanced=True."
        )
    for message in messages:
        warnings.warn(message, UserWarning, stacklevel=4)


def _find_mistyped(y: Tensor, class_names: Names) -> list[str]:
    """Return what to say of a class with one label among classes with more, and of names that are almost equal."""
    counts = torch.bincount(y[y >= 0], minlength=len(class_names)).tolist()
    single = tuple(name for name, count in zip(class_names, counts, strict=True) if count == 1)
    alike: dict[str, list[str]] = {}
    for name in class_names:
        alike.setdefault("".join(name.split()).casefold(), []).append(repr(name))
    found = [
        f"The classes {' and '.join(names)} differ only by case or white space; if they are one, give it one name."
        for names in alike.values()
        if len(names) > 1
    ]
    if single and max(counts) >= _ENOUGH:
        found.append(f"Only one example has the label {_join(single)}: is it mistyped?")
    return found


def encode_targets(
    y: ArrayLike, classes: ArrayLike | None, num_classes: int | None
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return labels ``(N,)`` for an estimator as indices of classes, -1 where unknown, and the classes, sorted.

    Args:
        y: Labels as in :func:`encode_labels`; numbers may leave gaps.
        classes: All classes, if some may have no label.
        num_classes: Number of clusters, if there is no label at all.

    Raises:
        TypeError: If labels are neither numbers nor words.
        ValueError: If labels are not classes, are missing from ``classes``, or name fewer than two classes.
    """
    known, labelled = select_known(y)
    if classes is None:
        found = np.unique(known) if len(known) or num_classes is None else np.arange(num_classes)
    else:
        found = np.unique(np.asarray(classes))
        if missing := sorted(set(known.tolist()) - set(found.tolist()), key=str):
            raise ValueError(f"y holds labels that classes={found.tolist()} lacks: {missing[:5]}.")
    if len(found) < 2:
        raise ValueError(
            f"At least two classes are needed; y has {len(found)} class(es) among {len(known)} labelled examples (-1, "
            "None, NaN or '' marks an unlabelled one). Name all classes by classes=[...], or cluster without labels by "
            "n_classes=K."
        )
    codes = np.full(len(labelled), -1)
    codes[labelled] = np.searchsorted(found, known)
    return codes, found


def select_known(y: ArrayLike) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the labels of labelled examples, whole numbers or words, and a mask ``(N,)`` of these examples.

    Raises:
        TypeError: If labels are neither numbers nor words.
        ValueError: If labels are not classes.
    """
    from sklearn.utils import column_or_1d
    from sklearn.utils.multiclass import check_classification_targets

    labels = column_or_1d(_read(y, "y"), warn=True)
    if labels.dtype.kind not in "biufU":
        raise TypeError(f"y has dtype {labels.dtype}; labels are whole numbers or words.")
    labelled = labels != "" if labels.dtype.kind == "U" else (labels == labels) & (labels != -1)
    known = labels[labelled]
    if len(known):
        check_classification_targets(known)
    return known.astype(np.int64) if known.dtype.kind == "f" else known, labelled  # whole, by the check


def _check_largest(largest: dict[str, int], num_classes: int) -> None:
    for name, label in largest.items():
        if label >= num_classes:
            raise ValueError(
                f"{name} holds label {label}, but num_classes={num_classes} allows 0 to {num_classes - 1}. Raise "
                "num_classes or encode the classes as 0, 1, 2, ..."
            )


def _as_names(class_names: Any) -> Names:
    if isinstance(class_names, str) or not hasattr(class_names, "__iter__"):
        raise TypeError(f"class_names={class_names!r} must be a list of names.")
    names = tuple(map(str, class_names))
    if len(set(names)) < len(names):
        raise ValueError(f"class_names={names!r} must differ from each other.")
    return names


def _read(values: Any, name: str) -> NDArray[Any]:
    """Return labels as an array of numbers, -1 or NaN where unknown, or of strings, ``""`` where unknown."""
    if isinstance(values, np.ma.MaskedArray):
        values = np.ma.filled(values.astype(object), "")
    array = as_array(values, name)
    if array.dtype.kind not in "OSUT":  # T: strings of variable length
        return array
    if array.dtype.kind != "O":
        return _as_words(array)
    decode = np.frompyfunc(lambda label: label.decode("utf-8", "replace") if isinstance(label, bytes) else label, 1, 1)
    array = np.asarray(decode(array), dtype=object)
    allowed = (str, Real, np.bool_)
    if wrong := [label for label in array.flat if not isinstance(label, allowed) and str(label) not in _UNLABELLED]:
        raise TypeError(
            f"{name} holds a label of type {type(wrong[0]).__name__}; labels are whole numbers or words, and None or "
            "-1 marks an unlabelled example."
        )
    words = _as_words(array)
    known = array[words != ""]
    if any(isinstance(label, str) for label in known):
        return words
    numbers = np.full(array.shape, -1.0)
    numbers[words != ""] = known.astype(float)
    return numbers


def _as_words(array: NDArray[Any]) -> NDArray[Any]:
    """Return labels as strings, ``""`` where unknown."""
    words = np.char.decode(array, "utf-8", "replace") if array.dtype.kind == "S" else array.astype(str)
    return np.where(np.isin(np.char.strip(words), _UNLABELLED), "", words)


def _encode_words(
    arrays: dict[str, NDArray[Any]], names: Names | None, num_classes: int | None
) -> tuple[dict[str, NDArray[Any]], Names]:
    """Return indices into the names; these are the sorted words of the first array that has any, if not given."""
    words = {name: _as_words(array) for name, array in arrays.items()}
    if names is None:
        found = (tuple(sorted({*np.unique(w).tolist()} - {""})) for w in words.values())
        names = next(filter(None, found), ())
        if len(names) == 1 and num_classes is None:
            raise ValueError(_describe_one_class(repr(names[0])))
    index = {"": -1} | {name: number for number, name in enumerate(names)}
    encoded = {}
    for name, array in words.items():
        unique, inverse = np.unique(array, return_inverse=True)
        if unknown := [word for word in unique.tolist() if word not in index]:
            raise ValueError(
                f"{name} holds the class {unknown[0]!r}, which is none of {_join(names)}. Leave those examples out, or "
                "give class_names with all classes."
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
        raise ValueError(_describe_one_class(names[0]))
    if found == list(range(len(found))):
        return y, names
    warnings.warn(
        f"The classes {_join(names)} are numbered from 0 in this order, and data.class_names has their names. Pass "
        f"num_classes={found[-1] + 1} to keep the numbers.",
        UserWarning,
        stacklevel=4,
    )
    numbers = torch.tensor(found)
    return {name: torch.where(x < 0, x, torch.searchsorted(numbers, x)) for name, x in y.items()}, names


def _describe_one_class(name: str) -> str:
    return (
        f"The labels hold class {name} alone, which does not determine the number of classes; pass num_classes=..., or "
        "class_names with all of them."
    )


def _join(names: Names) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
