"""Classify MNIST by scikit-learn's SVM and logistic regression on the latents of an M1, by number of labels.

python benchmarks/mnist_m1.py --only flow --keep models    # first, the M1
python benchmarks/mnist_svm.py --keep models
"""

from __future__ import annotations

import time

import torch
from mnist_m1 import BASE, find_configuration, load_model
from runs import Result, Run, main

from pyro_ssvae import M1, SemiSupervisedData
from pyro_ssvae.data import draw_label_split


def configurations(seeds: int | None = None) -> list[Run]:
    options = {"m1": BASE, "m1_result": find_configuration(BASE).path.stem}
    return [Run("m1", "svm", num_labels="all", options=options)]


def train(run: Run, data_dir: str | None, keep: str | None) -> Result:
    data = run.load(data_dir)
    started = time.perf_counter()
    accuracies = classify_latents(load_model(keep, run.options["m1"]), data, run.seed)
    return {"svm": accuracies, "train_seconds": round(time.perf_counter() - started, 1)}


def classify_latents(model: M1, data: SemiSupervisedData, seed: int) -> dict[str, dict[str, float]]:
    """Return test accuracies of an SVM and of logistic regression on the latents, by number of labels.

    Their settings are chosen by cross-validation on the labelled examples alone. Latents are not standardised, because
    that would give latents that carry nothing the same weight as the others. The kernel widths that are tried are
    relative to the total variance of the latents, which a learned prior is free to choose.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    z_test = model.transform(data.x_test / data.scale).numpy()
    accuracies = {}
    for number in (100, 500, 1000, 2000, 5000):
        chosen = torch.as_tensor(draw_label_split(data.y.numpy(), number, data.num_classes, seed=seed))
        z, y = model.transform(data.x[chosen] / data.scale).numpy(), data.y[chosen].numpy()
        widths = [share / float(z.var(0).sum()) for share in (0.3, 1.0, 3.0, 10.0)]
        svm = GridSearchCV(SVC(), {"C": [1.0, 10.0, 100.0], "gamma": widths}, cv=5)
        logistic = GridSearchCV(LogisticRegression(max_iter=2000), {"C": [1e-3, 0.01, 0.1, 1.0, 10.0]}, cv=5)
        methods = {"svm": svm, "logistic": logistic}
        scores = {name: float(one.fit(z, y).score(z_test, data.y_test.numpy())) for name, one in methods.items()}
        accuracies[str(number)] = scores
    return accuracies


if __name__ == "__main__":
    main(__doc__, configurations, train)
