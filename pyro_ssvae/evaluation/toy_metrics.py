r"""Measures of energy models of points in the plane, against the distribution that the points were drawn from."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from pyro_ssvae._samplers import annealed_log_normaliser
from pyro_ssvae.data.toy import draw_ring, draw_spiral, ring_distribution
from pyro_ssvae.evaluation.two_sample import energy_distance, median_distance, mode_coverage, squared_mmd
from pyro_ssvae.models.base import evaluation_mode, fork_random_state, get_device
from pyro_ssvae.models.ddgm import DDGM

__all__ = ["Grid", "measure_toy_model"]

_SMALL = 1e-12  # probability of a cell below which it is left out of a KL divergence
_DRAW = {"ring": draw_ring, "spiral": draw_spiral}
_REAL_PAIRS = 10  # pairs of real samples behind the floors
_SMOOTHING = 0.1  # of the spiral, which has no density
_SPIRAL_POINTS = 1_000_000
_TEMPERATURES = 300  # of annealed importance sampling
_BASE_SCALE = 1.5  # standard deviation of the Gaussian that it starts from


@dataclass(frozen=True)
class Grid:
    r"""A square grid of points in :math:`[-e, e]^2`, and probabilities over its cells.

    A table of probabilities has shape ``(size, size)``, sums to one, and has a row for each second coordinate.

    Args:
        extent: e.
        size: Number of points along each side.

    Raises:
        ValueError: For a non-positive extent or fewer than two points.

    Example:
        >>> grid = Grid(extent=6.0, size=121)
        >>> table = grid.probabilities(lambda x: -0.5 * x.square().sum(-1))
        >>> round(grid.log_normaliser(lambda x: -0.5 * x.square().sum(-1)), 4)  # log 2π
        1.8379
    """

    extent: float = 4.5
    size: int = 361

    def __post_init__(self) -> None:
        """Check both values."""
        if not self.extent > 0.0 or self.size < 2:
            raise ValueError(f"extent={self.extent} must be positive, and size={self.size} at least 2.")

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
        r"""Return the cells' probabilities under an unnormalised density, :math:`q_c \propto e^{\log q(x_c)}`.

        Args:
            log_density: Maps points ``(N, 2)`` to log-densities ``(N,)``, in nats: −E(x) of an energy model.
        """
        return self._log_values(log_density).softmax(0).view(self.size, self.size)

    def log_normaliser(self, log_density: Callable[[Tensor], Tensor]) -> float:
        r"""Return log ∫ exp(log_density) over the square, in nats: log Z of an energy model for −E(x).

        .. math:: \log Z \approx \log \sum_c e^{-E(x_c)} + 2 \log h

        with the side h of a cell.
        """
        return float(self._log_values(log_density).logsumexp(0)) + 2.0 * math.log(self.cell)

    def histogram(self, x: Tensor) -> Tensor:
        """Return the fractions of samples ``(N, 2)`` nearest to each point, without samples outside of the grid.

        Raises:
            ValueError: If no sample lies in the grid.
        """
        index = ((x.double() + self.extent) / self.cell).round().long()
        index = index[((index >= 0) & (index < self.size)).all(-1)]
        if not len(index):
            raise ValueError(f"None of {len(x)} samples lies in the grid [-{self.extent}, {self.extent}]².")
        counts = torch.bincount(index[:, 1] * self.size + index[:, 0], minlength=self.size**2).double()
        return (counts / counts.sum()).view(self.size, self.size)

    def smooth(self, table: Tensor, std: float) -> Tensor:
        """Return the table of the points after adding Gaussian noise with a standard deviation."""
        radius = math.ceil(4.0 * std / self.cell)
        offsets = torch.arange(-radius, radius + 1, dtype=torch.float64) * self.cell
        kernel = (-0.5 * (offsets / std).square()).softmax(0).view(1, 1, -1)
        rows = torch.nn.functional.conv1d(table.double().unsqueeze(1), kernel, padding=radius).squeeze(1)
        columns = torch.nn.functional.conv1d(rows.T.unsqueeze(1), kernel, padding=radius).squeeze(1).T
        return columns / columns.sum()

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
    model: DDGM,
    name: str,
    *,
    num_samples: int = 5000,
    langevin_steps: int = 20,
    num_chains: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Compare a model with the true distribution: its samples, with and without Langevin steps, and its energy.

    Args:
        model: A model of points in the plane.
        name: ``"ring"`` or ``"spiral"``.
        num_samples: Number of generated and of real points; at least 2.
        langevin_steps: Langevin steps for the measures that begin with ``langevin_``.
        num_chains: Chains of annealed importance sampling, at least 2.
        seed: Seed of all draws; the caller's random state is left as it was.

    Returns:
        ``energy_distance`` and ``squared_mmd``, times 1,000, between generated and real points
        (:func:`~pyro_ssvae.evaluation.energy_distance`, :func:`~pyro_ssvae.evaluation.squared_mmd` with the bandwidth
        of these real ones); ``floor`` and ``mmd_floor``, mean and standard deviation of both between two real samples,
        over ten pairs; on the ring ``modes``, ``high_quality``, ``shares`` of the modes and the smallest of them,
        ``least_share`` (:func:`~pyro_ssvae.evaluation.mode_coverage`). All but the floors also with ``langevin_``
        before the name, of points after Langevin steps.

        ``total_variation``, :math:`\tfrac12 \sum_c |p_c - q_c|`, and ``kl_divergence``,
        :math:`\sum_c p_c \log (p_c / q_c)` in nats, between the truth p and the model
        :math:`q \propto e^{-E}` over the cells c of a :class:`~pyro_ssvae.evaluation.Grid`; on the spiral, which has no
        density, both after Gaussian noise of standard deviation 0.1. ``log_z_grid`` is
        :math:`\log \int e^{-E(x)}\,dx` in nats on that grid, ``log_z_ais`` the same by
        :func:`~pyro_ssvae.evaluation.annealed_log_normaliser`, and ``log_z_ais_error`` its standard error.

    Raises:
        ValueError: For an unknown name, a model that is not of points in the plane, or too few points or chains.
    """
    if name not in _DRAW or tuple(model.event_shape) != (2,):
        raise ValueError(
            f"name={name!r} must be ring or spiral, and the model's event shape (2,), not {tuple(model.event_shape)}."
        )
    if min(num_samples, num_chains) < 2:
        raise ValueError(f"num_samples={num_samples} and num_chains={num_chains} must both be at least 2.")
    generator = torch.Generator().manual_seed(seed + 1_000_003)  # differs from the generator of the training data
    real = [_DRAW[name](num_samples, generator)[0] for _ in range(2 * _REAL_PAIRS)]
    bandwidth = median_distance(real[0])
    with fork_random_state(model, seed):
        samples = model.sample(num_samples).cpu()
        moved = model.sample(num_samples, langevin_steps=langevin_steps).cpu()
    found = _measure_samples(samples, real[0], name, bandwidth)
    found |= {f"langevin_{key}": value for key, value in _measure_samples(moved, real[0], name, bandwidth).items()}
    pairs = list(zip(real[::2], real[1::2], strict=True))
    found["floor"] = _mean_and_std([1000.0 * energy_distance(x, y) for x, y in pairs])
    found["mmd_floor"] = _mean_and_std([1000.0 * squared_mmd(x, y, bandwidth) for x, y in pairs])
    return found | _measure_energy(model, name, generator, num_chains, seed)


def _measure_samples(samples: Tensor, real: Tensor, name: str, bandwidth: float) -> dict[str, Any]:
    found: dict[str, Any] = {
        "energy_distance": 1000.0 * energy_distance(samples, real),
        "squared_mmd": 1000.0 * squared_mmd(samples, real, bandwidth),
    }
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
    with evaluation_mode(model), parametrize.cached():  # computes normalised weights once
        log_z, error = annealed_log_normaliser(
            model.energy_net,
            (2,),
            scale=_BASE_SCALE,
            num_chains=num_chains,
            num_temperatures=_TEMPERATURES,
            seed=seed,
            device=get_device(model),
        )
    return {
        "total_variation": grid.total_variation(density, truth),
        "kl_divergence": grid.kl_divergence(truth, density),
        "log_z_grid": grid.log_normaliser(model.score_samples),
        "log_z_ais": log_z,
        "log_z_ais_error": error,
    }


def _mean_and_std(values: list[float]) -> list[float]:
    return [statistics.mean(values), statistics.stdev(values)]
