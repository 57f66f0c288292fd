"""What the classifiers estimate beside the model: the class frequencies of a table, and a temperature."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from pyro_ssvae.estimators.base import Array

_FOLDS = 5  # of the estimate of the shares of the classes
_MOST_ROWS, _MOST_LABELLED = 20_000, 2_000  # behind the estimate, if there are more rows than the first number
_FOREST_CLASSES, _MOST_CLASSES = 100, 500  # up to which the estimate has a forest, and up to which there is one
_FEW = 5  # labels a class
_EXCESS = 0.6  # of the temperature over 1 at few labels, chosen as docs/results_tables.md says
_USUAL, _SPREAD = 2.0, 0.5  # temperature of tables before their labels are seen: median, and deviation of its logarithm


def estimate_shares(
    labelled: Array, y: Array, rows: Array, categories: Sequence[int], end: float
) -> tuple[list[float], float]:
    r"""Return an estimate of the share of each class among the rows of a table, and its certainty c.

    Labels drawn class by class say nothing of the shares, but the rows that look like each class do: the estimate ŝ is
    the mean prediction of two classifiers of the labelled rows, weighted by their likelihood of labels left out. As a
    wrong estimate does more harm than equal shares, it is shrunk towards these, by its jackknife variance V and the
    square of its bias b, the mean difference of predictions and labels left out (the positive-part estimator of James
    and Stein, 1961):

    .. math::

        s = \tfrac1K + c \, (\hat s - \tfrac1K),
        \quad c = \max\left(0, 1 - (V + \lVert b \rVert^2) / \lVert \hat s - \tfrac1K \rVert^2\right)

    ``labelled``, ``(L, D)``, are the rows with a label, and ``y`` their classes, each there; ``categories`` are columns
    of codes in no order. If a class has one label, none can be left out: the shares are equal, and c = 0; so
    they are for very many classes, and if the time ``end`` comes before the first classifier is done.
    """
    num_rows, (labelled, y, rows) = len(rows), _choose_rows(labelled, y, rows)
    fill = make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler())
    encode = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), list(categories)), remainder=fill, sparse_threshold=0
    ).fit(rows)
    number, folds = int(y.max()) + 1, min(_FOLDS, int(np.bincount(y).min()))
    if folds < 2 or number > _MOST_CLASSES:
        return [1.0 / number] * number, 0.0
    x, every = encode.transform(labelled), encode.transform(rows)
    split = list(StratifiedKFold(folds, shuffle=True, random_state=0).split(x, y))
    classifiers: list[Any] = [LogisticRegression(max_iter=1000)]
    classifiers += [RandomForestClassifier(50, random_state=0)] if number <= _FOREST_CLASSES else []
    answers = [answer for one in classifiers if (answer := _predict(one, x, y, every, split, end))]
    if not answers:
        return [1.0 / number] * number, 0.0
    means, by_fold, predictions = (np.array(one) for one in zip(*answers, strict=True))
    # No probability is 0.
    log_likelihoods = np.log(0.98 * predictions[:, np.arange(len(y)), y] + 0.02 / number).sum(1)
    weights = softmax(log_likelihoods)
    shares, left_out = weights @ means, np.tensordot(weights, by_fold, 1)
    bias = weights @ predictions.mean(1) - np.bincount(y) / len(y)
    error, distance = (folds - 1) * left_out.var(0).sum() + bias @ bias, np.square(shares - 1.0 / number).sum()
    certainty = max(0.0, 1.0 - float(error / distance)) if distance > 0 else 0.0
    return shrink_shares(shares, certainty, num_rows), certainty


def _choose_rows(labelled: Array, y: Array, rows: Array) -> tuple[Array, Array, Array]:
    """Return labelled rows, their classes, and rows to estimate shares from: all, or some of many, drawn at random.

    The classes keep their shares among the labelled rows, but for those that would keep fewer than a row for each fold.
    """
    if len(rows) <= _MOST_ROWS:
        return labelled, y, rows
    random, counts = np.random.default_rng(0), np.bincount(y)
    order = random.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]  # class by class
    place = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
    most = np.maximum(_FOLDS, counts * (_MOST_LABELLED / len(y)))
    few = np.sort(order[place < most[y[order]]])
    return labelled[few], y[few], rows[np.sort(random.permutation(len(rows))[:_MOST_ROWS])]


def shrink_shares(shares: Array, certainty: float, num_rows: int) -> list[float]:
    """Return shares of classes moved towards equal ones, none of them zero: as if every class had one row more."""
    shares = 1.0 / len(shares) + certainty * (shares - 1.0 / len(shares))
    return ((num_rows * shares + 1.0) / (num_rows + len(shares))).tolist()


def _predict(
    classifier: Any, x: Array, y: Array, every: Array, split: Sequence[Any], end: float
) -> tuple[Array, Array, Array] | None:
    """Return mean predictions for all rows, ``(K,)``, those without each fold, ``(F, K)``, and left out.

    Those left out, ``(L, K)``, are predictions for the labelled rows, each without its label. ``None`` if the time
    ``end`` comes before the last fold.
    """
    by_fold, left_out = [], np.zeros((len(y), int(y.max()) + 1))
    for used, left in split:
        if time.monotonic() > end:
            return None
        classifier.fit(x[used], y[used])
        left_out[left] = classifier.predict_proba(x[left])
        by_fold.append(classifier.predict_proba(every).mean(0))
    mean = classifier.fit(x, y).predict_proba(every).mean(0)
    return mean, np.array(by_fold), left_out


def least_temperature(labels: int, classes: int) -> float:
    """Return the least temperature: high with five or fewer labels a class, near 1 with many."""
    return 1.0 + _EXCESS * min(1.0, _FEW * classes / max(1, labels)) ** 0.5


def estimate_temperature(logits: Array, y: Array, shares: Array) -> float:
    r"""Return the temperature T under which labels left out of training are most probable, near its usual values.

    .. math::

        \max_T \sum_i w_i \log \mathrm{softmax}(l_i / T)_{y_i} - \frac{(\log T - \log 2)^2}{2 \sigma^2},
        \quad \sigma = \tfrac12

    ``logits`` l, ``(L, K)``, are of the labelled examples, each from a model that did not know its label y. The weights
    w make the ``shares`` of the classes, ``(K,)``, those of all examples.
    """
    weights = shares[y] / np.bincount(y, minlength=len(shares))[y]
    weights *= len(y) / weights.sum()

    def cost(log_t: float) -> float:
        fit = weights @ log_softmax(logits / math.exp(log_t), axis=1)[np.arange(len(y)), y]
        return float(0.5 * ((log_t - math.log(_USUAL)) / _SPREAD) ** 2 - fit)

    return math.exp(minimize_scalar(cost, bounds=(math.log(0.1), math.log(100.0)), method="bounded").x)
