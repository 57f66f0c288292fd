"""Which rows keep their label: decided once, by row identity and seed, and saved with the run."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyro_ssvae._checks import as_count, as_labels, as_seed, to_numpy
from pyro_ssvae._io import atomic_open
from pyro_ssvae.data.readers import read_npz

__all__ = ["LabelSplit", "draw_label_split", "hide_labels", "select_last"]

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LabelSplit:
    """The rows that keep their label and the rows that validate, as places in the original file.

    Args:
        labelled: Rows of the original training file whose labels are used, shape ``(L,)``.
        validation: Rows of it that were held out for validation, shape ``(V,)``.
        seed: Of the draw.
        balanced: Whether the labels were drawn class by class.

    Raises:
        TypeError: If rows or seed are not whole numbers.
        ValueError: If rows are negative, named twice, or both labelled and held out.

    Example:
        >>> split = LabelSplit([3, 1], [7, 8], seed=0, balanced=True)
        >>> split.labelled
        array([1, 3])
    """

    labelled: Rows
    validation: Rows
    seed: int
    balanced: bool

    def __post_init__(self) -> None:
        """Check the rows, sort them and make them read-only."""
        for name in ("labelled", "validation"):
            object.__setattr__(self, name, _as_row_ids(getattr(self, name), name))
        object.__setattr__(self, "seed", as_seed(self.seed))
        object.__setattr__(self, "balanced", bool(self.balanced))
        if len(both := np.intersect1d(self.labelled, self.validation)):
            raise ValueError(
                f"Row {both[0]} is both labelled and held out for validation; a row can be one of "
                "them. Remove it from labelled or from validation."
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
        """Write the split as an npz file, all or nothing.

        Args:
            path: The file, in a folder that exists; its name is used as it is.
        """
        with atomic_open(Path(path)) as file:
            np.savez(
                file,
                labelled=self.labelled,
                validation=self.validation,
                seed=np.int64(self.seed),
                balanced=np.bool_(self.balanced),
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LabelSplit:
        """Read a split that :meth:`save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it does not hold a split.
        """
        arrays = read_npz(path, ("labelled", "validation", "seed", "balanced"))
        if arrays["seed"].shape != () or arrays["balanced"].shape != ():
            raise ValueError(f"{path} does not hold a label split: seed and balanced are no scalars.")
        return cls(
            arrays["labelled"],
            arrays["validation"],
            seed=arrays["seed"].item(),
            balanced=arrays["balanced"].item(),
        )


def _as_row_ids(values: Any, name: str) -> Rows:
    array = to_numpy(values, name)
    if array.size == 0:
        array = np.empty(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(
            f"{name} has shape {array.shape} and dtype {array.dtype}; row numbers are needed, integers with shape (L,)."
        )
    rows = np.sort(array.astype(np.int64))
    if len(rows) and (rows[0] < 0 or len(np.unique(rows)) < len(rows)):
        raise ValueError(f"{name} holds negative or repeated rows; name each row once, from 0 on.")
    rows.setflags(write=False)
    return rows


def draw_label_split(
    y: Any,
    num_labels: int | Literal["all"],
    num_classes: int,
    seed: int = 0,
    balanced: bool = True,
) -> Rows:
    """Draw the rows that keep their label.

    With ``balanced``, every class gives ``num_labels // num_classes`` rows: the first of a random
    permutation of its rows, the classes taking turns with one generator,
    ``numpy.random.default_rng(seed)``. What remains is handed out one each, after these draws, to
    classes drawn at random among those that have a row left. Otherwise the rows are the first of a
    random permutation of all of them, and a class may then get no label at all.

    Args:
        y: Labels with shape ``(N,)``; rows with -1 have none to keep and are never drawn.
        num_labels: How many rows; ``"all"``, or at least as many as have labels, draws all those.
        num_classes: K.
        seed: Of the draw.
        balanced: Whether classes get equal numbers.

    Returns:
        Rows of ``y`` in ascending order, with shape ``(num_labels,)``.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If labels or numbers are out of range, or a class has too few rows.

    Example:
        >>> draw_label_split([0, 1, 0, 1, -1], num_labels=2, num_classes=2)
        array([0, 1])
    """
    labels = as_labels(y, "y", len(to_numpy(y, "y")), allow_unlabelled=True).numpy()
    num_classes = as_count(num_classes, "num_classes", least=1)
    if len(labels) and labels.max() >= num_classes:
        raise ValueError(
            f"y holds label {labels.max()}, but num_classes={num_classes} allows 0 to "
            f"{num_classes - 1}. Raise num_classes."
        )
    rng = np.random.default_rng(as_seed(seed))
    known = np.flatnonzero(labels >= 0)
    wanted = _as_num_labels(num_labels, len(known))
    if wanted == len(known):
        return known
    if not balanced:
        return np.sort(rng.permutation(known)[:wanted])
    rows = [rng.permutation(np.flatnonzero(labels == c)) for c in range(num_classes)]
    counts = _rows_per_class(np.array([len(r) for r in rows]), wanted, rng)
    return np.sort(np.concatenate([r[:n] for r, n in zip(rows, counts, strict=True)]))


def _as_num_labels(num_labels: int | Literal["all"], available: int) -> int:
    """Return how many labels are kept, at most as many as there are."""
    if isinstance(num_labels, str):
        if num_labels != "all":
            raise ValueError(f"num_labels={num_labels!r} must be an integer or 'all'.")
        return available
    wanted = as_count(num_labels, "num_labels")
    if wanted > available:
        warnings.warn(
            f"num_labels={wanted}: only {available} rows have a label, and all of them keep it.", stacklevel=4
        )
    return min(wanted, available)


def _rows_per_class(sizes: Rows, num_labels: int, rng: np.random.Generator) -> Rows:
    counts = np.full(len(sizes), num_labels // len(sizes))
    with_rows_left = np.flatnonzero(sizes > counts)
    remainder = num_labels % len(sizes)
    if (sizes < counts).any() or remainder > len(with_rows_left):
        smallest = int(sizes.min())
        largest = len(sizes) * smallest + int((sizes > smallest).sum())
        raise ValueError(
            f"num_labels={num_labels} cannot be drawn class-balanced: class "
            f"{int(sizes.argmin())} has {smallest} rows. Largest possible: num_labels={largest}; "
            "or use num_labels='all', or balanced=False."
        )
    counts[rng.permutation(with_rows_left)[:remainder]] += 1
    return counts


def hide_labels(y: NDArray[Any], labelled: Rows) -> Rows:
    """Return labels with -1 everywhere but in the rows that keep theirs.

    Args:
        y: Labels with shape ``(N,)``.
        labelled: Rows with shape ``(L,)``.

    Returns:
        A new array with shape ``(N,)`` that shares no memory with ``y``.
    """
    hidden = np.full(len(y), -1, dtype=np.int64)
    hidden[labelled] = y[labelled]
    return hidden


def select_last(rows: Rows, num_validation: int, num_rows: int) -> Rows:
    """Return the last ``num_validation`` of ``rows``.

    Args:
        rows: Rows that may validate (those with a label), ascending.
        num_validation: How many.
        num_rows: Rows that there are in all; one at least must be left for training.

    Raises:
        TypeError: If ``num_validation`` is not an integer.
        ValueError: If there are not as many.
    """
    largest = min(len(rows), num_rows - 1)
    if as_count(num_validation, "num_validation") > largest:
        raise ValueError(
            f"num_validation={num_validation} rows cannot be held out of {num_rows} training "
            f"rows, {len(rows)} of them with labels; at most {largest}."
        )
    return rows[len(rows) - num_validation :]
