"""The console script: training, evaluating again, describing, generating, help, interruptions and mistakes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pyro_ssvae.cli import run_command
from pyro_ssvae.cli.commands import parse_flags
from pyro_ssvae.cli.flags import Flags
from pyro_ssvae.cli.main import main
from pyro_ssvae.training import RunFolder
from tests.commands import TINY, Call

pytestmark = pytest.mark.usefixtures("unrendered")
TINY_M1 = "--m1-epochs 1 --m1-hidden-dims [8] --m1-latent-dim 3".split()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "m2"
    assert main(["train", "m2", *TINY, "--out", str(folder)]) == 0
    return folder


def test_train_m2_writes_a_run_that_names_its_command(run: Path) -> None:
    assert {"latent_map.png", "samples.png"} <= {path.name for path in (run / "figures").iterdir()}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["command"] == "m2"
    assert config["flags"]["latent_dim"] == 2


def test_info_prints_flags_model_settings_progress_and_result(run: Path, call: Call) -> None:
    printed = call("info", run).out
    for words in ("num_labels 100", "class M2", "latent_dim 2", "max_epochs 1", "val/error 0.", "test error"):
        assert words in printed, words


def test_report_evaluates_a_finished_run_again(run: Path, call: Call) -> None:
    before = json.loads((run / "result.json").read_text())
    (run / "figures" / "samples.png").unlink()
    printed = call("report", run, "--device", "cpu").out
    after = json.loads((run / "result.json").read_text())
    assert (after["test/error"], after["test/bound"]) == (before["test/error"], before["test/bound"])
    assert (run / "figures" / "samples.png").is_file()
    assert "test error" in printed


def test_sample_writes_an_image_grid_and_arrays(run: Path, tmp_path: Path, call: Call) -> None:
    call("sample", run, "--num-samples", "9", "--y", "3", "--out", tmp_path / "threes.png")
    with Image.open(tmp_path / "threes.png") as image:
        assert image.size == (3 * 10 + 2, 3 * 10 + 2)  # 8x8 images, two pixels apart
    with np.load(tmp_path / "threes.npz") as arrays:
        assert arrays["x"].shape == (9, 1, 8, 8)
        assert arrays["y"].tolist() == [3] * 9
    call("sample", run, "--out", tmp_path / "v1.2")
    assert (tmp_path / "v1.2.npz").is_file()
    call("sample", run)
    assert (run / "samples.png").is_file()
    with np.load(run / "samples.npz") as arrays:
        assert len(set(arrays["y"].tolist())) > 1


@pytest.mark.filterwarnings("ignore:Posterior collapse")  # one epoch teaches little
def test_m1_has_no_classes_to_sample(tmp_path: Path, call: Call) -> None:
    assert "bound on log p(x)" in call("train", "m1", *TINY, "--num-samples", "2", "--out", tmp_path / "run").out
    assert "M1 does not generate examples of one class" in call("sample", tmp_path / "run", "--y", "1", status=2).err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Posterior collapse", "ignore:The fit is worse")
def test_every_stage_of_m1m2_is_described_evaluated_and_sampled(tmp_path: Path, call: Call) -> None:
    out = tmp_path / "run"
    call("train", "m1m2", *TINY, *TINY_M1, "--out", out)
    results = [out / stage / "result.json" for stage in ("m1", "stacked")]
    for result in results:
        result.write_text(json.dumps(json.loads(result.read_text()) | {"test/bound": None}))
    call("report", out)
    assert all(json.loads(result.read_text())["test/bound"] < 0 for result in results)
    assert "stage       stacked" in call("info", out).out
    call("sample", out, "--y", "2")
    results[1].unlink()
    assert "is not finished; continue with: pyro-ssvae train m1m2 --resume" in call("report", out, status=2).err


@pytest.mark.parametrize(("number", "during"), [(signal.SIGINT, "report"), (signal.SIGTERM, "training")])
def test_an_interruption_saves_and_says_how_to_continue(
    number: signal.Signals, during: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell takes from commands in the background
    with monkeypatch.context() as patch:
        if during == "training":
            patch.setattr(RunFolder, "write_metrics", interrupt)
        else:
            patch.setattr("pyro_ssvae.cli.main.report", interrupt)
        captured = call("train", "m2", *TINY, "--out", tmp_path / "run", status=130)
    assert f"Continue with: pyro-ssvae train m2 --resume {tmp_path / 'run'}\n" in captured.out
    assert "resume=True" not in captured.err
    assert ("The state is saved.\n" in captured.err) == (during == "training")
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "run" / "checkpoints" / "last.pt").is_file()
    call("report", tmp_path / "run", status=2)
    call("train", "m2", "--resume", tmp_path / "run")


@pytest.mark.parametrize("command", ["m2", "m1", "m1m2", "ddgm", "ddgm_2d"])
def test_help_fits_two_screens_and_help_all_names_every_setting(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as ended:
            main(["train", command, flag])
        assert ended.value.code == 0
        texts[flag] = capsys.readouterr().out
    lines = texts["--help"].splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 100
    assert f"pyro-ssvae train {command} --resume runs/NAME" in texts["--help"]
    assert "--training." not in texts["--help"].split("options:")[1]
    args = parse_flags(command, [])
    for name in args.values:
        if not name.startswith("training."):
            name = name.replace("_", "-")
        assert f"--{name} " in texts["--help-all"] or f"--{name}\n" in texts["--help-all"], name


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("info nowhere", "holds no run"),
        ("report nowhere", "holds no run"),
        ("sample nowhere", "holds no run"),
        ("info nowhere --verbose", "unrecognized arguments: --verbose"),
        ("report", "required: RUN"),
        ("train m3", "invalid choice: 'm3'"),
        ("train m2 --data nonsense", "digits"),
        ("train m2 --data nothing.npz", "nothing.npz"),
        ("train m2 digitz", "There is no data set named 'digitz'"),
        ("train m2 --config nowhere.yaml", "nowhere.yaml"),
        ("train m2 --resume nowhere", "holds no run"),
        ("train m2 --no-such-flag", "There is no flag --no-such-flag."),
        ("train m2 --num-label 5", "Did you mean --num-labels?"),
        ("train m2 --kl_peak=3", "Did you mean --training.kl_peak?"),
        ("train m2 --max-steps 100", "Did you mean --training.max_steps?"),
        ("train m2 --max-epochs many", "'many' is not a whole number"),
        ("train m2 --max-epochs 0", "--max-epochs 0 is too small"),
        ("train m2 --hidden-dims wide", "'wide' is not a list of whole numbers"),
        ("train m2 --likelihood poison", "bernoulli"),
        ("train m2 --device toaster", "toaster"),
        ("train m2 --training.batch_size -5", "--training.batch_size -5"),
        ("train m2 --training.kl_warmup 2", "--training.kl_warmup 2.0 must be at least 0 and at most 1"),
        ("train m2 --data digits --num-labels -1", "--num-labels -1"),
        ("train m2 --data digits --alpha -1", "--alpha -1.0"),
        ("train m2 --data digits --latent-dim 0", "--latent-dim 0"),
        ("train m1 --num-samples -1", "--num-samples: -1 must be at least 0"),
        ("train m1m2 --num-samples -1", "--num-samples: -1 must be at least 0"),
        ("train m1m2 --joint-epochs -1", "--joint-epochs: -1 must be at least 0"),
        ("train m1m2 --m1-epochs 0", "--m1-epochs: 0 must be at least 1"),
        (
            "train m1m2 --m1 nowhere --m1-epochs 1 --m1-latent-dim 3",
            "--m1-epochs, --m1-latent-dim: no effect with --m1",
        ),
        ("train m1m2 --data digits --latent-dim 0", "--latent-dim 0"),
        ("train m1m2 --data digits --alpha -1", "--alpha -1.0"),
        ("train m1m2 --data digits --importance-weighted", "--num-particles 1"),
        ("train ddgm --num-samples -1", "--num-samples: -1 must be at least"),
        ("train ddgm --num-labels -1", "--num-labels: -1 must be at least"),
        ("train ddgm_2d --data circle", "--data"),
        ("train ddgm_2d --frames -1", "--frames"),
        ("train ddgm_2d --num-samples 1", "--num-samples"),
        ("train ddgm_2d --generator-rate -1", "--generator-rate -1.0 must be above 0"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(
    command: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.chdir(tmp_path)
    error = call(*command.split(), status=2).err
    assert words in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, so --cuda is no error")
def test_cuda_without_gpu_is_a_clear_error(call: Call) -> None:
    assert "no CUDA device" in call("train", "m2", "--cuda", status=2).err


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy images of two colours, ``train`` and ``new``, and a model of those in ``train``."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(140):
        name, part = ("green", "red")[number % 2], "train" if number < 100 else "new"
        image = rng.integers(0, 120, (8, 8, 3), dtype=np.uint8)
        image[..., 1 - number % 2] += 120
        file = folder / part / ("unlabelled" if number % 10 > 7 else name) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    size = ["--image-size", "8", "--training.max_steps", "20"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_ssvae.plots.style.to_png", lambda figure: b"")
        assert main(["train", "m2", str(folder / "train"), *size, *TINY[4:], "--out", str(folder / "run")]) == 0
    return folder


def test_a_folder_of_images_is_described_classified_and_generated(photos: Path, tmp_path: Path, call: Call) -> None:
    run, new = str(photos / "run"), photos / "new"
    captured = call("report", run)
    assert "2 classes: 0 green (32 labels), 1 red (32)\n84 training images are few for images in col" in captured.out
    assert "poor samples. Photographs are classified better by --features efficientnet_lite0.\n" in captured.out
    assert "Training the classifier on the 64 labels alone, for comparison.\n" in captured.err
    assert "classes     0 green, 1 red\n" in call("info", run).out
    call("sample", run, "-n", "3", "--y", "red", "--out", tmp_path / "red")
    assert np.load(tmp_path / "red.npz")["y"].tolist() == [1, 1, 1]
    error = call("sample", run, "--y", "blue", status=2).err
    assert error == "error: --y blue is no class; the classes are green, red.\n"
    call("predict", run, new, "--out", tmp_path / "new.csv")
    rows = [line.split(",") for line in (tmp_path / "new.csv").read_text().splitlines()]
    assert rows[0] == ["file", "predicted", "p(green)", "p(red)"]
    files = sorted(str(file.relative_to(new)) for file in new.rglob("*.png"))
    assert sorted(row[0] for row in rows[1:]) == files
    images = {file: np.asarray(Image.open(new / file)).mean((0, 1)) for file in files}
    assert all(row[1] == ("green", "red")[int(images[row[0]][0] > images[row[0]][1])] for row in rows[1:])
    assert all(float(row[2]) + float(row[3]) == pytest.approx(1.0, abs=1e-4) for row in rows[1:])


def test_a_single_image_is_classified(photos: Path, tmp_path: Path, call: Call) -> None:
    run, file = str(photos / "run"), next((photos / "new" / "red").glob("*.png"))
    rows = call("predict", run, file).out.splitlines()
    assert rows[0] == "file,predicted,p(green),p(red)"
    assert [row.split(",")[:2] for row in rows[1:]] == [[file.name, "red"]]
    (tmp_path / "cut.PNG").write_bytes(file.read_bytes()[:60])
    assert "cannot be read: cut.PNG (" in call("predict", run, tmp_path / "cut.PNG", status=2).err


@pytest.mark.filterwarnings("ignore:Posterior collapse")
def test_training_may_leave_damaged_images_out(photos: Path, tmp_path: Path, call: Call) -> None:
    folder = shutil.copytree(photos / "train", tmp_path / "train")
    (folder / "green" / "!.png").write_bytes(b"\x89PNG")  # the first file
    size = ["--image-size", "8", "--training.max_steps", "2", *TINY[4:], "--out", tmp_path / "run"]
    error = call("train", "m1", folder, *size, status=2).err
    assert "1 of 101 images" in error
    assert "leave them out by --on-error 'skip'." in error
    with pytest.warns(UserWarning, match=r"green/!.png .* They are left out"):
        call("train", "m1", folder, "--on-error", "skip", *size)
    assert RunFolder(tmp_path / "run").read_config()["flags"]["likelihood"] == "discretised_logistic"  # of colour


def test_images_are_refused_by_a_model_of_values_in_other_units(tmp_path: Path, call: Call) -> None:
    x = np.random.default_rng(0).normal(size=(30, 8, 8))
    np.savez(tmp_path / "a.npz", x_train=x, y_train=np.arange(30) % 2)
    size = ["--training.max_steps", "1", "--likelihood", "gaussian", *TINY[4:]]
    call("train", "m2", tmp_path / "a.npz", *size, "--out", tmp_path / "run")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    error = call("predict", tmp_path / "run", tmp_path / "a.png", status=2).err
    assert "values lie between 0 and 1, and those of the training data did not" in error


def test_errors_on_folders_and_npz_files(photos: Path, tmp_path: Path, call: Call) -> None:
    run, new = str(photos / "run"), photos / "new"
    captured = call("evaluate", run, new)
    assert captured.out.splitlines()[0] == "error           0.00% of 32 images"
    assert captured.err == "8 images without a label are left out\n"
    files = sorted(file for file in new.rglob("*.png") if file.parent.name != "unlabelled")
    x, wrong = np.stack([np.asarray(Image.open(file)) for file in files]), [1 - (f.parent.name == "red") for f in files]
    np.savez(tmp_path / "a.npz", x=x, y=np.array(["green", "red"])[wrong])
    assert call("evaluate", run, tmp_path / "a.npz").out.splitlines()[0] == "error           100.00% of 32 rows"
    for data, label, words in (
        (tmp_path / "a.npz", ["--label", "y"], "a.npz is no table, and has labels of its own"),
        (new / "unlabelled", [], "None of the 8 images has a label in"),
        (
            tmp_path / "b.npz",
            [],
            "b.npz does not exist; a table, a file or folder of rows, an .npz file, an image or a",
        ),
    ):
        assert words in call("evaluate", run, data, *label, status=2).err


def test_flags_in_a_file_are_checked_as_those_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "flags.yaml"
    for text, words in (
        ("latent_dims: 3", "There is no flag --latent-dims. Did you mean --latent-dim?"),
        ("training:\n  batch_size: many", "'many' is not a whole number"),
        ("just words", "must hold values by name"),
        ("label: no", r'label: false is a truth value in YAML, .* Put a word into quotation marks, label: "no"'),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            parse_flags("m2", ["--config", str(file)])
    file.write_text("out: ~/runs/mine\nlabel: ~\n")
    args = parse_flags("m2", ["--config", str(file)])
    assert (args.out, args.label) == (str(Path.home() / "runs" / "mine"), None)
    file.write_text("pure: true\nhidden_dims: [7, 5]\ntraining:\n  learning_rate: 1e-2\n")
    args = parse_flags("m2", ["--config", str(file), "--hidden-dims", "[9]"])
    assert (args.pure, args.hidden_dims, args.classifier, args.training.learning_rate) == (True, [9], "mlp", 0.01)


def test_one_seed_governs_split_weights_and_training() -> None:
    def train(args: Flags) -> None:
        seeds.append((args.seed, args.training.seed))

    seeds: list[tuple[int, int | None]] = []
    assert run_command(train, "m2", ["--seed", "3", "--out", "unused"]) == 0
    assert seeds == [(3, 3)]


def test_module_is_the_console_script() -> None:
    found = subprocess.run([sys.executable, "-m", "pyro_ssvae", "--help"], capture_output=True, text=True, check=True)
    assert "pyro-ssvae train m2" in found.stdout


def test_features_stand_for_images_in_training_and_prediction(photos: Path, tmp_path: Path, call: Call) -> None:
    run, data = str(tmp_path / "run"), ["--image-size", "8", "--data-dir", str(tmp_path)]
    steps = ["--training.max_steps", "40", "--training.learning_rate", "0.01", *TINY[4:], "--hidden-dims", "[64]"]
    steps += ["--features", "efficientnet_lite0", "--out", run]
    call("train", "m2", photos / "train", *data, *steps)
    assert len([*(tmp_path / "features").iterdir()]) == 3
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["features"]["network"], result["likelihood"]) == ("efficientnet_lite0", "gaussian")
    assert float(call("evaluate", run, photos / "new").out.split()[1].rstrip("%")) < 20.0
    command = ["train", "m2", photos / "train", *data, *steps[:-2], "--features", "resnet19"]
    assert "resnet19" in call(*command, status=2).err
