"""Which examples keep their label: drawn once by a seed, identified by their index in the file, saved with the run."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyro_ssvae._arguments import as_count, as_seed
from pyro_ssvae._arrays import as_labels, to_numpy
from pyro_ssvae._io import atomic_open
from pyro_ssvae.data.readers import read_npz

__all__ = ["Indices", "LabelSplit", "draw_label_split", "draw_labelled", "hide_labels", "select_last"]

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LabelSplit:
    """The examples that keep their label and those for validation, as indices into the original training file.

    Args:
        labelled: Indices of the examples whose labels are used, shape ``(L,)``.
        validation: Indices of the examples held out for validation, shape ``(V,)``.
        seed: Seed of the draw.
        balanced: Whether every class got the same number of labels.

    Raises:
        TypeError: If indices or seed are not integers.
        ValueError: If an index is negative or repeated, or both labelled and held out.

    Example:
        >>> split = LabelSplit([3, 1], [7, 8], seed=0, balanced=True)
        >>> split.labelled
        array([1, 3])
    """

    labelled: Indices
    validation: Indices
    seed: int
    balanced: bool

    def __post_init__(self) -> None:
        """Check the indices, sort them and make them read-only."""
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
        with atomic_open(Path(path)) as file:
            np.savez(file, labelled=self.labelled, validation=self.validation, seed=seed, balanced=balanced)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LabelSplit:
        """Read a split that :meth:`save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it does not hold a split.
        """
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
    y: Any, num_labels: int | Literal["all"], num_classes: int, seed: int = 0, balanced: bool = True
) -> Indices:
    """Draw the examples that keep their label.

    With ``balanced``, every class gives ``num_labels // num_classes`` examples: the first of a random permutation of
    its examples, class after class with one generator, ``numpy.random.default_rng(seed)``. The remainder is given, one
    each, to classes that are drawn at random afterwards among those with an example left. Otherwise the examples are
    the first of a random permutation of all of them, and a class may get no label at all.

    Args:
        y: Labels with shape ``(N,)``; -1 marks examples without one, which are never drawn.
        num_labels: How many examples; with ``"all"``, or more than have labels, every one that has a label.
        num_classes: K.
        seed: Seed of the draw.
        balanced: Whether every class gets the same number of labels.

    Returns:
        Indices into ``y`` in ascending order, with shape ``(num_labels,)``.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If labels or numbers are out of range, or a class has too few examples.

    Example:
        >>> draw_label_split([0, 1, 0, 1, -1], num_labels=2, num_classes=2)
        array([0, 1])
    """
    labels = as_labels(y, "y", len(to_numpy(y, "y")), allow_unlabelled=True).numpy()
    num_classes = as_count(num_classes, "num_classes", least=1)
    if len(labels) and labels.max() >= num_classes:
        raise ValueError(
            f"y holds label {labels.max()}, but num_classes={num_classes} allows 0 to {num_classes - 1}. Raise "
            "num_classes."
        )
    return draw_labelled(labels, num_labels, num_classes, as_seed(seed), balanced)


def draw_labelled(
    labels: Indices, num_labels: int | Literal["all"], num_classes: int, seed: int, balanced: bool
) -> Indices:
    """Draw as :func:`draw_label_split`, from labels, number of classes and seed that have been checked."""
    rng = np.random.default_rng(seed)
    known = np.flatnonzero(labels >= 0)
    wanted = _as_num_labels(num_labels, len(known))
    if wanted == len(known):
        return known
    if not balanced:
        return np.sort(rng.permutation(known)[:wanted])
    by_class = [rng.permutation(np.flatnonzero(labels == c)) for c in range(num_classes)]
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
        warnings.warn(
            f"num_labels={wanted}: only {available} examples have a label, and all of them keep it.", stacklevel=5
        )
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


def hide_labels(y: NDArray[Any], labelled: Indices) -> Indices:
    """Return a copy of labels ``(N,)`` with -1 for every example but those with indices ``labelled``, ``(L,)``."""
    hidden = np.full(len(y), -1, dtype=np.int64)
    hidden[labelled] = y[labelled]
    return hidden


def select_last(indices: Indices, num_validation: int, num_examples: int) -> Indices:
    """Return the last ``num_validation`` of ``indices``, the labelled ones of ``num_examples`` training examples.

    Raise ``ValueError`` if there are too few, or no example would be left to train on.
    """
    largest = min(len(indices), num_examples - 1)
    if as_count(num_validation, "num_validation") > largest:
        raise ValueError(
            f"num_validation={num_validation} examples cannot be held out of {num_examples} training examples, "
            f"{len(indices)} of them with labels; at most {largest}."
        )
    return indices[len(indices) - num_validation :]
