"""Paths, arithmetic, and how features and latents relate."""

from __future__ import annotations

import pytest
import torch

from pyro_ssvae import DDGM
from pyro_ssvae.plots import plot_arithmetic, plot_features_and_latents, plot_paths, plot_plane_paths


def test_paths_and_arithmetic_of_images() -> None:
    torch.manual_seed(0)
    ddgm = DDGM((1, 8, 8), latent_dim=3)
    x = torch.rand(6, 1, 8, 8)
    before = torch.get_rng_state()
    paths = plot_paths(ddgm, num_rows=2, steps=3)
    assert [label.get_text() for label in paths.axes[0].get_yticklabels()] == ["z", "features", "z", "features"]
    assert plot_arithmetic(ddgm, x).get_supxlabel() == "G: the generator's nearest image"
    analogies = plot_arithmetic(ddgm, x, note="the answer should be a bee")
    assert analogies.get_supxlabel().endswith("\nthe answer should be a bee")
    assert len(analogies.axes[0].get_xticklabels()) == 8
    assert torch.equal(torch.get_rng_state(), before)


def test_paths_in_the_plane() -> None:
    torch.manual_seed(0)
    ddgm = DDGM((2,), latent_dim=2, prior="normal", generator=torch.nn.Identity())
    before = torch.get_rng_state()
    figure = plot_plane_paths(ddgm, num_paths=3, steps=5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    by_z, by_features, analogy = figure.axes
    lines = [torch.tensor(line.get_xydata()) for line in by_z.lines[::3]]  # each with a ring and a dot
    for path in lines:  # x = z: straight lines with even steps
        torch.testing.assert_close(path.diff(dim=0), path.diff(dim=0).mean(0).expand(4, 2), atol=1e-5, rtol=0.0)
    curves = [torch.tensor(line.get_xydata()) for line in by_features.lines[::3]]
    for path, line in zip(curves, lines, strict=True):  # other ways, the same ends
        torch.testing.assert_close(path[[0, -1]], line[[0, -1]], atol=0.05, rtol=0.0)
    assert not torch.allclose(torch.stack(curves), torch.stack(lines), atol=0.01)
    a, b, c, answer, _ = (torch.tensor(line.get_xydata()[0]) for line in analogy.lines)
    torch.testing.assert_close(answer, c + b - a, atol=1e-5, rtol=0.0)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        plot_plane_paths(DDGM((3,)))
    with pytest.raises(ValueError, match="steps=1"):
        plot_plane_paths(ddgm, steps=1)


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
