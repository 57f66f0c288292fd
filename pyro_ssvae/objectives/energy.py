"""Training an energy model and a generator in :func:`pyro_ssvae.fit`, which steps them in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_ssvae.data import Batch, SemiSupervisedData
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.models.diagnostics import NUM_DIAGNOSED, classification_error, energy_diagnostics
from pyro_ssvae.objectives.base import Loss, Objective, ParameterGroup, PyroFunction, Update, Validation
from pyro_ssvae.objectives.energy_loss import EnergyLoss
from pyro_ssvae.objectives.entropy import Entropy, make_entropy

__all__ = ["EnergyObjective"]

_LEAST_SPREAD = 0.05  # of samples, as a share of that of the data
_PATIENCE = 5  # evaluations in a row with less; a generator may start out narrow
_LARGEST_GAP = 1e4  # nats between energies of data and samples
_LARGEST_ENERGY = 1e6  # nats, of data: differences of such numbers are hardly numbers in single precision


class EnergyObjective(Objective):
    """What :func:`pyro_ssvae.fit` trains a DDGM with: energy, generator and the entropy's critic step in turn.

    Args:
        module: The model, a :class:`pyro_ssvae.DDGM`.
        num_unlabelled: Number of training rows without a label.
        num_labelled: Number of those with one, which need a model with classes. They train the energies of classes, and
            are data for L_E too where every row has a label.
        elbo: The objective itself, for example one that has been used with ``pyro.infer.SVI``; built from ``entropy``
            and ``options`` when ``None``.
        entropy: A name in ``pyro_ssvae.objectives.ENTROPIES``, or an estimate.
        generator_rate: Learning rate of the generator, as a multiple of that of the energy; it should be the faster.
        energy_steps: Steps of the energy for each batch.
        generator_steps: Steps of the generator after these.
        critic_rate: Learning rate of the entropy's own networks, as a multiple of that of the energy.
        shared_draws: Whether the generator's first step takes the rows on which the energy was raised just before it,
            instead of draws of its own: one pass of the generator less.
        mle_fraction: Share of the schedule, at its end, in which only the energy steps, by the gradient of the likelihood
            (:meth:`EnergyLoss.weighing`), at a learning rate that begins anew; for rows of few numbers.
        betas: Of Adam, for all.
        model: A function ``(x, y=None, *, size=None)`` to use instead of ``module.model``: it scores rows at the site
            ``"energy"``.
        guide: A function ``(x, *, size=None)`` to use instead of ``module.guide``: it draws z at the site ``"z"`` and
            returns generated rows.
        **options: Of :class:`EnergyLoss`.

    Raises:
        ValueError: For negative weights, numbers that are not positive, or settings of an ``elbo`` that is given.
        TypeError: If the module is no :class:`pyro_ssvae.DDGM`.

    Training stops with :class:`~pyro_ssvae.TrainingFailedError` where the spread of generated rows stays below 5 % of
    that of the data for five evaluations, and where energies of data and samples lie more than 10,000 nats apart, or
    from 0 by a million: by :meth:`problem`, which a subclass may define anew.

    Attributes:
        latest: Terms of the last loss, detached, in nats. Of the energy's: mean energies of data and samples and their
            gap, and with their weights the norm of the energy's gradient on data, the contrast and the cross-entropy.
            Of the generator's: the entropy, and the spread of samples (the root of their total variance).
    """

    def __init__(
        self,
        module: DDGM,
        *,
        num_unlabelled: int,
        num_labelled: int = 0,
        elbo: EnergyLoss | None = None,
        entropy: str | Entropy | None = None,
        generator_rate: float = 3.0,
        energy_steps: int = 1,
        generator_steps: int = 2,
        critic_rate: float = 1.0,
        shared_draws: bool = False,
        mle_fraction: float = 0.0,
        betas: tuple[float, float] = (0.5, 0.999),
        model: PyroFunction | None = None,
        guide: PyroFunction | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(module, DDGM):
            raise TypeError(f"EnergyObjective trains a DDGM, not {type(module).__name__}.")
        counts = {"num_labelled": num_labelled, "num_unlabelled": num_unlabelled}
        super().__init__(module, **counts, model=model, guide=guide)
        if num_labelled and not module.has_classes:
            raise ValueError(
                f"{num_labelled} rows carry labels, and the model has no classes: DDGM(..., num_classes=K), or train "
                "on data.without_labels()."
            )
        if not (generator_rate > 0.0 and critic_rate > 0.0) or min(energy_steps, generator_steps) < 1:
            raise ValueError(
                f"generator_rate={generator_rate} and critic_rate={critic_rate} must be positive, and energy_steps="
                f"{energy_steps} and generator_steps={generator_steps} at least 1."
            )
        if not 0.0 <= mle_fraction < 1.0:
            raise ValueError(f"mle_fraction={mle_fraction} must lie in [0, 1).")
        if elbo is None:
            made = make_entropy(
                "nearest_neighbour" if entropy is None else entropy, module.latent_dim, module.event_shape
            )
            elbo = EnergyLoss(made, module.generator, **options)
        elif entropy is not None or options:
            raise ValueError(f"elbo= is given, so {', '.join(['entropy', *options])} must be set there, not here.")
        self.entropy, self.energy_loss_fn, self.mle_fraction = elbo.entropy, elbo, mle_fraction
        self.energy_steps, self.generator_steps = energy_steps, generator_steps
        self.generator_rate, self.critic_rate, self.betas = generator_rate, critic_rate, betas
        self.shared_draws = shared_draws
        self._drawn: tuple[Tensor, Tensor] | None = None  # for the turn after the energy's

    @property
    def has_bound(self) -> bool:
        """There is no bound of log p(x)."""
        return False

    @property
    def compile_after(self) -> int:
        """Networks are small here, so most of an eager step is overhead of Python."""
        return 5000

    @property
    def compilable(self) -> bool:
        """Shared draws keep the graph of one update for the next, so the updates cannot be compiled one by one."""
        return not self.shared_draws

    @classmethod
    def for_data(cls, module: DDGM, data: SemiSupervisedData, **options: Any) -> EnergyObjective:
        """Return the objective for a model and data; labels need a model with classes."""
        return cls(module, num_unlabelled=data.num_unlabelled, num_labelled=data.num_labelled, **options)

    def config(self) -> dict[str, Any]:
        """Return every setting, JSON-ready, for results."""
        names = ("energy_steps", "generator_rate", "generator_steps", "critic_rate", "mle_fraction", "betas")
        found = {**self.energy_loss_fn.config(), **{name: getattr(self, name) for name in names}}
        return found | ({"shared_draws": True} if self.shared_draws else {})

    def groups(self) -> dict[str, ParameterGroup]:
        """Return the parameters that step together, with the learning rate of each group relative to the energy's."""
        module: Any = self.module
        sides = module.groups() | {"critic": list(self.entropy.parameters())}
        rates = {"energy": 1.0, "generator": self.generator_rate, "critic": self.critic_rate}
        share = 1.0 - self.mle_fraction
        return {name: ParameterGroup(part, rates[name], self.betas, share) for name, part in sides.items() if part}

    def validate(
        self,
        data: SemiSupervisedData,
        *,
        history: Sequence[dict[str, Any]] = (),
        binarisation: str = "none",
        seed: int = 0,
    ) -> Validation:
        """Compare energies and standard deviations of data and samples; report collapse and divergence as failures."""
        x = data.x_validation
        model: Any = self.module
        few = x[:NUM_DIAGNOSED]
        if not len(x):
            order = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(seed))
            few = data.x[order[:NUM_DIAGNOSED]]
        metrics = energy_diagnostics(model, few, scale=data.scale, seed=seed)
        if model.has_classes and len(x):
            error = classification_error(model, x, data.y_validation, scale=data.scale)
            metrics = {"error": error, **metrics} if error is not None else metrics
        history = [*history[:-1], {**(history[-1] if history else {}), **{f"val/{k}": v for k, v in metrics.items()}}]
        return Validation(metrics, failure=_find_failure(history), keep=_count_collapsed(history) == 0)

    def updates(self, progress: float = 0.0) -> list[Update]:
        """Return the energy's steps, and then those of the generator, each with one of the entropy's networks."""
        if progress >= 1.0 - self.mle_fraction:
            return self.energy_steps * [Update("energy", self._mle_loss)]
        after = [Update("generator", self._generator_loss)]
        if next(self.entropy.parameters(), None) is not None:
            after.append(Update("critic", self._critic_loss))
        return [*(self.energy_steps * [Update("energy", self._energy_loss)]), *(self.generator_steps * after)]

    def _energy_loss(self, batch: Batch) -> Loss:
        if self.shared_draws:
            self._drawn = self.energy_loss_fn.draw(self.guide, _rows(batch))
        return self._loss_of_energy(self.energy_loss_fn, batch, self._drawn)

    def _mle_loss(self, batch: Batch) -> Loss:
        return self._loss_of_energy(self.energy_loss_fn.weighing(), batch, None)

    def _loss_of_energy(self, elbo: EnergyLoss, batch: Batch, drawn: tuple[Tensor, Tensor] | None) -> Loss:
        labelled = () if batch.x_labelled is None else (batch.x_labelled, batch.y_labelled)
        return Loss(*elbo.energy_loss(self.model, self.guide, _rows(batch), *labelled, drawn=drawn))

    def _generator_loss(self, batch: Batch) -> Loss:
        drawn, self._drawn = self._drawn, None
        return Loss(*self.energy_loss_fn.generator_loss(self.model, self.guide, _rows(batch), drawn=drawn))

    def _critic_loss(self, batch: Batch) -> Loss:
        loss = self.energy_loss_fn.critic_loss(self.guide, _rows(batch))
        assert loss is not None
        return Loss(loss, {"critic_loss": loss.detach()})


def _count_collapsed(history: Sequence[dict[str, Any]]) -> int:
    count = 0
    for metrics in reversed(history):
        if not metrics.get("val/std_ratio", 1.0) < _LEAST_SPREAD:
            break
        count += 1
    return count


def _find_failure(history: Sequence[dict[str, Any]]) -> str | None:
    newest = history[-1]
    gap, level = abs(newest.get("train/energy_gap", 0.0)), abs(newest.get("train/energy_data", 0.0))
    if _count_collapsed(history) >= _PATIENCE:
        return (
            f"the generator has collapsed: its samples have {newest['val/std_ratio']:.2%} of the standard deviation of "
            "the data. A larger entropy_weight, another entropy, or a slower generator often helps"
        )
    if gap > _LARGEST_GAP:
        return (
            f"energies diverge: data and samples are {gap:.3g} nats apart. A lower learning rate or a larger "
            "gradient_penalty often helps"
        )
    if level > _LARGEST_ENERGY:
        return f"energies diverge: those of data are {level:.3g} nats away from 0. A lower learning rate often helps"
    return None


def _rows(batch: Batch) -> Tensor:
    rows = batch.x_labelled if batch.x_unlabelled is None else batch.x_unlabelled
    assert rows is not None  # a batch is never empty
    return rows
