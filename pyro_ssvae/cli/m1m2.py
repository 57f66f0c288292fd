"""The command line of ``examples/m1_m2.py``."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from pyro_ssvae.cli.commands import objective_options, run_stage
from pyro_ssvae.cli.common import add_parts, as_defaults, new_parser, parse, settings, training_config
from pyro_ssvae.cli.m1 import binarisation_for
from pyro_ssvae.cli.m2 import add_objective
from pyro_ssvae.data import SemiSupervisedData
from pyro_ssvae.data.preparation import BINARISATIONS
from pyro_ssvae.distributions import PRIORS
from pyro_ssvae.evaluation import active_units
from pyro_ssvae.models import M1, M1M2, load
from pyro_ssvae.objectives import SemiSupervisedELBO, UnsupervisedELBO
from pyro_ssvae.presets import M1_BELOW, STACK, STACK_PURE
from pyro_ssvae.training import RunFolder, TrainingConfig

__all__ = ["joint_config", "m1_config", "parse_m1_m2", "select_latents", "start_stages", "train_m1", "train_stages"]

_LEAST_STEPS = 3000  # of M1, unless passes are asked for
_OF_STACK = ("latent_dim", "hidden_dims", "activation", "prior", "class_prior", "classify_from")
_OF_M1 = ("likelihood", "m1_epochs", "m1_hidden_dims", "m1_latent_dim", "m1_prior", "m1_binarisation")


def m1_m2_parser(description: str) -> ArgumentParser:
    """Return the parser of ``examples/m1_m2.py``."""
    parser = new_parser("m1_m2.py", description)
    add_objective(
        parser,
        "The class is then read off z1, as in the paper, and not off the pixels by a convolutional net.",
    )
    add_parts(parser, likelihood="p(x|z1), of the M1 below")
    add = parser.add_argument
    words = (
        "a trained M1 to build on: a run of m1.py or m1_m2.py, or its model; --likelihood and --m1-* are its own then"
    )
    add("--m1", type=str, metavar="RUN", help=words)
    add("--m1-epochs", type=int, default=M1_BELOW.training["max_epochs"], metavar="E", help="passes to train M1 for")
    add("--m1-hidden-dims", type=list[int], default=M1_BELOW.model["hidden_dims"], help="hidden widths of M1")
    add("--m1-latent-dim", type=int, default=M1_BELOW.model["latent_dim"], help="dimensions of z1, before pruning")
    add("--m1-prior", choices=sorted(PRIORS), default=M1_BELOW.model["prior"], help="p(z1) that M1 is trained with")
    words = "of the pixels that M1 is trained on (default: dynamic under a Bernoulli likelihood, else none)"
    add("--m1-binarisation", choices=list(BINARISATIONS), help=words)
    add("--keep-inactive", action="store_true", help="model also the latents of M1 that carry nothing")
    add("--joint-epochs", type=int, default=0, metavar="E", help="passes to fine-tune everything for, end to end")
    add("--class-prior", choices=["uniform", "map", "dirichlet"], default="uniform", help="p(y|pi)p(pi)")
    add("--classify-from", choices=["z1", "x"], default="x", help="whether the classifier reads z1 or the pixels")
    add("--latent-dim", type=int, default=8, help="dimensions of z, above z1")
    add("--hidden-dims", type=list[int], default=[500], help="hidden widths of the networks above z1")
    add("--activation", type=str, default="relu", help="of the networks above z1")
    add("--num-samples", type=int, default=0, metavar="S", help="draws per test row behind log p(x); 0 for none")
    return parser


def parse_m1_m2(description: str, argv: Sequence[str] | None = None) -> Namespace:
    """Return the flags of ``examples/m1_m2.py``, completed from the run to resume.

    Flags that could not have an effect, and counts below zero, end the program with one line and status 2.
    """
    parser = m1_m2_parser(description)
    args = parse(parser, argv, _defaults)
    given = parser.parse_args(argv, defaults=False)
    idle = [name for name in _OF_M1 if given.get(name) is not None]
    if args.m1 is not None and idle:
        flags = ", ".join("--" + name.replace("_", "-") for name in idle)
        parser.error(f"{flags}: no effect with --m1, whose model is trained already. Leave out the one or the other.")
    for name in ("joint_epochs", "num_samples"):
        if args[name] < 0:
            parser.error(f"--{name.replace('_', '-')} {args[name]} must be at least 0; 0 leaves it out.")
    return args


def _defaults(args: Namespace, saved: dict[str, Any]) -> dict[str, Any]:
    recipe = STACK_PURE if args.pure or saved.get("pure") else STACK
    return recipe.model | recipe.objective | as_defaults(recipe.training, args)


def m1_config(args: Namespace, num_rows: int) -> TrainingConfig:
    """Return the settings of the first stage: the recipe's, with the flags that say where and how exactly.

    A few rows make short passes: the recipe's number of them is then too few, and 3,000 steps are taken. Passes that
    are asked for are kept.
    """
    settings = {**M1_BELOW.training, "max_epochs": args.m1_epochs}
    settings["binarisation"] = args.m1_binarisation or binarisation_for(args.likelihood, settings["binarisation"])
    steps = args.m1_epochs * math.ceil(num_rows / settings["batch_size"])
    if args.m1_epochs == M1_BELOW.training["max_epochs"] and steps < _LEAST_STEPS:
        settings |= {"max_epochs": None, "max_steps": _LEAST_STEPS}
    return TrainingConfig(
        **settings, device=args.device, precision=args.precision, seed=args.seed, max_minutes=args.max_minutes
    )


def joint_config(args: Namespace) -> TrainingConfig:
    """Return the settings of the last stage: those of the stacked one, at a tenth of its learning rate.

    Args:
        args: The flags, with at least one pass of that stage.

    Raises:
        ValueError: For settings out of range.
    """
    config = training_config(args)
    return replace(config, max_steps=None, max_epochs=args.joint_epochs, learning_rate=config.learning_rate / 10)


def start_stages(args: Namespace, data: SemiSupervisedData) -> M1:
    """Build every part once, so that mistakes are reported before training, and create the folder of the run.

    Returns:
        A new M1, or the trained one that ``--m1`` names.

    Raises:
        ValueError: For flags that do not fit each other or the data.
    """
    m1 = _make_m1(args, data)
    stack = M1M2.for_data(data, m1=copy.deepcopy(m1), **{name: args[name] for name in _OF_STACK})  # freezes its M1
    SemiSupervisedELBO.for_data(stack, data, **objective_options(args))
    m1_config(args, len(data.x))
    if args.joint_epochs:
        joint_config(args)
    if args.resume is None:
        RunFolder(args.out).create(settings(args))
    return m1


def train_stages(args: Namespace, data: SemiSupervisedData) -> Iterator[tuple[str, dict[str, Any]]]:
    """Train M1 and then M2 on its latents, stacked and, if asked for, jointly; yield each stage and its result."""
    m1 = start_stages(args, data)
    train_m1(args, m1, data)
    options = {name: args[name] for name in _OF_STACK}
    model = M1M2.for_data(data, m1=m1, active=select_latents(args, m1, data), **options)
    objective = SemiSupervisedELBO.for_data(model, data, **objective_options(args))
    yield "stacked", run_stage(args, "stacked", objective, data, training_config(args), num_samples=args.num_samples)
    if args.joint_epochs:
        model.unfreeze_m1()
        yield "joint", run_stage(args, "joint", objective, data, joint_config(args), num_samples=args.num_samples)


def train_m1(args: Namespace, m1: M1, data: SemiSupervisedData) -> None:
    """Train M1 on all examples without their labels, unless ``--m1`` names a trained one."""
    if args.m1 is None:
        unlabelled = data.without_labels()
        objective = UnsupervisedELBO.for_data(m1, unlabelled)
        config = m1_config(args, len(data.x))
        result = run_stage(args, "m1", objective, unlabelled, config, num_samples=args.num_samples)
        bound = "" if result["test/bound"] is None else f", bound {result['test/bound']:.1f} nats per test example"
        print(f"M1: {result['train_seconds']:.0f} s of training{bound}")


def select_latents(args: Namespace, m1: M1, data: SemiSupervisedData) -> Tensor:
    """Return a mask of the latents of M1 that are modelled: the active ones, unless ``--keep-inactive``."""
    active = active_units(m1, data.x, scale=data.scale)
    if not active.any():
        print(
            "No latent of M1 varies between examples (posterior collapse), so M2 on top of it learns next to nothing."
        )
        print("Another --likelihood, a slower --training.kl_warmup, or a longer training of M1 often help.")
    if args.keep_inactive or not active.any():
        active[:] = True
    print(f"M2 on {int(active.sum())} of {m1.latent_dim} latents of M1")
    return active


def _make_m1(args: Namespace, data: SemiSupervisedData) -> M1:
    """Return the M1 that ``--m1`` names, or a new one."""
    if args.m1 is None:
        names = {"latent_dim": "m1_latent_dim", "hidden_dims": "m1_hidden_dims", "prior": "m1_prior"}
        options = {name: args[flag] for name, flag in names.items()}
        return M1.for_data(data, likelihood=args.likelihood, **options)
    folder = Path(args.m1) / "m1"  # of an earlier run of this command
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        m1 = load(folder if folder.is_dir() else args.m1)
    for warning in caught:  # a subclass, as in examples/m1.py, is loaded as M1
        print(warning.message)
    if not isinstance(m1, M1):
        raise ValueError(f"--m1 {args.m1} holds a {type(m1).__name__}, and an M1 is needed.")
    if tuple(m1.event_shape) != data.event_shape:
        raise ValueError(
            f"--m1 {args.m1} is a model of examples of shape {tuple(m1.event_shape)}, and those of {data.name} have "
            f"{data.event_shape}."
        )
    return m1
