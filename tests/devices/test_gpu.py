"""What only a GPU can show; run with ``pytest -m gpu tests/devices``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from pyro_ssvae import FitResult, SemiSupervisedELBO, TrainingConfig, fit, load
from pyro_ssvae.data import BatchStream
from pyro_ssvae.objectives import Objective
from pyro_ssvae.training.config import make_fabric
from pyro_ssvae.training.step import TrainingStep
from tests.devices.cases import NUM_CLASSES, OBJECTIVES, SMALL, get_updates, make_batch, make_data
from tests.training.small_runs import ReadingM2

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
MEMORY_STEPS = int(os.environ.get("PYRO_SSVAE_MEMORY_STEPS", "2000"))  # 10,000 for a thorough check
ONE_OF_EACH = ["m2-images", "m2-dirichlet", "m1-prior-flow", "m1m2-stacked", "ddgm-images-all"]
SETTINGS: dict[str, Any] = {
    "max_steps": 20, "batch_size": 18, "labelled_batch_size": 5, "evaluate_every": 10, "warmup_steps": 2,
    "ema_decay": 0.9, "kl_peak": 3.0, "gradient_clip": 1.0, "binarisation": "dynamic", "device": DEVICE,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # PyTorch allows it in convolutions by default


def train(objective: Objective, out: Path | None = None, *, resume: bool = False, **settings: Any) -> FitResult:
    config = TrainingConfig(**SETTINGS | settings)
    return fit(objective, make_data(objective), config, out=out, resume=resume, progress=False)


def build(name: str) -> Objective:
    torch.manual_seed(1)
    return OBJECTIVES[name]()


def assert_close(found: FitResult, expected: FitResult, rtol: float = 1e-3, atol: float = 1e-4) -> None:
    for name, value in expected.last_weights.items():
        weight = found.last_weights[name]
        torch.testing.assert_close(weight, value, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def make_step(objective: Objective, mode: str) -> TrainingStep:
    config = TrainingConfig(**SETTINGS | {"compile": mode})
    sizes = {"batch_size": config.batch_size, "labelled_batch_size": config.labelled_batch_size}
    stream = BatchStream(make_data(objective), **sizes, device=DEVICE, binarisation=config.binarisation)
    step = TrainingStep(objective, stream, config, make_fabric(config), MEMORY_STEPS)
    step.check()
    return step


# Steps.


@pytest.mark.parametrize("name", OBJECTIVES)
def test_captured_steps_equal_eager_ones(name: str) -> None:
    eager, captured = train(build(name), compile="eager"), train(build(name), compile="graph")
    assert (eager.step_mode, captured.step_mode, captured.why_eager) == ("eager", "graph", None)
    assert_close(captured, eager)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_does_not_wait_for_the_gpu(name: str) -> None:
    step = make_step(build(name), "eager")
    step(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(1)
        step(MEMORY_STEPS - 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_loss_scaling_runs_eagerly_and_trains_alike() -> None:
    scaled = train(build("m2-bernoulli"), precision="16-mixed", learning_rate=1e-3)
    assert (scaled.step_mode, scaled.why_eager) == ("eager", None)
    assert_close(scaled, train(build("m2-bernoulli"), learning_rate=1e-3), rtol=0.05, atol=0.02)


def test_a_model_that_cannot_be_captured_trains_eagerly() -> None:
    objective = SemiSupervisedELBO(ReadingM2((5,), NUM_CLASSES, **SMALL), num_labelled=10, num_unlabelled=50)
    with pytest.warns(UserWarning, match="run eagerly"):
        assert train(objective).step_mode == "eager"


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_memory_does_not_grow(name: str) -> None:
    step = make_step(build(name), "graph")
    allocated = []
    for number in range(MEMORY_STEPS):
        step(number)
        if number in (MEMORY_STEPS // 10, MEMORY_STEPS - 1):
            step.take_means()
            torch.cuda.synchronize()
            allocated.append(torch.cuda.memory_allocated())
    assert step.mode == "graph"
    assert allocated[1] - allocated[0] <= 2**20


# Between devices.


def _draw_on_the_cpu(shape: torch.Size, dtype: torch.dtype, device: torch.device, **_: Any) -> Tensor:
    return torch.randn(shape, dtype=dtype).to(device)


@pytest.mark.parametrize(
    "name",
    ["m2-bernoulli", "m2-mixed", "m2-prior-vamp", "m2-importance-weighted", "m1-prior-flow", "m1-prior-student_t",
     "m1m2-joint", "ddgm-images", "ddgm-mle"],
)  # fmt: skip
def test_losses_agree_with_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All draws are made on the CPU, so that they are the same."""
    monkeypatch.setattr("torch.distributions.normal._standard_normal", _draw_on_the_cpu)
    monkeypatch.setattr("torch.distributions.uniform.torch.rand", _rand_on_the_cpu(torch.rand))
    monkeypatch.setattr(torch, "randn_like", lambda x, **_: torch.randn(x.shape, dtype=x.dtype).to(x.device))
    objective = build(name).eval()
    batch = make_batch(objective, "cpu")
    totals = []
    for device in ("cpu", DEVICE):
        objective = objective.to(device)
        here = type(batch)(*(None if part is None else part.to(device) for part in batch))
        pyro.set_rng_seed(0)
        totals.append([float(update.loss(here).total.detach()) for update in get_updates(objective)])
    torch.testing.assert_close(torch.tensor(totals[1]), torch.tensor(totals[0]), rtol=1e-4, atol=1e-4)


def _rand_on_the_cpu(rand: Any) -> Any:
    return lambda *shape, device=None, **options: rand(*shape, **options).to(device or "cpu")


@pytest.mark.parametrize("name", ["m2-images", "m2-dirichlet", "m1-prior-flow", "m1m2-joint", "ddgm-classes"])
def test_a_model_trained_on_cuda_predicts_the_same_on_the_cpu(name: str, tmp_path: Path) -> None:
    objective = build(name)
    train(objective, tmp_path)
    model, twin = objective.module, load(tmp_path)
    x = make_data(objective).x_validation
    method = "transform" if model.num_classes is None else "predict_proba"
    found, expected = getattr(twin, method)(x), getattr(model, method)(x)
    assert (found.device.type, expected.device.type) == ("cpu", DEVICE)
    torch.testing.assert_close(found, expected.cpu(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_run_resumes(name: str, tmp_path: Path) -> None:
    straight = train(build(name))
    broken = train(build(name), tmp_path, max_minutes=1e-9)
    assert broken.steps < straight.steps
    assert_close(train(build(name), tmp_path, resume=True), straight)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", ["m2-images", "m1-prior-flow", "ddgm-images-all"])
def test_two_gpus_train_as_one(name: str) -> None:
    """Their messages go through NCCL."""
    sizes = {"batch_size": 34, "labelled_batch_size": 6}
    config = TrainingConfig(**SETTINGS | sizes | {"max_steps": 5})  # with more, rounding errors grow
    weights = []
    for devices in (2, 1):
        objective = build(name)
        fit(objective, make_data(objective), config, devices=devices, progress=False)
        weights.append({key: value.cpu() for key, value in objective.module.state_dict().items()})
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-3)
