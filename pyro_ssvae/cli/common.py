"""What the command lines of all examples share: flags of data, training and the run, and what they mean."""

from __future__ import annotations

import sys
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from pyro_ssvae._checks import as_device
from pyro_ssvae.data import SemiSupervisedData
from pyro_ssvae.distributions import LIKELIHOODS, PRIORS
from pyro_ssvae.errors import DataUnavailableError, PyroSSVAEError
from pyro_ssvae.training import RunFolder, TrainingConfig

__all__ = [
    "EXPECTED_ERRORS",
    "load_data",
    "name_run",
    "new_parser",
    "parse",
    "read_data",
    "settings",
    "training_config",
]

EXPECTED_ERRORS = (ValueError, TypeError, OSError, PyroSSVAEError)
"""What an example says in one line, where it ends with status 2; anything else is a fault of ours."""

_IMAGE_SIZE = 32  # of images of a folder, unless the flags name one
_TOP_LEVEL = {"max_epochs", "max_minutes", "device", "precision", "seed"}  # of the training settings
_FLAGS_IN_CONFIG = "flags"  # the section of a run's config.yaml that --resume reads back


class _Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of a description as they are, and shows defaults."""


def new_parser(
    program: str, description: str, *, labels: bool = True, data: Sequence[str] | None = None
) -> ArgumentParser:
    """Return a parser with the flags of data, training and the run.

    Args:
        program: Name of the example, as ``m2.py``.
        description: Shown by ``--help``.
        labels: Whether the model uses labels.
        data: The only names of data to choose from; ``None`` for data sets by name or file.
    """
    usage = "%(prog)s [--flag value ...]   (--help explains every flag)"  # the full list would bury an error below it
    parser = ArgumentParser(prog=program, usage=usage, description=description, formatter_class=_Formatter)
    add = parser.add_argument
    if data is not None:
        add("--data", choices=list(data), default=data[0], help="the distribution that points are drawn from")
    else:
        names = "mnist, fashion_mnist, cifar10, digits (needs no download)"
        words = f"{names}, FILE.npz with x_train, y_train, x_test, y_test (no y: no classes), or a FOLDER of images"
        add("--data", type=str, default="mnist", metavar="NAME|FILE.npz|FOLDER", help=words)
        words = f"side that images of a FOLDER are brought to (else {_IMAGE_SIZE})"
        add("--image-size", type=int, metavar="S", help=words)
        folder = "where data sets lie or go (else PYRO_SSVAE_DATA, else a cache)"
        add("--data-dir", type=str, metavar="DIR", help=folder)
    if labels:
        add("--num-labels", type=int, default=100, metavar="N", help="training rows that keep their label")
    add("--seed", type=int, default=0, help="of the label split, the initial weights and training")
    add("--max-epochs", type=int, metavar="E", help="length of the schedule in passes over the unlabelled rows")
    add("--max-minutes", type=float, metavar="M", help="stop after this much training time")
    add("--out", type=str, metavar="DIR", help="folder of the run (default: a new one under runs/)")
    add("--resume", type=str, metavar="DIR", help="continue the run in DIR with its own flags")
    add("--cuda", action="store_true", help="train on the GPU; the same as --device cuda")
    add("--device", type=str, default="auto", metavar="DEV", help="auto, cpu, cuda or cuda:1")
    add("--precision", type=str, default="32-true", metavar="P", help="32-true, bf16-mixed, 16-mixed, 64-true")
    add("--config", action="config", metavar="FILE", help="YAML file of flags, for example max_epochs: 20")
    parser.add_class_arguments(TrainingConfig, "training", skip=_TOP_LEVEL)
    return parser


def add_parts(parser: ArgumentParser, *, likelihood: str = "p(x|y,z)") -> None:
    """Add the flags of the likelihood and the prior of z."""
    parser.add_argument("--likelihood", choices=sorted(LIKELIHOODS), default="bernoulli", help=likelihood)
    parser.add_argument("--prior", choices=sorted(PRIORS), default="normal", help="p(z)")


def parse(
    parser: ArgumentParser,
    argv: Sequence[str] | None,
    defaults: Callable[[Namespace, dict[str, Any]], dict[str, Any]] | None = None,
) -> Namespace:
    """Return the flags, completed from the run to resume.

    Flags that are given go before those of the run to resume, and these before the defaults, which ``--help`` shows as
    they are for the other flags. A length in steps that is given replaces one in passes.

    Bad flags, a folder that holds no run, and ``--cuda`` without a GPU end the program with one line and status 2.

    Args:
        parser: From :func:`new_parser`.
        argv: The command line; that of the process when ``None``.
        defaults: Given the flags and those of the run to resume, returns other defaults that follow from them.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    _name_in_full(parser, argv)
    # Help and the printing of settings wait until the defaults are known.
    asked = [flag for flag in argv if flag.split("=")[0] not in ("-h", "--help", "--print_config")]
    args = parser.parse_args(asked)
    given = parser.parse_args(asked, defaults=False)
    try:
        out = args.resume
        saved = {} if out is None else _flatten(RunFolder(out).read_config()[_FLAGS_IN_CONFIG])
        if unknown := sorted(set(saved) - set(_flatten(parser.get_defaults().as_dict()))):
            flag = unknown[0].replace("_", "-")
            raise ValueError(
                f"{out} holds the run of another example, with --{flag}; go on with the one that began it."
            )
        if given.get("training.max_steps") is not None:
            saved.pop("max_epochs", None)
        if defaults is not None:
            parser.set_defaults(defaults(args, saved))
        parser.set_defaults(saved)
        args = parser.parse_args(argv)
        if out is not None:
            args.out, args.resume = out, out
        if args.cuda:
            args.device = "cuda"
        as_device(args.device)
        training_config(args)
    except (ValueError, RuntimeError, KeyError) as error:
        parser.error(str(error))
    return args


def _name_in_full(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """End the program with one line where a setting of the training loop is asked for without its prefix."""
    own = {name for action in parser._actions for name in action.option_strings}
    for flag in (word.split("=")[0] for word in argv if word.startswith("--")):
        full = f"--training.{flag[2:].replace('-', '_')}"
        if flag not in own and full in own:
            parser.error(f"there is no {flag}; settings of the training loop have a prefix: {full}")


def as_defaults(training: dict[str, Any], args: Namespace) -> dict[str, Any]:
    """Return settings of the training loop as defaults of flags, leaving out passes where steps are asked for.

    Args:
        training: Arguments of :class:`~pyro_ssvae.training.TrainingConfig`.
        args: The flags, without such defaults.
    """
    flags = {name if name in _TOP_LEVEL else f"training.{name}": value for name, value in training.items()}
    if args.training.max_steps is not None:
        flags.pop("max_epochs", None)
    return flags


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def training_config(args: Namespace) -> TrainingConfig:
    """Return the settings of the training loop that the flags ask for."""
    return TrainingConfig(
        **args.training.as_dict(),
        max_epochs=args.max_epochs,
        max_minutes=args.max_minutes,
        device=args.device,
        precision=args.precision,
        seed=args.seed,
    )


def settings(args: Namespace) -> dict[str, Any]:
    """Return the flags as a section for ``config.yaml``, from which ``--resume`` restores them."""
    flags = args.as_dict()
    for name in ("config", "resume", "out"):
        flags.pop(name, None)
    return {_FLAGS_IN_CONFIG: yaml.safe_load(yaml.safe_dump(flags))}


def load_data(args: Namespace, model: str = "m2", *, num_labels: int | str | None = None) -> SemiSupervisedData:
    """Return the data that the flags name, and name the folder of the run after them where they name none.

    Where a download is impossible, say so and carry on with ``digits``.

    Args:
        args: The flags.
        model: What the folder's name begins with.
        num_labels: Rows that keep their label, or ``"all"``; as many as the flags say when ``None``, all without such a
            flag.

    Raises:
        ValueError: For ``--image-size`` beside data whose images have a size already, or labels asked of data that
            knows no classes.
    """
    if args.image_size is not None and not Path(args.data).is_dir():
        raise ValueError(
            f"--image-size {args.image_size} is for a folder of images, and --data {args.data} is none: rows are taken "
            "as they are."
        )
    data = _load(args, args.get("num_labels", "all") if num_labels is None else num_labels)
    if num_labels is None and args.get("num_labels") and not data.num_labelled:
        raise ValueError(
            f"--num-labels {args.num_labels} needs classes, and {data.name} has none. Put the images of each class in "
            "a folder of its own, or y_train into the .npz file; models without classes: examples/m1.py and, with "
            "--num-labels 0, examples/ddgm.py."
        )
    name_run(args, model)
    return data


def name_run(args: Namespace, model: str) -> None:
    """Name the folder of the run after model, data, labels, seed and time, unless the flags name one."""
    if args.out is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        labels = f"-{args.num_labels}" if "num_labels" in args else ""
        args.out = str(Path("runs") / f"{model}-{Path(args.data).stem}{labels}-seed{args.seed}-{stamp}")


def _load(args: Namespace, num_labels: int | str) -> SemiSupervisedData:
    labels: dict[str, Any] = {"num_labels": num_labels, "seed": args.seed}
    try:
        return read_data(args.data, args, **labels)
    except DataUnavailableError as error:
        if args.resume is not None:
            raise
        print(f"{error} Carrying on with digits.", file=sys.stderr)
        if args.get("likelihood") == "bernoulli":
            print(
                "Their 17 grey levels suit --data digits --likelihood gaussian, where latents say more.",
                file=sys.stderr,
            )
        args.data = "digits"
        return SemiSupervisedData.from_name("digits", **labels)


def read_data(data: str, args: Namespace, **labels: Any) -> SemiSupervisedData:
    """Return a data set by name, npz file or folder of images, read as the flags say.

    Args:
        data: Name, file or folder.
        args: The flags.
        **labels: Which labels are kept.

    Raises:
        DataUnavailableError: If it is neither at hand nor downloadable.
    """
    if Path(data).is_dir():
        size = _IMAGE_SIZE if args.image_size is None else args.image_size
        return SemiSupervisedData.from_folder(data, image_size=size, **labels)
    if data.endswith(".npz"):
        return SemiSupervisedData.from_npz(data, **labels)
    return SemiSupervisedData.from_name(data, data_dir=args.data_dir, **labels)
