"""Train a DDGM (Kim & Bengio 2016) on points in the plane: an energy model and a generator, with a movie of training.

    python examples/ddgm_2d.py                  # ten elongated Gaussians on a circle
    python examples/ddgm_2d.py --data spiral
    python examples/ddgm_2d.py --help

Each run leaves a folder with its settings, metrics, model, movie, figures and result.json.
"""

from __future__ import annotations

import sys
from typing import Any

from pyro_ssvae import DDGM, EnergyObjective, fit, report
from pyro_ssvae.cli import print_result, record_movie, report_points, run_command
from pyro_ssvae.data import make_toy_data


def train(args: Any) -> None:
    data = make_toy_data(args.data, seed=args.seed)
    print(data)
    model = DDGM.for_data(data)  # p(x) = exp(-E(x)) / Z, and a generator x = G(z)
    # The energy is lowered on data and raised on samples; the generator minimises its KL divergence from p(x).
    objective = EnergyObjective.for_data(model, data, **args.objective)
    with record_movie(args, model, data) as add_frame:
        run = fit(objective, data, on_evaluation=add_frame, **args.fit)
    result = report(objective, data, run)
    print_result(result)
    report_points(args, model, data, result)


def main(argv: list[str] | None = None) -> int:
    return run_command(train, "ddgm_2d", argv)


if __name__ == "__main__":
    sys.exit(main())
