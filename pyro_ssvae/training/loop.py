"""The one training loop, on Lightning Fabric."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from pyro_ssvae.data import BatchStream, SemiSupervisedData, iterate_batches, prepare
from pyro_ssvae.distributions import Prior
from pyro_ssvae.errors import NonFiniteLossError, RunFolderError, TrainingFailedError
from pyro_ssvae.evaluation import validation_metrics
from pyro_ssvae.models import DDGM, LatentVariableModel, Model, save
from pyro_ssvae.objectives import AlternatingObjective, Objective
from pyro_ssvae.training.alternating import AlternatingStep
from pyro_ssvae.training.base_step import BaseStep
from pyro_ssvae.training.config import TrainingConfig
from pyro_ssvae.training.device import make_fabric
from pyro_ssvae.training.progress import ProgressReport
from pyro_ssvae.training.run_folder import RunFolder
from pyro_ssvae.training.signals import SignalHandler
from pyro_ssvae.training.step import TrainingStep
from pyro_ssvae.training.tensorboard import TensorBoardLog

__all__ = ["FitResult", "fit"]

_READ_EVERY = 50  # steps between looks at the device: the progress of the loss, and whether it is still finite
_STARTING_ROWS = 2000  # training rows that a prior may take starting values from
_VERIFIED = (3, 10)  # steps that are compared with the module itself early on, besides one at each evaluation


@dataclass
class FitResult:
    """What training leaves behind.

    Attributes:
        stopped_by: ``"schedule"``, ``"max_minutes"``, ``"patience"``, ``"SIGINT"`` or ``"SIGTERM"``.
        steps: Steps done.
        epochs: Passes over the unlabelled rows (over the labelled ones when there are no others).
        train_seconds: Time in the loop, evaluations included, over all sittings of the run.
        config: Settings of the loop.
        metrics: One row per evaluation, as in ``metrics.csv``.
        best_step: Step of the evaluation with the least validation error (for a model without classes: the best
            validation bound); without validation rows and for an energy model the last one, leaving out doubtful ones
            (:attr:`Objective.doubtful`).
        last_weights: Weights of the module at the last step (averaged, where averaging is on); the module itself holds
            those of ``best_step``.
        folder: The run folder, or ``None``.
        step_mode: How steps ran at the end: ``"eager"``, ``"replay"``, ``"inductor"`` or ``"graph"``.
        why_eager: Why they ran eagerly although something faster was wanted, else ``None``.
    """

    stopped_by: str
    steps: int
    epochs: float
    train_seconds: float
    config: TrainingConfig
    metrics: list[dict[str, Any]] = field(repr=False)
    best_step: int
    last_weights: dict[str, Tensor] = field(repr=False)  # of thousands of lines
    folder: Path | None
    step_mode: str = "eager"
    why_eager: str | None = None

    @property
    def finished(self) -> bool:
        """Whether training ended by itself, and not by a signal."""
        return not self.stopped_by.startswith("SIG")


def fit(
    objective: Objective,
    data: SemiSupervisedData,
    config: TrainingConfig | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    settings: dict[str, Any] | None = None,
    progress: bool = True,
    on_evaluation: Callable[[Any, dict[str, Any]], None] | None = None,
) -> FitResult:
    """Train an objective on data.

    The module ends up with the weights of the evaluation that validation picked (the last, without validation rows),
    averaged where averaging is on. The random state of the process is seeded by ``config.seed``.

    Args:
        objective: The objective; its module is trained in place.
        data: The rows. Test rows are never looked at.
        config: Settings of the loop; the defaults when ``None``.
        out: Folder of the run; nothing is written when ``None``.
        resume: Continue the run in ``out`` from its checkpoint; on the CPU as if it had never stopped, to the last bit.
        settings: What else ``config.yaml`` should say, for example how the model was made.
        progress: Whether to show progress on standard error.
        on_evaluation: Called at every evaluation with the module, holding its averaged weights, and with what the
            evaluation found: for pictures of training, or for stopping it by an exception.

    Returns:
        What happened, and where it is.

    Raises:
        ValueError: If data and objective do not fit, before anything is trained or written.
        EnumerationError: Likewise, if the guide enumerates nothing for unlabelled rows.
        StaticELBOError: Likewise, for a module that only the stock ELBO takes.
        NonFiniteLossError: When the loss is no longer finite; names the first bad step and the last good checkpoint.
        TrainingFailedError: When an evaluation shows that training goes nowhere, as :meth:`Objective.problem` judges;
            ``metrics.csv`` says what it found, and checkpoint and model are those of the last evaluation that was not
            :attr:`Objective.doubtful`.
        RunFolderError: If the folder cannot be used, written or resumed.

    Warns:
        UserWarning: If steps run eagerly though something faster was wanted, with the reason.
    """
    config = config or TrainingConfig()
    if resume and out is None:
        raise ValueError("resume=True needs out=DIR, the folder of the run to continue.")
    check_fit(objective, data)
    fabric = make_fabric(config)
    torch.manual_seed(config.seed)
    loop = _Loop(objective, data, config, fabric, RunFolder(out) if out is not None else None, on_evaluation)
    if loop.folder is not None:
        if resume:
            loop.load(loop.folder.read_checkpoint(fabric.device))
        else:
            loop.folder.create({"training": config.to_dict(), **(settings or {})})
            if data.split is not None:
                data.split.save(loop.folder.split)
    with SignalHandler() as interrupts, ProgressReport(loop.total, done=loop.step, enabled=progress) as report:
        with loop.logging():
            stopped_by = loop.run(interrupts, report)
    return loop.finish(stopped_by)


def check_fit(objective: Objective, data: SemiSupervisedData) -> None:
    """Raise ``ValueError`` where an objective and data do not fit together."""
    module = objective.module
    if isinstance(module, Model):
        if tuple(module.event_shape) != tuple(data.event_shape):
            raise ValueError(
                f"The model expects rows of shape {tuple(module.event_shape)}, the data has {tuple(data.event_shape)}. "
                "Build the model with event_shape=data.event_shape."
            )
        if module.num_classes is not None and module.num_classes < data.num_classes:
            raise ValueError(
                f"The model has {module.num_classes} classes, the data {data.num_classes}. Build the model with "
                "num_classes=data.num_classes."
            )
    if isinstance(module, LatentVariableModel):
        for rows in (data.x, data.x_validation, data.x_test):
            for batch in iterate_batches(rows, scale=data.scale, batch_size=4096):
                module.likelihood.check(batch)
    if (objective.num_labelled, objective.num_unlabelled) != (data.num_labelled, data.num_unlabelled):
        raise ValueError(
            f"The objective weighs {objective.num_labelled} labelled and {objective.num_unlabelled} unlabelled rows, "
            f"the data has {data.num_labelled} and {data.num_unlabelled}. Build it with "
            "num_labelled=data.num_labelled, num_unlabelled=data.num_unlabelled; for a model without classes train on "
            "data.without_labels()."
        )


@dataclass
class _Best:
    """The evaluation that validation picked so far."""

    score: float = float("-inf")
    step: int = 0
    evaluations_since: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    doubtful: bool = True  # no evaluation yet without signs of trouble


class _Loop:
    """State of a run and the steps over it."""

    def __init__(
        self,
        objective: Objective,
        data: SemiSupervisedData,
        config: TrainingConfig,
        fabric: Fabric,
        folder: RunFolder | None,
        on_evaluation: Callable[[Any, dict[str, Any]], None] | None,
    ) -> None:
        self.on_evaluation = on_evaluation
        self.objective = objective
        self.module = objective.module
        self.data = data
        self.config = config
        self.fabric = fabric
        self.folder = folder
        self.stream = BatchStream(
            data,
            batch_size=config.batch_size,
            labelled_batch_size=config.labelled_batch_size,
            device=fabric.device,
            binarisation=config.binarisation,
            seed=config.seed,
        )
        self.total = config.total_steps(self.stream.steps_per_epoch)
        self.interval = config.evaluation_interval(self.total)
        prior = getattr(self.module, "prior", None)
        if isinstance(prior, Prior):
            order = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(config.seed))
            prior.start_from(prepare(data.x[order[:_STARTING_ROWS]], scale=data.scale))
        rest = (self.stream, config, fabric, self.total)
        self.train_step: BaseStep = (
            AlternatingStep(objective, *rest)
            if isinstance(objective, AlternatingObjective)
            else TrainingStep(objective, *rest)
        )
        self.train_step.check()
        self.average = self.train_step.average
        self.step = 0
        self.seconds = 0.0
        self.metrics: list[dict[str, Any]] = []
        self.best = _Best()
        self.log: TensorBoardLog | None = None

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Keep the TensorBoard log of the run folder open."""
        if self.folder is not None:
            self.log = TensorBoardLog(self.folder.tensorboard, self.step)
        try:
            yield
        finally:
            if self.log is not None:
                self.log.close()

    def run(self, interrupts: SignalHandler, report: ProgressReport) -> str:
        """Train until something says stop; return what did."""
        started, before, first = time.perf_counter(), self.seconds, self.step
        while (stop := self._stop_reason(interrupts)) is None:
            due = (self.step + 1) % self.interval == 0 or self.step + 1 == self.total
            self.train_step(self.step, verify=due or self.step in _VERIFIED)
            self.step += 1
            report.advance()
            self.seconds = before + time.perf_counter() - started
            if self.step % _READ_EVERY == 0:
                self._check_finite()
            if due:
                row = self._evaluate()
                report.evaluated(row, (self.step - first) / max(self.seconds - before, 1e-9))
                self.seconds = before + time.perf_counter() - started
                self._write()
        self._check_finite()
        if not stop.startswith("SIG") and (not self.metrics or self.metrics[-1]["step"] != self.step):
            self._evaluate()
        self._write(needed=True)
        return stop

    def _stop_reason(self, interrupts: SignalHandler) -> str | None:
        if interrupts.received is not None:
            return interrupts.received.name
        if self.step >= self.total:
            return "schedule"
        if self.config.max_minutes is not None and self.seconds >= 60.0 * self.config.max_minutes:
            return "max_minutes"
        if self.config.patience is not None and self.best.evaluations_since >= self.config.patience:
            return "patience"
        return None

    def _check_finite(self) -> None:
        bad = int(self.train_step.first_bad_step)
        if bad >= 0:
            raise NonFiniteLossError(bad, self._checkpoint())

    def _checkpoint(self) -> Path | None:
        """Return the last checkpoint, if there is one."""
        checkpoint = self.folder.checkpoint if self.folder is not None else None
        return checkpoint if checkpoint is not None and checkpoint.is_file() else None

    def _evaluate(self) -> dict[str, Any]:
        """Evaluate the averaged weights, remember them if they are the best so far, and stop where they are no good."""
        self._check_finite()
        row: dict[str, Any] = {
            "step": self.step,
            "epoch": round(self.step / self.stream.steps_per_epoch, 4),
            "seconds": round(self.seconds, 2),
            **self.train_step.take_means(),
            "learning_rate": self.train_step.learning_rate_at(max(0, self.step - 1)),
        }
        with self.average.applied():
            score: float | None = None
            if isinstance(self.module, DDGM) or (len(self.data.x_validation) and isinstance(self.module, Model)):
                found, score = validation_metrics(
                    self.objective, self.data, binarisation=self.config.binarisation, seed=self.config.seed
                )
                row |= found
            why = self.objective.problem(row)
            if why is None:
                self._keep_if_best(score)
            if self.on_evaluation is not None:
                self.on_evaluation(self.module, row)
        self.metrics.append(row)
        if self.log is not None:
            self.log.write(row)
        if why is not None:
            if self.folder is not None:
                self.folder.write_metrics(self.metrics)
            raise TrainingFailedError(self.step, why, self._checkpoint())
        return row

    def _keep_if_best(self, score: float | None) -> None:
        # Without validation rows, and as long as the objective is not yet a bound, the latest weights count as the
        # best: a classifier may be at its best while the generative model knows nothing. Among equals, the later.
        # A doubtful evaluation counts only as long as there is no other, and never for the model that is saved.
        doubtful = self.objective.doubtful
        if doubtful and not self.best.doubtful:
            return
        warming = self.objective.kl_weight != 1.0
        if score is not None and not warming and score < self.best.score:
            self.best.evaluations_since += 1
            return
        weights = {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}
        self.best = _Best(float("-inf") if score is None or warming else score, self.step, 0, weights, doubtful)
        if not doubtful:
            self._save_model()

    def _save_model(self) -> None:
        if self.folder is not None and isinstance(self.module, Model):
            try:
                save(self.module, self.folder.model)
            except OSError as problem:
                raise RunFolderError(f"Cannot write the model to {self.folder.model}: {problem}.") from problem

    def _write(self, *, needed: bool = False) -> None:
        """Write metrics and, unless the last evaluation was doubtful, the checkpoint; without one if one is needed."""
        if self.folder is not None:
            self.folder.write_metrics(self.metrics)
            if not self.objective.doubtful or (needed and self._checkpoint() is None):
                self.folder.write_checkpoint(self.state())

    def state(self) -> dict[str, Any]:
        """Return everything that a continued run needs to give the same numbers."""
        device = self.fabric.device
        return {
            "format": 1,
            "step": self.step,
            "seconds": self.seconds,
            **self.train_step.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "metrics": self.metrics,
            "best": vars(self.best),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state.

        Raises:
            RunFolderError: If it belongs to another model or other settings.
        """
        try:
            self.train_step.load_state_dict(state)
            torch.set_rng_state(state["rng"].cpu())
            if self.fabric.device.type == "cuda" and state["cuda_rng"] is not None:
                torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.fabric.device)
            self.best = _Best(**state["best"])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise RunFolderError(f"The checkpoint does not fit this model and data: {error}") from error
        self.step, self.seconds = state["step"], state["seconds"]
        self.metrics = state["metrics"]

    def finish(self, stopped_by: str) -> FitResult:
        """Put the chosen weights into the module and sum the run up."""
        with self.average.applied():
            last = {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}
        if self.best.weights:
            self.module.load_state_dict(self.best.weights)
            if self.best.doubtful:
                self._save_model()
        self.objective.kl_weight = 1.0
        self.objective.eval()
        return FitResult(
            stopped_by=stopped_by,
            steps=self.step,
            epochs=self.step / self.stream.steps_per_epoch,
            train_seconds=self.seconds,
            config=self.config,
            metrics=self.metrics,
            best_step=self.best.step,
            last_weights=last,
            folder=self.folder.path if self.folder is not None else None,
            step_mode=self.train_step.mode,
            why_eager=self.train_step.why_eager,
        )
