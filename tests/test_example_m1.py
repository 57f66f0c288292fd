"""examples/m1.py and examples/m1_m2.py as a user calls them: flags, stages, resuming, mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

import pyro_ssvae
from pyro_ssvae import M1, M1M2
from pyro_ssvae.cli.commands import parse_flags
from pyro_ssvae.cli.training import get_m1_config
from pyro_ssvae.errors import EnumerationError, StaticELBOError
from pyro_ssvae.presets import M1_PRESETS
from tests.commands import load_example

pytestmark = [
    pytest.mark.usefixtures("unrendered"),
    *(pytest.mark.filterwarnings(f"ignore:{words}") for words in ("Posterior collapse", "The fit is worse")),
]  # one epoch teaches little
TINY_M1 = "--data digits --hidden-dims [8] --latent-dim 3 --device cpu --num-samples 5".split()
ABOVE = "--data digits --device cpu --hidden-dims [8] --latent-dim 2 --max-epochs 1".split()
TINY = [*ABOVE, *"--m1-epochs 1 --m1-hidden-dims [8] --m1-latent-dim 3".split()]
train_m1, train_stack = load_example("m1").main, load_example("m1_m2").main


@pytest.mark.parametrize(
    "flags",
    [
        ["--preset", "kingma"],
        ["--preset", "musyoku", "--prior", "mixture"],
        ["--preset", "nnabla", "--num-particles", "3", "--importance-weighted"],
        ["--preset", "nitta", "--likelihood", "gaussian"],
    ],
)
def test_m1_flags(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert train_m1([*TINY_M1, *flags, "--max-epochs", "1", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "log p(x)" in printed
    result = json.loads((tmp_path / "result.json").read_text())
    preset = M1_PRESETS[flags[1]]
    assert result["binarisation"] == preset.training["binarisation"]
    assert result["num_labels"] == 0
    assert ("importance-weighted" in result["loss"]) == ("--importance-weighted" in flags)
    with pytest.warns(UserWarning, match="MyM1"):
        model = pyro_ssvae.load(tmp_path)
    assert model.config()["arguments"]["activation"] == preset.model["activation"]


@pytest.mark.slow
@pytest.mark.parametrize("pure", [True, False])
def test_stack_runs_all_stages(pure: bool, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flags = [*TINY, "--joint-epochs", "1", "--out", str(tmp_path)]
    assert train_stack(flags + (["--pure"] if pure else [])) == 0
    printed = capsys.readouterr().out
    assert printed.index("m1\n") < printed.index("stacked\n") < printed.index("joint\n")
    assert type(pyro_ssvae.load(tmp_path / "m1")) is M1
    for stage in ("stacked", "joint"):
        with pytest.warns(UserWarning, match="MyM1M2"):
            assert type(pyro_ssvae.load(tmp_path / stage)) is M1M2
    flags_kept = yaml.safe_load((tmp_path / "config.yaml").read_text())["flags"]
    assert flags_kept["classify_from"] == ("z1" if pure else "x")
    result = json.loads((tmp_path / "joint" / "result.json").read_text())
    assert result["regularisers"] == ([] if pure else ["augmentation", "consistency"])


@pytest.mark.slow
def test_stack_resumes_between_stages_and_takes_an_m1(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first = tmp_path / "first"
    assert train_stack([*TINY, "--pure", "--out", str(first)]) == 0
    before = (first / "m1" / "result.json").read_text()
    stacked = json.loads((first / "stacked" / "result.json").read_text())
    shutil.rmtree(first / "stacked")  # as if it had been stopped between the stages
    assert train_stack(["--resume", str(first)]) == 0
    assert (first / "m1" / "result.json").read_text() == before
    again = json.loads((first / "stacked" / "result.json").read_text())
    assert (again["test/bound"], again["test/error"]) == (stacked["test/bound"], stacked["test/error"])
    for given in (first, first / "m1"):
        second = tmp_path / f"on-{given.name}"
        flags = [*ABOVE, "--pure", "--m1", str(given), "--out", str(second)]
        assert train_stack(flags) == 0
        assert not (second / "m1").exists()
    lone = tmp_path / "lone"
    assert train_m1([*TINY_M1, "--max-epochs", "1", "--out", str(lone)]) == 0
    flags = [*ABOVE, "--pure", "--m1", str(lone), "--out", str(tmp_path / "on-lone")]
    capsys.readouterr()
    assert train_stack(flags) == 0
    assert capsys.readouterr().out.count("MyM1, a subclass of M1 of this package") == 1
    flags[flags.index(str(lone))] = str(first / "stacked")
    flags[-1] = str(tmp_path / "wrong")
    assert train_stack(flags) == 2
    assert "holds a M1M2, and an M1 is needed" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()
    flags[flags.index(str(first / "stacked"))] = str(lone)
    assert train_stack(flags) == 0  # into the folder that the mistake did not make


def test_stack_by_importance_weights_estimates_log_px(tmp_path: Path) -> None:
    flags = ["--pure", "--importance-weighted", "--num-particles", "3", "--num-samples", "20"]
    assert train_stack([*TINY, *flags, "--out", str(tmp_path)]) == 0
    for stage in ("m1", "stacked"):
        result = json.loads((tmp_path / stage / "result.json").read_text())
        assert result["test/log_likelihood_samples"] == 20
        assert result["test/bound"] - 1 < result["test/log_likelihood"] < 0


@pytest.mark.parametrize("error", [StaticELBOError("Out of reach."), EnumerationError(["z"])])
def test_errors_of_bounds_are_one_line(
    error: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(load_example("m1"), "fit", fail)
    monkeypatch.setattr("pyro_ssvae.cli.training.fit", fail)
    for train, flags in ((train_m1, TINY_M1), (train_stack, TINY)):
        assert train([*flags, "--out", str(tmp_path / flags[5])]) == 2
        assert capsys.readouterr().err == f"error: {error}\n"


def test_pixels_are_binarised_for_likelihoods_of_zeros_and_ones_only() -> None:
    for flags, expected in (
        ([], "dynamic"),
        (["--likelihood", "gaussian"], "none"),
        (["--likelihood", "continuous_bernoulli", "--preset", "nnabla"], "none"),
        (["--preset", "nnabla"], "threshold"),
        (["--likelihood", "gaussian", "--training.binarisation", "static"], "static"),
    ):
        assert parse_flags("m1", flags).training.binarisation == expected
    for flags, expected in (([], "dynamic"), (["--likelihood", "poisson"], "none")):
        args = parse_flags("m1m2", flags)
        assert get_m1_config(args, 1000).binarisation == expected
        assert args.training.binarisation == "none"


def test_stack_refuses_a_folder_of_another_program(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "config.yaml").write_text("flags: {}\n")
    assert train_stack([*TINY, "--out", str(tmp_path)]) == 2
    assert "is not the configuration of a run; choose another folder" in capsys.readouterr().err
