"""Measure training on two processes against one, at equal rows per process, and kill workers at random moments.

python benchmarks/scale_processes.py          # 25 minutes on two cores without other programs
python benchmarks/scale_processes.py --quick  # 2 minutes; nothing is written
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from machine import describe
from result_tables import write_tables
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
ARMS = {"one": (1,), "unrelated": (1, 1), "two": (2,)}  # the numbers of processes of the runs that train at once


def make_images(num_classes: int) -> SemiSupervisedData:
    """Return 4,000 random images of 28x28 pixels, of which 1,000 are labelled."""
    torch.manual_seed(0)
    x, y = torch.rand(4000, 1, 28, 28), torch.arange(4000) % num_classes
    return SemiSupervisedData.from_arrays(x, torch.where(torch.arange(4000) < 1000, y, -1), num_classes=num_classes)


def call(function: str, *arguments: Any) -> list[str]:
    """Return the command that calls a function of this module in a process with one thread."""
    code = f"import torch, scale_processes; torch.set_num_threads(1); scale_processes.{function}{arguments}"
    return [sys.executable, "-c", code]


def log_steps(case: str, processes: int, path: str) -> None:
    """Train until the process is ended, and write the time at the end of each step to a file."""
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
                command = call("log_steps", case, size, str(path))
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
    """Send a signal to all processes of groups."""
    for group in groups:
        os.killpg(group, number)


def measure_efficiency(case: str, turns: int, seconds: float) -> dict[str, list[float]]:
    """Return the milliseconds of a step in one run, in two unrelated runs at once, and in one run of two processes.

    The speed of a shared machine changes within seconds. All runs therefore exist all the time, and go on in turn for
    some seconds each; times are compared within a turn. ``slower`` is the time of the slower of both unrelated
    runs, at each step: two processes that lost no time by their messages would need as much, because they wait for
    each other at each step.
    """
    times: dict[str, list[float]] = {"one": [], "unrelated": [], "slower": [], "two": []}
    with tempfile.TemporaryDirectory() as folder, start_runs(case, Path(folder)) as runs:
        for turn in range(turns):
            for arm in ARMS if turn % 2 == 0 else reversed(ARMS):
                send(signal.SIGCONT, runs[arm])
                begin = time.monotonic() + _SETTLE
                time.sleep(_SETTLE + seconds)
                send(signal.SIGSTOP, runs[arm])
                steps = [read_steps(path, begin, begin + seconds) for path in runs[arm].values()]
                times[arm].append(statistics.mean(itertools.chain(*steps)))
                if arm == "unrelated":
                    times["slower"].append(statistics.mean(map(max, *steps)))
    return {name: [round(value, 2) for value in values] for name, values in times.items()}


def summarise(ratios: list[float]) -> str:
    """Return the median of ratios and their quartiles."""
    if len(ratios) < 2:
        return ""
    low, middle, high = statistics.quantiles(ratios)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def train(folder: str, steps: int, processes: int | None = None) -> list[dict[str, Any]]:
    """Train M2 on digits, or go on with it; return the metrics of evaluations."""
    data = SemiSupervisedData.from_name("digits", num_labels=100)
    objective = SemiSupervisedELBO.for_data(M2.for_data(data, hidden_dims=(64,)), data, pure=True)
    config = TrainingConfig(max_steps=steps, evaluate_every=25, device="cpu", compile="eager")
    run = fit(objective, data, config, out=folder, resume=True, progress=False, devices=processes)
    return [{name: value for name, value in row.items() if name != "seconds"} for row in run.metrics]


def kill_one(launcher: subprocess.Popen[str], chance: random.Random) -> bool:
    """Kill a worker of torchrun at a random moment, and return whether there was one."""
    deadline = time.time() + chance.uniform(4.0, 12.0)
    while time.time() < deadline and launcher.poll() is None:
        time.sleep(0.02)
    found = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True)
    workers = [int(pid) for pid in found.stdout.split()]
    if launcher.poll() is not None or len(workers) < 2:
        return False
    os.kill(chance.choice(workers), signal.SIGKILL)
    return True


def measure_kills(number: int, steps: int, restarts: int = 0) -> list[float]:
    """Kill workers at random moments; return for each kill the seconds until all processes had ended.

    Processes are started again by the same command, or by torchrun itself, with ``restarts`` at most that often. Each
    run must go on to the metrics of a run without kills, to the last bit.
    """
    chance, seconds = random.Random(restarts), []
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher += ["--max-restarts", str(restarts), "--no-python"]
    options: dict[str, Any] = {"cwd": HERE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with tempfile.TemporaryDirectory() as temporary:
        expected = train(f"{temporary}/whole", steps, 2)
        for run in itertools.count():
            folder, ended = f"{temporary}/{run}", False
            while not ended:
                process = subprocess.Popen([*launcher, *call("train", folder, steps)], **options)
                wanted = min(restarts or 1, number - len(seconds))
                kills = sum(kill_one(process, chance) for _ in range(wanted))
                started = time.time()
                errors = process.communicate(timeout=600)[1]
                seconds += [time.time() - started] * kills
                ended = bool(restarts) or not kills
                assert process.returncode == 0 or not ended, errors
            assert train(folder, steps, 2) == expected
            print(f"{len(seconds)} kills, {restarts} restarts by torchrun", flush=True)
            if len(seconds) >= number:
                return seconds


def make_tables(docs: Path) -> dict[str, str]:
    """Return the tables of docs/scale.md on processes, from the file of results."""
    found = load_json(docs / STORE, {})
    rows = []
    for case, values in found.get("speed", {}).items():
        medians = [f"{statistics.median(times):.1f}" for times in values.values()]
        efficiency, limit = (
            [a / b for a, b in zip(values["one"], values[arm], strict=True)] for arm in ("two", "slower")
        )
        alone = [one for one, bound in zip(efficiency, limit, strict=True) if _FREE[0] <= bound <= _FREE[1]]
        rows.append([case, *medians, *map(summarise, (efficiency, limit, alone)), f"{len(alone)} of {len(limit)}"])
    header = ["step of", "one process, ms", "two runs at once, ms", "the slower of both, ms", "two processes, ms"]
    free = "efficiency where the limit is {} to {}".format(*_FREE)
    header += ["efficiency", "its limit", free, "turns with such a limit"]
    survived = []
    if kills := found.get("kills"):
        seconds = [f"{kills[name]:.1f}" for name in ("median", "longest")]
        survived.append(["the same command", str(kills["kills"]), *seconds])
        survived.append(["torchrun (`--max-restarts 2`)", str(kills["restarts"]), "", ""])
    ended = ["seconds until all had ended, median", "longest"]
    return {
        "scale_processes": format_table(header, rows),
        "scale_kills": format_table(["processes are started again by", "kills, all survived", *ended], survived),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps and kills; nothing is written")
    quick = parser.parse_args().quick
    turns, kills, restarts, steps = (3, 3, 2, 400) if quick else (40, 20, 10, 600)
    torch.set_num_threads(1)
    found: dict[str, Any] = {"speed": {}}
    for case in CASES:
        found["speed"][case] = measure_efficiency(case, turns, 1.5)
        print(case, json.dumps(found["speed"][case]), flush=True)
    seconds = measure_kills(kills, steps)
    found["kills"] = {"kills": len(seconds), "median": statistics.median(seconds), "longest": max(seconds)}
    found["kills"]["restarts"] = len(measure_kills(restarts, steps, restarts=2))
    if not quick:
        (DOCS / STORE).write_text(json.dumps(found | {"machine": describe("cpu")}, indent=1) + "\n")
        write_tables()


if __name__ == "__main__":
    main()
