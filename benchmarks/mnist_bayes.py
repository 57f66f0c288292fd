"""Train M2 on MNIST with every label; classify test examples by Bayes' rule, p(y|x) ∝ p(y) p(x|y), and by q(y|x).

    python benchmarks/mnist_bayes.py            # 50 minutes on one core

log p(x|y) is estimated by importance sampling from q(z|x,y). The first layer of the decoder has separate weights for
each class, and the training set is extended by copies of its examples under small affine maps.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import pyro
import torch
from runs import Result, Run, fit_and_report, main
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_ssvae import M2, SemiSupervisedData, SemiSupervisedELBO
from pyro_ssvae.evaluation import LogLikelihood, log_likelihood
from pyro_ssvae.networks import ACTIVATIONS, MLP
from pyro_ssvae.objectives import AffineAugmentation
from pyro_ssvae.presets import PURE


class ClassDecoder(nn.Module):
    """A multilayer perceptron of latents whose first layer, :math:`W_y z + b_y`, has its own weights for each class."""

    def __init__(self, inputs: int, num_classes: int, outputs: int, hidden_dims: list[int], activation: str) -> None:
        super().__init__()
        first, *rest = hidden_dims
        bound = 1.0 / math.sqrt(inputs)  # of nn.Linear, for each class
        self.weight = nn.Parameter(torch.empty(first, num_classes * inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_classes, first).uniform_(-bound, bound))
        self.rest = nn.Sequential(ACTIVATIONS[activation](), MLP((first,), outputs, rest, activation=activation))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Map ``z`` ``(*batch, L)`` and integer ``y`` ``(*batch')`` to ``(*broadcast, out_features)``."""
        classes = torch.arange(len(self.bias), device=y.device)
        chosen = (y.unsqueeze(-1) == classes).to(z)  # F.one_hot would synchronise host and device
        by_class = (chosen.unsqueeze(-1) * z.unsqueeze(-2)).flatten(-2)  # z in the columns of its class, else zero
        return self.rest(F.linear(by_class, self.weight) + F.embedding(y, self.bias))


def configurations(seeds: int | None = None) -> list[Run]:
    """Return both runs: the published one, and a shorter one with fewer copies that came before it.

    Their options are the numbers of importance samples per class, for test and for validation examples, the number of
    validation examples, and how many copies of each training example are added, by affine maps of which strength.
    """
    common = {"samples": 500, "validation_samples": 50, "num_validation": 2500, "strength": 0.4}
    changes = {"labelled_batch_size": 100, "learning_rate": 2e-3, "binarisation": "none"}
    changes |= {"kl_warmup": 0.0, "kl_peak": 1.0}
    model, found = PURE.model | {"hidden_dims": [500, 500]}, []
    for name, copies, epochs in (("bayes", 9, 13), ("bayes-earlier", 4, 11)):
        training, options = PURE.training | changes | {"max_epochs": epochs}, {**common, "copies": copies}
        found.append(Run("m2", name, num_labels="all", model=model, training=training, options=options))
    return found


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
    options = run.options
    data = add_copies(run.load(data_dir), options["copies"], options["strength"], run.seed)
    pyro.set_rng_seed(run.seed)
    sizes, activation = run.model["hidden_dims"][::-1], run.model["activation"]
    decoder = ClassDecoder(50, data.num_classes, math.prod(data.event_shape), sizes, activation)
    model = M2(data.event_shape, data.num_classes, decoder=decoder, **run.model)
    objective = SemiSupervisedELBO.for_data(model, data, pure=True)
    result = fit_and_report(run, objective, data, keep)
    drawn: dict[str, Any] = {"scale": data.scale, "binarisation": run.training["binarisation"], "seed": run.seed}
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
    }


def _error(found: LogLikelihood, y: Tensor) -> float:
    return float((found.class_posterior().argmax(-1) != y).double().mean())


if __name__ == "__main__":
    main(__doc__, configurations, train)
