"""Train a DDGM (Kim & Bengio 2016) on images: an energy model and a generator that learn from each other.

    python examples/ddgm.py                                  # MNIST; eleven minutes on two cores
    python examples/ddgm.py --data digits --training.max_steps 2000
    python examples/ddgm.py --data photos/ --image-size 64   # a folder of images, transparent ones on white
    python examples/ddgm.py --num-labels 100                 # class energies too, from 100 labels
    python examples/ddgm.py --other-data fashion_mnist       # does the energy tell them from digits?
    python examples/ddgm.py --resume runs/...                # continue a run that was stopped

Each run leaves a folder with its settings, metrics, model, figures and result.json. Where the data has classes, a small
classifier is trained on them afterwards, only to judge what was generated. Images in colour, or larger than 32x32,
have settings of their own, for fewer rows at a gentler rate: `--data photos/ --help` shows them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro
from matplotlib.figure import Figure

from pyro_ssvae import DDGM, EnergyObjective, fit, report
from pyro_ssvae.cli import (
    EXPECTED_ERRORS,
    check_images,
    load_data,
    load_others,
    objective_options,
    parse_ddgm,
    settings,
    training_config,
)
from pyro_ssvae.evaluation import measure_image_model
from pyro_ssvae.evaluation.reference_classifier import REFERENCE_STEPS, get_held_out
from pyro_ssvae.plots.style import ACCENT, INK, name_ticks, new_figure, save_figure, set_title, style_axes
from pyro_ssvae.presets import DDGM_IMAGES
from pyro_ssvae.training import RunFolder
from pyro_ssvae.training.progress import ProgressReport


def main(argv: list[str] | None = None) -> int:
    """Run the whole story and return the exit status."""
    args = parse_ddgm(__doc__, argv)
    try:
        labels = args.num_labels
        known = load_data(args, "ddgm", num_labels="all")  # with every label, for the judge alone
        data = load_data(args, "ddgm") if labels else known.without_labels()
        check_images(data)
        others = load_others(args, data)
        print(f"{data.name}: {len(data.x)} rows of shape {data.event_shape} to train on, {data.num_labelled} labelled")
        if not len(get_held_out(data)[1]):
            print("No rows are held out (x_test in an .npz file), so what compares with such rows is left out.")
        pyro.set_rng_seed(args.seed)
        model = DDGM(data.event_shape, num_classes=data.num_classes if labels else None, **DDGM_IMAGES.model)

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
        result = report(objective, data, run)
        if known.num_labelled:
            print(f"Training a small classifier on {known.num_labelled} labelled rows, to judge what was generated")
        with ProgressReport(REFERENCE_STEPS, enabled=known.num_labelled > 0, words="judge") as bar:
            found = measure_image_model(
                model,
                data,
                known,
                num_samples=args.num_samples,
                seed=args.seed,
                others=others,
                progress=bar.advance,
            )
        RunFolder(Path(args.out)).write_result({**result, **found})
        if "class_shares" in found:
            save_figure(plot_class_shares(found, known.class_names), Path(args.out) / "figures" / "class_shares.png")
    except EXPECTED_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    print(f"DDGM on {data.name}, {result['train_seconds']:.0f} s of training")
    if result.get("test/error") is not None:
        print(f"test error {result['test/error']:.2%} by class energies of {result['num_labels']} labels")
    if "frechet_distance" in found:
        print(f"Fréchet distance {found['frechet_distance']:.2f}, confidence {found['confidence']:.3f}")
        if "frechet_floor" in found:
            print(f"of held-out images {found['frechet_floor']:.2f}, {found['real_confidence']:.3f}")
        shares = zip(known.class_names, found["class_shares"], strict=True)
        print("classes generated: " + ", ".join(f"{name} {share:.1%}" for name, share in shares))
    if "auroc" in found:
        print("area under the curve of E: " + ", ".join(f"{name} {area:.2f}" for name, area in found["auroc"].items()))
    print(f"figures in {args.out}/figures, numbers in {args.out}/result.json")
    return 0


def plot_class_shares(found: dict[str, Any], class_names: Sequence[str]) -> Figure:
    """Draw the share of each class among generated images and, where there are any, among held-out ones."""
    figure = new_figure(max(4.0, 1.6 + 0.45 * len(class_names)), 3.2)
    axes = figure.subplots()
    shares = axes.bar(range(len(class_names)), [100.0 * share for share in found["class_shares"]], color=ACCENT)
    axes.bar_label(shares, fmt="%.1f", padding=3, fontsize=8)
    real = "real_class_shares" in found
    if real:
        axes.plot([100.0 * share for share in found["real_class_shares"]], "_", color=INK, markersize=16.0)
    name_ticks(axes, class_names)
    axes.set_ylabel("share, %")
    style_axes(axes)
    set_title(figure, "Classes of generated images", "line: share among held-out images" if real else "")
    return figure


if __name__ == "__main__":
    sys.exit(main())
