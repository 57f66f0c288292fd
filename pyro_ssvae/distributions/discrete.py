"""Likelihoods of values on a grid, and of counts."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from pyro_ssvae._warnings import warn
from pyro_ssvae.distributions.likelihoods import Likelihood, fill_missing, select_examples, standard_units
from pyro_ssvae.distributions.torch_distributions import weighted_mean

_TOLERANCE = 1e-3  # of a grid step; 8-bit values divided by 255 in float32 are within 1e-5 of it
_CENTRE = 3.0  # of standardised logarithms of counts as networks see them, so that none is negative
_MAX_DISPERSION = 300.0  # variance / mean of counts, from which M2 under a Poisson likelihood no longer classifies well


class _GridDistribution(TorchDistribution):
    """Values 0, 1, ... times ``spacing``, by logits ``(*batch, levels)``; codes in no order have a mode for a mean."""

    arg_constraints = {"logits": constraints.real_vector}
    support = constraints.real  # the grid, which Likelihood.check checks before training

    def __init__(self, logits: Tensor, spacing: float, ordered: bool = True) -> None:
        self.logits, self.spacing, self._ordered = logits, spacing, ordered
        super().__init__(logits.shape[:-1], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        index = (value / self.spacing).round()
        return dist.Categorical(logits=self.logits, validate_args=False).log_prob(index)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        index: Tensor = dist.Categorical(logits=self.logits).sample(sample_shape)
        return index.to(self.logits.dtype) * self.spacing

    @property
    def mean(self) -> Tensor:
        if self._ordered:
            return self.logits.softmax(-1) @ self._values()
        return self.logits.argmax(-1).to(self.logits) * self.spacing

    @property
    def variance(self) -> Tensor:
        probs, values = self.logits.softmax(-1), self._values()
        return probs @ values.square() - (probs @ values).square()

    def impute(self, weights: Tensor, x: Tensor) -> Tensor:
        return weighted_mean(weights, self.logits.softmax(-1), 2).argmax(-1).to(x) * self.spacing

    def _values(self) -> Tensor:
        levels = self.logits.shape[-1]
        return torch.arange(levels, dtype=self.logits.dtype, device=self.logits.device) * self.spacing


class _Grid(Likelihood):
    """Base class of likelihoods of values on a grid."""

    def __init__(self, levels: int = 256, spacing: float | None = None) -> None:
        super().__init__()
        self.levels, self.unit_interval = levels, spacing is None
        self.spacing = 1.0 / (levels - 1) if spacing is None else float(spacing)

    def check(self, x: Tensor) -> None:
        steps = x / self.spacing
        off = (steps - steps.round()).abs().max()
        low, high = float(x.min()), float(x.max())
        # The negation is also true of NaN and infinity.
        if not (float(off) <= _TOLERANCE and low >= 0.0 and high / self.spacing < self.levels - 0.5):
            raise ValueError(
                f"{type(self).__name__} needs values 0, {self.spacing:g}, ..., {self.spacing * (self.levels - 1):g} "
                f"({self.levels} levels); the data spans [{low:g}, {high:g}], up to {float(off):.2g} of a step off the "
                "grid. Keep 8-bit values as uint8 (scale 255 then gives this grid), or set levels and spacing."
            )


class Categorical(_Grid):
    """A categorical distribution of 8-bit pixels, or of integer codes in a column of a table.

    The decoder returns ``levels`` numbers per element, 256 for 8-bit images.

    Args:
        levels: Number of values, counted from 0.
        spacing: Distance of neighbouring values, in the units of ``x``; ``None`` for values from 0 to 1,
            and 1 for integer codes.
        one_hot: Whether values are codes in no particular order: networks see a column for each level, and the most
            probable one is given as the mean.

    Raises:
        ValueError: For fewer than two levels or a spacing that is not positive.
    """

    name = "categorical"

    def __init__(self, levels: int = 256, spacing: float | None = None, one_hot: bool = False) -> None:
        super().__init__(levels, spacing)
        self.num_params = self.levels
        self.one_hot = one_hot

    def _standardise(self, x: Tensor) -> Tensor:
        if not self.one_hot:
            return super()._standardise(x)
        levels = torch.arange(self.levels, dtype=x.dtype, device=x.device)
        return ((x / self.spacing).round().unsqueeze(-1) == levels).to(x).flatten(-2)

    def forward(self, params: Tensor, event_dim: int) -> dist.TorchDistribution:
        """Return the distribution over events, for logits with shape ``(*batch, levels, *event_shape)``."""
        logits = params.movedim(-1 - event_dim, -1)
        return _GridDistribution(logits, self.spacing, not self.one_hot).to_event(event_dim)


class DiscretisedLogistic(_Grid):
    r"""A logistic density integrated over the cells of a grid, so that neighbouring values have similar probability.

    .. math::

        P(x) = \sigma\!\left(\tfrac{x + \delta/2 - \mu}{s}\right) - \sigma\!\left(\tfrac{x - \delta/2 - \mu}{s}\right),

    for spacing δ, with the outermost cells extending to infinity (PixelCNN++, Salimans et al., 2017,
    https://arxiv.org/abs/1701.05517, equation 2). The decoder returns μ and the logarithm of s in tenths of the grid's
    length, so that an untrained distribution is broad.

    Args:
        levels: Number of values, counted from 0.
        spacing: Distance of neighbouring values, in the units of ``x``; ``None`` for values from 0 to 1.

    Raises:
        ValueError: For fewer than two levels or a spacing that is not positive.
    """

    name = "discretised_logistic"
    num_params = 2

    def forward(self, params: Tensor, event_dim: int) -> dist.TorchDistribution:
        """Return the distribution over events, for location and log-scale with shape ``(*batch, 2, *event_shape)``."""
        loc, log_scale = params.unbind(-1 - event_dim)
        log_scale = log_scale + math.log(self.levels / 10.0)
        return _LogisticCells(loc, log_scale, self.levels, self.spacing).to_event(event_dim)


class _LogisticCells(TorchDistribution):
    """The distribution of :class:`DiscretisedLogistic`, with ``loc`` in units of x and ``log_scale`` in grid steps."""

    arg_constraints = {"loc": constraints.real, "log_scale": constraints.real}
    support = constraints.real

    def __init__(self, loc: Tensor, log_scale: Tensor, levels: int, spacing: float) -> None:
        self.loc, self.log_scale = loc, log_scale.clamp(-5.0, 12.0)
        self.levels, self.spacing = levels, spacing
        super().__init__(self.loc.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        step = (value / self.spacing).round()
        inverse = (-self.log_scale).exp()
        above = (step + 0.5 - self.loc / self.spacing) * inverse
        below = (step - 0.5 - self.loc / self.spacing) * inverse
        # log(σ(a) - σ(b)) = log σ(a) + log σ(-b) + log(1 - e^{b - a}), and a - b is the width of a cell.
        inner = F.logsigmoid(above) + F.logsigmoid(-below) + torch.log(-torch.expm1(-inverse))
        ends = torch.where(step <= 0, F.logsigmoid(above), F.logsigmoid(-below))
        return torch.where((step <= 0) | (step >= self.levels - 1), ends, inner)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        uniform = torch.rand((*sample_shape, *self.batch_shape), dtype=self.loc.dtype, device=self.loc.device)
        uniform = uniform.clamp(1e-6, 1.0 - 1e-6)
        noise = uniform.log() - torch.log1p(-uniform)
        step = self.loc / self.spacing + self.log_scale.exp() * noise
        return step.round().clamp(0, self.levels - 1) * self.spacing

    @property
    def mean(self) -> Tensor:
        return self.loc.clamp(0.0, self.spacing * (self.levels - 1))  # ignores the truncation at both ends

    @property
    def variance(self) -> Tensor:
        scale = self.log_scale.exp() * self.spacing
        return scale.square() * (torch.pi**2 / 3.0)


class _Counts(Likelihood):
    """Base class of likelihoods of counts; networks see standardised log(1 + x), means are relative to the columns'."""

    of_counts = True
    _mean: Tensor | None
    _axes: Tensor | None
    _unit_names = ("_shift", "_unit", "_mean", "_axes")

    def __init__(self, offset: bool = False, components: int | None = None) -> None:
        super().__init__()
        self.offset, self.components = offset, components

    def forward(self, params: Tensor, event_dim: int) -> TorchDistribution:
        """Return the distribution over events, for parameters with shape ``(*batch, P, *event_shape)``."""
        if not self.offset:
            return self._distribution(params, event_dim)
        if event_dim != 1:
            raise ValueError(f"offset=True is for rows of counts; events have {event_dim} dimensions.")
        return _GivenTotal(self, params)

    def _distribution(self, params: Tensor, event_dim: int, log_size: Tensor | float = 0.0) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define _distribution(params, event_dim, log_size).")

    def _estimate_units(self, x: Tensor, scale: float) -> None:
        x = select_examples(x, scale).clamp(min=0.0)
        dims = (0, 2, 3) if x.dim() == 4 else (0,)
        mean = fill_missing(x).mean(dims, keepdim=True)[0].clamp(min=0.5 / len(x))
        self._mean = mean.to(torch.get_default_dtype())
        self._shift, self._unit = standard_units(self._log_counts(x))
        if self.components is not None:
            from sklearn.decomposition import PCA

            seen = ((self._log_counts(x) - self._shift) / self._unit).nan_to_num(0.0)
            pca = PCA(min(self.components, *seen.shape), random_state=0).fit(seen.numpy())
            axes = torch.from_numpy(pca.components_.T / pca.explained_variance_.mean().clip(1e-12) ** 0.5)
            missing = self.components - axes.shape[1]  # where there are fewer rows or columns
            self._axes = F.pad(axes, (0, missing)).to(self._mean)

    def _log_counts(self, x: Tensor) -> Tensor:
        return (x / self._size(x) if self.offset else x).clamp(min=0.0).log1p()

    def _size(self, x: Tensor) -> Tensor:
        """Return the total of rows ``(..., D)``, relative to the mean one of the observed columns, ``(..., 1)``."""
        observed = ~x.isnan()
        mean = 1.0 if self._mean is None else self._mean.to(x)
        ratio = x.nansum(-1, keepdim=True).clamp(min=0.5) / (observed * mean).sum(-1, keepdim=True)
        return torch.where(observed.any(-1, keepdim=True), ratio, 1.0)

    def _standardise(self, x: Tensor) -> Tensor:
        """Return standardised log(1 + x) with mean 3, none negative, or principal components; ``x`` without units."""
        if self._unit is None and not self.offset:
            return super()._standardise(x)
        seen = super()._standardise(self._log_counts(x))
        if self.components is not None:
            return F.pad(seen, (0, self.components - seen.shape[-1])) if self._axes is None else seen @ self._axes
        return seen if self._unit is None else (seen + _CENTRE).clamp(min=0.0)

    def _in_counts(self, log_mean: Tensor) -> Tensor:
        return log_mean if self._mean is None else log_mean + self._mean.log()

    def check(self, x: Tensor) -> None:
        low, off = float(x.min()), float((x - x.round()).abs().max())
        if not (low >= 0.0 and off <= 1e-3):  # also true of NaN and infinity
            raise ValueError(
                f"{type(self).__name__} needs counts 0, 1, 2, ...; the data has a minimum of {low:g} and values up "
                f"to {off:.2g} away from whole numbers. Counts must not be rescaled: set scale=1."
            )


class _GivenTotal(TorchDistribution):
    """Counts with means proportional to the observed total of the row; moments and samples are of the mean total."""

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    takes_missing = True

    def __init__(self, likelihood: _Counts, params: Tensor) -> None:
        self.likelihood, self.params = likelihood, params
        super().__init__(params.shape[:-2], params.shape[-1:], validate_args=False)

    def _given(self, value: Tensor) -> Any:
        return self.likelihood._distribution(self.params, 1, self.likelihood._size(value).log())

    def log_prob(self, value: Tensor) -> Tensor:
        missing, elements = value.isnan(), self._given(value).base_dist
        # Zeros in their place, whose log-probability is finite: means would take log Γ of counts for every class.
        return torch.where(missing, 0.0, elements.log_prob(torch.where(missing, 0.0, value))).sum(-1)

    def impute(self, weights: Tensor, x: Tensor) -> Tensor:
        return weighted_mean(weights, self._given(x).mean)

    def sample(self, sample_shape: Any = ()) -> Any:
        return self.likelihood._distribution(self.params, 1).sample(sample_shape)

    @property
    def mean(self) -> Any:
        return self.likelihood._distribution(self.params, 1).mean

    @property
    def variance(self) -> Any:
        return self.likelihood._distribution(self.params, 1).variance


class Poisson(_Counts):
    r"""Independent counts, :math:`e^{-\lambda} \lambda^x / x!`; the decoder returns log λ (relative to the column).

    Args:
        offset: Whether λ is also proportional to the total of the observed counts of the row, for tables of which rows
            are samples of different size (words of texts, reads of genes). Networks then see the counts relative to
            it, and log p(x) is that of the counts given their total; generated rows have the mean total.
    """

    name = "poisson"
    num_params = 1

    def _estimate_units(self, x: Tensor, scale: float) -> None:
        super()._estimate_units(x, scale)
        x = fill_missing(select_examples(x, scale))
        ratio = float((x.var(0, correction=0) / x.mean(0).clamp(min=1e-9)).median())
        if ratio > _MAX_DISPERSION:
            warn(
                f"The variance of these values is {ratio:.0f} times their mean (median of the columns), and under a "
                "Poisson likelihood it equals the mean, so that the bound has a far too large weight: use "
                "likelihood='negative_binomial' for counts, 'gaussian' for other numbers."
            )

    def _distribution(self, params: Tensor, event_dim: int, log_size: Tensor | float = 0.0) -> Any:
        log_rate = params.squeeze(-1 - event_dim).clamp(-20.0, 20.0)  # an untrained decoder may return more
        rate = (self._in_counts(log_rate) + log_size).exp()
        return dist.Poisson(rate, validate_args=False).to_event(event_dim)


class NegativeBinomial(_Counts):
    r"""Overdispersed counts with mean m and variance :math:`m + m^2 / r`.

    The decoder returns log m (relative to the mean of the column) and, unless r belongs to the columns, log r.

    Args:
        offset: As for :class:`Poisson`, for m.
        columns: Number of columns of a table for each of which one r is learned, the same for all rows and classes;
            ``None``: r of each element is given by the decoder, which takes longer and has more to learn.
        components: Number of principal components of the standardised logarithms which networks see in place of these;
            ``None`` for none. The noise of single counts is less in them.

    Raises:
        ValueError: If ``columns`` or ``components`` is not positive.
    """

    name = "negative_binomial"

    def __init__(self, offset: bool = False, columns: int | None = None, components: int | None = None) -> None:
        super().__init__(offset, components)
        self.columns, self.num_params = columns, 2 if columns is None else 1
        if columns is not None:
            self.log_total = nn.Parameter(torch.ones(columns))

    def _distribution(self, params: Tensor, event_dim: int, log_size: Tensor | float = 0.0) -> Any:
        log_mean, *by_element = params.unbind(-1 - event_dim)
        log_mean = log_mean.clamp(-20.0, 20.0)
        if self.columns is not None:
            if log_mean.shape[-1] != self.columns:
                raise ValueError(
                    f"columns={self.columns}, and rows have {log_mean.shape[-1]} columns; set columns to that."
                )
            log_total = self.log_total.clamp(-10.0, 10.0)
            logits = log_mean + (self._in_counts(-log_total) + log_size)
            return _OneDispersion(log_total.exp(), logits=logits, validate_args=False).to_event(event_dim)
        log_mean, log_total = self._in_counts(log_mean) + log_size, by_element[0].clamp(-10.0, 10.0)
        distribution = dist.NegativeBinomial(log_total.exp(), logits=log_mean - log_total, validate_args=False)
        return distribution.to_event(event_dim)


class _OneDispersion(dist.NegativeBinomial):
    """The negative binomial distribution, of which r has no batch dimension: log Γ is not computed for every class."""

    def __init__(self, total_count: Tensor, *, logits: Tensor, validate_args: bool | None = None) -> None:
        self._r = total_count
        super().__init__(total_count, logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _OneDispersion:
        return _OneDispersion(self._r, logits=self.logits.expand(batch_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        r = self._r
        constant = torch.lgamma(value + r) - torch.lgamma(r) - torch.lgamma(1.0 + value)
        return constant + value * F.logsigmoid(self.logits) + r * F.logsigmoid(-self.logits)
