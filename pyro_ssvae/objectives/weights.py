"""Weights by which a generator's rows stand for draws from an energy."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["importance_weights"]


def importance_weights(energy: Tensor, x: Tensor, num_neighbours: int, *, limit: float = 2.0) -> Tensor:
    r"""Return weights by which generated rows stand for draws from the energy's own law, detached, with sum 1.

    .. math:: w_i \propto \exp\Bigl(-\frac1k \sum_{j \in N_k(i)} E(x_j)\Bigr)\, r_{ik}^D

    with the k nearest rows :math:`N_k(i)` of row i, itself among them, and the distance :math:`r_{ik}` to the farthest
    of them: :math:`e^{-E} / p_G`, with :math:`p_G(x_i) \propto r_{ik}^{-D}`. D is the number of dimensions that rows
    fill, from the same distances (Maximum Likelihood Estimation of Intrinsic Dimension, Levina & Bickel, 2004, with
    inverses averaged over rows): rows on a curve fill one, whatever their number of elements.

    The likelihood's negative phase is an expectation under :math:`e^{-E} / Z`; under the generator's law, nothing but
    the generator's slow pursuit keeps the energies of modes far apart at one level. Both factors are of the
    neighbourhood, so that shapes smaller than it are left to the rows themselves.

    Args:
        energy: E(x), in nats, with shape ``(B,)``.
        x: Generated rows with shape ``(B, *event_shape)``.
        num_neighbours: k, at least 3 and at most B.
        limit: Largest distance of a logarithm of the weights from their mean, before they are normalised, in nats.

    Raises:
        ValueError: For another number of neighbours.
    """
    if not 3 <= num_neighbours <= len(x):
        raise ValueError(f"num_neighbours={num_neighbours} must be at least 3 and at most the {len(x)} rows.")
    rows = x.detach().flatten(1)
    distance, neighbours = torch.cdist(rows, rows).topk(num_neighbours, largest=False)
    radii = distance[:, 1:].clamp(min=1e-6).log()  # without the row itself
    slope = (radii[:, -1:] - radii[:, :-1]).mean()
    dim = (1.0 / slope.clamp(min=1e-6)).clamp(max=float(rows.shape[1]))
    level = -energy.detach()[neighbours].mean(-1)
    logits = level + dim * radii[:, -1]
    return (logits - logits.mean()).clamp(-limit, limit).softmax(0)
