"""Wrong arguments of every type, for constructors, settings, data and methods of models; see ``faults.py``."""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sklearn
import torch
from faults import Failure
from torch import nn

import pyro_ssvae as ss
from pyro_ssvae import distributions as dists

__all__ = ["Inputs", "check_data", "check_error", "make_values", "use_model"]

_OWN = Path(ss.__file__).parent
_SKLEARN = Path(sklearn.__file__).parent
_SHAPE = (1, 8, 8)


def check_error(error: BaseException, words: str = "") -> None:
    """Raise ``Failure`` unless a statement of the package raised the error, of a documented class and with a message.

    The checks of scikit-learn, by which its estimators refuse arguments, count as the package's own.

    An error that a library or the interpreter raised, even inside a function of the package, tells users nothing about
    the argument that they gave.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    path, raised = Path(last.filename), (last.line or "").startswith("raise")
    own = raised and (path.is_relative_to(_OWN) or path.is_relative_to(_SKLEARN))
    known = isinstance(error, (ss.PyroSSVAEError, ValueError, TypeError, FileNotFoundError))
    if not (own and known and str(error).strip()):
        place = "/".join(path.parts[-2:])
        raise Failure("foreign", f"{words} {type(error).__name__} at {place}:{last.lineno}: {error}") from error


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
    x = torch.rand(2, *model.event_shape)
    found = [model.sample(2) if isinstance(model, ss.DDGM) else model.generate(2)]
    if model.num_classes is not None:
        found += [model.predict_proba(x)]
    if not all(isinstance(one, torch.Tensor) and len(one) == 2 for one in (*found[1:], torch.rand(2))):
        raise Failure("different", "the model gives no result for each example")


def _use_config(config: ss.TrainingConfig) -> None:
    total = config.total_steps(10)
    found = [total, config.evaluation_interval(total), config.kl_weight_at(0, total, 100)]
    found += [config.learning_rate_at(step, total) for step in (0, total - 1)]
    if not all(math.isfinite(number) for number in found) or total < 1 or found[1] < 1:
        raise Failure("different", f"the settings give {found}")


class Target(NamedTuple):
    """What is called with wrong arguments.

    Args:
        function: The function or class.
        arguments: Arguments that fit, by name.
        use: Uses the result, which must work if the call did.
        leave: Arguments that are not varied.
    """

    function: Callable[..., Any]
    arguments: dict[str, Any]
    use: Callable[[Any], Any] = repr
    leave: tuple[str, ...] = ()

    def get_names(self) -> list[str]:
        """Return the names of the arguments that are varied."""
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = inspect.signature(self.function).parameters.values()
        return [one.name for one in parameters if one.kind in kinds and one.name not in self.leave]


def make_targets(root: Path) -> dict[str, Target]:
    """Return what is called, by name."""
    x, y = torch.rand(20, *_SHAPE), torch.arange(20) % 3
    data = ss.SemiSupervisedData.from_arrays(x, y, x_test=x, y_test=y)
    np.savez(root / "data.npz", x_train=x.numpy(), y_train=y.numpy())
    small: dict[str, Any] = {"latent_dim": 2, "hidden_dims": (8,)}
    m1 = ss.M1(_SHAPE, **small).eval()
    m2 = ss.M2(_SHAPE, 3, **small, classifier="mlp").eval()
    ddgm = ss.DDGM(_SHAPE, latent_dim=2, num_experts=3).eval()
    saved = ss.save(m2, root / "model")
    stack = {"m1": m1, "num_classes": 3, "latent_dim": 2}
    of_data = ss.SemiSupervisedData
    targets = {
        "M2": Target(ss.M2, {"event_shape": _SHAPE, "num_classes": 3, **small}, use_model),
        "M1": Target(ss.M1, {"event_shape": _SHAPE, **small}, use_model),
        "DDGM": Target(ss.DDGM, {"event_shape": _SHAPE, "latent_dim": 2, "num_experts": 3}, use_model),
        "M1M2.from_m1": Target(ss.M1M2.from_m1, stack, use_model),
        "TrainingConfig": Target(ss.TrainingConfig, {}, _use_config),
        "SemiSupervisedELBO": Target(
            ss.SemiSupervisedELBO, {"module": m2, "num_unlabelled": 17, "num_labelled": 3}, leave=("module",)
        ),
        "UnsupervisedELBO": Target(ss.UnsupervisedELBO, {"module": m1, "num_examples": 20}, leave=("module",)),
        "EnergyObjective": Target(ss.EnergyObjective, {"module": ddgm, "num_unlabelled": 20}, leave=("module",)),
        "from_arrays": Target(of_data.from_arrays, {"x": x, "y": y}, check_data),
        "from_npz": Target(of_data.from_npz, {"path": root / "data.npz"}, check_data),
        "from_folder": Target(of_data.from_folder, {"path": root, "image_size": 8}, check_data),
        "from_name": Target(of_data.from_name, {"name": "digits", "download": False}, check_data, ("download",)),
        "for_data": Target(ss.M2.for_data, {"data": data}, use_model),
        "load": Target(ss.load, {"folder": saved}, use_model),
        "M2.generate": Target(m2.generate, {"num_samples": 2}),
        "M1.generate": Target(m1.generate, {"num_samples": 2}),
        "DDGM.sample": Target(ddgm.sample, {"num_samples": 2}),
        "M1.transform": Target(m1.transform, {"x": x}),
        "M1.reconstruct": Target(m1.reconstruct, {"x": x}),
        "DDGM.score_samples": Target(ddgm.score_samples, {"x": x}),
        **{f"M2.{name}": Target(getattr(m2, name), {"x": x}) for name in ("predict", "predict_proba")},
    }
    for name in dists.__all__:
        if isinstance(kind := getattr(dists, name), type) and not inspect.isabstract(kind):
            required = [p for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
            if all(p.name in ("latent_dim", "num_classes", "levels", "dim") for p in required):
                targets[name] = Target(kind, {p.name: 3 for p in required})
    return targets


def make_values() -> list[Callable[[], Any]]:
    """Return functions that make values of every type."""
    numbers = [0, 1, -1, 3, 2**70, 0.5, -2.0, 1e-320, 1e308, math.nan, math.inf, -math.inf, 1j, True, False]
    texts = ["", "abc", "3", "null", "mlp", "conv", "bernoulli", "gaussian", "flow", "map", "relu", "cpu", "a\0b", b"x"]
    lists = [[], (), [1], [0], [-1], [0.5], ["a"], [None], (8, 8), (1, 8, 8), (0, 8, 8), [[1, 2], [3]], [[1.0]] * 4]
    others = [None, ..., {}, {"a": 1}, {1, 2}, object(), print, int, ss.M2, Path("none"), range(3), NotImplemented]
    arrays = [np.int64(3), np.float32(0.5), np.bool_(True), np.array(3), np.zeros(0), np.zeros((20, 64)), np.arange(20)]
    arrays += [np.full((20, *_SHAPE), np.nan), np.array(["a", "b"]), np.array([None, 1]), np.zeros((4, 2), complex)]
    arrays += [np.zeros(3, "datetime64[D]"), np.zeros(3, "i4,f4"), np.ma.masked_all(20), np.arange(20) % 3]
    tensors = [torch.tensor(3), torch.tensor(0.5), torch.zeros(0), torch.zeros(0, *_SHAPE), torch.zeros(20, 64)]
    tensors += [torch.full((20, *_SHAPE), value) for value in (0.0, 2.0, -1.0, math.nan, math.inf)]
    kinds = ("bool", "uint8", "int32", "int64", "float16", "bfloat16", "float64", "complex64")
    tensors += [torch.zeros(20, *_SHAPE, dtype=getattr(torch, kind)) for kind in kinds]
    tensors += [torch.zeros(20, *_SHAPE, device="meta"), torch.zeros(20, 64).to_sparse()]
    tensors += [torch.ones(2).requires_grad_()]
    modules = [nn.Identity(), nn.Linear(64, 3), nn.Linear(2, 64), nn.Sequential(), torch.device("meta"), torch.float16]
    fixed = [*numbers, *texts, *lists, *others, *arrays, *tensors, *modules]
    return [*(lambda value=value: value for value in fixed), lambda: (i for i in range(3)), lambda: open("/dev/null")]


class Inputs:
    """Calls a function with arguments that fit, one or two of them replaced by values of any type."""

    def __init__(self, seed: int, root: Path) -> None:
        self.seed = seed
        torch.manual_seed(seed)
        self.targets = make_targets(root)
        self.values = make_values()

    def __call__(self, number: int, folder: Path) -> None:
        """Run a case."""
        rng = np.random.default_rng((self.seed, 3, number))
        torch.manual_seed(number)
        name = list(self.targets)[number % len(self.targets)]
        target = self.targets[name]
        names = target.get_names()
        chosen = rng.choice(names, size=min(len(names), 1 + int(rng.random() < 0.25)), replace=False)
        given = {str(one): self.values[rng.integers(len(self.values))]() for one in chosen}
        words = f"{name}({', '.join(f'{one}={_shorten(value)}' for one, value in given.items())})"
        try:
            found = target.function(**target.arguments | given)
        except BaseException as error:
            check_error(error, words)
            return
        try:
            target.use(found)
        except Failure as failure:
            raise Failure(failure.args[0], f"{words} is accepted, but {failure.args[1]}") from failure
        except BaseException as error:
            check_error(error, f"{words} is accepted, then")


def _shorten(value: Any) -> str:
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim:
        return f"{type(value).__name__}{tuple(value.shape)}:{value.dtype}"
    text = repr(value)
    return text if len(text) < 40 else f"{text[:37]}..."
