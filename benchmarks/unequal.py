"""Classes of unequal size: 5 % of the rows are of the second of two classes, and ten of each have a label.

    python benchmarks/unequal.py  # seeds 0 to 9: half an hour

Methods get 2,000 rows; 1,000 others are the test. Fits are kept in a JSON file and not made again, except with
``--again``.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.preprocessing import StandardScaler
from table_format import format_table
from tables import (
    DOCS,
    Array,
    add_arguments,
    calibration_error,
    fit_logistic,
    fit_m2,
    fit_self_training,
    fit_spreading,
    format_points,
    keep_fit,
    load_fits,
    score,
    write_tables,
)

RESULTS = DOCS / "benchmarks" / "unequal.json"
SHARES = [0.95, 0.05]
LABELS = 10  # of each class
TRAIN, TEST = 2000, 1000

METHODS: dict[str, tuple[str, Callable[..., Any], dict[str, Any]]] = {
    "auto": ("`M2Classifier`", fit_m2, {}),
    "uniform": ('`class_prior="uniform"`', fit_m2, {"class_prior": "uniform"}),
    "known": ("`class_prior=[0.95, 0.05]`", fit_m2, {"class_prior": SHARES}),
    "labels_alone": ("its classifier on labels alone", fit_m2, {"bound_weight": 0.0, "consistency_weight": 0.0}),
    "logistic": ("logistic regression", fit_logistic, {}),
    "self_training": ("self-training", fit_self_training, {}),
    "spreading": ("label spreading", fit_spreading, {}),
}
"""By name: what the table calls it, how it is fitted, and with what settings."""


def make_rows(seed: int) -> tuple[Array, Array, Array, Array]:
    """Return training rows, their classes with -1 for no label, and the same for the test.

    Of ten Gaussian columns, four are higher by 1.5 in the second class, and six are correlated.
    """
    random = np.random.default_rng(seed)
    y = (random.random(TRAIN + TEST) < SHARES[1]).astype(int)
    x = random.normal(size=(len(y), 10))
    x[:, :4] += 1.5 * y[:, None]
    x[:, 4:] += 0.5 * random.normal(size=(len(y), 1))
    seen = np.full(TRAIN, -1)
    for k in (0, 1):
        seen[np.flatnonzero(y[:TRAIN] == k)[:LABELS]] = k
    return x[:TRAIN], seen, x[TRAIN:], y[TRAIN:]


def measure(method: str, seed: int) -> dict[str, float]:
    """Fit one method, and return accuracy, macro-F1 and expected calibration error."""
    x, seen, x_test, y_test = make_rows(seed)
    scaler = StandardScaler().fit(x)
    _, fit, settings = METHODS[method]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = fit(scaler.transform(x), seen, seed, **settings)
    found = model.predict_proba(scaler.transform(x_test))
    y = found.argmax(1)
    return score(y_test, y) | {"calibration_error": round(calibration_error(found, y_test), 4)}


def make_fits(methods: list[str], seeds: list[int], results: Path, again: bool) -> None:
    """Make the fits that the results lack, or all of them anew, and write each at once."""
    for method in methods:
        for seed in seeds:
            if again or f"{method}/{seed}" not in load_fits(results):
                keep_fit(results, f"{method}/{seed}", measure(method, seed))


def make_tables(results: Path = RESULTS) -> dict[str, str]:
    """Return the table of a file of results, by the name of its file."""
    rows, fits = [], load_fits(results)
    for method, (words, _, _) in METHODS.items():
        own = [scores for key, scores in fits.items() if key.startswith(f"{method}/")]
        if own:
            cells = [format_points([scores[name] for scores in own]) for name in own[0]]
            rows.append([words, *cells, str(len(own))])
    return {"unequal": format_table(["%", "accuracy", "macro F1", "calibration error", "draws"], rows)}


def main() -> None:
    """Make the missing fits, print the table and write it below ``docs/_generated``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS), metavar="METHOD")
    add_arguments(parser, RESULTS)
    args = parser.parse_args()
    make_fits(args.methods, args.seeds, args.results, args.again)
    write_tables(make_tables(args.results), keep=args.results == RESULTS)


if __name__ == "__main__":
    main()
