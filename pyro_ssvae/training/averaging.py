"""Exponential moving average of a module's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["MovingAverage"]


class MovingAverage:
    """Averages parameters and floating-point buffers, without reading anything back from the device.

    Args:
        module: The module whose weights are averaged.
        decay: Decay per step; 0 keeps the average equal to the weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        self._live = [t for t in [*module.parameters(), *module.buffers()] if t.is_floating_point()]
        self._average = [tensor.detach().clone() for tensor in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step ``step`` (from 0); early steps count for more than the decay says."""
        decay = min(self._decay, (step + 1) / (step + 11)) if self._decay else 0.0
        torch._foreach_lerp_(self._average, [t.detach() for t in self._live], 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averaged weights into the module, and the trained ones back afterwards."""
        trained = [tensor.detach().clone() for tensor in self._live]
        self._copy(self._average)
        try:
            yield
        finally:
            self._copy(trained)

    @torch.no_grad()
    def _copy(self, source: list[Tensor]) -> None:
        # Copies rather than swapped storage: addresses stay what optimisers and captured graphs hold.
        for tensor, value in zip(self._live, source, strict=True):
            tensor.copy_(value)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Return the averages."""
        return {"average": self._average}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Restore the averages."""
        for tensor, value in zip(self._average, state["average"], strict=True):
            tensor.copy_(value)
