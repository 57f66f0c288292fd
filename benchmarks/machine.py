"""Description of the machine, and the memory of this process."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path
from typing import Any

import pyro
import torch

from pyro_ssvae.training.config import has_bf16


def _read_proc(path: str, key: str) -> str:
    """Return the value of ``key:`` in a file below Linux's /proc, or the empty string without such a file or key."""
    file = Path("/proc", path)
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def _read_bytes(path: str, key: str) -> int:
    return int((_read_proc(path, key) or "0").split()[0]) * 1024


def describe(device: str) -> dict[str, Any]:
    """Return the hardware and versions that timings depend on, JSON-ready."""
    found: dict[str, Any] = {
        "CPU": _read_proc("cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bf16": "native" if has_bf16() else "emulated",
        "memory, GiB": round(_read_bytes("meminfo", "MemTotal") / 2**30) or None,
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
    return _read_bytes("self/status", "VmRSS")
