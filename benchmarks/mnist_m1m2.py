"""Train M1+M2 on MNIST by the published protocol, on an M1 that was trained once.

    python benchmarks/mnist_m1.py --only flow --keep models     # first, the M1
    python benchmarks/mnist_m1m2.py --keep models --jobs 2      # 100 labels on 3 label splits; 600, 1000 and 3000

Each finished run is kept as docs/results/NAME-HASH.json and is not made again. The M1 is read from DIR/flow-seed0 of
--keep, and from DIR/elbo-seed0 for the runs that compare it with one under a normal prior.
"""

from __future__ import annotations

from typing import Any

import pyro
from mnist_m1 import BASE, find_configuration, load_model
from runs import Result, Run, main

from pyro_ssvae import M1M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, fit, report
from pyro_ssvae.evaluation import active_units
from pyro_ssvae.presets import STACK, STACK_PURE, Preset


def configurations(seeds: int | None = None) -> list[Run]:
    """Return every run; ``seeds`` label splits (3 by default) at 100 labels."""
    splits = range(3 if seeds is None else seeds)
    full_bound = {key: value for key, value in STACK.objective.items() if key != "bound_weight"}
    found = []
    for name, preset, objective in (
        ("pure", STACK_PURE, STACK_PURE.objective),
        ("default", STACK, STACK.objective),
        ("full-bound", STACK, full_bound),
    ):
        for num_labels, seed in [*((100, seed) for seed in splits), (600, 0), (1000, 0), (3000, 0)]:
            found.append(_configure(f"{name}-{num_labels}", seed, num_labels, preset, objective))
    for seed in splits:
        found.append(_configure("pure-normal-100", seed, 100, STACK_PURE, STACK_PURE.objective, "elbo"))
    return found


def _configure(name: str, seed: int, num_labels: int, preset: Preset, objective: dict[str, Any], m1: str = BASE) -> Run:
    """Return a run; the settings of the M1 that it builds on enter through the name of that M1's result file."""
    options = {"pure": preset is STACK_PURE, "m1": m1, "m1_result": find_configuration(m1).path.stem}
    return Run("m1m2", name, seed, "mnist", num_labels, preset.model, objective, preset.training, options)


def train(run: Run, data_dir: str | None, keep: str | None) -> Result:
    """Train one run and return its result."""
    m1 = load_model(keep, run.options["m1"])
    data = SemiSupervisedData.from_name("mnist", num_labels=run.num_labels, seed=run.seed, data_dir=data_dir)
    active = active_units(m1, data.x, scale=data.scale)
    pyro.set_rng_seed(run.seed)
    model = M1M2.from_m1(m1, data.num_classes, active=active, **run.model)
    objective = SemiSupervisedELBO.for_data(model, data, pure=run.options["pure"], **run.objective)
    trained = fit(objective, data, TrainingConfig(seed=run.seed, **run.training))
    result = report(objective, data, trained)
    return {**result, "m1_active_units": int(active.sum()), "curves": trained.metrics}


if __name__ == "__main__":
    main(__doc__, configurations, train)
