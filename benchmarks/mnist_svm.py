"""Classify MNIST by scikit-learn's SVM and logistic regression on the latents of an M1, by number of labels.

    python benchmarks/mnist_m1.py --only flow --keep models    # first, the M1
    python benchmarks/mnist_svm.py --keep models

The result is kept as docs/results/NAME-HASH.json and is not made again.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mnist_m1
import torch
from results_page_m1 import write_page
from runs import digest, make_all

from pyro_ssvae import M1, SemiSupervisedData
from pyro_ssvae.data import draw_label_split

RESULTS = mnist_m1.RESULTS


@dataclass(frozen=True)
class Row:
    """The row: the M1 that it builds on, by its name in benchmarks/mnist_m1.py."""

    name: str = "svm"
    below: str = mnist_m1.BELOW
    seed: int = 0

    @property
    def path(self) -> Path:
        """Where its result is kept: the name holds a hash of every setting, those of the M1 included."""
        settings = {**asdict(self), "below": mnist_m1.row_named(self.below).path.name}
        return RESULTS / f"m1-{self.name}-{digest(settings)}.json"


def train(row: Row, data_dir: str | None, keep: str | None, threads: int) -> dict[str, Any]:
    """Train the classifiers and return their accuracies."""
    torch.set_num_threads(threads)
    data = SemiSupervisedData.from_name("mnist", num_labels="all", data_dir=data_dir)
    started = time.perf_counter()
    found = classify_latents(mnist_m1.read_below(keep, row.below), data, row.seed)
    return {"row": asdict(row), "svm": found, "train_seconds": round(time.perf_counter() - started, 1)}


def classify_latents(model: M1, data: SemiSupervisedData, seed: int) -> dict[str, dict[str, float]]:
    """Return test accuracies of an SVM and of logistic regression on the latents, by number of labels.

    Their settings are chosen by cross-validation on the labelled rows alone. Latents are left in their own units:
    brought to one scale, those that carry nothing would weigh as much as the others. The widths of the kernel that are
    tried follow their total variance, which a learned prior is free to choose.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    z_test = model.transform(data.x_test / data.scale).numpy()
    found: dict[str, dict[str, float]] = {}
    for number in (100, 500, 1000, 2000, 5000):
        chosen = torch.as_tensor(draw_label_split(data.y.numpy(), number, data.num_classes, seed=seed))
        z, y = model.transform(data.x[chosen] / data.scale).numpy(), data.y[chosen].numpy()
        widths = [share / float(z.var(0).sum()) for share in (0.3, 1.0, 3.0, 10.0)]
        svm = GridSearchCV(SVC(), {"C": [1.0, 10.0, 100.0], "gamma": widths}, cv=5)
        logistic = GridSearchCV(LogisticRegression(max_iter=2000), {"C": [1e-3, 0.01, 0.1, 1.0, 10.0]}, cv=5)
        found[str(number)] = {
            "svm": float(svm.fit(z, y).score(z_test, data.y_test.numpy())),
            "logistic": float(logistic.fit(z, y).score(z_test, data.y_test.numpy())),
        }
    return found


if __name__ == "__main__":
    make_all(__doc__, [Row()], train, lambda: write_page(RESULTS))
