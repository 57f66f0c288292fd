"""Runs that are stopped or cannot be written: they resume exactly, and errors say what to do."""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_ssvae import M2, SemiSupervisedData, SemiSupervisedELBO, fit, load
from pyro_ssvae.data import BatchStream
from pyro_ssvae.data.preparation import BatchIndices
from pyro_ssvae.errors import RunFolderError
from pyro_ssvae.training import RunFolder
from tests.training.small_runs import SHORT, changed, make_data, make_objective, without_seconds


@pytest.mark.parametrize(("ema_decay", "on_disk"), [(0.0, False), (0.9, False), (0.9, True)])
def test_resuming_equals_never_having_stopped(
    tmp_path: Path, ema_decay: float, on_disk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of an epoch and of an evaluation period."""
    data = make_data()
    if on_disk:
        monkeypatch.setattr("pyro_ssvae.data.storage._BLOCK", 480)  # of 10 rows
        monkeypatch.setattr("pyro_ssvae.data.order._MIXED", 1440)
        np.save(tmp_path / "x.npy", data.x.numpy())
        data = replace(data, x=SemiSupervisedData.from_arrays(tmp_path / "x.npy").x)
    config = changed(SHORT, ema_decay=ema_decay, kl_warmup=0.2, kl_peak=3.0, gradient_clip=5.0)
    straight = make_objective(data)
    expected = fit(straight, data, config, out=tmp_path / "straight", progress=False)

    first = make_objective(data)
    steps = iter(range(1000))
    next_indices = BatchStream.next_indices

    def stop_at_23(self: BatchStream) -> BatchIndices:
        if next(steps) == 23:  # the first batch is looked at before training
            os.kill(os.getpid(), signal.SIGINT)
        return next_indices(self)

    with monkeypatch.context() as patch:
        patch.setattr(BatchStream, "next_indices", stop_at_23)
        with pytest.raises(KeyboardInterrupt):
            fit(first, data, config, out=tmp_path / "run", progress=False)
    assert RunFolder(tmp_path / "run").read_checkpoint()["step"] == 23

    second = make_objective(data)
    torch.manual_seed(1234)  # whatever the state of the new process
    resumed = fit(second, data, config, out=tmp_path / "run", resume=True, progress=False)
    assert without_seconds(resumed.metrics) == without_seconds(expected.metrics)
    assert resumed.best_step == expected.best_step
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    for name, tensor in expected.last_weights.items():
        assert torch.equal(tensor, resumed.last_weights[name]), name


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data()
    run = fit(make_objective(data), data, changed(SHORT, max_steps=10), out=tmp_path / "run", progress=False)
    assert run.folder is not None
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = RunFolder(tmp_path / "run")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match=r"No space left.*last\.pt"):
        folder.write_checkpoint({"step": 11})
    with pytest.raises(RunFolderError, match="No space left"):
        fit(make_objective(data), data, SHORT, out=tmp_path / "new", progress=False)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_file()]


def test_folder_errors(tmp_path: Path) -> None:
    data = make_data()
    with pytest.raises(ValueError, match="out=DIR"):
        fit(make_objective(data), data, SHORT, resume=True)
    fit(make_objective(data), data, changed(SHORT, max_steps=5), out=tmp_path / "run", progress=False)
    with pytest.raises(RunFolderError, match="already holds a run.*--resume"):
        fit(make_objective(data), data, SHORT, out=tmp_path / "run")
    other = make_data()
    wider = SemiSupervisedELBO(
        M2(other.event_shape, 3, latent_dim=5, hidden_dims=(12,)),
        num_labelled=other.num_labelled,
        num_unlabelled=other.num_unlabelled,
    )
    with pytest.raises(RunFolderError, match="other settings: latent_dim is 2 there and 5 here"):
        fit(wider, data, SHORT, out=tmp_path / "run", resume=True)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.pt"
    content = checkpoint.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"nonsense"):
        checkpoint.write_bytes(damaged)
        with pytest.raises(RunFolderError, match="unreadable"):
            fit(make_objective(data), data, SHORT, out=tmp_path / "run", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="Cannot make the run folder"):
        fit(make_objective(data), data, SHORT, out=tmp_path / "file" / "run")
    (tmp_path / "run" / "config.yaml").write_text("a: [")
    with pytest.raises(RunFolderError, match="not readable YAML"):
        RunFolder(tmp_path / "run").read_config()
    with pytest.raises(RunFolderError, match="holds no run"):
        RunFolder(tmp_path / "nowhere").read_config()


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.system, ("true",))

    folder = RunFolder(tmp_path)
    folder.checkpoint.parent.mkdir()
    torch.save({"step": Evil()}, folder.checkpoint)
    with pytest.raises(RunFolderError, match="unreadable"):
        folder.read_checkpoint()


@pytest.mark.parametrize("stored", [False, True])
def test_further_training_goes_on_from_the_learned_prior(tmp_path: Path, stored: bool) -> None:
    data = make_data()
    objective = make_objective(data, prior="vamp")
    fit(objective, data, SHORT, out=tmp_path, progress=False)
    learned = objective.module.prior.pseudo_inputs.detach().clone()
    if stored:
        objective = SemiSupervisedELBO.for_data(load(tmp_path), data, pure=True)
    fit(objective, data, changed(SHORT, max_steps=2, learning_rate=1e-6), progress=False)
    torch.testing.assert_close(objective.module.prior.pseudo_inputs, learned, atol=1e-4, rtol=0.0)
