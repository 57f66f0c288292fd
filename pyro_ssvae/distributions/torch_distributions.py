"""Pyro distributions for likelihoods and priors, where those of Pyro are slow or inaccurate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

_NEAR_ZERO = 0.3  # below this size of a logit, series replace differences of nearly equal numbers


def softplus(x: Tensor) -> Tensor:
    r"""Return :math:`\log(1 + e^x)`, computed faster where no gradient is taken on a CPU.

    PyTorch's ``softplus`` uses ``log1p``, which costs five times as much there as :math:`-\log \sigma(-x)`. The
    absolute difference is at most 1e-7 in float32; values under 1e-7 are lost.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.softplus(x)
    # In place: writing to fresh memory costs more than the arithmetic. Where the sigmoid underflows, x is the value.
    result = x.neg().sigmoid_().clamp_min_(torch.finfo(x.dtype).tiny).log_().neg_()
    return torch.maximum(result, x, out=result)


def as_independent_normal(distribution: Any) -> torch.distributions.Normal | None:
    """Return the elementwise normal distribution of a diagonal Gaussian over vectors, ``None`` for any other one."""
    if not isinstance(distribution, torch.distributions.Independent) or distribution.reinterpreted_batch_ndims != 1:
        return None
    return distribution.base_dist if isinstance(distribution.base_dist, torch.distributions.Normal) else None


def draw_alike(distribution: Any, sample_shape: Sequence[int] = (), groups: int = 1) -> Tensor:
    """Return draws ``(*sample_shape, ..., B, L)`` of vectors whose noise all examples of a group have in common.

    So the draws of an example do not depend on the others. Groups are of equal size, one after the other; distributions
    other than diagonal Gaussians are sampled as usual.
    """
    normal = as_independent_normal(distribution)
    if normal is None:
        return distribution.sample(torch.Size(sample_shape))
    *outer, number, size = normal.loc.shape
    noise = torch.randn(*sample_shape, *outer, groups, 1, size, dtype=normal.loc.dtype, device=normal.loc.device)
    return normal.loc + normal.scale * noise.expand(*noise.shape[:-2], number // groups, size).flatten(-3, -2)


def innermost(distribution: Any) -> Any:
    """Return the distribution of single elements inside of ``.to_event`` and ``.expand``."""
    while isinstance(distribution, (torch.distributions.Independent, ExpandedDistribution)):
        distribution = distribution.base_dist
    return distribution


def mean_or_centre(distribution: Any) -> Tensor:
    """Return the mean; without one the centre of symmetry (Cauchy), or the most probable level."""
    mean: Tensor = distribution.mean
    if isinstance(innermost(distribution), (dist.Cauchy, dist.StudentT, torch.distributions.Categorical)):
        mean = torch.where(mean.isnan(), distribution.mode, mean)
    return mean


def _mean_or_draw(distribution: Any) -> Tensor:
    try:
        return mean_or_centre(distribution)
    except NotImplementedError:
        draw: Tensor = distribution.sample()
        return draw


class _OfObserved(dist.Independent):
    """Independent elements, of which the log-probability leaves out those that are missing (NaN)."""

    takes_missing = True

    def log_prob(self, value: Tensor) -> Tensor:
        missing = value.isnan()
        # The mean in their place, so that neither the log-probability nor its gradient, times zero, is NaN. It need not
        # be a possible value, nor be known.
        self.base_dist._validate_args = False
        filled = torch.where(missing, _mean_or_draw(self.base_dist).detach().nan_to_num(), value)
        return torch.where(missing, 0.0, self.base_dist.log_prob(filled)).sum(-1)


def leave_out_missing(distribution: Any) -> Any:
    """Return a distribution over vectors of independent elements whose log-probability leaves out missing ones."""
    if getattr(distribution, "takes_missing", False):
        return distribution
    if not isinstance(distribution, torch.distributions.Independent) or distribution.reinterpreted_batch_ndims != 1:
        raise ValueError(
            f"Missing values need a likelihood of independent elements; this one is a {type(distribution).__name__}. "
            "Return a distribution of single elements with .to_event(event_dim)."
        )
    return _OfObserved(distribution.base_dist, 1)


def impute(distribution: Any, weights: Tensor, x: Tensor) -> Tensor:
    """Return the mean of a mixture given what is observed of ``x``, or the most probable level of categorical elements.

    The distribution over vectors has batch shape ``(..., B)``, to which the weights of the mixture broadcast; they add
    up to one for each example. Examples and result are ``(B, D)``, NaN where missing.
    """
    parts = (distribution, getattr(distribution, "base_dist", None))
    own = next(filter(None, (getattr(part, "impute", None) for part in parts)), None)
    if own is not None:
        return own(weights, x)
    if isinstance(levels := innermost(distribution), torch.distributions.Categorical):
        return weighted_mean(weights, levels.probs, 2).argmax(-1).to(x)
    return weighted_mean(weights, _mean_or_draw(distribution))


def weighted_mean(weights: Tensor, values: Tensor, event_dim: int = 1) -> Tensor:
    """Return the sum over mixture components of ``(..., B, *event)``, times their weights: ``(B, *event)``."""
    weighted = weights.reshape(*weights.shape, *[1] * event_dim) * values
    return weighted.flatten(0, -2 - event_dim).sum(0)


class ScaledNormal(dist.Normal):
    """The normal distribution with a log-probability for scales of 1e-30 or 1e30, whose squares leave float32."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density, in nats."""
        return -0.5 * ((value - self.loc) / self.scale).square() - self.scale.log() - 0.5 * math.log(2.0 * math.pi)


class DiagonalMixture(TorchDistribution):
    r"""A mixture of diagonal Gaussians whose density takes one matrix product.

    :class:`~pyro.distributions.MixtureSameFamily` computes :math:`(z - \mu_c)^2 / \sigma_c^2` for every point,
    component and element. Expanded,

    .. math::

        \log N(z;\, \mu_c, \sigma_c^2) = -\tfrac12 \sum_l \frac{z_l^2}{\sigma_{cl}^2}
            + \sum_l \frac{z_l\, \mu_{cl}}{\sigma_{cl}^2} + k_c,

    the log-densities are a product of :math:`(z^2, z)` with a matrix of the components. The terms cancel if σ is small
    relative to μ, so the product is taken in float64, also under autocast. Log-weights are ``(C,)``, locations and
    scales ``(C, L)``.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor) -> None:
        self.logits, self.loc, self.scale = logits, loc, scale
        super().__init__(event_shape=loc.shape[-1:], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density, in nats, of values with shape ``(..., L)``."""
        points, loc, scale = value.double(), self.loc.double(), self.scale.double()
        precision = scale.square().reciprocal()  # (C, L)
        weighted = loc * precision
        constant = self.logits.double().log_softmax(-1) - scale.log().sum(-1) - 0.5 * (loc * weighted).sum(-1)
        constant = constant - 0.5 * math.log(2.0 * math.pi) * loc.shape[-1]  # (C,)
        matrix = torch.cat([-0.5 * precision, weighted], -1).mT  # (2L, C)
        by_component = torch.cat([points.square(), points], -1) @ matrix + constant  # (..., C)
        return by_component.logsumexp(-1).to(torch.promote_types(value.dtype, self.loc.dtype))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw values with shape ``(*sample_shape, L)``, without gradients."""
        with torch.no_grad():
            chosen = dist.Categorical(logits=self.logits).sample(torch.Size(sample_shape))
            noise = torch.randn(*chosen.shape, *self.event_shape, dtype=self.loc.dtype, device=self.loc.device)
            return self.loc[chosen] + self.scale[chosen] * noise

    @property
    def mean(self) -> Tensor:
        """Return the mean, with shape ``(L,)``."""
        return self.logits.softmax(-1) @ self.loc

    @property
    def variance(self) -> Tensor:
        """Return the variances of the elements, with shape ``(L,)``."""
        weights = self.logits.softmax(-1)
        return weights @ (self.scale.square() + (self.loc - weights @ self.loc).square())


class StudentTOfTensors(dist.StudentT):
    """The Student-t distribution without a copy from the host, which PyTorch makes and a CUDA graph cannot hold."""

    def __init__(self, df: Tensor, loc: Tensor, scale: Tensor) -> None:
        self.df, self.loc, self.scale = df, loc, scale
        self._chi2 = dist.Gamma(0.5 * df, torch.full_like(df, 0.5))  # Chi2(df) makes a tensor of the number 0.5
        torch.distributions.Distribution.__init__(self, df.shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StudentTOfTensors:
        """Return the distribution with another batch shape."""
        return StudentTOfTensors(*(part.expand(batch_shape) for part in (self.df, self.loc, self.scale)))


class BernoulliByLogits(dist.Bernoulli):
    """The Bernoulli distribution by logits, with a faster log-probability where no gradient is taken."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return x l - softplus(l), in nats."""
        if torch.is_grad_enabled():  # one pass, and another for its gradient
            return super().log_prob(value)
        return torch.addcmul(softplus(self.logits).neg_(), value, self.logits)


class ContinuousBernoulliByLogits(TorchDistribution):
    r"""The continuous Bernoulli distribution on [0, 1], from logits l of any size.

    .. math::

        \log p(x) = x\,l - \mathrm{softplus}(l) + \log\frac{|l|}{\tanh(|l|/2)}
                  = (x - \tfrac12)\,l + \log\frac{|l|/2}{\sinh(|l|/2)}

    PyTorch's ``ContinuousBernoulli`` uses probabilities clamped away from 0 and 1: beyond :math:`|l| \approx 16` its
    density is not normalised. The batch shape is that of the logits.
    """

    arg_constraints = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def _size(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return whether each logit is near zero, and sizes for either formula, safe where the other one is used."""
        size = self.logits.abs()
        near = size < _NEAR_ZERO
        return near, torch.where(near, size, 0.0), torch.where(near, 1.0, size)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density, in nats."""
        near, small, large = self._size()
        square = small.square()
        series = -square / 24 + square**2 / 2880 - square**3 / 181_440 + square**4 / 9_676_800
        # log(a/2) - log sinh(a/2), with e^{a/2} factored out of sinh to prevent overflow
        closed = large.log() - 0.5 * large - torch.log(-torch.expm1(-large))
        return (value - 0.5) * self.logits + torch.where(near, series, closed)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw reparameterised values by the inverse of the distribution function."""
        shape = torch.Size(sample_shape) + self.batch_shape
        uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        below = torch.where(self.logits > 0, 1.0 - uniform, uniform)  # for the mirrored distribution, of logit -|l|
        size = self.logits.abs()
        tiny = size < 1e-6  # nearly the uniform distribution
        size = torch.where(tiny, 1.0, size)
        mirrored = torch.where(tiny, below, -torch.log1p(below * torch.expm1(-size)) / size).clamp(0.0, 1.0)
        return torch.where(self.logits > 0, 1.0 - mirrored, mirrored)

    @property
    def mean(self) -> Tensor:
        """Return the mean, with shape ``batch``."""
        near, small, large = self._size()
        series = 0.5 + small / 12 - small**3 / 720 + small**5 / 30_240
        upper = torch.where(near, series, -1.0 / torch.expm1(-large) - 1.0 / large)  # of |l|
        return torch.where(self.logits < 0, 1.0 - upper, upper)

    @property
    def variance(self) -> Tensor:
        """Return the variance, with shape ``batch``."""
        near, small, large = self._size()
        series = 1.0 / 12 - small**2 / 240 + small**4 / 6048
        closed = large**-2 - (-large).exp() / torch.expm1(-large).square()
        return torch.where(near, series, closed)


class CouplingNetwork(nn.Module):
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
        """Return shift and log-scale, each ``(..., num_outputs)``."""
        for layer in self.layers[:-1]:
            z = layer(z).relu()
        return self.layers[-1](z).chunk(2, dim=-1)
