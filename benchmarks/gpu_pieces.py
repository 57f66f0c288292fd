"""The pieces of benchmarks/gpu_check.py."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pyro
import torch
from contenders import Contender, HandWritten, Ours, TutorialPyro
from gpu_check import Report
from machine import get_memory
from step import make_batches, measure_floors, take_seconds
from torch.profiler import ProfilerActivity, profile

import pyro_ssvae as ss
from pyro_ssvae.data import make_toy_data
from pyro_ssvae.evaluation import log_likelihood, measure_image_model, measure_toy_model
from pyro_ssvae.models.diagnostics import classification_error
from pyro_ssvae.presets import DDGM_IMAGES, DDGM_TOY, M1_BELOW, PURE

ROOT = Path(__file__).parents[1]
EAGER: dict[str, Any] = {"compile": "eager"}  # arguments of TrainingConfig and of Ours
_SMALL = {"hidden_dims": [32]}


def _train_m2(report: Report, data: Any, steps: int, out: Path | None = None, **settings: Any) -> tuple[Any, Any]:
    """Train pure M2 for a number of steps and return the model and what ``fit`` returned."""
    resume = settings.pop("resume", False)
    pyro.set_rng_seed(1)
    model = ss.M2(data.event_shape, data.num_classes, **PURE.model, **report.choose({}, _SMALL))
    # A short run is compared with another: rounding must not change which class top-k picks.
    exact = {"enumeration": "exact"} if steps <= 100 else {}
    objective = ss.SemiSupervisedELBO.for_data(model, data, pure=True, **PURE.objective | exact)
    changes = {"max_epochs": None, "max_steps": steps, "device": report.device, "evaluate_every": max(1, steps // 5)}
    config = ss.TrainingConfig(**PURE.training | changes | settings)
    return model, ss.fit(objective, data, config, out=out, resume=resume, progress=False)


def _compare_weights(report: Report, what: str, *runs: Any) -> None:
    """Add the largest difference of two runs, relative to the largest weight of each tensor."""
    first, second = (run.last_weights for run in runs)
    weights = [(a.float().cpu(), second[name].float().cpu()) for name, a in first.items()]
    difference = max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-3)) for a, b in weights)
    report.add_limited(f"{what}, largest relative difference", difference, 1e-3)


def check_everything(report: Report) -> None:
    """Compare captured with eager steps and CUDA with the CPU; save, load, resume; watch memory; run pytest."""
    data = report.load()
    for check in (_check_bound, _check_capture, _check_load, _check_resume):
        report.try_part(check.__name__[1:], check, report, data)
    for check in (_check_memory, _check_commands):
        report.try_part(check.__name__[1:], check, report)


def _check_bound(report: Report, data: ss.SemiSupervisedData) -> None:
    torch.backends.cudnn.allow_tf32 = False  # PyTorch allows it in convolutions by default
    pyro.set_rng_seed(0)
    model = ss.M2(data.event_shape, data.num_classes)
    x, noise = data.x[:100].float() / data.scale, torch.randn(model.num_classes, 100, model.latent_dim)
    bounds = []
    for device in ("cpu", report.device):
        model, x, noise = (one.to(device) for one in (model, x, noise))
        y = torch.arange(model.num_classes, device=device)[:, None]
        with torch.no_grad():
            qz = model.encode(x, y)
            z = qz.base_dist.loc + qz.base_dist.scale * noise
            bound = model.decode(y, z).log_prob(x) + model.prior().log_prob(z) - qz.log_prob(z)
            qy = model.classify(x).softmax(-1).T
            bounds.append(float((qy * (bound - qy.log())).sum(0).mean()))
    difference = abs(bounds[0] - bounds[1]) / abs(bounds[0])
    report.add_limited("bound, CPU against device, relative difference", difference, 1e-4)


def _check_capture(report: Report, data: ss.SemiSupervisedData) -> None:
    captured, eager = (_train_m2(report, data, 60, **settings)[1] for settings in ({}, EAGER))
    report.add("steps ran as", f"{captured.step_mode}; {captured.why_eager or 'as wanted'}")
    _compare_weights(report, "captured against eager, 60 steps", captured, eager)


def _check_load(report: Report, data: ss.SemiSupervisedData) -> None:
    code = "import torch, pyro_ssvae; torch.save(pyro_ssvae.load('run').predict(torch.load('x.pt')), 'y.pt')"
    with tempfile.TemporaryDirectory() as folder:
        model, _ = _train_m2(report, data, 40, out=Path(folder, "run"))
        x = data.x_test[:1000].float() / data.scale
        torch.save(x, Path(folder, "x.pt"))
        environment = _make_environment(CUDA_VISIBLE_DEVICES="")
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)
        found = torch.load(Path(folder, "y.pt"))
    agreement = float((found == model.predict(x.to(report.device)).cpu()).float().mean())
    report.add("a model trained here, loaded without CUDA: equal predictions", agreement, "≥ 0.999", agreement >= 0.999)


def _check_resume(report: Report, data: ss.SemiSupervisedData) -> None:
    with tempfile.TemporaryDirectory() as folder:
        straight = _train_m2(report, data, 60)[1]
        _train_m2(report, data, 60, out=Path(folder, "run"), max_minutes=1e-9)
        resumed = _train_m2(report, data, 60, out=Path(folder, "run"), resume=True)[1]
    _compare_weights(report, "resumed against uninterrupted", straight, resumed)


def _check_memory(report: Report) -> None:
    contender = Ours(num_classes=10, device=report.device, enumeration="top-k")
    batches, total, sizes = make_batches(200, 50, 10, device=report.device), report.choose(10_000, 300), []
    for number, batch in zip(range(total), cycle(batches), strict=False):
        contender.step(*batch)
        if number in (total // 5, total - 1):
            sizes.append(torch.cuda.memory_allocated() / 2**20 if report.cuda else get_memory())
    report.add_limited(f"growth of memory over {total:,} steps, MiB", sizes[1] - sizes[0], report.choose(1.0, 50.0))


def _check_commands(report: Report) -> None:
    """Run the tests that need a GPU, and an example."""
    tests = ["-m", "pytest", "-q", "-o", "addopts=", "-o", "filterwarnings=default", "--import-mode=importlib"]
    tests += ["-m", "gpu", *report.choose([], ["--collect-only", "tests/devices"])]
    place = ["--data-dir", report.data_dir] if report.data_dir else []
    data = report.choose(["--data", "mnist", *place], ["--data", "digits", "--max-minutes", "0.05"])
    with tempfile.TemporaryDirectory() as folder:
        example = ["examples/m2.py", "--out", f"{folder}/run", "--device", report.device, *data]
        for name, command in (("pytest -m gpu", tests), ("examples/m2.py", example)):
            report.try_part(name, _run_command, report, name, command)


def _run_command(report: Report, name: str, command: list[str]) -> None:
    command, options = [sys.executable, *command], {"capture_output": True, "text": True, "timeout": 300}
    found = subprocess.run(command, cwd=ROOT, env=_make_environment(), **options)
    lines = (found.stdout.strip() or found.stderr.strip() or "no output").splitlines()
    output = (found.stdout + found.stderr)[-4000:]
    report.add(name, lines[-1][:120].replace("|", "/"), "status 0", found.returncode == 0, output=output)


def _make_environment(**changes: str) -> dict[str, str]:
    """Return the environment, with this checkout on the path of Python."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **changes}


def time_step(contender: Contender, batches: list[tuple], report: Report) -> float:
    """Return the median milliseconds of a step over blocks of steps."""
    following = cycle(batches)
    for _ in range(contender.warm_up + 3):
        contender.step(*next(following))
    return 1000.0 * statistics.median(take_seconds(lambda: contender.step(*next(following)), report.choose(2.0, 0.2)))


def measure_steps(report: Report) -> None:
    """Time one training step, ours captured against stock Pyro and PyTorch by hand in a CUDA graph; then a profile."""
    settings = [(10, 200, "fp32"), (10, 200, "bf16"), (10, 200, "tf32"), (10, 4096, "fp32"), (100, 200, "fp32")]
    settings += [(10, 4096, "bf16"), (100, 200, "bf16"), (1000, 200, "fp32"), (1000, 200, "bf16"), (100, 4096, "bf16")]
    for classes, batch, precision in report.choose(settings, [(10, 20, "fp32"), (20, 20, "bf16")]):
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        _compare_steps(report, classes, batch, precision)
    torch.set_float32_matmul_precision("highest")
    for name in ("exact", "top-k"):
        report.try_part(f"profile, {name}", _profile_step, report, name)
    report.try_part("least time", _compare_with_floor, report)


def _compare_steps(report: Report, classes: int, batch: int, precision: str) -> None:
    setting = f"{classes} classes, batch {batch}, {precision}"
    given: dict[str, Any] = {"num_classes": classes, "device": report.device}
    half = {"bf16": True} if precision == "bf16" else {}
    ours = {**given, **half, **(EAGER if report.tiny and half else {})}  # compilation takes a minute on a CPU
    makers: dict[str, Callable[[], Contender]] = {
        "stock Pyro, as in its tutorial (fp32)": partial(TutorialPyro, **given),
        "PyTorch by hand in a CUDA graph": partial(HandWritten, graph=report.cuda, **given, **half),
        "ours, exact": partial(Ours, **ours),
        "ours, top-k": partial(Ours, enumeration="top-k", **ours),
        "ours, exact, eager": partial(Ours, **{**ours, **EAGER}),
    }
    tutorial, by_hand, *_ = makers
    found: dict[str, float] = {}

    def measure(name: str) -> None:
        found[name] = time_step(makers[name](), make_batches(batch, 0, classes, device=report.device), report)
        times = {other: found[other] / found[name] for other in (tutorial, by_hand) if other in found}
        rate = 1000 * batch / found[name]
        text = f"{found[name]:.3f} ms, {rate:,.0f} examples/s" + "".join(f", {t:.2f} × {o}" for o, t in times.items())
        target, passed = "", None
        if name == "ours, exact" and (classes, batch, precision) == (10, 200, "fp32") and len(times) == 2:
            target, passed = "≥ 30 × and ≥ 0.8 ×", times[tutorial] >= 30 and times[by_hand] >= 0.8
        if name == "ours, top-k" and (classes, batch) == (10, 4096):
            target, passed = "≥ 1,000,000 examples/s", rate >= 1e6
        report.add(f"{setting}: {name}", text, target, passed, milliseconds=found[name])

    for name in makers:
        report.try_part(f"{setting}: {name}", measure, name)


def _profile_step(report: Report, enumeration: str) -> None:
    batch = make_batches(report.choose(200, 20), 0, 10, device=report.device, number=1)[0]
    contender = Ours(num_classes=10, device=report.device, enumeration=enumeration)
    for _ in range(contender.warm_up + 3):
        contender.step(*batch)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if report.cuda else [])]) as profiler:
        for _ in range(10):
            contender.step(*batch)
        if report.cuda:
            torch.cuda.synchronize()
    key = "self_device_time_total" if report.cuda else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, key))
    for event in events[: report.choose(12, 3)]:
        name = f"profile, {enumeration}: {event.key[:80].replace('|', '/')}"
        report.add(name, f"{getattr(event, key) / 10:.1f} µs, {event.count / 10:g} calls per step")


def _compare_with_floor(report: Report) -> None:
    batch = report.choose(200, 20)
    rates, steps = measure_floors(report.device, report.choose([10, 100, 1000], [10]), batch)
    report.add("rates, fp32", ", ".join(f"{name} {value:,g}" for name, value in rates.items()))
    for step in steps:
        parts = ", ".join(f"{name} {step[name]:.4f} ms" for name in ("products", "moving", "activations"))
        work = f"{step['gflop']:.3g} GFLOP, {step['gb']:.3g} GB"
        report.add(f"least time, {step['classes']} classes, {step['sum']}, batch {batch}", f"{work}: {parts}", **step)


def train_m2(report: Report) -> None:
    """Train pure M2 for 500 epochs of MNIST."""
    data = report.load()
    for precision in ("32-true", "bf16-mixed"):
        report.try_part(f"pure M2, {precision}", _train_long, report, data, precision)


def _train_long(report: Report, data: ss.SemiSupervisedData, precision: str) -> None:
    steps = report.choose(500 * -(-data.num_unlabelled // 200), 30)
    model, run = _train_m2(report, data, steps, batch_size=200, precision=precision)
    error = classification_error(model, data.x_test, data.y_test, scale=data.scale) or 0.0
    words = f"pure M2, {run.epochs:.0f} epochs of batches of 200, {precision}"
    more = {"steps": run.steps, "step_mode": run.step_mode, "test_error": error}
    report.add_limited(f"{words}: seconds", run.train_seconds, 60.0 if precision == "32-true" else math.inf, **more)
    report.add(f"{words}: test error at {data.num_labelled} labels, %", 100.0 * error)


def train_m1(report: Report) -> None:
    """Train M1 under two priors and estimate log p(x) of the test examples."""
    data = report.load("all").without_labels()
    for prior in ("flow", "normal"):
        report.try_part(f"M1, {prior} prior", _train_one_m1, report, data, prior)


def _train_one_m1(report: Report, data: ss.SemiSupervisedData, prior: str) -> None:
    pyro.set_rng_seed(0)
    model = ss.M1(data.event_shape, **M1_BELOW.model | {"prior": prior} | report.choose({}, _SMALL))
    changes = {"max_epochs": None, "max_steps": report.choose(100_000, 20), "max_minutes": 3.0}
    config = ss.TrainingConfig(**M1_BELOW.training | changes, device=report.device)
    run = ss.fit(ss.UnsupervisedELBO.for_data(model, data), data, config, progress=False)
    report.add(f"M1, {prior} prior: seconds of training", run.train_seconds, steps=run.steps, step_mode=run.step_mode)
    samples, started = report.choose(5000, 20), time.perf_counter()
    found = log_likelihood(model, data.x_test, num_samples=samples, scale=data.scale, binarisation="dynamic")
    seconds = time.perf_counter() - started
    words = f"M1, {prior} prior, {len(data.x_test):,} examples by {samples:,} samples"
    report.add(f"{words}: −log p(x), nats", f"{-found.mean:.2f} ± {found.mean_error:.3f}", log_likelihood=found.mean)
    report.add_limited(f"{words}: seconds", seconds, 20.0)


def train_ddgm(report: Report) -> None:
    """Train DDGM on MNIST and on the ring by the presets, and measure it."""
    known = report.load("all")
    report.try_part("DDGM, mnist", _train_one_ddgm, report, known.without_labels(), known)
    report.try_part("DDGM, ring", _train_one_ddgm, report, make_toy_data("ring", seed=0))


def _train_one_ddgm(report: Report, data: ss.SemiSupervisedData, known: Any = None) -> None:
    preset, name, most = (DDGM_TOY, "ring", math.inf) if known is None else (DDGM_IMAGES, "mnist", 120.0)
    pyro.set_rng_seed(0)
    model = ss.DDGM(data.event_shape, **preset.model)
    objective = ss.EnergyObjective.for_data(model, data, **preset.objective)
    changes = report.choose({}, {"max_steps": 6, "batch_size": 16, "evaluate_every": 3})
    run = ss.fit(objective, data, ss.TrainingConfig(**preset.training | changes, device=report.device), progress=False)
    report.add_limited(f"DDGM, {name}, {run.steps:,} steps, {run.step_mode}: seconds", run.train_seconds, most)
    few: dict[str, Any] = report.choose({}, {"num_samples": 50})
    found = measure_toy_model(model, name, **few) if known is None else measure_image_model(model, data, known, **few)
    for key, value in found.items():
        if isinstance(value, (int, float)):
            report.add(f"DDGM, {name}: {key}", float(value))


def measure_scale(report: Report) -> None:
    """Time steps and measure memory over numbers of classes and batch sizes."""
    for enumeration in ("top-k", "exact"):
        for classes in report.choose((10, 100, 1000, 10_000), (10,)):
            for batch in report.choose((200, 1024, 4096, 16_384), (20, 40)):
                if enumeration == "top-k" or classes * batch <= 500_000:
                    name = f"{enumeration}, {classes:,} classes, batch {batch:,}"
                    report.try_part(name, _measure_size, report, name, enumeration, classes, batch)


def _measure_size(report: Report, name: str, enumeration: str, classes: int, batch: int) -> None:
    if report.cuda:
        torch.cuda.reset_peak_memory_stats()
    contender = Ours(num_classes=classes, device=report.device, enumeration=enumeration)
    milliseconds = time_step(contender, make_batches(batch, 0, classes, device=report.device, number=4), report)
    peak = round(torch.cuda.max_memory_allocated() / 2**20) if report.cuda else get_memory()
    text = f"{milliseconds:.3f} ms, {1000 * batch / milliseconds:,.0f} examples/s, {peak:,} MiB"
    report.add(name, text, milliseconds=milliseconds, peak_mib=peak)


# The most important first.
PIECES: dict[str, Callable[[Report], None]] = {"tests": check_everything, "step": measure_steps, "train": train_m2}
PIECES |= {"m1": train_m1, "ddgm": train_ddgm, "scale": measure_scale}
