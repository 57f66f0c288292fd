"""Time what the page of M1 and M1+M2 promises, on all cores at once, with nothing beside it.

    python benchmarks/mnist_m1.py --only flow --keep models    # first, the M1
    python benchmarks/times_m1.py --keep models                # then docs/results_m1.md
    python benchmarks/times_m1.py --keep models --only stack

*likelihood*: log p(x) of the 10,000 test rows by 5,000 samples each; the seconds are of the estimate alone. *stack*:
the training of one row of benchmarks/mnist_m1m2.py by each recipe, 100 labels, its M1 not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import mnist_m1m2
import torch
from mnist_m1 import BELOW, RESULTS, SAMPLES, read_below
from results_page_m1 import write_page

from pyro_ssvae import SemiSupervisedData
from pyro_ssvae.evaluation import log_likelihood


def time_likelihood(data_dir: str | None, keep: str) -> dict[str, Any]:
    """Return how long every test row takes."""
    data = SemiSupervisedData.from_name("mnist", num_labels="all", data_dir=data_dir)
    model = read_below(keep)
    options: dict[str, Any] = {"num_samples": SAMPLES, "scale": data.scale, "binarisation": "dynamic"}
    started = time.perf_counter()
    found = log_likelihood(model, data.x_test, **options)
    return {
        "row": BELOW,
        "rows": len(data.x_test),
        "samples": SAMPLES,
        "seconds": round(time.perf_counter() - started, 1),
        "log_likelihood": found.mean,
        "log_likelihood_error": found.mean_error,
    }


def time_stack(data_dir: str | None, keep: str) -> dict[str, Any]:
    """Return how long one row of each recipe takes to train."""
    found = {}
    for name in ("default-100", "pure-100"):
        row = next(row for row in mnist_m1m2.rows(1) if row.name == name)
        result = mnist_m1m2.train(row, data_dir, keep, torch.get_num_threads())
        found[name] = {key: result[key] for key in ("train_seconds", "steps", "test_error")}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", metavar="DIR", help="where MNIST lies (else PYRO_SSVAE_DATA, else a cache)")
    parser.add_argument("--keep", metavar="DIR", default="models", help="where mnist_m1.py kept its run folders")
    times: dict[str, Callable[[str | None, str], dict[str, Any]]] = {
        "likelihood": time_likelihood,
        "stack": time_stack,
    }
    parser.add_argument("--only", choices=list(times), help="one of the two")
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    for name in [args.only] if args.only else times:
        result = times[name](args.data_dir, args.keep)
        result |= {"device": f"cpu, {torch.get_num_threads()} threads", "torch": torch.__version__}
        print(json.dumps(result, indent=1))
        (RESULTS / f"time-{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    write_page(RESULTS)


if __name__ == "__main__":
    sys.exit(main())
