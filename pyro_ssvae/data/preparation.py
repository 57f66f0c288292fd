"""Examples as the model sees them: float32, divided by the scale, binarised if asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_ssvae._arguments import as_count, as_device, as_seed

__all__ = [
    "BINARISATIONS",
    "binarise",
    "check_binarisation",
    "convert_images",
    "derive_seed",
    "iterate_batches",
    "prepare",
    "rescale",
    "threshold",
]

BINARISATIONS = ("none", "static", "dynamic", "threshold")
_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue in grey (ITU-R BT.601)
_CHUNK = 4096


def derive_seed(seed: int, *path: int) -> int:
    """Return a seed for one of several generators, so that their numbers are independent."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> 1)


def rescale(x: Tensor, scale: float) -> Tensor:
    """Return ``x / scale`` as float32, with the device and shape of ``x``."""
    x = x.to(torch.float32)
    return x if scale == 1.0 else x / scale


def threshold(x: Tensor) -> Tensor:
    """Return one where ``x`` exceeds 0.5 and zero elsewhere, as float32."""
    return (x > 0.5).to(torch.float32)


def check_binarisation(binarisation: str, x: Tensor, scale: float) -> None:
    """Raise ``ValueError`` for an unknown binarisation, or one that needs ``x / scale`` in [0, 1] where it is not."""
    if binarisation not in BINARISATIONS:
        raise ValueError(f"binarisation={binarisation!r} must be one of {', '.join(BINARISATIONS)}.")
    if binarisation == "none" or x.numel() == 0:
        return
    low, high = float(x.min()) / scale, float(x.max()) / scale
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(
            f"binarisation={binarisation!r} needs values in [0, 1]: x / scale runs from {low:g} to {high:g} "
            f"(scale={scale:g}). Set the scale to the largest value of non-negative x, or use binarisation='none'."
        )


def binarise(x: Tensor, *, scale: float = 1.0, seed: int = 0) -> Tensor:
    """Draw every value once from a Bernoulli distribution with mean ``x / scale``.

    The convention of On the Quantitative Analysis of Deep Belief Networks (Salakhutdinov & Murray, 2008). Values are
    drawn on the CPU, so they are the same for every device.

    Args:
        x: Examples with shape ``(N, *event_shape)``, on any device.
        scale: Divides ``x``.
        seed: Seed of the draws.

    Returns:
        Zeros and ones with the shape of ``x``, uint8, on the CPU; their scale is 1.

    Raises:
        ValueError: If ``x / scale`` leaves [0, 1].
    """
    check_binarisation("static", x, scale)
    generator = torch.Generator().manual_seed(derive_seed(as_seed(seed), 0))
    drawn = torch.empty(x.shape, dtype=torch.uint8)
    for start in range(0, len(x), _CHUNK):
        mean = rescale(x[start : start + _CHUNK].cpu(), scale)
        drawn[start : start + _CHUNK] = torch.rand(mean.shape, generator=generator) < mean
    return drawn


def iterate_batches(
    x: Tensor,
    *,
    scale: float = 1.0,
    batch_size: int = 1000,
    device: torch.device | str = "cpu",
    binarisation: str = "none",
    seed: int = 0,
) -> Iterator[Tensor]:
    """Yield all examples in order, in batches on a device; for evaluation.

    Arguments are checked by the call, not when the first batch is drawn.

    Args:
        x: Examples with shape ``(N, *event_shape)``, as stored (uint8 allowed); N may be 0.
        scale: Divides ``x``.
        batch_size: Examples per batch; the last batch may be smaller.
        device: Device of the batches.
        binarisation: ``"none"``; ``"static"`` and ``"dynamic"`` both draw each value once, by the seed alone;
            ``"threshold"`` gives one where a value exceeds 0.5.
        seed: Seed of the binarisation.

    Returns:
        Batches with shape ``(B, *event_shape)``, float32, which may share memory with ``x``.

    Raises:
        TypeError: If the batch size is not an integer.
        ValueError: If an argument is out of range, or binarisation meets values outside [0, 1].
    """
    batch_size, device = as_count(batch_size, "batch_size", least=1), as_device(device)
    check_binarisation(binarisation, x, scale)
    if binarisation in ("static", "dynamic"):
        x, scale = binarise(x, scale=scale, seed=seed), 1.0
    batches = (rescale(batch.to(device), scale) for batch in x.split(batch_size) if len(batch))
    return map(threshold, batches) if binarisation == "threshold" else batches


def prepare(
    x: Tensor, *, scale: float = 1.0, device: torch.device | str = "cpu", binarisation: str = "none", seed: int = 0
) -> Tensor:
    """Return all examples in one tensor ``(N, *event_shape)``, float32.

    Arguments and errors are those of :func:`iterate_batches`.
    """
    size = max(1, len(x))
    batches = iterate_batches(x, scale=scale, batch_size=size, device=device, binarisation=binarisation, seed=seed)
    return next(batches) if len(x) else torch.empty(x.shape, device=as_device(device))


def convert_images(x: Tensor, event_shape: Sequence[int]) -> Tensor:
    """Return images ``(N, C, H, W)`` in [0, 1] with another size and number of channels, ``(N, *event_shape)``.

    There are 1 (grey), 3 (colour) or 4 channels (colour with opacity); other shapes raise ``ValueError``.
    """
    if x.dim() != 4 or len(event_shape) != 3 or {x.shape[1], event_shape[0]} - {1, 3, 4}:
        raise ValueError(
            f"Images (N, C, H, W) and a shape (C, H, W) are needed, both with 1, 3 or 4 channels; got {tuple(x.shape)} "
            f"and {tuple(event_shape)}."
        )
    channels, *size = event_shape
    x, opacity = (x[:, :3], x[:, 3:]) if x.shape[1] == 4 else (x, torch.ones_like(x[:, :1]))
    if channels == 1 and x.shape[1] == 3:
        x = (x * torch.tensor(_LUMINANCE, device=x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    elif channels >= 3:
        x = x.expand(-1, 3, -1, -1)
    if channels == 4:
        x = torch.cat([x, opacity], 1)
    if list(x.shape[2:]) == size:
        return x
    return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False).clamp(0.0, 1.0)
