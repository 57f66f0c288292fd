"""Entropies of a generator, negative data augmentation and differentiable augmentation of images."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from pyro_ssvae import DDGM
from pyro_ssvae.objectives import BatchNormEntropy, EnergyLoss, NearestNeighbourEntropy
from pyro_ssvae.objectives.energy_terms import (
    ENTROPIES,
    _blur,
    _cut_mix,
    _shuffle_patches,
    draw_negatives,
    make_entropy,
    shift_and_flip,
)


def _trained(x: Tensor, weight: float) -> DDGM:
    """Return a model whose energy was trained with a perfect generator, which gives no gradient on average."""

    def guide(x: Tensor) -> Tensor:
        pyro.sample("z", pyro.distributions.Normal(torch.zeros(len(x), 4), 1.0).to_event(2))
        return x[torch.randperm(len(x))]

    torch.manual_seed(0)
    ddgm = DDGM((1, 8, 8), latent_dim=4)
    elbo = EnergyLoss(NearestNeighbourEntropy(dim=4), ddgm.generator, negative_weight=weight)
    optimizer = torch.optim.Adam(ddgm.energy_net.parameters(), lr=3e-3)
    for _ in range(100):
        loss, _ = elbo.energy_loss(ddgm.model, guide, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return ddgm


def test_negative_augmentation_raises_energies_up_to_the_margin() -> None:
    torch.manual_seed(0)
    x = torch.rand(2000, 1, 8, 8)
    copies, margin = draw_negatives(x)
    distance = (copies - x).square().flatten(1).sum(-1)
    assert torch.allclose(margin, (distance / 2.0).clamp(max=3.0))
    assert float(margin.min()) < 0.1 < 1.0 < float(margin.max()) == 3.0  # from next to no change up to none left
    assert float(copies.min()) >= 0.0
    assert float(copies.max()) <= 1.0 + 1e-6
    same = (copies.flatten(1).sort().values == x.flatten(1).sort().values).all(-1)
    assert 0.2 < float(same.double().mean()) < 0.3  # a quarter of the copies have shuffled patches


def test_energies_of_corrupted_images_above_the_margin_cost_nothing() -> None:
    torch.manual_seed(0)
    ddgm = DDGM((1, 8, 8)).eval()
    elbo = EnergyLoss(NearestNeighbourEntropy(), ddgm.generator, negative_weight=2.0)
    x = torch.rand(16, 1, 8, 8)
    torch.manual_seed(2)
    found, terms = elbo.energy_loss(ddgm.model, ddgm.guide, x)
    torch.manual_seed(2)
    generated = ddgm.generator(ddgm.prior().expand((16,)).sample())
    copies, margin = draw_negatives(x)
    lacking = margin + ddgm.energy_net(x) - ddgm.energy_net(copies)  # nats
    expected = (1.0 + lacking.exp()).log().mean()
    torch.testing.assert_close(terms["negative_loss"], expected.detach())
    loss = (ddgm.energy_net(x) - ddgm.energy_net(generated)).mean() + 2.0 * expected
    torch.testing.assert_close(found, loss)
    weights = [weight for weight in ddgm.energy_net.parameters() if weight.requires_grad]
    torch.testing.assert_close(torch.autograd.grad(found, weights), torch.autograd.grad(loss, weights))


def test_blurring_is_a_gaussian_convolution() -> None:
    torch.manual_seed(0)
    x = nn.functional.pad(torch.rand(3, 2, 12, 12), (10, 10, 10, 10))
    blurred, expected = _blur(x, torch.tensor(1.5)), gaussian_blur(x, kernel_size=[17, 17], sigma=[1.5, 1.5])
    assert blurred.shape == x.shape
    assert torch.allclose(blurred, expected, atol=1e-6)  # the edges, where both differ, are black
    assert torch.allclose(_blur(torch.full((1, 1, 9, 9), 0.3), torch.tensor(2.0)), torch.tensor(0.3), atol=1e-6)


def test_cut_mix_joins_two_images_along_a_line() -> None:
    x = torch.arange(1.0, 4.0).view(3, 1, 1, 1).expand(3, 2, 11, 6)
    across = torch.tensor([True, False, True]).view(3, 1, 1, 1)
    copies = _cut_mix(x, torch.tensor(0.45).expand(3, 1, 1, 1), across)
    assert copies.shape == x.shape
    for index, before, part in ((0, 3.0, slice(0, 5)), (2, 2.0, slice(0, 5))):  # 0, 0.1, ..., 0.4 of 11 lines
        assert copies[index, :, part].unique().item() == index + 1.0
        assert copies[index, :, 5:].unique().item() == before
    assert copies[1, :, :, :3].unique().item() == 2.0  # 0, 0.2, 0.4 of 6 columns
    assert copies[1, :, :, 3:].unique().item() == 1.0


@pytest.mark.parametrize(("count", "size"), [(4, (9, 8)), (8, (9, 8)), (8, (5, 16))])
def test_patches_are_shuffled(count: int, size: tuple[int, int]) -> None:
    """Each image has its own order, shared by all channels; patches keep their pixels, and the remaining edges stay."""
    torch.manual_seed(0)
    number = min(count, *size)
    height, width = (side // number for side in size)
    x = torch.arange(3 * 2 * size[0] * size[1]).view(3, 2, *size).float()
    copies = _shuffle_patches(x, count)
    assert torch.equal(copies[:, 1] - copies[:, 0], x[:, 1] - x[:, 0])
    assert torch.equal(copies[..., number * height :, :], x[..., number * height :, :])
    assert torch.equal(copies[..., number * width :], x[..., number * width :])
    orders = []
    for image, copy in zip(x, copies, strict=True):
        tiles, moved = (
            [
                part[:, down * height : (down + 1) * height, along * width : (along + 1) * width]
                for down in range(number)
                for along in range(number)
            ]
            for part in (image, copy)
        )
        orders.append([next(i for i, tile in enumerate(tiles) if torch.equal(tile, found)) for found in moved])
        assert sorted(orders[-1]) == list(range(number**2))
        assert orders[-1] != sorted(orders[-1])
    assert orders[0] != orders[1]


@pytest.mark.slow
def test_energy_of_cut_mix_is_raised() -> None:
    """Halves of two images, which no image of the data combines."""
    torch.manual_seed(0)
    x = torch.zeros(256, 1, 8, 8)
    x[:128, :, :, 2:6] = 1.0  # a bar, upright
    x[128:, :, 2:6] = 1.0  # or lying
    x = x[torch.randperm(256)]

    both = torch.zeros(1, 1, 8, 8)
    both[:, :, :4, 2:6] = 1.0
    both[:, :, 4:6] = 1.0
    above = {}
    for weight in (0.0, 1.0):
        ddgm = _trained(x, weight)
        above[weight] = float((ddgm.energy(both) - ddgm.energy(x)).mean())
    assert abs(above[0.0]) < 1.0 < 2.5 < above[1.0]


@pytest.mark.slow
def test_energy_of_a_blank_image_is_raised() -> None:
    """The generator gives no blank image, so no other term of the loss changes its energy."""
    torch.manual_seed(0)
    x = torch.zeros(256, 1, 8, 8)
    x[:, :, 2:6, 2:6] = 0.5 + 0.5 * torch.rand(256, 1, 4, 4)

    above = {}
    for weight in (0.0, 1.0):
        ddgm = _trained(x, weight)
        above[weight] = float((ddgm.energy(torch.zeros(1, 1, 8, 8)) - ddgm.energy(x)).mean())
    assert above[0.0] < 0.0 < 2.5 < above[1.0]


def test_negative_augmentation_refuses_what_is_no_image() -> None:
    with pytest.raises(ValueError, match="negative_weight=0"):
        draw_negatives(torch.rand(3, 2))


def test_shift_and_flip_draws_every_shift_and_flip_equally_often() -> None:
    torch.manual_seed(0)
    height, width, share = 12, 20, 0.16  # up to 2 pixels down and 3 along
    image = torch.rand(3, height, width)
    possible = torch.stack(
        [
            torch.roll(flipped, (down, along), (-2, -1))
            for flipped in (image, image.flip(-1))
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


def test_gradients_are_those_of_the_original_pixels() -> None:
    torch.manual_seed(0)
    x, weights = torch.rand(5, 1, 8, 8, requires_grad=True), torch.rand(5, 1, 8, 8)
    torch.manual_seed(1)
    (slope,) = torch.autograd.grad((weights * shift_and_flip(x, 0.25)).sum(), x)
    torch.manual_seed(1)
    place = shift_and_flip(torch.arange(64.0).view(1, 1, 8, 8).expand(5, -1, -1, -1), 0.25).long()
    expected = torch.zeros(5, 64).scatter(1, place.flatten(1), weights.flatten(1))
    torch.testing.assert_close(slope.flatten(1), expected, rtol=0.0, atol=0.0)


def test_losses_of_shifted_and_flipped_images() -> None:
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
    entropy = elbo.entropy(generated, ddgm.generator)
    torch.testing.assert_close(terms["entropy"], entropy)
    torch.testing.assert_close(found, ddgm.energy_net(shift_and_flip(generated, 0.25)).mean() - entropy)
    assert elbo.config()["max_shift"] == 0.25


def test_shift_and_flip_refuses_what_is_no_image() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\); set max_shift=0"):
        shift_and_flip(torch.rand(4, 3), 0.1)
    ddgm = DDGM((2,))
    with pytest.raises(ValueError, match="max_shift=0.6 must be at least 0 and at most 0.5"):
        EnergyLoss(NearestNeighbourEntropy(), ddgm.generator, max_shift=0.6)


def test_nearest_neighbours_find_the_entropy_of_a_gaussian() -> None:
    torch.manual_seed(0)
    x = 0.7 * torch.randn(4000, 2)
    expected = math.log(2 * math.pi * math.e * 0.49)
    assert float(NearestNeighbourEntropy()(x, nn.Identity())) == pytest.approx(expected, abs=0.05)


def test_nearest_neighbour_entropy_rises_along_its_gradient() -> None:
    x = torch.randn(60, 2).requires_grad_()
    entropy = NearestNeighbourEntropy()(x, nn.Identity())
    (slope,) = torch.autograd.grad(entropy, x)
    moved = (x + 1e-3 * slope).detach()
    assert float(NearestNeighbourEntropy()(moved, nn.Identity())) > float(entropy.detach())
    with pytest.raises(ValueError, match="no nearest neighbours"):
        NearestNeighbourEntropy()(x[:1], nn.Identity())


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
    own = NearestNeighbourEntropy(3.0)
    assert make_entropy(own, 4, (2,)) is own
    with pytest.raises(ValueError, match="batch_norm, nearest_neighbour"):
        make_entropy("nope", 4, (2,))
    with pytest.raises(TypeError, match="not int"):
        make_entropy(3, 4, (2,))
