"""Training an energy model and a generator in :func:`pyro_ssvae.fit`, which steps them in turn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_ssvae.data import Batch, SemiSupervisedData
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.objectives.alternating import AlternatingObjective, Group, Turn
from pyro_ssvae.objectives.base import PyroFunction
from pyro_ssvae.objectives.energy_loss import EnergyLoss
from pyro_ssvae.objectives.entropy import Entropy, make_entropy

__all__ = ["EnergyObjective"]

_LEAST_SPREAD = 0.05  # of samples, as a share of that of the data
_PATIENCE = 5  # evaluations in a row with less; a generator may start out narrow
_LARGEST_GAP = 1e4  # nats between energies of data and samples
_LARGEST_ENERGY = 1e6  # nats, of data: differences of such numbers are hardly numbers in single precision


class EnergyObjective(AlternatingObjective):
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

    _narrow: Tensor

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
        if num_labelled and module.num_classes is None:
            raise ValueError(
                f"{num_labelled} rows carry labels, and the model has no classes: DDGM(..., num_classes=K), or train "
                "on data.without_labels()."
            )
        # Evaluations in a row that found next to no spread.
        self.register_buffer("_narrow", torch.zeros((), dtype=torch.int64))
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

    @classmethod
    def for_data(cls, module: DDGM, data: SemiSupervisedData, **options: Any) -> EnergyObjective:
        """Return the objective for a model and data; labels need a model with classes."""
        return cls(module, num_unlabelled=data.num_unlabelled, num_labelled=data.num_labelled, **options)

    def config(self) -> dict[str, Any]:
        """Return every setting, JSON-ready, for results."""
        names = ("energy_steps", "generator_rate", "generator_steps", "critic_rate", "mle_fraction", "betas")
        found = {**self.energy_loss_fn.config(), **{name: getattr(self, name) for name in names}}
        return found | ({"shared_draws": True} if self.shared_draws else {})

    def groups(self) -> dict[str, Group]:
        """Return the parameters that step together, with the learning rate of each group relative to the energy's."""
        module: Any = self.module
        sides = module.groups() | {"critic": list(self.entropy.parameters())}
        rates = {"energy": 1.0, "generator": self.generator_rate, "critic": self.critic_rate}
        share = 1.0 - self.mle_fraction
        return {name: Group(part, rates[name], self.betas, share) for name, part in sides.items() if part}

    def problem(self, row: dict[str, Any]) -> str | None:
        """Return whether the generator has collapsed or energies diverge; ``None`` if neither."""
        ratio, size = row.get("std_ratio", 1.0), abs(row.get("energy_gap", 0.0))
        level = abs(row.get("energy_data", 0.0))
        self._narrow.copy_(self._narrow + 1 if ratio < _LEAST_SPREAD else torch.zeros_like(self._narrow))
        if self._narrow >= _PATIENCE:
            return (
                f"the generator has collapsed: its rows have {ratio:.2%} of the spread of the data. A larger "
                "entropy_weight, another entropy, or a slower generator often helps"
            )
        if size > _LARGEST_GAP:
            return (
                f"energies diverge: data and samples are {size:.3g} nats apart. A lower learning rate, a larger "
                "gradient_penalty or an energy_penalty often helps"
            )
        if level > _LARGEST_ENERGY:
            return (
                f"energies diverge: those of data are {level:.3g} nats away from 0. A small energy_penalty keeps them "
                "where they are"
            )
        return None

    @property
    def doubtful(self) -> bool:
        """Whether the last evaluation found next to no spread among generated rows."""
        return bool(self._narrow)

    def turns(self, progress: float = 0.0) -> list[Turn]:
        """Return the energy's steps, and then those of the generator, each with one of the entropy's networks."""
        if progress >= 1.0 - self.mle_fraction:
            return self.energy_steps * [Turn("energy", self._settling_loss)]
        after = [Turn("generator", self._generator_loss)]
        if next(self.entropy.parameters(), None) is not None:
            after.append(Turn("critic", self._critic_loss))
        turns = [*(self.energy_steps * [Turn("energy", self._energy_loss)]), *(self.generator_steps * after)]
        if self.shared_draws:
            turns[self.energy_steps] = Turn("generator", self._generator_loss, continues=True)
        return turns

    def _energy_loss(self, batch: Batch) -> Tensor:
        if self.shared_draws:
            self._drawn = self.energy_loss_fn.draw(self.guide, _rows(batch))
        return self._loss_of_energy(self.energy_loss_fn, batch, self._drawn)

    def _settling_loss(self, batch: Batch) -> Tensor:
        return self._loss_of_energy(self.energy_loss_fn.weighing(), batch, None)

    def _loss_of_energy(self, elbo: EnergyLoss, batch: Batch, drawn: tuple[Tensor, Tensor] | None) -> Tensor:
        labelled = () if batch.x_labelled is None else (batch.x_labelled, batch.y_labelled)
        loss, self.latest = elbo.energy_loss(self.model, self.guide, _rows(batch), *labelled, drawn=drawn)
        return loss

    def _generator_loss(self, batch: Batch) -> Tensor:
        drawn, self._drawn = self._drawn, None
        loss, self.latest = self.energy_loss_fn.generator_loss(self.model, self.guide, _rows(batch), drawn=drawn)
        return loss

    def _critic_loss(self, batch: Batch) -> Tensor:
        loss = self.energy_loss_fn.critic_loss(self.guide, _rows(batch))
        assert loss is not None
        self.latest = {"critic_loss": loss.detach()}
        return loss


def _rows(batch: Batch) -> Tensor:
    rows = batch.x_labelled if batch.x_unlabelled is None else batch.x_unlabelled
    assert rows is not None  # a batch is never empty
    return rows
