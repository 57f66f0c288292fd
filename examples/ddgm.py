"""Train a DDGM (Kim & Bengio 2016) on images: an energy model and a generator.

    python examples/ddgm.py                                  # MNIST; eleven minutes on two cores
    python examples/ddgm.py --data photos/ --image-size 64   # a folder of images, transparent ones on white
    python examples/ddgm.py --num-labels 100                 # energies of classes too, from 100 labels
    python examples/ddgm.py --other-data fashion_mnist       # does the energy recognise them?
    python examples/ddgm.py --help

Each run leaves a folder with its settings, metrics, model, figures and result.json. Where the data has classes, a small
reference classifier is trained afterwards to evaluate the generated images. Images in colour, or larger than 32x32,
have a preset of their own: `--data photos/ --help` shows it.
"""

from __future__ import annotations

import sys
from typing import Any

from pyro_ssvae import DDGM, EnergyObjective, fit, report
from pyro_ssvae.cli import load_images, print_result, report_images, run_command


def train(args: Any) -> None:
    data, known = load_images(args)  # known has every label, for the reference classifier alone
    print(data)
    model = DDGM.for_data(data)  # p(x) = exp(-E(x)) / Z, and a generator x = G(z)
    # The energy is lowered on data and raised on samples; the generator minimises its KL divergence from p(x).
    objective = EnergyObjective.for_data(model, data, **args.objective)
    result = report(objective, data, fit(objective, data, **args.fit))
    print_result(result)
    report_images(args, model, data, known, result)


def main(argv: list[str] | None = None) -> int:
    return run_command(train, "ddgm", argv)


if __name__ == "__main__":
    sys.exit(main())
