"""Time the commands of the result pages on all cores, with nothing else running.

    python benchmarks/times.py --only ring --only spiral --only mnist        # the examples of DDGM
    python benchmarks/mnist_m1.py --only flow --keep models                  # first, an M1
    python benchmarks/times.py --keep models --only likelihood --only stack-pure --only stack-default

*ring*, *spiral* and *mnist* time an example of DDGM from start to figures: loading, training, the reference classifier,
measures and figures. *likelihood* times log p(x) of the 10,000 test examples by 5,000 samples each. *stack-pure* and
*stack-default* time the training of M1+M2 with 100 labels, without that of its M1.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mnist_m1m2
import torch
from mnist_m1 import SAMPLES, load_model
from runs import DOCS, Result, Run, main

from pyro_ssvae import SemiSupervisedData
from pyro_ssvae.evaluation import log_likelihood

EXAMPLES = {"ring": "ddgm_2d.py", "spiral": "ddgm_2d.py", "mnist": "ddgm.py"}
STACKS = {"stack-pure": "pure-100", "stack-default": "default-100"}


def configurations(seeds: int | None = None) -> list[Run]:
    names = (*EXAMPLES, "likelihood", *STACKS)
    return [Run("time", name, data=name if name in EXAMPLES else "mnist") for name in names]


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


def time_likelihood(data_dir: str | None, keep: str | None) -> Result:
    data, model = SemiSupervisedData.from_name("mnist", num_labels="all", data_dir=data_dir), load_model(keep)
    started = time.perf_counter()
    found = log_likelihood(model, data.x_test, num_samples=SAMPLES, scale=data.scale, binarisation="dynamic")
    seconds = round(time.perf_counter() - started, 1)
    return {"seconds": seconds, "test/log_likelihood": found.mean, "test/log_likelihood_error": found.mean_error}


def time_stack(name: str, data_dir: str | None, keep: str | None) -> Result:
    run = next(run for run in mnist_m1m2.configurations(1) if run.name == name)
    result = mnist_m1m2.train(run, data_dir, keep)
    return {"seconds": result["train_seconds"], "steps": result["steps"], "test/error": result["test/error"]}


def train(run: Run, data_dir: str | None, keep: str | None) -> Result:
    if run.name in EXAMPLES:
        result = time_example(run, data_dir)
    elif run.name in STACKS:
        result = time_stack(STACKS[run.name], data_dir, keep)
    else:
        result = time_likelihood(data_dir, keep)
    return {**result, "device": f"cpu, {torch.get_num_threads()} threads", "torch": torch.__version__}


if __name__ == "__main__":
    main(__doc__, configurations, train)
