"""Types of single cells from counts of genes: M2Classifier beside scikit-learn's methods and SCANVI, on equal terms.

    OMP_NUM_THREADS=1 python benchmarks/cells.py --data FILE.npz --scanvi-python PATH  # seeds 0 to 9: half an hour

FILE.npz holds counts ``x``, cells by genes, and names of types ``y``. Splits are those of ``tables.py``, with five
labels of each type; seconds are processor time, of training with the choice of settings, and of prediction. PATH is the
Python of an environment with scvi-tools (``python -m venv DIR``, ``DIR/bin/pip install scvi-tools``); without it SCANVI
is left out. Fits are kept in a JSON file and not made again, except with ``--again``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from table_format import format_table
from tables import (
    DOCS,
    METHODS,
    Array,
    add_arguments,
    fit_quietly,
    format_difference,
    format_points,
    keep_fit,
    load_fits,
    score,
    split_rows,
    write_tables,
)

RESULTS = DOCS / "benchmarks" / "cells.json"
SCANVI = Path(__file__).with_name("scanvi.py")
COMPONENTS = 30  # of PCA


def standardise(x: Array, x_test: Array) -> tuple[Array, Array]:
    """Return standardised log(1 + x), x relative to the total of the cell."""
    totals = [rows.sum(1, keepdims=True).clip(1) for rows in (x, x_test)]
    x, x_test = (np.log1p(rows / total * np.median(totals[0])) for rows, total in zip((x, x_test), totals, strict=True))
    scaler = StandardScaler().fit(x)
    return scaler.transform(x), scaler.transform(x_test)


def find_components(x: Array, x_test: Array) -> tuple[Array, Array]:
    """Return principal components of the standardised rows, all in the same unit so that distances remain."""
    x, x_test = standardise(x, x_test)
    pca = PCA(min(COMPONENTS, *x.shape), random_state=0).fit(x)
    unit = pca.transform(x).std()
    return pca.transform(x) / unit, pca.transform(x_test) / unit


PREPARATIONS: dict[str, tuple[str, str, Callable[[Array, Array], tuple[Array, Array]]]] = {
    "m2": ("`M2Classifier`", "m2", lambda *both: both),
    "labels_alone": ("its classifier on labels alone", "labels_alone", lambda *both: both),
    "logistic": ("logistic regression", "logistic", standardise),
    "pca_logistic": ("PCA and logistic regression", "logistic", find_components),
    "spreading": ("PCA and label spreading", "spreading", find_components),
    "self_training": ("self-training", "self_training", standardise),
    "forest": ("random forest", "forest", standardise),
}
"""By name: what the table calls a method, its name in ``tables.py``, and what it sees of the counts."""
NAMES = {name: words for name, (words, _, _) in PREPARATIONS.items()} | {"scanvi": "SCANVI"}


def measure(method: str, x: Array, seen: Array, x_test: Array, y_test: Array, seed: int) -> dict[str, float]:
    """Fit one method, and return accuracy, macro-F1 and seconds of processor time."""
    _, kind, prepare = PREPARATIONS[method]
    started = time.process_time()
    x, x_test = prepare(x, x_test)
    _, fit, settings = METHODS[kind]
    found = fit_quietly(fit, settings, x, seen, seed).predict(x_test)
    return score(y_test, found) | {"seconds": round(time.process_time() - started, 2)}


def measure_scanvi(python: Path, x: Array, seen: Array, x_test: Array, y_test: Array, seed: int) -> dict[str, float]:
    """Run SCANVI in an environment of its own, and return the same scores."""
    with tempfile.TemporaryDirectory() as folder:
        rows, found = Path(folder, "rows.npz"), Path(folder, "found.npz")
        np.savez(rows, x=x, seen=seen, x_test=x_test)
        subprocess.run([python, SCANVI, rows, found, str(seed)], check=True, capture_output=True)
        with np.load(found) as one:
            return score(y_test, one["y"]) | {"seconds": round(float(one["seconds"]), 2)}


def make_fits(args: argparse.Namespace) -> None:
    """Make the fits that the results lack, or all of them anew, and write each at once."""
    with np.load(args.data) as file:
        rows, classes = file["x"].astype(float), np.unique(file["y"], return_inverse=True)[1]
    for seed in args.seeds:
        x, seen, x_test, y_test, _ = split_rows(rows, classes, seed)
        for method in args.methods:
            if (method == "scanvi" and not args.scanvi_python) or (
                f"{method}/{seed}" in load_fits(args.results) and not args.again
            ):
                continue
            split = (x, seen, x_test, y_test, seed)
            one = measure_scanvi(args.scanvi_python, *split) if method == "scanvi" else measure(method, *split)
            keep_fit(args.results, f"{method}/{seed}", one)


def make_tables(results: Path = RESULTS) -> dict[str, str]:
    """Return the table of a file of results, over the splits that a method shares with M2, by its file name."""
    fits = load_fits(results)
    rows = []
    for name, words in NAMES.items():
        seeds = [key.split("/")[1] for key in fits if key.split("/")[0] == name]
        seeds = [seed for seed in seeds if f"m2/{seed}" in fits]
        own, ours = ([fits[f"{method}/{seed}"] for seed in seeds] for method in (name, "m2"))
        if seeds:
            cells = [words, str(len(seeds))]
            for key in ("accuracy", "macro_f1"):
                values, of_m2 = ([one[key] for one in both] for both in (own, ours))
                cells += [format_points(values), "" if name == "m2" else format_difference(of_m2, values)]
            rows.append([*cells, f"{statistics.mean(one['seconds'] for one in own):.1f}"])
    header = ["", "splits", "accuracy, %", "M2 minus it", "macro F1, %", "M2 minus it", "seconds"]
    return {"cells": format_table(header, rows)}


def main() -> None:
    """Make the missing fits, print the table and write it below ``docs/_generated``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="npz file of counts x and types y")
    parser.add_argument("--scanvi-python", type=Path, metavar="PATH", help="Python of an environment with scvi-tools")
    parser.add_argument("--methods", nargs="+", choices=tuple(NAMES), default=list(NAMES), metavar="METHOD")
    add_arguments(parser, RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    make_fits(args)
    write_tables(make_tables(args.results), keep=args.results == RESULTS)


if __name__ == "__main__":
    main()
