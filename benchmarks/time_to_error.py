"""Seconds of training until M2 on MNIST with 3,000 labels first reaches 5 % validation error: ours and stock Pyro.

    python benchmarks/time_to_error.py                 # two seeds each, one run at a time on all cores
    python benchmarks/time_to_error.py --jobs 2        # both seeds of a contender at a time, each on half of the cores
    python benchmarks/time_to_error.py --table         # only rewrite docs/benchmarks.md

Ours is `python examples/m2.py --pure --num-labels 3000`: the pure objective with its defaults. Stock Pyro is the
model of its tutorial with the tutorial's settings (batches of 200, Adam at 4.2e-4, the auxiliary loss times 46,
labelled batches spread over the unlabelled ones), capped at 45 minutes. Its clock stands still while it is evaluated;
ours runs on through its evaluations, and through recording and compiling the step.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import describe
from step_page import write_section

from pyro_ssvae import M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, fit
from pyro_ssvae.data import BatchStream
from pyro_ssvae.presets import PURE

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
RESULTS = PAGE.parent / "benchmarks" / "time-to-error.json"
NUM_LABELS, TARGET = 3000, 0.05
WORDS = {"ours": "pyro_ssvae, `--pure`", "tutorial": "stock Pyro, as in its tutorial"}


def ours(seed: int, data_dir: str | None, minutes: float) -> dict[str, Any]:
    """Train with the defaults of ``--pure``, to the end."""
    data = SemiSupervisedData.from_name("mnist", num_labels=NUM_LABELS, seed=seed, data_dir=data_dir)
    torch.manual_seed(seed)
    model = M2(data.event_shape, data.num_classes, **PURE.model)
    objective = SemiSupervisedELBO.for_data(model, data, pure=True, **PURE.objective)
    run = fit(objective, data, TrainingConfig(**PURE.training | {"seed": seed, "max_minutes": minutes}), progress=False)
    curve = [(row["seconds"], row["validation_error"]) for row in run.metrics]
    return {"curve": curve, "steps": run.steps, "step_mode": run.step_mode}


def tutorial(seed: int, data_dir: str | None, minutes: float) -> dict[str, Any]:
    """Train stock Pyro as its tutorial does."""
    from tutorial import TutorialPyro

    data = SemiSupervisedData.from_name("mnist", num_labels=NUM_LABELS, seed=seed, data_dir=data_dir)
    settings: dict[str, Any] = {"device": "cpu", "precision": "fp32", "seed": seed}
    contender = TutorialPyro(num_classes=10, labelled_rows=200, learning_rate=4.2e-4, multiplier=46.0, **settings)
    stream = BatchStream(data, batch_size=200, labelled_batch_size=200, binarisation="none", seed=seed)
    spacing = data.num_unlabelled // data.num_labelled  # one labelled batch among so many unlabelled ones
    x = data.x_validation.flatten(1).float() / data.scale
    seconds, steps, curve = 0.0, 0, []
    while seconds < 60.0 * minutes and not (curve and curve[-1][1] <= TARGET):
        started = time.perf_counter()
        for _ in range(100):
            steps += 1
            batch = stream.gather(stream.next_indices())
            x_batch, y_batch = batch.x_unlabelled, None
            if steps % (spacing + 1) == 0:
                x_batch, y_batch = batch.x_labelled, batch.y_labelled
            assert x_batch is not None
            contender.step_on(x_batch.flatten(1), y_batch)
        seconds += time.perf_counter() - started
        with torch.no_grad():
            error = float((contender.nets.encoder_y(x).argmax(-1) != data.y_validation).double().mean())
        curve.append((round(seconds, 2), error))
    return {"curve": curve, "steps": steps}


def first_within(curve: list[Any]) -> float | None:
    """Return the seconds of the first evaluation within the target."""
    return next((seconds for seconds, error in curve if error <= TARGET), None)


def run_alone(name: str, seed: int, data_dir: str | None, minutes: float, threads: int) -> dict[str, Any]:
    """Run in a process of its own and return the result."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(torch.set_num_threads, threads).result()
        result = pool.submit({"ours": ours, "tutorial": tutorial}[name], seed, data_dir, minutes).result()
    return {"contender": name, "seed": seed, "threads": threads, "minutes": minutes, **result}


def write_page() -> None:
    """Write the table between the markers of the page."""
    stored = json.loads(RESULTS.read_text())
    machine, threads = stored["machine"], stored["results"][0]["threads"]
    lines = [
        f"{machine['CPU']}, {threads} thread(s) a run, PyTorch {machine['PyTorch']}, Pyro {machine['Pyro']}:",
        "",
        "| | seed | seconds to 5 % | steps run | least error, % | at second |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for result in sorted(stored["results"], key=lambda result: (result["contender"], result["seed"])):
        seconds = first_within(result["curve"])
        reached = f"{seconds:.0f}" if seconds is not None else f"more than {60 * result['minutes']:.0f}"
        at, least = min(result["curve"], key=lambda point: point[1])
        lines.append(
            f"| {WORDS[result['contender']]} | {result['seed']} | {reached} | {result['steps']} | {100 * least:.2f} | "
            f"{at:.0f} |"
        )
    write_section(PAGE, "time", "\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="S")
    parser.add_argument("--only", choices=WORDS, help="only this contender; the others' results stay")
    parser.add_argument("--minutes", type=float, default=45.0, help="cap of a run")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="J", help="runs at a time, each on its share of the cores"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="where MNIST lies (else PYRO_SSVAE_DATA, else a cache)")
    parser.add_argument("--table", action="store_true", help="train nothing, only rewrite the page")
    args = parser.parse_args()
    stored: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"results": []}
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    for name in () if args.table else ([args.only] if args.only else list(WORDS)):
        run = partial(run_alone, name, data_dir=args.data_dir, minutes=args.minutes, threads=threads)
        with ThreadPoolExecutor(args.jobs) as workers:
            results = list(workers.map(run, args.seeds))
        for seed, result in zip(args.seeds, results, strict=True):
            others = [old for old in stored["results"] if (old["contender"], old["seed"]) != (name, seed)]
            stored = {"machine": describe("cpu"), "results": [*others, result]}
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            RESULTS.write_text(json.dumps(stored) + "\n")
            print(f"{name}, seed {seed}: {first_within(result['curve'])} s, {result['steps']} steps", flush=True)
    write_page()


if __name__ == "__main__":
    sys.exit(main())
