"""The reference classifier of images, corrupted images, areas under the curve."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pyro_ssvae import DDGM, SemiSupervisedData
from pyro_ssvae.data.preparation import rescale
from pyro_ssvae.evaluation.image_metrics import (
    CORRUPTIONS,
    ReferenceClassifier,
    corrupt_images,
    energy_auroc,
    find_nearest,
    frechet_distance,
    measure_generated_images,
    measure_image_model,
    sample_images,
)


@pytest.fixture(scope="module")
def digits() -> SemiSupervisedData:
    return SemiSupervisedData.from_name("digits", num_labels="all")


@pytest.fixture(scope="module")
def reference(digits: SemiSupervisedData) -> tuple[ReferenceClassifier, float]:
    return ReferenceClassifier.train_on(digits, steps=200)


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


def test_reference_classifier_predicts_classes_and_preserves_the_random_state(
    digits: SemiSupervisedData, reference: tuple[ReferenceClassifier, float]
) -> None:
    assert reference[1] < 0.04
    before = torch.get_rng_state()
    steps: list[int] = []
    again, error = ReferenceClassifier.train_on(digits, steps=5, progress=lambda: steps.append(len(steps)))
    assert steps == [0, 1, 2, 3, 4]
    assert torch.equal(torch.get_rng_state(), before)
    assert 0.0 <= error <= 1.0
    features, probabilities = again.evaluate(digits.x_test, scale=digits.scale)
    assert features.shape == (450, 64)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(450))


def test_real_images_have_a_small_frechet_distance_and_copies_of_one_a_large(
    digits: SemiSupervisedData, reference: tuple[ReferenceClassifier, float]
) -> None:
    x = rescale(digits.x, digits.scale)
    torch.manual_seed(0)
    real = measure_generated_images(DDGM((1, 8, 8), generator=_Replay(x)), digits, reference[0], num_samples=1000)
    assert real["frechet_distance"] < 1.5 * real["frechet_floor"]  # classes are not drawn in proportion here
    assert real["least_share"] > 0.06
    assert real["confidence"] == pytest.approx(real["real_confidence"], abs=0.02)
    assert sum(real["class_shares"]) == pytest.approx(1.0)
    counts = torch.bincount(digits.y_test).double() / 450
    assert real["real_class_shares"] == pytest.approx(counts.tolist(), abs=0.015)  # the classifier errs now and then
    assert (real["frechet_size"], real["frechet_sets"]) == (450, len(digits.x) // 450)  # fewest are the test images
    lone = measure_generated_images(
        DDGM((1, 8, 8), generator=_Replay(x, one=True)), digits, reference[0], num_samples=500
    )
    assert lone["frechet_distance"] > 5 * real["frechet_floor"]
    assert lone["least_share"] == 0.0


class _Look(nn.Module):
    """A classifier whose features are three pixels, and whose probabilities come from these."""

    def evaluate(self, x: Tensor, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        features = x.flatten(1)[:, [18, 27, 36]] / scale
        return features, features.softmax(-1)


def test_distances_are_means_over_sets(digits: SemiSupervisedData) -> None:
    few = replace(digits, x=digits.x[:100], y=digits.y[:100], x_test=digits.x_test[:70], y_test=digits.y_test[:70])
    x = rescale(few.x, few.scale)
    torch.manual_seed(0)
    ddgm, look = DDGM((1, 8, 8), generator=_Replay(x)), _Look()
    found = measure_generated_images(ddgm, few, look, num_samples=30, seed=4)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(4)
    train, test = (part[torch.randperm(len(part), generator=generator)] for part in (few.x, few.x_test))
    (trained, _), (held_out, _) = (look.evaluate(part, scale=few.scale) for part in (train, test))
    sets = [
        [part[start : start + 30] for start in range(0, most, 30)] for part, most in ((held_out, 60), (trained, 90))
    ]
    floor = sum(frechet_distance(first, second) for first in sets[0] for second in sets[1]) / 6.0
    assert found["frechet_floor"] == pytest.approx(floor)
    assert (found["frechet_size"], found["frechet_sets"]) == (30, 3)
    features, probabilities = look.evaluate(sample_images(ddgm, 90, 4))  # as many as three sets of training images
    drawn = [features[start : start + 30] for start in (0, 30, 60)]
    distance = sum(frechet_distance(first, second) for first in drawn for second in sets[1]) / 9.0
    assert found["frechet_distance"] == pytest.approx(distance)
    shares = torch.bincount(probabilities.argmax(-1), minlength=3) / 90.0
    assert found["class_shares"] == pytest.approx(shares.tolist())


def test_corruptions_by_hand() -> None:
    x = torch.rand(6, 1, 12, 10)
    found = {kind: corrupt_images(x, kind, torch.Generator().manual_seed(0)) for kind in CORRUPTIONS}
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
    for index, image in enumerate(found["shifted"]):
        assert any(torch.equal(image, way[index]) for way in expected)


def test_areas_of_energies_that_are_known() -> None:
    ddgm = brightness()
    x = torch.randint(3, 5, (40, 1, 8, 8)) / 16.0  # sums of squares without rounding, so that ties are ties
    found = energy_auroc(ddgm, x, torch.arange(40) % 10)
    assert found["noise"] == pytest.approx(1.0, abs=1e-12)  # the area is a sum of trapezoids
    assert found["blank"] == pytest.approx(0.0, abs=1e-12)
    assert found["flipped"] == pytest.approx(0.5)
    assert found["permuted"] == pytest.approx(0.5)


def brightness() -> DDGM:
    """Return a model whose energy is 100 |x|², and so are differences between images exact."""
    ddgm = DDGM((1, 8, 8), sigma=0.1)
    with torch.no_grad():
        ddgm.energy_net.experts.weight.zero_()
        ddgm.energy_net.experts.bias.fill_(-50.0)
    return ddgm


def test_areas_of_other_data(digits: SemiSupervisedData) -> None:
    x = torch.full((5, 1, 8, 8), 0.5)
    others = {"bright": torch.full((3, 1, 8, 8), 0.75), "alike": x[:2].clone(), "dark": x / 4}
    found = energy_auroc(brightness(), x, None, others)
    assert [found[name] for name in others] == [1.0, 0.5, 0.0]
    assert "flipped" in found
    assert "flipped" not in energy_auroc(brightness(), x, torch.tensor([0, 1, 8, 8, 0]))
    for other, words in (
        ({"noise": x}, "name of a corruption"),
        ({"o": x[:, :, :4]}, r"shape \(5, 1, 4, 8\)"),
        ({"o": x.byte()}, "uint8"),
        ({"o": x[:0]}, "at least one"),
    ):
        with pytest.raises(ValueError, match=words):
            measure_image_model(brightness(), digits, others=other)


def test_measures_of_images(digits: SemiSupervisedData, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = ReferenceClassifier.train_on(digits, steps=2)
    monkeypatch.setattr(ReferenceClassifier, "train_on", lambda data, seed, progress: ready)
    asked = []

    def record(model: DDGM, x: Tensor, y: Tensor | None, others: object, seed: int) -> dict[str, float]:
        asked.append((len(x), y))
        return energy_auroc(model, x, y, others, seed=seed)

    monkeypatch.setattr("pyro_ssvae.evaluation.image_metrics.energy_auroc", record)
    torch.manual_seed(0)
    ddgm = DDGM((1, 8, 8))
    few = replace(digits, x_test=digits.x_test[:40], y_test=digits.y_test[:40])
    before = torch.get_rng_state()
    found = measure_image_model(ddgm, few, digits, others={"bright": torch.ones(9, 1, 8, 8)}, num_samples=60)
    assert torch.equal(torch.get_rng_state(), before)
    assert set(found["auroc"]) == {*CORRUPTIONS, "bright"}
    assert (found["held_out"], found["frechet_size"], asked[-1][0]) == ("test", 40, 40)
    assert asked[-1][1] is few.y_test  # digits: 0, 1 and 8 are not flipped
    assert set(found["nearest_training_image"]) == {"generated", "test"}
    assert len(found["class_shares"]) == len(found["real_class_shares"]) == 10
    assert found["reference_error"] == ready[1]
    assert {"frechet_distance", "frechet_floor", "confidence", "real_confidence", "least_share"} < set(found)
    measure_image_model(ddgm, replace(few, name="letters"))
    assert asked[-1] == (40, None)
    with pytest.raises(ValueError, match="num_samples=1"):
        measure_image_model(ddgm, few, digits, num_samples=1)


@pytest.mark.parametrize("num_validation", [0, 1, 30])
def test_measures_of_images_without_test_examples(digits: SemiSupervisedData, num_validation: int) -> None:
    torch.manual_seed(0)
    ddgm, reference = DDGM((1, 8, 8)), ReferenceClassifier((1, 8, 8), 10)
    none, x = digits.x_test[:0], digits.x_test[:num_validation]
    data = replace(
        digits, x_test=none, y_test=digits.y_test[:0], x_validation=x, y_validation=digits.y_test[:num_validation]
    )
    found = {**measure_generated_images(ddgm, data, reference, num_samples=50), **measure_image_model(ddgm, data)}
    real = {"real_class_shares", "real_confidence", "auroc"}
    assert real & set(found) == (real if num_validation else set())
    assert ("frechet_floor" in found) == (num_validation > 1)
    assert found["frechet_size"] == (30 if num_validation == 30 else 50)
    assert found["held_out"] == ("validation" if num_validation else None)
    assert set(found["nearest_training_image"]) == {"generated"} | ({"validation"} if num_validation else set())


def test_reference_classifier_without_test_examples(digits: SemiSupervisedData) -> None:
    rest = {"x_test": digits.x_test[:0], "y_test": digits.y_test[:0]}
    none = {"x_validation": rest["x_test"], "y_validation": rest["y_test"]}
    assert 0.0 <= ReferenceClassifier.train_on(replace(digits, **rest), steps=1)[1] <= 1.0
    without = replace(digits, **rest, **none)
    assert ReferenceClassifier.train_on(without, steps=1)[1] != ReferenceClassifier.train_on(without, steps=1)[1]  # nan


def test_nearest_examples() -> None:
    reference = torch.randn(30, 2, 3)
    distance, place = find_nearest(reference[[4, 7]] + 1e-3, reference)
    assert place.tolist() == [4, 7]
    torch.testing.assert_close(distance, torch.full((2,), 1e-3 * 6**0.5), rtol=1e-2, atol=1e-5)
