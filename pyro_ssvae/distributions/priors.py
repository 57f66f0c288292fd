"""Priors of z, modules that return a Pyro distribution when called, and priors of the class probabilities π.

A class prior p(y|π)p(π) has a model and a guide with the global site ``"pi"``, scored once per objective.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineCoupling, Permute
from torch import Tensor, nn

from pyro_ssvae._arguments import as_count, show
from pyro_ssvae._configurable import Configurable
from pyro_ssvae.distributions.likelihoods import fill_missing
from pyro_ssvae.distributions.torch_distributions import (
    CouplingNetwork,
    DiagonalMixture,
    StudentTOfTensors,
    as_independent_normal,
)


class Prior(Configurable):
    """Base class of priors of ``latent_dim`` latents; a model accepts any module that returns a distribution over z."""

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


class StandardNormal(Prior):
    """The prior p(z) = N(0, I) of Kingma et al. (2014)."""

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
    """Latents uniform on [-1, 1], for generators only: Gaussian guides have a larger support."""

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
        self.register_buffer("df", torch.full((latent_dim,), float(df)), persistent=False)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return the prior, with event shape ``(L,)``."""
        return StudentTOfTensors(self.df, self.loc, torch.ones_like(self.loc)).to_event(1)


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
        self.logits = nn.Parameter(torch.zeros(num_components))
        # Drawn from the standard normal, so that the mixture is near it at first.
        self.loc = nn.Parameter(torch.randn(num_components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_components, latent_dim))

    def forward(self) -> dist.TorchDistribution:
        """Return the prior, with event shape ``(L,)``."""
        return DiagonalMixture(self.logits, self.loc, self.log_scale.exp())


class VampPrior(Prior):
    r"""A mixture of the guide's own posteriors at learnable pseudo-inputs, :math:`p(z) = \sum_c w_c\, q(z \mid u_c)`.

    VAE with a VampPrior (Tomczak & Welling, 2018, https://arxiv.org/abs/1705.07120), equation 9, with learnable
    weights. In a model with K classes the c-th pseudo-input has class c mod K.

    Args:
        latent_dim: Number of latents ``L``.
        num_components: Number of pseudo-inputs ``C``.

    Each model needs one of its own. With ``batch_norm=True`` the pseudo-inputs also pass through the encoder's batch
    normalisation, and count in its running statistics as examples do.

    Raises:
        ValueError: If ``num_components`` is not positive, the prior belongs to another model, or its model has no
            q(z|x).
        RuntimeError: From a call, if the prior is not part of a model.
    """

    name = "vamp"
    classes: Tensor

    def __init__(self, latent_dim: int, num_components: int = 500) -> None:
        super().__init__(latent_dim)
        self.num_components, self.logits = num_components, nn.Parameter(torch.zeros(num_components))
        self._owner: list[Any] = []  # in a list, because the model must not become a submodule
        self._use_sigmoid = False

    def attach(self, model: Any) -> None:
        """Create the pseudo-inputs, with the shape of the model's examples."""
        if not hasattr(model, "encode"):
            raise ValueError(
                f"prior='vamp' is made of posteriors q(z|x), and {type(model).__name__} has none (a method encode); "
                "take prior='mixture', say."
            )
        if self._owner and self._owner[0] is not model:
            raise ValueError("This VampPrior belongs to another model; give each a VampPrior(latent_dim) of its own.")
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
        likelihood = self._owner[0].likelihood
        if likelihood.real_valued:
            u = likelihood.network_input(u)[..., : u.shape[-1]]  # without what says that nothing is missing
        if self._use_sigmoid:
            u = torch.logit(u.clamp(0.02, 0.98))  # farther out the sigmoid's gradient vanishes
        self.pseudo_inputs.copy_(u)

    def forward(self) -> dist.TorchDistribution:
        """Return the prior, with event shape ``(L,)``."""
        if not self._owner:
            raise RuntimeError("A VampPrior needs the guide of a model: build one with prior=VampPrior(latent_dim).")
        u = self.pseudo_inputs.sigmoid() if self._use_sigmoid else self.pseudo_inputs  # (C, *event_shape)
        model = self._owner[0]
        if model.likelihood.real_valued:  # so that a step of the optimiser moves them alike in all units
            u, _ = model.likelihood.in_units(u, u)
        qz = model.encode(u, self.classes) if hasattr(self, "classes") else model.encode(u)
        normal = as_independent_normal(qz)
        if normal is None:
            return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), qz)
        return DiagonalMixture(self.logits, normal.loc, normal.scale)


class Flow(Prior):
    """A normalising flow: six affine couplings (real NVP) over a standard normal, of networks with layers of 128 units.

    The order of the latents is reversed between the couplings.

    Density estimation using Real NVP (Dinh, Sohl-Dickstein, Bengio, 2017, https://arxiv.org/abs/1605.08803).

    Args:
        latent_dim: Number of latents ``L``, at least 2: each coupling transforms one half given the other.

    Raises:
        ValueError: For fewer than two latents.
    """

    name = "flow"

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        if latent_dim < 2:
            raise ValueError(f"Flow needs latent_dim >= 2; got {latent_dim}.")
        self.base = StandardNormal(latent_dim)
        split = latent_dim // 2
        networks = [CouplingNetwork(split, latent_dim - split, 128) for _ in range(6)]
        self.couplings = nn.ModuleList(AffineCoupling(split, network) for network in networks)
        self.register_buffer("reversed", torch.arange(latent_dim - 1, -1, -1), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return the prior, with event shape ``(L,)``."""
        reverse = Permute(self.reversed)
        # Copies, which share the networks: couplings keep what they computed last, and with it a graph of gradients.
        transforms = [transform for coupling in self.couplings for transform in (copy.copy(coupling), reverse)]
        return dist.TransformedDistribution(self.base(), transforms)


@contextmanager
def cache_prior(prior: Any) -> Iterator[None]:
    """Build the distribution of a prior of this package once, for the duration of the context.

    A VampPrior passes all its pseudo-inputs through the encoder in every call. One of the caller's own class may be
    random, and is not cached.
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


class ClassPrior(Configurable):
    """Base class of class priors.

    Attributes:
        num_classes: Number of classes ``K``.
        name: Name in results.
    """

    name: str

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = as_count(num_classes, "num_classes", least=2)

    def model(self) -> Tensor:
        """Sample site ``"pi"`` if π is random; return log π with shape ``(K,)``."""
        raise NotImplementedError(f"{type(self).__name__} must define model() -> log pi.")

    def guide(self) -> None:
        """Sample site ``"pi"`` from q(π) if π is random."""

    def mean(self) -> Tensor:
        """Return the estimate of π, with shape ``(K,)``: the fixed value, the MAP or the posterior mean."""
        raise NotImplementedError(f"{type(self).__name__} must define mean() -> pi.")


class FixedClassPrior(ClassPrior):
    """A known π: uniform, or given.

    Args:
        num_classes: Number of classes ``K``.
        probs: ``K`` positive numbers, normalised to sum to one; uniform if ``None``.

    Raises:
        TypeError: If ``probs`` are no numbers.
        ValueError: If ``probs`` has another length than ``K`` or a value that is not positive and finite.
    """

    name = "fixed"
    log_pi: Tensor

    def __init__(self, num_classes: int, probs: Sequence[float] | Tensor | None = None) -> None:
        super().__init__(num_classes)
        try:
            probs = [1.0] * num_classes if probs is None else probs
            pi = torch.as_tensor(probs, dtype=torch.get_default_dtype(), device="cpu")
            pi.tolist()
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{show('probs', probs)}; {num_classes} numbers are needed, one per class.") from error
        if pi.shape != (num_classes,) or not bool(((pi > 0) & pi.isfinite()).all()):
            raise ValueError(
                f"probs must hold {num_classes} positive finite numbers, one per class; got {pi.tolist()}."
            )
        pi = pi / pi.max() if pi.sum().isinf() else pi
        self.register_buffer("log_pi", (pi / pi.sum()).log())

    @property
    def uniform(self) -> bool:
        """Whether all classes have the same probability."""
        return bool((self.log_pi == self.log_pi[0]).all())

    def model(self) -> Tensor:
        """Return log π; there is no random site."""
        return self.log_pi

    def mean(self) -> Tensor:
        """Return π, with shape ``(K,)``."""
        return self.log_pi.exp()


class _LearnedClassPrior(ClassPrior):
    """Base class of the priors p(π) = Dir(concentration, ..., concentration)."""

    concentration: Tensor

    def __init__(self, num_classes: int, concentration: float, least: float) -> None:
        super().__init__(num_classes)
        if not concentration >= least or concentration <= 0.0:
            needed = f"at least {least:g}" if least else "positive"
            reason = ": below one its density has no maximum" if least else ""
            raise ValueError(f"concentration={concentration} must be {needed} for a symmetric Dirichlet prior{reason}.")
        self.register_buffer("concentration", torch.full((num_classes,), float(concentration)))
        self.logits = nn.Parameter(torch.zeros(num_classes))

    def model(self) -> Tensor:
        """Sample ``"pi"`` from the symmetric Dirichlet prior and return log π, with shape ``(K,)``."""
        pi: Tensor = pyro.sample("pi", dist.Dirichlet(self.concentration))
        return pi.log()

    def mean(self) -> Tensor:
        pi = self.logits.softmax(-1)
        return pi.clamp(min=torch.finfo(pi.dtype).tiny)  # its logarithm is taken


class MAPClassPrior(_LearnedClassPrior):
    r"""π learned by maximum a posteriori: a point mass q(π) = δ(π - softmax(logits)).

    Training maximises :math:`\log p(\pi) + \sum_n (\text{bound of example } n)`.

    Args:
        num_classes: Number of classes ``K``.
        concentration: Concentration of the symmetric Dirichlet prior, at least one; one is maximum likelihood.
    """

    name = "map"

    def __init__(self, num_classes: int, concentration: float = 2.0) -> None:
        super().__init__(num_classes, concentration, least=1.0)

    def guide(self) -> None:
        """Sample ``"pi"`` from the point mass."""
        pyro.sample("pi", dist.Delta(self.mean(), event_dim=1))


class DirichletClassPrior(_LearnedClassPrior):
    r"""π with a Dirichlet variational posterior, q(π) = Dir(a), :math:`a = \text{total} \cdot \mathrm{softmax}(l)`.

    The mean and the total of ``a`` are separate parameters, because the mean converges within a few hundred steps while
    the total grows to the order of the number of examples. It starts at 1,000, so that the first draws of π are near
    uniform.

    Args:
        num_classes: Number of classes ``K``.
        concentration: Concentration of the symmetric Dirichlet prior; positive.
    """

    name = "dirichlet"

    def __init__(self, num_classes: int, concentration: float = 1.0) -> None:
        super().__init__(num_classes, concentration, least=0.0)
        self.log_total = nn.Parameter(torch.tensor(1000.0).log())

    def posterior(self) -> dist.Dirichlet:
        """Return q(π), with event shape ``(K,)``."""
        return dist.Dirichlet(self.log_total.exp() * self.mean())

    def guide(self) -> None:
        """Sample ``"pi"`` from q(π), reparameterised."""
        pyro.sample("pi", self.posterior())
