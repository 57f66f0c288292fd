"""Every mode of a step trains the same model, and falls back to eager steps where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ssvae import M1, M2, FitResult, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, UnsupervisedELBO, fit
from pyro_ssvae.data import BatchStream
from pyro_ssvae.errors import EnumerationError
from pyro_ssvae.models import data_plate
from pyro_ssvae.training.compilation import has_compiler
from pyro_ssvae.training.config import make_fabric
from pyro_ssvae.training.step import MovingAverage, TrainingStep
from tests.training.small_runs import ReadingM2

SETTINGS: dict[str, Any] = {
    "max_steps": 24, "batch_size": 16, "labelled_batch_size": 5, "evaluate_every": 8, "warmup_steps": 2,
    "ema_decay": 0.9, "device": "cpu", "kl_peak": 3.0, "gradient_clip": 1.0,
}  # fmt: skip


def make_data(unit: float = 1.0) -> SemiSupervisedData:
    generator = torch.Generator().manual_seed(0)
    x = unit * torch.rand(70, 1, 8, 8, generator=generator)
    y = torch.cat([torch.arange(10) % 3, torch.full((60,), -1)])
    return SemiSupervisedData.from_arrays(x, y, x_validation=x[:20], y_validation=torch.arange(20) % 3)


def train(
    model_class: type[M2] = M2,
    *,
    objective: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    unit: float = 1.0,
    **settings: Any,
) -> tuple[FitResult, dict[str, Tensor]]:
    data = make_data(unit)
    torch.manual_seed(1)
    module = model_class(data.event_shape, 3, **{"latent_dim": 2, "hidden_dims": (12,)} | (model or {}))
    loss = SemiSupervisedELBO.for_data(module, data, **(objective or {}))
    run = fit(loss, data, TrainingConfig(**SETTINGS | settings), progress=False)
    return run, run.last_weights


PURE: dict[str, Any] = {"objective": {"pure": True}, "model": {"classifier": "mlp"}}


@pytest.mark.usefixtures("traced_or_compiled")
@pytest.mark.parametrize(
    ("objective", "model", "settings"),
    [
        ({"pure": True}, {"classifier": "mlp"}, {}),
        ({"pure": True}, {"classifier": "conv"}, {}),  # with dropout
        ({}, {}, {}),  # with augmentation and consistency
        (
            {"pure": True, "enumeration": "top-k"},
            {"classifier": "mlp", "class_prior": "dirichlet", "likelihood": "gaussian", "batch_norm": True},
            {"precision": "64-true", "unit": 100.0},
        ),
    ],
)
def test_compiled_training_equals_eager_training_up_to_rounding(
    objective: dict[str, Any], model: dict[str, Any], settings: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"objective": objective, "model": model, **settings}
    _, expected = train(**options, compile="eager")
    run, found = train(**options, compile="compiled")
    assert (run.step_mode, run.why_eager) == ("compiled", None)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def test_a_step_that_inductor_compiles_equals_an_eager_one() -> None:
    assert has_compiler(), "this test compiles C++"
    data = make_data().without_labels()
    weights = []
    for mode in ("eager", "compiled"):
        torch.manual_seed(1)
        objective = UnsupervisedELBO.for_data(M1(data.event_shape, latent_dim=2, hidden_dims=()), data)
        run = fit(objective, data, TrainingConfig(**SETTINGS | {"compile": mode}), progress=False)
        assert (run.step_mode, run.why_eager) == (mode, None)
        weights.append(run.last_weights)
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4)


def test_auto_is_eager_on_a_cpu_for_short_schedules_and_for_the_stock_elbo() -> None:
    for options in ({}, {"elbo": "stock"}):
        run, _ = train(objective=options)
        assert (run.step_mode, run.why_eager) == ("eager", None)


def test_auto_compiles_long_schedules_and_earlier_with_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data()
    config = TrainingConfig(**SETTINGS)

    def mode(total: int, num_classes: int = 3, **options: Any) -> str:
        stream = BatchStream(data, batch_size=16, labelled_batch_size=5)
        objective = SemiSupervisedELBO.for_data(M2(data.event_shape, num_classes), data, **options)
        return TrainingStep(objective, stream, config, make_fabric(config), total).mode

    assert [mode(total) for total in (9_999, 10_000)] == ["eager", "compiled"]
    assert [mode(total, 100) for total in (999, 1_000)] == ["eager", "compiled"]
    assert mode(9_999, 100, enumeration="top-k") == "eager"
    monkeypatch.setattr("pyro_ssvae.training.compilation.has_compiler", lambda: False)
    assert mode(10_000) == "eager"
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler"):
        train(compile="compiled")


def test_a_model_that_synchronises_trains_eagerly_with_a_reason() -> None:
    with pytest.warns(UserWarning, match="run eagerly.*RuntimeError.*_local_scalar_dense") as caught:
        run, found = train(ReadingM2, compile="compiled")
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert run.step_mode == "eager"
    assert run.why_eager is not None
    _, expected = train(compile="eager")
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


class _Annealed(M2):
    """Changes with a Python number that counts its own calls, which a compiled step cannot follow."""

    calls = 0

    def decode(self, y: Tensor, z: Tensor) -> Any:
        self.calls += self.training
        return super().decode(y, z * (1.0 + 0.1 * self.calls))


@pytest.mark.usefixtures("traced_or_compiled")
def test_a_model_with_python_state_is_detected() -> None:
    with pytest.warns(UserWarning, match="depend on Python values"):
        run, _ = train(_Annealed, **PURE, compile="compiled")
    assert run.step_mode == "eager"


@pytest.mark.usefixtures("traced_or_compiled")
@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_parameters_may_be_frozen_for_a_time(mode: str) -> None:
    data, decoders = make_data(), []

    def watch(module: M2, metrics: dict[str, Any]) -> None:
        decoders.append(torch.cat([part.detach().flatten() for part in module.decoder.parameters()]))
        module.decoder.requires_grad_(len(decoders) == 1)

    m2 = M2(data.event_shape, 3, latent_dim=2, hidden_dims=(12,), classifier="mlp")
    m2.decoder.requires_grad_(False)
    settings = SETTINGS | {"ema_decay": 0.0, "compile": mode}
    run = fit(
        SemiSupervisedELBO.for_data(m2, data, pure=True),
        data,
        TrainingConfig(**settings),
        progress=False,
        on_evaluation=watch,
    )
    assert run.step_mode == mode
    assert not torch.equal(decoders[0], decoders[1])  # trained between these evaluations alone
    torch.testing.assert_close(decoders[1], decoders[2], rtol=0, atol=0)


def test_a_guide_that_enumerates_nothing_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    class Forgetful(M2):
        def guide(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
            with data_plate(x, size):
                if y is None:
                    y = pyro.sample("y", dist.Categorical(logits=self.classify(x)))
                pyro.sample("z", self.encode(x, y))

    data = make_data()
    objective = SemiSupervisedELBO.for_data(Forgetful(data.event_shape, 3), data)
    with pytest.raises(EnumerationError):
        fit(objective, data, TrainingConfig(**SETTINGS), out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_graph_needs_cuda() -> None:
    with pytest.raises(ValueError, match="CUDA graph"):
        train(compile="graph")


def test_the_average_of_a_captured_step_is_the_same() -> None:
    found = []
    for captured in (False, True):
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 4)
        average = MovingAverage(module, 0.9, captured=captured)
        for step in range(20):
            with torch.no_grad():
                module.weight.add_(torch.randn(4, 3))
            average.set_step(step)
            average.update()
        found.append(average.state_dict()["average"])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
