"""The campaign of faults: what counts as a failure, and a few cases of each part."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import faults
import numpy as np
import pytest
import torch
from fault_inputs import check_error
from fault_runs import Ended, Failure, check_ending, compare

from pyro_ssvae import M2, TrainingConfig, save

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
import fault_runs, faults
points = Path(sys.argv.pop(1))
fault_runs.make_points(points)
train = [str(points) if word == "points.npz" else word for word in fault_runs.TRAIN[1:]]
fault_runs._COMMANDS = dict.fromkeys(fault_runs._COMMANDS, train)
run = fault_runs.Command._run
fault_runs.Command._run = lambda self, output, setup, new: run(self, output, setup, False)  # no new interpreters
sys.exit(faults.main())
"""


@pytest.mark.slow
def test_a_few_cases_of_each_part(tmp_path: Path) -> None:
    path = os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks")))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "points.npz"), "--cases", "3", "--jobs", "1"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    rows = re.findall(r"^\| (\w+) \| 3 \| (.*) \|$", done.stdout, re.MULTILINE)
    assert [name for name, _ in rows] == ["kills", "disk", "files", "inputs", "tables"], done.stderr
    failures = sum(int(count) for _, counts in rows for count in counts.split(" | "))
    assert failures == done.stdout.count("python benchmarks/faults.py --only")
    assert done.returncode == int(failures > 0)
    assert "in the campaign itself" not in done.stdout


def run_one(number: int, rng: np.random.Generator, folder: Path) -> None:
    """Behave well, fail, hang, die, start a program or have a fault of its own."""
    if number == 1:
        raise Failure("different", "two  lines\nof text")
    if number == 2:
        time.sleep(60)
    if number == 3:
        os._exit(7)
    if number == 4:
        Path(os.environ["FAULTS_MARK"]).touch()
    if number == 5:
        raise KeyError("x")


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # the processes here use no thread
@pytest.mark.parametrize("jobs", [1, 2])
def test_failures_of_every_kind_are_found(jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(faults.PARTS, "inputs", faults.Part("", "", 7, 2.0, 8.0))
    found = {
        number: (kind, text)
        for number, kind, text in faults.run_cases("inputs", run_one, range(7), tmp_path, jobs=jobs)
    }
    kinds = {0: "", 1: "different", 2: "hang", 3: "foreign", 4: "started", 5: "foreign", 6: ""}
    assert {number: kind for number, (kind, _) in found.items()} == kinds
    assert found[1][1] == "two lines of text"
    assert "status 7" in found[3][1]


def test_errors_count_as_own_only_where_the_package_raises_them() -> None:
    def catch(function: object, *args: object) -> BaseException:
        with pytest.raises(Exception) as caught:  # noqa: PT011
            function(*args)
        return caught.value

    check_error(catch(lambda: TrainingConfig(batch_size=0)))
    for error in (catch(int, "x"), catch(os.listdir, "/none"), catch(lambda: np.zeros(2).reshape(3))):
        with pytest.raises(Failure):
            check_error(error)


@pytest.mark.parametrize(
    ("ended", "kind"),
    [
        (Ended(0, "done"), None),
        (Ended(2, "error: no such folder; give another."), None),
        (Ended(2, "usage"), "foreign"),
        (Ended(1, ""), "foreign"),
        (Ended(-9, ""), "foreign"),
        (Ended(0, "Traceback (most recent call last):\n  File\nKeyError: 3"), "foreign"),
    ],
)
def test_endings_of_commands(ended: Ended, kind: str | None) -> None:
    if kind is None:
        check_ending(ended, "")
    else:
        with pytest.raises(Failure) as caught:
            check_ending(ended, "")
        assert caught.value.args[0] == kind


def test_runs_are_compared_to_the_last_bit(tmp_path: Path) -> None:
    model = M2((4,), 2, latent_dim=1, hidden_dims=(2,))

    def write(name: str, error: str = "0.1", seconds: int = 1, more: str = "metrics.csv") -> Path:
        save(model, tmp_path / name / "model")
        (tmp_path / name / "result.json").write_text(f'{{"test/error": {error}, "train_seconds": {seconds}}}')
        for path in ("metrics.csv", more):
            (tmp_path / name / path).write_text(f"step,seconds\n1,{seconds}\n")
        return tmp_path / name

    reference = write("reference")
    compare(write("equal", seconds=2), reference, "")
    others = [write("error", "0.10000000000000002"), write("file", more=".x.tmp"), write("damaged", "")]
    with torch.no_grad():
        next(model.parameters()).view(-1)[0].add_(1e-6)
    others.append(write("weights"))
    kinds = []
    for other in others:
        with pytest.raises(Failure) as caught:
            compare(other, reference, "")
        kinds.append(caught.value.args[0])
    assert kinds == ["different", "corrupt", "corrupt", "different"]


def test_the_table_has_a_row_for_each_part(tmp_path: Path) -> None:
    counts = dict.fromkeys(faults.FAILURES, 0) | {"cases": 2000, "hang": 3, "seed": 0, "seconds": 90}
    (tmp_path / "faults.json").write_text(json.dumps({"inputs": counts}))
    table = faults.make_fault_table(tmp_path)["faults"].splitlines()
    cells = [cell.strip() for cell in table[2].split("|")[1:-1]]
    assert cells == ["generated arguments", "2,000", "0", "0", "0", "0", "3", "0", "1.5"]
    assert faults.make_fault_table(tmp_path / "none")["faults"] == ""
