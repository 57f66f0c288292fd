"""The format of checkpoints: a safetensors file whose metadata holds, as JSON, everything but the tensors."""

from __future__ import annotations

import json
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

__all__ = ["CHECKPOINT_FORMAT", "check_like", "pack", "unpack"]

CHECKPOINT_FORMAT = 1
"""Version of the format of checkpoints."""

_TENSOR = "$tensor"  # the only key of the object that stands for a tensor


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
    """Return the state that :func:`pack` wrote, with tensors on the CPU.

    Raises:
        Exception: Of many types, for a damaged file.
    """
    tensors = load_tensors(content)

    def decode(value: Any) -> Any:
        if isinstance(value, dict):
            return tensors[value[_TENSOR]] if _TENSOR in value else {key: decode(part) for key, part in value.items()}
        return [decode(part) for part in value] if isinstance(value, list) else value

    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    state = decode(json.loads(header["__metadata__"]["state"]))
    found = state["format"]
    if type(found) is not int or found != CHECKPOINT_FORMAT:
        raise ValueError(f"format {found!r}, and this version reads format {CHECKPOINT_FORMAT}")
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
