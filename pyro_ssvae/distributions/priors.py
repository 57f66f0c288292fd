"""Priors p(z): modules that return a Pyro distribution when called."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

__all__ = ["StandardNormal"]


class StandardNormal(nn.Module):
    """The prior :math:`p(z) = N(0, I)` of Kingma et al. (2014).

    Args:
        latent_dim: Number of latent dimensions.

    Example:
        >>> StandardNormal(3)().event_shape
        torch.Size([3])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        # Buffers, so that the prior follows the model to its device.
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return the prior, with event shape ``(latent_dim,)``."""
        return dist.Normal(self.loc, self.scale).to_event(1)
