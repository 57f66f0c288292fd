import os

import numpy as np
import pytest

from pyro_ssvae.data.labels import LabelSplit, draw_label_split
from pyro_ssvae.data.sources import select_last


@pytest.fixture
def y():
    return np.random.default_rng(5).integers(0, 10, 600)


@pytest.mark.parametrize("num_labels", [10, 100, 200])
@pytest.mark.parametrize("seed", [0, 1])
def test_balanced_draw_is_the_first_of_a_permutation_per_class(y, num_labels, seed):
    rng = np.random.default_rng(seed)
    expected = [rng.permutation(np.flatnonzero(y == c))[: num_labels // 10] for c in range(10)]
    drawn = draw_label_split(y, num_labels, 10, seed)
    assert drawn.tolist() == sorted(np.concatenate(expected).tolist())


def test_remainder_adds_one_example_to_some_classes_and_changes_no_other(y):
    even, odd = draw_label_split(y, 100, 10, seed=3), draw_label_split(y, 107, 10, seed=3)
    assert set(even) < set(odd)
    counts = np.bincount(y[odd], minlength=10)
    assert sorted(counts) == [10] * 3 + [11] * 7


def test_fewer_labels_than_classes(y):
    assert sorted(np.bincount(y[draw_label_split(y, 4, 10)], minlength=10)) == [0] * 6 + [1] * 4


def test_unbalanced_draw_is_a_permutation_of_all_examples(y):
    drawn = draw_label_split(y, 50, 10, seed=2, balanced=False)
    expected = np.random.default_rng(2).permutation(len(y))[:50]
    assert drawn.tolist() == sorted(expected.tolist())


@pytest.mark.parametrize("balanced", [True, False])
def test_unbalanced_draw_sees_no_label(y, balanced):
    other = np.roll(y, 1)
    same = np.array_equal(
        draw_label_split(y, 50, 10, balanced=balanced), draw_label_split(other, 50, 10, balanced=balanced)
    )
    assert same != balanced


@pytest.mark.parametrize("num_labels", ["all", 600])
@pytest.mark.parametrize("balanced", [True, False])
def test_all_labels(y, num_labels, balanced):
    assert draw_label_split(y, num_labels, 10, balanced=balanced).tolist() == list(range(600))
    with pytest.warns(UserWarning, match="num_labels=10000: only 600 examples"):
        assert len(draw_label_split(y, 10_000, 10, balanced=balanced)) == 600


def test_no_labels(y):
    assert len(draw_label_split(y, 0, 10)) == 0


@pytest.mark.parametrize("balanced", [True, False])
def test_unlabelled_examples_are_never_drawn(y, balanced):
    y[::2] = -1
    for num_labels in (30, "all"):
        assert (y[draw_label_split(y, num_labels, 10, balanced=balanced)] >= 0).all()


def test_one_example_per_class():
    assert draw_label_split(np.array([2, 0, 1]), 3, 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("num_labels", range(1, 12))
def test_any_number_up_to_the_largest_is_possible(num_labels):
    y = np.repeat([0, 1, 2], [3, 5, 4])  # 3 * 3 + 2 = 11
    assert len(draw_label_split(y, num_labels, 3)) == num_labels


def test_too_many_balanced_labels():
    y = np.repeat([0, 1, 2], [3, 50, 40])
    with pytest.raises(ValueError, match=r"class 0 has 3 examples. Largest possible: num_labels=11"):
        draw_label_split(y, 12, 3)
    assert len(draw_label_split(y, 11, 3)) == 11
    assert len(draw_label_split(y, 12, 3, balanced=False)) == 12


def test_a_class_without_examples():
    y = np.repeat([0, 2], 20)
    assert sorted(y[draw_label_split(y, 2, 3)]) == [0, 2]
    with pytest.raises(ValueError, match=r"class 1 has 0 examples. Largest possible: num_labels=2;"):
        draw_label_split(y, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"num_labels": "every"}, ValueError, "num_labels='every' must be an integer or 'all'"),
        ({"num_labels": -1}, ValueError, "num_labels=-1 is too small"),
        ({"num_labels": 1.5}, TypeError, "num_labels=1.5 is of type float"),
    ],
)
def test_draw_refused(arguments, error, text):
    y = np.arange(10)
    with pytest.raises(error, match=text):
        draw_label_split(y, **{"num_labels": 10, "num_classes": 10, "seed": 0} | arguments)


def test_select_last():
    indices = np.array([0, 2, 4])
    assert select_last(indices, 2, 5).tolist() == [2, 4]
    assert select_last(indices, 0, 5).tolist() == []
    with pytest.raises(ValueError, match="num_validation=4 .* 3 of them with labels; at most 3"):
        select_last(indices, 4, 5)
    with pytest.raises(ValueError, match="at most 2"):
        select_last(indices, 3, 3)


def test_split_round_trip(tmp_path):
    split = LabelSplit(np.array([5, 1]), np.array([8, 9]), seed=7, balanced=False)
    split.save(tmp_path / "split.npz")
    loaded = LabelSplit.load(str(tmp_path / "split.npz"))
    assert loaded == split
    assert loaded.labelled.tolist() == [1, 5]
    assert repr(loaded) == "LabelSplit(2 labelled, 2 validation, seed=7, balanced=False)"


@pytest.mark.parametrize(
    "other",
    [
        LabelSplit([1], [2], seed=0, balanced=False),
        LabelSplit([1], [2], seed=1, balanced=True),
        LabelSplit([3], [2], seed=0, balanced=True),
        LabelSplit([1], [], seed=0, balanced=True),
        "split",
    ],
)
def test_splits_differ(other):
    assert LabelSplit([1], [2], seed=0, balanced=True) != other


def test_split_cannot_be_changed():
    split = LabelSplit([1], [2], seed=0, balanced=True)
    with pytest.raises(ValueError, match="read-only"):
        split.labelled[0] = 3
    with pytest.raises(AttributeError):
        split.seed = 1


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "split.npz"
    first = LabelSplit([1], [2], seed=0, balanced=True)
    first.save(path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        LabelSplit([3], [2], seed=0, balanced=True).save(path)
    assert LabelSplit.load(path) == first
    assert [file.name for file in tmp_path.iterdir()] == ["split.npz"]


@pytest.mark.parametrize(
    ("labelled", "validation", "error", "text"),
    [
        ([1, 1], [], ValueError, "labelled holds negative or repeated indices"),
        ([1], [-1], ValueError, "validation holds negative"),
        ([1, 2], [2], ValueError, "Example 2 is both labelled and held out"),
        ([0.5], [], TypeError, "indices are needed"),
        ([[1]], [], TypeError, r"labelled has shape \(1, 1\)"),
        (["a"], [], TypeError, "dtype <U1"),
    ],
)
def test_split_refused(labelled, validation, error, text):
    with pytest.raises(error, match=text):
        LabelSplit(labelled, validation, seed=0, balanced=True)


def test_loading_what_is_no_split(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        LabelSplit.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", labelled=[1])
    with pytest.raises(ValueError, match="lacks validation, seed, balanced; it holds labelled"):
        LabelSplit.load(tmp_path / "other.npz")
    np.savez(tmp_path / "odd.npz", labelled=[1], validation=[2], seed=[0, 1], balanced=True)
    with pytest.raises(ValueError, match="does not hold a label split"):
        LabelSplit.load(tmp_path / "odd.npz")
