"""A likelihood for each column of a table, chosen by its values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_ssvae.distributions.counts import NegativeBinomial
from pyro_ssvae.distributions.discrete import Categorical
from pyro_ssvae.distributions.likelihoods import Bernoulli, Gaussian, Likelihood
from pyro_ssvae.distributions.mixed import Mixed

__all__ = ["choose_likelihood", "describe_likelihood"]

_COUNT_ZEROS = 0.2  # fraction of zeros from which whole numbers are taken for counts
_LEAST_LEVELS = 8  # values from which whole numbers may be counts
_COUNT_TABLE = 20  # columns from which rows of counts are taken for samples of different size
_MANY_COLUMNS, _COMPONENTS = 100, 30  # networks see components of counts in more columns; chosen on cells


def choose_likelihood(x: NDArray[Any], levels: Mapping[int, int] | None = None) -> Likelihood:
    """Return a likelihood, a :class:`Mixed` one where columns differ; missing values are left out.

    Columns of zeros and ones, codes of two words among them, and images in [0, 1] or of 8 bits, are Bernoulli; other
    codes categorical; counts (whole numbers from zero, a fifth of them zeros) negative binomial; all other real
    numbers, also positive ones and those in [0, 1], Gaussian. Tables of counts are negative binomial given the total of
    the row, with one dispersion for each column: those of whole numbers from zero in 20 columns or more, a fifth of
    them zeros, of which few columns attain the maximum, as pixels do. Of more than 100 such columns networks see the
    first 30 principal components.

    Args:
        x: Examples with shape ``(N, *event_shape)``, NaN where missing.
        levels: Number of codes of the columns that hold codes of words, by position.
    """
    if x.ndim > 2:
        unit = x.dtype == np.uint8 or (x.min() >= 0.0 and x.max() <= 1.0)
        return Bernoulli() if unit else Gaussian()
    levels = {column: number for column, number in (levels or {}).items() if number > 2}
    missing = np.isnan(x)
    x = np.where(missing, 0.0, x)  # zero is allowed by each of the following
    observed = np.maximum((~missing).sum(0), 1)
    nominal = np.isin(np.arange(x.shape[1]), list(levels))
    binary = ((x == 0) | (x == 1)).all(0) & ~missing.all(0) & ~nominal
    whole = ((x >= 0) & (x == np.round(x))).all(0) & ~nominal
    zeros = ((x == 0) & ~missing).sum(0) / observed
    counts = whole & ~binary & (zeros >= _COUNT_ZEROS) & (x.max(0) >= _LEAST_LEVELS)
    shared = (x.max(0) == x.max()).mean()
    if len(whole) >= _COUNT_TABLE and whole.all() and counts.any() and zeros.mean() >= _COUNT_ZEROS and shared <= 0.1:
        components = _COMPONENTS if len(whole) > _MANY_COLUMNS else None
        return NegativeBinomial(offset=True, columns=len(whole), components=components)
    groups: list[tuple[Likelihood, Any]] = [
        (Bernoulli(), binary),
        (NegativeBinomial(), counts),
        (Gaussian(), ~binary & ~counts & ~nominal),
        # Columns with the same number of levels together: each part adds to the time of a step.
        *(
            (Categorical(number, 1.0, one_hot=True), [column for column in levels if levels[column] == number])
            for number in dict.fromkeys(levels.values())
        ),
    ]
    masks = [(np.flatnonzero(which) if isinstance(which, np.ndarray) else which, kind) for kind, which in groups]
    parts = [([int(column) for column in columns], kind) for columns, kind in masks if len(columns)]
    return parts[0][1] if len(parts) == 1 else Mixed(parts)


def describe_likelihood(likelihood: Likelihood, columns: int) -> str:
    """Return in words how many columns follow which distribution: ``12 Gaussian, 1 categorical (4 levels)``."""
    parts = [(columns, likelihood)]
    if isinstance(likelihood, Mixed):
        parts = [(len(own), part) for own, part in zip(likelihood.columns, likelihood._likelihoods(), strict=True)]
    numbers: dict[str, int] = {}
    for number, part in parts:
        kind = re.sub("gaussian|laplace|bernoulli|poisson", lambda word: word[0].title(), part.name.replace("_", " "))
        kind += f" ({part.levels} levels)" if isinstance(part, Categorical) else ""
        kind += " given the total of the row" if getattr(part, "offset", False) else ""
        numbers[kind] = numbers.get(kind, 0) + number
    return ", ".join(f"{number} {kind}" for kind, number in numbers.items())
