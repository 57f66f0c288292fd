"""Train M1+M2 (Kingma et al. 2014): a semi-supervised model of the latents of a variational autoencoder.

    python examples/m1_m2.py                      # MNIST, 100 labels: M1 first, then M2 on its latents
    python examples/m1_m2.py --pure               # the paper's objective, without regularisers
    python examples/m1_m2.py --joint-epochs 10    # then train M1 and M2 jointly
    python examples/m1_m2.py --help

The stages m1, stacked and joint leave folders of their own, each with settings, metrics, model, figures and result.
"""

from __future__ import annotations

import sys
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from pyro_ssvae import M1, M1M2, SemiSupervisedELBO
from pyro_ssvae.cli import load_data, make_m1, print_result, run_command, train_stages


class MyM1M2(M1M2):
    """M1+M2 with its generative model in view: change a line of it to make it yours."""

    def sample_z1(self, log_pi: Tensor, y: Tensor | None) -> Tensor:
        """p(z) p(y|π) p(z1|y,z); then p(x|z1) of M1. The guide is inherited: q(z1|x) q(y|x) q(z|z1,y)."""
        z = pyro.sample("z", self.prior())
        y = pyro.sample("y", dist.Categorical(logits=log_pi), obs=y)
        return pyro.sample("z1", self.decode_z1(y, z))


def train(args: Any) -> None:
    data = load_data(args)
    print(data)
    m1 = make_m1(args, data)  # p(z1) p(x|z1), q(z1|x): a new one, or that of --m1

    def make_objective(m1: M1, active: Tensor | None) -> SemiSupervisedELBO:
        """Return J^α of M2 on the active latents of M1, those that vary between examples."""
        model = MyM1M2.for_data(data, m1=m1, active=active, **args.model)
        return SemiSupervisedELBO.for_data(model, data, **args.objective)

    for stage, result in train_stages(args, data, m1, make_objective):  # fit and report of each stage
        print_result(result, stage)


def main(argv: list[str] | None = None) -> int:
    return run_command(train, "m1m2", argv)


if __name__ == "__main__":
    sys.exit(main())
