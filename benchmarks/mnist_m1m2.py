"""Train M1+M2 on MNIST by the published protocol, on an M1 that was trained once.

    python benchmarks/mnist_m1.py --only flow --keep models     # first, the M1
    python benchmarks/mnist_m1m2.py --keep models --jobs 2      # 100 labels on 3 label splits; 600, 1000 and 3000

The M1 is read from DIR/flow-seed0 of --keep, and from DIR/elbo-seed0 for the runs that compare it with one under a
normal prior.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyro
from mnist_m1 import BASE, find_configuration, load_model
from runs import Result, Run, fit_and_report, main

from pyro_ssvae import M1M2, SemiSupervisedELBO
from pyro_ssvae.evaluation import active_units
from pyro_ssvae.presets import STACK, STACK_PURE, Preset


def configurations(seeds: int | None = None) -> list[Run]:
    """Return every run; ``seeds`` label splits (3 by default) at 100 labels."""
    splits = range(3 if seeds is None else seeds)
    full_bound = {key: value for key, value in STACK.objective.items() if key != "bound_weight"}
    presets = {"pure": STACK_PURE, "default": STACK, "full-bound": replace(STACK, objective=full_bound)}
    numbers = [*((100, seed) for seed in splits), (600, 0), (1000, 0), (3000, 0)]
    found = [_configure(name, seed, n, preset) for name, preset in presets.items() for n, seed in numbers]
    return found + [_configure("pure-normal", seed, 100, STACK_PURE, "elbo") for seed in splits]


def _configure(name: str, seed: int, num_labels: int, preset: Preset, m1: str = BASE) -> Run:
    """Return a run; the settings of the M1 that it builds on enter through the name of that M1's result file."""
    options = {"pure": name.startswith("pure"), "m1": m1, "m1_result": find_configuration(m1).path.stem}
    settings: Any = (preset.model, preset.objective, preset.training, options)
    return Run("m1m2", f"{name}-{num_labels}", seed, "mnist", num_labels, *settings)


def train(run: Run, data_dir: str | None, keep: str | None) -> Result:
    m1 = load_model(keep, run.options["m1"])
    data = run.load(data_dir)
    active = active_units(m1, data.x, scale=data.scale)
    pyro.set_rng_seed(run.seed)
    model = M1M2.from_m1(m1, data.num_classes, active=active, **run.model)
    objective = SemiSupervisedELBO.for_data(model, data, pure=run.options["pure"], **run.objective)
    return {**fit_and_report(run, objective, data), "m1_active_units": int(active.sum())}


if __name__ == "__main__":
    main(__doc__, configurations, train)
