"""The least time of one training step of M2 on a device, and where the time of a step goes.

The least time is the work of a step over the rates that the device reaches in short trials, at the shapes of the step.
The work is that of a step without any waste: matrix products forward and backward, one evaluation of each activation in
each direction, and every necessary tensor written once and read as often as it is used.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from contenders import MNIST, Contender
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer

_FEW = 4_000  # decoded examples from which rates no longer depend on their number
_KINDS = {
    "matrix products": "mm addmm bmm",
    "activations and pixel term": "softplus softplus_backward sigmoid log_sigmoid_forward exp log pow logsumexp",
    "random numbers": "normal_ exponential_ uniform_ bernoulli_",
    "Adam and moving average": "_fused_adam_ _fused_adamw_ _foreach_lerp_ lerp_",
}


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
    features, hidden, latent = MNIST
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
    return products, 4.0 * moved, activations


def take_seconds(run: Callable[[], object], at_least: float = 0.15) -> list[float]:
    """Return seconds of a call in each of some blocks of calls, which last ``at_least`` seconds in all."""
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=at_least).times


def measure_floors(device: str, classes: list[int], batch: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return the rates of a device, and for each number of classes the work and least milliseconds of both steps."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device)

    @cache
    def rate_product(one: Product) -> float:  # operations per second, in all passes
        x, gradient, bias = draw(one.examples, one.inputs), draw(one.examples, one.outputs), draw(one.outputs)
        weight = draw(one.outputs, one.inputs)
        passes = [lambda: F.linear(x, weight, bias), lambda: gradient.T @ x, lambda: gradient @ weight]
        return one.flops / sum(min(take_seconds(run)) for run in passes[: one.passes])

    @cache
    def rate_copy(elements: int) -> float:  # bytes per second, read and written
        source, target = draw(elements), draw(elements)
        return 8 * elements / min(take_seconds(lambda: target.copy_(source)))

    x = draw(2**24 if device == "cuda" else 2**17)  # fits the cache
    rate = 2 * x.numel() / sum(min(take_seconds(lambda run=run: run(x))) for run in (torch.sigmoid, F.softplus))
    rates = {
        "gflops": round(rate_product(Product(_FEW, MNIST.hidden, MNIST.features)) / 1e9, 1),
        "copy_gb_per_second": round(rate_copy(2**26) / 1e9, 1),
        "activations_g_per_second": round(rate / 1e9, 2),
    }
    steps = []
    # The exact sum decodes every example with each class, top-k with the likeliest class and one other.
    for count, kind in itertools.product(classes, ("exact", "top-k")):
        decoded = batch * (count if kind == "exact" else min(2, count))
        products, moved, activations = _count_work(batch, decoded, count)
        least = [rate_product(one._replace(examples=min(one.examples, _FEW))) for one in products]
        seconds = {
            "products": sum(one.flops / each for one, each in zip(products, least, strict=True)),
            "moving": moved / rate_copy(min(2 ** math.ceil(math.log2(decoded * MNIST.features)), 2**26)),
            "activations": activations / rate,
        }
        sizes = {"classes": count, "sum": kind, "gflop": sum(one.flops for one in products) / 1e9, "gb": moved / 1e9}
        steps.append({**sizes, **{name: 1000.0 * value for name, value in seconds.items()}})
    return rates, steps


def profile_step(contender: Contender, batch: tuple[Tensor, ...], steps: int = 10) -> dict[str, float]:
    """Return milliseconds of a step on the CPU: of each kind of operation, of the rest, and in all."""
    for _ in range(contender.warm_up + 2):
        contender.step(*batch)
    found = take_seconds(lambda: contender.step(*batch), 1.0)
    total = 1000 * sum(found) / len(found)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            contender.step(*batch)
    times = dict.fromkeys([*_KINDS, "other operations"], 0.0)
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            name = event.key.removeprefix("aten::")
            kind = next((kind for kind, names in _KINDS.items() if name in names.split()), "other operations")
            times[kind] += event.self_cpu_time_total / 1000 / steps
    return {**times, "Python and waiting": max(0.0, total - sum(times.values())), "in all": total}
