"""Likelihoods p(x|y,z): modules that map the decoder's raw numbers to a Pyro distribution over x.

For raw numbers with shape ``(*batch, num_params, *event_shape)`` the distribution has batch shape ``batch`` and event
shape ``event_shape``.

A likelihood also knows the units of x, estimated from training examples: networks see standardised numbers, and the
distribution is of x in its own units. Without such an estimate, and for values in [0, 1], networks see x itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from pyro_ssvae._arrays import holds_missing, value_range
from pyro_ssvae._configurable import Configurable
from pyro_ssvae._warnings import warn
from pyro_ssvae.distributions.torch_distributions import (
    BernoulliByLogits,
    ContinuousBernoulliByLogits,
    ScaledNormal,
    impute,
    leave_out_missing,
)

_MAX_ELEMENTS = 20_000_000  # of the training examples from which units are estimated: 160 MB in double precision
_GREY = 0.25  # share of values between black and white from which a Bernoulli likelihood leaves z unused
_MAX_RANGE = 20.0  # of a column in its unit, so that a value that occurs rarely is no huge input of a network


class Likelihood(Configurable):
    """Base class of likelihoods; subclass it to use another distribution of ``x``.

    Attributes:
        num_params: Raw numbers per element of ``x`` that the decoder must return.
        name: Name in results and saved configurations.
        unit_interval: Whether the support is [0, 1].
        of_counts: Whether the support is 0, 1, 2, ...
        real_valued: Whether :meth:`forward` passes location and scale through :meth:`in_units`, so that units may be
            estimated.
        missing: Whether ``x`` may have missing values (NaN); set by the model, from its argument of that name.
    """

    num_params: int
    name: str
    unit_interval: bool = False
    of_counts: bool = False
    real_valued: bool = False
    missing: bool = False
    _shift: Tensor | None
    _unit: Tensor | None
    _unit_names: tuple[str, ...] = ("_shift", "_unit")

    def __init__(self) -> None:
        super().__init__()
        self._units_known = False
        for name in self._unit_names:
            self.register_buffer(name, None)

    def forward(self, params: Tensor, event_dim: int) -> dist.TorchDistribution:
        """Return the distribution of ``x``, for raw numbers with shape ``(*batch, num_params, *event_shape)``."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(params, event_dim) -> Pyro distribution.")

    def fit_units(self, x: Tensor, scale: float = 1.0) -> None:
        """Estimate the units of x from training examples, unless they are known, as those of a loaded model are.

        Args:
            x: Examples with shape ``(N, *event_shape)``, as stored.
            scale: Divides ``x``.
        """
        if not self._units_known:
            self._units_known = True
            self._estimate_units(x, scale)

    def _estimate_units(self, x: Tensor, scale: float) -> None:
        if self.real_valued:
            x = select_examples(x, scale)
            # Images in [0, 1] have pixels that hardly vary, whose noise standardising would blow up.
            if x.dim() < 3 or not (x.min() >= 0.0 and 0.5 < x.max() <= 1.0):
                self._shift, self._unit = standard_units(x)
        elif self.missing:  # networks see x itself, and the means of the columns for missing values
            self._shift = fill_missing(select_examples(x, scale)).mean(0).to(torch.get_default_dtype())

    def network_input(self, x: Tensor) -> Tensor:
        """Return what encoders and classifiers see of ``x``, with its shape: standardised columns if units are known.

        The channels of images are standardised as a whole. Where values may be missing, the means of the columns
        (zeros, if standardised) stand for them, and as many columns follow with ones where values are missing.
        """
        seen = self._standardise(x)
        # What is missing, not what is observed: of columns in which nothing is, weights would be trained as biases.
        return torch.cat([seen, x.isnan().to(seen)], -1) if self.missing else seen

    def _standardise(self, x: Tensor) -> Tensor:
        mean: Tensor | float = 0.0
        if self._shift is not None and self._unit is not None:
            x = (x - self._shift) / self._unit
        elif self._shift is not None:
            mean = self._shift
        return torch.where(x.isnan(), mean, x) if self.missing else x

    def in_units(self, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and scale of standardised values, ``(*batch, *event_shape)``, in the units of x."""
        if self._shift is None or self._unit is None:
            return loc, scale
        return self._shift + self._unit * loc, self._unit * scale

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load units, or none where the state holds none, whether or not they were known before."""
        for name in self._unit_names:
            saved, own = state_dict.get(prefix + name), getattr(self, name)
            if saved is None or own is None or own.shape != saved.shape:
                setattr(self, name, None if saved is None else torch.empty_like(saved))
        self._units_known = True
        super()._load_from_state_dict(state_dict, prefix, *args)

    def check(self, x: Tensor) -> None:
        """Raise ``ValueError`` if ``x``, ``(N, *event_shape)``, leaves the support; called before training."""


class _OfUnitInterval(Likelihood):
    """Base class of likelihoods of values in [0, 1], by logits."""

    num_params = 1
    unit_interval = True
    family: Any  # the distribution's class

    def forward(self, params: Tensor, event_dim: int) -> dist.TorchDistribution:
        # Pyro's validation would refuse grey values; `check` checks the range.
        return self.family(logits=params.squeeze(-1 - event_dim), validate_args=False).to_event(event_dim)

    def check(self, x: Tensor) -> None:
        low, high = float(x.min()), float(x.max())
        if not (low >= 0.0 and high <= 1.0):  # also true of NaN
            raise ValueError(
                f"{type(self).__name__} needs values in [0, 1]; the data spans [{low:g}, {high:g}]. For real numbers "
                "use likelihood='gaussian', for a table 'auto'; pixels are divided by the `scale` of the data."
            )


class Bernoulli(_OfUnitInterval):
    r"""Independent Bernoulli pixels, by logits: :math:`\log p(x) = x\,l - \mathrm{softplus}(l)`.

    Grey values in [0, 1] are allowed. For them the expression is not a log-probability of the data but its expectation
    over binary pixels drawn with those intensities, so bounds on grey and on binarised data must not be compared.
    """

    name = "bernoulli"
    family = BernoulliByLogits

    def _estimate_units(self, x: Tensor, scale: float) -> None:
        super()._estimate_units(x, scale)
        low, high = value_range(x)
        if x.dim() != 4 and 0.0 <= low and high <= scale and are_grey(x, scale):  # for images for_data chooses
            better = "'auto' chooses by the values of each column" if x.dim() == 2 else "'gaussian' suits them"
            warn(
                "More than a quarter of the values lies between 0.1 and 0.9. Under a Bernoulli likelihood, the default "
                f"of M1 and M2, they are taken for chance, and latents are hardly used; likelihood={better}."
            )


class ContinuousBernoulli(_OfUnitInterval):
    r"""Continuous Bernoulli pixels, a density on [0, 1]: :math:`p(x) = C(l)\,e^{x\,l - \mathrm{softplus}(l)}`.

    A Bernoulli likelihood of grey values lacks the constant C; with it, bounds are log-densities of the grey values
    (The continuous Bernoulli, Loaiza-Ganem & Cunningham, 2019, https://arxiv.org/abs/1907.06845).
    """

    name = "continuous_bernoulli"
    family = ContinuousBernoulliByLogits


class _LocationScale(Likelihood):
    """Base class of distributions with a location and a scale for each element."""

    num_params = 2
    real_valued = True
    family: Any  # the distribution's class, called with location and scale
    family_in_units: Any  # the same, for scales of any size

    def __init__(self, min_scale: float = 0.05) -> None:
        super().__init__()
        self.min_scale = float(min_scale)

    def forward(self, params: Tensor, event_dim: int) -> dist.TorchDistribution:
        """Return the distribution over events, for parameters with shape ``(*batch, 2, *event_shape)``."""
        loc, raw_scale = params.unbind(-1 - event_dim)
        scale = self.min_scale + F.softplus(raw_scale)
        family = self.family if self._unit is None else self.family_in_units
        return family(*self.in_units(loc, scale)).to_event(event_dim)


class Gaussian(_LocationScale):
    r"""Independent Gaussian elements, :math:`\mathcal N(x;\, \mu, \sigma^2)`; the decoder returns both for each.

    Args:
        min_scale: Smallest σ, in standard deviations of the column in the training examples (in the units of ``x`` for
            images in [0, 1]). A constant column would otherwise drive σ to zero and the bound to infinity.

    Raises:
        ValueError: For a ``min_scale`` that is not positive.
    """

    name = "gaussian"
    family, family_in_units = dist.Normal, ScaledNormal


class Laplace(_LocationScale):
    r"""Independent Laplace elements, :math:`\tfrac{1}{2b}\,e^{-|x - \mu| / b}`, with heavier tails than a Gaussian.

    The arguments and errors are those of :class:`Gaussian`, for b instead of σ.
    """

    name = "laplace"
    family = family_in_units = dist.Laplace


class Mixed(Likelihood):
    """Different distributions for different columns of a table, conditionally independent given the latents.

    Args:
        parts: Pairs of column indices and their likelihood. Every column of the table belongs to exactly one.

    Raises:
        ValueError: If there are no parts, a part has no columns, or columns are not 0 to D - 1, each once.
        TypeError: If a part is no :class:`Likelihood`.

    Example:
        >>> from pyro_ssvae.distributions import Categorical, Gaussian, Poisson
        >>> mixed = Mixed([([0, 2], Gaussian()), ([1], Poisson()), ([3], Categorical(levels=4, spacing=1))])
        >>> mixed(torch.zeros(8, mixed.num_params, 4), event_dim=1).event_shape
        torch.Size([4])
    """

    name = "mixed"
    parts: Any  # a ModuleList, whose elements would be typed as Module
    _order: Tensor
    _positions: Tensor

    def __init__(self, parts: Sequence[tuple[Sequence[int], Likelihood]]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("Mixed needs at least one part, for example [([0, 1], Gaussian()), ([2], Poisson())].")
        self.columns = [[int(column) for column in columns] for columns, _ in parts]
        for _, likelihood in parts:
            if not isinstance(likelihood, Likelihood):
                raise TypeError(f"Each part needs a Likelihood, not {type(likelihood).__name__}.")
        flat = sorted(column for columns in self.columns for column in columns)
        if flat != list(range(len(flat))) or not all(self.columns):
            raise ValueError(f"The parts must name each column from 0 up once; got {self.columns}.")
        self.parts = nn.ModuleList(likelihood for _, likelihood in parts)
        self.num_params = max(likelihood.num_params for _, likelihood in parts)
        # On the device, where indexing by lists would copy them from the host in every step.
        order = torch.tensor([column for columns in self.columns for column in columns])
        self.register_buffer("_order", order, persistent=False)
        self.register_buffer("_positions", order.argsort(), persistent=False)  # column -> position among the groups

    def forward(self, params: Tensor, event_dim: int) -> TorchDistribution:
        """Return the joint distribution of rows, for raw numbers ``(*batch, P, D)``; parts use the first ones of P."""
        if event_dim != 1:
            raise ValueError(
                f"Mixed is for rows of {len(self._order)} columns; got events with {event_dim} dimension(s), the last "
                f"of size {params.shape[-1]}."
            )
        parts = [part(group[..., : part.num_params, :], 1) for part, group in self._each(params)]
        return _Joint(self, [leave_out_missing(part) if self.missing else part for part in parts])

    def fit_units(self, x: Tensor, scale: float = 1.0) -> None:
        """Estimate the units of the columns of every part, from examples ``(N, D)``."""
        for part, group in self._each(x):
            part.fit_units(group, scale)

    def _standardise(self, x: Tensor) -> Tensor:
        joined = torch.cat([part._standardise(group) for part, group in self._each(x)], -1)
        # In the order of the parts if the number of columns differs.
        return self._in_order(joined) if joined.shape == x.shape else joined

    def _each(self, x: Tensor) -> zip[tuple[Likelihood, Tensor]]:
        return zip(self.parts, self._split(x), strict=True)

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the columns ``(..., D)`` of each part."""
        if x.shape[-1] != len(self._order):
            raise ValueError(f"Mixed is for rows of {len(self._order)} columns, the data has {x.shape[-1]} columns.")
        order = self._order.to(x.device)  # examples of a data set may lie elsewhere than the model
        return x.index_select(-1, order).split([len(group) for group in self.columns], -1)

    def _in_order(self, x: Tensor) -> Tensor:
        """Return the columns of all parts, side by side, in the order of the table."""
        return x.index_select(-1, self._positions)

    def check(self, x: Tensor) -> None:
        """Raise ``ValueError``, naming the columns, if the check of a part fails for its columns."""
        for columns, (part, group) in zip(self.columns, self._each(x), strict=True):
            try:
                part.check(group)
            except ValueError as error:
                raise ValueError(f"Columns {columns}: {error}") from error


class _Joint(TorchDistribution):
    """Independent distributions of the columns of each part of a :class:`Mixed`."""

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    takes_missing = True

    def __init__(self, mixed: Mixed, parts: list[TorchDistribution]) -> None:
        self._mixed, self._parts = mixed, parts
        columns = sum(part.event_shape[0] for part in parts)
        super().__init__(parts[0].batch_shape, torch.Size([columns]), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        found = [part.log_prob(group) for part, group in self._each(value)]
        return torch.stack(torch.broadcast_tensors(*found)).sum(0)

    def impute(self, weights: Tensor, x: Tensor) -> Tensor:
        return self._join(impute(part, weights, group) for part, group in self._each(x))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self._join(part.sample(sample_shape) for part in self._parts)

    @property
    def mean(self) -> Tensor:
        return self._join(part.mean for part in self._parts)

    @property
    def variance(self) -> Tensor:
        return self._join(part.variance for part in self._parts)

    def _each(self, x: Tensor) -> zip[tuple[TorchDistribution, Tensor]]:
        return zip(self._parts, self._mixed._split(x), strict=True)

    def _join(self, parts: Iterable[Tensor]) -> Tensor:
        return self._mixed._in_order(torch.cat([*parts], -1))


def group_columns(likelihood: Any, number: int) -> list[tuple[list[int], Any]]:
    """Return the ``number`` columns of a table in groups, each with its likelihood."""
    if isinstance(likelihood, Mixed):
        return list(zip(likelihood.columns, likelihood.parts, strict=True))
    return [(list(range(number)), likelihood)]


def are_grey(x: Tensor, scale: float) -> bool:
    """Return whether more than a quarter of the values of ``x / scale`` lies between 0.1 and 0.9."""
    some = x[:: 1 + len(x) // 10_000]
    grey = (some > 0.1 * scale) & (some < 0.9 * scale)
    return int(grey.sum()) > _GREY * grey.numel()


def select_examples(x: Tensor, scale: float) -> Tensor:
    """Return ``x / scale`` in double precision, of evenly spaced examples where there are many."""
    return x[:: 1 + x.numel() // _MAX_ELEMENTS].float().div(scale).double().cpu()


def standard_units(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every column of examples, ``event_shape``; of every channel of images.

    The deviation is at least 1/20 of the range. A constant column gets the median one of the others. Missing values
    are left out.
    """
    dims = (0, 2, 3) if x.dim() == 4 else (0,)
    observed: Tensor | float = 1.0  # the fraction of the column
    if holds_missing(x):
        observed = (~x.isnan()).to(x).mean(dims, keepdim=True).clamp(min=1.0 / len(x))
        x = fill_missing(x)
    low, high, mean = (reduce(x, dims, keepdim=True) for reduce in (torch.amin, torch.amax, torch.mean))
    unit = ((x - mean).square_().mean(dims, keepdim=True) / observed).sqrt().maximum((high - low) / _MAX_RANGE)
    varies = high > low
    unit = torch.where(varies, unit, unit[varies].median() if varies.any() else 1.0)
    dtype = torch.get_default_dtype()
    return mean[0].to(dtype), unit[0].to(dtype).clamp(min=torch.finfo(torch.float32).tiny)


def fill_missing(x: Tensor) -> Tensor:
    """Return examples with the mean of the column in place of missing values, zero where all of them are missing."""
    missing = x.isnan()
    return torch.where(missing, x.nanmean(0).nan_to_num(), x) if missing.any() else x
