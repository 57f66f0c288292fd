"""Figures of a classifier: confusion matrix and reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pyro_ssvae._arrays import to_numpy
from pyro_ssvae._checks import as_count
from pyro_ssvae.plots.inputs import as_class_names, as_classes
from pyro_ssvae.plots.style import ACCENT, FAINT, INK, add_colour_bar, name_ticks, new_figure, set_title, style_axes

__all__ = ["plot_confusion_matrix", "plot_reliability"]

_MAX_CLASSES_WITH_COUNTS = 20


def plot_confusion_matrix(
    y_true: Any,
    y_pred: Any,
    class_names: Sequence[str] | None = None,
    *,
    title: str = "Confusion matrix",
) -> Figure:
    """Draw how many examples of each true class (rows) are predicted as each class (columns).

    Args:
        y_true: True classes, with shape ``(N,)``; arrays, tensors on any device or lists.
        y_pred: Predicted classes, with shape ``(N,)``.
        class_names: ``K`` names; without them ``K`` is the number of classes that occur.
        title: Beginning of the title, followed by the error.

    Returns:
        Counts, written for up to 20 classes, in cells coloured by their share of the true class in percent.

    Raises:
        TypeError: If labels are not numbers.
        ValueError: If there are no examples, or labels do not fit each other or the names.

    Example:
        >>> figure = plot_confusion_matrix([0, 0, 1, 1], [0, 1, 1, 1], ["cat", "dog"])
        >>> figure.get_suptitle()
        'Confusion matrix: error 25.00% (1 of 4 examples)'
    """
    num_examples = to_numpy(y_true, "y_true").size
    given = None if class_names is None else len(class_names)
    true = as_classes(y_true, "y_true", num_examples, given)
    pred = as_classes(y_pred, "y_pred", num_examples, given)
    if num_examples == 0:
        raise ValueError("y_true is empty, so there is no error; pass at least one example.")
    num_classes = given or int(max(true.max(), pred.max())) + 1
    names = as_class_names(class_names, num_classes)
    counts = np.bincount((true * num_classes + pred).numpy(), minlength=num_classes**2)
    counts = counts.reshape(num_classes, num_classes)
    percent = 100.0 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    wrong = num_examples - int(np.trace(counts))

    side = min(8.0, 2.0 + 0.42 * num_classes)
    figure = new_figure(side + 0.9, side)
    axes = figure.subplots()
    # The square root makes confusions of one percent visible next to a diagonal of ninety-nine.
    image = axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, 0.0, 100.0))
    style_axes(axes, frame=False)
    if num_classes <= _MAX_CLASSES_WITH_COUNTS:
        for i, j in np.argwhere(counts):
            colour = "white" if percent[i, j] > 40.0 else INK
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=7.5, color=colour)
    name_ticks(axes, names)
    name_ticks(axes, names, vertical=True)
    axes.set(xlabel="predicted", ylabel="true")
    ticks = [0, 1, 5, 20, 50, 100]
    add_colour_bar(figure, image, axes, "share of the true class", shrink=0.8, ticks=ticks, format="%d%%")
    set_title(figure, f"{title}: error {wrong / num_examples:.2%} ({wrong:,} of {num_examples:,} examples)")
    return figure


def plot_reliability(probabilities: Any, y: Any, *, num_bins: int = 15, title: str = "Reliability") -> Figure:
    """Draw the accuracy of a classifier against its confidence, the probability of the predicted class.

    Examples are sorted by confidence into bins of equal width. The expected calibration error (ECE) is the mean over
    examples of the difference between accuracy and mean confidence of their bin. (On Calibration of Modern Neural
    Networks, Guo et al., 2017, https://arxiv.org/abs/1706.04599, equation 3.)

    Args:
        probabilities: q(y|x), with shape ``(N, K)``; arrays, tensors on any device or lists.
        y: True classes, with shape ``(N,)``.
        num_bins: Number of bins between 0 and 1.
        title: Beginning of the title, followed by the ECE.

    Returns:
        Accuracy against mean confidence of each bin, with its 68% interval, above the share of examples in each bin.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If the values are not probabilities, or do not fit the labels.

    Example:
        >>> figure = plot_reliability([[0.9, 0.1], [0.8, 0.2]], [0, 1])
        >>> figure.get_suptitle()
        'Reliability: expected calibration error 45.0%'
    """
    p = _as_probabilities(probabilities)
    true = as_classes(y, "y", len(p), p.shape[1]).numpy()
    num_bins = as_count(num_bins, "num_bins", least=1)
    confidence, correct = p.max(1), p.argmax(1) == true
    index = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(index, minlength=num_bins)
    full = counts > 0
    n = counts[full]
    accuracy = np.bincount(index, correct, num_bins)[full] / n
    mean_confidence = np.bincount(index, confidence, num_bins)[full] / n
    calibration_error = float((n * np.abs(accuracy - mean_confidence)).sum() / n.sum())

    figure = new_figure(4.6, 5.2)
    axes, share = figure.subplots(2, 1, sharex=True, height_ratios=[3.5, 1])
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.0, linestyle="--", label="calibrated")
    low, high = _wilson_interval(accuracy, n)
    points: dict[str, Any] = {"color": ACCENT, "linestyle": "", "marker": "o", "markersize": 5, "elinewidth": 1.0}
    interval = [accuracy - low, high - accuracy]
    axes.errorbar(mean_confidence, accuracy, interval, clip_on=False, label="model, 68% interval", **points)
    style_axes(axes, grid=True)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), ylabel="accuracy")
    axes.legend(loc="upper left", fontsize=8, frameon=False, labelcolor=INK)
    edges = np.linspace(0, 1, num_bins + 1)
    bars = {"color": ACCENT, "edgecolor": "white"}
    share.bar(edges[:-1], counts / len(p), np.diff(edges), align="edge", **bars)
    style_axes(share)
    share.yaxis.set_major_formatter("{x:.0%}")
    share.set(xlabel="confidence: probability of the predicted class", ylabel="share")
    set_title(
        figure,
        f"{title}: expected calibration error {calibration_error:.1%}",
        f"{len(p):,} examples, accuracy {correct.mean():.1%}, mean confidence {confidence.mean():.1%}",
    )
    return figure


def _wilson_interval(p: NDArray[np.float64], n: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of the 68% Wilson interval of proportions ``p`` of ``n``; it has a width for 0 and 1 too."""
    centre = (p * n + 0.5) / (n + 1)
    half = np.sqrt(n * p * (1 - p) + 0.25) / (n + 1)
    return np.minimum(centre - half, p), np.maximum(centre + half, p)


def _as_probabilities(values: Any) -> NDArray[np.float64]:
    p = to_numpy(values, "probabilities").astype(np.float64)
    if p.ndim != 2 or p.shape[1] < 2 or len(p) == 0:
        raise ValueError(
            f"probabilities have shape {p.shape}; (N, K) with at least one example and two classes is needed, as "
            "model.predict_proba(x) returns them."
        )
    if not ((p >= 0.0).all() and (np.abs(p.sum(1) - 1.0) < 1e-3).all()):
        raise ValueError(
            f"probabilities lie in [{p.min():g}, {p.max():g}] and sum to [{p.sum(1).min():g}, {p.sum(1).max():g}] per "
            "example; they must be non-negative and sum to 1. Convert logits by .softmax(-1)."
        )
    return p
