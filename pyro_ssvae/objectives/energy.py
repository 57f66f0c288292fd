"""Training an energy model and a generator in :func:`pyro_ssvae.fit`, by alternating updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_ssvae._arguments import checked
from pyro_ssvae.data import Batch
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.storage import sample_rows
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.models.diagnostics import NUM_DIAGNOSED, classification_error, energy_diagnostics
from pyro_ssvae.objectives.base import Loss, Objective, ParameterGroup, PyroFunction, Update, Validation
from pyro_ssvae.objectives.energy_losses import EnergyLoss
from pyro_ssvae.objectives.energy_terms import Entropy, make_entropy

_ADAM_BETAS = (0.5, 0.999)
_MIN_STD_RATIO = 0.05  # standard deviation of samples over that of the data
_PATIENCE = 5  # consecutive evaluations below it; at the start of training a generator may have few modes
_MAX_ENERGY_GAP = 1e4  # nats between mean energies of data and samples
_MAX_ENERGY = 1e6  # nats, of data: float32 does not resolve differences between such numbers


@checked
class EnergyObjective(Objective):
    """The objective with which :func:`pyro_ssvae.fit` trains a DDGM: energy and generator, in alternation.

    Each step is one update of the energy, and then ``generator_steps`` updates of the generator. Training stops with
    :class:`~pyro_ssvae.errors.TrainingFailedError` if the generator collapses or the energies diverge.

    Args:
        module: The model, a :class:`pyro_ssvae.DDGM`.
        num_unlabelled: Number of unlabelled training examples.
        num_labelled: Number of labelled ones, which need a model with classes. They train p(y|x), and are the data of
            L_E too if every example is labelled.
        entropy: ``"batch_norm"``, ``"nearest_neighbour"``, or an :class:`~pyro_ssvae.objectives.Entropy`.
        generator_rate: Learning rate of the generator, as a multiple of the energy's.
        generator_steps: Updates of the generator for each update of the energy.
        shared_draws: Whether the first update of the generator reuses the samples of the energy's update, which saves
            one pass through the generator.
        mle_fraction: Fraction of the schedule, at its end, in which only the energy is trained, by the
            importance-weighted gradient of the likelihood, with a learning rate schedule of its own; for data of few
            dimensions.
        model: A function ``(x, y=None, *, size=None)`` to use instead of ``module.model``, with a site ``"energy"``.
        guide: A function ``(x, *, size=None)`` to use instead of ``module.guide``; it returns samples.
        **terms: Further arguments of :class:`~pyro_ssvae.objectives.EnergyLoss`, from ``alpha`` to ``max_shift``.

    Raises:
        ValueError: For numbers out of range, or labelled examples for a model without classes.
        TypeError: If the module is no :class:`pyro_ssvae.DDGM`, or for an unknown argument.
    """

    has_bound = False
    compile_after = 5000  # most of an eager step of small networks is Python

    def __init__(
        self,
        module: DDGM,
        *,
        num_unlabelled: int,
        num_labelled: int = 0,
        entropy: str | Entropy = "nearest_neighbour",
        generator_rate: float = 3.0,
        generator_steps: int = 2,
        shared_draws: bool = False,
        mle_fraction: float = 0.0,
        model: PyroFunction | None = None,
        guide: PyroFunction | None = None,
        **terms: Any,
    ) -> None:
        if not hasattr(module, "energy"):
            raise TypeError(f"EnergyObjective trains a DDGM, not {type(module).__name__}.")
        counts = {"num_labelled": num_labelled, "num_unlabelled": num_unlabelled}
        super().__init__(module, **counts, model=model, guide=guide)
        self.compilable = not shared_draws  # they keep the graph of one update for the next
        if num_labelled and module.num_classes is None:
            raise ValueError(
                f"{num_labelled} examples are labelled, and the model has no classes: build DDGM(..., num_classes=K), "
                "or train on data.without_labels()."
            )
        estimate = make_entropy(entropy, module.latent_dim, module.event_shape)
        self.energy_loss_fn = EnergyLoss(estimate, module.generator, **terms)
        self.generator_rate, self.generator_steps = generator_rate, generator_steps
        self.shared_draws, self.mle_fraction = shared_draws, mle_fraction
        self._samples: Tensor | None = None  # from the energy's update to the generator's, if draws are shared

    @classmethod
    @checked
    def for_data(cls, module: DDGM, data: SemiSupervisedData, **options: Any) -> EnergyObjective:
        """Return the objective for a model and data; labelled examples need a model with classes."""
        return cls(module, num_unlabelled=data.num_unlabelled, num_labelled=data.num_labelled, **options)

    def config(self) -> dict[str, Any]:
        """Return every setting, JSON-ready, for results."""
        names = ("generator_rate", "generator_steps", "shared_draws", "mle_fraction")
        return {**self.energy_loss_fn.config(), **{name: getattr(self, name) for name in names}}

    def groups(self) -> dict[str, ParameterGroup]:
        """Return the parameters of energy and generator, with the settings of their optimisers."""
        module: Any = self.module
        rates = {"energy": 1.0, "generator": self.generator_rate}
        fraction = 1.0 - self.mle_fraction
        groups = module.groups().items()
        return {name: ParameterGroup(group, rates[name], _ADAM_BETAS, fraction) for name, group in groups if group}

    def updates(self, progress: float = 0.0) -> list[Update]:
        """Return the updates of one step, in order, at a fraction of the schedule in [0, 1)."""
        if progress >= 1.0 - self.mle_fraction:
            return [Update("energy", self._mle_loss)]
        return [
            Update("energy", self._energy_loss),
            *self.generator_steps * [Update("generator", self._generator_loss)],
        ]

    def _energy_loss(self, batch: Batch, importance_weighted: bool = False) -> Loss:
        x = _examples(batch)
        labelled = () if batch.x_labelled is None else (batch.x_labelled, batch.y_labelled)
        self._samples = self.guide(x) if self.shared_draws and not importance_weighted else None
        return self.energy_loss_fn.energy_loss(
            self.model, self.guide, x, *labelled, samples=self._samples, importance_weighted=importance_weighted
        )

    def _mle_loss(self, batch: Batch) -> Loss:
        return self._energy_loss(batch, importance_weighted=True)

    def _generator_loss(self, batch: Batch) -> Loss:
        samples, self._samples = self._samples, None
        return self.energy_loss_fn.generator_loss(self.model, self.guide, _examples(batch), samples=samples)

    def validate(
        self,
        data: SemiSupervisedData,
        *,
        history: Sequence[dict[str, Any]] = (),
        binarisation: str = "none",
        seed: int = 0,
    ) -> Validation:
        """Compare the energies of data and samples, and check for failures.

        Without validation examples, up to 1,000 training examples are used. The latest weights are chosen.
        """
        x = data.x_validation
        model: Any = self.module
        if not len(x):
            x = sample_rows(data.x)
            x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:NUM_DIAGNOSED]]
        metrics = energy_diagnostics(model, x[:NUM_DIAGNOSED], scale=data.scale, seed=seed)
        if model.num_classes is not None:
            error = classification_error(model, data.x_validation, data.y_validation, scale=data.scale)
            metrics = metrics if error is None else {"error": error, **metrics}
        newest = {**(history[-1] if history else {}), **{f"val/{name}": value for name, value in metrics.items()}}
        evaluations = [*history[:-1], newest]
        return Validation(metrics, failure=find_failure(evaluations), keep=not has_collapsed(evaluations))


def find_failure(history: Sequence[dict[str, float]]) -> str | None:
    """Return why the training of an energy model must stop, or ``None`` if it may go on.

    Training has failed if the standard deviation of samples was below 5 % of that of the data in five consecutive
    evaluations, if the mean energies of data and samples differ by more than 10,000 nats, or if the mean energy of data
    is beyond a million nats.

    Args:
        history: Values of the evaluations so far, the newest last, by the names ``"val/std_ratio"``,
            ``"train/energy_gap"`` and ``"train/energy_data"``; missing ones are not checked.
    """
    recent = history[-_PATIENCE:]
    if len(recent) == _PATIENCE and all(has_collapsed([values]) for values in recent):
        return (
            f"the generator has collapsed: its samples have {recent[-1]['val/std_ratio']:.2%} of the standard "
            "deviation of the data. A larger entropy_weight, another entropy, or a slower generator often helps"
        )
    newest = history[-1] if history else {}
    gap, energy = abs(newest.get("train/energy_gap", 0.0)), abs(newest.get("train/energy_data", 0.0))
    if gap > _MAX_ENERGY_GAP:
        far = f"data and samples are {gap:.3g} nats apart"
    elif energy > _MAX_ENERGY:
        far = f"those of data are {energy:.3g} nats away from 0"
    else:
        return None
    return f"energies diverge: {far}. A lower learning rate or a larger gradient_penalty often helps"


def has_collapsed(history: Sequence[dict[str, float]]) -> bool:
    """Return whether the newest samples have less than 5 % of the standard deviation of the data."""
    return bool(history) and history[-1].get("val/std_ratio", 1.0) < _MIN_STD_RATIO


def _examples(batch: Batch) -> Tensor:
    x = batch.x_labelled if batch.x_unlabelled is None else batch.x_unlabelled
    assert x is not None  # a batch is never empty
    return x
