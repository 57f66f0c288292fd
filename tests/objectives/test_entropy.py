"""Estimates of a generator's entropy against closed forms and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pyro_ssvae.objectives import BatchNormEntropy, MutualInformationEntropy, NearestNeighbourEntropy
from pyro_ssvae.objectives.entropy import ENTROPIES, make_entropy


def test_nearest_neighbours_find_the_entropy_of_a_gaussian() -> None:
    torch.manual_seed(0)
    x = 0.7 * torch.randn(8000, 2)
    expected = math.log(2 * math.pi * math.e * 0.49)
    for k in (1, 5):
        assert float(NearestNeighbourEntropy(k)(x, x, nn.Identity())) == pytest.approx(expected, abs=0.05)


def test_nearest_neighbour_entropy_rises_along_its_gradient() -> None:
    x = torch.randn(60, 2).requires_grad_()
    entropy = NearestNeighbourEntropy()(x, x, nn.Identity())
    (slope,) = torch.autograd.grad(entropy, x)
    moved = (x + 1e-3 * slope).detach()
    assert float(NearestNeighbourEntropy()(moved, moved, nn.Identity())) > float(entropy.detach())
    with pytest.raises(ValueError, match="no neighbour number 5"):
        NearestNeighbourEntropy(5)(x, x[:5], nn.Identity())


def test_batch_norm_scales_are_standard_deviations() -> None:
    generator = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        generator[1].weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
    x = torch.randn(4, 2)
    normal = torch.distributions.Normal(0.0, torch.tensor([0.5, 1.0, 2.0]))
    found = float(BatchNormEntropy()(x, x, generator).detach())
    assert found == pytest.approx(float(normal.entropy().sum()), rel=1e-5)
    with pytest.raises(ValueError, match="has none"):
        BatchNormEntropy()(x, x, nn.Linear(2, 2))


def test_mutual_information_of_dependent_and_independent_latents() -> None:
    torch.manual_seed(0)
    bounds = []
    for informative in (True, False):
        entropy = MutualInformationEntropy(1, (1,), (32,))
        optimizer = torch.optim.Adam(entropy.parameters(), 3e-3)
        for _ in range(400):
            z = torch.randn(256, 1)
            x = z + 0.1 * torch.randn(256, 1) if informative else torch.randn(256, 1)
            optimizer.zero_grad()
            entropy.critic_loss(z, x).backward()
            optimizer.step()
        z = torch.randn(5000, 1)
        x = z + 0.1 * torch.randn(5000, 1) if informative else torch.randn(5000, 1)
        bounds.append(float(entropy(z, x, nn.Identity()).detach()))
    assert bounds[0] > -0.8
    assert bounds[1] == pytest.approx(-2 * math.log(2), abs=0.05)  # x and z are independent


def test_estimates_by_name() -> None:
    for name, kind in ENTROPIES.items():
        assert isinstance(make_entropy(name, 4, (2,)), kind)
    own = NearestNeighbourEntropy(3)
    assert make_entropy(own, 4, (2,)) is own
    with pytest.raises(ValueError, match="batch_norm, nearest_neighbour"):
        make_entropy("nope", 4, (2,))
    with pytest.raises(TypeError, match="not int"):
        make_entropy(3, 4, (2,))
