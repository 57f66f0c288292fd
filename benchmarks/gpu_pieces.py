"""The pieces of benchmarks/gpu_check.py."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from contenders import Contender, HandWritten, Ours, TutorialPyro
from floor import measure_floors
from gpu_check import ROOT, Options, Report
from machine import get_resident_memory
from step import make_batches
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

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
)
from pyro_ssvae.data import make_toy_data
from pyro_ssvae.evaluation import log_likelihood, measure_image_model, measure_toy_model
from pyro_ssvae.presets import DDGM_IMAGES, DDGM_TOY, M1_BELOW, PURE

EAGER: dict[str, Any] = {"compile": "eager"}  # arguments of TrainingConfig and of Ours
PRECISIONS: dict[str, dict[str, Any]] = {"fp32": {}, "tf32": {}, "bf16": {"precision": "bf16"}}


def _train_m2(options: Options, data: SemiSupervisedData, steps: int, out: Path | None = None, **settings: Any) -> Any:
    """Train pure M2 for a number of steps and return the model and what ``fit`` returned."""
    resume = settings.pop("resume", False)
    pyro.set_rng_seed(1)
    model = M2(data.event_shape, data.num_classes, **PURE.model, **options.choose({}, {"hidden_dims": [32]}))
    # A short run is compared with another: rounding must not change which class top-k picks.
    exact = {"enumeration": "exact"} if steps <= 100 else {}
    objective = SemiSupervisedELBO.for_data(model, data, pure=True, **PURE.objective | exact)
    changes = {"max_epochs": None, "max_steps": steps, "device": options.device, "evaluate_every": max(1, steps // 5)}
    config = TrainingConfig(**PURE.training | changes | settings)
    return model, fit(objective, data, config, out=out, resume=resume, progress=False)


def _compare_weights(first: Any, second: Any) -> float:
    """Return the largest difference of two states, relative to the largest weight of each tensor."""
    pairs = [(a.float().cpu(), second[name].float().cpu()) for name, a in first.items()]
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-3)) for a, b in pairs)


# tests


def check_everything(report: Report, options: Options) -> None:
    """Compare captured with eager steps and CUDA with the CPU; save, load, resume; watch memory; run pytest."""
    data = options.load()
    for check in (_check_bound, _check_capture, _check_load, _check_resume):
        report.try_part(check.__name__[1:], partial(check, report, options, data))
    for check in (_check_memory, _check_pytest, _check_example):
        report.try_part(check.__name__[1:], partial(check, report, options))


def _check_bound(report: Report, options: Options, data: SemiSupervisedData) -> None:
    torch.backends.cudnn.allow_tf32 = False  # PyTorch allows it in convolutions by default
    pyro.set_rng_seed(0)
    model = M2(data.event_shape, data.num_classes)
    x, noise = data.x[:100].float() / data.scale, torch.randn(model.num_classes, 100, model.latent_dim)
    bounds = []
    for device in ("cpu", options.device):
        model = model.to(device)
        x, noise = x.to(device), noise.to(device)
        y = torch.arange(model.num_classes, device=device)[:, None]
        with torch.no_grad():
            qz = model.encode(x, y)
            z = qz.base_dist.loc + qz.base_dist.scale * noise
            bound = model.decode(y, z).log_prob(x) + model.prior().log_prob(z) - qz.log_prob(z)
            qy = model.classify(x).softmax(-1).T
            bounds.append(float((qy * (bound - qy.log())).sum(0).mean()))
    difference = abs(bounds[0] - bounds[1]) / abs(bounds[0])
    report.add("bound, CPU against device, relative difference", difference, "≤ 1e-4", difference <= 1e-4)


def _check_capture(report: Report, options: Options, data: SemiSupervisedData) -> None:
    captured, eager = (_train_m2(options, data, 60, **settings)[1] for settings in ({}, EAGER))
    difference = _compare_weights(captured.last_weights, eager.last_weights)
    report.add("steps ran as", f"{captured.step_mode}; {captured.why_eager or 'as wanted'}")
    report.add(
        "captured against eager, 60 steps, largest relative difference", difference, "≤ 1e-3", difference <= 1e-3
    )


def _check_load(report: Report, options: Options, data: SemiSupervisedData) -> None:
    code = (
        "import sys, torch, pyro_ssvae; model = pyro_ssvae.load(sys.argv[1]); x = torch.load(sys.argv[2]); "
        "torch.save(model.predict(x), sys.argv[3])"
    )
    with tempfile.TemporaryDirectory() as folder:
        model, _ = _train_m2(options, data, 40, out=Path(folder, "run"))
        x = data.x_test[:1000].float() / data.scale
        torch.save(x, f"{folder}/x.pt")
        expected = model.predict(x.to(options.device)).cpu()
        paths = [f"{folder}/run", f"{folder}/x.pt", f"{folder}/y.pt"]
        hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": _python_path()}
        subprocess.run([sys.executable, "-c", code, *paths], env=hidden, check=True)
        agreement = float((torch.load(f"{folder}/y.pt") == expected).float().mean())
    report.add("a model trained here, loaded without CUDA: equal predictions", agreement, "≥ 0.999", agreement >= 0.999)


def _check_resume(report: Report, options: Options, data: SemiSupervisedData) -> None:
    with tempfile.TemporaryDirectory() as folder:
        straight = _train_m2(options, data, 60)[1]
        _train_m2(options, data, 60, out=Path(folder, "run"), max_minutes=1e-9)
        resumed = _train_m2(options, data, 60, out=Path(folder, "run"), resume=True)[1]
    difference = _compare_weights(straight.last_weights, resumed.last_weights)
    report.add("resumed against uninterrupted, largest relative difference", difference, "≤ 1e-3", difference <= 1e-3)


def _check_memory(report: Report, options: Options) -> None:
    contender = Ours(num_classes=10, device=options.device, enumeration="top-k")
    batches = make_batches(200, 50, 10, device=options.device)
    total = options.choose(10_000, 300)
    sizes = []
    for number in range(total):
        contender.step(*batches[number % len(batches)])
        if number in (total // 5, total - 1):
            options.synchronise()
            sizes.append(torch.cuda.memory_allocated() if options.cuda else get_resident_memory())
    growth = (sizes[1] - sizes[0]) / 2**20
    report.add(f"growth of memory over {total:,} steps, MiB", growth, "≤ 1", growth <= options.choose(1.0, 50.0))


def _check_pytest(report: Report, options: Options) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-o", "filterwarnings=default"]
    command += ["--import-mode=importlib", "-m", "gpu", *options.choose([], ["--collect-only"]), "tests/devices"]
    _run_command(report, "pytest -m gpu", command[: None if options.tiny else -1])


def _check_example(report: Report, options: Options) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "examples/m2.py", "--out", f"{folder}/run"]
        command += ["--cuda"] if options.cuda else ["--device", "cpu"]
        command += options.choose(["--data", "mnist"], ["--data", "digits", "--max-minutes", "0.05"])
        place = ["--data-dir", options.data_dir] if options.data_dir and not options.tiny else []
        _run_command(report, "examples/m2.py", command + place)


def _run_command(report: Report, name: str, command: list[str]) -> None:
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": _python_path()}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    lines = (found.stdout.strip() or found.stderr.strip() or "no output").splitlines()
    more = {"seconds": time.perf_counter() - started, "output": (found.stdout + found.stderr)[-4000:]}
    report.add(name, lines[-1][:120].replace("|", "/"), "status 0", found.returncode == 0, **more)


def _python_path() -> str:
    return os.pathsep.join(path for path in (str(ROOT), os.environ.get("PYTHONPATH")) if path)


# step


def time_step(contender: Contender, batches: list[tuple[Tensor, ...]], options: Options) -> float:
    """Return the median milliseconds of a step over blocks of steps."""
    for number in range(contender.warm_up + 3):
        contender.step(*batches[number % len(batches)])
    times: list[float] = []
    ends = time.perf_counter() + options.choose(2.0, 0.2)
    while len(times) < 3 or time.perf_counter() < ends:
        options.synchronise()
        started = time.perf_counter()
        for batch in batches:
            contender.step(*batch)
        options.synchronise()
        times.append(1000.0 * (time.perf_counter() - started) / len(batches))
    return statistics.median(times)


def measure_steps(report: Report, options: Options) -> None:
    """Time one training step, ours captured against stock Pyro and PyTorch by hand in a CUDA graph; then a profile."""
    settings = [(10, 200, "fp32"), (10, 200, "bf16"), (10, 200, "tf32"), (10, 4096, "fp32"), (100, 200, "fp32")]
    settings += [(10, 4096, "bf16"), (100, 200, "bf16"), (1000, 200, "fp32"), (1000, 200, "bf16"), (100, 4096, "bf16")]
    for classes, batch, precision in options.choose(settings, [(10, 20, "fp32"), (20, 20, "bf16")]):
        _compare_steps(report, options, classes, batch, precision)
    for name in ("exact", "top-k"):
        report.try_part(f"profile, {name}", partial(_profile_step, report, options, name))
    report.try_part("least time", lambda: _compare_with_floor(report, options))
    _set_tf32(False)


def _compare_steps(report: Report, options: Options, classes: int, batch: int, precision: str) -> None:
    _set_tf32(precision == "tf32")
    given: dict[str, Any] = {"num_classes": classes, "device": options.device, **PRECISIONS[precision]}
    ours = {**given, **(EAGER if options.tiny and precision == "bf16" else {})}  # compilation takes a minute on a CPU
    makers: dict[str, Callable[[], Contender]] = {
        "PyTorch by hand in a CUDA graph": partial(HandWritten, graph=options.cuda, **given),
        "stock Pyro, as in its tutorial (fp32)": partial(TutorialPyro, **{**given, "precision": "fp32"}),
        "ours, exact": partial(Ours, **ours),
        "ours, top-k": partial(Ours, enumeration="top-k", **ours),
        "ours, exact, eager": partial(Ours, **{**ours, **EAGER}),
    }
    found: dict[str, float] = {}

    def measure(name: str) -> None:
        batches = make_batches(batch, 0, classes, device=options.device)
        found[name] = time_step(makers[name](), batches, options)
        target, passed = "", None
        by_hand, tutorial = (found.get(other) for other in list(makers)[:2])
        text = f"{found[name]:.3f} ms, {1000 * batch / found[name]:,.0f} examples/s"
        text += f", {tutorial / found[name]:.1f} × the tutorial" if tutorial else ""
        text += f", {by_hand / found[name]:.2f} × by hand" if by_hand else ""
        if name == "ours, exact" and (classes, batch, precision) == (10, 200, "fp32") and tutorial and by_hand:
            target, passed = "≥ 30 × and ≥ 0.8 ×", tutorial >= 30 * found[name] and by_hand >= 0.8 * found[name]
        if name == "ours, top-k" and (classes, batch) == (10, 4096):
            target, passed = "≥ 1,000,000 examples/s", 1000 * batch / found[name] >= 1e6
        what = f"{classes} classes, batch {batch}, {precision}: {name}"
        report.add(what, text, target, passed, milliseconds=found[name])

    for name in makers:
        report.try_part(f"{classes} classes, batch {batch}, {precision}: {name}", partial(measure, name))


def _set_tf32(enabled: bool) -> None:
    torch.set_float32_matmul_precision("high" if enabled else "highest")


def _profile_step(report: Report, options: Options, enumeration: str) -> None:
    _set_tf32(False)
    batch = make_batches(options.choose(200, 20), 0, 10, device=options.device, number=1)[0]
    contender = Ours(num_classes=10, device=options.device, enumeration=enumeration)
    for _ in range(contender.warm_up + 3):
        contender.step(*batch)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if options.cuda else [])]
    with profile(activities=activities) as profiler:
        for _ in range(10):
            contender.step(*batch)
        options.synchronise()
    key = "self_device_time_total" if options.cuda else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, key))
    for event in events[: options.choose(12, 3)]:
        name = f"profile, {enumeration}: {event.key[:80].replace('|', '/')}"
        report.add(name, f"{getattr(event, key) / 10:.1f} µs, {event.count / 10:g} calls per step")


def _compare_with_floor(report: Report, options: Options) -> None:
    batch = options.choose(200, 20)
    rates, steps = measure_floors(options.device, options.choose([10, 100, 1000], [10]), batch)
    report.add("rates, fp32", ", ".join(f"{name} {value:,g}" for name, value in rates.items()))
    for step in steps:
        parts = ", ".join(f"{name} {step[name]:.4f} ms" for name in ("products", "moving", "activations"))
        work = f"{step['gflop']:.3g} GFLOP, {step['gb']:.3g} GB"
        report.add(f"least time, {step['classes']} classes, {step['sum']}, batch {batch}", f"{work}: {parts}", **step)


# train


def train_m2(report: Report, options: Options) -> None:
    """Train pure M2 for 500 epochs of MNIST."""
    data = options.load()
    for precision in ("32-true", "bf16-mixed"):
        report.try_part(f"pure M2, {precision}", partial(_train_long, report, options, data, precision))


def _train_long(report: Report, options: Options, data: SemiSupervisedData, precision: str) -> None:
    steps = options.choose(500 * -(-data.num_unlabelled // 200), 30)
    changes = {"batch_size": 200, "evaluate_every": steps // 5, "precision": precision}
    model, run = _train_m2(options, data, steps, **changes)
    error = float((model.predict(data.x_test.to(options.device) / data.scale).cpu() != data.y_test).double().mean())
    words = f"pure M2, {run.epochs:.0f} epochs of batches of 200, {precision}"
    in_time = run.train_seconds <= 60.0 if precision == "32-true" else None
    more = {"steps": run.steps, "step_mode": run.step_mode, "test_error": error}
    report.add(f"{words}: seconds", run.train_seconds, "≤ 60" if in_time is not None else "", in_time, **more)
    report.add(f"{words}: test error at {data.num_labelled} labels, %", 100.0 * error)


# m1


def train_m1(report: Report, options: Options) -> None:
    """Train M1 under two priors and estimate log p(x) of the test examples."""
    data = options.load("all").without_labels()
    for prior in ("flow", "normal"):
        report.try_part(f"M1, {prior} prior", partial(_train_one_m1, report, options, data, prior))


def _train_one_m1(report: Report, options: Options, data: SemiSupervisedData, prior: str) -> None:
    pyro.set_rng_seed(0)
    small = options.choose({}, {"hidden_dims": [32]})
    model = M1(data.event_shape, **M1_BELOW.model | {"prior": prior} | small)
    changes = {"max_epochs": None, "max_steps": options.choose(100_000, 20), "max_minutes": 3.0}
    config = TrainingConfig(**M1_BELOW.training | changes, device=options.device)
    run = fit(UnsupervisedELBO.for_data(model, data), data, config, progress=False)
    report.add(f"M1, {prior} prior: seconds of training", run.train_seconds, steps=run.steps, step_mode=run.step_mode)
    samples = options.choose(5000, 20)
    drawn: dict[str, Any] = {"num_samples": samples, "scale": data.scale, "binarisation": "dynamic"}
    options.synchronise()
    started = time.perf_counter()
    found = log_likelihood(model, data.x_test, **drawn)
    seconds = time.perf_counter() - started
    words = f"M1, {prior} prior, {len(data.x_test):,} examples by {samples:,} samples"
    report.add(f"{words}: −log p(x), nats", f"{-found.mean:.2f} ± {found.mean_error:.3f}", log_likelihood=found.mean)
    report.add(f"{words}: seconds", seconds, "≤ 20", seconds <= 20.0)


# ddgm


def train_ddgm(report: Report, options: Options) -> None:
    """Train DDGM on MNIST and on the ring by the presets, and measure it."""
    known = options.load("all")
    report.try_part("DDGM, mnist", lambda: _train_one_ddgm(report, options, known.without_labels(), known))
    report.try_part("DDGM, ring", lambda: _train_one_ddgm(report, options, make_toy_data("ring", seed=0), None))


def _train_one_ddgm(
    report: Report, options: Options, data: SemiSupervisedData, known: SemiSupervisedData | None
) -> None:
    preset, name = (DDGM_TOY, "ring") if known is None else (DDGM_IMAGES, "mnist")
    pyro.set_rng_seed(0)
    model = DDGM(data.event_shape, **preset.model)
    objective = EnergyObjective.for_data(model, data, **preset.objective)
    changes = options.choose({}, {"max_steps": 6, "batch_size": 16, "evaluate_every": 3})
    run = fit(objective, data, TrainingConfig(**preset.training | changes, device=options.device), progress=False)
    target = "≤ 120" if known is not None else ""
    words = f"DDGM, {name}, {run.steps:,} steps, {run.step_mode}: seconds"
    report.add(words, run.train_seconds, target, run.train_seconds <= 120.0 if target else None)
    few: dict[str, Any] = options.choose({}, {"num_samples": 50})
    found = measure_toy_model(model, name, **few) if known is None else measure_image_model(model, data, known, **few)
    for key, value in found.items():
        if isinstance(value, (int, float)):
            report.add(f"DDGM, {name}: {key}", float(value))


# scale


def measure_scale(report: Report, options: Options) -> None:
    """Time steps and measure memory over numbers of classes and batch sizes."""
    for enumeration in ("top-k", "exact"):
        for classes in options.choose((10, 100, 1000, 10_000), (10,)):
            for batch in options.choose((200, 1024, 4096, 16_384), (20, 40)):
                if enumeration == "top-k" or classes * batch <= 500_000:
                    name = f"{enumeration}, {classes:,} classes, batch {batch:,}"
                    report.try_part(name, partial(_measure_size, report, options, name, enumeration, classes, batch))


def _measure_size(report: Report, options: Options, name: str, enumeration: str, classes: int, batch: int) -> None:
    if options.cuda:
        torch.cuda.reset_peak_memory_stats()
    contender = Ours(num_classes=classes, device=options.device, enumeration=enumeration)
    milliseconds = time_step(contender, make_batches(batch, 0, classes, device=options.device, number=4), options)
    peak = torch.cuda.max_memory_allocated() if options.cuda else get_resident_memory()
    text = f"{milliseconds:.3f} ms, {1000 * batch / milliseconds:,.0f} examples/s, {peak / 2**20:,.0f} MiB"
    report.add(name, text, milliseconds=milliseconds, peak_mib=round(peak / 2**20))


PIECES: dict[str, Callable[[Report, Options], None]] = {
    "tests": check_everything,
    "step": measure_steps,
    "train": train_m2,
    "m1": train_m1,
    "ddgm": train_ddgm,
    "scale": measure_scale,
}
"""Pieces by name, the most important first."""
