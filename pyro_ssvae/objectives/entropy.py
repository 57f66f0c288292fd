r"""Estimates of the entropy of a generator's rows, whose density nobody knows.

Training a generator towards an energy model minimises
:math:`\mathrm{KL}(P_G \| P_E) = \mathbb E[E(G(z))] - H(P_G) + \log Z`. Without the entropy every z would give the row
of least energy. What is needed is its gradient, so an estimate may be off by a constant, or bound it.
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
    "ScoreEntropy",
    "make_entropy",
]


class Entropy(nn.Module):
    """Base class: an estimate of H(P_G), in nats up to a constant, differentiable by the generator.

    Attributes:
        name: Short name, for arguments and results.
    """

    name: str

    def forward(self, z: Tensor, x: Tensor, generator: nn.Module) -> Tensor:
        """Return the estimate, a scalar.

        Args:
            z: Latents with shape ``(B, L)``.
            x: What the generator made of them, with shape ``(B, *event_shape)``.
            generator: The generator.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(z, x, generator) -> scalar.")

    def config(self) -> dict[str, Any]:
        """Return every setting, JSON-ready, for results."""
        return {}

    def critic_loss(self, z: Tensor, x: Tensor) -> Tensor | None:
        """Return what the estimate's own networks minimise, or ``None`` if it has none.

        Args:
            z: Latents with shape ``(B, L)``.
            x: Generated rows with shape ``(B, *event_shape)``, detached.
        """
        return None


class BatchNormEntropy(Entropy):
    r"""The paper's: scales of batch normalisation taken for standard deviations of independent Gaussians.

    .. math:: H \approx \sum_i \tfrac12 \log(2 \pi e \gamma_i^2)

    (Kim & Bengio, 2016, section 3.2).

    Raises:
        ValueError: From a call, if the generator has no batch normalisation.
    """

    name = "batch_norm"

    def forward(self, z: Tensor, x: Tensor, generator: nn.Module) -> Tensor:
        """Return the estimate; ``z`` and ``x`` play no part."""
        kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        scales: list[Tensor] = [part.weight for part in generator.modules() if isinstance(part, kinds) and part.affine]
        if not scales:
            raise ValueError("entropy='batch_norm' reads the scales of batch normalisation; the generator has none.")
        squares = torch.cat(scales).square()
        return 0.5 * (squares + torch.finfo(squares.dtype).eps).log().sum() + 0.5 * squares.numel() * math.log(
            2.0 * math.pi * math.e
        )


class NearestNeighbourEntropy(Entropy):
    r"""Distances to the k-th nearest row of the batch (Kozachenko & Leonenko, 1987).

    .. math:: H \approx \psi(B) - \psi(k) + \log V_D + \frac DB \sum_i \log r_{ik}

    with the volume :math:`V_D` of the unit ball and the distance :math:`r_{ik}` from row i to its k-th neighbour. For
    rows near a surface of fewer dimensions D is not theirs, and ``dim`` says which number to take instead.

    Args:
        k: Which neighbour.
        dim: D; ``None`` for the number of elements of a row.

    Raises:
        ValueError: For a non-positive k or D; from a call, for a batch of k rows or fewer.
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
        """Return the estimate; ``z`` and the generator play no part."""
        rows = x.flatten(1)
        count = len(rows)
        if count <= self.k:
            raise ValueError(f"A batch of {count} rows has no neighbour number {self.k}; raise batch_size.")
        with torch.no_grad():  # which rows are neighbours; rounding may put a row nearer to another than to itself
            itself = torch.eye(count, dtype=torch.bool, device=rows.device)
            distances = torch.cdist(rows, rows).masked_fill(itself, math.inf)
            neighbours = distances.argmin(1) if self.k == 1 else distances.kthvalue(self.k, 1).indices
        squares = (rows - rows[neighbours]).square().sum(-1)
        dim = float(rows.shape[1]) if self.dim is None else self.dim
        volume = 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim + 1.0)
        psi = float(torch.digamma(torch.tensor(float(count))) - torch.digamma(torch.tensor(float(self.k))))
        return psi + volume + 0.5 * dim * (squares + 1e-12).log().mean()


class MutualInformationEntropy(Entropy):
    r"""The mutual information of z and G(z), which is the entropy of a deterministic generator.

    .. math:: I(z; x) \ge -\mathbb E\,\mathrm{softplus}(-T(x, z)) - \mathbb E\,\mathrm{softplus}(T(x, z'))

    up to a constant and a change of scale, for a critic T that is trained along, with :math:`z'` of another row
    (Maximum Entropy Generators for Energy-Based Models, Kumar et al., 2019, https://arxiv.org/abs/1901.08508).

    Args:
        latent_dim: Number of latents.
        event_shape: Shape of one row.
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
        """Return the bound; the generator plays no part."""
        rows = x.flatten(1)
        together = self.critic(torch.cat([rows, z], -1))
        apart = self.critic(torch.cat([rows, z.roll(1, 0)], -1))
        return -F.softplus(-together).mean() - F.softplus(apart).mean()

    def critic_loss(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the negative bound."""
        return -self(z, x, self.critic)


class ScoreEntropy(Entropy):
    r"""The gradient of the entropy, from a network that learns the score of the generator's rows.

    .. math:: \nabla_\phi H = -\mathbb E\bigl[s(G_\phi(z))^\top \nabla_\phi G_\phi(z)\bigr], \qquad
        s(x) = \nabla_x \log P_G(x)

    The network learns the score of rows with a little noise on them by denoising (A Connection Between Score Matching
    and Denoising Autoencoders, Vincent, 2011). The value is no entropy; its gradient is the entropy's.

    Args:
        event_shape: Shape of one row.
        noise: Standard deviation of that noise, in the units of the rows.
        hidden_dims: Hidden widths of the network.

    Raises:
        ValueError: For noise that is not positive.
    """

    name = "score"

    def __init__(
        self, event_shape: Sequence[int], noise: float = 0.05, hidden_dims: Sequence[int] = (128, 128)
    ) -> None:
        super().__init__()
        if not noise > 0.0:
            raise ValueError(f"noise={noise} must be positive.")
        self.noise, self.hidden_dims = noise, tuple(hidden_dims)
        size = math.prod(event_shape)
        self.critic = MLP((size,), size, hidden_dims, activation="silu")

    def config(self) -> dict[str, Any]:
        """Return every setting, JSON-ready, for results."""
        return {"noise": self.noise, "hidden_dims": list(self.hidden_dims)}

    def forward(self, z: Tensor, x: Tensor, generator: nn.Module) -> Tensor:
        """Return a scalar whose gradient is that of the entropy; ``z`` and the generator play no part."""
        rows = x.flatten(1)
        noisy = (rows + self.noise * torch.randn_like(rows)).detach()
        score = self.critic(noisy).detach() / self.noise
        return -(score * rows).sum(-1).mean()

    def critic_loss(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the loss of denoising."""
        rows = x.flatten(1)
        noise = torch.randn_like(rows)
        return (self.critic(rows + self.noise * noise) + noise).square().sum(-1).mean()


ENTROPIES: dict[str, type[Entropy]] = {
    kind.name: kind for kind in (BatchNormEntropy, NearestNeighbourEntropy, MutualInformationEntropy, ScoreEntropy)
}
"""Estimates by name."""


def make_entropy(entropy: str | Entropy, latent_dim: int, event_shape: Sequence[int], **config: Any) -> Entropy:
    """Return an estimate by name, or the given one unchanged.

    Args:
        entropy: A name in ``ENTROPIES``, or an :class:`Entropy`.
        latent_dim: Number of latents.
        event_shape: Shape of one row.
        **config: Other arguments of the named estimate.

    Raises:
        ValueError: For an unknown name.
        TypeError: For anything that is neither a name nor an :class:`Entropy`.
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
        return MutualInformationEntropy(latent_dim, event_shape, **config)
    if entropy == ScoreEntropy.name:
        return ScoreEntropy(event_shape, **config)
    if entropy == NearestNeighbourEntropy.name:  # a generator's rows fill no more dimensions than it has latents
        return NearestNeighbourEntropy(**{"dim": min(latent_dim, math.prod(event_shape)), **config})
    return ENTROPIES[entropy](**config)
