"""One container for data of which a few examples are labelled, and its constructors."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyro_ssvae._arguments import checked
from pyro_ssvae._checks import as_examples, as_labels, as_num_classes, as_scale, as_seed
from pyro_ssvae.data.named import load_named
from pyro_ssvae.data.sources import Source, load_folder, load_npz
from pyro_ssvae.data.splits import LabelSplit, draw_labelled, hide_labels

__all__ = ["SemiSupervisedData"]


@dataclass(frozen=True, eq=False, repr=False)
class SemiSupervisedData:
    """Training examples of which a few are labelled, with validation and test examples.

    Build it by :meth:`from_arrays`, :meth:`from_npz`, :meth:`from_folder` or :meth:`from_name`, which check everything.
    All tensors lie on the CPU and own their memory: examples are uint8 or float32, labels int64, -1 where unknown. The
    true labels of unlabelled training examples are nowhere in the object. Classes are unknown, and ``num_classes`` is
    ``None``, where no label was given.

    Args:
        x: Training examples, labelled and unlabelled, shape ``(N, *event_shape)``.
        y: Their labels, shape ``(N,)``.
        x_validation: Validation examples, shape ``(V, *event_shape)``; V may be 0.
        y_validation: Their labels, shape ``(V,)``.
        x_test: Test examples, shape ``(T, *event_shape)``; T may be 0.
        y_test: Their labels, shape ``(T,)``.
        num_classes: K, for classes 0 to K - 1; ``None`` if no classes are known.
        name: Name of the data set in results.
        class_names: K names; empty if no classes are known.
        scale: Divides ``x``: the model sees ``x / scale``; 255 for 8-bit images, 16 for digits.
        split: Which examples of the original file are labelled and which validate, if drawn.
        seed: Seed of that draw; :meth:`pyro_ssvae.models.Model.for_data` and :func:`pyro_ssvae.fit` use it too.

    Example:
        >>> data = SemiSupervisedData.from_arrays([[0.0], [0.2], [0.9], [1.0]], [0, -1, -1, 1])
        >>> data
        SemiSupervisedData('arrays', 2 labelled + 2 unlabelled examples of shape (1,), 2 classes, ...)
    """

    x: Tensor
    y: Tensor
    x_validation: Tensor
    y_validation: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int | None
    name: str
    class_names: tuple[str, ...]
    scale: float
    split: LabelSplit | None = None
    seed: int = 0

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.x.shape[1:])

    @property
    def num_labelled(self) -> int:
        """Number of training examples with a label."""
        return len(self.labelled_index)

    @property
    def num_unlabelled(self) -> int:
        """Number of training examples without a label."""
        return len(self.unlabelled_index)

    @property
    def labelled_index(self) -> Tensor:
        """Indices into ``x`` of the labelled examples, ascending, shape ``(num_labelled,)``, int64."""
        return torch.nonzero(self.y >= 0).squeeze(-1)

    @property
    def unlabelled_index(self) -> Tensor:
        """Indices into ``x`` of the unlabelled examples, ascending, shape ``(num_unlabelled,)``, int64."""
        return torch.nonzero(self.y < 0).squeeze(-1)

    @property
    def known_validation(self) -> tuple[Tensor, Tensor]:
        """The validation examples whose label is known, with their labels: what an error can be computed on."""
        return _select_known(self.x_validation, self.y_validation)

    @property
    def known_test(self) -> tuple[Tensor, Tensor]:
        """The test examples whose label is known, with their labels: what an error can be computed on."""
        return _select_known(self.x_test, self.y_test)

    def without_labels(self) -> SemiSupervisedData:
        """Return the data with every training label removed, for training a model without classes.

        Validation and test examples keep their labels, and the classes remain known.
        """
        return replace(self, y=torch.full_like(self.y, -1), split=None)

    def __repr__(self) -> str:
        classes = "no classes" if self.num_classes is None else f"{self.num_classes} classes"
        return (
            f"SemiSupervisedData({self.name!r}, {self.num_labelled} labelled + {self.num_unlabelled} unlabelled "
            f"examples of shape {self.event_shape}, {classes}, {len(self.x_validation)} validation and "
            f"{len(self.x_test)} test examples)"
        )

    @classmethod
    @checked
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
        seed: int = 0,
    ) -> SemiSupervisedData:
        """Build from arrays, tensors or nested lists, which are copied.

        Examples of uint8 are kept, other numbers become float32. Labels are whole numbers from 0; -1 marks an example
        without one. Without ``y``, ``y_validation`` or ``y_test`` all of those examples are without. The arguments are
        those of the class, with these defaults:

        Args:
            x: Training examples.
            y: Their labels.
            x_validation: Validation examples.
            y_validation: Their labels.
            x_test: Test examples.
            y_test: Their labels.
            num_classes: If ``None``, one more than the largest label, or no classes if there is no label.
            scale: If ``None``, 255 for uint8 and 1 otherwise.
            name: Name of the data set in results.
            class_names: If ``None``, "0", "1", ...
            split: How the labels were drawn, saved with runs.
            seed: Seed of the initial weights (:meth:`pyro_ssvae.models.Model.for_data`) and of training.

        Raises:
            TypeError: If an argument is not numeric, or not an integer where one is needed.
            ValueError: If values are not finite, shapes disagree, or labels are out of range.

        Warns:
            UserWarning: If ``y`` is given and no training example has a label, or a class has no labelled one.
        """
        examples = as_examples(x, "x")
        labels = _as_labels(y, "y", len(examples))
        x_validation, y_validation = _as_held_out(x_validation, y_validation, "validation", examples)
        x_test, y_test = _as_held_out(x_test, y_test, "test", examples)
        num_classes = as_num_classes(num_classes, {"y": labels, "y_validation": y_validation, "y_test": y_test})
        names = tuple(map(str, range(num_classes or 0) if class_names is None else class_names))
        if len(names) != (num_classes or 0):
            raise ValueError(f"class_names holds {len(names)} names for {num_classes} classes; give one for each.")
        num_labelled = int((labels >= 0).sum())
        if split is not None and len(split.labelled) != num_labelled:
            raise ValueError(
                f"split has {len(split.labelled)} labelled examples, y has {num_labelled}; pass the split that y was "
                "made with, or none."
            )
        if y is not None and num_classes is not None:
            _warn_about_labels(labels, names)
        held_out = (x_validation, y_validation, x_test, y_test)
        scale = as_scale(scale, examples)
        return cls(examples, labels, *held_out, num_classes, name, names, scale, split, as_seed(seed))

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
        """Build from an npz file with ``x_train`` and, if there are any, ``y_train``, ``x_test`` and ``y_test``.

        Images ``(N, H, W)`` get a channel axis, and ``(N, H, W, C)`` with C of 1, 3 or 4 becomes ``(N, C, H, W)``. A
        column of labels ``(N, 1)`` is flattened. A label of -1 means unlabelled.

        Args:
            path: The file; nothing in it is unpickled.
            num_labels: How many training labels are kept, if there are any; ``None`` or ``"all"`` for all of them.
            num_validation: How many examples are held out for validation, the last ones with a label, or simply the
                last ones if the file holds no ``y_train``; none by default.
            seed: Seed of the draw of labels.
            balanced: As for :meth:`from_name`.
            num_classes: As for :meth:`from_arrays`.
            scale: As for :meth:`from_arrays`.

        Raises:
            FileNotFoundError: If there is no such file.
            TypeError: If the arrays are not numeric.
            ValueError: If the file is not npz, lacks ``x_train``, or holds what :meth:`from_arrays` refuses.
        """
        seed = as_seed(seed)
        source = load_npz(path, num_validation=num_validation, num_classes=num_classes, scale=scale)
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
        """Build from a data set by name.

        The last examples of the training file are for validation (10,000; 5,000 of CIFAR-10). ``digits`` comes with
        scikit-learn: of its 1,797 examples 450 are for testing and 147 for validation, stratified by ``seed``.

        Args:
            name: ``"mnist"``, ``"fashion_mnist"``, ``"cifar10"`` or ``"digits"``.
            num_labels: How many training labels are kept, ``"all"`` for all of them.
            data_dir: Folder of data sets, and of downloads; if ``None``, the environment variable
                ``PYRO_SSVAE_DATA``, or else ``~/.cache/pyro_ssvae``.
            num_validation: How many examples are held out for validation, if not the number above.
            seed: Seed of the draw of labels.
            balanced: Whether every class gets the same number of labels; otherwise a class may get none.
            download: Whether to download, through torchvision, what is not found.

        Raises:
            DataUnavailableError: If the data is neither on disk nor downloadable.
            TypeError: If an argument has the wrong type.
            ValueError: If the name is unknown or a number out of range.

        Example:
            >>> SemiSupervisedData.from_name("digits", num_labels=50)
            SemiSupervisedData('digits', 50 labelled + 1150 unlabelled examples of shape (1, 8, 8), ...
        """
        seed = as_seed(seed)
        source = load_named(name, data_dir=data_dir, num_validation=num_validation, seed=seed, allow_download=download)
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
        """Build from a folder of images: ``CLASS/anything.png``, or ``CLASS_anything.png``.

        Images of other sizes are resized and cropped at the centre. Those whose name starts with no class, directly in
        the folder, are examples without classes.

        Args:
            path: The folder.
            image_size: Side of the square that every image is brought to, in pixels.
            num_labels: As for :meth:`from_name`; not used without classes.
            num_validation: Number of validation examples, drawn at random; a tenth if ``None``.
            num_test: Number of test examples, drawn at random; a tenth if ``None``.
            seed: Seed of these draws and of the draw of labels.
            balanced: As for :meth:`from_name`.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If it holds no image, a damaged one, too few, or some with and some without a class.
        """
        seed = as_seed(seed)
        source = load_folder(path, image_size=image_size, num_validation=num_validation, num_test=num_test, seed=seed)
        return cls._from_source(source, num_labels, seed, balanced)

    @classmethod
    def _from_source(
        cls, source: Source, num_labels: int | Literal["all"], seed: int, balanced: bool
    ) -> SemiSupervisedData:
        """Hold the validation examples out, draw the labels that are kept and hide the others."""
        validation = source.validation
        train = np.setdiff1d(np.arange(len(source.x)), validation)
        y = y_validation = split = None
        if source.y is not None:
            known, y_validation = source.y[train], source.y[validation]
            labelled = draw_labelled(known, num_labels, source.num_classes or 0, seed, balanced)
            y = hide_labels(known, labelled)
            split = LabelSplit(source.ids[train[labelled]], source.ids[validation], seed, balanced)
        return cls.from_arrays(
            source.x[train],
            y,
            x_validation=source.x[validation],
            y_validation=y_validation,
            x_test=source.x_test,
            y_test=source.y_test,
            num_classes=source.num_classes,
            scale=source.scale,
            name=source.name,
            class_names=source.class_names,
            split=split,
            seed=seed,
        )


def _as_labels(y: Any, name: str, num_examples: int) -> Tensor:
    """Return labels, all of them -1 if none were given."""
    if y is None:
        return torch.full((num_examples,), -1)
    return as_labels(y, name, num_examples, allow_unlabelled=True)


def _as_held_out(x: Any, y: Any, part: str, train: Tensor) -> tuple[Tensor, Tensor]:
    """Return validation or test examples with their labels, empty if none were given."""
    if x is None:
        if y is not None:
            raise ValueError(f"y_{part} was given without x_{part}; pass both, or neither.")
        return train.new_empty((0, *train.shape[1:])), torch.empty(0, dtype=torch.int64)
    examples = as_examples(x, f"x_{part}", allow_empty=True)
    if examples.shape[1:] != train.shape[1:] or examples.dtype != train.dtype:
        raise ValueError(
            f"x_{part} has examples of shape {tuple(examples.shape[1:])} and dtype {examples.dtype}, x has "
            f"{tuple(train.shape[1:])} and {train.dtype}; both must be alike, in the same units."
        )
    return examples, _as_labels(y, f"y_{part}", len(examples))


def _select_known(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    known = y >= 0
    return (x, y) if known.all() else (x[known], y[known])


def _warn_about_labels(y: Tensor, class_names: tuple[str, ...]) -> None:
    counts = torch.bincount(y[y >= 0], minlength=len(class_names))
    missing = [name for name, n in zip(class_names, counts.tolist(), strict=True) if n == 0]
    message = ""
    if not counts.any():
        message = (
            "No training example has a label: q(y|x) is then a clustering, its classes in no particular order. Labels "
            "are whole numbers from 0 in y."
        )
    elif missing:
        shown = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        message = (
            f"No training example is labelled as class {shown}: nothing ties these classes to their names. Label an "
            "example of each, or use balanced=True."
        )
    if message:
        warnings.warn(message, UserWarning, stacklevel=4)
