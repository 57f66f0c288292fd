"""Weights by which rows near a generator's stand for draws from an energy's own distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["perturb_samples", "normalise_importance_weights"]


def perturb_samples(x: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    r"""Return rows with Gaussian noise, detached, and the logarithm of their density, up to a constant.

    .. math:: x'_i = x_i + h\,\epsilon_i, \qquad q(x') = \frac1B \sum_j N(x';\, x_j, h^2 I)

    Args:
        x: Rows with shape ``(B, *event_shape)``.
        bandwidth: h, in the units of rows.

    Returns:
        Rows with the shape of ``x``, and log q of each, in nats, with shape ``(B,)``.
    """
    x = x.detach()
    blurred = x + bandwidth * torch.randn_like(x)
    squares = torch.cdist(blurred.flatten(1), x.flatten(1)).square()
    return blurred, (-squares / (2.0 * bandwidth**2)).logsumexp(-1)


def normalise_importance_weights(energy: Tensor, log_proposal: Tensor) -> Tensor:
    r"""Return self-normalised weights by which rows of a known density stand for draws from the energy's own distribution.

    .. math:: w_i \propto \min\Bigl(r_i,\; \frac1{\sqrt B} \sum_j r_j\Bigr), \qquad r_i = \frac{e^{-E(x_i)}}{q(x_i)}

    The bound, of the square root of the number of rows times the mean, keeps the variance finite and vanishes with
    larger batches (Truncated Importance Sampling, Ionides, 2008).

    Args:
        energy: E(x), in nats, with shape ``(B,)``.
        log_proposal: log q(x), up to a constant, in nats, with shape ``(B,)``.

    Returns:
        Weights with shape ``(B,)`` and sum 1, detached.
    """
    logits = (-energy.detach() - log_proposal).log_softmax(0)
    return logits.clamp(max=-0.5 * math.log(len(logits))).softmax(0)
