"""Estimators, readers of tables and folders, and commands, with generated input; see ``faults.py``."""

from __future__ import annotations

import contextlib
import gzip
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fault_inputs import EXAMPLES, LABELS, attempt, check_data, make_base, make_values, shorten, use_model
from fault_runs import Command, Failure, check_ending, choose
from PIL import Image

import pyro_ssvae as ss
from pyro_ssvae.estimators import DDGMDensity, M1M2Classifier, M1Transformer, M2Classifier

Generator = np.random.Generator
_ESTIMATORS = (M2Classifier, M1M2Classifier, M1Transformer, DDGMDensity)
_METHODS = "predict predict_proba predict_log_proba transform impute score score_samples sample inverse_transform"
_TRAIN = "--label y --latent-dim 2 --hidden-dims [8] --training.max_steps 3 --device cpu".split()
_MODELS = (["m2", "--data"], ["m1", "--num-samples", "2", "--data"], ["m1m2", "--m1-epochs", "1", "--data"])
_DATA = {"num_labels": ["all", 0, 1, 4, 1000], "num_validation": [0, None, 2, 100], "num_test": [0, None, 2, 100]}
_DATA |= {"num_classes": [None, 1, 2, 5], "balanced": [True, False], "seed": [0, 1]}


_CELLS: dict[str, Callable[[Generator, int], list[str]]] = {
    "number": lambda rng, n: [f"{one:.4g}" for one in rng.normal(size=n) * 10.0 ** choose([0, 0, 0, 3, -30, 300], rng)],
    "whole": lambda rng, n: [str(one) for one in rng.poisson(3, n)],
    "word": lambda rng, n: [choose(["red", "green", "grün", 'say "hi"', "a\nb", "NA", " red "], rng) for _ in range(n)],
    "comma": lambda rng, n: [f"{one:.2f}".replace(".", ",") for one in rng.normal(size=n)],
    "thousands": lambda rng, n: [f"{one:,}" for one in rng.integers(0, 10**6, n)],
    "unit": lambda rng, n: [f"{one:.1f} kg" for one in rng.normal(size=n)],
    "yes": lambda rng, n: [choose(["true", "false", "True", ""], rng) for _ in range(n)],
    "date": lambda rng, n: [f"2024-01-{1 + one % 28:02}" for one in range(n)],
    "name": lambda rng, n: [f"name {one}" for one in range(n)],
    "empty": lambda rng, n: [""] * n,
    "constant": lambda rng, n: ["7"] * n,
    "infinite": lambda rng, n: [choose(["1", "2", "inf", "-Infinity", "1e999"], rng) for _ in range(n)],
    "mixed": lambda rng, n: [choose(["1", "2", "3", "x", "", "?", "#N/A", "0x1F"], rng) for _ in range(n)],
    "huge": lambda rng, n: [str(10 ** int(rng.integers(1, 40))) for _ in range(n)],
}
"""Columns of n rows of a text file."""
_COMMON = (*["number"] * 6, "whole", "word")
_CLASSES = ("a b", "0 1 ?", "3 7", "? ?", "a", "-1 1", "0.5 1.5", *["a b c ?"] * 7)  # ? is no label

_FAULTS: dict[str, Callable[[str], str]] = {
    "twice": lambda text: text.replace("c0", "y", 1),
    "no label": lambda text: text.replace("y", "z", 1),
    "no header": lambda text: text.partition("\n")[2],
    "short": lambda text: text.strip()[:-3],
    "long": lambda text: f"{text}1,2,3;4;5\t6\t7\n",
    "wide": lambda text: "".join(f"{line},{','.join(map(str, range(10_000)))}\n" for line in text.splitlines()[:4]),
    "blank": lambda text: f"\n\n{text}\n\n\n",
    "comment": lambda text: f"# made by\n{text}",
    "quote": lambda text: f'{text}"open',
    "null": lambda text: f"{text}\0",
    "nothing": lambda text: "",
    "header only": lambda text: text.partition("\n")[0],
    "index": lambda text: "".join(f"{i or ''},{line}\n" for i, line in enumerate(text.splitlines())),
    "spaces": lambda text: text.replace("c", " c"),
    "decimal": lambda text: text.translate(str.maketrans(",.", ";,")),
    "long cell": lambda text: text.replace("c0", "c" * 2**17, 1),
    "utf-16": lambda text: text,
}
"""Faults of the text of a table."""


def make_csv(rng: Generator) -> tuple[bytes, str]:
    """Return a text file of a table with a column ``y`` of labels, one in three with a fault, and what it is."""
    rows, common = choose([0, 1, 2, 10, 30, 30, 120], rng), rng.random() < 0.6
    kinds = [choose(_COMMON if common else [*_COMMON, *_CELLS], rng) for _ in range(int(rng.integers(1, 6)))]
    table = pd.DataFrame({f"c{i}": pd.Series(_CELLS[kind](rng, rows), dtype=object) for i, kind in enumerate(kinds)})
    table = table.mask(rng.random(table.shape) < 0.05)
    labels = choose(_CLASSES, rng).replace("?", "").split(" ")
    table["y"] = [labels[i % len(labels)] for i in range(rows)]
    separator, ends = choose([",", ",", ";", "\t", "|", " "], rng), choose(["\n", "\r\n", "\r"], rng)
    encoding = choose([*["utf-8"] * 4, "utf-8-sig", "cp1252"], rng)
    fault = choose(list(_FAULTS), rng) if rng.random() < 0.33 else ""
    text = table.to_csv(index=False, sep="," if fault in ("wide", "index", "decimal") else separator)
    text = _FAULTS[fault](text) if fault else text
    words = f"{rows} rows of {', '.join(kinds)}, labels {labels}, separator {separator!r}, {encoding}, fault {fault!r}"
    return text.replace("\n", ends).encode("utf-16" if fault == "utf-16" else encoding, "replace"), words


def _write_table(folder: Path, rng: Generator) -> tuple[Path, str]:
    """Write a generated table as a file, and return its path and what it is."""
    content, words = make_csv(rng)
    path = folder / f"table{choose([*['.csv'] * 6, '.csv.gz', '.tsv', '.CSV', *['.parquet'] * 2, '.txt', ''], rng)}"
    if path.suffix == ".parquet" and rng.random() < 0.8:
        x, y = make_base(rng)
        kind = choose(list(EXAMPLES), rng)
        try:
            table = pd.DataFrame(EXAMPLES[kind](x, rng)).rename(columns=str)
            table.assign(y=LABELS["words"](y, rng)[: len(table)]).to_parquet(path)
            return path, f"Parquet of {kind}"
        except Exception:  # what pandas does not write
            path = path.with_suffix(".csv")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path, f"{path.name}: {words}"


def _write_images(folder: Path, rng: Generator) -> None:
    """Write a folder of images, some of them strange."""
    parts = choose(["a b", "a", ".", "train/a train/b test/a", "unlabelled a b", "a/c b"], rng).split()
    modes = ["L", "L", "RGB", "RGBA", "P", "1", "I;16", "CMYK", "LA", "F"]
    for number in range(int(rng.integers(0, 13))):
        name = f"{choose(['x', 'a_', '.h', 'ü '], rng)}{number}"
        suffix = choose([".png", ".png", ".jpg", ".gif", ".tif", ".webp", ".bmp", ".PNG", ".txt"], rng)
        path = folder / choose(parts, rng) / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = choose([(8, 8), (8, 8), (1, 1), (9, 5), (1, 300), (40, 3)], rng)
        try:
            Image.new(choose(modes[: 3 if rng.random() < 0.7 else 10], rng), size, int(rng.integers(0, 2))).save(path)
        except Exception:  # what Pillow does not write
            path.write_bytes(rng.bytes(int(rng.integers(0, 30))))


class Tables:
    """Gives generated input to estimators, to the readers of tables and folders, and to commands."""

    def __init__(self, root: Path, numbers: Sequence[int]) -> None:
        self.root, self.values = root, make_values()
        rng = np.random.default_rng(0)
        table = pd.DataFrame(rng.normal(size=(60, 3)), columns=["c0", "c1", "c2"])
        table["c3"], table["y"] = np.where(table["c0"] > 0, "red", "green"), np.where(table["c1"] > 0, "a", "b")
        table.to_csv(root / "table.csv", index=False)
        for name, label in (("m2", ["--num-labels", "20"]), ("m1", ["--num-samples", "2"])):
            argv = ["train", name, str(root / "table.csv"), *_TRAIN, *label, "--out", str(root / name)]
            check_ending(Command(argv).wait(), f"train {name}:", (0,))

    def __call__(self, number: int, rng: Generator, folder: Path) -> None:
        """Run a case."""
        ways = [*[self._fit] * 10, *[self._read_table] * 5, self._read_folder, self._read_arrays]
        ways += [self._use_command] * 3
        ways[number % len(ways)](rng, folder)

    def _fit(self, rng: Generator, folder: Path) -> None:
        """Fit an estimator with strange examples, labels or parameters, and use it."""
        x, y = make_base(rng)
        aspect = choose(["X", "X", "y", "parameters", "later", "again", "two"], rng)
        estimator, given = self._make_estimator(rng, aspect == "parameters")
        X, labels, words = _vary(x, y, rng, examples=aspect in ("X", "two"), labels=aspect in ("y", "two"))
        fit = getattr(estimator, choose(["fit", "partial_fit"], rng), estimator.fit)
        words = f"{type(estimator).__name__}({given}).{fit.__name__}, {words}"
        if attempt(words, fit, X, labels) is None:
            return
        if aspect == "again":
            estimator.set_params(**{"warm_start": True} if hasattr(estimator, "warm_start") else {})
            other, labels, changed = _vary(x, y, rng)
            words = f"{words}, then {changed}"
            X = X if attempt(words, fit, other, labels) is None else other
        for _ in range(2):
            given_x, _, later = _vary(x, y, rng, labels=False) if aspect == "later" else (X, y, "the same X")
            self._use(estimator, given_x, y, rng, f"{words}, later {later}:")

    def _make_estimator(self, rng: Generator, strange: bool) -> tuple[Any, str]:
        """Return an estimator that trains briefly, and the parameters that are strange."""
        kind = choose(_ESTIMATORS, rng)
        names = list(kind().get_params())
        quick = {"max_steps": int(rng.integers(2, 6)), "hidden_dims": (8,), "device": "cpu", "random_state": 0}
        quick |= {"max_time": 5.0} | ({"class_prior": "uniform"} if rng.random() < 0.9 else {})
        chosen = rng.choice(names, size=int(rng.integers(1, 3)) if strange else 0, replace=False)
        given = {str(name): choose(self.values, rng)() for name in chosen}
        words = ", ".join(f"{name}={shorten(value)}" for name, value in given.items())
        return kind(**{name: value for name, value in quick.items() if name in names} | given), words

    def _use(self, estimator: Any, X: Any, y: Any, rng: Generator, words: str) -> None:
        """Call a method of a trained estimator, and check what it returns."""
        name = choose([one for one in _METHODS.split() if hasattr(estimator, one)], rng)
        args: tuple[Any, ...] = (X,)
        if name == "sample":
            args = (choose(self.values, rng)() if rng.random() < 0.5 else 3,)
            args += (choose(self.values, rng)(),) if hasattr(estimator, "classes_") and rng.random() < 0.3 else ()
        elif name == "score":
            args = (X, _vary(X, y, rng, examples=False)[1])
        words = f"{words} {name}({', '.join(map(shorten, args))})"
        found = attempt(words, getattr(estimator, name), *args)
        if found is not None:
            _check(estimator, name, found, np.zeros((args[0], 1)) if name == "sample" else X, words)

    def _read_table(self, rng: Generator, folder: Path) -> None:
        options = _choose_options(rng) | {"label": choose(["y", "y", "y", "y", None, "c0", "Y"], rng)}
        if rng.random() < 0.6:
            source, words = _write_table(folder, rng)
        else:
            source, labels, words = _vary(*make_base(rng), rng)
            with contextlib.suppress(Exception):  # what is no DataFrame is refused as it is
                source = pd.DataFrame(source).rename(columns=lambda name: f"c{name}").assign(y=labels)
        if rng.random() < 0.15:
            options["test"] = source if rng.random() < 0.5 else _write_table(folder, rng)[0]
        self._read(ss.SemiSupervisedData.from_table, words, source, **options)

    def _read_folder(self, rng: Generator, folder: Path) -> None:
        _write_images(folder / "images", rng)
        options = _choose_options(rng) | {"image_size": choose([8, 8, 1, 5], rng)}
        options |= {"classes_in_names": bool(rng.random() < 0.2), "on_error": choose(["raise", "skip", "skip"], rng)}
        options.pop("num_classes", None)
        self._read(ss.SemiSupervisedData.from_folder, "images", folder / "images", **options)

    def _read_arrays(self, rng: Generator, folder: Path) -> None:
        x, y, words = _vary(*make_base(rng), rng)
        self._read(ss.SemiSupervisedData.from_arrays, words, x, y)

    def _read(self, reader: Callable[..., Any], words: str, *args: Any, **options: Any) -> None:
        """Read data, and raise ``Failure`` unless, where it was accepted, it fits a model."""
        words = f"{reader.__name__}({words}; {options})"
        data = attempt(words, reader, *args, **options)
        if data is None:
            return
        attempt(words, check_data, data)
        small = {"latent_dim": 2, "hidden_dims": (4,), "likelihood": "auto"}
        kind = ss.M1 if data.num_classes is None else ss.M2
        model = attempt(f"{words} is accepted, for_data", kind.for_data, data, **small)
        if model is not None:
            attempt(f"{words} is accepted, the model", use_model, model.eval())

    def _use_command(self, rng: Generator, folder: Path) -> None:
        path, words = _write_table(folder, rng)
        if rng.random() < 0.3:  # a table that fits, with some cells changed
            table = pd.read_csv(self.root / "table.csv").astype(object)
            table.iloc[int(rng.integers(60)), int(rng.integers(5))] = choose(["x", None, "1,5", "inf", -7, ""], rng)
            path, words = folder / "rows.csv", "cells of the table of training changed"
            table[choose([list(table), list(table)[::-1], list(table)[1:]], rng)].to_csv(path, index=False)
        run, number = (
            str(self.root / choose(["m2", "m2", "m1", "none"], rng)),
            choose("3 3 -1 0 9999999999 x 1.5".split(), rng),
        )
        out = folder / choose(["out.csv", "out", "none/out.csv", "."], rng) if rng.random() < 0.6 else None
        output = ["--out", str(out)] if out else []
        argv = {
            "predict": ["predict", run, str(path), *choose([[], ["--least-sure", number]], rng), *output],
            "evaluate": ["evaluate", run, str(path), "--label", choose(["y", "y", "c3", "c0", "none", ""], rng)],
            "sample": ["sample", run, "-n", number, "--y", choose(["a", "0", "9", "-1", ""], rng), *output],
            "train": ["train", *choose(_MODELS, rng), str(path), *_TRAIN, "--out", str(folder / "run")],
        }[choose(["predict", "predict", "evaluate", "sample", "train"], rng)]
        words = f"{' '.join(argv)[:200]} ({words}):"
        ended = Command(argv).wait()
        check_ending(ended, words)
        if ended.status == 2 and len(ended.text.strip().splitlines()) > 1 and argv[0] != "train":
            raise Failure("foreign", f"{words} more than one line: {ended.text}")
        if ended.status == 0 and argv[0] == "predict" and (out is None or out.is_file()):
            found = pd.read_csv(out or io.StringIO(ended.text)).filter(like="p(").sum(axis=1)
            if not np.allclose(found, 1.0, atol=1e-4):
                raise Failure("different", f"{words} probabilities sum to {found.iloc[:3].tolist()}")


def _vary(x: Any, y: Any, rng: Generator, *, examples: bool = True, labels: bool = True) -> tuple[Any, Any, str]:
    """Return strange examples and labels, or those given, and what they are."""
    kind = choose(list(EXAMPLES), rng) if examples else "the numbers"
    label = choose(["the numbers", *LABELS], rng) if labels else "the numbers"
    return (
        EXAMPLES[kind](x, rng) if kind in EXAMPLES else x,
        LABELS[label](y, rng) if label in LABELS else y,
        f"X={kind}, y={label}",
    )


def _choose_options(rng: Generator) -> dict[str, Any]:
    return {name: choose(values, rng) for name, values in _DATA.items() if rng.random() < 0.3}


def _check(estimator: Any, name: str, found: Any, X: Any, words: str) -> None:
    """Raise ``Failure`` unless a method returned finite numbers, or classes, of the right shape."""
    length = X.shape[0] if hasattr(X, "shape") else len(X)
    classes = getattr(estimator, "classes_", np.arange(0))
    if name == "sample" and len(classes):
        found, labels = found
        if not (len(labels) == len(found) and np.isin(labels, classes).all()):
            raise Failure("different", f"{words} gives classes {labels}")
    found = np.asarray(found)
    shapes = {"predict_proba": (length, len(classes)), "predict": (length,), "score": (), "score_samples": (length,)}
    right = found.shape == shapes.get(name, found.shape) and (name == "score" or len(found) == length)
    if name == "predict":
        right &= bool(np.isin(found, classes).all())
    elif found.dtype != object:
        right &= bool((~np.isnan(found) if name == "predict_log_proba" else np.isfinite(found)).all())
    if name == "predict_proba" and right:
        right = bool(np.allclose(found.sum(1), 1.0, atol=1e-5) and (found >= 0).all())
    if not right:
        raise Failure("different", f"{words} gives {found.dtype} {found.shape}: {found.ravel()[:4]}")
