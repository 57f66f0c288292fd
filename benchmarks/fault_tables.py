"""Generated tables, folders of images and command lines, besides estimators; see ``faults.py``."""

from __future__ import annotations

import contextlib
import gzip
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fault_estimators import EXAMPLES, LABELS, Estimators, attempt, make_base
from fault_inputs import check_data, make_values, use_model
from fault_runs import Ended, check_ending
from faults import Failure, choose
from PIL import Image

import pyro_ssvae as ss
from pyro_ssvae.cli.main import main

__all__ = ["Tables"]

Generator = np.random.Generator
_TRAIN = "--label y --latent-dim 2 --hidden-dims [8] --training.max_steps 3 --device cpu".split()
_MODELS = (["m2", "--data"], ["m1", "--num-samples", "2", "--data"], ["m1m2", "--m1-epochs", "1", "--data"])
_DATA = {"num_labels": ["all", 0, 1, 4, 1000], "num_validation": [0, None, 2, 100], "num_test": [0, None, 2, 100]}
_DATA |= {"num_classes": [None, 1, 2, 5], "balanced": [True, False], "seed": [0, 1]}


def _make_cells(rng: Generator, rows: int, kind: str) -> list[str]:
    """Return the cells of a column of a text file."""
    numbers = rng.normal(size=rows) * 10.0 ** int(rng.choice([0, 0, 0, 3, -30, 30, 300]))
    found = {
        "number": [f"{number:.4g}" for number in numbers],
        "whole": [str(number) for number in rng.poisson(3, rows)],
        "comma": [f"{number:.2f}".replace(".", ",") for number in rng.normal(size=rows)],
        "thousands": [f"{number:,}" for number in rng.integers(0, 10**6, rows)],
        "unit": [f"{number:.1f} kg" for number in rng.normal(size=rows)],
        "word": [choose(["red", "green", "grün", 'say ""hi""', "a\nb", "NA", " red "], rng) for _ in range(rows)],
        "yes": [choose(["true", "false", "True", ""], rng) for _ in range(rows)],
        "date": [f"2024-01-{1 + number % 28:02}" for number in range(rows)],
        "name": [f"name {number}" for number in range(rows)],
        "empty": [""] * rows,
        "constant": ["7"] * rows,
        "infinite": [choose(["1", "2", "inf", "-Infinity", "1e999"], rng) for _ in range(rows)],
        "mixed": [choose(["1", "2", "3", "x", "", "?", "#N/A", "0x1F"], rng) for _ in range(rows)],
        "huge": [str(10 ** int(rng.integers(1, 40))) for _ in range(rows)],
    }[kind]
    return ["" if rng.random() < 0.05 else cell for cell in found]


_KINDS = ("number",) * 6 + ("whole", "word") * 2
_KINDS += ("comma", "thousands", "unit", "yes", "date", "name", "empty", "constant", "infinite", "mixed", "huge")


def make_csv(rng: Generator) -> tuple[bytes, str]:
    """Return a text file of a table with a column ``y`` of labels, one in three with a fault, and what it is."""
    rows = int(choose([0, 1, 2, 10, 30, 30, 120], rng))
    kinds = [choose(_KINDS[:8] if rng.random() < 0.6 else _KINDS, rng) for _ in range(int(rng.integers(1, 6)))]
    columns = {f"c{i}": _make_cells(rng, rows, kind) for i, kind in enumerate(kinds)}
    labels = choose([["a", "b", ""], ["0", "1", ""], ["3", "7"], ["", ""], ["a"], ["-1", "1"], ["0.5", "1.5"]], rng)
    labels = ["a", "b", "c", ""] if rng.random() < 0.5 else labels
    columns["y"] = [labels[i % len(labels)] for i in range(rows)]
    names, separator = list(columns), choose([",", ",", ";", "\t", "|", " "], rng)
    ends, fault, encoding = choose(["\n", "\r\n", "\r"], rng), "", choose(["utf-8"] * 4 + ["utf-8-sig", "cp1252"], rng)
    lines = [[columns[name][i] for name in names] for i in range(rows)]
    if rng.random() < 0.33:
        faults = ["twice", "no label", "no header", "short", "long", "wide", "blank", "comment", "quote", "null"]
        fault = choose([*faults, "utf-16", "nothing", "index", "spaces", "decimal", "long cell", "header only"], rng)
    names = {"twice": [names[0], *names[:-1]], "no label": [*names[:-1], "z"], "spaces": [f" {n} " for n in names]}.get(
        fault, names
    )
    if fault in ("short", "long") and lines:
        lines[-1] = lines[-1][:-1] if fault == "short" else [*lines[-1], "1", "2"]
    if fault == "wide":
        names = [*names, *(f"w{i}" for i in range(10_000))]
        lines = [line + ["1"] * 10_000 for line in lines[:3]]
    if fault == "index":
        names, lines = ["", *names], [[str(i), *line] for i, line in enumerate(lines)]
    if fault == "decimal":
        separator, lines = ";", [[cell.replace(".", ",") for cell in line] for line in lines]
    quoted = [[f'"{cell}"' if set(cell) & set(f'{separator}"\n\r') else cell for cell in line] for line in lines]
    text = ends.join(separator.join(line) for line in [names, *quoted][fault == "no header" :]) + ends
    text = {"nothing": "", "header only": separator.join(names), "quote": text + '"open'}.get(fault, text)
    text = {"blank": ends * 2 + text + ends * 3, "comment": f"# made by{ends}{text}", "null": text + "\0"}.get(
        fault, text
    )
    text = text.replace("c0", "c" * 2**17, 1) if fault == "long cell" else text
    encoding = "utf-16" if fault == "utf-16" else encoding
    words = f"{rows} rows of {', '.join(kinds)}, labels {labels}, separator {separator!r}, {encoding}, fault {fault!r}"
    return text.encode(encoding, "replace"), words


def write_table(folder: Path, rng: Generator) -> tuple[Path, str]:
    """Write a generated table as a file, and return its path and what it is."""
    content, words = make_csv(rng)
    suffix = choose([".csv"] * 6 + [".csv.gz", ".tsv", ".CSV", ".parquet", ".parquet", ".txt", ""], rng)
    path = folder / f"table{suffix}"
    if suffix == ".parquet" and rng.random() < 0.8:
        x, y = make_base(rng)
        kind = choose(list(EXAMPLES), rng)
        try:
            table = pd.DataFrame(EXAMPLES[kind](x, rng)).rename(columns=str)
            table.assign(y=np.array(["", "a", "b", "c"])[y + 1][: len(table)]).to_parquet(path)
            return path, f"Parquet of {kind}"
        except Exception:  # what pandas does not write
            path = path.with_suffix(".csv")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path, f"{path.name}: {words}"


def make_folder(folder: Path, rng: Generator) -> None:
    """Write a folder of images, some of them strange."""
    parts = choose(
        [["a", "b"], ["a"], [""], ["train/a", "train/b", "test/a"], ["unlabelled", "a", "b"], ["a/c", "b"]], rng
    )
    modes = ["L", "L", "RGB", "RGBA", "P", "1", "I;16", "CMYK", "LA", "F"]
    for number in range(int(rng.integers(0, 13))):
        path = folder / choose(parts, rng) / f"{choose(['x', 'a_', '.h', 'ü '], rng)}{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = choose([(8, 8), (8, 8), (1, 1), (9, 5), (1, 300), (40, 3)], rng)
        suffix = choose([".png", ".png", ".jpg", ".gif", ".tif", ".webp", ".bmp", ".PNG", ".txt"], rng)
        image = Image.new(choose(modes[: 3 if rng.random() < 0.7 else 10], rng), size, int(rng.integers(0, 2)))
        try:
            image.save(path.with_suffix(suffix))
        except Exception:  # what Pillow does not write
            path.with_suffix(suffix).write_bytes(rng.bytes(int(rng.integers(0, 30))))


def run_main(argv: list[str]) -> Ended:
    """Return how a command of the console script ends in this process."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            status = main(argv)
        except SystemExit as stopped:
            status = stopped.code if isinstance(stopped.code, int) else 1
    return Ended(status, output.getvalue())


class Tables:
    """Gives generated input to estimators, to the readers of tables and folders, and to commands."""

    def __init__(self, seed: int, root: Path) -> None:
        self.seed, self.root, self.values = seed, root, make_values()
        self.estimators = Estimators()
        rng = np.random.default_rng(0)
        table = pd.DataFrame(rng.normal(size=(60, 3)), columns=["c0", "c1", "c2"])
        table["c3"], table["y"] = np.where(table["c0"] > 0, "red", "green"), np.where(table["c1"] > 0, "a", "b")
        table.to_csv(root / "table.csv", index=False)
        for name, label in (("m2", ["--num-labels", "20"]), ("m1", ["--num-samples", "2"])):
            argv = ["train", name, str(root / "table.csv"), *_TRAIN, *label, "--out", str(root / name)]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check_ending(run_main(argv), f"train {name}:", (0,))

    def __call__(self, number: int, folder: Path) -> None:
        """Run a case."""
        rng = np.random.default_rng((self.seed, 4, number))
        torch.manual_seed(number)
        ways = [*[self.estimators] * 10, *[self._read_table] * 5, self._read_folder, self._read_arrays]
        ways += [self._use_command] * 3
        way = ways[number % len(ways)]
        way(rng) if way is self.estimators else way(rng, folder)

    def _read_table(self, rng: Generator, folder: Path) -> None:
        options = {name: choose(values, rng) for name, values in _DATA.items() if rng.random() < 0.3}
        options["label"] = choose(["y", "y", "y", "y", None, "c0", "Y"], rng)
        if rng.random() < 0.6:
            source, words = write_table(folder, rng)
        else:
            x, y = make_base(rng)
            kind, label = choose(list(EXAMPLES), rng), choose(list(LABELS), rng)
            source, words = EXAMPLES[kind](x, rng), f"DataFrame of {kind}, labels {label}"
            try:
                source = pd.DataFrame(source).rename(columns=lambda name: f"c{name}").assign(y=LABELS[label](y, rng))
            except Exception:  # what is no DataFrame is refused as it is
                words = f"no DataFrame, but {kind}"
        if rng.random() < 0.15:
            options["test"] = source if rng.random() < 0.5 else write_table(folder, rng)[0]
        words = f"from_table({words}; {options})"
        data = attempt(ss.SemiSupervisedData.from_table, words, source, **options)
        self._use_data(data, words)

    def _read_folder(self, rng: Generator, folder: Path) -> None:
        make_folder(folder / "images", rng)
        options = {name: choose(values, rng) for name, values in _DATA.items() if rng.random() < 0.3}
        options = {name: value for name, value in options.items() if name != "num_classes"}
        options |= {"image_size": choose([8, 8, 1, 5], rng), "classes_in_names": bool(rng.random() < 0.2)}
        options["on_error"] = choose(["raise", "skip", "skip"], rng)
        words = f"from_folder({options})"
        self._use_data(attempt(ss.SemiSupervisedData.from_folder, words, folder / "images", **options), words)

    def _read_arrays(self, rng: Generator, folder: Path) -> None:
        x, y = make_base(rng)
        kind, label = choose(list(EXAMPLES), rng), choose(["", *LABELS], rng)
        given = (EXAMPLES[kind](x, rng), LABELS[label](y, rng) if label else y)
        words = f"from_arrays({kind}, {label or 'numbers'})"
        self._use_data(attempt(ss.SemiSupervisedData.from_arrays, words, *given), words)

    def _use_data(self, data: Any, words: str) -> None:
        """Raise ``Failure`` unless data that was accepted fits a model."""
        if data is None:
            return
        check_data(data)
        small = {"latent_dim": 2, "hidden_dims": (4,), "likelihood": "auto"}
        kind = ss.M1 if data.num_classes is None else ss.M2
        model = attempt(kind.for_data, f"{words} is accepted, for_data", data, **small)
        if model is not None:
            attempt(use_model, f"{words} is accepted, the model", model.eval())

    def _use_command(self, rng: Generator, folder: Path) -> None:
        path, words = write_table(folder, rng)
        if rng.random() < 0.3:  # a table that fits, with some cells changed
            table = pd.read_csv(self.root / "table.csv").astype(object)
            table.iloc[int(rng.integers(60)), int(rng.integers(5))] = choose(["x", None, "1,5", "inf", -7, ""], rng)
            path, words = folder / "rows.csv", "cells of the table of training changed"
            table[choose([list(table), list(table)[::-1], list(table)[1:]], rng)].to_csv(path, index=False)
        run = str(self.root / choose(["m2", "m2", "m1", "none"], rng))
        out = (
            ["--out", str(folder / choose(["out.csv", "out", "none/out.csv", "."], rng))] if rng.random() < 0.6 else []
        )
        number = str(choose([3, 3, -1, 0, 10**12, "x", 1.5], rng))
        argv = {
            "predict": ["predict", run, str(path), *choose([[], ["--least-sure", number]], rng), *out],
            "evaluate": ["evaluate", run, str(path), "--label", choose(["y", "y", "c3", "c0", "none", ""], rng)],
            "sample": ["sample", run, "-n", number, "--y", choose(["a", "0", "9", "-1", ""], rng), *out],
            "train": ["train", *choose(_MODELS, rng), str(path), *_TRAIN, "--out", str(folder / "run")],
        }[choose(["predict", "predict", "evaluate", "sample", "train"], rng)]
        words = f"{' '.join(argv)[:200]} ({words}):"
        ended = run_main(argv)
        check_ending(ended, words)
        if ended.status == 2 and len(ended.text.strip().splitlines()) > 1 and argv[0] != "train":
            raise Failure("foreign", f"{words} more than one line: {ended.text}")
        if ended.status == 0 and argv[0] == "predict":
            source = folder / "out.csv" if (folder / "out.csv").is_file() else io.StringIO(ended.text)
            found = pd.read_csv(source).filter(like="p(") if not out or not isinstance(source, io.StringIO) else None
            if found is not None and not np.allclose(found.sum(axis=1), 1.0, atol=1e-4):
                raise Failure("different", f"{words} probabilities sum to {found.sum(axis=1).iloc[:3].tolist()}")
