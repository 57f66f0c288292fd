import functools
import gzip
import hashlib
import http.server
import pickle
import socket
import threading
import time

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, MNIST

from pyro_ssvae import SemiSupervisedData
from pyro_ssvae.data import named
from pyro_ssvae.data.named import DATASET_NAMES, get_data_folder
from pyro_ssvae.errors import DataUnavailableError
from tests.data.sources import idx

N_TRAIN, N_TEST = 60, 20
IDX_NAMES = tuple(named._IDX_FILES.values())


@pytest.fixture(autouse=True)
def _nowhere_else(monkeypatch, tmp_path):
    """Neither a user's data folder nor the network is in reach."""
    monkeypatch.delenv("PYRO_SSVAE_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (N_TRAIN, 28, 28), dtype=np.uint8),
        "y_train": (np.arange(N_TRAIN) % 10).astype(np.uint8),
        "x_test": rng.integers(0, 256, (N_TEST, 28, 28), dtype=np.uint8),
        "y_test": (np.arange(N_TEST) % 10).astype(np.uint8),
    }


@pytest.fixture
def write(arrays):
    def write_idx(folder, *, compressed=False):
        folder.mkdir(parents=True)
        for name, array in zip(IDX_NAMES, arrays.values(), strict=True):
            if compressed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array), 1))
            else:
                (folder / name).write_bytes(idx(array))

    return write_idx


def load(name="mnist", **arguments):
    return SemiSupervisedData.from_name(name, **{"num_labels": 20, "num_validation": 10, "download": False} | arguments)


FOLDERS = [
    ("mnist", "MNIST/raw"),
    ("mnist", "MNIST"),
    ("mnist", "mnist"),
    ("mnist", "mnist/MNIST/raw"),
    ("mnist", "anything/MNIST/raw"),
    ("fashion_mnist", "FashionMNIST/raw"),
    ("fashion_mnist", "fashion_mnist/FashionMNIST/raw"),
    ("fashion_mnist", "fashion-mnist"),
]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("name", "folder"), FOLDERS)
def test_idx_files_are_found(tmp_path, write, arrays, name, folder, compressed):
    write(tmp_path / folder, compressed=compressed)
    data = load(name, data_dir=tmp_path)
    assert data.name == name
    assert data.x.shape == (N_TRAIN - 10, 1, 28, 28)
    assert data.x.dtype == torch.uint8
    assert (data.scale, data.num_classes, data.num_labelled) == (255.0, 10, 20)
    assert np.array_equal(data.x[:, 0], arrays["x_train"][:-10])
    assert np.array_equal(data.x_validation[:, 0], arrays["x_train"][-10:])
    assert np.array_equal(data.y_validation, arrays["y_train"][-10:])
    assert np.array_equal(data.x_test[:, 0], arrays["x_test"])
    assert data.split.validation.tolist() == list(range(50, 60))
    assert np.array_equal(data.y[data.labelled_index], arrays["y_train"][data.split.labelled])


@pytest.mark.parametrize("inside", ["MNIST", "MNIST/raw"])
def test_data_dir_may_be_the_folder_of_the_files(tmp_path, write, inside):
    write(tmp_path / "MNIST" / "raw")
    assert len(load(data_dir=tmp_path / inside).x) == N_TRAIN - 10


def test_mnist_is_not_taken_for_fashion_mnist(tmp_path, write):
    write(tmp_path / "MNIST" / "raw")
    for folder in (tmp_path, tmp_path / "MNIST", tmp_path / "MNIST" / "raw"):
        with pytest.raises(DataUnavailableError, match="fashion_mnist is not available"):
            load("fashion_mnist", data_dir=folder)


def test_compressed_files_are_read_in_place(tmp_path, write):
    write(tmp_path / "MNIST" / "raw", compressed=True)
    (tmp_path / "MNIST" / "raw").chmod(0o555)
    before = sorted(tmp_path.rglob("*"))
    load(data_dir=tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "MNIST" / "raw").chmod(0o755)


def test_data_folder(tmp_path, monkeypatch):
    assert get_data_folder() == tmp_path / "home" / ".cache" / "pyro_ssvae"
    monkeypatch.setenv("PYRO_SSVAE_DATA", "")
    assert get_data_folder() == tmp_path / "home" / ".cache" / "pyro_ssvae"
    monkeypatch.setenv("PYRO_SSVAE_DATA", "~/data")
    assert get_data_folder() == tmp_path / "home" / "data"
    assert get_data_folder(tmp_path) == tmp_path
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; give the folder"):
        get_data_folder(tmp_path / "file")


def test_environment_variable(tmp_path, monkeypatch, write):
    write(tmp_path / "MNIST" / "raw")
    monkeypatch.setenv("PYRO_SSVAE_DATA", str(tmp_path))
    assert len(load().x) == N_TRAIN - 10


def cifar(n):
    rng = np.random.default_rng(n)
    return rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), np.arange(n) % 10


@pytest.mark.parametrize("folder", ["", "cifar10"])
def test_cifar10_npz(tmp_path, folder):
    x, y = cifar(30)
    (tmp_path / folder).mkdir(exist_ok=True)
    np.savez(tmp_path / folder / "cifar10.npz", x_train=x, y_train=y[:, None], x_test=x[:5], y_test=y[:5])
    data = load("cifar10", data_dir=tmp_path, num_labels=10)
    assert data.x.shape == (20, 3, 32, 32)
    assert np.array_equal(data.x[7].permute(1, 2, 0), x[7])
    assert data.class_names[:2] == ("airplane", "automobile")


def test_mnist_npz(tmp_path, arrays):
    np.savez(tmp_path / "mnist.npz", **arrays)
    assert load(data_dir=tmp_path).x.shape == (50, 1, 28, 28)


@pytest.fixture
def cifar_folder(tmp_path, monkeypatch):
    x, y = cifar(30)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    content = {
        "data_batch_1": {"data": x[:20].transpose(0, 3, 1, 2).reshape(20, -1), "labels": y[:20].tolist()},
        "test_batch": {"data": x[20:].transpose(0, 3, 1, 2).reshape(10, -1), "labels": y[20:].tolist()},
        "batches.meta": {"label_names": ["a"]},
    }
    md5 = {}
    for name, value in content.items():
        raw = pickle.dumps(value)
        (folder / name).write_bytes(raw)
        md5[name] = hashlib.md5(raw).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", md5["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5["batches.meta"]})
    return folder


def test_cifar10_batches_of_torchvision(cifar_folder):
    data = load("cifar10", data_dir=cifar_folder.parent, num_labels=10, num_validation=4)
    assert data.x.shape == (16, 3, 32, 32)
    assert np.array_equal(data.x[3].permute(1, 2, 0), cifar(30)[0][3])
    assert data.y_test.tolist() == list(range(10))


def test_tampered_cifar10_batches_are_not_unpickled(cifar_folder):
    (cifar_folder / "test_batch").write_bytes(pickle.dumps({"data": 0}))
    with pytest.raises(DataUnavailableError, match="not found or corrupted"):
        load("cifar10", data_dir=cifar_folder.parent)


def test_unavailable_is_one_line_that_says_what_to_do(tmp_path):
    with pytest.raises(DataUnavailableError) as caught:
        load(data_dir=tmp_path / "empty")
    text = str(caught.value)
    assert "\n" not in text
    for part in (
        "mnist is not available: looked for train-images-idx3-ubyte",
        f"in {tmp_path / 'empty'} ",
        "downloading was switched off",
        "--data-dir DIR",
        "PYRO_SSVAE_DATA",
        "digits needs no download",
    ):
        assert part in text
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_download_without_a_network_fails_at_once(tmp_path, name):
    start = time.monotonic()
    with pytest.raises(DataUnavailableError, match=r"the download failed \(.*refused.*\)"):
        load(name, data_dir=tmp_path, download=True)
    assert time.monotonic() - start < 30  # also on a loaded machine, and not after retries
    assert list(tmp_path.iterdir()) == []


def test_download_from_a_server_that_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(named, "_STALL_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/"
        monkeypatch.setattr(MNIST, "mirrors", [address, address])
        with pytest.raises(DataUnavailableError, match="timed out"):  # and not for ever
            load(data_dir=tmp_path, download=True)


def test_download_reports_an_error_over_several_lines_on_one(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("Error downloading:\nTried A,\n  got B\n" + "x" * 500)

    monkeypatch.setattr(named, "_download", fail)
    with pytest.raises(DataUnavailableError, match="Tried A, got B x+[.]{3}[)]") as caught:
        load(data_dir=tmp_path, download=True)
    assert "\n" not in str(caught.value)


@pytest.fixture
def server(tmp_path, monkeypatch, write):
    """A mirror of MNIST on this machine; its folder."""
    folder = tmp_path / "server"
    write(folder, compressed=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        mirrors = ["http://127.0.0.1:9/", f"http://127.0.0.1:{httpd.server_port}/"]
        monkeypatch.setattr(MNIST, "mirrors", mirrors)
        resources = [
            (f"{name}.gz", hashlib.md5((folder / f"{name}.gz").read_bytes()).hexdigest()) for name in IDX_NAMES
        ]
        monkeypatch.setattr(MNIST, "resources", resources)
        yield folder
        httpd.shutdown()
        thread.join()


def test_download(tmp_path, server):
    root = tmp_path / "new" / "root"
    timeout = socket.getdefaulttimeout()
    data = load(data_dir=root, download=True)
    assert len(data.x) == N_TRAIN - 10
    assert sorted(path.name for path in (root / "MNIST" / "raw").iterdir()) == sorted(IDX_NAMES)
    assert [path.name for path in root.iterdir()] == ["MNIST"]
    assert socket.getdefaulttimeout() == timeout
    again = load(data_dir=root)
    assert torch.equal(again.x, data.x)


def test_download_that_arrives_damaged_leaves_nothing(tmp_path, server):
    root = tmp_path / "root"
    file = server / "t10k-labels-idx1-ubyte.gz"
    good = file.read_bytes()
    file.write_bytes(good[:-5])
    with pytest.raises(DataUnavailableError, match="download failed.*corrupted"):
        load(data_dir=root, download=True)
    assert list(root.iterdir()) == []
    file.write_bytes(good)
    assert len(load(data_dir=root, download=True).x) == N_TRAIN - 10


@pytest.mark.parametrize("leftover", ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"])
def test_half_a_file_of_an_earlier_download_is_replaced(tmp_path, server, write, leftover):
    folder = tmp_path / "root" / "MNIST" / "raw"
    write(folder, compressed=leftover.endswith(".gz"))
    (folder / leftover).write_bytes((folder / leftover).read_bytes()[:1000])
    with pytest.raises(DataUnavailableError, match=f"{leftover} is damaged"):
        load(data_dir=tmp_path / "root")
    assert len(load(data_dir=tmp_path / "root", download=True).x) == N_TRAIN - 10


def test_some_files_missing(tmp_path, write, server):
    folder = tmp_path / "root" / "MNIST" / "raw"
    write(folder)
    (folder / IDX_NAMES[3]).unlink()
    with pytest.raises(DataUnavailableError, match="looked for"):
        load(data_dir=tmp_path / "root")
    assert len(load(data_dir=tmp_path / "root", download=True).x) == N_TRAIN - 10


@pytest.mark.parametrize(
    "change",
    [
        {"x_train": np.zeros((60, 20, 20), np.uint8)},
        {"x_train": np.zeros((60, 28, 28), np.float32)},
        {"y_train": np.full(60, 10)},
        {"y_test": np.zeros(3, np.int64)},
        {"y_test": np.zeros(20, np.float32)},
    ],
)
def test_files_with_other_content(tmp_path, arrays, change):
    np.savez(tmp_path / "mnist.npz", **arrays | change)
    with pytest.raises(DataUnavailableError, match=r"mnist.npz holds .* not uint8 \(N, 1, 28, 28\)"):
        load(data_dir=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"name": "svhn"}, ValueError, "no data set named 'svhn'; known: mnist.*from_arrays"),
        ({"num_validation": None}, ValueError, "num_validation=10000 examples cannot be held out of 60"),
        ({"num_validation": 1.0}, TypeError, "num_validation=1.0"),
        ({"num_labels": "some"}, ValueError, "num_labels='some'"),
        ({"seed": -1}, ValueError, "seed=-1"),
    ],
)
def test_arguments_refused(tmp_path, write, arguments, error, text):
    write(tmp_path / "MNIST" / "raw")
    with pytest.raises(error, match=text):
        load(data_dir=tmp_path, **arguments)


def test_leaving_out_one_label_of_a_class_at_random(tmp_path, write):
    write(tmp_path / "MNIST" / "raw")
    assert load(data_dir=tmp_path, num_labels=49).num_labelled == 49


def test_protocol_of_held_out_examples():
    numbers = {name: files.num_validation for name, files in named._FILES.items()}
    assert numbers == {"mnist": 10_000, "fashion_mnist": 10_000, "cifar10": 5_000}
    assert set(DATASET_NAMES) == {*numbers, "digits"}


@pytest.mark.parametrize("seed", [0, 1])
def test_digits(seed):
    target = load_digits().target
    data = SemiSupervisedData.from_name("digits", num_labels=50, seed=seed)
    assert data.x.shape == (1200, 1, 8, 8)
    assert data.x.dtype == torch.uint8
    assert (len(data.x_validation), len(data.x_test)) == (147, 450)
    assert (data.scale, int(data.x.max())) == (16.0, 16)
    assert data.y[data.labelled_index].bincount().tolist() == [5] * 10
    share = data.y_test.bincount(minlength=10) / 450
    assert (share - 0.1).abs().max() < 0.01
    assert np.array_equal(target[data.split.labelled], data.y[data.labelled_index])  # indices into the file
    assert np.array_equal(target[data.split.validation], data.y_validation)


def test_digits_draw_by_seed():
    a, b, c = (SemiSupervisedData.from_name("digits", seed=seed) for seed in (0, 0, 1))
    assert a.split == b.split
    assert a.split != c.split
    assert torch.equal(a.x_test, b.x_test)
    assert not torch.equal(a.x_test, c.x_test)


@pytest.mark.parametrize("num_validation", [0, 3, 10, 1337])
def test_digits_with_other_numbers_of_validation_examples(num_validation):
    data = SemiSupervisedData.from_name("digits", num_labels="all", num_validation=num_validation)
    assert (len(data.x), len(data.x_validation)) == (1347 - num_validation, num_validation)
    assert torch.equal(data.x_test, SemiSupervisedData.from_name("digits").x_test)
    assert len(data.x_test) == 450
    with pytest.raises(ValueError, match="num_validation=1338 .* at most 1337"):
        SemiSupervisedData.from_name("digits", num_validation=1338)


def test_digits_without_labels_warn():
    with pytest.warns(UserWarning, match="clustering"):
        data = SemiSupervisedData.from_name("digits", num_labels=0)
    assert data.num_classes == 10


@pytest.mark.parametrize("arguments", [{"name": 3}, {"data_dir": 3}, {"download": "no"}, {"num_labels": None}])
def test_arguments_of_the_wrong_type(arguments):
    with pytest.raises(TypeError, match=f"{next(iter(arguments))}=.* is of type"):
        SemiSupervisedData.from_name(**({"name": "digits"} | arguments))
