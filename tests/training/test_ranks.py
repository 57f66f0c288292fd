"""Several processes that train together give what one process gives."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_ssvae import fit
from pyro_ssvae.cli.main import main
from pyro_ssvae.training import RunFolder
from tests.training.ranks_program import CASES, train
from tests.training.small_runs import SHORT, changed, make_data, make_objective

_HERE = Path(__file__).parent


def launch(*arguments: str, size: int = 2) -> list[subprocess.Popen[str]]:
    """Start the processes of a run, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(_HERE), str(_HERE.parents[1])])}
    return [
        subprocess.Popen(
            [sys.executable, *arguments], env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]  # fmt: skip


def finish(started: list[subprocess.Popen[str]], status: int = 0) -> list[str]:
    """Return what the processes print, on both channels together."""
    printed = ["".join(process.communicate(timeout=240)) for process in started]
    assert [process.returncode for process in started] == [status] * len(started), printed
    return printed


def run(folder: Path, *cases: str, size: int = 2, **options: Any) -> list[subprocess.Popen[str]]:
    """Start the processes that train cases."""
    folder.mkdir(exist_ok=True)
    job = json.dumps({"cases": cases, "options": options})
    return launch(str(_HERE / "ranks_program.py"), str(folder), job, size=size)


def read(folder: Path, rank: int = 0) -> dict[str, Any]:
    return dict(json.loads((folder / f"found-{rank}.json").read_text()))


def assert_same(found: dict[str, Any], one: dict[str, Any]) -> None:
    assert [row["step"] for row in found["metrics"]] == [row["step"] for row in one["metrics"]]
    for row, expected in zip(found["metrics"], one["metrics"], strict=True):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert found["weights"] == pytest.approx(one["weights"], rel=1e-5)
    assert found["best_step"] == one["best_step"]


def test_two_processes_train_m2_as_one_and_the_first_alone_writes(tmp_path: Path) -> None:
    printed = finish(run(tmp_path, "exact", out=str(tmp_path / "run"), resume=True, max_steps=10))
    assert printed[1] == ""
    first, second = (read(tmp_path, rank) for rank in range(2))
    assert first == second
    assert_same(first["exact"], train("exact", max_steps=10))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found for every case.

    In double precision: in single precision differences by rounding reach 1e-4 after twenty steps on some processors.
    """
    folder = tmp_path_factory.mktemp("together")
    finish(run(folder, *CASES, precision="64-true"))
    return [read(folder, rank) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(together: list[dict[str, Any]], case: str) -> None:
    first, second = (found[case] for found in together)
    assert first == second
    assert_same(first, train(case, precision="64-true"))


@pytest.mark.slow
def test_processes_that_share_no_memory_train_as_one(tmp_path: Path) -> None:
    finish(run(tmp_path, "regularised", apart=True))
    assert_same(read(tmp_path)["regularised"], train("regularised"))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3])
def test_all_stop_together_and_other_numbers_of_processes_go_on(tmp_path: Path, size: int) -> None:
    """A signal to the second process stops both after the next step; the rest gives what one process gives."""
    out = {"out": str(tmp_path / "run"), "resume": True, "batch_size": 18}
    stopped = finish(run(tmp_path, "top-k", interrupt=[1, signal.SIGTERM, 8], **out), status=143)
    assert "Stopped by SIGTERM after step 9 of 20" in stopped[0]
    assert stopped[1] == ""
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    continued = finish(run(tmp_path, "top-k", size=size, **out))
    assert f"after step 9 of 20. Processes: {size}, 2 before" in continued[0]
    assert_same(read(tmp_path)["top-k"], train("top-k", batch_size=18))


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_run_which_goes_on_later(tmp_path: Path, killed: int) -> None:
    out = {"out": str(tmp_path / "run"), "resume": True}
    started = run(tmp_path, "exact", interrupt=[killed, signal.SIGKILL, 13], **out)
    printed = [process.communicate(timeout=240)[1] for process in started]
    assert started[killed].returncode == -signal.SIGKILL
    assert started[1 - killed].returncode == 1
    assert "one of the 2 processes that train together has ended" in printed[1 - killed]
    finish(run(tmp_path, "exact", **out))
    finish(run(tmp_path / "undisturbed", "exact"))
    assert read(tmp_path) == read(tmp_path / "undisturbed")


@pytest.mark.slow
def test_torchrun_starts_processes_again_after_one_is_killed(tmp_path: Path) -> None:
    out = {"out": str(tmp_path / "run"), "resume": True, "interrupt": [1, signal.SIGKILL, 13]}
    job = json.dumps({"cases": ["exact"], "options": out})
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "2"]
    command += [str(_HERE / "ranks_program.py"), str(tmp_path), job]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(_HERE), str(_HERE.parents[1])])}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=240, env=env)
    assert done.returncode == 0, done.stderr
    assert "after step 10 of 20" in done.stderr
    assert_same(read(tmp_path)["exact"], train("exact"))


@pytest.mark.slow
def test_fit_starts_processes_itself() -> None:
    one = train("exact")
    for _ in range(2):
        assert_same(train("exact", devices=2), one)


@pytest.mark.slow
def test_a_script_that_starts_processes_when_it_is_imported_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "from tests.training.small_runs import SHORT, changed, make_data, make_objective\n"
        "from pyro_ssvae import fit\n"
        "data = make_data(9000)\n"  # more than a pipe holds
        "fit(make_objective(data), data, changed(SHORT, batch_size=16), devices=2, progress=False)\n"
    )
    options: Any = {"env": {**os.environ, "PYTHONPATH": str(_HERE.parents[1])}, "text": True, "timeout": 240}
    done = subprocess.run([sys.executable, str(tmp_path / "script.py")], capture_output=True, **options)
    assert done.returncode == 1
    assert "a script needs its calls under if __name__ == '__main__'" in done.stderr


@pytest.mark.slow
def test_torchrun_trains_one_run(tmp_path: Path) -> None:
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "pyro_ssvae", "train", "m2", "digits"]
    flags = ["--max-epochs", "1", "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, *command, *flags], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("SemiSupervisedData") == done.stdout.count("results and figures in") == 1
    assert RunFolder(tmp_path / "run").is_finished


def test_a_batch_that_processes_cannot_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size=16 is not a multiple of 3 processes"):
        train("exact", devices=3)


def test_several_processes_need_objects_that_can_be_sent() -> None:
    data = make_data()
    objective = make_objective(data)
    objective.module.own = lambda x: x
    with pytest.raises(ValueError, match="devices=2 sends objective and data.*torchrun"):
        fit(objective, data, changed(SHORT, batch_size=16), devices=2)


@pytest.fixture
def predicting(tmp_path: Path) -> list[str]:
    """A command that predicts 30,005 rows, up to the name of its output."""
    data = make_data()
    fit(make_objective(data), data, changed(SHORT, max_steps=2), out=tmp_path / "run", progress=False)
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).random((30_005, *data.event_shape), dtype=np.float32))
    return ["predict", str(tmp_path / "run"), str(tmp_path / "rows.npy"), "--out"]


def test_two_processes_divide_the_rows_that_are_predicted(predicting: list[str], tmp_path: Path) -> None:
    started = launch("-m", "pyro_ssvae", *predicting, str(tmp_path / "two.parquet"))
    assert main([*predicting, str(tmp_path / "one.parquet")]) == 0
    assert finish(started) == [f"30005 rows in {tmp_path / 'two.parquet'}\n", ""]
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()


@pytest.mark.slow
def test_the_first_process_tells_of_an_error_in_rows_of_the_second(predicting: list[str], tmp_path: Path) -> None:
    x = np.load(tmp_path / "rows.npy")
    x[15_000, 0] = np.inf
    np.save(tmp_path / "rows.npy", x)
    printed = finish(launch("-m", "pyro_ssvae", *predicting, str(tmp_path / "two.parquet")), status=2)
    assert "the first in x[15000]" in printed[0]
    assert len(printed[0].splitlines()) == 1
    assert printed[1] == ""
    assert not [*tmp_path.glob("*two*")]
