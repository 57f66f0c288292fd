"""The examples of energy models, from the command line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

import pyro_ssvae


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_example("ddgm_2d")


TINY = ["--training.max_steps", "40", "--training.evaluate_every", "10", "--num-samples", "300", "--device", "cpu"]


@pytest.mark.parametrize("name", ["ring", "spiral"])
def test_a_run_leaves_its_folder(
    example: ModuleType, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert example.main([*TINY, "--data", name, "--frames", "2", "--out", str(out)]) == 0
    result = json.loads((out / "result.json").read_text())
    assert 0.0 < result["total_variation"] <= 1.0
    assert ("high_quality" in result) == (name == "ring")
    assert result["objective"]["entropy"] == "nearest_neighbour"
    with Image.open(out / "training.gif") as film:
        assert film.n_frames == 2
    figures = {"landscape.png", "features_and_latents.png", "training_curves.png"}
    assert {path.name for path in (out / "figures").iterdir()} == figures
    assert pyro_ssvae.load(out).event_shape == (2,)
    told = capsys.readouterr().out
    assert "total variation" in told
    assert ("of 10 modes" in told) == (name == "ring")


def test_bad_flags_end_in_one_line(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        example.main(["--data", "circle"])
    capsys.readouterr()
    assert example.main([*TINY, "--generator-rate", "-1", "--out", str(tmp_path / "run")]) == 2
    assert "generator_rate=-1.0 and critic_rate=1.0 must be positive" in capsys.readouterr().err


SHORT = ["--training.max_steps", "40", "--training.evaluate_every", "20", "--num-samples", "300", "--device", "cpu"]
FIGURES = {
    *("samples.png", "nearest.png", "paths.png", "arithmetic.png", "energies.png"),
    *("features_and_latents.png", "training_curves.png"),
}


def test_images_with_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert load_example("ddgm").main([*SHORT, "--data", "digits", "--num-labels", "100", "--out", str(out)]) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["num_labels"] == 100
    assert 0.0 <= result["test_error"] <= 1.0
    assert result["judge_error"] < 0.03
    assert result["frechet_distance"] > result["frechet_floor"] > 0.0
    assert set(result["auroc"]) == {"noise", "permuted", "shifted", "flipped", "blank", "blurred"}
    assert {path.name for path in (out / "figures").iterdir()} == FIGURES
    assert pyro_ssvae.load(out).has_classes
    assert "class energies of 100 labels" in capsys.readouterr().out


def test_a_folder_of_images(tmp_path: Path) -> None:
    folder, out = tmp_path / "images", tmp_path / "run"
    folder.mkdir()
    for number in range(60):
        Image.new("RGBA", (20, 20), (4 * number, 255 - 4 * number, 90, 255)).save(folder / f"{number:02}.png")
    flags = ["--data", str(folder), "--image-size", "16", "--training.batch_size", "16", "--out", str(out)]
    assert load_example("ddgm").main([*SHORT, *flags]) == 0
    result = json.loads((out / "result.json").read_text())
    assert "judge_error" not in result
    assert "test_error" not in result
    assert pyro_ssvae.load(out).event_shape == (3, 16, 16)
    assert {path.name for path in (out / "figures").iterdir()} == FIGURES
