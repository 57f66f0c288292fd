"""Distances between samples: closed forms, and zero for equal distributions."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from pyro_ssvae.data.toy import draw_ring, ring_distribution
from pyro_ssvae.evaluation.image_metrics import frechet_distance
from pyro_ssvae.evaluation.samples import energy_distance, median_distance, mode_coverage, squared_mmd


def test_energy_distance_by_hand() -> None:
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0], [6.0]])
    across = (1 + 5 + 6 + 1 + 3 + 4) / 6
    assert energy_distance(x, y) == pytest.approx(2 * across - 2.0 - (4 + 5 + 1) / 3)


def test_mmd_by_hand() -> None:
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]])

    def kernel(distance: float) -> float:
        return math.exp(-0.5 * distance**2 / 9.0)

    across = (kernel(1) + kernel(5) + kernel(1) + kernel(3)) / 4
    assert squared_mmd(x, y, bandwidth=3.0) == pytest.approx(kernel(2) + kernel(4) - 2 * across)


def test_the_median_distance() -> None:
    y = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    assert median_distance(y) == pytest.approx(math.sqrt(18.0))  # of 1, √18 and 5


@pytest.mark.parametrize("distance", [energy_distance, partial(squared_mmd, bandwidth=1.0)])
def test_distances_are_zero_on_average_for_one_distribution_and_not_for_two(distance: object) -> None:
    generator = torch.Generator().manual_seed(0)
    alike = torch.tensor([distance(*torch.randn(2, 200, 3, generator=generator)) for _ in range(60)])
    assert float(alike.mean()) == pytest.approx(0.0, abs=4 * float(alike.std()) / math.sqrt(60))
    assert float(alike.min()) < 0.0
    x, y = torch.randn(2, 200, 3, generator=generator)
    assert distance(x, y + 0.5) > float(alike.max())


def test_chunks_do_not_change_the_distances() -> None:
    x, y = torch.randn(2, 2300, 4)
    whole = 2 * torch.cdist(x.double(), y.double()).mean()
    within = [torch.pdist(z.double()).mean() for z in (x, y)]
    assert energy_distance(x, y) == pytest.approx(float(whole - sum(within)), rel=1e-6, abs=1e-9)


def test_frechet_distance_of_gaussians() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100_000, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(100_000, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5]) + 1.0
    assert frechet_distance(x, y) == pytest.approx(3.0 + 0.0 + 1.0 + 0.25, abs=0.06)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-9)
    mixing = torch.tensor([[1.0, 0.3, 0.0], [0.0, 1.0, -0.5], [0.2, 0.0, 1.0]], dtype=torch.float64)
    first, second = torch.cov(x.T), torch.cov((y @ mixing).T)
    root = torch.linalg.eigvals(first @ second).sqrt().real.sum()  # the trace of the root of a product, another way
    expected = (x.mean(0) - (y @ mixing).mean(0)).square().sum() + first.trace() + second.trace() - 2 * root
    assert frechet_distance(x, y @ mixing) == pytest.approx(float(expected), rel=1e-6)


def test_mode_coverage() -> None:
    modes = ring_distribution().component_distribution
    found = mode_coverage(draw_ring(50_000, torch.Generator().manual_seed(0))[0], modes)
    assert found["modes"] == 10
    assert 0.985 < found["high_quality"] < 0.995
    assert float(found["shares"].sum()) == pytest.approx(found["high_quality"])
    lone = mode_coverage(modes.loc[3].expand(10, 2), modes)
    assert (lone["modes"], lone["high_quality"], lone["shares"].argmax().item()) == (1, 1.0, 3)
    assert mode_coverage(torch.full((5, 2), 9.0), modes)["high_quality"] == 0.0


def test_noise_covers_no_mode() -> None:
    modes = ring_distribution().component_distribution
    noise = 9.0 * torch.rand(50_000, 2) - 4.5  # some of it is nearest to every mode
    assert mode_coverage(noise, modes)["modes"] == 0
    far = modes.loc[0] + 3.01 * modes.scale_tril[0, :, 0]  # just too far from the first one
    near = modes.loc[0] + 2.99 * modes.scale_tril[0, :, 0]
    found = mode_coverage(torch.stack([far, far, near, modes.loc[7]]), modes)
    assert found["shares"].tolist() == [0.25, *6 * [0.0], 0.25, 0.0, 0.0]
    assert (found["modes"], found["high_quality"]) == (2, 0.5)
