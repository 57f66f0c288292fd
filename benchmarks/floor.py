"""What a machine needs at best for one training step of M2: its work over the rates that the machine reaches.

    python benchmarks/step.py --floor

Rates are the best of a few short trials, at the shapes of the step. The work is that of a step without any waste:
matrix products forward and backward, one evaluation of each activation in each direction, and every tensor that must
be there written once and read as often as it is used. *In turn* adds the three times, *at once* takes the longest of
them, as if they overlapped without loss; no implementation can be faster than that on these rates.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from contenders import MNIST
from step_page import median
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Work", "exact_step", "floor_table", "top_k_step"]

_FEW = 4_000  # enumerated rows at which rates no longer depend on their number
_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Product:
    """An affine map ``(rows, inputs) -> (rows, outputs)`` and how many products a step takes of it.

    Three with gradients of weights and inputs; two where the input is data.
    """

    rows: int
    inputs: int
    outputs: int
    passes: int = 3

    @property
    def flops(self) -> float:
        """Floating point operations of all passes."""
        return 2.0 * self.rows * self.inputs * self.outputs * self.passes


@dataclass(frozen=True)
class Work:
    """What a step has to do: products, bytes to move, activations to evaluate (forward and backward counted apart)."""

    products: tuple[Product, ...]
    bytes: float
    activations: float
    largest: int  # elements of the largest tensor

    @property
    def flops(self) -> float:
        """Floating point operations of all products."""
        return sum(product.flops for product in self.products)


def _work(batch: int, enumerated: int, classes: int) -> Work:
    features, hidden, latent = MNIST.features, MNIST.hidden, MNIST.latent
    products = (
        Product(batch, features, hidden, 2),  # classifier
        Product(batch, hidden, classes),
        Product(batch, features, hidden, 2),  # encoder, once for all classes
        Product(enumerated, hidden, 2 * latent),
        Product(enumerated, latent, hidden),  # decoder
        Product(enumerated, hidden, features),
    )
    parameters = sum(product.inputs * product.outputs + product.outputs for product in products) + 2 * classes * hidden
    # Read forward and backward, gradient written; Adam reads four tensors and writes three.
    moved = (3 + 7) * parameters
    # Each hidden layer and each output: written, read by what follows and again backward; its gradient written and
    # read by two products. The pixels' softplus and its gradient need no tensor of their own.
    moved += 6 * (enumerated * (2 * hidden + 2 * latent + features) + batch * (hidden + classes))
    activations = 2.0 * (enumerated * (2 * hidden + latent + features) + batch * (hidden + classes))
    return Work(products, float(_FLOAT * moved), activations, enumerated * features)


def exact_step(batch: int, classes: int) -> Work:
    """Return the work of a step that sums over every class."""
    return _work(batch, batch * classes, classes)


def top_k_step(batch: int, classes: int, top_k: int = 1) -> Work:
    """Return the work of a step that takes the ``top_k`` likeliest classes and one other of each row."""
    return _work(batch, batch * min(top_k + 1, classes), classes)


class Rates:
    """Rates of a device, measured when they are first asked for.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._products: dict[tuple[int, int, int, int], float] = {}
        self._copies: dict[int, float] = {}
        self._activation: float | None = None

    def product(self, product: Product) -> float:
        """Return operations per second of a product in all its passes, in float32."""
        rows = min(product.rows, _FEW)
        key = (rows, product.inputs, product.outputs, product.passes)
        if key not in self._products:
            x, gradient = self._random(rows, product.inputs), self._random(rows, product.outputs)
            weight, bias = self._random(product.outputs, product.inputs), self._random(product.outputs)
            passes = [lambda: F.linear(x, weight, bias), lambda: gradient.T @ x, lambda: gradient @ weight]
            seconds = sum(self._best(run) for run in passes[: product.passes])
            self._products[key] = Product(*key).flops / seconds
        return self._products[key]

    def copy(self, elements: int) -> float:
        """Return bytes per second, read and written, of copying a tensor of about this many floats."""
        elements = min(2 ** math.ceil(math.log2(elements)), 2**26)
        if elements not in self._copies:
            source = self._random(elements)
            target = torch.empty_like(source)
            self._copies[elements] = 2 * _FLOAT * elements / self._best(lambda: target.copy_(source))
        return self._copies[elements]

    def activation(self) -> float:
        """Return activations per second: softplus forward, sigmoid backward, on a tensor that stays in the cache."""
        if self._activation is None:
            size = 2**24 if self.device == "cuda" else 2**17
            x = self._random(size)
            out = torch.empty_like(x)
            seconds = self._best(lambda: torch.sigmoid(x, out=out)) + self._best(lambda: F.softplus(x))
            self._activation = 2 * size / seconds
        return self._activation

    def times(self, work: Work) -> tuple[float, float, float]:
        """Return the milliseconds of the products, of moving bytes and of activations."""
        products = sum(product.flops / self.product(product) for product in work.products)
        moving = work.bytes / self.copy(work.largest)
        return 1000 * products, 1000 * moving, 1000 * work.activations / self.activation()

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device)

    def _best(self, run: Callable[[], object], seconds: float = 0.15) -> float:
        """Return the least seconds that a call took, within a time for trying."""
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


def floor_table(
    device: str, classes: list[int], threads: list[int], batch: int, stored: Path, words: dict[str, str]
) -> str:
    """Measure rates and return the floor of a step, in Markdown, beside the medians that were measured."""
    results = json.loads(stored.read_text())["results"] if stored.exists() else []
    parts = []
    for number in threads:
        torch.set_num_threads(number)
        rates = Rates(device)
        wide = Product(_FEW, MNIST.hidden, MNIST.features)
        parts.append(
            f"{device}, {number} thread{'s' if number > 1 else ''}, float32: "
            f"{rates.product(wide) / 1e9:,.0f} GFLOP/s in the decoder's last layer, "
            f"{rates.copy(2**26) / 1e9:.1f} GB/s in a large copy, {rates.activation() / 1e9:.2f} G activations/s."
        )
        header = ["step", "GFLOP", "GB", "products", "moving", "activations", "in turn", "at once", "medians, ms"]
        lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
        for count in classes:
            for kind, work in (("exact", exact_step(batch, count)), ("top-k", top_k_step(batch, count))):
                times = rates.times(work)
                cells = [f"{count:,} classes, {kind}", f"{work.flops / 1e9:.2f}", f"{work.bytes / 1e9:.2f}"]
                cells += [f"{value:.2f}" for value in (*times, sum(times), max(times))]
                measured = [
                    f"{words[result['contender']]} {median(result):.1f}"
                    for result in results
                    if (result["classes"], result["threads"], result["labelled"]) == (count, number, 0)
                    and median(result) is not None
                    and result["contender"] in words
                    and ("top-k" in result["contender"]) == (kind == "top-k")
                ]
                lines.append("| " + " | ".join([*cells, "; ".join(measured)]) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
