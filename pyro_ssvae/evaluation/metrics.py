"""Metrics of an objective on held-out data."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_ssvae.data import SemiSupervisedData
from pyro_ssvae.models import DDGM, M1, SemiSupervisedModel
from pyro_ssvae.models.base import fork_random_state
from pyro_ssvae.models.diagnostics import (
    classification_error,
    energy_diagnostics,
    iterate_batches_for,
    latent_diagnostics,
    posterior_diagnostics,
)
from pyro_ssvae.objectives import Objective

__all__ = ["mean_bound", "validation_metrics"]

_NUM_DIAGNOSED = 1000  # examples for the KL and the entropy, which are computed at every evaluation


def mean_bound(
    objective: Objective,
    x: Tensor,
    *,
    scale: float = 1.0,
    binarisation: str = "none",
    seed: int = 0,
    batch_size: int = 500,
) -> float:
    """Return the mean lower bound of log p(x), in nats per example (higher is better), with one draw of z.

    Classes, where the model has some, are summed out: -U(x).

    Args:
        objective: The objective whose module is evaluated, in evaluation mode.
        x: Examples with shape ``(N, *event_shape)``, as stored.
        scale: Divides ``x``.
        binarisation: As in training; ``"dynamic"`` and ``"static"`` both draw each pixel once, fixed by the seed.
        seed: Seed of the binarisation and of the draws of z; the caller's random state is left as it was.
        batch_size: Examples per batch.
    """
    total = 0.0
    options = {"scale": scale, "batch_size": batch_size, "binarisation": binarisation, "seed": seed}
    with fork_random_state(objective, seed):
        for batch in iterate_batches_for(objective, x, **options):
            total -= objective.unlabelled_bound(batch) * len(batch)
    return total / len(x)


def validation_metrics(
    objective: Objective, data: SemiSupervisedData, *, binarisation: str = "none", seed: int = 0
) -> tuple[dict[str, float], float | None]:
    """Return validation metrics, and the score (higher is better) by which the best evaluation is chosen.

    Models with classes: error and :func:`posterior_diagnostics`, scored by the error. Models without: bound and
    :func:`latent_diagnostics`, scored by the bound. Energy models: :func:`energy_diagnostics`, without validation
    examples on up to 1,000 training examples drawn by the seed; there is no score, the latest evaluation is chosen.

    Args:
        objective: The objective, whose module is evaluated.
        data: The data.
        binarisation: As in training.
        seed: Seed of the binarisation and the draws.

    Raises:
        ValueError: Without validation examples, except for an energy model.
    """
    x, module = data.x_validation, objective.module
    if not len(x) and not isinstance(module, DDGM):
        raise ValueError("There are no validation examples to evaluate on; pass data that holds some out.")
    few = x[:_NUM_DIAGNOSED]
    if isinstance(module, DDGM):
        if not len(x):
            order = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(seed))
            few = data.x[order[:_NUM_DIAGNOSED]]
        energies = energy_diagnostics(module, few, scale=data.scale, seed=seed)
        error = classification_error(module, x, data.y_validation, scale=data.scale) if module.has_classes else None
        return energies if error is None else {"validation_error": error, **energies}, None
    if isinstance(module, SemiSupervisedModel):
        error = classification_error(module, x, data.y_validation, scale=data.scale)
        found = posterior_diagnostics(module, few, scale=data.scale)
        return (found, None) if error is None else ({"validation_error": error, **found}, -error)
    bound = mean_bound(objective, x, scale=data.scale, binarisation=binarisation, seed=seed)
    found = {"validation_bound": bound}
    if isinstance(module, M1):
        found |= latent_diagnostics(module, few, scale=data.scale)
    return found, bound
