"""Estimators with generated examples, labels and parameters; see ``faults.py``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import torch
from fault_inputs import check_error, make_values
from faults import Failure, choose
from scipy import sparse

from pyro_ssvae.estimators import DDGMDensity, M1M2Classifier, M1Transformer, M2Classifier

__all__ = ["EXAMPLES", "LABELS", "Estimators", "attempt", "make_base"]

Generator = np.random.Generator
Array = np.ndarray[Any, Any]
_WORDS = np.array(["red", "green", "blue", "", "1,5", "2024-01-31", "3.5", "nan"], dtype=object)
_ESTIMATORS = (M2Classifier, M1M2Classifier, M1Transformer, DDGMDensity)


def make_base(rng: Generator) -> tuple[Array, Array]:
    """Return a table of 8 to 30 rows and 1 to 6 columns, and labels of two or three classes, -1 in some rows."""
    rows = int(rng.integers(8, 31))
    y = np.arange(rows) % int(rng.integers(2, 4))
    x = rng.normal(size=(rows, int(rng.integers(1, 7)))) + y[:, None]
    return x, np.where(rng.random(rows) < 0.5, -1, y) if rng.random() < 0.8 else y


def _put(x: Array, rng: Generator, *values: Any, dtype: Any = float) -> Array:
    """Return a copy in which some cells hold values."""
    x = x.astype(dtype)
    for _ in range(int(rng.integers(1, 6))):
        x[rng.integers(len(x)), rng.integers(x.shape[1])] = choose(values, rng)
    return x


def _set_column(x: Array, rng: Generator, values: Any, dtype: Any = float) -> Array:
    x = x.astype(dtype)
    x[:, rng.integers(x.shape[1])] = values
    return x


def _as_words(x: Array, rng: Generator) -> Array:
    return _set_column(x, rng, _WORDS[rng.integers(int(rng.integers(1, len(_WORDS) + 1)), size=len(x))], object)


def _as_frame(x: Array, rng: Generator) -> pd.DataFrame:
    names = [["a"] * x.shape[1], list(range(x.shape[1])), [f"c{i}" for i in range(x.shape[1])], [None] * x.shape[1]]
    return pd.DataFrame(x, columns=choose([*names, ["a", 1, 2.5, None, "a", (1, 2)][: x.shape[1]]], rng))


def _as_typed_frame(x: Array, rng: Generator) -> pd.DataFrame:
    kinds = ["string", "category", "Int64", "Float64", "boolean", "bool", "object", "Int8", "Sparse[float]", "float32"]
    kinds += ["datetime64[ns]", "timedelta64[ns]", "complex128", "uint8", "float64[pyarrow]", "string[pyarrow]"]
    table = pd.DataFrame(x.round().clip(0, 1), columns=[f"c{i}" for i in range(x.shape[1])])
    for name in table.columns:
        table[name] = table[name].astype(choose(kinds, rng))
        with suppress(TypeError, ValueError):  # not every type has missing values
            table[name] = table[name].mask(rng.random(len(x)) < 0.1)
    return table


EXAMPLES: dict[str, Callable[[Array, Generator], Any]] = {
    "numbers": lambda x, rng: x,
    "list": lambda x, rng: x.tolist(),
    "ragged": lambda x, rng: [*x.tolist(), [1.0] * 9],
    "scalar": lambda x, rng: choose([None, 3, "abc", {}, {"a": 1}, object(), b"ab", [], [[]], iter(x)], rng),
    "1-D": lambda x, rng: x[:, 0],
    "3-D": lambda x, rng: x[:, :, None] * np.ones(3),
    "images": lambda x, rng: rng.random((len(x), 1, 8, 8)),
    "images of any values": lambda x, rng: 3.0 * rng.normal(size=(len(x), choose([1, 2, 3], rng), 8, 8)),
    "small images": lambda x, rng: rng.random((len(x), choose([1, 3], rng), *rng.integers(1, 5, 2))),
    "8 bits": lambda x, rng: rng.integers(0, 256, (len(x), 1, 8, 8)).astype(np.uint8),
    "table of 8 bits": lambda x, rng: (40 * (x - x.min())).clip(0, 255).astype(np.uint8),
    "5-D": lambda x, rng: np.ones((len(x), 1, 2, 2, 2)),
    "no rows": lambda x, rng: x[:0],
    "no columns": lambda x, rng: x[:, :0],
    "one row": lambda x, rng: x[:1],
    "two rows": lambda x, rng: x[:2],
    "one column": lambda x, rng: x[:, :1],
    "more columns": lambda x, rng: np.hstack([x, x[:, :1]]),
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
    "words only": lambda x, rng: _WORDS[rng.integers(3, size=x.shape)],
    "many words": lambda x, rng: _set_column(x, rng, [f"name {i}" for i in range(len(x))], object),
    "unicode": lambda x, rng: _WORDS[rng.integers(4, size=x.shape)].astype(str),
    "numbers as words": lambda x, rng: x.astype(str),
    "bytes": lambda x, rng: x.astype(str).astype("S"),
    "objects": lambda x, rng: _put(x, rng, None, "a", 2**80, object(), [1], {}, 1j, True, b"x", pd.NA, dtype=object),
    "objects that are numbers": lambda x, rng: _put(x, rng, None, True, 3, np.float32(2), dtype=object),
    "booleans": lambda x, rng: x > 0,
    "counts": lambda x, rng: rng.poisson(10.0 ** rng.integers(-1, 9, x.shape[1]), x.shape),
    "huge integers": lambda x, rng: (x * 2.0**61).astype(np.int64),
    "dates": lambda x, rng: (x * 1e9).astype("datetime64[s]"),
    "durations": lambda x, rng: (x * 1e9).astype("timedelta64[s]"),
    "complex": lambda x, rng: x + 1j,
    "half precision": lambda x, rng: (x * 10.0 ** int(rng.integers(-6, 4))).astype(np.float16),
    "structured": lambda x, rng: np.zeros(len(x), "i4,f4"),
    "masked": lambda x, rng: np.ma.masked_greater(x, 1.0),
    "tensor": lambda x, rng: torch.as_tensor(x),
    "sparse": lambda x, rng: choose([sparse.csr_matrix, sparse.coo_array, sparse.lil_matrix], rng)(x),
    "frame": _as_frame,
    "frame of types": _as_typed_frame,
    "frame of words": lambda x, rng: pd.DataFrame(_as_words(x, rng)).infer_objects(),
    "series": lambda x, rng: pd.Series(x[:, 0]),
    "read-only": lambda x, rng: np.broadcast_to(x[:1], x.shape),
    "reversed": lambda x, rng: x[::-1, ::-1],
}
"""Examples, made of a table of numbers."""

LABELS: dict[str, Callable[[Array, Generator], Any]] = {
    "all -1": lambda y, rng: np.full(len(y), -1),
    "one class": lambda y, rng: np.where(y == 0, 0, -1),
    "one label": lambda y, rng: np.where(np.arange(len(y)) == 0, 1, -1),
    "one label a class": lambda y, rng: np.where(np.arange(len(y)) < 3, np.arange(len(y)), -1),
    "every label": lambda y, rng: np.arange(len(y)) % 3,
    "a class each": lambda y, rng: np.arange(len(y)),
    "floats": lambda y, rng: y.astype(float),
    "fractions": lambda y, rng: y + 0.25,
    "missing": lambda y, rng: np.where(y < 0, np.nan, y),
    "infinite": lambda y, rng: np.where(y < 0, np.inf, y),
    "words": lambda y, rng: np.array(["", "a", "b", "c"])[y + 1],
    "words and None": lambda y, rng: np.array([None, "a", "b", "c"], dtype=object)[y + 1],
    "words and numbers": lambda y, rng: np.array([None, "a", 1, 2.0], dtype=object)[y + 1].tolist(),
    "objects": lambda y, rng: np.array([None, [1], {}, object()], dtype=object)[y + 1],
    "None": lambda y, rng: None,
    "scalar": lambda y, rng: choose([3, "abc", {}, object(), [], True], rng),
    "too few": lambda y, rng: y[:-1],
    "too many": lambda y, rng: np.append(y, 0),
    "column": lambda y, rng: y[:, None],
    "2-D": lambda y, rng: np.eye(4)[y],
    "booleans": lambda y, rng: y > 0,
    "complex": lambda y, rng: y + 1j,
    "dates": lambda y, rng: y.astype("datetime64[D]"),
    "huge": lambda y, rng: np.where(y < 0, -1, 2**62 - y),
    "negative": lambda y, rng: y - 5,
    "series": lambda y, rng: pd.Series(y, index=np.arange(len(y))[::-1]),
    "category": lambda y, rng: pd.Series(np.array([None, "a", "b", "c"], dtype=object)[y + 1], dtype="category"),
    "nullable": lambda y, rng: pd.Series(y, dtype="Int64").where(y >= 0),
    "tensor": lambda y, rng: torch.as_tensor(y),
    "masked": lambda y, rng: np.ma.masked_less(y, 0),
}
"""Labels, made of numbers of classes and -1."""


def attempt(function: Callable[..., Any], words: str, *args: Any, **options: Any) -> Any:
    """Return the result of a call, or ``None`` after an error of the package or a check of scikit-learn."""
    try:
        return function(*args, **options)
    except BaseException as error:
        check_error(error, words)
    return None


class Estimators:
    """Fits an estimator with strange examples, labels or parameters, and uses it."""

    def __init__(self) -> None:
        self.values = make_values()

    def __call__(self, rng: Generator) -> None:
        """Run a case."""
        x, y = make_base(rng)
        aspect = choose(["X", "X", "y", "parameters", "later", "again", "two"], rng)
        kind = choose(list(EXAMPLES), rng) if aspect in ("X", "two") else "numbers"
        label = choose(list(LABELS), rng) if aspect in ("y", "two") else ""
        estimator, given = self._make(rng, aspect == "parameters")
        words = f"{type(estimator).__name__}({given}), X={kind} of {x.shape}, y={label or 'numbers'}:"
        X, labels = EXAMPLES[kind](x, rng), LABELS[label](y, rng) if label else y
        fit = (
            choose([estimator.fit, estimator.partial_fit], rng) if hasattr(estimator, "partial_fit") else estimator.fit
        )
        if attempt(fit, f"{words} {fit.__name__}", X, labels) is None:
            return
        if aspect == "again":
            estimator.set_params(**{"warm_start": True} if hasattr(estimator, "warm_start") else {})
            other, label = choose(list(EXAMPLES), rng), choose(["", *LABELS], rng)
            words = f"{words[:-1]}, then {fit.__name__} with X={other}, y={label or 'numbers'}:"
            changed = EXAMPLES[other](x, rng), LABELS[label](y, rng) if label else y
            X = X if attempt(fit, words, *changed) is None else changed[0]
        for _ in range(2):
            later = choose(list(EXAMPLES), rng) if aspect == "later" else "the same X"
            given_x = EXAMPLES[later](x, rng) if aspect == "later" else X
            self._use(estimator, given_x, y, rng, f"{words[:-1]}, later {later}:")

    def _make(self, rng: Generator, strange: bool) -> tuple[Any, str]:
        """Return an estimator that trains briefly, and the parameters that are strange."""
        kind = choose(_ESTIMATORS, rng)
        names = list(kind().get_params())
        quick = {"max_steps": int(rng.integers(2, 6)), "hidden_dims": (8,), "device": "cpu", "random_state": 0}
        quick |= {"max_time": 5.0} | ({"class_prior": "uniform"} if rng.random() < 0.9 else {})
        chosen = rng.choice(names, size=int(rng.integers(1, 3)) if strange else 0, replace=False)
        given = {str(name): choose(self.values, rng)() for name in chosen}
        words = ", ".join(f"{name}={' '.join(repr(value).split())[:40]}" for name, value in given.items())
        return kind(**{name: value for name, value in quick.items() if name in names} | given), words

    def _use(self, estimator: Any, X: Any, y: Any, rng: Generator, words: str) -> None:
        """Call a method of a trained estimator, and check what it returns."""
        names = ("predict", "predict_proba", "predict_log_proba", "transform", "impute", "score", "score_samples")
        name = choose([one for one in (*names, "sample", "inverse_transform") if hasattr(estimator, one)], rng)
        if name == "sample":
            number = choose(self.values, rng)() if rng.random() < 0.5 else 3
            labels = (choose(self.values, rng)(),) if hasattr(estimator, "classes_") and rng.random() < 0.3 else ()
            found = attempt(estimator.sample, f"{words} sample({number!r:.40}, {labels!r:.60})", number, *labels)
            X = np.zeros((number, 1)) if found is not None else X
        elif name == "score":
            label = choose(["", *LABELS], rng)
            found = attempt(estimator.score, f"{words} score y={label}", X, LABELS[label](y, rng) if label else y)
        else:
            found = attempt(getattr(estimator, name), f"{words} {name}", X)
        if found is not None:
            _check(estimator, name, found, X, f"{words} {name}")


def _check(estimator: Any, name: str, found: Any, X: Any, words: str) -> None:
    """Raise ``Failure`` unless a method returned finite numbers, or classes, of the right shape."""
    length = X.shape[0] if hasattr(X, "shape") else len(X)
    classes = getattr(estimator, "classes_", np.arange(0))
    if name == "sample" and len(classes):
        found, labels = found
        if not (len(labels) == len(found) and np.isin(labels, classes).all()):
            raise Failure("different", f"{words} gives classes {labels}")
    found = np.asarray(found)
    shapes = {"predict_proba": (length, len(classes)), "predict": (length,), "score": (), "score_samples": (length,)}
    right = found.shape == shapes.get(name, found.shape) and (name == "score" or len(found) == length)
    if name == "predict":
        right &= bool(np.isin(found, classes).all())
    elif found.dtype != object:
        right &= bool((~np.isnan(found) if name == "predict_log_proba" else np.isfinite(found)).all())
    if name == "predict_proba" and right:
        right = bool(np.allclose(found.sum(1), 1.0, atol=1e-5) and (found >= 0).all())
    if not right:
        raise Failure("different", f"{words} gives {found.dtype} {found.shape}: {found.ravel()[:4]}")
