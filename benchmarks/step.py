"""Time one training step of M2: this package, stock Pyro as in its tutorial, pyroved, and PyTorch by hand.

    python benchmarks/step.py                        # every contender, 10, 100 and 1,000 classes, 1 and 2 threads
    python benchmarks/step.py --classes 10 --only ours --only hand-written
    python benchmarks/step.py --table                # only rewrite docs/benchmarks.md and its figure
    python benchmarks/step.py --floor                # what this machine could do at best, beside what was measured

Every contender has a process of its own, which lives as long as its setting is measured and sleeps between visits.
Contenders alternate over the rounds (A B C A B C ...), so that what else the machine does hits all alike. Results are
kept as docs/benchmarks/step-DEVICE.json; only these files make the page. With --only, the others' results stay.

Two threads on two cores need both of them for themselves: at every barrier PyTorch's threads spin until the last one
arrives, and wait for a whole time slice of the system where another program holds its core. Where the machine cannot
be had alone, set OMP_WAIT_POLICY=passive, which the results then name.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from contenders import Contender, HandWritten, Ours, Pyroved, TutorialPyro, Unavailable
from machine import (
    available_memory,
    describe,
    forget_peak_memory,
    limit_memory,
    peak_memory,
    resident_memory,
)
from torch import Tensor

from pyro_ssvae.training.device import has_bf16

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "benchmarks"
ROWS = 200  # unlabelled rows of a step
LARGE = 50_000  # enumerated rows from which memory is estimated before the first step
SHARE = 0.9  # of the free memory that a contender may take

Batches = list[tuple[Tensor, ...]]


@dataclass(frozen=True)
class Entry:
    """A contender as it is listed: its words in the table, how it is made, its precision, and where it runs."""

    words: str
    make: Callable[..., Contender]
    precision: str = "fp32"
    options: tuple[tuple[str, Any], ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")


_TOP_K = (("enumeration", "top-k"),)
_GRAPH = (("graph", True),)
_REPLAY = (("compile", "replay"),)
_EAGER = (("compile", "eager"),)

CONTENDERS: dict[str, Entry] = {
    "tutorial": Entry("stock Pyro, as in its tutorial", TutorialPyro),
    "pyroved": Entry("pyroved", Pyroved),
    "hand-written": Entry("PyTorch by hand", HandWritten),
    "hand-written-bf16": Entry("PyTorch by hand, bf16", HandWritten, "bf16"),
    "hand-written-graph": Entry("PyTorch by hand, CUDA graph", HandWritten, "fp32", _GRAPH, ("cuda",)),
    "hand-written-graph-bf16": Entry("PyTorch by hand, CUDA graph, bf16", HandWritten, "bf16", _GRAPH, ("cuda",)),
    "ours": Entry("pyro_ssvae, exact", Ours),
    "ours-replay": Entry("pyro_ssvae, exact, replayed only", Ours, "fp32", _REPLAY, ("cpu",)),
    "ours-eager": Entry("pyro_ssvae, exact, eager", Ours, "fp32", _EAGER),
    "ours-bf16": Entry("pyro_ssvae, exact, bf16", Ours, "bf16"),
    "ours-top-k": Entry("pyro_ssvae, top-k", Ours, "fp32", _TOP_K),
    "ours-top-k-replay": Entry("pyro_ssvae, top-k, replayed only", Ours, "fp32", (*_TOP_K, *_REPLAY), ("cpu",)),
    "ours-top-k-eager": Entry("pyro_ssvae, top-k, eager", Ours, "fp32", (*_TOP_K, *_EAGER)),
    "ours-top-k-bf16": Entry("pyro_ssvae, top-k, bf16", Ours, "bf16", _TOP_K),
}


@dataclass(frozen=True)
class Setting:
    """What is the same for all contenders that are compared with each other."""

    device: str
    classes: int
    threads: int
    labelled: int


@dataclass(frozen=True)
class Effort:
    """How long a contender is measured: steps and seconds of a visit, visits, and the longest step worth repeating."""

    steps: int
    seconds: float
    rounds: int
    patience: float


# In the process of one contender.


def work(connection: Connection, name: str, setting: Setting, effort: Effort) -> None:
    """Build a contender and time its steps whenever the other end asks; answer with what to add to its result."""
    torch.set_num_threads(setting.threads)
    try:
        timer = Timer(name, setting, effort)
        connection.send({"base_mib": timer.base_mib})
        while connection.recv():
            connection.send({"visit": timer.visit(), "peak_mib": timer.peak_mib()})
    except Unavailable as error:
        connection.send({"reason": str(error)})
    except Exception as error:
        if _is_out_of_memory(error):
            connection.send({"reason": "out of memory"})
            return
        traceback.print_exc()
        connection.send({"reason": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"})


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or any(
        words in str(error) for words in ("can't allocate memory", "not enough memory", "bad_alloc")
    )


class Timer:
    """A contender, its batches, and how long its steps take."""

    def __init__(self, name: str, setting: Setting, effort: Effort) -> None:
        self.setting, self.effort = setting, effort
        self.base_mib = round(resident_memory() / 2**20) if setting.device == "cpu" else 0
        entry = CONTENDERS[name]
        self.contender = entry.make(
            num_classes=setting.classes,
            labelled_rows=setting.labelled,
            device=setting.device,
            precision=entry.precision,
            seed=0,
            **dict(entry.options),
        )
        self.batches = batches(setting, ROWS)
        self.taken = 0
        self.step_seconds: float | None = None
        if setting.device == "cpu":
            limit_memory(SHARE)
            if setting.classes * ROWS >= LARGE and self.contender.any_batch_size:
                self.estimate()

    def estimate(self) -> None:
        """Refuse what would not fit or not end: both grow by the row, so small batches tell what a full one takes."""
        few, more = 10, 20
        peaks, seconds = [], 0.0
        for rows in (few, few, more):  # the optimiser's state comes into being at the first step
            batch = batches(self.setting, rows, 1)[0]
            forget_peak_memory()
            started = time.perf_counter()
            self.contender.step(*batch)
            seconds = (time.perf_counter() - started) / rows * ROWS
            peaks.append(peak_memory())
        growth = (peaks[2] - peaks[1]) / (more - few)
        needed, free = peaks[1] + growth * (ROWS - few), available_memory()
        forget_peak_memory()
        if free is not None and needed > SHARE * (free + resident_memory()):
            gib = 2**30
            raise Unavailable(f"out of memory: needs about {needed / gib:.0f} GiB, {free / gib:.0f} GiB are free")
        if seconds > self.effort.patience:
            raise Unavailable(f"not measured: about {seconds:.0f} s a step, judged by {more} rows")

    def take(self, steps: int) -> float:
        """Take steps and return seconds per step."""
        self._synchronise()
        started = time.perf_counter()
        for _ in range(steps):
            self.contender.step(*self.batches[self.taken % len(self.batches)])
            self.taken += 1
        self._synchronise()
        return (time.perf_counter() - started) / steps

    def visit(self) -> list[float]:
        """Warm up, then time steps one by one, or in blocks on CUDA, where waiting after each would slow all down."""
        effort = self.effort
        if self.step_seconds is None:
            self.take(self.contender.warm_up)  # where something is compiled or recorded, now
            self.step_seconds = self.take(1)
            if self.step_seconds > effort.patience:
                return [self.step_seconds]
        if self.step_seconds < effort.seconds:
            self.step_seconds = self.take(1)  # caches are cold after the others' visits
        least = math.ceil(3 / effort.rounds)
        steps = max(least, min(effort.steps, int(effort.seconds / self.step_seconds)))
        block = min(10, steps) if self.setting.device == "cuda" else 1
        times = [self.take(block) for _ in range(max(1, steps // block))]
        self.step_seconds = min(times)
        return times

    def peak_mib(self) -> int:
        """Return the most memory taken so far: of the process on the CPU, of allocations on CUDA."""
        peak = torch.cuda.max_memory_allocated() if self.setting.device == "cuda" else peak_memory()
        return round(peak / 2**20)

    def _synchronise(self) -> None:
        if self.setting.device == "cuda":
            torch.cuda.synchronize()


def batches(setting: Setting, rows: int, number: int = 8) -> Batches:
    """Return batches of random rows, as bright as MNIST, with labelled rows beside them where the setting has some."""
    generator = torch.Generator().manual_seed(0)

    def some(size: int) -> Tensor:
        return (torch.rand(size, 784, generator=generator) < 0.13).float().to(setting.device)

    result: Batches = []
    for _ in range(number):
        batch: tuple[Tensor, ...] = (some(rows),)
        if setting.labelled:
            y = torch.randint(setting.classes, (setting.labelled,), generator=generator)
            batch += (some(setting.labelled), y.to(setting.device))
        result.append(batch)
    return result


# In the process that asks.


class Visited:
    """The other end of a contender's process, and its result so far."""

    def __init__(self, name: str, setting: Setting, effort: Effort) -> None:
        context = multiprocessing.get_context("spawn")
        self.name, self.patience = name, effort.patience
        self.result: dict[str, Any] = {"contender": name, **asdict(setting), "visits": [], "reason": None}
        # Libraries read their number of threads from the environment when they are loaded.
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(setting.threads)
        self.connection, far = context.Pipe()
        self.process = context.Process(target=work, args=(far, name, setting, effort), daemon=True)
        self.process.start()
        far.close()
        self.alive = True
        self.result |= self._listen()

    def visit(self) -> None:
        """Ask for one more visit; the process does nothing before and after."""
        answer = self._listen(ask=True)
        if "visit" in answer:
            self.result["visits"].append([round(1000 * seconds, 4) for seconds in answer["visit"]])
            self.result["peak_mib"] = answer["peak_mib"]
            if min(answer["visit"]) > self.patience:
                self.result["reason"] = "one step"
                self.end()

    def end(self) -> None:
        """End the process."""
        if self.alive:
            self.connection.send(False)
        self.alive = False
        self.process.join()

    def _listen(self, ask: bool = False) -> dict[str, Any]:
        try:
            if ask:
                self.connection.send(True)
            answer: dict[str, Any] = self.connection.recv()
        except (EOFError, OSError):  # the other end is gone
            self.process.join()
            answer = {"reason": f"the process was ended with status {self.process.exitcode}, likely out of memory"}
        if "reason" in answer:
            self.result["reason"] = answer["reason"]
            self.alive = False
        return answer


def measure(setting: Setting, names: list[str], effort: Effort) -> list[dict[str, Any]]:
    """Measure contenders in one setting, in alternation, and return their results."""
    visited = [Visited(name, setting, effort) for name in names if setting.device in CONTENDERS[name].devices]
    for _ in range(effort.rounds):
        for one in visited:
            if one.alive:
                one.visit()
    for one in visited:
        one.end()
        times = sorted(time for visit in one.result["visits"] for time in visit)
        words = f"{times[len(times) // 2]:.2f} ms" if times else one.result["reason"]
        where = f"{setting.device}, {setting.classes} classes, {setting.threads} threads, {setting.labelled} labelled"
        print(f"{where}, {one.name}: {words}", flush=True)
    return [one.result for one in visited]


def keep(path: Path, device: str, results: list[dict[str, Any]], command: str) -> None:
    """Write results, in place of older ones of the same contenders and settings and beside the others."""
    machine = describe(device)
    old: list[dict[str, Any]] = []
    if path.exists():
        stored = json.loads(path.read_text())
        old = stored["results"] if stored["machine"] == machine else []

    def key(result: dict[str, Any]) -> tuple[Any, ...]:
        return (result["contender"], *(result[name] for name in Setting.__dataclass_fields__))

    merged = {key(result): result for result in [*old, *results]}
    lines = ",\n".join("  " + json.dumps(result) for result in merged.values())
    head = json.dumps({"command": command, "rows": ROWS, "machine": machine}, indent=1)[:-2]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head},\n "results": [\n{lines}\n ]\n}}\n')


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000], metavar="K")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="T", help="of PyTorch, on the CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the CPU, and CUDA where there is one")
    parser.add_argument("--labelled", type=int, nargs="+", default=[0], metavar="B", help="labelled rows of a step")
    parser.add_argument("--rounds", type=int, default=5, help="visits to each contender")
    parser.add_argument("--steps", type=int, help="steps of a visit at most; default 20, on CUDA 100")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for the steps of a visit, at least one step")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds of a step from which one is enough")
    parser.add_argument("--only", action="append", choices=CONTENDERS, metavar="NAME", help=", ".join(CONTENDERS))
    parser.add_argument("--json", type=Path, metavar="OUT", help="keep results here and leave the page alone")
    parser.add_argument("--table", action="store_true", help="measure nothing, only rewrite the page")
    parser.add_argument("--floor", action="store_true", help="print what the machine could do at best")
    args = parser.parse_args()
    if args.json and not args.device:
        parser.error("--json needs --device: a file holds the results of one")
    return args


def write_floor(devices: list[str], args: argparse.Namespace, words: dict[str, str]) -> None:
    """Measure what the machine could do at best and where the time goes, print both and write them on the page."""
    from floor import floor_table
    from profile_step import profile_table
    from step_page import write_section

    parts = []
    for device in devices:
        stored = args.json or RESULTS / f"step-{device}.json"
        threads = args.threads if device == "cpu" else [1]
        parts.append(floor_table(device, args.classes, threads, ROWS, stored, words))
        if device == "cpu":
            parts.append(profile_table(args.classes[0], ROWS, args.threads[0]))
    print("\n\n".join(parts))
    write_section(DOCS / "benchmarks.md", "floor", "\n\n".join(parts))


def main() -> None:
    args = parse()
    devices = [args.device] if args.device else ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    words = {name: entry.words for name, entry in CONTENDERS.items()}
    if args.floor:
        write_floor(devices, args, words)
        return
    for device in () if args.table else devices:
        if device == "cpu" and not has_bf16():
            print("bf16 is emulated on this CPU: few steps, and slow ones")
        path = args.json or RESULTS / f"step-{device}.json"
        effort = Effort(args.steps or (100 if device == "cuda" else 20), args.seconds, args.rounds, args.patience)
        settings = [
            Setting(device, classes, threads, labelled)
            for labelled in args.labelled
            for classes in args.classes
            for threads in (args.threads if device == "cpu" else [1])
        ]
        for setting in settings:
            results = measure(setting, args.only or list(CONTENDERS), effort)
            keep(path, device, results, " ".join(["python benchmarks/step.py", *sys.argv[1:]]))
    from step_page import markdown, write_page

    if args.json:
        print(markdown([args.json], words))
    else:
        write_page(DOCS, words)


if __name__ == "__main__":
    sys.exit(main())
