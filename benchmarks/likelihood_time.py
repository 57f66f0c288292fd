"""Time the estimate of log p(x) of every test row of MNIST, on all cores at once, with nothing beside it.

    python benchmarks/mnist_m1.py --only elbo --keep models    # first, the model
    python benchmarks/likelihood_time.py --keep models         # 10,000 rows of 5,000 samples, then docs/results_m1.md

The seconds are of the estimate alone; training is not in them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

import torch
from mnist_m1 import RESULTS, SAMPLES, read_below
from results_page_m1 import write_page

from pyro_ssvae import SemiSupervisedData
from pyro_ssvae.evaluation import log_likelihood


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", metavar="DIR", help="where MNIST lies (else PYRO_SSVAE_DATA, else a cache)")
    parser.add_argument("--keep", metavar="DIR", default="models", help="where mnist_m1.py kept its run folders")
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    data = SemiSupervisedData.from_name("mnist", num_labels="all", data_dir=args.data_dir)
    model = read_below(args.keep, "elbo")
    options: dict[str, Any] = {"num_samples": SAMPLES, "scale": data.scale, "binarisation": "dynamic"}
    started = time.perf_counter()
    found = log_likelihood(model, data.x_test, **options)
    result = {
        "rows": len(data.x_test),
        "samples": SAMPLES,
        "seconds": round(time.perf_counter() - started, 1),
        "log_likelihood": found.mean,
        "log_likelihood_error": found.mean_error,
        "device": f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=1))
    (RESULTS / "likelihood-time.json").write_text(json.dumps(result, indent=1) + "\n")
    write_page(RESULTS)


if __name__ == "__main__":
    sys.exit(main())
