"""Description of the machine, the memory of this process, and processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyro
import torch


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
    found = {"CPU": _read_proc("cpuinfo", "model name") or platform.processor(), "cores": os.cpu_count()}
    found |= {"instructions": torch.backends.cpu.get_cpu_capability(), "Python": platform.python_version()}
    found |= {"PyTorch": str(torch.__version__), "Pyro": pyro.__version__}
    return found | ({"GPU": torch.cuda.get_device_name(), "CUDA": torch.version.cuda} if device == "cuda" else {})


def call_apart(threads: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own, in which PyTorch has this many threads."""
    # Libraries read their number of threads from the environment when they are loaded.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        return pool.submit(function, *arguments).result()
