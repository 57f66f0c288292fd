"""Time the commands of the result pages with nothing else running, and training up to 5 % validation error.

*ring*, *spiral* and *mnist* time an example of DDGM from start to figures, *likelihood* log p(x) of the test examples,
*stack-pure* and *stack-default* the training of M1+M2 with 100 labels, without that of its M1. *ours* is
``examples/m2.py --pure --num-labels 3000``, *tutorial* stock Pyro with the model and settings of its tutorial, labelled
batches spread out; its clock stops while it is evaluated, that of this package includes evaluations and compilation.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mnist
import torch
from contenders import TutorialPyro
from runs import Run, get_settings, main
from table_format import DOCS, Result

from pyro_ssvae import M2, SemiSupervisedELBO
from pyro_ssvae.data import BatchStream
from pyro_ssvae.evaluation import log_likelihood
from pyro_ssvae.presets import PURE

EXAMPLES = {"ring": "ddgm_2d.py", "spiral": "ddgm_2d.py", "mnist": "ddgm.py"}
STACKS = {"stack-pure": "m1m2-pure-100-seed0", "stack-default": "m1m2-default-100-seed0"}
TARGET = 0.05  # validation error


def configurations(seeds: int | None = None) -> list[Run]:
    """Return every run; two seeds by default of the training up to 5 % error."""
    settings = get_settings(PURE) | {"training": {**PURE.training, "max_minutes": 45.0}}
    options = {"batch_size": 200, "learning_rate": 4.2e-4, "multiplier": 46.0, "max_minutes": 45.0}
    kinds: dict[str, Any] = {"ours": settings, "tutorial": {"options": options}}
    numbers = range(2 if seeds is None else seeds)
    found = [Run("time", name, seed, num_labels=3000, **kind) for seed in numbers for name, kind in kinds.items()]
    names = (*EXAMPLES, "likelihood", *STACKS)
    return found + [Run("time", name, data=name if name in EXAMPLES else "mnist") for name in names]


def train(run: Run, data_dir: str | None, keep: str | None) -> Result:
    if run.name in EXAMPLES:
        result = time_example(run, data_dir)
    elif run.name in ("ours", "tutorial"):
        result = (train_ours if run.name == "ours" else train_tutorial)(run, data_dir)
    elif run.name == "likelihood":
        result = time_likelihood(run, data_dir, keep)
    else:
        (stack,) = (one for one in mnist.configurations(1) if one.stem == STACKS[run.name])
        found = mnist.train_m1m2(stack, data_dir, keep)
        result = {"seconds": found["train_seconds"], "steps": found["steps"], "test/error": found["test/error"]}
    return {**result, "device": f"cpu, {torch.get_num_threads()} threads", "torch": torch.__version__}


def time_example(run: Run, data_dir: str | None) -> Result:
    """Run an example of DDGM and return its seconds, and those of its training."""
    command = [sys.executable, f"examples/{EXAMPLES[run.name]}", "--data", run.data, "--device", "cpu"]
    place = ["--data-dir", data_dir] if data_dir and run.data == "mnist" else []
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run([*command, *place, "--out", folder], cwd=DOCS.parent, check=True)
        seconds = round(time.perf_counter() - started, 1)
        result = json.loads(Path(folder, "result.json").read_text())
    return {"seconds": seconds, "train_seconds": result["train_seconds"]}


def time_likelihood(run: Run, data_dir: str | None, keep: str | None) -> Result:
    data, model = run.load(data_dir, "all"), mnist.load_m1(keep)
    started = time.perf_counter()
    found = log_likelihood(model, data.x_test, num_samples=mnist.SAMPLES, scale=data.scale, binarisation="dynamic")
    seconds = round(time.perf_counter() - started, 1)
    return {"seconds": seconds, "test/log_likelihood": found.mean, "test/log_likelihood_error": found.mean_error}


def train_ours(run: Run, data_dir: str | None) -> Result:
    """Return the curve, pairs of seconds and validation error, and the number of steps."""
    data = run.load(data_dir)
    torch.manual_seed(run.seed)
    model = M2(data.event_shape, data.num_classes, **run.model)
    trained = run.fit(SemiSupervisedELBO.for_data(model, data, pure=True, **run.objective), data, progress=False)
    return {"curve": [(line["seconds"], line["val/error"]) for line in trained.metrics], "steps": trained.steps}


def train_tutorial(run: Run, data_dir: str | None) -> Result:
    """Return the same for stock Pyro."""
    data = run.load(data_dir)
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
            labelled = steps % (spacing + 1) == 0
            pair = (batch.x_labelled, batch.y_labelled) if labelled else (batch.x_unlabelled, None)
            contender.step_on(pair[0].flatten(1), pair[1])
        seconds += time.perf_counter() - started
        with torch.no_grad():
            error = float((contender.nets.encoder_y(x).argmax(-1) != data.y_validation).double().mean())
        curve.append((round(seconds, 2), error))
    return {"curve": curve, "steps": steps}


if __name__ == "__main__":
    main(__doc__, configurations, train)
