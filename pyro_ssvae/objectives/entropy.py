r"""Estimates of the entropy of a generator's distribution, whose density is not available.

Training a generator to sample from an energy model minimises
:math:`\mathrm{KL}(P_G \| P_E) = \mathbb E[E(G(z))] - H(P_G) + \log Z`. Without the entropy H every z would be mapped to
the point of lowest energy. Only the gradient of H is needed, so an estimate may be off by a constant, or be a bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_ssvae.networks import MLP

__all__ = [
    "ENTROPIES",
    "BatchNormEntropy",
    "Entropy",
    "MutualInformationEntropy",
    "NearestNeighbourEntropy",
    "make_entropy",
]


class Entropy(nn.Module):
    """Base class: an estimate of H(P_G), in nats up to a constant, differentiable by the generator's parameters.

    Attributes:
        name: Short name, for arguments and results.
    """

    name: str

    def forward(self, z: Tensor, x: Tensor, generator: nn.Module) -> Tensor:
        """Return the estimate, a scalar.

        Args:
            z: Latents with shape ``(B, L)``.
            x: The samples G(z), with shape ``(B, *event_shape)``.
            generator: The generator G.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(z, x, generator) -> scalar.")

    def config(self) -> dict[str, Any]:
        """Return every setting, JSON-ready, for results."""
        return {}

    def critic_loss(self, z: Tensor, x: Tensor) -> Tensor | None:
        """Return the loss of the estimate's own networks, or ``None`` if it has none.

        Args:
            z: Latents with shape ``(B, L)``.
            x: The samples G(z), with shape ``(B, *event_shape)``, detached.
        """
        return None


class BatchNormEntropy(Entropy):
    r"""Take the scales of batch normalisation for standard deviations of independent Gaussians.

    .. math:: H \approx \sum_i \tfrac12 \log(2 \pi e \gamma_i^2)

    (Kim & Bengio, 2016, section 3.2).

    Raises:
        ValueError: From a call, if the generator has no batch normalisation.
    """

    name = "batch_norm"

    def forward(self, z: Tensor, x: Tensor, generator: nn.Module) -> Tensor:
        """Return the estimate, which depends on the generator alone."""
        kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        scales: list[Tensor] = [part.weight for part in generator.modules() if isinstance(part, kinds) and part.affine]
        if not scales:
            raise ValueError("entropy='batch_norm' reads the scales of batch normalisation; the generator has none.")
        squares = torch.cat(scales).square()
        return 0.5 * (squares + torch.finfo(squares.dtype).eps).log().sum() + 0.5 * squares.numel() * math.log(
            2.0 * math.pi * math.e
        )


class NearestNeighbourEntropy(Entropy):
    r"""Estimate the entropy from distances to the k-th nearest sample of the batch (Kozachenko & Leonenko, 1987).

    .. math:: H \approx \psi(B) - \psi(k) + \log V_D + \frac DB \sum_i \log r_{ik}

    with the volume :math:`V_D` of the unit ball and the distance :math:`r_{ik}` from sample i to its k-th neighbour.
    Samples may lie near a manifold of fewer dimensions than x has elements; ``dim`` is then the manifold's.

    Args:
        k: Number of the neighbour.
        dim: D; ``None`` for the number of elements of a sample.

    Raises:
        ValueError: For a non-positive k or D; from a call, for a batch of at most k samples.
    """

    name = "nearest_neighbour"

    def __init__(self, k: int = 1, dim: float | None = None) -> None:
        super().__init__()
        if k < 1 or (dim is not None and not dim > 0.0):
            raise ValueError(f"k={k} must be at least 1, and dim={dim} positive.")
        self.k, self.dim = k, dim

    def config(self) -> dict[str, Any]:
        """Return every setting, JSON-ready, for results."""
        return {"k": self.k, "dim": self.dim}

    def forward(self, z: Tensor, x: Tensor, generator: nn.Module) -> Tensor:
        """Return the estimate, which depends on the samples alone."""
        x = x.flatten(1)
        count = len(x)
        if count <= self.k:
            raise ValueError(f"A batch of {count} samples has no neighbour number {self.k}; raise batch_size.")
        with torch.no_grad():  # rounding may make another sample nearer than the sample itself, so exclude the diagonal
            diagonal = torch.eye(count, dtype=torch.bool, device=x.device)
            distances = torch.cdist(x, x).masked_fill(diagonal, math.inf)
            neighbours = distances.argmin(1) if self.k == 1 else distances.kthvalue(self.k, 1).indices
        squares = (x - x[neighbours]).square().sum(-1)
        dim = float(x.shape[1]) if self.dim is None else self.dim
        volume = 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim + 1.0)
        psi = math.fsum(1.0 / number for number in range(self.k, count))  # ψ(B) - ψ(k), without tensors on the CPU
        return psi + volume + 0.5 * dim * (squares + 1e-12).log().mean()


class MutualInformationEntropy(Entropy):
    r"""Bound the mutual information of z and G(z), which is the entropy of a deterministic generator.

    .. math:: I(z; x) \ge -\mathbb E\,\mathrm{softplus}(-T(x, z)) - \mathbb E\,\mathrm{softplus}(T(x, z'))

    up to a constant and a change of scale, for a critic T that is trained along with the generator, and the latents
    :math:`z'` of another sample (Maximum Entropy Generators for Energy-Based Models, Kumar et al., 2019,
    https://arxiv.org/abs/1901.08508).

    Args:
        latent_dim: Number of latents.
        event_shape: Shape of one sample.
        hidden_dims: Hidden widths of the critic.
    """

    name = "mutual_information"

    def __init__(self, latent_dim: int, event_shape: Sequence[int], hidden_dims: Sequence[int] = (128, 128)) -> None:
        super().__init__()
        self.hidden_dims = tuple(hidden_dims)
        self.critic = MLP((latent_dim + math.prod(event_shape),), 1, hidden_dims, activation="silu")

    def config(self) -> dict[str, Any]:
        """Return every setting, JSON-ready, for results."""
        return {"hidden_dims": list(self.hidden_dims)}

    def forward(self, z: Tensor, x: Tensor, generator: nn.Module) -> Tensor:
        """Return the bound, which depends on latents and samples alone."""
        x = x.flatten(1)
        joint = self.critic(torch.cat([x, z], -1))
        independent = self.critic(torch.cat([x, z.roll(1, 0)], -1))
        return -F.softplus(-joint).mean() - F.softplus(independent).mean()

    def critic_loss(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the negative bound."""
        return -self(z, x, self.critic)


ENTROPIES: dict[str, type[Entropy]] = {
    kind.name: kind for kind in (BatchNormEntropy, NearestNeighbourEntropy, MutualInformationEntropy)
}
"""Estimates by name."""


def make_entropy(entropy: str | Entropy, latent_dim: int, event_shape: Sequence[int]) -> Entropy:
    """Return an estimate by name, or the given one unchanged.

    Args:
        entropy: A name in ``ENTROPIES``, or an :class:`Entropy`.
        latent_dim: Number of latents of the generator.
        event_shape: Shape of one sample.

    Raises:
        ValueError: For an unknown name.
        TypeError: If ``entropy`` is neither a name nor an :class:`Entropy`.
    """
    if isinstance(entropy, Entropy):
        return entropy
    if not isinstance(entropy, str):
        raise TypeError(
            f"entropy must be a name or an Entropy, not {type(entropy).__name__}; names: {', '.join(ENTROPIES)}."
        )
    if entropy not in ENTROPIES:
        raise ValueError(f"entropy={entropy!r} is unknown; choose one of {', '.join(ENTROPIES)}.")
    if entropy == MutualInformationEntropy.name:
        return MutualInformationEntropy(latent_dim, event_shape)
    if entropy == NearestNeighbourEntropy.name:  # samples lie on a manifold of at most latent_dim dimensions
        return NearestNeighbourEntropy(dim=min(latent_dim, math.prod(event_shape)))
    return ENTROPIES[entropy]()
