"""Estimates of the shares of the classes from labels that were drawn class by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from pyro_ssvae.estimators.base import Array

__all__ = ["estimate_shares", "shrink_shares"]

_FOLDS = 5


def estimate_shares(labelled: Array, y: Array, rows: Array, categories: Sequence[int]) -> tuple[list[float], float]:
    r"""Return an estimate of the share of each class among the rows of a table, and its certainty c.

    Labels drawn class by class say nothing of the shares, but the rows that look like each class do: the estimate ŝ is
    the mean prediction of two classifiers of the labelled rows, weighted by their likelihood of labels left out. As a
    wrong estimate does more harm than equal shares, it is shrunk towards these, by its jackknife variance V (the
    positive-part estimator of James and Stein, 1961):

    .. math::

        s = \tfrac1K + c \, (\hat s - \tfrac1K),
        \quad c = \max\left(0, 1 - V / \lVert \hat s - \tfrac1K \rVert^2\right)

    Args:
        labelled: Rows with a label, shape ``(L, D)``, where NaN is missing.
        y: Their classes from 0 to K - 1, shape ``(L,)``; each is there.
        rows: Rows of which the shares are wanted, shape ``(N, D)``.
        categories: Columns whose values are codes in no order.

    Returns:
        K positive numbers whose sum is 1, and c in [0, 1]. If a class has one label, none can be left out: the numbers
        are equal, and c = 0.
    """
    fill = make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler())
    encode = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), list(categories)), remainder=fill, sparse_threshold=0
    ).fit(rows)
    x, every = encode.transform(labelled), encode.transform(rows)
    number, folds = int(y.max()) + 1, min(_FOLDS, int(np.bincount(y).min()))
    if folds < 2:
        return [1.0 / number] * number, 0.0
    split = list(StratifiedKFold(folds, shuffle=True, random_state=0).split(x, y))
    classifiers = (LogisticRegression(max_iter=1000), RandomForestClassifier(50, random_state=0))
    means, by_fold, log_likelihoods = zip(*(_predict(one, x, y, every, split) for one in classifiers), strict=True)
    weights = np.exp(np.array(log_likelihoods) - max(log_likelihoods))
    weights /= weights.sum()
    shares, left_out = weights @ np.array(means), np.tensordot(weights, np.array(by_fold), 1)
    variance = (folds - 1) * left_out.var(0).sum()
    distance = np.square(shares - 1.0 / number).sum()
    certainty = max(0.0, 1.0 - float(variance / distance)) if distance > 0 else 0.0
    return shrink_shares(shares, certainty, len(rows)), certainty


def shrink_shares(shares: Array, certainty: float, num_rows: int) -> list[float]:
    """Return shares of classes moved towards equal ones, none of them zero: as if every class had one row more."""
    shares = 1.0 / len(shares) + certainty * (shares - 1.0 / len(shares))
    return ((num_rows * shares + 1.0) / (num_rows + len(shares))).tolist()


def _predict(classifier: Any, x: Array, y: Array, every: Array, split: Sequence[Any]) -> tuple[Array, Array, float]:
    """Return mean predictions for all rows, ``(K,)``, those without each fold, ``(F, K)``, and log p(y left out)."""
    mean, number = classifier.fit(x, y).predict_proba(every).mean(0), int(y.max()) + 1
    by_fold, held_out = [], np.zeros(len(y))
    for used, left in split:
        classifier.fit(x[used], y[used])
        held_out[left] = classifier.predict_proba(x[left])[np.arange(len(left)), y[left]]
        by_fold.append(classifier.predict_proba(every).mean(0))
    return mean, np.array(by_fold), float(np.log(0.98 * held_out + 0.02 / number).sum())  # no probability is 0
