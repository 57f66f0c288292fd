"""Likelihoods p(x|y,z): modules that map the decoder's raw numbers to a Pyro distribution over x.

For raw numbers with shape ``(*batch, num_params, *event_shape)`` the distribution has batch shape ``batch`` and event
shape ``event_shape``.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_ssvae._configurable import Configurable
from pyro_ssvae.distributions.torch_distributions import BernoulliByLogits, ContinuousBernoulliByLogits

__all__ = ["Bernoulli", "ContinuousBernoulli", "Gaussian", "Laplace", "Likelihood"]

_VARIANCES = ("learned", "shared", "fixed")


class Likelihood(Configurable):
    """Base class of likelihoods; subclass it to use another distribution of ``x``.

    Attributes:
        num_params: Raw numbers per element of ``x`` that the decoder must return.
        name: Name in results and saved configurations.
        unit_interval: Whether the support is [0, 1].
    """

    num_params: int
    name: str
    unit_interval: bool = False

    def forward(self, params: Tensor, event_dim: int) -> dist.TorchDistribution:
        """Return the distribution of ``x``, for raw numbers with shape ``(*batch, num_params, *event_shape)``."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(params, event_dim) -> Pyro distribution.")

    def check(self, x: Tensor) -> None:
        """Raise ``ValueError`` if ``x``, ``(N, *event_shape)``, leaves the support; called before training."""

    def config(self) -> dict[str, Any]:
        """Return the arguments that rebuild the likelihood, JSON-serialisable."""
        return {}


class Bernoulli(Likelihood):
    r"""Independent Bernoulli pixels, by logits: :math:`\log p(x) = x\,l - \mathrm{softplus}(l)`.

    Grey values in [0, 1] are allowed. For them the expression is not a log-probability of the data but its expectation
    over binary pixels drawn with those intensities, so bounds on grey and on binarised data must not be compared.
    """

    num_params = 1
    name = "bernoulli"
    unit_interval = True

    def forward(self, params: Tensor, event_dim: int) -> dist.TorchDistribution:
        """Return ``Bernoulli(logits)`` over events, for logits with shape ``(*batch, 1, *event_shape)``."""
        # Pyro's validation would refuse grey values; `check` checks the range.
        logits = params.squeeze(-1 - event_dim)
        return BernoulliByLogits(logits=logits, validate_args=False).to_event(event_dim)

    def check(self, x: Tensor) -> None:
        """Raise ``ValueError`` unless all of ``x`` lies in [0, 1]."""
        _check_unit_interval(x, "A Bernoulli likelihood")


class ContinuousBernoulli(Likelihood):
    r"""Continuous Bernoulli pixels, a density on [0, 1]: :math:`p(x) = C(l)\,e^{x\,l - \mathrm{softplus}(l)}`.

    A Bernoulli likelihood of grey values lacks the constant C; with it, bounds are log-densities of the grey values
    (The continuous Bernoulli, Loaiza-Ganem & Cunningham, 2019, https://arxiv.org/abs/1907.06845).
    """

    num_params = 1
    name = "continuous_bernoulli"
    unit_interval = True

    def forward(self, params: Tensor, event_dim: int) -> dist.TorchDistribution:
        """Return ``ContinuousBernoulli(logits)`` over events, for logits with shape ``(*batch, 1, *event_shape)``."""
        return ContinuousBernoulliByLogits(params.squeeze(-1 - event_dim)).to_event(event_dim)

    def check(self, x: Tensor) -> None:
        """Raise ``ValueError`` unless all of ``x`` lies in [0, 1]."""
        _check_unit_interval(x, "A continuous Bernoulli likelihood")


class _LocationScale(Likelihood):
    """Base class of distributions with a location, and a scale that is learned per element, shared, or fixed."""

    family: Any  # the distribution's class, called with location and scale

    def __init__(self, min_scale: float = 0.05, variance: str = "learned", scale: float = 1.0) -> None:
        super().__init__()
        if min_scale <= 0.0:
            raise ValueError(f"min_scale={min_scale} must be positive, in the units of x.")
        if variance not in _VARIANCES:
            raise ValueError(f"variance={variance!r} must be one of {', '.join(_VARIANCES)}.")
        if variance != "learned" and not (math.isfinite(scale) and scale > min_scale):
            raise ValueError(f"scale={scale} must be finite and above min_scale={min_scale}, in the units of x.")
        self.min_scale, self.variance, self.first_scale = float(min_scale), variance, float(scale)
        self.num_params = 2 if variance == "learned" else 1
        if variance == "shared":
            # The inverse of softplus, so that the scale has the given value at first.
            self.raw_scale = nn.Parameter(torch.tensor(math.log(math.expm1(scale - min_scale))))

    def forward(self, params: Tensor, event_dim: int) -> dist.TorchDistribution:
        """Return the distribution over events, for parameters with shape ``(*batch, P, *event_shape)``, P of 2 or 1."""
        loc, *raw_scale = params.unbind(-1 - event_dim)
        if self.variance == "learned":
            scale = self.min_scale + F.softplus(raw_scale[0])
        elif self.variance == "shared":
            scale = (self.min_scale + F.softplus(self.raw_scale)).to(loc).expand_as(loc)
        else:
            scale = torch.full_like(loc, self.first_scale)
        return self.family(loc, scale).to_event(event_dim)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        config: dict[str, Any] = {"min_scale": self.min_scale}
        return config if self.variance == "learned" else config | {"variance": self.variance, "scale": self.first_scale}


class Gaussian(_LocationScale):
    r"""Independent Gaussian elements, :math:`\mathcal N(x;\, \mu, \sigma^2)`.

    Args:
        min_scale: Smallest σ, in units of ``x``. Pixels with a constant value would otherwise drive a learned σ to zero
            and the bound to infinity.
        variance: ``"learned"``: the decoder returns σ for each element of each example; ``"shared"``: one learned σ for
            all; ``"fixed"``: the given one.
        scale: The fixed σ, or the initial value of the shared one.

    Raises:
        ValueError: For an unknown ``variance``, non-positive scales, or a ``scale`` not above ``min_scale``.
    """

    name = "gaussian"
    family = dist.Normal


class Laplace(_LocationScale):
    r"""Independent Laplace elements, :math:`\tfrac{1}{2b}\,e^{-|x - \mu| / b}`, with heavier tails than a Gaussian.

    The arguments and errors are those of :class:`Gaussian`, for b instead of σ.
    """

    name = "laplace"
    family = dist.Laplace


def _check_unit_interval(x: Tensor, who: str) -> None:
    low, high = float(x.min()), float(x.max())
    if not (low >= 0.0 and high <= 1.0):  # also true of NaN
        raise ValueError(
            f"{who} needs values in [0, 1]; the data spans [{low:g}, {high:g}]. "
            "Rescale it (the `scale` of SemiSupervisedData divides), or use likelihood='gaussian'."
        )
