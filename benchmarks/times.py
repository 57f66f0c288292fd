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
from typing import Any

import mnist_m1m2
import torch
from mnist_m1 import SAMPLES, load_model
from runs import DOCS, Result, Run, main

from pyro_ssvae import SemiSupervisedData
from pyro_ssvae.evaluation import log_likelihood

EXAMPLES = {"ring": "ddgm_2d.py", "spiral": "ddgm_2d.py", "mnist": "ddgm.py"}


def configurations(seeds: int | None = None) -> list[Run]:
    """Return every run; there is one seed, whatever ``seeds``."""
    return [Run("time", name, data=name if name in EXAMPLES else "mnist") for name in (*EXAMPLES, *MEASURES)]


def time_example(run: Run, data_dir: str | None) -> Result:
    """Run an example of DDGM and return its seconds, and those of its training."""
    command = [sys.executable, f"examples/{EXAMPLES[run.name]}", "--data", run.data, "--device", "cpu"]
    place = ["--data-dir", data_dir] if data_dir and run.data == "mnist" else []
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run([*command, *place, "--out", folder], cwd=DOCS.parent, check=True)
        seconds = round(time.perf_counter() - started, 1)
        return {
            "seconds": seconds,
            "train_seconds": json.loads(Path(folder, "result.json").read_text())["train_seconds"],
        }


def time_likelihood(data_dir: str | None, keep: str | None) -> Result:
    """Estimate log p(x) of every test example and return the seconds."""
    data = SemiSupervisedData.from_name("mnist", num_labels="all", data_dir=data_dir)
    model = load_model(keep)
    options: dict[str, Any] = {"num_samples": SAMPLES, "scale": data.scale, "binarisation": "dynamic"}
    started = time.perf_counter()
    found = log_likelihood(model, data.x_test, **options)
    seconds = round(time.perf_counter() - started, 1)
    return {"seconds": seconds, "test/log_likelihood": found.mean, "test/log_likelihood_error": found.mean_error}


def time_stack(name: str, data_dir: str | None, keep: str | None) -> Result:
    """Train M1+M2 and return the seconds of training."""
    run = next(run for run in mnist_m1m2.configurations(1) if run.name == name)
    result = mnist_m1m2.train(run, data_dir, keep)
    return {"seconds": result["train_seconds"], "steps": result["steps"], "test/error": result["test/error"]}


MEASURES = {
    "likelihood": time_likelihood,
    "stack-pure": lambda data_dir, keep: time_stack("pure-100", data_dir, keep),
    "stack-default": lambda data_dir, keep: time_stack("default-100", data_dir, keep),
}


def train(run: Run, data_dir: str | None, keep: str | None) -> Result:
    """Make one run and return its times."""
    result = MEASURES[run.name](data_dir, keep) if run.name in MEASURES else time_example(run, data_dir)
    return {**result, "device": f"cpu, {torch.get_num_threads()} threads", "torch": torch.__version__}


if __name__ == "__main__":
    main(__doc__, configurations, train)
