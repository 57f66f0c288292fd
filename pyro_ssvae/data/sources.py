"""The user's own files as the examples of a training file: npz files and folders of images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_ssvae._checks import as_examples, as_labels, as_num_classes
from pyro_ssvae.data.folders import read_folder
from pyro_ssvae.data.readers import as_images, read_npz
from pyro_ssvae.data.splits import Indices, select_last

__all__ = ["Source", "load_folder", "load_npz"]


class Source(NamedTuple):
    """The examples of a training file, which of them are for validation, and test examples.

    ``x`` has shape ``(N, *event_shape)`` and its labels ``y`` ``(N,)``, int64, -1 where unknown; ``y`` and ``y_test``
    are ``None`` where no labels were given. ``ids``, ``(N,)``, are the examples' indices in the original file, and
    ``validation``, ``(V,)``, indices into ``x``.
    """

    x: NDArray[Any]
    y: Indices | None
    x_test: NDArray[Any] | None
    y_test: Indices | None
    ids: Indices
    validation: Indices
    name: str
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    scale: float | None = None


def load_npz(
    path: str | os.PathLike[str], *, num_validation: int | None, num_classes: int | None, scale: float | None
) -> Source:
    """Read an npz file; see ``SemiSupervisedData.from_npz``."""
    arrays = read_npz(path, ("x_train",), ("y_train", "x_test", "y_test"))
    x, x_test = as_images(arrays["x_train"]), arrays.get("x_test")
    if x.ndim < 2 or len(x) == 0:
        as_examples(x, "x_train")  # raises an error that names the array
    labels = {}
    for name, examples in (("y_train", x), ("y_test", x_test)):
        if (y := arrays.get(name)) is not None:
            y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
            labels[name] = as_labels(y, name, len(y if examples is None else examples), allow_unlabelled=True)
    y_train, y_test = (labels[name].numpy() if name in labels else None for name in ("y_train", "y_test"))
    usable = np.arange(len(x)) if y_train is None else np.flatnonzero(y_train >= 0)
    return Source(
        x,
        y_train,
        None if x_test is None else as_images(x_test),
        y_test,
        ids=np.arange(len(x)),
        validation=select_last(usable, num_validation or 0, len(x)),
        name=Path(path).stem,
        num_classes=as_num_classes(num_classes, labels),
        scale=scale,
    )


def load_folder(
    path: str | os.PathLike[str], *, image_size: int, num_validation: int | None, num_test: int | None, seed: int
) -> Source:
    """Read a folder of images, and draw test and validation examples; see ``SemiSupervisedData.from_folder``."""
    images = read_folder(path, image_size)
    count, num_known = len(images.x), int((images.y >= 0).sum())
    if 0 < num_known < count:
        raise ValueError(
            f"{path} holds {num_known} images with a class and {count - num_known} without; put every one in a folder "
            "of its class, or none."
        )
    sizes = [max(1, count // 10) if number is None else number for number in (num_validation, num_test)]
    if min(sizes) < 0 or sum(sizes) >= count:
        raise ValueError(f"num_validation + num_test = {sum(sizes)} of {count} images leave none to train on.")
    order = np.random.default_rng(seed).permutation(count)
    test, rest = np.sort(order[: sizes[1]]), np.sort(order[sizes[1] :])
    y, y_test = (images.y[rest], images.y[test]) if num_known else (None, None)
    return Source(
        *(images.x[rest], y, images.x[test], y_test),
        ids=rest,
        validation=np.flatnonzero(np.isin(rest, order[sizes[1] : sum(sizes)])),
        name=Path(path).name,
        num_classes=len(images.class_names) or None,
        class_names=images.class_names,
    )
