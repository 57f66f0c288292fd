"""Examples on disk: every kind of source gives the rows that an array in memory gives."""

import copy
import io
import itertools
import os
import pickle
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import sparse
from sklearn.datasets import load_digits

from pyro_ssvae import M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, _arrays, fit
from pyro_ssvae.data import BatchStream, ExampleSource, order, rows, storage
from pyro_ssvae.errors import MissingPackageError
from pyro_ssvae.estimators import M1Transformer, M2Classifier
from pyro_ssvae.evaluation import log_likelihood
from tests.data.sources import SOURCES, Items, N, X, Y, make_dataset, make_npy, make_parquet, make_shards, make_sparse


@pytest.fixture(params=SOURCES)
def given(request, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "MAX_DENSE", 1000)  # sparse matrices and data sets are large
    monkeypatch.setattr(storage, "_BLOCK", 400)
    monkeypatch.setattr(order, "_MIXED", 3000)  # several groups
    return SOURCES[request.param](tmp_path)


def test_every_source_gives_the_rows_of_memory(given):
    data = SemiSupervisedData.from_arrays(given, Y)
    assert isinstance(data.x, ExampleSource)
    assert (data.x.shape, data.x.dtype, data.event_shape) == ((N, 6), torch.float32, (6,))
    rows = torch.tensor([3, 499, 0, 3])
    np.testing.assert_array_equal(data.x[rows], X[rows])
    for row in (3, np.int64(3), torch.tensor(3), 3 - N):
        np.testing.assert_array_equal(data.x[row], X[3])
    np.testing.assert_array_equal(data.x[[-1, 2]], X[[-1, 2]])
    np.testing.assert_array_equal(data.x[X[:, 0] > 1], X[X[:, 0] > 1])
    assert data.x[[]].shape == (0, 6)
    assert len([*data.x]) == N  # iteration ends
    for wrong in (N, -N - 1, [0, N], [-N - 1], np.ones(N + 1, bool)):
        with pytest.raises(IndexError):
            data.x[wrong]
    assert copy.deepcopy(data).x is data.x
    np.testing.assert_array_equal(torch.cat([*data.x.split(90)]), X)
    np.testing.assert_array_equal(data.x.sample, X)  # fewer than 4,096
    memory = SemiSupervisedData.from_arrays(X, Y)
    units, expected = (M2.for_data(one, likelihood="gaussian").likelihood.state_dict() for one in (data, memory))
    assert all(torch.equal(units[name], expected[name]) for name in expected)


def test_a_mapped_file_without_a_name():
    with tempfile.TemporaryFile() as file:
        file.write(X.astype(np.float32).tobytes())
        data = SemiSupervisedData.from_arrays(np.memmap(file, np.float32, "r", shape=X.shape), Y)
    np.testing.assert_array_equal(data.x[:], X.astype(np.float32))


def test_every_row_once_per_pass_and_in_another_order(given):
    data = SemiSupervisedData.from_arrays(given, Y)
    stream = BatchStream(data, batch_size=64, labelled_batch_size=20, seed=1)
    passes = []
    for _ in range(3):
        batches = [*itertools.islice(stream, stream.steps_per_epoch)]
        passes.append(torch.cat([batch.x_unlabelled for batch in batches]).numpy())
        for batch in batches:
            places = [int(np.flatnonzero((X == row).all(1))[0]) for row in batch.x_labelled.numpy()]
            assert Y[places].tolist() == batch.y_labelled.tolist()
    for seen in passes:
        np.testing.assert_array_equal(np.unique(seen, axis=0), np.unique(X[Y < 0], axis=0))
        assert len(seen) == (Y < 0).sum()
    assert not np.array_equal(passes[0], passes[1])
    near = np.abs(np.diff([int(np.flatnonzero((X == row).all(1))[0]) for row in passes[0]]))
    assert np.median(near) > 30  # neighbours in the file are apart


@pytest.mark.parametrize("after", [0, 1, 5, 7, 20])
def test_a_stream_continues_to_the_last_bit(given, after):
    data = SemiSupervisedData.from_arrays(given, Y, scale=2.0)
    stream = BatchStream(data, batch_size=64, labelled_batch_size=20)
    for _ in range(after):
        next(stream)
    file = io.BytesIO()
    torch.save(stream.state_dict(), file)
    expected = [next(stream) for _ in range(10)]
    file.seek(0)
    again = BatchStream(data, batch_size=64, labelled_batch_size=20)
    again.load_state_dict(torch.load(file, weights_only=True))
    for batch in expected:
        assert all(map(torch.equal, batch, next(again)))


def test_a_state_of_other_rows_is_refused(tmp_path):
    path = make_npy(tmp_path)
    state = BatchStream(SemiSupervisedData.from_arrays(path, Y)).state_dict()
    others = (SemiSupervisedData.from_arrays(path, np.roll(Y, 1)), SemiSupervisedData.from_arrays(X, Y))
    for data in others:
        with pytest.raises(ValueError, match="unlabelled examples that are not the 428 unlabelled"):
            BatchStream(data).load_state_dict(state)


@pytest.mark.parametrize(("seed", "joined"), [(0, False), (3, True)])
def test_a_last_batch_of_one_is_joined(tmp_path, seed, joined):
    data = SemiSupervisedData.from_arrays(make_npy(tmp_path), Y)
    stream = BatchStream(data, batch_size=61, seed=seed, join_single=joined)
    sizes = [len(next(stream).x_unlabelled) for _ in range(stream.steps_per_epoch)]
    assert sizes == ([61] * 6 + [62] if joined else [61] * 7 + [1])


def test_predictions_from_disk_equal_those_from_memory(given):
    data = SemiSupervisedData.from_arrays(X, Y)
    model = M2.for_data(data, latent_dim=2, hidden_dims=(8,), likelihood="gaussian")
    for found in (given, SemiSupervisedData.from_arrays(given).x):
        assert torch.equal(model.predict_proba(found), model.predict_proba(X))
    some, expected = (log_likelihood(model, x, num_samples=3).log_px for x in (given, X))
    assert torch.equal(some, expected)
    with pytest.raises(ValueError, match=r"event_shape=\(5,\); got \(500, 6\)"):
        M2((5,), 3).predict(given)


def test_integers_on_disk_are_divided_as_in_memory(tmp_path):
    table = pd.DataFrame(np.random.default_rng(0).integers(0, 17, (40, 5))).rename(columns=str).astype("uint8")
    table.to_parquet(tmp_path / "x.parquet")
    np.save(tmp_path / "x.npy", table.to_numpy(np.int64))
    data = SemiSupervisedData.from_arrays(table, np.arange(40) % 2, scale=16.0)
    model = M2.for_data(data, likelihood="gaussian")
    for name in ("x.parquet", "x.npy"):
        assert torch.equal(model.predict_proba(tmp_path / name), model.predict_proba(table.to_numpy()))


def test_estimators_take_what_is_on_disk(tmp_path):
    path = make_npy(tmp_path)
    m1 = M1Transformer(max_steps=5).fit(X)
    np.testing.assert_array_equal(m1.transform(path), m1.transform(X))
    np.testing.assert_array_equal(m1.score_samples(np.load(path, mmap_mode="r"), 3), m1.score_samples(X, 3))
    m2 = M2Classifier(max_steps=5, class_prior="uniform").fit(X, Y)
    np.testing.assert_array_equal(m2.predict_proba(path), m2.predict_proba(X))


def test_memory_does_not_grow_with_the_file(tmp_path):
    with open(tmp_path / "x.npy", "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (2_500_000, 100)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 10**9)  # zeros that take no space

    def measure():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    before = measure()
    stream = BatchStream(SemiSupervisedData.from_arrays(tmp_path / "x.npy"), batch_size=10_000)
    grown = [(next(stream), measure() - before)[1] for _ in range(stream.steps_per_epoch)]
    assert max(grown) < 600


def make_digits(folder):
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    x = (x * 15.9).astype(np.uint8).reshape(-1, 8, 8)
    np.save(folder / "x.npy", x)
    known = np.where(np.arange(len(y)) < 300, y, -1)
    options = {"x_validation": x[1400:, None], "y_validation": y[1400:], "scale": 255.0}
    mapped = np.load(folder / "x.npy", mmap_mode="r")[:1400]
    return [SemiSupervisedData.from_arrays(one, known[:1400], **options) for one in (mapped, x[:1400])]


def test_training_from_disk_errs_as_training_from_memory(tmp_path):
    errors = []
    for data in make_digits(tmp_path):
        assert data.event_shape == (1, 8, 8)
        model = M2.for_data(data, latent_dim=5, hidden_dims=(50,), classifier="mlp")
        objective = SemiSupervisedELBO.for_data(model, data, pure=True)
        config = TrainingConfig(max_steps=150, batch_size=64, learning_rate=3e-3)
        errors.append(fit(objective, data, config, progress=False).metrics[-1]["val/error"])
    disk, memory = errors
    assert memory < 0.2
    assert abs(disk - memory) < 0.05


def test_images_in_files_are_read_when_needed(tmp_path):
    random = np.random.default_rng(0)
    for name, number in (("ant", 12), ("bee", 12), ("unlabelled", 30)):
        (tmp_path / name).mkdir()
        for index in range(number):
            image = random.integers(0, 256, (10, 12), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / name / f"{index}.png")
    memory, disk = (
        SemiSupervisedData.from_folder(tmp_path, image_size=8, on_disk=on_disk) for on_disk in (False, True)
    )
    assert isinstance(disk.x, ExampleSource)
    assert torch.equal(disk.x[:], memory.x)
    for name in ("y", "x_validation", "y_validation", "x_test", "y_test"):
        assert torch.equal(getattr(disk, name), getattr(memory, name))
    streams = (BatchStream(data, batch_size=8, binarisation="dynamic") for data in (memory, disk))
    for one, other in itertools.islice(zip(*streams, strict=True), 9):  # in the same order
        assert all(map(torch.equal, one, other))
    (tmp_path / "unlabelled" / "3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"3\.png cannot be read: no image, or damaged"):
        disk.x[:]
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"0\.png cannot be read: no image, or damaged"):
        SemiSupervisedData.from_folder(tmp_path, image_size=8, on_disk=True)
    with pytest.raises(ValueError, match="on_error='skip' reads every image first"):
        SemiSupervisedData.from_folder(tmp_path, image_size=8, on_disk=True, on_error="skip")


def test_labels_of_a_large_dataset_are_read_without_its_examples(monkeypatch):
    monkeypatch.setattr(storage, "MAX_DENSE", 1000)
    assert SemiSupervisedData.from_arrays(make_dataset()).y.tolist() == Y.tolist()


@pytest.mark.parametrize(
    ("items", "error", "text"),
    [
        ([(X[0], 1, "name")], TypeError, r"must be examples x or pairs \(x, y\)"),
        ([np.zeros(6, np.uint8), X[0]], ValueError, r"x\[1\] is of type float32, and x\[0\] uint8; all must be alike"),
    ],
)
def test_large_datasets_refused(items, error, text, monkeypatch):
    monkeypatch.setattr(storage, "MAX_DENSE", 1000)
    with pytest.raises(error, match=text):
        SemiSupervisedData.from_arrays(Items(items * 200)).x[:]


def test_data_on_disk_is_pickled_with_the_path_of_its_file(tmp_path):
    data = SemiSupervisedData.from_arrays(make_npy(tmp_path), Y)
    content = pickle.dumps(data)
    assert len(content) < 2 * X.nbytes  # with the sample
    del data
    np.testing.assert_array_equal(pickle.loads(content).x[:], X)


def test_sparse_matrices_fit_in_memory_or_stay_sparse(monkeypatch):
    for module in (_arrays, storage):
        monkeypatch.setattr(module, "MAX_DENSE", 6 * N * 6)  # bytes: between those in single and double precision
    data = SemiSupervisedData.from_arrays(sparse.csr_matrix(X.astype(np.float64)), Y)
    np.testing.assert_array_equal(data.x[:], X)
    for module in (_arrays, storage):
        monkeypatch.setattr(module, "MAX_DENSE", 3 * N * 6)
    data = SemiSupervisedData.from_arrays(sparse.csr_matrix(X > 0.5), Y)  # as float32 it would take more
    assert isinstance(data.x, storage.ExampleSource)


def test_names_of_columns_are_those_of_tables_that_have_some():
    table = pd.DataFrame(X, columns=[*"abcdef"])
    unnamed = pd.DataFrame(X)
    data = SemiSupervisedData.from_arrays(table, Y, x_test=unnamed, y_test=Y)
    assert data.feature_names == tuple("abcdef")
    model = M2.for_data(data, latent_dim=2, hidden_dims=(4,), likelihood="gaussian")
    torch.testing.assert_close(model.predict_proba(unnamed), model.predict_proba(table[[*"fedcba"]]))
    items = make_dataset()
    items.columns = [*"abcdef", "label"]
    assert SemiSupervisedData.from_arrays(items).feature_names == ()


def test_hidden_files_are_no_rows_and_images_beside_rows_are_refused(tmp_path):
    make_parquet(tmp_path)
    (tmp_path / "._0.parquet").write_bytes(b"of another system")
    Image.new("L", (8, 8)).save(tmp_path / "._preview.png")
    np.testing.assert_array_equal(SemiSupervisedData.from_table(tmp_path).x, X)
    (tmp_path / "cats").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "cats" / "1.png")
    with pytest.raises(ValueError, match=r"holds rows, 0.parquet, and images, cats.1.png; move one of both"):
        SemiSupervisedData.from_table(tmp_path)


def test_parquet_files_of_a_folder_have_the_same_columns(tmp_path):
    make_parquet(tmp_path)
    pd.DataFrame(X, columns=[*"abcdeg"]).to_parquet(tmp_path / "2.parquet")
    with pytest.raises(ValueError, match="2.parquet has other columns than .*0.parquet"):
        SemiSupervisedData.from_table(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_found_when_they_are_read(tmp_path, value):
    x = np.tile(X, (20, 1))
    x[5003, 2] = value  # not of the sample
    np.save(tmp_path / "x.npy", x)
    data = SemiSupervisedData.from_arrays(tmp_path / "x.npy")
    with pytest.raises(ValueError, match=r"in 1 of 10000 examples, the first in x\[5003\]"):
        data.x[:]
    x[0, 0] = np.nan  # of the sample
    np.save(tmp_path / "x.npy", x)
    data = SemiSupervisedData.from_arrays(tmp_path / "x.npy")
    assert data.x.holds_missing
    if np.isnan(value):
        np.testing.assert_array_equal(data.x[:], x)


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("none.npy", FileNotFoundError, "none.npy does not exist; a file or folder of examples is needed"),
        ("x.txt", ValueError, "x.txt is of no kind that is read; these are .npy"),
        ("x.csv", ValueError, "from_table reads tables"),
        ("x.npz", ValueError, "x.npz holds no sparse matrix; .*from_npz reads"),
        ("x.parquet", ValueError, "x.parquet cannot be read"),
        ("words.parquet", TypeError, "columns that are not numeric: b"),
        ("x.h5ad", MissingPackageError, "x.h5ad is read by anndata, which is not installed: pip install anndata"),
        ("x.zarr", MissingPackageError, "x.zarr is read by zarr, which is not installed"),
        ("empty.parquet", ValueError, "empty.parquet cannot be read: x has shape"),
        (".", ValueError, r"holds no .npy, .parquet or .zarr; from_folder\(..., on_disk=True\) reads images"),
    ],
)
def test_paths_refused(tmp_path, name, error, text, monkeypatch):
    for package in ("anndata", "zarr"):
        monkeypatch.setitem(sys.modules, package, None)
    if name == "words.parquet":
        pd.DataFrame({"a": [1.0], "b": ["x"]}).to_parquet(tmp_path / name)
    elif name == "empty.parquet":
        pd.DataFrame({"a": np.zeros(0)}).to_parquet(tmp_path / name)
    elif name not in (".", "none.npy"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(error, match=text):
        SemiSupervisedData.from_arrays(tmp_path / name)


def test_static_binarisation_of_examples_on_disk_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.abs(X) / 10)
    with pytest.raises(ValueError, match="needs examples in memory, and these stay on disk"):
        BatchStream(SemiSupervisedData.from_arrays(tmp_path / "x.npy", Y), binarisation="static")


def make_table(folder):
    table = pd.DataFrame(X, columns=[*"abcdef"]).assign(
        sign=np.where(X[:, 0] > 0, "plus", "minus"),
        grade=pd.Categorical(np.where(X[:, 0] > 0, "low", "high"), categories=["none", "low", "high"]),
        class_=[None if y < 0 else "uvw"[y] for y in Y],
    )
    for number, part in enumerate([table[:200], table[200:]]):
        part.to_parquet(folder / f"{number}.parquet", row_group_size=70)
    return folder


@pytest.mark.parametrize("make", [make_npy, make_shards, make_sparse, make_table])
def test_rows_are_held_out_of_files_that_stay_on_disk_as_of_memory(make, tmp_path, monkeypatch):
    path, label = make(tmp_path), str(tmp_path / "y" / "y.npy")
    if make is make_table:
        label = "class_"
    else:
        (tmp_path / "y").mkdir()
        np.save(label, Y)
    options = {"num_labels": 30, "num_validation": 5, "num_test": 7, "seed": 3}
    memory = SemiSupervisedData.from_table(path, label, **options)
    monkeypatch.setattr(rows, "MAX_DENSE", 1000)
    disk = SemiSupervisedData.from_table(path, label, **options)
    assert isinstance(memory.x, torch.Tensor)
    assert isinstance(disk.x, ExampleSource)
    torch.testing.assert_close(disk.x[:], memory.x, rtol=0, atol=0)
    for name in ("y", "x_validation", "y_validation", "x_test", "y_test"):
        torch.testing.assert_close(getattr(disk, name), getattr(memory, name), rtol=0, atol=0)
    assert (disk.class_names, disk.feature_names, disk.categories, len(disk.x)) == (
        *(memory.class_names, memory.feature_names, memory.categories, N - 12),
    )
    stream = itertools.islice(BatchStream(disk, batch_size=50), -(-disk.num_unlabelled // 50))
    seen = torch.cat([batch.x_unlabelled for batch in stream])
    expected = memory.x[memory.y < 0]
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, expected.tolist()))


def test_errors_name_the_row_of_the_file_although_rows_before_it_are_held_out(tmp_path):
    x = np.ones((3000, 500), np.float32)
    x[2001, 3] = np.inf
    np.save(tmp_path / "x.npy", x)
    source = storage.open_source(tmp_path / "x.npy").without(np.arange(0, 2000, 2))
    with pytest.raises(ValueError, match=r"the first in x\[2001\]"):
        source.read(np.arange(len(source)))


@pytest.mark.parametrize(
    ("label", "error", "text"),
    [
        ("nowhere.npy", FileNotFoundError, "nowhere.npy does not exist; a .npy file with a label for every row"),
        ("few.npy", ValueError, "few.npy holds 5 labels for 500 examples"),
        ("objects.npy", ValueError, "words as strings and not as objects"),
        ("species", ValueError, "label=species: x.npy has no columns; name a .npy file"),
    ],
)
def test_labels_refused(label, error, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_npy(tmp_path)
    np.save("few.npy", Y[:5])
    np.save("objects.npy", np.array(["a", None], dtype=object))
    with pytest.raises(error, match=text):
        SemiSupervisedData.from_table("x.npy", label)
