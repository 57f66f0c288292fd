r"""Distances between two samples, for generators without a density, and coverage of known modes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["energy_distance", "frechet_distance", "median_distance", "mode_coverage", "squared_mmd"]

_CHUNK = 100  # examples whose distances fit the cache
_MEDIAN_SIZE = 1000


def energy_distance(x: Tensor, y: Tensor) -> float:
    r"""Return the unbiased squared energy distance of two samples, of mean zero for equal distributions.

    .. math:: 2\,\mathbb E\|X - Y\| - \mathbb E\|X - X'\| - \mathbb E\|Y - Y'\|

    The distances of points to themselves are left out, so the estimate can be negative (Székely & Rizzo, 2013, "Energy
    statistics: a class of statistics based on distances").

    Args:
        x: A sample with shape ``(N, *event_shape)``, N at least 2.
        y: A sample with shape ``(M, *event_shape)``, M at least 2.

    Raises:
        ValueError: For fewer than two examples, or different event shapes.
    """
    x, y = _as_samples(x, y)
    within = sum(_sum_of(_distances(z, z)) / (len(z) * (len(z) - 1)) for z in (x, y))
    return 2.0 * _sum_of(_distances(x, y)) / (len(x) * len(y)) - within


def squared_mmd(x: Tensor, y: Tensor, bandwidth: float | None = None) -> float:
    r"""Return the unbiased squared maximum mean discrepancy of two samples, with a Gaussian kernel.

    .. math:: \mathbb E k(X, X') + \mathbb E k(Y, Y') - 2\,\mathbb E k(X, Y), \qquad
        k(a, b) = \exp\bigl(-\|a - b\|^2 / 2h^2\bigr)

    (A Kernel Two-Sample Test, Gretton et al., 2012, equation 3).

    Args:
        x: A sample with shape ``(N, *event_shape)``, N at least 2.
        y: A sample with shape ``(M, *event_shape)``, M at least 2.
        bandwidth: h; ``None`` for the :func:`median_distance` of ``y``.

    Raises:
        ValueError: For fewer than two examples, different event shapes, or a bandwidth that is not positive.
    """
    x, y = _as_samples(x, y)
    if bandwidth is None:
        bandwidth = median_distance(y)
    if not bandwidth > 0.0:
        raise ValueError(f"bandwidth={bandwidth} must be positive; the median distance of identical examples is not.")

    def kernel_sum(a: Tensor, b: Tensor) -> float:
        return _sum_of(part.square_().mul_(-0.5 / bandwidth**2).exp_() for part in _distances(a, b))

    within = sum((kernel_sum(z, z) - len(z)) / (len(z) * (len(z) - 1)) for z in (x, y))
    return within - 2.0 * kernel_sum(x, y) / (len(x) * len(y))


def median_distance(x: Tensor) -> float:
    """Return the median distance between the first 1,000 examples of ``x``, with shape ``(N, *event_shape)``.

    Raises:
        ValueError: For fewer than two examples.
    """
    if len(x) < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; at least two examples are needed.")
    return float(torch.pdist(x[:_MEDIAN_SIZE].flatten(1).double()).median())


def mode_coverage(x: Tensor, modes: dist.MultivariateNormal, *, radius: float = 3.0) -> dict[str, Any]:
    r"""Return how many modes of a mixture of Gaussians a sample covers, and in which proportions.

    .. math:: k_n = \arg\min_k d_{nk}, \qquad s_k = \frac1N \sum_n [k_n = k]\,[d_{nk} \le r], \qquad
        d_{nk}^2 = (x_n - \mu_k)^\top \Sigma_k^{-1} (x_n - \mu_k)

    A point is assigned to the mode at the smallest Mahalanobis distance d, and counted if it is of *high quality*, with
    :math:`d \le r` (98.9 % of the draws from a Gaussian in the plane have d below 3). Uniform noise therefore covers no
    mode.

    Args:
        x: Points with shape ``(N, D)``.
        modes: ``K`` Gaussians in ``D`` dimensions.
        radius: r.

    Returns:
        ``"shares"``, the s, with shape ``(K,)``; ``"modes"``, the number of modes with a share of at least 1/10K;
        ``"high_quality"``, the fraction of points of high quality, Σs.

    Raises:
        ValueError: For an empty ``x``.
    """
    if not len(x):
        raise ValueError(f"x has shape {tuple(x.shape)}; at least one point is needed.")
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

    (GANs Trained by a Two Time-Scale Update Rule, Heusel et al., 2017, equation 6.) The estimate is biased upwards for
    small samples: compare it with the distance of two real samples of the same sizes.

    Args:
        x: Features with shape ``(N, D)``, N at least 2.
        y: Features with shape ``(M, D)``, M at least 2.

    Raises:
        ValueError: For fewer than two examples, or different numbers of features.
    """
    x, y = _as_samples(x, y)
    first, second = torch.cov(x.T).view(x.shape[1], -1), torch.cov(y.T).view(x.shape[1], -1)
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp_min(0.0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0.0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + first.trace() + second.trace() - 2.0 * cross)


def _as_samples(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if min(len(x), len(y)) < 2 or x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"x and y must hold at least two examples each, of one event shape; got shapes {tuple(x.shape)} and "
            f"{tuple(y.shape)}."
        )
    return x.flatten(1).double(), y.flatten(1).double()


def _distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Return the distances of all pairs in chunks, from differences, so that equal examples have distance zero."""
    mode = "donot_use_mm_for_euclid_dist"
    return (torch.cdist(part, y, compute_mode=mode) for part in x.split(_CHUNK))


def _sum_of(parts: Iterator[Tensor]) -> float:
    return float(sum(part.sum() for part in parts))
