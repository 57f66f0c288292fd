"""Train M2 on MNIST by the published protocol, and on digits.

    python benchmarks/mnist_m2.py --jobs 2                # took 40 minutes on two busy cores
    python benchmarks/mnist_m2.py --seeds 1 --only default-100

Settings are the package's defaults unless the configuration says otherwise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyro
from runs import Result, Run, fit_and_report, main

from pyro_ssvae import M2, SemiSupervisedELBO
from pyro_ssvae.presets import PURE

_ALONE: dict[str, Any] = {"options": {"pure": True}}
_PURE: dict[str, Any] = {"model": PURE.model, "objective": PURE.objective, "training": PURE.training, **_ALONE}

# J^alpha alone on MLPs, with an alpha that is too small or too large.
_CONSTANT_KL = {"kl_warmup": 0.0, "kl_peak": 1.0}
_CONSTANT_RATE = {**_CONSTANT_KL, "binarisation": "dynamic", "decay_start": 1.0, "max_steps": 3000}
_ALPHAS = {  # weight, learning rate, options of the model
    "small": (0.1, 1e-3, {"classifier": "mlp", "activation": "softplus"}),
    "large": (100.0, 2e-3, {"classifier": "mlp", "latent_dim": 10}),
}


def configurations(seeds: int | None = None) -> list[Run]:
    """Return every run; ``seeds`` label splits (3 by default) where a configuration has several."""
    splits = range(3 if seeds is None else seeds)
    found = [Run("m2", "default-100", seed) for seed in splits]
    found += [Run("m2", f"default-{n}", num_labels=n) for n in (600, 1000, 3000)]
    no_bound: dict[str, Any] = {"objective": {"bound_weight": 0.0}}
    found += [Run("m2", "regularisers-alone-100", seed, **no_bound) for seed in splits]
    labels_only: dict[str, Any] = {"training": {"max_steps": 3000}, "options": {"pure": True, "labels_only": True}}
    found += [Run("m2", "labels-alone-100", seed, **no_bound, **labels_only) for seed in splits]
    found += [Run("m2", "digits-100", seed, data="digits") for seed in splits]
    for name, (alpha, rate, model) in _ALPHAS.items():
        settings = {"objective": {"alpha": alpha}, "training": {**_CONSTANT_RATE, "learning_rate": rate}}
        found.append(Run("m2", f"pure-{name}-alpha", model=model, **settings, **_ALONE))
    found += [Run("m2", "pure-100", seed, **_PURE) for seed in splits]
    found += [Run("m2", "pure-3000", num_labels=3000, **_PURE)]
    found += [_change(Run("m2", "pure-constant-kl-100", **_PURE), training=_CONSTANT_KL)]
    equal_steps = {"max_epochs": None, "max_steps": 20_000}
    for sums in ("exact", "top-k"):
        runs = [Run("m2", f"equal-steps-{sums}", seed, **_PURE) for seed in splits]
        found += [_change(run, objective={"enumeration": sums}, training=equal_steps) for run in runs]
    return found


def _change(run: Run, **changes: dict[str, Any]) -> Run:
    """Return the run with some entries of its settings replaced."""
    return replace(run, **{section: getattr(run, section) | entries for section, entries in changes.items()})


def train(run: Run, data_dir: str | None, keep: str | None) -> Result:
    data = run.load(data_dir)
    if run.options.get("labels_only"):
        data = replace(data, x=data.x[data.labelled_index], y=data.y[data.labelled_index])
    pyro.set_rng_seed(run.seed)
    model = M2(data.event_shape, data.num_classes, **run.model)
    objective = SemiSupervisedELBO.for_data(model, data, pure=run.options.get("pure", False), **run.objective)
    result = fit_and_report(run, objective, data, keep)
    return {**result, "label_spreading": measure_label_spreading(data)} if run.data == "digits" else result


def measure_label_spreading(data: Any) -> float:
    """Return the test accuracy of scikit-learn's LabelSpreading on the same labels: the better of its two kernels."""
    import numpy as np
    from sklearn.semi_supervised import LabelSpreading

    x = np.concatenate([data.x, data.x_validation]).reshape(-1, 64) / data.scale
    y = np.concatenate([data.y, np.full(len(data.y_validation), -1)])
    x_test = data.x_test.numpy().reshape(-1, 64) / data.scale
    kernels: list[dict[str, Any]] = [{"kernel": "knn", "n_neighbors": 7}, {"kernel": "rbf", "gamma": 4.0}]
    methods = [LabelSpreading(max_iter=200, **kernel) for kernel in kernels]
    return max(float(method.fit(x, y).score(x_test, data.y_test.numpy())) for method in methods)


if __name__ == "__main__":
    main(__doc__, configurations, train)
