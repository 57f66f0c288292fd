"""A campaign of faults: killed processes, faulty disks and folders, damaged files, wrong arguments. Linux only.

    python benchmarks/faults.py --jobs 2                # everything, half an hour on two cores
    python benchmarks/faults.py --quick                 # a part of the cases, some minutes
    python benchmarks/faults.py --only disk --case 17   # one case again, with what it printed

Each failure is printed with the command that repeats it. After a full run of a part, its counts are written to
``docs/benchmarks/faults.json`` and the table of ``docs/reliability.md`` is made from them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

from table_format import format_table, load_json

FAILURES = {
    "corrupt": "corrupt or left-over files",
    "different": "different results",
    "dead": "runs that cannot continue",
    "foreign": "tracebacks of others",
    "hang": "hangs",
    "started": "programs started",
}
"""What is counted, and what the table calls it; the target of each is 0."""
RESULTS = Path(__file__).parents[1] / "docs" / "benchmarks" / "faults.json"
_PROGRAMS = ("gs", "convert", "pdftoppm", "latex", "xdg-open", "started-by-yaml")


class Part(NamedTuple):
    """A part of the campaign, whose cases a class of its name runs."""

    words: str  # what the table calls it
    module: str
    cases: int  # a twelfth of them with --quick
    seconds: float  # after which a case counts as hanging
    memory: float  # how much more a case may use, in GiB


PARTS = {
    "kills": Part("killed processes", "fault_runs", 50, 300.0, 16.0),
    "disk": Part("faults of disks and folders", "fault_runs", 100, 90.0, 16.0),
    "files": Part("damaged and hostile files", "fault_files", 500, 60.0, 2.0),
    "inputs": Part("generated arguments", "fault_inputs", 2000, 60.0, 2.0),
    "tables": Part("generated tables, labels and parameters", "fault_tables", 2000, 60.0, 2.0),
}
Run = Callable[[int, Any, Path], None]
"""Runs the case of a number, with a generator of numpy, in an empty folder, and raises ``Failure`` if it fails."""


def prepare(part: str, root: Path, numbers: Sequence[int]) -> Run:
    """Return what runs the cases of a part, after making the files and runs that they start from."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(Path(__file__).parents[1])}
    os.environ["PATH"] = f"{root / 'bin'}:{os.environ['PATH']}"
    (root / "bin").mkdir()
    for name in _PROGRAMS:  # each leaves a mark when it is started
        (root / "bin" / name).write_text('#!/bin/sh\ntouch "$FAULTS_MARK"\n')
        (root / "bin" / name).chmod(0o755)
    return getattr(importlib.import_module(PARTS[part].module), part.title())(root, numbers)


def run_cases(
    part: str, run: Run, numbers: Sequence[int], root: Path, seed: int = 0, jobs: int = 1
) -> Iterator[tuple[int, str, str]]:
    """Run each case in a process, ``jobs`` at a time; yield its number, kind of failure (or ``""``) and a text."""
    waiting, running, limit = list(numbers), dict[int, tuple[Any, float]](), PARTS[part].seconds
    fork = multiprocessing.get_context("fork")
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                process = fork.Process(target=_work, args=(part, run, waiting[0], seed, root))
                process.start()
                running[waiting.pop(0)] = process, time.monotonic()
            wait([process.sentinel for process, _ in running.values()], timeout=0.2)
            for number, (process, since) in list(running.items()):
                outcome, alive = root / f"{number}.json", process.is_alive()
                if alive and time.monotonic() - since < limit:
                    continue
                _end(process)
                del running[number]
                ended = ["hang", f"no end after {limit:g} s"]
                ended = ended if alive else ["foreign", f"the process ended with status {process.exitcode}"]
                kind, text = load_json(outcome, ended)
                yield number, kind, text
    finally:
        for process, _ in running.values():
            _end(process)


def _end(process: Any) -> None:
    """Kill a process, which leads a session of its own, with those that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def _work(part: str, run: Run, number: int, seed: int, root: Path) -> None:
    """Run a case in this process, and write its outcome."""
    import numpy as np  # not before prepare has limited its threads
    import torch
    from fault_runs import Failure

    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(PARTS[part].memory * 2**30),) * 2)
    if "FAULTS_LOUD" not in os.environ:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(1, 2)
    folder, mark, outcome = root / f"{part}-{number}", root / f"{number}-started", ("", "")
    folder.mkdir()
    os.chdir(folder)
    os.environ["FAULTS_MARK"] = str(mark)
    torch.manual_seed(number)
    try:
        run(number, np.random.default_rng((seed, list(PARTS).index(part), number)), folder)
    except Failure as failure:
        outcome = failure.args
    except BaseException as error:
        outcome = ("foreign", f"{type(error).__name__} in the campaign itself: {error}")
    if mark.exists():
        outcome = ("started", f"a program was started, or an object unpickled; {outcome[1]}")
    os.chdir(root)
    shutil.rmtree(folder, ignore_errors=True)
    (root / f"{number}.json").write_text(json.dumps(outcome))


def make_fault_table(folder: Path) -> dict[str, str]:
    """Return the table of failures by name, from ``faults.json`` in a folder."""
    found = load_json(folder / "faults.json", {})
    rows = [
        [part.words, f"{one['cases']:,}", *(str(one[kind]) for kind in FAILURES), f"{one['seconds'] / 60:.1f}"]
        for name, part in PARTS.items()
        if (one := found.get(name))
    ]
    return {"faults": format_table(["", "cases", *FAILURES.values(), "minutes"], rows)}


def _run_part(part: str, seed: int, numbers: Sequence[int], jobs: int) -> dict[str, float]:
    """Run cases of a part, print the failures, and return how many there are of each kind."""
    started, kinds = time.monotonic(), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        for number, kind, text in run_cases(part, prepare(part, root, numbers), numbers, root, seed, jobs):
            kinds[kind] += 1
            if kind:
                repeat = f"python benchmarks/faults.py --only {part} --seed {seed} --case {number}"
                print(f"{repeat}   # {FAILURES[kind]}: {text}", flush=True)
    counts = {kind: kinds[kind] for kind in FAILURES}
    return {"cases": kinds.total(), **counts, "seed": seed, "seconds": round(time.monotonic() - started)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PARTS), action="append", help="parts to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer cases")
    parser.add_argument("--cases", type=int, help="number of cases of each part")
    parser.add_argument("--case", type=int, help="run the case of this number alone, and show what it prints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that processes and folders are cleared away
    if args.case is not None:
        os.environ["FAULTS_LOUD"] = "1"
    counts: dict[str, Any] = {}
    for part in args.only or PARTS:
        size = args.cases or PARTS[part].cases // (12 if args.quick else 1)
        counts[part] = _run_part(part, args.seed, range(size) if args.case is None else [args.case], args.jobs)
    rows = [[name, *map(str, list(one.values())[:-2])] for name, one in counts.items()]
    print(format_table(["", "cases", *FAILURES.values()], rows))
    if not (args.quick or args.cases or args.case is not None):
        from result_tables import write_tables

        RESULTS.write_text(json.dumps(load_json(RESULTS, {}) | counts, indent=2) + "\n")
        write_tables(RESULTS.parents[1])
    return int(any(one[kind] for one in counts.values() for kind in FAILURES))


if __name__ == "__main__":
    sys.exit(main())
