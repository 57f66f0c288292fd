r"""An energy model and a generator against each other, as a custom objective of ``pyro.infer.SVI``.

The energy model maximises the likelihood of the data, with the generator's rows in place of its own:

.. math:: L_E = \mathbb E_{x \sim \text{data}}[E(x)] - \mathbb E_z[E(G(z))]

The generator minimises its divergence from the energy model:

.. math:: L_G = \mathrm{KL}(P_G \| P_E) - \log Z = \mathbb E_z[E(G(z))] - H(P_G)

Reference: Deep Directed Generative Models with Energy-Based Probability Estimation (Kim & Bengio, 2016),
https://arxiv.org/abs/1606.03439, equations 8 to 11.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyro_ssvae.models.base import declare_parameters
from pyro_ssvae.models.ddgm import langevin
from pyro_ssvae.objectives.differentiable_augmentation import shift_and_flip
from pyro_ssvae.objectives.entropy import Entropy
from pyro_ssvae.objectives.importance import normalise_importance_weights, perturb_samples
from pyro_ssvae.objectives.negative_augmentation import NegativeAugmentation

__all__ = ["EnergyLoss"]

_SIDES = ("energy", "generator", "critic")


class EnergyLoss(ELBO):
    r"""A custom objective of ``pyro.infer.SVI`` for energies and generators.

    The model scores rows by a site ``pyro.factor("energy", -E(x))`` in a plate over rows; the guide draws z at a site
    ``"z"`` and returns generated rows. What the energy of data depends on is trained by L_E, all else by L_G. A step is
    ``svi.step(x)``, or ``svi.step(x, x_labelled, y_labelled)`` for energies of classes. The same object trains a model
    in :func:`pyro_ssvae.fit`, as ``EnergyObjective(..., elbo=...)``.

    Args:
        entropy: Estimates H(P_G); its own networks are trained along.
        generator: The generator, for estimates that read it.
        alpha: Weight of the mean cross-entropy −log p(y|x) of labelled rows, p(y|x) ∝ exp(−E(x, y)).
        entropy_weight: Factor of the entropy.
        gradient_penalty: Weight γ of :math:`\tfrac\gamma2 \mathbb E\|\nabla E(x)\|^2` on data, which keeps the energy
            smooth there (Which Training Methods for GANs do actually Converge?, Mescheder et al., 2018).
        penalty_fraction: Share of the rows of data of a batch, its first, on which the gradient penalty is taken; it costs
            more than the rest of L_E, and an image says less about it than a point.
        energy_penalty: Weight of the mean square of energies, of data and samples alike, which keeps their size down.
        langevin_steps: Steps by which generated rows follow the energy before it is raised on them.
        langevin_step_size: Of these.
        proposal_bandwidth: Standard deviation of the noise on generated rows, for :meth:`weighing`.
        negative_weight: Weight of the energy on copies of data that have lost their content, for images.
        contrast: What makes these copies; ``None`` for :class:`~pyro_ssvae.objectives.NegativeAugmentation` as it is.
        max_shift: Largest move, as a share of the image's sides, of data and samples before the energy sees them
            (:func:`~pyro_ssvae.objectives.shift_and_flip`), for images of which there are few. Labelled rows are not moved.

    Raises:
        ValueError: For a negative weight or number of steps, or a share that is not in (0, 1].
        TypeError: If ``entropy`` is no :class:`~pyro_ssvae.objectives.Entropy`.

    Example:
        >>> import pyro, torch
        >>> from pyro.infer import SVI
        >>> from pyro_ssvae import DDGM, pyro_view
        >>> from pyro_ssvae.objectives import NearestNeighbourEntropy
        >>> ddgm = DDGM((2,))
        >>> elbo = EnergyLoss(NearestNeighbourEntropy(), ddgm.generator)
        >>> svi = SVI(*pyro_view(ddgm), pyro.optim.Adam({"lr": 2e-4, "betas": (0.5, 0.999)}), elbo)
        >>> loss = svi.step(torch.randn(50, 2))
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
        energy_penalty: float = 0.0,
        langevin_steps: int = 0,
        langevin_step_size: float = 0.001,
        proposal_bandwidth: float = 0.2,
        negative_weight: float = 0.0,
        contrast: NegativeAugmentation | None = None,
        max_shift: float = 0.0,
    ) -> None:
        super().__init__(max_plate_nesting=1)
        if not isinstance(entropy, Entropy):
            raise TypeError(
                f"entropy must be an Entropy, for example NearestNeighbourEntropy(), not {type(entropy).__name__}; "
                "names are for EnergyObjective(entropy=...)."
            )
        weights = {
            "alpha": alpha,
            "entropy_weight": entropy_weight,
            "gradient_penalty": gradient_penalty,
            "penalty_fraction": penalty_fraction,
            "energy_penalty": energy_penalty,
            "langevin_steps": langevin_steps,
            "langevin_step_size": langevin_step_size,
            "proposal_bandwidth": proposal_bandwidth,
            "negative_weight": negative_weight,
        }
        for name, value in weights.items():
            if not value >= 0.0:
                raise ValueError(f"{name}={value} must not be negative.")
        if not 0.0 < penalty_fraction <= 1.0:
            raise ValueError(f"penalty_fraction={penalty_fraction} must lie in (0, 1].")
        if not 0.0 <= max_shift <= 0.5:
            raise ValueError(f"max_shift={max_shift} must lie in [0, 0.5].")
        if not proposal_bandwidth > 0.0:
            raise ValueError(f"proposal_bandwidth={proposal_bandwidth} must be positive.")
        self.entropy, self.generator = entropy, generator
        self.alpha, self.entropy_weight = alpha, entropy_weight
        self._sides: tuple[str, ...] = _SIDES
        self.gradient_penalty, self.penalty_fraction, self.energy_penalty = (
            gradient_penalty,
            penalty_fraction,
            energy_penalty,
        )
        self.langevin_steps, self.langevin_step_size = langevin_steps, langevin_step_size
        self.proposal_bandwidth, self._weighing = proposal_bandwidth, False
        self.negative_weight, self.contrast = negative_weight, NegativeAugmentation() if contrast is None else contrast
        self.max_shift = max_shift
        self._settings = tuple(weights)

    def config(self) -> dict[str, Any]:
        """Return every setting, JSON-ready, for results."""
        found = {"entropy": self.entropy.name, "entropy_settings": self.entropy.config()}
        found |= {name: getattr(self, name) for name in self._settings}
        found |= {"contrast": self.contrast.config()} if self.negative_weight else {}
        return found | ({"max_shift": self.max_shift} if self.max_shift else {})

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
            >>> elbo = EnergyLoss(NearestNeighbourEntropy(), ddgm.generator)
            >>> rates = {"energy": 1e-3, "generator": 3e-3}
            >>> adams = {side: pyro.optim.Adam({"lr": rate}) for side, rate in rates.items()}
            >>> svis = [SVI(*pyro_view(ddgm), adam, elbo.only(side)) for side, adam in adams.items()]
            >>> losses = [svi.step(torch.randn(50, 2)) for svi in svis]
        """
        if side not in _SIDES:
            raise ValueError(f"side={side!r} must be one of {', '.join(_SIDES)}.")
        view = copy.copy(self)
        view._sides = (side,)
        return view

    def weighing(self) -> EnergyLoss:
        r"""Return the same objective with importance-weighted rows in the negative phase of L_E.

        Generated rows are blurred (:func:`~pyro_ssvae.objectives.perturb_samples`), so that their density is known
        and covers what lies beside them, and weighed (:func:`~pyro_ssvae.objectives.normalise_importance_weights`). L_E
        then has the gradient of the likelihood, :math:`\nabla \log Z` estimated without a Markov chain, and no gradient
        penalty: that steadies a game of two, and would blur the density. It is for rows of few numbers, and for the
        end, when the generator no longer moves: it tells that nothing.
        """
        view = copy.copy(self)
        view._weighing, view.gradient_penalty = True, 0.0
        return view

    def draw(self, guide: Callable[..., Any], x: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return latents ``(B, L)`` and the rows ``(B, *event_shape)`` that the guide makes of them, for both losses.

        Args:
            guide: Generates rows.
            x: As many rows as are wanted.
            **kwargs: Of the guide.
        """
        return _draw(guide, x, kwargs)

    def energy_loss(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        x: Tensor,
        x_labelled: Tensor | None = None,
        y_labelled: Tensor | None = None,
        *,
        drawn: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return L_E with its penalties, in nats per row, and its terms, detached.

        Args:
            model: Scores rows.
            guide: Generates rows.
            x: Data with shape ``(B, *event_shape)``.
            x_labelled: Rows with shape ``(B_l, *event_shape)``, or ``None``.
            y_labelled: Their classes, with shape ``(B_l,)``.
            drawn: What :meth:`draw` returned; drawn here when ``None``.
            **kwargs: Of model and guide.
        """
        x = self._seen(x.detach())
        with torch.no_grad():
            z, generated = _draw(guide, x, kwargs) if drawn is None else drawn
        generated = generated.detach()
        negatives, log_density = self._negatives(model, generated, kwargs)
        negatives = self._seen(negatives)
        copies, margin = self.contrast(x) if self.negative_weight else (x[:0], x.new_zeros(0))
        some, rest = self._split(x)
        of_some = _energy(model, some, kwargs)
        parts = [rest, negatives, copies]  # one pass: a step of small networks is mostly overhead
        of_parts = _energy(model, torch.cat(parts), kwargs)
        of_rest, of_samples, of_copies = of_parts.split([len(part) for part in parts])
        of_data = torch.cat([of_some, of_rest])
        raised, terms = of_samples.mean(), {}
        if log_density is not None:
            raised = (normalise_importance_weights(of_samples, log_density) * of_samples).sum()
            with torch.no_grad():  # the generator stands still, and has no loss to log these
                terms = {"entropy": self.entropy(z, generated, self.generator), "sample_std": _spread(generated)}
        loss = of_data.mean() - raised
        terms |= {"energy_data": of_data.mean(), "energy_samples": raised, "energy_gap": loss}
        if self.gradient_penalty:
            (slope,) = torch.autograd.grad(of_some.sum(), some, create_graph=True)
            size = slope.flatten(1).square().sum(-1).mean()
            loss = loss + 0.5 * self.gradient_penalty * size
            terms["gradient_norm"] = size.sqrt()
        if self.energy_penalty:
            loss = loss + self.energy_penalty * (of_data.square().mean() + of_samples.square().mean())
        if self.negative_weight:
            contrast = self.contrast.loss(of_data, of_copies, margin)
            loss = loss + self.negative_weight * contrast
            terms["contrast"] = contrast
        if x_labelled is not None:  # -log p(y|x) = E(x, y) - E(x)
            of_class = _energy(model, x_labelled, {**kwargs, "y": y_labelled})
            cross_entropy = (of_class - _energy(model, x_labelled, kwargs)).mean()
            loss = loss + self.alpha * cross_entropy
            terms["classification_loss"] = cross_entropy
        return loss, {name: value.detach() for name, value in terms.items()}

    def _negatives(
        self, model: Callable[..., Any], generated: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the rows on which the energy is raised, and their log-density where they are to be weighed."""
        if self._weighing:
            return perturb_samples(generated, self.proposal_bandwidth)
        steps, step_size = self.langevin_steps, self.langevin_step_size
        return langevin(lambda x: _energy(model, x, kwargs), generated, steps, step_size), None

    def _seen(self, x: Tensor) -> Tensor:
        """Return rows as the energy is to see them."""
        return shift_and_flip(x, self.max_shift) if self.max_shift else x

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows on which the gradient penalty is taken, and the others; all and none without one."""
        if not self.gradient_penalty:
            return x, x[:0]
        number = max(1, round(self.penalty_fraction * len(x)))
        return x[:number].requires_grad_(), x[number:]

    def generator_loss(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        x: Tensor,
        *labelled: Tensor,
        drawn: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return L_G, in nats per row, and its terms, detached; labelled rows play no part."""
        z, generated = _draw(guide, x, kwargs) if drawn is None else drawn
        entropy = self.entropy(z, generated, self.generator)
        energy = _energy(model, self._seen(generated), kwargs).mean()
        terms = {"entropy": entropy.detach(), "sample_std": _spread(generated.detach())}
        return energy - self.entropy_weight * entropy, terms

    def critic_loss(self, guide: Callable[..., Any], x: Tensor, *labelled: Tensor, **kwargs: Any) -> Tensor | None:
        """Return what the entropy's own networks minimise, or ``None``; labelled rows play no part."""
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
        with torch.enable_grad():  # the penalty is a gradient; SVI.evaluate_loss switches them off
            return float(self.energy_loss(model, guide, *args, **kwargs)[0].detach())

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """Put into each parameter of the sides in question the gradient of its own loss; return L_E as a number."""
        of_generator = of_critic = None
        with poutine.trace(param_only=True) as capture:
            declare_parameters(self.entropy)
            of_energy, _ = self.energy_loss(model, guide, *args, **kwargs)
            if "generator" in self._sides:
                of_generator, _ = self.generator_loss(model, guide, *args, **kwargs)
            if "critic" in self._sides:
                of_critic = self.critic_loss(guide, *args, **kwargs)
        sites: list[Any] = list(capture.trace.nodes.values())
        known = {id(parameter) for parameter in self.entropy.parameters()}
        parameters = [site["value"].unconstrained() for site in sites if site["type"] == "param"]
        rest = [parameter for parameter in parameters if id(parameter) not in known]
        critic = [parameter for parameter in parameters if id(parameter) in known]
        slopes = torch.autograd.grad(of_energy, rest, allow_unused=True)  # None: the energy of data ignores it
        if "energy" in self._sides:
            _put(slopes, rest)
        generator = [parameter for parameter, slope in zip(rest, slopes, strict=True) if slope is None]
        for loss, group in ((of_generator, generator), (of_critic, critic)):
            if loss is not None and group:
                _put(torch.autograd.grad(loss, group, allow_unused=True), group)
        return float(of_energy.detach())


def _put(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:  # laid out as its parameter, for fused optimisers
            parameter.grad = torch.empty_like(parameter).copy_(gradient)


def _spread(x: Tensor) -> Tensor:
    """Return the root of the total variance of rows."""
    return x.flatten(1).var(0).sum().sqrt()


def _draw(guide: Callable[..., Any], x: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return latents and the rows that the guide makes of them."""
    nodes: dict[str, Any] = poutine.trace(guide).get_trace(x, **kwargs).nodes
    return nodes["z"]["value"], nodes["_RETURN"]["value"]


def _energy(model: Callable[..., Any], x: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Return E(x) of rows, with shape ``(B,)``, as the model's site ``"energy"`` says."""
    nodes: dict[str, Any] = poutine.trace(model).get_trace(x, **kwargs).nodes
    energy: Tensor = -nodes["energy"]["fn"].log_factor
    return energy
