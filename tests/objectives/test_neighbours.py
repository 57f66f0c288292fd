"""Label spreading in the pseudo-labels of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_ssvae import M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, fit
from pyro_ssvae.objectives import AffineAugmentation, Consistency, NeighbourDensities
from pyro_ssvae.objectives.neighbours import make_upright

SHAPE = (1, 12, 12)


def draw_bars(number: int, seed: int = 0, least: float = 0.0) -> tuple[Tensor, Tensor]:
    """Vertical strokes of class 0, with a crossbar of any length, and empty squares of class 1."""
    generator = np.random.default_rng(seed)
    x, y = np.zeros((number, *SHAPE), np.float32), np.arange(number) % 2
    for image, label in zip(x[:, 0], y, strict=True):
        down, along = generator.integers(-1, 2, 2)
        length = round(3 * generator.uniform(least, 1))
        if label:
            image[3 + down : 10 + down, 3 + along : 10 + along] = 1.0
            image[4 + down : 9 + down, 4 + along : 9 + along] = 0.0
        else:
            image[2 + down : 11 + down, 6 + along] = 1.0
            image[6 + down, 6 + along - length : 7 + along + length] = 1.0
    x = (x + generator.normal(0.0, 0.05, x.shape)).clip(0, 1).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(y)


def with_labels(y: Tensor, per_class: int) -> Tensor:
    known = torch.full_like(y, -1)
    for label in (0, 1):
        rows = (y == label).nonzero()[:per_class, 0]
        known[rows] = label
    return known


def make_densities(number: int = 200, per_class: int = 5) -> NeighbourDensities:
    x, y = draw_bars(number)
    return NeighbourDensities(x, with_labels(y, per_class), 2)


def test_densities_are_those_of_a_dense_graph() -> None:
    x, y = draw_bars(40)
    labels = with_labels(y, 4)
    densities = NeighbourDensities(x, labels, 2)
    position = densities.nodes.double().numpy()
    distances = np.linalg.norm(position[:, None] - position, axis=-1)
    weights = np.zeros((40, 40))
    for i, row in enumerate(distances):
        nearest = np.argsort(row + np.where(np.arange(40) == i, np.inf, 0.0))[:10]
        weights[i, nearest] = np.exp(-((row[nearest] / row[nearest].max()) ** 2))
    weights = np.maximum(weights, weights.T)
    scale = weights.sum(1) ** -0.5
    s = scale[:, None] * weights * scale
    start = np.stack([(labels.numpy() == label) / 4.0 for label in (0, 1)], 1)
    found = start
    for _ in range(50):
        found = 0.99 * s @ found + 0.01 * start
    torch.testing.assert_close(
        densities.densities, torch.from_numpy(found / found.sum(0)).float(), rtol=1e-3, atol=1e-6
    )


def test_logarithms_of_densities_at_new_images() -> None:
    densities = make_densities()
    x, y = draw_bars(50, seed=1)
    found = densities(x)
    assert found.shape == (50, 2)
    assert torch.equal(found.amax(1), torch.zeros(50))
    assert (found.argmax(1) == y).float().mean() > 0.95
    torch.testing.assert_close(found, torch.cat([densities(one[None]) for one in x]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("background", [0.0, 1.0])
def test_upright_images_have_their_mass_in_the_middle_and_no_slant(background: float) -> None:
    grid = torch.linspace(-1, 1, 28)
    maps = torch.tensor([[[1.0, 0.4, 0.15], [0.0, 1.0, -0.2]]])
    stroke = torch.exp(-((grid[:, None] / 0.5) ** 2) - (grid / 0.1) ** 2)[None, None]
    slanted = F.grid_sample(stroke, F.affine_grid(maps, [1, 1, 28, 28], align_corners=False), align_corners=False)
    upright = make_upright((background - slanted).abs(), background)
    mass = (upright - background).abs()[0, 0]
    mass = mass / mass.sum()
    down, along = mass.sum(1) @ grid, mass.sum(0) @ grid
    assert abs(down) < 0.01
    assert abs(along) < 0.01
    assert abs((mass * (grid[:, None] - down) * (grid - along)).sum()) < 1e-3
    assert torch.isfinite(make_upright(torch.full((2, 1, 9, 7), background), background)).all()


def test_hidden_labels_choose_the_power() -> None:
    x, y = draw_bars(300)
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.where(with_labels(y, 40) >= 0, torch.randint(0, 2, y.shape, generator=generator), -1)
    right, wrong = (NeighbourDensities(x, labels, 2) for labels in (with_labels(y, 40), shuffled))
    assert right.power >= 2.0
    assert right.accuracy > 0.9
    assert wrong.power <= 0.5
    assert wrong.accuracy < 0.7
    assert NeighbourDensities.for_data(SemiSupervisedData.from_arrays(x, shuffled)) is None


def test_pseudo_labels_follow_the_neighbours_where_the_classifier_is_unsure() -> None:
    """An unsure wrong prediction is corrected, and enters the loss of the uncorrected logits."""
    neighbours = make_densities()
    x, y = draw_bars(20, seed=2)
    wrong = torch.stack([y * 1.0, 1.0 - y], 1)  # a difference of one in favour of the other class
    term = Consistency(2, threshold=0.5, strong=AffineAugmentation(strength=0.0), align=0.0, neighbours=neighbours)
    pseudo = (wrong + neighbours(x)).argmax(1)
    assert (pseudo == y).all()
    torch.testing.assert_close(term(lambda _: wrong, x), F.cross_entropy(wrong, y))


def make_data(num_labels: int = 20, **options: Any) -> SemiSupervisedData:
    x, y = draw_bars(120)
    return SemiSupervisedData.from_arrays(x, with_labels(y, num_labels // 2), **options)


def find_neighbours(data: SemiSupervisedData) -> NeighbourDensities | None:
    model = M2.for_data(data, latent_dim=2, hidden_dims=(8,), classifier="mlp")
    consistency = SemiSupervisedELBO.for_data(model, data).consistency
    return None if consistency is None else consistency.neighbours


def test_grey_images_on_a_plain_background_have_neighbours() -> None:
    data = make_data()
    state = torch.get_rng_state()
    found, again = NeighbourDensities.for_data(data), NeighbourDensities.for_data(data)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found.densities, again.densities)
    assert find_neighbours(data).config() == found.config()
    assert found.config() == {"images": 120, "power": found.power, "accuracy": found.accuracy}


def test_other_examples_have_none() -> None:
    assert find_neighbours(make_data(18)) is None  # too few labels
    with pytest.warns(UserWarning, match="class 2"):
        data = make_data(num_classes=3)
    assert find_neighbours(data) is None
    photos = SemiSupervisedData.from_arrays(torch.rand(60, 3, 8, 8), torch.arange(60) % 4 - 1)
    assert find_neighbours(photos) is None
    table = SemiSupervisedData.from_arrays(torch.rand(60, 5).round(), torch.arange(60) % 4 - 1)
    assert find_neighbours(table) is None


def test_blank_images_are_no_error() -> None:
    x, y = draw_bars(60)
    x[20:25] = 0.0
    assert torch.isfinite(NeighbourDensities(x, with_labels(y, 5), 2)(torch.zeros(1, *SHAPE))).all()


def test_many_classes_take_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_ssvae.objectives.neighbours._MOST_DENSITIES", 100)
    found = NeighbourDensities.for_data(make_data())
    assert found is not None
    assert len(found.nodes) == 20 + 100 // 2


@pytest.mark.parametrize("shape", [(1, *SHAPE), (5, 12)])
def test_one_image_or_a_table_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Two images"):
        NeighbourDensities(torch.zeros(shape), torch.zeros(shape[0], dtype=torch.long), 2)


def test_images_on_disk(tmp_path: Path) -> None:
    data = make_data()
    np.save(tmp_path / "x.npy", data.x.numpy())
    on_disk = SemiSupervisedData.from_arrays(tmp_path / "x.npy", data.y)
    torch.testing.assert_close(
        NeighbourDensities.for_data(on_disk).densities, NeighbourDensities.for_data(data).densities
    )


@pytest.mark.parametrize("double", [False, True])
def test_training_with_neighbours(double: bool) -> None:
    data = make_data()
    model = M2.for_data(data, latent_dim=2, hidden_dims=(8,), classifier="mlp")
    objective = SemiSupervisedELBO.for_data(model, data)
    objective = objective.double() if double else objective
    run = fit(objective, data, TrainingConfig(max_steps=6, batch_size=16, device="cpu"), progress=False)
    assert np.isfinite(run.metrics[-1]["train/consistency_loss"])
