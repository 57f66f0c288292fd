"""The examples of energy models, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pyro_ssvae
from pyro_ssvae import SemiSupervisedData, TrainingConfig
from pyro_ssvae.cli.commands import parse_flags
from pyro_ssvae.cli.ddgm import load_others
from pyro_ssvae.errors import RunFolderError
from pyro_ssvae.evaluation import measure_toy_model
from pyro_ssvae.plots.ddgm import Movie
from pyro_ssvae.presets import DDGM_IMAGES, DDGM_PHOTOS, DDGM_TOY, M1_PRESETS, PURE, Preset
from pyro_ssvae.training import RunFolder
from tests.commands import load_example

pytestmark = pytest.mark.usefixtures("unrendered")


TINY = "--training.max_steps 40 --training.evaluate_every 10 --num-samples 300 --device cpu --langevin-steps 2".split()
TINY += ["--training.compile", "eager"]
train_points = load_example("ddgm_2d").main


@pytest.mark.parametrize("name", ["ring", pytest.param("spiral", marks=pytest.mark.slow)])
def test_a_run_leaves_its_folder(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr("pyro_ssvae.cli.ddgm.measure_toy_model", partial(measure_toy_model, num_chains=10))
    assert train_points([*TINY, "--data", name, "--frames", "2", "--out", str(out)]) == 0
    result = json.loads((out / "result.json").read_text())
    assert 0.0 < result["total_variation"] <= 1.0
    assert ("high_quality" in result) == (name == "ring")
    assert result["objective"]["entropy"] == "nearest_neighbour"
    with Image.open(out / "training.gif") as film:
        assert film.n_frames == 2
    figures = {"landscape.png", "features_and_latents.png", "interpolations.png", "training_curves.png"}
    assert {path.name for path in (out / "figures").iterdir()} == figures
    assert pyro_ssvae.load(out).event_shape == (2,)
    output = capsys.readouterr().out
    assert "total variation" in output
    assert "log Z" in output
    assert "squared MMD" in output
    assert ("modes found" in output) == (name == "ring")


def titles(path: Path) -> list[int]:
    return Movie.load(path).steps


@pytest.mark.slow
def test_the_movie_continues_when_a_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after the frame of step 20, and resumed from the checkpoint of step 20 or of step 10."""
    out = tmp_path / "run"
    film, state = out / "training.gif", out / "checkpoints" / "last.pt"
    at: dict[int, bytes] = {}

    def stop(number: int) -> Callable[..., Any]:
        def write(self: RunFolder, values: dict[str, Any]) -> None:
            original(self, values)
            at[values["step"]] = state.read_bytes()
            if values["step"] == number:
                raise KeyboardInterrupt

        return write

    original = RunFolder.write_checkpoint
    monkeypatch.setattr(RunFolder, "write_checkpoint", stop(20))
    assert train_points([*TINY, "--frames", "4", "--out", str(out)]) == 130
    assert titles(film) == [0, 20]
    monkeypatch.setattr(RunFolder, "write_checkpoint", stop(30))
    state.write_bytes(at[10])
    assert train_points(["--resume", str(out)]) == 130
    assert titles(film) == [0, 20, 30]

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "write_checkpoint", original)
    monkeypatch.setattr(load_example("ddgm_2d"), "report", interrupt)
    state.write_bytes(at[10])
    for _ in range(2):  # the second time nothing is left to train
        assert train_points(["--resume", str(out)]) == 130
        assert titles(film) == [0, 20, 30, 40]


@pytest.mark.slow
def test_training_that_fails_leaves_its_movie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find_failure(history: list[dict[str, Any]]) -> str | None:
        return "no good" if history[-1]["step"] == 20 else None

    monkeypatch.setattr("pyro_ssvae.models.diagnostics.find_failure", find_failure)
    out = tmp_path / "run"
    assert train_points([*TINY, "--frames", "5", "--out", str(out)]) == 2
    assert "step 20: no good. The last good checkpoint" in capsys.readouterr().err
    assert titles(out / "training.gif") == [0, 10, 20]
    assert train_points([*TINY, "--frames", "5", "--out", str(out)]) == 2  # from the last good checkpoint
    assert "step 20: no good. The last good checkpoint" in capsys.readouterr().err
    assert titles(out / "training.gif") == [0, 10, 20]


SHORT = "--training.max_steps 40 --training.evaluate_every 20 --num-samples 300 --device cpu".split()
FIGURES = {
    *("samples.png", "nearest.png", "interpolations.png", "analogies.png", "energies.png"),
    *("features_and_latents.png", "training_curves.png"),
}


@pytest.mark.slow
def test_images_with_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert load_example("ddgm").main([*SHORT, "--data", "digits", "--num-labels", "100", "--out", str(out)]) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["num_labels"] == 100
    assert 0.0 <= result["test/error"] <= 1.0
    assert result["reference_error"] < 0.03
    assert result["frechet_distance"] > result["frechet_floor"] > 0.0
    figures = {path.name for path in (out / "figures").iterdir()}
    assert figures == FIGURES | {"class_shares.png", "confusion_matrix.png", "reliability.png"}
    assert pyro_ssvae.load(out).num_classes is not None
    output = capsys.readouterr().out
    assert "test error" in output
    assert output.index("examples of shape (1, 8, 8)") < output.index(
        "Training a reference classifier on 1200 labelled"
    )
    assert all(f" {k} {share:.1%}" in output for k, share in enumerate(result["class_shares"]))


def make_folder(folder: Path, count: int = 60) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.new("RGBA", (20, 20), (4 * number, 255 - 4 * number, 90, 255)).save(folder / f"{number:02}.png")
    return folder


@pytest.mark.slow
def test_a_folder_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = make_folder(tmp_path / "images"), tmp_path / "run"
    flags = ["--data", str(folder), "--image-size", "16", "--training.batch_size", "16", "--out", str(out)]
    assert load_example("ddgm").main([*SHORT, *flags, "--other-data", "digits"]) == 0
    result = json.loads((out / "result.json").read_text())
    assert set(result["auroc"]) == {"noise", "permuted", "shifted", "flipped", "blank", "blurred", "digits"}
    output = capsys.readouterr().out
    assert "digits" in output
    assert "classifier" not in output
    assert "reference_error" not in result
    assert "test/error" not in result
    assert pyro_ssvae.load(out).event_shape == (3, 16, 16)
    assert {path.name for path in (out / "figures").iterdir()} == FIGURES


def test_unsuitable_data_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    example = load_example("ddgm")
    monkeypatch.setattr(example, "fit", lambda *_, **__: pytest.fail("trains"))
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2

    def stored(name: str, x: Any) -> str:
        np.savez(tmp_path / f"{name}.npz", x_train=x, y_train=y)
        return str(tmp_path / f"{name}.npz")

    wrong = [
        ([stored("table", rng.random((40, 7)))], r"images (C, H, W) of at least 8x8 pixels"),
        ([stored("small", rng.random((40, 1, 6, 9)))], "have shape (1, 6, 9)"),
        ([stored("loud", 255.0 * rng.random((40, 1, 8, 8)))], "as uint8"),
        ([str(make_folder(tmp_path / "plain")), "--num-labels", "10"], "--num-labels 10 needs classes"),
        (["digits", "--image-size", "16"], "--image-size 16 is for a folder of images"),
        (["digits", "--other-data", stored("others", rng.random((40, 7)))], "examples of others have shape (7,)"),
    ]
    for flags, words in wrong:
        assert example.main([*SHORT, "--out", str(tmp_path / "run"), "--data", *flags]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_other_images_are_brought_to_the_shape(channels: int, tmp_path: Path) -> None:
    data = SemiSupervisedData.from_arrays(torch.rand(30, channels, 12, 10), torch.arange(30) % 2)
    for given in (1, 3, 4):
        x = (255.0 * torch.rand(50, 1, 1, given)).byte().expand(-1, 8, 8, -1)  # each image of one colour
        np.savez(tmp_path / "flat.npz", x_train=x.numpy(), y_train=np.arange(50) % 2)
        args = parse_flags("ddgm", ["--other-data", str(tmp_path / "flat.npz")])
        (found,) = load_others(args, data).values()
        assert found.shape == (50, channels, 12, 10)
        colour = x[:, 0, 0].float() / 255.0
        if channels == given:
            torch.testing.assert_close(found[:, :, 5, 5], colour)
        if channels == 1 and given > 1:
            torch.testing.assert_close(found[:, 0, 5, 5], colour[:, :3] @ torch.tensor([0.299, 0.587, 0.114]))
        if channels > given == 1:
            torch.testing.assert_close(found[:, :3, 5, 5], colour.expand(-1, 3))
        if given < channels == 4:
            assert (found[:, 3] == 1.0).all()
    assert load_others(parse_flags("ddgm", []), data) == {}


def help_of(command: str, flags: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        parse_flags(command, [*flags, "--help-all"])
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_config_of_a_run_starts_another_one_with_its_flags(tmp_path: Path) -> None:
    first = parse_flags("ddgm", ["--entropy-weight", "0.5", "--training.gradient_clip", "null", "--shared-draws"])
    RunFolder(tmp_path).write_config(first.settings)
    second = parse_flags("ddgm", ["--config", str(tmp_path / "config.yaml")])
    assert (second.settings, second.training, second.resume) == (first.settings, first.training, None)
    assert parse_flags("ddgm", ["--config", str(tmp_path / "config.yaml"), "--alpha", "3"]).alpha == 3.0


def test_runs_of_other_commands_are_not_resumed(tmp_path: Path) -> None:
    RunFolder(tmp_path / "points").write_config(parse_flags("ddgm_2d", []).settings)
    with pytest.raises(RunFolderError, match="was started by ddgm_2d, and not by ddgm"):
        parse_flags("ddgm", ["--resume", str(tmp_path / "points")])


def default_of(name: str, output: str) -> str:
    """Return what the help says is the default of a flag."""
    return output.split(f"--{name} ")[-1].split("default: ")[1].split(")")[0]


def test_help_shows_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    for command, preset in (("ddgm", DDGM_IMAGES), ("ddgm_2d", DDGM_TOY)):
        output = help_of(command, [], capsys)
        for name, value in preset.objective.items():
            if not isinstance(value, bool):
                assert default_of(name.replace("_", "-"), output) == str(value), name
        for name, value in preset.training.items():
            assert default_of(f"training.{name}", output) == str(value), name
    output = help_of("m1", ["--preset", "musyoku"], capsys)
    assert default_of("latent-dim", output) == "2"
    assert default_of("training.gradient_clip", output) == str(M1_PRESETS["musyoku"].training["gradient_clip"])
    assert default_of("activation", help_of("m2", ["--pure"], capsys)) == PURE.model["activation"]
    assert default_of("activation", help_of("m2", [], capsys)) == "relu"
    assert parse_flags("ddgm", []).shared_draws
    assert not parse_flags("ddgm", ["--no-shared-draws"]).shared_draws


@pytest.mark.parametrize(
    ("shape", "preset"),
    [
        ((28, 28), DDGM_IMAGES),
        ((1, 32, 32), DDGM_IMAGES),
        ((12,), DDGM_IMAGES),
        ((33, 33), DDGM_PHOTOS),
        ((8, 8, 3), DDGM_PHOTOS),
        ((3, 8, 8), DDGM_PHOTOS),
    ],
)
def test_images_in_colour_or_large_ones_have_a_preset_of_their_own(
    shape: tuple[int, ...], preset: Preset, tmp_path: Path
) -> None:
    np.savez(tmp_path / "some.npz", x_train=np.zeros((2, *shape), dtype=np.uint8))
    args = parse_flags("ddgm", ["--data", str(tmp_path / "some.npz")])
    assert args.training == TrainingConfig(seed=0, **preset.training)
    RunFolder(tmp_path / "run").write_config(args.settings)
    assert parse_flags("ddgm", ["--resume", str(tmp_path / "run")]).training == args.training


def test_folders_in_colour_or_large_and_cifar10_use_ddgm_photos(tmp_path: Path) -> None:
    folder, grey = str(make_folder(tmp_path / "images")), tmp_path / "grey"
    grey.mkdir()
    Image.new("L", (40, 40), 9).save(grey / "one.png")
    for flags in ([folder], ["cifar10"], [str(grey), "--image-size", "33"]):
        rate = parse_flags("ddgm", ["--data", *flags]).training.learning_rate
        assert rate == DDGM_PHOTOS.training["learning_rate"]
    for data in ("digits", str(tmp_path / "missing.npz"), str(grey)):
        assert parse_flags("ddgm", ["--data", data]).training.max_steps == DDGM_IMAGES.training["max_steps"]
    args = parse_flags("ddgm", ["--data", folder, "--training.learning_rate", "0.1"])
    assert args.training.learning_rate == 0.1


def test_flags_go_before_those_of_the_run_and_these_before_the_preset(tmp_path: Path) -> None:
    def resumed(command: str, first: list[str], then: list[str], name: str) -> Any:
        RunFolder(tmp_path / name).write_config(parse_flags(command, first).settings)
        return parse_flags(command, ["--resume", str(tmp_path / name), *then])

    first = ["--training.gradient_clip", "null", "--max-epochs", "2", "--entropy-weight", "0.5"]
    args = resumed("ddgm", first, ["--max-epochs", "3"], "images")
    config = args.training
    assert (config.gradient_clip, config.max_epochs, args.entropy_weight) == (None, 3, 0.5)
    with pytest.raises(RunFolderError, match=r"other settings: entropy_weight is 0\.5 there and 0\.7 here"):
        resumed("ddgm", first, ["--entropy-weight", "0.7"], "changed")
    assert config.batch_size == DDGM_IMAGES.training["batch_size"]
    args = resumed("ddgm", first, ["--training.max_steps", "9"], "longer")
    assert args.training.total_steps(1000) == 9
    # The preset counts passes, the run counted steps.
    args = resumed("m2", ["--pure", "--training.max_steps", "7"], [], "steps")
    assert args.training.total_steps(1000) == 7
    file = tmp_path / "flags.yaml"
    file.write_text("training:\n  max_steps: 5\n")
    args = resumed("m2", ["--pure"], ["--config", str(file)], "file")
    assert args.training.total_steps(1000) == 5
