"""Augmentation and consistency against what they claim to compute."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from pyro_ssvae import M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, fit
from pyro_ssvae.distributions import Bernoulli, Categorical, FixedClassPrior, Gaussian, Mixed
from pyro_ssvae.estimators import M2Classifier
from pyro_ssvae.objectives import AffineAugmentation, ColumnAugmentation, Consistency, PhotoAugmentation
from pyro_ssvae.objectives.regularisers import exchange_unpredicted


def test_no_strength_is_the_identity() -> None:
    x = torch.rand(3, 1, 9, 8)
    torch.testing.assert_close(AffineAugmentation(strength=0.0)(x), x, atol=1e-5, rtol=0)


def test_each_image_has_its_own_map_and_values_stay_in_range() -> None:
    x = torch.rand(1, 1, 28, 28).expand(6, -1, -1, -1)
    out = AffineAugmentation()(x)
    assert out.min() >= 0.0
    assert out.max() <= 1.0
    assert all(not torch.allclose(out[0], other) for other in out[1:])


def test_shift_is_a_fraction_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw of one standard deviation along x moves an 8-pixel image by shift * 8 = 2 pixels."""
    augment = AffineAugmentation(rotation=0.0, log_scale=0.0, shear=0.0, shift=0.25)
    draws = torch.zeros(6, 1)
    draws[4] = 1.0
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: draws)
    x = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(augment(x)[..., :-2], x[..., 2:], atol=1e-5, rtol=0)


def test_rotation_keeps_a_disc(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = torch.linspace(-1, 1, 41)
    disc = torch.exp(-4 * (grid[:, None] ** 2 + grid**2))[None, None]
    draws = torch.zeros(6, 1)
    draws[0] = 1.0
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: draws)
    out = AffineAugmentation(rotation=0.7, log_scale=0.0, shear=0.0, shift=0.0)(disc)
    inner = slice(10, -10)
    torch.testing.assert_close(out[..., inner, inner], disc[..., inner, inner], atol=0.01, rtol=0)


@pytest.mark.parametrize("kind", [AffineAugmentation, PhotoAugmentation])
def test_a_share_of_the_images_stays_as_it_is(kind: Any) -> None:
    torch.manual_seed(0)
    x = torch.rand(2000, 1, 8, 8)
    unchanged = (kind(probability=0.3)(x) == x).all(-1).all(-1).float().mean()
    assert float(unchanged) == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize(("noise", "changed", "bound"), [(0.0, 1.0, 0.1), (1.0, 0.5, 0.01)])
def test_augmentation_and_bound_have_less_weight_where_neighbours_do_not_predict_labels(
    noise: float, changed: float, bound: float
) -> None:
    random = np.random.default_rng(0)
    classes = np.arange(200) % 2
    x = np.zeros((200, 1, 12, 12))
    x[:, 0, 3:9, 5:7] = 1.0
    x[classes == 1, 0, 5:7, 3:9] = 1.0
    x[:, 0, 2:10, 2:10] += noise * (random.normal(size=(200, 8, 8)) - x[:, 0, 2:10, 2:10])
    data = SemiSupervisedData.from_arrays(x, np.where(np.arange(200) < 40, classes, -1))
    bernoulli = SemiSupervisedELBO.for_data(M2.for_data(data, likelihood="bernoulli"), data)
    assert bernoulli.bound_weight == 1.0
    objective = SemiSupervisedELBO.for_data(M2.for_data(data, likelihood="gaussian"), data)
    assert (bernoulli.kl_schedule, objective.kl_schedule) == ((0.15, 8.0), (0.0, 30.0))
    changes = [part.config() for part in (objective.augmentation, objective.consistency.strong)]
    assert [one["probability"] for one in changes] == [changed, changed]
    assert objective.bound_weight == bound


class _Same(AffineAugmentation):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_consistency_is_the_cross_entropy_of_confident_examples() -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(20, 4)).requires_grad_()
    term = Consistency(4, threshold=0.8, strong=_Same(), align=0.0)
    loss = term(lambda _: logits, torch.zeros(20, 1, 8, 8))
    confidence, y = logits.softmax(-1).max(-1)
    kept = confidence >= 0.8
    assert 0 < kept.sum() < 20
    expected = F.cross_entropy(logits[kept], y[kept], reduction="sum") / 20
    torch.testing.assert_close(loss, expected)


class _InHalfPrecision(M2):
    def classify(self, x: Tensor, a: Tensor | None = None) -> Tensor:
        return super().classify(x, a).bfloat16()


def test_logits_in_half_precision_train() -> None:
    data = SemiSupervisedData.from_name("digits", num_labels=100)
    m2 = _InHalfPrecision.for_data(data, latent_dim=2, hidden_dims=(8,), classifier="mlp")
    config = TrainingConfig(max_steps=2, device="cpu", precision="bf16-mixed")
    run = fit(SemiSupervisedELBO.for_data(m2, data), data, config, progress=False)
    assert math.isfinite(run.metrics[-1]["train/consistency_loss"])
    consistency = Consistency(2, threshold=0.0, strong=ColumnAugmentation(0.0))
    assert consistency(lambda x: x.bfloat16(), torch.randn(5, 2)).dtype == torch.float32


def test_no_gradient_flows_through_the_pseudo_label() -> None:
    target, prediction = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    answers = iter([target, prediction])
    Consistency(4, threshold=0.0)(lambda _: next(answers), torch.zeros(5, 1, 8, 8)).backward()
    assert target.grad is None
    assert prediction.grad.abs().max() > 0


def test_alignment_divides_by_the_running_mean() -> None:
    """A class predicted for everything loses the argmax to the runner-up once its share has been noticed."""
    logits = torch.tensor([[2.0, 1.9, 0.0]]).expand(50, -1)
    term = Consistency(3, threshold=0.0, align=1.0, decay=0.0)
    seen: list[Tensor] = []

    def classify(x: Tensor) -> Tensor:
        seen.append(x)
        return logits

    term(classify, torch.zeros(50, 1, 8, 8))
    torch.testing.assert_close(term.mean_prediction, logits[0].softmax(-1))
    assert len(seen) == 2


def test_columns_take_values_of_other_rows() -> None:
    torch.manual_seed(0)
    x = torch.arange(1000.0)[:, None] + torch.tensor([0.0, 10_000.0, 20_000.0])
    out = ColumnAugmentation(swap=[0.3, 0.0, 1.0])(x)
    assert all(torch.isin(out[:, column], x[:, column]).all() for column in range(3))
    changed = (out != x).float().mean(0)
    torch.testing.assert_close(changed, torch.tensor([0.3, 0.0, 1.0]), atol=0.05, rtol=0)


def test_noise_of_columns_has_the_given_deviation_and_leaves_missing_values() -> None:
    torch.manual_seed(0)
    x = torch.ones(5000, 3)
    x[:10] = torch.nan
    out = ColumnAugmentation(swap=0.0, noise=[0.5, 2.0, 0.0])(x)
    assert torch.equal(out.isnan(), x.isnan())
    torch.testing.assert_close(out[10:].mean(0), torch.ones(3), atol=0.1, rtol=0)
    torch.testing.assert_close(out[10:].std(0), torch.tensor([0.5, 2.0, 0.0]), atol=0.1, rtol=0)


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_columns_that_others_predict_keep_their_values(missing: float) -> None:
    """Two columns with deviation 10 that differ by a column of deviation 1, an independent one, and a copy with noise.

    The others explain 99 % of the variance of the first two columns, nothing of the third, half of that of the last.
    """
    random = np.random.default_rng(0)
    first, difference, other, noise = random.normal(size=(4, 800)) * [[10.0], [1.0], [5.0], [5.0]]
    x = np.stack([first, 100.0 + first + difference, other, other + noise], 1)
    x[random.random(x.shape) < missing] = np.nan
    data = SemiSupervisedData.from_arrays(x, np.where(np.arange(800) < 10, np.arange(800) % 2, -1))
    augmentation = exchange_unpredicted(M2.for_data(data, likelihood="gaussian"), data)
    assert augmentation.config()["swap"] == pytest.approx([0.0, 0.0, 0.2, 0.2])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AffineAugmentation(shift=-1.0), "shift=-1.0 must be at least 0"),
        (lambda: AffineAugmentation(probability=2.0), "probability=2.0 must be at least 0 and at most 1"),
        (lambda: ColumnAugmentation(swap=[0.5, 1.5]), r"swap=\[0.5, 1.5\] must be at least 0 and at most 1"),
        (lambda: ColumnAugmentation(noise=-1.0), "noise=-1.0 must be at least 0"),
        (lambda: PhotoAugmentation(crop=-0.2), "crop=-0.2 must be at least 0"),
        (lambda: PhotoAugmentation(flip=1.5), "flip=1.5 must be at least 0 and at most 1"),
        (lambda: Consistency(3, weight=-1.0), "weight=-1"),
        (lambda: Consistency(3, threshold=1.5), "threshold=1.5"),
    ],
)
def test_bad_arguments(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_predictions_are_aligned_with_the_shares_of_the_classes() -> None:
    """The mean prediction, 0.7 for the first class, becomes its share, 0.25, and the pseudo-label the second class."""
    strong = ColumnAugmentation(0.0, noise=1.0)

    def classify(x: Tensor) -> Tensor:  # of an example, and of its augmented copy
        return torch.tensor([[0.7, 0.3] if x.sum() == 0 else [0.2, 0.8]]).log().repeat(4, 1)

    for shares, expected in ((None, 0.0), ([1.0, 3.0], -math.log(0.8))):
        term = Consistency(2, threshold=0.6, shares=shares, decay=0.0, strong=strong, weight=1.0)
        assert term(classify, torch.zeros(4, 3)).item() == pytest.approx(expected)
    assert term.config()["shares"] == [0.25, 0.75]
    by_half = Consistency(2, threshold=0.53, align=0.5, shares=[1.0, 3.0], decay=0.0, strong=strong)
    assert by_half(classify, torch.zeros(4, 3)).item() == pytest.approx(-math.log(0.8))  # (0.7/4)^½ : (0.9/4)^½
    by_half.threshold = 0.54
    assert by_half(classify, torch.zeros(4, 3)).item() == 0.0


def make_table(num_labelled: int) -> SemiSupervisedData:
    """600 rows: a column with standard deviation 4, one of zeros and ones, and codes of three words."""
    random = np.random.default_rng(0)
    x = np.stack([4.0 * random.normal(size=600), random.integers(2, size=600), random.integers(3, size=600)], 1)
    return SemiSupervisedData.from_arrays(x, np.where(np.arange(600) < num_labelled, np.arange(600) % 2, -1))


def test_regularisers_of_a_table_are_in_the_units_of_its_columns() -> None:
    parts = Mixed([([0], Gaussian()), ([1], Bernoulli()), ([2], Categorical(3, 1.0, one_hot=True))])
    data = make_table(10)
    changes = SemiSupervisedELBO.for_data(M2.for_data(data, likelihood=parts), data).config()["augmentation"]
    assert changes["noise"] == pytest.approx([0.25 * float(data.x[:, 0].std()), 0.25, 0.0], rel=1e-2)
    assert changes["swap"] == pytest.approx([0.0, 0.0, 0.3])


def test_regularisers_of_a_table_are_weaker_the_more_labels_there_are() -> None:
    few, many = (SemiSupervisedELBO.for_data(M2.for_data(data), data).config() for data in map(make_table, (10, 40)))
    assert many["consistency"]["weight"] == few["consistency"]["weight"] / 4
    assert many["augmentation"]["noise"] == pytest.approx([value / 2 for value in few["augmentation"]["noise"]])


def test_consistency_follows_the_class_prior() -> None:
    data = make_table(10)
    images = SemiSupervisedData.from_arrays(torch.rand(9, 1, 8, 8), [0, 1, *[-1] * 7], num_classes=2)
    of_images = SemiSupervisedELBO.for_data(M2.for_data(images), images).config()["consistency"]
    assert (of_images["align"], of_images["shares"]) == (1.0, None)
    for prior, align, shares in (
        ("uniform", 0.0, None),
        ("map", 0.0, None),
        (FixedClassPrior(2, [3.0, 1.0]), 0.5, pytest.approx([0.75, 0.25])),
    ):
        found = SemiSupervisedELBO.for_data(M2.for_data(data, class_prior=prior), data).config()["consistency"]
        assert (found["align"], found["shares"]) == (align, shares)


def test_consistency_follows_clearly_unequal_labels_of_images() -> None:
    def find_shares(numbers: list[int], **options: Any) -> Any:
        labels = torch.repeat_interleave(torch.arange(2), torch.tensor(numbers))
        data = SemiSupervisedData.from_arrays(torch.rand(80, 1, 8, 8), [*labels, *[-1] * (80 - len(labels))])
        return SemiSupervisedELBO.for_data(M2.for_data(data, **options), data).config()["consistency"]["shares"]

    assert find_shares([15, 15]) is find_shares([18, 12]) is None
    assert find_shares([36, 4]) == pytest.approx([37 / 42, 5 / 42])
    assert find_shares([36, 4], class_prior="map") is None
    assert find_shares([36, 4], class_prior=FixedClassPrior(2, [1.0, 3.0])) == pytest.approx([0.25, 0.75])


def test_the_bound_of_tables_with_fewer_rows_than_columns_has_less_weight() -> None:
    rng = np.random.default_rng(0)
    y = np.where(np.arange(100) < 20, np.arange(100) % 2, -1)
    for number, likelihood, weight in ((80, "gaussian", 1.0), (400, "gaussian", 0.0625), (400, "poisson", 1.0)):
        data = SemiSupervisedData.from_arrays(rng.poisson(3.0, (100, number)).astype(float), y)
        objective = SemiSupervisedELBO.for_data(M2.for_data(data, likelihood=likelihood), data)
        assert objective.bound_weight == weight
    classes = np.arange(300) % 2
    x = rng.normal(size=(300, 1000)) + np.outer(2 * classes - 1, rng.normal(size=1000) * (np.arange(1000) < 100) * 0.4)
    few = np.where(np.arange(300) < 20, classes, -1)
    accuracy = {
        weight: M2Classifier(bound_weight=weight, max_steps=200, random_state=0).fit(x, few).score(x[20:], classes[20:])
        for weight in (None, 1.0)
    }
    regression = LogisticRegression(max_iter=1000).fit(x[:20], classes[:20]).score(x[20:], classes[20:])
    assert accuracy[None] > regression > accuracy[1.0]


@pytest.mark.parametrize("background", [0.0, 1.0])
def test_grey_images_on_a_plain_background_keep_it(background: float) -> None:
    x = torch.full((40, 1, 12, 12), background)
    x[:, :, 4:8, 4:8] = torch.rand(40, 1, 4, 4)
    data = SemiSupervisedData.from_arrays(x, [0, 1, *[-1] * 38], num_classes=2)
    changes = SemiSupervisedELBO.for_data(M2.for_data(data), data).augmentation
    assert isinstance(changes, AffineAugmentation)
    torch.testing.assert_close(changes(x)[..., :2, :2], x[..., :2, :2], atol=1e-6, rtol=0.0)


def test_grey_images_that_fill_the_frame_are_treated_as_photographs() -> None:
    data = SemiSupervisedData.from_arrays(torch.rand(40, 1, 12, 12), [0, 1, *[-1] * 38], num_classes=2)
    objective = SemiSupervisedELBO.for_data(M2.for_data(data), data)
    assert isinstance(objective.augmentation, PhotoAugmentation)
    assert objective.augmentation.config()["probability"] == 0.5
    assert objective.kl_schedule == (0.15, 8.0)


def test_without_labels_or_when_pure_there_is_no_consistency() -> None:
    data = make_table(10)
    model = M2.for_data(data)
    assert SemiSupervisedELBO.for_data(model, data, pure=True).regularisers == []
    assert SemiSupervisedELBO.for_data(model, data.without_labels()).regularisers == ["augmentation"]
    with pytest.raises(ValueError, match="nothing to train on"):
        SemiSupervisedELBO.for_data(model, data.without_labels(), bound_weight=0.0)


@pytest.mark.slow
def test_unlabelled_rows_of_breast_cancer_help() -> None:
    """Five labels of each class, three splits: with regularisers 5 % errors, labels alone 9, the bound alone 16."""
    rows, classes = load_breast_cancer(return_X_y=True)
    arms: dict[str, dict[str, Any]] = {
        "default": {},
        "labels": {"pure": True, "bound_weight": 0.0},
        "bound": {"pure": True},
    }
    errors: dict[str, list[float]] = {name: [] for name in arms}
    for seed in (0, 1, 2):
        order = np.random.default_rng(seed).permutation(len(rows))
        train, test = order[:398], order[398:]
        y = np.full(398, -1)
        for k in (0, 1):
            y[np.flatnonzero(classes[train] == k)[:5]] = k
        data = SemiSupervisedData.from_arrays(rows[train], y)
        for name, options in arms.items():
            pyro.set_rng_seed(seed)
            model = M2(data.event_shape, 2, latent_dim=2, hidden_dims=(50,), likelihood="gaussian")
            objective = SemiSupervisedELBO.for_data(model, data, **options)
            fit(objective, data, TrainingConfig(max_steps=400, device="cpu", compile="eager"), progress=False)
            errors[name].append(float(np.mean(model.predict(rows[test]).numpy() != classes[test])))
    mean = {name: np.mean(found) for name, found in errors.items()}
    assert mean["default"] < mean["labels"] < mean["bound"]
    assert mean["default"] < 0.07


def test_crops_move_images_and_mirror_their_margins() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 3, 8, 6)
    crops = PhotoAugmentation(crop=0.3, flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0)
    padded = F.pad(x, (2, 2, 2, 2), mode="reflect")
    expected = [padded[..., i : i + 8, j : j + 6] for i in range(5) for j in range(5)]
    found = crops(x.expand(300, -1, -1, -1))
    matches = torch.stack([(found - one).abs().amax((1, 2, 3)) < 1e-5 for one in expected])
    assert matches.any(0).all()
    assert matches.any(1).all()


def test_brightness_changes_in_the_units_of_the_images() -> None:
    x = torch.rand(40, 3, 8, 8)
    for unit, offset in ((1.0, 0.0), (0.01, 0.0), (255.0, 0.0), (2.0, -1.0)):
        data = SemiSupervisedData.from_arrays(unit * x + offset, torch.arange(40) % 2)
        augmentation: Any = SemiSupervisedELBO.for_data(M2.for_data(data), data).augmentation
        spread = float(data.x.max() - data.x.min())
        assert augmentation.brightness == pytest.approx(0.05 * (1.0 if unit == 1.0 else spread))


def test_flips_have_their_probability_and_colours_change_as_a_whole() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 3, 8, 8).expand(2000, -1, -1, -1)
    flips = PhotoAugmentation(crop=0.0, flip=0.3, strength=0.0)(x)
    flipped = (flips - x.flip(-1)).abs().amax((1, 2, 3)) < 1e-5
    assert float(flipped.double().mean()) == pytest.approx(0.3, abs=0.04)
    torch.testing.assert_close(flips[~flipped], x[~flipped])
    lit = PhotoAugmentation(crop=0.0, flip=0.0, brightness=0.1, contrast=0.0, saturation=0.0)(x) - x
    assert float(lit.flatten(1).std(1).max()) < 1e-5
    assert float(lit[:, 0, 0, 0].std()) == pytest.approx(0.1, rel=0.1)
    opaque = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    assert torch.equal(PhotoAugmentation(brightness=0.5)(opaque)[:, 3], opaque[:, 3])
    grey = PhotoAugmentation(crop=0.0, flip=0.0, brightness=0.0, contrast=0.0, saturation=0.5)(x)
    torch.testing.assert_close(grey.mean(1), x.mean(1))
    contrast = PhotoAugmentation(crop=0.0, flip=0.0, brightness=0.0, contrast=0.5, saturation=0.0)(x)
    torch.testing.assert_close(contrast.mean((1, 2, 3)), x.mean((1, 2, 3)))
    ratio = contrast.flatten(1).std(1).log() - x.flatten(1).std(1).log()
    assert float(ratio.std()) == pytest.approx(0.5, rel=0.1)
    with pytest.raises(ValueError, match="PhotoAugmentation needs images"):
        PhotoAugmentation()(torch.rand(3, 5))
