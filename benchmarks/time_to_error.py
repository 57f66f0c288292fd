"""Train M2 on MNIST with 3,000 labels until 5 % validation error: this package, and stock Pyro as in its tutorial.

    python benchmarks/time_to_error.py --jobs 2    # both seeds at a time, each on half of the cores

This package is ``examples/m2.py --pure --num-labels 3000``. Stock Pyro has the model and settings of the tutorial
(batches of 200, Adam at 4.2e-4, the auxiliary loss times 46, labelled batches spread over the unlabelled ones) and
stops at 5 % error or after 45 minutes. Its clock stops while it is evaluated; the clock of this package includes
evaluations and compilation.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from contenders import TutorialPyro
from runs import Result, Run, main

from pyro_ssvae import M2, SemiSupervisedData, SemiSupervisedELBO
from pyro_ssvae.data import BatchStream
from pyro_ssvae.presets import PURE

TARGET = 0.05  # validation error


def configurations(seeds: int | None = None) -> list[Run]:
    """Return every run; two seeds by default."""
    settings: dict[str, Any] = {"model": PURE.model, "objective": PURE.objective}
    settings |= {"training": {**PURE.training, "max_minutes": 45.0}}
    options = {"batch_size": 200, "learning_rate": 4.2e-4, "multiplier": 46.0, "max_minutes": 45.0}
    kinds: dict[str, Any] = {"ours": settings, "tutorial": {"options": options}}
    numbers = range(2 if seeds is None else seeds)
    return [Run("time", name, seed, num_labels=3000, **kind) for seed in numbers for name, kind in kinds.items()]


def train(run: Run, data_dir: str | None, keep: str | None) -> Result:
    """Train one run and return its curve: pairs of seconds and validation error."""
    data = run.load(data_dir)
    curve, steps = _train_tutorial(run, data) if run.name == "tutorial" else _train_ours(run, data)
    threads = torch.get_num_threads()
    return {"curve": curve, "steps": steps, "device": f"cpu, {threads} threads", "torch": torch.__version__}


def _train_ours(run: Run, data: SemiSupervisedData) -> tuple[list[tuple[float, float]], int]:
    torch.manual_seed(run.seed)
    model = M2(data.event_shape, data.num_classes, **run.model)
    trained = run.fit(SemiSupervisedELBO.for_data(model, data, pure=True, **run.objective), data, progress=False)
    return [(line["seconds"], line["val/error"]) for line in trained.metrics], trained.steps


def _train_tutorial(run: Run, data: SemiSupervisedData) -> tuple[list[tuple[float, float]], int]:
    size, rate, multiplier, minutes = run.options.values()
    contender = TutorialPyro(num_classes=10, seed=run.seed, learning_rate=rate, multiplier=multiplier)
    stream = BatchStream(data, batch_size=size, labelled_batch_size=size, binarisation="none", seed=run.seed)
    spacing = data.num_unlabelled // data.num_labelled  # unlabelled batches between two labelled ones
    x = data.x_validation.flatten(1).float() / data.scale
    seconds, steps, curve = 0.0, 0, []
    while seconds < 60.0 * minutes and not (curve and curve[-1][1] <= TARGET):
        started = time.perf_counter()
        for _ in range(100):
            steps += 1
            batch = stream.gather(stream.next_indices())
            x_batch, y_batch = batch.x_unlabelled, None
            if steps % (spacing + 1) == 0:
                x_batch, y_batch = batch.x_labelled, batch.y_labelled
            assert x_batch is not None
            contender.step_on(x_batch.flatten(1), y_batch)
        seconds += time.perf_counter() - started
        with torch.no_grad():
            error = float((contender.nets.encoder_y(x).argmax(-1) != data.y_validation).double().mean())
        curve.append((round(seconds, 2), error))
    return curve, steps


if __name__ == "__main__":
    main(__doc__, configurations, train)
