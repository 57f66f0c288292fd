"""Train a DDGM (Kim & Bengio 2016) on points in the plane: an energy model and a generator, and a movie of both.

    python examples/ddgm_2d.py                     # ten long Gaussians around a circle
    python examples/ddgm_2d.py --data spiral
    python examples/ddgm_2d.py --entropy nearest_neighbour --training.max_steps 3000
    python examples/ddgm_2d.py --resume runs/...   # continue a run that was stopped

Each run leaves a folder with its settings, metrics, model, movie, figures and result.json.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pyro

from pyro_ssvae import fit, report
from pyro_ssvae.cli import EXPECTED_ERRORS, name_run, objective_options, parse_ddgm_2d, settings, training_config
from pyro_ssvae.data import make_toy_data
from pyro_ssvae.evaluation import measure_toy_model
from pyro_ssvae.models import DDGM
from pyro_ssvae.objectives import EnergyObjective
from pyro_ssvae.plots import Movie, plot_landscape
from pyro_ssvae.plots.style import save_figure
from pyro_ssvae.presets import DDGM_TOY
from pyro_ssvae.training import RunFolder


def main(argv: list[str] | None = None) -> int:
    """Run the whole story and return the exit status."""
    args = parse_ddgm_2d(__doc__, argv)
    try:
        name_run(args, "ddgm")
        data = make_toy_data(args.data, seed=args.seed)
        pyro.set_rng_seed(args.seed)
        model = DDGM(data.event_shape, **DDGM_TOY.model)

        # The energy falls on data and rises on samples; the generator follows it and keeps its entropy.
        objective = EnergyObjective.for_data(model, data, **objective_options(args))
        config = training_config(args)
        film, resume = Path(args.out) / "training.gif", args.resume is not None
        movie = Movie.load(film) if resume and args.frames and film.is_file() else Movie()
        if args.frames > 1 and not resume:
            movie.add(plot_landscape(model, data.x_validation, title="Step 0"), 0)
        filmed = list(movie.steps)
        total, later = config.total_steps(math.ceil(len(data.x) / config.batch_size)), max(1, args.frames - 1)

        def shoot(module: DDGM, row: dict[str, Any]) -> None:
            step = row["step"]
            movie.cut(step)  # a run may be taken up before its last frame
            last = movie.steps[-1] if movie.steps else 0
            if args.frames and step * later // total > last * later // total:
                movie.add(plot_landscape(module, data.x_validation, title=f"Step {step:,}"), step)

        try:
            run = fit(
                objective,
                data,
                config,
                out=args.out,
                resume=resume,
                settings=settings(args),
                on_evaluation=shoot,
            )
        finally:
            if movie.steps != filmed:
                movie.save(film)
        if not run.finished:
            print(
                f"Stopped by {run.stopped_by} at step {run.steps}. Go on with: python {sys.argv[0]} --resume {args.out}"
            )
            return 130
        result = report(objective, data, run)
        found = measure_toy_model(
            model, args.data, num_samples=args.num_samples, langevin_steps=args.refine, seed=args.seed
        )
        RunFolder(args.out).write_result({**result, **found})
        save_figure(plot_landscape(model, data.x_test), Path(args.out) / "figures" / "landscape.png")
    except EXPECTED_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    print(f"DDGM on {args.data}, {result['train_seconds']:.0f} s of training")
    if args.data == "ring":
        print(
            f"{found['modes']} of 10 modes; of high quality {found['high_quality']:.1%} as drawn, "
            f"{found['langevin_high_quality']:.1%} after {args.refine} Langevin steps"
        )
    for words, name, floor in (
        ("energy distance", "energy_distance", "floor"),
        ("squared MMD", "squared_mmd", "mmd_floor"),
    ):
        mean, spread = found[floor]
        print(f"{words} {found[name]:.2f}, of two real samples {mean:.2f} ± {spread:.2f}, all times 1,000")
    print(f"total variation of exp(-E)/Z from the truth {found['total_variation']:.2f}")
    print(
        f"log Z {found['log_z_grid']:.2f} on a grid, {found['log_z_ais']:.2f} ± {found['log_z_ais_error']:.2f} "
        "by annealed importance sampling"
    )
    if len(movie):
        print(f"movie {film}")
    print(f"figures in {args.out}/figures, numbers in {args.out}/result.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
