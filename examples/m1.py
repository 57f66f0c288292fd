"""Train M1, a variational autoencoder (Kingma & Welling 2013).

    python examples/m1.py                            # MNIST, the M1 of Kingma et al. 2014
    python examples/m1.py --data digits --likelihood gaussian --training.kl_warmup 0.3
    python examples/m1.py --preset musyoku           # two latents, for a map
    python examples/m1.py --prior vamp --importance-weighted --num-particles 5
    python examples/m1.py --resume runs/...          # continue a run that was stopped

Each run leaves a folder with its settings, metrics, model, figures and result.json.
"""

from __future__ import annotations

import sys
from typing import Any

import pyro
from torch import Tensor

from pyro_ssvae import M1, UnsupervisedELBO, fit, report
from pyro_ssvae.cli import fit_options, load_data, model_options, objective_options, parse_m1, run_command
from pyro_ssvae.models import data_plate


class MyM1(M1):
    """M1 with its generative model in view: change a line of it to make it yours."""

    def model(self, x: Tensor, *, size: int | None = None) -> None:
        """p(z) p(x|z). The guide is inherited: q(z|x)."""
        with data_plate(x, size):  # B examples that stand for `size`
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z), obs=x)


def train(args: Any) -> None:
    """Train and report."""
    data = load_data(args, "m1").without_labels()
    print(data)
    model = MyM1.for_data(data, **model_options(args))
    objective = UnsupervisedELBO.for_data(model, data, **objective_options(args))  # negative bound, nats per example
    run = fit(objective, data, **fit_options(args))
    result = report(objective, data, run, num_samples=args.num_samples)  # on the test examples; draws the figures
    print(f"M1, {result['loss']}: {run.train_seconds:.0f} s of training")
    if result["test/bound"] is not None:
        print(f"bound of log p(x) {result['test/bound']:.2f} nats per example, of which KL {result['test/kl_z']:.2f}")
        print(f"{result['test/active_units']} of {model.latent_dim} latents are active")
    if result.get("test/log_likelihood") is not None:
        print(f"log p(x) {result['test/log_likelihood']:.2f} nats per example ({args.num_samples} samples)")


def main(argv: list[str] | None = None) -> int:
    return run_command(train, parse_m1, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
