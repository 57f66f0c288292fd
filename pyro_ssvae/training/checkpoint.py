"""Checkpoints: the state of training, in a safetensors file whose metadata holds, as JSON, all but the tensors."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from pyro_ssvae._io import one_line
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
    return save_tensors(tensors, metadata={"state": text, "checksum": _checksum(text, tensors)})


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    found = zlib.crc32(text.encode())
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, found)
    return str(found)


def unpack(content: bytes) -> dict[str, Any]:
    """Return the state that :func:`pack` wrote, with tensors on the CPU; a damaged file gives errors of many types."""
    tensors = load_tensors(content)

    def decode(value: Any) -> Any:
        if isinstance(value, dict):
            return tensors[value[_TENSOR]] if _TENSOR in value else {key: decode(part) for key, part in value.items()}
        return [decode(part) for part in value] if isinstance(value, list) else value

    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    if metadata.get("checksum") not in (None, _checksum(metadata["state"], tensors)):  # early versions wrote none
        raise ValueError("its checksum is another one")
    state = decode(json.loads(metadata["state"]))
    if state["format"] != _FORMAT:
        raise ValueError(f"format {state['format']!r}, and this version reads format {_FORMAT}")
    return dict(state)


def load_moments(optimizer: torch.optim.Optimizer, moments: dict[str, Any]) -> None:
    """Restore the moments of Adam, by number of the parameter; the settings of the optimiser stay."""
    parameters = [part for group in optimizer.param_groups for part in group["params"]]
    found = {int(number): value for number, value in moments.items()}
    for number, value in found.items():
        if value["exp_avg"].shape != parameters[number].shape:  # fused kernels would read beyond its end
            raise ValueError(f"moments of shape {tuple(value['exp_avg'].shape)} for {tuple(parameters[number].shape)}")
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
    if state["step"] > loop.total:
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
        loop.train_step.load_state_dict(state)
        torch.set_rng_state(state["rng"])
        if loop.fabric.device.type == "cuda" and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], loop.fabric.device)
        vars(loop.best).update(state["best"])
    except MemoryError:
        raise
    except Exception as error:  # the state of another model gives errors of many types
        file = "" if loop.folder is None else f" {loop.folder.checkpoint}"
        raise RunFolderError(f"The checkpoint{file} does not fit this model ({one_line(error)}).") from error
    loop.validation = Validation(keep=state["keep"])
    loop.step, loop.seconds, loop.metrics = state["step"], state["seconds"], state["metrics"]
    loop.saved_step = loop.step
