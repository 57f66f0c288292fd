"""Command lines of the examples: their flags, and what the flags mean."""

from __future__ import annotations

import sys
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from pyro_ssvae.data import SemiSupervisedData
from pyro_ssvae.errors import DataUnavailableError
from pyro_ssvae.recipes import PURE
from pyro_ssvae.training import RunFolder, TrainingConfig
from pyro_ssvae.training.device import resolve_device

__all__ = ["load_data", "parse_m2", "settings", "training_config"]

_TOP_LEVEL = {"max_epochs", "max_minutes", "device", "precision", "seed"}  # of the training settings
_FLAGS_IN_CONFIG = "flags"  # the section of a run's config.yaml that --resume reads back


class _Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of a description as they are, and shows defaults."""


def m2_parser(description: str) -> ArgumentParser:
    """Return the parser of ``examples/m2.py``."""
    parser = ArgumentParser(prog="m2.py", description=description, formatter_class=_Formatter)
    add = parser.add_argument
    data = (
        "mnist, fashion_mnist, cifar10, digits (needs no download), or FILE.npz with x_train, y_train, x_test, y_test"
    )
    add("--data", type=str, default="mnist", metavar="NAME|FILE.npz", help=data)
    add("--data-dir", type=str, metavar="DIR", help="where data sets lie or go (else PYRO_SSVAE_DATA, else a cache)")
    add("--num-labels", type=int, default=100, metavar="N", help="training rows that keep their label")
    add(
        "--pure",
        action="store_true",
        help="J^alpha and no other term: no augmentation, no consistency. Other defaults become those that suit it: "
        "MLPs, softplus, top-k, 60 epochs in small binarised batches. The weight of the KL of z "
        "still has its schedule; for none: --training.kl_warmup 0 --training.kl_squeeze 1",
    )
    add("--alpha", type=float, default=10.0, help="weight c of the mean cross-entropy; the paper's alpha is c*N, c=0.1")
    add(
        "--enumeration",
        choices=["exact", "top-k"],
        default="exact",
        help="sum over every class, or over the likeliest ones and one drawn among the rest (unbiased, far faster "
        "with many classes)",
    )
    add("--top-k", type=int, default=1, metavar="K", help="classes summed exactly under --enumeration top-k")
    add("--seed", type=int, default=0, help="of the label split, the initial weights and training")
    add("--max-epochs", type=int, metavar="E", help="length of the schedule in passes over the unlabelled rows")
    add("--max-minutes", type=float, metavar="M", help="stop after this much training time")
    add("--likelihood", choices=["bernoulli", "gaussian"], default="bernoulli", help="p(x|y,z)")
    add("--class-prior", choices=["uniform", "map", "dirichlet"], default="uniform", help="p(y|pi)p(pi)")
    add("--classifier", choices=["auto", "conv", "mlp"], default="auto", help="q(y|x); auto is conv for images")
    add("--latent-dim", type=int, default=50, help="dimensions of z")
    add("--hidden-dims", type=list[int], default=[500], help="hidden widths of encoder and decoder, as [500,500]")
    add("--activation", type=str, default="relu", help="of encoder, decoder and an mlp classifier")
    add("--out", type=str, metavar="DIR", help="folder of the run (default: a new one under runs/)")
    add("--resume", type=str, metavar="DIR", help="continue the run in DIR with its own flags")
    add("--cuda", action="store_true", help="train on the GPU; the same as --device cuda")
    add("--device", type=str, default="auto", metavar="DEV", help="auto, cpu, cuda or cuda:1")
    add("--precision", type=str, default="32-true", metavar="P", help="32-true, bf16-mixed, 16-mixed, 64-true")
    add("--config", action="config", metavar="FILE", help="YAML file of flags, for example max_epochs: 20")
    parser.add_class_arguments(TrainingConfig, "training", skip=_TOP_LEVEL)
    return parser


def parse_m2(description: str, argv: Sequence[str] | None = None) -> Namespace:
    """Return the flags of ``examples/m2.py``, completed from the run to resume.

    Bad flags, a folder that holds no run, and ``--cuda`` without a GPU end the program with one line and status 2.
    """
    parser = m2_parser(description)
    args = parser.parse_args(argv)
    try:
        out = args.resume
        saved = {} if out is None else _flatten(RunFolder(out).read_config()[_FLAGS_IN_CONFIG])
        if args.pure or saved.get("pure"):
            parser.set_defaults(_pure_defaults(args))
        parser.set_defaults({name: value for name, value in saved.items() if value is not None})
        args = parser.parse_args(argv)
        if out is not None:
            args.out, args.resume = out, out
        if args.cuda:
            args.device = "cuda"
        resolve_device(args.device)
        training_config(args)
    except (ValueError, RuntimeError, KeyError) as error:
        parser.error(str(error))
    return args


def _pure_defaults(args: Namespace) -> dict[str, Any]:
    """Return the flags of the recipe for the pure objective, as defaults for those that are not given."""
    flags = PURE.model | PURE.objective
    for name, value in PURE.training.items():
        flags[name if name in _TOP_LEVEL else f"training.{name}"] = value
    if args.training.max_steps is not None:
        del flags["max_epochs"]
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


def load_data(args: Namespace) -> SemiSupervisedData:
    """Return the data that the flags name, and name the folder of the run after them where they name none.

    Where a download is impossible, say so and carry on with ``digits``.
    """
    data = _load(args)
    if args.out is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        args.out = str(Path("runs") / f"m2-{Path(args.data).stem}-{args.num_labels}-seed{args.seed}-{stamp}")
    return data


def _load(args: Namespace) -> SemiSupervisedData:
    if args.data.endswith(".npz"):
        return SemiSupervisedData.from_npz(args.data, num_labels=args.num_labels, seed=args.seed)
    named: dict[str, Any] = {"num_labels": args.num_labels, "seed": args.seed}
    try:
        return SemiSupervisedData.from_name(args.data, data_dir=args.data_dir, **named)
    except DataUnavailableError as error:
        if args.resume is not None:
            raise
        print(f"{error} Carrying on with digits.", file=sys.stderr)
        args.data = "digits"
        return SemiSupervisedData.from_name("digits", **named)
