"""What every way of stepping shares: batches, average, sums for the log, the watch over non-finite losses."""

from __future__ import annotations

from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from pyro_ssvae.data import BatchStream
from pyro_ssvae.objectives import Objective
from pyro_ssvae.training.compilation import preserve_state
from pyro_ssvae.training.config import TrainingConfig
from pyro_ssvae.training.device import keep_freed_memory
from pyro_ssvae.training.ema import MovingAverage

__all__ = ["BaseStep"]


class BaseStep:
    """A step that knows its objective and data. A subclass adds optimisers and the average, and does the step.

    Args:
        objective: The objective; moved to the device.
        stream: Where batches come from.
        config: Settings of the loop.
        fabric: Device and precision.
        total: Length of the schedule in steps.

    Attributes:
        mode: ``"eager"``, ``"replay"``, ``"inductor"`` or ``"graph"``.
        why_eager: Why the step is eager though it was to be faster, in one line; ``None`` otherwise.
        sums: Sums, since they were last taken, of what is logged: the loss and its terms.
        first_bad_step: Number of the first step whose loss was not finite, else -1, on the device.
    """

    mode: str
    optimizers: list[Any]
    average: MovingAverage

    def __init__(
        self, objective: Objective, stream: BatchStream, config: TrainingConfig, fabric: Fabric, total: int
    ) -> None:
        self.objective = objective.to(fabric.device)
        self.stream = stream
        self.config = config
        self.fabric = fabric
        self.total = total
        self.why_eager: str | None = None
        if fabric.device.type == "cpu":
            keep_freed_memory()
        self.sums: dict[str, Tensor] = {}
        self.sum_steps = 0
        self.first_bad_step = torch.full((), -1, dtype=torch.int64, device=fabric.device)
        self._number = torch.zeros((), dtype=torch.int64, device=fabric.device)  # of the step, from 1
        self._loss = torch.zeros((), device=fabric.device)

    def check(self) -> None:
        """Run the module once, on the batch that comes next, and leave everything as it was.

        Raises:
            Exception: What the objective raises for a module or data that it cannot take.
        """
        state = self.stream.state_dict()
        with preserve_state(self.objective, self.fabric.device):
            self._try(next(self.stream))
        self.stream.load_state_dict(state)

    def _try(self, batch: Any) -> None:
        self.objective(batch)

    def learning_rate_at(self, number: int) -> float:
        """Return the learning rate in step ``number`` (from 0), for the log."""
        return self.config.learning_rate_at(number, self.total)

    def __call__(self, number: int, *, verify: bool = False) -> None:
        """Do step ``number`` (from 0).

        Args:
            number: Which step of the schedule it is.
            verify: Whether to run the module itself too, and to go on eagerly should its loss be another.
        """
        raise NotImplementedError

    def take_means(self) -> dict[str, float]:
        """Return the means of what is logged since the last call, and start afresh."""
        means = {name: float(value) / max(1, self.sum_steps) for name, value in self.sums.items()}
        for value in self.sums.values():
            value.zero_()  # in place: a captured step adds to this very tensor
        self.sum_steps = 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return what a continued run needs of it."""
        return {
            "objective": self.objective.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.average.state_dict(),
            "stream": self.stream.state_dict(),
            "sums": {name: value.clone() for name, value in self.sums.items()},
            "sum_steps": self.sum_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; before the first step."""
        self.objective.load_state_dict(state["objective"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.average.load_state_dict(state["average"])
        self.stream.load_state_dict(state["stream"])
        self.sums = {name: value.to(self.fabric.device) for name, value in state["sums"].items()}
        self.sum_steps = state["sum_steps"]

    def _watch(self, loss: Tensor) -> None:
        """Keep a loss, and note the step if it is not finite, without a question to the device."""
        self._loss.copy_(loss)
        bad_now = ~loss.isfinite() & (self.first_bad_step < 0)
        self.first_bad_step.copy_(torch.where(bad_now, self._number, self.first_bad_step))

    def _add(self, terms: dict[str, Tensor]) -> None:
        """Add what is logged to its sums, without a question to the device."""
        for name, value in terms.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros_like(value)
            self.sums[name].add_(value)
