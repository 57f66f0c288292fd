"""The training loop, on Lightning Fabric."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pyro_ssvae._arguments import checked, show
from pyro_ssvae._io import writing
from pyro_ssvae._ranks import Ranks, is_lost, launched, processes
from pyro_ssvae.data import BatchStream
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.preparation import rescale
from pyro_ssvae.data.storage import sample_rows
from pyro_ssvae.errors import NonFiniteLossError, TrainingFailedError
from pyro_ssvae.models import Model
from pyro_ssvae.models.base import seeded
from pyro_ssvae.models.serialization import save
from pyro_ssvae.objectives import Objective
from pyro_ssvae.objectives.base import Validation
from pyro_ssvae.training.checkpoint import Best, digest, get_state, restore
from pyro_ssvae.training.config import TrainingConfig, describe_memory_error, make_fabric, settle
from pyro_ssvae.training.progress import ProgressReport, TensorBoardLog
from pyro_ssvae.training.run_folder import RunFolder
from pyro_ssvae.training.signals import catch_signals
from pyro_ssvae.training.step import TrainingStep

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_SYNCHRONISE_EVERY = 50  # steps between checks whether the loss is still finite, which wait for the device
_READ_EVERY = 10  # steps between readings on a GPU whether another process wants to stop
_TIME_IS_OVER = 1  # as a request to stop; others are numbers of signals, of which SIGHUP is not caught
_INITIAL_EXAMPLES = 2000  # training examples from which a prior may take starting values
_VERIFIED = (3, 10)  # early steps whose loss is computed eagerly too, besides one at each evaluation


@dataclass
class FitResult:
    """The result of training.

    Attributes:
        stopped_by: ``"schedule"``, ``"max_minutes"`` or ``"patience"``.
        steps: Steps done.
        epochs: Passes over the unlabelled examples (over the labelled ones when there are no others).
        train_seconds: Time in the loop, evaluations included, of the run and of those that it continues.
        config: Settings of the loop.
        metrics: One dictionary per evaluation, a row of ``metrics.csv``.
        best_step: Step of the evaluation whose weights were chosen: the latest whose score lies within one standard
            error of the best (:class:`Validation`), or the last evaluation where validation gives no score.
        last_weights: Weights of the module at the last step (averaged, where averaging is on); the module itself holds
            those of ``best_step``.
        folder: The run folder, or ``None``.
        step_mode: How steps ran at the end: ``"eager"``, ``"compiled"`` or ``"graph"``.
        why_eager: Why they ran eagerly although a faster mode was wanted, else ``None``.
    """

    stopped_by: str
    steps: int
    epochs: float
    train_seconds: float
    config: TrainingConfig
    metrics: list[dict[str, Any]] = field(repr=False)
    best_step: int
    last_weights: dict[str, Tensor] = field(repr=False)  # of thousands of lines
    folder: Path | None = None
    step_mode: str = "eager"
    why_eager: str | None = None


@checked
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
    devices: int | None = None,
) -> FitResult:
    """Train an objective on data.

    Afterwards the module has the weights, averaged where averaging is on, of the latest evaluation whose validation
    score lies within one standard error of the best (the last evaluation, where there is no score). Every random number
    of training follows from ``config.seed`` or, where that is ``None``, from ``data.seed``; the random state of the
    process is left as it was.

    Args:
        objective: The objective; its module is trained in place.
        data: The data. Test examples are not used.
        config: Settings of the loop; the defaults when ``None``.
        out: Folder of the run; nothing is written when ``None``. One process at a time works in it.
        resume: Whether to continue a run in ``out`` from its checkpoint, so that a program that is started again, by a
            user or a scheduler, does the rest; without a checkpoint the run starts. On the CPU the result equals that
            of an uninterrupted run to the last bit. Settings must be those of the run, but for ``device``, ``compile``
            and what extends it: ``max_epochs``, ``max_steps``, ``max_minutes``, ``patience``. If ``False``, a folder
            with a checkpoint is refused.
        settings: Further entries of ``config.yaml``, for example how the model was made.
        progress: Whether to show progress on standard error.
        on_evaluation: Called at every evaluation with the module, which then holds its averaged weights, and with the
            metrics: to draw figures of training, or to stop it by an exception.
        devices: Processes that train together, each with its part of every batch, on a GPU of its own or on the CPU;
            ``None`` for those that torchrun has started, or else one. They give the numbers of one process, but for
            rounding (and for Gamma, Beta, Dirichlet, Student-t and Cauchy latents of examples, which each draws for
            itself). Process 0, which is this one unless torchrun has started it, evaluates and writes files.

    Raises:
        TypeError: If an argument is of another type, such as a model in place of an objective.
        ValueError: If data, objective and settings do not fit, before anything is trained or written.
        EnumerationError: Likewise, if the guide enumerates nothing for unlabelled examples.
        StaticELBOError: Likewise, for a model and guide that only Pyro's own ELBO supports.
        NonFiniteLossError: When the loss is no longer finite; names the first bad step and the last good checkpoint.
        TrainingFailedError: When :meth:`Objective.validate` reports a failure, such as a generator that has collapsed,
            memory runs out, or one of several processes has ended. Checkpoint and model are the last that were worth
            keeping.
        RunFolderError: If the folder cannot be used, written or resumed, or another process works in it.
        KeyboardInterrupt: After Ctrl-C, once the current step is done and the state is saved.
        SystemExit: After SIGTERM, likewise, with status 143.

    Warns:
        UserWarning: If steps run eagerly although a faster mode was wanted, or for parameters that nothing trains.
    """
    if resume and out is None:
        raise ValueError("resume=True needs out=DIR, the folder of the run to continue.")
    if not (on_evaluation is None or callable(on_evaluation)):
        raise TypeError(f"{show('on_evaluation', on_evaluation)}; a function of the module and the metrics is needed.")
    if torch.is_inference_mode_enabled():
        raise ValueError("fit cannot train in torch.inference_mode(); call it outside of that block.")
    folder = RunFolder(out) if out is not None else None
    objective.check(data)
    config = settle(config or TrainingConfig(), objective, data, devices or launched()[1])
    locked = nullcontext() if folder is None or launched()[0] else folder.lock()
    with locked, processes(devices, _fit, objective, data, config, out) as ranks:
        return _fit(objective, data, config, out, ranks, on_evaluation, resume, settings or {}, progress)


def _fit(
    objective: Objective,
    data: SemiSupervisedData,
    config: TrainingConfig,
    out: str | Path | None,
    ranks: Ranks,
    on_evaluation: Callable[[Any, dict[str, Any]], None] | None = None,
    *options: Any,
) -> FitResult:
    """Train as one of the processes of a run; only the first has the folder, and the options of :meth:`Loop.train`."""
    folder = RunFolder(out) if out is not None and ranks.rank == 0 else None
    fabric, kl_weight = make_fabric(config, ranks), objective.kl_weight
    try:
        with seeded(config.seed or 0, fabric.device), ranks.joined(fabric.device), torch.enable_grad():
            loop = Loop(objective, data, config, fabric, folder, on_evaluation, ranks)
            done = loop.train(*options) if ranks.rank == 0 else loop.train(False, {}, False)
    finally:
        objective.kl_weight = kl_weight
    return replace(done, folder=None if out is None else Path(out))


@dataclass(eq=False)
class Loop:
    """State of a run and the steps over it."""

    objective: Objective
    data: SemiSupervisedData
    config: TrainingConfig
    fabric: Fabric
    folder: RunFolder | None
    on_evaluation: Callable[[Any, dict[str, Any]], None] | None
    ranks: Ranks = field(default_factory=Ranks)
    step: int = 0
    saved_step: int = 0  # of the checkpoint
    seconds: float = 0.0
    metrics: list[dict[str, Any]] = field(default_factory=list)
    best: Best = field(default_factory=Best)
    validation: Validation = field(default_factory=Validation)  # of the last evaluation
    log: TensorBoardLog | None = None

    def train(self, resume: bool, settings: dict[str, Any], progress: bool) -> FitResult:
        """Do what :func:`fit` says, with settings that are complete, a locked folder and the process seeded."""
        try:
            self._prepare()
            self._open(resume, settings)
            folder = self.folder
            log = nullcontext() if folder is None else closing(TensorBoardLog(folder.tensorboard, self.step))
            bar = ProgressReport(self.total, done=self.step, enabled=progress)
            with catch_signals() as signals, bar, log as self.log:
                stopped_by = self._run(signals, bar)
            result = self._finish(stopped_by)
        except (MemoryError, RuntimeError) as error:
            if (why := self._explain(error)) is None:
                raise
            raise TrainingFailedError(self.step, why, self._checkpoint) from error
        if stopped_by not in ("SIGINT", "SIGTERM"):
            return result
        how = "" if "command" in settings else f"; continue with resume=True, out={str(getattr(folder, 'path', ''))!r}"
        state = "The state" if self.saved_step == self.step else f"The state of step {self.saved_step}"
        saved = "" if folder is None else f" {state} is saved{how}."  # a command says by itself how to continue
        if progress or folder is not None:
            print(f"Stopped by {stopped_by} after step {self.step} of {self.total}.{saved}", file=sys.stderr)
        raise KeyboardInterrupt if stopped_by == "SIGINT" else SystemExit(143)

    def _explain(self, error: BaseException) -> str | None:
        """Return in words that another process has ended or memory has run out; ``None`` for any other error."""
        if self.ranks.size > 1 and is_lost(error):
            return f"one of the {self.ranks.size} processes that train together has ended"
        if (words := describe_memory_error(error)) is None:
            return None
        sizes = f"batch_size={self.config.batch_size}, labelled_batch_size={self.config.labelled_batch_size}"
        return f"{words}; reduce {sizes}, or hidden_dims and latent_dim of the model"

    @property
    def _checkpoint(self) -> Path | None:
        """The last checkpoint, if there is one."""
        return self.folder.checkpoint if self.folder is not None and self.folder.checkpoint.is_file() else None

    def _prepare(self) -> None:
        objective, data, config, self.seed = self.objective, self.data, self.config, self.config.seed or 0
        if isinstance(objective.module, Model):
            objective.module.fit_units(data)
            if not objective.module._initialised:
                x = sample_rows(data.x)
                order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed))
                objective.module.initialise(rescale(x[order[:_INITIAL_EXAMPLES]], data.scale))
                objective.module._initialised = True
        objective.train()
        assert config.labelled_batch_size is not None  # since `settle`
        self.ranks.copy_from_first(objective.to(self.fabric.device))
        self.stream = BatchStream(
            data,
            batch_size=config.batch_size,
            labelled_batch_size=config.labelled_batch_size,
            device=self.fabric.device,
            binarisation=config.binarisation,
            seed=self.seed,
            join_single=any(isinstance(part, _BatchNorm) and part.training for part in objective.modules()),
        )
        self.digest = digest(data)
        self.total = config.total_steps(self.stream.steps_per_epoch)
        self.interval = config.evaluation_interval(self.total)
        self.train_step = TrainingStep(objective, self.stream, config, self.fabric, self.total, self.ranks)
        self.train_step.check()

    def _open(self, resume: bool, settings: dict[str, Any]) -> None:
        """Start the run in a folder, or continue it from its checkpoint, in all processes."""
        state = None if self.folder is None else self._open_folder(self.folder, resume, settings)
        state = self.ranks.from_first(state)
        if state is not None and self.ranks.rank:
            restore(self, state)

    def _open_folder(self, folder: RunFolder, resume: bool, settings: dict[str, Any]) -> dict[str, Any] | None:
        module = self.objective.module
        config = {
            "training": asdict(self.config),
            "objective": self.objective.config(),
            **({"model": module.config()} if isinstance(module, Model) else {}),
            **settings,
        }
        state = folder.find_state(config, resume=resume)
        if state is not None:
            restore(self, state)
            before, now = state.get("processes", 1), self.ranks.size
            more = "" if before == now else f" Processes: {now}, {before} before; the same numbers but for rounding."
            print(f"Continuing the run in {folder.path} after step {self.step} of {self.total}.{more}", file=sys.stderr)
        folder.write_config(config)
        if self.data.split is not None:
            folder.write_split(self.data.split)
        return state

    def _run(self, signals: list[int], report: ProgressReport) -> str:
        """Train until the schedule, a limit or a signal ends it; return which."""
        started, before, first = time.perf_counter(), self.seconds, self.step
        while (stop := self._stop_reason(signals)) is None:
            due = (self.step + 1) % self.interval == 0 or self.step + 1 == self.total
            self.train_step(self.step, verify=due or self.step in _VERIFIED)
            self.step += 1
            report.advance()
            self.seconds = before + time.perf_counter() - started
            if self.step % _SYNCHRONISE_EVERY == 0:
                self._check_finite()
            if due:
                metrics = self._evaluate()
                report.evaluated(metrics, (self.step - first) / max(self.seconds - before, 1e-9))
                self.seconds = before + time.perf_counter() - started
                self._write()
        self._check_finite()
        state = get_state(self)  # of before the evaluation below, which a run without a limit does not have
        if not stop.startswith("SIG") and (not self.metrics or self.metrics[-1]["step"] != self.step):
            self._evaluate()
        self._write(state)
        request = self.ranks.largest(sum(signals))  # during the evaluation
        return signal.Signals(request).name if request else stop

    def _stop_reason(self, signals: list[int]) -> str | None:
        over = self.config.max_minutes is not None and self.seconds >= 60.0 * self.config.max_minutes
        request = sum(signals) or (_TIME_IS_OVER if over and self.ranks.rank == 0 else 0)
        if self.ranks.size > 1:  # reading what others want synchronises with a GPU
            wait = self.fabric.device.type == "cuda" and self.step % _READ_EVERY > 0
            request = self.ranks.agree(request, wait=wait)
        if request > _TIME_IS_OVER:
            return signal.Signals(request).name
        if self.step >= self.total:
            return "schedule"
        if request:
            return "max_minutes"
        if self.config.patience is not None and self.best.evaluations_since >= self.config.patience:
            return "patience"
        return None

    def _check_finite(self) -> None:
        bad = int(self.train_step.first_bad_step)
        if bad >= 0:
            raise NonFiniteLossError(bad, self._checkpoint)

    def _evaluate(self) -> dict[str, Any]:
        """Evaluate the averaged weights, keep them if no earlier ones are better, and stop if training has failed."""
        self._check_finite()
        if self.folder is not None:
            self.folder.check()
        metrics: dict[str, Any] = {
            "step": self.step,
            "epoch": round(self.step / self.stream.steps_per_epoch, 4),
            "seconds": round(self.seconds, 2),
            "learning_rate": self.train_step.learning_rate_at(max(0, self.step - 1)),
            **{f"train/{name}": value for name, value in self.train_step.take_means().items()},
        }
        found, module = Validation(), self.objective.module
        with self.train_step.average.applied():
            if not torch.stack([part.isfinite().all() for part in module.parameters() if part.requires_grad]).all():
                raise NonFiniteLossError(self.step, self._checkpoint, "Weights are not finite at step {}.")
            if self.ranks.rank == 0:
                options: dict[str, Any] = {"binarisation": self.config.binarisation, "seed": self.seed}
                found = self.objective.validate(self.data, history=[*self.metrics, metrics], **options)
            found, metrics = self.ranks.from_first((found, metrics))
            metrics |= {f"val/{name}": value for name, value in found.metrics.items()}
            self.validation = found
            annealing = self.objective.kl_weight != self.config.kl_weight
            chosen = found.failure is None and self.best.update(found, self.step, module, annealing=annealing)
            if chosen and found.keep:
                self._save_model()
            if self.on_evaluation is not None:
                with torch.random.fork_rng([self.fabric.device] if self.fabric.device.type == "cuda" else []):
                    self.on_evaluation(module, metrics)
        self.metrics.append(metrics)
        if self.log is not None:
            self.log.write(metrics)
        if found.failure is not None:
            if self.folder is not None:
                self.folder.write_metrics(self.metrics)
            raise TrainingFailedError(self.step, found.failure, self._checkpoint)
        return metrics

    def _save_model(self) -> None:
        if self.folder is not None and isinstance(self.objective.module, Model):
            with writing(f"the model to {self.folder.model}"):
                save(self.objective.module, self.folder.model)

    def _write(self, state: dict[str, Any] | None = None) -> None:
        """Write metrics, and the present state if it is worth keeping, or that of the end also if there is none yet."""
        if self.folder is None:
            return
        self.folder.write_metrics(self.metrics)
        if self.validation.keep or (state is not None and self._checkpoint is None):
            self.folder.write_checkpoint(get_state(self) if state is None else state)
            self.saved_step = self.step

    def _finish(self, stopped_by: str) -> FitResult:
        module = self.objective.module
        with self.train_step.average.applied():
            last = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        if self.best.weights:
            module.load_state_dict(self.best.weights)
            self._save_model()
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
            step_mode=self.train_step.mode,
            why_eager=self.train_step.why_eager,
        )
