"""Distances between two samples, and measures of energy models of points in the plane."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from pyro_ssvae.data.toy import TOY_DATASETS, draw_spiral, ring_distribution
from pyro_ssvae.models.base import fork_random_state, get_device
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.networks.variational import evaluation_mode

_CHUNK = 100  # examples whose distances fit the cache
_MEDIAN_SIZE = 1000
_SMALL = 1e-12  # probability of a cell below which it is left out of a KL divergence
_REAL_PAIRS = 10  # pairs of real samples behind the floors
_SMOOTHING = 0.1  # of the spiral, which has no density
_SPIRAL_POINTS = 1_000_000
_TEMPERATURES = 300  # of annealed importance sampling
_BASE_SCALE = 1.5  # standard deviation of the Gaussian that it starts from
_LEAPFROG_STEPS = 5
_TARGET_ACCEPTANCE = 0.7


def energy_distance(x: Tensor, y: Tensor) -> float:
    r"""Return the unbiased squared energy distance of two samples, of mean zero for equal distributions.

    .. math:: 2\,\mathbb E\|X - Y\| - \mathbb E\|X - X'\| - \mathbb E\|Y - Y'\|

    The distances of points to themselves are left out, so the estimate can be negative (Székely & Rizzo, 2013, "Energy
    statistics: a class of statistics based on distances"). Samples have shapes ``(N, D)`` and ``(M, D)``.
    """
    x, y = x.double(), y.double()
    within = sum(_sum_over_pairs(z, z) / (len(z) * (len(z) - 1)) for z in (x, y))
    return 2.0 * _sum_over_pairs(x, y) / (len(x) * len(y)) - within


def squared_mmd(x: Tensor, y: Tensor, bandwidth: float) -> float:
    r"""Return the unbiased squared maximum mean discrepancy of two samples, with a Gaussian kernel of bandwidth h.

    .. math:: \mathbb E k(X, X') + \mathbb E k(Y, Y') - 2\,\mathbb E k(X, Y), \qquad
        k(a, b) = \exp\bigl(-\|a - b\|^2 / 2h^2\bigr)

    (A Kernel Two-Sample Test, Gretton et al., 2012, equation 3).
    """
    x, y = x.double(), y.double()

    def kernel(distances: Tensor) -> Tensor:
        return distances.square_().mul_(-0.5 / bandwidth**2).exp_()

    within = sum((_sum_over_pairs(z, z, kernel) - len(z)) / (len(z) * (len(z) - 1)) for z in (x, y))
    return within - 2.0 * _sum_over_pairs(x, y, kernel) / (len(x) * len(y))


def median_distance(x: Tensor) -> float:
    """Return the median distance between the first 1,000 examples."""
    return float(torch.pdist(x[:_MEDIAN_SIZE].double()).median())


def mode_coverage(x: Tensor, modes: dist.MultivariateNormal) -> dict[str, Any]:
    r"""Return how many modes of a mixture of Gaussians a sample covers, and in which proportions.

    .. math:: k_n = \arg\min_k d_{nk}, \qquad s_k = \frac1N \sum_n [k_n = k]\,[d_{nk} \le 3], \qquad
        d_{nk}^2 = (x_n - \mu_k)^\top \Sigma_k^{-1} (x_n - \mu_k)

    A point ``(N, D)`` is assigned to the mode at the smallest Mahalanobis distance d, and counted if it is of *high
    quality*, with :math:`d \le 3`, as 98.9 % of the draws from a Gaussian in the plane. ``"shares"`` are the s,
    ``(K,)``, ``"high_quality"`` their sum, and ``"modes"`` the number of modes with a share of at least 1/10K.
    """
    difference = (x.unsqueeze(1) - modes.loc).unsqueeze(-1).to(modes.loc)  # (N, K, D, 1)
    scaled = torch.linalg.solve_triangular(modes.scale_tril, difference, upper=False).squeeze(-1)
    distance, mode = scaled.norm(dim=-1).min(-1)
    good = distance <= 3.0
    count = modes.loc.shape[0]
    shares = torch.bincount(mode[good], minlength=count).double() / len(x)
    return {"shares": shares, "modes": int((shares >= 0.1 / count).sum()), "high_quality": float(good.double().mean())}


def _sum_over_pairs(x: Tensor, y: Tensor, function: Callable[[Tensor], Tensor] = lambda distance: distance) -> float:
    """Return the sum of a function of the distances of all pairs, which are exactly zero for equal examples."""
    mode = "donot_use_mm_for_euclid_dist"
    return float(sum(function(torch.cdist(part, y, compute_mode=mode)).sum() for part in x.split(_CHUNK)))


@dataclass(frozen=True)
class Grid:
    r"""A square grid of points in :math:`[-e, e]^2`, and probabilities over its cells.

    A table of probabilities has shape ``(size, size)``, sums to one, and has a row for each second coordinate. A
    log-density maps points ``(N, 2)`` to values ``(N,)`` in nats, such as -E(x). ``extent`` is e, and ``size`` the
    number of points along each side.
    """

    extent: float = 4.5
    size: int = 361

    @property
    def cell(self) -> float:
        """Side of a cell."""
        return 2.0 * self.extent / (self.size - 1)

    def points(self) -> Tensor:
        """Return the points, with shape ``(size * size, 2)``."""
        side = torch.linspace(-self.extent, self.extent, self.size)
        second, first = torch.meshgrid(side, side, indexing="ij")
        return torch.stack([first, second], -1).view(-1, 2)

    def _log_values(self, log_density: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.no_grad():
            return torch.cat([log_density(part).cpu() for part in self.points().split(20_000)]).double()

    def probabilities(self, log_density: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the cells' probabilities under an unnormalised density."""
        return self._log_values(log_density).softmax(0).view(self.size, self.size)

    def log_normaliser(self, log_density: Callable[[Tensor], Tensor]) -> float:
        """Return log ∫ exp(log_density) over the square, in nats: log Σ_c exp(log_density(x_c)) + 2 log(cell)."""
        return float(self._log_values(log_density).logsumexp(0)) + 2.0 * math.log(self.cell)

    def histogram(self, x: Tensor) -> Tensor:
        """Return the fractions of samples ``(N, 2)`` nearest to each point, without samples outside of the grid."""
        index = ((x.double() + self.extent) / self.cell).round().long()
        index = index[((index >= 0) & (index < self.size)).all(-1)]
        counts = torch.bincount(index[:, 1] * self.size + index[:, 0], minlength=self.size**2).double()
        return (counts / counts.sum()).view(self.size, self.size)

    def smooth(self, table: Tensor, std: float) -> Tensor:
        """Return the table of the points after adding Gaussian noise with a standard deviation."""
        from scipy.ndimage import gaussian_filter

        smoothed = torch.from_numpy(gaussian_filter(table.double().numpy(), std / self.cell, mode="constant"))
        return smoothed / smoothed.sum()

    @staticmethod
    def total_variation(p: Tensor, q: Tensor) -> float:
        """Return the total variation distance ½ Σ|p − q|, in [0, 1]."""
        return float(0.5 * (p - q).abs().sum())

    @staticmethod
    def kl_divergence(p: Tensor, q: Tensor) -> float:
        """Return KL(p ‖ q) in nats."""
        kept = p > _SMALL
        return float((p[kept] * (p[kept].log() - q[kept].clamp_min(torch.finfo(q.dtype).tiny).log())).sum())


def measure_toy_model(
    model: DDGM, name: str, *, num_samples: int = 5000, langevin_steps: int = 20, num_chains: int = 500, seed: int = 0
) -> dict[str, Any]:
    """Compare a model with the true distribution: its samples, with and without Langevin steps, and its energy.

    Args:
        model: A model of points in the plane.
        name: ``"ring"`` or ``"spiral"``.
        num_samples: Number of generated and of real points; at least 2.
        langevin_steps: Langevin steps for the measures that begin with ``langevin_``.
        num_chains: Chains of annealed importance sampling, at least 2.
        seed: Seed of all draws; the caller's random state is left as it was.

    Returns:
        What the documentation lists (*The run folder and the result file*). On the spiral, which has no density, energy
        and truth are compared after Gaussian noise of standard deviation 0.1.

    Raises:
        ValueError: For an unknown name, a model that is not of points in the plane, or too few points or chains.
    """
    if name not in TOY_DATASETS or tuple(model.event_shape) != (2,):
        raise ValueError(
            f"name={name!r} must be ring or spiral, and the model's event shape (2,), not {tuple(model.event_shape)}."
        )
    if min(num_samples, num_chains) < 2:
        raise ValueError(f"num_samples={num_samples} and num_chains={num_chains} must both be at least 2.")
    generator = torch.Generator().manual_seed(seed + 1_000_003)  # differs from the generator of the training data
    real = [TOY_DATASETS[name](num_samples, generator)[0] for _ in range(2 * _REAL_PAIRS)]
    bandwidth = median_distance(real[0])
    with fork_random_state(model, seed):
        samples = model.sample(num_samples).cpu()
        moved = model.sample(num_samples, langevin_steps=langevin_steps).cpu()
    found = _measure_samples(samples, real[0], name, bandwidth)
    found |= {f"langevin_{key}": value for key, value in _measure_samples(moved, real[0], name, bandwidth).items()}
    pairs = list(zip(real[::2], real[1::2], strict=True))
    floors = [_measure_distances(x, y, bandwidth) for x, y in pairs]
    for floor, kind in (("floor", "energy_distance"), ("mmd_floor", "squared_mmd")):
        values = [distances[kind] for distances in floors]
        found[floor] = [statistics.mean(values), statistics.stdev(values)]
    return found | _measure_energy(model, name, generator, num_chains, seed)


def _measure_distances(x: Tensor, y: Tensor, bandwidth: float) -> dict[str, float]:
    values = {"energy_distance": energy_distance(x, y), "squared_mmd": squared_mmd(x, y, bandwidth)}
    return {name: 1000.0 * value for name, value in values.items()}


def _measure_samples(samples: Tensor, real: Tensor, name: str, bandwidth: float) -> dict[str, Any]:
    found: dict[str, Any] = _measure_distances(samples, real, bandwidth)
    if name == "ring":
        modes = mode_coverage(samples, ring_distribution().component_distribution)
        shares = modes["shares"].tolist()
        found |= {"modes": modes["modes"], "high_quality": modes["high_quality"]}
        found |= {"shares": shares, "least_share": min(shares)}
    return found


def _measure_energy(model: DDGM, name: str, generator: torch.Generator, num_chains: int, seed: int) -> dict[str, float]:
    grid = Grid()
    density = grid.probabilities(model.score_samples)
    if name == "ring":
        truth = grid.probabilities(ring_distribution().log_prob)
    else:
        truth = grid.smooth(grid.histogram(draw_spiral(_SPIRAL_POINTS, generator)[0]), _SMOOTHING)
        density = grid.smooth(density, _SMOOTHING)
    options = {"num_chains": num_chains, "num_temperatures": _TEMPERATURES, "seed": seed}
    with evaluation_mode(model), parametrize.cached():  # computes normalised weights once
        log_z, error = annealed_log_normaliser(
            model.energy_net, (2,), scale=_BASE_SCALE, device=get_device(model), **options
        )
    return {
        "total_variation": grid.total_variation(density, truth),
        "kl_divergence": grid.kl_divergence(truth, density),
        "log_z_grid": grid.log_normaliser(model.score_samples),
        "log_z_ais": log_z,
        "log_z_ais_error": error,
    }


def annealed_log_normaliser(
    energy: Callable[[Tensor], Tensor],
    event_shape: Sequence[int],
    *,
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
    https://arxiv.org/abs/physics/9803008, equations 4 and 11), whose size adapts to the acceptance rate. The estimate
    of log Z is too low on average.

    Args:
        energy: Maps x ``(N, *event_shape)`` to energies ``(N,)``, differentiably: ``model.energy_net`` of a
            :class:`pyro_ssvae.DDGM` in evaluation mode, not ``model.energy``, which runs under ``torch.no_grad()``.
        event_shape: Shape of one sample.
        scale: Standard deviation of p₀, of mean 0; it should cover the regions of low energy.
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
    x = scale * torch.randn((num_chains, *event_shape), generator=noise, device=device)
    _check_energy(energy, x)

    def log_base(x: Tensor) -> Tensor:
        return torch.distributions.Normal(0.0, scale).log_prob(x).flatten(1).sum(-1)

    def potential(x: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """Return the potential of a temperature, up to a constant, and its gradient."""
        with torch.enable_grad():
            value = energy(x.requires_grad_())
            (gradient,) = torch.autograd.grad(value.sum(), x)
        x = x.detach()
        value = beta * value.detach() - (1.0 - beta) * log_base(x)
        return value, beta * gradient + (1.0 - beta) * x / scale**2

    log_weights = torch.zeros(num_chains, device=device, dtype=torch.float64)
    step_size = 0.1 * scale
    for number in range(num_temperatures):
        low, high = number / num_temperatures, (number + 1) / num_temperatures
        with torch.no_grad():
            log_weights += (high - low) * (-energy(x) - log_base(x)).double()
        x, acceptance = _hamiltonian_step(partial(potential, beta=high), x, step_size, noise)
        step_size *= 1.05 if acceptance > _TARGET_ACCEPTANCE else 1.0 / 1.05
    log_z = float(log_weights.logsumexp(0)) - math.log(num_chains)
    weights = (log_weights - log_z).exp()  # of mean 1
    return log_z, float(weights.std() / math.sqrt(num_chains))


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


def _hamiltonian_step(
    potential: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, step_size: float, noise: torch.Generator
) -> tuple[Tensor, float]:
    """Return the chains after a step that leaves exp(−potential) invariant, and the acceptance rate."""
    before, gradient = potential(start)
    momentum = torch.randn(start.shape, generator=noise, device=start.device)
    kinetic = 0.5 * momentum.square().flatten(1).sum(-1)
    x, after = start, before
    for _ in range(_LEAPFROG_STEPS):
        momentum = momentum - 0.5 * step_size * gradient
        x = x.detach() + step_size * momentum
        after, gradient = potential(x)
        momentum = momentum - 0.5 * step_size * gradient
    log_ratio = before + kinetic - after - 0.5 * momentum.square().flatten(1).sum(-1)
    accept = torch.rand(len(x), generator=noise, device=x.device).log() < log_ratio
    moved = torch.where(accept.view(-1, *[1] * (x.dim() - 1)), x.detach(), start.detach())
    return moved, float(accept.double().mean())
