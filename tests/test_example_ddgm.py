"""The example of energy models in the plane, from the command line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

import pyro_ssvae


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / "ddgm_2d.py"
    spec = importlib.util.spec_from_file_location("ddgm_2d", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    assert result["objective"]["entropy"] == "mutual_information"
    with Image.open(out / "training.gif") as film:
        assert film.n_frames == 2
    assert {path.name for path in (out / "figures").iterdir()} == {"landscape.png", "training_curves.png"}
    assert pyro_ssvae.load(out).event_shape == (2,)
    told = capsys.readouterr().out
    assert "total variation" in told
    assert ("of 10 modes" in told) == (name == "ring")


def test_bad_flags_end_in_one_line(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        example.main(["--data", "circle"])
    capsys.readouterr()
    assert example.main([*TINY, "--generator-rate", "-1", "--out", str(tmp_path / "run")]) == 2
    assert "generator_rate=-1.0 must be positive" in capsys.readouterr().err
