"""Measure training on two processes against one, at equal rows per process, and kill workers at random moments.

python benchmarks/scale_processes.py          # 15 minutes on two cores without other programs
python benchmarks/scale_processes.py --quick  # 2 minutes; nothing is written
"""

from __future__ import annotations

import argparse
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
from table_format import format_table, load_json
from torch.optim.optimizer import register_optimizer_step_post_hook

from pyro_ssvae import M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, fit

DOCS = Path(__file__).parents[1] / "docs"
STORE = DOCS / "benchmarks" / "scale_processes.json"

_ROWS = 128  # unlabelled rows per process
_WINDOW = 10  # steps whose mean time is taken, before the median over such means
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "M2, 10 classes, pure": (10, {"pure": True}),
    "M2, 10 classes, default": (10, {}),
    "M2, 100 classes, top-k, pure": (100, {"pure": True, "enumeration": "top-k"}),
}


def make_images(num_classes: int) -> SemiSupervisedData:
    """Return 4,000 random images of 28x28 pixels, of which 1,000 are labelled."""
    torch.manual_seed(0)
    x, y = torch.rand(4000, 1, 28, 28), torch.arange(4000) % num_classes
    return SemiSupervisedData.from_arrays(x, torch.where(torch.arange(4000) < 1000, y, -1), num_classes=num_classes)


def read_clocks() -> tuple[float, float, float]:
    """Return seconds: of the clock, of the CPU in this process, and of the CPU in all programs (Linux)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    busy = (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
    return time.time(), time.process_time(), busy


def measure(case: str, processes: int, steps: int) -> list[list[float]]:
    """Return milliseconds of each step after the first twenty, by the three clocks of :func:`read_clocks`."""
    num_classes, options = CASES[case]
    data = make_images(num_classes)
    objective = SemiSupervisedELBO.for_data(M2.for_data(data, likelihood="bernoulli"), data, **options)
    if objective.bound_batch_size is not None:  # rows per process, too
        objective.bound_batch_size *= processes
    sizes = {"batch_size": _ROWS * processes, "labelled_batch_size": 50 * processes}
    config = TrainingConfig(**sizes, max_steps=steps, evaluate_every=steps, compile="eager", device="cpu", seed=0)
    clocks: list[tuple[float, float, float]] = []
    hook = register_optimizer_step_post_hook(lambda *_: clocks.append(read_clocks()))
    fit(objective, data, config, devices=processes, progress=False)
    hook.remove()
    readings = itertools.pairwise(clocks[19:])
    return [[1000.0 * (b - a) for a, b in zip(before, after, strict=True)] for before, after in readings]


def average(values: Iterable[float]) -> float:
    """Return the median over windows of ten steps of the mean time of a step."""
    numbers = list(values)
    starts = range(0, len(numbers) - _WINDOW + 1, _WINDOW)
    return statistics.median(statistics.mean(numbers[start : start + _WINDOW]) for start in starts)


def summarise(values: list[list[float]], processes: int) -> dict[str, float]:
    """Return times of a step, and of the CPU for it, and the share that other programs had of two cores."""
    clock, cpu, busy = (average(column) for column in zip(*values, strict=True))
    return {"clock": clock, "cpu": cpu, "others": max(0.0, busy - processes * cpu) / (2.0 * clock)}


def measure_efficiency(cases: Iterable[str], rounds: int, steps: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return what :func:`summarise` does for one run, two unrelated runs at once, and two processes, for cases.

    ``slower`` is the time of the slower of both unrelated runs, at each step: two processes that lost no time by their
    messages would need as much, because they wait for each other at each step.
    """
    found = {}
    for case in cases:
        values: dict[str, list[list[float]]] = {"one": [], "unrelated": [], "two": []}
        slower: list[float] = []
        for _ in range(rounds):
            values["one"] += measure(case, 1, steps)
            command = [sys.executable, __file__, "--measure", case, "--steps", str(steps)]
            started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
            both = [json.loads(run.communicate()[0]) for run in started]
            slower += [max(a[0], b[0]) for a, b in zip(*both, strict=True)]
            values["unrelated"] += both[0] + both[1]
            values["two"] += measure(case, 2, steps)
        found[case] = {name: summarise(part, 1 if name == "one" else 2) for name, part in values.items()}
        found[case]["slower"] = {"clock": average(slower)}
        print(case, json.dumps(found[case]), flush=True)
    return found


def train(folder: Path, steps: int, processes: int | None = None) -> list[dict[str, Any]]:
    """Train M2 on digits, or go on with it; return the metrics of evaluations."""
    data = SemiSupervisedData.from_name("digits", num_labels=100)
    objective = SemiSupervisedELBO.for_data(M2.for_data(data, hidden_dims=(64,)), data, pure=True)
    config = TrainingConfig(max_steps=steps, evaluate_every=25, device="cpu", compile="eager")
    run = fit(objective, data, config, out=folder, resume=True, progress=False, devices=processes)
    return [{name: value for name, value in row.items() if name != "seconds"} for row in run.metrics]


def find_workers(launcher: int) -> list[int]:
    """Return the processes that torchrun has started."""
    found = subprocess.run(["pgrep", "-P", str(launcher)], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def launch(folder: Path, steps: int, restarts: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), __file__, "--train", str(folder), "--steps", str(steps)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def kill_one(process: subprocess.Popen[str], chance: random.Random) -> bool:
    """Kill a worker at a random moment, and return whether there was one."""
    deadline = time.time() + chance.uniform(4.0, 12.0)
    while time.time() < deadline and process.poll() is None:
        time.sleep(0.02)
    workers = find_workers(process.pid)
    if process.poll() is not None or len(workers) < 2:
        return False
    os.kill(chance.choice(workers), signal.SIGKILL)
    return True


def check_end(process: subprocess.Popen[str]) -> None:
    errors = process.communicate(timeout=600)[1]
    assert process.returncode == 0, errors


def kill_workers(number: int, steps: int, folder: Path) -> Iterator[float]:
    """Kill a worker at a random moment, and start the command again; yield the seconds until all have ended."""
    chance = random.Random(0)
    while number:
        process = launch(folder, steps)
        if not kill_one(process, chance):
            check_end(process)
            return
        started = time.time()
        process.communicate(timeout=120)
        number -= 1
        yield time.time() - started


def measure_restarts(number: int, steps: int) -> int:
    """Return how many kills runs survived that torchrun itself starts again, at most twice each."""
    chance, kills = random.Random(1), 0
    with tempfile.TemporaryDirectory() as temporary:
        expected = train(Path(temporary) / "whole", steps, 2)
        for run in itertools.count():
            folder = Path(temporary) / str(run)
            process = launch(folder, steps, restarts=2)
            kills += sum(kill_one(process, chance) for _ in range(min(2, number - kills)))
            check_end(process)
            assert train(folder, steps, 2) == expected
            print(f"{kills} kills, after which torchrun started the processes again", flush=True)
            if kills >= number:
                return kills


def measure_kills(number: int, steps: int) -> dict[str, Any]:
    """Return how many kills runs survived: each goes on to the metrics of a run without kills, to the last bit."""
    with tempfile.TemporaryDirectory() as temporary:
        expected, seconds = train(Path(temporary) / "whole", steps, 2), []
        for run in range(number):
            folder = Path(temporary) / str(run)
            seconds += kill_workers(number - len(seconds), steps, folder)
            assert train(folder, steps, 2) == expected
            print(f"{len(seconds)} kills", flush=True)
            if len(seconds) >= number:
                break
    return {"kills": len(seconds), "median": statistics.median(seconds), "longest": max(seconds)}


def make_tables(folder: Path) -> dict[str, str]:
    """Return the tables of docs/scale.md, from the file of results in a folder."""
    found = load_json(folder / STORE.name, {})
    rows = []
    for case, values in found.get("speed", {}).items():
        others = f"{max(part.get('others', 0.0) for part in values.values()):.0%}"
        for clock, name in (("clock", case), ("cpu", "its CPU time")):
            times = [values.get(part, {}).get(clock) for part in ("one", "unrelated", "slower", "two")]
            ratios = [times[0] / times[3], times[2] and times[0] / times[2]]
            cells = [f"{time:.1f}" if time else "" for time in times]
            rows.append([name, *cells, *(f"{ratio:.2f}" if ratio else "" for ratio in ratios), others])
    header = ["step of", "one process, ms", "two runs at once, ms", "the slower of both, ms", "two processes, ms"]
    header += ["efficiency", "its limit"]
    kills = found.get("kills", {})
    survived = []
    if "kills" in kills:
        survived.append(["the same command", str(kills["kills"]), f"{kills['median']:.1f}", f"{kills['longest']:.1f}"])
    if "restarts" in kills:
        survived.append(["torchrun (`--max-restarts 2`)", str(kills["restarts"]), "", ""])
    ended = ["seconds until all had ended, median", "longest"]
    return {
        "scale_processes": format_table([*header, "other programs"], rows),
        "scale_kills": format_table(["processes are started again by", "kills, all survived", *ended], survived),
    }


def main() -> None:
    from result_tables import write_tables

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps and kills; nothing is written")
    parser.add_argument("--only", choices=("speed", "kills"), help="one of the two measurements")
    parser.add_argument("--rounds", type=int, default=5, help="of the measurement of speed (5)")
    parser.add_argument("--case", choices=CASES, help="the only one whose speed is measured")
    parser.add_argument("--train", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=600, help=argparse.SUPPRESS)
    parser.add_argument("--measure", metavar="CASE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.train is not None:
        train(args.train, args.steps)
        return
    if args.measure is not None:
        print(json.dumps(measure(args.measure, 1, args.steps)))
        return
    found = json.loads(STORE.read_text()) if STORE.exists() and not args.quick else {}
    if args.only != "kills":
        cases = CASES if args.case is None else [args.case]
        found.setdefault("speed", {}).update(measure_efficiency(cases, *((1, 40) if args.quick else (args.rounds, 60))))
    if args.only != "speed":
        found["kills"] = measure_kills(*((3, 400) if args.quick else (20, args.steps)))
        found["kills"]["restarts"] = measure_restarts(*((2, 400) if args.quick else (10, args.steps)))
    if not args.quick:
        STORE.write_text(json.dumps(found | {"machine": describe("cpu")}, indent=1) + "\n")
        write_tables(DOCS)


if __name__ == "__main__":
    main()
