"""Data, movie and metrics of the commands that train a DDGM."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_ssvae._ranks import launched
from pyro_ssvae.cli.flags import Flags
from pyro_ssvae.cli.training import load_data, print_result, read_data
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.preparation import convert_images, rescale
from pyro_ssvae.data.storage import sample_rows, space
from pyro_ssvae.evaluation import measure_image_model, measure_toy_model
from pyro_ssvae.evaluation.image_metrics import CORRUPTIONS, REFERENCE_STEPS
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.training import RunFolder

_LEAST_SIDE = 8  # of images, in pixels


def load_images(args: Flags) -> tuple[SemiSupervisedData, SemiSupervisedData]:
    """Return the images to train on, and the same ones with all their labels, for the reference classifier."""
    known = load_data(args, num_labels="all")
    data = load_data(args) if args.num_labels else known.without_labels()
    _check_images(data)
    load_others(args, data)
    return data, known


def load_others(args: Flags, data: SemiSupervisedData) -> dict[str, Tensor]:
    """Return the images that ``--other-data`` names, ``(N, C, H, W)`` in [0, 1], by name; none without the flag.

    They are test images if there are any, evenly spaced, and at most as many as ``data`` has (5,000 without any).
    """
    if args.other_data is None:
        return {}
    others = read_data(args.other_data, args, "all").without_labels()
    _check_images(others)
    x = others.x_test if len(others.x_test) else others.x
    x = x[space(0, len(x), len(data.x_test) or 5000)]
    name = f"other {others.name}" if others.name in CORRUPTIONS else others.name
    return {name: convert_images(rescale(x, others.scale), data.event_shape)}


def _check_images(data: SemiSupervisedData) -> None:
    shape = tuple(data.event_shape)
    if len(shape) != 3 or min(shape[1:]) < _LEAST_SIDE:
        raise ValueError(
            f"The examples of {data.name} have shape {shape}; images (C, H, W) of at least {_LEAST_SIDE}x{_LEAST_SIDE} "
            "pixels are needed. --image-size 32 enlarges those of a folder. For tables use DDGMDensity in Python."
        )
    low, high = (float(value) / data.scale for value in sample_rows(data.x).aminmax())
    if low < 0.0 or high > 1.0:
        raise ValueError(
            f"The pixels of {data.name} lie in [{low:g}, {high:g}], and must lie in [0, 1]. Store images as uint8, or "
            "divide them by their largest value."
        )


def report_images(
    args: Flags, model: DDGM, data: SemiSupervisedData, known: SemiSupervisedData, result: dict[str, Any]
) -> None:
    """Evaluate generated images by a reference classifier, and the energy on other images; add to ``result.json``."""
    if launched()[0]:  # the first of several processes reports
        return
    from pyro_ssvae.plots.ddgm import plot_class_shares
    from pyro_ssvae.plots.style import save_figure
    from pyro_ssvae.training.progress import ProgressReport

    if known.num_labelled:
        print(f"Training a reference classifier on {known.num_labelled} labelled images")
    with ProgressReport(REFERENCE_STEPS, enabled=known.num_labelled > 0, words="reference classifier") as bar:
        options = {"num_samples": args.num_samples, "seed": args.seed, "progress": bar.advance}
        found = measure_image_model(model, data, known, others=load_others(args, data), **options)
    if "class_shares" in found:
        save_figure(plot_class_shares(found, known.class_names), Path(args.out) / "figures" / "class_shares.png")
    RunFolder(args.out).write_result({**result, **found})
    print_result(found)
    if "class_shares" in found:
        named = zip(known.class_names, found["class_shares"], strict=True)
        print("  classes generated: " + ", ".join(f"{name} {share:.1%}" for name, share in named))
    for name, area in found.get("auroc", {}).items():
        print(f"  area under the ROC curve of the energy, {name} {area:.2f}")


def report_points(args: Flags, model: DDGM, data: SemiSupervisedData, result: dict[str, Any]) -> None:
    """Compare a model of points with the distribution they were drawn from; add to ``result.json``."""
    if launched()[0]:
        return
    from pyro_ssvae.plots import plot_landscape
    from pyro_ssvae.plots.style import save_figure

    found = measure_toy_model(model, args.data, num_samples=args.num_samples, seed=args.seed)
    save_figure(plot_landscape(model, data.x_test), Path(args.out) / "figures" / "landscape.png")
    RunFolder(args.out).write_result({**result, **found})
    print_result(found)
    for words, name in (("energy distance", "floor"), ("squared MMD", "mmd_floor")):
        mean, std = found[name]
        print(f"  {words} between two real samples, times 1,000 {mean:.2f} ± {std:.2f}")


@contextmanager
def record_movie(
    args: Flags, model: DDGM, data: SemiSupervisedData
) -> Iterator[Callable[[Any, dict[str, Any]], None] | None]:
    """Record ``training.gif``, a movie of training on points, by the function that is yielded for ``on_evaluation``."""
    from pyro_ssvae.plots import plot_landscape
    from pyro_ssvae.plots.ddgm import Movie

    path, resumed = Path(args.out) / "training.gif", RunFolder(args.out).checkpoint.is_file()
    movie = Movie.load(path) if resumed and args.frames and path.is_file() else Movie()
    if args.frames > 1 and not resumed:
        movie.add(plot_landscape(model, data.x_validation, title="Step 0"), 0)
    recorded = list(movie.steps)
    later = max(1, args.frames - 1)
    total = args.training.total_steps(math.ceil(len(data.x) / args.training.batch_size))

    def add_frame(module: DDGM, metrics: dict[str, Any]) -> None:
        step = metrics["step"]
        movie.cut(step)  # a run may continue from before its last frame
        last = movie.steps[-1] if movie.steps else 0
        if args.frames and step * later // total > last * later // total:
            movie.add(plot_landscape(module, data.x_validation, title=f"Step {step:,}"), step)

    try:
        yield add_frame
    finally:
        if movie.steps not in ([], recorded):
            movie.save(path)
