"""Train M1+M2 (Kingma et al. 2014): a semi-supervised model of the latents of a variational autoencoder.

    python examples/m1_m2.py                          # MNIST, 100 labels: M1 first, then the stack
    python examples/m1_m2.py --pure                   # the paper's objective, without regularisers
    python examples/m1_m2.py --m1 runs/.../m1         # use an M1 that was trained before
    python examples/m1_m2.py --joint-epochs 10        # then train M1 and M2 jointly
    python examples/m1_m2.py --resume runs/...        # continue, at the stage where it stopped

The stages m1, stacked and joint are runs of their own in folders of these names. --max-epochs and --training.* are
settings of the stacked stage; the joint stage has its own length and a tenth of the learning rate. --m1-* are settings
of M1. --max-minutes counts for each stage.
"""

from __future__ import annotations

import sys
from typing import Any

from pyro_ssvae import M1M2, SemiSupervisedELBO
from pyro_ssvae.cli import (
    joint_config,
    load_data,
    objective_options,
    parse_m1_m2,
    run_command,
    run_stage,
    select_latents,
    start_stages,
    train_m1,
    training_config,
)


def train(args: Any) -> None:
    """Train M1 on all examples, then M2 on its latents, and report each stage."""
    data = load_data(args, "m1m2")
    print(data)
    m1 = start_stages(args, data)  # p(z1) p(x|z1), q(z1|x); every part is built once before anything is trained
    train_m1(args, m1, data)
    active = select_latents(args, m1, data)  # latents that vary between examples
    model = M1M2.for_data(
        data,
        m1=m1,
        active=active,
        classify_from=args.classify_from,
        latent_dim=args.latent_dim,
        hidden_dims=args.hidden_dims,
        activation=args.activation,
        prior=args.prior,
        class_prior=args.class_prior,
    )
    objective = SemiSupervisedELBO.for_data(model, data, **objective_options(args))
    stages = {"stacked": training_config(args)}
    if args.joint_epochs:
        stages["joint"] = joint_config(args)
    for stage, config in stages.items():
        if stage == "joint":
            model.unfreeze_m1()
        result = run_stage(args, stage, objective, data, config, num_samples=args.num_samples)
        print(f"{stage}: {result['train_seconds']:.0f} s of training")
        for name in ("test/error", "test/bound", "test/log_likelihood"):
            if result.get(name) is not None:
                print(f"{name} {result[name]:.4g}")


def main(argv: list[str] | None = None) -> int:
    return run_command(train, parse_m1_m2, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
