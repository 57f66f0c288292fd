"""Train M2 (Kingma et al. 2014) on images of which a few are labelled.

    python examples/m2.py                          # MNIST, 100 labels
    python examples/m2.py --data digits            # 8x8 digits that ship with scikit-learn, under a minute
    python examples/m2.py --data mine.npz --num-labels 500 --likelihood gaussian --max-minutes 5
    python examples/m2.py --resume runs/...        # continue a run that was stopped

Each run leaves a folder with its settings, metrics, model, figures and result.json.
"""

from __future__ import annotations

import sys
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from pyro_ssvae import M2, SemiSupervisedELBO, fit, report
from pyro_ssvae.cli import fit_options, load_data, model_options, objective_options, parse_m2, run_command
from pyro_ssvae.models import data_plate


class MyM2(M2):
    """M2 with its generative model in view: change a line of it to make it yours."""

    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        """p(π) p(z) p(y|π) p(x|y,z). The guide is inherited: q(z|x,y) q(y|x), with y summed out where it is unknown."""
        log_pi = self.class_prior.model()  # fixed, or learned under a Dirichlet prior
        with data_plate(x, size):  # B examples that stand for `size`
            z = pyro.sample("z", self.prior())  # N(0, I)
            y = pyro.sample("y", dist.Categorical(logits=log_pi), obs=y)
            pyro.sample("x", self.decode(y, z), obs=x)


def train(args: Any) -> None:
    """Train and report."""
    data = load_data(args)  # --num-labels training examples keep their label, the others have y = -1
    print(data)
    model = MyM2.for_data(data, **model_options(args))
    objective = SemiSupervisedELBO.for_data(model, data, **objective_options(args))  # J^α, in nats per example
    run = fit(objective, data, **fit_options(args))
    result = report(objective, data, run)  # on the test examples, once; draws the figures
    print(f"M2 with {', '.join(result['regularisers']) or 'no regulariser'}: {run.train_seconds:.0f} s of training")
    if result["test/error"] is not None:
        print(f"test error {result['test/error']:.2%}")
    if result["test/bound"] is not None:
        print(f"bound of log p(x) {result['test/bound']:.1f} nats per example")


def main(argv: list[str] | None = None) -> int:
    return run_command(train, parse_m2, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
