"""Published numbers, held: the default command at the label split of seed 0. Minutes each; run with -m slow."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
from sklearn.semi_supervised import LabelSpreading

from pyro_ssvae import M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, fit
from pyro_ssvae.training import report


def train(data: SemiSupervisedData) -> dict[str, float]:
    pyro.set_rng_seed(0)
    objective = SemiSupervisedELBO.for_data(M2(data.event_shape, data.num_classes), data)
    return report(objective, data, fit(objective, data, TrainingConfig(), progress=False))


@pytest.mark.slow
def test_mnist_with_100_labels() -> None:
    """Needs MNIST at hand (PYRO_SSVAE_DATA) or a network."""
    result = train(SemiSupervisedData.from_name("mnist", num_labels=100, seed=0))
    assert result["test_error"] <= 0.035
    assert result["test_elbo"] > -125.0


@pytest.mark.slow
def test_digits_with_100_labels_beats_label_spreading() -> None:
    ours, theirs = [], []
    for seed in range(3):
        data = SemiSupervisedData.from_name("digits", num_labels=100, seed=seed)
        ours.append(1.0 - train(data)["test_error"])
        x = np.concatenate([data.x, data.x_validation]).reshape(-1, 64)
        y = np.concatenate([data.y, np.full(len(data.y_validation), -1)])
        baseline = LabelSpreading(kernel="knn", n_neighbors=7, max_iter=200).fit(x, y)
        theirs.append(baseline.score(data.x_test.numpy().reshape(-1, 64), data.y_test))
    assert np.mean(ours) > max(0.947, float(np.mean(theirs)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This CPU has no bf16")
def test_bf16_ends_where_fp32_does() -> None:
    """The same runs in both precisions; one of the 450 test rows is worth 0.2 points."""
    errors: dict[str, list[float]] = {"32-true": [], "bf16-mixed": []}
    for seed in range(3):
        data = SemiSupervisedData.from_name("digits", num_labels=100, seed=seed)
        for precision, found in errors.items():
            pyro.set_rng_seed(seed)
            objective = SemiSupervisedELBO.for_data(M2(data.event_shape, data.num_classes), data)
            run = fit(objective, data, TrainingConfig(max_steps=500, precision=precision, seed=seed), progress=False)
            found.append(report(objective, data, run)["test_error"])
    assert abs(np.mean(errors["bf16-mixed"]) - np.mean(errors["32-true"])) < 0.01
