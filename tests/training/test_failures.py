"""Training that fails: when it stops, and which checkpoint and model are kept."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyro_ssvae
from pyro_ssvae import DDGM, EnergyObjective, SemiSupervisedData, TrainingConfig, fit
from pyro_ssvae.data import Batch, make_toy_data
from pyro_ssvae.errors import TrainingFailedError
from pyro_ssvae.models.diagnostics import energy_diagnostics
from pyro_ssvae.objectives import Loss, Update
from pyro_ssvae.training import RunFolder
from tests.training.small_runs import SHORT, make_data
from tests.training.small_runs import make_objective as make_objective_of_classes

CONFIG = TrainingConfig(max_steps=100, batch_size=50, evaluate_every=10, ema_decay=0.0, device="cpu")


class Shrinking(nn.Module):
    """A generator whose samples cover the data for some calls in training, and are one point from then on."""

    def __init__(self, lasts: float) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.zeros(2))
        self.lasts = lasts
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        if self.training:
            self.calls.add_(1.0)
        width = torch.where(self.calls < self.lasts, 1.0, 1e-3)
        return self.centre + width * z[:, :2]


def make_objective(data: SemiSupervisedData, lasts: float) -> EnergyObjective:
    torch.manual_seed(0)
    return EnergyObjective.for_data(DDGM((2,), generator=Shrinking(lasts)), data, generator_steps=1)


def read_metrics(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def state_of(folder: Path) -> dict[str, Any]:
    return RunFolder(folder).read_checkpoint()


LASTS = 50.0  # two calls at every step: from step 25 on the generator has collapsed


def test_a_collapse_keeps_the_checkpoint_and_model_before(tmp_path: Path) -> None:
    data = make_toy_data("ring", num_train=500, num_validation=200)
    objective = make_objective(data, LASTS)
    seen: list[int] = []
    with pytest.raises(TrainingFailedError, match=r"step 70: the generator has collapsed.*last\.pt") as caught:
        fit(
            objective, data, CONFIG, out=tmp_path, progress=False, on_evaluation=lambda _, row: seen.append(row["step"])
        )
    assert caught.value.checkpoint == RunFolder(tmp_path).checkpoint
    state = state_of(tmp_path)
    assert state["step"] == state["best"]["step"] == 20
    assert state["metrics"][-1]["val/std_ratio"] > 0.3
    assert (
        energy_diagnostics(pyro_ssvae.load(tmp_path, generator=Shrinking(LASTS)), data.x_validation)["std_ratio"] > 0.3
    )
    # metrics.csv also has the evaluations after the collapse.
    rows = read_metrics(tmp_path)
    assert [int(row["step"]) for row in rows] == seen == [10, 20, 30, 40, 50, 60, 70]
    assert [float(row["val/std_ratio"]) < 0.05 for row in rows] == [False] * 2 + [True] * 5


def test_an_interruption_after_a_collapse_resumes_from_the_checkpoint_before(tmp_path: Path) -> None:
    data = make_toy_data("ring", num_train=500, num_validation=200)

    def interrupt(_: Any, row: dict[str, Any]) -> None:
        if row["step"] == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(make_objective(data, LASTS), data, CONFIG, out=tmp_path, progress=False, on_evaluation=interrupt)
    assert state_of(tmp_path)["step"] == 20
    lasting = make_objective(data, math.inf)
    run = fit(lasting, data, CONFIG, out=tmp_path, resume=True, progress=False)
    assert [row["step"] for row in run.metrics] == list(range(10, 101, 10))
    assert (run.stopped_by, run.best_step, state_of(tmp_path)["step"]) == ("schedule", 100, 100)


def test_a_run_that_collapsed_at_the_start_keeps_its_last_checkpoint(tmp_path: Path) -> None:
    data = make_toy_data("ring", num_train=500, num_validation=200)
    short = replace(CONFIG, max_steps=30)
    run = fit(make_objective(data, 0.0), data, short, out=tmp_path, progress=False)
    assert (run.stopped_by, run.best_step) == ("schedule", 30)
    assert state_of(tmp_path)["step"] == 30
    assert (
        energy_diagnostics(pyro_ssvae.load(tmp_path, generator=Shrinking(LASTS)), data.x_validation)["std_ratio"] < 0.05
    )


def test_diverging_energies_keep_the_checkpoint_before(tmp_path: Path) -> None:
    class Diverging(EnergyObjective):
        """Reports a gap of a million nats from the 16th call on."""

        calls = 0

        def updates(self, progress: float = 0.0) -> list[Update]:
            first, *rest = super().updates(progress)

            def diverging(batch: Batch) -> Loss:
                self.calls += 1
                total, terms = first.loss(batch)
                return Loss(total, terms | {"energy_gap": terms["energy_gap"] + 1e6 * (self.calls > 15)})

            return [Update(first.group, diverging), *rest]

    data = make_toy_data("ring", num_train=500, num_validation=200)
    torch.manual_seed(0)
    objective = Diverging.for_data(DDGM((2,), generator=Shrinking(math.inf)), data, generator_steps=1)
    eager = replace(CONFIG, compile="eager")
    with pytest.raises(TrainingFailedError, match=r"step 20: energies diverge.*last\.pt"):
        fit(objective, data, eager, out=tmp_path, progress=False)
    assert state_of(tmp_path)["step"] == 10
    assert [int(row["step"]) for row in read_metrics(tmp_path)] == [10, 20]
    assert float(read_metrics(tmp_path)[-1]["train/energy_gap"]) > 1e4


def test_training_examples_replace_missing_validation_examples() -> None:
    data = make_toy_data("ring", num_train=3000, num_validation=0, num_test=0)
    objective = make_objective(data, math.inf)
    found, again, other = (objective.validate(data, seed=seed) for seed in (3, 3, 4))
    assert found.score is None
    assert found == again
    assert found.metrics["energy_data"] != other.metrics["energy_data"]
    chosen = torch.randperm(3000, generator=torch.Generator().manual_seed(3))[:1000]
    assert found.metrics["energy_data"] == pytest.approx(float(objective.module.energy(data.x[chosen]).mean()))
    with pytest.raises(TrainingFailedError, match=r"step 70: the generator has collapsed.*No checkpoint"):
        fit(make_objective(data, LASTS), data, CONFIG, progress=False)


def test_validation_does_not_change_the_objective() -> None:
    data = make_toy_data("ring", num_train=500, num_validation=200)
    objective = make_objective(data, 0.0)
    history = [{"val/std_ratio": 0.01}] * 3
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    found = [objective.validate(data, history=[*history, {}]) for _ in range(3)]
    assert found[0] == found[1] == found[2]
    assert (found[0].failure, found[0].keep) == (None, False)
    assert "collapsed" in str(objective.validate(data, history=[*history, *history, {}]).failure)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


@pytest.mark.parametrize("x", [torch.ones(1, 2), torch.ones(5, 2)])
def test_data_without_variance_have_no_std_ratio(x: Tensor) -> None:
    found = energy_diagnostics(make_objective(make_toy_data("ring", num_train=100), math.inf).module, x)
    assert "std_ratio" not in found
    assert math.isfinite(found["energy_gap"])


def test_training_needs_no_gradients_around_it_but_no_inference_mode() -> None:
    data, config = make_data(), replace(SHORT, max_steps=3)
    objective, other = (make_objective_of_classes(data) for _ in range(2))
    with torch.no_grad():
        fit(objective, data, config, progress=False)
        assert not torch.is_grad_enabled()
    fit(other, data, config, progress=False)
    assert all(map(torch.equal, objective.module.state_dict().values(), other.module.state_dict().values()))
    with torch.inference_mode(), pytest.raises(ValueError, match=r"fit cannot train in torch.inference_mode\(\)"):
        fit(objective, data, config, progress=False)
