"""Likelihoods of counts."""

from __future__ import annotations

import warnings
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from pyro_ssvae.distributions.likelihoods import Likelihood, fill_missing, select_examples, standard_units
from pyro_ssvae.distributions.torch_distributions import weighted_mean

__all__ = ["NegativeBinomial", "Poisson"]

_CENTRE = 3.0  # of standardised logarithms of counts as networks see them, so that none is negative
_MAX_DISPERSION = 300.0  # variance / mean of counts, from which M2 under a Poisson likelihood no longer classifies well


class _Counts(Likelihood):
    """Base class of likelihoods of counts, whose networks see standardised values of log(1 + x).

    The decoder's mean counts are relative to those of the columns.
    """

    _mean: Tensor | None
    _axes: Tensor | None
    _unit_names = ("_shift", "_unit", "_mean", "_axes")

    def __init__(self, offset: bool = False, components: int | None = None) -> None:
        super().__init__()
        if components is not None and components < 1:
            raise ValueError(f"components={components} must be positive, or None.")
        self.offset, self.components = offset, components

    def forward(self, params: Tensor, event_dim: int) -> TorchDistribution:
        """Return the distribution over events, for parameters with shape ``(*batch, P, *event_shape)``.

        Raises:
            ValueError: With ``offset``, if events are no vectors.
        """
        if not self.offset:
            return self._distribution(params, event_dim)
        if event_dim != 1:
            raise ValueError(f"offset=True is for rows of counts; events have {event_dim} dimensions.")
        return _GivenTotal(self, params)

    def _distribution(self, params: Tensor, event_dim: int, log_size: Tensor | float = 0.0) -> Any:
        """Return the distribution of counts whose totals are the mean one times a size."""
        raise NotImplementedError

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
        """Return log(1 + x), x relative to the size of its row where there is an offset."""
        return (x / self._size(x) if self.offset else x).clamp(min=0.0).log1p()

    def _size(self, x: Tensor) -> Tensor:
        """Return the total of rows ``(..., D)``, relative to the mean one of the observed columns, ``(..., 1)``."""
        observed = ~x.isnan()
        mean = 1.0 if self._mean is None else self._mean.to(x)
        ratio = x.nansum(-1, keepdim=True).clamp(min=0.5) / (observed * mean).sum(-1, keepdim=True)
        return torch.where(observed.any(-1, keepdim=True), ratio, 1.0)

    def _standardise(self, x: Tensor) -> Tensor:
        """Return standardised values of log(1 + x) with mean 3, none of them negative; ``x`` if units are not known.

        Or their principal components, in one unit.
        """
        if self._unit is None and not self.offset:
            return super()._standardise(x)
        seen = super()._standardise(self._log_counts(x))
        if self.components is not None:
            return F.pad(seen, (0, self.components - seen.shape[-1])) if self._axes is None else seen @ self._axes
        return seen if self._unit is None else (seen + _CENTRE).clamp(min=0.0)

    def _in_counts(self, log_mean: Tensor) -> Tensor:
        """Return the logarithm of mean counts that are given relative to those of the columns."""
        return log_mean if self._mean is None else log_mean + self._mean.log()

    def check(self, x: Tensor) -> None:
        """Raise ``ValueError`` unless every value is a non-negative whole number."""
        low, off = float(x.min()), float((x - x.round()).abs().max())
        if not (low >= 0.0 and off <= 1e-3):  # also true of NaN and infinity
            raise ValueError(
                f"{type(self).__name__} needs counts 0, 1, 2, ...; the data has a minimum of {low:g} and values up "
                f"to {off:.2g} away from whole numbers. Counts must not be rescaled: set scale=1."
            )

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        config: dict[str, Any] = {"offset": True} if self.offset else {}
        return config | ({} if self.components is None else {"components": self.components})


class _GivenTotal(TorchDistribution):
    """Counts whose means are proportional to the total of the row that is observed.

    Means, variances and samples are those of a row with the mean total.

    Args:
        likelihood: The likelihood of the counts.
        params: Its parameters, with shape ``(*batch, P, D)``.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    takes_missing = True

    def __init__(self, likelihood: _Counts, params: Tensor) -> None:
        self.likelihood, self.params = likelihood, params
        super().__init__(params.shape[:-2], params.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _GivenTotal:
        return _GivenTotal(self.likelihood, self.params.expand(*batch_shape, *self.params.shape[-2:]))

    def _given(self, value: Tensor) -> Any:
        return self.likelihood._distribution(self.params, 1, self.likelihood._size(value).log())

    def log_prob(self, value: Tensor) -> Tensor:
        missing, elements = value.isnan(), self._given(value).base_dist
        # Zeros in their place, whose log-probability is finite: means would take log Γ of counts for every class.
        return torch.where(missing, 0.0, elements.log_prob(torch.where(missing, 0.0, value))).sum(-1)

    def impute(self, weights: Tensor, x: Tensor) -> Tensor:
        return weighted_mean(weights, self._given(x).mean)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        drawn: Tensor = self.likelihood._distribution(self.params, 1).sample(sample_shape)
        return drawn

    @property
    def mean(self) -> Tensor:
        mean: Tensor = self.likelihood._distribution(self.params, 1).mean
        return mean

    @property
    def variance(self) -> Tensor:
        variance: Tensor = self.likelihood._distribution(self.params, 1).variance
        return variance


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
            warnings.warn(
                f"The variance of these counts is {ratio:.0f} times their mean (median of the columns), so that a "
                "Poisson likelihood outweighs the labels; likelihood='negative_binomial' does not.",
                UserWarning,
                stacklevel=2,
            )

    def _distribution(self, params: Tensor, event_dim: int, log_size: Tensor | float = 0.0) -> Any:
        log_rate = params.squeeze(-1 - event_dim).clamp(max=20.0)  # an untrained decoder may return more
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
        if columns is not None and columns < 1:
            raise ValueError(f"columns={columns} must be positive, or None.")
        self.columns, self.num_params = columns, 2 if columns is None else 1
        if columns is not None:
            self.log_total = nn.Parameter(torch.ones(columns))

    def _distribution(self, params: Tensor, event_dim: int, log_size: Tensor | float = 0.0) -> Any:
        log_mean, *by_element = params.unbind(-1 - event_dim)
        log_mean = log_mean.clamp(-20.0, 20.0)
        if self.columns is not None:
            log_total = self.log_total.clamp(-10.0, 10.0)
            logits = log_mean + (self._in_counts(-log_total) + log_size)
            return _OneDispersion(log_total.exp(), logits=logits, validate_args=False).to_event(event_dim)
        log_mean, log_total = self._in_counts(log_mean) + log_size, by_element[0].clamp(-10.0, 10.0)
        distribution = dist.NegativeBinomial(log_total.exp(), logits=log_mean - log_total, validate_args=False)
        return distribution.to_event(event_dim)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return super().config() | ({} if self.columns is None else {"columns": self.columns})


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
        return constant + (value + r) * F.logsigmoid(self.logits) - r * self.logits
