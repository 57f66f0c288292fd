"""Checkpoints: the state of training, in a safetensors file whose metadata holds, as JSON, all but the tensors."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from pyro_ssvae.errors import RunFolderError
from pyro_ssvae.objectives.base import Validation

if TYPE_CHECKING:
    from pyro_ssvae.training.loop import Loop

_FORMAT = 1  # version of the format

_TENSOR = "$tensor"  # the only key of the object that stands for a tensor


@dataclass
class Best:
    """The best score so far, and the weights that are chosen."""

    score: float = float("-inf")
    step: int = 0  # of the weights
    evaluations_since: int = 0  # since the best score
    weights: dict[str, Tensor] = field(default_factory=dict)
    keep: bool = False  # whether it is worth keeping (:attr:`Validation.keep`)


def pack(state: dict[str, Any]) -> bytes:
    """Return a state of dictionaries, lists, tensors, numbers and strings as a file; keys become strings."""
    tensors: dict[str, Tensor] = {}

    def encode(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value.detach().cpu().contiguous().clone()  # the format refuses shared memory
            return {_TENSOR: name}
        if isinstance(value, dict):
            return {str(key): encode(part, f"{name}/{key}") for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [encode(part, f"{name}/{number}") for number, part in enumerate(value)]
        return value.item() if hasattr(value, "item") else value

    text = json.dumps(encode(state, ""))
    return save_tensors(tensors, metadata={"state": text})


def unpack(content: bytes) -> dict[str, Any]:
    """Return the state that :func:`pack` wrote, with tensors on the CPU; a damaged file gives errors of many types."""
    tensors = load_tensors(content)

    def decode(value: Any) -> Any:
        if isinstance(value, dict):
            return tensors[value[_TENSOR]] if _TENSOR in value else {key: decode(part) for key, part in value.items()}
        return [decode(part) for part in value] if isinstance(value, list) else value

    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    state = decode(json.loads(header["__metadata__"]["state"]))
    found = state["format"]
    if type(found) is not int or found != _FORMAT:
        raise ValueError(f"format {found!r}, and this version reads format {_FORMAT}")
    return dict(state)


def check_like(found: Any, like: Any, name: str) -> None:
    """Raise ``ValueError`` unless a part of a state has the keys, types, shapes and dtypes of another, and no NaN."""
    if isinstance(like, dict):
        if not isinstance(found, dict) or found.keys() != like.keys():
            names = found.keys() ^ like.keys() if isinstance(found, dict) else [type(found).__name__]
            raise ValueError(f"{name} holds other entries ({', '.join(map(str, sorted(names, key=str)[:3]))})")
        for key, part in like.items():
            check_like(found[key], part, f"{name}/{key}")
    elif isinstance(like, (list, tuple)):
        if not isinstance(found, (list, tuple)) or len(found) != len(like):
            raise ValueError(f"{name} is no list of {len(like)}")
        for number, part in enumerate(like):
            check_like(found[number], part, f"{name}/{number}")
    elif isinstance(like, Tensor):
        if not isinstance(found, Tensor) or (found.shape, found.dtype) != (like.shape, like.dtype):
            given = f"{found.dtype}, shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{name} is {given}, and {like.dtype}, shape {tuple(like.shape)}, is needed")
        if found.is_floating_point() and bool(found.isnan().any()):
            raise ValueError(f"{name} holds NaN")
    else:
        kinds = (int, float) if type(like) is float else (type(like),)
        if type(found) not in kinds or found != found:
            raise ValueError(f"{name} is {str(found)[:60]!r}, no {type(like).__name__}")


def load_moments(optimizer: torch.optim.Optimizer, moments: dict[str, Any], name: str) -> None:
    """Restore the moments of Adam, by number of the parameter; the settings of the optimiser stay."""
    parameters = dict(enumerate(part for group in optimizer.param_groups for part in group["params"]))
    found = {int(number): value for number, value in moments.items()}
    for number, value in found.items():
        like = parameters[number]
        check_like(value, {"step": torch.zeros(()), "exp_avg": like, "exp_avg_sq": like}, f"{name}/{number}")
    optimizer.load_state_dict({"state": found, "param_groups": optimizer.state_dict()["param_groups"]})


def get_state(loop: Loop) -> dict[str, Any]:
    """Return everything that a continued run needs to give the same numbers."""
    device = loop.fabric.device
    return {
        "format": _FORMAT,
        "processes": loop.ranks.size,
        "step": loop.step,
        "seconds": loop.seconds,
        **loop.train_step.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "metrics": loop.metrics,
        "best": vars(loop.best),
        "keep": loop.validation.keep,
    }


def restore(loop: Loop, state: dict[str, Any]) -> None:
    """Restore the state of a run, or raise ``RunFolderError`` for one that does not fit."""
    try:
        _check_state(loop, state)
        loop.train_step.load_state_dict(state)
        torch.set_rng_state(state["rng"])
        if loop.fabric.device.type == "cuda" and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], loop.fabric.device)
        vars(loop.best).update(state["best"])
    except MemoryError:
        raise
    except Exception as error:  # a damaged state gives errors of many types
        why = " ".join(f"{type(error).__name__}: {error}".split())
        where = "" if loop.folder is None else f" {loop.folder.checkpoint}"
        raise RunFolderError(
            f"The checkpoint{where} does not fit this model and data, or is damaged ({why})."
        ) from error
    loop.validation = Validation(keep=state["keep"])
    loop.step, loop.seconds, loop.metrics = state["step"], state["seconds"], state["metrics"]


def _check_state(loop: Loop, state: dict[str, Any]) -> None:
    """Raise an error unless the parts of a state that belong to the loop are of the right types and sizes."""
    mine, best, weights = get_state(loop), dict(state["best"]), state["best"]["weights"]
    for name in ("step", "seconds", "rng", "keep"):
        check_like(state[name], mine[name], name)
    check_like(best | {"weights": {}}, mine["best"] | {"weights": {}}, "best")
    if weights != {}:
        check_like(weights, loop.objective.module.state_dict(), "best/weights")
    step, seconds = state["step"], state["seconds"]
    if not 0 <= step <= loop.total:
        raise ValueError(f"{step} steps are done, and the schedule has {loop.total}; it can only be extended")
    if not (0 <= best["step"] <= step and best["evaluations_since"] >= 0 <= seconds < float("inf")):
        raise ValueError(f"best step {best['step']} after {step} steps and {seconds} seconds")
    rows = [row["step"] for row in state["metrics"]]
    if any(type(row) is not int for row in rows) or rows != sorted(set(rows)) or max(rows, default=0) > step:
        raise ValueError("metrics are not those of increasing steps")
    for row in state["metrics"]:
        if not all(value is None or type(value) in (bool, int, float, str) for value in row.values()):
            raise ValueError(f"metrics of step {row['step']} are no numbers")
