"""Tables on the command line: training on one, classifying its rows, the error on them, generated rows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_ssvae._checks import as_count
from pyro_ssvae._io import write_atomically
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.labels import encode_labels
from pyro_ssvae.data.tables import import_pandas, is_table, read_table, select_columns

__all__ = ["add_commands", "for_own_data", "load_table", "name_data", "write_samples"]

_DEFAULTS = {"likelihood": "auto", "num_labels": "all"}
_FindDefaults = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


def name_data(argv: Sequence[str]) -> list[str]:
    """Return the flags of a training command, with ``--data`` before a table that comes first."""
    return ["--data", *argv] if argv and is_table(argv[0]) else list(argv)


def for_own_data(find_defaults: _FindDefaults) -> _FindDefaults:
    """Return a function that also finds the defaults of a training command for a table or a folder of images."""

    def find(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        if is_table(values["data"]):
            known = values if "likelihood" in values else ()  # a DDGM, which is for images, has none
            defaults = {name: value for name, value in _DEFAULTS.items() if name in known}
            return find_defaults(values | defaults | given, given) | defaults
        if unused := [f"--{name}" for name in ("label", "test") if given.get(name) is not None]:
            raise ValueError(f"{', '.join(unused)}: for tables, and --data {values['data']} is none.")
        if values.get("num_labels") and "num_labels" not in given and Path(values["data"]).is_dir():
            return find_defaults(values, given) | {"num_labels": "all"}  # those that someone sorted
        return find_defaults(values, given)

    return find


def load_table(args: Any, num_labels: Any) -> SemiSupervisedData:
    """Return the table that the flags name; of 100 labelled rows or more a tenth each is for validation and testing.

    Raises:
        ValueError: If the labels of a model with classes are not named, or the table is refused.
    """
    if args.label is None and args.values.get("num_labels"):
        raise ValueError(f"{args.data} needs --label COLUMN, the column of the labels (empty for unlabelled rows).")
    options: dict[str, Any] = {"num_validation": None, "num_test": None if args.test is None else 0}
    return SemiSupervisedData.from_table(
        args.data, args.label, test=args.test, num_labels=num_labels, seed=args.seed, **options
    )


def add_commands(commands: Any, load_model: Callable[[Path], Any]) -> None:
    """Add the commands ``predict`` and ``evaluate``; their models are loaded from the folder of a run."""
    predict = commands.add_parser("predict", help="classify the rows of a table")
    evaluate = commands.add_parser("evaluate", help="print the error on the labelled rows of a table")
    for command, function in ((predict, _predict), (evaluate, _evaluate)):
        command.add_argument("run", metavar="RUN", type=Path, help="folder of the run")
        command.add_argument("rows", metavar="TABLE", help="CSV or Parquet file with the columns of the training table")
        command.set_defaults(function=lambda args, function=function: function(load_model(args.run), args))
    predict.add_argument("--out", type=Path, metavar="FILE", help="CSV file to write (default: standard output)")
    predict.add_argument("--least-sure", type=int, metavar="N", help="only the N rows with the least sure class")
    evaluate.add_argument("--label", required=True, metavar="COLUMN", help="column of the labels")


def _predict(model: Any, args: argparse.Namespace) -> None:
    """Write number, class and class probabilities of each row."""
    rows = read_table(args.rows)
    probabilities = model.predict_proba(rows).numpy()
    names = np.array(model.class_names or range(model.num_classes), dtype=str)
    found = import_pandas().DataFrame(probabilities, columns=[f"p({name})" for name in names])
    found.insert(0, "predicted", names[probabilities.argmax(1)])
    if args.least_sure is not None:
        most = as_count(args.least_sure, "--least-sure", least=1)
        found = found.iloc[probabilities.max(1).argsort(kind="stable")[:most]]
    _write(found.rename_axis("row").reset_index(), args.out)


def _evaluate(model: Any, args: argparse.Namespace) -> None:
    """Print the error of a model on a table, for each class and over all, and the cross-entropy."""
    rows = read_table(args.rows)
    column = select_columns(rows, [args.label])[args.label]
    words = column.map(lambda label: label if isinstance(label, str) else f"{label:g}", na_action="ignore")
    names = model.class_names or tuple(map(str, range(model.num_classes or 0)))
    (y,) = encode_labels({f"column {args.label}": words.astype(object)}, [len(rows)], class_names=names).y.values()
    known = y >= 0
    if not known.any():
        raise ValueError(f"No row of {args.rows} has a label in column {args.label}.")
    probabilities, y = model.predict_proba(rows)[known], y[known]
    wrong = (probabilities.argmax(1) != y).double()
    surprise = -probabilities.double().clamp(min=1e-30)[torch.arange(len(y)), y].log().mean()
    if left_out := int((~known).sum()):
        print(f"{left_out} rows without a label are left out", file=sys.stderr)
    print(f"error           {wrong.mean():.2%} of {len(y)} rows")
    print(f"cross-entropy   {surprise:.3f} nats per row")
    for number in y.unique().tolist():
        print(f"error of {names[number]}: {wrong[y == number].mean():.2%} of {int((y == number).sum())} rows")


def write_samples(model: Any, label: int | None, args: argparse.Namespace) -> None:
    """Write rows drawn from a model, and their classes if it has any, as a CSV file.

    Raises:
        ValueError: For a model of images.
    """
    if len(model.event_shape) > 1:
        raise ValueError(f"--out {args.out}: examples of shape {tuple(model.event_shape)} fit into no table; use .npz.")
    number = as_count(args.num_samples, "--num-samples", least=1)
    y = None
    with torch.no_grad():
        if hasattr(model, "sample"):
            x = model.sample(number)
        else:
            if model.num_classes is not None:
                y = model.generate(number, label)[1]
            z = model.prior().sample((number,))
            x = (model.decode(z) if y is None else model.decode(y, z)).sample()
    names = model.feature_names or [f"x{column}" for column in range(x.shape[1])]
    found = import_pandas().DataFrame(x.numpy() * (model.data_scale or 1.0), columns=names)
    for name, words in model.categories.items():
        found[name] = np.array(words)[found[name].round().astype(int).clip(0, len(words) - 1)]
    if y is not None:
        found["class"] = [model.class_names[k] if model.class_names else k for k in y.tolist()]
    _write(found, args.out)


def _write(table: Any, path: Path | None) -> None:
    text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    if path is None:
        print(text, end="")
    else:
        write_atomically(path, text.encode())
        print(f"{len(table)} rows in {path}", file=sys.stderr)
