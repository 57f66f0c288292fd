r"""log Z of an energy model by annealed importance sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["annealed_log_normaliser"]

_LEAPFROGS = 5
_ACCEPTANCE = 0.7  # that the length of a step is steered to


def annealed_log_normaliser(
    energy: Callable[[Tensor], Tensor],
    event_shape: Sequence[int],
    *,
    loc: float = 0.0,
    scale: float = 1.0,
    num_chains: int = 500,
    num_temperatures: int = 500,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[float, float]:
    r"""Estimate :math:`\log Z = \log \int e^{-E(x)}\,dx`, in nats, by annealed importance sampling.

    Chains start as draws of a Gaussian and follow :math:`p_0^{1-\beta} e^{-\beta E}` as β goes from 0 to 1, one move
    of Hamiltonian Monte Carlo at each temperature (Annealed Importance Sampling, Neal, 2001). The estimate of Z is
    unbiased but for the steering of step lengths by the chains themselves; that of log Z is too low on average.

    Args:
        energy: Maps x ``(N, *event_shape)`` to energies ``(N,)``.
        event_shape: Shape of one row.
        loc: Mean of the starting Gaussian.
        scale: Its standard deviation; it should cover what the energy allows.
        num_chains: Independent chains, at least 2.
        num_temperatures: Steps of β; more of them lower the variance.
        seed: Of the chains; the caller's random state is left as it was.
        device: Where the energy lies.

    Returns:
        log Z and its standard error over chains.

    Raises:
        ValueError: For fewer than two chains, no temperature or a non-positive scale.

    Example:
        >>> estimate, error = annealed_log_normaliser(lambda x: 0.5 * x.square().sum(-1), (2,), scale=2.0)
        >>> abs(estimate - math.log(2 * math.pi)) < 5 * error
        True
    """
    if num_chains < 2 or num_temperatures < 1 or not scale > 0.0:
        raise ValueError(
            f"num_chains={num_chains} must be at least 2, num_temperatures={num_temperatures} at least 1 and "
            f"scale={scale} positive."
        )
    noise = torch.Generator(device).manual_seed(seed)
    shape = (num_chains, *event_shape)
    start = loc + scale * torch.randn(shape, generator=noise, device=device)
    x = start
    log_weights = torch.zeros(num_chains, device=device, dtype=torch.float64)
    step = 0.1 * scale
    for number in range(num_temperatures):
        low, high = number / num_temperatures, (number + 1) / num_temperatures
        with torch.no_grad():
            difference = -energy(x) - _log_base(x, loc, scale)
        log_weights += (high - low) * difference.double()

        def potential(x: Tensor, beta: float = high) -> Tensor:
            return beta * energy(x) - (1.0 - beta) * _log_base(x, loc, scale)

        x, accepted = _hamiltonian_move(potential, x, step, noise)
        step *= 1.05 if accepted > _ACCEPTANCE else 1.0 / 1.05
    log_z = float(log_weights.logsumexp(0)) - math.log(num_chains)
    relative = (log_weights - log_z).exp()
    return log_z, float(relative.std() / math.sqrt(num_chains))


def _log_base(x: Tensor, loc: float, scale: float) -> Tensor:
    log_prob: Tensor = torch.distributions.Normal(loc, scale).log_prob(x).flatten(1).sum(-1)
    return log_prob


def _hamiltonian_move(
    potential: Callable[[Tensor], Tensor], x: Tensor, step: float, noise: torch.Generator
) -> tuple[Tensor, float]:
    """Return the chains after a move that leaves exp(−potential) as it is, and the share of accepted proposals."""

    def value_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            value = potential(x)
            (slope,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), slope

    before, slope = value_and_slope(x)
    momentum = torch.randn(x.shape, generator=noise, device=x.device)
    kinetic = 0.5 * momentum.square().flatten(1).sum(-1)
    proposal, after = x, before
    for _ in range(_LEAPFROGS):
        momentum = momentum - 0.5 * step * slope
        proposal = proposal + step * momentum
        after, slope = value_and_slope(proposal)
        momentum = momentum - 0.5 * step * slope
    log_ratio = before + kinetic - after - 0.5 * momentum.square().flatten(1).sum(-1)
    accept = torch.rand(len(x), generator=noise, device=x.device).log() < log_ratio
    moved = torch.where(accept.view(-1, *[1] * (x.dim() - 1)), proposal, x)
    return moved, float(accept.double().mean())
