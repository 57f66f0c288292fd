"""Train M1, a variational autoencoder (Kingma & Welling 2013).

    python examples/m1.py                                    # MNIST, the M1 of Kingma et al. 2014
    python examples/m1.py --data digits --likelihood gaussian
    python examples/m1.py --preset musyoku                   # two latents, for a map
    python examples/m1.py --help

Each run leaves a folder with its settings, metrics, model, figures and result.json.
"""

from __future__ import annotations

import sys
from typing import Any

import pyro
from torch import Tensor

from pyro_ssvae import M1, UnsupervisedELBO, fit, report
from pyro_ssvae.cli import load_data, print_result, run_command
from pyro_ssvae.models import data_plate


class MyM1(M1):
    """M1 with its generative model in view: change a line of it to make it yours."""

    def model(self, x: Tensor, *, size: int | None = None) -> None:
        """p(z) p(x|z). The guide is inherited: q(z|x)."""
        with data_plate(x, size):  # B examples that stand for `size`
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z), obs=x)


def train(args: Any) -> None:
    data = load_data(args).without_labels()
    print(data)
    model = MyM1.for_data(data, **args.model)  # --latent-dim, --likelihood, ...
    objective = UnsupervisedELBO.for_data(model, data, **args.objective)  # negative bound, in nats per example
    run = fit(objective, data, **args.fit)
    print_result(report(objective, data, run, num_samples=args.num_samples))  # on test examples; draws figures


def main(argv: list[str] | None = None) -> int:
    return run_command(train, "m1", argv)


if __name__ == "__main__":
    sys.exit(main())
