"""Training runs and fits behind the tables of the documentation; each is made once, and its result kept in a file."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import call_apart
from result_tables import write_tables
from table_format import DOCS, Result, load_json

import pyro_ssvae

RESULTS = DOCS / "results"


@dataclass(frozen=True)
class Run:
    """Everything that decides the result of one training run, as it is written in the benchmarks and presets."""

    family: str  # of the model; "time" for times
    name: str  # of the configuration, for --only
    seed: int = 0  # of the label split, the weights and all draws
    data: str = "mnist"
    num_labels: int | str = 100  # or "all"
    model: dict[str, Any] = field(default_factory=dict)  # arguments that differ from the defaults, as the next two
    objective: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)  # what else decides the result, JSON-ready

    @property
    def stem(self) -> str:
        """Name of the result without the hash."""
        return f"{self.family}-{self.name}-seed{self.seed}"

    @property
    def path(self) -> Path:
        """File of the result; its name ends in a hash of every field, which leaves out defaults of the package."""
        settings = json.dumps(asdict(self), sort_keys=True)
        return RESULTS / f"{self.stem}-{hashlib.sha256(settings.encode()).hexdigest()[:10]}.json"

    def folder(self, keep: str | None) -> Path | None:
        """Return the run folder below ``keep``, or ``None`` without ``keep``."""
        return Path(keep, self.stem) if keep else None

    def load(self, data_dir: str | None, num_labels: int | str | None = None) -> pyro_ssvae.SemiSupervisedData:
        """Return the data, with the labels of the run or with ``num_labels``."""
        options: dict[str, Any] = {"num_labels": self.num_labels if num_labels is None else num_labels}
        return pyro_ssvae.SemiSupervisedData.from_name(self.data, seed=self.seed, data_dir=data_dir, **options)

    def fit(self, objective: Any, data: pyro_ssvae.SemiSupervisedData, keep: str | None = None, **options: Any) -> Any:
        """Train by the settings of the run and return what :func:`pyro_ssvae.fit` returns."""
        config = pyro_ssvae.TrainingConfig(seed=self.seed, **self.training)
        return pyro_ssvae.fit(objective, data, config, out=self.folder(keep), **options)


def get_settings(preset: pyro_ssvae.presets.Preset) -> dict[str, dict[str, Any]]:
    """Return the fields of a run that a preset decides."""
    return {"model": preset.model, "objective": preset.objective, "training": preset.training}


def take_rows(data: pyro_ssvae.SemiSupervisedData, train: int, test: int) -> pyro_ssvae.SemiSupervisedData:
    """Return the labelled and the first unlabelled examples, ``train`` together, and ``test`` of each other part."""
    kept = torch.cat([data.labelled_index, data.unlabelled_index])[:train].sort().values
    names = ("x_validation", "y_validation", "x_test", "y_test")
    held_out = {name: getattr(data, name)[:test] for name in names}
    return replace(data, x=data.x[kept], y=data.y[kept], split=None, **held_out)


Train = Callable[[Run, "str | None", "str | None"], Result]  # (run, data_dir, keep) -> result


def fit_and_report(run: Run, objective: Any, data: Any, keep: str | None = None, **options: Any) -> Result:
    """Train a run and return the result, with the metrics of its evaluations; ``options`` are of ``fit``."""
    trained = run.fit(objective, data, keep, **options)
    return {**pyro_ssvae.report(objective, data, trained), "curves": trained.metrics}


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what most benchmarks have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data (else PYRO_SSVAE_DATA, else a cache)")
    parser.add_argument("--only", action="append", metavar="PATTERN", help="make what it names, as 'm2-*'; repeatable")
    parser.add_argument("--seeds", type=int, metavar="K", help="seeds 0 to K-1, where there are several")
    parser.add_argument("--keep", metavar="DIR", help="keep run folders, with models and figures, under DIR")
    return parser


def is_wanted(patterns: Sequence[str] | None, *names: str) -> bool:
    """Whether a pattern of ``--only`` matches one of the names."""
    return not patterns or any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def main(description: str | None, configurations: Any, train: Train, argv: Sequence[str] | None = None) -> None:
    """Make the runs that the command line asks for and that have no result yet, and write all tables.

    ``configurations(seeds)`` returns the runs, with this many seeds where a configuration has several. Runs that --only
    names are also made if they have no folder below --keep; a result that exists stays as it is.
    """
    parser = make_parser(description)
    parser.epilog = "A run is made once; its result is docs/results/NAME-HASH.json, with a hash of its settings."
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="runs at a time, each on its share of cores")
    args = parser.parse_args(argv)
    runs = configurations(args.seeds)
    wanted = [run for run in runs if is_wanted(args.only, run.name, f"{run.family}-{run.name}")]
    if not wanted:
        parser.error(f"no such configuration; names: {', '.join(sorted({run.name for run in runs}))}")
    again = args.only and args.keep
    missing = [run for run in wanted if not run.path.exists() or (again and not run.folder(args.keep).exists())]
    with ThreadPoolExecutor(args.jobs) as workers:
        list(workers.map(partial(_make, train, args), missing))
    write_tables()


def _make(train: Train, args: argparse.Namespace, run: Run) -> None:
    """Make one run in a process of its own, with its share of the threads, and write its result."""
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    result = {"configuration": asdict(run), **call_apart(threads, train, run, args.data_dir, args.keep)}
    keys = ("test/error", "test/log_likelihood", "test/bound", "train_seconds")
    print(f"{run.name}, seed {run.seed}:", {key: result[key] for key in keys if key in result}, flush=True)
    if not run.path.exists():
        run.path.write_text(json.dumps(result, indent=1) + "\n")


def make_fits(path: Path, fits: dict[str, Callable[[], Result]], only: Sequence[str] | None) -> None:
    """Make the fits that a file lacks and ``only`` names, write each at once, and then all tables."""
    for key, fit in fits.items():
        if is_wanted(only, key) and key not in load_json(path, {}):
            scores = fit()
            found = load_json(path, {}) | {key: scores}  # beside those that other processes have written meanwhile
            lines = [f" {json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found)]
            path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
            print(key, scores, flush=True)
    write_tables()
