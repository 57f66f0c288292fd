"""The temperature of the classifiers' probabilities: estimated by labels that are left out of short fits."""

import numpy as np
import pytest
from scipy.special import log_softmax

from pyro_ssvae.estimators import M2Classifier
from pyro_ssvae.estimators.estimates import estimate_temperature
from tests.estimators.wine import BRIEF, FEW, X

STEPS = 300  # the least number of steps with which a fit estimates its temperature


def confidence(model: M2Classifier) -> tuple[float, float]:
    """Return the mean highest probability of q(y|x) and of the estimator."""
    raw = model.model_.predict_proba(X).numpy()
    return float(raw.max(1).mean()), float(model.predict_proba(X).max(1).mean())


def test_labels_that_say_nothing_give_uncertain_predictions() -> None:
    labels = FEW.copy()
    labels[FEW >= 0] = np.random.default_rng(0).permutation(FEW[FEW >= 0])
    model = M2Classifier(max_steps=STEPS, random_state=0, consistency_weight=0.0, bound_weight=0.0).fit(X, labels)
    raw, found = confidence(model)
    assert raw > 0.8  # though no label can be predicted
    assert found < 0.6
    assert model.temperature_ > 3.0


def test_labels_that_can_be_predicted_leave_predictions_certain() -> None:
    model = M2Classifier(max_steps=STEPS, random_state=0, consistency_weight=0.0, bound_weight=0.0).fit(X, FEW)
    assert model.temperature_ < 2.0
    assert confidence(model)[1] > 0.8


def test_without_time_for_an_estimate_it_depends_on_the_number_of_labels() -> None:
    model = M2Classifier(**(BRIEF | {"max_steps": STEPS, "max_time": 0.01})).fit(X, FEW)
    assert model.temperature_ == pytest.approx(1.0 + 0.6 * min(1.0, 15 / (FEW >= 0).sum()) ** 0.5)


def test_the_estimate_is_the_highest_point_of_the_weighted_posterior() -> None:
    random = np.random.default_rng(1)
    logits, y, shares = random.normal(size=(12, 3)) * 4.0, np.repeat([0, 1, 2], 4), np.array([0.7, 0.2, 0.1])
    log_t = np.linspace(-2.0, 4.0, 60_001)
    value = np.zeros_like(log_t)
    for row, label in zip(logits, y, strict=True):  # each class has its share of the weights, which sum to 12
        value += 12 * shares[label] / 4 * log_softmax(row / np.exp(log_t)[:, None], 1)[:, label]
    value -= 0.5 * ((log_t - np.log(2.0)) / 0.5) ** 2
    assert estimate_temperature(logits, y, shares) == pytest.approx(np.exp(log_t[value.argmax()]), rel=1e-3)
