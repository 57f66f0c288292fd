"""Priors p(z): modules that return a Pyro distribution when called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import Permute, affine_coupling
from torch import Tensor, nn

from pyro_ssvae._configurable import Configurable
from pyro_ssvae.distributions.torch_distributions import DiagonalMixture, as_independent_normal

__all__ = ["Flow", "MixtureOfGaussians", "Prior", "StandardNormal", "StudentT", "Uniform", "VampPrior", "held"]


class Prior(Configurable):
    """Base class of the priors here. A model takes any module that returns a Pyro distribution over z when called.

    Args:
        latent_dim: Number of latents ``L``.

    Attributes:
        name: Short name that results and saved configurations carry.

    Raises:
        ValueError: If ``latent_dim`` is not positive.
    """

    name: str

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"latent_dim={latent_dim} must be at least 1.")
        self.latent_dim = int(latent_dim)

    def forward(self) -> dist.TorchDistribution:
        """Return the prior, with event shape ``(L,)``."""
        raise NotImplementedError(f"{type(self).__name__} must define forward() -> Pyro distribution over z.")

    def attach(self, pair: Any) -> None:
        """Learn of the model that the prior belongs to; called once, when the model is built."""

    def start_from(self, x: Tensor) -> None:
        """Take starting values from some training rows ``(B, *event_shape)``; called once, before training."""

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild the prior, besides ``latent_dim``, JSON-ready."""
        return {}


class StandardNormal(Prior):
    """The prior :math:`p(z) = N(0, I)` of Kingma et al. (2014).

    Args:
        latent_dim: Number of latents ``L``.

    Example:
        >>> StandardNormal(3)().event_shape
        torch.Size([3])
    """

    name = "normal"
    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        # Buffers, so that the prior follows the model to its device.
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return the prior, with event shape ``(L,)``."""
        return dist.Normal(self.loc, self.scale).to_event(1)


class Uniform(Prior):
    """Latents uniform on [-1, 1], what the generator of a :class:`~pyro_ssvae.DDGM` may start from.

    It is no prior for models that infer z: their Gaussian guides reach beyond it.

    Args:
        latent_dim: Number of latents ``L``.
    """

    name = "uniform"
    low: Tensor
    high: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.register_buffer("low", -torch.ones(latent_dim), persistent=False)
        self.register_buffer("high", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return the prior, with event shape ``(L,)``."""
        return dist.Uniform(self.low, self.high).to_event(1)


class StudentT(Prior):
    """Independent Student-t latents: heavy tails, so that a few rows may lie far out at little cost.

    Args:
        latent_dim: Number of latents ``L``.
        df: Degrees of freedom; large ones approach the standard normal.

    Raises:
        ValueError: If ``df`` is not positive.
    """

    name = "student_t"
    df: Tensor
    loc: Tensor

    def __init__(self, latent_dim: int, df: float = 5.0) -> None:
        super().__init__(latent_dim)
        if df <= 0.0:
            raise ValueError(f"df={df} must be positive; 5 is heavy-tailed, 30 nearly normal.")
        self.register_buffer("df", torch.full((latent_dim,), float(df)), persistent=False)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return the prior, with event shape ``(L,)``."""
        return dist.StudentT(self.df, self.loc, torch.ones_like(self.loc)).to_event(1)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"df": float(self.df[0])}


class MixtureOfGaussians(Prior):
    r"""A learnable mixture, :math:`p(z) = \sum_c w_c\, N(z;\, \mu_c, \mathrm{diag}(\sigma_c^2))`.

    Args:
        latent_dim: Number of latents ``L``.
        num_components: Number of Gaussians ``C``.

    Raises:
        ValueError: If ``num_components`` is not positive.
    """

    name = "mixture"

    def __init__(self, latent_dim: int, num_components: int = 100) -> None:
        super().__init__(latent_dim)
        self.num_components = _positive(num_components)
        self.logits = nn.Parameter(torch.zeros(num_components))
        # Spread like draws of the standard normal, which the mixture starts out near.
        self.loc = nn.Parameter(torch.randn(num_components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_components, latent_dim))

    def forward(self) -> dist.TorchDistribution:
        """Return the prior, with event shape ``(L,)``."""
        return DiagonalMixture(self.logits, self.loc, self.log_scale.exp())

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"num_components": self.num_components}


class VampPrior(Prior):
    r"""A mixture of the guide's own posteriors at learnable pseudo-inputs, :math:`p(z) = \sum_c w_c\, q(z \mid u_c)`.

    VAE with a VampPrior (Tomczak & Welling, 2018, https://arxiv.org/abs/1705.07120), equation 9, with learnable
    weights. In a model with classes each pseudo-input has a class too, in turn.

    Args:
        latent_dim: Number of latents ``L``.
        num_components: Number of pseudo-inputs ``C``.

    Raises:
        ValueError: If ``num_components`` is not positive.
        RuntimeError: From a call before the prior is part of a model.
    """

    name = "vamp"
    classes: Tensor

    def __init__(self, latent_dim: int, num_components: int = 500) -> None:
        super().__init__(latent_dim)
        self.num_components = _positive(num_components)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self._owner: list[Any] = []  # in a list, because a module would count as a part of this one
        self._squashed = False

    def attach(self, pair: Any) -> None:
        """Make the pseudo-inputs, shaped as the model's rows."""
        self._owner = [pair]
        self._squashed = bool(pair.likelihood.unit_interval)
        self.pseudo_inputs = nn.Parameter(torch.randn(self.num_components, *pair.event_shape))
        if pair.num_classes is not None:
            classes = torch.arange(self.num_components) % pair.num_classes
            self.register_buffer("classes", classes, persistent=False)

    @torch.no_grad()
    def start_from(self, x: Tensor) -> None:
        """Start at training rows, cycled where there are fewer than pseudo-inputs."""
        rows = x[torch.arange(self.num_components) % len(x)]
        if self._squashed:
            rows = torch.logit(rows.clamp(0.02, 0.98))  # a sigmoid away from where its gradient vanishes
        self.pseudo_inputs.copy_(rows)

    def forward(self) -> dist.TorchDistribution:
        """Return the prior, with event shape ``(L,)``."""
        if not self._owner:
            raise RuntimeError(
                "A VampPrior needs the guide of a model: hand it to one, as prior=VampPrior(latent_dim)."
            )
        u = self.pseudo_inputs.sigmoid() if self._squashed else self.pseudo_inputs  # (C, *event_shape)
        pair = self._owner[0]
        qz = pair.encode(u, self.classes) if hasattr(self, "classes") else pair.encode(u)
        normal = as_independent_normal(qz)
        if normal is None:
            return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), qz)
        return DiagonalMixture(self.logits, normal.loc, normal.scale)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"num_components": self.num_components}


class Flow(Prior):
    """A normalising flow: affine couplings (real NVP) over a standard normal, by Pyro's transforms.

    Density estimation using Real NVP (Dinh, Sohl-Dickstein, Bengio, 2017, https://arxiv.org/abs/1605.08803).

    Args:
        latent_dim: Number of latents ``L``, at least 2: each coupling moves one half given the other.
        num_layers: Number of couplings, between which the order of latents is reversed.
        hidden_dim: Width of the two hidden layers of each coupling's network.

    Raises:
        ValueError: For fewer than two latents or non-positive sizes.
    """

    name = "flow"

    def __init__(self, latent_dim: int, num_layers: int = 6, hidden_dim: int = 128) -> None:
        super().__init__(latent_dim)
        if latent_dim < 2 or num_layers < 1 or hidden_dim < 1:
            raise ValueError(
                f"Flow needs latent_dim >= 2, num_layers >= 1 and hidden_dim >= 1; got {latent_dim}, {num_layers} "
                f"and {hidden_dim}."
            )
        self.num_layers, self.hidden_dim = int(num_layers), int(hidden_dim)
        self.base = StandardNormal(latent_dim)
        couplings = [affine_coupling(latent_dim, [hidden_dim] * 2) for _ in range(num_layers)]
        for coupling in couplings:  # identity maps at first, so that the prior starts out standard normal
            last = coupling.nn.layers[-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.couplings = nn.ModuleList(couplings)
        self.register_buffer("reversed", torch.arange(latent_dim - 1, -1, -1), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return the prior, with event shape ``(L,)``."""
        transforms: list[Any] = []
        for coupling in self.couplings:
            transforms += [coupling, Permute(self.reversed)]
        return _Flow(self.base(), transforms)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"num_layers": self.num_layers, "hidden_dim": self.hidden_dim}


class _Flow(dist.TransformedDistribution):
    """A transformed distribution that keeps nothing of what it computed.

    Pyro's couplings remember their last input and scale. As parts of a model they would carry the graph of an old
    step about, which can be neither copied nor recorded.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        result: Tensor = super().log_prob(value)
        self._forget()
        return result

    def sample(self, sample_shape: Any = ()) -> Tensor:
        result: Tensor = super().sample(sample_shape)
        self._forget()
        return result

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        result: Tensor = super().rsample(sample_shape)
        self._forget()
        return result

    def _forget(self) -> None:
        for transform in self.transforms:
            transform._cached_x_y = None, None
            if hasattr(transform, "_cached_log_scale"):
                transform._cached_log_scale = None


def _positive(num_components: int) -> int:
    if num_components < 1:
        raise ValueError(f"num_components={num_components} must be at least 1.")
    return int(num_components)


@contextmanager
def held(prior: Any) -> Iterator[None]:
    """Build the distribution of a prior of this package once, for as long as nothing it depends on changes.

    A VampPrior passes all its pseudo-inputs through the encoder whenever it is called. A prior of the caller's own,
    which may draw something when called, is left alone.
    """
    if not (isinstance(prior, Prior) and type(prior).__module__.startswith("pyro_ssvae.")):
        yield
        return
    distribution = prior()
    vars(prior)["forward"] = lambda: distribution  # of this instance, in front of its class's
    try:
        yield
    finally:
        del vars(prior)["forward"]
