r"""What an energy model of points in the plane is measured by, against the law that the points were drawn from."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor

from pyro_ssvae.data.plane import draw_ring, draw_spiral, ring_distribution
from pyro_ssvae.evaluation.grid import Grid
from pyro_ssvae.evaluation.samples import energy_distance, mode_coverage, squared_mmd
from pyro_ssvae.models import DDGM
from pyro_ssvae.models.base import own_randomness

__all__ = ["plane_measures"]

_DRAW = {"ring": draw_ring, "spiral": draw_spiral}
_REAL_PAIRS = 10  # pairs of real samples behind the floor
_SMOOTHING = 0.1  # of the spiral, which has no density
_SPIRAL_POINTS = 1_000_000


def plane_measures(
    model: DDGM, name: str, *, num_samples: int = 5000, langevin_steps: int = 20, seed: int = 0
) -> dict[str, Any]:
    r"""Hold a model against its law: samples as drawn and after Langevin steps, and the energy on a grid.

    Args:
        model: A model of points in the plane.
        name: ``"ring"`` or ``"spiral"``.
        num_samples: Points generated, and as many real ones.
        langevin_steps: Steps of the refined samples.
        seed: Of everything drawn; the caller's random state is left as it was.

    Returns:
        ``energy_distance`` and ``squared_mmd``, times 1,000, of generated points to real ones; ``floor``, mean and
        standard deviation of the energy distance of two real samples over ten pairs; on the ring ``modes``,
        ``high_quality`` and ``least_share`` (:func:`~pyro_ssvae.evaluation.mode_coverage`); all but the floor again
        with ``refined_`` before it. ``total_variation`` and ``kl_divergence`` (in nats, of the truth to the model) are
        those of :math:`e^{-E}/Z` on :class:`~pyro_ssvae.evaluation.Grid`; on the spiral, which has no density, those
        of both after Gaussian noise of standard deviation 0.1.

    Raises:
        ValueError: For an unknown name, or a model that is not of points in the plane.
    """
    if name not in _DRAW or tuple(model.event_shape) != (2,):
        raise ValueError(f"name={name!r} must be ring or spiral, and rows (2,), not {tuple(model.event_shape)}.")
    generator = torch.Generator().manual_seed(seed + 1_000_003)  # other points than the training data of this seed
    real = [_DRAW[name](num_samples, generator)[0] for _ in range(2 * _REAL_PAIRS)]
    distances = [1000.0 * energy_distance(*pair) for pair in zip(real[::2], real[1::2], strict=True)]
    with own_randomness(model, seed):
        drawn = model.sample(num_samples).cpu()
        refined = model.sample(num_samples, langevin_steps=langevin_steps).cpu()
    found = _of_samples(drawn, real[0], name)
    found |= {f"refined_{key}": value for key, value in _of_samples(refined, real[0], name).items()}
    found["floor"] = [statistics.mean(distances), statistics.stdev(distances)]
    grid = Grid()
    density = grid.probabilities(model.score_samples)
    if name == "ring":
        truth = grid.probabilities(ring_distribution().log_prob)
    else:
        truth = grid.smooth(grid.histogram(draw_spiral(_SPIRAL_POINTS, generator)[0]), _SMOOTHING)
        density = grid.smooth(density, _SMOOTHING)
    found["total_variation"] = grid.total_variation(density, truth)
    found["kl_divergence"] = grid.kl_divergence(truth, density)
    return found


def _of_samples(samples: Tensor, real: Tensor, name: str) -> dict[str, Any]:
    found = {
        "energy_distance": 1000.0 * energy_distance(samples, real),
        "squared_mmd": 1000.0 * squared_mmd(samples, real),
    }
    if name == "ring":
        modes = mode_coverage(samples, ring_distribution().component_distribution)
        found |= {
            "modes": modes["modes"],
            "high_quality": modes["high_quality"],
            "least_share": float(modes["shares"].min()),
        }
    return found
