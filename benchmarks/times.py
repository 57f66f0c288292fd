"""Time the commands of the result pages on all cores, with nothing else running.

    python benchmarks/times.py --only ring --only spiral --only mnist          # the examples of DDGM
    python benchmarks/mnist_m1.py --only flow --keep models                    # first, an M1
    python benchmarks/times.py --keep models --only likelihood --only stack

*ring*, *spiral* and *mnist* time an example of DDGM from start to figures: loading, training, the reference classifier,
measures and figures. *likelihood* times log p(x) of the 10,000 test examples by 5,000 samples each. *stack* times the
training of M1+M2 with 100 labels, without that of its M1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mnist_m1m2
import torch
from mnist_m1 import BASE, SAMPLES, load_model
from runs import DOCS, RESULTS, Result, write_result
from tables import write_tables

from pyro_ssvae import SemiSupervisedData
from pyro_ssvae.evaluation import log_likelihood

ROOT = DOCS.parent
EXAMPLES = {
    "ring": ["examples/ddgm_2d.py", "--data", "ring"],
    "spiral": ["examples/ddgm_2d.py", "--data", "spiral"],
    "mnist": ["examples/ddgm.py", "--data", "mnist"],
}


def time_example(name: str, data_dir: str | None) -> Result:
    """Run an example of DDGM and return its seconds, those of its training, and the device."""
    command = EXAMPLES[name]
    place = ["--data-dir", data_dir] if data_dir and name == "mnist" else []
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run([sys.executable, *command, *place, "--device", "cpu", "--out", folder], cwd=ROOT, check=True)
        seconds = time.perf_counter() - started
        result = json.loads((Path(folder) / "result.json").read_text())
    kept = {key: result[key] for key in ("train_seconds", "device")}
    return {"command": f"python {' '.join(command)}", "seconds": round(seconds, 1), **kept}


def time_likelihood(data_dir: str | None, keep: str) -> Result:
    """Estimate log p(x) of every test example and return the seconds."""
    data = SemiSupervisedData.from_name("mnist", num_labels="all", data_dir=data_dir)
    model = load_model(keep)
    options: dict[str, Any] = {"num_samples": SAMPLES, "scale": data.scale, "binarisation": "dynamic"}
    started = time.perf_counter()
    found = log_likelihood(model, data.x_test, **options)
    seconds = round(time.perf_counter() - started, 1)
    sizes = {"configuration": BASE, "num_examples": len(data.x_test), "samples": SAMPLES}
    return {**sizes, "seconds": seconds, "log_likelihood": found.mean, "log_likelihood_error": found.mean_error}


def time_stack(data_dir: str | None, keep: str) -> Result:
    """Train M1+M2 with 100 labels by both presets and return the seconds of training."""
    found: Result = {}
    for name in ("default-100", "pure-100"):
        run = next(run for run in mnist_m1m2.configurations(1) if run.name == name)
        result = mnist_m1m2.train(run, data_dir, keep)
        found[name] = {key: result[key] for key in ("train_seconds", "steps", "test/error")}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", metavar="DIR", help="folder of MNIST (else PYRO_SSVAE_DATA, else a cache)")
    parser.add_argument("--keep", metavar="DIR", default="models", help="where mnist_m1.py kept its run folders")
    names = [*EXAMPLES, "likelihood", "stack"]
    parser.add_argument("--only", action="append", choices=names, help="only this one; repeatable")
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    for name in args.only or names:
        if name in EXAMPLES:
            path, result = RESULTS / f"time-ddgm-{name}.json", time_example(name, args.data_dir)
        else:
            measure = time_likelihood if name == "likelihood" else time_stack
            path, result = RESULTS / f"time-{name}.json", measure(args.data_dir, args.keep)
            result |= {"device": f"cpu, {torch.get_num_threads()} threads", "torch": torch.__version__}
        print(json.dumps(result, indent=1))
        write_result(path, result)
    write_tables(DOCS)


if __name__ == "__main__":
    sys.exit(main())
