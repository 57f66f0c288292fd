"""Train DDGM on points in the plane, by the default recipe and by that of the source document, and measure both.

    python benchmarks/ddgm_plane.py --jobs 2                # ring and spiral, both recipes, 5 seeds each
    python benchmarks/ddgm_plane.py --only ring-default
    python benchmarks/ddgm_plane.py --table                 # only rewrite docs/results_ddgm.md

Each finished run is kept as docs/results/NAME-HASH.json, where HASH is that of its settings, and is not run again.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch
from results_page_ddgm import write_page
from runs import add_flags, digest, make

from pyro_ssvae import DDGM, EnergyObjective, TrainingConfig, fit
from pyro_ssvae.data import PLANE_NAMES, plane_data
from pyro_ssvae.evaluation import plane_measures
from pyro_ssvae.recipes import DDGM_PLANE, DDGM_SOURCE
from pyro_ssvae.training import report

RESULTS = Path(__file__).parents[1] / "docs" / "results"


@dataclass(frozen=True)
class Row:
    """One row of the page, for one seed."""

    name: str
    seed: int
    data: str
    model: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where its result is kept: the name holds a hash of every setting, defaults included."""
        model = DDGM((2,), **self.model)
        settings = {
            **asdict(self),
            "model": model.config(),
            "objective": EnergyObjective(model, num_unlabelled=1, **self.objective).config(),
            "training": TrainingConfig(**self.training).to_dict(),
        }
        return RESULTS / f"ddgm-{self.name}-seed{self.seed}-{digest(settings)}.json"


def rows(seeds: int) -> list[Row]:
    """Return every row."""
    recipes = {"default": DDGM_PLANE, "source": DDGM_SOURCE}
    return [
        Row(f"{data}-{name}", seed, data, recipe.model, recipe.objective, recipe.training)
        for name, recipe in recipes.items()
        for data in PLANE_NAMES
        for seed in range(seeds)
    ]


def train(row: Row, data_dir: str | None, keep: str | None, threads: int) -> dict[str, Any]:
    """Train one row and return its result."""
    torch.set_num_threads(threads)
    data = plane_data(row.data, seed=row.seed)
    pyro.set_rng_seed(row.seed)
    model = DDGM(data.event_shape, **row.model)
    objective = EnergyObjective.for_data(model, data, **row.objective)
    out = Path(keep) / f"{row.name}-{row.seed}" if keep else None
    run = fit(objective, data, TrainingConfig(seed=row.seed, **row.training), out=out)
    result = report(objective, data, run, seed=row.seed)
    return {"row": asdict(row), **result, **plane_measures(model, row.data, seed=row.seed), "curves": run.metrics}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, metavar="K", help="seeds 0 to K-1")
    add_flags(parser)
    args = parser.parse_args()
    make(parser, args, rows(args.seeds), train)
    write_page(RESULTS)


if __name__ == "__main__":
    sys.exit(main())
