"""Files of every format that the package reads, damaged at random or made to do harm: read as valid, or refused."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pyro_ssvae as ss
from tests.faults.generated import Generator, attempt, check_data, choose, use_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

OPTIONS: dict[str, Any] = {"num_labels": 6, "num_validation": 2, "balanced": False}
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\nshowpage\n%%EOF\n"


def save(function: Callable[..., Any], *args: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    function(buffer, *args, **options)
    return buffer.getvalue()


def make_files(folder: Path) -> None:
    """Write a good file of each format."""
    rng = np.random.default_rng(0)
    raw = folder / "mnist/MNIST/raw"
    for path in (raw, folder / "images/a", folder / "images/b"):
        path.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name, shape in (("images-idx3-ubyte", (30, 28, 28)), ("labels-idx1-ubyte.gz", (30,))):
            content = bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape)
            content += rng.integers(10, size=shape, dtype=np.uint8).tobytes()
            (raw / f"{part}-{name}").write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    for index, kind in enumerate(("png", "jpeg", "gif", "bmp", "webp", "png")):
        picture = Image.fromarray(rng.integers(256, size=(12, 9, 3), dtype=np.uint8))
        picture.save(folder / f"images/{'ab'[index % 2]}/{index}.{kind}")
    x = rng.normal(size=(60, 4))
    np.savez(folder / "data.npz", x_train=x, y_train=np.arange(60) % 2, x_test=x[:20], y_test=np.arange(20) % 2)
    ss.save(ss.M2((4,), 3, latent_dim=2, hidden_dims=(8,), likelihood="gaussian"), folder / "model")


def flip(content: bytes, rng: Generator) -> bytes:
    changed = bytearray(content)
    for place in rng.integers(len(changed), size=int(rng.integers(1, 20))):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def blank(content: bytes, rng: Generator) -> bytes:
    start = int(rng.integers(len(content)))
    return content[:start] + bytes(min(512, len(content) - start)) + content[start + 512 :]


def make_npz(content: bytes, rng: Generator) -> bytes:
    """Return an archive whose array holds objects, or is not of the size and type that it says."""
    kind = choose(["'<f4'", "'<c8'", "'|S4'", "'<M8[D]'", "[('a', '<f4')]", "1"], rng)
    shape = choose(["(1000000000000, 2)", "(-1, 2)", "(3,)", "()", "(2**99, 1)", "(True, 2)", "(" * 5000], rng)
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    member = b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header + bytes(64)
    member = choose([member, save(np.save, np.full((4, 2), Mark()), allow_pickle=True), b"", rng.bytes(100)], rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(
        buffer, "w", choose([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA], rng)
    ) as file:
        file.writestr("x_train.npy", member)
        file.writestr("y_train.npy", save(np.save, np.arange(4)))
    return buffer.getvalue()


def make_idx(content: bytes, rng: Generator) -> bytes:
    head = choose((b"\0\0\x08\x03", b"\0\0\x08\x04", b"\0\0\x0d\x03", b"\0\0\x08\0", b"\0\0\x08\xff"), rng)
    return head + struct.pack(">4I", *rng.choice([0, 1, 28, 2**31, 2**32 - 1], 4).tolist()) + bytes(100)


def make_image(content: bytes, rng: Generator) -> bytes:
    size = struct.pack(">IIBBBBB", *rng.choice([1, 60_000, 2**31 - 1], 2).tolist(), 8, 6, 0, 0, 0)
    large = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(size)) + b"IHDR" + size + bytes(4)
    others = [large, EPS, b"BM" + rng.bytes(60), b"GIF89a" + b"\xff" * 40, b"\xff\xd8\xff" + bytes(99)]
    others += [b"RIFF\xff\xff\xff\xffWEBPVP8L" + rng.bytes(40), b"<svg/>", b"%PDF-1.4\n"]
    others += [save(Image.new(mode, (1, 5000)).save, format="png") for mode in ("1", "I;16", "RGBA")]
    return choose([*others, *(save(Image.new("L", (8, 8)).save, format=name) for name in ("TIFF", "PPM", "ICO"))], rng)


def make_weights(content: bytes, rng: Generator) -> bytes:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    odd = [{"a": entry | {"shape": [2**62, 4]}}, {"a": entry | {"dtype": "X"}}, {"a": None}, [], 3, {"\0": entry}]
    odd += [{"a": entry | {"data_offsets": [4, 0]}}, {"a": entry, "b": entry}, {"__metadata__": {"a": 1}}]
    header = json.dumps(choose(odd, rng)).encode()
    return struct.pack("<Q", choose([len(header), 0, 2**63 - 1, 2**31, 10**8], rng)) + header + bytes(4)


def make_config(content: bytes, rng: Generator) -> bytes:
    """Return the settings of a model with one value replaced."""
    if rng.random() < 0.15:
        return choose([b'{"a":' * 50_000, b'{"format": ' + b"9" * 5000 + b"}", b"{}", b"[]", b"null"], rng)
    config = json.loads(content)
    place = config if rng.random() < 0.4 else config["arguments"]
    values = [None, True, -1, 0, 1e400, 10**12, 2**70, "x", "../../x", [], {}, [[]], "builtins.eval"]
    place[choose([*place, "unknown"], rng)] = choose(values, rng)
    return json.dumps(config).encode()


class Mark:
    """An object that raises an error, which no reader may catch, where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("an object was unpickled",)


def replace(content: bytes, rng: Generator) -> bytes:
    others = [b"", b"\n", rng.bytes(200), b"[" * 100_000, b"\xff\xfe{}", EPS, b"PK\x05\x06" + bytes(18)]
    others += [save(np.save, np.zeros(3)), save(np.savez), pickle.dumps(Mark()), gzip.compress(b"")]
    return choose([*others, save(lambda file: torch.save({"model": Mark()}, file))], rng)


DAMAGE = (flip, blank, replace, lambda content, rng: content[: int(rng.integers(len(content)))])
FORMATS: dict[str, tuple[Callable[..., Any], Any, Callable[[bytes, Generator], bytes]]] = {
    "data.npz": (ss.SemiSupervisedData.from_npz, OPTIONS, make_npz),
    "mnist": (ss.SemiSupervisedData.from_name, OPTIONS | {"download": False}, make_idx),
    "images": (ss.SemiSupervisedData.from_folder, {"image_size": 8, "num_validation": 1, "num_test": 1}, make_image),
    "model/model.safetensors": (ss.load, {}, make_weights),
    "model/config.json": (ss.load, {}, make_config),
}


@pytest.mark.parametrize("place", list(FORMATS))
def test_damaged_files_are_refused_or_read_as_valid(place: str, tmp_path: Path) -> None:
    make_files(tmp_path / "good")
    read, options, harm = FORMATS[place]
    for number in range(60):
        rng = np.random.default_rng((3, list(FORMATS).index(place), number))
        torch.manual_seed(number)
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", folder)
        files = [path for path in sorted((folder / place).rglob("*")) if path.is_file()] or [folder / place]
        path = choose(files, rng)
        change = choose(DAMAGE, rng) if rng.random() < 0.5 else harm
        content = change(path.read_bytes(), rng)
        path.write_bytes(gzip.compress(content) if change is harm and path.suffix == ".gz" else content)
        source: Any = folder / ("model" if read is ss.load else place)
        given = {"name": "mnist", "data_dir": source} if place == "mnist" else {}
        args = () if given else (source,)
        words = f"case {number}: {path.relative_to(folder)}, {change.__name__}"
        found = attempt(words, read, *args, **given, **options)
        if found is not None:
            attempt(words, use_model if read is ss.load else check_data, found)
