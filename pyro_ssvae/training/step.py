"""One training step: batch, losses, gradients, clipping, Adam, moving average, sums for the log.

An objective has one or several groups of parameters, each with an optimiser and a loss of its own; a step goes through
the objective's updates in order. It runs in one of three modes, which give the same training:

* ``"eager"``: operation by operation, as written. The reference.
* ``"compiled"``: each loss and its gradients traced once and compiled by Inductor
  (:mod:`pyro_ssvae.training.compilation`).
* ``"graph"``: the whole step captured as a CUDA graph (:mod:`pyro_ssvae.training.cuda_graph`).
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor, nn

from pyro_ssvae.data import Batch, BatchStream
from pyro_ssvae.data.preparation import BatchIndices
from pyro_ssvae.objectives.base import Loss, Objective, ParameterGroup, Update
from pyro_ssvae.training.checkpoint import check_like
from pyro_ssvae.training.compilation import (
    CompiledLoss,
    clone_shared_gradients,
    has_compiler,
    preserve_state,
    shapes_of,
)
from pyro_ssvae.training.config import TrainingConfig
from pyro_ssvae.training.cuda_graph import CapturedSteps
from pyro_ssvae.training.device import raise_mmap_threshold
from pyro_ssvae.training.ema import MovingAverage

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["TrainingStep"]

_EAGER_FIRST = 2  # eager steps of a shape of batch before it is compiled, which takes seconds


class TrainingStep:
    """The step of an objective: its optimisers, moving average, and sums of what is logged.

    Args:
        objective: The objective; moved to the device.
        stream: Where batches come from.
        config: Settings of the loop; the learning rate is multiplied by that of each group.
        fabric: Device and precision.
        total: Length of the schedule in steps.

    Raises:
        ValueError: For a mode that is not available here.

    Attributes:
        mode: ``"eager"``, ``"compiled"`` or ``"graph"``.
        why_eager: Why steps are eager although a faster mode was wanted, in one line; ``None`` otherwise.
        first_bad_step: Number of the first step whose loss was not finite, else -1, on the device.
    """

    def __init__(
        self, objective: Objective, stream: BatchStream, config: TrainingConfig, fabric: Fabric, total: int
    ) -> None:
        self.mode = _choose_mode(config, fabric.device, objective, total)
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
        self.sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()  # steps behind each sum: not every term occurs in every step
        self.first_bad_step = torch.full((), -1, dtype=torch.int64, device=fabric.device)
        self._number = torch.zeros((), dtype=torch.int64, device=fabric.device)  # of the step, from 1
        self._dtype = next(objective.parameters()).dtype
        self._first_loss = torch.zeros((), dtype=self._dtype, device=fabric.device)  # of the first update of a step
        self._updates: list[Update] = []
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._compiled: dict[tuple[Any, ...], CompiledLoss] = {}
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
        """Compute the losses of the batch that comes next, and restore everything.

        Raises:
            Exception: What the objective raises for a model, guide or data that it cannot take.
        """
        state = self.stream.state_dict()
        batch = self._cast(next(self.stream))
        self.objective.train()
        try:
            with preserve_state(self.objective, self.fabric.device), self.fabric.autocast():
                self.objective.losses(batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            sizes = " and ".join(
                f"{len(part)} {name}"
                for name, part in (("unlabelled", batch.x_unlabelled), ("labelled", batch.x_labelled))
                if part is not None
            )
            raise ValueError(
                f"Batch normalisation needs at least two examples, and a batch here has {sizes}: raise batch_size or "
                "labelled_batch_size, or, where there is only one example, build the model without batch normalisation."
            ) from error
        self.stream.load_state_dict(state)

    def __call__(self, number: int, *, verify: bool = False) -> None:
        """Do step ``number`` (from 0).

        Args:
            number: Which step of the schedule it is.
            verify: Whether to compute the step's first loss eagerly too, and to go on eagerly if it differs.
        """
        self._set_schedule(number)
        self.objective.train()
        indices = self.stream.next_indices()
        expected = self._eager_loss(indices) if verify and self.mode != "eager" else None
        if self.mode == "graph":
            terms = self._run_captured(indices)
        else:
            terms = self._step(self.stream.gather(indices))
        self._counts.update(terms)
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
        means = {name: float(value) / self._counts[name] for name, value in self.sums.items() if self._counts[name]}
        for value in self.sums.values():
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
            "sums": {name: value.clone() for name, value in self.sums.items()},
            "counts": dict(self._counts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; before the first step.

        Raises:
            Exception: ``ValueError`` where names, shapes or types do not fit; of other types for a damaged state.
        """
        mine = self.state_dict()
        for name in ("objective", "scaler", "average"):
            check_like(state[name], mine[name], name)
        self.objective.load_state_dict(state["objective"])
        for name, optimizer in self.optimizers.items():
            _load_moments(optimizer, state["optimizers"][name], name)
        self._scaler.load_state_dict(state["scaler"])
        self.average.load_state_dict(state["average"])
        self.stream.load_state_dict(state["stream"])
        sums, counts = state["sums"], state["counts"]
        for name, value in sums.items():
            check_like(value, torch.zeros((), dtype=value.dtype), f"sums/{name}")
            check_like(counts.get(name, 0), 0, f"counts/{name}")
        self.sums = {name: value.to(self.fabric.device) for name, value in sums.items()}
        self._counts = Counter({name: counts[name] for name in sums if name in counts})

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
            number, self.total, self.objective.num_examples, peaks=self.objective.peaks_kl
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
        batch = self._cast(batch)
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
            if name not in self.sums:
                self.sums[name] = torch.zeros_like(value)
            self.sums[name].add_(value)
        return list(terms)

    def _cast(self, batch: Batch) -> Batch:
        """Return a batch in the precision of the weights."""
        if self._dtype == torch.float32:
            return batch
        parts = (part if part is None or not part.is_floating_point() else part.to(self._dtype) for part in batch)
        return Batch(*parts)

    def _gradients(self, place: int, update: Update, batch: Batch) -> Loss:
        """Put the gradients of an update into its parameters; return the loss, detached."""
        compiled = self._compile(place, update, batch) if self.mode == "compiled" else None
        if compiled is not None:
            return compiled(batch)
        parameters = [part for part in self._groups[update.group].parameters if part.requires_grad]
        loss = self._compute(update, batch)
        scaled = self._scaler.scale(loss.total)
        gradients = torch.autograd.grad(scaled, parameters, allow_unused=True)
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
        name = getattr(update.loss, "__name__", "")
        key = (place, update.group, name, self.objective.training, shapes_of(batch))
        if key in self._compiled:
            return self._compiled[key]
        self._seen[key] += 1
        if self._seen[key] <= _EAGER_FIRST or any(known[:4] == key[:4] for known in self._compiled):
            return None  # batches of other shapes are rare
        parameters = self._groups[update.group].parameters
        try:
            function = lambda batch: self._compute(update, batch)  # noqa: E731
            self._compiled[key] = CompiledLoss(self.objective, function, parameters, batch, self.fabric.device)
        except Exception as error:  # tracing and compiling raise whatever model, guide or compiler do
            self._go_eager(_one_line(error))
            return None
        return self._compiled[key]

    def _run_captured(self, indices: BatchIndices) -> list[str]:
        self._captured = self._captured or CapturedSteps(self._step, self.stream, self.fabric.device)
        updates = tuple((update.group, getattr(update.loss, "__name__", "")) for update in self._updates)
        try:
            return self._captured(indices, updates)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # capturing raises whatever a model does that a graph cannot hold
            self._go_eager(_one_line(error))
            return self._step(self.stream.gather(indices))

    def _eager_loss(self, indices: BatchIndices) -> float:
        """Return the loss of the step's first update, computed eagerly from the same random state."""
        noise = self.stream.noise.get_state()
        with preserve_state(self.objective, self.fabric.device):
            batch = self._cast(self.stream.gather(indices))
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
        warnings.warn(f"Training steps run eagerly from here, and slower: {why}.", UserWarning, stacklevel=2)


def _load_moments(optimizer: torch.optim.Optimizer, moments: dict[str, Any], name: str) -> None:
    """Restore the moments of Adam, by number of the parameter; the settings of the optimiser stay."""
    parameters = dict(enumerate(part for group in optimizer.param_groups for part in group["params"]))
    found = {int(number): value for number, value in moments.items()}
    for number, value in found.items():
        like = parameters[number]
        check_like(value, {"step": torch.zeros(()), "exp_avg": like, "exp_avg_sq": like}, f"{name}/{number}")
    optimizer.load_state_dict({"state": found, "param_groups": optimizer.state_dict()["param_groups"]})


def _choose_mode(config: TrainingConfig, device: torch.device, objective: Objective, total: int) -> str:
    """Return the mode that the settings name, or for ``"auto"`` the fastest one that is available."""
    if config.compile == "graph" and device.type != "cuda":
        raise ValueError("compile='graph' captures a CUDA graph and needs device='cuda'; use auto, compiled or eager.")
    if config.compile == "compiled" and not has_compiler():
        raise ValueError("compile='compiled' needs a C++ compiler (c++, g++ or clang++); use auto or eager.")
    if config.compile != "auto":
        return config.compile
    if not objective.compilable or config.precision == "16-mixed":  # loss scaling asks whether gradients are finite
        return "eager"
    if device.type == "cuda":
        return "graph"
    return "compiled" if total >= objective.compile_after and has_compiler() else "eager"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
