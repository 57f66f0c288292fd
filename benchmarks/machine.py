"""Description of the machine, and the memory of this process."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path
from typing import Any

import pyro
import torch

from pyro_ssvae.training.device import has_bf16

__all__ = ["describe", "get_peak_memory", "get_resident_memory"]


def _read_proc(path: str, key: str) -> str | None:
    """Return the value of ``key:`` in a file below Linux's /proc, or ``None`` without such a file or key."""
    try:
        lines = Path("/proc", path).read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)


def _read_bytes(path: str, key: str) -> int | None:
    text = _read_proc(path, key)
    return int(text.split()[0]) * 1024 if text else None


def describe(device: str) -> dict[str, Any]:
    """Return the hardware and versions that timings depend on, JSON-ready."""
    total = _read_bytes("meminfo", "MemTotal")
    found: dict[str, Any] = {
        "CPU": _read_proc("cpuinfo", "model name") or platform.processor() or platform.machine(),
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
        found["OMP_WAIT_POLICY"] = os.environ["OMP_WAIT_POLICY"]
    if device == "cuda":
        found |= {"GPU": torch.cuda.get_device_name(), "CUDA": torch.version.cuda}
    return found


def get_peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    # getrusage inherits its maximum from the parent process; VmHWM does not.
    unit = 1 if platform.system() == "Darwin" else 1024
    return _read_bytes("self/status", "VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def get_resident_memory() -> int:
    """Return the present resident size of this process in bytes, 0 where the system does not say."""
    return _read_bytes("self/status", "VmRSS") or 0
