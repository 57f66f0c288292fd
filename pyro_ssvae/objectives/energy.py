r"""Training an energy model and a generator against each other, as a Pyro objective and for :func:`pyro_ssvae.fit`.

The energy model maximises the likelihood of the data, with the generator's rows in place of its own:

.. math:: L_E = \mathbb E_{x \sim \text{data}}[E(x)] - \mathbb E_z[E(G(z))]

The generator minimises its divergence from the energy model:

.. math:: L_G = \mathrm{KL}(P_G \| P_E) - \log Z = \mathbb E_z[E(G(z))] - H(P_G)

Reference: Deep Directed Generative Models with Energy-Based Probability Estimation (Kim & Bengio, 2016),
https://arxiv.org/abs/1606.03439, equations 8 to 11.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_ssvae.data import Batch, SemiSupervisedData
from pyro_ssvae.models.base import declare_parameters
from pyro_ssvae.models.ddgm import DDGM, langevin
from pyro_ssvae.objectives.alternating import AlternatingObjective, Group, Turn
from pyro_ssvae.objectives.contrast import FadedContrast
from pyro_ssvae.objectives.entropy import Entropy, make_entropy

__all__ = ["EnergyELBO", "EnergyObjective"]

_LEAST_SPREAD = 0.05  # of samples, as a share of that of the data
_PATIENCE = 5  # evaluations in a row with less; a generator may start out narrow
_LARGEST_GAP = 1e4  # nats between energies of data and samples


class EnergyELBO(ELBO):
    r"""A custom objective of ``pyro.infer.SVI`` for energies and generators.

    The model scores rows by a site ``pyro.factor("energy", -E(x))`` in a plate over rows; the guide draws z at a site
    ``"z"`` and returns generated rows. What the energy of data depends on is trained by L_E, all else by L_G.

    Args:
        entropy: Estimates H(P_G); its own networks are trained along.
        generator: The generator, for estimates that read it.
        entropy_weight: Factor of the entropy.
        gradient_penalty: Weight γ of :math:`\tfrac\gamma2 \mathbb E\|\nabla E(x)\|^2` on data, which keeps the energy
            smooth there (Which Training Methods for GANs do actually Converge?, Mescheder et al., 2018).
        energy_penalty: Weight of the mean square of energies, of data and samples alike, which keeps their size down.
        langevin_steps: Steps by which generated rows follow the energy before it is raised on them.
        langevin_step_size: Of these.
        contrast_weight: Weight of the energy on copies of data that have lost their content
            (:class:`~pyro_ssvae.objectives.FadedContrast`), for images.

    Example:
        >>> import pyro, torch
        >>> from pyro.infer import SVI
        >>> from pyro_ssvae import DDGM, pyro_view
        >>> from pyro_ssvae.objectives import NearestNeighbourEntropy
        >>> ddgm = DDGM((2,))
        >>> elbo = EnergyELBO(NearestNeighbourEntropy(), ddgm.generator)
        >>> svi = SVI(*pyro_view(ddgm), pyro.optim.Adam({"lr": 2e-4, "betas": (0.5, 0.999)}), elbo)
        >>> loss = svi.step(torch.randn(50, 2))
    """

    def __init__(
        self,
        entropy: Entropy,
        generator: nn.Module,
        *,
        entropy_weight: float = 1.0,
        gradient_penalty: float = 0.0,
        energy_penalty: float = 0.0,
        langevin_steps: int = 0,
        langevin_step_size: float = 0.001,
        contrast_weight: float = 0.0,
    ) -> None:
        super().__init__(max_plate_nesting=1)
        weights = {
            "entropy_weight": entropy_weight,
            "gradient_penalty": gradient_penalty,
            "energy_penalty": energy_penalty,
            "langevin_steps": langevin_steps,
            "langevin_step_size": langevin_step_size,
            "contrast_weight": contrast_weight,
        }
        for name, value in weights.items():
            if not value >= 0.0:
                raise ValueError(f"{name}={value} must not be negative.")
        self.entropy, self.generator = entropy, generator
        self.entropy_weight = entropy_weight
        self.gradient_penalty, self.energy_penalty = gradient_penalty, energy_penalty
        self.langevin_steps, self.langevin_step_size = langevin_steps, langevin_step_size
        self.contrast_weight, self.contrast = contrast_weight, FadedContrast()
        self._settings = tuple(weights)

    def config(self) -> dict[str, Any]:
        """Return every setting, JSON-ready, for results."""
        return {"entropy": self.entropy.name, **{name: getattr(self, name) for name in self._settings}}

    def energy_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], x: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return L_E with its penalties, in nats per row, and its terms, detached."""
        with torch.no_grad():
            _, generated = _draw(guide, x, kwargs)
        steps, step_size = self.langevin_steps, self.langevin_step_size
        generated = langevin(lambda x: _energy(model, x, kwargs), generated, steps, step_size)
        rows = x.detach().requires_grad_(self.gradient_penalty > 0.0)
        of_data, of_samples = _energy(model, rows, kwargs), _energy(model, generated, kwargs)
        loss = of_data.mean() - of_samples.mean()
        terms = {"energy_data": of_data.mean(), "energy_samples": of_samples.mean(), "energy_gap": loss}
        if self.gradient_penalty:
            (slope,) = torch.autograd.grad(of_data.sum(), rows, create_graph=True)
            size = slope.flatten(1).square().sum(-1).mean()
            loss = loss + 0.5 * self.gradient_penalty * size
            terms["gradient_norm"] = size.sqrt()
        if self.energy_penalty:
            loss = loss + self.energy_penalty * (of_data.square().mean() + of_samples.square().mean())
        if self.contrast_weight:
            copies, margin = self.contrast(rows)
            contrast = self.contrast.loss(of_data, _energy(model, copies, kwargs), margin)
            loss = loss + self.contrast_weight * contrast
            terms["contrast"] = contrast
        return loss, {name: value.detach() for name, value in terms.items()}

    def generator_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], x: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return L_G, in nats per row, and its terms, detached."""
        z, generated = _draw(guide, x, kwargs)
        entropy = self.entropy(z, generated, self.generator)
        energy = _energy(model, generated, kwargs).mean()
        spread = generated.detach().flatten(1).var(0).sum().sqrt()
        return energy - self.entropy_weight * entropy, {"entropy": entropy.detach(), "sample_spread": spread}

    def critic_loss(self, guide: Callable[..., Any], x: Tensor, **kwargs: Any) -> Tensor | None:
        """Return what the entropy's own networks minimise, or ``None``."""
        with torch.no_grad():
            z, generated = _draw(guide, x, kwargs)
        return self.entropy.critic_loss(z, generated)

    def _get_trace(self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return traces of the model on generated rows, and of the guide that made them."""
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        generated = guide_trace.nodes["_RETURN"]["value"]
        return poutine.trace(model).get_trace(generated, *args[1:], **kwargs), guide_trace

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """Return L_E as a number. It says how far apart data and samples are, not how good either model is."""
        return float(self.energy_loss(model, guide, *args, **kwargs)[0].detach())

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """Put into each parameter the gradient of its own loss, and return L_E as a number."""
        with poutine.trace(param_only=True) as capture:
            declare_parameters(self.entropy)
            energy_loss, _ = self.energy_loss(model, guide, *args, **kwargs)
            generator_loss, _ = self.generator_loss(model, guide, *args, **kwargs)
            critic_loss = self.critic_loss(guide, *args, **kwargs)
        sites: list[Any] = list(capture.trace.nodes.values())
        parameters = [site["value"].unconstrained() for site in sites if site["type"] == "param"]
        of_critic = {id(parameter) for parameter in self.entropy.parameters()}
        losses = [energy_loss, generator_loss]
        gradients = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in losses]
        critic = [parameter for parameter in parameters if id(parameter) in of_critic]
        for parameter, of_energy, of_generator in zip(parameters, *gradients, strict=True):
            if id(parameter) not in of_critic:
                parameter.grad = of_energy if of_energy is not None else of_generator
        if critic_loss is not None:
            for parameter, gradient in zip(critic, torch.autograd.grad(critic_loss, critic), strict=True):
                parameter.grad = gradient
        return float(energy_loss.detach())


class EnergyObjective(AlternatingObjective):
    """What :func:`pyro_ssvae.fit` trains a DDGM with: energy, generator and the entropy's critic step in turn.

    Args:
        pair: The model, a :class:`pyro_ssvae.DDGM`.
        num_unlabelled: Number of training rows without a label.
        num_labelled: Number of those with one, which need a model with classes.
        alpha: Weight of the mean cross-entropy −log p(y|x) of labelled rows, p(y|x) ∝ exp(−E(x, y)).
        entropy: A name in ``pyro_ssvae.objectives.ENTROPIES``, or an estimate.
        generator_rate: Learning rate of the generator, as a multiple of that of the energy; it should be the faster.
        generator_steps: Steps of the generator for each one of the energy.
        critic_rate: Learning rate of the entropy's own networks, as a multiple of that of the energy.
        betas: Of Adam, for all.
        **options: Of :class:`EnergyELBO`.

    Raises:
        ValueError: For negative weights, or numbers that are not positive.

    Attributes:
        latest: Mean energies of data and samples, their gap, the norm of the energy's gradient on data, the entropy
            and the spread of samples (the root of their total variance), of the last call; with their weights, the
            contrast and the cross-entropy too.
    """

    def __init__(
        self,
        pair: DDGM,
        *,
        num_unlabelled: int,
        num_labelled: int = 0,
        alpha: float = 1.0,
        entropy: str | Entropy = "nearest_neighbour",
        generator_rate: float = 3.0,
        generator_steps: int = 2,
        critic_rate: float = 1.0,
        betas: tuple[float, float] = (0.5, 0.999),
        **options: Any,
    ) -> None:
        super().__init__(pair, num_labelled=num_labelled, num_unlabelled=num_unlabelled)
        if num_labelled and not pair.has_classes:
            raise ValueError(
                f"{num_labelled} rows carry labels, and the model has no classes: DDGM(..., num_classes=K), or train "
                "on data.without_labels()."
            )
        self.alpha = alpha
        self._narrow = 0  # evaluations in a row that found next to no spread
        if not (generator_rate > 0.0 and critic_rate > 0.0) or generator_steps < 1 or not alpha >= 0.0:
            raise ValueError(
                f"generator_rate={generator_rate} and critic_rate={critic_rate} must be positive, generator_steps="
                f"{generator_steps} at least 1 and alpha={alpha} not negative."
            )
        self.entropy = make_entropy(entropy, pair.latent_dim, pair.event_shape)
        self.elbo_of_energy = EnergyELBO(self.entropy, pair.generator, **options)
        self.generator_rate, self.generator_steps, self.betas = generator_rate, generator_steps, betas
        self.critic_rate = critic_rate

    @classmethod
    def for_data(cls, pair: DDGM, data: SemiSupervisedData, **options: Any) -> EnergyObjective:
        """Return the objective for a model and data; labels need a model with classes."""
        return cls(pair, num_unlabelled=data.num_unlabelled, num_labelled=data.num_labelled, **options)

    def config(self) -> dict[str, Any]:
        """Return every setting, JSON-ready, for results."""
        names = ("alpha", "generator_rate", "generator_steps", "critic_rate", "betas")
        return {**self.elbo_of_energy.config(), **{name: getattr(self, name) for name in names}}

    def groups(self) -> dict[str, Group]:
        """Return the parameters that step together, with the learning rate of each group relative to the energy's."""
        pair: Any = self.pair
        sides = pair.groups()
        groups = {
            "energy": Group(sides["energy"], 1.0, self.betas),
            "generator": Group(sides["generator"], self.generator_rate, self.betas),
        }
        critic = list(self.entropy.parameters())
        return groups | ({"critic": Group(critic, self.critic_rate, self.betas)} if critic else {})

    def problem(self, row: dict[str, Any]) -> str | None:
        """Return whether the generator has collapsed or energies diverge; ``None`` if neither."""
        ratio, size = row.get("spread_ratio", 1.0), abs(row.get("energy_gap", 0.0))
        self._narrow = self._narrow + 1 if ratio < _LEAST_SPREAD else 0
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
        return None

    def turns(self) -> list[Turn]:
        """Return the energy's step, and then as many as asked for of the generator and of the entropy's networks."""
        after = [Turn("generator", self._generator_loss)]
        if next(self.entropy.parameters(), None) is not None:
            after.append(Turn("critic", self._critic_loss))
        return [Turn("energy", self._energy_loss), *(self.generator_steps * after)]

    def _energy_loss(self, batch: Batch) -> Tensor:
        loss, self.latest = self.elbo_of_energy.energy_loss(self.model, self.guide, _rows(batch))
        if batch.x_labelled is None or batch.y_labelled is None:
            return loss
        pair: Any = self.pair
        cross_entropy = F.cross_entropy(pair.classify(batch.x_labelled), batch.y_labelled)
        self.latest = {**self.latest, "classification_loss": cross_entropy.detach()}
        return loss + self.alpha * cross_entropy

    def _generator_loss(self, batch: Batch) -> Tensor:
        loss, self.latest = self.elbo_of_energy.generator_loss(self.model, self.guide, _rows(batch))
        return loss

    def _critic_loss(self, batch: Batch) -> Tensor:
        loss = self.elbo_of_energy.critic_loss(self.guide, _rows(batch))
        assert loss is not None
        self.latest = {"critic_loss": loss.detach()}
        return loss


def _rows(batch: Batch) -> Tensor:
    if batch.x_unlabelled is None:
        raise ValueError("An energy model trains on rows without a label, and this batch holds none.")
    return batch.x_unlabelled


def _draw(guide: Callable[..., Any], x: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return latents and the rows that the guide makes of them."""
    nodes: dict[str, Any] = poutine.trace(guide).get_trace(x, **kwargs).nodes
    return nodes["z"]["value"], nodes["_RETURN"]["value"]


def _energy(model: Callable[..., Any], x: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Return E(x) of rows, with shape ``(B,)``, as the model's site ``"energy"`` says."""
    nodes: dict[str, Any] = poutine.trace(model).get_trace(x, **kwargs).nodes
    energy: Tensor = -nodes["energy"]["fn"].log_factor
    return energy
