"""Tables with few labels of each class, the classifiers that are compared on them, and what is measured."""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import sklearn.datasets
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier
from table_format import Result

from pyro_ssvae.estimators import M2Classifier

Array = NDArray[Any]
Rows = tuple[Any, Array, Any, Array]
"""Training rows, their classes with -1 for no label, and rows and classes of the test."""

LABELS = 5  # of each class
_CHOSEN_ON = ("satellite", "vowel", "breastcancer", "dna", "wine", "digits")  # the sets on which defaults were chosen
_OTHERS = ("spam", "housevotes84", "soybean", "pimaindiansdiabetes2", "vehicle", "breast_cancer")
SETS = {name: f"{name} \\*" for name in _CHOSEN_ON} | dict(zip(_OTHERS, _OTHERS, strict=True))
"""What tables call each set."""


# Data


@cache
def load_set(name: str, folder: str) -> tuple[pd.DataFrame, Array]:
    """Return rows, with words for categories and NaN for missing values, and classes ``(N,)``."""
    if hasattr(sklearn.datasets, f"load_{name}"):
        return getattr(sklearn.datasets, f"load_{name}")(return_X_y=True, as_frame=True)
    table = pd.read_csv(f"{folder}/{name}.csv.gz", keep_default_na=False, na_values="")
    rows = table.iloc[:, :-1]
    for column in rows:
        if name == "soybean" or (name, column) == ("vowel", "V1"):  # whose numbers stand for categories
            texts = rows[column].map("{:.0f}".format, na_action="ignore")  # whose order is that of the published fits
            levels = [None if code < 0 else f"level {code}" for code in pd.factorize(texts, sort=True)[0]]
            rows = rows.assign(**{column: levels})
    return rows, pd.factorize(table.iloc[:, -1], sort=True)[0]


def split_rows(x: Any, y: Array, seed: int) -> Rows:
    """Return 70 % of the rows for training, five labels of each class among them, and the rest for the test."""
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.3, stratify=y, random_state=seed)
    return x, hide_labels(y, LABELS, np.random.default_rng(seed).permutation), x_test, y_test


def hide_labels(y: Array, labels: int, arrange: Callable[[Array], Array] = np.asarray) -> Array:
    """Return classes of which this many of each are known, -1 otherwise."""
    seen = np.full(len(y), -1)
    for k in np.unique(y):
        seen[arrange(np.flatnonzero(y == k))[:labels]] = k
    return seen


def fill_and_encode(x: pd.DataFrame, x_test: pd.DataFrame) -> tuple[Array, Array]:
    """Return complete, standardised rows, with zeros and ones for categories: means and modes fill missing values."""
    options: dict[str, Any] = {"drop": "if_binary", "handle_unknown": "ignore", "sparse_output": False}
    encode = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(**options))
    numbers = x.select_dtypes("number").columns
    parts = [("numbers", SimpleImputer(), numbers), ("categories", encode, x.columns.difference(numbers, sort=False))]
    both = make_pipeline(ColumnTransformer(parts), StandardScaler())
    return both.fit_transform(x), both.transform(x_test)


# Methods


class Method(NamedTuple):
    """A classifier: what tables call it, settings to choose from, whether it sees the labelled rows alone.

    A value of the settings may be a function of the training rows.
    """

    words: str
    model: Any
    settings: list[dict[str, Any]]
    labelled: bool = False

    def fit(self, x: Any, y: Array, seed: int, settings: dict[str, Any] | None = None) -> Any:
        """Fit with some settings, or with those that cross-validation on labelled rows prefers, the first of equals."""
        if settings is None:
            settings = self.settings[0] if len(self.settings) == 1 else self._choose(x, y, seed)
        model = clone(self.model)
        if "random_state" in model.get_params():
            settings = settings | {"random_state": seed}
        model.set_params(**{name: value(x) if callable(value) else value for name, value in settings.items()})
        rows = y >= 0 if self.labelled else slice(None)
        return model.fit(x[rows], y[rows])

    def _choose(self, x: Array, y: Array, seed: int) -> dict[str, Any]:
        labelled, right = np.flatnonzero(y >= 0), [0] * len(self.settings)
        folds = StratifiedKFold(min(LABELS, min(np.bincount(y[labelled]))), shuffle=True, random_state=seed)
        for number, settings in enumerate(self.settings):
            for _, held in folds.split(labelled, y[labelled]):
                hidden = y.copy()
                hidden[labelled[held]] = -1
                found = self.fit(x, hidden, seed, settings).predict(x[labelled[held]])
                right[number] += int((found == y[labelled[held]]).sum())
        return self.settings[int(np.argmax(right))]


M2, LOGISTIC = M2Classifier(device="cpu"), LogisticRegression(max_iter=1000)
_KERNELS: list[dict[str, Any]] = [
    {"kernel": "rbf", "gamma": lambda x: 1.0 / x.shape[1]},
    {"kernel": "rbf", "gamma": lambda x: 1.0 / (0.2 * x.shape[1])},
]
_THRESHOLDS = [{"threshold": 0.75}, {"threshold": 0.9}]
METHODS = {
    "logistic": Method("logistic regression", LOGISTIC, [{"C": 1.0}, {"C": 0.1}, {"C": 10.0}], labelled=True),
    "forest": Method(
        "random forest", RandomForestClassifier(200), [{"min_samples_leaf": 1}, {"min_samples_leaf": 2}], labelled=True
    ),
    "self_training": Method("self-training", SelfTrainingClassifier(LOGISTIC), _THRESHOLDS),
    "spreading": Method("label spreading", LabelSpreading("knn"), [{}, *_KERNELS]),
    "m2": Method("`M2Classifier`", M2, [{}]),
    "labels_alone": Method("its classifier on labels alone", M2, [{"bound_weight": 0.0, "consistency_weight": 0.0}]),
}
PARTS = {
    "consistency_alone": Method("consistency, no bound", M2, [{"bound_weight": 0.0}]),
    "bound_alone": Method("bound, no consistency", M2, [{"consistency_weight": 0.0}]),
}
OWN = ("m2", "labels_alone", *PARTS)


def measure(method: Method, rows: Rows, seed: int, prepare: Callable[..., Any] | None = None) -> Result:
    """Fit one method, and return its scores and processor time: of preparation, choice, fit and prediction."""
    x, y, x_test, y_test = rows
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x, x_test = prepare(x, x_test) if prepare else (x, x_test)
        found = method.fit(x, y, seed).predict_proba(x_test)
    seconds = round(time.process_time() - started, 2)
    calibration = round(calibration_error(found, y_test), 4)
    return {**score(y_test, found.argmax(1)), "calibration_error": calibration, "seconds": seconds}


def measure_scanvi(python: str, rows: Rows, seed: int) -> Result:
    """Run SCANVI in an environment of its own, and return the same scores."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = f"{folder}/rows.npz", f"{folder}/found.npz"
        np.savez(given, x=rows[0], seen=rows[1], x_test=rows[2])
        script = Path(__file__).with_name("scanvi.py")
        subprocess.run([python, script, given, found, str(seed)], check=True, capture_output=True)
        with np.load(found) as one:
            return score(rows[3], one["y"]) | {"seconds": round(float(one["seconds"]), 2)}


def score(y: Array, found: Array) -> dict[str, float]:
    """Return accuracy and macro-F1 of predicted classes."""
    scores = {"accuracy": accuracy_score(y, found), "macro_f1": f1_score(y, found, average="macro")}
    return {name: round(float(value), 4) for name, value in scores.items()}


def calibration_error(probabilities: Array, y: Array) -> float:
    """Return the difference of accuracy and confidence within ten bins of confidence, weighted by their size."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == y
    bins = np.ceil(10.0 * confidence).astype(int)
    return float(np.abs(np.bincount(bins, right - confidence)).sum() / len(y))


# Twelve tables


def measure_table(name: str, seed: int, args: argparse.Namespace) -> Result:
    """Measure SET/METHOD."""
    name, method = name.split("/")
    rows = split_rows(*load_set(name, args.data_dir), seed)
    return measure((METHODS | PARTS)[method], rows, seed, None if method in OWN else fill_and_encode)


# Missing entries: what they cost in accuracy, and how well they are filled in

WITH_HOLES = {name: name for name in ("wine", "breast_cancer", "vehicle", "satellite", "dna")}
MOST_ROWS = 2000


def remove_entries(x: Array, seed: int, share: float = 0.3) -> Array:
    return np.where(np.random.default_rng(seed).random(x.shape) < share, np.nan, x)


def measure_missing(name: str, seed: int, args: argparse.Namespace) -> Result:
    """Return accuracies on complete rows and on rows with removed entries, and root mean square errors of filling.

    Entries are removed at random from training and test rows; errors are those of the removed entries of test rows, in
    standard deviations of their column.
    """
    rows, classes = load_set(name, args.data_dir)
    x, y, x_test, y_test = split_rows(rows.to_numpy(float), classes, seed)
    kept = np.argsort(y < 0, kind="stable")[:MOST_ROWS]  # the labelled rows, and the first others
    x, y = x[kept], y[kept]
    holes, holes_test = remove_entries(x, seed), remove_entries(x_test, seed + 1000)
    scaler = StandardScaler().fit(holes)
    seen, seen_test = scaler.transform(holes), scaler.transform(holes_test)
    by_mean, by_neighbours = SimpleImputer(keep_empty_features=True).fit(seen), KNNImputer(n_neighbors=5).fit(seen)
    m2, logistic = METHODS["m2"], METHODS["logistic"]._replace(settings=[{}])
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        m2_of_all, m2_of_holes = m2.fit(x, y, seed), m2.fit(holes, y, seed)
    seconds = time.perf_counter() - started
    complete, complete_test = standardise(x, x_test)
    filled = {
        "m2": scaler.transform(m2_of_holes.impute(holes_test)),
        "mean": by_mean.transform(seen_test),
        "neighbours": by_neighbours.transform(seen_test),
    }
    gone, true = np.isnan(holes_test), scaler.transform(x_test)
    scores = {
        "m2_of_all": m2_of_all.score(x_test, y_test),
        "m2": m2_of_holes.score(holes_test, y_test),
        "logistic_of_all": logistic.fit(complete, y, seed).score(complete_test, y_test),
        "logistic": logistic.fit(by_mean.transform(seen), y, seed).score(filled["mean"], y_test),
        **{f"error_{name}": np.square(values - true)[gone].mean() ** 0.5 for name, values in filled.items()},
    }
    return {name: round(float(value), 4) for name, value in scores.items()} | {"seconds": round(seconds, 2)}


# Classes of unequal size

SHARES = [0.95, 0.05]
UNEQUAL = {"auto": METHODS["m2"]}
for _name, _prior in {"uniform": "uniform", "map": "map", "known": SHARES}.items():
    UNEQUAL[_name] = Method(f"`class_prior={json.dumps(_prior)}`", M2, [{"class_prior": _prior}])
UNEQUAL["labels_alone"] = METHODS["labels_alone"]
UNEQUAL |= {name: METHODS[name]._replace(settings=[{}]) for name in ("logistic", "self_training", "spreading")}


def make_unequal_rows(seed: int) -> Rows:
    """Return rows and classes, ten labelled of each: of ten Gaussian columns, four are higher in the second class."""
    random = np.random.default_rng(seed)
    y = (random.random(3000) < SHARES[1]).astype(int)
    x = random.normal(size=(len(y), 10))
    x[:, :4] += 1.5 * y[:, None]
    x[:, 4:] += 0.5 * random.normal(size=(len(y), 1))
    return x[:2000], hide_labels(y[:2000], 10), x[2000:], y[2000:]


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


CELLS: dict[str, tuple[str, str, Callable[..., Any] | None]] = {
    "m2": ("`M2Classifier`", "m2", None),
    "labels_alone": ("its classifier on labels alone", "labels_alone", None),
    "logistic": ("logistic regression", "logistic", standardise_counts),
    "pca_logistic": ("PCA and logistic regression", "logistic", find_components),
    "spreading": ("PCA and label spreading", "spreading", find_components),
    "self_training": ("self-training", "self_training", standardise_counts),
    "forest": ("random forest", "forest", standardise_counts),
    "scanvi": ("SCANVI", "", None),
}
"""By name: what the table calls a method, its name in METHODS, and what it sees instead of the counts."""


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
