r"""Markov chains that follow the gradient of an energy: Langevin dynamics and annealed importance sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["annealed_log_normaliser", "langevin"]

_MAX_GRADIENT = 50.0  # of an element, in Langevin dynamics
_LEAPFROG_STEPS = 5
_TARGET_ACCEPTANCE = 0.7


def langevin(
    energy: Callable[[Tensor], Tensor],
    x: Tensor,
    steps: int,
    step_size: float,
    *,
    bounds: tuple[Any, Any] | None = None,
) -> Tensor:
    r"""Return x after some steps of Langevin dynamics, detached.

    .. math:: x \leftarrow x - \eta\,\nabla E(x) + \sqrt{2 \eta}\,\epsilon, \qquad \epsilon \sim N(0, I)

    with the elements of the gradient clipped to [-50, 50].

    Args:
        energy: Maps x ``(B, *event_shape)`` to energies ``(B,)``.
        x: Where the chains start, with shape ``(B, *event_shape)``.
        steps: Number of steps.
        step_size: η.
        bounds: Smallest and largest value of an element, to which x is clamped after each step; ``None`` for none.

    Raises:
        ValueError: For a step size that is not positive, or a negative number of steps.
    """
    if not (step_size > 0.0 and steps >= 0):
        raise ValueError(f"step_size={step_size} must be positive, and steps={steps} not negative.")
    noise_scale = math.sqrt(2.0 * step_size)
    x = x.detach()
    for _ in range(steps):
        with torch.enable_grad():
            x = x.requires_grad_()
            (gradient,) = torch.autograd.grad(energy(x).sum(), x)
        gradient = gradient.clamp(-_MAX_GRADIENT, _MAX_GRADIENT)
        x = x.detach() - step_size * gradient + noise_scale * torch.randn_like(x)
        x = x if bounds is None else x.clamp(*bounds)
    return x


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

    Chains start at draws from a Gaussian p₀ and follow :math:`p_0^{1-\beta} e^{-\beta E}` as β goes from 0 to 1, with
    one step of Hamiltonian Monte Carlo at each temperature (Annealed Importance Sampling, Neal, 2001,
    https://arxiv.org/abs/physics/9803008, equations 4 and 11). Step sizes adapt to the acceptance rate. Apart from
    that, the estimate of Z is unbiased, and that of log Z is too low on average.

    Args:
        energy: Maps x ``(N, *event_shape)`` to energies ``(N,)``, differentiably: ``model.energy_net`` of a
            :class:`pyro_ssvae.DDGM` in evaluation mode, not ``model.energy``, which runs under ``torch.no_grad()``.
        event_shape: Shape of one sample.
        loc: Mean of p₀.
        scale: Standard deviation of p₀; it should cover the regions of low energy.
        num_chains: Independent chains, at least 2.
        num_temperatures: Number of temperatures T; more of them lower the variance.
        seed: Seed of the chains; the caller's random state is left as it was.
        device: Device of the energy.

    Returns:
        log Z and its standard error over chains.

    Raises:
        ValueError: For fewer than two chains, no temperature or a non-positive scale; for an energy of another shape,
            or one that is not differentiable.

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
    step_size = 0.1 * scale
    for number in range(num_temperatures):
        low, high = number / num_temperatures, (number + 1) / num_temperatures
        log_weights += (high - low) * (-state.energy - _log_base(state.x, loc, scale)).double()

        def potential(state: _State, beta: float = high) -> tuple[Tensor, Tensor]:
            value = beta * state.energy - (1.0 - beta) * _log_base(state.x, loc, scale)
            return value, beta * state.gradient + (1.0 - beta) * (state.x - loc) / scale**2

        state, acceptance = _hamiltonian_step(energy, potential, state, step_size, noise)
        step_size *= 1.05 if acceptance > _TARGET_ACCEPTANCE else 1.0 / 1.05
    log_z = float(log_weights.logsumexp(0)) - math.log(num_chains)
    weights = (log_weights - log_z).exp()  # of mean 1
    return log_z, float(weights.std() / math.sqrt(num_chains))


class _State(NamedTuple):
    """The positions of chains, and energies and their gradients there."""

    x: Tensor
    energy: Tensor
    gradient: Tensor

    @classmethod
    def at(cls, x: Tensor, energy: Callable[[Tensor], Tensor]) -> _State:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            value = energy(x)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return cls(x.detach(), value.detach(), gradient)


def _check_energy(energy: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with torch.enable_grad():
        values = energy(x.detach().requires_grad_())
    if values.shape != (len(x),):
        raise ValueError(f"energy(x) has shape {tuple(values.shape)}; {(len(x),)} is needed, one number per chain.")
    if not values.requires_grad:
        raise ValueError(
            "energy(x) has no graph, and Hamiltonian Monte Carlo needs its gradient. Of a DDGM, hand in "
            "model.energy_net in evaluation mode, not model.energy, which runs under torch.no_grad()."
        )


def _log_base(x: Tensor, loc: float, scale: float) -> Tensor:
    log_prob: Tensor = torch.distributions.Normal(loc, scale).log_prob(x).flatten(1).sum(-1)
    return log_prob


def _hamiltonian_step(
    energy: Callable[[Tensor], Tensor],
    potential: Callable[[_State], tuple[Tensor, Tensor]],
    start: _State,
    step_size: float,
    noise: torch.Generator,
) -> tuple[_State, float]:
    """Return the chains after a step that leaves exp(−potential) invariant, and the acceptance rate."""
    before, gradient = potential(start)
    momentum = torch.randn(start.x.shape, generator=noise, device=start.x.device)
    kinetic = 0.5 * momentum.square().flatten(1).sum(-1)
    end, after = start, before
    for _ in range(_LEAPFROG_STEPS):
        momentum = momentum - 0.5 * step_size * gradient
        end = _State.at(end.x + step_size * momentum, energy)
        after, gradient = potential(end)
        momentum = momentum - 0.5 * step_size * gradient
    log_ratio = before + kinetic - after - 0.5 * momentum.square().flatten(1).sum(-1)
    accept = torch.rand(len(start.x), generator=noise, device=start.x.device).log() < log_ratio
    wide = accept.view(-1, *[1] * (start.x.dim() - 1))
    moved = _State(
        torch.where(wide, end.x, start.x),
        torch.where(accept, end.energy, start.energy),
        torch.where(wide, end.gradient, start.gradient),
    )
    return moved, float(accept.double().mean())
