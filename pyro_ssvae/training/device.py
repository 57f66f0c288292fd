"""Devices by name, through Lightning Fabric."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning_fabric import Fabric

from pyro_ssvae._checks import as_device
from pyro_ssvae.training.config import TrainingConfig

__all__ = ["has_bf16", "keep_freed_memory", "make_fabric"]

_LARGEST_HEAP_BLOCK = 32 * 2**20 - 2**13  # bytes; glibc gives larger ones to the system as soon as they are freed


def has_bf16() -> bool:
    """Whether this CPU multiplies in bf16, as those with AVX-512 BF16, AMX or Arm's BF16 extension do."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a build of PyTorch without oneDNN
        return False


def keep_freed_memory() -> None:
    """Let the C library keep what a step frees for the next step, instead of returning it to the system.

    glibc learns from use: freeing one block of almost 32 MiB makes it take blocks up to that size from its heap, and
    return the heap's free end to the system only from twice that size on (``M_MMAP_THRESHOLD`` in ``mallopt(3)``).
    Without, every step asks the system for the same pages again, a tenth of its time on the CPU. Other C libraries
    only see a block come and go.
    """
    torch.empty(_LARGEST_HEAP_BLOCK, dtype=torch.uint8)


def make_fabric(config: TrainingConfig) -> Fabric:
    """Return a Fabric for one device and the chosen precision.

    Raises:
        ValueError: For a device that does not exist, or is neither CPU nor CUDA.

    Warns:
        UserWarning: For bf16 on a CPU that has no arithmetic for it and so emulates it, ten times slower than float32.
    """
    device = as_device(config.device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={config.device!r} is not supported; use auto, cpu, cuda or cuda:INDEX.")
    if device.type == "cpu" and config.precision == "bf16-mixed" and not has_bf16():
        warnings.warn(
            "This CPU has no bf16 arithmetic: PyTorch emulates it, about ten times slower than float32. Use "
            "precision='32-true' (--precision 32-true) here.",
            stacklevel=3,
        )
    devices = [device.index or 0] if device.type == "cuda" else 1
    precision: Any = config.precision  # one of Fabric's own words; the settings have checked that
    return Fabric(accelerator=device.type, devices=devices, precision=precision)
