"""Damaged and hostile files of every format that the package reads; see ``faults.py``."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fault_inputs import check_data, check_error, use_model
from fault_runs import TRAIN, Commands, check_ending, choose_file, make_points
from faults import choose
from PIL import Image

import pyro_ssvae as ss

__all__ = ["Files"]

Generator = np.random.Generator
_Damage = Callable[[bytes, Generator], bytes]
_IDX = {"train-images-idx3-ubyte": (30, 28, 28), "train-labels-idx1-ubyte": (30,)}
_IDX |= {name.replace("train", "t10k"): shape for name, shape in _IDX.items()}
_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\nshowpage\n%%EOF\n"
_PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
_SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


class Payload:
    """An object that leaves a mark when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the call that unpickling makes."""
        return open, (os.environ["FAULTS_MARK"], "w")


def _save(function: Callable[..., Any], *args: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    function(buffer, *args, **options)
    return buffer.getvalue()


def _save_tensors(file: Any) -> None:
    torch.save({"step": 3, "model": Payload()}, file)


# Damage to the bytes of any file.


def _flip(content: bytes, rng: Generator) -> bytes:
    changed = bytearray(content)
    for place in rng.integers(len(changed), size=int(rng.integers(1, 20))):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _flip_early(content: bytes, rng: Generator) -> bytes:
    return _flip(content[:128], rng) + content[128:]


def _truncate(content: bytes, rng: Generator) -> bytes:
    return content[: int(rng.integers(len(content)))]


def _blank(content: bytes, rng: Generator) -> bytes:
    start = int(rng.integers(len(content)))
    return content[:start] + bytes(min(512, len(content) - start)) + content[start + 512 :]


def _append(content: bytes, rng: Generator) -> bytes:
    return content + rng.bytes(100)


def _replace(content: bytes, rng: Generator) -> bytes:
    others = [b"", b"\n", rng.bytes(200), b"[" * 100_000, b"\xff\xfe{}", _EPS, _PDF, b"PK\x05\x06" + bytes(18)]
    others += [_save(np.save, np.zeros(3)), _save(np.savez), pickle.dumps({"x": Payload()}), _save(_save_tensors)]
    others += [gzip.compress(b"")]
    return choose(others, rng)


_DAMAGE = (_flip, _flip_early, _truncate, _blank, _append, _replace)


# Files made to do harm, by format; most have nothing of the file that they replace.


def _make_npy(descr: str, shape: str, content: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header + content


def _hostile_npz(content: bytes, rng: Generator) -> bytes:
    """Return an archive whose array of examples is no array of numbers, or not the size that it says."""
    objects = np.empty((4, 2), object)
    objects[:] = Payload()
    members = [_save(np.save, objects, allow_pickle=True)]
    shapes = ("(1000000000000, 2)", "(-1, 2)", "(3,)", "()", "(2**99, 1)", "(18446744073709551616,)", "(True, 2)")
    members += [_make_npy("'<f4'", shape, bytes(8)) for shape in shapes]
    members += [_make_npy(kind, "(2, 2)", bytes(64)) for kind in ("'<c8'", "'|S4'", "'<M8[D]'", "[('a', '<f4')]", "1")]
    members += [_make_npy("'<f4'", "(" * 5000), b"\x93NUMPY\x09\x09", b"", rng.bytes(100), b"no array"]
    buffer, labels = io.BytesIO(), _save(np.save, np.arange(4))
    method = int(rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]))
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("x_train.npy", choose(members, rng))
        archive.writestr("y_train.npy", labels)
    content = buffer.getvalue()
    if rng.random() < 0.2:  # an encrypted member, or an unknown compression, in both headers
        old, new = (b"\0\0", b"\1\0") if rng.random() < 0.5 else (struct.pack("<H", method), b"\x63\0")
        at = (6, 8) if new == b"\1\0" else (8, 10)
        changed, central = bytearray(content), content.index(b"PK\1\2")
        changed[at[0] : at[0] + 2] = changed[central + at[1] : central + at[1] + 2] = new
        return bytes(changed)
    return content


def _hostile_idx(content: bytes, rng: Generator) -> bytes:
    heads = (b"\0\0\x08\x03", b"\0\0\x08\x04", b"\0\0\x0d\x03", b"\0\0\x08\0", b"\0\0\x08\xff")
    head = choose(heads, rng)
    sizes = struct.pack(">4I", *(int(rng.choice([0, 1, 28, 2**31, 2**32 - 1])) for _ in range(4)))
    return head + sizes + bytes(100)


def _hostile_image(content: bytes, rng: Generator) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + bytes(4)

    large = chunk(b"IHDR", struct.pack(">IIBBBBB", *rng.choice([1, 60_000, 2**31 - 1], 2).tolist(), 8, 6, 0, 0, 0))
    frames = [Image.new("L", (8, 8), shade) for shade in range(3)]
    others = [_EPS, _PDF, _SVG, b"\x89PNG\r\n\x1a\n" + large + chunk(b"IDAT", b""), b"BM" + rng.bytes(60)]
    others += [b"GIF89a" + b"\xff" * 40, b"RIFF\xff\xff\xff\xffWEBPVP8L" + rng.bytes(40), b"\xff\xd8\xff" + bytes(99)]
    others += [_save(Image.new(mode, (1, 5000)).save, format="png") for mode in ("1", "I;16", "RGBA")]
    others += [_save(frames[0].save, format=name) for name in ("TIFF", "PPM", "ICO", "PCX")]
    others += [_save(frames[0].save, format="gif", append_images=frames, save_all=True), _save(_save_tensors)]
    return choose(others, rng)


def _hostile_tensors(content: bytes, rng: Generator) -> bytes:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    odd: list[Any] = [{"a": entry | {"shape": [2**62, 4]}}, {"a": entry | {"dtype": "X"}}, {"a": None}, [], 3]
    odd += [{"a": entry | {"data_offsets": [4, 0]}}, {"a": entry, "b": entry}, {"\0": entry}]
    odd += [{"__metadata__": {"a": 1}}]
    header = json.dumps(choose(odd, rng)).encode()
    length = int(rng.choice([len(header), 0, 2**63 - 1, 2**31, 10**8]))
    return struct.pack("<Q", length) + header + bytes(4)


def _hostile_json(content: bytes, rng: Generator) -> bytes:
    """Return the settings of a model with one value replaced."""
    values: list[Any] = [None, True, -1, 0, 1e400, 10**12, 2**70, "x", "../../x", [], {}, [[]], "builtins.eval"]
    config = json.loads(content)
    place: dict[str, Any] = config if rng.random() < 0.4 else config["arguments"]
    place[str(rng.choice(list(place)))] = choose(values, rng)
    if rng.random() < 0.2:
        place |= {"unknown": 1}
    texts = [b'{"a":' * 50_000, b'{"format": ' + b"9" * 5000 + b"}", b"{}", b"[]", b"null"]
    return choose(texts, rng) if rng.random() < 0.15 else json.dumps(config).encode()


def _hostile_yaml(rng: Generator) -> bytes:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    tag = "!!python/object/apply:os.system ['started-by-yaml']"
    texts = [bomb, f"command: {tag}\n", f"command: m2\nflags: {tag}\n", "[" * 50_000, "a: *b", "\t", "- 1\n", "null"]
    texts += ["command: m2\nflags: 3\n", "command: [m2]\nflags: {}\n"]
    texts += ["command: m2\nflags: {latent_dim: {a: {b: 1}}}\n"]
    texts += ["command: m2\nflags: {1: 2, null: 3, data: 5, hidden_dims: x}\n", "? [a]\n: b\n", "2001-99-99", "\0"]
    return choose(texts, rng).encode()


_FORMATS: dict[str, tuple[str, _Damage]] = {  # where their files are, and what makes harmful ones
    "npz": ("data.npz", _hostile_npz),
    "idx": ("mnist", _hostile_idx),
    "images": ("images", _hostile_image),
    "weights": ("model/model.safetensors", _hostile_tensors),
    "config": ("model/config.json", _hostile_json),
}


class Files:
    """Reads a file that was damaged, or made to do harm: the result is valid, or an error of the package."""

    def __init__(self, seed: int, root: Path) -> None:
        self.seed = seed
        self.base = root / "good"
        rng = np.random.default_rng(seed)
        for folder in ("mnist/MNIST/raw", "images/a", "images/b"):
            (self.base / folder).mkdir(parents=True)
        for index, (name, shape) in enumerate(_IDX.items()):
            content = rng.integers(10, size=shape, dtype=np.uint8).tobytes()
            content = bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + content
            path = self.base / "mnist/MNIST/raw" / name
            path.with_suffix(".gz" if index % 2 else "").write_bytes(gzip.compress(content) if index % 2 else content)
        for index, kind in enumerate(("png", "jpeg", "gif", "bmp", "webp", "png")):
            picture = Image.fromarray(rng.integers(256, size=(12, 9, 3), dtype=np.uint8))
            picture.save(self.base / f"images/{'ab'[index % 2]}/{index}.{kind}")
        make_points(self.base / "data.npz")
        torch.manual_seed(seed)
        model = ss.M2((4,), 3, latent_dim=2, hidden_dims=(8,), likelihood="gaussian", class_prior="map")
        ss.save(model, self.base / "model")
        self.commands = Commands(root)

    def __call__(self, number: int, folder: Path) -> None:
        """Run a case."""
        rng = np.random.default_rng((self.seed, 2, number))
        kinds = ("npz", "idx", "images", "weights", "config", "npz", "idx", "images", "weights", "run")
        kind = kinds[number % len(kinds)]
        if kind == "run":
            self._damage_run(rng, folder)
            return
        shutil.copytree(self.base, folder, dirs_exist_ok=True)
        place, harm = _FORMATS[kind]
        path = folder / place
        path = choose_file(path, rng) if path.is_dir() else path
        content = path.read_bytes()
        damage = choose(_DAMAGE, rng)
        if rng.random() < 0.5:
            damage = harm
        content = damage(content, rng)
        path.write_bytes(gzip.compress(content) if damage is harm and path.suffix == ".gz" else content)
        self._read(kind, folder, f"{path.relative_to(folder)}, {damage.__name__[1:]}:")

    def _read(self, kind: str, folder: Path, words: str) -> None:
        data = ss.SemiSupervisedData
        labels: dict[str, Any] = {"num_labels": 6, "num_validation": 2, "balanced": False}
        try:
            if kind == "npz":
                check_data(data.from_npz(folder / "data.npz", **labels))
            elif kind == "idx":
                check_data(data.from_name("mnist", data_dir=folder / "mnist", download=False, **labels))
            elif kind == "images":
                check_data(data.from_folder(folder / "images", image_size=8, num_validation=1, num_test=1))
            else:
                use_model(ss.load(folder / "model"))
        except BaseException as error:
            check_error(error, words)

    def _damage_run(self, rng: Generator, folder: Path) -> None:
        """Damage one file of a run that was interrupted, or replace it by one made to do harm."""
        out = self.commands.copy("half", folder)
        path = choose_file(out, rng)
        if rng.random() < 0.3:
            path = out / "config.yaml"
            path.write_bytes(_hostile_yaml(rng))
        elif rng.random() < 0.3:
            path.write_bytes(_save(_save_tensors))
        else:
            path.write_bytes(choose(_DAMAGE, rng)(path.read_bytes(), rng))
        argv = [["info", str(out)], ["train", "m2", "--resume", str(out)], [*TRAIN, "--out", str(out)]]
        chosen = choose(argv, rng)
        check_ending(self.commands.start(chosen).wait(), f"{path.relative_to(out)} damaged, {' '.join(chosen[:2])}:")
