"""One step of an objective whose groups of parameters have losses of their own: each group in turn."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric
from torch import Tensor

from pyro_ssvae.data import BatchStream
from pyro_ssvae.objectives import AlternatingObjective
from pyro_ssvae.training.averaging import MovingAverage
from pyro_ssvae.training.base_step import BaseStep
from pyro_ssvae.training.config import TrainingConfig

__all__ = ["AlternatingStep"]


class AlternatingStep(BaseStep):
    """Steps the groups of an :class:`~pyro_ssvae.objectives.AlternatingObjective` in turn, eagerly.

    Args:
        objective: The objective; moved to the device.
        stream: Where batches come from.
        config: Settings of the loop; its learning rate is multiplied by each group's.
        fabric: Device and precision.
        total: Length of the schedule in steps.

    Raises:
        ValueError: For several devices, or for steps that are to be replayed or captured.
    """

    mode = "eager"

    def __init__(
        self, objective: AlternatingObjective, stream: BatchStream, config: TrainingConfig, fabric: Fabric, total: int
    ) -> None:
        if fabric.world_size > 1:
            raise ValueError("Groups that step in turn train on one device; got several.")
        if config.compile not in ("auto", "eager"):
            raise ValueError(f"compile={config.compile!r} is not for groups that step in turn; take auto or eager.")
        super().__init__(objective, stream, config, fabric, total)
        self._groups = objective.groups()
        optimizers = [
            torch.optim.AdamW(
                group.parameters,
                lr=config.learning_rate * group.rate,
                betas=group.betas,
                weight_decay=config.weight_decay,
                fused=True,
            )
            for group in self._groups.values()
        ]
        _, *self.optimizers = fabric.setup(objective, *optimizers)
        self._optimizers = dict(zip(self._groups, self.optimizers, strict=True))
        self.average = MovingAverage(objective.pair, config.ema_decay)
        self._turns = objective.turns

    def __call__(self, number: int, *, verify: bool = False) -> None:
        """Do step ``number`` (from 0); there is nothing to verify."""
        rate = self.config.learning_rate_at(number, self.total)
        for name, optimizer in self._optimizers.items():
            optimizer.param_groups[0]["lr"] = rate * self._groups[name].rate
        self._number.fill_(number + 1)
        self.objective.train()
        batch = self.stream.gather(self.stream.next_rows())
        total = torch.zeros((), device=self.fabric.device)
        with self.fabric.autocast():
            for name, loss in self._turns(batch):
                self._apply(name, loss)
                total = total + loss.detach()
        self.average.set_step(number)
        self.average.update()
        self._note(total, self.objective.latest)
        self.sum_steps += 1

    def _apply(self, name: str, loss: Tensor) -> None:
        parameters = self._groups[name].parameters
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.config.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip)
        self._optimizers[name].step()
        self._optimizers[name].zero_grad()
