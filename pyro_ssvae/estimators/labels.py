"""Labels of scikit-learn's users, -1, None, NaN or an empty string for none, as whole numbers."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets


def encode_labels(
    y: ArrayLike, classes: ArrayLike | None, num_classes: int | None
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return labels as indices of classes, -1 where unknown, and the classes, sorted.

    Args:
        y: Labels with shape ``(N,)``: numbers or strings; -1, ``None``, NaN and ``""`` mark unlabelled examples.
        classes: All classes, if some may have no label.
        num_classes: Number of clusters, if there is no label at all.

    Raises:
        ValueError: If labels are not classes, are missing from ``classes``, or name fewer than two classes.
    """
    labels: NDArray[Any] = np.asarray(column_or_1d(y, warn=True))
    unknown = np.fromiter((_is_unknown(value) for value in labels.tolist()), dtype=bool, count=len(labels))
    known = _plain(labels[~unknown])
    if len(known):
        check_classification_targets(known)
    if classes is not None:
        found = np.unique(np.asarray(classes))
        if missing := sorted(set(known.tolist()) - set(found.tolist()), key=str):
            raise ValueError(f"y holds labels that classes={found.tolist()} lacks: {missing[:5]}.")
    elif not len(known) and num_classes is not None:
        found = np.arange(num_classes)
    else:
        found = np.unique(known)
    if len(found) < 2:
        raise ValueError(
            f"At least two classes are needed; y has {len(found)} class(es) among {len(known)} labelled examples (-1, "
            "None, NaN or '' marks an unlabelled one). Name all classes by classes=[...], or cluster without labels by "
            "n_classes=K."
        )
    codes = np.full(len(labels), -1)
    codes[~unknown] = np.searchsorted(found, known)
    return codes, found


def _is_unknown(value: Any) -> bool:
    if isinstance(value, numbers.Real):
        return value != value or (value == -1 and not isinstance(value, bool))
    return value is None or (isinstance(value, str) and value == "")


def _plain(labels: NDArray[Any]) -> NDArray[Any]:
    """Return labels of type object as strings or numbers; whole floats as integers."""
    if labels.dtype == object:
        kinds = {isinstance(value, str) for value in labels.tolist()}
        if len(kinds) > 1:
            raise ValueError("Labels must be all strings or all numbers; y mixes them.")
        labels = np.array(labels.tolist())
    if labels.dtype.kind == "f" and len(labels) and (labels == np.round(labels)).all():
        return labels.astype(np.int64)
    return labels
