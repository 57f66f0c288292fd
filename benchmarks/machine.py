"""Description of the machine, and the memory of this process."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import pyro
import torch

from pyro_ssvae.training.config import has_bf16


def _read_proc(path: str, key: str) -> str:
    """Return the value of ``key:`` in a file below Linux's /proc, or the empty string without such a file or key."""
    file = Path("/proc", path)
    found = re.search(rf"^{key}\s*:\s*(.*)$", file.read_text(), re.MULTILINE) if file.exists() else None
    return found[1] if found else ""


def get_memory(key: str = "VmRSS") -> int:
    """Return the resident memory of this process in MiB, with VmHWM its peak; 0 where the system does not say."""
    return round(int((_read_proc("self/status", key) or "0").split()[0]) / 1024)


def describe(device: str) -> dict[str, Any]:
    """Return the hardware and versions that timings depend on, JSON-ready."""
    total = _read_proc("meminfo", "MemTotal")
    found: dict[str, Any] = {
        "CPU": _read_proc("cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bf16": "native" if has_bf16() else "emulated",
        "memory, GiB": round(int(total.split()[0]) / 2**20) if total else None,
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
