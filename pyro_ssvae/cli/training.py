"""What the training commands and the examples share: data by the flags, errors in one line, stages, results."""

from __future__ import annotations

import atexit
import copy
import math
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import pyro
from torch import Tensor

from pyro_ssvae._ranks import launched
from pyro_ssvae.cli.commands import COMMANDS, binarisation_for, parse_flags
from pyro_ssvae.cli.flags import Flags
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.readers import is_on_disk
from pyro_ssvae.data.storage import sample_rows
from pyro_ssvae.data.tables import is_table
from pyro_ssvae.errors import DataUnavailableError, PyroSSVAEError
from pyro_ssvae.evaluation import active_units
from pyro_ssvae.models import Model
from pyro_ssvae.models.m1 import M1
from pyro_ssvae.models.serialization import load
from pyro_ssvae.objectives import Objective
from pyro_ssvae.objectives.bounds import UnsupervisedELBO
from pyro_ssvae.presets import M1_BELOW, is_photo
from pyro_ssvae.results import report
from pyro_ssvae.training import RunFolder
from pyro_ssvae.training.config import TrainingConfig, describe_memory_error
from pyro_ssvae.training.loop import fit

_EXPECTED = (PyroSSVAEError, ValueError, TypeError, OSError)  # not faults of the program
_UNTIL_PRINTED = 5.0  # seconds
_SHOWN_CLASSES = 10
_FEW_PHOTOS = 2000
_LEAST_STEPS = 3000  # of M1 below M2, unless --m1-epochs is given
_LAST_ENTRIES = {"ddgm": "held_out", "ddgm_2d": "energy_distance"}  # of results, added after report
_RESULTS = {
    "train_seconds": "training took {:.0f} s",
    "test/error": "test error {:.2%}",
    "test/error_labels_alone": "test error of the same classifier on the labels alone {:.2%}",
    "test/bound": "bound on log p(x) {:.2f} nats per test example",
    "test/kl_z": "KL of the latents {:.2f} nats",
    "test/active_units": "active latents {}",
    "test/log_likelihood": "log p(x) {:.2f} nats per test example, by importance sampling",
    "frechet_distance": "Fréchet distance of samples {:.2f}",
    "frechet_floor": "Fréchet distance of held-out images {:.2f}",
    "modes": "modes found {} of 10",
    "high_quality": "samples near a mode {:.1%}",
    "langevin_high_quality": "samples near a mode after Langevin steps {:.1%}",
    "energy_distance": "energy distance of samples, times 1,000 {:.2f}",
    "squared_mmd": "squared MMD of samples, times 1,000 {:.2f}",
    "total_variation": "total variation between exp(-E)/Z and the true density {:.2f}",
    "log_z_grid": "log Z {:.2f} on a grid",
    "log_z_ais": "log Z {:.2f} by annealed importance sampling",
}
_VALIDATION = {  # where there are no results on test examples
    "val/error": "validation error {:.2%}",
    "val/error_labels_alone": "for comparison: the classifier of the labels alone errs on {:.2%} of held-out labels",
}


def run_command(
    train: Callable[[Any], None],
    command: str,
    argv: Sequence[str] | None = None,
    *,
    program: str | None = None,
    evaluate_again: bool = False,
) -> int:
    """Read the flags of a command, as :func:`parse_flags` does, call ``train`` with them, and return the exit status.

    With ``evaluate_again``, stages that have a result are evaluated again.

    Returns:
        0, also for a finished run, whose results are printed; 2 after an error, which is printed in one line; 130 after
        Ctrl-C or SIGTERM, when the state is saved.
    """
    args: Flags | None = None
    rank = 0
    options = COMMANDS[command].options
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.getsignal(signal.SIGTERM)
    if in_main_thread:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises KeyboardInterrupt, as Ctrl-C does
    try:
        rank = launched()[0]
        args = parse_flags(command, argv, program=program)
        args.evaluate_again = evaluate_again
        with plain_warnings(options), RunFolder(args.out).lock() if rank == 0 else silence():
            again = evaluate_again or args.resume is not None
            finished = [] if again else find_results(command, args.values, Path(args.out))
            for run, result in finished:
                print_result(result, f"{run.path} is finished")
            if not finished:
                pyro.set_rng_seed(args.seed)
                train(args)
            print(f"results and figures in {args.out}")
    except (KeyboardInterrupt, SystemExit) as stopped:
        if isinstance(stopped, SystemExit) and stopped.code != 143:  # which fit raises after SIGTERM
            raise
        out = None if args is None else args.values["out"]
        if out is not None and RunFolder(out).config.is_file():
            with nullcontext() if rank == 0 else silence():
                print(f"Stopped. Continue with: {program or f'python {sys.argv[0]}'} --resume {out}")
        return 130
    except Exception as error:
        return print_error(error, options, rank)
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, previous)
            for number in (signal.SIGINT, signal.SIGTERM):  # when Python ends, there is nothing left to stop
                atexit.register(signal.signal, number, signal.SIG_IGN)
    return 0


@contextmanager
def silence() -> Iterator[None]:
    """Print nothing: the first of several processes prints."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def print_error(error: Exception, options: Mapping[str, str], rank: int = 0) -> int:
    """Print an error in one line, with flags in place of the arguments that they set, and return the exit status.

    An error that is a fault of the program is raised again. The first of several processes prints what all meet.
    """
    alone = describe_memory_error(error.__cause__ or error) or not isinstance(error, _EXPECTED)
    if rank and not alone:
        with suppress(KeyboardInterrupt):  # the first one prints, before a launcher ends it
            time.sleep(_UNTIL_PRINTED)
        return 2
    if (words := describe_memory_error(error)) is not None:
        words += "; reduce --training.batch_size, --hidden-dims, --latent-dim or the data."
    elif not isinstance(error, _EXPECTED):
        raise error
    with suppress(OSError):  # standard error may be a pipe that nobody reads
        print(f"error: {_name_options(words or str(error), options)}", file=sys.stderr, flush=True)
    return 2


def _name_options(text: str, options: Mapping[str, str]) -> str:
    """Return a message that names flags, ``--num-labels 5``, instead of arguments, ``num_labels=5``."""

    def name(match: re.Match[str]) -> str:  # a switch, =True, has no value
        return options[match[1]] + ("" if match[2] else " ") if match[1] in options else match[0]

    return re.sub(r"(?<![\w.-])(\w+)=(True\b)?", name, text)


@contextmanager
def plain_warnings(options: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Print each warning in one line, without the place in the code, and with the names of flags as errors have."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {_name_options(str(message), options)}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def find_results(command: str, flags: dict[str, Any], folder: Path) -> list[tuple[RunFolder, dict[str, Any]]]:
    """Return the runs in a folder (the stages of M1+M2) with their results; empty unless all are finished."""
    runs = RunFolder(folder).runs()
    last = "joint" if flags.get("joint_epochs") else "stacked"
    if command == "m1m2" and runs[-1].path.name != last:
        return []
    try:
        found = [(run, run.read_result()) for run in runs]
    except (ValueError, OSError):  # missing or damaged
        return []
    finished = (run.is_finished and _LAST_ENTRIES.get(command) in (None, *result) for run, result in found)
    return found if all(finished) else []


def load_data(args: Flags, *, num_labels: int | str | None = None) -> SemiSupervisedData:
    """Return the data that the flags name, ``digits`` where it cannot be downloaded; ``num_labels`` replaces theirs."""
    if args.image_size is not None and (is_on_disk(Path(args.data)) or not Path(args.data).is_dir()):
        raise ValueError(f"--image-size {args.image_size} is for a folder of images, and --data {args.data} is none.")
    wanted = args.values.get("num_labels", "all")
    kept = wanted if num_labels is None else num_labels
    try:
        data = read_data(args.data, args, kept)
    except FileNotFoundError as error:
        if args.resume is None:
            raise
        raise FileNotFoundError(f"{error} Relative paths of a run start in the folder where it was started.") from error
    except DataUnavailableError as error:
        if args.resume is not None:
            raise
        args.instead_of = args.data
        print(f"{error} Continuing with digits.", file=sys.stderr)
        args.values["data"] = "digits"
        data = read_data("digits", args, kept)
    if num_labels is None and wanted not in ("all", 0) and not data.num_labelled:
        raise ValueError(
            f"--num-labels {wanted} needs classes, and {data.name} has none. Put the images of each class in a folder "
            "of its own, or y_train into the .npz file. Models without classes are M1 and, with --num-labels 0, DDGM."
        )
    if args.values.get("features") is not None:
        cache = None if args.data_dir is None else Path(args.data_dir) / "features"
        data = data.with_features(args.features, cache=cache)
    if num_labels is None or not wanted:
        _describe_data(args, data)
    return data


def _describe_data(args: Flags, data: SemiSupervisedData) -> None:
    """Print the classes with their numbers of labels, and a remark on images that are few for good samples."""
    if args.values.get("num_labels") and data.num_classes is not None:
        counts = data.y[data.labelled_index].bincount(minlength=data.num_classes).tolist()
        names = [name if name == str(number) else f"{number} {name}" for number, name in enumerate(data.class_names)]
        shown = [f"{name} ({count})" for name, count in zip(names, counts, strict=True)]
        shown[0] = f"{names[0]} ({counts[0]} labels)"
        many = len(shown) > _SHOWN_CLASSES
        size = f" of {min(counts)} to {max(counts)} labels" if many else ""
        print(f"{len(shown)} classes{size}: {', '.join(shown[:_SHOWN_CLASSES])}{', ...' if many else ''}", flush=True)
    if is_photo(data.event_shape) and len(data.x) < _FEW_PHOTOS:
        words = "training images are few for images in colour or larger than 32x32: expect poor samples."
        features = "features" in args.values and len(data.event_shape) == 3
        hint = " Photographs are classified better by --features efficientnet_lite0." if features else ""
        print(f"{len(data.x)} {words}{hint}", flush=True)


def read_data(name: str, args: Flags, num_labels: int | str) -> SemiSupervisedData:
    """Return a data set by name, table, file of arrays or folder of images."""
    labels: dict[str, Any] = {"num_labels": num_labels, "seed": args.seed}
    path = Path(name)
    if is_table(name) or is_on_disk(path):
        if args.label is None and args.values.get("num_labels"):
            column = "COLUMN, the column of the labels (empty for unlabelled rows), or "
            has_columns = is_table(name) or path.suffix == ".h5ad" or any(path.glob("*.parquet"))
            file = "FILE.npy with a label for each row, -1 where unknown"
            raise ValueError(f"{name} needs --label {column if has_columns else ''}{file}.")
        parts: dict[str, Any] = {"num_validation": None, "num_test": None if args.test is None else 0}
        return SemiSupervisedData.from_table(name, args.label, test=args.test, **labels, **parts)
    if path.is_dir():
        images = {"image_size": args.image_size or 32, "on_error": args.on_error}
        return SemiSupervisedData.from_folder(name, **images, **labels)
    if name.endswith(".npz"):
        return SemiSupervisedData.from_npz(name, **labels)
    return SemiSupervisedData.from_name(name, data_dir=args.data_dir, **labels)


def print_result(result: dict[str, Any], title: str = "") -> None:
    """Print the main numbers of a result, one in a line."""
    if title:
        print(title)
    tested = any(value is not None for name, value in result.items() if name.startswith("test/"))
    if "model" in result and not tested:  # a result of report
        print("  no results on test examples; --test FILE names some for a table")
    for name, words in (_RESULTS if tested else {**_RESULTS, **_VALIDATION}).items():
        if result.get(name) is not None:
            print(f"  {words.format(result[name])}")


def make_m1(args: Flags, data: SemiSupervisedData) -> M1:
    """Return a new M1 for the flags ``--m1-*``, or the trained one that ``--m1`` names."""
    if args.m1 is None:
        sizes = {"latent_dim": args.m1_latent_dim, "hidden_dims": args.m1_hidden_dims}
        return M1.for_data(data, likelihood=args.likelihood, **{**M1_BELOW.model, **sizes})
    folder = Path(args.m1) / "m1"  # of an earlier run of this command
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        m1 = load(folder if folder.is_dir() else args.m1)
    for warning in caught:  # a subclass, as in examples/m1.py, is loaded as M1
        print(warning.message)
    if not hasattr(m1, "transform"):  # M1 alone has features
        raise ValueError(f"--m1 {args.m1} holds a {type(m1).__name__}, and an M1 is needed.")
    if tuple(m1.event_shape) != data.event_shape:
        shapes = f"{tuple(m1.event_shape)}, and those of {data.name} have {data.event_shape}"
        raise ValueError(f"--m1 {args.m1} is a model of examples of shape {shapes}.")
    return m1


def train_stages(
    args: Flags, data: SemiSupervisedData, m1: M1, make_objective: Callable[[M1, Tensor | None], Objective]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Train M1, M2 on its latents (stacked) and, with ``--joint-epochs``, both jointly; report each stage.

    Stages are runs of their own, in the folders ``m1``, ``stacked`` and ``joint`` of the run. A resumed run continues
    at the stage where it stopped. Flags that do not fit each other are found before anything is trained or written.

    ``m1`` is from :func:`make_m1`. ``make_objective`` returns the objective of an M1M2, given M1 and a mask of its
    active latents (``None`` for all).

    Yields:
        Name and result of each stage.
    """
    make_objective(copy.deepcopy(m1), None)  # a copy, because M1M2 freezes its M1
    configs = {"stacked": args.training}
    if args.joint_epochs:
        rate = args.training.learning_rate / 10
        configs["joint"] = replace(args.training, max_steps=None, max_epochs=args.joint_epochs, learning_rate=rate)
    config = get_m1_config(args, len(data.x))
    if launched()[0] == 0 and RunFolder(args.out).write_config(args.settings):
        RunFolder(args.out).runs()[-1].result.unlink(missing_ok=True)  # a stage that is extended
    if args.m1 is None:
        unlabelled = data.without_labels()
        yield "m1", _run_stage(args, "m1", UnsupervisedELBO.for_data(m1, unlabelled), unlabelled, config)
    objective = make_objective(m1, _select_latents(m1, data))
    model: Any = objective.module
    for stage, config in configs.items():
        if stage == "joint":
            model.unfreeze_m1()
        yield stage, _run_stage(args, stage, objective, data, config)


def _run_stage(args: Flags, stage: str, objective: Objective, data: Any, config: TrainingConfig) -> dict[str, Any]:
    """Train and report a stage, or continue it; if it was done before, load its model and result."""
    folder, module = RunFolder(Path(args.out) / stage), cast(Model, objective.module)
    if folder.is_finished and not args.evaluate_again:
        module.load_state_dict(load(folder.path, cls=type(module)).state_dict())
        return folder.read_result()
    done = fit(objective, data, config, out=folder.path, resume=True, settings=args.settings)
    return report(objective, data, done, num_samples=args.num_samples)


def get_m1_config(args: Flags, num_examples: int) -> TrainingConfig:
    """Return the settings of M1 below M2; with few examples the preset's number of passes is too few steps."""
    settings = {**M1_BELOW.training, "max_epochs": args.m1_epochs}
    settings["binarisation"] = binarisation_for(args.likelihood, M1_BELOW)
    steps = args.m1_epochs * math.ceil(num_examples / settings["batch_size"])
    if args.m1_epochs == M1_BELOW.training["max_epochs"] and steps < _LEAST_STEPS:
        settings |= {"max_epochs": None, "max_steps": _LEAST_STEPS}
    shared = ("device", "precision", "seed", "max_minutes")
    return TrainingConfig(**settings, **{name: getattr(args.training, name) for name in shared})


def _select_latents(m1: M1, data: SemiSupervisedData) -> Tensor:
    """Return a mask of the latents of M1 that M2 models: those that vary between examples, or all if none does."""
    active = active_units(m1, sample_rows(data.x), scale=data.scale)
    if not active.any():
        print("No latent of M1 varies between examples (posterior collapse), so M2 on its latents learns next to")
        print("nothing. Another --likelihood or a longer training of M1 may help.")
        active[:] = True
    print(f"M2 on {int(active.sum())} of {m1.latent_dim} latents of M1")
    return active
