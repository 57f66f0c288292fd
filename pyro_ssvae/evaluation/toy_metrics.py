r"""What an energy model of points in the plane is measured by, against the distribution that the points were drawn from."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from pyro_ssvae.data.toy import draw_ring, draw_spiral, ring_distribution
from pyro_ssvae.evaluation.ais import annealed_log_normaliser
from pyro_ssvae.evaluation.grid import Grid
from pyro_ssvae.evaluation.two_sample import energy_distance, median_distance, mode_coverage, squared_mmd
from pyro_ssvae.models import DDGM
from pyro_ssvae.models.base import evaluation_mode, fork_random_state, get_device

__all__ = ["measure_toy_model"]

_DRAW = {"ring": draw_ring, "spiral": draw_spiral}
_REAL_PAIRS = 10  # pairs of real samples behind the floor
_SMOOTHING = 0.1  # of the spiral, which has no density
_SPIRAL_POINTS = 1_000_000
_TEMPERATURES = 300  # of annealing
_REACH = 1.5  # standard deviation of the points that annealing starts from


def measure_toy_model(
    model: DDGM,
    name: str,
    *,
    num_samples: int = 5000,
    langevin_steps: int = 20,
    num_chains: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Hold a model against its distribution: samples as drawn and after Langevin steps, and the energy on a grid.

    Args:
        model: A model of points in the plane.
        name: ``"ring"`` or ``"spiral"``.
        num_samples: Points generated, and as many real ones; at least 2.
        langevin_steps: Steps of the refined samples.
        num_chains: Chains of annealing, at least 2; 500 take seconds.
        seed: Of everything drawn; the caller's random state is left as it was.

    Returns:
        ``energy_distance`` and ``squared_mmd``, times 1,000, of generated points to real ones
        (:func:`~pyro_ssvae.evaluation.energy_distance`, :func:`~pyro_ssvae.evaluation.squared_mmd` with the bandwidth
        of these real ones); ``floor`` and ``mmd_floor``, mean and standard deviation of both between two real samples,
        over ten pairs; on the ring ``modes``, ``high_quality``, ``shares`` of the modes and ``least_share``
        (:func:`~pyro_ssvae.evaluation.mode_coverage`); all but the floors again with ``refined_`` before it.

        ``total_variation``, :math:`\tfrac12 \sum_c |p_c - q_c|`, and ``kl_divergence``,
        :math:`\sum_c p_c \log (p_c / q_c)` in nats, hold the truth p against the model
        :math:`q \propto e^{-E}` over the cells c of a :class:`~pyro_ssvae.evaluation.Grid`; on the spiral, which has no
        density, both after Gaussian noise of standard deviation 0.1. ``log_z_grid`` is
        :math:`\log \int e^{-E(x)}\,dx` in nats on that grid, ``log_z_ais`` the same by annealing
        (:func:`~pyro_ssvae.evaluation.annealed_log_normaliser`) and ``log_z_ais_error`` its standard error.

    Raises:
        ValueError: For an unknown name, a model that is not of points in the plane, or too few points or chains.
    """
    if name not in _DRAW or tuple(model.event_shape) != (2,):
        raise ValueError(f"name={name!r} must be ring or spiral, and rows (2,), not {tuple(model.event_shape)}.")
    if min(num_samples, num_chains) < 2:
        raise ValueError(f"num_samples={num_samples} and num_chains={num_chains} must both be at least 2.")
    generator = torch.Generator().manual_seed(seed + 1_000_003)  # other points than the training data of this seed
    real = [_DRAW[name](num_samples, generator)[0] for _ in range(2 * _REAL_PAIRS)]
    bandwidth = median_distance(real[0])
    with fork_random_state(model, seed):
        drawn = model.sample(num_samples).cpu()
        refined = model.sample(num_samples, langevin_steps=langevin_steps).cpu()
    found = _of_samples(drawn, real[0], name, bandwidth)
    found |= {f"refined_{key}": value for key, value in _of_samples(refined, real[0], name, bandwidth).items()}
    pairs = list(zip(real[::2], real[1::2], strict=True))
    found["floor"] = _mean_and_spread([1000.0 * energy_distance(x, y) for x, y in pairs])
    found["mmd_floor"] = _mean_and_spread([1000.0 * squared_mmd(x, y, bandwidth) for x, y in pairs])
    grid = Grid()
    density = grid.probabilities(model.score_samples)
    if name == "ring":
        truth = grid.probabilities(ring_distribution().log_prob)
    else:
        truth = grid.smooth(grid.histogram(draw_spiral(_SPIRAL_POINTS, generator)[0]), _SMOOTHING)
        density = grid.smooth(density, _SMOOTHING)
    found["total_variation"] = grid.total_variation(density, truth)
    found["kl_divergence"] = grid.kl_divergence(truth, density)
    found["log_z_grid"] = grid.log_normaliser(model.score_samples)
    with evaluation_mode(model), parametrize.cached():  # normalised weights are computed once
        found["log_z_ais"], found["log_z_ais_error"] = annealed_log_normaliser(
            model.energy_net,
            (2,),
            scale=_REACH,
            num_chains=num_chains,
            num_temperatures=_TEMPERATURES,
            seed=seed,
            device=get_device(model),
        )
    return found


def _mean_and_spread(values: list[float]) -> list[float]:
    return [statistics.mean(values), statistics.stdev(values)]


def _of_samples(samples: Tensor, real: Tensor, name: str, bandwidth: float) -> dict[str, Any]:
    found: dict[str, Any] = {
        "energy_distance": 1000.0 * energy_distance(samples, real),
        "squared_mmd": 1000.0 * squared_mmd(samples, real, bandwidth),
    }
    if name == "ring":
        modes = mode_coverage(samples, ring_distribution().component_distribution)
        shares = modes["shares"].tolist()
        found |= {
            "modes": modes["modes"],
            "high_quality": modes["high_quality"],
            "shares": shares,
            "least_share": min(shares),
        }
    return found
