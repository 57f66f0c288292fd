"""The program that tests of several processes start: it trains cases, and saves what it found.

``python ranks_program.py OUT JOB``, where the job, in JSON, has names of ``cases`` and ``options`` of :func:`train`.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from pyro_ssvae import (
    DDGM,
    M1,
    M1M2,
    M2,
    EnergyObjective,
    SemiSupervisedData,
    SemiSupervisedELBO,
    TrainingConfig,
    UnsupervisedELBO,
    _ranks,
    fit,
)
from pyro_ssvae.objectives import ColumnAugmentation, Consistency, Objective
from tests.training.small_runs import changed, make_data

SMALL = TrainingConfig(
    max_steps=20, batch_size=16, labelled_batch_size=4, evaluate_every=5, learning_rate=1e-2, warmup_steps=5,
    device="cpu", ema_decay=0.9, compile="eager", kl_peak=2.0,
)  # fmt: skip


def _rows() -> SemiSupervisedData:
    return make_data(n=89, num_labels=9)  # 80 unlabelled examples, and labelled batches of 4, 4 and 1


def _m2(elbo: dict[str, Any], **options: Any) -> tuple[Objective, SemiSupervisedData]:
    data = _rows()
    model = M2.for_data(data, **{"latent_dim": 2, "hidden_dims": (12,), "dropout": 0.2, **options})
    return SemiSupervisedELBO.for_data(model, data, pure=True, **elbo), data


def _regularised() -> tuple[Objective, SemiSupervisedData]:
    data = _rows()
    model = M2.for_data(data, latent_dim=2, hidden_dims=(12,))
    consistency = Consistency(3, threshold=0.5, strong=ColumnAugmentation(0.3))
    options = {"augmentation": ColumnAugmentation(0.2, 0.1), "consistency": consistency, "bound_batch_size": 6}
    return SemiSupervisedELBO.for_data(model, data, **options), data


def _images() -> SemiSupervisedData:
    data = SemiSupervisedData.from_name("digits", num_labels=400)
    held_out = {"x_validation": data.x_validation[:20], "y_validation": data.y_validation[:20]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few labels
        return SemiSupervisedData.from_arrays(data.x[:64], data.y[:64], num_classes=10, **held_out)


def _augmented() -> tuple[Objective, SemiSupervisedData]:
    data = _images()
    return SemiSupervisedELBO.for_data(M2.for_data(data, latent_dim=3, hidden_dims=(16,)), data), data


def _m1() -> tuple[Objective, SemiSupervisedData]:
    data = _rows().without_labels()
    model = M1.for_data(data, latent_dim=2, hidden_dims=(12,), batch_norm=True)
    return UnsupervisedELBO.for_data(model, data, num_particles=2, importance_weighted=True), data


def _m1m2() -> tuple[Objective, SemiSupervisedData]:
    data = _rows()
    m1 = M1.for_data(data, latent_dim=4, hidden_dims=(12,))
    model = M1M2.for_data(data, m1=m1, latent_dim=2, hidden_dims=(8,))
    model.unfreeze_m1()
    return SemiSupervisedELBO.for_data(model, data, pure=True), data


def _points() -> tuple[Objective, SemiSupervisedData]:
    data = _rows()
    model = DDGM.for_data(data, latent_dim=2)
    options = {"gradient_penalty": 0.1, "langevin_steps": 1, "mle_fraction": 0.25}
    return EnergyObjective.for_data(model, data, **options), data


def _generated() -> tuple[Objective, SemiSupervisedData]:
    data = _images().without_labels()
    options = {"entropy": "batch_norm", "negative_weight": 1.0, "max_shift": 0.1}
    return EnergyObjective.for_data(DDGM.for_data(data, latent_dim=4), data, **options), data


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "exact": (lambda: _m2({}), {"binarisation": "dynamic"}),
    "top-k": (lambda: _m2({"enumeration": "top-k"}), {}),
    "class prior": (lambda: _m2({}, class_prior="dirichlet"), {"gradient_clip": 1.0}),
    "regularised": (_regularised, {}),
    "augmented": (_augmented, {}),
    "m1": (_m1, {"precision": "64-true"}),
    "m1+m2": (_m1m2, {}),
    "ddgm of points": (_points, {"precision": "64-true"}),
    "ddgm of images": (_generated, {"max_steps": 4, "evaluate_every": 2, "precision": "64-true"}),
    "not divisible": (lambda: _m2({}), {"batch_size": 12}),  # 80 unlabelled examples: a last batch of 8
}


def train(case: str, *, interrupt: tuple[int, int, int] | None = None, **changes: Any) -> dict[str, Any]:
    """Train a case; return what is equal for every number of processes.

    ``interrupt`` is a rank, and a signal that it gets in a step.
    """
    torch.set_num_threads(1)
    make, settings = CASES[case]
    torch.manual_seed(1)
    objective, data = make()
    if interrupt is not None and interrupt[0] == int(os.environ["RANK"]):
        _interrupt(objective, *interrupt[1:])
    options = {name: changes.pop(name) for name in ("out", "resume", "devices") if name in changes}
    run = fit(objective, data, changed(SMALL, **(settings | changes)), progress=False, **options)
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in run.metrics]
    weights = sum(float(value.double().abs().sum()) for value in run.last_weights.values())
    return {"metrics": rows, "weights": weights, "best_step": run.best_step, "stopped_by": run.stopped_by}


def _interrupt(objective: Objective, number: int, step: int) -> None:
    """Send this process a signal in a step."""
    loss, done = objective.loss, [0]

    def counted(batch: Any) -> Any:
        done[0] += 1
        if done[0] == step + 1:  # the first call is a check, before training
            os.kill(os.getpid(), number)
        return loss(batch)

    objective.loss = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    job = json.loads(sys.argv[2])
    if job.get("options", {}).pop("apart", False):
        _ranks._SHARED = "/none"  # the processes of several machines share no memory
    found = {case: train(case, **job.get("options", {})) for case in job["cases"]}
    (Path(sys.argv[1]) / f"found-{os.environ['RANK']}.json").write_text(json.dumps(found))
