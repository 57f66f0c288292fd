"""A campaign of faults: killed processes, faulty disks and folders, damaged files, wrong arguments. Linux only.

    python benchmarks/faults.py --jobs 2                # everything, half an hour on two cores
    python benchmarks/faults.py --quick                 # a part of the cases, three minutes
    python benchmarks/faults.py --only disk --case 17   # one case again, with what it printed

Each failure is printed with the command that repeats it. After a full run of a part, its counts are written to
``docs/benchmarks/faults.json`` and the table of ``docs/reliability.md`` is made from them.
"""

from __future__ import annotations

import argparse
import itertools
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
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from table_format import format_table, load_json

FAILURES = {
    "corrupt": "corrupt or left-over files",
    "different": "different results",
    "dead": "dead folders",
    "foreign": "foreign tracebacks",
    "hang": "hangs",
    "started": "programs started",
}
"""What is counted, and what the table calls it; the target of each is 0."""
RESULTS = Path(__file__).parents[1] / "docs" / "benchmarks" / "faults.json"
_PROGRAMS = ("gs", "gswin64c", "convert", "pdftoppm", "latex", "xdg-open", "sh-started")


class Part(NamedTuple):
    """A part of the campaign.

    Args:
        words: What the table calls it.
        cases: Number of cases.
        quick: Number of cases with ``--quick``.
        seconds: After how many seconds a case counts as hanging.
        memory: How much more memory a case may use, in GiB.
        batch: Cases that one process runs, one after another.
    """

    words: str
    cases: int
    quick: int
    seconds: float
    memory: float
    batch: int


PARTS = {
    "kills": Part("killed processes", 50, 3, 300.0, 16.0, 1),
    "disk": Part("faults of disks and folders", 100, 12, 90.0, 16.0, 1),
    "files": Part("damaged and hostile files", 500, 100, 10.0, 2.0, 20),
    "inputs": Part("generated arguments", 2000, 400, 10.0, 2.0, 50),
}
Run = Callable[[int, Path], None]
"""Runs the case of a number in an empty folder, and raises ``Failure`` if it fails."""
Outcome = tuple[str, int, str, str]
"""Name of the part, number of the case, kind of the failure (empty if there is none), and what happened."""


class Failure(Exception):
    """A case that failed.

    Args:
        kind: A key of :data:`FAILURES`.
        message: What happened.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, " ".join(message.split())[:300])


def prepare_parts(names: list[str], seed: int, root: Path) -> dict[str, Run]:
    """Return what runs the cases of each part, after making the files and reference runs that they start from."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(Path(__file__).parents[1])}
    os.environ["PATH"] = f"{root / 'bin'}:{os.environ['PATH']}"
    (root / "bin").mkdir()
    for name in _PROGRAMS:  # each leaves a mark when it is started
        (root / "bin" / name).write_text('#!/bin/sh\ntouch "$FAULTS_MARK"\n')
        (root / "bin" / name).chmod(0o755)
    import fault_files
    import fault_inputs
    import fault_runs
    import torch

    torch.set_num_threads(1)
    modules = {"kills": fault_runs.Kills, "disk": fault_runs.Disk}
    modules |= {"files": fault_files.Files, "inputs": fault_inputs.Inputs}
    return {name: modules[name](seed, root) for name in names}


def run_cases(runs: dict[str, Run], cases: list[tuple[str, int]], jobs: int, root: Path) -> Iterator[Outcome]:
    """Run cases in ``jobs`` processes at a time, and yield their outcomes as they come.

    A process is ended, and a new one started, where a case takes longer than its part allows.
    """
    keyed = itertools.groupby(enumerate(cases), lambda one: (one[1][0], one[0] // PARTS[one[1][0]].batch))
    waiting = [[case for _, case in group] for _, group in keyed]
    running: dict[Connection, tuple[Any, list[tuple[str, int]], float]] = {}

    def start(batch: list[tuple[str, int]]) -> None:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=_work, args=(runs, batch, sender, root))
        process.start()
        sender.close()
        running[receiver] = (process, batch, time.monotonic())

    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                start(waiting.pop(0))
            ready = multiprocessing.connection.wait(list(running), timeout=0.2)
            for receiver, (process, batch, since) in list(running.items()):
                late = time.monotonic() - since > PARTS[batch[0][0]].seconds
                if receiver in ready:
                    outcome = _receive(receiver, process)
                elif late:
                    outcome = ("hang", f"no end after {PARTS[batch[0][0]].seconds:g} s")
                else:
                    continue
                yield (*batch.pop(0), *outcome)
                running[receiver] = (process, batch, time.monotonic())
                if outcome[0] == "hang" or not process.is_alive() or not batch:
                    _end(process)
                    del running[receiver]
                    if batch:
                        waiting.insert(0, batch)
    finally:
        for process, *_ in running.values():
            _end(process)


def _receive(receiver: Connection, process: Any) -> tuple[str, str]:
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        return "foreign", f"the process ended with status {process.exitcode}"


def _end(process: Any) -> None:
    """Kill a process, which leads a session of its own, with those that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.join()


def _work(runs: dict[str, Run], batch: list[tuple[str, int]], sender: Connection, root: Path) -> None:
    """Run the cases of a batch in this process, and send the outcome of each."""
    os.setsid()
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + int(PARTS[batch[0][0]].memory * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2)[: 1 if os.environ.get("FAULTS_LOUD") else 3]:
        os.dup2(quiet, stream)
    for name, number in list(batch):
        folder = root / f"{name}-{number}"
        folder.mkdir()
        os.chdir(folder)
        os.environ["FAULTS_MARK"] = str(root / f"{name}-{number}-started")
        outcome = ("", "")
        try:
            runs[name](number, folder)
        except Failure as failure:
            outcome = failure.args
        except BaseException as error:  # of this campaign
            outcome = ("foreign", f"unexpected {type(error).__name__} in the campaign itself: {error}")
        if Path(os.environ["FAULTS_MARK"]).exists():
            outcome = ("started", f"a program was started, or an object unpickled; {outcome[1]}")
        os.chdir(root)
        shutil.rmtree(folder, ignore_errors=True)
        sender.send(outcome)


def make_fault_table(folder: Path) -> dict[str, str]:
    """Return the table of failures by name, from ``faults.json`` in a folder."""
    found = load_json(folder / "faults.json") or {}
    rows = [
        [part.words, f"{one['cases']:,}", *(str(one[kind]) for kind in FAILURES), f"{one['seconds'] / 60:.1f}"]
        for name, part in PARTS.items()
        if (one := found.get(name))
    ]
    return {"faults": format_table(["", "cases", *FAILURES.values(), "minutes"], rows)}


def _write(counts: dict[str, Any]) -> None:
    from tables import write_tables

    RESULTS.write_text(json.dumps((load_json(RESULTS) or {}) | counts, indent=2) + "\n")
    write_tables(RESULTS.parents[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PARTS), action="append", help="parts to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer cases")
    parser.add_argument("--cases", type=int, help="number of cases of each part")
    parser.add_argument("--case", type=int, help="run the case of this number alone, and show what it prints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    args = parser.parse_args()
    names = args.only or list(PARTS)
    counts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as name:
        root = Path(name)
        if args.case is not None:
            os.environ["FAULTS_LOUD"] = "1"
        for part in names:
            started = time.monotonic()
            runs = prepare_parts([part], args.seed, Path(tempfile.mkdtemp(dir=root)))
            size = args.cases or (PARTS[part].quick if args.quick else PARTS[part].cases)
            numbers = [args.case] if args.case is not None else range(size)
            kinds: Counter[str] = Counter()
            for _, number, kind, message in run_cases(runs, [(part, one) for one in numbers], args.jobs, root):
                kinds[kind] += 1
                if kind:
                    repeat = f"python benchmarks/faults.py --only {part} --seed {args.seed} --case {number}"
                    print(f"{repeat}   # {FAILURES[kind]}: {message}", flush=True)
            counts[part] = {"cases": sum(kinds.values()), **{kind: kinds[kind] for kind in FAILURES}}
            counts[part] |= {"seed": args.seed, "seconds": round(time.monotonic() - started)}
    rows = [[name, *map(str, list(one.values())[:-2])] for name, one in counts.items()]
    print(format_table(["", "cases", *FAILURES.values()], rows))
    if not (args.quick or args.cases or args.case is not None):
        _write(counts)
    return int(any(one[kind] for one in counts.values() for kind in FAILURES))


if __name__ == "__main__":
    import faults  # once more, under the name by which the cases import it, so that there is one class Failure

    sys.exit(faults.main())
