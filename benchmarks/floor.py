"""The least time of one training step of M2 on a device, and where the time of a step goes.

The least time is the work of a step over the rates that the device reaches in short trials, at the shapes of the step.
The work is that of a step without any waste: matrix products forward and backward, one evaluation of each activation in
each direction, and every necessary tensor written once and read as often as it is used.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from contenders import MNIST, Contender
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

__all__ = ["exact_step", "measure_floors", "profile_step", "top_k_step"]

_FEW = 4_000  # decoded examples from which rates no longer depend on their number
_FLOAT = 4  # bytes
_KINDS = {
    "matrix products": ("mm", "addmm", "bmm"),
    "activations and pixel term": (
        "softplus", "softplus_backward", "sigmoid", "log_sigmoid_forward", "exp", "log", "pow", "logsumexp",
    ),
    "random numbers": ("normal_", "exponential_", "uniform_", "bernoulli_"),
    "Adam and moving average": ("_fused_adam_", "_fused_adamw_", "_foreach_lerp_", "lerp_"),
}  # fmt: skip


@dataclass(frozen=True)
class Product:
    """An affine map ``(rows, inputs) -> (rows, outputs)`` and the number of matrix products that a step takes of it.

    That is three with gradients of weights and inputs, two where the input is data.
    """

    rows: int
    inputs: int
    outputs: int
    passes: int = 3

    @property
    def flops(self) -> float:
        """Floating-point operations of all products."""
        return 2.0 * self.rows * self.inputs * self.outputs * self.passes


@dataclass(frozen=True)
class Work:
    """Work of a step: products, bytes moved, and activations, forward and backward counted separately."""

    products: tuple[Product, ...]
    bytes: float
    activations: float
    largest: int  # elements of the largest tensor

    @property
    def flops(self) -> float:
        """Floating-point operations of all products."""
        return sum(product.flops for product in self.products)


def _count_work(batch: int, decoded: int, classes: int) -> Work:
    features, hidden, latent = MNIST.features, MNIST.hidden, MNIST.latent
    products = (
        Product(batch, features, hidden, 2),  # classifier
        Product(batch, hidden, classes),
        Product(batch, features, hidden, 2),  # encoder, once for all classes
        Product(decoded, hidden, 2 * latent),
        Product(decoded, latent, hidden),  # decoder
        Product(decoded, hidden, features),
    )
    parameters = sum(product.inputs * product.outputs + product.outputs for product in products) + 2 * classes * hidden
    # Parameters are read forward and backward, their gradients written; Adam reads four tensors and writes three.
    moved = (3 + 7) * parameters
    # Each hidden layer and each output is written, read by the next layer and again backward; its gradient is written
    # and read by two products. The softplus of the pixels and its gradient need no tensor.
    moved += 6 * (decoded * (2 * hidden + 2 * latent + features) + batch * (hidden + classes))
    activations = 2.0 * (decoded * (2 * hidden + latent + features) + batch * (hidden + classes))
    return Work(products, float(_FLOAT * moved), activations, decoded * features)


def exact_step(batch: int, classes: int) -> Work:
    """Return the work of a step that sums over every class."""
    return _count_work(batch, batch * classes, classes)


def top_k_step(batch: int, classes: int, top_k: int = 1) -> Work:
    """Return the work of a step that takes the ``top_k`` likeliest classes and one other of each example."""
    return _count_work(batch, batch * min(top_k + 1, classes), classes)


class Rates:
    """Rates of a device, ``"cpu"`` or ``"cuda"``, each measured when it is first needed."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._products: dict[Product, float] = {}
        self._copies: dict[int, float] = {}
        self._activation: float | None = None

    def product(self, product: Product) -> float:
        """Return operations per second of a product in all its passes."""
        rows = min(product.rows, _FEW)
        key = Product(rows, product.inputs, product.outputs, product.passes)
        if key not in self._products:
            x, gradient = self._random(rows, product.inputs), self._random(rows, product.outputs)
            weight, bias = self._random(product.outputs, product.inputs), self._random(product.outputs)
            passes = [lambda: F.linear(x, weight, bias), lambda: gradient.T @ x, lambda: gradient @ weight]
            self._products[key] = key.flops / sum(self._time(run) for run in passes[: product.passes])
        return self._products[key]

    def copy(self, elements: int) -> float:
        """Return bytes per second, read and written, of copying a tensor of about this many floats."""
        elements = min(2 ** math.ceil(math.log2(elements)), 2**26)
        if elements not in self._copies:
            source = self._random(elements)
            target = torch.empty_like(source)
            self._copies[elements] = 2 * _FLOAT * elements / self._time(lambda: target.copy_(source))
        return self._copies[elements]

    def activation(self) -> float:
        """Return activations per second: softplus forward and sigmoid backward, on a tensor that fits the cache."""
        if self._activation is None:
            size = 2**24 if self.device == "cuda" else 2**17
            x = self._random(size)
            out = torch.empty_like(x)
            self._activation = (
                2 * size / (self._time(lambda: torch.sigmoid(x, out=out)) + self._time(lambda: F.softplus(x)))
            )
        return self._activation

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device)

    def _time(self, run: Callable[[], object], seconds: float = 0.15) -> float:
        """Return the least seconds of a call, among those made within ``seconds``."""
        best, ends = math.inf, time.perf_counter() + seconds
        for attempt in range(10_000):
            started = self._now()
            run()
            best = min(best, self._now() - started) if attempt else best
            if attempt > 1 and time.perf_counter() > ends:
                break
        return best

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def measure_floors(device: str, classes: list[int], batch: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return the rates of a device, and for each number of classes the work and least milliseconds of both steps."""
    rates = Rates(device)
    found = {
        "gflops": round(rates.product(Product(_FEW, MNIST.hidden, MNIST.features)) / 1e9, 1),
        "copy_gb_per_second": round(rates.copy(2**26) / 1e9, 1),
        "activations_g_per_second": round(rates.activation() / 1e9, 2),
    }
    steps = []
    for count in classes:
        for kind, work in (("exact", exact_step(batch, count)), ("top-k", top_k_step(batch, count))):
            products = sum(product.flops / rates.product(product) for product in work.products)
            seconds = {"products": products, "moving": work.bytes / rates.copy(work.largest)}
            seconds["activations"] = work.activations / rates.activation()
            sizes = {"classes": count, "sum": kind, "gflop": work.flops / 1e9, "gb": work.bytes / 1e9}
            steps.append({**sizes, **{name: 1000.0 * value for name, value in seconds.items()}})
    return found, steps


def profile_step(contender: Contender, batch: tuple[Tensor, ...], steps: int = 10) -> dict[str, float]:
    """Return milliseconds of a step on the CPU: of each kind of operation, of the rest, and in all."""
    for _ in range(contender.warm_up + 2):
        contender.step(*batch)
    started = time.perf_counter()
    for _ in range(steps):
        contender.step(*batch)
    total = 1000 * (time.perf_counter() - started) / steps
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            contender.step(*batch)
    times = dict.fromkeys([*_KINDS, "other operations"], 0.0)
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            operation = event.key.removeprefix("aten::")
            kind = next((kind for kind, names in _KINDS.items() if operation in names), "other operations")
            times[kind] += event.self_cpu_time_total / 1000 / steps
    return {**times, "Python and waiting": max(0.0, total - sum(times.values())), "in all": total}
