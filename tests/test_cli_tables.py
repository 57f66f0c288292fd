"""Tables on the command line: training, predictions, errors, samples, and wrong use."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy
import yaml
from sklearn.datasets import load_wine

import pyro_ssvae
from pyro_ssvae.cli.commands import parse_flags
from pyro_ssvae.cli.main import main
from pyro_ssvae.distributions import Bernoulli, Gaussian, Mixed
from tests.commands import Call

SMALL = "--latent-dim 3 --hidden-dims [16] --training.max_steps 60 --training.learning_rate 0.01 --device cpu".split()
SHORT = [*SMALL, "--training.max_steps", "10"]
NAMES = np.array(["barolo", "grignolino", "barbera"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wine as a table with one label in three, and a model of it."""
    folder, wine = tmp_path_factory.mktemp("tables"), load_wine(as_frame=True)
    hue = pd.Series(np.where(wine.data["hue"] > 1.0, "bright", "dark"))
    table = wine.data.assign(hue=hue, cultivar=NAMES[wine.target])
    table.to_csv(folder / "all.csv", index=False)
    np.save(folder / "rows.npy", wine.data.to_numpy())
    table.assign(cultivar=table["cultivar"].where(table.index % 3 == 0)).to_csv(folder / "few.csv", index=False)
    command = ["train", "m2", str(folder / "few.csv"), "--label", "cultivar", "--out", str(folder / "run"), *SMALL]
    assert main(command) == 0
    return folder


def test_training_uses_every_label_and_a_likelihood_for_each_column(folder: Path) -> None:
    flags = yaml.safe_load((folder / "run" / "config.yaml").read_text())["flags"]
    assert (flags["num_labels"], flags["likelihood"], flags["label"]) == ("all", "auto", "cultivar")
    model = pyro_ssvae.load(folder / "run")
    assert isinstance(model.likelihood, Mixed)
    assert model.categories == {"hue": ("bright", "dark")}
    assert model.class_names == tuple(sorted(NAMES))


def test_resumed_and_reported(folder: Path, call: Call) -> None:
    call("train", "m2", "--resume", folder / "run", "--training.max_steps", "61")
    printed = call("report", folder / "run").out
    assert "3 classes: 0 barbera (16 labels), 1 barolo (20), 2 grignolino (24)\n" in printed
    assert "no results on test examples; --test FILE names some for a table" in printed
    assert "the classifier of the labels alone errs on" in printed


def test_a_reader_that_stops_early_is_no_error(folder: Path) -> None:
    command = [sys.executable, "-m", "pyro_ssvae", "predict", str(folder / "run"), str(folder / "all.csv")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()  # as head does after its lines
        assert process.stderr is not None
        told = process.stderr.read()
    assert (process.returncode, "pipe" in told.lower()) == (0, False), told


def test_predictions(folder: Path, call: Call) -> None:
    out = folder / "predictions.csv"
    captured = call("predict", folder / "run", folder / "all.csv", "--out", out)
    assert (captured.out, captured.err) == ("", f"178 rows in {out}\n")
    found, table = pd.read_csv(out), pd.read_csv(folder / "all.csv")
    columns = [f"p({name})" for name in sorted(NAMES)]
    assert found.columns.tolist() == ["row", "predicted", *columns]
    assert found["row"].tolist() == list(range(178))
    np.testing.assert_allclose(found[columns].sum(axis=1), 1.0, atol=1e-4)
    assert (found["predicted"] == np.sort(NAMES)[found[columns].to_numpy().argmax(1)]).all()
    assert (found["predicted"] == table["cultivar"]).mean() > 0.9
    printed = call("predict", folder / "run", folder / "all.csv", "--least-sure", "5").out
    (folder / "least.csv").write_text(printed)
    least = pd.read_csv(folder / "least.csv")
    largest = found[columns].max(axis=1)
    assert least["row"].tolist() == largest.sort_values(kind="stable").index[:5].tolist()


def test_predictions_of_a_parquet_file_are_written_as_parquet_and_npy(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.setattr("pyro_ssvae.cli.predictions._ROWS_AT_ONCE", 50)
    table = pd.read_csv(folder / "all.csv")
    table[table.columns[::-1]].to_parquet(tmp_path / "all.parquet", row_group_size=40)  # in another order
    expected = pyro_ssvae.load(folder / "run").predict_proba(table).numpy()
    for ending in ("parquet", "npy"):
        command = ["predict", folder / "run", tmp_path / "all.parquet"]
        call(*command, "--out", tmp_path / f"p.{ending}")
    found = pd.read_parquet(tmp_path / "p.parquet")
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), expected, atol=1e-6)
    np.testing.assert_allclose(found.iloc[:, 2:], expected, atol=1e-6)
    assert found["row"].tolist() == list(range(178))
    assert (found["predicted"] == np.sort(NAMES)[expected.argmax(1)]).all()
    table["hue"] = table["hue"].where(table.index != 120, "grey")
    table.to_csv(tmp_path / "grey.csv")
    assert "holds 'grey' in row 120 (" in call("predict", folder / "run", tmp_path / "grey.csv", status=2).err


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_training_and_prediction_from_arrays_that_stay_on_disk(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type, call: Call
) -> None:
    """Rows get the defaults of tables, and images of bytes those of images."""
    monkeypatch.setattr("pyro_ssvae.data.rows.MAX_DENSE", 1000)
    wine = load_wine()
    x = wine.data.astype(dtype)
    if dtype == np.uint8:
        x = (255 * (wine.data[:, :9] > 2.0)).astype(dtype).reshape(-1, 3, 3)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.where(np.arange(178) % 3 == 0, NAMES[wine.target], ""))
    data, run = tmp_path / "x.npy", tmp_path / "run"
    printed = call("train", "m2", data, "--label", tmp_path / "y.npy", "--out", run, *SHORT).out
    assert "60 labelled and 118 unlabelled" in printed
    flags = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["flags"]
    assert (flags["num_labels"], flags["likelihood"]) == ("all", "auto")
    assert isinstance(pyro_ssvae.load(run).likelihood, Gaussian if dtype == np.float32 else Bernoulli)
    call("predict", run, data, "--out", tmp_path / "p.npy")
    assert np.load(tmp_path / "p.npy").shape == (178, 3)
    captured = call("evaluate", run, data, "--label", tmp_path / "y.npy")
    right = np.sort(NAMES)[np.load(tmp_path / "p.npy").argmax(1)] == NAMES[wine.target]
    assert captured.out.split()[:4] == ["error", f"{1.0 - right[::3].mean():.2%}", "of", "60"]
    assert captured.err == "118 rows without a label are left out\n"


def test_predictions_are_written_to_links_and_pipes(folder: Path, tmp_path: Path, call: Call) -> None:
    command = ["predict", folder / "run", folder / "all.csv", "--out"]
    (tmp_path / "link.csv").symlink_to("file.csv")
    call(*command, tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE, text=True) as reader:
        call(*command, tmp_path / "pipe")
        assert reader.communicate()[0] == (tmp_path / "file.csv").read_text()
    assert (tmp_path / "pipe").is_fifo()


def test_the_folder_of_a_model_is_enough_to_use_it(folder: Path, tmp_path: Path, call: Call) -> None:
    shutil.copytree(folder / "run" / "model", tmp_path / "model")
    for run in (folder / "run", tmp_path / "model"):
        call("predict", run, folder / "all.csv", "--out", run / "p.npy")
        call("sample", run, "--out", run / "s.NPY")
    for name in ("p.npy", "s.NPY"):
        assert (np.load(folder / "run" / name) == np.load(tmp_path / "model" / name)).all()


def test_error_on_labelled_rows(folder: Path, call: Call) -> None:
    table = pd.read_csv(folder / "all.csv")
    predicted = pyro_ssvae.load(folder / "run").predict(table).numpy()
    wrong = np.sort(NAMES)[predicted] != table["cultivar"]
    lines = call("evaluate", folder / "run", folder / "all.csv", "--label", "cultivar").out.splitlines()
    assert lines[0].split() == ["error", f"{wrong.mean():.2%}", "of", "178", "rows"]
    assert lines[1].startswith("cross-entropy")
    assert lines[2] == f"error of barbera: {wrong[table['cultivar'] == 'barbera'].mean():.2%} of 48 rows"
    captured = call("evaluate", folder / "run", folder / "few.csv", "--label", "cultivar")
    assert "of 60 rows" in captured.out
    assert captured.err == "118 rows without a label are left out\n"
    (folder / "parts").mkdir()
    for number, part in enumerate((table[:100], table[100:])):
        part.to_parquet(folder / "parts" / f"{number}.parquet")
    assert call("evaluate", folder / "run", folder / "parts", "--label", "cultivar").out.splitlines() == lines
    assert "needs --label COLUMN" in call("evaluate", folder / "run", folder / "parts", status=2).err


def test_samples_are_rows_of_the_table(folder: Path, call: Call) -> None:
    out = folder / "samples.csv"
    assert call("sample", folder / "run", "-n", "300", "--out", out).out == ""
    samples, table = pd.read_csv(out), pd.read_csv(folder / "all.csv")
    assert samples.columns.tolist() == [*table.columns[:-1], "class"]
    assert set(samples["hue"]) == {"bright", "dark"}
    assert set(samples["class"]) == set(NAMES)
    numbers = table.columns[:-1].drop("hue")
    mean, std = table[numbers].mean(), table[numbers].std()
    assert ((samples[numbers].mean() - mean).abs() < 0.5 * std).all()
    assert (samples[numbers].std() / std).between(0.6, 1.7).all()
    call("sample", folder / "run", "-n", "5", "--y", "1", "--out", out)
    assert pd.read_csv(out)["class"].tolist() == ["barolo"] * 5
    for path, read in ((folder / "s.parquet", pd.read_parquet), (folder / "s.npy", np.load)):
        call("sample", folder / "run", "-n", "5", "--out", path)
        assert len(read(path)) == 5


@pytest.mark.filterwarnings("ignore:Posterior collapse")
@pytest.mark.slow
def test_classes_that_are_numbers_and_a_model_without_classes(folder: Path, tmp_path: Path, call: Call) -> None:
    table = pd.read_csv(folder / "all.csv").assign(cultivar=load_wine().target)
    table.assign(cultivar=table["cultivar"].where(table.index % 2 == 0)).to_csv(tmp_path / "a.csv", index=False)
    files = [tmp_path / "a.csv", "--label", "cultivar", "--test", tmp_path / "a.csv"]
    assert "60 labelled" in call("train", "m2", *files, *SMALL, "--num-labels", "60", "--out", tmp_path / "m2").out
    printed = call("evaluate", tmp_path / "m2", tmp_path / "a.csv", "--label", "cultivar").out
    assert float(printed.split()[1].rstrip("%")) < 15.0
    call("train", "m1", *files[:3], *SMALL, "--num-samples", "2", "--out", tmp_path / "m1")
    call("sample", tmp_path / "m1", "-n", "4", "--out", tmp_path / "m1.csv")
    assert pd.read_csv(tmp_path / "m1.csv").shape == (4, 13)
    assert call("predict", tmp_path / "m1", tmp_path / "a.csv").out.startswith("row,z1,z2")
    printed = call("evaluate", tmp_path / "m1", tmp_path / "a.csv", "--label", "cultivar", status=2)
    assert "This M1 has no classes, so it cannot classify." in printed.err


def test_samples_keep_all_digits_and_whole_numbers(tmp_path: Path, call: Call) -> None:
    x = np.stack([np.arange(60) % 2, 1234567.0 + 10.0 * np.arange(60)], 1)
    model = pyro_ssvae.M1.for_data(pyro_ssvae.SemiSupervisedData.from_arrays(x), latent_dim=2, likelihood="auto")
    pyro_ssvae.save(model, tmp_path / "model")
    call("sample", tmp_path / "model", "-n", "50", "--out", tmp_path / "s.csv")
    samples = pd.read_csv(tmp_path / "s.csv")
    assert samples["x1"].dtype.kind == "i"
    assert samples["x2"].nunique() > 40


@pytest.mark.parametrize("kind", [pyro_ssvae.M1, pyro_ssvae.DDGM])
def test_models_without_classes_give_latents_or_energies(kind: type, tmp_path: Path, call: Call) -> None:
    x = np.eye(5, 4, dtype=np.float32)
    model = kind.for_data(pyro_ssvae.SemiSupervisedData.from_arrays(x), latent_dim=2)
    pyro_ssvae.save(model, tmp_path / "model")
    np.save(tmp_path / "x.npy", x)
    command = ["predict", tmp_path / "model", tmp_path / "x.npy"]
    call(*command, "--out", tmp_path / "p.csv")
    found = pd.read_csv(tmp_path / "p.csv")
    expected = model.transform(x) if kind is pyro_ssvae.M1 else model.energy(x)[:, None]
    assert list(found) == (["row", "z1", "z2"] if kind is pyro_ssvae.M1 else ["row", "energy"])
    np.testing.assert_array_equal(found.iloc[:, 1:].to_numpy(np.float32), expected)
    assert f"--least-sure 2: this {kind.__name__} has no classes." in call(*command, "--least-sure", "2", status=2).err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["train", "m2", "all.csv"], "all.csv needs --label COLUMN"),
        (["train", "m2", "all.csv", "--label", "cultivr"], "no column cultivr. Did you mean cultivar?"),
        (["train", "m2", "nowhere.csv", "--label", "y"], "nowhere.csv"),
        (
            ["train", "m2", "--data", "digits", "--label", "y"],
            "--label: for tables and files of rows, and --data digits is none",
        ),
        (["train", "m2", "rows.npy"], "rows.npy needs --label FILE.npy with a label for each row, -1 where unknown."),
        (["train", "m2", "rows.npy", "--label", "cultivar"], "--label cultivar: rows.npy has no columns"),
        (["train", "m2", "rows.npy", "--label", "rows.npy", "--image-size", "8"], "--image-size 8 is for a folder of"),
        (["train", "m2", "nowhere.npy", "--label", "y.npy"], "nowhere.npy does not exist"),
        (["train", "m2", "--num-labels", "many"], "'many' is not a whole number, or all"),
        (
            ["train", "ddgm", "all.csv"],
            "8x8 pixels are needed. --image-size 32 enlarges those of a folder. For tables use DDGMDensity",
        ),
        (["predict", "run", "rows.csv"], "rows.csv"),
        (["predict", "run", "all.csv", "--out", "run"], "run is a folder; name a file in it."),
        (["predict", "run", "all.csv", "--out", "p.csv.gz"], "--out p.csv.gz must end in .csv, .parquet or .npy"),
        (["predict", "run", "all.csv", "--least-sure", "0"], "--least-sure=0 is too small"),
        (["predict", "nowhere", "all.csv"], "holds no run"),
        (["predict", "run"], "required: DATA"),
        (["evaluate", "run", "all.csv"], "all.csv needs --label COLUMN"),
        (["evaluate", "run", "rows.npy"], "rows.npy needs --label FILE.npy"),
        (
            ["evaluate", "run", "run/figures"],
            "run/figures is a folder of images, and the model is of examples of shape (13,)",
        ),
        (
            ["predict", "run", "al.csv"],
            "al.csv does not exist; a table, a file or folder of rows, an .npz file, an image or a folder of images is",
        ),
        (["evaluate", "run", "all.csv", "--label", "hue"], "holds the class 'bright', which is none of barbera"),
        (["sample", "run", "--seed", "-1"], "--seed -1 is too small"),
        (["sample", "run", "--out", "no/samples"], "The folder no of samples.npz does not exist"),
        (["explore", "run", "-o", "run"], "run is a folder; name a file in it"),
        (["export", "run", "--to", "all.csv"], "all.csv is a file, and a folder is needed"),
        (["sample", "run", "-n", "0", "--out", "s.csv"], "--num-samples=0 is too small"),
    ],
)
def test_wrong_use(words: list[str], text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    monkeypatch.chdir(folder)
    captured = call(*words, status=2)
    assert text in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == "" or words[0] in ("explore", "export")  # which say what data they read


def test_data_of_a_run_that_was_started_in_another_folder(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.chdir(folder)
    command = ["train", "m2", "few.csv", "--label", "cultivar", "--out", tmp_path / "run", *SHORT]
    call(*command, "--training.max_steps", "1")
    monkeypatch.chdir(tmp_path)
    error = call("report", "run", status=2).err
    assert "few.csv does not exist; a table is needed. Relative paths of a run start in" in error


def test_own_files_keep_all_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x_train=np.zeros((9, 2)), y_train=np.arange(9) % 3)
    for data, expected in ((str(tmp_path / "mine.npz"), "all"), (str(tmp_path), "all"), ("digits", 100)):
        assert parse_flags("m2", ["--data", data]).num_labels == expected


@pytest.mark.parametrize("data", ["cells", "cells/matrix.mtx", "parent", "cells/matrix.mtx --label type"])
def test_files_of_matrix_market_are_to_be_converted(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    counts = np.arange(6).reshape(3, 2)  # three genes of two cells
    for folder in ("cells", "parent/filtered"):
        (tmp_path / folder).mkdir(parents=True)
        scipy.io.mmwrite(tmp_path / folder / "matrix.mtx", scipy.sparse.csr_matrix(counts))
    monkeypatch.chdir(tmp_path)
    error = call("train", "m2", *data.split(), status=2).err
    assert len(error.splitlines()) == 1
    advice = re.search(r"Convert \S+ by (scipy.sparse.save_npz\(.*\.tocsr\(\)\)), or with names by scanpy", error)
    assert advice is not None
    exec(advice[1], {"scipy": scipy})  # noqa: S102
    assert (scipy.sparse.load_npz("cells.npz").toarray() == counts.T).all()
