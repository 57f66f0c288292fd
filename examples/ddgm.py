"""Train a DDGM (Kim & Bengio 2016) on images: an energy model and a generator.

    python examples/ddgm.py                                  # MNIST; eleven minutes on two cores
    python examples/ddgm.py --data digits --training.max_steps 2000
    python examples/ddgm.py --data photos/ --image-size 64   # a folder of images, transparent ones on white
    python examples/ddgm.py --num-labels 100                 # energies of classes too, from 100 labels
    python examples/ddgm.py --other-data fashion_mnist       # does the energy tell them from digits?
    python examples/ddgm.py --resume runs/...                # continue a run that was stopped

Each run leaves a folder with its settings, metrics, model, figures and result.json. Where the data has classes, a small
reference classifier is trained afterwards to evaluate the generated images. Images in colour, or larger than 32x32,
have a preset of their own: `--data photos/ --help` shows it.
"""

from __future__ import annotations

import sys
from typing import Any

from pyro_ssvae import DDGM, EnergyObjective, fit, report
from pyro_ssvae.cli import (
    check_images,
    energy_options,
    fit_options,
    load_data,
    load_others,
    parse_ddgm,
    report_images,
    run_command,
)


def train(args: Any) -> None:
    """Train and report."""
    known = load_data(args, "ddgm", num_labels="all")  # with every label, for the reference classifier alone
    data = load_data(args, "ddgm") if args.num_labels else known.without_labels()
    check_images(data)
    load_others(args, data)  # fails before training if they are not there
    print(data)
    model = DDGM.for_data(data)  # p(x) = exp(-E(x)) / Z, and a generator x = G(z)
    # The energy is lowered on data and raised on samples; the generator minimises its KL divergence from p(x).
    objective = EnergyObjective.for_data(model, data, alpha=args.alpha, **energy_options(args))
    run = fit(objective, data, **fit_options(args))
    result = report(objective, data, run)
    print(f"DDGM on {data.name}: {run.train_seconds:.0f} s of training")
    if result.get("test/error") is not None:
        print(f"test error {result['test/error']:.2%} by energies of classes, from {data.num_labelled} labels")
    report_images(args, model, data, known, result)


def main(argv: list[str] | None = None) -> int:
    return run_command(train, parse_ddgm, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
