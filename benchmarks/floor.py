"""The least time of one training step of M2 on a device, and where the time of a step goes.

The least time is the work of a step over the rates that the device reaches in short trials, at the shapes of the step.
The work is that of a step without any waste: matrix products forward and backward, one evaluation of each activation in
each direction, and every necessary tensor written once and read as often as it is used.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from contenders import MNIST, Contender
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

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


class Product(NamedTuple):
    """An affine map ``(examples, inputs) -> (examples, outputs)`` and how many matrix products a step takes of it.

    That is three with gradients of weights and inputs, two where the input is data.
    """

    examples: int
    inputs: int
    outputs: int
    passes: int = 3

    @property
    def flops(self) -> float:
        """Floating-point operations of all products."""
        return 2.0 * self.examples * self.inputs * self.outputs * self.passes


def _count_work(batch: int, decoded: int, classes: int) -> tuple[list[Product], float, float]:
    """Return products, bytes moved and activations of a step, the last two forward and backward."""
    features, hidden, latent = MNIST.features, MNIST.hidden, MNIST.latent
    products = [
        Product(batch, features, hidden, 2),  # classifier
        Product(batch, hidden, classes),
        Product(batch, features, hidden, 2),  # encoder, once for all classes
        Product(decoded, hidden, 2 * latent),
        Product(decoded, latent, hidden),  # decoder
        Product(decoded, hidden, features),
    ]
    parameters = sum(product.inputs * product.outputs + product.outputs for product in products) + 2 * classes * hidden
    # Parameters are read forward and backward, their gradients written; Adam reads four tensors and writes three.
    moved = (3 + 7) * parameters
    # Each hidden layer and each output is written, read by the next layer and again backward; its gradient is written
    # and read by two products. The softplus of the pixels and its gradient need no tensor.
    moved += 6 * (decoded * (2 * hidden + 2 * latent + features) + batch * (hidden + classes))
    activations = 2.0 * (decoded * (2 * hidden + latent + features) + batch * (hidden + classes))
    return products, float(_FLOAT * moved), activations


def _time(device: str, run: Callable[[], object], seconds: float = 0.15) -> float:
    """Return the least seconds of a call, among those made within ``seconds``."""
    synchronise: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    best, ends = math.inf, time.perf_counter() + seconds
    for attempt in range(10_000):
        synchronise()
        started = time.perf_counter()
        run()
        synchronise()
        best = min(best, time.perf_counter() - started) if attempt else best
        if attempt > 1 and time.perf_counter() > ends:
            break
    return best


def _measure_product(device: str, product: Product) -> float:
    """Return operations per second of a product in all its passes."""
    draw = partial(torch.randn, device=device)
    x, gradient = draw(product.examples, product.inputs), draw(product.examples, product.outputs)
    weight, bias = draw(product.outputs, product.inputs), draw(product.outputs)
    passes = [lambda: F.linear(x, weight, bias), lambda: gradient.T @ x, lambda: gradient @ weight]
    return product.flops / sum(_time(device, run) for run in passes[: product.passes])


def _measure_copy(device: str, elements: int) -> float:
    """Return bytes per second, read and written, of copying a tensor of this many floats."""
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    return 2 * _FLOAT * elements / _time(device, lambda: target.copy_(source))


def _measure_activation(device: str) -> float:
    """Return activations per second: softplus forward and sigmoid backward, on a tensor that fits the cache."""
    x = torch.randn(2**24 if device == "cuda" else 2**17, device=device)
    out = torch.empty_like(x)
    seconds = _time(device, lambda: torch.sigmoid(x, out=out)) + _time(device, lambda: F.softplus(x))
    return 2 * x.numel() / seconds


def measure_floors(device: str, classes: list[int], batch: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return the rates of a device, and for each number of classes the work and least milliseconds of both steps."""
    product_rate, copy_rate = (cache(partial(rate, device)) for rate in (_measure_product, _measure_copy))
    activation_rate = _measure_activation(device)
    rates = {
        "gflops": round(product_rate(Product(_FEW, MNIST.hidden, MNIST.features)) / 1e9, 1),
        "copy_gb_per_second": round(copy_rate(2**26) / 1e9, 1),
        "activations_g_per_second": round(activation_rate / 1e9, 2),
    }
    steps = []
    for count in classes:
        # The exact sum decodes every example with each class, top-k with the likeliest class and one other.
        for kind, decoded in (("exact", batch * count), ("top-k", batch * min(2, count))):
            products, moved, activations = _count_work(batch, decoded, count)
            largest = min(2 ** math.ceil(math.log2(decoded * MNIST.features)), 2**26)
            least = [one._replace(examples=min(one.examples, _FEW)) for one in products]
            seconds = {
                "products": sum(one.flops / product_rate(few) for one, few in zip(products, least, strict=True)),
                "moving": moved / copy_rate(largest),
                "activations": activations / activation_rate,
            }
            flops = sum(product.flops for product in products)
            sizes = {"classes": count, "sum": kind, "gflop": flops / 1e9, "gb": moved / 1e9}
            steps.append({**sizes, **{name: 1000.0 * value for name, value in seconds.items()}})
    return rates, steps


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
