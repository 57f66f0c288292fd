r"""DDGM: an energy model and a generator of samples from it (Kim & Bengio 2016).

The energy model defines a density up to its normalising constant:

.. math:: p_\theta(x) = \frac{e^{-E_\theta(x)}}{Z_\theta}, \qquad
    E_\theta(x) = \frac{\|x\|^2}{\sigma^2} - b^\top x - \sum_i \mathrm{softplus}\bigl(W_i^\top f(x) + c_i\bigr)

The generator approximates it, without Markov chains: :math:`z \sim p(z), \; x = G_\phi(z)`.

Reference: Deep Directed Generative Models with Energy-Based Probability Estimation (Kim & Bengio, 2016),
https://arxiv.org/abs/1606.03439.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from numpy.typing import ArrayLike
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from pyro_ssvae._arguments import check_choice, checked
from pyro_ssvae._arrays import to_numpy, value_range
from pyro_ssvae._configurable import find_parameters
from pyro_ssvae._warnings import warn
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.storage import sample_rows
from pyro_ssvae.models.base import Model, data_plate
from pyro_ssvae.networks.energy import MNIST_SIZE, RANGES, EnergyNet, make_features, make_generator
from pyro_ssvae.networks.variational import check_module, evaluation_mode

_MAX_GRADIENT = 50.0  # of an element, in Langevin dynamics
_AT_ONCE = 10_000  # samples that are generated together
_MARGIN = 1e-3  # by which rounding may take examples out of the range of the generator
_MOST_UNITS = 20.0  # largest mean and standard deviation of a column; a smaller one than 1/20 is lost in noise
_NUM_STARTS = 64  # of the inversion
_INVERSION_RATE = 0.05  # learning rate of the unconstrained latents


class DDGM(Model):
    """The DDGM: ``model`` scores data by their energy, ``guide`` draws samples from the generator.

    Shapes in the comments: ``B`` examples, ``L`` latents, ``F`` features.

    Args:
        event_shape: Shape of one example, for example ``(1, 28, 28)`` for images or ``(2,)`` for points.
        latent_dim: Number of latents ``L`` of the generator; ``None``: 4 for up to 16 elements of x, else 32.
        num_experts: Number of experts of the energy; ``None``: 4 for up to 16 elements of x, else 64.
        experts: A module instead of them; maps features ``(B, F)`` to the terms of the sum in −E(x), ``(B, M)``.
        sigma: σ of the energy's quadratic term; ``None``: 1 for up to 16 elements of x, √10 for up to 784, and
            √(10 D / 784) for D beyond.
        features: ``"auto"``, ``"conv"``, ``"mlp"``, or a module that maps x ``(B, *event_shape)`` to features
            ``(B, F)``, preferably bounded.
        generator: ``"auto"``, ``"conv"``, ``"mlp"``, or a module that maps z ``(B, L)`` to x ``(B, *event_shape)``.
        prior: p(z): ``"normal"``, ``"uniform"`` on [-1, 1], another name in ``pyro_ssvae.distributions.PRIORS`` but
            ``"vamp"``, or a module that returns a distribution when called; ``None``: uniform for up to 16 elements of
            x, else normal.
        output: Last layer of the generator: ``"identity"``, ``"sigmoid"`` or ``"tanh"``; ``None``: the identity for up
            to 16 elements of x, else sigmoid. ``for_data`` takes the identity for tables with values outside of [0, 1].
        num_classes: Number of classes ``K`` of E(x, y); ``None`` for none.

    Raises:
        ValueError: For an empty event shape, sizes that are not positive, unknown names, or modules that do not fit.
        TypeError: For parts of the wrong type.

    Example:
        >>> ddgm = DDGM((2,))
        >>> ddgm.sample(5).shape, ddgm.energy(torch.zeros(3, 2)).shape
        (torch.Size([5, 2]), torch.Size([3]))
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        latent_dim: int | None = None,
        num_experts: int | None = None,
        experts: nn.Module | None = None,
        sigma: float | None = None,
        features: str | nn.Module = "auto",
        generator: str | nn.Module = "auto",
        prior: str | nn.Module | None = None,
        output: str | None = None,
        num_classes: int | None = None,
    ) -> None:
        small = math.prod(event_shape) <= 16
        relative_size = max(1.0, math.prod(event_shape) / MNIST_SIZE)  # keeps |x|² / σ² of the same size
        latent_dim = (4 if small else 32) if latent_dim is None else latent_dim
        num_experts = (4 if small else 64) if num_experts is None else num_experts
        sigma = (1.0 if small else math.sqrt(10.0 * relative_size)) if sigma is None else sigma
        output = ("identity" if small else "sigmoid") if output is None else output
        prior = ("uniform" if small else None) if prior is None else prior
        super().__init__(event_shape, latent_dim, prior, num_classes)
        self.energy_net = EnergyNet(
            self.event_shape,
            make_features(features, self.event_shape),
            num_experts if experts is None else experts,
            sigma=sigma,
            num_classes=num_classes,
        )
        self.generator = make_generator(generator, latent_dim, self.event_shape, output=output)
        check_module(self.generator, (latent_dim,), self.event_shape, "generator")
        self._range = RANGES[output] if isinstance(generator, str) else None
        self._attach_prior()

    @classmethod
    def _class_arguments(cls, data: SemiSupervisedData) -> dict[str, Any]:
        return {"num_classes": data.num_classes} if data.num_labelled else {}

    @classmethod
    def _choose_arguments(cls, data: SemiSupervisedData, given: Mapping[str, Any]) -> dict[str, Any]:
        is_table = len(data.event_shape) == 1 and "output" in find_parameters(cls)
        return {"output": "identity"} if is_table and not _lie_within(data, 0.0, 1.0) else {}

    def check_data(self, data: SemiSupervisedData) -> None:
        """Check as :meth:`Model.check_data`, and warn of values that the generator, or the energy, does not suit."""
        super().check_data(data)
        x = sample_rows(data.x)
        words = ""
        if self._range is not None and not _lie_within(data, *self._range):
            low, high = (end / data.scale for end in value_range(x))
            words = (
                f"The examples span [{low:g}, {high:g}], and the generator's samples lie in {list(self._range)}. "
                "Divide images by a constant (`scale`); standardise columns of tables, and build the DDGM with "
                "output='identity'."
            )
        elif self._range is None and x.dim() == 2:
            words = _describe_units(x.double() / data.scale, data.feature_names)
        if words:
            warn(words)

    # Model and guide.

    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        """Score data or samples by −E(x), or −E(x, y): log p(x), or log p(x, y), up to log Z.

        Args:
            x: Examples with shape ``(B, *event_shape)``.
            y: Integer classes with shape ``(B,)``, for a model with classes; ``None`` where they are unknown.
            size: Number of examples that the minibatch stands for; ``None`` is ``B``.
        """
        with data_plate(x, size):
            if y is None:
                pyro.factor("energy", -self.energy_net(x))  # (B,)
            else:
                pyro.factor("energy", self.classify(x).gather(-1, y.unsqueeze(-1)).squeeze(-1))  # (B,)

    def guide(self, x: Tensor, *, size: int | None = None) -> Tensor:
        """Draw as many samples from the generator as there are examples in ``x``, whose values do not matter."""
        with data_plate(x, size):
            z = pyro.sample("z", self.prior())  # (B, L)
        return pyro.deterministic("x", self.generator(z), event_dim=len(self.event_shape))

    # Use.

    def classify(self, x: Tensor) -> Tensor:
        """Return −E(x, y), the logits of p(y|x), with shape ``(B, K)``, for x ``(B, *event_shape)``.

        Raises:
            ValueError: For a model without classes.
        """
        if self.num_classes is None:
            raise ValueError("This DDGM has no classes; build it with num_classes=K and train it with labelled data.")
        return -self.energy_net.by_class(x)

    def energy(self, x: ArrayLike) -> Tensor:
        """Return E(x) in nats, with shape ``(B,)``, in evaluation mode: low for likely examples.

        Args:
            x: Examples with shape ``(B, *event_shape)``, as for :meth:`Model.predict_proba`.

        Raises:
            ValueError: If ``x`` does not have the model's event shape.
        """
        return self._map(self.energy_net, x)

    def score_samples(self, x: ArrayLike) -> Tensor:
        """Return −E(x), log p(x) up to a constant, with shape ``(B,)``; named as in scikit-learn's density models."""
        return -self.energy(x)

    def features(self, x: ArrayLike) -> Tensor:
        """Return the features f(x), with shape ``(B, F)``; arguments and errors are those of :meth:`energy`."""
        return self._map(self.energy_net.features, x)

    @checked
    def sample(self, num_samples: int, *, langevin_steps: int = 0, step_size: float = 0.0005) -> Tensor:
        """Draw samples from the generator, optionally followed by Langevin dynamics in x under the energy.

        Langevin steps bring points nearer to the energy's distribution, and add noise to images.

        Args:
            num_samples: Number of samples.
            langevin_steps: Number of Langevin steps, which stay in the range of the generator's last layer.
            step_size: Size of the Langevin steps.

        Returns:
            Samples with shape ``(num_samples, *event_shape)``.

        Raises:
            ValueError: For numbers out of range.
        """
        with torch.no_grad(), evaluation_mode(self):
            parts = self.prior().sample((num_samples,)).split(_AT_ONCE)  # as the layers are wider than z and x
            x = torch.cat([self.generator(part) for part in parts])
            return langevin(self.energy_net, x, langevin_steps, step_size, bounds=self._range)

    def generate_from(self, z: ArrayLike) -> Tensor:
        """Return G(z), ``(B, *event_shape)``, in evaluation mode; ``ValueError`` unless z is ``(B, L)``."""
        with torch.no_grad(), evaluation_mode(self):
            return self.generator(self._as_latents(z))

    @checked
    def invert(self, x: ArrayLike, *, space: str = "features", steps: int = 200) -> Tensor:
        r"""Return the latents of the samples nearest to x: :math:`\arg\min_z \|h(G(z)) - h(x)\|^2`.

        Args:
            x: Examples with shape ``(B, *event_shape)``, as for :meth:`Model.predict_proba`.
            space: Where distances are taken: ``"features"`` (h = f) or ``"x"`` (h is the identity).
            steps: Steps of Adam.

        Returns:
            Latents with shape ``(B, L)``.

        Raises:
            ValueError: If ``x`` does not have the model's event shape, for an unknown space, or a negative number of
                steps.
        """
        check_choice("space", space, ("features", "x"))
        embed = self.energy_net.features if space == "features" else nn.Flatten()
        return self._nearest(self._map(embed, x), embed, steps=steps)

    @checked
    def interpolate(self, start: ArrayLike, end: ArrayLike, *, steps: int = 8, space: str = "z") -> Tensor:
        """Generate samples from points on the line between latents, or between the features of their samples.

        Args:
            start: Latents with shape ``(B, L)``; :meth:`invert` returns those of examples.
            end: Latents with the shape of ``start``.
            steps: Number of points, both ends included; at least 2.
            space: ``"z"``, or ``"features"``: each point on the line of features is mapped back to latents as in
                :meth:`invert`, starting from the point on the line of latents.

        Returns:
            Samples with shape ``(steps, B, *event_shape)``.

        Raises:
            ValueError: For fewer than two steps, latents of wrong or different shapes, or an unknown space.
        """
        start, end = self._as_latents(start), self._as_latents(end)
        if steps < 2 or start.shape != end.shape:
            raise ValueError(
                f"steps={steps} must be at least 2, and start {tuple(start.shape)} and end {tuple(end.shape)} alike."
            )
        t = torch.linspace(0.0, 1.0, steps, device=start.device).view(-1, 1, 1)
        return self._combine(lambda a, b: a + t * (b - a), (start, end), space)

    def analogy(self, a: ArrayLike, b: ArrayLike, c: ArrayLike, *, space: str = "z") -> Tensor:
        """Generate what is to ``c`` as ``b`` is to ``a``, from c + b − a in the space of latents or of features.

        All three are latents with shape ``(B, L)``, and the result has shape ``(B, *event_shape)``; ``space`` and
        errors are those of :meth:`interpolate`.
        """
        a, b, c = (self._as_latents(z) for z in (a, b, c))
        if not a.shape == b.shape == c.shape:
            raise ValueError(
                f"a, b and c must have one shape; got {tuple(a.shape)}, {tuple(b.shape)}, {tuple(c.shape)}."
            )
        return self._combine(lambda a, b, c: (c + b - a).unsqueeze(0), (a, b, c), space)[0]

    def _as_latents(self, z: ArrayLike) -> Tensor:
        z = z if isinstance(z, Tensor) else torch.as_tensor(to_numpy(z, "latents")).to(next(self.parameters()))
        if z.dim() != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"Latents must have shape (B, {self.latent_dim}); got {tuple(z.shape)}.")
        return z

    def _combine(self, combine: Callable[..., Tensor], latents: Sequence[Tensor], space: str) -> Tensor:
        """Return samples ``(S, B, *event_shape)`` from a combination ``(S, B, ...)`` of latents or of features."""
        check_choice("space", space, ("features", "z"))
        z = combine(*latents)
        support = _interval(self.prior())
        if support is not None:  # c + b - a may lie outside of it
            z = z.clamp(support.lower_bound, support.upper_bound)
        shape = z.shape[:2]
        if space == "features":
            target = combine(*(self.features(self.generate_from(part)) for part in latents))
            z = self._nearest(target.flatten(0, 1), self.energy_net.features, start=z.flatten(0, 1))
        return self.generate_from(z.view(-1, self.latent_dim)).view(*shape, *self.event_shape)

    def _nearest(self, target: Tensor, embed: nn.Module, **options: Any) -> Tensor:
        with evaluation_mode(self):
            return nearest_latents(target, lambda z: embed(self.generator(z)), self.prior(), **options)


def _lie_within(data: SemiSupervisedData, least: float, most: float) -> bool:
    low, high = (end / data.scale for end in value_range(sample_rows(data.x)))
    return least - _MARGIN <= low and high <= most + _MARGIN


def _describe_units(x: Tensor, names: Sequence[str]) -> str:
    """Return a warning of columns of a table that are far from standardised; empty if there are none."""
    mean, std = x.mean(0), x.std(0, unbiased=False)
    far = (std > 0.0) & ((std < 1.0 / _MOST_UNITS) | (std > _MOST_UNITS) | (mean.abs() > _MOST_UNITS))
    columns = far.nonzero().flatten().tolist()
    if not columns:
        return ""
    shown = ", ".join(f"{names[i] if names else i} ({mean[i]:.3g} ± {std[i]:.3g})" for i in columns[:5])
    return (
        "A DDGM needs columns with a mean of about 0 and a standard deviation of about 1, as DDGMDensity makes them; "
        f"standardise column {shown}{', ...' if len(columns) > 5 else ''}."
    )


def langevin(
    energy: Callable[[Tensor], Tensor],
    x: Tensor,
    steps: int,
    step_size: float,
    *,
    bounds: tuple[Any, Any] | None = None,
) -> Tensor:
    r"""Return x after some steps of Langevin dynamics, detached.

    .. math:: x \leftarrow x - \eta\,\nabla E(x) + \sqrt{2 \eta}\,\epsilon, \qquad \epsilon \sim N(0, I)

    with the elements of the gradient clipped to [-50, 50], and x to ``bounds`` if there are any.
    """
    noise_scale = math.sqrt(2.0 * step_size)
    x = x.detach()
    for _ in range(steps):
        with torch.enable_grad():
            x = x.requires_grad_()
            (gradient,) = torch.autograd.grad(energy(x).sum(), x)
        gradient = gradient.clamp(-_MAX_GRADIENT, _MAX_GRADIENT)
        x = x.detach() - step_size * gradient + noise_scale * torch.randn_like(x)
        x = x if bounds is None else x.clamp(*bounds)
    return x


def _interval(prior: TorchDistribution) -> constraints.interval | None:
    """Return the interval that each latent lies in, ``None`` for unbounded latents."""
    support = getattr(prior.support, "base_constraint", None)
    return support if isinstance(support, constraints.interval) else None


def nearest_latents(
    target: Tensor,
    function: Callable[[Tensor], Tensor],
    prior: TorchDistribution,
    *,
    start: Tensor | None = None,
    steps: int = 200,
) -> Tensor:
    r"""Return latents ``(B, L)`` whose image under a function, ``(B, D)``, is nearest to a target ``(B, D)``.

    .. math:: \hat z = \arg\min_z \|h(z) - t\|^2

    Adam, within the support of the prior, starts from the best of 64 draws from it or at ``start``, and may end in a
    local minimum. The best latents found are returned, detached.
    """
    if start is None:
        with torch.no_grad():
            draws = prior.sample((_NUM_STARTS,))  # (S, L)
            start = draws[torch.cdist(target, function(draws)).argmin(-1)]
    bijection = biject_to(prior.support)
    free = bijection.inv(start.detach())
    if _interval(prior) is not None:  # at its ends gradients with respect to the unconstrained latents vanish
        free = free.clamp(-6.0, 6.0)
    free.requires_grad_()
    optimizer = torch.optim.Adam([free], lr=_INVERSION_RATE)
    best, least = start.detach(), torch.full((len(target),), torch.inf, device=target.device)
    for step in range(steps + 1):
        with torch.enable_grad():
            z = bijection(free)
            distance = (function(z) - target).square().sum(-1)
            (free.grad,) = torch.autograd.grad(distance.sum(), free)
        nearer = distance.detach() < least
        best = torch.where(nearer.unsqueeze(-1), z.detach(), best)
        least = torch.where(nearer, distance.detach(), least)
        if step < steps:
            optimizer.step()
    return best
