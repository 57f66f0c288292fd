"""Train M1 on MNIST and estimate log p(x) of the test rows; M1 as features of an SVM; the presets of examples/m1.py.

    python benchmarks/mnist_m1.py --jobs 2                  # every row, two at a time, a core each: hours
    python benchmarks/mnist_m1.py --only elbo --only iwae
    python benchmarks/mnist_m1.py --table                   # only rewrite docs/results_m1.md

Each finished run is kept as docs/results/NAME-HASH.json and is not run again. With --keep DIR, models are kept under
DIR/NAME, where benchmarks/mnist_m1m2.py finds the one below its stacks.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch
from results_page_m1 import write_page
from runs import add_flags, digest, make

from pyro_ssvae import M1, SemiSupervisedData, TrainingConfig, UnsupervisedELBO, fit
from pyro_ssvae.data import draw_label_split
from pyro_ssvae.recipes import M1_BELOW, M1_PRESETS
from pyro_ssvae.training import report

RESULTS = Path(__file__).parents[1] / "docs" / "results"
SAMPLES = 5000  # importance samples a row

_BURDA: dict[str, Any] = {"hidden_dims": [500, 500], "latent_dim": 50, "activation": "softplus"}
_LONG: dict[str, Any] = {**M1_BELOW.training, "max_epochs": None, "ema_decay": 0.9995, "max_minutes": 60.0}


@dataclass(frozen=True)
class Row:
    """One row of the page."""

    name: str
    words: str
    model: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    then: dict[str, dict[str, Any]] = field(default_factory=dict)  # objective and training of a second stage
    samples: int = SAMPLES
    svm: bool = False
    seed: int = 0

    @property
    def path(self) -> Path:
        """Where its result is kept: the name holds a hash of every setting, defaults included."""
        model = M1((1, 28, 28), **self.model)
        settings = {**asdict(self), "model": model.config(), **_settings(model, self.objective, self.training)}
        if self.then:
            settings["then"] = _settings(model, **self.then)
        else:
            del settings["then"]
        return RESULTS / f"m1-{self.name}-{digest(settings)}.json"


def _settings(model: M1, objective: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """Return every setting of a stage of training, defaults included."""
    return {
        "objective": UnsupervisedELBO(model, num_rows=1, **objective).config(),
        "training": TrainingConfig(**training).to_dict(),
    }


def rows() -> list[Row]:
    """Return every row, the most wanted first."""
    # A step of five draws costs twice one of a single draw: they come when a single one has done what it can.
    first = _LONG | {"max_minutes": 36.0, "max_steps": 110_000}
    weighted = {
        "objective": {"num_particles": 5, "importance_weighted": True},
        "training": _LONG
        | {"max_minutes": 24.0, "max_steps": 33_000, "kl_warmup": 0.0, "learning_rate": 5e-4, "decay_start": 0.3},
    }
    return [
        Row("elbo", "bound, one draw", _BURDA, {}, _LONG | {"max_steps": 200_000}),
        Row("iwae", "bound, then importance-weighted, k = 5", _BURDA, {}, first, weighted),
        Row("vamp", "bound, VampPrior", _BURDA | {"prior": "vamp"}, {}, _LONG | {"max_steps": 60_000}),
        Row("flow", "bound, flow prior", _BURDA | {"prior": "flow"}, {}, _LONG | {"max_steps": 150_000}),
        Row("below", "the M1 below M1+M2", M1_BELOW.model, {}, M1_BELOW.training, samples=0, svm=True),
        *(
            Row(f"preset-{name}", preset.words, preset.model, preset.objective, preset.training, samples=500)
            for name, preset in M1_PRESETS.items()
        ),
    ]


def train(row: Row, data_dir: str | None, keep: str | None, threads: int) -> dict[str, Any]:
    """Train one row and return its result."""
    torch.set_num_threads(threads)
    full = SemiSupervisedData.from_name("mnist", num_labels="all", data_dir=data_dir)
    data = full.without_labels()
    pyro.set_rng_seed(row.seed)
    model = M1(data.event_shape, **row.model)
    out = Path(keep) / row.name if keep else None
    stages = [{"objective": row.objective, "training": row.training}, *([row.then] if row.then else [])]
    runs = []
    for stage in stages:  # only the last is kept
        objective = UnsupervisedELBO.for_data(model, data, **stage["objective"])
        last = len(runs) + 1 == len(stages)
        runs.append(fit(objective, data, TrainingConfig(seed=row.seed, **stage["training"]), out=out if last else None))
    result = report(objective, data, runs[-1], seed=row.seed, num_samples=row.samples)
    for name in ("steps", "epochs", "train_seconds"):
        result[name] = round(sum(getattr(run, name) for run in runs), 3)
    if row.svm:
        result["svm"] = classify_latents(model, full)
    return {"row": asdict(row), **result, "curves": [line for run in runs for line in run.metrics]}


def classify_latents(model: M1, data: SemiSupervisedData) -> dict[str, dict[str, float]]:
    """Return test accuracies of an SVM and of logistic regression on the latents, by number of labels.

    Their settings are chosen by cross-validation on the labelled rows alone. Latents are left in their own units:
    brought to one scale, those that carry nothing would weigh as much as the others.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    z_test = model.transform(data.x_test / data.scale).numpy()
    found: dict[str, dict[str, float]] = {}
    for number in (100, 500, 1000, 2000, 5000):
        chosen = torch.as_tensor(draw_label_split(data.y.numpy(), number, data.num_classes, seed=0))
        z, y = model.transform(data.x[chosen] / data.scale).numpy(), data.y[chosen].numpy()
        svm = GridSearchCV(SVC(), {"C": [1.0, 10.0, 100.0], "gamma": [0.01, 0.03, 0.1, 0.3]}, cv=5)
        logistic = GridSearchCV(LogisticRegression(max_iter=2000), {"C": [1e-3, 0.01, 0.1, 1.0, 10.0]}, cv=5)
        found[str(number)] = {
            "svm": float(svm.fit(z, y).score(z_test, data.y_test.numpy())),
            "logistic": float(logistic.fit(z, y).score(z_test, data.y_test.numpy())),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    args = parser.parse_args()
    make(parser, args, rows(), train)
    write_page(RESULTS)


if __name__ == "__main__":
    sys.exit(main())
