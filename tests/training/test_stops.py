"""Runs that end early, go on with a longer schedule or with other data, and arguments of fit that are refused."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_ssvae import M2, SemiSupervisedData, SemiSupervisedELBO, fit, load
from pyro_ssvae.data import Batch, BatchStream
from pyro_ssvae.data.preparation import BatchIndices
from pyro_ssvae.errors import NonFiniteLossError, RunFolderError
from pyro_ssvae.objectives import Loss
from pyro_ssvae.objectives.base import Validation
from pyro_ssvae.training import RunFolder
from tests.training.small_runs import SHORT, changed, make_data, make_objective, without_seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Each step takes a minute."""
    now = [0.0]
    next_indices = BatchStream.next_indices

    def take_a_minute(self: BatchStream) -> BatchIndices:
        now[0] += 60.0
        return next_indices(self)

    with monkeypatch.context() as patch:
        patch.setattr(BatchStream, "next_indices", take_a_minute)
        patch.setattr(time, "perf_counter", lambda: now[0])
        yield now


class GivenValidation(SemiSupervisedELBO):
    """Scores fall from evaluation number ``peak`` on, and from number ``poor`` on weights are not worth keeping."""

    peak, poor = 0, 1000

    def validate(
        self, data: SemiSupervisedData, *, history: Sequence[dict[str, Any]] = (), **options: Any
    ) -> Validation:
        return Validation(score=-abs(float(len(history) - self.peak)), keep=len(history) < self.poor)


def make_given(data: SemiSupervisedData, peak: int = 0, poor: int = 1000) -> GivenValidation:
    torch.manual_seed(1)
    objective = GivenValidation.for_data(M2(data.event_shape, data.num_classes, hidden_dims=(8,)), data)
    objective.peak, objective.poor = peak, poor
    return objective


def send_interrupt(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_longer_schedule_anneals_again_before_patience_counts(tmp_path: Path) -> None:
    data = make_data()
    config = changed(SHORT, max_steps=10, evaluate_every=1, kl_warmup=0.5, kl_peak=1.0)
    first = fit(make_given(data, peak=8), data, config, out=tmp_path, progress=False)
    assert first.best_step == 8
    config = changed(config, max_steps=40, patience=3)
    longer = fit(make_given(data, peak=8), data, config, out=tmp_path, resume=True, progress=False)
    assert (longer.best_step, longer.steps, longer.stopped_by) == (20, 23, "patience")


@pytest.mark.parametrize("given", [False, True])
def test_a_run_that_a_time_limit_ended_goes_on_as_if_it_had_not_been_stopped(
    given: bool, tmp_path: Path, clock: list[float]
) -> None:
    data, make = make_data(), make_given if given else make_objective
    config = changed(SHORT, kl_warmup=0.0, kl_peak=1.0, patience=2 if given else None)
    straight = fit(whole := make(data), data, config, progress=False)
    stopped = fit(make(data), data, changed(config, max_minutes=3.0), out=tmp_path, progress=False)
    assert (stopped.steps, stopped.best_step, stopped.stopped_by) == (3, 3, "max_minutes")
    resumed = fit(again := make(data), data, config, out=tmp_path, resume=True, progress=False)
    assert without_seconds(resumed.metrics) == without_seconds(straight.metrics)
    assert (resumed.steps, resumed.best_step) == (straight.steps, straight.best_step)
    saved = load(tmp_path).state_dict()
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name]), name
        assert torch.equal(tensor, saved[name]), name


def test_an_interruption_during_the_evaluation_after_a_time_limit_counts(clock: list[float]) -> None:
    data = make_data()
    with pytest.raises(KeyboardInterrupt):
        fit(make_given(data), data, changed(SHORT, max_minutes=3.0), on_evaluation=send_interrupt, progress=False)


def test_an_interrupted_run_says_which_state_is_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_data()
    stop = lambda _, metrics: send_interrupt() if metrics["step"] == 20 else None  # noqa: E731
    for poor, words in ((1000, "The state is saved"), (2, "The state of step 10 is saved")):
        with pytest.raises(KeyboardInterrupt):
            fit(make_given(data, poor=poor), data, SHORT, out=tmp_path / str(poor), on_evaluation=stop, progress=False)
        assert words in capsys.readouterr().err
    assert RunFolder(tmp_path / "2").read_checkpoint()["step"] == 10


class SpoiledGradient(SemiSupervisedELBO):
    """The loss is finite, and from the tenth step on its gradient is not a number."""

    calls = 0

    def loss(self, batch: Batch) -> Loss:
        found = super().loss(batch)
        self.calls += 1
        spoiled = 0.0 * next(self.parameters()).square().sum()
        return found if self.calls <= 10 else Loss(found.total + spoiled.sqrt(), found.terms)


@pytest.mark.parametrize("validation", [0, 30])
def test_weights_that_are_not_numbers_are_not_saved(validation: int, tmp_path: Path) -> None:
    data = make_data(validation=validation)
    objective = SpoiledGradient.for_data(M2(data.event_shape, 3, hidden_dims=(8,)), data)
    with pytest.raises(NonFiniteLossError, match=r"Weights are not finite at step 10\..*last\.pt"):
        fit(objective, data, changed(SHORT, evaluate_every=5, max_steps=10), out=tmp_path, progress=False)
    state = RunFolder(tmp_path).read_checkpoint()
    assert state["step"] == 5
    assert all(tensor.isfinite().all() for tensor in state["objective"].values())


@pytest.mark.parametrize("what", ["labels", "rows", "validation"])
def test_a_run_does_not_go_on_with_other_data(what: str, tmp_path: Path) -> None:
    data = make_data()
    fit(make_objective(data), data, changed(SHORT, max_steps=10), out=tmp_path, progress=False)
    labels = torch.where(data.y < 0, -1, 2 - data.y)
    rows = data.x.clone()
    rows[20:] = rows[20:].flip(0)
    other = {
        "labels": replace(data, y=labels),
        "rows": replace(data, x=rows),
        "validation": replace(data, x_validation=data.x_validation[:10], y_validation=data.y_validation[:10]),
    }[what]
    with pytest.raises(RunFolderError, match="was trained on other data"):
        fit(make_objective(other), other, changed(SHORT, max_steps=20), out=tmp_path, resume=True, progress=False)


def test_a_checkpoint_of_an_earlier_version_knows_no_data_and_goes_on(tmp_path: Path) -> None:
    data = make_data()
    fit(make_objective(data), data, changed(SHORT, max_steps=10), out=tmp_path, progress=False)
    folder = RunFolder(tmp_path)
    state = folder.read_checkpoint()
    del state["data"]
    folder.write_checkpoint(state)
    run = fit(make_objective(data), data, changed(SHORT, max_steps=20), out=tmp_path, resume=True, progress=False)
    assert run.steps == 20


def test_frozen_parameters_may_be_infinite() -> None:
    data = make_data()
    objective = make_objective(data)
    mask = torch.nn.Parameter(torch.tensor([0.0, -torch.inf]), requires_grad=False)
    objective.module.register_parameter("mask", mask)
    assert fit(objective, data, changed(SHORT, max_steps=2), progress=False).steps == 2


def test_what_is_done_at_an_evaluation_changes_no_random_number_of_training() -> None:
    data = make_data()
    plain = fit(make_objective(data), data, SHORT, progress=False)
    draw = lambda model, _: model.generate(3, y=1)  # noqa: E731
    drawn = fit(make_objective(data), data, SHORT, on_evaluation=draw, progress=False)
    for name, tensor in plain.last_weights.items():
        assert torch.equal(tensor, drawn.last_weights[name]), name


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"devices": 0}, ValueError, "devices=0 is too small"),
        ({"on_evaluation": 3}, TypeError, "on_evaluation=3 is of type int; a function"),
        ({"settings": {"a": object()}, "out": "run"}, TypeError, "settings must hold numbers, strings"),
        ({"config": replace(SHORT, precision="16-mixed")}, ValueError, "'16-mixed' needs a GPU"),
    ],
)
def test_arguments_are_refused_in_words(
    options: dict[str, Any], error: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = make_data()
    with pytest.raises(error, match=words):
        fit(make_objective(data), data, **{"config": SHORT, "progress": False, **options})


def test_frozen_modules_are_refused() -> None:
    data = make_data()
    objective = make_objective(data)
    objective.module.requires_grad_(False)
    with pytest.raises(ValueError, match="All parameters of the group 'all' are frozen"):
        fit(objective, data, SHORT, progress=False)
    objective.module.decoder.requires_grad_(True)
    objective.bound_weight = 0.0
    with pytest.raises(ValueError, match="The loss of the group 'all' depends on no parameter that is trained"):
        fit(objective, data, SHORT, progress=False)
