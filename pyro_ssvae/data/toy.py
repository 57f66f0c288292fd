"""Points in the plane, drawn from known distributions: what energy models can be held against."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ssvae._checks import as_count, as_seed
from pyro_ssvae.data.dataset import SemiSupervisedData

__all__ = ["TOY_DATASETS", "draw_ring", "draw_spiral", "make_toy_data", "ring_distribution"]

_ARMS = 10


def ring_distribution() -> dist.MixtureSameFamily:
    """Return ten long Gaussians around a circle, as a distribution with event shape ``(2,)``.

    The k-th lies 1.4 from the origin in the direction 2πk/10, with standard deviations 0.5 along that direction and
    0.05 across it. The components, ``component_distribution``, are the modes.
    """
    angle = 2.0 * math.pi * torch.arange(_ARMS, dtype=torch.float64) / _ARMS
    along = torch.stack([angle.cos(), angle.sin()], -1)  # (10, 2)
    across = torch.stack([-angle.sin(), angle.cos()], -1)
    scale_tril = torch.linalg.cholesky(
        0.5**2 * along.unsqueeze(-1) * along.unsqueeze(-2) + 0.05**2 * across.unsqueeze(-1) * across.unsqueeze(-2)
    )
    arms = dist.MultivariateNormal((1.4 * along).float(), scale_tril=scale_tril.float())
    return dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(_ARMS)), arms)


def draw_ring(num_rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return points of :func:`ring_distribution`, shape ``(N, 2)``, and their arms, shape ``(N,)``."""
    arm = torch.randint(_ARMS, (num_rows,), generator=generator)
    distribution = ring_distribution().component_distribution
    noise = torch.randn(num_rows, 2, 1, generator=generator)
    return distribution.loc[arm] + (distribution.scale_tril[arm] @ noise).squeeze(-1), arm


def draw_spiral(num_rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return points on a spiral of ten overlapping stretches, shape ``(N, 2)``, and their stretches, shape ``(N,)``.

    With k uniform in 0, ..., 9 and s = U(0, 3)/10 + k/10, the radius is 3√s and the angle 4π√s. The points lie on a
    curve, so there is no density in the plane.
    """
    stretch = torch.randint(_ARMS, (num_rows,), generator=generator)
    s = (3.0 * torch.rand(num_rows, generator=generator) + stretch) / _ARMS
    radius, angle = 3.0 * s.sqrt(), 4.0 * math.pi * s.sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1), stretch


_DRAW: dict[str, Callable[[int, torch.Generator], tuple[Tensor, Tensor]]] = {"ring": draw_ring, "spiral": draw_spiral}
TOY_DATASETS = tuple(_DRAW)
"""Names of the distributions."""


def make_toy_data(
    name: str, *, num_rows: int = 50_000, num_validation: int = 5000, num_test: int = 5000, seed: int = 0
) -> SemiSupervisedData:
    """Return points of a distribution as data without labels; the arm of each is known for validation and test rows.

    Args:
        name: ``"ring"`` or ``"spiral"``.
        num_rows: Training rows.
        num_validation: Validation rows.
        num_test: Test rows.
        seed: Of the points.

    Raises:
        ValueError: For an unknown name or no training row.

    Example:
        >>> make_toy_data("ring", num_rows=100).event_shape
        (2,)
    """
    if name not in _DRAW:
        raise ValueError(f"There is no distribution of points named {name!r}; known: {', '.join(TOY_DATASETS)}.")
    sizes = [as_count(num_rows, "num_rows", least=1), num_validation, num_test]
    x, y = _DRAW[name](sum(sizes), torch.Generator().manual_seed(as_seed(seed)))
    (x, x_validation, x_test), (y, y_validation, y_test) = x.split(sizes), y.split(sizes)
    return SemiSupervisedData.from_arrays(
        x,
        y,
        x_validation=x_validation,
        y_validation=y_validation,
        x_test=x_test,
        y_test=y_test,
        num_classes=_ARMS,
        name=name,
    ).without_labels()
