r"""Terms of the losses of energy models: entropies of generators, importance weights and augmentations of images.

Training a generator to sample from an energy model minimises
:math:`\mathrm{KL}(P_G \| P_E) = \mathbb E[E(G(z))] - H(P_G) + \log Z`. Without the entropy H every z would be mapped to
the point of lowest energy. Only the gradient of H is needed, so an estimate may be off by a constant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_ssvae._division import gather_rows, own_rows
from pyro_ssvae.distributions.choice import find_kind

_MAX_KERNEL_RADIUS = 8  # pixels, of the Gaussian blur
_MAX_MARGIN = 3.0  # nats, of corrupted images


class Entropy:
    """Base class: an estimate of H(P_G), in nats up to a constant, differentiable by the generator's parameters.

    Attributes:
        name: Short name, for arguments and results.
    """

    name: str

    def __call__(self, samples: Tensor, generator: nn.Module) -> Tensor:
        """Return the estimate, a scalar, from samples G(z), ``(B, *event_shape)``, and the generator G."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(samples, generator) -> scalar.")

    def config(self) -> dict[str, Any]:
        """Return every setting, JSON-ready, for results."""
        return {}


class BatchNormEntropy(Entropy):
    r"""Take the scales of batch normalisation for standard deviations of independent Gaussians.

    .. math:: H \approx \sum_i \tfrac12 \log(2 \pi e \gamma_i^2)

    (Kim & Bengio, 2016, section 3.2). A call raises ``ValueError`` if the generator has no batch normalisation.
    """

    name = "batch_norm"

    def __call__(self, samples: Tensor, generator: nn.Module) -> Tensor:
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
    r"""Estimate the entropy from distances to the nearest sample of the batch (Kozachenko & Leonenko, 1987).

    .. math:: H \approx \psi(B) - \psi(1) + \log V_D + \frac DB \sum_i \log r_i

    with the volume :math:`V_D` of the unit ball and the distance :math:`r_i` from sample i to its nearest neighbour.
    Samples may lie near a manifold of fewer dimensions than x has elements; ``dim`` is then the manifold's.

    Args:
        dim: D; ``None`` for the number of elements of a sample.

    Raises:
        ValueError: For a non-positive D; from a call, for a batch of one sample.
    """

    name = "nearest_neighbour"

    def __init__(self, dim: float | None = None) -> None:
        if dim is not None and not dim > 0.0:
            raise ValueError(f"dim={dim} must be positive.")
        self.dim = dim

    def config(self) -> dict[str, Any]:
        """Return every setting, JSON-ready, for results."""
        return {"dim": self.dim}

    def __call__(self, samples: Tensor, generator: nn.Module) -> Tensor:
        """Return the estimate, which depends on the samples alone."""
        x = gather_rows(samples).flatten(1)
        count = len(x)
        if count < 2:
            raise ValueError(f"A batch of {count} samples has no nearest neighbours; raise batch_size.")
        with torch.no_grad():  # rounding may make another sample nearer than the sample itself, so exclude the diagonal
            diagonal = torch.eye(count, dtype=torch.bool, device=x.device)
            neighbours = torch.cdist(x, x).masked_fill(diagonal, math.inf).argmin(1)
        squares = (x - x[neighbours]).square().sum(-1)
        dim = float(x.shape[1]) if self.dim is None else self.dim
        volume = 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim + 1.0)
        psi = math.fsum(1.0 / number for number in range(1, count))  # ψ(B) - ψ(1), without tensors on the CPU
        return psi + volume + 0.5 * dim * (squares + 1e-12).log().mean()


ENTROPIES: dict[str, type[Entropy]] = {kind.name: kind for kind in (BatchNormEntropy, NearestNeighbourEntropy)}
"""Estimates by name."""


def make_entropy(entropy: str | Entropy, latent_dim: int, event_shape: Sequence[int]) -> Entropy:
    """Return an estimate by its name in ``ENTROPIES``, or as given; others raise ``ValueError`` or ``TypeError``."""
    if isinstance(entropy, Entropy):
        return entropy
    if find_kind(entropy, "entropy", ENTROPIES, "an Entropy") is BatchNormEntropy:
        return BatchNormEntropy()
    return NearestNeighbourEntropy(dim=min(latent_dim, math.prod(event_shape)))  # of the manifold of samples


def total_std(x: Tensor) -> Tensor:
    """Return the square root of the total variance of samples."""
    return gather_rows(x).flatten(1).var(0).sum().sqrt()


def perturb_samples(x: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    r"""Return samples ``(B, *event_shape)`` with Gaussian noise, and their log-density up to a constant, ``(B,)``.

    .. math:: x'_i = x_i + h\,\epsilon_i, \qquad q(x') = \frac1B \sum_j N(x';\, x_j, h^2 I)

    with the bandwidth h in the units of x.
    """
    x = x.detach()
    perturbed = x + bandwidth * torch.randn_like(x)
    squares = torch.cdist(perturbed.flatten(1), gather_rows(x).flatten(1)).square()
    return perturbed, (-squares / (2.0 * bandwidth**2)).logsumexp(-1)


def normalise_importance_weights(energy: Tensor, log_proposal: Tensor) -> Tensor:
    r"""Return self-normalised, truncated importance weights of samples of q for expectations under :math:`e^{-E} / Z`.

    .. math:: w_i \propto \min\Bigl(r_i,\; \frac1{\sqrt B} \sum_j r_j\Bigr), \qquad r_i = \frac{e^{-E(x_i)}}{q(x_i)}

    The bound, :math:`\sqrt B` times the mean, keeps the variance finite, and its bias vanishes with growing batches
    (Truncated Importance Sampling, Ionides, 2008). Energies, log-densities and weights, detached, are ``(B,)``.
    """
    logits = (-energy.detach() - log_proposal).log_softmax(0)
    return logits.clamp(max=-0.5 * math.log(len(logits))).softmax(0)


def draw_negatives(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return corrupted images :math:`c(x)`, and by how many nats their energy should exceed that of x, ``(B,)``.

    .. math:: m(x) = \min\bigl(\tfrac12 \|c(x) - x\|^2,\, 3\bigr)

    The margin m is how much a standard Gaussian around x raises the energy, up to a maximum, as with large ones the
    energy fits corrupted images at the cost of the generator. Each image gets one of four corruptions with equal
    probability: its contrast is reduced towards a grey value, which is black for half of these images; it is blurred;
    it is joined with another image of the batch along a straight line (as in CutMix, Yun et al., 2019,
    https://arxiv.org/abs/1905.04899); or its patches, of a quarter or an eighth of either side, are shuffled (Negative
    Data Augmentation, Sinha et al., 2021, https://arxiv.org/abs/2102.05113). What is no image raises ``ValueError``.
    """
    _check_images(x, "Negative data augmentation needs", "negative_weight=0")
    x = x.detach()
    fraction, kind, grey, black, vertical = torch.rand(5, len(x), 1, 1, 1, dtype=x.dtype, device=x.device)
    grey = torch.where(black < 0.5, torch.zeros_like(grey), grey)
    reduced = grey + fraction * (x - grey)
    blurred = _blur(x, 0.5 + 2.5 * torch.rand((), device=x.device))
    cut = _cut_mix(x, 0.3 + 0.4 * fraction, vertical < 0.5)
    shuffled = torch.where(fraction < 0.5, _shuffle_patches(x, 4), _shuffle_patches(x, 8))
    corrupted = torch.where(kind < 0.75, cut, shuffled)
    corrupted = torch.where(kind < 0.25, reduced, torch.where(kind < 0.5, blurred, corrupted))
    return corrupted, (0.5 * (corrupted - x).square().flatten(1).sum(-1)).clamp(max=_MAX_MARGIN)


def _cut_mix(x: Tensor, fraction: Tensor, vertical: Tensor) -> Tensor:
    """Join each image, up to a fraction of its height (where ``vertical``) or width, with the image before it."""
    down, along = (torch.linspace(0.0, 1.0, size, dtype=x.dtype, device=x.device) for size in x.shape[-2:])
    keep = torch.where(vertical, down.view(-1, 1), along) < fraction
    return torch.where(keep, x, own_rows(gather_rows(x).roll(1, 0), like=x))


def _shuffle_patches(x: Tensor, count: int) -> Tensor:
    """Shuffle the ``count`` x ``count`` patches of each image; pixels beyond the last whole patch stay."""
    count = min(count, *x.shape[-2:])
    height, width = (size // count for size in x.shape[-2:])
    patch, area = (height, width), (count * height, count * width)
    patches = F.unfold(x[..., : area[0], : area[1]], patch, stride=patch)  # (B, elements of a patch, patches)
    order = torch.rand(len(x), 1, count**2, device=x.device).argsort(-1).expand_as(patches)
    shuffled = x.clone()
    shuffled[..., : area[0], : area[1]] = F.fold(patches.gather(-1, order), area, patch, stride=patch)
    return shuffled


def _blur(x: Tensor, std: Tensor) -> Tensor:
    """Convolve images with a Gaussian of a standard deviation in pixels, with replicated edges."""
    channels = x.shape[1]
    radius = min(_MAX_KERNEL_RADIUS, x.shape[-1] - 1, x.shape[-2] - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = (-0.5 * (offsets / std) ** 2).exp()
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="replicate"), kernel, groups=channels)
    return F.conv2d(F.pad(x, (0, 0, radius, radius), mode="replicate"), kernel.transpose(-1, -2), groups=channels)


def shift_and_flip(x: Tensor, max_shift: float) -> Tensor:
    """Shift each image at random, with wrap-around, and flip it from left to right with probability one half.

    This is differentiable augmentation (Zhao et al., 2020, https://arxiv.org/abs/2006.10738), which keeps the energy
    from memorising small data sets. Unlike the paper's padding with zeros, wrapping around is a permutation of pixels,
    which leaves the volume of densities unchanged. What is no image raises ``ValueError``.
    """
    _check_images(x, "Shifts and flips need", "max_shift=0")
    down, along = (draw_positions(x, size, round(max_shift * size)) % size for size in x.shape[-2:])
    return gather_pixels(x, down, along, 0.5)


def draw_positions(x: Tensor, size: int, largest: int) -> Tensor:
    """Return positions along a side of images ``(B, ...)``, each shifted by at most ``largest``, ``(B, size)``."""
    shift = torch.randint(-largest, largest + 1, (len(x), 1), device=x.device)
    return torch.arange(size, device=x.device) + shift


def gather_pixels(x: Tensor, down: Tensor, along: Tensor, flip: float) -> Tensor:
    """Return pixels at positions ``(B, H)`` and ``(B, W)``; images are flipped with the probability ``flip``."""
    flipped = torch.rand(len(x), 1, device=x.device) < flip
    along = torch.where(flipped, along.flip(-1), along)
    return x.gather(-2, down[:, None, :, None].expand_as(x)).gather(-1, along[:, None, None, :].expand_as(x))


def _check_images(x: Tensor, needs: str, instead: str) -> None:
    if x.dim() != 4:
        raise ValueError(f"{needs} images (C, H, W), and x has event shape {tuple(x.shape[1:])}; set {instead}.")
