"""M2Classifier beside scikit-learn's classifiers on tables with few labels of each class.

    python benchmarks/tables.py --data-dir DIR            # twelve tables, five labels a class: hours
    python benchmarks/tables.py parts --data-dir DIR      # without the bound, or without consistency: hours
    python benchmarks/tables.py missing --data-dir DIR    # five of them with 30 % of their entries removed: hours
    python benchmarks/tables.py unequal                   # two classes, 5 % of the rows in the second: half an hour
    OMP_NUM_THREADS=1 python benchmarks/tables.py cells --data-dir DIR --scanvi-python PATH    # half an hour

DIR holds ``NAME.csv.gz`` (of R's mlbench and kernlab): a header, the class in the last column, empty fields for missing
values; three more sets come with scikit-learn. For *cells* it holds ``cells.npz``, and PATH is the Python of an
environment with scvi-tools (``python -m venv ENV``, ``ENV/bin/pip install scvi-tools``), without which SCANVI is left
out. Fits are kept in docs/benchmarks/EXPERIMENT.json, as SET/METHOD/SEED and the like, and not made again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from runs import make_fits, make_parser
from scipy.stats import rankdata
from sklearn.decomposition import PCA
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.preprocessing import StandardScaler
from table_format import DOCS, Result, format_difference, format_points, format_table, load_json, select
from table_methods import (
    METHODS,
    OWN,
    PARTS,
    SETS,
    Array,
    Rows,
    fill_and_encode,
    hide_labels,
    load_set,
    measure,
    measure_scanvi,
    split_rows,
    write_words,
)

Fits = dict[str, dict[str, float]]  # scores by key


# Twelve tables


def measure_table(name: str, seed: int, args: argparse.Namespace) -> Result:
    """Measure SET/METHOD."""
    name, method = name.split("/")
    x, categories, y = load_set(name, args.data_dir)
    prepare = partial(write_words if method in OWN else fill_and_encode, categories)
    return measure((METHODS | PARTS)[method], split_rows(x, y, seed), seed, prepare)


def collect(fits: Fits, key: str, methods: Iterable[str] = METHODS) -> dict[str, dict[str, list[float]]]:
    """Return a score by the words for each set and by method, over the seeds that every method of the set has."""
    seeds, found = sorted({one.split("/")[2] for one in fits}), {}
    for name, words in SETS.items():
        known = [seed for seed in seeds if all(f"{name}/{m}/{seed}" in fits for m in methods)]
        if known:
            found[words] = {m: [fits[f"{name}/{m}/{seed}"][key] for seed in known] for m in methods}
    return found


def make_score_table(fits: Fits, key: str) -> str:
    """Return means over the seeds in percent, the best of each set in bold, and mean ranks."""
    scores = collect(fits, key)
    means = {name: [100.0 * statistics.mean(one) for one in by.values()] for name, by in scores.items()}
    rows = [
        [name, *(f"**{value:.1f}**" if value == max(values) else f"{value:.1f}" for value in values)]
        for name, values in means.items()
    ]
    if rows:
        ranks = np.mean([rankdata([-value for value in values]) for values in means.values()], 0)
        rows.append(["mean", *(f"{value:.1f}" for value in np.mean(list(means.values()), 0))])
        rows.append(["mean rank", *(f"{rank:.2f}" for rank in ranks)])
    return format_table([f"{key.replace('_f1', ' F1')}, %", *(one.words for one in METHODS.values())], rows)


def make_set_tables(fits: Fits) -> dict[str, str]:
    differences, seconds, calibration = [], [], []
    calibrated = ("m2", "labels_alone")
    for name, by in collect(fits, "accuracy").items():
        best = max((by[method] for method in METHODS if method not in OWN), key=statistics.mean)
        cells = [format_difference(by["m2"], other) for other in (by["labels_alone"], best)]
        differences.append([name, str(len(best)), *cells])
    for name, by in collect(fits, "seconds").items():
        seconds.append([name.removesuffix(" \\*"), *(f"{statistics.mean(one):.1f}" for one in by.values())])
    for name, by in collect(fits, "calibration_error", calibrated).items():
        calibration.append([name, *map(format_points, by.values())])
    compared = ["accuracy, percentage points", "splits", "minus labels alone", "minus the best other method"]
    return {
        "tables_accuracy": make_score_table(fits, "accuracy"),
        "tables_macro_f1": make_score_table(fits, "macro_f1"),
        "tables_differences": format_table(compared, differences),
        "tables_seconds": format_table(["seconds", *(one.words for one in METHODS.values())], seconds),
        "tables_calibration": format_table(
            ["calibration error, %", *(METHODS[method].words for method in calibrated)], calibration
        ),
    }


# What each part of the objective adds on the twelve tables


def make_part_table(fits: Fits) -> dict[str, str]:
    """Return accuracies without one part, the other or both, and what each adds, over the splits that all have.

    The last line holds means over the sets, and the standard errors of these.
    """
    methods = ("labels_alone", *PARTS, "m2")
    pairs = [("m2", "consistency_alone"), ("bound_alone", "labels_alone"), ("m2", "bound_alone")]
    rows, means, added = [], [], []
    for name, values in collect(fits, "accuracy", methods).items():
        means.append([statistics.mean(one) for one in values.values()])
        added.append([statistics.mean(values[a]) - statistics.mean(values[b]) for a, b in pairs])
        differences = [format_difference(values[a], values[b]) for a, b in pairs]
        rows.append([name, str(len(values["m2"])), *(f"{100.0 * one:.1f}" for one in means[-1]), *differences])
    if rows:
        of_sets = [format_points(list(one), "+") for one in zip(*added, strict=True)]
        rows.append(["mean of the sets", "", *(f"{100.0 * one:.1f}" for one in np.mean(means, 0)), *of_sets])
    compared = ["bound added to consistency", "bound added to labels alone", "consistency added to the bound"]
    header = ["accuracy, %", "splits", "labels alone", "consistency", "bound", "both", *compared]
    return {"parts": format_table(header, rows)}


# Missing entries: what they cost in accuracy, and how well they are filled in

WITH_HOLES = ("wine", "breast_cancer", "vehicle", "satellite", "dna")
REMOVED = 0.3
MOST_ROWS = 2000


def remove_entries(x: Array, seed: int) -> Array:
    return np.where(np.random.default_rng(seed).random(x.shape) < REMOVED, np.nan, x)


def measure_missing(name: str, seed: int, args: argparse.Namespace) -> Result:
    """Return accuracies on complete rows and on rows with removed entries, and root mean square errors of filling.

    Entries are removed at random from training and test rows; errors are those of the removed entries of test rows, in
    standard deviations of their column.
    """
    rows, _, classes = load_set(name, args.data_dir)
    x, y, x_test, y_test = split_rows(rows, classes, seed)
    kept = np.argsort(y < 0, kind="stable")[:MOST_ROWS]  # the labelled rows, and the first others
    x, y = x[kept], y[kept]
    holes, holes_test = remove_entries(x, seed), remove_entries(x_test, seed + 1000)
    scaler, scaler_of_all = StandardScaler().fit(holes), StandardScaler().fit(x)
    seen, seen_test = scaler.transform(holes), scaler.transform(holes_test)
    by_mean, by_neighbours = SimpleImputer(keep_empty_features=True).fit(seen), KNNImputer(n_neighbors=5).fit(seen)
    m2, logistic = METHODS["m2"], METHODS["logistic"]
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        m2_of_all, m2_of_holes = m2.fit(x, y, seed), m2.fit(holes, y, seed)
    seconds = time.perf_counter() - started
    complete, filled_in = scaler_of_all.transform(x), by_mean.transform(seen)
    filled = {
        "m2": scaler.transform(m2_of_holes.impute(holes_test)),
        "mean": by_mean.transform(seen_test),
        "neighbours": by_neighbours.transform(seen_test),
    }
    gone, true = np.isnan(holes_test), scaler.transform(x_test)
    scores = {
        "m2_of_all": m2_of_all.score(x_test, y_test),
        "m2": m2_of_holes.score(holes_test, y_test),
        "logistic_of_all": logistic.fit(complete, y, seed, {}).score(scaler_of_all.transform(x_test), y_test),
        "logistic": logistic.fit(filled_in, y, seed, {}).score(filled["mean"], y_test),
        **{f"error_{name}": np.square(values - true)[gone].mean() ** 0.5 for name, values in filled.items()},
    }
    return {name: round(float(value), 4) for name, value in scores.items()} | {"seconds": round(seconds, 2)}


def make_missing_tables(fits: Fits) -> dict[str, str]:
    accuracies, errors = [], []
    for name in WITH_HOLES:
        if not (own := select(fits, name)):
            continue
        cells = [name, str(len(own))]
        for method in ("m2", "logistic"):
            complete, removed = ([one[key] for one in own] for key in (f"{method}_of_all", method))
            cells += [f"{100.0 * statistics.mean(values):.1f}" for values in (complete, removed)]
            cells.append(format_difference(removed, complete))
        accuracies.append(cells)
        means = [statistics.mean(one[f"error_{way}"] for one in own) for way in ("m2", "mean", "neighbours")]
        errors.append([name, *(f"**{value:.3f}**" if value == min(means) else f"{value:.3f}" for value in means)])
    methods, parts = ("`M2Classifier`", "logistic regression"), ("complete", "30 % removed", "difference")
    columns = [f"{method}, {part}" for method in methods for part in parts]
    return {
        "missing_accuracy": format_table(["accuracy, %", "splits", *columns], accuracies),
        "missing_errors": format_table(["error", "`M2Classifier.impute`", "mean", "five neighbours"], errors),
    }


# Classes of unequal size

SHARES = [0.95, 0.05]
TRAIN, TEST = 2000, 1000
_PRIORS: dict[str, Any] = {"uniform": "uniform", "map": "map", "known": SHARES}
UNEQUAL = {
    "auto": METHODS["m2"],
    **{
        name: METHODS["m2"]._replace(words=f"`class_prior={json.dumps(prior)}`", settings=[{"class_prior": prior}])
        for name, prior in _PRIORS.items()
    },
    "labels_alone": METHODS["labels_alone"],
    **{name: METHODS[name]._replace(settings=[{}]) for name in ("logistic", "self_training", "spreading")},
}


def make_unequal_rows(seed: int) -> Rows:
    """Return rows and classes, ten labelled of each: of ten Gaussian columns, four are higher in the second class."""
    random = np.random.default_rng(seed)
    y = (random.random(TRAIN + TEST) < SHARES[1]).astype(int)
    x = random.normal(size=(len(y), 10))
    x[:, :4] += 1.5 * y[:, None]
    x[:, 4:] += 0.5 * random.normal(size=(len(y), 1))
    return x[:TRAIN], hide_labels(y[:TRAIN], 10), x[TRAIN:], y[TRAIN:]


def standardise(x: Array, x_test: Array) -> tuple[Array, Array]:
    scaler = StandardScaler().fit(x)
    return scaler.transform(x), scaler.transform(x_test)


def measure_unequal(name: str, seed: int, args: argparse.Namespace) -> Result:
    return measure(UNEQUAL[name], make_unequal_rows(seed), seed, standardise)


def make_unequal_table(fits: Fits) -> dict[str, str]:
    rows, scores = [], {"accuracy": "accuracy", "macro F1": "macro_f1", "calibration error": "calibration_error"}
    for name, method in UNEQUAL.items():
        if own := select(fits, name):
            cells = [format_points([one[key] for one in own]) for key in scores.values()]
            rows.append([method.words, *cells, str(len(own))])
    return {"unequal": format_table(["%", *scores, "draws"], rows)}


# Types of single cells, from counts of genes


def standardise_counts(x: Array, x_test: Array) -> tuple[Array, Array]:
    """Return standardised log(1 + x), x relative to the total of the cell."""
    totals = [rows.sum(1, keepdims=True).clip(1) for rows in (x, x_test)]
    usual = np.median(totals[0])
    return standardise(*(np.log1p(rows / total * usual) for rows, total in zip((x, x_test), totals, strict=True)))


def find_components(x: Array, x_test: Array) -> tuple[Array, Array]:
    """Return principal components of the standardised rows, all in the same unit so that distances remain."""
    x, x_test = standardise_counts(x, x_test)
    pca = PCA(min(30, *x.shape), random_state=0).fit(x)
    unit = pca.transform(x).std()
    return pca.transform(x) / unit, pca.transform(x_test) / unit


CELLS: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "m2": ("`M2Classifier`", "m2", lambda *both: both),
    "labels_alone": ("its classifier on labels alone", "labels_alone", lambda *both: both),
    "logistic": ("logistic regression", "logistic", standardise_counts),
    "pca_logistic": ("PCA and logistic regression", "logistic", find_components),
    "spreading": ("PCA and label spreading", "spreading", find_components),
    "self_training": ("self-training", "self_training", standardise_counts),
    "forest": ("random forest", "forest", standardise_counts),
    "scanvi": ("SCANVI", "", standardise_counts),  # which sees the counts
}
"""By name: what the table calls a method, its name in METHODS, and what it sees of the counts."""


def measure_cells(name: str, seed: int, args: argparse.Namespace) -> Result:
    torch.set_num_threads(1)
    with np.load(Path(args.data_dir, "cells.npz")) as file:
        rows = split_rows(file["x"].astype(float), np.unique(file["y"], return_inverse=True)[1], seed)
    if name == "scanvi":
        return measure_scanvi(args.scanvi_python, rows, seed)
    _, method, prepare = CELLS[name]
    return measure(METHODS[method], rows, seed, prepare, time.process_time)


def make_cell_table(fits: Fits) -> dict[str, str]:
    """Return the table, over the splits that a method shares with M2."""
    rows = []
    for name, (words, *_) in CELLS.items():
        seeds = [key.split("/")[1] for key in fits if key.split("/")[0] == name]
        pairs = [(fits[f"{name}/{seed}"], fits[f"m2/{seed}"]) for seed in seeds if f"m2/{seed}" in fits]
        if not pairs:
            continue
        cells = [words, str(len(pairs))]
        for key in ("accuracy", "macro_f1"):
            values, of_m2 = ([one[key] for one in both] for both in zip(*pairs, strict=True))
            cells += [format_points(values), "" if name == "m2" else format_difference(of_m2, values)]
        rows.append([*cells, f"{statistics.mean(one['seconds'] for one, _ in pairs):.1f}"])
    header = ["", "splits", "accuracy, %", "M2 minus it", "macro F1, %", "M2 minus it", "seconds"]
    return {"cells": format_table(header, rows)}


# All experiments, by the name of their file of results


Measure = Callable[[str, int, argparse.Namespace], Result]  # by name and seed
EXPERIMENTS: dict[str, tuple[Iterable[str], Measure, Callable[[Fits], dict[str, str]]]] = {
    "tables": ([f"{name}/{method}" for name in SETS for method in METHODS], measure_table, make_set_tables),
    "parts": ([f"{name}/{method}" for name in SETS for method in PARTS], measure_table, make_part_table),
    "missing": (WITH_HOLES, measure_missing, make_missing_tables),
    "unequal": (UNEQUAL, measure_unequal, make_unequal_table),
    "cells": (CELLS, measure_cells, make_cell_table),
}
"""By the name of the file of results: names of the fits, what makes one of them, and what makes the tables."""


def make_tables(docs: Path) -> dict[str, str]:
    """Return the tables of all experiments, from the files of results."""
    fits = {name: load_json(docs / "benchmarks" / f"{name}.json", {}) for name in EXPERIMENTS}
    fits["parts"] |= fits["tables"]
    found: dict[str, str] = {}
    for name, (*_, make) in EXPERIMENTS.items():
        found |= make(fits[name])
    return found


def main(argv: list[str] | None = None, docs: Path = DOCS) -> None:
    """Make the missing fits of an experiment, and write all tables."""
    parser = make_parser(__doc__)
    parser.add_argument("experiment", nargs="?", choices=EXPERIMENTS, default="tables")
    parser.add_argument("--scanvi-python", metavar="PATH", help="Python of an environment with scvi-tools")
    args = parser.parse_args(argv)
    if args.experiment != "unequal" and not args.data_dir:
        parser.error(f"{args.experiment} needs --data-dir with its data")
    names, measure_one, _ = EXPERIMENTS[args.experiment]
    wanted = itertools.product([one for one in names if one != "scanvi" or args.scanvi_python], range(args.seeds or 10))
    fits = {f"{name}/{seed}": partial(measure_one, name, seed, args) for name, seed in wanted}
    make_fits(docs / "benchmarks" / f"{args.experiment}.json", fits, args.only)


if __name__ == "__main__":
    main()
