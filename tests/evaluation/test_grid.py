"""Densities on a grid, and log Z by annealing, against closed forms and each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyro_ssvae import DDGM
from pyro_ssvae.data.toy import draw_ring, ring_distribution
from pyro_ssvae.evaluation import annealed_log_normaliser
from pyro_ssvae.evaluation.samples import Grid


def gaussian(loc: float, scale: float) -> torch.distributions.Independent:
    return torch.distributions.Independent(torch.distributions.Normal(torch.full((2,), loc), scale), 1)


def test_total_variation_and_kl_of_gaussians() -> None:
    grid = Grid(extent=8.0, size=401)
    p, q = (grid.probabilities(gaussian(loc, 1.0).log_prob) for loc in (0.0, 0.5))
    distance = 0.5 * math.sqrt(2.0)  # between the means
    between = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(0.5 * distance))
    assert grid.total_variation(p, q) == pytest.approx(float(2 * between - 1), abs=1e-3)
    assert grid.kl_divergence(p, q) == pytest.approx(0.5 * distance**2, rel=1e-3)
    assert grid.total_variation(p, p) == grid.kl_divergence(p, p) == 0.0


def test_normaliser_of_a_gaussian() -> None:
    grid = Grid(extent=9.0, size=301)
    assert grid.log_normaliser(lambda x: -0.5 * (x.square().sum(-1)) / 1.5**2) == pytest.approx(
        math.log(2 * math.pi * 1.5**2), abs=1e-6
    )


def test_histogram_and_density_agree() -> None:
    grid = Grid(size=91)
    truth = grid.probabilities(ring_distribution().log_prob)
    seen = grid.histogram(draw_ring(400_000, torch.Generator().manual_seed(0))[0])
    assert grid.total_variation(grid.smooth(truth, 0.1), grid.smooth(seen, 0.1)) < 0.02


def test_histogram_puts_the_first_coordinate_along_rows() -> None:
    grid = Grid(extent=1.0, size=3)
    table = grid.histogram(torch.tensor([[1.0, -1.0]]))
    assert table[0, 2] == 1.0
    skewed = grid.probabilities(lambda x: 5.0 * x[:, 0] - 5.0 * x[:, 1])
    assert skewed.argmax() == table.argmax()


def test_smoothing_adds_noise() -> None:
    grid = Grid(extent=8.0, size=321)
    sharp = grid.probabilities(gaussian(0.0, 0.6).log_prob)
    wide = grid.probabilities(gaussian(0.0, 1.0).log_prob)
    assert grid.total_variation(grid.smooth(sharp, 0.8), wide) < 1e-3


@pytest.mark.slow
def test_annealing_finds_log_z_of_a_mixture() -> None:
    def energy(x: Tensor) -> Tensor:
        return 1.7 - ring_distribution().log_prob(x)

    estimate, error = annealed_log_normaliser(energy, (2,), scale=1.5, num_chains=300, num_temperatures=200)
    assert error < 0.2
    assert abs(estimate + 1.7) < 4 * error
    grid = Grid().log_normaliser(lambda x: -energy(x))
    assert grid == pytest.approx(-1.7, abs=0.02)


def test_annealing_preserves_the_random_state_and_checks_its_arguments() -> None:
    before = torch.get_rng_state()
    first = annealed_log_normaliser(lambda x: x.square().sum(-1), (2,), num_chains=10, num_temperatures=5, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert first == annealed_log_normaliser(
        lambda x: x.square().sum(-1), (2,), num_chains=10, num_temperatures=5, seed=4
    )
    with pytest.raises(ValueError, match="num_chains=1"):
        annealed_log_normaliser(lambda x: x.sum(-1), (2,), num_chains=1)


def test_annealing_agrees_with_the_grid_on_a_ddgm() -> None:
    torch.manual_seed(3)
    ddgm = DDGM((2,), sigma=1.3)
    with torch.no_grad():  # an energy with structure
        ddgm.energy_net.experts.weight.mul_(8.0)
        ddgm.energy_net.bias.copy_(torch.tensor([0.5, -0.8]))
    grids = [Grid(size=size).log_normaliser(ddgm.score_samples) for size in (181, 361)]
    assert grids[0] == pytest.approx(grids[1], abs=1e-4)
    start = torch.randn(10_000, 2)
    plain = math.log(2 * math.pi) + float((ddgm.score_samples(start) + start.square().sum(-1) / 2).mean())
    assert abs(plain - grids[1]) > 0.5  # the base is no good guess by itself
    ddgm.eval()
    for scale in (1.0, 2.0):
        estimate, error = annealed_log_normaliser(
            ddgm.energy_net, (2,), scale=scale, num_chains=100, num_temperatures=60, seed=1
        )
        assert error < 0.06
        assert abs(estimate - grids[1]) < 4 * error + 1e-4


def test_annealing_says_what_is_wrong_with_an_energy() -> None:
    ddgm = DDGM((2,))
    with pytest.raises(ValueError, match=r"no graph.*model\.energy_net in evaluation mode"):
        annealed_log_normaliser(ddgm.energy, (2,))
    with pytest.raises(ValueError, match=r"shape \(500, 2\); \(500,\) is needed"):
        annealed_log_normaliser(lambda x: x.square(), (2,))
