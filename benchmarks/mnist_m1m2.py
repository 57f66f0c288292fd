"""Train M1+M2 on MNIST by the published protocol, over an M1 that was trained once.

    python benchmarks/mnist_m1.py --only flow --keep models     # first, the M1 below
    python benchmarks/mnist_m1m2.py --keep models --jobs 2      # then 100 labels x 3 splits, 600, 1000 and 3000
    python benchmarks/mnist_m1m2.py --table                     # only rewrite docs/results_m1.md

Each finished run is kept as docs/results/NAME-HASH.json and is not run again. The M1 is read from DIR/flow of --keep,
and from DIR/elbo for the rows that compare it with one under a normal prior.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mnist_m1
import pyro
import torch
from results_page_m1 import write_page
from runs import add_flags, digest, make

from pyro_ssvae import M1, M1M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, fit
from pyro_ssvae.evaluation import active_units
from pyro_ssvae.presets import STACK, STACK_PURE
from pyro_ssvae.training import report

RESULTS = mnist_m1.RESULTS


@dataclass(frozen=True)
class Row:
    """One row of the page, for one label split."""

    name: str
    seed: int
    num_labels: int = 100
    pure: bool = False
    below: str = mnist_m1.BELOW  # the M1, by its name in benchmarks/mnist_m1.py
    model: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where its result is kept: the name holds a hash of every setting, those of the M1 below included."""
        below = mnist_m1.row_named(self.below)
        model = M1M2.from_m1(M1((1, 28, 28), **below.model), 10, **self.model)
        sizes: Any = SimpleNamespace(event_shape=(1, 28, 28), num_labelled=1, num_unlabelled=1)
        settings = {
            **asdict(self),
            "model": model.config(),
            "objective": SemiSupervisedELBO.for_data(model, sizes, pure=self.pure, **self.objective).config(),
            "training": TrainingConfig(**self.training).to_dict(),
            "below": below.path.name,
        }
        return RESULTS / f"m1m2-{self.name}-seed{self.seed}-{digest(settings)}.json"


def rows(splits: int) -> list[Row]:
    """Return every row, the most wanted first."""
    found = []
    for name, recipe, pure in (("pure", STACK_PURE, True), ("default", STACK, False)):
        options = {
            "pure": pure,
            "model": recipe.model,
            "objective": recipe.objective,
            "training": recipe.training,
        }
        found += [Row(f"{name}-100", seed, **options) for seed in range(splits)]
        found += [Row(f"{name}-{n}", 0, num_labels=n, **options) for n in (600, 1000, 3000)]
        if pure:  # what the prior of the M1 below is worth
            found += [Row(f"{name}-normal-100", seed, below="elbo", **options) for seed in range(splits)]
        else:  # what it does that the bounds weigh less than in J^α
            options["objective"] = {key: value for key, value in recipe.objective.items() if key != "bound_weight"}
            found += [Row("full-bound-100", seed, **options) for seed in range(splits)]
            found += [Row(f"full-bound-{n}", 0, num_labels=n, **options) for n in (600, 1000, 3000)]
    return found


def train(row: Row, data_dir: str | None, keep: str | None, threads: int) -> dict[str, Any]:
    """Train one row and return its result."""
    torch.set_num_threads(threads)
    m1 = mnist_m1.read_below(keep, row.below)
    data = SemiSupervisedData.from_name("mnist", num_labels=row.num_labels, seed=row.seed, data_dir=data_dir)
    active = active_units(m1, data.x, scale=data.scale)
    pyro.set_rng_seed(row.seed)
    model = M1M2.from_m1(m1, data.num_classes, active=active, **row.model)
    objective = SemiSupervisedELBO.for_data(model, data, pure=row.pure, **row.objective)
    run = fit(objective, data, TrainingConfig(seed=row.seed, **row.training))
    result = report(objective, data, run, seed=row.seed)
    return {"row": asdict(row), **result, "active_units": int(active.sum()), "curves": run.metrics}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=3, metavar="K", help="label splits at 100 labels, seeds 0 to K-1")
    add_flags(parser)
    args = parser.parse_args()
    make(parser, args, rows(args.splits), train)
    write_page(RESULTS)


if __name__ == "__main__":
    sys.exit(main())
