"""Elementwise functions that networks and distributions share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["softplus"]


def softplus(x: Tensor) -> Tensor:
    r"""Return :math:`\log(1 + e^x)`, computed faster where no gradient is taken on a CPU.

    PyTorch's ``softplus`` uses ``log1p``, which costs five times as much there as :math:`-\log \sigma(-x)`. The
    absolute difference is at most 1e-7 in float32; below zero the relative error is larger, as values under 1e-7 are
    lost.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.softplus(x)
    # In place: writing to fresh memory costs more than the arithmetic. Where the sigmoid underflows, x is the value.
    result = x.neg().sigmoid_().clamp_min_(torch.finfo(x.dtype).tiny).log_().neg_()
    return torch.maximum(result, x, out=result)
