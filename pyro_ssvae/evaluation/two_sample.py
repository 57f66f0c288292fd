r"""Distances between two sets of samples, for generators whose density nobody knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["energy_distance", "frechet_distance", "median_distance", "mode_coverage", "squared_mmd"]

_ROWS_AT_A_TIME = 100  # whose distances fit the cache
_MEDIAN_ROWS = 1000


def energy_distance(x: Tensor, y: Tensor) -> float:
    r"""Return the unbiased squared energy distance of two samples; zero on average where their distributions agree.

    .. math:: 2\,\mathbb E\|X - Y\| - \mathbb E\|X - X'\| - \mathbb E\|Y - Y'\|

    estimated without the zero distances of points to themselves, so it can be negative (Székely & Rizzo, 2013,
    "Energy statistics: a class of statistics based on distances").

    Args:
        x: Shape ``(N, *event_shape)``, two rows at least.
        y: Shape ``(M, *event_shape)``, likewise.

    Raises:
        ValueError: For fewer than two rows, or rows of different shapes.
    """
    x, y = _rows(x, y)
    within = sum(_sum_of(_distances(z, z)) / (len(z) * (len(z) - 1)) for z in (x, y))
    return 2.0 * _sum_of(_distances(x, y)) / (len(x) * len(y)) - within


def squared_mmd(x: Tensor, y: Tensor, bandwidth: float | None = None) -> float:
    r"""Return the unbiased squared maximum mean discrepancy under a Gaussian kernel; zero on average for equal distributions.

    .. math:: \mathbb E k(X, X') + \mathbb E k(Y, Y') - 2\,\mathbb E k(X, Y), \qquad
        k(a, b) = \exp\bigl(-\|a - b\|^2 / 2h^2\bigr)

    (A Kernel Two-Sample Test, Gretton et al., 2012, equation 3).

    Args:
        x: Shape ``(N, *event_shape)``, two rows at least.
        y: Shape ``(M, *event_shape)``, likewise.
        bandwidth: h; :func:`median_distance` of ``y``, the reference, when ``None``.

    Raises:
        ValueError: For fewer than two rows, rows of different shapes, or a bandwidth that is not positive.
    """
    x, y = _rows(x, y)
    if bandwidth is None:
        bandwidth = median_distance(y)
    if not bandwidth > 0.0:
        raise ValueError(f"bandwidth={bandwidth} must be positive; identical rows give none.")

    def kernel_sum(a: Tensor, b: Tensor) -> float:
        return _sum_of(part.square_().mul_(-0.5 / bandwidth**2).exp_() for part in _distances(a, b))

    within = sum((kernel_sum(z, z) - len(z)) / (len(z) * (len(z) - 1)) for z in (x, y))
    return within - 2.0 * kernel_sum(x, y) / (len(x) * len(y))


def median_distance(x: Tensor) -> float:
    """Return the median distance between up to 1,000 rows, the first ones, of ``x`` with shape ``(N, *event_shape)``.

    Raises:
        ValueError: For fewer than two rows.
    """
    if len(x) < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; a distance takes two rows at least.")
    return float(torch.pdist(x[:_MEDIAN_ROWS].flatten(1).double()).median())


def mode_coverage(x: Tensor, modes: dist.MultivariateNormal, *, radius: float = 3.0) -> dict[str, Any]:
    r"""Return how samples spread over the modes of a mixture of Gaussians.

    .. math:: k_n = \arg\min_k d_{nk}, \qquad s_k = \frac1N \sum_n [k_n = k]\,[d_{nk} \le r], \qquad
        d_{nk}^2 = (x_n - \mu_k)^\top \Sigma_k^{-1} (x_n - \mu_k)

    A sample belongs to the mode that is nearest in Mahalanobis distance d, and counts only if it is of *high quality*,
    within the radius r of it (of a Gaussian's own draws in the plane, 98.9 % are within 3). So noise, of which a part
    is nearest to every mode but little is near, covers none.

    Args:
        x: Shape ``(N, D)``.
        modes: ``K`` Gaussians over ``D`` numbers.
        radius: r, the largest distance of a good sample.

    Returns:
        ``"shares"``, s of each mode, of good samples among all, shape ``(K,)``; ``"modes"``, the number of modes whose
        share is at least a tenth of an equal one, 1/10K; ``"high_quality"``, the share of good samples, Σs.

    Raises:
        ValueError: For no sample.
    """
    if not len(x):
        raise ValueError(f"x has shape {tuple(x.shape)}; the shares of modes take one sample at least.")
    difference = (x.unsqueeze(1) - modes.loc).unsqueeze(-1).to(modes.loc)  # (N, K, D, 1)
    scaled = torch.linalg.solve_triangular(modes.scale_tril, difference, upper=False).squeeze(-1)
    distance, mode = scaled.norm(dim=-1).min(-1)
    good = distance <= radius
    count = modes.loc.shape[0]
    shares = torch.bincount(mode[good], minlength=count).double() / len(x)
    return {
        "shares": shares,
        "modes": int((shares >= 0.1 / count).sum()),
        "high_quality": float(good.double().mean()),
    }


def frechet_distance(x: Tensor, y: Tensor) -> float:
    r"""Return the squared Fréchet distance between Gaussians fitted to two sets of features.

    .. math:: \|\mu_x - \mu_y\|^2 + \mathrm{tr}\bigl(C_x + C_y - 2 (C_x^{1/2} C_y C_x^{1/2})^{1/2}\bigr)

    (GANs Trained by a Two Time-Scale Update Rule, Heusel et al., 2017, equation 6.) It is biased upwards by a finite
    sample: hold it against the distance of two real samples of the same sizes.

    Args:
        x: Features with shape ``(N, D)``, two rows at least.
        y: Features with shape ``(M, D)``, likewise.

    Raises:
        ValueError: For fewer than two rows, or different numbers of features.
    """
    x, y = _rows(x, y)
    first, second = torch.cov(x.T).view(x.shape[1], -1), torch.cov(y.T).view(x.shape[1], -1)
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp_min(0.0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0.0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + first.trace() + second.trace() - 2.0 * cross)


def _rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if min(len(x), len(y)) < 2 or x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"Two samples of at least two rows of one shape are compared; got shapes {tuple(x.shape)} and "
            f"{tuple(y.shape)}."
        )
    return x.flatten(1).double(), y.flatten(1).double()


def _distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Return the distances of all pairs, some rows at a time, by differences: exactly zero for equal rows."""
    mode = "donot_use_mm_for_euclid_dist"
    return (torch.cdist(part, y, compute_mode=mode) for part in x.split(_ROWS_AT_A_TIME))


def _sum_of(parts: Iterator[Tensor]) -> float:
    return float(sum(part.sum() for part in parts))
