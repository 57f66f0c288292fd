"""The console script ``pyro-ssvae``: train, evaluate, describe, explore and export a model, generate examples."""

from __future__ import annotations

import argparse
import csv
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pyro_ssvae import _interrupts
from pyro_ssvae._io import read_json
from pyro_ssvae.cli.ddgm import load_images, record_movie, report_images, report_points
from pyro_ssvae.cli.flags import Flags, Parser
from pyro_ssvae.cli.inference import add_command, add_commands
from pyro_ssvae.cli.training import (
    find_results,
    load_data,
    make_m1,
    plain_warnings,
    print_error,
    print_result,
    run_command,
    train_stages,
)
from pyro_ssvae.data import make_toy_data
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.errors import RunFolderError
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.models.m1 import M1
from pyro_ssvae.models.m1m2 import M1M2
from pyro_ssvae.models.m2 import M2
from pyro_ssvae.objectives.energy import EnergyObjective
from pyro_ssvae.objectives.semi_supervised import SemiSupervisedELBO
from pyro_ssvae.objectives.unsupervised import UnsupervisedELBO
from pyro_ssvae.results import report
from pyro_ssvae.training import RunFolder
from pyro_ssvae.training.config import TrainingConfig
from pyro_ssvae.training.loop import fit

__all__ = ["main"]

_EXAMPLES = """examples:
  pyro-ssvae train m2 --data digits --out runs/digits    # m1, m1m2, ddgm, ddgm_2d: see train MODEL --help
  pyro-ssvae train m2 --resume runs/digits               # continue after Ctrl-C
  pyro-ssvae train m2 table.csv --label species --out runs/table
  pyro-ssvae train m2 photos/ --out runs/photos          # a folder of images, a subfolder per class
  pyro-ssvae predict runs/table rows.csv --out predictions.csv
  pyro-ssvae predict runs/photos new/ --out predictions.csv
  pyro-ssvae info runs/digits
  pyro-ssvae report runs/digits
  pyro-ssvae sample runs/digits --num-samples 20 --y 3   # writes runs/digits/samples.png and samples.npz
  pyro-ssvae explore runs/digits -o explorer.html       # a page to open in a browser
  pyro-ssvae export runs/digits --to exported            # ONNX files, for programs without this package
"""


def _train(args: Flags, data: SemiSupervisedData, model_class: Any, objective_class: Any, **options: Any) -> Any:
    """Train and report a model, and return it and its result."""
    model = model_class.for_data(data, **args.model)
    objective = objective_class.for_data(model, data, **args.objective)
    result = report(objective, data, fit(objective, data, **args.fit), **options)
    print_result(result, f"{model_class.__name__} on {data}")
    return model, result


def _train_m2(args: Flags) -> None:
    _train(args, load_data(args), M2, SemiSupervisedELBO)


def _train_m1(args: Flags) -> None:
    _train(args, load_data(args).without_labels(), M1, UnsupervisedELBO, num_samples=args.num_samples)


def _train_m1m2(args: Flags) -> None:
    data = load_data(args)

    def make_objective(m1: M1, active: Tensor | None) -> SemiSupervisedELBO:
        model = M1M2.for_data(data, m1=m1, active=active, **args.model)
        return SemiSupervisedELBO.for_data(model, data, **args.objective)

    for stage, result in train_stages(args, data, make_m1(args, data), make_objective):
        print_result(result, stage)


def _train_ddgm(args: Flags) -> None:
    data, known = load_images(args)
    model, result = _train(args, data, DDGM, EnergyObjective)
    report_images(args, model, data, known, result)


def _train_ddgm_2d(args: Flags) -> None:
    data = make_toy_data(args.data, seed=args.seed)
    model = DDGM.for_data(data)
    objective = EnergyObjective.for_data(model, data, **args.objective)
    with record_movie(args, model, data) as add_frame:
        done = fit(objective, data, on_evaluation=add_frame, **args.fit)
    report_points(args, model, data, report(objective, data, done))


_TRAIN: dict[str, Callable[[Flags], None]] = {
    "m2": _train_m2,
    "m1": _train_m1,
    "m1m2": _train_m1m2,
    "ddgm": _train_ddgm,
    "ddgm_2d": _train_ddgm_2d,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script and return the exit status: 0, 2 after an error, 130 after an interruption."""
    _interrupts.restore()
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["train"] and len(argv) > 1 and argv[1] in _TRAIN:
        name, flags = argv[1], argv[2:]
        flags = ["--data", *flags] if flags and not flags[0].startswith("-") else flags
        return run_command(_TRAIN[name], name, flags, program=f"pyro-ssvae train {name}")
    args = argparse.Namespace()
    try:
        with plain_warnings():
            _new_parser().parse_args(argv, args)
            return int(args.function(args) or 0)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return print_error(error, {name: f"--{name.replace('_', '-')}" for name in vars(args)})


def _new_parser() -> Parser:
    parser = Parser(
        prog="pyro-ssvae",
        description="Semi-supervised deep generative models: train, report, predict, sample, explore, export.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="{train,report,info,predict,evaluate,sample,explore,export}"
    )
    train = commands.add_parser("train", help="train a model; `train MODEL --help` explains its flags")
    train.add_argument("model", choices=list(_TRAIN))
    train.set_defaults(function=lambda _: None)
    again = add_command(commands, "report", _report, "evaluate a finished run again and redraw its figures")
    again.add_argument("--device", metavar="DEV", help="auto, cpu, cuda or cuda:1 (default: that of the training)")
    add_command(commands, "info", _describe, "print flags, model, settings, progress and results of a run")
    add_commands(commands)
    return parser


def _report(args: argparse.Namespace) -> int:
    """Evaluate a finished run again, by the command that trained it, and return the exit status."""
    folder, config = args.run, RunFolder(args.run).read_config()
    name = config.get("command")
    if name not in _TRAIN:
        raise RunFolderError(f"{folder} was written by a Python program; call pyro_ssvae.report in it.")
    if not find_results(name, config["flags"], folder):
        raise RunFolderError(f"{folder} is not finished; continue with: pyro-ssvae train {name} --resume {folder}")
    trained = read_json(RunFolder(folder).runs()[-1].model / "config.json")["class"]
    if trained not in {"M1", "M2", "M1M2", "DDGM"}:
        print(f"{trained} is evaluated as its base class. If its model function differs, call pyro_ssvae.report.")
    argv = ["--resume", str(folder), *(["--device", args.device] if args.device else [])]
    return run_command(_TRAIN[name], name, argv, program=f"pyro-ssvae train {name}", evaluate_again=True)


def _describe(args: argparse.Namespace) -> None:
    """Print command, flags, models, settings, last evaluations and results of a run."""
    folder, config = args.run, RunFolder(args.run).read_config()
    settings = {name: field.default for name, field in TrainingConfig.__dataclass_fields__.items()}
    flags = {k: v for k, v in config.get("flags", {}).items() if k.removeprefix("training.") not in settings}
    print(f"run         {folder}, by {config.get('command', 'a Python program')}")
    _print_values("flags", flags)
    for found in RunFolder(folder).runs():
        if found.path != folder:
            print(f"\nstage       {found.path.name}")
        if (found.model / "config.json").is_file():
            model = read_json(found.model / "config.json")
            _print_values("model", {"class": model.get("class"), **dict(model.get("arguments", {}))})
            names = enumerate(model.get("data", {}).get("class_names", []))
            _print_values("classes", {str(number): name for number, name in names if name != str(number)})
        training = found.read_config().get("training", {})
        _print_values("training", {k: v for k, v in training.items() if v != settings.get(k)})
        if found.metrics.is_file():
            try:
                rows = list(csv.DictReader(found.metrics.read_text(encoding="utf-8").splitlines()))
                last = {k: f"{float(v):.4g}" for k, v in rows[-1].items() if v} if rows else {}
            except (ValueError, TypeError, csv.Error) as error:
                raise RunFolderError(f"{found.metrics} is damaged: {error}") from error
            _print_values("evaluation", last)
        if found.result.is_file():
            result = found.read_result()
            _print_values("data", {k: result.get(k) for k in ("data", "num_labels", "num_unlabelled")})
            print_result(result, f"result      {found.result}")
        else:
            print("result      none, the run is not finished")


def _print_values(title: str, values: dict[str, Any]) -> None:
    text = ", ".join(f"{k} {v}" for k, v in values.items() if v is not None and not isinstance(v, dict))
    if values:
        print(textwrap.fill(text, 100, initial_indent=f"{title:12}", subsequent_indent=" " * 12))
