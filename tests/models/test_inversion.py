"""The way back through a generator."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_ssvae import DDGM
from pyro_ssvae.models.inversion import nearest_latents


def test_a_linear_generator_is_inverted() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 3)
    z = torch.randn(6, 3)
    prior = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    found = nearest_latents(z @ weight.T, lambda z: z @ weight.T, prior, steps=500)
    assert torch.allclose(found, z, atol=1e-2)


def test_latents_stay_in_the_support() -> None:
    prior = dist.Uniform(-torch.ones(2), 1.0).to_event(1)
    found = nearest_latents(torch.tensor([[3.0, -0.5]]), lambda z: z, prior)
    assert torch.allclose(found, torch.tensor([[1.0, -0.5]]), atol=1e-2)
    assert bool((found.abs() <= 1.0).all())


@pytest.mark.parametrize("space", ["features", "x"])
def test_descent_comes_nearer_than_the_best_draw(space: str) -> None:
    torch.manual_seed(0)
    ddgm = DDGM((2,))
    x = ddgm.sample(20)
    near = [ddgm.generate_from(ddgm.invert(x, space=space, steps=steps)) for steps in (0, 200)]
    if space == "features":
        x, near = ddgm.features(x), [ddgm.features(path) for path in near]
    before, after = ((path - x).square().sum(-1).mean() for path in near)
    assert float(after) < 0.1 * float(before)


@pytest.mark.parametrize("space", ["z", "features"])
def test_paths_and_analogies(space: str) -> None:
    torch.manual_seed(0)
    ddgm = DDGM((1, 8, 8), latent_dim=3)
    a, b = ddgm.prior().sample((2, 4))
    path = ddgm.interpolate(a, b, steps=5, space=space)
    assert path.shape == (5, 4, 1, 8, 8)
    assert torch.allclose(path[0], ddgm.generate_from(a), atol=1e-4)
    assert torch.allclose(path[-1], ddgm.generate_from(b), atol=1e-4)
    assert torch.allclose(ddgm.analogy(a, a, b, space=space), ddgm.generate_from(b), atol=1e-4)
    assert torch.allclose(ddgm.analogy(a, b, a, space=space), ddgm.generate_from(b), atol=1e-4)


def test_a_path_of_features_is_nearer_to_their_line() -> None:
    torch.manual_seed(0)
    ddgm = DDGM((2,))
    a, b = ddgm.prior().sample((2, 30))
    ends = [ddgm.features(ddgm.generate_from(z)) for z in (a, b)]
    middle = (ends[0] + ends[1]) / 2
    off = {
        space: float((ddgm.features(ddgm.interpolate(a, b, steps=3, space=space)[1]) - middle).square().sum(-1).mean())
        for space in ("z", "features")
    }
    assert off["features"] < off["z"]


def test_analogies_of_a_bounded_prior_stay_inside() -> None:
    ddgm = DDGM((2,), latent_dim=2, generator=torch.nn.Identity())
    a, b, c = torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 0.5]]), torch.tensor([[0.5, 0.25]])
    assert torch.equal(ddgm.analogy(a, b, c), torch.tensor([[1.0, 0.75]]))


def test_errors() -> None:
    ddgm = DDGM((2,))
    z = ddgm.prior().sample((3,))
    with pytest.raises(ValueError, match="space='pixels' must be one of features, x"):
        ddgm.invert(torch.zeros(1, 2), space="pixels")
    with pytest.raises(ValueError, match="must be one of z, features"):
        ddgm.interpolate(z, z, space="x")
    with pytest.raises(ValueError, match="one shape"):
        ddgm.analogy(z, z, z[:2])
    with pytest.raises(ValueError, match="shape"):
        ddgm.invert(torch.zeros(1, 3))
