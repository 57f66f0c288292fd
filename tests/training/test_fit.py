"""The training loop: it learns, stops as asked, and fails clearly."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import pyro_ssvae
from pyro_ssvae import (
    DDGM,
    M1,
    M2,
    EnergyObjective,
    SemiSupervisedData,
    SemiSupervisedELBO,
    TrainingConfig,
    UnsupervisedELBO,
    fit,
    report,
)
from pyro_ssvae.data import make_toy_data
from pyro_ssvae.errors import NonFiniteLossError
from pyro_ssvae.objectives.base import Validation
from pyro_ssvae.training import RunFolder
from tests.training.small_runs import SHORT, changed, make_data, make_objective

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("unrendered")
def test_fit_learns_and_leaves_a_run_folder(tmp_path: Path, device: torch.device) -> None:
    data = make_data()
    objective = make_objective(data)
    run = fit(objective, data, changed(SHORT, max_steps=150, device=str(device)), out=tmp_path / "run", progress=False)
    result = report(objective, data, run)
    assert result["test/error"] <= 0.1
    assert run.stopped_by == "schedule"
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "metrics.csv", "checkpoints", "model", "figures", "result.json"} <= names
    assert not list((tmp_path / "run").rglob("*.tmp"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("val/error")] == [row["step"] for row in run.metrics]
    losses = [row["train/loss"] for row in run.metrics]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)
    wanted = {
        "model", "data", "num_labels", "seed", "regularisers", "test/error", "val/error", "test/bound",
        "train_seconds", "epochs", "steps", "device", "versions", "binarisation",
    }  # fmt: skip
    assert wanted <= set(json.loads((tmp_path / "run" / "result.json").read_text()))
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["training"]["batch_size"] == 17
    twin = pyro_ssvae.load(tmp_path / "run")
    torch.testing.assert_close(twin.predict_proba(data.x_test), objective.module.predict_proba(data.x_test).cpu())


def test_the_saved_model_is_the_one_validation_picked(tmp_path: Path) -> None:
    data = make_data()
    objective = make_objective(data)
    run = fit(objective, data, changed(SHORT, max_steps=100), out=tmp_path, progress=False)
    picked = next(row["val/error"] for row in run.metrics if row["step"] == run.best_step)
    error = (pyro_ssvae.load(tmp_path).predict(data.x_validation) != data.y_validation).double().mean()
    assert error == pytest.approx(picked)


class GivenErrors(SemiSupervisedELBO):
    """Validates as if the error of 100 labelled examples took given values."""

    errors: Sequence[float] = ()

    def validate(
        self, data: SemiSupervisedData, *, history: Sequence[dict[str, Any]] = (), **options: Any
    ) -> Validation:
        if not history:
            return Validation(score=0.0)
        error = self.errors[len(history) - 1]
        return Validation({"error": error}, score=-error, standard_error=(error * (1.0 - error) / 100) ** 0.5)


@pytest.mark.parametrize(
    ("errors", "patience", "chosen", "steps"),
    [
        ([0.30, 0.10, 0.12, 0.20], None, 3, 4),  # 0.12 has a standard error of 0.03, 0.20 one of 0.04
        ([0.30, 0.10, 0.10, 0.13], None, 4, 4),
        ([0.10, 0.12, 0.13, 0.12], 2, 3, 3),  # without a better score twice, although later weights are chosen
        ([0.30, 0.00, 0.01, 0.30], None, 2, 4),
        ([0.10, 0.30, 0.09, 0.30], 2, 3, 4),
    ],
)
def test_the_latest_weights_within_one_standard_error_are_chosen(
    errors: list[float], patience: int | None, chosen: int, steps: int
) -> None:
    data = make_data()
    objective = GivenErrors.for_data(M2(data.event_shape, data.num_classes, hidden_dims=(8,)), data)
    objective.errors = errors
    config = changed(SHORT, max_steps=4, evaluate_every=1, kl_warmup=0.0, patience=patience)
    run = fit(objective, data, config, progress=False)
    assert (run.best_step, run.steps) == (chosen, steps)


def test_the_standard_error_of_the_validation_error_is_that_of_known_labels() -> None:
    data = make_data()
    y = data.y_validation.clone()
    y[::3] = -1
    data = dataclasses.replace(data, y_validation=y)
    found = make_objective(data).validate(data)
    error, count = found.metrics["error"], int((y >= 0).sum())
    assert found.score == -error
    assert found.standard_error == pytest.approx(np.sqrt(error * (1 - error) / count))


def test_labels_of_unlabelled_examples_change_nothing() -> None:
    """Scramble the labels that are hidden, split as before, train: the same weights to the last bit."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (60, 12)).astype(np.float32)
    y = np.arange(60) % 3
    weights = []
    for scramble in (False, True):
        labels = np.where(np.arange(60) < 9, y, rng.integers(0, 3, 60) if scramble else y)
        data = SemiSupervisedData.from_arrays(x, np.where(np.arange(60) < 9, labels, -1), num_classes=3)
        objective = make_objective(data)
        fit(objective, data, SHORT, progress=False)
        weights.append(objective.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(("num_labels", "expected"), [(60, 50), (10_400, 104), (30_000, 256)])
def test_a_step_takes_more_labelled_examples_where_there_are_many(
    num_labels: int, expected: int, tmp_path: Path
) -> None:
    y = torch.where(torch.arange(30_100) < num_labels, torch.arange(30_100) % 3, -1)
    data = SemiSupervisedData.from_arrays(torch.rand(30_100, 2).round(), y)
    fit(make_objective(data), data, TrainingConfig(max_steps=1, device="cpu"), out=tmp_path, progress=False)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["training"]["labelled_batch_size"] == expected


@pytest.mark.parametrize(("num_labels", "batch_sizes"), [(90, (17, 4)), (3, (1000, 1000)), (9, (1, 1))])
def test_any_batch_sizes_and_numbers_of_labels(num_labels: int, batch_sizes: tuple[int, int]) -> None:
    data = make_data(num_labels=num_labels)
    config = changed(SHORT, max_steps=12, batch_size=batch_sizes[0], labelled_batch_size=batch_sizes[1])
    assert fit(make_objective(data), data, config, progress=False).steps == 12


def test_no_labels_at_all_warns_and_trains() -> None:
    with pytest.warns(UserWarning, match="No training example has a label"):
        data = make_data(num_labels=0)
    assert fit(make_objective(data), data, changed(SHORT, max_steps=5), progress=False).steps == 5


def test_stops_by_patience_and_by_time(tmp_path: Path) -> None:
    data = make_data()
    frozen = fit(
        make_objective(data), data, changed(SHORT, patience=2, learning_rate=1e-12, max_steps=100), progress=False
    )
    assert frozen.stopped_by in ("patience", "schedule")
    timed = fit(make_objective(data), data, changed(SHORT, max_minutes=1e-4, max_steps=9_000), progress=False)
    assert timed.stopped_by == "max_minutes"
    assert timed.metrics[-1]["step"] == timed.steps


def test_epochs_override_steps_and_schedule_has_its_shape() -> None:
    config = TrainingConfig(max_epochs=3, warmup_steps=10, decay_start=0.5, final_learning_rate=0.1, learning_rate=1.0)
    assert config.total_steps(7) == 21
    assert [TrainingConfig().total_steps(n) for n in (1, 10, 400)] == [500, 640, 3000]
    assert TrainingConfig(max_steps=7).total_steps(100) == 7
    rates = [config.learning_rate_at(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:50] == [1.0] * 41
    assert rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[50:], rates[51:], strict=False))
    warm = TrainingConfig(kl_warmup=0.2, kl_anneal_end=0.6)
    assert [warm.kl_weight_at(step, 10, 100) for step in (0, 1, 2, 9)] == [0.5, 1.0, 1.0, 1.0]
    weights = [warm.kl_weight_at(step, 10, 50_000) for step in range(7)]
    assert weights == pytest.approx([0.5, 8.0, 6.25, 4.5, 2.75, 1.0, 1.0])
    assert TrainingConfig(kl_warmup=0.0, kl_peak=1.0).kl_weight_at(0, 8, 50_000) == 1.0
    assert max(warm.kl_weight_at(step, 10, 50_000, schedule=(0.15, 1.0)) for step in range(10)) == 1.0
    steep, short = TrainingConfig(), TrainingConfig(kl_anneal_end=0.1)
    assert [steep.kl_weight_at(step, 10, 50_000, schedule=(0.0, 30.0)) for step in (0, 1, 4, 9)] == [24.2, 18.4, 1, 1]
    assert [steep.kl_weight_at(step, 20, 9_999, schedule=(0.0, 30.0)) for step in (0, 5)] == [pytest.approx(1 / 3), 1]
    assert [short.kl_weight_at(step, 20, 50_000) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    "values",
    [
        {"max_steps": 0}, {"max_epochs": 0}, {"max_minutes": -1.0}, {"batch_size": -3}, {"labelled_batch_size": 0},
        {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"warmup_steps": -1}, {"decay_start": 1.5},
        {"ema_decay": 1.0}, {"patience": 0}, {"evaluate_every": 0}, {"binarisation": "some"}, {"precision": "8"},
        {"gradient_clip": 0.0}, {"kl_warmup": -0.1}, {"nonsense": 1},
        {"kl_anneal_end": 0.1, "kl_warmup": 0.2}, {"kl_peak": -1.0}, {"seed": -1}, {"final_learning_rate": 2.0},
    ],
)  # fmt: skip
def test_bad_settings_name_themselves(values: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(values))):
        TrainingConfig(**values)


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "mps"])
def test_bad_devices(device: str) -> None:
    data = make_data()
    with pytest.raises(ValueError, match="CUDA|device="):
        fit(make_objective(data), data, changed(SHORT, device=device), progress=False)


class _Bursting(M2):
    """Its bound becomes infinite at step 13; the first batch is looked at once before training."""

    calls = 0

    def decode(self, y: Tensor, z: Tensor) -> object:
        self.calls += self.training
        return super().decode(y, z * (float("inf") if self.calls > 26 else 1.0))


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_non_finite_loss_names_step_and_checkpoint(tmp_path: Path) -> None:
    data = make_data()
    model = _Bursting(data.event_shape, 3, latent_dim=2, hidden_dims=(12,))
    objective = SemiSupervisedELBO(model, num_labelled=data.num_labelled, num_unlabelled=data.num_unlabelled)
    with pytest.raises(NonFiniteLossError, match=r"step 13 .*last\.pt") as caught:
        fit(objective, data, changed(SHORT, compile="eager"), out=tmp_path, progress=False)
    assert caught.value.step == 13
    state = RunFolder(tmp_path).read_checkpoint()
    assert state["step"] == 10
    assert all(torch.isfinite(t).all() for t in state["objective"].values())


def test_data_and_model_must_fit() -> None:
    data = make_data()
    with pytest.raises(ValueError, match="event_shape=data.event_shape"):
        fit(SemiSupervisedELBO(M2((5,), 3), num_labelled=9, num_unlabelled=81), data, SHORT)
    with pytest.raises(ValueError, match="num_classes=data.num_classes"):
        fit(SemiSupervisedELBO(M2((12,), 2), num_labelled=9, num_unlabelled=81), data, SHORT)
    with pytest.raises(ValueError, match=r"Build it by for_data\(model, data\)"):
        fit(SemiSupervisedELBO(M2((12,), 3), num_labelled=1, num_unlabelled=81), data, SHORT)
    shifted = SemiSupervisedData.from_arrays(data.x - 1.0, data.y, num_classes=3)
    with pytest.raises(ValueError, match="gaussian"):
        fit(make_objective(shifted), shifted, SHORT)


@pytest.mark.filterwarnings("ignore:This CPU has no bf16")
def test_bf16_trains_and_stays_close() -> None:
    data = make_data()
    errors = []
    for precision in ("32-true", "bf16-mixed"):
        objective = make_objective(data)
        run = fit(objective, data, changed(SHORT, max_steps=60, precision=precision), progress=False)
        errors.append(run.metrics[-1]["train/loss"])
    assert errors[1] == pytest.approx(errors[0], rel=0.05)


def test_works_outside_the_main_thread() -> None:
    data, found = make_data(), []
    thread = threading.Thread(
        target=lambda: found.append(fit(make_objective(data), data, changed(SHORT, max_steps=5), progress=False))
    )
    thread.start()
    thread.join()
    assert found[0].steps == 5


@pytest.mark.parametrize(("total", "interval"), [(5, 1), (500, 50), (3000, 250), (40_000, 1000)])
def test_schedules_of_any_length_are_evaluated_often_enough(total: int, interval: int) -> None:
    assert TrainingConfig().evaluation_interval(total) == interval
    assert TrainingConfig(evaluate_every=7).evaluation_interval(total) == 7


# Batch normalisation.


@pytest.mark.parametrize(("unlabelled", "labelled", "epoch"), [(35, 8, 2), (34, 9, 2), (35, 9, 2), (17, 4, 1)])
def test_batch_norm_and_a_last_batch_of_one(unlabelled: int, labelled: int, epoch: int) -> None:
    data = make_data(n=unlabelled + labelled, num_labels=labelled)
    run = fit(make_objective(data, batch_norm=True), data, changed(SHORT, max_epochs=3), progress=False)
    assert run.steps == 3 * epoch


@pytest.mark.parametrize(
    ("rows", "labels", "sizes", "words"),
    [
        (30, 9, {"batch_size": 1}, "1 unlabelled and 4 labelled"),
        (30, 9, {"labelled_batch_size": 1}, "17 unlabelled and 1 labelled"),
        (30, 1, {}, "17 unlabelled and 1 labelled"),
    ],
)
@pytest.mark.filterwarnings("ignore:No training example is labelled as")
def test_batches_of_one_are_refused_with_batch_norm(rows: int, labels: int, sizes: dict[str, int], words: str) -> None:
    data = make_data(n=rows, num_labels=labels)
    objective = make_objective(data, batch_norm=True)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    with pytest.raises(ValueError, match=f"Batch normalisation needs at least two examples.*{words}"):
        fit(objective, data, changed(SHORT, **sizes), progress=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in objective.state_dict().items())


def test_an_energy_model_of_one_example_is_refused() -> None:
    data = SemiSupervisedData.from_arrays([[0.5, 0.5]])
    with pytest.raises(ValueError, match="a batch here has 1 unlabelled: raise batch_size"):
        fit(EnergyObjective.for_data(DDGM.for_data(data), data), data, changed(SHORT, kl_warmup=0.0), progress=False)


# Early stopping and the weight of the KL.


def test_patience_without_a_score_is_refused_before_training(tmp_path: Path) -> None:
    data = make_data(validation=0)
    objective = make_objective(data)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    with pytest.raises(
        ValueError, match="patience=2 needs a score on validation examples, .*give the data x_validation"
    ):
        fit(objective, data, changed(SHORT, patience=2), out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    assert all(torch.equal(before[name], tensor) for name, tensor in objective.state_dict().items())
    points = make_toy_data("ring", num_train=50, num_validation=20)
    with pytest.raises(ValueError, match="EnergyObjective gives none"):
        fit(EnergyObjective.for_data(DDGM((2,)), points), points, changed(SHORT, patience=2), progress=False)


def test_patience_counts_under_a_constant_weight_of_the_kl() -> None:
    data = make_data().without_labels()
    objective = UnsupervisedELBO.for_data(M1.for_data(data, latent_dim=2, hidden_dims=(8,)), data)
    config = changed(SHORT, patience=2, learning_rate=1e-12, max_steps=150, kl_warmup=0.0, kl_weight=2.0, ema_decay=0.0)
    run = fit(objective, data, config, progress=False)
    # Draws are the same at every evaluation: equal scores, which are no worse, so that training goes on.
    assert run.stopped_by == "schedule"
    rising = fit(objective, data, changed(config, learning_rate=3.0, ema_decay=0.0), progress=False)
    assert rising.stopped_by == "patience"
    assert rising.best_step == max(rising.metrics, key=lambda row: row["val/bound"])["step"]


@pytest.mark.parametrize("on_objective", [False, True])
def test_a_constant_weight_of_the_kl(on_objective: bool) -> None:
    constant = TrainingConfig(max_steps=100, kl_warmup=0.0, kl_weight=4.0)
    assert [constant.kl_weight_at(step, 100, 500) for step in (0, 50, 99)] == [4.0, 4.0, 4.0]
    warm = TrainingConfig(kl_warmup=0.2, kl_anneal_end=0.6, kl_weight=2.0)
    assert [warm.kl_weight_at(step, 10, 50_000) for step in (0, 1, 5)] == pytest.approx([1.0, 16.0, 2.0])
    data = make_data().without_labels()
    objective = UnsupervisedELBO.for_data(M1.for_data(data, latent_dim=2, hidden_dims=(8,)), data)
    if on_objective:
        objective.kl_weight = 4.0
    seen: list[float] = []
    config = changed(SHORT, kl_warmup=0.0, max_steps=60, kl_weight=1.0 if on_objective else 4.0)
    run = fit(objective, data, config, progress=False, on_evaluation=lambda *_: seen.append(objective.kl_weight))
    assert set(seen) == {4.0}
    assert run.config.kl_weight == 4.0
    assert objective.kl_weight == (4.0 if on_objective else 1.0)
    plain = UnsupervisedELBO.for_data(M1.for_data(data, latent_dim=2, hidden_dims=(8,)), data)
    unweighted = fit(plain, data, changed(config, kl_weight=1.0), progress=False)
    assert run.metrics[-1]["val/kl_z"] < 0.5 * unweighted.metrics[-1]["val/kl_z"]


def test_weights_of_the_kl_that_disagree_or_do_nothing_are_refused() -> None:
    data = make_data()
    objective = make_objective(data)
    objective.kl_weight = 3.0
    with pytest.raises(ValueError, match=r"kl_weight=2.0 differs from objective.kl_weight=3.0"):
        fit(objective, data, changed(SHORT, kl_weight=2.0), progress=False)
    points = make_toy_data("ring", num_train=50)
    with pytest.raises(ValueError, match="kl_weight=2.0 has no effect"):
        fit(EnergyObjective.for_data(DDGM((2,)), points), points, changed(SHORT, kl_weight=2.0), progress=False)


# Seeds.


def test_a_cell_that_runs_twice_gives_the_same_weights() -> None:
    data = make_data()
    points = make_toy_data("ring", num_train=50)

    def run_cell() -> list[Tensor]:
        m2 = SemiSupervisedELBO.for_data(M2.for_data(data, latent_dim=2, hidden_dims=(8,), dropout=0.2), data)
        energies = EnergyObjective.for_data(DDGM.for_data(points), points)
        for objective, examples in ((m2, data), (energies, points)):
            fit(objective, examples, changed(SHORT, max_steps=5), progress=False)
        return [*m2.state_dict().values(), *energies.state_dict().values()]

    assert all(torch.equal(a, b) for a, b in zip(run_cell(), run_cell(), strict=True))


def test_fit_leaves_the_random_state_as_it_was(device: torch.device) -> None:
    def stop(*_: object) -> None:
        raise ZeroDivisionError

    data = make_data()
    config = changed(SHORT, max_steps=12, device=str(device))
    objective = make_objective(data)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        fit(objective, data, config, progress=False, on_evaluation=stop)
    assert torch.equal(torch.get_rng_state(), before)
    fit(objective, data, config, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
