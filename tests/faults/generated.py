"""Strange values, tables and labels for the tests of this folder, and what counts as an error of the package."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from scipy import sparse
from torch import nn

import pyro_ssvae as ss

Generator = np.random.Generator
_OWN = tuple(Path(package.__file__ or "").parent for package in (ss, sklearn))
_WORDS = np.array(["red", "green", "blue", "", "1,5", "2024-01-31", "3.5", "nan"], dtype=object)
_TYPES = "string category Int64 Float64 boolean bool object Int8 Sparse[float] float32 datetime64[ns] complex128 uint8"


def choose(items: Sequence[Any], rng: Generator) -> Any:
    """Return one of a sequence at random."""
    return items[int(rng.integers(len(items)))]


def attempt(words: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return the result of a call, or ``None`` after an error that a statement of the package raised, with a message.

    The checks of scikit-learn, by which its estimators refuse arguments, count as the package's own. An error that
    another library or the interpreter raises, even inside a function of the package, says nothing about the argument.
    """
    try:
        return function(*args, **options)
    except Exception as error:
        if not _is_own(error):
            last = traceback.extract_tb(error.__traceback__)[-1]
            pytest.fail(f"{words}: {type(error).__name__} at {last.filename}:{last.lineno}: {error}")
    return None


def _is_own(error: Exception) -> bool:
    last = traceback.extract_tb(error.__traceback__)[-1]
    raised = (last.line or "").startswith("raise") and any(map(Path(last.filename).is_relative_to, _OWN))
    known = isinstance(error, (ss.PyroSSVAEError, ValueError, TypeError, FileNotFoundError))
    return raised and known and bool(str(error).strip())


def check_data(data: ss.SemiSupervisedData) -> None:
    """Fail unless the data is what its class promises."""
    for x, y in ((data.x, data.y), (data.x_test, data.y_test)):
        bad = ~x.float().isfinite() if x.dim() > 2 else x.float().isinf()  # NaN is a missing value of a table
        assert x.dtype in (torch.uint8, torch.float32)
        assert not bool(bad.any())
        assert (y.dtype, len(y), x.shape[1:]) == (torch.int64, len(x), data.event_shape)
        assert bool(((y >= -1) & (y < (data.num_classes or 0))).all())
    repr(data)


def use_model(model: Any) -> None:
    """Fail unless a model generates and classifies."""
    _ = model.sample(2) if isinstance(model, ss.DDGM) else model.generate(2)
    if model.num_classes is not None:
        assert len(model.predict_proba(torch.rand(2, *model.event_shape))) == 2


def shorten(value: Any) -> str:
    """Return a value in few words."""
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim:
        return f"{type(value).__name__}{tuple(value.shape)}:{value.dtype}"
    return " ".join(repr(value).split())[:40]


_IMAGES = (20, 1, 8, 8)
VALUES: list[Any] = [0, 1, -1, 3, 2**70, 0.5, -2.0, 1e-320, 1e308, math.nan, math.inf, -math.inf, 1j, True, False]
VALUES += ["", "abc", "3", "null", "mlp", "conv", "bernoulli", "gaussian", "flow", "map", "relu", "cpu", "a\0b"]
VALUES += [b"x", [], (), [1], [0], [-1], [0.5], ["a"], [None], (8, 8), (1, 8, 8), (0, 8, 8), [[1, 2], [3]]]
VALUES += [[[1.0]] * 4, None, ..., {}, {"a": 1}, {1, 2}, object(), print, int, ss.M2, Path("none"), range(3)]
VALUES += [NotImplemented, np.int64(3), np.float32(0.5), np.bool_(True), np.array(3), np.zeros(0), np.arange(20)]
VALUES += [np.zeros((20, 64)), np.full(_IMAGES, np.nan), np.array(["a", "b"]), np.array([None, 1])]
VALUES += [np.zeros((4, 2), complex), np.zeros(3, "datetime64[D]"), np.zeros(3, "i4,f4"), np.ma.masked_all(20)]
VALUES += [np.arange(20) % 3, torch.tensor(3), torch.tensor(0.5), torch.zeros(0), torch.zeros(0, 1, 8, 8)]
VALUES += [torch.full(_IMAGES, value) for value in (0.0, 2.0, -1.0, math.nan, math.inf)]
VALUES += [torch.zeros(_IMAGES, dtype=kind) for kind in (torch.bool, torch.uint8, torch.int64, torch.bfloat16)]
VALUES += [torch.zeros(_IMAGES, dtype=kind) for kind in (torch.float16, torch.float64, torch.complex64)]
VALUES += [torch.zeros(20, 64), torch.zeros(_IMAGES, device="meta"), torch.zeros(20, 64).to_sparse()]
VALUES += [torch.ones(2).requires_grad_(), nn.Identity(), nn.Linear(64, 3), nn.Linear(2, 64), torch.device("meta")]
"""Values of every type."""


def make_base(rng: Generator) -> tuple[Any, Any]:
    """Return a table of 8 to 30 rows and 1 to 6 columns, and labels of two or three classes, -1 in some rows."""
    rows = int(rng.integers(8, 31))
    y = np.arange(rows) % int(rng.integers(2, 4))
    x = rng.normal(size=(rows, int(rng.integers(1, 7)))) + y[:, None]
    return x, np.where(rng.random(rows) < 0.5, -1, y) if rng.random() < 0.8 else y


def _put(x: Any, rng: Generator, *values: Any, dtype: Any = float) -> Any:
    """Return a copy in which some cells hold values."""
    x = x.astype(dtype)
    for _ in range(int(rng.integers(1, 6))):
        x[rng.integers(len(x)), rng.integers(x.shape[1])] = choose(values, rng)
    return x


def _set_column(x: Any, rng: Generator, values: Any, dtype: Any = float) -> Any:
    x = x.astype(dtype)
    x[:, rng.integers(x.shape[1])] = values
    return x


def _as_words(x: Any, rng: Generator) -> Any:
    return _set_column(x, rng, _WORDS[rng.integers(int(rng.integers(1, len(_WORDS) + 1)), size=len(x))], object)


def _as_typed_frame(x: Any, rng: Generator) -> pd.DataFrame:
    table = pd.DataFrame(x.round().clip(0, 1)).rename(columns=lambda number: f"c{number}")
    for name in table:
        table[name] = table[name].astype(choose(_TYPES.split(), rng))
    return table


def _as_frame(x: Any, rng: Generator) -> pd.DataFrame:
    names = ["a"] * 6, list(range(6)), [f"c{i}" for i in range(6)], [None] * 6, ["a", 1, 2.5, None, "a", (1, 2)]
    return pd.DataFrame(x, columns=choose(names, rng)[: x.shape[1]])


EXAMPLES: dict[str, Callable[[Any, Generator], Any]] = {
    "numbers": lambda x, rng: x,
    "list": lambda x, rng: choose([x.tolist(), [*x.tolist(), [1.0] * 9]], rng),
    "scalar": lambda x, rng: choose([None, 3, "abc", {}, {"a": 1}, object(), b"ab", [], [[]], iter(x)], rng),
    "axes": lambda x, rng: choose([x[:, 0], x[:, :, None] * np.ones(3), np.ones((len(x), 1, 2, 2, 2))], rng),
    "images": lambda x, rng: rng.random((len(x), 1, 8, 8)),
    "images of any values": lambda x, rng: 3.0 * rng.normal(size=(len(x), choose([1, 2, 3], rng), 8, 8)),
    "small images": lambda x, rng: rng.random((len(x), choose([1, 3], rng), *rng.integers(1, 5, 2))),
    "8 bits": lambda x, rng: rng.integers(0, 256, (len(x), 1, 8, 8)).astype(np.uint8),
    "table of 8 bits": lambda x, rng: (40 * (x - x.min())).clip(0, 255).astype(np.uint8),
    "few rows": lambda x, rng: x[: choose([0, 1, 2], rng)],
    "other columns": lambda x, rng: choose([x[:, :0], x[:, :1], np.hstack([x, x[:, :1]])], rng),
    "missing": lambda x, rng: _put(x, rng, np.nan),
    "all missing": lambda x, rng: np.full(x.shape, np.nan),
    "missing row": lambda x, rng: np.where((np.arange(len(x)) == rng.integers(len(x)))[:, None], np.nan, x),
    "missing column": lambda x, rng: _set_column(x, rng, np.nan),
    "infinite": lambda x, rng: _put(x, rng, np.inf, -np.inf),
    "constant column": lambda x, rng: _set_column(x, rng, choose([0.0, 1.0, -7.5, 1e30, 1e-30], rng)),
    "constant": lambda x, rng: np.full(x.shape, choose([0.0, 1.0, 1e30, -3.0], rng)),
    "units": lambda x, rng: x * 10.0 ** rng.integers(-30, 31, x.shape[1]),
    "beyond float32": lambda x, rng: x * 10.0 ** rng.integers(-320, 301, x.shape[1]),
    "offset": lambda x, rng: x + 10.0 ** rng.integers(0, 31, x.shape[1]),
    "outlier": lambda x, rng: _put(x, rng, 1e10, 1e30, -1e37, 1e-37),
    "words": _as_words,
    "words only": lambda x, rng: choose([_WORDS, _WORDS[:4].astype(str)], rng)[rng.integers(4, size=x.shape)],
    "many words": lambda x, rng: _set_column(x, rng, [f"name {i}" for i in range(len(x))], object),
    "objects": lambda x, rng: _put(x, rng, None, "a", 2**80, object(), [1], {}, 1j, True, b"x", pd.NA, dtype=object),
    "counts": lambda x, rng: rng.poisson(10.0 ** rng.integers(-1, 9, x.shape[1]), x.shape),
    "huge integers": lambda x, rng: (x * 2.0**61).astype(np.int64),
    "numbers as words": lambda x, rng: x.astype(str).astype(choose(["U", "S"], rng)),
    "times": lambda x, rng: (x * 1e9).astype(choose(["datetime64[s]", "timedelta64[s]"], rng)),
    "booleans and complex": lambda x, rng: choose([x > 0, x + 1j, np.zeros(len(x), "i4,f4")], rng),
    "half precision": lambda x, rng: (x * 10.0 ** int(rng.integers(-6, 4))).astype(np.float16),
    "masked": lambda x, rng: np.ma.masked_greater(x, 1.0),
    "tensor": lambda x, rng: torch.as_tensor(x),
    "sparse": lambda x, rng: choose([sparse.csr_matrix, sparse.coo_array, sparse.lil_matrix], rng)(x),
    "frame": _as_frame,
    "frame of types": _as_typed_frame,
    "frame of words": lambda x, rng: pd.DataFrame(_as_words(x, rng)).infer_objects(),
    "series": lambda x, rng: pd.Series(x[:, 0]),
    "views": lambda x, rng: choose([np.broadcast_to(x[:1], x.shape), x[::-1, ::-1]], rng),
}
"""Examples, made of a table of numbers."""

LABELS: dict[str, Callable[[Any, Generator], Any]] = {
    "numbers": lambda y, rng: y,
    "all -1": lambda y, rng: np.full(len(y), -1),
    "one class": lambda y, rng: choose([np.where(y == 0, 0, -1), np.where(np.arange(len(y)) == 0, 1, -1)], rng),
    "one label a class": lambda y, rng: np.where(np.arange(len(y)) < 3, np.arange(len(y)), -1),
    "every label": lambda y, rng: np.arange(len(y)) % choose([3, len(y)], rng),
    "floats": lambda y, rng: y + choose([0.0, 0.25], rng),
    "missing": lambda y, rng: np.where(y < 0, choose([np.nan, np.inf], rng), y),
    "words": lambda y, rng: np.array(["", "a", "b", "c"])[y + 1],
    "words and None": lambda y, rng: np.array([None, "a", "b", "c"], dtype=object)[y + 1],
    "words and numbers": lambda y, rng: np.array([None, "a", 1, 2.0], dtype=object)[y + 1].tolist(),
    "objects": lambda y, rng: np.array([None, [1], {}, object()], dtype=object)[y + 1],
    "scalar": lambda y, rng: choose([None, 3, "abc", {}, object(), [], True], rng),
    "another length": lambda y, rng: choose([y[:-1], np.append(y, 0)], rng),
    "2-D": lambda y, rng: choose([y[:, None], np.eye(4)[y]], rng),
    "booleans": lambda y, rng: y > 0,
    "other types": lambda y, rng: choose([y + 1j, y.astype("datetime64[D]")], rng),
    "huge": lambda y, rng: np.where(y < 0, -1, 2**62 - y),
    "negative": lambda y, rng: y - 5,
    "series": lambda y, rng: pd.Series(y, index=np.arange(len(y))[::-1]),
    "category": lambda y, rng: pd.Series(np.array([None, "a", "b", "c"], dtype=object)[y + 1], dtype="category"),
    "nullable": lambda y, rng: pd.Series(y, dtype="Int64").where(y >= 0),
    "tensor": lambda y, rng: torch.as_tensor(y),
    "masked": lambda y, rng: np.ma.masked_less(y, 0),
}
"""Labels, made of numbers of classes and -1."""
