"""Likelihoods of values on a grid."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from pyro_ssvae.distributions.likelihoods import Likelihood
from pyro_ssvae.distributions.torch_distributions import weighted_mean

__all__ = ["Categorical", "DiscretisedLogistic"]

_TOLERANCE = 1e-3  # of a grid step; 8-bit values divided by 255 in float32 are within 1e-5 of it


class _GridDistribution(TorchDistribution):
    """A distribution of the values 0, 1, ..., ``levels - 1``, times ``spacing``, by logits ``(*batch, levels)``.

    Where the values are codes in no order, the most probable one stands for the mean.
    """

    arg_constraints = {"logits": constraints.real_vector}
    support = constraints.real  # the grid, which Likelihood.check checks before training

    def __init__(self, logits: Tensor, spacing: float, ordered: bool = True) -> None:
        self.logits, self.spacing, self._ordered = logits, spacing, ordered
        super().__init__(logits.shape[:-1], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _GridDistribution:
        return _GridDistribution(self.logits.expand(*batch_shape, -1), self.spacing, self._ordered)

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
        return self.logits.softmax(-1) @ self._values().square() - (self.logits.softmax(-1) @ self._values()).square()

    def impute(self, weights: Tensor, x: Tensor) -> Tensor:
        return weighted_mean(weights, self.logits.softmax(-1), 2).argmax(-1).to(x) * self.spacing

    def _values(self) -> Tensor:
        levels = self.logits.shape[-1]
        return torch.arange(levels, dtype=self.logits.dtype, device=self.logits.device) * self.spacing


class _Grid(Likelihood):
    """Base class of likelihoods of values on a grid."""

    def __init__(self, levels: int = 256, spacing: float | None = None) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels={levels} must be at least 2.")
        if spacing is not None and spacing <= 0.0:
            raise ValueError(f"spacing={spacing} must be positive, in the units of x.")
        self.levels, self.unit_interval = int(levels), spacing is None
        self.spacing = 1.0 / (levels - 1) if spacing is None else float(spacing)

    def check(self, x: Tensor) -> None:
        """Raise ``ValueError`` unless every value is a multiple of the spacing and on the grid."""
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

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"levels": self.levels} | ({} if self.unit_interval else {"spacing": self.spacing})


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

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return super().config() | ({"one_hot": True} if self.one_hot else {})

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
        self.loc, self.log_scale = torch.broadcast_tensors(loc, log_scale)
        self.levels, self.spacing = levels, spacing
        super().__init__(self.loc.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _LogisticCells:
        loc, log_scale = self.loc.expand(batch_shape), self.log_scale.expand(batch_shape)
        return _LogisticCells(loc, log_scale, self.levels, self.spacing)

    def log_prob(self, value: Tensor) -> Tensor:
        step = (value / self.spacing).round()
        inverse = (-self.log_scale.clamp(-5.0, 12.0)).exp()
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
        step = self.loc / self.spacing + self.log_scale.clamp(-5.0, 12.0).exp() * noise
        return step.round().clamp(0, self.levels - 1) * self.spacing

    @property
    def mean(self) -> Tensor:
        return self.loc.clamp(0.0, self.spacing * (self.levels - 1))  # ignores the truncation at both ends

    @property
    def variance(self) -> Tensor:
        scale = self.log_scale.clamp(-5.0, 12.0).exp() * self.spacing
        return scale.square() * (torch.pi**2 / 3.0)
