"""M2 on images that its defaults were not chosen on: CIFAR-10, grey and 28x28, beside scikit-learn on the same labels.

    python benchmarks/grey_cifar.py --data-dir DIR --jobs 2    # an hour on two cores

Settings are the package's defaults, as in ``examples/m2.py``. Methods of scikit-learn get pixels, or 50 principal
components of all images; each is measured with all its settings, and the best on the test images is shown.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from mnist import train_m2
from runs import Result, Run, main
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier
from table_format import Results, format_mean, format_table
from torchvision.transforms.functional import resize, rgb_to_grayscale

_ROWS = 20_000  # training images that label spreading can hold in memory


def configurations(seeds: int | None = None) -> list[Run]:
    """Return every run; one label split by default."""
    no_bound: dict[str, Any] = {"objective": {"bound_weight": 0.0}}
    kinds: dict[str, dict[str, Any]] = {
        "default": {},
        "regularisers-alone": no_bound,
        "labels-alone": {**no_bound, "options": {"labels_only": True}, "training": {"max_steps": 3000}},
        "scikit-learn": {"options": {"scikit_learn": True}},
    }
    return [
        Run("cifar", f"grey-{name}-{labels}", seed, data="cifar10", num_labels=labels, **kind)
        for labels in (100, 1000)
        for seed in range(seeds or 1)
        for name, kind in kinds.items()
    ]


def train(run: Run, data_dir: str | None, keep: str | None) -> Result:
    """Train one model, or all methods of scikit-learn."""
    data = run.load(data_dir)
    images: Any = {name: getattr(data, name) for name in ("x", "x_validation", "x_test")}
    images = {name: resize(rgb_to_grayscale(x), [28, 28], antialias=True) for name, x in images.items()}
    data = replace(data, **images)
    return {"test/errors": measure_scikit_learn(data)} if "scikit_learn" in run.options else train_m2(run, data, keep)


def measure_scikit_learn(data: Any) -> dict[str, float]:
    """Return test errors of scikit-learn's methods, the least of their settings."""
    pixels, test = (x.flatten(1).numpy() / float(data.scale) for x in (data.x, data.x_test))
    y, components = data.y.numpy(), PCA(50, random_state=0).fit(pixels)
    known = y >= 0
    some = np.flatnonzero(known | (np.arange(len(y)) < _ROWS))
    logistic = LogisticRegression(C=0.1, max_iter=500)
    supervised = {
        "logistic regression": [LogisticRegression(C=c, max_iter=500) for c in (0.01, 0.1, 1.0)],
        "random forest": [RandomForestClassifier(500, min_samples_leaf=n, random_state=0) for n in (1, 3)],
    }
    semi_supervised = {
        "self-training": [SelfTrainingClassifier(logistic, threshold=share) for share in (0.75, 0.9)],
        "label spreading": [LabelSpreading("knn", n_neighbors=n) for n in (7, 20)],
    }
    reduced, reduced_test = components.transform(pixels), components.transform(test)
    both = ((pixels, test, known, supervised), (reduced, reduced_test, known, supervised))
    found: dict[str, list[float]] = {}
    for x, x_test, rows, methods in (*both, (reduced, reduced_test, some, semi_supervised)):
        for name, settings in methods.items():
            errors = [1.0 - float(one.fit(x[rows], y[rows]).score(x_test, data.y_test.numpy())) for one in settings]
            found[name] = found.get(name, []) + errors
    return {name: min(errors) for name, errors in found.items()}


def make_tables(results: Results) -> dict[str, str]:
    """Return the table of errors by number of labels."""
    words = {"default": "M2, default", "regularisers-alone": "the same without the bound"}
    words["labels-alone"] = "its classifier on the labels alone"
    columns: dict[str, dict[str, str]] = {"100": {}, "1000": {}}
    for labels, cells in columns.items():
        for name, title in words.items():
            errors = [one["test/error"] for one in results.get(f"cifar-grey-{name}-{labels}", [])]
            cells[title] = format_mean(errors, 1, 100.0)
        for one in results.get(f"cifar-grey-scikit-learn-{labels}", []):
            cells |= {name: f"{100.0 * error:.1f}" for name, error in one["test/errors"].items()}
    names = dict.fromkeys(name for cells in columns.values() for name in cells)
    rows = [[name, *(cells.get(name, "–") for cells in columns.values())] for name in names]
    measured = any(results.get(f"cifar-grey-default-{labels}") for labels in columns)
    return {
        "grey_cifar": format_table(["test error, %", *(f"{one} labels" for one in columns)], rows if measured else [])
    }


if __name__ == "__main__":
    main(__doc__, configurations, train)
