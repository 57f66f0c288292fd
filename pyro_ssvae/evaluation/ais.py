r"""log Z of an energy model by annealed importance sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

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

    .. math:: \log Z \approx \log \frac1N \sum_{n=1}^N w_n, \qquad
        \log w_n = \sum_{t=1}^T (\beta_t - \beta_{t-1})\, \bigl(-E(x_{n,t-1}) - \log p_0(x_{n,t-1})\bigr)

    Chains start as draws of a Gaussian p₀ and follow :math:`p_0^{1-\beta} e^{-\beta E}` as β goes from 0 to 1, one move
    of Hamiltonian Monte Carlo at each temperature (Annealed Importance Sampling, Neal, 2001,
    https://arxiv.org/abs/physics/9803008, equations 4 and 11). The estimate of Z is unbiased but for the steering of
    step lengths by the chains themselves; that of log Z is too low on average.

    Args:
        energy: Maps x ``(N, *event_shape)`` to energies ``(N,)``, so that gradients reach x: ``model.energy_net`` of a
            :class:`pyro_ssvae.DDGM` in evaluation mode, as ``model.energy`` keeps no graph.
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
        ValueError: For fewer than two chains, no temperature or a non-positive scale; for an energy of another shape,
            or one without a graph.

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
    x = loc + scale * torch.randn(shape, generator=noise, device=device)
    _check_energy(energy, x)
    state = _State.at(x, energy)
    log_weights = torch.zeros(num_chains, device=device, dtype=torch.float64)
    step = 0.1 * scale
    for number in range(num_temperatures):
        low, high = number / num_temperatures, (number + 1) / num_temperatures
        log_weights += (high - low) * (-state.energy - _log_base(state.x, loc, scale)).double()

        def potential(state: _State, beta: float = high) -> tuple[Tensor, Tensor]:
            value = beta * state.energy - (1.0 - beta) * _log_base(state.x, loc, scale)
            return value, beta * state.slope + (1.0 - beta) * (state.x - loc) / scale**2

        state, accepted = _hamiltonian_move(energy, potential, state, step, noise)
        step *= 1.05 if accepted > _ACCEPTANCE else 1.0 / 1.05
    log_z = float(log_weights.logsumexp(0)) - math.log(num_chains)
    relative = (log_weights - log_z).exp()
    return log_z, float(relative.std() / math.sqrt(num_chains))


class _State(NamedTuple):
    """Where chains are, their energies, and the gradients of these."""

    x: Tensor
    energy: Tensor
    slope: Tensor

    @classmethod
    def at(cls, x: Tensor, energy: Callable[[Tensor], Tensor]) -> _State:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            value = energy(x)
            (slope,) = torch.autograd.grad(value.sum(), x)
        return cls(x.detach(), value.detach(), slope)


def _check_energy(energy: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with torch.enable_grad():
        values = energy(x.detach().requires_grad_())
    if values.shape != (len(x),):
        raise ValueError(f"energy(x) has shape {tuple(values.shape)}; {(len(x),)} is needed, one number for each row.")
    if not values.requires_grad:
        raise ValueError(
            "energy(x) has no graph, and Hamiltonian moves follow its gradient. Hand in a function that keeps one: of "
            "a DDGM model.energy_net in evaluation mode, not model.energy, which runs under torch.no_grad()."
        )


def _log_base(x: Tensor, loc: float, scale: float) -> Tensor:
    log_prob: Tensor = torch.distributions.Normal(loc, scale).log_prob(x).flatten(1).sum(-1)
    return log_prob


def _hamiltonian_move(
    energy: Callable[[Tensor], Tensor],
    potential: Callable[[_State], tuple[Tensor, Tensor]],
    start: _State,
    step: float,
    noise: torch.Generator,
) -> tuple[_State, float]:
    """Return the chains after a move that leaves exp(−potential) as it is, and the share of accepted proposals."""
    before, slope = potential(start)
    momentum = torch.randn(start.x.shape, generator=noise, device=start.x.device)
    kinetic = 0.5 * momentum.square().flatten(1).sum(-1)
    end, after = start, before
    for _ in range(_LEAPFROGS):
        momentum = momentum - 0.5 * step * slope
        end = _State.at(end.x + step * momentum, energy)
        after, slope = potential(end)
        momentum = momentum - 0.5 * step * slope
    log_ratio = before + kinetic - after - 0.5 * momentum.square().flatten(1).sum(-1)
    accept = torch.rand(len(start.x), generator=noise, device=start.x.device).log() < log_ratio
    wide = accept.view(-1, *[1] * (start.x.dim() - 1))
    moved = _State(
        torch.where(wide, end.x, start.x),
        torch.where(accept, end.energy, start.energy),
        torch.where(wide, end.slope, start.slope),
    )
    return moved, float(accept.double().mean())
