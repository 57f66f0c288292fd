"""Train M2 on MNIST with every label, and classify test rows by Bayes' rule, p(y|x) ∝ p(y) p(x|y), beside q(y|x).

    python benchmarks/mnist_bayes.py            # three quarters of an hour on one core
    python benchmarks/mnist_bayes.py --table    # only rewrite docs/results_m1.md

log p(x|y) is estimated by importance sampling from q(z|x,y). The first layer of the decoder has weights of its own for
each class, and the training rows are joined by copies under small affine maps. The finished run is kept as
docs/results/NAME-HASH.json and is not run again.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyro
import torch
from results_page_m1 import write_page
from runs import digest, make_all
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_ssvae import M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, fit
from pyro_ssvae.evaluation import LogLikelihood, log_likelihood
from pyro_ssvae.networks import ACTIVATIONS, MLP
from pyro_ssvae.objectives import AffineAugmentation
from pyro_ssvae.presets import PURE
from pyro_ssvae.training import report

RESULTS = Path(__file__).parents[1] / "docs" / "results"


@dataclass(frozen=True)
class Row:
    """The row."""

    name: str = "bayes"
    seed: int = 0
    samples: int = 500
    validation_samples: int = 50
    validation_rows: int = 2500
    copies: int = 9  # of each training row, augmented, beside itself
    strength: float = 0.4  # of their affine maps
    model: dict[str, Any] = field(default_factory=lambda: PURE.model | {"hidden_dims": [500, 500]})
    training: dict[str, Any] = field(
        default_factory=lambda: (
            PURE.training
            | {"max_epochs": 13, "labelled_batch_size": 100, "learning_rate": 2e-3}
            | {"kl_warmup": 0.0, "kl_peak": 1.0, "binarisation": "none"}
        )
    )

    @property
    def path(self) -> Path:
        """Where its result is kept: the name holds a hash of every setting, defaults included."""
        model = build(self, (1, 28, 28), 10)
        settings = {
            **asdict(self),
            "model": model.config(),
            "objective": SemiSupervisedELBO(model, num_labelled=1, num_unlabelled=0).config(),
            "training": TrainingConfig(**self.training).to_dict(),
        }
        return RESULTS / f"m2-{self.name}-{digest(settings)}.json"


class ClassDecoder(nn.Module):
    """A multilayer perceptron of latents whose first layer, :math:`W_y z + b_y`, has its own weights for each class."""

    def __init__(
        self, latent_dim: int, num_classes: int, out_features: int, hidden_dims: list[int], activation: str
    ) -> None:
        super().__init__()
        first, *rest = hidden_dims
        bound = 1.0 / math.sqrt(latent_dim)  # of nn.Linear, for each class
        self.weight = nn.Parameter(torch.empty(first, num_classes * latent_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_classes, first).uniform_(-bound, bound))
        self.rest = nn.Sequential(ACTIVATIONS[activation](), MLP((first,), out_features, rest, activation=activation))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Map ``z`` ``(*batch, L)`` and integer ``y`` ``(*batch')`` to ``(*broadcast, out_features)``."""
        classes = torch.arange(len(self.bias), device=y.device)
        chosen = (y.unsqueeze(-1) == classes).to(z)  # F.one_hot would synchronise host and device
        by_class = (chosen.unsqueeze(-1) * z.unsqueeze(-2)).flatten(-2)  # z in the columns of its class, else zero
        output: Tensor = self.rest(F.linear(by_class, self.weight) + F.embedding(y, self.bias))
        return output


def build(row: Row, event_shape: tuple[int, ...], num_classes: int) -> M2:
    """Return the model of the row."""
    latent_dim = row.model.get("latent_dim", 50)
    sizes = row.model["hidden_dims"][::-1]
    activation = row.model["activation"]
    decoder = ClassDecoder(latent_dim, num_classes, math.prod(event_shape), sizes, activation)
    return M2(event_shape, num_classes, decoder=decoder, **row.model)


def with_copies(data: SemiSupervisedData, copies: int, strength: float, seed: int) -> SemiSupervisedData:
    """Return the data with augmented copies of each training row, which carry its label."""
    augment = AffineAugmentation(strength=strength)
    found = [data.x]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(copies):
            parts = [augment(part / data.scale).clamp(0.0, 1.0) * data.scale for part in data.x.split(5000)]
            found.append(torch.cat([part.round().to(data.x.dtype) for part in parts]))
    return replace(data, x=torch.cat(found), y=data.y.repeat(copies + 1), split=None)


def train(row: Row, data_dir: str | None, keep: str | None, threads: int) -> dict[str, Any]:
    """Train the row and return its result."""
    torch.set_num_threads(threads)
    data = SemiSupervisedData.from_name("mnist", num_labels="all", data_dir=data_dir)
    data = with_copies(data, row.copies, row.strength, row.seed)
    pyro.set_rng_seed(row.seed)
    model = build(row, data.event_shape, data.num_classes)
    objective = SemiSupervisedELBO.for_data(model, data, pure=True)
    out = Path(keep) / row.name if keep else None
    run = fit(objective, data, TrainingConfig(seed=row.seed, **row.training), out=out)
    result = report(objective, data, run, seed=row.seed)
    options: dict[str, Any] = {"scale": data.scale, "binarisation": run.config.binarisation, "seed": row.seed}
    x, y = data.x_validation[: row.validation_rows], data.y_validation[: row.validation_rows]
    on_validation = log_likelihood(model, x, num_samples=row.validation_samples, **options)
    started = time.perf_counter()
    found = log_likelihood(model, data.x_test, num_samples=row.samples, **options)
    seconds = time.perf_counter() - started
    return {
        "row": asdict(row),
        **result,
        "bayes_error": _error(found, data.y_test),
        "validation_bayes_error": _error(on_validation, y),
        "test_log_likelihood": found.mean,
        "test_log_likelihood_error": found.mean_error,
        "likelihood_samples_a_class": row.samples,
        "likelihood_seconds": round(seconds, 1),
        "curves": run.metrics,
    }


def _error(found: LogLikelihood, y: Tensor) -> float:
    return float((found.class_posterior().argmax(-1) != y).double().mean())


if __name__ == "__main__":
    make_all(__doc__, [Row()], train, lambda: write_page(RESULTS))
