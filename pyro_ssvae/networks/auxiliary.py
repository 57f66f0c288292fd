"""Networks of an auxiliary latent, which makes the posterior of the class and the other latents more flexible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ssvae.networks.variational import MLP, ConditionalMLP


class AuxiliaryNetworks(nn.Module):
    """The networks of q(a|x), ``encoder``, and of p(a|x,y,z), or p(a|y,z) without x, when called.

    Args:
        num_inputs: Number of values that the networks see of an example, as a classifier, ``D``.
        latent_dim: Number of latents z, ``L``.
        auxiliary_dim: Number of latents a, ``A``.
        num_classes: Number of classes ``K``.
        of_x: Whether the generative side depends on x.
        hidden_dims: Hidden widths of the inference side; the generative side has them in reverse.
        **options: Further arguments of :class:`MLP`.
    """

    def __init__(
        self,
        num_inputs: int,
        latent_dim: int,
        auxiliary_dim: int,
        num_classes: int,
        *,
        of_x: bool,
        hidden_dims: Sequence[int],
        **options: Any,
    ) -> None:
        super().__init__()
        backwards = tuple(hidden_dims)[::-1]
        self.encoder = MLP((num_inputs,), 2 * auxiliary_dim, hidden_dims, **options)
        self.decoder = ConditionalMLP((latent_dim,), num_classes, 2 * auxiliary_dim, backwards, **options)
        # Adds W x to the first layer, so that the product is computed once for all classes and draws of z.
        self.of_x = nn.Linear(num_inputs, backwards[0], bias=False) if of_x else None

    def forward(self, z: Tensor, y: Tensor, x: Tensor | None = None) -> Tensor:
        """Map z ``(..., B, L)``, y ``(B,)`` or ``(K, 1)`` and x ``(B, D)`` to parameters ``(..., B, 2 * A)``."""
        first = self.decoder.first(z, y)
        return self.decoder.rest(first if self.of_x is None else first + self.of_x(x))


def join(x: Tensor, a: Tensor) -> Tensor:
    """Return x ``(B, *event_shape)`` and a ``(..., B, A)`` in one row, ``(..., B, D + A)``."""
    return torch.cat([x.flatten(1).expand(*a.shape[:-1], -1), a], -1)
