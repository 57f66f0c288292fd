"""Train a DDGM (Kim & Bengio 2016) on points in the plane: an energy model and a generator, with a movie of training.

    python examples/ddgm_2d.py                     # ten elongated Gaussians on a circle
    python examples/ddgm_2d.py --data spiral
    python examples/ddgm_2d.py --entropy nearest_neighbour --training.max_steps 3000
    python examples/ddgm_2d.py --resume runs/...   # continue a run that was stopped

Each run leaves a folder with its settings, metrics, model, movie, figures and result.json.
"""

from __future__ import annotations

import sys
from typing import Any

from pyro_ssvae import DDGM, EnergyObjective, fit, report
from pyro_ssvae.cli import (
    energy_options,
    fit_options,
    name_run,
    parse_ddgm_2d,
    report_points,
    run_command,
    start_movie,
)
from pyro_ssvae.data import make_toy_data


def train(args: Any) -> None:
    """Train and report."""
    name_run(args, "ddgm")
    data = make_toy_data(args.data, seed=args.seed)
    print(data)
    model = DDGM.for_data(data)  # p(x) = exp(-E(x)) / Z, and a generator x = G(z)
    # The energy is lowered on data and raised on samples; the generator minimises its KL divergence from p(x).
    objective = EnergyObjective.for_data(model, data, **energy_options(args))
    with start_movie(args, model, data) as add_frame:
        run = fit(objective, data, on_evaluation=add_frame, **fit_options(args))
    print(f"DDGM on {args.data}: {run.train_seconds:.0f} s of training")
    report_points(args, model, data, report(objective, data, run))


def main(argv: list[str] | None = None) -> int:
    return run_command(train, parse_ddgm_2d, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
