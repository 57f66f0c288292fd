"""One container for data of which a few rows carry labels, and its constructors."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyro_ssvae._checks import as_examples, as_labels, as_num_classes, as_scale, as_seed, to_numpy
from pyro_ssvae.data.folders import read_folder
from pyro_ssvae.data.named import Source, load_named
from pyro_ssvae.data.readers import as_images, read_npz
from pyro_ssvae.data.splits import LabelSplit, draw_label_split, hide_labels, select_last

__all__ = ["SemiSupervisedData"]


@dataclass(frozen=True, eq=False, repr=False)
class SemiSupervisedData:
    """Training rows of which a few carry labels, with validation and test rows.

    Build it by :meth:`from_arrays`, :meth:`from_npz` or :meth:`from_name`, which check everything.
    All tensors lie on the CPU and own their memory. The true labels of unlabelled rows are nowhere
    in the object.

    Args:
        x: Training rows, labelled and unlabelled, shape ``(N, *event_shape)``, uint8 or float32.
        y: Their classes, shape ``(N,)``, int64; -1 = unlabelled.
        x_validation: Validation rows, shape ``(V, *event_shape)``; V may be 0.
        y_validation: Their classes, shape ``(V,)``, int64.
        x_test: Test rows, shape ``(T, *event_shape)``; T may be 0.
        y_test: Their classes, shape ``(T,)``, int64.
        num_classes: K; classes are 0 to K - 1.
        name: What the data set is called in results.
        class_names: K names.
        scale: Divides ``x``: the model sees ``x / scale``; 255 for 8-bit images, 16 for digits.
        split: Which rows of the original file are labelled and which validate, if drawn.

    Example:
        >>> data = SemiSupervisedData.from_arrays([[0.0], [0.2], [0.9], [1.0]], [0, -1, -1, 1])
        >>> data
        SemiSupervisedData('arrays', 2 labelled + 2 unlabelled rows of shape (1,), 2 classes, ...)
    """

    x: Tensor
    y: Tensor
    x_validation: Tensor
    y_validation: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int
    name: str
    class_names: tuple[str, ...]
    scale: float
    split: LabelSplit | None = None

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return tuple(self.x.shape[1:])

    @property
    def num_labelled(self) -> int:
        """Number of training rows with a label."""
        return len(self.labelled_index)

    @property
    def num_unlabelled(self) -> int:
        """Number of training rows without a label."""
        return len(self.unlabelled_index)

    @property
    def labelled_index(self) -> Tensor:
        """Rows of ``x`` with a label, ascending, shape ``(num_labelled,)``, int64."""
        return torch.nonzero(self.y >= 0).squeeze(-1)

    @property
    def unlabelled_index(self) -> Tensor:
        """Rows of ``x`` without a label, ascending, shape ``(num_unlabelled,)``, int64."""
        return torch.nonzero(self.y < 0).squeeze(-1)

    def without_labels(self) -> SemiSupervisedData:
        """Return the same rows with every training label taken off, for models that know no classes.

        Validation and test rows keep theirs.
        """
        return replace(self, y=torch.full_like(self.y, -1), split=None)

    def __repr__(self) -> str:
        return (
            f"SemiSupervisedData({self.name!r}, {self.num_labelled} labelled + "
            f"{self.num_unlabelled} unlabelled rows of shape {self.event_shape}, "
            f"{self.num_classes} classes, {len(self.x_validation)} validation and "
            f"{len(self.x_test)} test rows)"
        )

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any = None,
        *,
        x_validation: Any = None,
        y_validation: Any = None,
        x_test: Any = None,
        y_test: Any = None,
        num_classes: int | None = None,
        scale: float | None = None,
        name: str = "arrays",
        class_names: Sequence[str] | None = None,
        split: LabelSplit | None = None,
    ) -> SemiSupervisedData:
        """Build from arrays, tensors or nested lists, which are copied.

        Args:
            x: Training rows, shape ``(N, *event)``; uint8 is kept, other numbers become float32.
            y: Their classes, shape ``(N,)``, whole numbers; -1 = unlabelled. Where no y is given, for held-out rows
                neither, rows have no classes, and are for models that know none.
            x_validation: Validation rows, shape ``(V, *event)``.
            y_validation: Their classes, shape ``(V,)``.
            x_test: Test rows, shape ``(T, *event)``.
            y_test: Their classes, shape ``(T,)``.
            num_classes: K; one more than the largest label where it is not given.
            scale: Divides ``x``; 255 for uint8 and 1 otherwise where it is not given.
            name: What the data set is called in results.
            class_names: K names; "0", "1", ... where they are not given.
            split: How the labels were drawn, to be saved with runs.

        Raises:
            TypeError: If an argument is not numeric, or not an integer where one is needed.
            ValueError: If values are not finite, shapes disagree, or labels are out of range.

        Warns:
            UserWarning: If y is given and no row has a label, or a class has no labelled row.
        """
        rows = as_examples(x, "x")
        has_classes = any(part is not None for part in (y, y_validation, y_test))
        if not has_classes:  # all rows count as unlabelled, and held-out ones as of the first of two classes
            y, num_classes = np.full(len(rows), -1), 2 if num_classes is None else num_classes
            y_validation, y_test = (None if part is None else np.zeros(len(part)) for part in (x_validation, x_test))
        labels = as_labels(y, "y", len(rows), allow_unlabelled=True)
        validation = _held_out(x_validation, y_validation, "validation", rows)
        test = _held_out(x_test, y_test, "test", rows)
        num_classes = as_num_classes(num_classes, {"y": labels, "y_validation": validation[1], "y_test": test[1]})
        names = tuple(map(str, range(num_classes) if class_names is None else class_names))
        if len(names) != num_classes:
            raise ValueError(f"class_names holds {len(names)} names for {num_classes} classes; give one for each.")
        num_labelled = int((labels >= 0).sum())
        if split is not None and len(split.labelled) != num_labelled:
            raise ValueError(
                f"split names {len(split.labelled)} labelled rows, y has {num_labelled}; hand in "
                "the split that y was made with, or none."
            )
        if has_classes:
            _warn_about_labels(labels, names)
        return cls(
            rows,
            labels,
            *validation,
            *test,
            num_classes,
            name,
            names,
            as_scale(scale, rows),
            split,
        )

    @classmethod
    def from_npz(
        cls,
        path: str | os.PathLike[str],
        *,
        num_labels: int | Literal["all"] | None = None,
        num_validation: int | None = None,
        seed: int = 0,
        balanced: bool = True,
        num_classes: int | None = None,
        scale: float | None = None,
    ) -> SemiSupervisedData:
        """Build from an npz file.

        It holds ``x_train``, ``y_train`` and, where there are test rows, ``x_test``, ``y_test``; for models that know
        no classes ``x_train`` and ``x_test`` alone.
        Images ``(N, H, W)`` get a channel axis, and ``(N, H, W, C)`` with C of 1, 3 or 4 becomes
        ``(N, C, H, W)``. A column of labels ``(N, 1)`` is flattened.

        Args:
            path: The file; nothing in it is unpickled.
            num_labels: How many labels are kept, drawn among the rows that have one; ``None`` or
                ``"all"`` for every label in the file (-1 in ``y_train`` means unlabelled).
            num_validation: The last rows with a label that are held out; none where not given.
            seed: Of the draw.
            balanced: Whether classes get equal numbers of labels.
            num_classes: K; one more than the largest label where it is not given.
            scale: Divides ``x``; 255 for uint8 and 1 otherwise where it is not given.

        Raises:
            FileNotFoundError: If there is no such file.
            TypeError: If the arrays are not numeric.
            ValueError: If the file is not npz, lacks arrays, or holds what
                :meth:`from_arrays` refuses.
        """
        arrays = read_npz(path, ("x_train",), ("y_train", "x_test", "y_test"))
        labels = [key for key in arrays if key.startswith("y")]
        if labels and labels != [f"y{key[1:]}" for key in arrays if key.startswith("x")]:
            raise ValueError(f"{path} holds {', '.join(arrays)}; every x needs a y beside it, or none has one.")
        flat = {key: _flat(a) if key.startswith("y") else as_images(a) for key, a in arrays.items()}
        x = flat["x_train"]
        if x.ndim < 2 or len(x) == 0:
            as_examples(x, "x_train")  # raises, in words
        y, known = None, np.arange(len(x))
        if labels:
            y = as_labels(flat["y_train"], "y_train", len(x), allow_unlabelled=True).numpy()
            known = np.flatnonzero(y >= 0)
        source = Source(
            x,
            y,
            flat.get("x_test"),
            flat.get("y_test"),
            ids=np.arange(len(x)),
            validation=select_last(known, 0 if num_validation is None else num_validation, len(x)),
            name=Path(path).stem,
            num_classes=num_classes,
            scale=scale,
        )
        return cls._from_source(source, "all" if num_labels is None else num_labels, seed, balanced)

    @classmethod
    def from_name(
        cls,
        name: str,
        *,
        num_labels: int | Literal["all"] = 100,
        data_dir: str | os.PathLike[str] | None = None,
        num_validation: int | None = None,
        seed: int = 0,
        balanced: bool = True,
        download: bool = True,
    ) -> SemiSupervisedData:
        """Build from a data set by name: ``mnist``, ``fashion_mnist``, ``cifar10`` or ``digits``.

        The last rows of the training file validate (10,000; 5,000 of CIFAR-10). ``digits`` comes
        with scikit-learn: of its 1,797 rows 450 test and 147 validate, stratified by ``seed``.

        Args:
            name: The data set.
            num_labels: How many labels are kept, ``"all"`` for every one.
            data_dir: Folder that holds data sets, or takes downloads; else the environment
                variable ``PYRO_SSVAE_DATA``; else ``~/.cache/pyro_ssvae``.
            num_validation: Rows held out for validation, where other than the above.
            seed: Of the draw of labels.
            balanced: Whether classes get equal numbers of labels; otherwise a class may get none.
            download: Whether to download, through torchvision, what is not found.

        Raises:
            DataUnavailableError: If the data is neither at hand nor downloadable.
            TypeError: If an argument has the wrong type.
            ValueError: If the name is unknown or a number impossible.

        Example:
            >>> SemiSupervisedData.from_name("digits", num_labels=50)
            SemiSupervisedData('digits', 50 labelled + 1150 unlabelled rows of shape (1, 8, 8), ...
        """
        source = load_named(
            name,
            data_dir=data_dir,
            num_validation=num_validation,
            seed=seed,
            allow_download=download,
        )
        return cls._from_source(source, num_labels, seed, balanced)

    @classmethod
    def from_folder(
        cls,
        path: str | os.PathLike[str],
        *,
        image_size: int,
        num_labels: int | Literal["all"] = "all",
        num_validation: int | None = None,
        num_test: int | None = None,
        seed: int = 0,
        balanced: bool = True,
    ) -> SemiSupervisedData:
        """Build from a folder of images: ``CLASS/anything.png``, or ``CLASS_anything.png`` (:func:`read_folder`).

        Args:
            path: The folder.
            image_size: Side of the square that every image is brought to, in pixels.
            num_labels: How many labels are kept, ``"all"`` for every one; of no use where images have no class.
            num_validation: Rows drawn to validate; a tenth where not given.
            num_test: Rows drawn to test; likewise.
            seed: Of these draws.
            balanced: Whether classes get equal numbers of labels; otherwise a class may get none.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If it holds no image, a damaged one, too few, or some with and some without a class.
        """
        images = read_folder(path, image_size)
        known = images.y >= 0
        if known.any() and not known.all():
            raise ValueError(
                f"{path} holds {int(known.sum())} images with a class and {int((~known).sum())} without; put every one "
                "in a folder of its class, or none."
            )
        count = len(images.x)
        held = [max(1, count // 10) if number is None else number for number in (num_validation, num_test)]
        if min(held) < 0 or sum(held) >= count:
            raise ValueError(f"num_validation + num_test = {sum(held)} of {count} images leave none to train on.")
        order = np.random.default_rng(as_seed(seed)).permutation(count)
        test, rest = np.sort(order[: held[1]]), np.sort(order[held[1] :])
        y = images.y if known.any() else None
        validation = np.flatnonzero(np.isin(rest, order[held[1] : sum(held)]))
        source = Source(
            images.x[rest],
            None if y is None else y[rest],
            images.x[test],
            None if y is None else y[test],
            ids=rest,
            validation=validation,
            name=Path(path).name,
            num_classes=max(2, len(images.class_names)),
            class_names=images.class_names if len(images.class_names) > 1 else None,
        )
        return cls._from_source(source, num_labels, seed, balanced)

    @classmethod
    def _from_source(
        cls, source: Source, num_labels: int | Literal["all"], seed: int, balanced: bool
    ) -> SemiSupervisedData:
        """Hold the validation rows out, draw the labels that are kept and hide the others."""
        as_seed(seed)
        train = np.setdiff1d(np.arange(len(source.x)), source.validation)
        rest: dict[str, Any] = {
            "x_validation": source.x[source.validation],
            "x_test": source.x_test,
            "scale": source.scale,
            "name": source.name,
            "class_names": source.class_names,
        }
        if source.y is None:
            return cls.from_arrays(source.x[train], num_classes=source.num_classes, **rest)
        y = as_labels(source.y, "y_train", len(source.x), allow_unlabelled=True)
        given = {"y_train": y}
        if source.y_test is not None:
            given["y_test"] = as_labels(source.y_test, "y_test", len(source.y_test))
        num_classes = as_num_classes(source.num_classes, given)
        y_train = y.numpy()[train]
        labelled = draw_label_split(y_train, num_labels, num_classes, seed, balanced)
        return cls.from_arrays(
            source.x[train],
            hide_labels(y_train, labelled),
            y_validation=source.y[source.validation],
            y_test=source.y_test,
            num_classes=num_classes,
            **rest,
            split=LabelSplit(source.ids[train[labelled]], source.ids[source.validation], seed, balanced),
        )


def _held_out(x: Any, y: Any, part: str, train: Tensor) -> tuple[Tensor, Tensor]:
    """Return validation or test rows with their labels, empty where none were given."""
    if x is None and y is None:
        return train.new_empty((0, *train.shape[1:])), torch.empty(0, dtype=torch.int64)
    if x is None or y is None:
        given, missing = (f"{a}_{part}" for a in ("yx" if x is None else "xy"))
        raise ValueError(f"{given} was given without {missing}; hand in both, or neither.")
    rows = as_examples(x, f"x_{part}", allow_empty=True)
    if rows.shape[1:] != train.shape[1:] or rows.dtype != train.dtype:
        raise ValueError(
            f"x_{part} has rows of shape {tuple(rows.shape[1:])} and dtype {rows.dtype}, x has "
            f"{tuple(train.shape[1:])} and {train.dtype}; both must be alike, in the same units. "
            "Prepare them in the same way."
        )
    return rows, as_labels(y, f"y_{part}", len(rows))


def _flat(y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else to_numpy(y, "y")


def _warn_about_labels(y: Tensor, class_names: tuple[str, ...]) -> None:
    known = y[y >= 0]
    if len(known) == 0:
        warnings.warn(
            "No training row has a label: q(y|x) is then a clustering, its classes in no "
            "particular order. Labels are whole numbers from 0 in y.",
            UserWarning,
            stacklevel=3,
        )
        return
    counts = torch.bincount(known, minlength=len(class_names))
    if missing := [name for name, n in zip(class_names, counts.tolist(), strict=True) if n == 0]:
        shown = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        warnings.warn(
            f"No training row is labelled as class {shown}: nothing ties these classes to their "
            "names. Label a row of each, or use balanced=True.",
            UserWarning,
            stacklevel=3,
        )
