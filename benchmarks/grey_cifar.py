"""M2 on images that its defaults were not chosen on: CIFAR-10, grey and 28x28, beside scikit-learn on the same labels.

    python benchmarks/grey_cifar.py --data-dir DIR --jobs 2    # an hour on two cores

Settings are the package's defaults, as in ``examples/m2.py``. Methods of scikit-learn get pixels, or 50 principal
components of all images; each is measured with all its settings, and the best on the test images is shown.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyro
from runs import Result, Run, fit_and_report, main
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier
from table_format import format_mean, format_table
from torchvision.transforms.functional import resize, rgb_to_grayscale

from pyro_ssvae import M2, SemiSupervisedELBO

_ROWS = 20_000  # training images that label spreading can hold in memory


def configurations(seeds: int | None = None) -> list[Run]:
    """Return every run; one label split by default."""
    found = []
    for labels in (100, 1000):
        shared: dict[str, Any] = {"data": "cifar10", "num_labels": labels}
        no_bound: dict[str, Any] = {"objective": {"bound_weight": 0.0}}
        alone = {"options": {"labels_only": True}, "training": {"max_steps": 3000}}
        for seed in range(seeds or 1):
            found += [
                Run("cifar", f"grey-default-{labels}", seed, **shared),
                Run("cifar", f"grey-regularisers-alone-{labels}", seed, **shared, **no_bound),
                Run("cifar", f"grey-labels-alone-{labels}", seed, **shared, **no_bound, **alone),
                Run("cifar", f"grey-scikit-learn-{labels}", seed, **shared, options={"scikit_learn": True}),
            ]
    return found


def train(run: Run, data_dir: str | None, keep: str | None) -> Result:
    """Train one model, or all methods of scikit-learn."""
    data = run.load(data_dir)
    grey = {name: _as_grey(getattr(data, name)) for name in ("x", "x_validation", "x_test")}
    data = replace(data, **grey)
    if run.options.get("scikit_learn"):
        return {"test/errors": measure_scikit_learn(data)}
    if run.options.get("labels_only"):
        data = replace(data, x=data.x[data.labelled_index], y=data.y[data.labelled_index])
    pyro.set_rng_seed(run.seed)
    model = M2(data.event_shape, data.num_classes)
    pure = run.options.get("labels_only", False)
    objective = SemiSupervisedELBO.for_data(model, data, pure=pure, **run.objective)
    return fit_and_report(run, objective, data, keep)


def _as_grey(x: Any) -> Any:
    return resize(rgb_to_grayscale(x), [28, 28], antialias=True)


def measure_scikit_learn(data: Any) -> dict[str, float]:
    """Return test errors of scikit-learn's methods, the least of their settings."""
    scale = float(data.scale)
    pixels, y = data.x.flatten(1).numpy() / scale, data.y.numpy()
    test, y_test = data.x_test.flatten(1).numpy() / scale, data.y_test.numpy()
    components = PCA(50, random_state=0).fit(pixels)
    reduced, reduced_test = components.transform(pixels), components.transform(test)
    known = y >= 0
    some = np.flatnonzero(known | (np.arange(len(y)) < _ROWS))
    found: dict[str, list[float]] = {}
    for inputs, inputs_test in ((pixels, test), (reduced, reduced_test)):
        methods: list[tuple[str, Any, Any]] = [
            *(("logistic regression", LogisticRegression(C=c, max_iter=500), known) for c in (0.01, 0.1, 1.0)),
            *(
                ("random forest", RandomForestClassifier(500, min_samples_leaf=n, random_state=0), known)
                for n in (1, 3)
            ),
        ]
        if inputs is reduced:
            logistic = LogisticRegression(C=0.1, max_iter=500)
            methods += [("self-training", SelfTrainingClassifier(logistic, threshold=t), some) for t in (0.75, 0.9)]
            kernels: list[dict[str, Any]] = [{"kernel": "knn", "n_neighbors": n} for n in (7, 20)]
            methods += [("label spreading", LabelSpreading(**kernel), some) for kernel in kernels]
        for name, method, rows in methods:
            error = 1.0 - method.fit(inputs[rows], y[rows]).score(inputs_test, y_test)
            found.setdefault(name, []).append(float(error))
    return {name: min(errors) for name, errors in found.items()}


def make_grey_tables(results: dict[str, list[Result]]) -> dict[str, str]:
    """Return the table of errors by number of labels."""
    words = {"default": "M2, default", "regularisers-alone": "the same without the bound"}
    words["labels-alone"] = "its classifier on the labels alone"
    columns: dict[str, dict[str, str]] = {}
    for labels in ("100", "1000"):
        cells = columns[labels] = {}
        for name, title in words.items():
            errors = [one["test/error"] for one in results.get(f"cifar-grey-{name}-{labels}", [])]
            cells[title] = format_mean(errors, 1, 100.0)
        for one in results.get(f"cifar-grey-scikit-learn-{labels}", []):
            cells |= {name: f"{100.0 * error:.1f}" for name, error in one["test/errors"].items()}
    names = dict.fromkeys(name for cells in columns.values() for name in cells)
    rows = [[name, *(cells.get(name, "–") for cells in columns.values())] for name in names]
    if not any(results.get(f"cifar-grey-default-{labels}") for labels in columns):
        return {"grey_cifar": ""}
    return {"grey_cifar": format_table(["test error, %", *(f"{labels} labels" for labels in columns)], rows)}


if __name__ == "__main__":
    main(__doc__, configurations, train)
