r"""Augmentations for training energies of images: negative data augmentation, and random shifts and flips."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["NegativeAugmentation", "shift_and_flip"]

_MAX_KERNEL_RADIUS = 8  # pixels, of the Gaussian blur


class NegativeAugmentation(nn.Module):
    r"""Negative data augmentation: raise the energy of corrupted images :math:`c(x)` above that of the images x.

    .. math:: \mathbb E\,\mathrm{softplus}\bigl(m(x) + E(x) - E(c(x))\bigr), \qquad
        m(x) = \min\bigl(\tfrac{1}{2\tau^2} \|c(x) - x\|^2,\, m_{\max}\bigr)

    The likelihood lowers the energy of data and raises that of generated images. It says nothing about images far from
    both, and a blank one, which is smooth and of small norm, often gets the lowest energy of all. A corrupted image
    close to the original may have nearly its energy: the margin m is how much a Gaussian of standard deviation τ around
    x raises the energy, up to a maximum.

    Each image gets one of four corruptions with equal probability: its contrast is reduced towards a grey value, which
    is black for half of these images; it is blurred; it is joined with another image of the batch along a straight line
    (as in CutMix, Yun et al., 2019, https://arxiv.org/abs/1905.04899); or its patches, of a quarter or an eighth of
    either side, are shuffled (Negative Data Augmentation, Sinha et al., 2021, https://arxiv.org/abs/2102.05113).

    Args:
        margin: Maximum margin :math:`m_{\max}`, in nats. With large ones the energy fits corrupted images at the cost
            of the generator.
        std: τ, in the units of x.

    Raises:
        ValueError: For a non-positive margin or standard deviation.
    """

    def __init__(self, margin: float = 3.0, std: float = 1.0) -> None:
        super().__init__()
        if not (margin > 0.0 and std > 0.0):
            raise ValueError(f"margin={margin} and std={std} must be positive.")
        self.margin, self.std = margin, std

    def config(self) -> dict[str, Any]:
        """Return every setting, JSON-ready, for results."""
        return {"margin": self.margin, "std": self.std}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return corrupted images, with the shape of ``x``, and their margins in nats, with shape ``(B,)``.

        Args:
            x: Images with shape ``(B, C, H, W)``, in [0, 1].

        Raises:
            ValueError: If ``x`` does not hold images.
        """
        if x.dim() != 4:
            raise ValueError(
                f"Negative data augmentation needs images (C, H, W), and x has event shape {tuple(x.shape[1:])}; set "
                "negative_weight=0."
            )
        x = x.detach()
        fraction, kind, grey, black, vertical = torch.rand(5, len(x), 1, 1, 1, dtype=x.dtype, device=x.device)
        grey = torch.where(black < 0.5, torch.zeros_like(grey), grey)
        reduced = grey + fraction * (x - grey)
        blurred = _blur(x, 0.5 + 2.5 * torch.rand((), device=x.device))
        cut = _cut_mix(x, 0.3 + 0.4 * fraction, vertical < 0.5)
        shuffled = torch.where(fraction < 0.5, _shuffle_patches(x, 4), _shuffle_patches(x, 8))
        corrupted = torch.where(kind < 0.75, cut, shuffled)
        corrupted = torch.where(kind < 0.25, reduced, torch.where(kind < 0.5, blurred, corrupted))
        squared_distance = (corrupted - x).square().flatten(1).sum(-1)
        return corrupted, (squared_distance / (2.0 * self.std**2)).clamp(max=self.margin)

    def loss(self, energy: Tensor, energy_corrupted: Tensor, margin: Tensor) -> Tensor:
        """Return the loss, a scalar in nats, from E(x), E(c(x)) and m(x), each with shape ``(B,)``."""
        return F.softplus(margin + energy - energy_corrupted).mean()


def _cut_mix(x: Tensor, fraction: Tensor, vertical: Tensor) -> Tensor:
    """Join each image, up to a fraction of its height (where ``vertical``) or width, with the image before it."""
    down, along = (torch.linspace(0.0, 1.0, size, dtype=x.dtype, device=x.device) for size in x.shape[-2:])
    keep = torch.where(vertical, down.view(-1, 1), along) < fraction
    return torch.where(keep, x, x.roll(1, 0))


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

    This is differentiable augmentation (Zhao et al., 2020, https://arxiv.org/abs/2006.10738): applied to data and
    samples alike, it keeps the energy from memorising small data sets. The paper pads shifted images with zeros.
    Wrapping around makes the map a permutation of pixels, which loses nothing and leaves the volume of densities
    unchanged.

    Args:
        x: Images with shape ``(B, C, H, W)``; the result is differentiable with respect to them.
        max_shift: Largest shift, as a fraction of the height and of the width.

    Returns:
        Images with the shape of ``x``.

    Raises:
        ValueError: If ``x`` does not hold images.
    """
    if x.dim() != 4:
        raise ValueError(
            f"Shifts and flips need images (C, H, W), and x has event shape {tuple(x.shape[1:])}; set max_shift=0."
        )
    down, along = (_shifted_positions(len(x), size, max_shift, x.device) for size in x.shape[-2:])
    flip = torch.rand(len(x), 1, device=x.device) < 0.5
    along = torch.where(flip, along.flip(-1), along)
    x = x.gather(-2, down[:, None, :, None].expand_as(x))
    return x.gather(-1, along[:, None, None, :].expand_as(x))


def _shifted_positions(num_images: int, size: int, max_shift: float, device: torch.device) -> Tensor:
    """Return the position that each pixel of a side is taken from, with shape ``(num_images, size)``."""
    largest = round(max_shift * size)
    shift = torch.randint(-largest, largest + 1, (num_images, 1), device=device)
    return (torch.arange(size, device=device) + shift) % size
