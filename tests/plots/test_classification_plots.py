"""Confusion matrices and reliability diagrams: the numbers in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyro_ssvae.plots import plot_confusion_matrix, plot_reliability
from pyro_ssvae.plots.style import to_png

TRUE, PREDICTED = [0, 0, 0, 0, 1, 1, 2], [0, 0, 0, 2, 1, 0, 2]


def test_confusion_counts_and_percentages():
    figure = plot_confusion_matrix(TRUE, torch.tensor(PREDICTED), ["a", "b", "c", "d"])
    axes = figure.axes[0]
    percent = np.asarray(axes.images[0].get_array())
    expected = [[75.0, 0, 25, 0], [50, 50, 0, 0], [0, 0, 100, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(percent, expected)
    counts = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    # Across is the prediction, down the truth; zeros are left out.
    assert counts == {(0, 0): "3", (2, 0): "1", (0, 1): "1", (1, 1): "1", (2, 2): "1"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c", "d"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert figure.get_suptitle() == "Confusion matrix: error 28.57% (2 of 7 examples)"


@pytest.mark.parametrize("num_classes", [1, 20, 21, 90])
def test_confusion_matrices_of_any_size(num_classes):
    y = np.arange(2 * num_classes) % num_classes
    figure = plot_confusion_matrix(y, y, title="Test data")
    assert figure.axes[0].images[0].get_array().shape == (num_classes, num_classes)
    assert len(figure.axes[0].texts) == (num_classes if num_classes <= 20 else 0)
    assert figure.get_suptitle().startswith("Test data: error 0.00%")
    assert to_png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("true", "predicted", "names", "message"),
    [
        ([], [], None, "at least one"),
        ([0, 1], [0], None, "1 labels for 2 examples"),
        ([[0, 1]], [0, 1], None, "one class index per example"),
        ([0, -1], [0, 1], None, "-1"),
        ([0, 2], [0, 1], ["a", "b"], "0 to 1 are allowed"),
        ([0, 1], [0.5, 1], None, "whole numbers"),
        ([0, 60_000], [0, 1], None, "60,001 classes, and at most"),
        (["a", "b"], ["a", "a"], ["a", "b"], "y_true holds words; numbers of classes are needed"),
    ],
)
def test_confusion_matrices_refuse_wrong_labels(true, predicted, names, message):
    with pytest.raises((ValueError, TypeError), match=message):
        plot_confusion_matrix(true, predicted, names)


def test_calibration_error_and_points():
    # Two bins are filled: four examples of confidence 0.95, half right, and one of 0.65 that is right.
    p = torch.tensor([[0.95, 0.05]] * 4 + [[0.35, 0.65]])
    figure = plot_reliability(p, [0, 0, 1, 1, 1], num_bins=10)
    points, (low, high) = figure.axes[0].containers[0][0], _ends(figure)
    np.testing.assert_allclose(points.get_xdata(), [0.65, 0.95], rtol=1e-6)
    np.testing.assert_allclose(points.get_ydata(), [1.0, 0.5])
    assert low[0] < 1.0 == high[0]
    assert low[1] == pytest.approx(1.0 - high[1])
    shares = [bar.get_height() for bar in figure.axes[1].patches]
    np.testing.assert_allclose(shares, [0, 0, 0, 0, 0, 0, 0.2, 0, 0, 0.8])
    assert figure.get_suptitle() == "Reliability: expected calibration error 43.0%"
    assert figure.get_supxlabel() == "5 examples, accuracy 60.0%, mean confidence 89.0%"


def _ends(figure):
    """Return the ends of the intervals."""
    (bars,) = figure.axes[0].containers[0][2]
    segments = np.asarray(bars.get_segments())
    return segments[:, 0, 1], segments[:, 1, 1]


def test_a_calibrated_classifier_is_near_the_diagonal():
    generator = torch.Generator().manual_seed(0)
    p = torch.softmax(3.0 * torch.randn(20_000, 4, generator=generator), -1)
    y = torch.multinomial(p, 1, generator=generator)[:, 0]
    figure = plot_reliability(p, y)
    assert float(figure.get_suptitle().split()[-1].rstrip("%")) < 2.0
    low, high = _ends(figure)
    confidence = figure.axes[0].containers[0][0].get_xdata()
    inside = (low <= confidence) & (confidence <= high)
    assert 0.4 < inside.mean() < 0.95  # 68% intervals
    assert to_png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        ([0.5, 0.5], [0], r"have shape \(2,\)"),
        (np.empty((0, 2)), [], "at least one example"),
        ([[2.0, -1.0]], [0], r"must be non-negative and sum to 1.*softmax"),
        ([[0.2, 0.2]], [0], "sum to 1"),
        ([[np.nan, 1.0]], [0], "sum to 1"),
        ([[0.5, 0.5]], [2], "0 to 1 are allowed"),
        ([[0.5, 0.5]], [0, 1], "2 labels for 1 examples"),
    ],
)
def test_reliability_refuses_wrong_values(p, y, message):
    with pytest.raises(ValueError, match=message):
        plot_reliability(p, y)
    with pytest.raises(ValueError, match="num_bins"):
        plot_reliability([[0.5, 0.5]], [0], num_bins=0)
