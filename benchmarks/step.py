"""Time one training step of M2 on the CPU: this package, stock Pyro as in its tutorial, PyTorch by hand.

    python benchmarks/step.py                        # every contender, 10, 100 and 1,000 classes, 1 and 2 threads
    python benchmarks/step.py --classes 10 --only ours --only hand-written
    python benchmarks/step.py --floor                # the least time on this machine, and a profile of the steps

docs/benchmarks.md says how. Contenders alternate over the rounds (A B C A B C ...), so that other load on the machine
affects all of them alike. With --only, results of the others stay.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from contenders import MNIST, Contender, HandWritten, Ours, TutorialPyro
from machine import call_apart, describe
from result_tables import write_tables
from table_format import DOCS, Result, format_table, load_json
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils import benchmark

STEP, FLOOR = "benchmarks/step-cpu.json", "benchmarks/floor-cpu.json"
BATCH_SIZE = 200  # unlabelled examples per step
LARGE = 50_000  # batch size times classes from which the time is estimated on a small batch first
ROUNDS = 3  # visits to each contender
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


def measure(classes: int, threads: int, labelled: int, names: list[str]) -> list[Result]:
    """Measure contenders in one setting, in alternation, each visit in a process of its own."""
    # Libraries read their number of threads from the environment when they are loaded.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    setting = {"classes": classes, "threads": threads, "labelled": labelled}
    results: dict[str, Result] = {name: {"contender": name, **setting, "visits": [], "reason": None} for name in names}
    for _, (name, result) in itertools.product(range(ROUNDS), results.items()):
        if result["reason"]:
            continue
        try:
            found = call_apart(threads, visit, name, classes, labelled)
        except Exception as error:  # a process that ran out of memory, or what a contender raised
            found = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
        if isinstance(found, str):
            result["reason"] = found
        else:
            result["visits"].append(found)
        print(
            setting, f"{name}:", found if isinstance(found, str) else f"{statistics.median(found):.2f} ms", flush=True
        )
    return list(results.values())


def keep(results: list[Result]) -> None:
    """Write results, in place of older ones of the same contenders and settings."""
    path, machine = DOCS / STEP, describe("cpu")
    stored = load_json(path, {})
    old = stored["results"] if stored.get("machine") == machine else []
    merged = {
        tuple(result[name] for name in ("contender", "classes", "threads", "labelled")): result
        for result in [*old, *results]
    }
    lines = ",\n".join("  " + json.dumps(result) for result in merged.values())
    command = " ".join(["python benchmarks/step.py", *sys.argv[1:]])
    head = json.dumps({"command": command, "batch_size": BATCH_SIZE, "machine": machine}, indent=1)[:-2]
    path.write_text(f'{head},\n "results": [\n{lines}\n ]\n}}\n')


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
    timer = benchmark.Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
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


def measure_floor(classes: list[int], threads: list[int]) -> Result:
    """Return the least time of a step on this machine, and a profile of the steps."""
    found: Result = {"command": "python benchmarks/step.py --floor", "batch_size": BATCH_SIZE}
    found |= {"machine": describe("cpu"), "rates": [], "steps": [], "profile": []}
    for number in threads:
        torch.set_num_threads(number)
        rates, steps = measure_floors("cpu", classes, BATCH_SIZE)
        found["rates"].append({"threads": number, **rates})
        found["steps"] += [{"threads": number, **step} for step in steps]
    torch.set_num_threads(threads[0])
    batch = make_batches(BATCH_SIZE, 0, classes[0], number=1)[0]
    for name in ("hand-written", "ours-eager", "ours-top-k-eager"):  # compiled kernels do not say what they compute
        milliseconds = profile_step(CONTENDERS[name][1](num_classes=classes[0]), batch)
        setting = {"contender": name, "classes": classes[0], "threads": threads[0]}
        found["profile"].append({**setting, "milliseconds": milliseconds})
    return found


def find_median(results: list[Result], **setting: int | str) -> float | None:
    """Return the median milliseconds of a step, or ``None`` if it was not measured."""
    found = next((one for one in results if setting.items() <= one.items()), {"visits": []})
    times = [time for visit in found["visits"] for time in visit]
    return statistics.median(times) if times else None


def make_tables(docs: Path) -> dict[str, str]:
    """Return the tables of docs/benchmarks.md on training steps, from the files of results."""
    results = load_json(docs / STEP, {"results": []})["results"]
    floor = load_json(docs / FLOOR, {"steps": [], "profile": []})
    found = {f"step_{classes}": _make_step_table(results, classes, 0) for classes in (10, 100, 1000)}
    found["step_10_labelled"] = _make_step_table(results, 10, 100)
    rows = [
        [CONTENDERS[one["contender"]][0], *(f"{time:.1f}" for time in one["milliseconds"].values())]
        for one in floor["profile"]
    ]
    kinds = floor["profile"][0]["milliseconds"] if rows else ()
    found["profile"] = format_table(["step, milliseconds", *kinds], rows)
    return {**found, "floor": _make_floor_table(results, floor["steps"])}


def _name_columns(threads: list[int], *names: str) -> list[str]:
    return [f"{name}, {number} thread{'s' * (number > 1)}" for number in threads for name in names]


def _make_step_table(results: list[Result], classes: int, labelled: int) -> str:
    present = [one for one in results if (one["classes"], one["labelled"]) == (classes, labelled)]
    threads, rows = sorted({one["threads"] for one in present}), []
    for name, (words, _) in CONTENDERS.items():
        own = {one["threads"]: one for one in present if one["contender"] == name}
        cells = [words]
        for number in threads if own else ():
            time, base = (find_median(present, contender=who, threads=number) for who in (name, "tutorial"))
            reason = own.get(number, {}).get("reason") or "–"
            # Times have three digits.
            cells.append(f"{time:,.{2 if time < 10 else 1 if time < 100 else 0}f}" if time else reason)
            cells.append(f"{base / time:.2f}" if time and base else "–")
        if own:
            rows.append(cells)
    return format_table(["step", *_name_columns(threads, "ms", "× tutorial")], rows)


def _make_floor_table(results: list[Result], steps: list[Result]) -> str:
    threads, rows = sorted({step["threads"] for step in steps}), []
    for step in (one for one in steps if one["threads"] == threads[0]):
        classes, kind = step["classes"], step["sum"]
        cells = [f"{classes:,} classes, {kind}", f"{step['gflop']:.2f}", f"{step['gb']:.2f}"]
        for one in (one for one in steps if (one["classes"], one["sum"]) == (classes, kind)):
            setting = {"classes": classes, "threads": one["threads"], "labelled": 0}
            measured = find_median(results, contender="ours" if kind == "exact" else "ours-top-k", **setting)
            cells.append(f"{one['products'] + one['moving'] + one['activations']:,.1f}")
            cells.append("–" if measured is None else f"{measured:,.1f}")
        rows.append(cells)
    return format_table(["step", "GFLOP", "GB", *_name_columns(threads, "at best", "measured")], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000], metavar="K")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="T", help="threads of PyTorch")
    parser.add_argument("--labelled", type=int, default=0, metavar="B", help="labelled examples per step")
    parser.add_argument("--only", action="append", choices=CONTENDERS, metavar="NAME", help=", ".join(CONTENDERS))
    parser.add_argument("--floor", action="store_true", help="measure the least time on this machine, and a profile")
    args = parser.parse_args()
    if args.floor:
        found = measure_floor(args.classes, args.threads)
        (DOCS / FLOOR).write_text(json.dumps(found, indent=1) + "\n")
    else:
        for classes, threads in itertools.product(args.classes, args.threads):
            keep(measure(classes, threads, args.labelled, args.only or [*CONTENDERS]))
    write_tables()


if __name__ == "__main__":
    main()
