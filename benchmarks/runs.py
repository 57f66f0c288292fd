"""Training runs behind the tables of the documentation: each is made once, and its result is kept in a file."""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "results"

Result = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """Everything that decides the result of one training run, as it is written in the benchmarks and presets.

    Args:
        family: What is trained: ``"m2"``, ``"m1"``, ``"m1m2"`` or ``"ddgm"``.
        name: Name of the configuration, for ``--only``.
        seed: Seed of the label split, the weights and all draws.
        data: Name of the data set.
        num_labels: Number of training examples that keep their label; ``"all"`` for every one.
        model: Arguments of the model that differ from its defaults.
        objective: Arguments of the objective that differ from its defaults.
        training: Arguments of :class:`pyro_ssvae.TrainingConfig` that differ from its defaults.
        options: What else decides the result, JSON-ready.
    """

    family: str
    name: str
    seed: int = 0
    data: str = "mnist"
    num_labels: int | str = 100
    model: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """Name of the result without the hash."""
        return f"{self.family}-{self.name}-seed{self.seed}"

    @property
    def path(self) -> Path:
        """File of the result; its name ends in a hash over every field, so that other settings have another file.

        The hash covers the settings as written here and in the presets. Defaults of the package are not part of it.
        """
        settings = json.dumps(asdict(self), sort_keys=True)
        return RESULTS / f"{self.stem}-{hashlib.sha256(settings.encode()).hexdigest()[:10]}.json"

    def folder(self, keep: str | None) -> Path | None:
        """Return the run folder below ``keep``, or ``None`` without ``keep``."""
        return Path(keep) / f"{self.name}-seed{self.seed}" if keep else None


Train = Callable[[Run, "str | None", "str | None"], Result]
"""Trains ``(run, data_dir, keep)`` and returns the result."""


def write_result(path: Path, result: Result) -> None:
    """Write a result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def main(
    description: str | None,
    configurations: Callable[[int | None], list[Run]],
    train: Train,
    argv: Sequence[str] | None = None,
) -> argparse.Namespace:
    """Make the runs that the command line asks for and that have no result yet, then write all tables.

    Args:
        description: What ``--help`` says.
        configurations: Returns the runs, with this many seeds where a configuration has several (``None``: default).
        train: Trains one run.
        argv: The command line.

    Returns:
        The parsed command line.
    """
    from result_tables import write_tables

    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data (else PYRO_SSVAE_DATA, else a cache)")
    parser.add_argument("--only", action="append", metavar="NAME", help="make only this configuration; repeatable")
    parser.add_argument("--seeds", type=int, metavar="K", help="seeds 0 to K-1, where a configuration has several")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="runs at a time, each on its share of cores")
    parser.add_argument("--keep", metavar="DIR", help="keep run folders, with models and figures, under DIR")
    args = parser.parse_args(argv)
    runs = configurations(args.seeds)
    wanted = [run for run in runs if not args.only or run.name in args.only]
    if not wanted:
        parser.error(f"no such configuration; names: {', '.join(sorted({run.name for run in runs}))}")
    missing = [run for run in wanted if not run.path.exists()]
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with ThreadPoolExecutor(args.jobs) as workers:
        results = workers.map(lambda run: _make_in_process(train, run, args.data_dir, args.keep, threads), missing)
        for run, result in zip(missing, results, strict=True):
            keys = ("test/error", "test/log_likelihood", "test/bound", "train_seconds")
            print(f"{run.name}, seed {run.seed}:", {key: result[key] for key in keys if key in result}, flush=True)
    write_tables(DOCS)
    return args


def _make_in_process(train: Train, run: Run, data_dir: str | None, keep: str | None, threads: int) -> Result:
    """Make one run in a process of its own, which gives its peak memory, and write its result."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        result, peak = pool.submit(_train_with_peak, train, run, data_dir, keep, threads).result()
    result = {"configuration": asdict(run), **result, "peak_memory_mib": peak}
    write_result(run.path, result)
    return result


def _train_with_peak(
    train: Train, run: Run, data_dir: str | None, keep: str | None, threads: int
) -> tuple[Result, int]:
    torch.set_num_threads(threads)
    result = train(run, data_dir, keep)
    return result, round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
