"""Training curves: what is read, what is drawn, and on which axes."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest

from pyro_ssvae.plots import plot_training_curves
from pyro_ssvae.plots.style import to_png


def make_rows(n=20):
    return [
        {
            "step": 10 * i,
            "epoch": i / 2,
            "seconds": 9.0 * i,
            "train/loss": 100.0 + 900.0 / i,
            "train/bound_unlabelled": -100.0 - 0.1 * i,
            "train/bound_labelled": -101.0 - 0.1 * i,
            "train/classification_loss": 2.0 / i,
            "train/consistency_loss": 0.3,
            "val/kl_z": float(i),
            "val/entropy_y": 1.0 / i,
            "val/mutual_information": 2.0,
            "val/error": 0.05 if i in (3, 7) else 0.06,
            "learning_rate": 1e-3,
        }
        for i in range(1, n + 1)
    ]


def write(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def panel(figure, title):
    (axes,) = (axes for axes in figure.axes if axes.get_title(loc="left") == title)
    return axes


def curve(axes, label=None):
    lines = [line for line in axes.lines if len(line.get_xdata()) > 2]
    return next(line for line in lines if label in (None, line.get_label())).get_xydata()


def test_a_file_and_its_rows_give_the_same_curves(tmp_path):
    rows = make_rows()
    figure = plot_training_curves(write(tmp_path / "metrics.csv", rows))
    again = plot_training_curves(rows)
    assert len(figure.axes) == len(again.axes) == 8
    for axes, other in zip(figure.axes, again.axes, strict=True):
        for line, same in zip(axes.lines, other.lines, strict=True):
            np.testing.assert_array_equal(line.get_xydata(), same.get_xydata())
    shown = curve(panel(figure, "Bound on log p"), "labelled")
    expected = [[row["step"], row["train/bound_labelled"]] for row in rows]
    np.testing.assert_allclose(shown, expected)
    note = "horizontal: training steps · 3.0 minutes · 10 epochs"
    assert figure.get_supxlabel().startswith(note)


def test_the_last_of_the_best_evaluations_is_marked():
    figure = plot_training_curves(make_rows())
    title = "Training: smallest validation error 5.00% at step 70 of 200"
    assert figure.get_suptitle() == title
    marks = panel(figure, "Validation error").lines
    assert any(line.get_xydata().tolist() == [[70.0, 5.0]] for line in marks)
    for axes in figure.axes:
        assert any(list(line.get_xdata()) == [70.0, 70.0] for line in axes.lines)


def test_axes_are_logarithmic_only_where_values_are_positive_and_far_apart():
    figure = plot_training_curves(make_rows())
    scales = {axes.get_title(loc="left"): axes.get_yscale() for axes in figure.axes}
    assert [title for title, scale in scales.items() if scale == "log"] == ["Training loss", "Classification loss"]
    assert "(log)" in panel(figure, "Training loss").get_ylabel()
    assert panel(figure, "KL from posterior to prior of z").get_ylim()[0] == 0.0
    assert panel(figure, "Validation error").get_ylim()[0] == 0.0
    with_zero = [row | {"train/loss": 0.0 if row["step"] == 200 else 9.0} for row in make_rows()]
    assert panel(plot_training_curves(with_zero), "Training loss").get_yscale() == "linear"


def test_panels_say_what_is_good():
    figure = plot_training_curves(make_rows())
    hints = {axes.get_title(loc="left"): [text.get_text() for text in axes.texts] for axes in figure.axes}
    assert hints["Bound on log p"] == ["good: rises, then levels off"]
    assert hints["Validation error"] == ["good: falls, then stays low"]
    assert hints["Learning rate"] == []


def test_a_low_start_of_the_bound_is_cut_off_and_annotated():
    rows = make_rows(30)
    rows[0]["train/bound_unlabelled"] = -600.0
    axes = panel(plot_training_curves(rows), "Bound on log p")
    assert axes.get_ylabel() == "nats (start cut off)"
    assert axes.get_ylim()[0] > -110.0


def test_blank_cells_and_missing_columns():
    rows = [{"step": i, "train/loss": 1.0, "val/kl_z": "" if i % 2 else 3.0} for i in range(1, 9)]
    rows[4]["train/loss"] = math.nan
    rows.append({"step": "", "train/loss": 7.0})
    figure = plot_training_curves([row | {"val/error": None} for row in rows])
    assert len(figure.axes) == 2
    assert curve(panel(figure, "KL from posterior to prior of z"))[:, 0].tolist() == [2, 4, 6, 8]
    assert curve(panel(figure, "Training loss"))[:, 0].tolist() == [1, 2, 3, 4, 6, 7, 8]
    assert figure.get_suptitle() == "Training"


def test_without_errors_the_last_of_the_highest_bounds_is_marked():
    rows = [{"step": i, "val/bound": bound} for i, bound in enumerate([-9.0, -5.0, -5.0, -7.0], 1)]
    figure = plot_training_curves(rows)
    assert figure.get_suptitle() == "Training: highest validation bound -5.00 nats at step 3 of 4"
    assert [list(line.get_xdata()) for line in figure.axes[0].lines if line.get_linestyle() == ":"] == [[3, 3]]


def test_training_and_validation_of_one_quantity_share_a_panel():
    names = ["train/energy_gap", "val/energy_gap", "val/energy_data", "train/gradient_norm_energy", "val/mine"]
    rows = [{"step": i} | {name: float(i + k) for k, name in enumerate(names)} for i in range(1, 5)]
    figure = plot_training_curves(rows)
    gap = panel(figure, "Energy of data minus samples")
    assert curve(gap, "training")[:, 1].tolist() == [1, 2, 3, 4]
    assert curve(gap, "validation")[:, 1].tolist() == [2, 3, 4, 5]
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert len(titles) == 4
    assert titles[-1] == "val/mine"


def test_other_columns_are_shown_if_they_hold_numbers(tmp_path):
    rows = [{"step": i, "my_loss": 0.1 * i, "note": "fine"} for i in range(1, 5)]
    figure = plot_training_curves(write(tmp_path / "m.csv", rows))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["my_loss"]


def test_a_single_evaluation_is_drawn():
    assert to_png(plot_training_curves([{"step": 1, "train/loss": 2.0}])).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no row"),
        ([{"train/loss": 1.0}], "'step' is needed"),
        ([{"step": ""}], "'step' is needed"),
        ([{"step": 1}], "at least one more column"),
        ([{"step": 1, "train/loss": "high"}], "Column train/loss of metrics must hold numbers"),
    ],
)
def test_useless_metrics_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        plot_training_curves(rows)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        plot_training_curves(tmp_path / "none.csv")
