r"""The losses of an energy model and its generator, for ``pyro.infer.SVI`` and for :func:`pyro_ssvae.fit`.

The energy model maximises the likelihood of the data, with generated samples in place of its own. The generator
minimises its divergence from the energy model:

.. math:: L_E = \mathbb E_{x \sim \text{data}}[E(x)] - \mathbb E_z[E(G(z))], \qquad
    L_G = \mathrm{KL}(P_G \| P_E) - \log Z = \mathbb E_z[E(G(z))] - H(P_G)

Reference: Deep Directed Generative Models with Energy-Based Probability Estimation (Kim & Bengio, 2016),
https://arxiv.org/abs/1606.03439, equations 8 to 11.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyro_ssvae._arguments import check_choice, checked
from pyro_ssvae._division import gather_rows, mean_over_ranks
from pyro_ssvae.data import Batch
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.storage import sample_rows
from pyro_ssvae.models import diagnostics
from pyro_ssvae.models.ddgm import DDGM, langevin
from pyro_ssvae.objectives.base import Loss, Objective, ParameterGroup, PyroFunction, Update, Validation
from pyro_ssvae.objectives.energy_terms import (
    Entropy,
    draw_negatives,
    make_entropy,
    normalise_importance_weights,
    perturb_samples,
    shift_and_flip,
    total_std,
)

_SIDES = ("energy", "generator")
_LANGEVIN_STEP_SIZE = 0.001
_BANDWIDTH = 0.2  # of the noise on importance-weighted samples


@checked
class EnergyLoss(ELBO):
    r"""A custom objective of ``pyro.infer.SVI`` for an energy model and its generator.

    The model scores data by a site ``pyro.factor("energy", -E(x))`` in a plate over the batch; the guide returns as
    many samples G(z) as there are examples. The parameters that the energy of data depends on minimise L_E, all others
    L_G. A step is ``svi.step(x)``, or ``svi.step(x, x_labelled, y_labelled)`` for a model with classes.

    Args:
        entropy: Estimate of H(P_G).
        generator: The generator G, for estimates of the entropy that read its parameters.
        alpha: Weight of the mean cross-entropy −log p(y|x) of labelled data, p(y|x) ∝ exp(−E(x, y)).
        entropy_weight: Factor of the entropy.
        gradient_penalty: Weight γ of :math:`\tfrac\gamma2 \mathbb E\|\nabla E(x)\|^2` on data, which keeps the energy
            smooth there (Which Training Methods for GANs do actually Converge?, Mescheder et al., 2018).
        penalty_fraction: Fraction of the batch, in (0, 1], on which the gradient penalty is computed. The penalty takes
            more time than the rest of L_E.
        langevin_steps: Langevin steps of generated samples before L_E is computed on them; for points.
        negative_weight: Weight of the negative data augmentation :math:`\mathbb E\,\mathrm{softplus}(m(x) + E(x) -
            E(c(x)))` with corrupted images c(x) and a margin m of at most 3 nats; for images. The likelihood says
            nothing about images far from data and generated ones, and a blank one often gets the lowest energy of all.
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
            wanted = "an Entropy, for example NearestNeighbourEntropy()"
            raise TypeError(f"entropy must be {wanted}, not {type(entropy).__name__}; names are for EnergyObjective.")
        self.entropy, self.generator = entropy, generator
        self.alpha, self.entropy_weight = alpha, entropy_weight
        self.gradient_penalty, self.penalty_fraction = gradient_penalty, penalty_fraction
        self.langevin_steps, self.negative_weight, self.max_shift = langevin_steps, negative_weight, max_shift
        self._sides: tuple[str, ...] = _SIDES

    def config(self) -> dict[str, Any]:
        """Return every setting, JSON-ready, for results."""
        settings = ("alpha", "entropy_weight", "gradient_penalty", "penalty_fraction", "langevin_steps")
        found: dict[str, Any] = {"entropy": self.entropy.name, "entropy_settings": self.entropy.config()}
        return found | {name: getattr(self, name) for name in (*settings, "negative_weight", "max_shift")}

    def only(self, side: str) -> EnergyLoss:
        """Return the objective of one side, ``"energy"`` or ``"generator"``, for an optimiser of its own."""
        check_choice("side", side, _SIDES)
        view = copy.copy(self)
        view._sides = (side,)
        return view

    def energy_loss(
        self,
        model: PyroFunction,
        guide: PyroFunction,
        x: Tensor,
        x_labelled: Tensor | None = None,
        y_labelled: Tensor | None = None,
        *,
        samples: Tensor | None = None,
        importance_weighted: bool = False,
        **kwargs: Any,
    ) -> Loss:
        """Return L_E with its regularisers, in nats per example.

        Args:
            model: Scores data.
            guide: Generates samples.
            x: Data with shape ``(B, *event_shape)``.
            x_labelled: Labelled data with shape ``(B_l, *event_shape)``, or ``None``.
            y_labelled: Their classes, with shape ``(B_l,)``.
            samples: Samples of the guide; drawn here when ``None``.
            importance_weighted: Whether to estimate the gradient of the likelihood, by importance weights of samples
                with noise and without the gradient penalty; for data of few dimensions and a generator that is trained.
            **kwargs: Further arguments of model and guide.
        """
        x = self._augment(x.detach())
        if samples is None:
            with torch.no_grad():
                samples = guide(x, **kwargs)
        samples = samples.detach()
        negatives, log_density = self._negatives(model, samples, importance_weighted, kwargs)
        corrupted, margin = draw_negatives(x) if self.negative_weight else (x[:0], x.new_zeros(0))
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
            mean_negatives = _weighted_mean(energy_negatives, log_density)
            with torch.no_grad():  # the generator is not updated in this phase, so its terms are computed here
                terms = self._sample_terms(samples)
        total = gap = energy_data.mean() - mean_negatives
        terms |= {"energy_data": energy_data.mean(), "energy_samples": mean_negatives, "energy_gap": gap}
        if penalty:
            (gradient,) = torch.autograd.grad(energy_penalised.sum(), penalised, create_graph=True)
            squared_norm = gradient.flatten(1).square().sum(-1).mean()
            total = total + 0.5 * penalty * squared_norm
            terms["energy_gradient_norm"] = mean_over_ranks(squared_norm)().sqrt()
        if self.negative_weight:
            terms["negative_loss"] = nn.functional.softplus(margin + energy_data - energy_corrupted).mean()
            total = total + self.negative_weight * terms["negative_loss"]
        if x_labelled is not None:  # -log p(y|x) = E(x, y) - E(x)
            energy_joint = _energy(model, x_labelled, {**kwargs, "y": y_labelled})
            terms["classification_loss"] = (energy_joint - _energy(model, x_labelled, kwargs)).mean()
            total = total + self.alpha * terms["classification_loss"]
        return Loss(total, {name: value.detach() for name, value in terms.items()})

    def _negatives(
        self, model: PyroFunction, samples: Tensor, importance_weighted: bool, kwargs: dict[str, Any]
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
        model: PyroFunction,
        guide: PyroFunction,
        x: Tensor,
        *labelled: Tensor,
        samples: Tensor | None = None,
        **kwargs: Any,
    ) -> Loss:
        """Return L_G, in nats per sample; arguments as for :meth:`energy_loss`, labelled data are ignored."""
        samples = guide(x, **kwargs) if samples is None else samples
        terms = self._sample_terms(samples)
        energy = _energy(model, self._augment(samples), kwargs).mean()
        total = energy - self.entropy_weight * terms["entropy"]
        return Loss(total, {name: value.detach() for name, value in terms.items()})

    def _sample_terms(self, samples: Tensor) -> dict[str, Tensor]:
        return {"entropy": self.entropy(samples, self.generator), "sample_std": total_std(samples.detach())}

    def _get_trace(self, model: PyroFunction, guide: PyroFunction, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("An energy model has no bound, and so no pair of traces.")

    def loss(self, model: PyroFunction, guide: PyroFunction, *args: Any, **kwargs: Any) -> float:
        """Return L_E. It measures how far apart data and samples are, not how good either model is."""
        with torch.enable_grad():  # for the gradient penalty: SVI.evaluate_loss disables gradients
            return float(self.energy_loss(model, guide, *args, **kwargs).total.detach())

    def loss_and_grads(self, model: PyroFunction, guide: PyroFunction, *args: Any, **kwargs: Any) -> float:
        """Set the gradient of each side's parameters to that of its own loss; return L_E."""
        generator_loss = None
        with poutine.trace(param_only=True) as capture:
            energy_loss = self.energy_loss(model, guide, *args, **kwargs).total
            if "generator" in self._sides:
                generator_loss = self.generator_loss(model, guide, *args, **kwargs).total
        sites: list[Any] = list(capture.trace.nodes.values())
        parameters = [site["value"].unconstrained() for site in sites if site["type"] == "param"]
        parameters = [parameter for parameter in parameters if parameter.requires_grad]
        gradients: Sequence[Tensor | None] = [None] * len(parameters)
        if energy_loss.requires_grad:  # not if the energy is frozen
            gradients = torch.autograd.grad(energy_loss, parameters, allow_unused=True)
        if "energy" in self._sides:
            _set_gradients(parameters, gradients)
        # Parameters that the energy of data does not depend on, whose gradient is None, are the generator's.
        rest = [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is None]
        if generator_loss is not None and rest:
            _set_gradients(rest, torch.autograd.grad(generator_loss, rest, allow_unused=True))
        return float(energy_loss.detach())


def _weighted_mean(energy: Tensor, log_density: Tensor) -> Tensor:
    """Return the mean energy of samples of all processes, weighted by their importance."""
    energy, log_density = gather_rows(energy), gather_rows(log_density)
    return (normalise_importance_weights(energy, log_density) * energy).sum()


def _set_gradients(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:  # with the parameter's memory layout, which fused optimisers rely on
            parameter.grad = torch.empty_like(parameter).copy_(gradient)


def _energy(model: PyroFunction, x: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Return E(x), with shape ``(B,)``, from the model's site ``"energy"``."""
    nodes: dict[str, Any] = poutine.trace(model).get_trace(x, **kwargs).nodes
    return -nodes["energy"]["fn"].log_factor


_ADAM_BETAS = (0.5, 0.999)


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
        sides = {"energy": (self.module.energy_net, 1.0), "generator": (self.module.generator, self.generator_rate)}
        groups = {
            name: ParameterGroup(list(part.parameters()), rate, _ADAM_BETAS, 1.0 - self.mle_fraction)
            for name, (part, rate) in sides.items()
        }
        return {name: group for name, group in groups.items() if group.parameters}

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
        self, data: SemiSupervisedData, *, history: Sequence[dict[str, Any]] = (), seed: int = 0, **options: Any
    ) -> Validation:
        """Compare the energies of data and samples, and check for failures.

        Without validation examples, up to 1,000 training examples are used. The latest weights are chosen.
        """
        x = data.x_validation
        model: Any = self.module
        if not len(x):
            x = sample_rows(data.x)
            x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: diagnostics.NUM_DIAGNOSED]]
        metrics = diagnostics.energy_diagnostics(model, x[: diagnostics.NUM_DIAGNOSED], scale=data.scale, seed=seed)
        if model.num_classes is not None:
            error = diagnostics.classification_error(model, data.x_validation, data.y_validation, scale=data.scale)
            metrics = metrics if error is None else {"error": error, **metrics}
        newest = {**(history[-1] if history else {}), **{f"val/{name}": value for name, value in metrics.items()}}
        failure = diagnostics.find_failure([*history[:-1], newest])
        return Validation(metrics, failure=failure, keep=not diagnostics.has_collapsed(newest))


def _examples(batch: Batch) -> Tensor:
    x = batch.x_labelled if batch.x_unlabelled is None else batch.x_unlabelled
    assert x is not None  # a batch is never empty
    return x
