"""Training runs behind the published tables: each is made once, under a name that holds its settings."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ddgm
import grey_images
import mnist
import pytest
import runs
import times
import torch
from runs import Run
from torch import nn

from pyro_ssvae import DDGM, M1
from pyro_ssvae.data.labels import draw_label_split
from pyro_ssvae.errors import TrainingFailedError

RUNS = [run for module in (mnist, grey_images, ddgm, times) for run in module.configurations(10)]


def train(run: Run, data_dir: str | None, keep: str | None) -> dict[str, Any]:
    return {"test/error": 0.25, "threads": torch.get_num_threads(), "name": run.name}


@pytest.mark.slow
def test_runs_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    monkeypatch.setattr(runs, "write_tables", lambda: None)
    first, second = Run("m2", "a"), Run("m2", "b")
    runs.main("", lambda seeds: [first, second], train, ["--only", "b"])
    result = json.loads(second.path.read_text())
    assert not first.path.exists()
    assert (result["name"], result["threads"] >= 1) == ("b", True)
    assert result["configuration"]["family"] == "m2"
    second.path.write_text("kept")
    runs.main("", lambda seeds: [first, second], train, [])
    assert first.path.exists()
    assert second.path.read_text() == "kept"
    runs.main("", lambda seeds: [first, second], train, ["--only", "m2-b", "--keep", str(tmp_path / "models")])
    assert second.path.read_text() == "kept"  # made again for its folder
    with pytest.raises(SystemExit):
        runs.main("", lambda seeds: [first, second], train, ["--only", "c"])
    assert "names: a, b" in capsys.readouterr().err


def test_every_setting_is_part_of_the_file_name() -> None:
    run = Run("m2", "a", model={"latent_dim": 5})
    changes: dict[str, Any] = {"seed": 1, "data": "digits", "num_labels": 600, "model": {"latent_dim": 6}}
    changes |= {"objective": {"alpha": 1.0}, "training": {"max_steps": 7}, "options": {"pure": True}}
    paths = {run.path, *(replace(run, **{name: value}).path for name, value in changes.items())}
    assert len(paths) == 1 + len(changes)
    assert replace(run, model={"latent_dim": 5}).path == run.path


def test_every_published_result_has_one_configuration_that_makes_it() -> None:
    paths = {run.path for run in RUNS}
    assert len({run.stem for run in RUNS}) == len(paths) == len(RUNS)
    published = set(runs.RESULTS.glob("*-seed*.json"))
    assert published
    assert published <= paths


@pytest.mark.slow
def test_classifiers_on_latents_see_the_latents_of_the_labelled_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples reveal their class in one number, which the encoder passes on; half of the test labels are wrong."""
    y = torch.arange(90) % 3
    x = (y.float() * 100.0).unsqueeze(-1).expand(-1, 2) + torch.rand(90, 2)
    m1 = M1((2,), latent_dim=2, hidden_dims=(), likelihood="gaussian")
    with torch.no_grad():
        m1.encoder.layers[-1].weight.copy_(torch.eye(4)[:, :2])
        m1.encoder.layers[-1].bias.zero_()
    asked: list[int] = []

    def split(labels: Any, number: int, num_classes: int, *, seed: int) -> Any:
        asked.append(number)
        return draw_label_split(labels, 30, num_classes, seed=seed)

    monkeypatch.setattr(mnist, "draw_label_split", split)
    wrong = torch.where(torch.arange(90) < 45, y, (y + 1) % 3)
    data: Any = SimpleNamespace(x=x, y=y, x_test=x, y_test=wrong, scale=100.0, num_classes=3)
    found = mnist.classify_latents(m1, data, seed=0)
    assert list(found) == [str(number) for number in asked] == ["100", "500", "1000", "2000", "5000"]
    assert all(one == {"svm": 0.5} for one in found.values())


def test_a_run_that_fails_is_kept_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(run: Run, objective: Any, *_: Any, **__: Any) -> None:
        nn.init.constant_(objective.module.energy_net.bias, level)
        raise TrainingFailedError(70, "the generator has collapsed", None)

    monkeypatch.setattr(ddgm, "fit_and_report", fails)
    monkeypatch.setattr(ddgm, "measure_toy_model", lambda model, name, *, seed: {"modes": 1, "of": (name, seed)})
    level = 1.0
    (run,) = [run for run in ddgm.configurations() if (run.name, run.seed) == ("ring-source", 1)]
    found = ddgm.train(run, None, None)
    assert (found["failed"], found["steps"]) == ("TrainingFailedError", 70)
    assert (found["modes"], found["of"]) == (1, ("ring", 1))
    level = math.nan
    found = ddgm.train(run, None, None)
    assert "failed" in found
    assert "modes" not in found  # energies that are not finite cannot be measured


@pytest.mark.parametrize("shape", [(2,), (1, 6, 6)])
def test_the_source_starts_with_units_of_unit_variance(shape: tuple[int, ...]) -> None:
    """The last layer, of experts, has it only if every layer before it was normalised before."""
    torch.manual_seed(0)
    model = DDGM(shape, **ddgm.source_networks(shape))
    x = 5.0 + 3.0 * torch.rand(400, *shape)
    ddgm.initialise(model, x)
    model.train(len(shape) > 1)  # with the noise on the input of the energy of images
    net = model.energy_net
    with torch.no_grad():
        units = net.features(x) @ net.experts.weight.T + net.experts.bias
    exactly = 1e-4 if len(shape) == 1 else 0.35
    torch.testing.assert_close(units.mean(0), torch.zeros(units.shape[1]), atol=exactly, rtol=0.0)
    torch.testing.assert_close(units.std(0), torch.ones(units.shape[1]), atol=exactly, rtol=0.0)
    assert float(model.generator.layers[0].weight.detach().std()) == pytest.approx(0.05, rel=0.2)
