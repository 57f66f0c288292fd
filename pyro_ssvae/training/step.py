"""One optimisation step: batch, loss, gradients, clipping, Adam, moving average, sums for the log.

The step runs in one of four ways, all of which give the same training:

* ``"eager"``: operation by operation, as written. The reference.
* ``"replay"``: loss and gradients from a recording, without Pyro's Python (:mod:`pyro_ssvae.training.compilation`).
* ``"inductor"``: that recording compiled for the CPU.
* ``"graph"``: the whole step captured as a CUDA graph.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pyro_ssvae.data import Batch, BatchStream
from pyro_ssvae.data.batches import BatchIndices
from pyro_ssvae.objectives import Objective
from pyro_ssvae.training.base_step import BaseStep
from pyro_ssvae.training.compilation import RecordedLoss, has_compiler, preserve_state, shapes
from pyro_ssvae.training.config import TrainingConfig
from pyro_ssvae.training.cuda_graph import CapturedSteps
from pyro_ssvae.training.ema import MovingAverage

__all__ = ["TrainingStep"]

_WORTH_COMPILING = 10_000  # steps; Inductor takes 15 to 30 seconds and then saves some 10 % of each step
_SEEN_FIRST = 2  # eager steps of a shape before it is recorded: a recording takes a second or two


class TrainingStep(BaseStep):
    """A step of an objective with one loss, in one of the four ways.

    Args:
        objective: The objective; moved to the device.
        stream: Where batches come from.
        config: Settings of the loop.
        fabric: Device and precision.
        total: Length of the schedule in steps.

    Raises:
        ValueError: For a way of stepping that cannot be had here.
    """

    def __init__(
        self, objective: Objective, stream: BatchStream, config: TrainingConfig, fabric: Fabric, total: int
    ) -> None:
        self.mode = _choose(config, fabric, objective, total)
        super().__init__(objective, stream, config, fabric, total)
        graph = self.mode == "graph"
        # One fused kernel (or loop) over all parameters. In a CUDA graph the learning rate must lie on the device.
        rate: Any = torch.tensor(config.learning_rate, device=fabric.device) if graph else config.learning_rate
        optimizer = torch.optim.AdamW(
            objective.parameters(), lr=rate, weight_decay=config.weight_decay, fused=True, capturable=graph
        )
        self.wrapped, self.optimizer = fabric.setup(objective, optimizer)
        self.optimizers = [self.optimizer]
        self.average = MovingAverage(objective.module, config.ema_decay, captured=graph)
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._recorded: RecordedLoss | None = None
        self._captured: CapturedSteps | None = None

    def _try(self, batch: Batch) -> None:
        self.wrapped(batch)

    def __call__(self, number: int, *, verify: bool = False) -> None:
        """Do step ``number`` (from 0).

        Args:
            number: Which step of the schedule it is.
            verify: Whether to run the module itself too, and to go on eagerly should its loss be another.
        """
        self._set_schedule(number)
        self.wrapped.train()
        rows = self.stream.next_indices()
        if self.mode == "eager":
            self._step(self.stream.gather(rows))
        else:
            self._fast_step(rows, verify)
        self.sum_steps += 1

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; before the first step."""
        super().load_state_dict(state)
        if self.mode == "graph":
            for group in self.optimizer.param_groups:
                group["lr"] = torch.as_tensor(group["lr"], device=self.fabric.device)

    def _set_schedule(self, number: int) -> None:
        rate = self.learning_rate_at(number)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        objective = self.objective
        squeezes = objective.peaks_kl
        objective.kl_weight = self.config.kl_weight_at(number, self.total, objective.num_rows, squeezes=squeezes)
        self.average.set_step(number)
        self._number.fill_(number + 1)

    def _step(self, batch: Batch) -> None:
        loss = self.wrapped(batch)
        self.fabric.backward(loss)
        self._update(loss.detach(), self.objective.latest)

    def _update(self, loss: Tensor, terms: dict[str, Tensor]) -> None:
        """Apply the gradients, and note the loss, without a question to the device."""
        if self.config.gradient_clip is not None:
            self.fabric.clip_gradients(
                self.wrapped, self.optimizer, max_norm=self.config.gradient_clip, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update()
        self._watch(loss)
        self._add({"train_loss": loss, **terms})

    def _fast_step(self, rows: BatchIndices, verify: bool) -> None:
        expected = self._eager_loss(rows) if verify else None
        try:
            if self.mode == "graph":
                self._captured = self._captured or CapturedSteps(self._step, self.stream, self.fabric.device)
                self._captured(rows)
            else:
                self._replayed_step(self.stream.gather(rows))
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as problem:  # what recording and capturing raise depends on what the module does
            self._go_eager(_one_line(problem))
            self._step(self.stream.gather(rows))
        if expected is not None and not self._agrees(expected, float(self._loss)):
            self._go_eager(
                f"replayed, a step gives a loss of {float(self._loss):.7g}, and run afresh {expected:.7g}: the module "
                "depends on Python values that change between steps"
            )

    def _replayed_step(self, batch: Batch) -> None:
        key = shapes(batch)
        self._seen[key] += 1
        if self._seen[key] <= _SEEN_FIRST:
            self._step(batch)
            return
        if self._recorded is None:
            compiled = key if self.mode == "inductor" else None
            within = _InPrecision(self.objective, self.fabric)
            self._recorded = RecordedLoss(within, lambda: self.objective.latest, self.fabric.device, compiled)
        self._update(*self._recorded(batch))

    def _eager_loss(self, rows: BatchIndices) -> float:
        noise = self.stream.noise.get_state()
        with preserve_state(self.wrapped, self.fabric.device):
            loss = float(self.wrapped(self.stream.gather(rows)).detach())
        self.stream.noise.set_state(noise)
        return loss

    def _agrees(self, expected: float, found: float) -> bool:
        # In mixed precision dropout draws other numbers when it is recorded, so that only gross differences tell.
        tolerance = {"64-true": 1e-9, "32-true": 1e-4}.get(self.config.precision, 0.25)
        return not math.isfinite(expected) or abs(found - expected) <= tolerance * max(1.0, abs(expected))

    def _go_eager(self, why: str) -> None:
        self.mode, self.why_eager = "eager", why
        self._recorded = self._captured = None
        warnings.warn(f"Training steps run eagerly from here, and slower: {why}.", UserWarning, stacklevel=2)


class _InPrecision(nn.Module):
    """The objective in the precision of Fabric, without the hooks that Fabric puts on tensors for ``backward``."""

    def __init__(self, objective: Objective, fabric: Fabric) -> None:
        super().__init__()
        self.objective = objective
        self._autocast = fabric.autocast
        self._dtype = next(objective.parameters()).dtype

    def forward(self, batch: Batch) -> Tensor:
        x_unlabelled, x_labelled, y_labelled = batch
        rows = [None if x is None else x.to(self._dtype) for x in (x_unlabelled, x_labelled)]
        with self._autocast():
            loss: Tensor = self.objective(Batch(rows[0], rows[1], y_labelled))
        return loss


def _choose(config: TrainingConfig, fabric: Fabric, objective: Objective, total: int) -> str:
    """Return the mode that the settings name, or for ``"auto"`` the fastest one that can be had."""
    cuda = fabric.device.type == "cuda"
    if config.compile == "graph" and not cuda:
        raise ValueError("compile='graph' captures a CUDA graph and needs device='cuda'; use auto, or replay.")
    if config.compile == "inductor" and not has_compiler():
        raise ValueError("compile='inductor' needs a C++ compiler (c++, g++ or clang++); use auto, or replay.")
    if config.compile != "auto":
        return config.compile
    # Loss scaling asks whether gradients are finite, and the stock ELBO how large tensors are.
    if objective.elbo != "static" or config.precision == "16-mixed" or fabric.world_size > 1:
        return "eager"
    if cuda:
        return "graph"
    return "inductor" if total >= _WORTH_COMPILING and has_compiler() else "replay"


def _one_line(problem: Exception) -> str:
    text = " ".join(str(problem).split())
    return f"{type(problem).__name__}: {text[:200]}" if text else type(problem).__name__
