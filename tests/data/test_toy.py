"""Points in the plane: their distributions."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_ssvae.data.toy import draw_ring, draw_spiral, make_toy_data, ring_distribution


def test_ring_has_the_moments_of_its_distribution() -> None:
    x, arm = draw_ring(200_000, torch.Generator().manual_seed(0))
    for k in range(10):
        angle = 2.0 * math.pi * k / 10
        along, across = (
            torch.tensor([math.cos(angle), math.sin(angle)]),
            torch.tensor([-math.sin(angle), math.cos(angle)]),
        )
        points = x[arm == k]
        assert len(points) == pytest.approx(20_000, abs=600)
        assert float((points @ along).mean()) == pytest.approx(1.4, abs=0.02)
        assert float((points @ along).std()) == pytest.approx(0.5, abs=0.01)
        assert float((points @ across).mean()) == pytest.approx(0.0, abs=0.002)
        assert float((points @ across).std()) == pytest.approx(0.05, abs=0.001)


def test_ring_distribution_is_what_is_drawn_from() -> None:
    distribution = ring_distribution()
    x, _ = draw_ring(50_000, torch.Generator().manual_seed(1))
    drawn = distribution.sample((50_000,))
    log_prob = distribution.log_prob(x)
    error = math.hypot(float(log_prob.std()), float(distribution.log_prob(drawn).std())) / math.sqrt(50_000)
    assert float(log_prob.mean() - distribution.log_prob(drawn).mean()) == pytest.approx(0.0, abs=4 * error)
    by_hand = torch.stack([component.log_prob(x[:5]) for component in _components(distribution)]).logsumexp(
        0
    ) - math.log(10)
    torch.testing.assert_close(distribution.log_prob(x[:5]), by_hand)


def _components(distribution: object) -> list[torch.distributions.MultivariateNormal]:
    arms = distribution.component_distribution
    return [torch.distributions.MultivariateNormal(arms.loc[k], scale_tril=arms.scale_tril[k]) for k in range(10)]


def test_spiral_lies_on_its_curve() -> None:
    x, stretch = draw_spiral(5000, torch.Generator().manual_seed(0))
    radius = x.norm(dim=-1)
    angle = 4.0 * math.pi * radius / 3.0
    torch.testing.assert_close(x, torch.stack([radius * angle.cos(), radius * angle.sin()], -1), atol=1e-4, rtol=0.0)
    s = (radius / 3.0).square()
    assert bool(((s >= stretch / 10 - 1e-5) & (s <= (stretch + 3) / 10 + 1e-5)).all())


def test_data_keep_no_label_in_training() -> None:
    data = make_toy_data("spiral", num_train=300, num_validation=20, num_test=30, seed=3)
    assert (data.num_labelled, data.num_unlabelled, data.event_shape) == (0, 300, (2,))
    assert len(data.x_validation) == 20
    assert data.y_test.unique().tolist() != [-1]
    assert torch.equal(data.x, make_toy_data("spiral", num_train=300, num_validation=20, num_test=30, seed=3).x)
    with pytest.raises(ValueError, match="ring, spiral"):
        make_toy_data("circle")
    with pytest.raises(ValueError, match="num_validation=-1"):
        make_toy_data("ring", num_validation=-1)
