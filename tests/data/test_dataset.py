import dataclasses
import re

import numpy as np
import pytest
import torch

from pyro_ssvae import SemiSupervisedData
from pyro_ssvae.data.labels import LabelSplit, draw_label_split

X = np.arange(12, dtype=np.uint8).reshape(6, 2)
Y = np.array([0, 1, -1, 2, -1, -1])


def same_tensors(a, b):
    fields = ["x", "y", "x_validation", "y_validation", "x_test", "y_test"]
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in fields)


def content(value):
    """Every byte of a data set and of what it holds."""
    if dataclasses.is_dataclass(value):
        return {name: content(part) for name, part in vars(value).items()}
    if isinstance(value, torch.Tensor):
        return bytes(value.untyped_storage()), value.shape, value.dtype
    if isinstance(value, np.ndarray):
        assert value.base is None
        return value.tobytes(), value.shape, value.dtype
    return value


def test_from_arrays():
    data = SemiSupervisedData.from_arrays(
        X, Y, x_validation=X[:1], y_validation=[0], x_test=X[:2], y_test=[0.0, 1.0], name="mine"
    )
    assert (data.num_labelled, data.num_unlabelled, data.num_classes) == (3, 3, 3)
    assert data.labelled_index.tolist() == [0, 1, 3]
    assert data.unlabelled_index.tolist() == [2, 4, 5]
    assert data.event_shape == (2,)
    assert (data.scale, data.name, data.class_names) == (1.0, "mine", ("0", "1", "2"))
    assert data.split is None
    assert data.y_test.dtype == data.y.dtype == torch.int64
    assert "3 labelled and 3 unlabelled examples of shape (2,), 3 classes" in repr(data)
    with pytest.raises(AttributeError):
        data.num_classes = 4


def test_from_arrays_without_held_out_examples():
    data = SemiSupervisedData.from_arrays(X.tolist(), Y.tolist())
    assert data.x.dtype == torch.float32
    assert data.scale == 1.0
    assert data.x_validation.shape == data.x_test.shape == (0, 2)
    assert data.y_validation.shape == data.y_test.shape == (0,)
    assert data.y_test.dtype == torch.int64
    empty = SemiSupervisedData.from_arrays(X, [0, 1, 0, 1, 0, 1], x_test=X[:0], y_test=[])
    assert (empty.x_test.shape, empty.x_test.dtype, empty.num_unlabelled) == ((0, 2), torch.uint8, 0)


def test_number_of_classes_comes_from_every_label():
    with pytest.warns(UserWarning, match="labelled as class 3"):
        data = SemiSupervisedData.from_arrays(X, Y, x_test=X[:1], y_test=[3])
    assert data.num_classes == 4


def test_classes_without_label_warn():
    with pytest.warns(UserWarning, match="clustering") as caught:
        data = SemiSupervisedData.from_arrays(X, [-1] * 6, num_classes=2)
    assert (len(caught), data.num_labelled) == (1, 0)
    with pytest.warns(UserWarning, match="labelled as class cat, dog: nothing ties"):
        SemiSupervisedData.from_arrays(X, [0, -1, -1, -1, -1, -1], num_classes=3, class_names=["ox", "cat", "dog"])
    with pytest.warns(UserWarning, match=re.escape("class 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...")):
        SemiSupervisedData.from_arrays(X, [0, -1, -1, -1, -1, -1], num_classes=12)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"x": np.zeros(6)}, ValueError, r"x has shape \(6,\); \(N, D\) or"),
        ({"x": np.full((6, 2), np.nan)}, ValueError, "x holds no value but NaN"),
        ({"x": np.stack([X[:, 0], np.full(6, np.nan)], 1)}, ValueError, "No row of x has a value in column 1; leave"),
        ({"x": np.full((6, 2), np.inf)}, ValueError, "12 values that are infinite"),
        ({"x": X.astype(str)}, TypeError, "x has dtype <U3"),
        ({"x": X[:0], "y": []}, ValueError, "no values"),
        ({"y": Y[:4]}, ValueError, "y holds 4 labels for 6 examples"),
        ({"y": Y - 1}, ValueError, "labels from -2 to 1"),
        ({"y": Y + 0.5}, ValueError, "whole numbers"),
        ({"num_classes": 2}, ValueError, "y holds label 2, but num_classes=2"),
        ({"y_test": [5], "x_test": X[:1], "num_classes": 3}, ValueError, "y_test holds label 5"),
        ({"y_test": [-2], "x_test": X[:1]}, ValueError, "y_test holds labels from -2"),
        ({"y_validation": [float("inf")], "x_validation": X[:1]}, ValueError, r"y_validation\[0\] is inf"),
        ({"name": 3}, TypeError, "name=3 is of type int; a string"),
        ({"split": "random"}, TypeError, "split='random' must be a LabelSplit"),
        ({"scale": "255"}, TypeError, "scale='255' is of type str; a number"),
        ({"y_validation": [0]}, ValueError, "y_validation was given without x_validation"),
        ({"x_test": X[:1, :1], "y_test": [0]}, ValueError, r"x_test has examples of shape \(1,\) .* x has \(2,\)"),
        (
            {"x_validation": X[:1] / 255, "y_validation": [0]},
            ValueError,
            "dtype torch.float32, x has .* torch.uint8; both must be alike",
        ),
        ({"x_test": X[:2], "y_test": [0]}, ValueError, "y_test holds 1 labels for 2 examples"),
        ({"scale": 0}, ValueError, "scale=0.0 must be above 0"),
        ({"class_names": ["a"]}, ValueError, "class_names holds 1 names for 3 classes"),
        ({"split": LabelSplit([0], [], seed=0, balanced=True)}, ValueError, "split has 1 labelled examples, y has 3"),
    ],
)
def test_from_arrays_refused(arguments, error, text):
    with pytest.raises(error, match=text):
        SemiSupervisedData.from_arrays(**{"x": X, "y": Y} | arguments)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (60, 6, 5), dtype=np.uint8),
        "y_train": np.arange(60) % 3,
        "x_test": rng.integers(0, 256, (9, 6, 5), dtype=np.uint8),
        "y_test": np.arange(9) % 3,
    }


@pytest.fixture
def write(tmp_path):
    def write_npz(arrays):
        np.savez(tmp_path / "mine.npz", **arrays)
        return tmp_path / "mine.npz"

    return write_npz


def test_from_npz_keeps_every_label(write, images):
    data = SemiSupervisedData.from_npz(write(images))
    assert data.x.shape == (60, 1, 6, 5)
    assert data.x.dtype == torch.uint8
    assert (data.num_labelled, data.name, data.num_classes, data.scale) == (60, "mine", 3, 255.0)
    assert data.x_validation.shape == (0, 1, 6, 5)
    assert data.x_test.shape == (9, 1, 6, 5)
    assert len(data.split.labelled) == 60


def test_from_npz_draws_labels_and_holds_the_last_examples_out(write, images):
    data = SemiSupervisedData.from_npz(write(images), num_labels=6, num_validation=15, seed=1)
    assert (data.num_labelled, data.num_unlabelled) == (6, 39)
    assert torch.equal(data.x_validation.squeeze(1), torch.from_numpy(images["x_train"][45:]))
    assert data.y_validation.tolist() == images["y_train"][45:].tolist()
    assert data.split.validation.tolist() == list(range(45, 60))
    assert data.split.labelled.tolist() == data.labelled_index.tolist()
    assert data.y[data.labelled_index].bincount().tolist() == [2, 2, 2]
    assert data.y[data.labelled_index].tolist() == images["y_train"][data.split.labelled].tolist()


def test_from_npz_takes_minus_one_as_unlabelled(write, images):
    images["y_train"][10:] = -1
    data = SemiSupervisedData.from_npz(write(images), num_validation=3)
    assert data.num_labelled == 7
    assert data.split.validation.tolist() == [7, 8, 9]
    assert data.split.labelled.tolist() == list(range(7))
    drawn = SemiSupervisedData.from_npz(write(images), num_labels=3)
    assert (drawn.num_labelled, len(drawn.x)) == (3, 60)
    assert max(drawn.split.labelled) < 10


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_from_npz_moves_channels_first(write, images, channels):
    for name in ("x_train", "x_test"):
        images[name] = np.repeat(images[name][..., None], channels, -1)
    data = SemiSupervisedData.from_npz(write(images))
    assert data.event_shape == (channels, 6, 5)
    assert torch.equal(data.x[:, -1], torch.from_numpy(images["x_train"][..., 0]))


def test_from_npz_of_a_table_without_test_examples(write):
    arrays = {"x_train": np.zeros((4, 7)), "y_train": np.array([[0], [1], [0], [1]])}
    data = SemiSupervisedData.from_npz(write(arrays), num_classes=2, scale=2)
    assert data.event_shape == (7,)
    assert data.y.tolist() == [0, 1, 0, 1]
    assert len(data.x_test) == 0
    assert data.scale == 2.0


def test_from_npz_without_classes(write, images):
    data = SemiSupervisedData.from_npz(write({"x_train": images["x_train"], "x_test": images["x_test"]}), num_labels=6)
    assert (data.num_labelled, data.num_unlabelled, len(data.x_test)) == (0, 60, 9)
    assert (data.num_classes, data.class_names, data.y_test.tolist()) == (None, (), [-1] * 9)
    alone = SemiSupervisedData.from_npz(write({"x_train": images["x_train"]}), num_validation=7)
    assert (alone.num_unlabelled, len(alone.x_validation), len(alone.x_test)) == (53, 7, 0)


def test_from_arrays_without_classes(images):
    data = SemiSupervisedData.from_arrays(images["x_train"], x_test=images["x_test"])
    assert (data.num_labelled, data.num_unlabelled, len(data.x_test), data.split) == (0, 60, 9, None)
    assert (data.num_classes, data.class_names, data.y_test.tolist()) == (None, (), [-1] * 9)
    assert "no classes" in repr(data)
    assert same_tensors(data.without_labels(), data)
    empty = SemiSupervisedData.from_arrays(images["x_train"], np.full(60, -1), x_test=images["x_test"])
    assert same_tensors(empty, data)
    assert empty.num_classes is None
    with pytest.raises(ValueError, match="y_test was given without x_test"):
        SemiSupervisedData.from_arrays(images["x_train"], images["y_train"], y_test=images["y_test"])
    assert SemiSupervisedData.from_arrays(images["x_train"], class_names=["a", "b"]).num_classes == 2


def test_classes_may_be_stated_without_labels():
    data = SemiSupervisedData.from_arrays(X, num_classes=3, x_test=X[:2])
    assert (data.num_classes, data.class_names) == (3, ("0", "1", "2"))
    assert data.y.tolist() == [-1] * 6
    assert data.y_test.tolist() == [-1, -1]


def test_held_out_labels_alone_make_the_classes_known():
    data = SemiSupervisedData.from_arrays(X, x_test=X[:2], y_test=[0, 1])
    assert (data.num_classes, data.num_labelled, data.y_test.tolist()) == (2, 0, [0, 1])
    assert data.without_labels().num_classes == 2


def test_held_out_examples_may_be_unlabelled():
    data = SemiSupervisedData.from_arrays(X, Y, x_validation=X[:3], y_validation=[1, -1, 0], x_test=X[:2])
    assert data.y_validation.tolist() == [1, -1, 0]
    assert data.y_test.tolist() == [-1, -1]
    x, y = data.known_validation
    assert x.tolist() == X[[0, 2]].tolist()
    assert y.tolist() == [1, 0]
    assert data.without_labels().y_validation.tolist() == [1, -1, 0]
    known = SemiSupervisedData.from_arrays(X, Y, x_validation=X[:2], y_validation=[0, 1])
    assert known.known_validation[0] is known.x_validation


def test_from_npz_with_some_labels_missing(write, images):
    images["y_test"][:4] = -1
    data = SemiSupervisedData.from_npz(write(images), num_labels=6)
    assert data.y_test.tolist() == images["y_test"].tolist()
    unlabelled = images | {"y_train": np.full(60, -1)}
    with pytest.warns(UserWarning, match="clustering"):
        assert SemiSupervisedData.from_npz(write(unlabelled)).num_classes == 3
    del images["y_test"]
    assert SemiSupervisedData.from_npz(write(images)).y_test.tolist() == [-1] * 9
    images["y_train"][:] = -1
    assert SemiSupervisedData.from_npz(write(images)).num_classes is None


def test_hidden_labels_are_not_stored(write, images):
    before = SemiSupervisedData.from_npz(write(images), num_labels=6, balanced=False)
    hidden = np.setdiff1d(np.arange(60), before.split.labelled)
    images["y_train"][hidden] = np.roll(images["y_train"][hidden], 1)
    after = SemiSupervisedData.from_npz(write(images), num_labels=6, balanced=False)
    assert content(after) == content(before)


def test_hidden_labels_are_not_stored_in_a_balanced_split(images):
    x, y = images["x_train"], images["y_train"]
    labelled = draw_label_split(y, 6, num_classes=3)
    changed = np.where(np.isin(np.arange(60), labelled), y, 2 - y)
    assert (changed != y).any()
    hidden = np.setdiff1d(np.arange(len(y)), labelled)
    y[hidden] = changed[hidden] = -1
    before, after = (SemiSupervisedData.from_arrays(x, labels) for labels in (y, changed))
    assert content(after) == content(before)


def test_images_of_any_layout_get_channels_first(images):
    grey = images["x_train"]
    colour = np.repeat(grey[..., None], 3, -1)
    assert SemiSupervisedData.from_arrays(grey / 255).event_shape == (1, 6, 5)
    data = SemiSupervisedData.from_arrays(colour, x_test=np.moveaxis(colour, -1, 1), x_validation=colour[:2])
    assert data.event_shape == (3, 6, 5)
    assert torch.equal(data.x, data.x_test)
    assert torch.equal(data.x[:2], data.x_validation)
    assert torch.equal(data.x[:, 2], torch.from_numpy(grey))
    with pytest.warns(UserWarning, match=r"taken as 4 channels of 5 x 3 pixels.*numpy.moveaxis\(x, -1, 1\)"):
        assert SemiSupervisedData.from_arrays(colour[:, :4]).event_shape == (4, 5, 3)


class Pairs(torch.utils.data.Dataset):
    """Items beyond its length exist too, as in many data sets that people write."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.full((1, 5, 5), float(index)), ["cat", "dog"][index % 2]


def test_data_sets_of_pytorch():
    for given in (Pairs(), torch.utils.data.DataLoader(Pairs(), batch_size=4, shuffle=True)):
        data = SemiSupervisedData.from_arrays(given, x_test=given)
        assert data.x[:, 0, 2, 2].tolist() == [0, 1, 2, 3, 4, 5]
        assert data.y.tolist() == data.y_test.tolist() == [0, 1, 0, 1, 0, 1]
        assert data.class_names == ("cat", "dog")
    rows = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    data = SemiSupervisedData.from_arrays(rows)
    assert (data.x.tolist(), data.y.tolist(), data.x.dtype) == (X.tolist(), Y.tolist(), torch.uint8)
    few = SemiSupervisedData.from_arrays(rows, [0, 1, -1, -1, -1, -1])
    assert few.num_labelled == 2
    alone = torch.utils.data.TensorDataset(torch.from_numpy(X))
    assert SemiSupervisedData.from_arrays(alone).num_unlabelled == 6


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(2)


@pytest.mark.parametrize(
    ("dataset", "text"),
    [
        (Endless(), "x is a Endless without a length"),
        (torch.utils.data.TensorDataset(*map(torch.from_numpy, (X, Y, Y))), "items of x, a TensorDataset, must be"),
        (torch.utils.data.TensorDataset(torch.zeros(0, 2)), "items of x, a TensorDataset, must be"),
    ],
)
def test_data_sets_of_pytorch_refused(dataset, text):
    with pytest.raises(TypeError, match=text):
        SemiSupervisedData.from_arrays(dataset)


def test_from_npz_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.npz does not exist; an .npz file is needed"):
        SemiSupervisedData.from_npz(tmp_path / "none.npz")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        SemiSupervisedData.from_npz(tmp_path)
    with pytest.raises(TypeError, match="path=3 is of type int"):
        SemiSupervisedData.from_npz(3)
    with pytest.raises(ValueError, match="path is empty"):
        SemiSupervisedData.from_npz("")


def test_from_npz_of_other_files(tmp_path, write, images):
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "array.npy", np.zeros(3))
    content = bytearray(write(images).read_bytes())
    (tmp_path / "half.npz").write_bytes(content[:2000])
    content[500] ^= 255
    (tmp_path / "damaged.npz").write_bytes(content)
    for name in ("text.npz", "array.npy", "half.npz", "damaged.npz"):
        with pytest.raises(ValueError, match="damaged.npz is damaged" if "d" in name else "is not an .npz file"):
            SemiSupervisedData.from_npz(tmp_path / name)


def test_from_npz_reads_words(write, images):
    images["y_train"] = np.array(["ox", "cat", ""] * 20)
    images["y_test"] = np.array(["cat", "ox", ""] * 3)
    data = SemiSupervisedData.from_npz(write(images), num_labels=4, num_validation=5)
    assert (data.class_names, data.num_labelled, data.y_test[:3].tolist()) == (("cat", "ox"), 4, [0, 1, -1])
    assert data.y_validation.tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x_train": None}, ValueError, "lacks x_train; it holds y_train, x_test, y_test"),
        ({"x_test": None}, ValueError, "y_test was given without x_test"),
        ({"x_train": np.array([[{}]] * 60)}, ValueError, "x_train .* object arrays would have to"),
        ({"y_train": np.array(["a"] * 60)}, ValueError, "class 'a' alone"),
        ({"y_train": np.zeros((60, 2))}, ValueError, r"y_train has shape \(60, 2\)"),
        ({"y_train": np.zeros(59)}, ValueError, "59 labels for 60 examples"),
        ({"x_train": np.zeros(60)}, ValueError, r"x_train has shape \(60,\)"),
        ({"x_train": np.zeros((0, 6, 5)), "y_train": np.zeros(0)}, ValueError, "no values"),
        ({"x_test": np.zeros((9, 5, 5), np.uint8)}, ValueError, "x_test has examples of shape"),
        ({"y_test": np.full(9, -2)}, ValueError, "y_test holds labels from -2"),
    ],
)
def test_from_npz_refused(write, images, change, error, text):
    arrays = {name: array for name, array in (images | change).items() if array is not None}
    with pytest.raises(error, match=text):
        SemiSupervisedData.from_npz(write(arrays))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"num_labels": 3.5}, TypeError, "num_labels=3.5"),
        ({"num_labels": 59}, ValueError, "num_labels=59 cannot be drawn.*num_labels=53;"),
        ({"num_validation": 60}, ValueError, "at most 59"),
        ({"num_validation": -1}, ValueError, "num_validation=-1 is too small"),
        ({"seed": 0.5}, TypeError, "seed=0.5"),
        ({"balanced": "no"}, TypeError, "balanced='no' is of type str"),
        ({"num_validation": True}, TypeError, "num_validation=True is of type bool"),
    ],
)
def test_from_npz_numbers_refused(write, images, arguments, error, text):
    images["y_train"] = np.repeat([0, 1, 2], [17, 20, 23])
    with pytest.raises(error, match=text):
        SemiSupervisedData.from_npz(write(images), **arguments)


def test_same_seed_same_data(write, images):
    path = write(images)
    a, b, c = (SemiSupervisedData.from_npz(path, num_labels=9, seed=seed) for seed in (3, 3, 4))
    assert same_tensors(a, b)
    assert a.split == b.split
    assert a.split != c.split
