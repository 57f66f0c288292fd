"""Running a training command: from flags to arguments of the library, errors in one line, interruptions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyro
from jsonargparse import Namespace

from pyro_ssvae.cli.common import settings, training_config
from pyro_ssvae.errors import PyroSSVAEError
from pyro_ssvae.objectives import Objective
from pyro_ssvae.training import RunFolder

__all__ = ["fit_options", "model_options", "objective_options", "run_command", "run_stage"]

_MODEL = ("latent_dim", "hidden_dims", "activation", "batch_norm", "likelihood", "prior", "class_prior", "classifier")
_BOUND = ("num_particles", "importance_weighted")
_SEMI_SUPERVISED = ("pure", "alpha", "bound_weight", "enumeration", "top_k", *_BOUND)


def run_command(
    train: Callable[[Namespace], None],
    parse: Callable[[str, Sequence[str] | None], Namespace],
    description: str | None,
    argv: Sequence[str] | None = None,
    *,
    program: str | None = None,
) -> int:
    """Parse the flags, train, and return the exit status.

    Args:
        train: Trains and reports, given the flags.
        parse: Parses the command line, given the description and the arguments.
        description: Shown by ``--help``.
        argv: The command line; that of the process when ``None``.
        program: How the command was called, for the hint how to continue.

    Returns:
        0; 2 after an error, which is printed in one line; 130 after Ctrl-C or SIGTERM, when the state is saved.
    """
    args = parse(description or "", argv)
    try:
        pyro.set_rng_seed(args.seed)
        train(args)
    except (KeyboardInterrupt, SystemExit) as stopped:
        if isinstance(stopped, SystemExit) and stopped.code != 143:
            raise
        if args.out is not None and RunFolder(args.out).config.is_file():
            print(f"Continue with: {program or f'python {sys.argv[0]}'} --resume {args.out}")
        return 130
    except (PyroSSVAEError, ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"results and figures in {args.out}")
    return 0


def model_options(args: Namespace) -> dict[str, Any]:
    """Return the arguments of the model that the flags name."""
    return {name: args[name] for name in _MODEL if name in args}


def objective_options(args: Namespace) -> dict[str, Any]:
    """Return the arguments of the objective that the flags name."""
    return {name: args[name] for name in (_SEMI_SUPERVISED if "alpha" in args else _BOUND) if name in args}


def fit_options(args: Namespace) -> dict[str, Any]:
    """Return the arguments of :func:`pyro_ssvae.fit`: settings of training, folder, and whether to resume."""
    return {
        "config": training_config(args),
        "out": args.out,
        "resume": args.resume is not None,
        "settings": settings(args),
    }


def run_stage(
    args: Namespace, stage: str, objective: Objective, data: Any, config: Any, **options: Any
) -> dict[str, Any]:
    """Train and report one stage of several, or continue it; if it was done before, load its model and result.

    Args:
        args: The flags.
        stage: Name of the stage and of its folder within the run's.
        objective: The objective of the stage.
        data: The data.
        config: Settings of training.
        **options: Arguments of :func:`pyro_ssvae.report`.
    """
    from pyro_ssvae import fit, load, report

    folder = RunFolder(Path(args.out) / stage)
    if folder.result.is_file():
        objective.module.load_state_dict(load(folder.path).state_dict())
        return folder.read_result()
    started = folder.checkpoint.is_file()
    if not started:
        folder.config.unlink(missing_ok=True)  # of a stage that was stopped before its first evaluation
    run = fit(objective, data, config, out=folder.path, resume=started, settings=settings(args))
    return report(objective, data, run, **options)
