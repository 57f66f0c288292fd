"""One training step: batch, losses, gradients, clipping, Adam, moving average, sums for the log.

A step goes through the updates of an objective's groups of parameters in order, in one of three equivalent modes:

* ``"eager"``: operation by operation, as written. The reference.
* ``"compiled"``: each loss and its gradients traced once and compiled by Inductor.
* ``"graph"``: the whole step captured as a CUDA graph.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor, nn

from pyro_ssvae._io import one_line
from pyro_ssvae._ranks import Ranks
from pyro_ssvae._warnings import warn
from pyro_ssvae.data import Batch, BatchStream
from pyro_ssvae.data.preparation import BatchIndices
from pyro_ssvae.objectives.base import Loss, Objective, ParameterGroup, Update
from pyro_ssvae.training.checkpoint import load_moments
from pyro_ssvae.training.compilation import (
    CapturedSteps,
    CompiledLoss,
    choose_mode,
    clone_shared_gradients,
    preserve_state,
    shapes_of,
)
from pyro_ssvae.training.config import TrainingConfig, raise_mmap_threshold
from pyro_ssvae.training.untrained import warn_untrained

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_EAGER_FIRST = 2  # eager steps of a shape of batch before it is compiled, which takes seconds


class TrainingStep:
    """The step of an objective in a schedule of ``total`` steps: optimisers, moving average, sums of what is logged.

    Attributes:
        mode: ``"eager"``, ``"compiled"`` or ``"graph"``.
        why_eager: Why steps are eager although a faster mode was wanted, in one line; ``None`` otherwise.
        first_bad_step: Number of the first step whose loss was not finite, else -1, on the device.
    """

    def __init__(
        self,
        objective: Objective,
        stream: BatchStream,
        config: TrainingConfig,
        fabric: Fabric,
        total: int,
        ranks: Ranks | None = None,
    ) -> None:
        self._ranks = ranks or Ranks()
        self.mode = choose_mode(config, fabric.device, objective, total, self._ranks.size)
        self.why_eager: str | None = None
        self.objective = objective.to(fabric.device)
        if config.precision == "64-true":
            self.objective.double()
        self.stream, self.config, self.fabric, self.total = stream, config, fabric, total
        if fabric.device.type == "cpu":
            raise_mmap_threshold()
        self._groups = objective.groups()
        self.optimizers = {name: self._new_optimizer(group) for name, group in self._groups.items()}
        self._scaler = torch.amp.GradScaler(fabric.device.type, enabled=config.precision == "16-mixed")
        self.average = MovingAverage(objective.module, config.ema_decay, captured=self.mode == "graph")
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()  # steps behind each sum: not every term occurs in every step
        self.first_bad_step = torch.full((), -1, dtype=torch.int64, device=fabric.device)
        self._number = torch.zeros((), dtype=torch.int64, device=fabric.device)  # of the step, from 1
        self._dtype = next(objective.parameters()).dtype
        self._first_loss = torch.zeros((), dtype=self._dtype, device=fabric.device)  # of the first update of a step
        self._updates: list[Update] = []
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._compiled: dict[tuple[Any, ...], tuple[CompiledLoss, tuple[Any, ...]]] = {}
        self._captured: CapturedSteps | None = None

    def _new_optimizer(self, group: ParameterGroup) -> torch.optim.Optimizer:
        rate: Any = self.config.learning_rate * group.rate
        graph = self.mode == "graph"  # in which the learning rate must lie on the device
        return torch.optim.AdamW(
            group.parameters,
            lr=torch.tensor(rate, device=self.fabric.device) if graph else rate,
            betas=group.betas,
            weight_decay=self.config.weight_decay,
            fused=True,  # one kernel (or loop) over all parameters
            capturable=graph,
        )

    def check(self) -> None:
        """Compute the losses of the batch that comes next, which may raise or warn, and restore everything."""
        state = self.stream.state_dict()
        indices = self.stream.next_indices()
        self.objective.train()
        with preserve_state(self.objective, self.fabric.device), self.fabric.autocast():
            with self._ranks.divide(indices) as own:
                batch = self.stream.gather(type(indices)(*own))
                warn_untrained(self.objective, self._groups, self.objective.losses(batch), rank=self._ranks.rank)
        self.stream.load_state_dict(state)

    def __call__(self, number: int, *, verify: bool = False) -> None:
        """Do step ``number`` (from 0); ``verify`` compares its loss with an eager one: if it differs, go on eagerly."""
        self._set_schedule(number)
        self.objective.train()
        indices = self.stream.next_indices()
        expected = self._eager_loss(indices) if verify and self.mode != "eager" else None
        if self.mode == "graph":
            self._counts.update(self._run_captured(indices))
        else:
            with self._ranks.divide(indices) as own:
                batch = self.stream.gather(type(indices)(*own))
                self._counts.update(self._step(batch))
        if expected is not None and not self._agrees(expected, float(self._first_loss)):
            self._go_eager(
                f"in {self.mode} mode, a step gives a loss of {float(self._first_loss):.7g}, and eagerly "
                f"{expected:.7g}: model or guide depend on Python values that change between steps"
            )

    def learning_rate_at(self, number: int) -> float:
        """Return the learning rate of the first group in step ``number`` (from 0)."""
        return self._rate_at(next(iter(self._groups.values())), number)[0]

    def take_means(self) -> dict[str, float]:
        """Return the means of what is logged since the last call, each over the steps that had it, and start afresh."""
        means = {name: float(value) / self._counts[name] for name, value in self._sums.items() if self._counts[name]}
        for value in self._sums.values():
            value.zero_()  # in place: a captured step adds to this very tensor
        self._counts.clear()
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        return {
            "objective": self.objective.state_dict(),
            "optimizers": {name: optimizer.state_dict()["state"] for name, optimizer in self.optimizers.items()},
            "scaler": self._scaler.state_dict(),
            "average": self.average.state_dict(),
            "stream": self.stream.state_dict(),
            "sums": {name: value.clone() for name, value in self._sums.items()},
            "counts": dict(self._counts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state, before the first step; raises errors of many types for one that does not fit."""
        self.objective.load_state_dict(state["objective"])
        for name, optimizer in self.optimizers.items():
            load_moments(optimizer, state["optimizers"][name])
        self._scaler.load_state_dict(state["scaler"])
        self.average.load_state_dict(state["average"])
        self.stream.load_state_dict(state["stream"])
        self._sums = {name: value.to(self.fabric.device) for name, value in state["sums"].items()}
        self._counts = Counter(state["counts"])

    # Schedules.

    def _set_schedule(self, number: int) -> None:
        restart = 0
        for name, group in self._groups.items():
            rate, start = self._rate_at(group, number)
            restart = max(restart, start)
            for settings in self.optimizers[name].param_groups:
                if isinstance(settings["lr"], Tensor):
                    settings["lr"].fill_(rate)
                else:
                    settings["lr"] = rate
        self.objective.kl_weight = self.config.kl_weight_at(
            number, self.total, self.objective.num_examples, schedule=self.objective.kl_schedule
        )
        self.average.set_step(number - restart)
        self._number.fill_(number + 1)
        self._updates = self.objective.updates(number / self.total)

    def _rate_at(self, group: ParameterGroup, number: int) -> tuple[float, int]:
        """Return the learning rate of a group in step ``number``, and the step at which its present decay began."""
        end = max(1, round(group.fraction * self.total))
        start, length = (end, self.total - end) if number >= end else (0, end)
        return self.config.learning_rate_at(number - start, length) * group.rate, start

    # The step itself; nothing here synchronises with the device.

    def _step(self, batch: Batch) -> list[str]:
        """Do all updates on a batch; return the names of what was added to the sums."""
        batch = batch.cast(self._dtype)
        terms: dict[str, Tensor] = {}
        norms: dict[str, list[Tensor]] = {}
        total = torch.zeros((), device=self.fabric.device)
        for place, update in enumerate(self._updates):
            loss = self._gradients(place, update, batch)
            total = total + loss.total
            terms |= loss.terms
            if place == 0:
                self._first_loss.copy_(loss.total)
            norm = self._apply(update.group)
            if norm is not None:
                norms.setdefault(f"gradient_norm_{update.group}", []).append(norm)
        self.average.update()
        bad_now = ~total.isfinite() & (self.first_bad_step < 0)
        self.first_bad_step.copy_(torch.where(bad_now, self._number, self.first_bad_step))
        if len(self._groups) == 1:
            terms = {"loss": total, **terms}
        terms |= {name: torch.stack(found).mean() for name, found in norms.items()}
        for name, value in terms.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(value)
            self._sums[name].add_(value)
        return list(terms)

    def _gradients(self, place: int, update: Update, batch: Batch) -> Loss:
        """Put the gradients of an update into its parameters; return the loss, detached."""
        compiled = self._compile(place, update, batch) if self.mode == "compiled" else None
        if compiled is not None:
            return compiled(batch)
        parameters = [part for part in self._groups[update.group].parameters if part.requires_grad]
        loss = self._compute(update, batch)
        size = self._ranks.size
        scaled = self._scaler.scale(loss.total if size == 1 else loss.total / size)  # gradients need only be summed
        gradients: Sequence[Tensor | None] = torch.autograd.grad(scaled, parameters, allow_unused=True)
        if size > 1:
            parts = [part / size for part in (loss.total, *loss.terms.values())]
            total, *terms = self._ranks.sum_gradients(parameters, gradients, parts)
            return Loss(total, dict(zip(loss.terms, terms, strict=True)))
        for parameter, gradient in zip(parameters, clone_shared_gradients(gradients, parameters), strict=True):
            parameter.grad = gradient
        return Loss(loss.total.detach(), loss.terms)

    def _compute(self, update: Update, batch: Batch) -> Loss:
        with self.fabric.autocast(), pyro.validation_enabled(False):
            return update.loss(batch)

    def _apply(self, group: str) -> Tensor | None:
        """Step a group; return the norm of its gradient before clipping, where it is clipped or one of several."""
        parameters, optimizer, clip = self._groups[group].parameters, self.optimizers[group], self.config.gradient_clip
        self._scaler.unscale_(optimizer)
        norm = None
        if clip is not None or len(self._groups) > 1:
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if clip is not None and norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        self._scaler.step(optimizer)
        self._scaler.update()
        optimizer.zero_grad()
        return norm if len(self._groups) > 1 else None

    # The faster modes.

    def _compile(self, place: int, update: Update, batch: Batch) -> CompiledLoss | None:
        """Return the compiled loss of an update for the first shape of batch; ``None`` where it runs eagerly."""
        key, shapes = (place, *self._variant(update)), shapes_of(batch)
        if key in self._compiled:
            compiled, known = self._compiled[key]
            return compiled if shapes == known else None  # batches of other shapes are rare
        self._seen[key, shapes] += 1
        if self._seen[key, shapes] <= _EAGER_FIRST:
            return None
        parameters = self._groups[update.group].parameters
        try:
            function = lambda batch: self._compute(update, batch)  # noqa: E731
            compiled = CompiledLoss(self.objective, function, parameters, batch, self.fabric.device)
        except Exception as error:  # tracing and compiling raise whatever model, guide or compiler do
            self._go_eager(one_line(error))
            return None
        self._compiled[key] = compiled, shapes
        return compiled

    def _run_captured(self, indices: BatchIndices) -> list[str]:
        self._captured = self._captured or CapturedSteps(self._step, self.stream, self.fabric.device)
        try:
            return self._captured(indices, tuple(map(self._variant, self._updates)))
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # capturing raises whatever a model does that a graph cannot hold
            self._go_eager(one_line(error))
            return self._step(self.stream.gather(indices))

    def _variant(self, update: Update) -> tuple[Any, ...]:
        """Return what a compiled step depends on: the loss, and which parameters are frozen at present."""
        frozen = tuple(not parameter.requires_grad for parameter in self._groups[update.group].parameters)
        return update.group, getattr(update.loss, "__name__", ""), frozen

    def _eager_loss(self, indices: BatchIndices) -> float:
        """Return the loss of the step's first update, computed eagerly from the same random state."""
        noise = self.stream.noise.get_state()
        with preserve_state(self.objective, self.fabric.device):
            batch = self.stream.gather(indices).cast(self._dtype)
            loss = float(self._compute(self._updates[0], batch).total.detach())
        self.stream.noise.set_state(noise)
        return loss

    def _agrees(self, expected: float, found: float) -> bool:
        # In mixed precision dropout draws other numbers when it is compiled, so that only large differences count.
        tolerance = {"64-true": 1e-9, "32-true": 1e-4}.get(self.config.precision, 0.25)
        return not math.isfinite(expected) or abs(found - expected) <= tolerance * max(1.0, abs(expected))

    def _go_eager(self, why: str) -> None:
        self.mode, self.why_eager = "eager", why
        self._compiled.clear()
        self._captured = None
        warn(f"Training steps run eagerly from here, and slower: {why}.")


class MovingAverage:
    """Exponential moving average of parameters and floating-point buffers, without host-device synchronisation.

    A decay of 0 keeps it equal to the weights. Updates captured in a CUDA graph read it from the device. Buffers with
    infinite values, such as the mask of an attention, are no averages and stay as they are.
    """

    def __init__(self, module: nn.Module, decay: float, *, captured: bool = False) -> None:
        self._decay = decay
        self._captured = captured
        buffers = [buffer for buffer in module.buffers() if not buffer.isinf().any()]
        self._live = [tensor for tensor in [*module.parameters(), *buffers] if tensor.is_floating_point()]
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
