"""Measure everything that a GPU is for, in six pieces of at most 8 minutes each; most important first.

    python benchmarks/gpu_check.py --data-dir DIR                # all pieces
    python benchmarks/gpu_check.py --data-dir DIR --only step    # one of tests, step, train, m1, ddgm, scale

Each prints a table and writes it to OUT/PIECE.json after every line. The exit status is 1 if a part failed or missed
its target. ``--device cpu --tiny`` rehearses a piece on a CPU within two minutes. docs/benchmarks.md says what the
machine needs.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pyro
import torch
from contenders import Contender, HandWritten, Ours, TutorialPyro
from machine import describe, get_memory
from runs import take_rows
from step import make_batches, measure_floors, record_operations, take_seconds

import pyro_ssvae as ss
from pyro_ssvae._io import write_json
from pyro_ssvae.data import make_toy_data
from pyro_ssvae.errors import DataUnavailableError
from pyro_ssvae.evaluation import log_likelihood, measure_image_model, measure_toy_model
from pyro_ssvae.models.diagnostics import classification_error
from pyro_ssvae.presets import DDGM_IMAGES, DDGM_TOY, M1_BELOW, PURE

ROOT = Path(__file__).parents[1]
SMALL = {"hidden_dims": [32]}  # networks of a rehearsal
EAGER = {"compile": "eager"}

MINUTES = 8.0  # per piece; parts that would start later are left out


class Report:
    """Where and how large a piece runs, and its table, which is printed and written to a file line by line."""

    def __init__(self, piece: str, args: argparse.Namespace) -> None:
        self.device, self.tiny, self.data_dir = args.device, args.tiny, args.data_dir
        self.cuda, self.started = args.device == "cuda", time.perf_counter()
        machine, self.lines, self.path = describe(args.device), [], args.out / f"{piece}.json"
        self.content = {"piece": piece, "tiny": args.tiny, "machine": machine, "finished": False, "lines": self.lines}
        args.out.mkdir(parents=True, exist_ok=True)
        print(f"\n## {piece}: {machine}\n\n| what | value | target |\n| --- | --- | --- |", flush=True)

    def choose(self, full: Any, tiny: Any) -> Any:
        """Return the value for a measurement, or the one for a rehearsal."""
        return tiny if self.tiny else full

    def load(self, num_labels: int | str = 100) -> ss.SemiSupervisedData:
        """Return MNIST, or random pixels if it is not there; 500 examples of it in a rehearsal."""
        try:
            data = ss.SemiSupervisedData.from_name("mnist", num_labels=num_labels, data_dir=self.data_dir)
        except DataUnavailableError as error:
            print(f"{error} Using random pixels instead.", file=sys.stderr)
            x, y = torch.randint(0, 256, (60_000, 1, 28, 28), dtype=torch.uint8), torch.arange(60_000) % 10
            held_out = {"x_validation": x[:1000], "y_validation": y[:1000], "x_test": x[50_000:], "y_test": y[50_000:]}
            kept = y if num_labels == "all" else torch.where(torch.arange(60_000) < int(num_labels), y, -1)
            data = ss.SemiSupervisedData.from_arrays(x[:50_000], kept[:50_000], **held_out)
        return take_rows(data, 500, 100) if self.tiny else data

    def add(self, what: str, value: Any, target: str = "", passed: bool | None = None, **more: Any) -> None:
        """Add a line: what was measured, its value, the target, whether it was met, and more entries for the file."""
        line = {"what": what, "value": value, "target": target, "passed": passed}
        self.lines.append({**line, "at_second": round(time.perf_counter() - self.started, 1), **more})
        verdict = "" if passed is None else " (met)" if passed else " (**missed**)"
        text = f"{value:.4g}" if isinstance(value, float) else value
        print(f"| {what} | {text} | {target}{verdict} |", flush=True)
        write_json(self.path, self.content)

    def add_limited(self, what: str, value: float, most: float, **more: Any) -> None:
        """Add a line whose value should be at most ``most``, which is infinite where there is no target."""
        limited = most < math.inf
        self.add(what, value, f"≤ {most:g}" if limited else "", value <= most if limited else None, **more)

    def try_part(self, name: str, part: Callable[..., object], *args: Any) -> None:
        """Call ``part(*args)``; an exception becomes a line, and no part starts after the time of the piece."""
        if time.perf_counter() - self.started > 60.0 * MINUTES:
            self.add(name, f"not run: {MINUTES:g} minutes are over")
            return
        try:
            part(*args)
        except Exception as error:
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            self.add(name, text, "runs", False, traceback=traceback.format_exc())
        if self.cuda:
            torch.cuda.empty_cache()


def run_tests(report: Report) -> None:
    """Run an example, and the tests that need a GPU: bounds, captured steps, memory, saved and resumed runs."""
    tests = ["-m", "pytest", "-q", "-o", "addopts=", "-o", "filterwarnings=default", "--import-mode=importlib"]
    tests += ["-m", "gpu", *report.choose([], ["--collect-only", "tests/devices"])]
    place = ["--data-dir", report.data_dir] if report.data_dir else []
    data = report.choose(["--data", "mnist", *place], ["--data", "digits", "--max-minutes", "0.05"])
    with tempfile.TemporaryDirectory() as folder:
        example = ["examples/m2.py", "--out", f"{folder}/run", "--device", report.device, *data]
        for name, command in (("examples/m2.py", example), ("pytest -m gpu", tests)):
            report.try_part(name, _run_command, report, name, command)


def _run_command(report: Report, name: str, command: list[str]) -> None:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))  # of this checkout
    environment = {**os.environ, "PYTHONPATH": path}
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 420}
    found = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, **options)
    lines = (found.stdout.strip() or found.stderr.strip() or "no output").splitlines()
    output = (found.stdout + found.stderr)[-20_000:]
    report.add(name, lines[-1][:120].replace("|", "/"), "status 0", found.returncode == 0, output=output)


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
    for name, milliseconds, calls in record_operations(contender, batch, cuda=report.cuda)[: report.choose(12, 3)]:
        what = f"profile, {enumeration}: {name[:80].replace('|', '/')}"
        report.add(what, f"{1000 * milliseconds:.1f} µs, {calls:g} calls per step")


def _compare_with_floor(report: Report) -> None:
    batch = report.choose(200, 20)
    found = measure_floors(report.device, report.choose([10, 100, 1000], [10]), batch)
    report.add("rates, fp32", ", ".join(f"{name} {value:,g}" for name, value in found["rates"].items()))
    for step in found["steps"]:
        parts = ", ".join(f"{name} {step[name]:.4f} ms" for name in ("products", "moving", "activations"))
        work = f"{step['gflop']:.3g} GFLOP, {step['gb']:.3g} GB"
        report.add(f"least time, {step['classes']} classes, {step['sum']}, batch {batch}", f"{work}: {parts}", **step)


def train_m2(report: Report) -> None:
    """Train pure M2 for 500 epochs of MNIST."""
    data = report.load()
    for precision in ("32-true", "bf16-mixed"):
        report.try_part(f"pure M2, {precision}", _train_long, report, data, precision)


def _train_long(report: Report, data: ss.SemiSupervisedData, precision: str) -> None:
    pyro.set_rng_seed(1)
    model = ss.M2(data.event_shape, data.num_classes, **PURE.model, **report.choose({}, SMALL))
    objective = ss.SemiSupervisedELBO.for_data(model, data, pure=True, **PURE.objective)
    steps = report.choose(500 * -(-data.num_unlabelled // 200), 30)
    sizes = {"max_epochs": None, "max_steps": steps, "batch_size": 200, "evaluate_every": steps // 5}
    what, most = f"pure M2, {precision}", 60.0 if precision == "32-true" else math.inf
    _train(report, what, most, objective, data, PURE.training | sizes | {"precision": precision})
    error = classification_error(model, data.x_test, data.y_test, scale=data.scale) or 0.0
    report.add(f"{what}: test error at {data.num_labelled} labels, %", 100.0 * error)


def _train(report: Report, what: str, most: float, objective: Any, data: Any, settings: dict[str, Any]) -> None:
    """Train, and add a line on the seconds, which should be at most ``most``."""
    run = ss.fit(objective, data, ss.TrainingConfig(**settings, device=report.device), progress=False)
    words = f"{what}, {run.steps:,} steps, {run.step_mode}: seconds"
    report.add_limited(words, run.train_seconds, most, why_eager=run.why_eager)


def train_m1(report: Report) -> None:
    """Train M1 under two priors and estimate log p(x) of the test examples."""
    data = report.load("all").without_labels()
    for prior in ("flow", "normal"):
        report.try_part(f"M1, {prior} prior", _train_one_m1, report, data, prior)


def _train_one_m1(report: Report, data: ss.SemiSupervisedData, prior: str) -> None:
    pyro.set_rng_seed(0)
    model = ss.M1(data.event_shape, **M1_BELOW.model | {"prior": prior} | report.choose({}, SMALL))
    limits = {"max_epochs": None, "max_steps": report.choose(100_000, 20), "max_minutes": 3.0}
    objective = ss.UnsupervisedELBO.for_data(model, data)
    _train(report, f"M1, {prior} prior", math.inf, objective, data, M1_BELOW.training | limits)
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
    _train(report, f"DDGM, {name}", most, objective, data, preset.training | changes)
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
PIECES: dict[str, Callable[[Report], None]] = {"tests": run_tests, "step": measure_steps, "train": train_m2}
PIECES |= {"m1": train_m1, "ddgm": train_ddgm, "scale": measure_scale}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=PIECES, help="run this piece alone; repeatable")
    parser.add_argument("--out", type=Path, default=Path("gpu_results"), metavar="DIR", help="folder of the results")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of MNIST (else PYRO_SSVAE_DATA, else a cache)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="rehearse: few steps, small models")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device here; rehearse with --device cpu --tiny.")
    failed = False
    for name in args.only or PIECES:
        report = Report(name, args)
        PIECES[name](report)
        report.content["finished"] = True
        write_json(report.path, report.content)
        failed |= any(line["passed"] is False for line in report.lines)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
