"""Several processes that train together give what one process gives."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.training.ranks_program import CASES, train

_HERE = Path(__file__).parent


def launch(*arguments: str, size: int = 2, **options: Any) -> list[subprocess.Popen[str]]:
    """Start the processes of a run, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(_HERE), str(_HERE.parents[1])])}
    return [
        subprocess.Popen(
            [sys.executable, *arguments], env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        )
        for rank in range(size)
    ]  # fmt: skip


def finish(started: list[subprocess.Popen[str]], status: int = 0) -> list[str]:
    """Return what the processes print, on both channels together."""
    printed = ["".join(process.communicate(timeout=240)) for process in started]
    assert [process.returncode for process in started] == [status] * len(started), printed
    return printed


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found for every case."""
    folder = tmp_path_factory.mktemp("together")
    finish(launch(str(_HERE / "ranks_program.py"), str(folder)))
    return [json.loads((folder / f"all-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(together: list[dict[str, Any]], case: str) -> None:
    one, (first, second) = train(case), (found[case] for found in together)
    assert first == second
    assert [row["step"] for row in first["metrics"]] == [row["step"] for row in one["metrics"]]
    for row, expected in zip(first["metrics"], one["metrics"], strict=True):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert first["weights"] == pytest.approx(one["weights"], rel=1e-5)
    assert first["best_step"] == one["best_step"]
