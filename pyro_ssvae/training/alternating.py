"""One step of an objective whose groups of parameters have losses of their own: each group in turn."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pyro_ssvae.data import Batch, BatchStream
from pyro_ssvae.objectives import AlternatingObjective, Turn
from pyro_ssvae.objectives.alternating import Group
from pyro_ssvae.training.base_step import BaseStep
from pyro_ssvae.training.compilation import RecordedLoss, clone_shared_gradients, has_compiler, shapes
from pyro_ssvae.training.config import TrainingConfig
from pyro_ssvae.training.ema import MovingAverage

__all__ = ["AlternatingStep"]

_SEEN_FIRST = 2  # eager steps before anything is recorded
_WORTH_COMPILING = 5000  # steps; networks are small here, so that most of a replayed step is overhead
_MODES = ("auto", "inductor", "replay", "eager")


class AlternatingStep(BaseStep):
    """Steps the groups of an :class:`~pyro_ssvae.objectives.AlternatingObjective` in turn.

    Losses and gradients of each turn are recorded once and replayed, on the CPU compiled by Inductor in long schedules.
    There is no loss of the whole to log, only the terms of each, and for every group ``gradient_norm_`` and its name:
    the Euclidean norm of its gradient before clipping, in nats per unit of its parameters, a mean over its turns.

    Args:
        objective: The objective; moved to the device.
        stream: Where batches come from.
        config: Settings of the loop; its learning rate is multiplied by each group's.
        fabric: Device and precision.
        total: Length of the schedule in steps.

    Raises:
        ValueError: For several devices, or for steps that are to be captured.
    """

    def __init__(
        self, objective: AlternatingObjective, stream: BatchStream, config: TrainingConfig, fabric: Fabric, total: int
    ) -> None:
        if fabric.world_size > 1:
            raise ValueError("Groups that step in turn train on one device; got several.")
        if config.compile not in _MODES:
            raise ValueError(
                f"compile={config.compile!r} is not for groups that step in turn; take {', '.join(_MODES)}."
            )
        super().__init__(objective, stream, config, fabric, total)
        self.mode = config.compile
        if self.mode == "auto":
            long = total >= _WORTH_COMPILING and fabric.device.type == "cpu" and has_compiler()
            self.mode = "inductor" if long else "replay"
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
        self.average = MovingAverage(objective.module, config.ema_decay)
        self._turns = objective.turns
        self._recorded: dict[tuple[Any, ...], RecordedLoss] = {}
        self._counts: Counter[str] = Counter()  # steps behind each sum: not every turn comes up in every step
        self._done = 0

    def __call__(self, number: int, *, verify: bool = False) -> None:
        """Do step ``number`` (from 0). Replayed steps are not held against eager ones: ``verify`` does nothing."""
        begun = 0
        for name, optimizer in self._optimizers.items():
            optimizer.param_groups[0]["lr"], start = self._rate_of(self._groups[name], number)
            begun = max(begun, start)
        self._number.fill_(number + 1)
        self.objective.train()
        batch = self.stream.gather(self.stream.next_indices())
        losses = torch.zeros((), device=self.fabric.device)  # means nothing, but tells whether all are finite
        terms: dict[str, Tensor] = {}
        norms: dict[str, list[Tensor]] = {}
        for place, chain in enumerate(_chains(self._turns(number / self.total))):
            for turn, (loss, found) in zip(chain, self._gradients(place, chain, batch), strict=True):
                terms |= found
                losses = losses + loss
                norms.setdefault(turn.group, []).append(self._apply(turn.group))
        self.average.set_step(number - begun)  # an average that begins anew too
        self.average.update()
        self._watch(losses)
        terms |= {f"gradient_norm_{name}": torch.stack(found).mean() for name, found in norms.items()}
        self._add(terms)
        self._counts.update(terms.keys())
        self.sum_steps += 1
        self._done += 1

    def _rate_of(self, group: Group, number: int) -> tuple[float, int]:
        """Return the learning rate of a group in step ``number``, and the step at which that schedule began."""
        end = max(1, round(group.share * self.total))
        start, length = (end, self.total - end) if number >= end else (0, end)
        return self.config.learning_rate_at(number - start, length) * group.rate, start

    def learning_rate_at(self, number: int) -> float:
        """Return the learning rate of the first group in step ``number`` (from 0)."""
        return self._rate_of(next(iter(self._groups.values())), number)[0]

    def _gradients(self, place: int, chain: list[Turn], batch: Batch) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Put gradients into each turn's parameters; yield its loss and terms, detached, before the next is taken."""
        recorded = self._recording(place, chain, batch)
        if recorded is not None:
            yield from recorded.in_turn(batch)
            return
        for turn in chain:
            parameters = self._groups[turn.group].parameters
            with self.fabric.autocast(), pyro.validation_enabled(False):
                loss = turn.loss(batch)
            gradients = clone_shared_gradients(torch.autograd.grad(loss, parameters, allow_unused=True), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            yield loss.detach(), self.objective.latest

    def _recording(self, place: int, chain: list[Turn], batch: Batch) -> RecordedLoss | None:
        """Return what replays these turns; ``None`` where they run eagerly."""
        if self.mode == "eager" or self._done < _SEEN_FIRST:
            return None
        key = (place, *((turn.group, getattr(turn.loss, "__name__", "")) for turn in chain))
        if key not in self._recorded:
            modules = [_LossOfTurn(self.objective, turn, self.fabric) for turn in chain]
            options: dict[str, Any] = {"trained": [self._groups[turn.group].parameters for turn in chain]}
            if self.mode == "inductor":
                options["compiled_shape"] = shapes(batch)
            self._recorded[key] = RecordedLoss(modules, lambda: self.objective.latest, self.fabric.device, **options)
        try:
            self._recorded[key].record(batch)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as problem:  # what recording raises depends on what the module does
            self.mode, self.why_eager = "eager", " ".join(f"{type(problem).__name__}: {problem}".split())[:200]
            warnings.warn(f"Training steps run eagerly from here, and slower: {self.why_eager}.", stacklevel=2)
            return None
        return self._recorded[key]

    def take_means(self) -> dict[str, float]:
        """Return the means of what is logged since the last call, each over the steps that had it; start afresh."""
        means = {name: float(value) / self._counts[name] for name, value in self.sums.items() if self._counts[name]}
        super().take_means()
        self._counts.clear()
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return what a continued run needs of it."""
        return {**super().state_dict(), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; before the first step."""
        super().load_state_dict(state)
        self._counts = Counter(state["counts"])

    def _apply(self, group: str) -> Tensor:
        """Step a group; return the norm of its gradient before clipping."""
        parameters = self._groups[group].parameters
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.config.gradient_clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.config.gradient_clip, norm)
        self._optimizers[group].step()
        self._optimizers[group].zero_grad()
        return norm


def _chains(turns: list[Turn]) -> list[list[Turn]]:
    """Return turns in order, those together that go on from one another."""
    chains: list[list[Turn]] = []
    for turn in turns:
        if turn.continues and chains:
            chains[-1].append(turn)
        else:
            chains.append([turn])
    return chains


class _LossOfTurn(nn.Module):
    """The loss of one turn as a module, for recording."""

    def __init__(self, objective: Any, turn: Turn, fabric: Fabric) -> None:
        super().__init__()
        self.objective = objective
        self._loss = turn.loss
        self._autocast = fabric.autocast

    def forward(self, batch: Batch) -> Tensor:
        with self._autocast(), pyro.validation_enabled(False):
            return self._loss(batch)
