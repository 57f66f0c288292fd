"""Wrong arguments of every type, and strange examples and labels; see ``faults.py``."""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sklearn
import torch
from fault_runs import Failure, choose
from scipy import sparse
from torch import nn

import pyro_ssvae as ss
from pyro_ssvae import distributions as dists

Generator = np.random.Generator
Array = np.ndarray[Any, Any]
Target = tuple[Callable[..., Any], dict[str, Any], Callable[[Any], Any]]
"""A function or class, arguments that fit, and a function that uses the result, which must work if the call did."""
_OWN = tuple(Path(package.__file__ or "").parent for package in (ss, sklearn))
_NOT_VARIED = ("module", "download")
_SHAPE = (1, 8, 8)
_WORDS = np.array(["red", "green", "blue", "", "1,5", "2024-01-31", "3.5", "nan"], dtype=object)
_TYPES = "string category Int64 Float64 boolean bool object Int8 Sparse[float] float32 datetime64[ns] timedelta64[ns] "
_TYPES += "complex128 uint8 float64[pyarrow] string[pyarrow]"


def check_error(error: BaseException, words: str = "") -> None:
    """Raise ``Failure`` unless a statement of the package raised the error, of a documented class and with a message.

    The checks of scikit-learn, by which its estimators refuse arguments, count as the package's own. An error that
    another library or the interpreter raised, even inside a function of the package, tells users nothing about the
    argument that they gave.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    path, raised = Path(last.filename), (last.line or "").startswith("raise")
    known = isinstance(error, (ss.PyroSSVAEError, ValueError, TypeError, FileNotFoundError))
    if not (raised and any(map(path.is_relative_to, _OWN)) and known and str(error).strip()):
        place = "/".join(path.parts[-2:])
        raise Failure("foreign", f"{words} {type(error).__name__} at {place}:{last.lineno}: {error}") from error


def attempt(words: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return the result of a call, or ``None`` after an error of the package or a check of scikit-learn."""
    try:
        return function(*args, **options)
    except Failure as failure:
        raise Failure(failure.args[0], f"{words} {failure.args[1]}") from failure
    except BaseException as error:
        check_error(error, words)
    return None


def check_data(data: ss.SemiSupervisedData) -> None:
    """Raise ``Failure`` unless the data is what its class promises."""
    for part, (x, y) in {"x": (data.x, data.y), "x_test": (data.x_test, data.y_test)}.items():
        bad = ~x.float().isfinite() if x.dim() > 2 else x.float().isinf()  # NaN is a missing value of a table
        right = x.dtype in (torch.uint8, torch.float32) and not bool(bad.any())
        right &= y.dtype == torch.int64 and len(x) == len(y) and x.shape[1:] == data.event_shape
        if not right or not bool(((y >= -1) & (y < (data.num_classes or 0))).all()):
            raise Failure("corrupt", f"{part} of the data is {x.dtype} {tuple(x.shape)} with labels {y.dtype}")
    repr(data)


def use_model(model: Any) -> None:
    """Raise ``Failure`` unless a model generates and classifies."""
    found = model.sample(2) if isinstance(model, ss.DDGM) else model.generate(2)
    if model.num_classes is not None:
        found = model.predict_proba(torch.rand(2, *model.event_shape))
        if not isinstance(found, torch.Tensor) or len(found) != 2:
            raise Failure("different", "the model gives no result for each example")


def _use_config(config: ss.TrainingConfig) -> None:
    total = config.total_steps(10)
    found = [total, config.evaluation_interval(total), config.kl_weight_at(0, total, 100)]
    found += [config.learning_rate_at(step, total) for step in (0, total - 1)]
    if not all(math.isfinite(number) for number in found) or total < 1 or found[1] < 1:
        raise Failure("different", f"the settings give {found}")


def _make_targets(root: Path) -> dict[str, Target]:
    """Return what is called, by name."""
    x, y = torch.rand(20, *_SHAPE), torch.arange(20) % 3
    np.savez(root / "data.npz", x_train=x.numpy(), y_train=y.numpy())
    small: dict[str, Any] = {"latent_dim": 2, "hidden_dims": (8,)}
    energy: dict[str, Any] = {"event_shape": _SHAPE, "latent_dim": 2, "num_experts": 3}
    m1, m2, ddgm = ss.M1(_SHAPE, **small), ss.M2(_SHAPE, 3, **small, classifier="mlp"), ss.DDGM(**energy)
    for model in (m1, m2, ddgm):
        model.eval()
    data, two = ss.SemiSupervisedData, {"num_samples": 2}
    targets: dict[str, Target] = {
        "M2": (ss.M2, {"event_shape": _SHAPE, "num_classes": 3, **small}, use_model),
        "M1": (ss.M1, {"event_shape": _SHAPE, **small}, use_model),
        "DDGM": (ss.DDGM, energy, use_model),
        "M1M2.from_m1": (ss.M1M2.from_m1, {"m1": m1, "num_classes": 3, "latent_dim": 2}, use_model),
        "TrainingConfig": (ss.TrainingConfig, {}, _use_config),
        "SemiSupervisedELBO": (ss.SemiSupervisedELBO, {"module": m2, "num_unlabelled": 17, "num_labelled": 3}, repr),
        "UnsupervisedELBO": (ss.UnsupervisedELBO, {"module": m1, "num_examples": 20}, repr),
        "EnergyObjective": (ss.EnergyObjective, {"module": ddgm, "num_unlabelled": 20}, repr),
        "from_arrays": (data.from_arrays, {"x": x, "y": y}, check_data),
        "from_npz": (data.from_npz, {"path": root / "data.npz"}, check_data),
        "from_folder": (data.from_folder, {"path": root, "image_size": 8}, check_data),
        "from_name": (data.from_name, {"name": "digits", "download": False}, check_data),
        "for_data": (ss.M2.for_data, {"data": data.from_arrays(x, y, x_test=x, y_test=y)}, use_model),
        "load": (ss.load, {"folder": ss.save(m2, root / "model")}, use_model),
    }
    for method in (m2.generate, m1.generate, ddgm.sample):
        targets[method.__qualname__ + str(len(targets))] = (method, two, repr)
    for method in (m1.transform, m1.reconstruct, ddgm.score_samples, m2.predict, m2.predict_proba):
        targets[method.__qualname__] = (method, {"x": x}, repr)
    for name in dists.__all__:
        if isinstance(kind := getattr(dists, name), type) and not inspect.isabstract(kind):
            required = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
            if {*required} <= {"latent_dim", "num_classes", "levels", "dim"}:
                targets[name] = (kind, dict.fromkeys(required, 3), repr)
    return targets


def make_values() -> list[Callable[[], Any]]:
    """Return functions that make values of every type."""
    values: list[Any] = [0, 1, -1, 3, 2**70, 0.5, -2.0, 1e-320, 1e308, math.nan, math.inf, -math.inf, 1j, True, False]
    values += ["", "abc", "3", "null", "mlp", "conv", "bernoulli", "gaussian", "flow", "map", "relu", "cpu", "a\0b"]
    values += [b"x", [], (), [1], [0], [-1], [0.5], ["a"], [None], (8, 8), (1, 8, 8), (0, 8, 8), [[1, 2], [3]]]
    values += [[[1.0]] * 4, None, ..., {}, {"a": 1}, {1, 2}, object(), print, int, ss.M2, Path("none"), range(3)]
    values += [NotImplemented, np.int64(3), np.float32(0.5), np.bool_(True), np.array(3), np.zeros(0), np.arange(20)]
    values += [np.zeros((20, 64)), np.full((20, *_SHAPE), np.nan), np.array(["a", "b"]), np.array([None, 1])]
    values += [np.zeros((4, 2), complex), np.zeros(3, "datetime64[D]"), np.zeros(3, "i4,f4"), np.ma.masked_all(20)]
    values += [np.arange(20) % 3, torch.tensor(3), torch.tensor(0.5), torch.zeros(0), torch.zeros(0, *_SHAPE)]
    values += [torch.full((20, *_SHAPE), value) for value in (0.0, 2.0, -1.0, math.nan, math.inf)]
    kinds = ("bool", "uint8", "int32", "int64", "float16", "bfloat16", "float64", "complex64")
    values += [torch.zeros(20, *_SHAPE, dtype=getattr(torch, kind)) for kind in kinds]
    values += [torch.zeros(20, 64), torch.zeros(20, *_SHAPE, device="meta"), torch.zeros(20, 64).to_sparse()]
    values += [torch.ones(2).requires_grad_(), nn.Identity(), nn.Linear(64, 3), nn.Linear(2, 64), nn.Sequential()]
    values += [torch.device("meta"), torch.float16]
    return [*(lambda value=value: value for value in values), lambda: (i for i in range(3)), lambda: open("/dev/null")]


class Inputs:
    """Calls a function with arguments that fit, one or two of them replaced by values of any type."""

    def __init__(self, root: Path, numbers: Sequence[int]) -> None:
        self.targets, self.values = _make_targets(root), make_values()

    def __call__(self, number: int, rng: Generator, folder: Path) -> None:
        """Run a case."""
        name = list(self.targets)[number % len(self.targets)]
        function, arguments, use = self.targets[name]
        parameters = inspect.signature(function).parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names = [one.name for one in parameters if one.kind in kinds and one.name not in _NOT_VARIED]
        chosen = rng.choice(names, size=min(len(names), 1 + int(rng.random() < 0.25)), replace=False)
        given = {str(one): choose(self.values, rng)() for one in chosen}
        words = f"{name}({', '.join(f'{one}={shorten(value)}' for one, value in given.items())})"
        found = attempt(words, function, **arguments | given)
        if found is not None:
            attempt(f"{words} is accepted, then", use, found)


def shorten(value: Any) -> str:
    """Return a value in few words."""
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim:
        return f"{type(value).__name__}{tuple(value.shape)}:{value.dtype}"
    return " ".join(repr(value).split())[:40]


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
    names = ["a"] * 6, list(range(6)), [f"c{i}" for i in range(6)], [None] * 6, ["a", 1, 2.5, None, "a", (1, 2)]
    return pd.DataFrame(x, columns=choose(names, rng)[: x.shape[1]])


def _as_typed_frame(x: Array, rng: Generator) -> pd.DataFrame:
    table = pd.DataFrame(x.round().clip(0, 1)).rename(columns=lambda number: f"c{number}")
    for name in table:
        table[name] = table[name].astype(choose(_TYPES.split(), rng))
        with suppress(TypeError, ValueError):  # not every type has missing values
            table[name] = table[name].mask(rng.random(len(x)) < 0.1)
    return table


EXAMPLES: dict[str, Callable[[Array, Generator], Any]] = {
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
    "objects that are numbers": lambda x, rng: _put(x, rng, None, True, 3, np.float32(2), dtype=object),
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

LABELS: dict[str, Callable[[Array, Generator], Any]] = {
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
