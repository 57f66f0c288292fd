"""examples/m2.py as a user calls it: flags, data, and finished runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyro_ssvae
from pyro_ssvae import M1, M1M2, M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, UnsupervisedELBO
from pyro_ssvae.cli import load_data
from pyro_ssvae.cli.commands import parse_flags
from pyro_ssvae.data import Batch
from pyro_ssvae.errors import DataUnavailableError
from pyro_ssvae.presets import PURE
from tests.commands import TINY, load_example

pytestmark = pytest.mark.usefixtures("unrendered")
train_m2 = load_example("m2").main


@pytest.mark.parametrize(
    "flags",
    [
        "--class-prior map --num-labels 20 --seed 3 --precision bf16-mixed --training.gradient_clip 1.0".split(),
        "--class-prior dirichlet --likelihood gaussian".split(),
        "--pure --alpha 0.1 --activation softplus --training.binarisation static --enumeration top-k --top-k 2".split(),
    ],
)
@pytest.mark.filterwarnings("ignore:This CPU has no bf16", "ignore:The fit is worse than")  # after ten steps
def test_flags(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_m2(["--out", str(tmp_path), *TINY, *flags]) == 0
    assert "test error" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["regularisers"] == ([] if "--pure" in flags else ["augmentation", "consistency"])
    assert result["kl_weight"][-1] == 1.0
    assert result["objective"]["enumeration"] == ("top-k" if "--pure" in flags else "exact")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert len(names) >= 6
    with pytest.warns(UserWarning, match="MyM2"):
        assert pyro_ssvae.load(tmp_path).num_classes == 10


@pytest.mark.filterwarnings("ignore:No training example has a label")
@pytest.mark.parametrize(("flags", "kept"), [(["--num-labels", "0"], 0), (["--num-labels", "20"], 20), ([], 100)])
def test_as_many_labels_are_kept_as_asked_for(flags: list[str], kept: int) -> None:
    args = parse_flags("m2", ["--data", "digits", *flags])
    assert load_data(args).num_labelled == kept
    assert load_data(args, num_labels="all").num_unlabelled == 0


def test_pure_brings_its_own_defaults_and_explicit_flags_win(tmp_path: Path) -> None:
    assert parse_flags("m2", ["--bound-weight", "0.5"]).objective["bound_weight"] == 0.5
    by_data = parse_flags("m2", ["--data", "digits"])
    assert "bound_weight" not in by_data.objective
    assert by_data.model["likelihood"] == "auto"
    assert parse_flags("m2", ["--data", "digits", "--pure"]).model["likelihood"] == "bernoulli"
    args = parse_flags("m2", ["--pure", "--alpha", "3", "--training.learning_rate", "0.01", "--seed", "4"])
    config = args.training
    assert (args.alpha, args.classifier, args.activation, args.enumeration) == (3.0, "mlp", "softplus", "top-k")
    expected = TrainingConfig(**PURE.training | {"learning_rate": 0.01, "seed": 4})
    assert config == expected
    assert parse_flags("m2", ["--pure", "--training.max_steps", "7"]).training.total_steps(100) == 7
    assert parse_flags("m2", []).training == TrainingConfig(seed=0)
    assert "pose" not in parse_flags("m2", []).model  # the data decide
    assert [parse_flags("m2", ["--pure", *more]).model["pose"] for more in ([], ["--pose"])] == [False, True]
    assert parse_flags("m2", ["--no-pose"]).model["pose"] is False


@pytest.mark.parametrize(
    ("data", "likelihood", "binarisation"),
    [
        (["mnist"], "bernoulli", "dynamic"),
        (["mnist", "--likelihood", "gaussian"], "gaussian", "none"),
        (["cifar10"], "discretised_logistic", "none"),
        (["table.csv", "--label", "y"], "auto", "none"),
    ],
)
def test_pure_binarises_pixels_under_a_bernoulli_likelihood_alone(
    data: list[str], likelihood: str, binarisation: str
) -> None:
    args = parse_flags("m2", ["--pure", "--data", *data])
    assert (args.likelihood, args.training.binarisation) == (likelihood, binarisation)


def test_npz_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = (rng.normal(size=(120, 7)) + y[:, None]).astype(np.float32)
    file = tmp_path / "mine.npz"
    np.savez(file, x_train=x[:100], y_train=y[:100], x_test=x[100:], y_test=y[100:])
    flags = f"--data {file} --num-labels 30 --likelihood gaussian --out {tmp_path / 'run'}".split()
    assert train_m2([*flags, *TINY[2:]]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["num_labels"], result["val/error"]) == (30, None)
    assert result["regularisers"] == ["augmentation", "consistency"]
    assert 0.0 <= result["test/error"] <= 1.0


def test_examples_without_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "bare.npz", x_train=np.zeros((40, 7), dtype=np.float32))
    assert train_m2(["--data", str(tmp_path / "bare.npz"), "--out", str(tmp_path / "run"), *TINY[2:]]) == 2
    assert "needs the number of classes, and bare has no labels" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_config_file(tmp_path: Path) -> None:
    (tmp_path / "flags.yaml").write_text("data: digits\nmax_epochs: 1\nlatent_dim: 2\ntraining:\n  batch_size: 300\n")
    flags = ["--config", str(tmp_path / "flags.yaml"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert train_m2(flags) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 4


def test_without_a_download_digits_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from_name = SemiSupervisedData.from_name

    def offline(name: str, **options: object) -> SemiSupervisedData:
        if name == "mnist":
            raise DataUnavailableError("No network.")
        return from_name(name, **options)

    monkeypatch.setattr(SemiSupervisedData, "from_name", offline)
    assert train_m2(["--out", str(tmp_path / "run"), *TINY[2:]]) == 0
    assert capsys.readouterr().err.splitlines().count("No network. Continuing with digits.") == 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["data"] == "digits"


def test_a_finished_run_is_reported_and_not_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--out", str(tmp_path / "run"), *TINY]
    assert train_m2(flags) == 0
    before = (tmp_path / "run" / "result.json").read_bytes()
    capsys.readouterr()
    assert train_m2(flags) == 0
    output = capsys.readouterr()
    assert f"{tmp_path / 'run'} is finished" in output.out
    assert "test error" in output.out
    assert "step" not in output.err
    assert (tmp_path / "run" / "result.json").read_bytes() == before
    assert train_m2(["--resume", str(tmp_path / "run")]) == 0  # reports again
    assert "nothing left to train" in capsys.readouterr().err


SMALL = {"latent_dim": 2, "hidden_dims": (8,)}


@pytest.mark.parametrize(
    ("name", "kind", "build"),
    [
        ("m1", M1, lambda kind: kind((6,), **SMALL)),
        ("m2", M2, lambda kind: kind((6,), 3, class_prior="map", **SMALL)),
        ("m1_m2", M1M2, lambda kind: kind.from_m1(M1((6,), **SMALL), 3, class_prior="map", **SMALL)),
    ],
)
def test_the_subclass_of_an_example_equals_the_library(name: str, kind: type, build: Callable[[type], Any]) -> None:
    mine, library = build(getattr(load_example(name), f"My{kind.__name__}")), build(kind)
    library.load_state_dict(mine.state_dict())
    x, found = torch.rand(4, 6).round(), []
    for model in (mine, library):
        if kind is M1:
            objective, labelled = UnsupervisedELBO(model, num_examples=4), (None, None)
        else:
            objective = SemiSupervisedELBO(model, num_labelled=2, num_unlabelled=4)
            labelled = (x[:2], torch.tensor([0, 1]))
        torch.manual_seed(1)
        loss = objective(Batch(x, *labelled))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found.append([loss, *torch.autograd.grad(loss, trained)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
