"""M2Classifier beside scikit-learn's classifiers on tables with few labels of each class.

    python benchmarks/tables.py EXPERIMENT --data-dir DIR

docs/results_tables.md lists the experiments and what DIR holds. Fits are kept in docs/benchmarks/EXPERIMENT.json, as
SET/METHOD/SEED and the like, and not made again.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from columns import average, count_seeds, minus, points
from runs import make_fits, make_parser
from scipy.stats import rankdata
from table_format import DOCS, Column, Result, Results, build_table, load_json, mark
from table_methods import CELLS, EXPERIMENTS, METHODS, OWN, SETS, UNEQUAL, WITH_HOLES

Fits = dict[str, dict[str, float]]  # scores by key


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
UNEQUAL_SCORES = {"accuracy": "accuracy", "macro_f1": "macro F1", "calibration_error": "calibration error"}
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
    missing, unequal, cells = (group_seeds(fits[name]) for name in ("missing", "unequal", "cells"))
    sets, in_unequal = {**SETS, "mean": "mean"}, {name: method.words for name, method in UNEQUAL.items()}
    in_cells = {name: words for name, (words, *_) in CELLS.items()}
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
        "unequal": (unequal, "%", in_unequal, in_columns(UNEQUAL_SCORES, points)),
        "cells": (cells, "", in_cells, splits | CELL_SCORES),
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
