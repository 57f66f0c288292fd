"""The way back through a generator: latents of given rows or features, which ancestral sampling never needs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import biject_to

__all__ = ["nearest_latents"]


def nearest_latents(
    target: Tensor,
    image_of: Callable[[Tensor], Tensor],
    prior: TorchDistribution,
    *,
    start: Tensor | None = None,
    num_starts: int = 64,
    steps: int = 200,
    learning_rate: float = 0.05,
) -> Tensor:
    r"""Return the latents whose image lies nearest to a target, within the support of the prior.

    .. math:: \hat z = \arg\min_z \|h(z) - t\|^2

    From the best of several draws of the prior, by Adam. Like every descent, it may end beside the nearest one.

    Args:
        target: t, with shape ``(B, D)``.
        image_of: h, which maps latents ``(B, L)`` to ``(B, D)``, row by row.
        prior: p(z), with event shape ``(L,)``.
        start: Latents ``(B, L)`` to start from; the best of ``num_starts`` draws where ``None``.
        num_starts: Draws for each row.
        steps: Steps of Adam.
        learning_rate: Its learning rate, in the space in which z is without bounds.

    Returns:
        Latents with shape ``(B, L)``, detached.
    """
    if start is None:
        with torch.no_grad():
            draws = prior.sample((num_starts,))  # (S, L)
            start = draws[torch.cdist(target, image_of(draws)).argmin(-1)]
    bounds = biject_to(prior.support)
    free = bounds.inv(start.detach()).clamp(-6.0, 6.0).requires_grad_()  # not where a bound stops all gradients
    optimizer = torch.optim.Adam([free], lr=learning_rate)
    best, least = start.detach().clone(), torch.full((len(target),), torch.inf, device=target.device)
    for step in range(steps + 1):
        with torch.enable_grad():
            z = bounds(free)
            distance = (image_of(z) - target).square().sum(-1)
            (free.grad,) = torch.autograd.grad(distance.sum(), free)
        nearer = distance.detach() < least
        best[nearer], least = z.detach()[nearer], torch.where(nearer, distance.detach(), least)
        if step < steps:
            optimizer.step()
    return best
