"""Run the whole GPU side in one go and print a table for docs/benchmarks.md.

    python benchmarks/gpu_check.py [--data-dir DIR]
    python benchmarks/gpu_check.py --m1      # M1 alone: log p(x) of every row of benchmarks/mnist_m1.py that has one
    python benchmarks/gpu_check.py --ddgm    # DDGM alone: ring and MNIST, the default rows of benchmarks/ddgm.py

It runs the tests marked ``gpu``; trains one epoch of M2 by the default recipe and 500 epochs of pure M2 in batches of
200 on MNIST (on random pixels where MNIST is not at hand, which costs the same); and reports milliseconds per eager
step, memory, host synchronisations per step, how steps ran, and by how much the bound on CUDA differs from the bound on
the CPU (it must agree to 1e-4 relative). At last it runs ``benchmarks/step.py --device cuda``, which writes its own
table: stock Pyro, PyTorch by hand with and without a CUDA graph, and ours. Exits with status 1 where a check fails.
Under --m1 and --ddgm the rows train by the schedules that they have on the CPU; under --m1 10,000 test rows are
estimated with 5,000 samples each.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pyro
import torch

from pyro_ssvae import M2, DataUnavailableError, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, fit
from pyro_ssvae.data import BatchStream
from pyro_ssvae.presets import PURE

ROOT = Path(__file__).parents[1]


def load(data_dir: str | None) -> SemiSupervisedData:
    try:
        return SemiSupervisedData.from_name("mnist", data_dir=data_dir)
    except DataUnavailableError as error:
        print(f"{error} Using random pixels instead.", file=sys.stderr)
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(0, 256, (50_000, 1, 28, 28), generator=generator, dtype=torch.uint8)
        y = torch.full((50_000,), -1)
        y[:100] = torch.arange(100) % 10
        return SemiSupervisedData.from_arrays(x, y, x_validation=x[:1000], y_validation=torch.arange(1000) % 10)


def agreement(data: SemiSupervisedData) -> float:
    """Return the relative difference of the bound between CPU and CUDA, with the same draws of z."""
    pyro.set_rng_seed(0)
    model = M2(data.event_shape, data.num_classes)
    x = data.x[:200].float() / data.scale
    noise = torch.randn(model.num_classes, 200, model.latent_dim)
    bounds = []
    for device in ("cpu", "cuda"):
        twin = model.to(device)
        rows, eps = x.to(device), noise.to(device)
        classes = torch.arange(model.num_classes, device=device)[:, None]
        with torch.no_grad():
            qz = twin.encode(rows, classes)
            z = qz.base_dist.loc + qz.base_dist.scale * eps
            bound = twin.decode(classes, z).log_prob(rows) + twin.prior().log_prob(z) - qz.log_prob(z)
            qy = twin.classify(rows).softmax(-1).T
            bounds.append(float((qy * (bound - qy.log())).sum(0).mean()))
    return abs(bounds[0] - bounds[1]) / abs(bounds[0])


def step_time(data: SemiSupervisedData, steps: int = 200) -> tuple[float, int]:
    """Return milliseconds per training step on CUDA and the number of host synchronisations in one step."""
    pyro.set_rng_seed(0)
    objective = SemiSupervisedELBO.for_data(M2(data.event_shape, data.num_classes), data).to("cuda")
    optimizer = torch.optim.AdamW(objective.parameters(), fused=True)
    stream = BatchStream(data, device="cuda")

    def step() -> None:
        objective(next(stream)).backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(20):
        step()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    milliseconds = 1000 * (time.perf_counter() - started) / steps
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step()
        torch.cuda.set_sync_debug_mode("default")
    return milliseconds, sum("synchroniz" in str(warning.message) for warning in caught)


def one_epoch(data: SemiSupervisedData) -> tuple[float, float]:
    """Return seconds of one epoch of training, evaluation included, and the peak of allocated memory in MiB."""
    torch.cuda.reset_peak_memory_stats()
    pyro.set_rng_seed(0)
    objective = SemiSupervisedELBO.for_data(M2(data.event_shape, data.num_classes), data)
    run = fit(objective, data, TrainingConfig(device="cuda", max_epochs=1), progress=False)
    return run.train_seconds, torch.cuda.max_memory_allocated() / 2**20


def many_epochs(data: SemiSupervisedData, epochs: int = 500) -> tuple[float, str]:
    """Return seconds of many epochs of pure M2 with a few evaluations, and how its steps ran."""
    pyro.set_rng_seed(0)
    model = M2(data.event_shape, data.num_classes, **PURE.model)
    objective = SemiSupervisedELBO.for_data(model, data, pure=True, **PURE.objective)
    changes = {"device": "cuda", "max_epochs": epochs, "batch_size": 200, "evaluate_every": 25_000}
    run = fit(objective, data, TrainingConfig(**PURE.training | changes), progress=False)
    return run.train_seconds, run.step_mode if run.why_eager is None else f"eager: {run.why_eager}"


def print_table(rows: dict[str, str]) -> None:
    print("\n| check | value |\n| --- | --- |")
    for name, value in rows.items():
        print(f"| {name} | {value} |")


def m1_rows(data_dir: str | None) -> dict[str, str]:
    """Train the rows of M1 that are measured by log p(x), and return what they reach and how long that takes."""
    import mnist_m1

    found = {}
    for row in mnist_m1.rows():
        if row.samples == mnist_m1.SAMPLES:
            result = mnist_m1.train(row, data_dir, None, torch.get_num_threads())
            found[f"M1, {row.words}: -log p(x), nats"] = (
                f"{-result['test_log_likelihood']:.2f} ± {result['test_log_likelihood_error']:.2f} after "
                f"{result['train_seconds']:.0f} s of training, {result['likelihood_seconds']:.0f} s of estimating"
            )
    return found


def ddgm_rows(data_dir: str | None) -> dict[str, str]:
    """Train the ring and MNIST, and return what they reach and how long that takes."""
    import ddgm

    measures = ("high_quality", "total_variation", "energy_distance", "frechet_distance", "frechet_floor", "confidence")
    found = {}
    for row in ddgm.rows(2):
        if row.name in ("ring-default", "mnist-default") and row.seed == 1:  # seed 0 would draw the page's figures anew
            result = ddgm.train(None, row, data_dir, None, torch.get_num_threads())
            values = ", ".join(f"{name} {result[name]:.3f}" for name in measures if name in result)
            found[f"DDGM, {row.name}"] = f"{values}; {result['train_seconds']:.0f} s, steps as {result['step_mode']}"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", metavar="DIR", help="where MNIST lies (else PYRO_SSVAE_DATA, else a cache)")
    parser.add_argument("--m1", action="store_true", help="train and estimate M1 instead")
    parser.add_argument("--ddgm", action="store_true", help="train DDGM instead")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: PyTorch finds no CUDA device here; this check needs one.", file=sys.stderr)
        return 2
    if args.m1:
        print_table({"device": torch.cuda.get_device_name(), **m1_rows(args.data_dir)})
        return 0
    if args.ddgm:
        print_table({"device": torch.cuda.get_device_name(), **ddgm_rows(args.data_dir)})
        return 0
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu"], cwd=ROOT)
    data = load(args.data_dir)
    difference = agreement(data)
    milliseconds, synchronisations = step_time(data)
    seconds, memory = one_epoch(data)
    long_seconds, mode = many_epochs(data)
    rows = {
        "device": torch.cuda.get_device_name(),
        "PyTorch": torch.__version__,
        "tests marked gpu": "passed" if tests.returncode == 0 else f"failed (status {tests.returncode})",
        "bound, CPU against CUDA, relative": f"{difference:.1e}",
        "milliseconds per step, eager": f"{milliseconds:.2f}",
        "host synchronisations per step": str(synchronisations),
        "one epoch with evaluations, seconds": f"{seconds:.1f}",
        "peak of allocated memory, MiB": f"{memory:.0f}",
        "500 epochs of pure M2, seconds": f"{long_seconds:.1f}",
        "steps ran as": mode,
    }
    print_table(rows)
    steps = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "step.py"), "--device", "cuda"])
    return 0 if tests.returncode == steps.returncode == 0 and difference < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
