"""Generated images, the nearest ones of training, energies, and classes of what is generated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyro_ssvae import DDGM
from pyro_ssvae.evaluation.image_metrics import CORRUPTIONS
from pyro_ssvae.plots import plot_class_shares, plot_energies, plot_generated, plot_nearest


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


def cells(figure: object, rows: int, columns: int) -> np.ndarray:
    """Return the brightness at the middle of each tile of a mosaic."""
    canvas = np.asarray(figure.axes[0].images[0].get_array())[..., 0]
    gap = 64 // 16
    return np.array([[canvas[32 + i * (64 + gap), 32 + j * (64 + gap)] for j in range(columns)] for i in range(rows)])


def test_generated_images_are_sorted_by_energy() -> None:
    ddgm = brightness()
    before = torch.get_rng_state()
    figure = plot_generated(ddgm, num_rows=3, num_columns=4, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    found = cells(figure, 3, 4).ravel()
    assert (np.diff(found) > 0).all()
    assert not np.array_equal(cells(plot_generated(ddgm, num_rows=3, num_columns=4, seed=3), 3, 4).ravel(), found)
    with pytest.raises(ValueError, match="num_rows"):
        plot_generated(ddgm, num_rows=0)


def test_the_nearest_image_stands_below_each() -> None:
    level = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    figure = plot_nearest(brightness(), level.view(-1, 1, 1, 1).expand(-1, 1, 8, 8), num_rows=2, num_columns=5)
    drawn, nearest = cells(figure, 4, 5)[::2], cells(figure, 4, 5)[1::2]
    np.testing.assert_allclose(nearest, np.round(drawn * 4.0) / 4.0)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["drawn", "nearest"] * 2
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
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[::-1] == ["real", "generated", *CORRUPTIONS]
    middles = [line.get_xdata()[0] for line in axes.lines[2::3]]  # from below, as names
    expected = ddgm.energy(x)
    assert middles[names.index("real")] == pytest.approx(float(expected.quantile(0.5)))
    assert middles[names.index("flipped")] == pytest.approx(float(expected.quantile(0.5)))
    assert min(middles) == middles[names.index("blank")]


def test_class_shares_beside_real_ones() -> None:
    figure = plot_class_shares(torch.tensor([0.2, 0.05, 0.75]), ["ant", "bee", "beetle"], np.array([0.3, 0.3, 0.4]))
    axes = figure.axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([20.0, 5.0, 75.0], abs=1e-4)
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([30.0, 30.0, 40.0])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["ant", "bee", "beetle"]
    assert figure.get_supxlabel() == "least: bee, 5.0%"
    assert plot_class_shares([0.5, 0.5]).axes[0].get_legend() is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0.5, 0.6],), "sums to 1.1"),
        (([-0.5, 1.5],), "none negative"),
        (([1.0],), "at least two"),
        (([0.5, 0.5], ["a"]), "1 names for 2"),
        (([0.5, 0.5], None, [0.2, 0.3, 0.5]), "3 classes, shares 2"),
    ],
)
def test_shares_that_are_none(arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plot_class_shares(*arguments)
