r"""The losses of an energy model and its generator, as a custom objective of ``pyro.infer.SVI``.

The energy model maximises the likelihood of the data, with generated samples in place of its own:

.. math:: L_E = \mathbb E_{x \sim \text{data}}[E(x)] - \mathbb E_z[E(G(z))]

The generator minimises its divergence from the energy model:

.. math:: L_G = \mathrm{KL}(P_G \| P_E) - \log Z = \mathbb E_z[E(G(z))] - H(P_G)

Reference: Deep Directed Generative Models with Energy-Based Probability Estimation (Kim & Bengio, 2016),
https://arxiv.org/abs/1606.03439, equations 8 to 11.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyro_ssvae._arguments import checked
from pyro_ssvae._samplers import langevin
from pyro_ssvae.objectives.augmentation import NegativeAugmentation, shift_and_flip
from pyro_ssvae.objectives.base import Loss
from pyro_ssvae.objectives.entropy import Entropy
from pyro_ssvae.objectives.handlers import declare_parameters

__all__ = ["EnergyLoss", "normalise_importance_weights", "perturb_samples"]

_SIDES = ("energy", "generator", "critic")
_LANGEVIN_STEP_SIZE = 0.001
_BANDWIDTH = 0.2  # of the noise on importance-weighted samples


@checked
class EnergyLoss(ELBO):
    r"""A custom objective of ``pyro.infer.SVI`` for an energy model and its generator.

    The model scores data by a site ``pyro.factor("energy", -E(x))`` in a plate over the batch; the guide draws z at a
    site ``"z"`` and returns G(z). The parameters that the energy of data depends on minimise L_E, all others L_G. A
    step is ``svi.step(x)``, or ``svi.step(x, x_labelled, y_labelled)`` for a model with classes. In
    :func:`pyro_ssvae.fit` the same losses are those of :class:`~pyro_ssvae.EnergyObjective`.

    Args:
        entropy: Estimate of H(P_G); its own networks, if any, are trained too.
        generator: The generator G, for estimates of the entropy that read its parameters.
        alpha: Weight of the mean cross-entropy −log p(y|x) of labelled data, p(y|x) ∝ exp(−E(x, y)).
        entropy_weight: Factor of the entropy.
        gradient_penalty: Weight γ of :math:`\tfrac\gamma2 \mathbb E\|\nabla E(x)\|^2` on data, which keeps the energy
            smooth there (Which Training Methods for GANs do actually Converge?, Mescheder et al., 2018).
        penalty_fraction: Fraction of the batch, in (0, 1], on which the gradient penalty is computed. The penalty takes
            more time than the rest of L_E.
        langevin_steps: Langevin steps of generated samples before L_E is computed on them; for points.
        negative_weight: Weight of :class:`~pyro_ssvae.objectives.NegativeAugmentation`; for images.
        max_shift: Largest random shift of data and samples, as a fraction of the image's sides, in [0, 0.5];
            for small data sets of images. Labelled data are not shifted.

    Raises:
        ValueError: For a negative weight or number of steps, or a fraction outside its range.
        TypeError: If ``entropy`` is no :class:`~pyro_ssvae.objectives.Entropy`.

    Example:
        >>> import pyro, torch
        >>> from pyro.infer import SVI
        >>> from pyro_ssvae import DDGM, pyro_view
        >>> from pyro_ssvae.objectives import NearestNeighbourEntropy
        >>> ddgm = DDGM((2,))
        >>> loss = EnergyLoss(NearestNeighbourEntropy(), ddgm.generator)
        >>> svi = SVI(*pyro_view(ddgm), pyro.optim.Adam({"lr": 2e-4, "betas": (0.5, 0.999)}), loss)
        >>> value = svi.step(torch.randn(50, 2))
    """

    def __init__(
        self,
        entropy: Entropy,
        generator: nn.Module,
        *,
        alpha: float = 1.0,
        entropy_weight: float = 1.0,
        gradient_penalty: float = 0.0,
        penalty_fraction: float = 1.0,
        langevin_steps: int = 0,
        negative_weight: float = 0.0,
        max_shift: float = 0.0,
    ) -> None:
        super().__init__(max_plate_nesting=1)
        if not isinstance(entropy, Entropy):
            raise TypeError(
                f"entropy must be an Entropy, for example NearestNeighbourEntropy(), not {type(entropy).__name__}; "
                "names are for EnergyObjective(entropy=...)."
            )
        self.entropy, self.generator = entropy, generator
        self.negative_augmentation = NegativeAugmentation()
        self._sides: tuple[str, ...] = _SIDES
        self._settings: dict[str, float] = {
            "alpha": alpha,
            "entropy_weight": entropy_weight,
            "gradient_penalty": gradient_penalty,
            "penalty_fraction": penalty_fraction,
            "langevin_steps": langevin_steps,
            "negative_weight": negative_weight,
            "max_shift": max_shift,
        }
        self.alpha, self.entropy_weight = alpha, entropy_weight
        self.gradient_penalty, self.penalty_fraction = gradient_penalty, penalty_fraction
        self.langevin_steps, self.negative_weight, self.max_shift = langevin_steps, negative_weight, max_shift

    def config(self) -> dict[str, Any]:
        """Return every setting, JSON-ready, for results."""
        found: dict[str, Any] = {"entropy": self.entropy.name, "entropy_settings": self.entropy.config()}
        found |= self._settings
        return found | ({"negative_augmentation": self.negative_augmentation.config()} if self.negative_weight else {})

    def only(self, side: str) -> EnergyLoss:
        """Return the same objective for one side, so that each can have a Pyro optimiser of its own.

        Args:
            side: ``"energy"``, ``"generator"`` or ``"critic"`` (the entropy's own networks).

        Raises:
            ValueError: For another side.

        Example:
            >>> import pyro, torch
            >>> from pyro.infer import SVI
            >>> from pyro_ssvae import DDGM, pyro_view
            >>> from pyro_ssvae.objectives import NearestNeighbourEntropy
            >>> ddgm = DDGM((2,))
            >>> loss = EnergyLoss(NearestNeighbourEntropy(), ddgm.generator)
            >>> rates = {"energy": 1e-3, "generator": 3e-3}
            >>> adams = {side: pyro.optim.Adam({"lr": rate}) for side, rate in rates.items()}
            >>> svis = [SVI(*pyro_view(ddgm), adam, loss.only(side)) for side, adam in adams.items()]
            >>> values = [svi.step(torch.randn(50, 2)) for svi in svis]
        """
        if side not in _SIDES:
            raise ValueError(f"side={side!r} must be one of {', '.join(_SIDES)}.")
        view = copy.copy(self)
        view._sides = (side,)
        return view

    def draw(self, guide: Callable[..., Any], x: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Draw latents ``(B, L)`` and samples ``(B, *event_shape)`` from the guide, for ``drawn`` of both losses.

        Args:
            guide: Generates samples.
            x: Data with shape ``(B, *event_shape)``; its values do not matter.
            **kwargs: Further arguments of the guide.
        """
        nodes: dict[str, Any] = poutine.trace(guide).get_trace(x, **kwargs).nodes
        return nodes["z"]["value"], nodes["_RETURN"]["value"]

    def energy_loss(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        x: Tensor,
        x_labelled: Tensor | None = None,
        y_labelled: Tensor | None = None,
        *,
        drawn: tuple[Tensor, Tensor] | None = None,
        importance_weighted: bool = False,
        **kwargs: Any,
    ) -> Loss:
        r"""Return L_E with its regularisers, in nats per example.

        Args:
            model: Scores data.
            guide: Generates samples.
            x: Data with shape ``(B, *event_shape)``.
            x_labelled: Labelled data with shape ``(B_l, *event_shape)``, or ``None``.
            y_labelled: Their classes, with shape ``(B_l,)``.
            drawn: What :meth:`draw` returned; drawn here when ``None``.
            importance_weighted: Whether to estimate the gradient of the likelihood, with :math:`\nabla \log Z` from
                samples with noise (``perturb_samples``) and their importance weights
                (``normalise_importance_weights``), and without the gradient penalty. For
                data of few dimensions and a generator that is no longer trained.
            **kwargs: Further arguments of model and guide.
        """
        x = self._augment(x.detach())
        with torch.no_grad():
            z, samples = self.draw(guide, x, **kwargs) if drawn is None else drawn
        negatives, log_density = self._negatives(model, samples.detach(), importance_weighted, kwargs)
        corrupted, margin = self.negative_augmentation(x) if self.negative_weight else (x[:0], x.new_zeros(0))
        penalty = 0.0 if importance_weighted else self.gradient_penalty
        count = max(1, round(self.penalty_fraction * len(x))) if penalty else len(x)
        penalised, rest = x[:count].requires_grad_(bool(penalty)), x[count:]
        energy_penalised = _energy(model, penalised, kwargs)
        parts = [rest, negatives, corrupted]  # in one pass: small networks spend most of a step on overhead
        energies = _energy(model, torch.cat(parts), kwargs).split([len(part) for part in parts])
        energy_rest, energy_negatives, energy_corrupted = energies
        energy_data = torch.cat([energy_penalised, energy_rest])
        mean_negatives, terms = energy_negatives.mean(), {}
        if log_density is not None:
            weights = normalise_importance_weights(energy_negatives, log_density)
            mean_negatives = (weights * energy_negatives).sum()
            with torch.no_grad():  # the generator is not updated in this phase, so its terms are computed here
                terms = {"entropy": self.entropy(z, samples, self.generator), "sample_std": _total_std(samples)}
        total = gap = energy_data.mean() - mean_negatives
        terms |= {"energy_data": energy_data.mean(), "energy_samples": mean_negatives, "energy_gap": gap}
        if penalty:
            (gradient,) = torch.autograd.grad(energy_penalised.sum(), penalised, create_graph=True)
            squared_norm = gradient.flatten(1).square().sum(-1).mean()
            total = total + 0.5 * penalty * squared_norm
            terms["energy_gradient_norm"] = squared_norm.sqrt()
        if self.negative_weight:
            terms["negative_loss"] = self.negative_augmentation.loss(energy_data, energy_corrupted, margin)
            total = total + self.negative_weight * terms["negative_loss"]
        if x_labelled is not None:  # -log p(y|x) = E(x, y) - E(x)
            energy_joint = _energy(model, x_labelled, {**kwargs, "y": y_labelled})
            terms["classification_loss"] = (energy_joint - _energy(model, x_labelled, kwargs)).mean()
            total = total + self.alpha * terms["classification_loss"]
        return Loss(total, {name: value.detach() for name, value in terms.items()})

    def _negatives(
        self, model: Callable[..., Any], samples: Tensor, importance_weighted: bool, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the samples of the negative phase, and their log-density if they are to be weighted."""
        log_density = None
        if importance_weighted:
            samples, log_density = perturb_samples(samples, _BANDWIDTH)
        elif self.langevin_steps:
            samples = langevin(lambda x: _energy(model, x, kwargs), samples, self.langevin_steps, _LANGEVIN_STEP_SIZE)
        return self._augment(samples), log_density

    def _augment(self, x: Tensor) -> Tensor:
        return shift_and_flip(x, self.max_shift) if self.max_shift else x

    def generator_loss(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        x: Tensor,
        *labelled: Tensor,
        drawn: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Loss:
        """Return L_G, in nats per sample; labelled data are ignored."""
        z, samples = self.draw(guide, x, **kwargs) if drawn is None else drawn
        entropy = self.entropy(z, samples, self.generator)
        energy = _energy(model, self._augment(samples), kwargs).mean()
        terms = {"entropy": entropy.detach(), "sample_std": _total_std(samples.detach())}
        return Loss(energy - self.entropy_weight * entropy, terms)

    def critic_loss(self, guide: Callable[..., Any], x: Tensor, *labelled: Tensor, **kwargs: Any) -> Loss | None:
        """Return the loss of the entropy's own networks, or ``None`` without any; labelled data are ignored."""
        with torch.no_grad():
            z, samples = self.draw(guide, x, **kwargs)
        loss = self.entropy.critic_loss(z, samples)
        return None if loss is None else Loss(loss, {"critic_loss": loss.detach()})

    def _get_trace(self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return traces of the model on generated samples, and of the guide that generated them."""
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        samples = guide_trace.nodes["_RETURN"]["value"]
        return poutine.trace(model).get_trace(samples, *args[1:], **kwargs), guide_trace

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """Return L_E. It measures how far apart data and samples are, not how good either model is."""
        with torch.enable_grad():  # for the gradient penalty: SVI.evaluate_loss disables gradients
            return float(self.energy_loss(model, guide, *args, **kwargs).total.detach())

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """Set the gradient of each side's parameters to that of its own loss; return L_E."""
        generator_loss = critic_loss = None
        with poutine.trace(param_only=True) as capture:
            declare_parameters(self.entropy)
            energy_loss = self.energy_loss(model, guide, *args, **kwargs).total
            if "generator" in self._sides:
                generator_loss = self.generator_loss(model, guide, *args, **kwargs)
            if "critic" in self._sides:
                critic_loss = self.critic_loss(guide, *args, **kwargs)
        sites: list[Any] = list(capture.trace.nodes.values())
        parameters = [site["value"].unconstrained() for site in sites if site["type"] == "param"]
        known = {id(parameter) for parameter in self.entropy.parameters()}
        critic = [parameter for parameter in parameters if id(parameter) in known]
        others = [parameter for parameter in parameters if id(parameter) not in known]
        gradients = torch.autograd.grad(energy_loss, others, allow_unused=True)
        if "energy" in self._sides:
            _set_gradients(others, gradients)
        # Parameters that the energy of data does not depend on, whose gradient is None, are the generator's.
        generator = [parameter for parameter, gradient in zip(others, gradients, strict=True) if gradient is None]
        for loss, group in ((generator_loss, generator), (critic_loss, critic)):
            if loss is not None and group:
                _set_gradients(group, torch.autograd.grad(loss.total, group, allow_unused=True))
        return float(energy_loss.detach())


def perturb_samples(x: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    r"""Add Gaussian noise to samples, and return them with the logarithm of their density, up to a constant.

    .. math:: x'_i = x_i + h\,\epsilon_i, \qquad q(x') = \frac1B \sum_j N(x';\, x_j, h^2 I)

    Args:
        x: Samples with shape ``(B, *event_shape)``.
        bandwidth: h, in the units of x.

    Returns:
        Samples with the shape of ``x``, detached, and log q of each, in nats, with shape ``(B,)``.
    """
    x = x.detach()
    perturbed = x + bandwidth * torch.randn_like(x)
    squares = torch.cdist(perturbed.flatten(1), x.flatten(1)).square()
    return perturbed, (-squares / (2.0 * bandwidth**2)).logsumexp(-1)


def normalise_importance_weights(energy: Tensor, log_proposal: Tensor) -> Tensor:
    r"""Return self-normalised, truncated importance weights of samples of q for expectations under :math:`e^{-E} / Z`.

    .. math:: w_i \propto \min\Bigl(r_i,\; \frac1{\sqrt B} \sum_j r_j\Bigr), \qquad r_i = \frac{e^{-E(x_i)}}{q(x_i)}

    The bound, :math:`\sqrt B` times the mean, keeps the variance finite, and its bias vanishes with growing batches
    (Truncated Importance Sampling, Ionides, 2008).

    Args:
        energy: E(x), in nats, with shape ``(B,)``.
        log_proposal: log q(x), up to a constant, in nats, with shape ``(B,)``.

    Returns:
        Weights with shape ``(B,)`` and sum 1, detached.
    """
    logits = (-energy.detach() - log_proposal).log_softmax(0)
    return logits.clamp(max=-0.5 * math.log(len(logits))).softmax(0)


def _set_gradients(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:  # with the parameter's memory layout, which fused optimisers rely on
            parameter.grad = torch.empty_like(parameter).copy_(gradient)


def _total_std(x: Tensor) -> Tensor:
    """Return the square root of the total variance of samples."""
    return x.flatten(1).var(0).sum().sqrt()


def _energy(model: Callable[..., Any], x: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Return E(x), with shape ``(B,)``, from the model's site ``"energy"``."""
    nodes: dict[str, Any] = poutine.trace(model).get_trace(x, **kwargs).nodes
    energy: Tensor = -nodes["energy"]["fn"].log_factor
    return energy
