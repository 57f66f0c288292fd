"""Run folders: every state a run can be in, locks, damaged files, changed settings."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_ssvae import SemiSupervisedELBO, fit
from pyro_ssvae.errors import RunFolderError, TrainingFailedError
from pyro_ssvae.training import RunFolder
from pyro_ssvae.training.checkpoint import pack, unpack
from pyro_ssvae.training.loop import FitResult
from tests.commands import TINY, Call
from tests.training.small_runs import SHORT, changed, make_data, make_objective

pytestmark = pytest.mark.filterwarnings("ignore:The fit is worse")  # a few steps teach little

QUICK = changed(SHORT, max_steps=20, compile="eager")


def train(folder: Path, *, resume: bool = True, unit: float = 1.0, **changes: Any) -> FitResult:
    data = make_data()
    data = replace(data, x=unit * data.x)
    return fit(make_objective(data), data, changed(QUICK, **changes), out=folder, resume=resume, progress=False)


def stop_training(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Kill training, as it were, where it calls a method of the run folder."""

    def stop(*_: Any) -> None:
        raise OSError("stopped here")

    monkeypatch.setattr(RunFolder, method, stop)


def test_a_run_stopped_before_its_first_checkpoint_starts_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = train(tmp_path / "straight")
    with monkeypatch.context() as patch:
        stop_training(patch, "write_metrics")
        with pytest.raises(OSError, match="stopped here"):
            train(tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").is_file()
    again = train(tmp_path / "run")
    assert "stopped before its first checkpoint; it starts afresh" in capsys.readouterr().err
    assert [row["train/loss"] for row in again.metrics] == [row["train/loss"] for row in expected.metrics]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--out"], ["--resume"]])
def test_a_command_stopped_before_its_first_checkpoint_starts_afresh(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    command = ["train", "m2", *TINY, "--seed", "3", "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        stop_training(patch, "write_metrics")
        call(*command, status=2)
    call(*(command if flags == ["--out"] else ["train", "m2", "--resume", tmp_path / "run"]))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["seed"] == 3


@pytest.mark.usefixtures("unrendered")
def test_the_same_command_continues_an_interrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    command = ["train", "m2", *TINY, "--max-epochs", "2"]
    call(*command, "--out", tmp_path / "straight")
    write = RunFolder.write_checkpoint

    def write_and_stop(self: RunFolder, state: dict[str, Any]) -> None:
        write(self, state)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_checkpoint", write_and_stop)
        call(*command, "--out", tmp_path / "run", status=130)
    assert "Continuing the run" in call(*command, "--out", tmp_path / "run").err
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("straight", "run")]
    assert results[0]["test/bound"] == results[1]["test/bound"]


def test_settings_may_be_extended_and_not_changed(tmp_path: Path) -> None:
    train(tmp_path, max_steps=10)
    with pytest.raises(RunFolderError, match=r"learning_rate is .* there and 0\.5 here.*max_epochs, max_steps"):
        train(tmp_path, learning_rate=0.5)
    with pytest.raises(RunFolderError, match="already holds a run.*resume=True"):
        train(tmp_path, resume=False)
    assert train(tmp_path, max_steps=30).steps == 30
    with pytest.raises(RunFolderError, match="has done 30 steps, and the schedule that is given has 20: .* extended"):
        train(tmp_path, max_steps=20)
    with pytest.raises(RunFolderError, match="holds a run on other data"):
        train(tmp_path, max_steps=30, unit=0.95)


@pytest.mark.slow
def test_flags_that_differ_from_those_of_the_run(tmp_path: Path, call: Call) -> None:
    out = str(tmp_path / "run")
    call("train", "m2", *TINY, "--out", out)
    for flags, words in (
        (["train", "m2", *TINY, "--latent-dim", "3", "--out", out], "latent_dim is 2 there and 3 here"),
        (["train", "m2", "--resume", out, "--training.learning_rate", "0.1"], "learning_rate is 0.003 there"),
        (["train", "m2", "--resume", out, "--out", out + "2"], "leave one out"),
        (["train", "m1", *TINY, "--out", out], "was started by m2, and not by m1"),
        (["train", "m2", "--data", "", "--out", out], "the value is empty"),
        (["train", "m2", "--data", "digits", "--out", ""], "the value is empty"),
    ):
        assert words in call(*flags, status=2).err
    call("train", "m2", "--resume", out, "--max-epochs", "2")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == 2.0


def test_one_process_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    tmp_path.joinpath(".lock").write_text("process 1 on a machine\n")  # a process that has ended holds nothing
    with open(tmp_path / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunFolderError, match="is in use by process 1 on a machine; wait for it, or choose another"):
            train(tmp_path)
    assert train(tmp_path).steps == 20
    assert not (tmp_path / ".lock").exists()


def test_one_thread_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    caught: list[BaseException] = []

    def try_it() -> None:
        try:
            train(tmp_path)
        except RunFolderError as error:
            caught.append(error)

    with RunFolder(tmp_path).lock():
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
    assert f"is in use by process {os.getpid()}" in str(caught[0])


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    train(tmp_path, max_steps=10)
    ours = [tmp_path / ".metrics.csv.123.tmp", tmp_path / "checkpoints" / ".last.pt.77.tmp"]
    others = [tmp_path / "notes.tmp", tmp_path / ".hidden"]
    for path in (*ours, *others):
        path.write_text("half")
    train(tmp_path)
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in others)


def test_a_folder_that_disappears_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = RunFolder.write_metrics

    def remove(self: RunFolder, rows: list[dict[str, Any]]) -> None:
        self.path.rename(tmp_path / "moved")
        write(self, rows)

    monkeypatch.setattr(RunFolder, "write_metrics", remove)
    with pytest.raises(RunFolderError, match="was removed or replaced while the run was writing"):
        train(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_launcher_that_tells_processes_no_rank_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE=2.*RANK is not set"):
        train(tmp_path / "run")
    assert "WORLD_SIZE=2" in call("train", "m2", *TINY, "--out", tmp_path / "run", status=2).err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content", [None, pytest.param(b"", marks=pytest.mark.slow), pytest.param(b"PK nonsense", marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_a_label_split_that_is_lost_is_written_again(content: bytes | None, tmp_path: Path, call: Call) -> None:
    command = ["train", "m2", *TINY, "--out", str(tmp_path / "run")]
    call(*command)
    split = tmp_path / "run" / "split.npz"
    before = split.read_bytes()
    if content is None:
        split.unlink()
    else:
        split.write_bytes(content)
    printed = call("train", "m2", "--resume", tmp_path / "run", "--max-epochs", "2").err
    assert ("is missing" if content is None else "is damaged") in printed
    assert split.read_bytes() == before


@pytest.mark.slow
def test_settings_that_are_lost_are_written_again(tmp_path: Path, call: Call) -> None:
    command = ["train", "m2", *TINY, "--out", str(tmp_path)]
    call(*command)
    before = (tmp_path / "config.yaml").read_bytes()
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "result.json").unlink()
    assert "config.yaml is missing; it is written again" in call(*command).err
    assert (tmp_path / "config.yaml").read_bytes() == before


# Checkpoints.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    train(folder)
    return folder


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("halfway")
    train(folder, max_steps=10)
    return folder


def test_a_checkpoint_keeps_tensors_numbers_and_names(finished: Path) -> None:
    state = {"format": 1, "a": {"b": [torch.arange(3), 1.5, None, float("-inf")]}, "text": "é", "flag": True}
    found = unpack(pack(state))
    assert torch.equal(found["a"]["b"].pop(0), torch.arange(3))
    assert found["a"] == {"b": [1.5, None, float("-inf")]}
    assert (found["text"], found["flag"]) == ("é", True)


@pytest.mark.parametrize("place", [0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_checkpoint_with_another_bit_is_refused_in_words(place: float, halfway: Path, tmp_path: Path) -> None:
    shutil.copytree(halfway, tmp_path, dirs_exist_ok=True)
    checkpoint = RunFolder(tmp_path).checkpoint
    content = bytearray(checkpoint.read_bytes())
    content[int(place * len(content))] ^= 1
    checkpoint.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"The checkpoint .*last\.pt is unreadable"):
        train(tmp_path)
    assert checkpoint.read_bytes() == content


@pytest.mark.parametrize("name", ["objective", "optimizers", "average"])
def test_a_checkpoint_of_another_model_is_refused_in_words(name: str, halfway: Path, tmp_path: Path) -> None:
    """Of a network of the caller's own, say, which was changed since."""

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cut(part) for key, part in value.items()}
        if isinstance(value, list):
            return [cut(part) for part in value]
        return value[:-1].clone() if isinstance(value, torch.Tensor) and value.dim() else value

    shutil.copytree(halfway, tmp_path, dirs_exist_ok=True)
    folder = RunFolder(tmp_path)
    state = folder.read_checkpoint()
    folder.write_checkpoint(state | {name: cut(state[name])})
    with pytest.raises(RunFolderError, match=r"The checkpoint .*last\.pt does not fit this model"):
        train(tmp_path)


def test_a_checkpoint_of_another_version_is_refused_in_words(halfway: Path, tmp_path: Path) -> None:
    shutil.copytree(halfway, tmp_path, dirs_exist_ok=True)
    folder = RunFolder(tmp_path)
    folder.write_checkpoint(folder.read_checkpoint() | {"format": 99})
    with pytest.raises(RunFolderError, match="format 99, and this version reads format 1"):
        train(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not the configuration of a run"),
        ("flags:\n", "is not the configuration of a run"),
        ("flags: [1]\ncommand: m2\n", "flags must hold settings by name"),
        ("training: 3\n", "training must hold settings by name"),
        ("[" * 200_000, "not readable YAML"),
        (b"\xff\xfe\x00", "binary file"),
    ],
)
def test_damaged_configurations_are_refused_in_words(text: str | bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RunFolderError, match=words):
        train(tmp_path)
    with pytest.raises(RunFolderError, match=words):
        RunFolder(tmp_path).read_config()


def test_memory_that_runs_out_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def need_memory(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes.")

    monkeypatch.setattr(SemiSupervisedELBO, "losses", need_memory)
    with pytest.raises(TrainingFailedError, match=r"out of memory \(4\.00 GiB more needed\); reduce batch_size=17"):
        train(tmp_path)
