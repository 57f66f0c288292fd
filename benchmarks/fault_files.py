"""Damaged and hostile files of every format that the package reads; see ``faults.py``."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fault_inputs import attempt, check_data, use_model
from fault_runs import TRAIN, Commands, check_ending, choose, choose_file, make_points
from PIL import Image

import pyro_ssvae as ss

Generator = np.random.Generator
_FORMATS = {  # where their files are, and how they are read; numpy archives and MNIST twice as often
    "npz": ("data.npz", ss.SemiSupervisedData.from_npz),
    "idx": ("mnist", ss.SemiSupervisedData.from_name),
    "images": ("images", ss.SemiSupervisedData.from_folder),
    "weights": ("model/model.safetensors", ss.load),
    "config": ("model/config.json", ss.load),
}
_IDX = {"train-images-idx3-ubyte": (30, 28, 28), "train-labels-idx1-ubyte.gz": (30,)}
_IDX |= {name.replace("train", "t10k"): shape for name, shape in _IDX.items()}
_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\nshowpage\n%%EOF\n"
_PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
_SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
_TAG = "!!python/object/apply:os.system ['started-by-yaml']"
_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n"
_BOMB += "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise("abcdefghi"))
_YAML = (_BOMB, f"command: {_TAG}\n", f"command: m2\nflags: {_TAG}\n", "[" * 50_000, "a: *b", "\t", "- 1\n", "null")
_YAML += ("command: m2\nflags: 3\n", "command: [m2]\nflags: {}\n", "command: m2\nflags: {latent_dim: {a: {b: 1}}}\n")
_YAML += ("command: m2\nflags: {1: 2, null: 3, data: 5, hidden_dims: x}\n", "? [a]\n: b\n", "2001-99-99", "\0")


class Payload:
    """An object that leaves a mark when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the call that unpickling makes."""
        return open, (os.environ["FAULTS_MARK"], "w")


def _save(function: Callable[..., Any], *args: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    function(buffer, *args, **options)
    return buffer.getvalue()


def _save_tensors() -> bytes:
    return _save(lambda file: torch.save({"step": 3, "model": Payload()}, file))


# Damage to the bytes of any file.


def _flip(content: bytes, rng: Generator) -> bytes:
    changed = bytearray(content)
    for place in rng.integers(len(changed), size=int(rng.integers(1, 20))):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _blank(content: bytes, rng: Generator) -> bytes:
    start = int(rng.integers(len(content)))
    return content[:start] + bytes(min(512, len(content) - start)) + content[start + 512 :]


def _replace(content: bytes, rng: Generator) -> bytes:
    others = [b"", b"\n", rng.bytes(200), b"[" * 100_000, b"\xff\xfe{}", _EPS, _PDF, b"PK\x05\x06" + bytes(18)]
    others += [_save(np.save, np.zeros(3)), _save(np.savez), pickle.dumps({"x": Payload()}), _save_tensors()]
    return choose([*others, gzip.compress(b"")], rng)


_DAMAGE: dict[str, Callable[[bytes, Generator], bytes]] = {
    "flipped": _flip,
    "flipped early": lambda content, rng: _flip(content[:128], rng) + content[128:],
    "truncated": lambda content, rng: content[: int(rng.integers(len(content)))],
    "blanked": _blank,
    "appended": lambda content, rng: content + rng.bytes(100),
    "replaced": _replace,
}


# Files made to do harm, by format.


def _make_npy(descr: str, shape: str, content: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header + content


def _hostile_npz(content: bytes, rng: Generator) -> bytes:
    """Return an archive whose array of examples is no array of numbers, or not the size that it says."""
    members = [_save(np.save, np.full((4, 2), Payload()), allow_pickle=True)]
    shapes = ("(1000000000000, 2)", "(-1, 2)", "(3,)", "()", "(2**99, 1)", "(18446744073709551616,)", "(True, 2)")
    members += [_make_npy("'<f4'", shape, bytes(8)) for shape in shapes]
    members += [_make_npy(kind, "(2, 2)", bytes(64)) for kind in ("'<c8'", "'|S4'", "'<M8[D]'", "[('a', '<f4')]", "1")]
    members += [_make_npy("'<f4'", "(" * 5000), b"\x93NUMPY\x09\x09", b"", rng.bytes(100), b"no array"]
    buffer, method = io.BytesIO(), choose([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2], rng)
    method = zipfile.ZIP_LZMA if rng.random() < 0.25 else method
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("x_train.npy", choose(members, rng))
        archive.writestr("y_train.npy", _save(np.save, np.arange(4)))
    changed = bytearray(buffer.getvalue())
    if rng.random() < 0.2:  # an encrypted member, or an unknown compression, in both headers
        at, new = choose([(6, b"\1\0"), (8, b"\x63\0")], rng)
        central = changed.index(b"PK\1\2") + 2
        changed[at : at + 2] = changed[central + at : central + at + 2] = new
    return bytes(changed)


def _hostile_idx(content: bytes, rng: Generator) -> bytes:
    head = choose((b"\0\0\x08\x03", b"\0\0\x08\x04", b"\0\0\x0d\x03", b"\0\0\x08\0", b"\0\0\x08\xff"), rng)
    return head + struct.pack(">4I", *rng.choice([0, 1, 28, 2**31, 2**32 - 1], 4).tolist()) + bytes(100)


def _hostile_image(content: bytes, rng: Generator) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + bytes(4)

    large = chunk(b"IHDR", struct.pack(">IIBBBBB", *rng.choice([1, 60_000, 2**31 - 1], 2).tolist(), 8, 6, 0, 0, 0))
    frames = [Image.new("L", (8, 8), shade) for shade in range(3)]
    others = [_EPS, _PDF, _SVG, b"\x89PNG\r\n\x1a\n" + large + chunk(b"IDAT", b""), b"BM" + rng.bytes(60)]
    others += [b"GIF89a" + b"\xff" * 40, b"RIFF\xff\xff\xff\xffWEBPVP8L" + rng.bytes(40), b"\xff\xd8\xff" + bytes(99)]
    others += [_save(Image.new(mode, (1, 5000)).save, format="png") for mode in ("1", "I;16", "RGBA")]
    others += [_save(frames[0].save, format=name) for name in ("TIFF", "PPM", "ICO", "PCX")]
    return choose([*others, _save(frames[0].save, "gif", append_images=frames, save_all=True), _save_tensors()], rng)


def _hostile_tensors(content: bytes, rng: Generator) -> bytes:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    odd = [{"a": entry | {"shape": [2**62, 4]}}, {"a": entry | {"dtype": "X"}}, {"a": None}, [], 3]
    odd += [
        {"a": entry | {"data_offsets": [4, 0]}},
        {"a": entry, "b": entry},
        {"\0": entry},
        {"__metadata__": {"a": 1}},
    ]
    header = json.dumps(choose(odd, rng)).encode()
    return struct.pack("<Q", choose([len(header), 0, 2**63 - 1, 2**31, 10**8], rng)) + header + bytes(4)


def _hostile_json(content: bytes, rng: Generator) -> bytes:
    """Return the settings of a model with one value replaced."""
    if rng.random() < 0.15:
        return choose([b'{"a":' * 50_000, b'{"format": ' + b"9" * 5000 + b"}", b"{}", b"[]", b"null"], rng)
    values = [None, True, -1, 0, 1e400, 10**12, 2**70, "x", "../../x", [], {}, [[]], "builtins.eval"]
    config = json.loads(content)
    place = config if rng.random() < 0.4 else config["arguments"]
    place[choose([*place, "unknown"], rng)] = choose(values, rng)
    return json.dumps(config).encode()


_HARM = dict(zip(_FORMATS, (_hostile_npz, _hostile_idx, _hostile_image, _hostile_tensors, _hostile_json), strict=True))


class Files:
    """Reads a file that was damaged, or made to do harm: the result is valid, or an error of the package."""

    def __init__(self, root: Path, numbers: Sequence[int]) -> None:
        self.base, rng = root / "good", np.random.default_rng(0)
        for folder in ("mnist/MNIST/raw", "images/a", "images/b"):
            (self.base / folder).mkdir(parents=True)
        for name, shape in _IDX.items():
            content = bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape)
            content += rng.integers(10, size=shape, dtype=np.uint8).tobytes()
            path = self.base / "mnist/MNIST/raw" / name
            path.write_bytes(gzip.compress(content) if path.suffix else content)
        for index, kind in enumerate(("png", "jpeg", "gif", "bmp", "webp", "png")):
            picture = Image.fromarray(rng.integers(256, size=(12, 9, 3), dtype=np.uint8))
            picture.save(self.base / f"images/{'ab'[index % 2]}/{index}.{kind}")
        make_points(self.base / "data.npz")
        model = ss.M2((4,), 3, latent_dim=2, hidden_dims=(8,), likelihood="gaussian", class_prior="map")
        ss.save(model, self.base / "model")
        self.commands = Commands(root)

    def __call__(self, number: int, rng: Generator, folder: Path) -> None:
        """Run a case: nine of ten read a file, the tenth gives a command on a run."""
        kind = [*_FORMATS, *list(_FORMATS)[:4], "run"][number % 10]
        if kind == "run":
            return self._damage_run(rng, folder)
        shutil.copytree(self.base, folder, dirs_exist_ok=True)
        place, read = _FORMATS[kind]
        path = choose_file(folder / place, rng) if (folder / place).is_dir() else folder / place
        how = choose(list(_DAMAGE), rng) if rng.random() < 0.5 else "hostile"
        content = (_DAMAGE | {"hostile": _HARM[kind]})[how](path.read_bytes(), rng)
        path.write_bytes(gzip.compress(content) if how == "hostile" and path.suffix == ".gz" else content)
        labels: dict[str, Any] = {"num_labels": 6, "num_validation": 2, "balanced": False}
        args, options = {
            "npz": ((folder / place,), labels),
            "idx": (("mnist",), {"data_dir": folder / place, "download": False, **labels}),
            "images": ((folder / place,), {"image_size": 8, "num_validation": 1, "num_test": 1}),
        }.get(kind, ((folder / "model",), {}))
        words = f"{path.relative_to(folder)}, {how}:"
        found = attempt(words, read, *args, **options)
        if found is not None:
            attempt(words, use_model if read is ss.load else check_data, found)
        return None

    def _damage_run(self, rng: Generator, folder: Path) -> None:
        """Damage one file of a run that was interrupted, or replace it by one made to do harm."""
        out = self.commands.copy("half", folder)
        path, which = choose_file(out, rng), rng.random()
        if which < 0.3:
            path = out / "config.yaml"
            path.write_text(choose(_YAML, rng))
        elif which < 0.5:
            path.write_bytes(_save_tensors())
        else:
            path.write_bytes(choose(list(_DAMAGE.values()), rng)(path.read_bytes(), rng))
        argv = [["info", str(out)], ["train", "m2", "--resume", str(out)], [*TRAIN, "--out", str(out)]]
        chosen = choose(argv, rng)
        check_ending(self.commands.start(chosen).wait(), f"{path.relative_to(out)} damaged, {' '.join(chosen[:2])}:")
