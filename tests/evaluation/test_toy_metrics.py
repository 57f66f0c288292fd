"""What energy models in the plane are measured by, and how their energies compare with data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pyro_ssvae import DDGM
from pyro_ssvae.data.toy import draw_ring, ring_distribution
from pyro_ssvae.evaluation import measure_toy_model
from pyro_ssvae.models.diagnostics import energy_diagnostics


class _Points(nn.Module):
    """A generator of given points."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.register_buffer("x", x)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor) -> Tensor:
        return self.x[((z[:, 0] + 1.0) * 1e6).long() % len(self.x)]


class _Truth(nn.Module):
    """An energy that is right, up to a constant."""

    def __init__(self, constant: float) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.tensor(constant))

    def forward(self, x: Tensor) -> Tensor:
        return self.constant - ring_distribution().log_prob(x)


@pytest.mark.slow
def test_a_perfect_model_of_the_ring() -> None:
    x, _ = draw_ring(20_000, torch.Generator().manual_seed(8))
    torch.manual_seed(0)
    ddgm = DDGM((2,), generator=_Points(x))
    ddgm.energy_net = _Truth(2.5)
    before = torch.get_rng_state()
    found = measure_toy_model(ddgm, "ring", num_samples=800, langevin_steps=1, num_chains=60)
    assert torch.equal(torch.get_rng_state(), before)
    for kind, floor in (("energy_distance", "floor"), ("squared_mmd", "mmd_floor")):
        mean, std = found[floor]
        assert abs(found[kind] - mean) < 4 * std
        assert abs(mean) < 2 * std
    assert found["modes"] == 10
    assert 0.975 < found["high_quality"] < 1.0
    assert len(found["shares"]) == 10
    assert isinstance(found["shares"], list)
    assert sum(found["shares"]) == pytest.approx(found["high_quality"])
    assert found["least_share"] == min(found["shares"]) > 0.06
    assert found["total_variation"] < 1e-4
    assert found["kl_divergence"] < 1e-4
    assert found["log_z_grid"] == pytest.approx(-2.5, abs=1e-3)
    assert 0.0 < found["log_z_ais_error"] < 0.3
    assert abs(found["log_z_ais"] + 2.5) < 4 * found["log_z_ais_error"]
    assert {f"langevin_{name}" for name in ("modes", "shares", "high_quality", "energy_distance")} < set(found)


@pytest.mark.slow
def test_a_poor_model_of_the_spiral() -> None:
    torch.manual_seed(0)
    ddgm = DDGM((2,), generator=_Points(torch.randn(500, 2)))
    found = measure_toy_model(ddgm, "spiral", num_samples=200, langevin_steps=1, num_chains=20)
    for kind, floor in (("energy_distance", "floor"), ("squared_mmd", "mmd_floor")):
        assert found[kind] > found[floor][0] + 6 * found[floor][1]
    assert 0.6 < found["total_variation"] <= 1.0
    assert found["kl_divergence"] > 1.0
    assert "modes" not in found


@pytest.mark.parametrize(
    ("shape", "name", "options", "words"),
    [
        ((2,), "circle", {}, "name='circle'"),
        ((3,), "ring", {}, r"not \(3,\)"),
        ((2,), "ring", {"num_samples": 1}, "num_samples=1"),
        ((2,), "ring", {"num_chains": 1}, "num_chains=1"),
    ],
)
def test_errors(shape: tuple[int, ...], name: str, options: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        measure_toy_model(DDGM(shape), name, **options)


def test_energies_of_data_and_samples() -> None:
    ddgm = DDGM((2,), generator=_Points(torch.tensor([[3.0, 4.0], [-3.0, -4.0]])))
    with torch.no_grad():  # E(x) = |x|² - 4 log 2
        ddgm.energy_net.experts.weight.zero_()
        ddgm.energy_net.experts.bias.zero_()
    x = torch.tensor([[60.0, 0.0], [0.0, 80.0], [-60.0, 0.0], [0.0, -80.0]])
    before = torch.get_rng_state()
    found = energy_diagnostics(ddgm, x.repeat(50, 1), scale=20.0)
    assert torch.equal(torch.get_rng_state(), before)
    constant = 4 * math.log(2.0)
    assert found["energy_data"] == pytest.approx(12.5 - constant, rel=1e-5)
    assert found["energy_samples"] == pytest.approx(25.0 - constant, rel=1e-5)
    assert found["energy_gap"] == pytest.approx(-12.5, rel=1e-5)
    assert found["std_ratio"] == pytest.approx(math.sqrt(25.0 / 12.5), rel=0.05)
    lone = DDGM((2,), generator=_Points(torch.ones(1, 2)))
    assert energy_diagnostics(lone, x, scale=20.0)["std_ratio"] == 0.0
