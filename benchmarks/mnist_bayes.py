"""Train M2 on MNIST with every label; classify test examples by Bayes' rule, p(y|x) ∝ p(y) p(x|y), and by q(y|x).

    python benchmarks/mnist_bayes.py            # 50 minutes on one core

log p(x|y) is estimated by importance sampling from q(z|x,y). The first layer of the decoder has separate weights for
each class, and the training set is extended by copies of its examples under small affine maps. The result is kept as
docs/results/NAME-HASH.json and is not made again.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import pyro
import torch
from runs import Result, Run, main
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_ssvae import M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, fit, report
from pyro_ssvae.evaluation import LogLikelihood, log_likelihood
from pyro_ssvae.networks import ACTIVATIONS, MLP
from pyro_ssvae.objectives import AffineAugmentation
from pyro_ssvae.presets import PURE


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


def configurations(seeds: int | None = None) -> list[Run]:
    """Return both runs: the published one, and a shorter one with fewer copies that came before it.

    Their options are the numbers of importance samples per class, for test and for validation examples, the number of
    validation examples, and how many copies of each training example are added, by affine maps of which strength.
    """
    options = {"samples": 500, "validation_samples": 50, "num_validation": 2500, "strength": 0.4}
    changes = {"labelled_batch_size": 100, "learning_rate": 2e-3, "binarisation": "none"}
    training = PURE.training | changes | {"kl_warmup": 0.0, "kl_peak": 1.0}
    model = PURE.model | {"hidden_dims": [500, 500]}

    def configure(name: str, copies: int, epochs: int) -> Run:
        settings = {"training": training | {"max_epochs": epochs}, "options": options | {"copies": copies}}
        return Run("m2", name, num_labels="all", model=model, **settings)

    return [configure("bayes", 9, 13), configure("bayes-earlier", 4, 11)]


def build_model(run: Run, event_shape: tuple[int, ...], num_classes: int) -> M2:
    """Return the model of the run."""
    latent_dim = run.model.get("latent_dim", 50)
    sizes, activation = run.model["hidden_dims"][::-1], run.model["activation"]
    decoder = ClassDecoder(latent_dim, num_classes, math.prod(event_shape), sizes, activation)
    return M2(event_shape, num_classes, decoder=decoder, **run.model)


def add_copies(data: SemiSupervisedData, copies: int, strength: float, seed: int) -> SemiSupervisedData:
    """Return the data with augmented copies of each training example, which carry its label."""
    augment = AffineAugmentation(strength=strength)
    found = [data.x]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(copies):
            parts = [augment(part / data.scale).clamp(0.0, 1.0) * data.scale for part in data.x.split(5000)]
            found.append(torch.cat([part.round().to(data.x.dtype) for part in parts]))
    return replace(data, x=torch.cat(found), y=data.y.repeat(copies + 1), split=None)


def train(run: Run, data_dir: str | None, keep: str | None) -> Result:
    """Train the run and return its result."""
    options = run.options
    data = SemiSupervisedData.from_name("mnist", num_labels="all", data_dir=data_dir)
    data = add_copies(data, options["copies"], options["strength"], run.seed)
    pyro.set_rng_seed(run.seed)
    model = build_model(run, data.event_shape, data.num_classes)
    objective = SemiSupervisedELBO.for_data(model, data, pure=True)
    trained = fit(objective, data, TrainingConfig(seed=run.seed, **run.training), out=run.folder(keep))
    result = report(objective, data, trained)
    drawn: dict[str, Any] = {"scale": data.scale, "binarisation": trained.config.binarisation, "seed": run.seed}
    x, y = data.x_validation[: options["num_validation"]], data.y_validation[: options["num_validation"]]
    on_validation = log_likelihood(model, x, num_samples=options["validation_samples"], **drawn)
    started = time.perf_counter()
    on_test = log_likelihood(model, data.x_test, num_samples=options["samples"], **drawn)
    return {
        **result,
        "test/bayes_error": _error(on_test, data.y_test),
        "val/bayes_error": _error(on_validation, y),
        "test/log_likelihood": on_test.mean,
        "test/log_likelihood_error": on_test.mean_error,
        "test/log_likelihood_samples": options["samples"],
        "likelihood_seconds": round(time.perf_counter() - started, 1),
        "curves": trained.metrics,
    }


def _error(found: LogLikelihood, y: Tensor) -> float:
    return float((found.class_posterior().argmax(-1) != y).double().mean())


if __name__ == "__main__":
    main(__doc__, configurations, train)
