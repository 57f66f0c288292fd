"""A campaign of faults: killed processes, faulty disks and folders, damaged files, wrong arguments. Linux only.

    python benchmarks/faults.py --jobs 2                # everything, half an hour on two cores
    python benchmarks/faults.py --quick                 # a part of the cases, two minutes
    python benchmarks/faults.py --only disk --case 17   # one case again, with what it printed

Each failure is printed with the command that repeats it. After a full run of a part, its counts are written to
``docs/benchmarks/faults.json`` and the table of ``docs/reliability.md`` is made from them.
"""

from __future__ import annotations

import argparse
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
from multiprocessing.connection import Connection, wait
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
    """A part of the campaign.

    Args:
        words: What the table calls it.
        cases: Number of cases; a twelfth of them with ``--quick``.
        seconds: After how many seconds a case counts as hanging.
        memory: How much more memory a case may use, in GiB.
        batch: Cases that one process runs, one after another.
    """

    words: str
    cases: int
    seconds: float
    memory: float
    batch: int


PARTS = {
    "kills": Part("killed processes", 50, 300.0, 16.0, 1),
    "disk": Part("faults of disks and folders", 100, 90.0, 16.0, 1),
    "files": Part("damaged and hostile files", 500, 60.0, 2.0, 20),
    "inputs": Part("generated arguments", 2000, 60.0, 2.0, 50),
    "tables": Part("generated tables, labels and parameters", 2000, 60.0, 2.0, 50),
}
Run = Callable[[int, Path], None]
"""Runs the case of a number in an empty folder, and raises ``Failure`` if it fails."""


class Failure(Exception):
    """A case that failed.

    Args:
        kind: A key of :data:`FAILURES`.
        message: What happened.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, " ".join(message.split())[:300])


def choose(items: Sequence[Any], rng: Any) -> Any:
    """Return one of a sequence at random."""
    return items[int(rng.integers(len(items)))]


def prepare(part: str, seed: int, root: Path) -> Run:
    """Return what runs the cases of a part, after making the files and runs that they start from."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(Path(__file__).parents[1])}
    os.environ["PATH"] = f"{root / 'bin'}:{os.environ['PATH']}"
    (root / "bin").mkdir()
    for name in _PROGRAMS:  # each leaves a mark when it is started
        (root / "bin" / name).write_text('#!/bin/sh\ntouch "$FAULTS_MARK"\n')
        (root / "bin" / name).chmod(0o755)
    from fault_disk import Disk
    from fault_files import Files
    from fault_inputs import Inputs
    from fault_runs import Kills
    from fault_tables import Tables

    makers: dict[str, Any] = {"kills": Kills, "disk": Disk, "files": Files, "inputs": Inputs, "tables": Tables}
    return makers[part](seed, root)


def run_cases(name: str, run: Run, numbers: Sequence[int], jobs: int, root: Path) -> Iterator[tuple[int, str, str]]:
    """Run cases of a part in ``jobs`` processes at a time; yield their numbers, kinds of failure and texts.

    A process is ended, and a new one started, where a case takes longer than its part allows. The kind is empty where
    there is no failure.
    """
    part = PARTS[name]
    waiting = [list(numbers[first : first + part.batch]) for first in range(0, len(numbers), part.batch)]
    running: dict[Connection, tuple[Any, list[int], float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                batch = waiting.pop(0)
                receiver, sender = multiprocessing.Pipe(duplex=False)
                context = multiprocessing.get_context("fork")
                process = context.Process(target=_work, args=(name, run, batch, sender, root))
                process.start()
                sender.close()
                running[receiver] = (process, batch, time.monotonic())
            ready = wait(list(running), timeout=0.2)
            for receiver, (process, batch, since) in list(running.items()):
                if receiver in ready:
                    outcome = _receive(receiver, process)
                elif time.monotonic() - since > part.seconds:
                    outcome = ("hang", f"no end after {part.seconds:g} s")
                else:
                    continue
                yield (batch.pop(0), *outcome)
                running[receiver] = (process, batch, time.monotonic())
                if outcome[0] == "hang" or process.exitcode is not None or not batch:
                    _end(process)
                    del running[receiver]
                    waiting = [batch, *waiting] if batch else waiting
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


def _work(name: str, run: Run, batch: Sequence[int], sender: Connection, root: Path) -> None:
    """Run the cases of a batch in this process, and send the outcome of each."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(PARTS[name].memory * 2**30),) * 2)
    if "FAULTS_LOUD" not in os.environ:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(1, 2)
    for number in tuple(batch):
        folder, mark = root / f"{name}-{number}", root / f"{name}-{number}-started"
        folder.mkdir()
        os.chdir(folder)
        os.environ["FAULTS_MARK"] = str(mark)
        outcome = ("", "")
        try:
            run(number, folder)
        except Failure as failure:
            outcome = failure.args
        except BaseException as error:
            outcome = ("foreign", f"{type(error).__name__} in the campaign itself: {error}")
        if mark.exists():
            outcome = ("started", f"a program was started, or an object unpickled; {outcome[1]}")
        os.chdir(root)
        shutil.rmtree(folder, ignore_errors=True)
        sender.send(outcome)


def make_fault_table(folder: Path) -> dict[str, str]:
    """Return the table of failures by name, from ``faults.json`` in a folder."""
    found = load_json(folder / "faults.json", {})
    rows = [
        [part.words, f"{one['cases']:,}", *(str(one[kind]) for kind in FAILURES), f"{one['seconds'] / 60:.1f}"]
        for name, part in PARTS.items()
        if (one := found.get(name))
    ]
    return {"faults": format_table(["", "cases", *FAILURES.values(), "minutes"], rows)}


def _write(counts: dict[str, Any]) -> None:
    from result_tables import write_tables

    RESULTS.write_text(json.dumps(load_json(RESULTS, {}) | counts, indent=2) + "\n")
    write_tables(RESULTS.parents[1])


def _run_part(part: str, seed: int, numbers: Sequence[int], jobs: int) -> dict[str, float]:
    """Run cases of a part, print the failures, and return how many there are of each kind."""
    started, kinds = time.monotonic(), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        for number, kind, text in run_cases(part, prepare(part, seed, root), numbers, jobs, root):
            kinds[kind] += 1
            if kind:
                repeat = f"python benchmarks/faults.py --only {part} --seed {seed} --case {number}"
                print(f"{repeat}   # {FAILURES[kind]}: {text}", flush=True)
    counts = {kind: kinds[kind] for kind in FAILURES}
    return {"cases": sum(kinds.values()), **counts, "seed": seed, "seconds": round(time.monotonic() - started)}


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
        _write(counts)
    return int(any(one[kind] for one in counts.values() for kind in FAILURES))


if __name__ == "__main__":
    import faults  # once more, under the name by which the cases import it, so that there is one class Failure

    sys.exit(faults.main())
