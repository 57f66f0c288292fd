"""The machinery of published runs: each is made once, and pages say what the result files say."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ddgm
import ddgm_source
import mnist_m1
import mnist_m1m2
import mnist_m2
import mnist_svm
import pytest
import results_page_ddgm
import results_page_m1
import runs
import torch
from torch import nn

from pyro_ssvae import DDGM, M1, TrainingFailedError
from pyro_ssvae.data import draw_label_split


@dataclass(frozen=True)
class Row:
    name: str
    folder: str
    seed: int = 0

    @property
    def path(self) -> Path:
        return Path(self.folder) / f"{self.name}.json"


def train(row: Row, data_dir: str | None, keep: str | None, threads: int) -> dict[str, Any]:
    return {"test_error": 0.25, "threads": threads, "name": row.name}


def test_runs_are_made_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    parser = argparse.ArgumentParser()
    runs.add_flags(parser)
    rows = [Row("a", str(tmp_path)), Row("b", str(tmp_path))]
    runs.make(parser, parser.parse_args(["--only", "b"]), rows, train)
    assert capsys.readouterr().out == "b, seed 0: test error 25.00%\n"
    result = json.loads(rows[1].path.read_text())
    assert (result["name"], result["threads"] >= 1, result["peak_memory_mib"] > 0) == ("b", True, True)
    rows[1].path.write_text("kept")
    runs.make(parser, parser.parse_args([]), rows, train)
    assert rows[1].path.read_text() == "kept"
    assert capsys.readouterr().out.startswith("a, seed 0")
    with pytest.raises(SystemExit):
        runs.make(parser, parser.parse_args(["--only", "c"]), rows, train)
    assert "names: a, b" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [mnist_m2.rows(3), mnist_m1.rows(), mnist_m1m2.rows(3), ddgm.rows(5)])
def test_every_row_has_a_file_of_its_own(rows: list[Any]) -> None:
    assert len({row.path for row in rows}) == len(rows)


def result(**changes: Any) -> dict[str, Any]:
    common = {
        "row": {"words": "some words", "training": {"max_steps": 400_000}},
        "test_log_likelihood": -87.5,
        "test_log_likelihood_error": 0.01,
        "test_log_likelihood_samples": 5000,
        "test_elbo": -91.25,
        "active_units": 21.0,
        "effective_samples": 33.0,
        "train_seconds": 3000.0,
        "likelihood_seconds": 600.0,
        "epochs": 800.0,
        "steps": 400_000,
        "device": "cpu, 1 threads",
        "versions": {"torch": "2.15.0"},
        "binarisation": "dynamic",
        "kl_z": 25.5,
        "loss_terms": "-E[log p(x|z)]",
        "test_error": 0.0331,
        "test_error_last": 0.0341,
    }
    return common | changes


def test_the_page_of_m1_says_what_the_files_say(tmp_path: Path) -> None:
    folder = tmp_path / "docs" / "results"
    folder.mkdir(parents=True)
    stages = {"training": {"max_steps": 400_000}, "then": {"training": {"max_steps": 200_000}}}
    two_stages = {"words": "two stages", **stages}
    svm = {str(n): {"svm": 0.9, "logistic": 0.8} for n in (100, 500, 1000, 2000, 5000)}
    files = {
        "m1-elbo-0000000000": result(),
        "m1-iwae-0000000000": result(row=two_stages, steps=450_000),
        "m1-preset-kingma-0000000000": result(),
        "m1-svm-0000000000": {"svm": svm},
        "m1m2-pure-100-seed0-0000000000": result(),
        "m1m2-pure-100-seed1-0000000000": result(test_error=0.0351),
        "m1m2-pure-normal-100-seed0-0000000000": result(test_error=0.0371, binarisation="none"),
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    results_page_m1.write_page(folder)
    page = (tmp_path / "docs" / "results_m1.md").read_text()
    assert "| some words | 87.50 ± 0.010 | 91.25 | 21 | 33 | 50 | 800 | 10.0 | 86.76" in page
    assert "| two stages | 87.50 ± 0.010 | 91.25 | 21 | 33 | 50 | 800 (75% of its schedule) | 10.0 | 85.54" in page
    assert "| `kingma` | some words | -E[log p(x\\|z)] | dynamic | 91.25 | 25.50 | 65.75 | 87.50 ± 0.010 |" in page
    assert "± 0.010 | 5,000 | 50 | the schedule is ours" in page
    assert "| the schedule is ours, the paper gives none | no likelihood of its M1 |" in page
    assert "| 100 | 90.0 | 80.0 | 62.8 |" in page
    assert "| 100 | 3.41 ± 0.14 | 3.41 ± 0.00 | 3.31 / 3.51 |" in page
    assert "| the same on the M1 with a normal prior | 100 | 3.71 | 3.41 | 3.71 | -91.2 | none | 400000 |" in page
    assert "95.4 and 95.1 %" in page


def test_classifiers_on_latents_see_the_latents_of_the_labelled_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows say their class in one number, which the encoder passes on; half of the test labels are wrong."""
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

    monkeypatch.setattr(mnist_svm, "draw_label_split", split)
    wrong = torch.where(torch.arange(90) < 45, y, (y + 1) % 3)
    data: Any = SimpleNamespace(x=x, y=y, x_test=x, y_test=wrong, scale=100.0, num_classes=3)
    found = mnist_svm.classify_latents(m1, data, seed=0)
    assert list(found) == [str(number) for number in asked] == ["100", "500", "1000", "2000", "5000"]
    assert all(both == {"svm": 0.5, "logistic": 0.5} for both in found.values())


def test_a_row_that_fails_is_kept_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(objective: Any, *_: Any, **__: Any) -> None:
        nn.init.constant_(objective.module.energy_net.bias, level)
        raise TrainingFailedError(70, "the generator has collapsed", None)

    monkeypatch.setattr(ddgm, "fit", fails)
    monkeypatch.setattr(ddgm, "measure_toy_model", lambda model, name, *, seed: {"modes": 1, "of": (name, seed)})
    level = 1.0
    (row,) = [row for row in ddgm.rows(5) if (row.name, row.seed) == ("ring-source", 1)]
    found = ddgm.train(None, row, None, None, torch.get_num_threads())
    assert (found["failed"], found["steps"]) == ("TrainingFailedError", 70)
    assert (found["modes"], found["of"]) == (1, ("ring", 1))
    level = math.nan
    found = ddgm.train(None, row, None, None, torch.get_num_threads())
    assert "failed" in found
    assert "modes" not in found  # of what is no number


@pytest.mark.parametrize("shape", [(2,), (1, 6, 6)])
def test_the_source_starts_with_units_of_unit_variance(shape: tuple[int, ...]) -> None:
    """The last layer, of experts, has it only if every layer before it was normalised in its turn."""
    torch.manual_seed(0)
    model = DDGM(shape, **ddgm_source.source_parts(shape))
    x = 5.0 + 3.0 * torch.rand(400, *shape)
    ddgm_source.start(model, x)
    model.train(len(shape) > 1)  # with the noise that the energy of images sees
    net = model.energy_net
    with torch.no_grad():
        units = net.features(x) @ net.experts.weight.T + net.experts.bias
    exactly = 1e-4 if len(shape) == 1 else 0.35
    torch.testing.assert_close(units.mean(0), torch.zeros(units.shape[1]), atol=exactly, rtol=0.0)
    torch.testing.assert_close(units.std(0), torch.ones(units.shape[1]), atol=exactly, rtol=0.0)
    assert float(model.generator.layers[0].weight.detach().std()) == pytest.approx(0.05, rel=0.2)


def test_the_page_of_ddgm_has_the_sections_that_were_measured(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    plane = ("refined_high_quality", "least_share", "energy_distance", "refined_energy_distance", "squared_mmd")
    for seed, share in enumerate((0.9, 0.92)):  # as an older result has it
        found = {"row": {"name": "ring-default", "seed": seed}, "modes": 10, "high_quality": share, "floor": [0.0, 0.3]}
        found |= {"total_variation": 0.3, "kl_divergence": 0.2, "train_seconds": 100.0, **dict.fromkeys(plane, 0.5)}
        (folder / f"ddgm-ring-default-seed{seed}-abc.json").write_text(json.dumps(found))
    results_page_ddgm.write_page(folder)
    page = (tmp_path / "results_ddgm.md").read_text()
    assert "| the default recipe | 2, none collapsed | 10 / 10 | 91.0 ± 1.4 (90.0) |" in page
    assert "### Ring" in page
    assert not any(words in page for words in ("Spiral", "## Digits", "## Icons", "## Energies of classes"))
    assert "| 0.50 ± 0.00 | 1.7 | 0.50 ± 0.00 | 1.7 | 0.00 ± 0.30 | 0.50 ± 0.00 | – |" in page
    assert not any(words in page for words in ("log Z, nats", "share of each mode"))


def test_the_page_of_ddgm_says_what_the_files_say(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    names = ("high_quality", "refined_high_quality", "energy_distance", "refined_energy_distance", "squared_mmd")
    for seed, apart in enumerate((0.1, -0.3)):
        found: dict[str, Any] = {"row": {"name": "ring-source", "seed": seed}, "modes": 9, **dict.fromkeys(names, 0.5)}
        found |= {"total_variation": 0.3, "kl_divergence": 0.2, "train_seconds": 100.0, "least_share": 0.01}
        found |= {"floor": [0.01, 0.3], "mmd_floor": [0.02, 0.1], "shares": [0.01, *9 * [0.11]]}
        found |= {"log_z_grid": 20.0, "log_z_ais": 20.0 + apart, "log_z_ais_error": 0.2}
        (folder / f"ddgm-ring-source-seed{seed}-abc.json").write_text(json.dumps(found))
        found = {"row": {"name": "spiral-default", "seed": seed}, "energy_distance": 0.25, "total_variation": 0.0625}
        found |= {"failed": "the generator has collapsed"} if seed else {}
        (folder / f"ddgm-spiral-default-seed{seed}-abc.json").write_text(json.dumps(found))  # has no modes
    areas = dict.fromkeys(("noise", "permuted", "shifted", "flipped", "blank", "blurred"), 0.75)
    for recipe, other in (("default", {"letters": 0.875}), ("source", {})):
        found = {"row": {"name": f"mnist-{recipe}", "seed": 0}, "frechet_distance": 11.0, "least_share": 0.05}
        found |= {f"refined_{name}": found[name] / 2 for name in ("frechet_distance", "least_share")}
        found |= {"confidence": 0.96, "refined_confidence": 0.98, "real_confidence": 0.995}
        found |= {"train_seconds": 900.0, "auroc": areas | other}
        found |= {"class_shares": [0.05, 0.15, *8 * [0.1]], "frechet_floor": 10.0} if other else {}
        found |= {"real_class_shares": [0.09, 0.11, *8 * [0.1]]} if other else {}
        (folder / f"ddgm-mnist-{recipe}-seed0-abc.json").write_text(json.dumps(found))
    (folder / "ddgm-mnist-default-seed0-samples.png").write_bytes(b"")
    found = {
        "row": {"name": "icons-default"},
        "nearest_training_image": {"generated": {"least": 1, "low": 2, "median": 3}},
        "auroc": {"noise": 0.625},
    }
    (folder / "ddgm-icons-default-seed0-abc.json").write_text(json.dumps(found))
    for name, errors in (("classes-labels-alone", (0.3, 0.13)), ("classes", (0.6, 0.04))):
        curves = [{"step": 300 * number, "validation_error": error} for number, error in enumerate(errors, 1)]
        found = {"row": {"name": name}, "test_error": errors[-1] - 0.01, "curves": curves}
        (folder / f"ddgm-{name}-seed0-abc.json").write_text(json.dumps(found))
    results_page_ddgm.write_page(folder)
    page = (tmp_path / "results_ddgm.md").read_text()
    assert "| log Z, nats | by grid | by annealing | apart at most | in standard errors |" in page
    assert "| the source document's recipe | 20.00 ± 0.00 | 19.90 ± 0.28 | 0.300 | 1.5 |" in page
    assert "| 0.01 ± 0.30 | 0.50 ± 0.00 | 0.02 ± 0.10 | 0.300 ± 0.000 (0.300) |" in page
    assert (
        "| the default recipe | 2, 1 collapsed | 0.25 ± 0.00 | – | – | – | – | – | – | 0.062 ± 0.000 (0.062) |" in page
    )
    assert "![Digits as drawn](results/ddgm-mnist-default-seed0-samples.png)" in page
    assert "refined.png" not in page  # was not drawn
    assert "| generated | 1.00 | 2.00 | 3.00 |" in page
    assert "| the default recipe | 0.625 |" in page
    assert "| with everything else | 1, none collapsed | 3.00 | – |" in page
    assert "| labels alone | 1, none collapsed | 12.00 | – |" in page
    assert "![Validation errors during training](results/ddgm-classes.png)" in page
    assert (folder / "ddgm-classes.png").exists()
    assert "| the source document's recipe | 1.0 ± 0.0 | 11.0 ± 0.0 |" in page  # shares of modes
    assert (
        "| the default recipe | 1, none collapsed | 11.00 | 5.0 | 0.960 | 5.50 | 2.5 | 0.980 | 10.00 | 0.995 | 900 |"
        in page
    )
    assert "| 1, none collapsed | 11.00 | 5.0 | 0.960 | 5.50 | 2.5 | 0.980 | – | 0.995 | 900 |" in page
    assert "| class, % | 0 | 1 | 2 |" in page
    assert "| the default recipe | 5.0 | 15.0 | 10.0 |" in page
    assert "| test images | 9.0 | 11.0 | 10.0 |" in page
    assert "| blank | blurred | letters |" in page
    assert "| 0.750 | 0.750 | 0.875 |" in page
    assert "| 0.750 | 0.750 | – |" in page
