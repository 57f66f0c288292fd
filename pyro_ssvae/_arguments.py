"""Checks of arguments: annotations give types, names give ranges, and errors name the remedy.

An argument of the wrong type raises ``TypeError``, a wrong value ``ValueError``. ``name`` is the name of the caller's
argument, for the message.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import operator
import os
import reprlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

MAX_CLASSES = 65_536
MAX_SEED = 2**32 - 1
_MAX_WIDTH = 65_536
_MAX_COUNT = 2**31 - 1


class _Range(NamedTuple):
    """The numbers that an argument may have."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False  # whether ``low`` itself is left out
    below: bool = False  # whether ``high`` itself is left out

    def __contains__(self, number: Any) -> bool:
        above = number > self.low if self.above else number >= self.low
        return above and (number < self.high if self.below else number <= self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.low}" if self.low > -math.inf else ""
        high = f"{'below' if self.below else 'at most'} {self.high}" if self.high < math.inf else ""
        return " and ".join(filter(None, (low, high))) or "of either sign"


_RANGES = {
    name: interval
    for names, interval in {
        "latent_dim hidden_dims out_features num_experts channels feature_dim num_components hidden_dim": _Range(
            1, _MAX_WIDTH
        ),
        "auxiliary_dim": _Range(0, _MAX_WIDTH),
        "event_shape": _Range(1, 2**24),
        "num_classes n_classes": _Range(1, MAX_CLASSES),
        "seed": _Range(0, MAX_SEED),
        "max_steps max_epochs batch_size labelled_batch_size patience evaluate_every bound_batch_size num_examples "
        "top_k num_particles generator_steps num_samples devices columns components image_size num_train": _Range(
            1, _MAX_COUNT
        ),
        "levels": _Range(2, _MAX_COUNT),
        "resolution": _Range(8, _MAX_COUNT),
        "learning_rate max_minutes max_time gradient_clip generator_rate sigma step_size scale spacing min_scale "
        "df": _Range(0, above=True),
        "weight_decay kl_peak kl_weight alpha bound_weight consistency_weight entropy_weight gradient_penalty "
        "negative_weight weight rotation log_scale shear shift strength crop brightness contrast saturation": _Range(0),
        "decay_start final_learning_rate kl_warmup kl_anneal_end threshold decay flip probability align": _Range(0, 1),
        "ema_decay dropout mle_fraction": _Range(0, 1, below=True),
        "penalty_fraction": _Range(0, 1, above=True),
        "max_shift": _Range(0, 0.5),
    }.items()
    for name in names.split()
}
"""What arguments of these names may be; other integers are not negative, and other numbers finite."""

_MADE_BY = {
    "Objective": "an objective: SemiSupervisedELBO.for_data(model, data) makes one for M2 and M1M2, "
    "UnsupervisedELBO for M1, EnergyObjective for DDGM",
    "SemiSupervisedData": "a data set: SemiSupervisedData.from_arrays(x, y) makes one",
    "TrainingConfig": "settings of training: TrainingConfig(max_steps=1000)",
    "FitResult": "what fit(objective, data) returned",
    "M1": "an M1",
    "M2": "an M2: M1M2.from_m1(m1, num_classes) builds one",
    "Model": "a model, for example M2.for_data(data)",
    "nn.Module": "a module: a model such as M2.for_data(data), or a network",
}

_NO_WEIGHTS = "Examples and classes have no weights: repeat the examples that should count more."
_UNSUPPORTED = {
    **dict.fromkeys(("sample_weight", "sample_weights", "class_weight", "class_weights", "weights"), _NO_WEIGHTS),
    "devices": "It is an argument of fit: fit(objective, data, devices=2) trains on several processes.",
}

_Target = TypeVar("_Target", bound=Callable[..., Any])


def checked(target: _Target) -> _Target:
    """Check the arguments of a function, or of a class's constructor, at every call.

    Annotations tell which type an argument must have, and ``_RANGES`` which numbers are allowed under its name. Scalars
    and sequences of numpy or PyTorch reach the function as numbers and tuples of Python.
    """
    if isinstance(target, type):
        target.__init__ = checked(target.__init__)  # type: ignore[misc]
        return target
    signature = inspect.signature(target)

    @functools.wraps(target)
    def check_and_call(*args: Any, **kwargs: Any) -> Any:
        bound = bind_arguments(target, signature, *args, **kwargs)
        return target(*bound.args, **bound.kwargs)

    return check_and_call  # type: ignore[return-value]


def bind_arguments(
    function: Callable[..., Any], signature: inspect.Signature, *args: Any, **kwargs: Any
) -> inspect.BoundArguments:
    """Return the arguments of a call, checked as :func:`checked` says."""
    name = function.__qualname__.removesuffix(".__init__")
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        unknown = next((given for given in kwargs if given not in signature.parameters), None)
        if unknown is None:
            raise TypeError(f"{name}: {error}.") from None
        near = difflib.get_close_matches(unknown, signature.parameters, n=1)
        hint = _UNSUPPORTED.get(unknown, f"Did you mean {near[0]}?" if near else "")
        raise TypeError(f"{name} has no argument {unknown}. {hint}".rstrip()) from None
    for given, value in bound.arguments.items():
        parameter = signature.parameters[given]
        if value is not parameter.default:  # which may lie outside the range, where it switches something off
            bound.arguments[given] = _as_annotated(value, given, parameter.annotation)
    return bound


def _as_annotated(value: Any, name: str, annotation: Any) -> Any:
    """Return the value of an argument, checked where its annotation is one of those known here."""
    kinds = [kind for kind in str(annotation).split(" | ") if kind != "None"]
    if value is None and len(kinds) < str(annotation).count(" | ") + 1:
        return None
    if kinds == ["str", "Path"]:
        return as_path(value, name)
    elif len(kinds) == 1 and kinds[0] in _MADE_BY:
        kind = kinds[0].removeprefix("nn.")
        if all(base.__name__ != kind for base in type(value).__mro__):
            raise TypeError(f"{name} is of type {type(value).__name__}, and must be {_MADE_BY[kinds[0]]}.")
    elif len(kinds) == 1 and kinds[0] in _CONVERT:
        return _CONVERT[kinds[0]](value, name)
    return value


def as_count(value: Any, name: str, *, least: int = 0, most: int | None = None) -> int:
    """Return an integer of at least ``least`` and at most ``most``."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{show(name, value)}; an integer of at least {least} is needed, for example "
            f"{name}={max(least, min(100, most or 100))}."
        ) from None
    if number < least:
        raise ValueError(f"{name}={number} is too small; it must be at least {least}.")
    if most is not None and number > most:
        raise ValueError(f"{name}={reprlib.repr(number)} is too large; it must be at most {most}.")
    return number


def show(name: str, value: Any) -> str:
    """Return an argument, shortened, and its type, for a message."""
    return f"{name}={' '.join(reprlib.repr(value).split())} is of type {type(value).__name__}"


def _as_integer(value: Any, name: str) -> int:
    interval = _RANGES.get(name.partition("[")[0], _Range(0, _MAX_COUNT))
    return as_count(value, name, least=int(interval.low), most=int(interval.high))


def _as_number(value: Any, name: str) -> float:
    interval = _RANGES.get(name, _Range())
    try:
        if isinstance(value, (bool, np.bool_, str, bytes)) or np.ndim(value) > 0:
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{show(name, value)}; a number is needed, {interval}.") from None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name}={number} must be a finite number, {interval}.")
    if number not in interval:
        raise ValueError(f"{name}={number} must be {interval}.")
    return value if type(value) in (int, float) else number


def _as_bool(value: Any, name: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{show(name, value)}; True or False is needed.")
    return bool(value)


def _as_text(value: Any, name: str) -> str:
    if not isinstance(value, (str, torch.device)):
        raise TypeError(f"{show(name, value)}; a string is needed.")
    return str(value)


def _as_sizes(values: Any, name: str) -> tuple[int, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        raise TypeError(f"{show(name, values)}; a sequence of integers is needed, for example (500,).")
    return tuple(_as_integer(value, f"{name}[{number}]") for number, value in enumerate(values))


_CONVERT: dict[str, Callable[[Any, str], Any]] = {
    "int": _as_integer,
    "float": _as_number,
    "bool": _as_bool,
    "str": _as_text,
    "Sequence[int]": _as_sizes,
}


def check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raise ``ValueError`` for a value that is none of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(allowed)}.")


def as_path(value: Any, name: str) -> Path:
    """Return a path, its ``~`` expanded."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{show(name, value)}; a path is needed, as a str or Path.")
    if not str(value):
        raise ValueError(f"{name} is empty; a path is needed.")
    return Path(os.path.expanduser(value))  # which leaves unknown users as they are


def as_seed(seed: Any) -> int:
    """Return a seed, an integer from 0 to 2^32 - 1."""
    return as_count(seed, "seed", most=MAX_SEED)


def as_scale(scale: Any, x: Tensor) -> float:
    """Return the divisor of values, positive and finite: as given, else, without training data, 255 for uint8."""
    if scale is None:
        return 255.0 if x.dtype == torch.uint8 else 1.0
    return float(_as_number(scale, "scale"))


def as_device(device: torch.device | str) -> torch.device:
    """Return a device that exists, a CUDA device with its index; ``"auto"`` is CUDA if there is a GPU, else the CPU."""
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"{show('device', device)}; a name is needed: auto, cpu, cuda or cuda:INDEX.")
    given, count = f"device={str(device)!r}", torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if count else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{given} is unknown; use one device: auto, cpu, cuda or cuda:INDEX.") from error
    if found.type == "cpu":
        return found
    if found.type != "cuda":
        raise ValueError(f"{given} is not supported; use one device: auto, cpu, cuda or cuda:INDEX.")
    if not count:
        raise ValueError(
            f"{given} needs CUDA, and PyTorch finds no CUDA device here (no GPU, no driver, or a CPU-only build of "
            "PyTorch). Use the CPU (leave out --cuda), or install a CUDA build on a machine with a GPU."
        )
    index = torch.cuda.current_device() if found.index is None else found.index
    if index >= count:
        raise ValueError(f"{given} does not exist; this machine has {count} CUDA device(s), counted from 0.")
    return torch.device("cuda", index)
