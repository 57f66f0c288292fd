"""The command lines of ``examples/ddgm_2d.py`` and ``examples/ddgm.py``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from pyro_ssvae.cli.common import as_defaults, new_parser, parse, read_data, training_config
from pyro_ssvae.data import SemiSupervisedData, prepare
from pyro_ssvae.data.folders import has_colour
from pyro_ssvae.data.preparation import convert_images
from pyro_ssvae.data.readers import as_images, read_npz
from pyro_ssvae.data.toy import TOY_DATASETS
from pyro_ssvae.evaluation import measure_image_model, measure_toy_model
from pyro_ssvae.evaluation.image_metrics import CORRUPTIONS
from pyro_ssvae.evaluation.reference_classifier import REFERENCE_STEPS
from pyro_ssvae.models import DDGM
from pyro_ssvae.objectives import ENTROPIES
from pyro_ssvae.presets import DDGM_IMAGES, DDGM_PHOTOS, DDGM_TOY, Preset
from pyro_ssvae.training import RunFolder

__all__ = [
    "check_images",
    "energy_options",
    "load_others",
    "parse_ddgm",
    "parse_ddgm_2d",
    "report_images",
    "report_points",
    "start_movie",
]

_LEAST_SIDE = 8  # of images, in pixels

_OBJECTIVE = (
    "entropy",
    "entropy_weight",
    "gradient_penalty",
    "penalty_fraction",
    "langevin_steps",
    "generator_rate",
    "generator_steps",
    "shared_draws",
    "mle_fraction",
    "negative_weight",
    "max_shift",
)


def ddgm_2d_parser(description: str) -> ArgumentParser:
    """Return the parser of ``examples/ddgm_2d.py``."""
    parser = new_parser("ddgm_2d.py", description, labels=False, data=TOY_DATASETS)
    _add_objective(parser)
    add = parser.add_argument
    words = "frames of the movie of training, the first of its start, at most one an evaluation; 0 for none"
    add("--frames", type=int, default=60, metavar="F", help=words)
    add("--num-samples", type=int, default=5000, metavar="S", help="points generated for the measures")
    add("--refine", type=int, default=20, metavar="L", help="Langevin steps of points, which are measured too")
    return parser


def ddgm_parser(description: str) -> ArgumentParser:
    """Return the parser of ``examples/ddgm.py``."""
    parser = new_parser("ddgm.py", description, labels=False)
    add = parser.add_argument
    add("--num-labels", type=int, default=0, metavar="N", help="rows whose labels train energies of classes; 0: none")
    add("--alpha", type=float, default=1.0, help="weight of their mean cross-entropy")
    _add_objective(parser)
    words = "weight of the loss on corrupted images (negative data augmentation)"
    add("--negative-weight", type=float, default=0.0, metavar="W", help=words)
    words = "largest move of images before the energy sees them, a share of their sides; for few images"
    add("--max-shift", type=float, default=0.0, metavar="J", help=words)
    add("--num-samples", type=int, default=5000, metavar="S", help="images of each of up to ten sets that are measured")
    words = "other images, brought to the size of these, which the energy should tell from them"
    add("--other-data", type=str, metavar="NAME|FILE.npz|FOLDER", help=words)
    return parser


def _add_objective(parser: ArgumentParser) -> None:
    """Add the flags of the two losses."""
    add = parser.add_argument
    add("--entropy", choices=list(ENTROPIES), default="nearest_neighbour", help="estimate of the generator's entropy")
    add("--entropy-weight", type=float, default=1.0, metavar="W", help="factor of the entropy")
    add("--gradient-penalty", type=float, default=0.0, metavar="G", help="weight of G/2 |dE/dx|^2 on data")
    add("--penalty-fraction", type=float, default=1.0, metavar="S", help="share of a batch on which that is taken")
    words = "steps of generated rows before the energy rises on them"
    add("--langevin-steps", type=int, default=0, metavar="L", help=words)
    add(
        "--generator-rate",
        type=float,
        default=3.0,
        metavar="R",
        help="its learning rate over the energy's",
    )
    add("--generator-steps", type=int, default=2, metavar="S", help="updates of the generator for each of the energy")
    words = "whether the generator's first step takes the rows on which the energy was just raised, which saves time"
    add("--shared-draws", type=bool, default=False, metavar="true|false", help=words)
    words = "share of the schedule, at its end, in which only the energy steps, on weighed rows; for points"
    add("--mle-fraction", type=float, default=0.0, metavar="S", help=words)


def parse_ddgm_2d(description: str, argv: Sequence[str] | None = None) -> Namespace:
    """Return the flags of ``examples/ddgm_2d.py``, completed from the recipe and the run to resume."""
    parser = ddgm_2d_parser(description)
    args = parse(parser, argv, partial(_of_recipe, DDGM_TOY))
    _at_least(parser, args, frames=0, num_samples=2, refine=0)
    return args


def parse_ddgm(description: str, argv: Sequence[str] | None = None) -> Namespace:
    """Return the flags of ``examples/ddgm.py``, completed from the recipe and the run to resume."""
    parser = ddgm_parser(description)
    args = parse(parser, argv, _of_images)
    _at_least(parser, args, num_labels=0, num_samples=2)
    return args


def _of_images(args: Namespace, saved: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of grey images of up to 32x32 pixels, or that of all others."""
    data, size = (saved.get(name, args[name]) for name in ("data", "image_size"))
    recipe = DDGM_PHOTOS if _has_pictures(data, size) else DDGM_IMAGES
    return _of_recipe(recipe, args, saved)


def _has_pictures(data: str, image_size: int | None) -> bool:
    """Return whether images are in colour, or larger than 32x32."""
    try:
        if Path(data).is_dir():
            return (image_size or 0) > 32 or has_colour(data)
        if not data.endswith(".npz"):
            return data == "cifar10"
        shape = as_images(read_npz(data, ["x_train"])["x_train"]).shape[1:]
    except (OSError, ValueError):  # which reading the data will report
        return False
    return len(shape) == 3 and (shape[0] > 1 or max(shape[1:]) > 32)


def _of_recipe(recipe: Preset, args: Namespace, saved: dict[str, Any]) -> dict[str, Any]:
    return recipe.objective | as_defaults(recipe.training, args)


def _at_least(parser: ArgumentParser, args: Namespace, **least: int) -> None:
    """End the program with one line where a flag is less than it may be."""
    for name, value in least.items():
        if args[name] < value:
            parser.error(f"--{name.replace('_', '-')} {args[name]} must be at least {value}.")


def check_images(data: SemiSupervisedData) -> None:
    """Check, before training, that data are what ``examples/ddgm.py`` can train on.

    Args:
        data: The data.

    Raises:
        ValueError: For rows that are not images ``(C, H, W)`` of at least 8x8 pixels with values in [0, 1] after
            scaling.
    """
    shape = tuple(data.event_shape)
    if len(shape) != 3 or min(shape[1:]) < _LEAST_SIDE:
        raise ValueError(
            f"The rows of {data.name} have shape {shape}; images (C, H, W) of at least {_LEAST_SIDE}x{_LEAST_SIDE} "
            "pixels are needed. Folders of small images are enlarged by --image-size 32. For rows that are no images "
            "write a few lines of Python, as in examples/ddgm_2d.py, with negative_weight=0 (--negative-weight 0)."
        )
    low, high = (float(value) / data.scale for value in (data.x.min(), data.x.max()))
    if low < 0.0 or high > 1.0:
        raise ValueError(
            f"The pixels of {data.name} lie in [{low:g}, {high:g}]; the generator's lie in [0, 1]. Store images as "
            "uint8, or divide them by their largest value."
        )


def load_others(args: Namespace, data: SemiSupervisedData) -> dict[str, Tensor]:
    """Return the images that ``--other-data`` names, as a model of ``data`` would see them; nothing without the flag.

    Args:
        args: The flags.
        data: Images with event shape ``(C, H, W)``.

    Returns:
        By name, up to as many as ``data`` has test rows (5,000 without any), their test rows where there are some, with
        shape ``(N, C, H, W)``, in [0, 1].

    Raises:
        ValueError: If they are no images.
        DataUnavailableError: If they are neither at hand nor downloadable.
    """
    if args.other_data is None:
        return {}
    others = read_data(args.other_data, args, num_labels="all", seed=args.seed).without_labels()
    check_images(others)
    rows = others.x_test if len(others.x_test) else others.x
    x = prepare(rows[: len(data.x_test) or 5000], scale=others.scale)
    name = f"other {others.name}" if others.name in CORRUPTIONS else others.name
    return {name: convert_images(x, data.event_shape)}


def energy_options(args: Namespace) -> dict[str, Any]:
    """Return the arguments of :class:`pyro_ssvae.objectives.EnergyObjective` that the flags ask for."""
    return {name: args[name] for name in _OBJECTIVE if name in args}


@contextmanager
def start_movie(
    args: Namespace, model: DDGM, data: SemiSupervisedData
) -> Iterator[Callable[[Any, dict[str, Any]], None]]:
    """Record a movie of training on points in the plane, and write it to the folder of the run at the end.

    Args:
        args: The flags.
        model: The model, before training.
        data: Points, whose validation points are shown.

    Yields:
        The function for ``on_evaluation`` of :func:`pyro_ssvae.fit`.
    """
    from pyro_ssvae.plots import Movie, plot_landscape

    path, resumed = Path(args.out) / "training.gif", args.resume is not None
    movie = Movie.load(path) if resumed and args.frames and path.is_file() else Movie()
    if args.frames > 1 and not resumed:
        movie.add(plot_landscape(model, data.x_validation, title="Step 0"), 0)
    recorded = list(movie.steps)
    config, later = training_config(args), max(1, args.frames - 1)
    total = config.total_steps(math.ceil(len(data.x) / config.batch_size))

    def add_frame(module: DDGM, metrics: dict[str, Any]) -> None:
        step = metrics["step"]
        movie.cut(step)  # a run may continue from before its last frame
        last = movie.steps[-1] if movie.steps else 0
        if args.frames and step * later // total > last * later // total:
            movie.add(plot_landscape(module, data.x_validation, title=f"Step {step:,}"), step)

    try:
        yield add_frame
    finally:
        if movie.steps != recorded:
            movie.save(path)


def report_points(args: Namespace, model: DDGM, data: SemiSupervisedData, result: dict[str, Any]) -> None:
    """Compare a model of points with the distribution of the data; write and print the metrics."""
    from pyro_ssvae.plots import plot_landscape
    from pyro_ssvae.plots.style import save_figure

    options = {"num_samples": args.num_samples, "langevin_steps": args.refine, "seed": args.seed}
    found = measure_toy_model(model, args.data, **options)
    save_figure(plot_landscape(model, data.x_test), Path(args.out) / "figures" / "landscape.png")
    RunFolder(args.out).write_result({**result, **found})
    if args.data == "ring":
        print(
            f"{found['modes']} of 10 modes; {found['high_quality']:.1%} of samples near a mode, "
            f"{found['langevin_high_quality']:.1%} after {args.refine} Langevin steps"
        )
    for words, name, floor in (
        ("energy distance", "energy_distance", "floor"),
        ("squared MMD", "squared_mmd", "mmd_floor"),
    ):
        mean, std = found[floor]
        print(f"{words} {found[name]:.2f}, between two real samples {mean:.2f} ± {std:.2f}, all times 1,000")
    print(f"total variation between exp(-E)/Z and the true density {found['total_variation']:.2f}")
    print(
        f"log Z {found['log_z_grid']:.2f} on a grid, {found['log_z_ais']:.2f} ± {found['log_z_ais_error']:.2f} by AIS"
    )


def report_images(
    args: Namespace, model: DDGM, data: SemiSupervisedData, known: SemiSupervisedData, result: dict[str, Any]
) -> None:
    """Measure generated images by a reference classifier and by energies; write and print the metrics.

    Args:
        args: The flags.
        model: The trained model.
        data: What it was trained on.
        known: The same data with all its labels, for the reference classifier.
        result: From :func:`pyro_ssvae.report`.
    """
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
    if "frechet_distance" in found:
        print(f"Fréchet distance {found['frechet_distance']:.2f}, confidence {found['confidence']:.3f}")
        if "frechet_floor" in found:
            print(f"the same of held-out images {found['frechet_floor']:.2f}, {found['real_confidence']:.3f}")
        named = zip(known.class_names, found["class_shares"], strict=True)
        print("classes generated: " + ", ".join(f"{name} {share:.1%}" for name, share in named))
    if "auroc" in found:
        print("area under the ROC curve of E: " + ", ".join(f"{name} {a:.2f}" for name, a in found["auroc"].items()))
