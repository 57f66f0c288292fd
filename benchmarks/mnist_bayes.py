"""Train M2 on MNIST with every label, and classify test rows by Bayes' rule, p(y|x) ∝ p(y) p(x|y), beside q(y|x).

    python benchmarks/mnist_bayes.py            # about an hour on two cores
    python benchmarks/mnist_bayes.py --table    # only rewrite docs/results_m1.md

log p(x|y) is estimated by importance sampling from q(z|x,y). The finished run is kept as docs/results/NAME-HASH.json
and is not run again.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch
from results_page_m1 import write_page
from runs import digest, make_all

from pyro_ssvae import M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, fit
from pyro_ssvae.evaluation import log_likelihood
from pyro_ssvae.recipes import PURE
from pyro_ssvae.training import report

RESULTS = Path(__file__).parents[1] / "docs" / "results"


@dataclass(frozen=True)
class Row:
    """The row."""

    name: str = "bayes"
    seed: int = 0
    samples: int = 500
    model: dict[str, Any] = field(default_factory=lambda: PURE.model | {"hidden_dims": [500, 500]})
    training: dict[str, Any] = field(
        default_factory=lambda: (
            PURE.training
            | {"max_epochs": 100, "labelled_batch_size": 100, "learning_rate": 1e-3, "kl_squeeze": 1.0}
            | {"binarisation": "none"}
        )
    )

    @property
    def path(self) -> Path:
        """Where its result is kept: the name holds a hash of every setting, defaults included."""
        model = M2((1, 28, 28), 10, **self.model)
        settings = {
            **asdict(self),
            "model": model.config(),
            "objective": SemiSupervisedELBO(model, num_labelled=1, num_unlabelled=0).config(),
            "training": TrainingConfig(**self.training).to_dict(),
        }
        return RESULTS / f"m2-{self.name}-{digest(settings)}.json"


def train(row: Row, data_dir: str | None, keep: str | None, threads: int) -> dict[str, Any]:
    """Train the row and return its result."""
    torch.set_num_threads(threads)
    data = SemiSupervisedData.from_name("mnist", num_labels="all", data_dir=data_dir)
    pyro.set_rng_seed(row.seed)
    model = M2(data.event_shape, data.num_classes, **row.model)
    objective = SemiSupervisedELBO.for_data(model, data, pure=True)
    out = Path(keep) / row.name if keep else None
    run = fit(objective, data, TrainingConfig(seed=row.seed, **row.training), out=out)
    result = report(objective, data, run, seed=row.seed)
    options: dict[str, Any] = {"scale": data.scale, "binarisation": run.config.binarisation, "seed": row.seed}
    started = time.perf_counter()
    found = log_likelihood(model, data.x_test, num_samples=row.samples, **options)
    seconds = time.perf_counter() - started
    wrong = found.class_posterior().argmax(-1) != data.y_test
    return {
        "row": asdict(row),
        **result,
        "bayes_error": float(wrong.double().mean()),
        "test_log_likelihood": found.mean,
        "test_log_likelihood_error": found.mean_error,
        "likelihood_samples_a_class": row.samples,
        "likelihood_seconds": round(seconds, 1),
        "curves": run.metrics,
    }


if __name__ == "__main__":
    make_all(__doc__, [Row()], train, lambda: write_page(RESULTS))
