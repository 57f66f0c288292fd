"""Tables with 30 % of their entries removed: what that costs in accuracy, and how well the entries are filled in.

    python benchmarks/missing.py --data-dir FOLDER  # five sets, seeds 0 to 9: hours

Sets, splits and labels are those of ``tables.py``, with at most 2,000 training rows. Entries are removed at random from
training and test rows; errors are those of the removed entries of test rows, in standard deviations of their column.
Fits are kept in a JSON file and not made again, except with ``--again``.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.preprocessing import StandardScaler
from table_format import format_table
from tables import (
    DOCS,
    Array,
    add_arguments,
    fit_logistic,
    fit_m2,
    format_difference,
    keep_fit,
    load_fits,
    load_set,
    split_rows,
    write_tables,
)

RESULTS = DOCS / "benchmarks" / "missing.json"
SETS = ("wine", "breast_cancer", "vehicle", "satellite", "dna")
REMOVED = 0.3
MAX_ROWS = 2000


def remove_entries(x: Array, seed: int) -> Array:
    """Return rows of which each entry is NaN with probability 0.3."""
    return np.where(np.random.default_rng(seed).random(x.shape) < REMOVED, np.nan, x)


def measure(x: Array, y: Array, x_test: Array, y_test: Array, seed: int) -> dict[str, float]:
    """Return accuracies on complete rows and on rows with removed entries, and root mean square errors of filling."""
    holes, holes_test = remove_entries(x, seed), remove_entries(x_test, seed + 1000)
    scaler, scaler_of_all = StandardScaler().fit(holes), StandardScaler().fit(x)
    seen, seen_test = scaler.transform(holes), scaler.transform(holes_test)
    by_mean, by_neighbours = SimpleImputer(keep_empty_features=True).fit(seen), KNNImputer(n_neighbors=5).fit(seen)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        m2_of_all, m2 = fit_m2(x, y, seed), fit_m2(holes, y, seed)
    seconds = time.perf_counter() - started
    logistic_of_all = fit_logistic(scaler_of_all.transform(x), y, seed)
    logistic = fit_logistic(by_mean.transform(seen), y, seed)
    filled = {
        "m2": scaler.transform(m2.impute(holes_test)),
        "mean": by_mean.transform(seen_test),
        "neighbours": by_neighbours.transform(seen_test),
    }
    gone, true = np.isnan(holes_test), scaler.transform(x_test)
    scores = {
        "m2_of_all": m2_of_all.score(x_test, y_test),
        "m2": m2.score(holes_test, y_test),
        "logistic_of_all": logistic_of_all.score(scaler_of_all.transform(x_test), y_test),
        "logistic": logistic.score(filled["mean"], y_test),
        **{f"error_{name}": np.square(values - true)[gone].mean() ** 0.5 for name, values in filled.items()},
    }
    return {name: round(float(value), 4) for name, value in scores.items()} | {"seconds": round(seconds, 2)}


def make_fits(sets: list[str], seeds: list[int], folder: Path, results: Path, again: bool) -> None:
    """Make the fits that the results lack, or all of them anew, and write each at once."""
    for name in sets:
        rows, _, classes = load_set(name, folder)
        for seed in seeds:
            if again or f"{name}/{seed}" not in load_fits(results):
                x, seen, x_test, y_test, _ = split_rows(rows, classes, seed)
                kept = np.argsort(seen < 0, kind="stable")[:MAX_ROWS]  # the labelled rows, and the first others
                keep_fit(results, f"{name}/{seed}", measure(x[kept], seen[kept], x_test, y_test, seed))


def collect(results: Path) -> dict[str, dict[str, list[float]]]:
    """Return the scores of each set by their name, over the seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in SETS:
        fits = [scores for key, scores in load_fits(results).items() if key.startswith(f"{name}/")]
        if fits:
            found[name] = {score: [fit[score] for fit in fits] for score in fits[0]}
    return found


def make_tables(results: Path = RESULTS) -> dict[str, str]:
    """Return the tables of a file of results, by the name of their file."""
    accuracies, errors = [], []
    for name, scores in collect(results).items():
        cells = [name, str(len(scores["m2"]))]
        for method in ("m2", "logistic"):
            complete, removed = scores[f"{method}_of_all"], scores[method]
            means = [f"{100.0 * statistics.mean(values):.1f}" for values in (complete, removed)]
            cells += [*means, format_difference(removed, complete)]
        accuracies.append(cells)
        means = [statistics.mean(scores[f"error_{method}"]) for method in ("m2", "mean", "neighbours")]
        best = [f"**{value:.3f}**" if value == min(means) else f"{value:.3f}" for value in means]
        errors.append([name, *best])
    methods, parts = ("`M2Classifier`", "logistic regression"), ("complete", "30 % removed", "difference")
    columns = [f"{method}, {part}" for method in methods for part in parts]
    return {
        "missing_accuracy": format_table(["accuracy, %", "splits", *columns], accuracies),
        "missing_errors": format_table(["error", "`M2Classifier.impute`", "mean", "five neighbours"], errors),
    }


def main() -> None:
    """Make the missing fits, print the tables and write them below ``docs/_generated``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="folder of the csv.gz files")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET", help="only these sets")
    add_arguments(parser, RESULTS)
    args = parser.parse_args()
    make_fits(args.sets, args.seeds, args.data_dir, args.results, args.again)
    write_tables(make_tables(args.results), keep=args.results == RESULTS)


if __name__ == "__main__":
    main()
