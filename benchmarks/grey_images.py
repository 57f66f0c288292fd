"""M2 on Fashion-MNIST and grey CIFAR-10, beside scikit-learn on the same labels, and on CIFAR-10 in colour.

On grey images settings are the defaults; without the bound the likelihood plays no part. Methods of scikit-learn get
pixels, or 50 principal components of all images; each is measured with all its settings, and the best on the test
images is shown. Colour images, with several weights of the bound, are reduced to 16x16, for short schedules on the
label seeds that settings are chosen on.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from mnist import train_m2
from runs import Run, main, take_rows
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier
from table_format import Result
from torchvision.transforms.functional import resize, rgb_to_grayscale

from pyro_ssvae import M2, SemiSupervisedData, SemiSupervisedELBO
from pyro_ssvae.evaluation import class_control

_COLOUR: dict[str, Any] = {
    "training": {"max_steps": 300, "batch_size": 32, "labelled_batch_size": 32, "evaluate_every": 300},
    "options": {"side": 16, "train": 15_000, "test": 1000},
}
_ROWS = 20_000  # training images that label spreading can hold in memory


def configurations(seeds: int | None = None) -> list[Run]:
    """Return every run; of one label split by default, but of three of Fashion-MNIST with 100 labels."""
    no_bound: dict[str, Any] = {"objective": {"bound_weight": 0.0}}
    kinds: dict[str, dict[str, Any]] = {
        "default": {"options": {"for_data": True}},
        "regularisers-alone": no_bound,
        "labels-alone": {**no_bound, "options": {"labels_only": True}, "training": {"max_steps": 3000}},
        "scikit-learn": {"options": {"scikit_learn": True}},
    }
    found = []
    for labels, seed, (name, kind) in product((100, 1000), range(seeds or 1), kinds.items()):
        found.append(Run("cifar", f"grey-{name}-{labels}", seed, "cifar10", labels, **kind))
    kinds["all-changed"] = no_bound | {"options": {"probability": 1.0}}
    splits = [(labels, seed) for labels, most in ((100, 3), (1000, 1)) for seed in range(seeds or most)]
    for (labels, seed), (name, kind) in product(splits, kinds.items()):
        found.append(Run("fashion", f"{name}-{labels}", seed, "fashion_mnist", labels, **kind))
    for seed, weight in product((10, 11), (1.0, 0.1, 0.01, 0.0)):
        objective = {"bound_weight": weight, "enumeration": "top-k", "bound_batch_size": 8}
        found.append(Run("cifar", f"bound-{weight:g}", seed, "cifar10", 1000, objective=objective, **_COLOUR))
    return found


def train(run: Run, data_dir: str | None, keep: str | None) -> Result:
    data, side = run.load(data_dir), run.options.get("side")

    def convert(x: Any) -> Any:
        return resize(x if side else rgb_to_grayscale(x), [side or 28] * 2, antialias=True)

    if run.family == "cifar":
        data = replace(data, **{name: convert(getattr(data, name)) for name in ("x", "x_validation", "x_test")})
    if side:
        return train_in_colour(run, take_rows(data, run.options["train"], run.options["test"]), keep)
    return {"test/errors": measure_scikit_learn(data)} if "scikit_learn" in run.options else train_m2(run, data, keep)


def train_in_colour(run: Run, data: SemiSupervisedData, keep: str | None) -> Result:
    """Train M2 with the defaults of colour images, and measure it on validation examples."""
    torch.manual_seed(run.seed)
    model = M2.for_data(data, **run.model)
    objective = SemiSupervisedELBO.for_data(model, data, **run.objective)
    trained = run.fit(objective, data, keep)
    found = {name: value for name, value in trained.metrics[-1].items() if name.startswith("val/")}
    found |= {"seed": run.seed, "steps": trained.steps, "train_seconds": trained.train_seconds}
    some = data.x_validation[:200]
    bound = objective.mean_bound(some, scale=data.scale, seed=run.seed) if objective.has_bound else None
    control = class_control(model, some, scale=data.scale) if objective.has_bound else None
    return {**found, "val/bound": bound, "val/class_control": control}


def measure_scikit_learn(data: Any) -> dict[str, float]:
    """Return test errors of scikit-learn's methods, the least of their settings."""
    pixels, test = (x.flatten(1).numpy() / float(data.scale) for x in (data.x, data.x_test))
    y, components = data.y.numpy(), PCA(50, random_state=0).fit(pixels)
    reduced, reduced_test = components.transform(pixels), components.transform(test)
    logistic = LogisticRegression(C=0.1, max_iter=500)
    supervised = {
        "logistic regression": [LogisticRegression(C=c, max_iter=500) for c in (0.01, 0.1, 1.0)],
        "random forest": [RandomForestClassifier(500, min_samples_leaf=n, random_state=0) for n in (1, 3)],
    }
    semi_supervised = {
        "self-training": [SelfTrainingClassifier(logistic, threshold=share) for share in (0.75, 0.9)],
        "label spreading": [LabelSpreading("knn", n_neighbors=n) for n in (7, 20)],
    }
    found = {}
    for name, settings in {**supervised, **semi_supervised}.items():
        rows = y >= 0 if name in supervised else (y >= 0) | (np.arange(len(y)) < _ROWS)
        inputs = [(reduced, reduced_test), *([(pixels, test)] if name in supervised else [])]
        scores = [
            one.fit(x[rows], y[rows]).score(x_test, data.y_test.numpy()) for x, x_test in inputs for one in settings
        ]
        found[name] = 1.0 - float(max(scores))
    return found


if __name__ == "__main__":
    main(__doc__, configurations, train)
