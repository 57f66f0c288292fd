"""The machine in words, and its memory in bytes."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path
from typing import Any

import pyro
import torch

from pyro_ssvae.training.device import has_bf16

__all__ = [
    "available_memory",
    "describe",
    "forget_peak_memory",
    "limit_memory",
    "peak_memory",
    "resident_memory",
]


def _proc(path: str, key: str) -> str | None:
    """Return what a file of Linux's /proc says behind ``key:``, or ``None`` where there is no such file or key."""
    try:
        lines = Path("/proc", path).read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)


def _kibibytes(path: str, key: str) -> int | None:
    text = _proc(path, key)
    return int(text.split()[0]) * 1024 if text else None


def describe(device: str) -> dict[str, Any]:
    """Return what a reader needs to know of the machine, JSON-ready, and nothing that tells one copy from another."""
    total = _kibibytes("meminfo", "MemTotal")
    words: dict[str, Any] = {
        "CPU": _proc("cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bf16": "native" if has_bf16() else "emulated",
        "memory, GiB": round(total / 2**30) if total else None,
        "system": platform.system(),
        "Python": platform.python_version(),
        "PyTorch": str(torch.__version__),
        "Pyro": pyro.__version__,
    }
    if "OMP_WAIT_POLICY" in os.environ:
        words["OMP_WAIT_POLICY"] = os.environ["OMP_WAIT_POLICY"]
    if device == "cuda":
        words["GPU"] = torch.cuda.get_device_name()
        words["CUDA"] = torch.version.cuda
    return words


def available_memory() -> int | None:
    """Return bytes that can still be had without swapping, or ``None`` where the system does not say."""
    return _kibibytes("meminfo", "MemAvailable")


def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    # What getrusage says is inherited from the process that started this one; the kernel's own mark is not.
    mark = _kibibytes("self/status", "VmHWM")
    unit = 1 if platform.system() == "Darwin" else 1024
    return mark or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_memory() -> int:
    """Return the present resident size of this process in bytes, 0 where the system does not say."""
    return _kibibytes("self/status", "VmRSS") or 0


def forget_peak_memory() -> None:
    """Start the peak anew from the present size, where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def limit_memory(share: float = 0.9) -> None:
    """Let allocations fail at a share of the memory that is free now, before the system starts ending processes."""
    used, free = _kibibytes("self/status", "VmData"), available_memory()
    if used is not None and free is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = used + int(share * free)
        resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
