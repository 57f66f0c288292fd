"""Classifiers of tables with five labels a class: M2Classifier beside scikit-learn's, on the same rows and labels.

    python benchmarks/tables.py --data-dir FOLDER                          # every set, seeds 0 to 9: hours
    python benchmarks/tables.py --data-dir FOLDER --choose --seeds 0 1 2  # the sets that defaults were chosen on

FOLDER holds ``NAME.csv.gz`` (of R's mlbench and kernlab): a header, the class in the last column, empty fields for
missing values. Three more sets come with scikit-learn. A seed gives 70 % of the rows for training, five labels of each
class among them, and the rest for the test. Fits are kept in a JSON file and not made again, except with ``--again``.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier
from table_format import format_table

from pyro_ssvae.estimators import M2Classifier

Array = NDArray[Any]
Fits = dict[str, dict[str, float]]
"""Scores by ``"SET/METHOD/SEED"``."""

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "benchmarks" / "tables.json"
LABELS = 5  # of each class

CHOOSE = ("satellite", "vowel", "breastcancer", "dna", "wine", "digits")
HELD_OUT = ("spam", "housevotes84", "soybean", "pimaindiansdiabetes2", "vehicle", "breast_cancer")
CODED: dict[str, Callable[[str], bool]] = {"soybean": lambda _: True, "vowel": lambda column: column == "V1"}
"""Columns whose numbers stand for categories."""


# Data


def load_set(name: str, folder: Path) -> tuple[Array, Array, Array]:
    """Return rows ``(N, D)`` with NaN for missing values, which columns are categories, and classes ``(N,)``."""
    if hasattr(sklearn.datasets, f"load_{name}"):
        x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
        return x.astype(float), np.zeros(x.shape[1], dtype=bool), y
    with gzip.open(folder / f"{name}.csv.gz", "rt", newline="") as file:
        header, *lines = csv.reader(file)
    columns, kinds = [], []
    for title, values in zip(header[:-1], np.array(lines)[:, :-1].T, strict=True):
        known = values != ""
        column = np.full(len(values), math.nan)
        kinds.append(CODED.get(name, lambda _: False)(title) or not _are_numbers(values[known]))
        column[known] = np.unique(values[known], return_inverse=True)[1] if kinds[-1] else values[known].astype(float)
        columns.append(column)
    classes = np.unique([line[-1] for line in lines], return_inverse=True)[1]
    return np.stack(columns, 1), np.array(kinds), classes


def _are_numbers(values: Array) -> bool:
    try:
        values.astype(float)
    except ValueError:
        return False
    return True


def split_rows(x: Array, y: Array, seed: int) -> tuple[Array, Array, Array, Array, Array]:
    """Return training rows, their classes with -1 for no label, the same for the test, and all training classes."""
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.3, stratify=y, random_state=seed)
    random = np.random.default_rng(seed)
    seen = np.full(len(y), -1)
    for k in np.unique(y):
        rows = random.permutation(np.flatnonzero(y == k))[:LABELS]
        seen[rows] = k
    return x, seen, x_test, y_test, y


def write_words(x: Array, categories: Array) -> Array:
    """Return rows with words in place of the codes of categories, and ``None`` where one is missing."""
    if not categories.any():
        return x
    table = x.astype(object)
    table[:, categories] = [[None if code != code else f"level {code:.0f}" for code in row] for row in x[:, categories]]
    return table


def fill_and_encode(x: Array, x_test: Array, categories: Array) -> tuple[Array, Array]:
    """Fill missing values by means and modes of the training rows, and write categories as zeros and ones."""
    encode = make_pipeline(
        SimpleImputer(strategy="most_frequent"),
        OneHotEncoder(drop="if_binary", handle_unknown="ignore", sparse_output=False),
    )
    parts = [("numbers", SimpleImputer(), ~categories), ("categories", encode, categories)]
    both = ColumnTransformer(parts)
    return both.fit_transform(x), both.transform(x_test)


# Methods


def fit_logistic(x: Array, y: Array, seed: int, C: float = 1.0) -> Any:
    """Fit logistic regression to the labelled rows."""
    return LogisticRegression(C=C, max_iter=1000).fit(x[y >= 0], y[y >= 0])


def fit_forest(x: Array, y: Array, seed: int, min_samples_leaf: int = 1) -> Any:
    """Fit a random forest to the labelled rows."""
    forest = RandomForestClassifier(200, min_samples_leaf=min_samples_leaf, random_state=seed)
    return forest.fit(x[y >= 0], y[y >= 0])


def fit_self_training(x: Array, y: Array, seed: int, threshold: float = 0.75) -> Any:
    """Fit logistic regression that labels rows of which it is certain, and starts again."""
    return SelfTrainingClassifier(LogisticRegression(max_iter=1000), threshold=threshold).fit(x, y)


def fit_spreading(x: Array, y: Array, seed: int, width: float | None = None) -> Any:
    """Spread labels over a graph of neighbours, or with a Gaussian kernel of ``width`` times the usual variance."""
    gamma = {} if width is None else {"kernel": "rbf", "gamma": 1.0 / (width * x.shape[1])}
    return LabelSpreading(**({"kernel": "knn", "n_neighbors": 7} | gamma)).fit(x, y)


def fit_m2(x: Array, y: Array, seed: int, **settings: Any) -> Any:
    """Fit M2."""
    return M2Classifier(random_state=seed, device="cpu", **settings).fit(x, y)


def fit_best(fit: Callable[..., Any], settings: list[dict[str, Any]], x: Array, y: Array, seed: int) -> Any:
    """Fit with the settings that cross-validation on the labelled rows prefers, the first of equals."""
    labelled = np.flatnonzero(y >= 0)
    folds = StratifiedKFold(min(LABELS, min(np.bincount(y[labelled]))), shuffle=True, random_state=seed)
    right = []
    for setting in settings:
        right.append(0)
        for _, held in folds.split(labelled, y[labelled]):
            hidden = y.copy()
            hidden[labelled[held]] = -1
            found = fit(x, hidden, seed, **setting).predict(x[labelled[held]])
            right[-1] += int((found == y[labelled[held]]).sum())
    return fit(x, y, seed, **settings[int(np.argmax(right))])


def fit_quietly(fit: Callable[..., Any], settings: list[dict[str, Any]], x: Array, y: Array, seed: int) -> Any:
    """Fit without warnings, with the best settings where there are several."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if len(settings) > 1:
            return fit_best(fit, settings, x, y, seed)
        return fit(x, y, seed, **(settings[0] if settings else {}))


METHODS: dict[str, tuple[str, Callable[..., Any], list[dict[str, Any]]]] = {
    "logistic": ("logistic regression", fit_logistic, [{"C": 1.0}, {"C": 0.1}, {"C": 10.0}]),
    "forest": ("random forest", fit_forest, [{"min_samples_leaf": 1}, {"min_samples_leaf": 2}]),
    "self_training": ("self-training", fit_self_training, [{"threshold": 0.75}, {"threshold": 0.9}]),
    "spreading": ("label spreading", fit_spreading, [{"width": None}, {"width": 1.0}, {"width": 0.2}]),
    "m2": ("`M2Classifier`", fit_m2, []),
    "labels_alone": ("its classifier on labels alone", fit_m2, [{"bound_weight": 0.0, "consistency_weight": 0.0}]),
}
"""By name: what tables call it, how it is fitted, and the settings to choose from."""
OWN = ("m2", "labels_alone")


def prepare(method: str, x: Array, x_test: Array, categories: Array) -> tuple[Array, Array]:
    """Return training and test rows as a method takes them: complete and standardised for scikit-learn."""
    if method in OWN:
        return write_words(x, categories), write_words(x_test, categories)
    x, x_test = fill_and_encode(x, x_test, categories)
    scaler = StandardScaler().fit(x)
    return scaler.transform(x), scaler.transform(x_test)


def measure(method: str, x: Array, y: Array, x_test: Array, y_test: Array, seed: int) -> dict[str, float]:
    """Fit one method, and return its scores and seconds, the choice of settings included."""
    _, fit, settings = METHODS[method]
    started = time.perf_counter()
    model = fit_quietly(fit, settings, x, y, seed)
    seconds = time.perf_counter() - started
    found = model.predict_proba(x_test)
    scores = score(y_test, found.argmax(1)) | {"calibration_error": round(calibration_error(found, y_test), 4)}
    return scores | {"seconds": round(seconds, 2)}


def score(y: Array, found: Array) -> dict[str, float]:
    """Return accuracy and macro-F1 of predicted classes."""
    scores = {"accuracy": accuracy_score(y, found), "macro_f1": f1_score(y, found, average="macro")}
    return {name: round(float(value), 4) for name, value in scores.items()}


def calibration_error(probabilities: Array, y: Array) -> float:
    """Return the difference of accuracy and confidence within ten bins of confidence, weighted by their size."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == y
    bins = np.ceil(10.0 * confidence).astype(int)
    return float(np.abs(np.bincount(bins, right - confidence)).sum() / len(y))


def make_fits(sets: list[str], methods: list[str], seeds: list[int], folder: Path, results: Path, again: bool) -> None:
    """Make the fits that the results lack, or all of them anew, and write each at once."""
    for name in sets:
        rows, categories, classes = load_set(name, folder)
        for seed in seeds:
            x, seen, x_test, y_test, _ = split_rows(rows, classes, seed)
            for method in methods:
                key = f"{name}/{method}/{seed}"
                if again or key not in load_fits(results):
                    own, own_test = prepare(method, x, x_test, categories)
                    keep_fit(results, key, measure(method, own, seen, own_test, y_test, seed))


def load_fits(results: Path) -> Fits:
    """Return the fits of a file, none where there is no such file."""
    return json.loads(results.read_text()) if results.exists() else {}


def keep_fit(results: Path, key: str, scores: dict[str, float]) -> None:
    """Write the scores of a fit to a file of results, and print them."""
    found = load_fits(results) | {key: scores}
    lines = [f" {json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found)]
    results.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(key, scores, flush=True)


# Tables


def collect(fits: Fits, key: str) -> dict[str, dict[str, list[float]]]:
    """Return a score by set and method, over the seeds that every method of the set has."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in (*CHOOSE, *HELD_OUT):
        by_method = {
            method: {path.split("/")[2]: one[key] for path, one in fits.items() if path.startswith(f"{name}/{method}/")}
            for method in METHODS
        }
        seeds = sorted(set.intersection(*(set(values) for values in by_method.values())), key=int)
        if seeds:
            found[name] = {method: [values[seed] for seed in seeds] for method, values in by_method.items()}
    return found


def make_score_table(fits: Fits, key: str) -> str:
    """Return means over the seeds in percent, the best of each set in bold, and mean ranks."""
    scores = collect(fits, key)
    means = {name: [100.0 * statistics.mean(one) for one in by.values()] for name, by in scores.items()}
    rows = []
    for name, values in means.items():
        cells = [f"**{value:.1f}**" if value == max(values) else f"{value:.1f}" for value in values]
        rows.append([_title(name), *cells])
    if not rows:
        return ""
    ranks = np.mean([rankdata([-value for value in values]) for values in means.values()], 0)
    rows.append(["mean", *(f"{value:.1f}" for value in np.mean(list(means.values()), 0))])
    rows.append(["mean rank", *(f"{rank:.2f}" for rank in ranks)])
    return format_table([f"{key.replace('_f1', ' F1')}, %", *(words for words, _, _ in METHODS.values())], rows)


def _title(name: str) -> str:
    return f"{name} \\*" if name in CHOOSE else name


def make_difference_table(fits: Fits) -> str:
    """Return how much M2 differs from its classifier on labels alone, and from the best other method of each set."""
    rows = []
    for name, by in collect(fits, "accuracy").items():
        others = [by[method] for method in METHODS if method not in OWN]
        best = max(others, key=statistics.mean)
        rows.append(
            [
                _title(name),
                str(len(best)),
                format_difference(by["m2"], by["labels_alone"]),
                format_difference(by["m2"], best),
            ]
        )
    return format_table(
        ["accuracy, percentage points", "splits", "minus labels alone", "minus the best other method"], rows
    )


def format_difference(ours: list[float], theirs: list[float]) -> str:
    """Return mean ± standard error of paired differences, in points."""
    return format_points([a - b for a, b in zip(ours, theirs, strict=True)], "+")


def format_points(values: list[float], sign: str = "") -> str:
    """Return mean ± standard error of fractions, in percent."""
    error = f" ± {100.0 * statistics.stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{100.0 * statistics.mean(values):{sign}.1f}{error}"


def make_seconds_table(fits: Fits) -> str:
    """Return seconds a fit, the choice of settings included."""
    rows = [
        [name, *(f"{statistics.mean(one):.1f}" for one in by.values())] for name, by in collect(fits, "seconds").items()
    ]
    return format_table(["seconds", *(words for words, _, _ in METHODS.values())], rows)


def make_calibration_table(fits: Fits) -> str:
    """Return scores and calibration errors of the sets whose fits have them."""
    rows = []
    for name in (*CHOOSE, *HELD_OUT):
        for method, (words, _, _) in METHODS.items():
            own = [
                one for key, one in fits.items() if key.startswith(f"{name}/{method}/") and "calibration_error" in one
            ]
            if own:
                names = ("accuracy", "macro_f1", "calibration_error")
                cells = [format_points([one[score] for one in own]) for score in names]
                rows.append([_title(name), words, *cells, str(len(own))])
    return format_table(["%", "", "accuracy", "macro F1", "calibration error", "splits"], rows)


def make_tables(results: Path = RESULTS) -> dict[str, str]:
    """Return the tables of a file of results, by the name of their file."""
    fits = load_fits(results)
    return {
        "tables_accuracy": make_score_table(fits, "accuracy"),
        "tables_macro_f1": make_score_table(fits, "macro_f1"),
        "tables_differences": make_difference_table(fits),
        "tables_seconds": make_seconds_table(fits),
        "tables_calibration": make_calibration_table(fits),
    }


def add_arguments(parser: argparse.ArgumentParser, results: Path) -> None:
    """Add what the experiments on tables have in common."""
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(10)), metavar="SEED")
    parser.add_argument("--again", action="store_true", help="make fits anew, also those that are there")
    parser.add_argument("--results", type=Path, default=results, metavar="FILE", help="where fits are kept")


def write_tables(tables: dict[str, str], keep: bool) -> None:
    """Print tables, and write them below ``docs/_generated`` if they are to be kept."""
    for name, table in tables.items():
        print(f"\n{table}")
        if keep:
            (DOCS / "_generated" / f"{name}.md").write_text(table + "\n")


def main() -> None:
    """Make the missing fits, print the tables and write them below ``docs/_generated``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="folder of the csv.gz files")
    parser.add_argument("--choose", action="store_true", help="only the half on which defaults were chosen")
    parser.add_argument("--sets", nargs="+", choices=(*CHOOSE, *HELD_OUT), metavar="SET", help="only these sets")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS), metavar="METHOD")
    add_arguments(parser, RESULTS)
    args = parser.parse_args()
    sets = args.sets or [*CHOOSE, *(() if args.choose else HELD_OUT)]
    make_fits(sets, args.methods, args.seeds, args.data_dir, args.results, args.again)
    write_tables(make_tables(args.results), keep=args.results == RESULTS)


if __name__ == "__main__":
    main()
