"""Measure training on two processes against one, at equal rows per process, on two cores without other programs."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import describe
from runs import make_fits, make_parser
from table_format import DOCS, format_table, load_json
from torch.optim.optimizer import register_optimizer_step_post_hook

from pyro_ssvae import M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, fit

HERE = Path(__file__).parent
STORE = "benchmarks/scale_processes.json"

_ROWS = 128  # unlabelled rows per process
_SETTLE = 0.3  # seconds at the start of a turn whose steps do not count
_FREE = (0.95, 1.05)  # limits of a turn in which two runs at once were as fast as one
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "M2, 10 classes, pure": (10, {"pure": True}),
    "M2, 10 classes, default": (10, {}),
    "M2, 100 classes, top-k, pure": (100, {"pure": True, "enumeration": "top-k"}),
}
ARMS = {"one": (1,), "slower": (1, 1), "two": (2,)}  # the numbers of processes of the runs that train at once


def make_images(num_classes: int) -> SemiSupervisedData:
    """Return 4,000 random images of 28x28 pixels, of which 1,000 are labelled."""
    torch.manual_seed(0)
    x, y = torch.rand(4000, 1, 28, 28), torch.arange(4000) % num_classes
    return SemiSupervisedData.from_arrays(x, torch.where(torch.arange(4000) < 1000, y, -1), num_classes=num_classes)


def log_steps(case: str, processes: int, path: str) -> None:
    """Train until the process is ended, and write the time at the end of each step to a file."""
    torch.set_num_threads(1)
    num_classes, options = CASES[case]
    data = make_images(num_classes)
    objective = SemiSupervisedELBO.for_data(M2.for_data(data, likelihood="bernoulli"), data, **options)
    if objective.bound_batch_size is not None:  # rows per process, too
        objective.bound_batch_size *= processes
    sizes = {"batch_size": _ROWS * processes, "labelled_batch_size": 50 * processes}
    config = TrainingConfig(**sizes, max_steps=10**6, evaluate_every=10**6, compile="eager", device="cpu", seed=0)
    with open(path, "w", buffering=1) as file:
        register_optimizer_step_post_hook(lambda *_: file.write(f"{time.monotonic()}\n"))
        fit(objective, data, config, devices=processes, progress=False)


def read_steps(path: Path, start: float, end: float) -> list[float]:
    """Return the milliseconds of the steps that lie within a time, from the file of :func:`log_steps`."""
    ends = [float(line) for line in path.read_text().split("\n")[:-1]]
    return [1000.0 * (b - a) for a, b in itertools.pairwise(t for t in ends if start <= t <= end)]


@contextlib.contextmanager
def start_runs(case: str, folder: Path) -> Iterator[dict[str, dict[int, Path]]]:
    """Start the runs of all arms, stop each after twenty steps, and yield files of times by process group."""
    runs: dict[str, dict[int, Path]] = {}
    started: list[subprocess.Popen[bytes]] = []
    try:
        for arm, sizes in ARMS.items():
            runs[arm] = {}
            for number, size in enumerate(sizes):
                path = folder / f"{arm}{number}"
                command = [sys.executable, "-c", f"from scale_processes import *; log_steps{case, size, str(path)}"]
                started.append(subprocess.Popen(command, cwd=HERE, start_new_session=True))
                runs[arm][started[-1].pid] = path
            while not all(path.exists() and len(path.read_text().split()) >= 20 for path in runs[arm].values()):
                assert all(run.poll() is None for run in started), "a run has ended: see its message above"
                time.sleep(0.1)
            send(signal.SIGSTOP, runs[arm])
        yield runs
    finally:
        groups = [run.pid for run in started if run.poll() is None]
        send(signal.SIGCONT, groups)
        send(signal.SIGTERM, groups)
        for run in started:
            run.wait()


def send(number: signal.Signals, groups: Iterable[int]) -> None:
    for group in groups:
        os.killpg(group, number)


def measure_efficiency(case: str, turns: int = 40, seconds: float = 1.5) -> dict[str, list[float]]:
    """Return the milliseconds of a step in one run, in the slower of two unrelated runs, and in a run of two processes.

    All runs exist all the time, and go on in turn for some seconds each; docs/scale.md says why.
    """
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder, start_runs(case, Path(folder)) as runs:
        for turn in range(turns):
            for arm in ARMS if turn % 2 == 0 else reversed(ARMS):
                send(signal.SIGCONT, runs[arm])
                begin = time.monotonic() + _SETTLE
                time.sleep(_SETTLE + seconds)
                send(signal.SIGSTOP, runs[arm])
                steps = [read_steps(path, begin, begin + seconds) for path in runs[arm].values()]
                times[arm].append(round(statistics.mean(max(at_once) for at_once in zip(*steps, strict=False)), 2))
    return times


def summarise(ratios: list[float]) -> str:
    """Return the median of ratios and their quartiles."""
    if len(ratios) < 2:
        return ""
    low, middle, high = statistics.quantiles(ratios)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def make_tables(docs: Path) -> dict[str, str]:
    """Return the table of docs/scale.md on processes, from the file of results."""
    rows = []
    found = load_json(docs / STORE, {})
    for case, times in ((case, found[case]) for case in CASES if case in found):
        medians = [f"{statistics.median(times[arm]):.1f}" for arm in ("one", "two")]
        efficiency, limit = (
            [a / b for a, b in zip(times["one"], times[arm], strict=True)] for arm in ("two", "slower")
        )
        alone = [one for one, bound in zip(efficiency, limit, strict=True) if _FREE[0] <= bound <= _FREE[1]]
        rows.append([case, *medians, *map(summarise, (efficiency, limit, alone)), f"{len(alone)} of {len(limit)}"])
    free = "efficiency where the limit is {} to {}".format(*_FREE)
    header = ["step of", "one process, ms", "two processes, ms", "efficiency", "its limit", free]
    return {"scale_processes": format_table([*header, "turns with such a limit"], rows)}


def main() -> None:
    args = make_parser(__doc__).parse_args()
    fits: dict[str, Callable[[], Any]] = {case: partial(measure_efficiency, case) for case in CASES}
    make_fits(DOCS / STORE, {"machine": partial(describe, "cpu"), **fits}, args.only)


if __name__ == "__main__":
    main()
