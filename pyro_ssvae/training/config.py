"""Settings of training, whose defaults are those behind the published numbers, and the machine it runs on."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from pyro_ssvae._arguments import as_device, check_choice, checked
from pyro_ssvae._warnings import warn
from pyro_ssvae.data.preparation import BINARISATIONS

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from pyro_ssvae._ranks import Ranks
    from pyro_ssvae.data.dataset import SemiSupervisedData
    from pyro_ssvae.objectives import Objective

_LARGEST_HEAP_BLOCK = 32 * 2**20 - 2**13  # bytes; glibc returns larger ones to the system as soon as they are freed


@checked
@dataclass(frozen=True)
class TrainingConfig:
    """How to train: batches, schedule, averaging, stopping, device.

    Args:
        max_steps: Length of the schedule in optimisation steps; ``None`` is 3,000, or 64 passes over the unlabelled
            examples where that is less, but no less than 500.
        max_epochs: Length in passes over the unlabelled examples; overrides ``max_steps``.
        max_minutes: Stop after this much training time; the schedule is not shortened to fit.
        batch_size: Unlabelled examples per step.
        labelled_batch_size: Labelled examples per step; ``None`` is a hundredth of them, between 50 and 256.
        learning_rate: Peak learning rate of Adam.
        warmup_steps: Steps over which the learning rate rises linearly.
        decay_start: Fraction of the schedule after which the learning rate decays along a cosine.
        final_learning_rate: Learning rate at the end, as a fraction of the peak.
        weight_decay: Decoupled weight decay (AdamW).
        gradient_clip: Largest norm of the gradient; ``None`` for no clipping.
        kl_warmup: Fraction of the schedule over which the weight of KL(q(z|x,y) || p(z)) rises from 0 to 1; 0 for none.
            ``None`` is 0.15, or from 10,000 examples up that of :attr:`Objective.kl_schedule`, which is 0 for images of
            grey values on a plain background.
        kl_peak: Weight of that KL right after the warm-up, from which it falls linearly to 1; 1 for no peak. A peak
            keeps information about the class out of z, so that the decoder takes it from y. ``None`` is 1, or from
            10,000 examples up that of the objective: 8, 30 for images of grey values on a plain background, and 1 for
            models without classes.
        kl_anneal_end: Fraction of the schedule after which the weight stays 1.
        kl_weight: Factor of this schedule, and so the weight of the KL at its end; 1 for a bound on log p(x), more for
            a β-VAE, whose weight is constant with ``kl_warmup=0`` and ``kl_peak=1``.
        ema_decay: Decay per step of the moving average of the weights that is evaluated and saved; 0 for none.
        patience: Stop after this many evaluations without a better score on validation examples (the error; for models
            without classes the bound); ``None`` to finish the schedule.
        evaluate_every: Steps between evaluations, each of which also writes a checkpoint; ``None`` is 250, or fewer, so
            that a shorter schedule has 10 evaluations, or more, so that a longer one has 40.
        binarisation: ``"none"``, ``"dynamic"`` (drawn anew each time an example is used), ``"static"`` (drawn once) or
            ``"threshold"`` (above 0.5). With ``"none"``, the Bernoulli log-likelihood of
            grey values is the mean of that under dynamic binarisation, without its noise.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        compile: How steps run. ``"auto"``: captured as a CUDA graph on a GPU; on the CPU compiled by Inductor where
            the schedule is long enough for that to pay (:attr:`Objective.compile_after`: 10,000 steps at ten classes,
            fewer with more) and there is a C++ compiler; else eagerly. Or name one: ``"graph"``, ``"compiled"``,
            ``"eager"``.
        precision: A precision of Lightning Fabric: ``"32-true"``, ``"bf16-mixed"``, ``"16-mixed"`` or ``"64-true"``.
        seed: Seed of every random number drawn during training; ``None`` is that of the data.

    Raises:
        TypeError: For a value of the wrong type, or an unknown setting.
        ValueError: For a value outside its range; the message names the range.
    """

    max_steps: int | None = None
    max_epochs: int | None = None
    max_minutes: float | None = None
    batch_size: int = 128
    labelled_batch_size: int | None = None
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    decay_start: float = 0.4
    final_learning_rate: float = 0.02
    weight_decay: float = 0.0
    gradient_clip: float | None = None
    kl_warmup: float | None = None
    kl_peak: float | None = None
    kl_anneal_end: float = 0.5
    kl_weight: float = 1.0
    ema_decay: float = 0.998
    patience: int | None = None
    evaluate_every: int | None = None
    binarisation: str = "none"
    device: str = "auto"
    compile: str = "auto"
    precision: str = "32-true"
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check what depends on several values, and names; the decorator checks single numbers."""
        if self.kl_anneal_end < (self.kl_warmup or 0.0):
            raise ValueError(f"kl_anneal_end={self.kl_anneal_end} must not be less than kl_warmup={self.kl_warmup}.")
        check_choice("binarisation", self.binarisation, BINARISATIONS)
        check_choice("compile", self.compile, ("auto", "eager", "compiled", "graph"))
        check_choice("precision", self.precision, ("32-true", "bf16-mixed", "16-mixed", "64-true"))

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the length of the schedule in steps."""
        if self.max_epochs is not None:
            return self.max_epochs * steps_per_epoch
        return max(500, min(3000, 64 * steps_per_epoch)) if self.max_steps is None else self.max_steps

    def evaluation_interval(self, total: int) -> int:
        """Return the steps between evaluations of a schedule of ``total`` steps."""
        return self.evaluate_every or max(1, total // 40, min(250, total // 10))

    def learning_rate_at(self, step: int, total: int) -> float:
        """Return the learning rate of step ``step`` (from 0) of ``total``: warm-up, constant, cosine."""
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))
        progress = (step + 1) / total
        if progress <= self.decay_start:
            return rate
        phase = (progress - self.decay_start) / (1.0 - self.decay_start)
        return rate * (
            self.final_learning_rate + (1.0 - self.final_learning_rate) * 0.5 * (1.0 + math.cos(math.pi * phase))
        )

    def kl_weight_at(
        self, step: int, total: int, num_examples: int, *, schedule: tuple[float, float] = (0.15, 8.0)
    ) -> float:
        """Return the weight of the KL of z in step ``step`` (from 0) of ``total``.

        The schedule is that of the objective: warm-up and peak, from 10,000 examples up and unless they are set here.
        """
        progress = (step + 1) / total
        warmup, peak = schedule if num_examples >= 10_000 else (0.15, 1.0)
        warmup = min(warmup, self.kl_anneal_end) if self.kl_warmup is None else self.kl_warmup
        peak = peak if self.kl_peak is None else self.kl_peak
        if progress < warmup:
            return self.kl_weight * progress / warmup
        if progress >= self.kl_anneal_end or peak == 1.0:
            return self.kl_weight
        fallen = (progress - warmup) / (self.kl_anneal_end - warmup)
        return self.kl_weight * (peak + (1.0 - peak) * fallen)


def settle(
    config: TrainingConfig, objective: Objective, data: SemiSupervisedData, processes: int = 1
) -> TrainingConfig:
    """Return the settings with what data and objective add; raise ``ValueError`` for those that have no effect here."""
    if config.labelled_batch_size is None:
        share = data.num_labelled // 200 * 2  # even, for two processes
        config = replace(config, labelled_batch_size=max(50, min(256, share)))
    name = "batch_size" if data.num_unlabelled else "labelled_batch_size"
    size = getattr(config, name)
    if size % processes and size <= (data.num_unlabelled or data.num_labelled):
        raise ValueError(f"{name}={size} is not a multiple of {processes} processes; choose one that is.")
    if config.seed is None:
        config = replace(config, seed=data.seed)
    if objective.kl_weight != 1.0:
        if config.kl_weight not in (1.0, objective.kl_weight):
            raise ValueError(
                f"kl_weight={config.kl_weight} differs from objective.kl_weight={objective.kl_weight}; set one of them."
            )
        config = replace(config, kl_weight=objective.kl_weight)
    if config.kl_weight != 1.0 and not objective.has_bound:
        raise ValueError(
            f"kl_weight={config.kl_weight} has no effect: the objective contains no bound, and no KL of z."
        )
    options: dict[str, Any] = {"binarisation": config.binarisation, "seed": config.seed}
    if config.patience is not None and objective.validate(data, **options).score is None:
        raise ValueError(
            f"patience={config.patience} needs a score on validation examples, and {type(objective).__name__} gives "
            "none here: give the data x_validation (and y_validation, where there are classes), or leave patience out."
        )
    return config


def has_bf16() -> bool:
    """Whether this CPU multiplies in bf16, as those with AVX-512 BF16, AMX or Arm's BF16 extension do."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a build of PyTorch without oneDNN
        return False


def raise_mmap_threshold() -> None:
    """Let the C library keep the memory that a step frees, instead of returning it to the system.

    glibc adapts its threshold: once a block of almost 32 MiB has been freed, blocks up to that size come from its heap,
    and the free end of the heap is returned only from twice that size on (``M_MMAP_THRESHOLD`` in ``mallopt(3)``).
    Otherwise every step requests the same pages from the system again, which takes a tenth of its time on a CPU. With
    other C libraries this has no effect.
    """
    torch.empty(_LARGEST_HEAP_BLOCK, dtype=torch.uint8)


def describe_memory_error(error: BaseException) -> str | None:
    """Return in words how much memory was missing; ``None`` for any other error."""
    text = str(error)
    if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in text:
        return None
    asked = re.search(r"allocate ([\d.]+) ?(bytes|[KMGT]i?B)", text)
    if asked is None:
        return "out of memory"
    number, unit = asked.groups()
    more = f"{float(number) / 2**30:.2f} GiB" if unit == "bytes" else f"{number} {unit}"
    return f"out of memory ({more} more needed)"


def make_fabric(config: TrainingConfig, ranks: Ranks | None = None) -> Fabric:
    """Return a Fabric for the device of this process and the chosen precision, or raise ``ValueError``."""
    from lightning_fabric import Fabric  # takes seconds to import

    device = as_device(config.device)
    if ranks is not None and ranks.size > 1 and device.type == "cuda":
        number = int(os.environ.get("LOCAL_RANK", ranks.rank))
        if ":" in config.device or number >= torch.cuda.device_count():
            raise ValueError(
                f"device={config.device!r}: {ranks.size} processes need a GPU each, and there are "
                f"{torch.cuda.device_count()}. Use device='cuda' with as many GPUs as processes, or device='cpu'."
            )
        device = torch.device("cuda", number)
    if device.type == "cpu" and config.precision == "16-mixed":
        raise ValueError("precision='16-mixed' needs a GPU; on the CPU use 32-true, or bf16-mixed where it has bf16.")
    if device.type == "cpu" and config.precision == "bf16-mixed" and not has_bf16():
        warn(
            "This CPU has no bf16 arithmetic: PyTorch emulates it, about ten times slower than float32. Use "
            "precision='32-true' (--precision 32-true) here."
        )
    devices = [device.index or 0] if device.type == "cuda" else 1
    precision: Any = config.precision  # checked by TrainingConfig
    return Fabric(accelerator=device.type, devices=devices, precision=precision)
