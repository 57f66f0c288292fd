"""Judges of images, altered images, areas under the curve."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyro_ssvae import SemiSupervisedData
from pyro_ssvae.data import prepare
from pyro_ssvae.evaluation.images import (
    ALTERATIONS,
    ImageJudge,
    altered,
    energy_auroc,
    generation_measures,
    nearest_rows,
)
from pyro_ssvae.models import DDGM


@pytest.fixture(scope="module")
def digits() -> SemiSupervisedData:
    return SemiSupervisedData.from_name("digits", num_labels="all")


@pytest.fixture(scope="module")
def judge(digits: SemiSupervisedData) -> tuple[ImageJudge, float]:
    return ImageJudge.train_on(digits, steps=400)


class _Replay(nn.Module):
    """A generator of real images, or of one of them."""

    def __init__(self, x: Tensor, one: bool = False) -> None:
        super().__init__()
        self.register_buffer("x", x)
        self.one = one
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor) -> Tensor:
        place = ((z[:, 0] * 1e4).long() % (1 if self.one else len(self.x))).abs()
        return self.x[place]


def test_a_judge_knows_its_classes_and_leaves_the_random_state_alone(
    digits: SemiSupervisedData, judge: tuple[ImageJudge, float]
) -> None:
    assert judge[1] < 0.04
    before = torch.get_rng_state()
    again, error = ImageJudge.train_on(digits, steps=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert 0.0 <= error <= 1.0
    features, probabilities = again.judge(digits.x_test, scale=digits.scale)
    assert features.shape == (450, 64)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(450))
    with pytest.raises(ValueError, match="labelled training rows"):
        ImageJudge.train_on(digits.without_labels())


def test_real_images_pass_and_a_single_one_does_not(
    digits: SemiSupervisedData, judge: tuple[ImageJudge, float]
) -> None:
    x = prepare(digits.x, scale=digits.scale)
    torch.manual_seed(0)
    real = generation_measures(DDGM((1, 8, 8), generator=_Replay(x)), digits, judge[0], num_samples=1000)
    assert real["frechet_distance"] < real["frechet_floor"] + 0.5
    assert real["least_share"] > 0.06
    assert real["confidence"] == pytest.approx(real["real_confidence"], abs=0.02)
    assert sum(real["class_shares"]) == pytest.approx(1.0)
    lone = generation_measures(DDGM((1, 8, 8), generator=_Replay(x, one=True)), digits, judge[0], num_samples=500)
    assert lone["frechet_distance"] > 5 * real["frechet_floor"]
    assert lone["least_share"] == 0.0


def test_alterations_by_hand() -> None:
    x = torch.rand(6, 1, 12, 10)
    found = {kind: altered(x, kind, torch.Generator().manual_seed(0)) for kind in ALTERATIONS}
    assert all(image.shape == x.shape for image in found.values())
    assert torch.equal(found["permuted"].flatten(1).sort(-1).values, x.flatten(1).sort(-1).values)
    assert not torch.equal(found["permuted"], x)
    assert torch.equal(found["flipped"].flip(-1), x)
    assert float(found["blank"].abs().sum()) == 0.0
    assert float(found["blurred"].std()) < float(x.std())
    expected = [
        torch.nn.functional.pad(x[:, :, 4:, :], (0, 0, 0, 4)),
        torch.nn.functional.pad(x[:, :, :-4, :], (0, 0, 4, 0)),
        torch.nn.functional.pad(x[:, :, :, 4:], (0, 4)),
        torch.nn.functional.pad(x[:, :, :, :-4], (4, 0)),
    ]
    for row, image in enumerate(found["shifted"]):
        assert any(torch.equal(image, way[row]) for way in expected)
    with pytest.raises(ValueError, match="noise, permuted"):
        altered(x, "upside down", torch.Generator())


def test_areas_of_energies_that_are_known() -> None:
    ddgm = DDGM((1, 8, 8), sigma=0.1)
    with torch.no_grad():  # E(x) = 100 |x|²: the brighter, the less likely
        ddgm.energy_net.experts.weight.zero_()
        ddgm.energy_net.experts.bias.fill_(-50.0)
    x = torch.randint(3, 5, (40, 1, 8, 8)) / 16.0  # sums of squares without rounding, so that ties are ties
    found = energy_auroc(ddgm, x, torch.arange(40) % 10)
    assert found["noise"] == 1.0
    assert found["blank"] == 0.0
    assert found["flipped"] == pytest.approx(0.5)
    assert found["permuted"] == pytest.approx(0.5)


def test_nearest_rows() -> None:
    reference = torch.randn(30, 2, 3)
    distance, place = nearest_rows(reference[[4, 7]] + 1e-3, reference)
    assert place.tolist() == [4, 7]
    torch.testing.assert_close(distance, torch.full((2,), 1e-3 * 6**0.5), rtol=1e-2, atol=1e-5)
