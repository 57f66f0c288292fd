r"""DDGM: an energy model and a generator that learn from each other (Kim & Bengio 2016).

The energy model says how likely rows are, up to a factor:

.. math:: p_\theta(x) = \frac{e^{-E_\theta(x)}}{Z_\theta}, \qquad
    E_\theta(x) = \frac{\|x\|^2}{\sigma^2} - b^\top x - \sum_i \mathrm{softplus}\bigl(W_i^\top f(x) + c_i\bigr)

The generator draws rows like it, without Markov chains: :math:`z \sim p(z), \; x = G_\phi(z)`.

Reference: Deep Directed Generative Models with Energy-Based Probability Estimation (Kim & Bengio, 2016),
https://arxiv.org/abs/1606.03439.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_ssvae.models.base import Model, data_plate, evaluation_mode
from pyro_ssvae.models.inversion import nearest_latents
from pyro_ssvae.networks import EnergyNet, make_features, make_generator
from pyro_ssvae.networks.energy import DIGIT_SIZE, RANGES, check_module

__all__ = ["DDGM", "langevin"]


class DDGM(Model):
    """The DDGM model/guide module: ``model`` scores rows by their energy, ``guide`` draws rows by the generator.

    Shapes in the comments: ``B`` rows, ``L`` latents, ``F`` features.

    Args:
        event_shape: Shape of one row, for example ``(1, 28, 28)`` for images or ``(2,)`` for points.
        latent_dim: Number of latents ``L`` of the generator; ``None`` is 4 for up to 16 numbers a row, else 32.
        num_experts: Experts of the energy; ``None`` is 4 for up to 16 numbers a row, else 64.
        experts: A module of your own instead of them; maps features ``(B, F)`` to what each expert adds to −E(x), with
            shape ``(B, M)``.
        sigma: σ of the energy's quadratic term; ``None`` is 1 for up to 16 numbers a row, √10 for up to 784,
            and √(10 D / 784) for D beyond.
        features: ``"auto"``, ``"conv"``, ``"mlp"``, or a module that maps rows ``(B, *event_shape)`` to features
            ``(B, F)``, best bounded ones.
        generator: ``"auto"``, ``"conv"``, ``"mlp"``, or a module that maps z ``(B, L)`` to rows ``(B, *event_shape)``.
        prior: p(z): ``"normal"``, ``"uniform"`` on [-1, 1], another name in ``pyro_ssvae.distributions.PRIORS``, or a
            module that returns a distribution when called; ``None`` is uniform for up to 16 numbers a row, else normal.
        output: What bounds the generator's rows: ``"identity"``, ``"sigmoid"`` or ``"tanh"``; ``None`` is the identity
            for up to 16 numbers a row, else sigmoid.
        num_classes: Number of classes ``K`` for a head E(x, y); ``None`` for none.

    Raises:
        ValueError: For an empty event shape, sizes that are not positive, unknown names, or parts that do not fit.
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
        larger = max(1.0, math.prod(event_shape) / DIGIT_SIZE)  # than digits: |x|² / σ² stays as large
        latent_dim = (4 if small else 32) if latent_dim is None else latent_dim
        num_experts = (4 if small else 64) if num_experts is None else num_experts
        sigma = (1.0 if small else math.sqrt(10.0 * larger)) if sigma is None else sigma
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

    # The energy, and the generator that draws like it.

    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        """Score rows, observed or generated, by −E(x), or −E(x, y): log p(x), or log p(x, y), up to log Z.

        Args:
            x: Rows with shape ``(B, *event_shape)``.
            y: Integer classes with shape ``(B,)``, for a model with classes; ``None`` where they are not known.
            size: Number of rows the minibatch stands for; ``None`` is ``B``.
        """
        with data_plate(x, size):
            if y is None:
                pyro.factor("energy", -self.energy_net(x))  # (B,)
            else:
                pyro.factor("energy", self.classify(x).gather(-1, y.unsqueeze(-1)).squeeze(-1))  # (B,)

    def guide(self, x: Tensor, *, size: int | None = None) -> Tensor:
        """Draw as many rows as ``x`` has, by the generator.

        Args:
            x: Rows with shape ``(B, *event_shape)``, of which only the number counts.
            size: Number of rows the minibatch stands for; ``None`` is ``B``.

        Returns:
            Generated rows with shape ``(B, *event_shape)``.
        """
        with data_plate(x, size):
            z = pyro.sample("z", self.prior())  # (B, L)
        generated: Tensor = pyro.deterministic("x", self.generator(z), event_dim=len(self.event_shape))
        return generated

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of each side, ``"energy"`` and ``"generator"``."""
        return {"energy": list(self.energy_net.parameters()), "generator": list(self.generator.parameters())}

    # Use.

    def classify(self, x: Tensor) -> Tensor:
        """Return −E(x, y), the logits of p(y|x), with shape ``(B, K)``, for rows ``(B, *event_shape)``.

        Raises:
            ValueError: For a model without classes.
        """
        if self.num_classes is None:
            raise ValueError("This DDGM knows no classes; build it with num_classes=K and train it with labelled rows.")
        logits: Tensor = -self.energy_net.by_class(x)
        return logits

    def energy(self, x: Tensor) -> Tensor:
        """Return E(x) in nats, with shape ``(B,)``, in evaluation mode: low for likely rows.

        Args:
            x: Rows with shape ``(B, *event_shape)``, scaled as in training.

        Raises:
            ValueError: If rows have another shape than the model's.
        """
        self._check_input(x)
        with torch.no_grad(), evaluation_mode(self):
            energy: Tensor = self.energy_net(x.to(next(self.parameters())))
            return energy

    def score_samples(self, x: Tensor) -> Tensor:
        """Return −E(x), with shape ``(B,)``: log p(x) up to a constant, as scikit-learn's density models name it."""
        return -self.energy(x)

    def features(self, x: Tensor) -> Tensor:
        """Return the features f(x) of rows, with shape ``(B, F)``, in evaluation mode.

        Raises:
            ValueError: If rows have another shape than the model's.
        """
        self._check_input(x)
        with torch.no_grad(), evaluation_mode(self):
            features: Tensor = self.energy_net.features(x.to(next(self.parameters())))
            return features

    def sample(
        self,
        num_samples: int,
        *,
        latent_steps: int = 0,
        latent_step_size: float = 0.025,
        tilt: float = 0.3,
        langevin_steps: int = 0,
        step_size: float = 0.0005,
        temperature: float = 1.0,
    ) -> Tensor:
        r"""Draw rows by the generator, and optionally move them along the energy, in z or in x.

        In z, Langevin dynamics under :math:`p(z)\, e^{-\lambda E(G(z))}` leave the malformed rows of a generator, and
        keep to what it can draw. Where :math:`P_G = e^{-E} / Z`, rows are then of :math:`e^{-(1 + \lambda) E}`, the
        energy's distribution at the temperature 1 / (1 + λ): of higher quality, and less varied (after Your GAN is Secretly an
        Energy-based Model, Che et al., 2020, https://arxiv.org/abs/2003.06060).

        Args:
            num_samples: Number of rows.
            latent_steps: Steps of z.
            latent_step_size: Of these.
            tilt: λ of these.
            langevin_steps: Steps of rows afterwards (:func:`~pyro_ssvae.models.langevin`); those of a generator that
                bounds them are kept within its bounds. For points.
            step_size: Of these.
            temperature: Of these; 1 is that of :math:`e^{-E}`.

        Returns:
            Rows with shape ``(num_samples, *event_shape)``.

        Raises:
            ValueError: For a non-positive number of samples or step size, or a negative number of steps, tilt or
                temperature.
        """
        counts = {"latent_steps": latent_steps, "tilt": tilt, "langevin_steps": langevin_steps}
        if num_samples < 1 or any(not value >= 0 for value in counts.values()):
            given = ", ".join(f"{name}={value}" for name, value in counts.items())
            raise ValueError(f"num_samples={num_samples} must be at least 1, and {given} not negative.")
        if not latent_step_size > 0.0:
            raise ValueError(f"latent_step_size={latent_step_size} must be positive.")
        with torch.no_grad(), evaluation_mode(self):
            prior = self.prior()
            z = prior.sample((num_samples,))

            def tilted(z: Tensor) -> Tensor:
                energy: Tensor = tilt * self.energy_net(self.generator(z)) - prior.log_prob(z)
                return energy

            z = langevin(tilted, z, latent_steps, latent_step_size, bounds=_bounds_of(prior))
            options: dict[str, Any] = {"temperature": temperature, "bounds": self._range}
            return langevin(self.energy_net, self.generate_from(z), langevin_steps, step_size, **options)

    def generate_from(self, z: Tensor) -> Tensor:
        """Return G(z), with shape ``(B, *event_shape)``, for latents ``(B, L)``, in evaluation mode.

        Args:
            z: Latents with shape ``(B, L)``.

        Raises:
            ValueError: For latents of another shape.
        """
        self._check_latents(z)
        with torch.no_grad(), evaluation_mode(self):
            rows: Tensor = self.generator(z)
            return rows

    def invert(self, x: Tensor, *, space: str = "features", num_starts: int = 64, steps: int = 200) -> Tensor:
        r"""Return latents whose generated rows lie nearest to given ones: :math:`\arg\min_z \|h(G(z)) - h(x)\|^2`.

        Args:
            x: Rows with shape ``(B, *event_shape)``, scaled as in training.
            space: Where distances are taken: ``"features"`` (h = f) or ``"rows"`` (h is the identity).
            num_starts: Draws of z, the best of which is the start.
            steps: Steps of Adam from there.

        Returns:
            Latents with shape ``(B, L)``.

        Raises:
            ValueError: If rows have another shape than the model's, for an unknown space, or fewer than one start or
                no steps.
        """
        _one_of(space, ("features", "rows"))
        if num_starts < 1 or steps < 0:
            raise ValueError(f"num_starts={num_starts} must be at least 1, and steps={steps} not negative.")
        self._check_input(x)
        embed = self.energy_net.features if space == "features" else nn.Flatten()
        x = x.to(next(self.parameters()))
        with torch.no_grad(), evaluation_mode(self):
            target: Tensor = embed(x)
        return self._nearest(target, embed, num_starts=num_starts, steps=steps)

    def interpolate(self, start: Tensor, end: Tensor, *, steps: int = 8, space: str = "z") -> Tensor:
        """Generate from points on the line between latents, or between the features of what they generate.

        Args:
            start: Latents with shape ``(B, L)``; of given rows by :meth:`invert`.
            end: As many.
            steps: Points, both ends included; at least 2.
            space: ``"z"``, or ``"features"``: points on the line of features, each brought back to a z
                (:meth:`invert`), starting from the point on the line of z.

        Returns:
            Rows with shape ``(steps, B, *event_shape)``.

        Raises:
            ValueError: For fewer than two steps, latents of other or different shapes, or an unknown space.
        """
        if steps < 2 or start.shape != end.shape:
            raise ValueError(
                f"steps={steps} must be at least 2, and start {tuple(start.shape)} and end {tuple(end.shape)} alike."
            )
        t = torch.linspace(0.0, 1.0, steps, device=start.device).view(-1, 1, 1)
        return self._combined(lambda a, b: a + t * (b - a), (start, end), space)

    def analogy(self, a: Tensor, b: Tensor, c: Tensor, *, space: str = "z") -> Tensor:
        """Generate what is to ``c`` as ``b`` is to ``a``: from c + b − a, of latents or of features.

        Args:
            a: Latents with shape ``(B, L)``; of given rows by :meth:`invert`.
            b: As many.
            c: As many.
            space: ``"z"`` or ``"features"``, as in :meth:`interpolate`.

        Returns:
            Rows with shape ``(B, *event_shape)``.

        Raises:
            ValueError: For latents of other or different shapes, or an unknown space.
        """
        if not a.shape == b.shape == c.shape:
            raise ValueError(
                f"a, b and c must have one shape; got {tuple(a.shape)}, {tuple(b.shape)}, {tuple(c.shape)}."
            )
        return self._combined(lambda a, b, c: (c + b - a).unsqueeze(0), (a, b, c), space)[0]

    def _check_latents(self, z: Tensor) -> None:
        if z.dim() != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"Latents must have shape (B, {self.latent_dim}); got {tuple(z.shape)}.")

    def _combined(self, combine: Callable[..., Tensor], latents: Sequence[Tensor], space: str) -> Tensor:
        """Return rows ``(S, B, *event_shape)`` from a combination ``(S, B, ...)`` of latents or of their features."""
        _one_of(space, ("z", "features"))
        for part in latents:
            self._check_latents(part)
        z = combine(*latents)
        bounds = _bounds_of(self.prior())
        z = z if bounds is None else z.clamp(*bounds)  # c + b - a may leave them
        shape = z.shape[:2]
        if space == "features":
            wanted = combine(*(self.features(self.generate_from(part)) for part in latents))
            z = self._nearest(wanted.flatten(0, 1), self.energy_net.features, start=z.flatten(0, 1))
        return self.generate_from(z.view(-1, self.latent_dim)).view(*shape, *self.event_shape)

    def _nearest(self, target: Tensor, embed: nn.Module, **options: Any) -> Tensor:
        with evaluation_mode(self):
            return nearest_latents(target, lambda z: embed(self.generator(z)), self.prior(), **options)


def langevin(
    energy: Callable[[Tensor], Tensor],
    x: Tensor,
    steps: int,
    step_size: float,
    *,
    temperature: float = 1.0,
    clip: float = 50.0,
    bounds: tuple[Any, Any] | None = None,
) -> Tensor:
    r"""Return rows after some steps of Langevin dynamics, detached.

    .. math:: x \leftarrow x - \eta\,\nabla E(x) + \sqrt{2 \eta T}\,\epsilon, \qquad \epsilon \sim N(0, I)

    Args:
        energy: Maps rows ``(B, *event_shape)`` to energies ``(B,)``.
        x: Rows with shape ``(B, *event_shape)``.
        steps: Number of steps.
        step_size: η.
        temperature: T.
        clip: Largest size of an element of the gradient.
        bounds: Least and largest element of a row, to which rows are brought back after each step; ``None`` for none.

    Raises:
        ValueError: For a step size that is not positive, or a negative temperature or number of steps.
    """
    if not (step_size > 0.0 and temperature >= 0.0 and steps >= 0):
        raise ValueError(
            f"step_size={step_size} must be positive, and temperature={temperature} and steps={steps} not negative."
        )
    noise_scale = math.sqrt(2.0 * step_size * temperature)
    x = x.detach()
    for _ in range(steps):
        with torch.enable_grad():
            x = x.requires_grad_()
            (slope,) = torch.autograd.grad(energy(x).sum(), x)
        x = x.detach() - step_size * slope.clamp(-clip, clip) + noise_scale * torch.randn_like(x)
        x = x if bounds is None else x.clamp(*bounds)
    return x


def _bounds_of(distribution: Any) -> tuple[Any, Any] | None:
    """Return the least and the largest latent that a prior allows, ``None`` where it allows all."""
    support = getattr(distribution.support, "base_constraint", None)
    return (support.lower_bound, support.upper_bound) if isinstance(support, constraints.interval) else None


def _one_of(space: str, allowed: Sequence[str]) -> None:
    if space not in allowed:
        raise ValueError(f"space={space!r} must be one of {', '.join(allowed)}.")
