"""Train a DDGM (Kim & Bengio 2016) on images: an energy model and a generator that learn from each other.

    python examples/ddgm.py                                  # MNIST
    python examples/ddgm.py --data digits --training.max_steps 2000
    python examples/ddgm.py --data photos/ --image-size 64   # a folder of images, RGB or RGBA
    python examples/ddgm.py --num-labels 100                 # class energies too, from 100 labels
    python examples/ddgm.py --resume runs/...                # continue a run that was stopped

Each run leaves a folder with its settings, metrics, model, figures and result.json. Where the data has classes, a small
classifier is trained on them first, only to judge what is generated.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyro

from pyro_ssvae import DDGM, EnergyObjective, NonFiniteLossError, RunFolderError, TrainingFailedError, fit
from pyro_ssvae.cli import load_data, objective_options, parse_ddgm, settings, training_config
from pyro_ssvae.evaluation import image_measures
from pyro_ssvae.training import RunFolder, report


def main(argv: list[str] | None = None) -> int:
    """Run the whole story and return the exit status."""
    args = parse_ddgm(__doc__, argv)
    try:
        data = load_data(args, "ddgm")
        labels, known = args.num_labels, data  # known: with every label, for the judge alone
        if labels:
            args.num_labels = 0
            known = load_data(args, "ddgm")
            args.num_labels = labels
        else:
            data = data.without_labels()
        print(f"{data.name}: {len(data.x)} rows of shape {data.event_shape} to train on, {data.num_labelled} labelled")
        pyro.set_rng_seed(args.seed)
        model = DDGM(data.event_shape, num_classes=data.num_classes if labels else None)

        # The energy falls on data and rises on samples; the generator follows it and keeps its entropy.
        objective = EnergyObjective.for_data(model, data, alpha=args.alpha, **objective_options(args))
        run = fit(
            objective,
            data,
            training_config(args),
            out=args.out,
            resume=args.resume is not None,
            settings=settings(args),
        )
        if not run.finished:
            print(
                f"Stopped by {run.stopped_by} at step {run.steps}. Go on with: python {sys.argv[0]} --resume {args.out}"
            )
            return 130
        result = report(objective, data, run, seed=args.seed)
        found = image_measures(model, data, known, num_samples=args.num_samples, seed=args.seed)
        RunFolder(Path(args.out)).write_result({**result, **found})
    except (ValueError, TypeError, OSError, RunFolderError, NonFiniteLossError, TrainingFailedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    print(f"DDGM on {data.name}, {result['train_seconds']:.0f} s of training")
    if result.get("test_error") is not None:
        print(f"test error {result['test_error']:.2%} by class energies of {result['num_labels']} labels")
    if "frechet_distance" in found:
        print(
            f"Fréchet distance {found['frechet_distance']:.1f} (test images {found['frechet_floor']:.1f}), least class "
            f"{found['least_share']:.1%}, confidence {found['confidence']:.3f} ({found['real_confidence']:.3f})"
        )
    print("area under the curve of E: " + ", ".join(f"{name} {area:.2f}" for name, area in found["auroc"].items()))
    print(f"figures in {args.out}/figures, numbers in {args.out}/result.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
