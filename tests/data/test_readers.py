import gzip
import struct
import zipfile
from functools import partial

import numpy as np
import pytest

from pyro_ssvae import SemiSupervisedData
from pyro_ssvae._arrays import as_images
from pyro_ssvae.data.readers import read_idx, read_npz
from tests.data.sources import idx


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4), (0, 28, 28)])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_read_idx(tmp_path, shape, suffix):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    path = tmp_path / f"file{suffix}"
    path.write_bytes(gzip.compress(idx(array)) if suffix else idx(array))
    assert np.array_equal(read_idx(path), array)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "starts with nothing"),
        (b"\x89PNG\r\n", "not an idx file of unsigned bytes: it starts with 89504e47"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00", "not an idx file of unsigned bytes"),
        (b"\x00\x00\x08\x03\x00\x00", "is damaged"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x03ab", r"2 values follow for the shape \(3,\)"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x03abcd", r"4 values follow for the shape \(3,\)"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_refused(tmp_path, content, text, suffix):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(ValueError, match=text):
        read_idx(path)


@pytest.mark.parametrize("cut", [slice(0, -4), slice(0, 12), slice(5, None)])
def test_damaged_gzip_refused(tmp_path, cut):
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(idx(np.arange(50, dtype=np.uint8)))[cut])
    with pytest.raises(ValueError, match="file.gz is damaged"):
        read_idx(path)


def test_read_idx_of_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "none")


def test_read_npz_returns_what_was_asked_for(tmp_path):
    np.savez(tmp_path / "a.npz", a=1, b=2, c=3)
    assert set(read_npz(tmp_path / "a.npz", ["a"], ["b", "d"])) == {"a", "b"}


def npy(shape, content, dtype="<f4"):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content


def write_zip(path, content, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.npy", content)
    return path


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (npy("(1000000000000000,)", b"abcd"), "cannot be read as plain numbers .Unable to allocate"),
        (npy("(1,)", b"abcdefgh"), "holds more bytes than its header promises"),
        (npy("(-1,)", b"abcd"), "cannot be read as plain numbers"),
        (npy("(1,)", b"abcd", "nonsense"), "cannot be read as plain numbers"),
        (npy("(1,)", b"abcdefgh", "|O"), "cannot be read as plain numbers .*unpickled, which is refused"),
        (npy("(" * 300, b"abcd"), "cannot be read as plain numbers"),
        (b"no array", "cannot be read as plain numbers"),
        (b"", "cannot be read as plain numbers"),
    ],
)
def test_members_that_are_no_arrays(tmp_path, content, text):
    with pytest.raises(ValueError, match=text) as caught:
        read_npz(write_zip(tmp_path / "a.npz", content), ["a"])
    assert "\n" not in str(caught.value)


def test_sizes_are_checked_before_memory_is_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "large.npz"
    np.savez_compressed(path, a=np.zeros(10**6))
    monkeypatch.setattr("pyro_ssvae._io.Path.read_text", lambda _: "MemAvailable: 10000 kB\n")
    with pytest.raises(ValueError, match=r"large\.npz would take 0\.0 GB of memory, 0\.0 GB are free"):
        read_npz(path, ["a"])


@pytest.mark.parametrize(("flag", "text"), [(1, "a in .* is encrypted"), (0x20, "cannot be read as plain|damaged")])
def test_encrypted_members(tmp_path, flag, text):
    path = write_zip(tmp_path / "a.npz", npy("(1,)", b"abcd"))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content = bytearray(path.read_bytes())
        content[content.index(signature) + offset] |= flag
        path.write_bytes(content)
    with pytest.raises(ValueError, match=text):
        read_npz(path, ["a"])


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_that_promises_terabytes(tmp_path, suffix):
    content = b"\x00\x00\x08\x04" + b"\xff" * 16 + b"abc"
    path = tmp_path / f"file{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(ValueError, match="is damaged.* 3 values follow for the shape"):
        read_idx(path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((5, 8, 9), (5, 1, 8, 9)),
        ((5, 8, 9, 1), (5, 1, 8, 9)),
        ((5, 8, 9, 3), (5, 3, 8, 9)),
        ((5, 8, 9, 4), (5, 4, 8, 9)),
        ((5, 3, 8, 9), (5, 3, 8, 9)),
        ((5, 8), (5, 8)),
        ((5, 4, 9, 1), (5, 1, 4, 9)),
        ((5, 1, 4, 4), (5, 1, 4, 4)),
        ((5, 1, 9, 3), (5, 1, 9, 3)),
        ((5, 3, 3, 3), (5, 3, 3, 3)),
        ((5, 64, 7, 7), (5, 64, 7, 7)),
        ((5, 64, 1, 1), (5, 64, 1, 1)),
    ],
)
def test_as_images(before, after):
    assert as_images(np.zeros(before)).shape == after


@pytest.mark.parametrize("shape", [(5, 4, 9, 3), (5, 64, 4, 4), (5, 9, 9, 10)])
def test_channels_that_may_be_first_or_last(shape):
    with pytest.warns(UserWarning, match=f"taken as {shape[1]} channels of {shape[2]} x {shape[3]} pixels"):
        assert as_images(np.zeros(shape)).shape == shape


def test_images_are_brought_to_a_known_shape():
    known = (((5, 4, 9, 3), (3, 4, 9)), ((5, 4, 9), (1, 4, 9)), ((5, 4, 9), (4, 9)), ((5, 3, 2, 4), (3, 2, 4)))
    for shape, event_shape in known:
        assert as_images(np.zeros(shape), event_shape=event_shape).shape[1:] == event_shape
    assert as_images(np.zeros((5, 4, 9)), event_shape=(3, 3)).shape == (5, 4, 9)


def test_a_mistyped_path_is_answered_with_near_names(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("photos.npz", "flowers.csv", "notes.txt"):
        (tmp_path / name).touch()
    for read, name, needed, near in (
        (SemiSupervisedData.from_npz, "photo.npz", "does not exist; an .npz file", "photos.npz"),
        (SemiSupervisedData.from_npz, "photos", "is a folder; an .npz file", None),
        (SemiSupervisedData.from_table, "flower.csv", "does not exist; a table", "flowers.csv"),
        (partial(SemiSupervisedData.from_folder, image_size=8), "fotos", "does not exist; a folder of", "photos"),
        (partial(SemiSupervisedData.from_folder, image_size=8), "foto/cats", "does not exist; a folder of", "photos"),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            read(tmp_path / name)
        assert needed in str(caught.value)
        assert str(caught.value).partition(" Did you mean ")[2].startswith(f"{tmp_path / near}" if near else "")
        assert ("Did you mean" in str(caught.value)) == (near is not None)
    with pytest.raises(ValueError, match=r"no data set named 'minst'.* Did you mean mnist\?"):
        SemiSupervisedData.from_name("minst")
