"""Priors p(z): modules that return a Pyro distribution when called."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineCoupling, Permute
from torch import Tensor, nn

from pyro_ssvae._configurable import Configurable
from pyro_ssvae.distributions.likelihoods import fill_missing
from pyro_ssvae.distributions.torch_distributions import DiagonalMixture, StudentTOfTensors, as_independent_normal

__all__ = ["Flow", "MixtureOfGaussians", "Prior", "StandardNormal", "StudentT", "Uniform", "VampPrior", "cache_prior"]


class Prior(Configurable):
    """Base class of priors; a model accepts any module that returns a Pyro distribution over z when called.

    Args:
        latent_dim: Number of latents ``L``.

    Attributes:
        name: Name in results and saved configurations.

    Raises:
        ValueError: If ``latent_dim`` is not positive.
    """

    name: str

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def forward(self) -> dist.TorchDistribution:
        """Return the prior, with event shape ``(L,)``."""
        raise NotImplementedError(f"{type(self).__name__} must define forward() -> Pyro distribution over z.")

    def attach(self, model: Any) -> None:
        """Use the model that the prior belongs to; called once, when the model is built."""

    def start_from(self, x: Tensor) -> None:
        """Initialise parameters from training examples ``(B, *event_shape)``; called once, before training."""

    def config(self) -> dict[str, Any]:
        """Return the arguments that rebuild the prior, besides ``latent_dim``, JSON-serialisable."""
        return {}


class StandardNormal(Prior):
    """The prior :math:`p(z) = N(0, I)` of Kingma et al. (2014).

    Example:
        >>> StandardNormal(3)().event_shape
        torch.Size([3])
    """

    name = "normal"
    loc: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        # A buffer, so that the prior follows the model to its device.
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return the prior, with event shape ``(L,)``."""
        return dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)


class Uniform(Prior):
    """Latents uniform on [-1, 1], for the generator of a :class:`~pyro_ssvae.DDGM`.

    It is not for models that infer z, because the support of their Gaussian guides is larger.
    """

    name = "uniform"
    high: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.register_buffer("high", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return the prior, with event shape ``(L,)``."""
        return dist.Uniform(-self.high, self.high).to_event(1)


class StudentT(Prior):
    """Independent Student-t latents, whose heavy tails allow outliers.

    Args:
        latent_dim: Number of latents ``L``.
        df: Degrees of freedom; the standard normal is the limit for large ones.

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
        return StudentTOfTensors(self.df, self.loc, torch.ones_like(self.loc)).to_event(1)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"df": float(self.df[0])}


class _MixturePrior(Prior):
    """Base class of mixtures with learnable weights."""

    def __init__(self, latent_dim: int, num_components: int) -> None:
        super().__init__(latent_dim)
        self.num_components = num_components
        self.logits = nn.Parameter(torch.zeros(num_components))

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"num_components": self.num_components}


class MixtureOfGaussians(_MixturePrior):
    r"""A learnable mixture, :math:`p(z) = \sum_c w_c\, N(z;\, \mu_c, \mathrm{diag}(\sigma_c^2))`.

    Args:
        latent_dim: Number of latents ``L``.
        num_components: Number of Gaussians ``C``.

    Raises:
        ValueError: If ``num_components`` is not positive.
    """

    name = "mixture"

    def __init__(self, latent_dim: int, num_components: int = 100) -> None:
        super().__init__(latent_dim, num_components)
        # Drawn from the standard normal, so that the mixture is near it at first.
        self.loc = nn.Parameter(torch.randn(num_components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_components, latent_dim))

    def forward(self) -> dist.TorchDistribution:
        """Return the prior, with event shape ``(L,)``."""
        return DiagonalMixture(self.logits, self.loc, self.log_scale.exp())


class VampPrior(_MixturePrior):
    r"""A mixture of the guide's own posteriors at learnable pseudo-inputs, :math:`p(z) = \sum_c w_c\, q(z \mid u_c)`.

    VAE with a VampPrior (Tomczak & Welling, 2018, https://arxiv.org/abs/1705.07120), equation 9, with learnable
    weights. In a model with K classes the c-th pseudo-input has class c mod K.

    Args:
        latent_dim: Number of latents ``L``.
        num_components: Number of pseudo-inputs ``C``.

    Raises:
        ValueError: If ``num_components`` is not positive.
        RuntimeError: From a call, if the prior is not part of a model.
    """

    name = "vamp"
    classes: Tensor

    def __init__(self, latent_dim: int, num_components: int = 500) -> None:
        super().__init__(latent_dim, num_components)
        self._owner: list[Any] = []  # in a list, because the model must not become a submodule
        self._use_sigmoid = False

    def attach(self, model: Any) -> None:
        """Create the pseudo-inputs, with the shape of the model's examples."""
        self._owner = [model]
        self._use_sigmoid = bool(model.likelihood.unit_interval)
        self.pseudo_inputs = nn.Parameter(torch.randn(self.num_components, *model.event_shape))
        num_classes = getattr(model, "num_classes", None)
        if num_classes is not None:
            self.register_buffer("classes", torch.arange(self.num_components) % num_classes, persistent=False)

    @torch.no_grad()
    def start_from(self, x: Tensor) -> None:
        """Set the pseudo-inputs to training examples, repeated if there are too few."""
        u = fill_missing(x)[torch.arange(self.num_components) % len(x)].to(self.pseudo_inputs)
        if self._likelihood.real_valued:
            u = self._likelihood.network_input(u)[..., : u.shape[-1]]  # without what says that nothing is missing
        if self._use_sigmoid:
            u = torch.logit(u.clamp(0.02, 0.98))  # farther out the sigmoid's gradient vanishes
        self.pseudo_inputs.copy_(u)

    @property
    def _likelihood(self) -> Any:
        return self._owner[0].likelihood

    def forward(self) -> dist.TorchDistribution:
        """Return the prior, with event shape ``(L,)``."""
        if not self._owner:
            raise RuntimeError("A VampPrior needs the guide of a model: build one with prior=VampPrior(latent_dim).")
        u = self.pseudo_inputs.sigmoid() if self._use_sigmoid else self.pseudo_inputs  # (C, *event_shape)
        model, likelihood = self._owner[0], self._likelihood
        if likelihood.real_valued:  # so that a step of the optimiser moves them alike in all units
            u, _ = likelihood.in_units(u, u)
        qz = model.encode(u, self.classes) if hasattr(self, "classes") else model.encode(u)
        normal = as_independent_normal(qz)
        if normal is None:
            return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), qz)
        return DiagonalMixture(self.logits, normal.loc, normal.scale)


class _ShiftAndScale(nn.Module):
    """Network of an affine coupling: shift and log-scale of one half of the latents from the other; zeros at first.

    Pyro's own cannot be built without memory (on the device ``"meta"``).
    """

    def __init__(self, num_inputs: int, num_outputs: int, hidden_dim: int) -> None:
        super().__init__()
        widths = (num_inputs, hidden_dim, hidden_dim, 2 * num_outputs)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(widths))
        for parameter in self.layers[-1].parameters():  # identity maps: the prior starts out standard normal
            nn.init.zeros_(parameter)

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        for layer in self.layers[:-1]:
            z = layer(z).relu()
        return self.layers[-1](z).chunk(2, dim=-1)


class Flow(Prior):
    """A normalising flow: affine couplings (real NVP) over a standard normal.

    Density estimation using Real NVP (Dinh, Sohl-Dickstein, Bengio, 2017, https://arxiv.org/abs/1605.08803).

    Args:
        latent_dim: Number of latents ``L``, at least 2: each coupling transforms one half given the other.
        num_layers: Number of couplings; the order of the latents is reversed between them.
        hidden_dim: Width of the two hidden layers of each coupling's network.

    Raises:
        ValueError: For fewer than two latents or non-positive sizes.
    """

    name = "flow"

    def __init__(self, latent_dim: int, num_layers: int = 6, hidden_dim: int = 128) -> None:
        super().__init__(latent_dim)
        if latent_dim < 2 or num_layers < 1:
            raise ValueError(f"Flow needs latent_dim >= 2 and num_layers >= 1; got {latent_dim} and {num_layers}.")
        self.num_layers, self.hidden_dim = num_layers, hidden_dim
        self.base = StandardNormal(latent_dim)
        split = latent_dim // 2
        networks = [_ShiftAndScale(split, latent_dim - split, hidden_dim) for _ in range(num_layers)]
        couplings = [AffineCoupling(split, network) for network in networks]
        self.couplings = nn.ModuleList(couplings)
        self.register_buffer("reversed", torch.arange(latent_dim - 1, -1, -1), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return the prior, with event shape ``(L,)``."""
        reverse = Permute(self.reversed)
        return _Flow(self.base(), [transform for coupling in self.couplings for transform in (coupling, reverse)])

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"num_layers": self.num_layers, "hidden_dim": self.hidden_dim}


class _Flow(dist.TransformedDistribution):
    """A transformed distribution whose transforms cache nothing.

    Pyro's couplings keep their last input and scale, and with them the autograd graph of an earlier step, which can be
    neither copied nor traced.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        return self._clear_caches(super().log_prob(value))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self._clear_caches(super().sample(sample_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._clear_caches(super().rsample(sample_shape))

    def _clear_caches(self, result: Tensor) -> Tensor:
        for transform in self.transforms:
            transform._cached_x_y = None, None
            if hasattr(transform, "_cached_log_scale"):
                transform._cached_log_scale = None
        return result


@contextmanager
def cache_prior(prior: Any) -> Iterator[None]:
    """Build the distribution of a prior of this package once, for the duration of the context.

    A VampPrior passes all its pseudo-inputs through the encoder in every call. A prior of the caller's own class is not
    cached, because it may be random.
    """
    if not (isinstance(prior, Prior) and type(prior).__module__.startswith("pyro_ssvae.")):
        yield
        return
    distribution = prior()
    vars(prior)["forward"] = lambda: distribution  # overrides the method of the class
    try:
        yield
    finally:
        del vars(prior)["forward"]
