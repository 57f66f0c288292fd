"""The console script ``pyro-ssvae``: train and evaluate models, predict, generate examples, explore, export."""

from __future__ import annotations

import argparse
import inspect
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_ssvae._arguments import as_count, as_seed
from pyro_ssvae._arrays import CHANNELS
from pyro_ssvae._io import atomic_open, read_json
from pyro_ssvae._ranks import launched
from pyro_ssvae.cli.commands import COMMANDS, parse_flags
from pyro_ssvae.cli.ddgm import load_images, record_movie, report_images, report_points
from pyro_ssvae.cli.flags import Flags, Parser
from pyro_ssvae.cli.predictions import TABLES, evaluate, predict, write_columns
from pyro_ssvae.cli.training import (
    describe_run,
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
from pyro_ssvae.models.diagnostics import get_class_names
from pyro_ssvae.models.latent_variable import generate_x
from pyro_ssvae.models.m1 import M1
from pyro_ssvae.models.m1m2 import M1M2
from pyro_ssvae.models.m2 import M2
from pyro_ssvae.models.serialization import WEIGHTS, load
from pyro_ssvae.objectives.bounds import SemiSupervisedELBO, UnsupervisedELBO
from pyro_ssvae.objectives.energy import EnergyObjective
from pyro_ssvae.results import report
from pyro_ssvae.training import RunFolder
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
    again = _add_command(commands, "report", _report, "evaluate a finished run again and redraw its figures")
    again.add_argument("--device", metavar="DEV", help="auto, cpu, cuda or cuda:1 (default: that of the training)")
    _add_command(
        commands,
        "info",
        lambda args: describe_run(args.run),
        "print flags, model, settings, progress and results of a run",
    )
    _add_commands(commands)
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


def _as_path(text: str) -> Path:
    return Path(os.path.expanduser(text))  # as shells do, but not in --out=~/samples.npz


def _add_command(commands: Any, name: str, function: Callable[[argparse.Namespace], Any], words: str) -> Any:
    """Add a command that is given the folder of a run, and return its parser."""
    command = commands.add_parser(name, help=words)
    command.add_argument("run", metavar="RUN", type=_as_path, help="folder of the run")
    command.set_defaults(function=function)
    return command


def _add_commands(commands: Any) -> None:
    words = "classify rows or images; M1 writes the means of their latents, a DDGM without classes their energies"
    command = _add_command(commands, "predict", lambda args: predict(_load_last(args.run), args), words)
    kinds = "table with the columns of the training data, image or folder of them, .npz file with x, or .npy file"
    command.add_argument("data", metavar="DATA", type=_as_path, help=kinds)
    add = command.add_argument
    add("--out", type=_as_path, metavar="FILE", help="FILE.csv, .parquet or .npy (default: CSV to standard output)")
    add("--least-sure", type=int, metavar="N", help="only the N rows with the least sure class")
    words = "print the error on labelled rows of a table, or images"
    command = _add_command(commands, "evaluate", lambda args: evaluate(_load_last(args.run), args), words)
    more = "; labels are names of subfolders, or y"
    command.add_argument("data", metavar="DATA", type=_as_path, help=kinds + more)
    command.add_argument("--label", metavar="COLUMN", help="column of the labels of a table, or a .npy file of labels")
    words = "write generated examples to FILE.npz and, if images, FILE.png"
    add = _add_command(commands, "sample", _sample, words).add_argument
    add("-n", "--num-samples", type=int, default=16, metavar="N", help="number of examples (default: 16)")
    add("--y", metavar="CLASS", help="name or number of the class (default: drawn by the class prior)")
    add("--seed", type=int, default=0, help="seed of the examples (default: 0)")
    words = "where to write them (default: samples in RUN); FILE.csv, .parquet or .npy for rows"
    add("--out", type=_as_path, metavar="FILE", help=words)
    words = "write an HTML page to explore the model in a browser"
    add = _add_command(commands, "explore", _explore, words).add_argument
    add("-o", "--out", type=_as_path, metavar="FILE", help="the page to write (default: explorer.html in RUN)")
    add("--num-rows", type=int, default=10_000, metavar="N", help="rows on the map (default: 10,000)")
    words = "projection of latents onto the map; umap needs umap-learn"
    add("--projection", choices=("pca", "umap"), default="pca", help=words)
    add("--seed", type=int, default=0, help="seed of the choice of rows (default: 0)")
    words = "write the networks of a run as ONNX files and PyTorch programs"
    add = _add_command(commands, "export", _export, words).add_argument
    add("--to", type=_as_path, required=True, metavar="DIR", help="folder to write, made if needed")
    add("--aoti", action="store_true", help="also compile them for C++, with a C++ compiler")


def _load_last(folder: Path) -> Any:
    """Return the model of a run, or that of the last stage of M1+M2, or that in a folder without a run."""
    if (folder / WEIGHTS).is_file():
        return load(folder)
    RunFolder(folder).read_config()
    return load(RunFolder(folder).runs()[-1].path)


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


def _sample(args: argparse.Namespace) -> None:
    model, label = _load_last(args.run), args.y
    torch.manual_seed(as_seed(args.seed))
    if label is not None and (model.num_classes is None or not hasattr(model, "generate")):
        raise ValueError(f"--y {label}: {type(model).__name__} does not generate examples of one class.")
    if label is not None and label.isdecimal() and label not in model.class_names:
        label = int(label)
    if args.out is not None and args.out.suffix.lower() in TABLES:
        return write_columns([_sample_rows(model, label, args)], args.out, args.num_samples)
    generate = model.sample if hasattr(model, "sample") else model.generate
    if "y" in inspect.signature(generate).parameters:
        found = dict(zip("xy", generate(args.num_samples, label), strict=True))
    else:
        found = {"x": generate(args.num_samples)}
    path, x = args.out or args.run / "samples", found["x"]
    path = path.with_suffix("") if path.suffix in (".npz", ".png") else path
    arrays, image = (path.with_name(path.name + ending) for ending in (".npz", ".png"))
    with atomic_open(arrays) as file:
        np.savez(file, **{name: values.numpy() for name, values in found.items()})
    print(f"{len(x)} examples of shape {tuple(x.shape[1:])} in {arrays}")
    if x.dim() == 4 and x.shape[1] in CHANNELS:
        from torchvision.utils import save_image

        save_image(x.clamp(0.0, 1.0), image, nrow=math.ceil(math.sqrt(len(x))))
        print(f"image grid in {image}")


def _sample_rows(model: Any, label: int | str | None, args: argparse.Namespace) -> dict[str, Any]:
    """Return columns of rows drawn from a model, and their classes if it has any."""
    if len(model.event_shape) > 1:
        raise ValueError(f"--out {args.out}: examples of shape {tuple(model.event_shape)} fit into no table; use .npz.")
    number = as_count(args.num_samples, "--num-samples", least=1)
    y = None
    with torch.no_grad():
        if hasattr(model, "sample"):
            x = model.sample(number)
        else:
            classes = None if label is None else model.generate(number, label)[1]
            distribution, y = generate_x(model, number, classes)
            x = distribution.sample()
    names = model.feature_names or [f"x{column + 1}" for column in range(x.shape[1])]
    found = dict(zip(names, (x.numpy() * (model.data_scale or 1.0)).T, strict=True))
    for name, words in model.categories.items():
        found[name] = np.array(words)[found[name].round().astype(int).clip(0, len(words) - 1)]
    title = next(name for name in ("class", "predicted class", "class of the model") if name not in found)
    return found if y is None else found | {title: np.array(get_class_names(model))[y.numpy()]}


def _explore(args: argparse.Namespace) -> None:
    start, model, data = time.perf_counter(), _load_last(args.run), _load_run_data(args.run)
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
    done = export(_load_last(args.run), args.to, x, aoti=args.aoti)
    for network in done["networks"].values():
        for file, found in network["files"].items():
            print(f"{file:24}{found['bytes'] / 1e6:8.2f} MB   largest difference {found['difference']:.1e}")
    for name, reason in done["not_exported"].items():
        print(f"{name:24}not exported: {reason}")
    print(f"described in {args.to / 'export.json'}")
