"""A likelihood for each column of a table, chosen by its values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_ssvae.distributions import Bernoulli, Gaussian, Likelihood, Mixed, NegativeBinomial

_COUNT_ZEROS = 0.2  # fraction of zeros from which whole numbers are taken for counts
_LEAST_LEVELS = 8  # values from which whole numbers may be counts


def choose_likelihood(x: NDArray[Any]) -> Likelihood:
    """Return a likelihood, a :class:`Mixed` one where columns differ.

    Columns of zeros and ones, and images in [0, 1] or of 8 bits, are Bernoulli; counts (whole numbers from zero, a
    fifth of them zeros) negative binomial; all others Gaussian.

    Args:
        x: Examples with shape ``(N, *event_shape)``.
    """
    if x.ndim > 2:
        unit = x.dtype == np.uint8 or (x.min() >= 0.0 and x.max() <= 1.0)
        return Bernoulli() if unit else Gaussian()
    binary = ((x == 0) | (x == 1)).all(0)
    whole = ((x >= 0) & (x == np.round(x))).all(0)
    counts = whole & ~binary & ((x == 0).mean(0) >= _COUNT_ZEROS) & (x.max(0) >= _LEAST_LEVELS)
    groups = {
        Bernoulli: np.flatnonzero(binary),
        NegativeBinomial: np.flatnonzero(counts),
        Gaussian: np.flatnonzero(~binary & ~counts),
    }
    parts = [(columns.tolist(), kind()) for kind, columns in groups.items() if len(columns)]
    return parts[0][1] if len(parts) == 1 else Mixed(parts)
