"""Weights by which a generator's rows stand for draws from an energy."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["importance_weights"]


def importance_weights(energy: Tensor, x: Tensor, num_neighbours: int, *, limit: float = 2.0) -> Tensor:
    r"""Return weights by which generated rows stand for draws from the energy's own law, detached, with sum 1.

    .. math:: w_i \propto \exp\Bigl(-\frac1k \sum_{j \in N_k(i)} E(x_j)\Bigr)\, r_{ik}^D

    with the k nearest rows :math:`N_k(i)` of row i, itself among them, and the distance :math:`r_{ik}` to the farthest
    of them: :math:`e^{-E} / p_G`, with :math:`p_G(x_i) \propto r_{ik}^{-D}`. The likelihood's negative phase is an
    expectation under :math:`e^{-E} / Z`; under the generator's law, nothing but the generator's slow pursuit keeps the
    energy of modes apart from each other at one level. Both factors are of the neighbourhood, so that shapes smaller
    than it are left to the rows themselves.

    Args:
        energy: E(x), in nats, with shape ``(B,)``.
        x: Generated rows with shape ``(B, *event_shape)``.
        num_neighbours: k, less than B.
        limit: Largest distance of a logarithm of the weights from their mean, before they are normalised, in nats.
    """
    rows = x.detach().flatten(1)
    distance, neighbours = torch.cdist(rows, rows).topk(num_neighbours, largest=False)
    level = -energy.detach()[neighbours].mean(-1)
    logits = level + rows.shape[1] * distance[:, -1].clamp(min=1e-6).log()
    return (logits - logits.mean()).clamp(-limit, limit).softmax(0)
