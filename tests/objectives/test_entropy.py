"""Estimates of a generator's entropy against closed forms and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pyro_ssvae.objectives import BatchNormEntropy, NearestNeighbourEntropy
from pyro_ssvae.objectives.energy_terms import ENTROPIES, make_entropy


def test_nearest_neighbours_find_the_entropy_of_a_gaussian() -> None:
    torch.manual_seed(0)
    x = 0.7 * torch.randn(8000, 2)
    expected = math.log(2 * math.pi * math.e * 0.49)
    for k in (1, 5):
        assert float(NearestNeighbourEntropy(k)(x, nn.Identity())) == pytest.approx(expected, abs=0.05)


def test_nearest_neighbour_entropy_rises_along_its_gradient() -> None:
    x = torch.randn(60, 2).requires_grad_()
    entropy = NearestNeighbourEntropy()(x, nn.Identity())
    (slope,) = torch.autograd.grad(entropy, x)
    moved = (x + 1e-3 * slope).detach()
    assert float(NearestNeighbourEntropy()(moved, nn.Identity())) > float(entropy.detach())
    with pytest.raises(ValueError, match="no neighbour number 5"):
        NearestNeighbourEntropy(5)(x[:5], nn.Identity())


def test_batch_norm_scales_are_standard_deviations() -> None:
    generator = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        generator[1].weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
    x = torch.randn(4, 2)
    normal = torch.distributions.Normal(0.0, torch.tensor([0.5, 1.0, 2.0]))
    found = float(BatchNormEntropy()(x, generator).detach())
    assert found == pytest.approx(float(normal.entropy().sum()), rel=1e-5)
    with pytest.raises(ValueError, match="has none"):
        BatchNormEntropy()(x, nn.Linear(2, 2))


def test_estimates_by_name() -> None:
    for name, kind in ENTROPIES.items():
        assert isinstance(make_entropy(name, 4, (2,)), kind)
    own = NearestNeighbourEntropy(3)
    assert make_entropy(own, 4, (2,)) is own
    with pytest.raises(ValueError, match="batch_norm, nearest_neighbour"):
        make_entropy("nope", 4, (2,))
    with pytest.raises(TypeError, match="not int"):
        make_entropy(3, 4, (2,))
