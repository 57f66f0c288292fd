"""Time one training step of M2 on the CPU: this package, stock Pyro as in its tutorial, PyTorch by hand.

    python benchmarks/step.py                                      # what docs/benchmarks/step-cpu.json lacks
    python benchmarks/step.py --only '10/100/*'                    # 10 classes, 100 labelled examples
    python benchmarks/step.py --only 'floor/*' --only 'profile/*'  # the least possible time, and where time goes

Each visit to a contender, CLASSES/LABELLED/THREADS/ROUND/CONTENDER, is made in a process of its own. Contenders
alternate over the rounds, so that other load on the machine affects all of them alike.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from contenders import MNIST, Contender, HandWritten, Ours, TutorialPyro
from machine import call_apart, describe
from runs import make_fits, make_parser
from table_format import DOCS, format_table, load_json
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils import benchmark

STORE = "benchmarks/step-cpu.json"
SETTINGS = ((10, 0), (10, 100), (100, 0), (1000, 0))  # classes, labelled examples
THREADS = (1, 2)
BATCH_SIZE = 200  # unlabelled examples per step
LARGE = 50_000  # batch size times classes from which the time is estimated on a small batch first
SECONDS, STEPS = 3.0, 20  # of a visit at most, after at least one step
PATIENCE = 10.0  # seconds of a step that is not measured

CONTENDERS: dict[str, tuple[str, Callable[..., Contender]]] = {  # by name: what the tables call it, what makes it
    "tutorial": ("stock Pyro, as in its tutorial", TutorialPyro),
    "hand-written": ("PyTorch by hand", HandWritten),
    "ours-eager": ("this package, exact, eager", partial(Ours, compile="eager")),
    "ours": ("this package, exact, compiled", Ours),
    "ours-top-k-eager": ("this package, top-k, eager", partial(Ours, enumeration="top-k", compile="eager")),
    "ours-top-k": ("this package, top-k, compiled", partial(Ours, enumeration="top-k")),
}
PROFILED = ("hand-written", "ours-eager", "ours-top-k-eager")  # compiled kernels do not say what they compute


def make_batches(size: int, labelled: int, classes: int, *, device: str = "cpu", number: int = 8) -> list[tuple]:
    """Return batches of random binary pixels, as bright as MNIST, and of labelled examples if ``labelled`` > 0."""
    generator = torch.Generator().manual_seed(0)

    def draw_pixels(count: int) -> Tensor:
        return (torch.rand(count, 784, generator=generator) < 0.13).float().to(device)

    def draw_labelled() -> tuple[Tensor, Tensor]:
        return draw_pixels(labelled), torch.randint(classes, (labelled,), generator=generator).to(device)

    return [(draw_pixels(size), *(draw_labelled() if labelled else ())) for _ in range(number)]


def visit(name: str, classes: int, labelled: int) -> list[float] | str:
    """Return the milliseconds of some steps of a contender, or an estimate of one that would exceed the patience."""
    contender = CONTENDERS[name][1](num_classes=classes)

    def step(batches: Iterator[tuple]) -> float:
        started = time.perf_counter()
        contender.step(*next(batches))
        return 1000.0 * (time.perf_counter() - started)

    if classes * BATCH_SIZE >= LARGE:
        few = itertools.cycle(make_batches(20, labelled, classes))
        step(few)  # the optimiser allocates its state in the first step
        seconds = step(few) / 1000.0 * BATCH_SIZE / 20  # the time is proportional to the batch size
        if seconds > PATIENCE:
            return f"about {seconds:.0f} s"
    batches = itertools.cycle(make_batches(BATCH_SIZE, labelled, classes))
    for _ in range(contender.warm_up):
        step(batches)
    times = [step(batches)]
    while sum(times) < 1000.0 * SECONDS and len(times) < STEPS:
        times.append(step(batches))
    return [round(one, 4) for one in times]


# The least time of a step without any waste: matrix products forward and backward, one evaluation of each activation in
# each direction, and every necessary tensor written once and read as often as it is used

_FEW = 4_000  # decoded examples from which rates no longer depend on their number
_KINDS = {
    "matrix products": "mm addmm bmm",
    "activations and pixel term": "softplus softplus_backward sigmoid log_sigmoid_forward exp log pow logsumexp",
    "random numbers": "normal_ exponential_ uniform_ bernoulli_",
    "Adam and moving average": "_fused_adam_ _fused_adamw_ _foreach_lerp_ lerp_",
}


class Product(NamedTuple):
    """An affine map ``(examples, inputs) -> (examples, outputs)`` and how many matrix products a step takes of it."""

    examples: int
    inputs: int
    outputs: int
    passes: int = 3  # with the gradients of weights and inputs; 2 where the input is data

    @property
    def flops(self) -> float:
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
    timer = benchmark.Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=at_least).times


def measure_floors(device: str, classes: Iterable[int], batch: int) -> dict[str, Any]:
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
    return {"rates": rates, "steps": steps}


def record_operations(contender: Contender, batch: tuple[Tensor, ...], *, cuda: bool = False) -> list[tuple]:
    """Return names of operations in a step, their own milliseconds and numbers of calls per step, longest first."""
    steps, key = 10, "self_device_time_total" if cuda else "self_cpu_time_total"
    for _ in range(contender.warm_up + 3):
        contender.step(*batch)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        for _ in range(steps):
            contender.step(*batch)
        if cuda:
            torch.cuda.synchronize()
    found = [(one.key, getattr(one, key) / 1000 / steps, one.count / steps) for one in profiler.key_averages()]
    return sorted(found, key=lambda one: -one[1])


def profile_step(name: str) -> dict[str, float]:
    """Return milliseconds of a step on the CPU: of each kind of operation, of the rest, and in all."""
    contender, (batch,) = CONTENDERS[name][1](num_classes=10), make_batches(BATCH_SIZE, 0, 10, number=1)
    times = dict.fromkeys([*_KINDS, "other operations"], 0.0)
    for operation, milliseconds, _ in record_operations(contender, batch):
        if operation.startswith("aten::"):
            one = operation.removeprefix("aten::")
            kind = next((kind for kind, names in _KINDS.items() if one in names.split()), "other operations")
            times[kind] += milliseconds
    total = 1000 * statistics.mean(take_seconds(lambda: contender.step(*batch), 1.0))
    return {**times, "Python and waiting": max(0.0, total - sum(times.values())), "in all": total}


# Tables


def find_time(found: dict[str, Any], classes: int, labelled: int, threads: int, name: str) -> float | str:
    """Return the median milliseconds of a step, or the estimate that was made instead, or a dash."""
    start, end = f"{classes}/{labelled}/{threads}/", f"/{name}"
    visits = [visited for key, visited in found.items() if key.startswith(start) and key.endswith(end)]
    times = [time for visited in visits if not isinstance(visited, str) for time in visited]
    return statistics.median(times) if times else next(iter(visits), "–")


def make_tables(docs: Path) -> dict[str, str]:
    """Return the tables of docs/benchmarks.md on training steps, from the file of results."""
    found = load_json(docs / STORE, {})
    profiles = [(CONTENDERS[name][0], found[f"profile/{name}"]) for name in PROFILED if f"profile/{name}" in found]
    rows = [[words, *(f"{time:.1f}" for time in times.values())] for words, times in profiles]
    return {
        **{f"step_{classes}": _make_step_table(found, classes, 0) for classes in (10, 100, 1000)},
        "step_10_labelled": _make_step_table(found, 10, 100),
        "floor": _make_floor_table(found),
        "profile": format_table(["step, milliseconds", *(profiles[0][1] if profiles else [])], rows),
    }


def _name_columns(*names: str) -> list[str]:
    return [f"{name}, {number} thread{'s' * (number > 1)}" for number in THREADS for name in names]


def _make_step_table(found: dict[str, Any], classes: int, labelled: int) -> str:
    rows = []
    for name, (words, _) in CONTENDERS.items():
        cells = [words]
        for number in THREADS:
            time, base = (find_time(found, classes, labelled, number, who) for who in (name, "tutorial"))
            if isinstance(time, str):
                cells += [time, "–"]
                continue
            digits = 2 if time < 10 else 1 if time < 100 else 0  # three in all
            cells += [f"{time:,.{digits}f}", "–" if isinstance(base, str) else f"{base / time:.2f}"]
        if set(cells[1:]) != {"–"}:
            rows.append(cells)
    return format_table(["step", *_name_columns("ms", "× tutorial")], rows)


def _make_floor_table(found: dict[str, Any]) -> str:
    rows = []
    floors = [found.get(f"floor/{number}", {"steps": []})["steps"] for number in THREADS]
    for by_threads in zip(*floors, strict=True):
        classes, kind, gflop, gb = (by_threads[0][name] for name in ("classes", "sum", "gflop", "gb"))
        cells = [f"{classes:,} classes, {kind}", f"{gflop:.2f}", f"{gb:.2f}"]
        for number, step in zip(THREADS, by_threads, strict=True):
            measured = find_time(found, classes, 0, number, "ours" if kind == "exact" else "ours-top-k")
            cells.append(f"{step['products'] + step['moving'] + step['activations']:,.1f}")
            cells.append("–" if isinstance(measured, str) else f"{measured:,.1f}")
        rows.append(cells)
    return format_table(["step", "GFLOP", "GB", *_name_columns("at best", "measured")], rows)


def main() -> None:
    args = make_parser(__doc__).parse_args()
    fits: dict[str, Any] = {"machine": partial(describe, "cpu")}
    rounds = range(args.seeds or 3)
    for (classes, labelled), threads, number, name in itertools.product(SETTINGS, THREADS, rounds, CONTENDERS):
        key = f"{classes}/{labelled}/{threads}/{number}/{name}"
        fits[key] = partial(call_apart, threads, visit, name, classes, labelled)
    for threads in THREADS:
        fits[f"floor/{threads}"] = partial(call_apart, threads, measure_floors, "cpu", (10, 100, 1000), BATCH_SIZE)
    for name in PROFILED:
        fits[f"profile/{name}"] = partial(call_apart, 1, profile_step, name)
    make_fits(DOCS / STORE, fits, args.only)


if __name__ == "__main__":
    main()
