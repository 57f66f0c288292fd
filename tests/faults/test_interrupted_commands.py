"""A training command that is killed, or meets a faulty disk, and is given again, equals an undisturbed one."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyro_ssvae as ss
from tests.faults.commands import make_points, run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="limits and signals of Linux")]

KEYS = ("test/error", "test/error_last", "val/error", "test/bound", "steps", "epochs")


def start(folder: Path, fault: str = "", number: int = 0) -> Any:
    """Start the command in a process that is forked from one with the package imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pyro_ssvae.cli.main", "lightning_fabric", "matplotlib.pyplot", "sklearn.manifold"])
    process = context.Process(target=run, args=(folder, fault, number))
    process.start()
    return process


def finish(process: Any, folder: Path, *, silent: bool = False) -> int:
    """Return the status of a command, which prints no traceback and, unless it must be silent, an error of its own."""
    process.join(120)
    log = (folder / "log").read_text() if (folder / "log").exists() else ""
    assert process.exitcode is not None, f"the command hangs: {log}"
    assert "Traceback" not in log, log
    assert silent or process.exitcode != 2 or "error: " in log, log
    return process.exitcode


def read(folder: Path) -> dict[str, Any]:
    """Return names of files, metrics, results and weights of a run."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
    result = json.loads((folder / "result.json").read_text())
    return {
        "files": sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.parent.name != "tensorboard"),
        "metrics": rows,
        "result": [result[key] for key in KEYS],
        "weights": {name: weight.numpy() for name, weight in ss.load(folder).state_dict().items()},
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    make_points(folder / "points.npz")
    started = time.monotonic()
    assert finish(start(folder), folder) == 0
    (folder / "seconds").write_text(f"{time.monotonic() - started}")
    return folder


@pytest.fixture
def folder(undisturbed: Path, tmp_path: Path) -> Path:
    shutil.copy(undisturbed / "points.npz", tmp_path)
    return tmp_path


def check_again(folder: Path, undisturbed: Path) -> None:
    assert finish(start(folder), folder) == 0
    np.testing.assert_equal(read(folder / "run"), read(undisturbed / "run"))


@pytest.mark.parametrize("number", range(6))
def test_killed_at_a_random_moment(number: int, folder: Path, undisturbed: Path) -> None:
    rng = np.random.default_rng(number)
    kind = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[number % 3]
    for _ in range(1 + number % 2):
        process = start(folder)
        time.sleep(float(rng.uniform(0.0, float((undisturbed / "seconds").read_text()))))
        if process.is_alive():
            os.kill(process.pid, kind)
        assert finish(process, folder) in (0, 130, 143, -kind)
    check_again(folder, undisturbed)


@pytest.mark.parametrize("number", range(0, 24, 6))
def test_killed_while_a_file_is_renamed(number: int, folder: Path, undisturbed: Path) -> None:
    assert finish(start(folder, "killed at a rename", number), folder) in (0, -signal.SIGKILL)
    check_again(folder, undisturbed)


@pytest.mark.parametrize("number", [0, 10, 13, 17])
def test_files_that_may_not_grow(number: int, folder: Path, undisturbed: Path) -> None:
    assert finish(start(folder, "small files", number), folder, silent=True) in (0, 2)
    assert not list((folder / "run").rglob(".*.tmp"))
    check_again(folder, undisturbed)


@pytest.mark.parametrize("number", [0, 3])
def test_outputs_that_are_full_or_closed(number: int, folder: Path, undisturbed: Path) -> None:
    assert finish(start(folder, "output", number), folder, silent=True) in (0, 2, 120, -signal.SIGPIPE)
    check_again(folder, undisturbed)


def test_a_folder_deleted_during_training(folder: Path, undisturbed: Path) -> None:
    process = start(folder)
    while process.is_alive() and not (folder / "run" / "metrics.csv").exists():
        time.sleep(0.01)
    shutil.rmtree(folder / "run", ignore_errors=True)
    assert finish(process, folder) in (0, 2)
    shutil.rmtree(folder / "run", ignore_errors=True)
    check_again(folder, undisturbed)


def test_the_same_command_twice_at_once(folder: Path, undisturbed: Path) -> None:
    processes = [start(folder), start(folder)]
    assert sorted(finish(process, folder) for process in processes) == [0, 2]
    np.testing.assert_equal(read(folder / "run"), read(undisturbed / "run"))
