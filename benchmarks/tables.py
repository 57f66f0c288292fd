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
from table_format import (
    DOCS,
    Column,
    Result,
    Results,
    average,
    build_table,
    count_seeds,
    load_json,
    mark,
    minus,
    points,
)
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


# Missing entries: what they cost in accuracy, and how well they are filled in

WITH_HOLES = {name: name for name in ("wine", "breast_cancer", "vehicle", "satellite", "dna")}
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
    return measure(METHODS[method], rows, seed, prepare)


# All experiments, by the name of their file of results: names of the fits, and what makes one of them

Measure = Callable[[str, int, argparse.Namespace], Result]  # by name and seed
EXPERIMENTS: dict[str, tuple[Iterable[str], Measure]] = {
    "tables": ([f"{name}/{method}" for name in SETS for method in METHODS], measure_table),
    "parts": ([f"{name}/{method}" for name in SETS for method in PARTS], measure_table),
    "missing": (WITH_HOLES, measure_missing),
    "unequal": (UNEQUAL, measure_unequal),
    "cells": (CELLS, measure_cells),
}


def group_splits(fits: Fits, score: str, methods: Iterable[str] = METHODS) -> Results:
    """Return a score of each method, for each split of a set that all of them have."""
    found: Results = {}
    for name, seed in itertools.product(SETS, sorted({one.split("/")[2] for one in fits})):
        of_split = {method: fits.get(f"{name}/{method}/{seed}", {}) for method in methods}
        if all(of_split.values()):
            found.setdefault(name, []).append({method: one[score] for method, one in of_split.items()})
    return found


def group_seeds(fits: Fits) -> Results:
    """Return the fits of each method or set; those of other methods than M2 with its scores on the same split."""
    found: Results = {}
    for key, fit in fits.items():
        name, seed = key.split("/")
        of_m2 = {f"{score}_of_m2": value for score, value in fits.get(f"m2/{seed}", {}).items() if name != "m2"}
        found.setdefault(name, []).append({**fit, **of_m2})
    return found


def with_mean(results: Results) -> Results:
    """Return the results with the means of all sets as those of another one, ``mean``."""
    means = [{key: statistics.mean(one[key] for one in group) for key in group[0]} for group in results.values()]
    return {**results, "mean": means}


def rank_methods(results: Results) -> list[Result]:
    """Return the rank of each method on each set, by its mean over the splits."""
    means = [[statistics.mean(one[name] for one in group) for name in METHODS] for group in results.values()]
    return [dict(zip(METHODS, rankdata([-value for value in values]), strict=True)) for values in means]


def in_columns(words: dict[str, str], column: Callable[..., Column], *options: Any) -> Columns:
    """Return a column of the same kind for each score, by the words for it."""
    return {title: column(name, *options) for name, title in words.items()}


def minus_best(group: list[Result]) -> str:
    """Return by how much M2 is better than the best of the other methods."""
    others = [name for name in METHODS if name not in OWN]
    return minus("m2", max(others, key=lambda name: statistics.mean(one[name] for one in group)))(group)


Columns = dict[str, Column]
WORDS = {name: method.words for name, method in METHODS.items()}
PART_WORDS = {"labels_alone": "labels alone", "consistency_alone": "consistency", "bound_alone": "bound", "m2": "both"}
DIFFERENCES: Columns = {"minus labels alone": minus("m2", "labels_alone"), "minus the best other method": minus_best}
ADDED: Columns = {
    **{words: average(name, 1, 100.0) for name, words in PART_WORDS.items()},
    "bound added to consistency": minus("m2", "consistency_alone"),
    "bound added to labels alone": minus("bound_alone", "labels_alone"),
    "consistency added to the bound": minus("m2", "bound_alone"),
}
MISSING: Columns = {}
for _name in ("m2", "logistic"):
    MISSING[f"{WORDS[_name]}, complete"] = average(f"{_name}_of_all", 1, 100.0)
    MISSING[f"{WORDS[_name]}, 30 % removed"] = average(_name, 1, 100.0)
    MISSING[f"{WORDS[_name]}, difference"] = minus(_name, f"{_name}_of_all")
FILLED = {"error_m2": "`M2Classifier.impute`", "error_mean": "mean", "error_neighbours": "five neighbours"}
UNEQUAL_SCORES: Columns = {
    "accuracy": points("accuracy"),
    "macro F1": points("macro_f1"),
    "calibration error": points("calibration_error"),
}
CELL_SCORES: Columns = {
    "accuracy, %": points("accuracy"),
    "M2 minus its accuracy": minus("accuracy_of_m2", "accuracy"),
    "macro F1, %": points("macro_f1"),
    "M2 minus its macro F1": minus("macro_f1_of_m2", "macro_f1"),
    "seconds": average("seconds"),
}


def make_tables(docs: Path) -> dict[str, str]:
    """Return the tables of all experiments, from the files of results."""
    fits = {name: load_json(docs / "benchmarks" / f"{name}.json", {}) for name in EXPERIMENTS}
    own, splits = {name: WORDS[name] for name in ("m2", "labels_alone")}, {"splits": count_seeds}
    accuracy, macro_f1, seconds = (group_splits(fits["tables"], one) for one in ("accuracy", "macro_f1", "seconds"))
    ranks = {"accuracy": rank_methods(accuracy), "macro F1": rank_methods(macro_f1)}
    calibration = group_splits(fits["tables"], "calibration_error", own)
    parts = group_splits(fits["tables"] | fits["parts"], "accuracy", PART_WORDS)
    missing, sets = group_seeds(fits["missing"]), {**SETS, "mean": "mean"}
    specifications: dict[str, tuple[Results, str, dict[str, str], Columns]] = {
        "tables_accuracy": (with_mean(accuracy), "accuracy, %", sets, in_columns(WORDS, average, 1, 100.0)),
        "tables_macro_f1": (with_mean(macro_f1), "macro F1, %", sets, in_columns(WORDS, average, 1, 100.0)),
        "tables_ranks": (ranks, "mean rank by", {name: name for name in ranks}, in_columns(WORDS, average, 2)),
        "tables_differences": (accuracy, "accuracy, percentage points", SETS, splits | DIFFERENCES),
        "tables_seconds": (seconds, "seconds", SETS, in_columns(WORDS, average)),
        "tables_calibration": (calibration, "calibration error, %", SETS, in_columns(own, points)),
        "parts": (with_mean(parts), "accuracy, %", sets, splits | ADDED),
        "missing_accuracy": (missing, "accuracy, %", WITH_HOLES, splits | MISSING),
        "missing_errors": (missing, "error", WITH_HOLES, in_columns(FILLED, average, 3)),
        "unequal": (
            group_seeds(fits["unequal"]),
            "%",
            {name: one.words for name, one in UNEQUAL.items()},
            UNEQUAL_SCORES,
        ),
        "cells": (group_seeds(fits["cells"]), "", {name: one[0] for name, one in CELLS.items()}, splits | CELL_SCORES),
    }
    found = {name: build_table(*one) for name, one in specifications.items()}
    best = {"tables_accuracy": max, "tables_macro_f1": max, "tables_ranks": min, "missing_errors": min}
    return found | {name: mark(found[name], choose) for name, choose in best.items()}


def main(argv: list[str] | None = None, docs: Path = DOCS) -> None:
    """Make the missing fits of an experiment, and write all tables."""
    parser = make_parser(__doc__)
    parser.add_argument("experiment", nargs="?", choices=EXPERIMENTS, default="tables")
    parser.add_argument("--scanvi-python", metavar="PATH", help="Python of an environment with scvi-tools")
    args = parser.parse_args(argv)
    if args.experiment != "unequal" and not args.data_dir:
        parser.error(f"{args.experiment} needs --data-dir with its data")
    names, measure_one = EXPERIMENTS[args.experiment]
    wanted = itertools.product([one for one in names if one != "scanvi" or args.scanvi_python], range(args.seeds or 10))
    fits = {f"{name}/{seed}": partial(measure_one, name, seed, args) for name, seed in wanted}
    make_fits(docs / "benchmarks" / f"{args.experiment}.json", fits, args.only)


if __name__ == "__main__":
    main()
