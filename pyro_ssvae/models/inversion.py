"""Latents whose image under a generator is nearest to a target."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import biject_to

__all__ = ["nearest_latents"]

_NUM_STARTS = 64
_LEARNING_RATE = 0.05  # of the unconstrained latents


def nearest_latents(
    target: Tensor,
    function: Callable[[Tensor], Tensor],
    prior: TorchDistribution,
    *,
    start: Tensor | None = None,
    steps: int = 200,
) -> Tensor:
    r"""Return the latents whose image is nearest to a target, within the support of the prior.

    .. math:: \hat z = \arg\min_z \|h(z) - t\|^2

    Adam starts from the best of 64 draws from the prior, and may end in a local minimum.

    Args:
        target: t, with shape ``(B, D)``.
        function: h, which maps each latent of ``(B, L)`` to an image, ``(B, D)``.
        prior: p(z), with event shape ``(L,)``.
        start: Latents ``(B, L)`` to start from instead.
        steps: Steps of Adam.

    Returns:
        The best latents found, with shape ``(B, L)``, detached.
    """
    if start is None:
        with torch.no_grad():
            draws = prior.sample((_NUM_STARTS,))  # (S, L)
            start = draws[torch.cdist(target, function(draws)).argmin(-1)]
    bijection = biject_to(prior.support)
    # At the bounds of the support gradients with respect to the unconstrained latents vanish.
    free = bijection.inv(start.detach()).clamp(-6.0, 6.0).requires_grad_()
    optimizer = torch.optim.Adam([free], lr=_LEARNING_RATE)
    best, least = start.detach(), torch.full((len(target),), torch.inf, device=target.device)
    for step in range(steps + 1):
        with torch.enable_grad():
            z = bijection(free)
            distance = (function(z) - target).square().sum(-1)
            (free.grad,) = torch.autograd.grad(distance.sum(), free)
        nearer = distance.detach() < least
        best = torch.where(nearer.unsqueeze(-1), z.detach(), best)
        least = torch.where(nearer, distance.detach(), least)
        if step < steps:
            optimizer.step()
    return best
