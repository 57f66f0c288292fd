"""Checkpoints: the state of training, in a safetensors file whose metadata holds, as JSON, all but the tensors."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.storage import sample_rows
from pyro_ssvae.errors import RunFolderError
from pyro_ssvae.objectives.base import Validation

if TYPE_CHECKING:
    from pyro_ssvae.training.loop import Loop

_FORMAT = 1  # version of the format

_DIGESTED = 1000  # examples, evenly spaced, of which a checkpoint knows whether they are the same
_TENSOR = "$tensor"  # the only key of the object that stands for a tensor


@dataclass
class Best:
    """The best score so far, and the weights that are chosen."""

    score: float = float("-inf")
    step: int = 0  # of the weights
    evaluations_since: int = 0  # since the best score
    weights: dict[str, Tensor] = field(default_factory=dict)
    keep: bool = False  # whether it is worth keeping (:attr:`Validation.keep`)

    def update(self, found: Validation, step: int, module: nn.Module, *, annealing: bool) -> bool:
        """Choose the weights of an evaluation, unless earlier ones are better by more than chance; return whether.

        Without a score, and while the weight of the KL is not yet what it will be, the latest weights count as the
        best: a classifier may be at its best while the generative model is still poor. An evaluation that is not worth
        keeping counts only until there is one that is.
        """
        if self.keep and not found.keep:
            return False
        score = float("-inf") if found.score is None or annealing else found.score
        if annealing:
            self.score = score  # a run may have ended before, whose schedule is now longer
        self.evaluations_since = 0 if score >= self.score else self.evaluations_since + 1
        if score + found.standard_error < self.score:
            return False
        self.score, self.step, self.keep = max(score, self.score), step, found.keep
        self.weights = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        return True


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


def digest(data: SemiSupervisedData) -> str:
    """Return a hash of the labels of training and validation examples, and of some of the examples."""
    found = hashlib.sha256()
    for x, y in ((data.x, data.y), (data.x_validation, data.y_validation)):
        rows = sample_rows(x)
        for part in (rows[:: -(-len(rows) // _DIGESTED) or 1], y):
            found.update(f"{len(x)} {part.dtype} {tuple(part.shape)}".encode())
            found.update(np.ascontiguousarray(part.numpy()).data)
    return found.hexdigest()


def get_state(loop: Loop) -> dict[str, Any]:
    """Return everything that a continued run needs to give the same numbers."""
    device = loop.fabric.device
    return {
        "format": _FORMAT,
        "processes": loop.ranks.size,
        "data": loop.digest,
        "step": loop.step,
        "seconds": loop.seconds,
        **loop.train_step.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "metrics": list(loop.metrics),
        "best": dict(vars(loop.best)),
        "keep": loop.validation.keep,
    }


def restore(loop: Loop, state: dict[str, Any]) -> None:
    """Restore the state of a run, or raise ``RunFolderError`` for one that does not fit."""
    where = "" if loop.folder is None else f" in {loop.folder.path}"
    if type(state.get("step")) is int and state["step"] > loop.total:
        raise RunFolderError(
            f"The run{where} has done {state['step']} steps, and the schedule that is given has {loop.total}: a "
            "schedule can only be extended, by max_steps or max_epochs."
        )
    if state.get("data", loop.digest) != loop.digest:
        raise RunFolderError(
            f"The run{where} was trained on other data: examples, labels or validation examples differ. Choose another "
            "folder, or use the data of before."
        )
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
        file = "" if loop.folder is None else f" {loop.folder.checkpoint}"
        raise RunFolderError(f"The checkpoint{file} does not fit this model, or is damaged ({why}).") from error
    loop.validation = Validation(keep=state["keep"])
    loop.step, loop.seconds, loop.metrics = state["step"], state["seconds"], state["metrics"]
    loop.saved_step = loop.step


def _check_state(loop: Loop, state: dict[str, Any]) -> None:
    """Raise an error unless the parts of a state that belong to the loop are of the right types and sizes."""
    mine, best, weights = get_state(loop), dict(state["best"]), state["best"]["weights"]
    for name in ("step", "seconds", "rng", "keep"):
        check_like(state[name], mine[name], name)
    check_like(best | {"weights": {}}, mine["best"] | {"weights": {}}, "best")
    if weights != {}:
        check_like(weights, loop.objective.module.state_dict(), "best/weights")
    step, seconds = state["step"], state["seconds"]
    if not (0 <= best["step"] <= step and best["evaluations_since"] >= 0 <= seconds < float("inf")):
        raise ValueError(f"best step {best['step']} after {step} steps and {seconds} seconds")
    rows = [row["step"] for row in state["metrics"]]
    if any(type(row) is not int for row in rows) or rows != sorted(set(rows)) or max(rows, default=0) > step:
        raise ValueError("metrics are not those of increasing steps")
    for row in state["metrics"]:
        if not all(value is None or type(value) in (bool, int, float, str) for value in row.values()):
            raise ValueError(f"metrics of step {row['step']} are no numbers")
