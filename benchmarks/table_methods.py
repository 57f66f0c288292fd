"""Sets of tables with few labels of each class, and the classifiers that are compared on them."""

from __future__ import annotations

import math
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import sklearn.datasets
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier
from table_format import Result

from pyro_ssvae.estimators import M2Classifier

Array = NDArray[Any]
Rows = tuple[Array, Array, Array, Array]
"""Training rows, their classes with -1 for no label, and rows and classes of the test."""

LABELS = 5  # of each class
_CHOSEN_ON = ("satellite", "vowel", "breastcancer", "dna", "wine", "digits")  # the sets on which defaults were chosen
_OTHERS = ("spam", "housevotes84", "soybean", "pimaindiansdiabetes2", "vehicle", "breast_cancer")
SETS = {name: f"{name} \\*" for name in _CHOSEN_ON} | dict(zip(_OTHERS, _OTHERS, strict=True))
"""What tables call each set."""
CODED: dict[str, Callable[[str], bool]] = {"soybean": lambda _: True, "vowel": lambda column: column == "V1"}
"""Columns whose numbers stand for categories."""


# Data


@cache
def load_set(name: str, folder: str) -> tuple[Array, Array, Array]:
    """Return rows ``(N, D)`` with NaN for missing values, which columns are categories, and classes ``(N,)``."""
    if hasattr(sklearn.datasets, f"load_{name}"):
        x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
        return x.astype(float), np.zeros(x.shape[1], dtype=bool), y
    table = pd.read_csv(f"{folder}/{name}.csv.gz", dtype=str, keep_default_na=False, na_values="")
    *columns, classes = (table[title] for title in table)
    values, categories = zip(*(_read_column(one, CODED.get(name, lambda _: False)) for one in columns), strict=True)
    return np.stack(values, 1), np.array(categories), pd.factorize(classes, sort=True)[0]


def _read_column(words: pd.Series[str], is_coded: Callable[[str], bool]) -> tuple[Array, bool]:
    """Return the numbers of a column, or the ranks of its words, and whether it holds categories."""
    numbers, codes = pd.to_numeric(words, errors="coerce"), pd.factorize(words, sort=True)[0]
    if is_coded(str(words.name)) or numbers.isna().sum() > words.isna().sum():
        return np.where(codes < 0, math.nan, codes), True
    return numbers.to_numpy(float), False


def split_rows(x: Array, y: Array, seed: int) -> Rows:
    """Return 70 % of the rows for training, five labels of each class among them, and the rest for the test."""
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.3, stratify=y, random_state=seed)
    return x, hide_labels(y, LABELS, np.random.default_rng(seed).permutation), x_test, y_test


def hide_labels(y: Array, labels: int, arrange: Callable[[Array], Array] = np.asarray) -> Array:
    """Return classes of which this many of each are known, -1 otherwise."""
    seen = np.full(len(y), -1)
    for k in np.unique(y):
        seen[arrange(np.flatnonzero(y == k))[:labels]] = k
    return seen


def write_words(categories: Array, *tables: Array) -> tuple[Array, ...]:
    """Return rows with words in place of the codes of categories, and ``None`` where one is missing."""
    if not categories.any():
        return tables
    found = [x.astype(object) for x in tables]
    for x in found:
        x[:, categories] = [[None if one != one else f"level {one:.0f}" for one in row] for row in x[:, categories]]
    return tuple(found)


def fill_and_encode(categories: Array, x: Array, x_test: Array) -> tuple[Array, Array]:
    """Return complete, standardised rows, with zeros and ones for categories: means and modes fill missing values."""
    options: dict[str, Any] = {"drop": "if_binary", "handle_unknown": "ignore", "sparse_output": False}
    encode = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(**options))
    parts = [("numbers", SimpleImputer(), ~categories), ("categories", encode, categories)]
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

    def fit(self, x: Array, y: Array, seed: int, settings: dict[str, Any] | None = None) -> Any:
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


def measure(
    method: Method,
    rows: Rows,
    seed: int,
    prepare: Callable[..., Any] = lambda *both: both,
) -> Result:
    """Fit one method, and return its scores and processor time: of preparation, choice, fit and prediction."""
    x, y, x_test, y_test = rows
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x, x_test = prepare(x, x_test)
        found = method.fit(x, y, seed).predict_proba(x_test)
    seconds = round(time.process_time() - started, 2)
    calibration = {"calibration_error": round(calibration_error(found, y_test), 4)}
    return {**score(y_test, found.argmax(1)), **calibration, "seconds": seconds}


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
