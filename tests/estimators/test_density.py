"""DDGMDensity: units of columns and images, layouts and types of images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pyro_ssvae.estimators import DDGMDensity, M1Transformer
from pyro_ssvae.presets import DDGM_IMAGES, DDGM_PHOTOS, Preset

_QUICK: dict[str, Any] = {"max_steps": 2, "batch_size": 16, "random_state": 0}


def test_a_ddgm_of_many_columns_draws_values_on_both_sides_of_the_mean() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 20)) * 3.0 + 100.0
    drawn = DDGMDensity(max_steps=20, random_state=0).fit(x).sample(300)
    assert 0.2 < (drawn < x.mean(0)).mean() < 0.8


def test_a_ddgm_takes_images_in_any_units() -> None:
    x = np.random.default_rng(0).integers(0, 65_000, (40, 1, 8, 8)).astype(np.uint16)
    wide = DDGMDensity(max_steps=5, random_state=0).fit(x)
    low, high = float(x.min()), float(x.max())
    unit = DDGMDensity(max_steps=5, random_state=0).fit((x - low) / (high - low))
    np.testing.assert_allclose(wide.score_samples(x), unit.score_samples((x - low) / (high - low)), rtol=1e-5)
    np.testing.assert_allclose(wide.sample(3), unit.sample(3) * (high - low) + low, rtol=1e-5)


def test_pixels_of_eight_bits_and_the_same_numbers_get_the_same_energy() -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8)).astype(np.uint8)
    for given, other in ((x, x.astype(float)), (x.astype(float), x)):
        density = DDGMDensity(**_QUICK).fit(given)
        np.testing.assert_allclose(density.score_samples(other), density.score_samples(given), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:Posterior collapse")
@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (3, 8, 8)])
@pytest.mark.parametrize("kind", [DDGMDensity, M1Transformer])
def test_generated_images_can_be_scored(kind: type, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).random((40, *shape))
    estimator = kind(**_QUICK).fit(x)
    drawn = estimator.sample(4)
    assert drawn.shape == (4, 1 if shape == (8, 8) else 3, 8, 8)
    assert np.isfinite(estimator.score_samples(drawn)).all()
    again = kind(**_QUICK).fit(x[:, None] if shape == (8, 8) else x if shape[0] == 3 else np.moveaxis(x, -1, 1))
    np.testing.assert_array_equal(again.score_samples(x), estimator.score_samples(x))
    with pytest.raises(ValueError, match=r"x must have shape \(B"):
        estimator.score_samples(drawn[:, :, :4])


def test_the_model_inside_takes_standardised_columns() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)) * [1e-3, 1.0, 1e5] + [0.0, 1e6, 0.0]  # the second loses digits in single precision
    density = DDGMDensity(**_QUICK).fit(x)
    np.testing.assert_allclose(density.mean_, x.mean(0))
    np.testing.assert_allclose(density.spread_, x.std(0))
    energy = density.model_.energy(torch.as_tensor((x - density.mean_) / density.spread_))
    np.testing.assert_allclose(energy, -density.score_samples(x), rtol=1e-4, atol=1e-4)
    assert (np.abs(density.sample(50) - density.mean_) < 20.0 * density.spread_).all()


def test_columns_of_heavy_tails_are_named() -> None:
    z = np.random.default_rng(0).normal(size=(500, 4))
    usual = np.c_[z[:, 0], np.exp(z[:, 1]), z[:, 2] > 2.0]
    DDGMDensity(**_QUICK).fit(usual)
    with pytest.warns(UserWarning, match="Column 3: 80 % of the values lie within 0.25 standard deviations"):
        DDGMDensity(**_QUICK).fit(np.c_[usual, np.exp(3.0 * z[:, 3])])


@pytest.mark.parametrize(("channels", "preset"), [(1, DDGM_IMAGES), (3, DDGM_PHOTOS)])
def test_images_in_colour_are_trained_as_photographs(channels: int, preset: Preset) -> None:
    x = np.random.default_rng(0).random((128, channels, 8, 8))
    first = DDGMDensity(max_steps=2, random_state=0).fit(x).history_[0]
    assert first["learning_rate"] == preset.training["learning_rate"]
    assert first["epoch"] == preset.training["batch_size"] / 128
