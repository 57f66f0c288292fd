"""Labels as numbers and words, and what marks an unlabelled example."""

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_ssvae import SemiSupervisedData

X = np.arange(12.0).reshape(6, 2)


def build(y, **others):
    return SemiSupervisedData.from_arrays(X, y, **others)


@pytest.mark.parametrize(
    "y",
    [
        ["dog", "cat", "", "dog", "cat", "-1"],
        ["dog", "cat", None, "dog", "cat", -1],
        ["dog", "cat", np.nan, "dog", "cat", " "],
        [b"dog", b"cat", b"", b"dog", b"cat", b""],
        [b"dog", b"cat", None, b"dog", b"cat", np.nan],
        np.array(["dog", "cat", None, "dog", "cat", np.nan], dtype=object),
        np.array([["dog"], ["cat"], [""], ["dog"], ["cat"], [""]]),
        np.array(["dog", "cat", pd.NA, "dog", "cat", pd.NaT], dtype=object),
        np.ma.array(["dog", "cat", "ox", "dog", "cat", "ox"], mask=[0, 0, 1, 0, 0, 1]),
    ],
)
def test_words(y):
    data = build(y, x_test=X[:3], y_test=["cat", "dog", ""])
    assert (data.num_classes, data.class_names) == (2, ("cat", "dog"))
    assert data.y.tolist() == [1, 0, -1, 1, 0, -1]
    assert data.y_test.tolist() == [0, 1, -1]


@pytest.mark.parametrize(
    "y",
    [
        [0, 1, None, 0, 1, -1],
        [0.0, 1.0, np.nan, 0.0, 1.0, -1.0],
        np.array([0, 1, np.nan, False, True, ""], dtype=object),
        np.ma.array([0, 1, 5, 0, 1, 7], mask=[0, 0, 1, 0, 0, 1]),
        torch.tensor([[0], [1], [-1], [0], [1], [-1]]),
    ],
)
@pytest.mark.filterwarnings("error")
def test_numbers(y):
    data = build(y)
    assert (data.num_classes, data.class_names, data.y.tolist()) == (2, ("0", "1"), [0, 1, -1, 0, 1, -1])


def test_class_names_order_words_and_may_have_no_example():
    with pytest.warns(UserWarning, match="labelled as class ox"):
        data = build(["dog", "cat", "", "", "", ""], class_names=["ox", "dog", "cat"])
    assert (data.num_classes, data.y.tolist()) == (3, [1, 2, -1, -1, -1, -1])
    with pytest.warns(UserWarning, match="labelled as class c"):
        assert build([0, 1, -1, -1, -1, -1], class_names=["a", "b", "c"]).num_classes == 3


def test_no_words_are_no_classes():
    assert build([""] * 6).num_classes is None
    assert build([None] * 6).num_classes is None
    assert build(None, x_test=X[:2], y_test=["a", "b"]).class_names == ("a", "b")


def test_numbers_with_gaps_become_names():
    with pytest.warns(UserWarning, match=r"classes 3, 7 are numbered from 0.*num_classes=8 to keep") as caught:
        data = build([3, 7, -1, 7, 3, -1], x_test=X[:2], y_test=[7, -1])
    assert len(caught) == 1
    assert (data.class_names, data.y.tolist()) == (("3", "7"), [0, 1, -1, 1, 0, -1])
    assert data.y_test.tolist() == [1, -1]
    with pytest.warns(UserWarning, match="labelled as class 0, 1, 2, 4"):
        assert build([3, 5, -1, -1, -1, -1], num_classes=6).y.tolist() == [3, 5, -1, -1, -1, -1]


@pytest.mark.parametrize(
    ("y", "options", "error", "text"),
    [
        ([-1, 1] * 3, {}, ValueError, "labels are -1 and 1, and -1 marks an unlabelled.*pass y > 0.*num_classes="),
        ([-1, 0] * 3, {}, ValueError, "class 0 alone, which does not determine.*num_classes="),
        (["a"] * 6, {}, ValueError, "class 'a' alone; label an example of another class"),
        (["a"] * 6, {"num_classes": 2}, ValueError, r"num_classes=2, .* 1 classes \(a\); label an example of each"),
        ("y.npy", {}, TypeError, r"y='y.npy' is one text.*numpy.load"),
        ([0, 2] * 3, {"num_classes": 2}, ValueError, "y holds label 2, but num_classes=2 allows 0 to 1"),
        ([-(2**70), None] * 3, {}, ValueError, "y holds labels from .*; classes are counted from 0"),
        (None, {"num_classes": 0}, ValueError, "num_classes=0 is too small"),
        (None, {"num_classes": 65_537}, ValueError, "too large"),
        (None, {"num_classes": 2.0}, TypeError, "num_classes=2.0 is of type float"),
        (None, {"num_classes": True}, TypeError, "num_classes=True is of type bool"),
        (["a", "b"] * 3, {"num_classes": 3}, ValueError, r"num_classes=3, and the labels hold 2 classes \(a, b\)"),
        (["a", "b"] * 3, {"class_names": ["a", "c"]}, ValueError, "y holds the class 'b', which is none of a, c"),
        (["a", "b"] * 3, {"x_test": X[:1], "y_test": ["bird"]}, ValueError, "y_test holds the class 'bird'.*of a, b"),
        ([0, 1] * 3, {"x_test": X[:1], "y_test": ["bird"]}, ValueError, "y_test holds the class 'bird'.*of 0, 1"),
        ([0, 1] * 3, {"class_names": "ab"}, TypeError, "class_names='ab' must be a list"),
        ([0, 1] * 3, {"class_names": ["a", "a"]}, ValueError, "must differ"),
        (["a", ("b",), "a", "b", "a", "b"], {}, ValueError, "no rectangular array"),
        (np.array(["a", {}] * 3, dtype=object), {}, TypeError, "label of type dict"),
        (pd.Series([[1], [2, 3], None] * 2), {}, TypeError, "label of type list"),
        (np.array(["2020-01-01"] * 6, dtype="datetime64[D]"), {}, TypeError, r"y has dtype datetime64\[D\]"),
        ([0, 0.5] * 3, {}, ValueError, r"y\[1\] is 0.5; labels are whole numbers or words"),
        ((label for label in "ababab"), {}, TypeError, "y is of type generator"),
        (["a", "b"], {}, ValueError, "y holds 2 labels for 6 examples"),
    ],
)
def test_refused(y, options, error, text):
    with pytest.raises(error, match=text):
        build(y, **options)


def test_labels_that_look_mistyped_are_warned_about():
    y = ["cat", "dog"] * 3
    with pytest.warns(UserWarning, match="Only one example has the label dgo: is it mistyped"):
        SemiSupervisedData.from_arrays(np.zeros((7, 2)), [*y, "dgo"])
    with pytest.warns(UserWarning, match="classes 'Cat ' and 'cat' differ only by case, spaces or"):
        SemiSupervisedData.from_arrays(np.zeros((8, 2)), [*y, "Cat ", "Cat "])
    with pytest.warns(UserWarning, match="'None' is a class; if it marks unlabelled examples, give None or an empty"):
        SemiSupervisedData.from_arrays(np.zeros((9, 2)), np.array([0, 1, None] * 3, dtype=object).astype(str))
    with pytest.warns(UserWarning, match="spaces or coding"):
        SemiSupervisedData.from_arrays(np.zeros((4, 2)), ["M\u00fcll", "Mu\u0308ll"] * 2)


class Images(torch.utils.data.Dataset):
    """As an ImageFolder of torchvision."""

    def __init__(self, classes, target_transform=None):
        self.classes, self.target_transform = classes, target_transform

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return np.full((5, 5, 3), 40 * index, np.uint8), index % 3


def test_names_of_the_classes_of_a_data_set():
    names = ["cat", "dog", "ant"]  # in the order of the numbers
    images = Images(names)
    some = torch.utils.data.Subset(images, [3, 4, 5])
    for given in (images, torch.utils.data.DataLoader(images), some):
        data = SemiSupervisedData.from_arrays(given)
        assert data.class_names == tuple(names)
        assert data.y.tolist() == [0, 1, 2] * (1 if given is some else 2)
    others = (Images(names[:2]), Images(["cat"] * 3), Images([1, 2, 3]), Images(names, target_transform=abs))
    for given, y in (*((other, None) for other in others), (images, [2, 1, 0] * 2)):
        assert SemiSupervisedData.from_arrays(given, y).class_names == ("0", "1", "2")
