"""Train every row of the results page and write it: MNIST by the published protocol, and digits.

    python benchmarks/mnist_m2.py --splits 3 --jobs 2     # took 40 minutes on two busy cores
    python benchmarks/mnist_m2.py --splits 1 --only default-100
    python benchmarks/mnist_m2.py --table                 # only rewrite docs/results.md and its figure

Each finished run is kept as docs/results/NAME-HASH.json, where HASH is that of its settings, and is not run again.
A run has a process of its own, and the machine to itself unless --jobs
says otherwise. Settings are the package's defaults unless the row says otherwise.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro
import torch
from results_page import write_page
from runs import add_flags, digest, make

from pyro_ssvae import M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, fit
from pyro_ssvae.presets import PURE
from pyro_ssvae.training import report
from pyro_ssvae.training.device import has_bf16

RESULTS = Path(__file__).parents[1] / "docs" / "results"


@dataclass(frozen=True)
class Row:
    """One row of the results page, for one label split."""

    name: str
    seed: int
    data: str = "mnist"
    num_labels: int = 100
    pure: bool = False
    objective: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    supervised: bool = False  # drop the unlabelled rows

    @property
    def path(self) -> Path:
        """Where its result is kept: the name holds a hash of every setting, defaults included."""
        shape = (1, 28, 28) if self.data == "mnist" else (1, 8, 8)
        model = M2(shape, 10, **self.model)
        sizes: Any = SimpleNamespace(event_shape=shape, num_labelled=1, num_unlabelled=1)
        settings = {
            **asdict(self),
            "model": model.config(),
            "objective": SemiSupervisedELBO.for_data(model, sizes, pure=self.pure, **self.objective).config(),
            "training": TrainingConfig(**self.training).to_dict(),
        }
        return RESULTS / f"{self.name}-seed{self.seed}-{digest(settings)}.json"


def rows(splits: int) -> list[Row]:
    """Return every row, the most wanted first."""
    return [
        *(Row("default-100", seed) for seed in range(splits)),
        *(Row(f"default-{n}", 0, num_labels=n) for n in (600, 1000, 3000)),
        *(Row("add-ons-alone-100", seed, objective={"bound_weight": 0.0}) for seed in range(splits)),
        *(
            Row(
                "labels-alone-100",
                seed,
                supervised=True,
                pure=True,
                objective={"bound_weight": 0.0},
                training={"max_steps": 3000},
            )
            for seed in range(splits)
        ),
        *(Row("digits-100", seed, data="digits") for seed in range(splits)),
        Row("pure-small-alpha", 0, **PURE_SMALL_ALPHA),
        Row("pure-large-alpha", 0, **PURE_LARGE_ALPHA),
        *(Row("pure-100", seed, **_BEST_PURE) for seed in range(splits)),
        Row("pure-3000", 0, num_labels=3000, **_BEST_PURE),
        Row("pure-constant-kl-100", 0, **_changed(_BEST_PURE, training={"kl_warmup": 0.0, "kl_peak": 1.0})),
        *(
            Row(f"equal-steps-{name}", seed, **_changed(_BEST_PURE, objective=objective, training=_EQUAL | training))
            for seed in range(splits)
            for name, objective, training in _PATHS
        ),
    ]


def _changed(options: dict[str, Any], **changes: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a row, each section with some entries replaced."""
    return options | {section: options[section] | entries for section, entries in changes.items()}


_BEST_PURE: dict[str, Any] = {
    "pure": True,
    "model": PURE.model,
    "objective": PURE.objective,
    "training": PURE.training,
}

# As many steps as ten minutes of exact enumeration in float32 allow. bf16 joins where the processor has it.
_EQUAL: dict[str, Any] = {"max_epochs": None, "max_steps": 20_000}
_PATHS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("exact", {"enumeration": "exact"}, {}),
    ("top-k", {"enumeration": "top-k"}, {}),
]
if has_bf16():
    _PATHS += [
        ("exact-bf16", {"enumeration": "exact"}, {"precision": "bf16-mixed"}),
        ("top-k-bf16", {"enumeration": "top-k"}, {"precision": "bf16-mixed"}),
    ]


# J^alpha as in the paper, on MLPs and binarised pixels: what fails, fails without the help of the default's parts.
_CONSTANT_RATE = {
    "kl_warmup": 0.0,
    "kl_peak": 1.0,
    "binarisation": "dynamic",
    "learning_rate": 1e-3,
    "decay_start": 1.0,
    "max_steps": 3000,
}
_PURE: dict[str, Any] = {"pure": True, "training": _CONSTANT_RATE}
PURE_SMALL_ALPHA: dict[str, Any] = _PURE | {
    "objective": {"alpha": 0.1},
    "model": {"classifier": "mlp", "activation": "softplus"},
}
PURE_LARGE_ALPHA: dict[str, Any] = _PURE | {
    "objective": {"alpha": 100.0},
    "model": {"classifier": "mlp", "latent_dim": 10},
    "training": _CONSTANT_RATE | {"learning_rate": 2e-3},
}


def train(row: Row, data_dir: str | None, keep: str | None, threads: int) -> dict[str, Any]:
    """Train one row and return its result, with the curves of its evaluations."""
    torch.set_num_threads(threads)
    data = SemiSupervisedData.from_name(row.data, num_labels=row.num_labels, seed=row.seed, data_dir=data_dir)
    if row.supervised:
        data = replace(data, x=data.x[data.labelled_index], y=data.y[data.labelled_index])
    pyro.set_rng_seed(row.seed)
    model = M2(data.event_shape, data.num_classes, **row.model)
    objective = SemiSupervisedELBO.for_data(model, data, pure=row.pure, **row.objective)
    out = Path(keep) / f"{row.name}-seed{row.seed}" if keep else None
    run = fit(objective, data, TrainingConfig(seed=row.seed, **row.training), out=out)
    result = report(objective, data, run, seed=row.seed)
    if row.data == "digits":
        result["label_spreading"] = label_spreading(data)
    return {"row": asdict(row), **result, "curves": run.metrics}


def label_spreading(data: Any) -> float:
    """Return the test accuracy of scikit-learn's LabelSpreading on the same labels: the better of its two kernels."""
    import numpy as np
    from sklearn.semi_supervised import LabelSpreading

    x = np.concatenate([data.x, data.x_validation]).reshape(-1, 64) / data.scale
    y = np.concatenate([data.y, np.full(len(data.y_validation), -1)])
    x_test = data.x_test.numpy().reshape(-1, 64) / data.scale
    kernels: list[dict[str, Any]] = [{"kernel": "knn", "n_neighbors": 7}, {"kernel": "rbf", "gamma": 4.0}]
    methods = [LabelSpreading(max_iter=200, **kernel) for kernel in kernels]
    return max(float(method.fit(x, y).score(x_test, data.y_test.numpy())) for method in methods)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=3, metavar="K", help="label splits at 100 labels, seeds 0 to K-1")
    add_flags(parser)
    args = parser.parse_args()
    make(parser, args, rows(args.splits), train)
    write_page(RESULTS, [row.path for row in rows(args.splits) if row.path.exists()])


if __name__ == "__main__":
    sys.exit(main())
