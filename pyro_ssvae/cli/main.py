"""The console script ``pyro-ssvae``: train and evaluate models, predict, generate examples, explore, export."""

from __future__ import annotations

import argparse
import csv
import os
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_ssvae._io import read_json
from pyro_ssvae._ranks import launched
from pyro_ssvae.cli.commands import COMMANDS, parse_flags
from pyro_ssvae.cli.ddgm import load_images, record_movie, report_images, report_points
from pyro_ssvae.cli.flags import Flags, Parser
from pyro_ssvae.cli.predictions import evaluate, load_last, predict, sample
from pyro_ssvae.cli.training import (
    find_results,
    load_data,
    make_m1,
    plain_warnings,
    print_error,
    print_result,
    run_command,
    silence,
    train_stages,
)
from pyro_ssvae.data import make_toy_data
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.errors import PyroSSVAEError, RunFolderError
from pyro_ssvae.explorer import explore
from pyro_ssvae.export import export
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.models.m1 import M1
from pyro_ssvae.models.m1m2 import M1M2
from pyro_ssvae.models.m2 import M2
from pyro_ssvae.objectives.bounds import SemiSupervisedELBO, UnsupervisedELBO
from pyro_ssvae.objectives.energy import EnergyObjective
from pyro_ssvae.results import report
from pyro_ssvae.training import RunFolder
from pyro_ssvae.training.config import TrainingConfig
from pyro_ssvae.training.loop import fit

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
  pyro-ssvae explore runs/digits -o explorer.html        # a page to open in a browser
  pyro-ssvae export runs/digits --to exported            # ONNX files, for programs without this package
"""


def _train(args: Flags, data: SemiSupervisedData, model_class: Any, objective_class: Any, **options: Any) -> Any:
    model = model_class.for_data(data, **args.model)
    objective = objective_class.for_data(model, data, **args.objective)
    result = report(objective, data, fit(objective, data, **args.fit), **options)
    print_result(result, f"{model_class.__name__} on {data}")
    return model, result


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


_TRAIN: dict[str, Callable[[Flags], Any]] = {
    "m2": lambda args: _train(args, load_data(args), M2, SemiSupervisedELBO),
    "m1": lambda args: _train(
        args, load_data(args).without_labels(), M1, UnsupervisedELBO, num_samples=args.num_samples
    ),
    "m1m2": _train_m1m2,
    "ddgm": _train_ddgm,
    "ddgm_2d": _train_ddgm_2d,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script and return the exit status: 0, 2 after an error, 130 after an interruption."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["train"] and len(argv) > 1 and argv[1] in _TRAIN:
        name, flags = argv[1], argv[2:]
        flags = ["--data", *flags] if flags and not flags[0].startswith("-") else flags
        return run_command(_TRAIN[name], name, flags, program=f"pyro-ssvae train {name}")
    args, rank = argparse.Namespace(), 0
    try:
        rank = launched()[0]
        with plain_warnings() if rank == 0 else silence():
            _new_parser().parse_args(argv, args)
            status = int(args.function(args) or 0)
            sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # of a program that has read enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python writes the rest at its end
        return 0
    except Exception as error:
        return print_error(error, {name: f"--{name.replace('_', '-')}" for name in vars(args)}, rank)


def _new_parser() -> Parser:
    parser = Parser(
        prog="pyro-ssvae",
        description="Semi-supervised deep generative models: train them, evaluate them, and use them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="{train,report,info,predict,evaluate,sample,explore,export}"
    )
    train = commands.add_parser("train", help="train a model; `train MODEL --help` explains its flags")
    models = "m2, m1, m1m2 (M1+M2), ddgm (of images) or ddgm_2d (of points); train MODEL --help explains the flags"
    train.add_argument("model", metavar="MODEL", choices=list(_TRAIN), help=models)
    train.set_defaults(function=lambda _: None)
    _add_commands(commands)
    return parser


def _add_commands(commands: Any) -> None:
    """Add the commands that are given the folder of a run."""

    def command(name: str, function: Callable[[argparse.Namespace], Any], words: str) -> Callable[..., Any]:
        added = commands.add_parser(name, help=words)
        added.add_argument("run", metavar="RUN", type=_as_path, help="folder of the run")
        added.set_defaults(function=function)
        return added.add_argument

    add = command("report", _report, "evaluate a finished run again and redraw its figures")
    add("--device", metavar="DEV", help="auto, cpu, cuda or cuda:1 (default: that of the training)")
    command("info", _describe_run, "print flags, model, settings, progress and results of a run")
    words = "classify rows or images; M1 writes the means of their latents, a DDGM without classes their energies"
    add = command("predict", predict, words)
    kinds = "table with the columns of the training data, image or folder of them, .npz file with x, or .npy file"
    add("data", metavar="DATA", type=_as_path, help=kinds)
    add("--out", type=_as_path, metavar="FILE", help="FILE.csv, .parquet or .npy (default: CSV to standard output)")
    add("--least-sure", type=int, metavar="N", help="only the N rows with the least sure class")
    add = command("evaluate", evaluate, "print the error on labelled rows of a table, or images")
    add("data", metavar="DATA", type=_as_path, help=f"{kinds}; labels are names of subfolders, or y")
    add("--label", metavar="COLUMN", help="column of the labels of a table, or a .npy file of labels")
    add = command("sample", sample, "write generated examples to FILE.npz and, if images, FILE.png")
    add("-n", "--num-samples", type=int, default=16, metavar="N", help="number of examples (default: 16)")
    add("--y", metavar="CLASS", help="name or number of the class (default: drawn by the class prior)")
    add("--seed", type=int, default=0, help="seed of the examples (default: 0)")
    words = "where to write them (default: samples in RUN); FILE.csv, .parquet or .npy for rows"
    add("--out", type=_as_path, metavar="FILE", help=words)
    add = command("explore", _explore, "write an HTML page to explore the model in a browser")
    add("-o", "--out", type=_as_path, metavar="FILE", help="the page to write (default: explorer.html in RUN)")
    add("--num-rows", type=int, default=10_000, metavar="N", help="rows on the map (default: 10,000)")
    words = "projection of latents onto the map; umap needs umap-learn"
    add("--projection", choices=("pca", "umap"), default="pca", help=words)
    add("--seed", type=int, default=0, help="seed of the choice of rows (default: 0)")
    add = command("export", _export, "write the networks of a run as ONNX files and PyTorch programs")
    add("--to", type=_as_path, required=True, metavar="DIR", help="folder to write, made if needed")
    add("--aoti", action="store_true", help="also compile them for C++, with a C++ compiler")


def _as_path(text: str) -> Path:
    return Path(os.path.expanduser(text))  # as shells do, but not in --out=~/samples.npz


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


def _describe_run(args: argparse.Namespace) -> None:
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


def _load_run_data(folder: Path) -> SemiSupervisedData:
    name = RunFolder(folder).read_config().get("command")
    if name not in COMMANDS:
        raise RunFolderError(f"{folder} was written by a Python program; call pyro_ssvae.explore or export in it.")
    flags = parse_flags(name, ["--resume", str(folder)])
    if name == "ddgm_2d":
        return make_toy_data(flags.data, seed=flags.seed)
    if name == "ddgm":
        return load_images(flags)[0]
    return load_data(flags).without_labels() if name == "m1" else load_data(flags)


def _explore(args: argparse.Namespace) -> None:
    start, model, data = time.perf_counter(), load_last(args.run), _load_run_data(args.run)
    options = {"projection": args.projection, "num_rows": args.num_rows, "seed": args.seed}
    path = explore(model, data, args.out or args.run / "explorer.html", **options)
    size, seconds = path.stat().st_size / 1e6, time.perf_counter() - start
    print(f"{path}: {size:.1f} MB, written in {seconds:.0f} s; open it in a browser")


def _export(args: argparse.Namespace) -> None:
    x = None
    try:
        data = _load_run_data(args.run)
        x = (data.x_test if len(data.x_test) else data.x)[:64] / data.scale
    except (OSError, ValueError, PyroSSVAEError) as error:
        print(f"The data of the run is not at hand: {error}", file=sys.stderr)
    print(f"compared with the model on {'examples that it generates' if x is None else 'examples of its data'}")
    done = export(load_last(args.run), args.to, x, aoti=args.aoti)
    for network in done["networks"].values():
        for file, found in network["files"].items():
            print(f"{file:24}{found['bytes'] / 1e6:8.2f} MB   largest difference {found['difference']:.1e}")
    for name, reason in done["not_exported"].items():
        print(f"{name:24}not exported: {reason}")
    print(f"described in {args.to / 'export.json'}")
