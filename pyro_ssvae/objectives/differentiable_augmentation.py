"""Moves of images that an energy is not to notice, where there are too few images to learn that from."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["shift_and_flip"]


def shift_and_flip(x: Tensor, share: float) -> Tensor:
    """Return images moved at random, each by itself, and turned left to right half of the time.

    What leaves the image on one side comes in on the other, so that moves are permutations of pixels: they neither lose
    anything nor change a density's volume. Seen moved alike, neither data nor samples can be learnt by heart pixel by
    pixel (Differentiable Augmentation for Data-Efficient GAN Training, Zhao et al., 2020,
    https://arxiv.org/abs/2006.10738, whose moves leave images).

    Args:
        x: Images with shape ``(B, C, H, W)``; gradients pass.
        share: Largest move, as a share of the height and of the width.

    Returns:
        Images with the shape of ``x``.

    Raises:
        ValueError: For rows that are no images.
    """
    if x.dim() != 4:
        raise ValueError(
            f"Only images (C, H, W) can be moved, and rows have shape {tuple(x.shape[1:])}; set max_shift=0."
        )
    down, along = (_places(len(x), size, share, x.device) for size in x.shape[-2:])
    turned = torch.rand(len(x), 1, device=x.device) < 0.5
    along = torch.where(turned, along.flip(-1), along)
    x = x.gather(-2, down[:, None, :, None].expand_as(x))
    return x.gather(-1, along[:, None, None, :].expand_as(x))


def _places(rows: int, size: int, share: float, device: torch.device) -> Tensor:
    """Return where each pixel of a side comes from, with shape ``(B, size)``."""
    reach = round(share * size)
    shift = torch.randint(-reach, reach + 1, (rows, 1), device=device)
    return (torch.arange(size, device=device) + shift) % size
