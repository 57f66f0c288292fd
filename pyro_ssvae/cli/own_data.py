"""The user's tables, images and npz files on the command line: training, predictions, errors, generated rows."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_ssvae._arguments import as_count
from pyro_ssvae._arrays import as_images
from pyro_ssvae._io import check_path, write_atomically
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.labels import encode_labels
from pyro_ssvae.data.preparation import convert_images, prepare
from pyro_ssvae.data.readers import read_npz
from pyro_ssvae.data.sources import has_colour, read_folder
from pyro_ssvae.data.tables import is_table, read_table, select_columns
from pyro_ssvae.presets import FEATURES

__all__ = ["add_commands", "find_image_shape", "for_own_data", "load_table", "name_data", "write_samples"]

_DEFAULTS: dict[str, Any] = {"likelihood": "auto", "num_labels": "all"}
_FindDefaults = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


def name_data(argv: Sequence[str]) -> list[str]:
    """Return the flags of a training command, with ``--data`` before data that come first."""
    return ["--data", *argv] if argv and not argv[0].startswith("-") else list(argv)


def for_own_data(find_defaults: _FindDefaults) -> _FindDefaults:
    """Return a function that also finds the defaults of a training command for a table or a folder of images."""

    def find(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        if is_table(values["data"]):
            known = values if "likelihood" in values else ()  # a DDGM, which is for images, has none
            defaults = {name: value for name, value in _DEFAULTS.items() if name in known}
            return find_defaults(values | defaults | given, given) | defaults
        if unused := [f"--{name}" for name in ("label", "test") if given.get(name) is not None]:
            raise ValueError(f"{', '.join(unused)}: for tables, and --data {values['data']} is none.")
        chosen: dict[str, Any] = {}
        if values.get("num_labels") and "num_labels" not in given and Path(values["data"]).is_dir():
            chosen["num_labels"] = "all"  # those that someone sorted
        if "likelihood" in values and "likelihood" not in given:
            shape, dtype = find_image_shape(values["data"])
            if values["features"] is not None:
                chosen |= FEATURES.model
            elif shape and shape[0] >= 3:
                chosen["likelihood"] = "discretised_logistic" if dtype == np.uint8 else "gaussian"
        if values.get("features") is not None and "bound_weight" in values and not values["pure"]:
            chosen["bound_weight"] = FEATURES.objective["bound_weight"]
            chosen |= {f"training.{name}": value for name, value in FEATURES.training.items()}
        return find_defaults(values | chosen | given, given) | chosen

    return find


def find_image_shape(data: str) -> tuple[tuple[int, ...], Any]:
    """Return shape and dtype of the images that ``--data`` names: zeros for the sides of those of a folder.

    The shape is empty if there are none; what cannot be read is reported when the data is read.
    """
    try:
        if Path(data).is_dir():
            return (3 if has_colour(data) else 1, 0, 0), np.uint8
        if not data.endswith(".npz"):
            return ((3, 32, 32) if data == "cifar10" else (1, 28, 28)), np.uint8
        x = read_npz(Path(data), ["x_train"])["x_train"]
        return tuple(as_images(x).shape[1:]) if x.ndim in (3, 4) else (), x.dtype
    except (OSError, ValueError):
        return (), None


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
    predict = commands.add_parser("predict", help="classify the rows of a table, or images")
    evaluate = commands.add_parser("evaluate", help="print the error on labelled rows of a table, or images")
    kinds = "table with the columns of training, folder of images, or .npz file with x"
    for command, function, more in ((predict, _predict, ""), (evaluate, _evaluate, "; labels in subfolders, or y")):
        command.add_argument("run", metavar="RUN", type=Path, help="folder of the run")
        command.add_argument("data", metavar="DATA", help=kinds + more)
        command.set_defaults(function=lambda args, function=function: function(load_model(args.run), args))
    predict.add_argument("--out", type=Path, metavar="FILE", help="CSV file to write (default: standard output)")
    predict.add_argument("--least-sure", type=int, metavar="N", help="only the N rows with the least sure class")
    evaluate.add_argument("--label", metavar="COLUMN", help="column of the labels of a table")


def _read(model: Any, path: Path, label: str | None) -> tuple[Any, str, Sequence[Any], Any]:
    """Return examples as a model takes them, what names them (file or row), these names, and labels as words."""
    check_path(path, "a table, an .npz file or a folder of images", Path.exists)
    if is_table(path):
        rows = read_table(path)
        column = None if label is None else select_columns(rows, [label])[label]
        words = None if column is None else column.map(_as_word, na_action="ignore").astype(object)
        return rows, "row", range(len(rows)), words
    if label is not None:
        raise ValueError(f"--label {label}: for tables, and {path} is none.")
    if path.is_dir():
        return _read_images(model, path)
    arrays = read_npz(path, (), ("x", "y", "x_test", "y_test"))
    names = ("x", "y") if "x" in arrays else ("x_test", "y_test")
    x, y = (arrays.get(name) for name in names)
    if x is None:
        raise ValueError(
            f"{path} holds neither x nor x_test, the examples; write it by numpy.savez(path, x=..., y=...)."
        )
    return x, "row", range(len(x)), None if y is None else [*map(_as_word, y.ravel().tolist())]


def _read_images(model: Any, folder: Path) -> tuple[Any, str, Sequence[Any], Any]:
    """Return the images of a folder as :func:`_read` does, in size and channels those of the model's."""
    source = model.feature_source
    shape = tuple(model.event_shape if source is None else source.image_shape)
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ValueError(f"{folder} is a folder of images, and the model is of examples of shape {shape}.")
    images = read_folder(folder, shape[1], on_error="skip")
    found = images.classes if (images.classes != "").any() else [Path(file).parent.name for file in images.files]
    x = convert_images(prepare(torch.from_numpy(images.x), scale=255.0), shape)
    return x, "file", images.files, np.array(found)


def _as_word(label: Any) -> str:
    return label if isinstance(label, str) else f"{label:g}"


def _predict(model: Any, args: argparse.Namespace) -> None:
    """Write file or row number, class and class probabilities of each example."""
    x, kind, found, _ = _read(model, Path(args.data), None)
    probabilities = model.predict_proba(x).numpy()
    order = np.arange(len(probabilities))
    if args.least_sure is not None:
        most = as_count(args.least_sure, "--least-sure", least=1)
        order = probabilities.max(1).argsort(kind="stable")[:most]
    names = _get_names(model)
    columns = {kind: np.array(found)[order], "predicted": np.array(names)[probabilities.argmax(1)[order]]}
    shares = zip(names, probabilities[order].T, strict=True)
    _write(columns | {f"p({name})": share for name, share in shares}, args.out)


def _evaluate(model: Any, args: argparse.Namespace) -> None:
    """Print the error of a model on labelled examples, for each class and over all, and the cross-entropy."""
    if is_table(args.data) and args.label is None:
        raise ValueError(f"{args.data} needs --label COLUMN, the column of the labels.")
    x, kind, _, labels = _read(model, Path(args.data), args.label)
    where = f"column {args.label}" if is_table(args.data) else args.data
    names = _get_names(model)
    (y,) = encode_labels({where: labels}, [len(x)], class_names=names).y.values()
    known, kind = y >= 0, "images" if kind == "file" else "rows"
    if not known.any():
        raise ValueError(f"None of the {len(y)} {kind} has a label in {where}.")
    probabilities, y = model.predict_proba(x)[known], y[known]
    wrong = (probabilities.argmax(1) != y).double()
    surprise = -probabilities.double().clamp(min=1e-30)[torch.arange(len(y)), y].log().mean()
    if left_out := int((~known).sum()):
        print(f"{left_out} {kind} without a label are left out", file=sys.stderr)
    print(f"error           {wrong.mean():.2%} of {len(y)} {kind}")
    print(f"cross-entropy   {surprise:.3f} nats per {kind[:-1]}")
    for number in y.unique().tolist():
        print(f"error of {names[number]}: {wrong[y == number].mean():.2%} of {int((y == number).sum())} {kind}")


def _get_names(model: Any) -> Sequence[str]:
    return model.class_names or tuple(map(str, range(model.num_classes or 0)))


def write_samples(model: Any, label: int | str | None, args: argparse.Namespace) -> None:
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
    found = dict(zip(names, (x.numpy() * (model.data_scale or 1.0)).T, strict=True))
    for name, words in model.categories.items():
        found[name] = np.array(words)[found[name].round().astype(int).clip(0, len(words) - 1)]
    if y is not None:
        found["class"] = np.array(_get_names(model))[y.numpy()]
    _write(found, args.out)


def _write(columns: Mapping[str, Sequence[Any]], path: Path | None) -> None:
    """Write columns as CSV to a file, or standard output."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        rows.writerow([f"{value:.6g}" if isinstance(value, np.floating) else value for value in row])
    if path is None:
        print(text.getvalue(), end="")
    else:
        write_atomically(path, text.getvalue().encode())
        print(f"{len(next(iter(columns.values())))} rows in {path}", file=sys.stderr)
