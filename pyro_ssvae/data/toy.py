"""Points in the plane from known distributions, against which energy models can be evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ssvae._arguments import checked
from pyro_ssvae.data.dataset import SemiSupervisedData

_COMPONENTS = 10


def ring_distribution() -> dist.MixtureSameFamily:
    """Return a mixture of ten elongated Gaussians around a circle, with event shape ``(2,)``.

    The k-th has its mean at distance 1.4 from the origin in the direction 2πk/10, and standard deviations of 0.5 along
    that direction and 0.05 across it.
    """
    angle = 2.0 * math.pi * torch.arange(_COMPONENTS, dtype=torch.float64) / _COMPONENTS
    along = torch.stack([angle.cos(), angle.sin()], -1)  # (10, 2)
    across = torch.stack([-angle.sin(), angle.cos()], -1)
    covariance = 0.5**2 * along[:, :, None] * along[:, None] + 0.05**2 * across[:, :, None] * across[:, None]
    scale_tril = torch.linalg.cholesky(covariance)
    components = dist.MultivariateNormal((1.4 * along).float(), scale_tril=scale_tril.float())
    return dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(_COMPONENTS)), components)


def draw_ring(num_points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return points of :func:`ring_distribution`, shape ``(N, 2)``, and their components, shape ``(N,)``."""
    component = torch.randint(_COMPONENTS, (num_points,), generator=generator)
    distribution = ring_distribution().component_distribution
    noise = torch.randn(num_points, 2, 1, generator=generator)
    return distribution.loc[component] + (distribution.scale_tril[component] @ noise).squeeze(-1), component


def draw_spiral(num_points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return points on a spiral of ten overlapping segments, shape ``(N, 2)``, and their segments, shape ``(N,)``.

    With k uniform in 0, ..., 9 and s = U(0, 3)/10 + k/10, the radius is 3√s and the angle 4π√s. The points lie on a
    curve, so there is no density in the plane.
    """
    segment = torch.randint(_COMPONENTS, (num_points,), generator=generator)
    s = (3.0 * torch.rand(num_points, generator=generator) + segment) / _COMPONENTS
    radius, angle = 3.0 * s.sqrt(), 4.0 * math.pi * s.sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1), segment


TOY_DATASETS: dict[str, Callable[[int, torch.Generator], tuple[Tensor, Tensor]]] = {
    "ring": draw_ring,
    "spiral": draw_spiral,
}
"""Functions that draw points, by the name of the distribution."""


@checked
def make_toy_data(
    name: str, *, num_train: int = 50_000, num_validation: int = 5000, num_test: int = 5000, seed: int = 0
) -> SemiSupervisedData:
    """Return points of a distribution, ``"ring"`` or ``"spiral"``, as data with unlabelled training examples.

    The classes are the ten components of the distribution; they are known for validation and test examples.

    Raises:
        ValueError: For an unknown name, no training example, or a negative number of others.

    Example:
        >>> make_toy_data("ring", num_train=100).event_shape
        (2,)
    """
    if name not in TOY_DATASETS:
        raise ValueError(f"There is no distribution of points named {name!r}; known: {', '.join(TOY_DATASETS)}.")
    sizes = [num_train, num_validation, num_test]
    x, y = TOY_DATASETS[name](sum(sizes), torch.Generator().manual_seed(seed))
    (x, x_validation, x_test), (_, y_validation, y_test) = x.split(sizes), y.split(sizes)
    held_out = {"x_validation": x_validation, "y_validation": y_validation, "x_test": x_test, "y_test": y_test}
    return SemiSupervisedData.from_arrays(x, **held_out, num_classes=_COMPONENTS, name=name, seed=seed)
