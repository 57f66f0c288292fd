"""Moves of images before an energy sees them: permutations of pixels, alike for data and samples."""

from __future__ import annotations

import pytest
import torch

from pyro_ssvae.models import DDGM
from pyro_ssvae.objectives import EnergyLoss, NearestNeighbourEntropy, shift_and_flip


def test_moves_are_shifts_around_the_edges_and_turns() -> None:
    torch.manual_seed(0)
    height, width, share = 12, 20, 0.16  # up to 2 rows and 3 columns
    image = torch.rand(3, height, width)
    possible = torch.stack(
        [
            torch.roll(picture, (down, along), (-2, -1))
            for picture in (image, image.flip(-1))
            for down in range(-2, 3)
            for along in range(-3, 4)
        ]
    )
    moved = shift_and_flip(image.expand(4000, -1, -1, -1), share)
    which = (moved[:, None, 0, :2] == possible[None, :, 0, :2]).flatten(2).all(-1)
    assert (which.sum(-1) == 1).all()  # each is one of them
    torch.testing.assert_close(moved, possible[which.int().argmax(-1)], rtol=0.0, atol=0.0)
    shares = which.double().mean(0)  # and all of them are as likely
    expected = 1.0 / len(possible)
    assert ((shares - expected).abs() < 5.0 * (expected / len(moved)) ** 0.5).all()


def test_gradients_go_back_to_where_pixels_came_from() -> None:
    torch.manual_seed(0)
    x, weights = torch.rand(5, 1, 8, 8, requires_grad=True), torch.rand(5, 1, 8, 8)
    torch.manual_seed(1)
    (slope,) = torch.autograd.grad((weights * shift_and_flip(x, 0.25)).sum(), x)
    torch.manual_seed(1)
    place = shift_and_flip(torch.arange(64.0).view(1, 1, 8, 8).expand(5, -1, -1, -1), 0.25).long()
    expected = torch.zeros(5, 64).scatter(1, place.flatten(1), weights.flatten(1))
    torch.testing.assert_close(slope.flatten(1), expected, rtol=0.0, atol=0.0)


def test_losses_of_what_the_energy_sees() -> None:
    """Data and samples are moved before the energy sees them, and the entropy is that of samples as they are."""
    torch.manual_seed(0)
    ddgm = DDGM((1, 8, 8)).eval()
    elbo = EnergyLoss(NearestNeighbourEntropy(), ddgm.generator, max_shift=0.25)
    x = torch.rand(16, 1, 8, 8)
    torch.manual_seed(2)
    found, _ = elbo.energy_loss(ddgm.model, ddgm.guide, x)
    torch.manual_seed(2)
    data = shift_and_flip(x, 0.25)
    generated = ddgm.generator(ddgm.prior().expand((16,)).sample())
    torch.testing.assert_close(found, (ddgm.energy_net(data) - ddgm.energy_net(shift_and_flip(generated, 0.25))).mean())
    torch.manual_seed(2)
    found, terms = elbo.generator_loss(ddgm.model, ddgm.guide, x)
    torch.manual_seed(2)
    z = ddgm.prior().expand((16,)).sample()
    generated = ddgm.generator(z)
    entropy = elbo.entropy(z, generated, ddgm.generator)
    torch.testing.assert_close(terms["entropy"], entropy)
    torch.testing.assert_close(found, ddgm.energy_net(shift_and_flip(generated, 0.25)).mean() - entropy)
    assert elbo.config()["max_shift"] == 0.25


def test_jitter_is_for_images() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\); set max_shift=0"):
        shift_and_flip(torch.rand(4, 3), 0.1)
    ddgm = DDGM((2,))
    with pytest.raises(ValueError, match=r"max_shift=0.6 must lie in \[0, 0.5\]"):
        EnergyLoss(NearestNeighbourEntropy(), ddgm.generator, max_shift=0.6)
