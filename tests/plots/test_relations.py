"""Paths, arithmetic, and how features and latents relate."""

from __future__ import annotations

import pytest
import torch

from pyro_ssvae import DDGM
from pyro_ssvae.plots import plot_arithmetic, plot_features_and_latents, plot_paths


def test_paths_and_arithmetic_of_images() -> None:
    torch.manual_seed(0)
    ddgm = DDGM((1, 8, 8), latent_dim=3)
    x = torch.rand(6, 1, 8, 8)
    before = torch.get_rng_state()
    paths = plot_paths(ddgm, num_rows=2, steps=3)
    assert [label.get_text() for label in paths.axes[0].get_yticklabels()] == ["z", "features", "z", "features"]
    analogies = plot_arithmetic(ddgm, x)
    assert len(analogies.axes[0].get_xticklabels()) == 8
    assert torch.equal(torch.get_rng_state(), before)


def test_a_feature_is_credited_to_its_latent() -> None:
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


def test_errors() -> None:
    with pytest.raises(ValueError, match="three each"):
        plot_arithmetic(DDGM((1, 8, 8)), torch.rand(4, 1, 8, 8))
    with pytest.raises(ValueError, match="num_samples"):
        plot_features_and_latents(DDGM((2,)), num_samples=10)
