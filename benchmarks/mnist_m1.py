"""Train M1 on MNIST and estimate log p(x) of the test rows; the presets of examples/m1.py.

    python benchmarks/mnist_m1.py --jobs 2                  # every row, two at a time, a core each: hours
    python benchmarks/mnist_m1.py --only elbo --only iwae
    python benchmarks/mnist_m1.py --table                   # only rewrite docs/results_m1.md

Each finished run is kept as docs/results/NAME-HASH.json and is not run again. With --keep DIR, models are kept under
DIR/NAME, where benchmarks/mnist_m1m2.py finds the one below its stacks, and benchmarks/mnist_svm.py its features; one
that --only names and that is not there is trained again, and its result stays as it is.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyro
import torch
from results_page_m1 import write_page
from runs import add_flags, digest, make

import pyro_ssvae
from pyro_ssvae import M1, SemiSupervisedData, TrainingConfig, UnsupervisedELBO, fit
from pyro_ssvae.presets import M1_BELOW, M1_PRESETS
from pyro_ssvae.training import report

RESULTS = Path(__file__).parents[1] / "docs" / "results"
SAMPLES = 5000  # importance samples a row
BELOW = "flow"  # the row that stacks and classifiers on latents build on

_BURDA: dict[str, Any] = {"hidden_dims": [500, 500], "latent_dim": 50, "activation": "softplus"}
_LONG: dict[str, Any] = {**M1_BELOW.training, "max_epochs": None, "max_minutes": 60.0}


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
    seed: int = 0

    @property
    def path(self) -> Path:
        """Where its result is kept: the name holds a hash of every setting, defaults included."""
        model = M1((1, 28, 28), **self.model)
        settings = {**asdict(self), "model": model.config(), **_settings(model, self.objective, self.training)}
        if self.then:
            settings["then"] = _settings(model, **self.then)
        return RESULTS / f"m1-{self.name}-{digest(settings)}.json"


def _settings(model: M1, objective: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """Return every setting of a stage of training, defaults included."""
    return {
        "objective": UnsupervisedELBO(model, num_examples=1, **objective).config(),
        "training": TrainingConfig(**training).to_dict(),
    }


def rows() -> list[Row]:
    """Return every row, the most wanted first."""
    # A step of five draws costs as much as two and a half of one draw: they come when one has done what it can.
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
        *(
            Row(f"preset-{name}", preset.words, preset.model, preset.objective, preset.training, samples=500)
            for name, preset in M1_PRESETS.items()
        ),
    ]


def row_named(name: str) -> Row:
    """Return the row of that name."""
    return next(row for row in rows() if row.name == name)


def read_below(keep: str | None, name: str = BELOW) -> M1:
    """Return the trained M1 of a row, from where it was kept."""
    folder = Path(keep or "") / name
    if keep is None or not folder.is_dir():
        raise SystemExit(f"No M1 to build on: python benchmarks/mnist_m1.py --only {name} --keep DIR, then --keep DIR.")
    model = pyro_ssvae.load(folder)
    assert isinstance(model, M1)
    return model


def train(row: Row, data_dir: str | None, keep: str | None, threads: int) -> dict[str, Any]:
    """Train one row and return its result."""
    torch.set_num_threads(threads)
    data = SemiSupervisedData.from_name("mnist", num_labels="all", data_dir=data_dir).without_labels()
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
    return {"row": asdict(row), **result, "curves": [line for run in runs for line in run.metrics]}


def train_again(row: Row, data_dir: str | None, keep: str, threads: int) -> None:
    """Train the model of a row whose result is there but whose model is not, and keep it."""
    if row.path.exists() and not (Path(keep) / row.name).is_dir():
        found = train(replace(row, samples=0), data_dir, keep, threads)
        print(f"{row.name}, trained again: bound {found['test_elbo']:.2f} nats")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    args = parser.parse_args()
    make(parser, args, rows(), train)
    for name in args.only if args.only and args.keep and not args.table else ():
        train_again(row_named(name), args.data_dir, args.keep, os.cpu_count() or 1)
    write_page(RESULTS)


if __name__ == "__main__":
    sys.exit(main())
