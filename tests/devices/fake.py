"""Modules without memory, on a device that need not exist, and a mode that checks what is computed on it."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Module = TypeVar("Module", bound=nn.Module)

needs_cuda_build = pytest.mark.skipif(torch.version.cuda is None, reason="PyTorch was built without CUDA")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver, which tensors without values use")

SYNCHRONISING = {
    "_local_scalar_dense", "equal", "is_nonzero", "item", "masked_select", "nonzero", "unique_consecutive",
    "unique_dim", "_unique", "_unique2", "repeat_interleave",
}  # fmt: skip
"""Operations whose result, or the shape of it, depends on values on the device, so that the host must wait for them."""


def empty_like_on(module: Module, device: str) -> Module:
    """Replace the parameters and buffers of a module, in place, by ones without values on another device.

    Tensors that are kept in other attributes stay where they are, as under ``module.to(device)``.
    """
    replaced: dict[int, Tensor] = {}

    def replace(tensor: Tensor) -> Tensor:
        if id(tensor) not in replaced:
            empty: Tensor = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
            is_parameter = isinstance(tensor, nn.Parameter)
            replaced[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return replaced[id(tensor)]

    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = replace(tensor)
    return module


class OnDevice(TorchDispatchMode):
    """Fail where a tensor lies on another device than the given one, or where the host waits for the device.

    Numbers of Python reach operations as numbers, not as tensors, and are allowed, as are tensors without elements, by
    which Pyro finds the default device. Copies between devices are operations like any other, so they are found too.

    Args:
        device: ``"cuda"``, ``"meta"`` or ``"cpu"``.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name.split("::")[1]
        assert name not in SYNCHRONISING, f"{name} makes the host wait for the device"
        assert name not in ("index", "index_put", "index_put_") or not _has_mask(args[1]), f"{name} by a mask waits"
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, Tensor) and tensor.numel():
                assert tensor.device.type == self._device, f"{name} has a tensor on {tensor.device}"
        return result


def _has_mask(indices: Any) -> bool:
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


class AnswerReadings(TorchDispatchMode):
    """Answer every number that is read from a tensor without values, so that what follows runs too.

    Args:
        answer: The number.
    """

    def __init__(self, answer: float) -> None:
        super().__init__()
        self._answer = answer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket._qualified_op_name in ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero"):
            dtype = args[0].dtype
            return bool(self._answer) if dtype == torch.bool else self._answer if dtype.is_floating_point else 1
        return func(*args, **(kwargs or {}))
