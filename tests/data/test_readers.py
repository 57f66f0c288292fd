import gzip
import struct

import numpy as np
import pytest

from pyro_ssvae.data.readers import as_images, read_idx, read_npz


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


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
        (b"\x89PNG\r\n", "is not an idx file of unsigned bytes .it starts with 89504e47"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00", "not an idx file of unsigned bytes"),
        (b"\x00\x00\x08\x03\x00\x00", "ends within its header"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x03ab", "promises 3 values, it holds 2"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x03abcd", "promises 3 values, it holds more"),
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


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((5, 8, 9), (5, 1, 8, 9)),
        ((5, 8, 9, 1), (5, 1, 8, 9)),
        ((5, 8, 9, 3), (5, 3, 8, 9)),
        ((5, 8, 9, 4), (5, 4, 8, 9)),
        ((5, 3, 8, 9), (5, 3, 8, 9)),
        ((5, 8), (5, 8)),
    ],
)
def test_as_images(before, after):
    assert as_images(np.zeros(before)).shape == after
