"""Runs that are made once: the flags, processes and result files that the benchmarks of MNIST share."""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol


class Row(Protocol):
    """What a row of a page must have."""

    @property
    def name(self) -> str:
        """Its name, for --only."""

    @property
    def seed(self) -> int:
        """Its seed."""

    @property
    def path(self) -> Path:
        """Where its result is kept."""


Train = Callable[[Any, "str | None", "str | None", int], dict[str, Any]]


def digest(settings: dict[str, Any]) -> str:
    """Return ten letters that stand for all settings of a run."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which runs are made, and how."""
    parser.add_argument("--data-dir", metavar="DIR", help="where MNIST lies (else PYRO_SSVAE_DATA, else a cache)")
    parser.add_argument("--only", action="append", metavar="NAME", help="only rows of this name; may be repeated")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="J", help="runs at a time, each on its share of the cores"
    )
    parser.add_argument("--keep", metavar="DIR", help="keep the run folders, with models and figures, under DIR")
    parser.add_argument("--table", action="store_true", help="train nothing, only rewrite the page")


def make(parser: argparse.ArgumentParser, args: argparse.Namespace, rows: Sequence[Row], train: Train) -> None:
    """Make the runs that the flags ask for and that have no result yet."""
    wanted = [row for row in rows if not args.only or row.name in args.only]
    if not wanted:
        parser.error(f"no such row; names: {', '.join(sorted({row.name for row in rows}))}")
    missing = [] if args.table else [row for row in wanted if not row.path.exists()]
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with ThreadPoolExecutor(args.jobs) as workers:
        results = workers.map(lambda row: _alone(train, row, args.data_dir, args.keep, threads), missing)
        for row, result in zip(missing, results, strict=True):
            print(f"{row.name}, seed {row.seed}: {_summary(result)}", flush=True)


def make_all(description: str | None, rows: Sequence[Row], train: Train, write_page: Callable[[], None]) -> None:
    """Be the command line of a benchmark without flags of its own: make its runs, and write the page."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    make(parser, parser.parse_args(), rows, train)
    write_page()


def _alone(train: Train, row: Row, data_dir: str | None, keep: str | None, threads: int) -> dict[str, Any]:
    """Make one run in a process of its own, so that its peak memory is its own, and keep the result."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        result, peak = pool.submit(_with_peak, train, row, data_dir, keep, threads).result()
    result = {**result, "peak_memory_mib": peak}
    row.path.parent.mkdir(parents=True, exist_ok=True)
    row.path.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _with_peak(
    train: Train, row: Row, data_dir: str | None, keep: str | None, threads: int
) -> tuple[dict[str, Any], int]:
    result = train(row, data_dir, keep, threads)
    return result, round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _summary(result: dict[str, Any]) -> str:
    if result.get("test_error") is not None:
        return f"test error {result['test_error']:.2%}"
    if result.get("test_log_likelihood") is not None:
        return f"log p(x) {result['test_log_likelihood']:.2f} nats"
    if result.get("test_elbo") is not None:
        return f"bound {result['test_elbo']:.2f} nats"
    return f"{result['train_seconds']:.0f} s of training"
