"""Devices, precision and memory of training."""

from __future__ import annotations

import os
import re
import warnings
from typing import TYPE_CHECKING, Any

import torch

from pyro_ssvae._arguments import as_device
from pyro_ssvae.training.config import TrainingConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["check_one_process", "describe_memory_error", "has_bf16", "make_fabric", "raise_mmap_threshold"]

_LARGEST_HEAP_BLOCK = 32 * 2**20 - 2**13  # bytes; glibc returns larger ones to the system as soon as they are freed


def has_bf16() -> bool:
    """Whether this CPU multiplies in bf16, as those with AVX-512 BF16, AMX or Arm's BF16 extension do."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a build of PyTorch without oneDNN
        return False


def raise_mmap_threshold() -> None:
    """Let the C library keep the memory that a step frees, instead of returning it to the system.

    glibc adapts its threshold: once a block of almost 32 MiB has been freed, blocks up to that size come from its heap,
    and the free end of the heap is returned only from twice that size on (``M_MMAP_THRESHOLD`` in ``mallopt(3)``).
    Otherwise every step requests the same pages from the system again, which takes a tenth of its time on a CPU. With
    other C libraries this has no effect.
    """
    torch.empty(_LARGEST_HEAP_BLOCK, dtype=torch.uint8)


def check_one_process() -> None:
    """Raise ``ValueError`` where a launcher such as torchrun has started several processes."""
    size = os.environ.get("WORLD_SIZE", "1").strip()
    if size not in ("", "0", "1"):
        raise ValueError(
            f"WORLD_SIZE={size}: a launcher such as torchrun has started several processes, and there is one process "
            "per run. Start python itself, or unset WORLD_SIZE."
        )


def describe_memory_error(error: BaseException) -> str | None:
    """Return in words how much memory was missing; ``None`` for any other error."""
    text = str(error)
    if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in text:
        return None
    asked = re.search(r"allocate ([\d.]+) ?(bytes|[KMGT]i?B)", text)
    if asked is None:
        return "out of memory"
    number, unit = asked.groups()
    return (
        f"out of memory ({f'{float(number) / 2**30:.2f} GiB' if unit == 'bytes' else f'{number} {unit}'} more needed)"
    )


def make_fabric(config: TrainingConfig) -> Fabric:
    """Return a Fabric for one device and the chosen precision.

    Raises:
        ValueError: For a device that does not exist, or is neither CPU nor CUDA, and under torchrun.

    Warns:
        UserWarning: For bf16 on a CPU that has no arithmetic for it and so emulates it, ten times slower than float32.
    """
    from lightning_fabric import Fabric  # takes seconds to import

    check_one_process()
    device = as_device(config.device)
    if device.type == "cpu" and config.precision == "bf16-mixed" and not has_bf16():
        warnings.warn(
            "This CPU has no bf16 arithmetic: PyTorch emulates it, about ten times slower than float32. Use "
            "precision='32-true' (--precision 32-true) here.",
            stacklevel=4,
        )
    devices = [device.index or 0] if device.type == "cuda" else 1
    precision: Any = config.precision  # checked by TrainingConfig
    return Fabric(accelerator=device.type, devices=devices, precision=precision)
