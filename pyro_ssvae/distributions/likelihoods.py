"""Likelihoods p(x|y,z): how many numbers a pixel needs from the decoder, and the law they make.

A likelihood is a module. The decoder hands it raw numbers of shape ``(*batch, num_params, *event_shape)``; it
returns a Pyro distribution with ``batch_shape == batch`` and ``event_shape == event_shape``.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Bernoulli", "Gaussian", "Likelihood", "make_likelihood"]


class Likelihood(nn.Module):
    """Base class: subclass it to give the model another law for ``x``.

    Attributes:
        num_params: Raw numbers per element of ``x`` that the decoder must supply.
        name: Short name that results and saved configurations carry.
    """

    num_params: int
    name: str

    def forward(self, params: Tensor, event_dim: int) -> dist.TorchDistribution:
        """Turn raw numbers ``(*batch, num_params, *event_shape)`` into a distribution over ``x``."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(params, event_dim) -> Pyro distribution.")

    def check(self, x: Tensor) -> None:
        """Raise ``ValueError`` where rows ``x`` lie outside the support; called once, before training."""

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild the likelihood, JSON-ready."""
        return {}


class Bernoulli(Likelihood):
    r"""Independent Bernoulli pixels, by logits: :math:`\log p(x) = x\,l - \mathrm{softplus}(l)`.

    Grey values in [0, 1] are allowed. With them the expression is no longer the log-probability of the data
    but its expectation over binary pixels drawn with those intensities, so bounds on grey and on binarised
    data must not be compared; every result names its binarisation.
    """

    num_params = 1
    name = "bernoulli"

    def forward(self, params: Tensor, event_dim: int) -> dist.TorchDistribution:
        """Return ``Bernoulli(logits)`` over events.

        Args:
            params: Logits with shape ``(*batch, 1, *event_shape)``.
            event_dim: Number of dimensions of one event.

        Returns:
            A distribution with event shape ``event_shape``.
        """
        # Validation would refuse grey values, which are meant to be possible here; `check` guards the range.
        logits = params.squeeze(-1 - event_dim)
        return dist.Bernoulli(logits=logits, validate_args=False).to_event(event_dim)

    def check(self, x: Tensor) -> None:
        """Raise ``ValueError`` unless all of ``x`` lies in [0, 1]."""
        low, high = float(x.min()), float(x.max())
        if low < 0.0 or high > 1.0:
            raise ValueError(
                f"A Bernoulli likelihood needs values in [0, 1]; the data spans [{low:g}, {high:g}]. "
                "Rescale it (the `scale` of SemiSupervisedData divides), or use likelihood='gaussian'."
            )


class Gaussian(Likelihood):
    r"""Independent Gaussian pixels with learned variance, :math:`\mathcal N(x;\, \mu, \sigma^2)`.

    Args:
        min_scale: Smallest standard deviation, in units of ``x``. Pixels that never change would otherwise
            drive :math:`\sigma` to zero and the bound to infinity.

    Raises:
        ValueError: If ``min_scale`` is not positive.
    """

    num_params = 2
    name = "gaussian"

    def __init__(self, min_scale: float = 0.05) -> None:
        super().__init__()
        if min_scale <= 0.0:
            raise ValueError(f"min_scale={min_scale} must be positive, in the units of x.")
        self.min_scale = float(min_scale)

    def forward(self, params: Tensor, event_dim: int) -> dist.TorchDistribution:
        """Return ``Normal(loc, min_scale + softplus(raw))`` over events.

        Args:
            params: Location and raw scale with shape ``(*batch, 2, *event_shape)``.
            event_dim: Number of dimensions of one event.

        Returns:
            A distribution with event shape ``event_shape``.
        """
        loc, raw_scale = params.unbind(-1 - event_dim)
        return dist.Normal(loc, self.min_scale + F.softplus(raw_scale)).to_event(event_dim)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"min_scale": self.min_scale}


_LIKELIHOODS: dict[str, type[Likelihood]] = {"bernoulli": Bernoulli, "gaussian": Gaussian}


def make_likelihood(likelihood: str | Likelihood, **config: Any) -> Likelihood:
    """Return a likelihood by name, or the given one unchanged.

    Args:
        likelihood: ``"bernoulli"``, ``"gaussian"`` or a :class:`Likelihood`.
        **config: Arguments of the named likelihood.

    Raises:
        ValueError: For an unknown name.
        TypeError: For anything that is neither a name nor a :class:`Likelihood`.

    Example:
        >>> import torch
        >>> make_likelihood("bernoulli")(torch.zeros(4, 1, 8, 8), 2).event_shape
        torch.Size([8, 8])
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if not isinstance(likelihood, str):
        raise TypeError(
            f"likelihood must be a name or a Likelihood, not {type(likelihood).__name__}; "
            f"names: {', '.join(_LIKELIHOODS)}."
        )
    if likelihood not in _LIKELIHOODS:
        raise ValueError(f"likelihood={likelihood!r} is unknown; choose one of {', '.join(_LIKELIHOODS)}.")
    return _LIKELIHOODS[likelihood](**config)
