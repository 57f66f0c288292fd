"""Exponential moving average of a module's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["MovingAverage"]


class MovingAverage:
    """Averages parameters and floating-point buffers, without host-device synchronisation.

    Args:
        module: The module whose weights are averaged.
        decay: Decay per step; 0 keeps the average equal to the weights.
        captured: Whether updates are part of a CUDA graph, which reads the decay from the device.
    """

    def __init__(self, module: nn.Module, decay: float, *, captured: bool = False) -> None:
        self._decay = decay
        self._captured = captured
        self._live = [t for t in [*module.parameters(), *module.buffers()] if t.is_floating_point()]
        self._average = [tensor.detach().clone() for tensor in self._live]
        self._weight = 1.0
        self._weight_on_device = torch.ones((), device=self._live[0].device)

    def set_step(self, step: int) -> None:
        """Set the decay for the update after step ``step`` (from 0): at most (step + 1) / (step + 11)."""
        decay = min(self._decay, (step + 1) / (step + 11)) if self._decay else 0.0
        if self._weight != 1.0 - decay:
            self._weight = 1.0 - decay
            self._weight_on_device.fill_(self._weight)

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages with the present weights."""
        live = [tensor.detach() for tensor in self._live]
        if self._captured:
            change = torch._foreach_sub(live, self._average)
            torch._foreach_mul_(change, self._weight_on_device)
            torch._foreach_add_(self._average, change)
        else:
            torch._foreach_lerp_(self._average, live, self._weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the averaged weights within the context, and the trained ones again afterwards."""
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
