"""The console script: training, describing a run, drawing samples, and mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyro_ssvae.cli.main import main

TINY = ["--data", "digits", "--max-epochs", "1", "--latent-dim", "2", "--hidden-dims", "[8]", "--device", "cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "m2"
    assert main(["train", "m2", *TINY, "--out", str(folder)]) == 0
    return folder


def test_train_m2_writes_a_run_that_loads_by_name(run: Path) -> None:
    assert (run / "result.json").is_file()
    assert {"latent_map.png", "samples.png"} <= {path.name for path in (run / "figures").iterdir()}


def test_info_names_settings_progress_and_result(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(run)]) == 0
    printed = capsys.readouterr().out
    for words in ("latent_dim=2", "last evaluation", "val/error", "test/error", "train_seconds"):
        assert words in printed, words


def test_report_evaluates_a_finished_run_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((run / "result.json").read_text())
    assert main(["report", str(run)]) == 0
    assert json.loads((run / "result.json").read_text())["test/error"] == before["test/error"]
    assert "test/error" in capsys.readouterr().out


def test_sample_writes_images_and_arrays_of_a_class(run: Path, tmp_path: Path) -> None:
    assert main(["sample", str(run), "--num-samples", "9", "--out", str(tmp_path / "s.png")]) == 0
    with Image.open(tmp_path / "s.png") as image:
        assert image.size == (3 * 10 + 2, 3 * 10 + 2)  # 8x8 images, two pixels apart
    assert main(["sample", str(run), "--num-samples", "5", "--y", "3", "--out", str(tmp_path / "s.npz")]) == 0
    with np.load(tmp_path / "s.npz") as arrays:
        assert arrays["x"].shape == (5, 1, 8, 8)
        assert arrays["y"].tolist() == [3] * 5


@pytest.mark.filterwarnings("ignore:Posterior collapse")  # one epoch teaches little
@pytest.mark.parametrize("model", ["m1", "m1m2"])
def test_train_other_models(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = [] if model == "m1" else ["--m1-epochs", "1", "--m1-hidden-dims", "[8]", "--m1-latent-dim", "3"]
    assert main(["train", model, *TINY, *extra, "--out", str(tmp_path / "run")]) == 0
    assert "test/bound" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["info", "nowhere"], "holds no run"),
        (["sample", "nowhere"], "No saved model"),
        (["sample", "nowhere", "--out", "s.jpg"], ".png or .npz"),
        (["train", "m2", "--data", "nonsense"], "digits"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_module_is_the_console_script() -> None:
    found = subprocess.run([sys.executable, "-m", "pyro_ssvae", "--help"], capture_output=True, text=True, check=True)
    assert "pyro-ssvae train m2" in found.stdout
