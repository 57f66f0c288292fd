"""The console script ``pyro-ssvae``: train a model, report a run again, draw samples from it, describe it."""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace

from pyro_ssvae.cli.commands import fit_options, model_options, objective_options, run_command
from pyro_ssvae.cli.common import load_data
from pyro_ssvae.cli.ddgm import check_images, energy_options, parse_ddgm, report_images
from pyro_ssvae.cli.m1 import parse_m1
from pyro_ssvae.cli.m1m2 import parse_m1_m2, train_stages
from pyro_ssvae.cli.m2 import parse_m2
from pyro_ssvae.errors import PyroSSVAEError, RunFolderError
from pyro_ssvae.models import DDGM, M1, M2, Model, load
from pyro_ssvae.objectives import EnergyObjective, SemiSupervisedELBO, UnsupervisedELBO
from pyro_ssvae.results import report
from pyro_ssvae.training import RunFolder, fit

__all__ = ["main"]

_EPILOG = """examples:
  pyro-ssvae train m2 --data digits --num-labels 50 --out runs/digits
  pyro-ssvae train m2 --data mine.npz --likelihood gaussian     (train m2 --help lists every flag)
  pyro-ssvae train m2 --resume runs/digits                      (continue after Ctrl-C)
  pyro-ssvae info runs/digits
  pyro-ssvae report runs/digits
  pyro-ssvae sample runs/digits --num-samples 20 --y 3 --out threes.png
"""


def train_m2(args: Namespace) -> None:
    """Train M2 and report."""
    data = load_data(args)
    model = M2.for_data(data, **model_options(args))
    objective = SemiSupervisedELBO.for_data(model, data, **objective_options(args))
    _print_result(report(objective, data, fit(objective, data, **fit_options(args))))


def train_m1(args: Namespace) -> None:
    """Train M1 and report."""
    data = load_data(args, "m1").without_labels()
    model = M1.for_data(data, **model_options(args))
    objective = UnsupervisedELBO.for_data(model, data, **objective_options(args))
    run = fit(objective, data, **fit_options(args))
    _print_result(report(objective, data, run, num_samples=args.num_samples))


def train_m1m2(args: Namespace) -> None:
    """Train M1 and then M2 on its latents, and report each stage."""
    for stage, result in train_stages(args, load_data(args, "m1m2")):
        print(stage)
        _print_result(result)


def train_ddgm(args: Namespace) -> None:
    """Train a DDGM on images and report."""
    known = load_data(args, "ddgm", num_labels="all")
    data = load_data(args, "ddgm") if args.num_labels else known.without_labels()
    check_images(data)
    model = DDGM.for_data(data)
    objective = EnergyObjective.for_data(model, data, alpha=args.alpha, **energy_options(args))
    result = report(objective, data, fit(objective, data, **fit_options(args)))
    _print_result(result)
    report_images(args, model, data, known, result)


_TRAIN: dict[str, tuple[Callable[[Namespace], None], Callable[[str, Sequence[str] | None], Namespace]]] = {
    "m2": (train_m2, parse_m2),
    "m1": (train_m1, parse_m1),
    "m1m2": (train_m1m2, parse_m1_m2),
    "ddgm": (train_ddgm, parse_ddgm),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script and return the exit status: 0, 2 after an error, 130 after an interruption."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["train"] and len(argv) > 1 and argv[1] in _TRAIN:
        train, parse = _TRAIN[argv[1]]
        return run_command(train, parse, train.__doc__, argv[2:], program=f"pyro-ssvae train {argv[1]}")
    args = _new_parser().parse_args(argv)
    try:
        args.run_command(args)
    except (PyroSSVAEError, ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _new_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyro-ssvae",
        description="Semi-supervised deep generative models: train, report, sample, describe.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{train,report,info,sample}")
    train = commands.add_parser("train", help="train a model; `train MODEL --help` explains its flags")
    train.add_argument("model", choices=list(_TRAIN))
    again = commands.add_parser("report", help="evaluate a finished run again, and draw its figures")
    info = commands.add_parser("info", help="describe a run: settings, progress, results")
    sample = commands.add_parser("sample", help="draw samples from the model of a run, as .png or .npz")
    for command, function in ((again, _report), (info, _describe), (sample, _sample)):
        command.add_argument("run", metavar="RUN", help="folder of the run")
        command.set_defaults(run_command=function)
    sample.add_argument("--num-samples", type=int, default=16, metavar="N", help="number of samples (default: 16)")
    sample.add_argument("--y", type=int, metavar="K", help="class of the samples (default: drawn)")
    sample.add_argument("--seed", type=int, default=0, help="seed of the samples (default: 0)")
    sample.add_argument("--out", default="samples.png", metavar="FILE", help="FILE.png or FILE.npz (samples.png)")
    return parser


def _report(args: argparse.Namespace) -> None:
    """Evaluate a finished run again, by the command that trained it."""
    folder = RunFolder(args.run)
    flags = folder.read_config().get("flags", {})
    marks = {"m1m2": "m1_prior", "m1": "preset", "ddgm": "other_data", "m2": "class_prior"}
    model = next((name for name, flag in marks.items() if flag in flags), None)
    if model is None or "frames" in flags:
        raise RunFolderError(f"{args.run} is not a run of `pyro-ssvae train`; call pyro_ssvae.report on it.")
    if not folder.result.is_file() and model != "m1m2":
        raise RunFolderError(
            f"{args.run} is not finished. Continue it with: pyro-ssvae train {model} --resume {args.run}"
        )
    if main(["train", model, "--resume", args.run]):
        raise RunFolderError(f"{args.run} could not be evaluated.")


def _describe(args: argparse.Namespace) -> None:
    """Print the settings of a run, its last evaluation, and its result."""
    folder = RunFolder(args.run)
    print("settings")
    for section, values in folder.read_config().items():
        changed = {name: value for name, value in values.items() if value is not None and not isinstance(value, dict)}
        print(f"  {section}: " + ", ".join(f"{name}={value}" for name, value in changed.items()))
    if folder.metrics.is_file():
        with open(folder.metrics, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if rows:
            print("last evaluation")
            print("  " + ", ".join(f"{name} {value}" for name, value in rows[-1].items() if value))
    print("result")
    if folder.result.is_file():
        _print_result(folder.read_result())
    else:
        print("  none yet: the run is not finished")


def _sample(args: argparse.Namespace) -> None:
    """Draw samples and write them to a file."""
    path = Path(args.out)
    if path.suffix not in (".png", ".npz"):
        raise ValueError(f"--out {path} must end in .png or .npz.")
    model: Model = load(args.run)
    torch.manual_seed(args.seed)
    x, y = _draw(model, args.num_samples, args.y)
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {"x": x.numpy()} | ({} if y is None else {"y": y.numpy()})
        np.savez(path, **arrays)
    elif x.dim() != 4:
        raise ValueError(f"The samples have shape {tuple(x.shape[1:])} and are no images; use --out FILE.npz.")
    else:
        from torchvision.utils import save_image

        save_image(x.clamp(0.0, 1.0), path, nrow=math.ceil(math.sqrt(len(x))))
    print(f"{len(x)} samples in {path}")


def _draw(model: Any, num_samples: int, y: int | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    if hasattr(model, "sample"):  # an energy model
        if y is not None:
            raise ValueError(f"--y {y}: a {type(model).__name__} cannot draw samples of one class.")
        return model.sample(num_samples), None
    if model.num_classes is None:
        if y is not None:
            raise ValueError(f"--y {y}: this {type(model).__name__} has no classes.")
        return model.generate(num_samples), None
    drawn: tuple[torch.Tensor, torch.Tensor] = model.generate(num_samples, y)
    return drawn


def _print_result(result: dict[str, Any]) -> None:
    """Print the numbers of a result, one in a line."""
    for name, value in result.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            print(f"  {name:<24} {value:.5g}" if isinstance(value, float) else f"  {name:<24} {value}")


if __name__ == "__main__":
    sys.exit(main())
