"""examples/m2.py as a user calls it: every flag once, and every mistake that is easy to make."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import pyro_ssvae
from pyro_ssvae import TrainingConfig

PATH = Path(__file__).parents[1] / "examples" / "m2.py"
pytestmark = pytest.mark.usefixtures("unrendered")
TINY = ["--max-epochs", "1", "--latent-dim", "2", "--hidden-dims", "[8]", "--device", "cpu"]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("m2_example", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "flags",
    [
        "--class-prior map --num-labels 20 --seed 3 --precision bf16-mixed --training.gradient_clip 1.0".split(),
        "--class-prior dirichlet --likelihood gaussian".split(),
        "--pure --alpha 0.1 --activation softplus --training.binarisation static --enumeration top-k --top-k 2".split(),
    ],
)
@pytest.mark.filterwarnings("ignore:This CPU has no bf16", "ignore:The fit is worse than")  # after ten steps
def test_flags(example: ModuleType, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert example.main(["--data", "digits", "--out", str(tmp_path), *TINY, *flags]) == 0
    assert "test error" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["regularisers"] == ([] if "--pure" in flags else ["augmentation", "consistency"])
    assert result["kl_weight"][-1] == 1.0
    assert result["objective"]["enumeration"] == ("top-k" if "--pure" in flags else "exact")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert len(names) >= 6
    with pytest.warns(UserWarning, match="MyM2"):
        assert pyro_ssvae.load(tmp_path).num_classes == 10


def test_without_a_network_the_run_is_named_after_what_it_trains_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyro_ssvae import SemiSupervisedData
    from pyro_ssvae.cli import load_data
    from pyro_ssvae.cli.commands import parse_flags
    from pyro_ssvae.errors import DataUnavailableError

    from_name = SemiSupervisedData.from_name

    def offline(name: str, **options: object) -> SemiSupervisedData:
        if name == "mnist":
            raise DataUnavailableError("No network.")
        return from_name(name, **options)

    monkeypatch.setattr(SemiSupervisedData, "from_name", offline)
    args = parse_flags("m2", [])
    assert load_data(args).name == "digits"
    assert "Continuing with digits" in capsys.readouterr().err
    assert args.out.startswith(str(Path("runs") / "m2-digits-100-seed0-"))


@pytest.mark.filterwarnings("ignore:No training example has a label")
@pytest.mark.parametrize(("flags", "kept"), [(["--num-labels", "0"], 0), (["--num-labels", "20"], 20), ([], 100)])
def test_as_many_labels_are_kept_as_asked_for(flags: list[str], kept: int) -> None:
    from pyro_ssvae.cli import load_data
    from pyro_ssvae.cli.commands import parse_flags

    args = parse_flags("m2", ["--data", "digits", *flags])
    assert load_data(args).num_labelled == kept
    assert load_data(args, num_labels="all").num_unlabelled == 0


def test_pure_brings_its_own_defaults_and_explicit_flags_win(tmp_path: Path) -> None:
    from pyro_ssvae.cli.commands import parse_flags
    from pyro_ssvae.presets import PURE

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
    from pyro_ssvae.cli.commands import parse_flags

    args = parse_flags("m2", ["--pure", "--data", *data])
    assert (args.likelihood, args.training.binarisation) == (likelihood, binarisation)


def test_npz_table(example: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = (rng.normal(size=(120, 7)) + y[:, None]).astype(np.float32)
    file = tmp_path / "mine.npz"
    np.savez(file, x_train=x[:100], y_train=y[:100], x_test=x[100:], y_test=y[100:])
    flags = [
        "--data",
        str(file),
        "--num-labels",
        "30",
        "--likelihood",
        "gaussian",
        "--out",
        str(tmp_path / "run"),
        *TINY,
    ]
    assert example.main(flags) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["num_labels"], result["val/error"]) == (30, None)
    assert result["regularisers"] == ["augmentation", "consistency"]
    assert 0.0 <= result["test/error"] <= 1.0


def test_examples_without_classes(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "bare.npz", x_train=np.zeros((40, 7), dtype=np.float32))
    assert example.main(["--data", str(tmp_path / "bare.npz"), "--out", str(tmp_path / "run"), *TINY]) == 2
    assert "needs the number of classes, and bare has no labels" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_config_file(example: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "flags.yaml").write_text("data: digits\nmax_epochs: 1\nlatent_dim: 2\ntraining:\n  batch_size: 300\n")
    assert (
        example.main(["--config", str(tmp_path / "flags.yaml"), "--out", str(tmp_path / "run"), "--device", "cpu"]) == 0
    )
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 4


def test_without_a_download_digits_are_used(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*_: object, **__: object) -> None:
        raise pyro_ssvae.errors.DataUnavailableError("MNIST is not in DIR and could not be downloaded: use --data-dir.")

    original = pyro_ssvae.SemiSupervisedData.from_name
    monkeypatch.setattr(
        pyro_ssvae.SemiSupervisedData,
        "from_name",
        lambda name, **options: original(name, **options) if name == "digits" else unavailable(),
    )
    assert example.main(["--data-dir", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run"), *TINY]) == 0
    captured = capsys.readouterr()
    complaint = [line for line in captured.err.splitlines() if "Continuing with digits" in line]
    assert len(complaint) == 1
    assert "--data-dir" in complaint[0]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["data"] == "digits"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max-epochs", "0"], "--max-epochs 0 is too small"),
        (["--device", "toaster"], "toaster"),
        (["--resume", "/nowhere/at/all"], "holds no run"),
        (["--likelihood", "poison"], "bernoulli"),
        (["--training.batch_size", "-5"], "--training.batch_size -5"),
        (["--no-such-flag"], "no-such-flag"),
        (["--max-steps", "100"], "--training.max_steps"),
        (["--batch_size=5"], "--training.batch_size"),
    ],
)
def test_bad_flags_end_with_one_message(
    example: ModuleType, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert example.main(flags) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, so --cuda is no error")
def test_cuda_without_gpu_is_a_clear_error(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert example.main(["--cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "nothing.npz"], "nothing.npz"),
        (["--data", "nonsense"], "digits"),
        (["--data", "digits", "--num-labels", "-1"], "--num-labels -1"),
        (["--data", "digits", "--alpha", "-1"], "--alpha -1.0"),
        (["--data", "digits", "--latent-dim", "0"], "--latent-dim 0"),
    ],
)
def test_bad_data_and_models_end_with_one_message(
    example: ModuleType, flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert example.main([*flags, "--out", str(tmp_path / "run"), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_reported_and_not_trained_again(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", "digits", "--out", str(tmp_path / "run"), *TINY]
    assert example.main(flags) == 0
    before = (tmp_path / "run" / "result.json").read_bytes()
    capsys.readouterr()
    assert example.main(flags) == 0
    output = capsys.readouterr()
    assert f"{tmp_path / 'run'} is finished" in output.out
    assert "test error" in output.out
    assert "step" not in output.err
    assert (tmp_path / "run" / "result.json").read_bytes() == before
    assert example.main(["--resume", str(tmp_path / "run")]) == 0  # reports again
    assert "nothing left to train" in capsys.readouterr().err
