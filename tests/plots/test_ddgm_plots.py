"""Figures of a DDGM: samples, nearest training images, analogies, energies, features and latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyro_ssvae import DDGM
from pyro_ssvae.evaluation.image_metrics import CORRUPTIONS
from pyro_ssvae.plots import (
    plot_analogies,
    plot_features_and_latents,
    plot_interpolations,
    plot_nearest,
    plot_samples,
)
from pyro_ssvae.plots.ddgm import plot_energies
from tests.plots.grids import texts, tile


class _Grey(nn.Module):
    """A generator of even images, as bright as the first latent says."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor) -> Tensor:
        return z[:, :1, None, None].sigmoid().expand(-1, 1, 8, 8)


def brightness() -> DDGM:
    """Return a model whose energy is |x|² but for a constant, so that darker images have less."""
    ddgm = DDGM((1, 8, 8), sigma=1.0, generator=_Grey())
    with torch.no_grad():
        ddgm.energy_net.experts.weight.zero_()
    return ddgm


def cells(figure: Figure, rows: int, columns: int, **options: int) -> np.ndarray:
    """Return the brightness at the middle of each cell of a grid of images."""
    return np.array([[tile(figure, row, column, **options)[4, 4] for column in range(columns)] for row in range(rows)])


def test_generated_images_are_sorted_by_energy() -> None:
    ddgm = brightness()
    before = torch.get_rng_state()
    figure = plot_samples(ddgm, num_columns=4, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    found = cells(figure, 4, 4).ravel()
    assert (np.diff(found) > 0).all()
    assert not np.array_equal(cells(plot_samples(ddgm, num_columns=4, seed=3), 4, 4).ravel(), found)
    with pytest.raises(ValueError, match="num_columns"):
        plot_samples(ddgm, num_columns=0)


def test_the_nearest_image_stands_below_each() -> None:
    level = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    figure = plot_nearest(brightness(), level.view(-1, 1, 1, 1).expand(-1, 1, 8, 8), num_columns=5)
    shown = cells(figure, 8, 5, rows_per_group=2)
    drawn, nearest = shown[::2], shown[1::2]
    np.testing.assert_allclose(nearest, np.round(drawn * 4.0) / 4.0)
    assert texts(figure.axes[0].get_yticklabels()) == ["sample", "nearest"] * 4
    distance = float(torch.from_numpy(8.0 * abs(drawn - nearest)).median())
    assert figure.get_supxlabel() == f"median distance {distance:.2f}"
    with pytest.raises(TypeError, match="floating-point"):
        plot_nearest(brightness(), torch.zeros(3, 1, 8, 8, dtype=torch.uint8))


def test_energies_of_every_kind() -> None:
    x = torch.rand(30, 1, 8, 8)
    ddgm, before = brightness(), torch.get_rng_state()
    figure = plot_energies(ddgm, x)
    assert torch.equal(torch.get_rng_state(), before)
    axes = figure.axes[0]
    names = texts(axes.get_xticklabels())
    assert names == ["real", "generated", *CORRUPTIONS]
    middles = [line.get_ydata()[0] for line in axes.lines[4::5]]  # each box has two whiskers and two caps before
    expected = ddgm.energy(x)
    assert middles[names.index("real")] == pytest.approx(float(expected.quantile(0.5)))
    assert middles[names.index("flipped")] == pytest.approx(float(expected.quantile(0.5)))
    assert min(middles) == middles[names.index("blank")]


@pytest.mark.slow
def test_interpolations_and_analogies_of_images() -> None:
    torch.manual_seed(0)
    ddgm = DDGM((1, 8, 8), latent_dim=3)
    x = torch.rand(6, 1, 8, 8)
    before = torch.get_rng_state()
    start, end = torch.zeros(2, 3), torch.ones(2, 3)
    paths = plot_interpolations(ddgm, start, end, steps=3)
    assert texts(paths.axes[0].get_yticklabels()) == ["z", "features", "z", "features"]
    expected = ddgm.interpolate(start, end, steps=3)[2, 1, 0]  # the last image of the second path
    np.testing.assert_allclose(tile(paths, 2, 2, rows_per_group=2), expected, atol=1e-6)
    analogies = plot_analogies(ddgm, x)
    assert "\n" not in analogies.get_supxlabel()
    assert len(analogies.axes[0].get_xticklabels()) == 8
    assert "\n" not in plot_analogies(ddgm, x, [0, 0, 1, 0, 1, 1]).get_supxlabel()
    assert "answer should be c's class" in plot_analogies(ddgm, x, [0, 0, 1, 1, 1, 0]).get_supxlabel()
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="three each"):
        plot_analogies(ddgm, torch.rand(4, 1, 8, 8))


def test_variance_of_a_feature_is_assigned_to_its_latent() -> None:
    class Swapped(torch.nn.Module):  # features: the second latent, the first one, and their product
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x[:, 1], x[:, 0] ** 2, 2.0 * x[:, 0] * x[:, 1]], -1)

    ddgm = DDGM((2,), latent_dim=2, features=Swapped(), generator=torch.nn.Identity())
    shares = plot_features_and_latents(ddgm).axes[0].images[0].get_array()
    assert shares is not None
    assert shares.shape == (2, 3)
    one_latent = shares[:, shares.max(0) > 0.9]  # a straight and a curved relation
    assert one_latent.shape == (2, 2)
    assert float(one_latent.min()) < 0.05
    assert sorted(one_latent.argmax(0).tolist()) == [0, 1]
    product = shares[:, shares.max(0) < 0.5]
    assert product.shape == (2, 1)
    assert float(abs(product).max()) < 0.05
