"""Where the time of a training step goes, by kind of operation, from PyTorch's profiler."""

from __future__ import annotations

import time
from typing import Any

import torch
from contenders import Contender, HandWritten, Ours
from torch.profiler import ProfilerActivity, profile

__all__ = ["profile_table"]

_STEPS = 10
_KINDS = {
    "matrix products": ("mm", "addmm", "bmm"),
    "activations and pixel term": (
        "softplus", "softplus_backward", "sigmoid", "log_sigmoid_forward", "exp", "log", "pow", "logsumexp",
    ),
    "random numbers": ("normal_", "exponential_", "uniform_", "bernoulli_"),
    "Adam and moving average": ("_fused_adam_", "_fused_adamw_", "_foreach_lerp_", "lerp_"),
}  # fmt: skip


def profile_table(classes: int, batch: int, threads: int) -> str:
    """Return a Markdown table: milliseconds of a step by kind of operation, for replayed and for hand-written steps.

    Replayed rather than compiled steps, because compiled kernels no longer say what they compute. *Python and waiting*
    is what the clock shows beyond all operations.
    """
    torch.set_num_threads(threads)
    settings: dict[str, Any] = {"num_classes": classes, "labelled_rows": 0, "device": "cpu", "precision": "fp32"}
    contenders: dict[str, Contender] = {
        "pyro_ssvae, exact, replayed": Ours(compile="replay", seed=0, **settings),
        "pyro_ssvae, exact, eager": Ours(compile="eager", seed=0, **settings),
        "PyTorch by hand": HandWritten(seed=0, **settings),
        "pyro_ssvae, top-k, replayed": Ours(enumeration="top-k", compile="replay", seed=0, **settings),
        "pyro_ssvae, top-k, eager": Ours(enumeration="top-k", compile="eager", seed=0, **settings),
    }
    header = ["step", *_KINDS, "other operations", "Python and waiting", "in all, ms"]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for name, contender in contenders.items():
        cells = [f"{value:.1f}" for value in _times(contender, batch)]
        lines.append("| " + " | ".join([f"{name}, {classes} classes, {threads} thread(s)", *cells]) + " |")
    return "\n".join(lines)


def _times(contender: Contender, batch: int) -> list[float]:
    """Return milliseconds of a step: of each kind, of other operations, of the rest, and in all."""
    x = (torch.rand(batch, 784, generator=torch.Generator().manual_seed(0)) < 0.13).float()
    for _ in range(contender.warm_up + 2):
        contender.step(x)
    started = time.perf_counter()
    for _ in range(_STEPS):
        contender.step(x)
    total = 1000 * (time.perf_counter() - started) / _STEPS
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(_STEPS):
            contender.step(x)
    times = dict.fromkeys([*_KINDS, "other"], 0.0)
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            operation = event.key.removeprefix("aten::")
            kind = next((kind for kind, names in _KINDS.items() if operation in names), "other")
            times[kind] += event.self_cpu_time_total / 1000 / _STEPS
    return [*times.values(), max(0.0, total - sum(times.values())), total]
