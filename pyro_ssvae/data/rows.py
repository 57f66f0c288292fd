"""Rows as the model sees them: float32, divided by the scale, binarised as asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_ssvae._checks import as_count, as_seed

__all__ = [
    "BINARISATIONS",
    "as_device",
    "at_threshold",
    "binarise",
    "check_binarisation",
    "derived_seed",
    "images_like",
    "iterate_batches",
    "prepare",
    "to_unit",
]

BINARISATIONS = ("none", "static", "dynamic", "threshold")
_THRESHOLD = 0.5
_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue in grey (ITU-R BT.601)
_CHUNK = 4096


def as_device(device: torch.device | str) -> torch.device:
    """Return a device that PyTorch knows and has.

    Raises:
        ValueError: If it does not.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is unknown; use 'cpu', 'cuda' or 'cuda:0'.") from error
    if found.type != "cuda":
        return found
    if not torch.cuda.is_available():
        raise ValueError(f"device={device!r} needs CUDA, which PyTorch does not find; use 'cpu'.")
    return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)


def derived_seed(seed: int, *path: int) -> int:
    """Return a seed for one of several generators, so that none repeats another's numbers."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> 1)


def to_unit(x: Tensor, scale: float) -> Tensor:
    """Return ``x / scale`` as float32, on the device of ``x``, shape unchanged."""
    rows = x.to(torch.float32)
    return rows if scale == 1.0 else rows / scale


def at_threshold(x: Tensor) -> Tensor:
    """Return one where ``x`` exceeds 0.5 and zero elsewhere, as float32."""
    return (x > _THRESHOLD).to(torch.float32)


def check_binarisation(binarisation: str, x: Tensor, scale: float) -> None:
    """Raise ``ValueError`` for an unknown binarisation, or one that the values rule out."""
    if binarisation not in BINARISATIONS:
        raise ValueError(f"binarisation={binarisation!r} must be one of {', '.join(BINARISATIONS)}.")
    if binarisation == "none" or x.numel() == 0:
        return
    low, high = float(x.min()) / scale, float(x.max()) / scale
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(
            f"binarisation={binarisation!r} needs values in [0, 1]: x / scale runs from {low:g} "
            f"to {high:g} (scale={scale:g}). Set the scale to the largest value of non-negative "
            "x, or use binarisation='none'."
        )


def binarise(x: Tensor, *, scale: float = 1.0, seed: int = 0) -> Tensor:
    """Draw every value once from a Bernoulli distribution with mean ``x / scale``, by the seed.

    The convention of On the Quantitative Analysis of Deep Belief Networks (Salakhutdinov & Murray,
    2008). The draw is made on the CPU: it is the same on every device.

    Args:
        x: Rows with shape ``(N, *event)``, on any device.
        scale: Divides ``x``.
        seed: Of the draw.

    Returns:
        Zeros and ones with shape ``(N, *event)``, uint8, on the CPU; their scale is 1.

    Raises:
        ValueError: If ``x / scale`` leaves [0, 1].
    """
    check_binarisation("static", x, scale)
    generator = torch.Generator().manual_seed(derived_seed(as_seed(seed), 0))
    drawn = torch.empty(x.shape, dtype=torch.uint8)
    for start in range(0, len(x), _CHUNK):
        mean = to_unit(x[start : start + _CHUNK].cpu(), scale)
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
    """Yield all rows in order, in batches that fit on a device; for validation and test.

    Args:
        x: Rows with shape ``(N, *event)``, as stored (8-bit allowed); N may be 0.
        scale: Divides ``x``.
        batch_size: Rows at a time, the last batch being what is left.
        device: Where the batches are wanted.
        binarisation: ``"none"``; ``"static"`` and ``"dynamic"`` both draw each value once, fixed
            by the seed whatever the batch size and device; ``"threshold"`` asks whether it exceeds 0.5.
        seed: Of the binarisation.

    Returns:
        Batches with shape ``(B, *event)``, float32, which may share memory with ``x``.

    Raises:
        TypeError: If the batch size is not an integer.
        ValueError: If an argument is out of range, or binarisation meets values outside [0, 1].
    """
    batch_size = as_count(batch_size, "batch_size", least=1)
    device = as_device(device)
    check_binarisation(binarisation, x, scale)
    if binarisation in ("static", "dynamic"):
        x, scale = binarise(x, scale=scale, seed=seed), 1.0
    threshold = binarisation == "threshold"
    # Everything above runs at the call, not at the first batch.
    rows = (to_unit(batch.to(device), scale) for batch in x.split(batch_size) if len(batch))
    return (at_threshold(batch) for batch in rows) if threshold else rows


def prepare(
    x: Tensor,
    *,
    scale: float = 1.0,
    device: torch.device | str = "cpu",
    binarisation: str = "none",
    seed: int = 0,
) -> Tensor:
    """Return all rows at once as :func:`iterate_batches` yields them.

    Args:
        x: Rows with shape ``(N, *event)``, as stored.
        scale: Divides ``x``.
        device: Where they are wanted.
        binarisation: As for :func:`iterate_batches`; ``"static"`` and ``"dynamic"`` are the same here.
        seed: Of the binarisation.

    Returns:
        Rows with shape ``(N, *event)``, float32.

    Raises:
        ValueError: If an argument is out of range, or binarisation meets values outside [0, 1].
    """
    all_rows = max(1, len(x))
    batches = list(
        iterate_batches(x, scale=scale, batch_size=all_rows, device=device, binarisation=binarisation, seed=seed)
    )
    return batches[0] if batches else torch.empty(x.shape, device=device)


def images_like(x: Tensor, event_shape: Sequence[int]) -> Tensor:
    """Return images in another size and number of channels: grey, colour, or colour with opacity.

    Args:
        x: Images with shape ``(N, C, H, W)``, in [0, 1], with 1, 3 or 4 channels.
        event_shape: Shape ``(C, H, W)`` that they are brought to, with as many.

    Returns:
        Images with shape ``(N, *event_shape)``, in [0, 1].

    Raises:
        ValueError: For other shapes.
    """
    if x.dim() != 4 or len(event_shape) != 3 or {x.shape[1], event_shape[0]} - {1, 3, 4}:
        raise ValueError(
            f"Images (N, C, H, W) of 1, 3 or 4 channels are needed, and a shape (C, H, W) with as many; got "
            f"{tuple(x.shape)} and {tuple(event_shape)}."
        )
    channels, *size = event_shape
    x, opacity = (x[:, :3], x[:, 3:]) if x.shape[1] == 4 else (x, torch.ones_like(x[:, :1]))
    if channels == 1 and x.shape[1] == 3:
        x = (x * torch.tensor(_LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)
    elif channels >= 3:
        x = x.expand(-1, 3, -1, -1)
    if channels == 4:
        x = torch.cat([x, opacity], 1)
    if tuple(x.shape[2:]) != tuple(size):
        x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False).clamp(0.0, 1.0)
    return x
