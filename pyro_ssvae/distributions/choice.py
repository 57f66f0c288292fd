"""A likelihood for each column of a table, chosen by its values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_ssvae.distributions.discrete import Categorical, NegativeBinomial
from pyro_ssvae.distributions.likelihoods import Bernoulli, Gaussian, Likelihood
from pyro_ssvae.distributions.mixed import Mixed

__all__ = ["choose_likelihood"]

_COUNT_ZEROS = 0.2  # fraction of zeros from which whole numbers are taken for counts
_LEAST_LEVELS = 8  # values from which whole numbers may be counts


def choose_likelihood(x: NDArray[Any], levels: Mapping[int, int] | None = None) -> Likelihood:
    """Return a likelihood, a :class:`Mixed` one where columns differ.

    Columns of zeros and ones, and images in [0, 1] or of 8 bits, are Bernoulli; counts (whole numbers from zero, a
    fifth of them zeros) negative binomial; all others Gaussian.

    Args:
        x: Examples with shape ``(N, *event_shape)``.
        levels: Numbers of levels of the columns that hold codes, which are categorical.
    """
    if x.ndim > 2:
        unit = x.dtype == np.uint8 or (x.min() >= 0.0 and x.max() <= 1.0)
        return Bernoulli() if unit else Gaussian()
    binary = ((x == 0) | (x == 1)).all(0)
    whole = ((x >= 0) & (x == np.round(x))).all(0)
    counts = whole & ~binary & ((x == 0).mean(0) >= _COUNT_ZEROS) & (x.max(0) >= _LEAST_LEVELS)
    coded = np.isin(np.arange(x.shape[1]), list(levels or ()))
    groups = {
        Bernoulli: np.flatnonzero(binary & ~coded),
        NegativeBinomial: np.flatnonzero(counts & ~coded),
        Gaussian: np.flatnonzero(~binary & ~counts & ~coded),
    }
    parts: list[tuple[list[int], Likelihood]]
    parts = [(columns.tolist(), kind()) for kind, columns in groups.items() if len(columns)]
    for number in sorted(set((levels or {}).values())):
        columns = [column for column, found in (levels or {}).items() if found == number]
        parts.append((columns, Categorical(levels=max(2, number), spacing=1)))
    return parts[0][1] if len(parts) == 1 else Mixed(parts)
