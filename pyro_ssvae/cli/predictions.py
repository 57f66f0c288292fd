"""Predictions of a trained model for rows and images in files, written to files, and its error on those with labels."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_ssvae._arguments import as_count
from pyro_ssvae._arrays import as_text
from pyro_ssvae._io import atomic_open, check_output, check_path
from pyro_ssvae._ranks import Ranks, launched
from pyro_ssvae.data.images import is_image, read_folder, read_single
from pyro_ssvae.data.labels import encode_labels
from pyro_ssvae.data.preparation import convert_images, rescale
from pyro_ssvae.data.readers import is_on_disk, list_shards, read_npz
from pyro_ssvae.data.rows import is_label_file, read_label_column, read_label_file
from pyro_ssvae.data.tables import is_table, read_table, select_columns
from pyro_ssvae.errors import MissingPackageError
from pyro_ssvae.models.base import as_input
from pyro_ssvae.models.diagnostics import get_class_names

Columns = Mapping[str, Sequence[Any]]

_ROWS_AT_ONCE = 10_000
TABLES = (".csv", ".parquet", ".npy")  # endings of the files that :func:`write_columns` writes


def _read(model: Any, path: Path, label: str | None) -> tuple[Any, str, Sequence[Any], Any]:
    """Return examples as a model takes them, what names them (file or row), these names, and labels as words."""
    check_path(path, "a table, a file or folder of rows, an .npz file, an image or a folder of images", Path.exists)
    words = None
    if label is not None and is_label_file(label):
        words, label = [*map(_as_word, read_label_file(label).tolist())], None
    if is_table(path):
        rows = read_table(path, label)
        if label is None:
            return rows, "row", range(len(rows)), words
        return rows, "row", range(len(rows)), _as_words(select_columns(rows, [label])[label])
    if is_on_disk(path):
        words = words if label is None else _as_words(read_label_column(path, label))
        source, _ = as_input(model, path)
        return source, "row", range(len(source)), words
    if label is not None:
        raise ValueError(f"--label {label}: {path} is no table, and has labels of its own; leave --label out.")
    if words is not None:
        raise ValueError(f"--label FILE.npy is for files and folders of rows, and {path} has labels of its own.")
    if path.is_dir() or is_image(path):
        return _read_images(model, path)
    arrays = read_npz(path, (), ("x", "y", "x_test", "y_test"))
    x, y = (arrays.get(name) for name in (("x", "y") if "x" in arrays else ("x_test", "y_test")))
    if x is None:
        raise ValueError(f"{path} holds neither x nor x_test; write examples by numpy.savez(path, x=..., y=...).")
    return x, "row", range(len(x)), None if y is None else [*map(_as_word, y.ravel().tolist())]


def _read_images(model: Any, path: Path) -> tuple[Any, str, Sequence[Any], Any]:
    """Return an image or those of a folder as :func:`_read` does, in size and channels those of the model's."""
    source = model.feature_source
    shape = tuple(model.event_shape if source is None else source.image_shape)
    if len(shape) != 3 or shape[1] != shape[2]:
        kind = "a folder of images" if path.is_dir() else "an image"
        raise ValueError(f"{path} is {kind}, and the model is of examples of shape {shape}.")
    low, high = model._data_range or (0.0, 1.0)
    if source is None and model.data_scale == 1.0 and not -0.5 < low < high < 1.5:
        raise ValueError(
            f"{path} holds images, whose values lie between 0 and 1, and those of the training data did not. Give a "
            ".npy or .npz file with values as in training."
        )
    images = read_folder(path, shape[1], on_error="skip") if path.is_dir() else read_single(path, shape[1])
    found = images.classes if (images.classes != "").any() else [Path(file).parent.name for file in images.files]
    x = convert_images(rescale(torch.from_numpy(images.x), 255.0), shape)
    return x, "file", images.files, np.array(found)


def _as_words(column: Any) -> Any:
    return column.map(_as_word, na_action="ignore").astype(object)


def _as_word(label: Any) -> str:
    return as_text(int(label) if isinstance(label, (bool, np.bool_)) else label)


def _apply(model: Any, x: Any) -> torch.Tensor:
    """Return probabilities of classes, ``(B, K)``; without classes means of latents, ``(B, L)``, or energies."""
    if model.num_classes is None and hasattr(model, "transform"):
        return torch.as_tensor(model.transform(x))
    if model.num_classes is None and hasattr(model, "energy"):
        return torch.as_tensor(model.energy(x))[:, None]
    return torch.as_tensor(model.predict_proba(x))


def predict(model: Any, args: argparse.Namespace) -> None:
    """Write file or row number and what the model says of each example; several processes divide the rows."""
    if args.least_sure is not None and model.num_classes is None:
        raise ValueError(f"--least-sure {args.least_sure}: this {type(model).__name__} has no classes.")
    if args.out is not None:
        check_output(args.out)
        if args.out.suffix.lower() not in TABLES and (args.out.is_file() or not args.out.exists()):  # no pipe or device
            raise ValueError(f"--out {args.out} must end in {', '.join(TABLES[:-1])} or {TABLES[-1]}.")
    scale = 1.0
    if is_on_disk(args.data):
        x, scale = as_input(model, args.data)
        kind, found = "row", np.arange(len(x))
    else:
        x, kind, names, _ = _read(model, args.data, None)
        found = np.array(names)

    def compute(start: int) -> Any:
        rows = slice(start, start + _ROWS_AT_ONCE)
        return _apply(model, x[rows] if scale == 1.0 else x[rows] / scale).numpy()

    def describe(found: Any, values: Any) -> dict[str, Any]:
        if model.num_classes is None:
            latents = [f"z{k + 1}" for k in range(values.shape[1])]
            words = latents if hasattr(model, "transform") else ["energy"]
            return {kind: found, **dict(zip(words, values.T, strict=True))}
        names = get_class_names(model)
        columns = {kind: found, "predicted": np.array(names)[values.argmax(1)]}
        return columns | {f"p({name})": values[:, k] for k, name in enumerate(names)}

    number = len(x)
    starts = range(0, max(1, number), _ROWS_AT_ONCE)
    shown = number if args.least_sure is None else min(number, as_count(args.least_sure, "--least-sure", least=1))
    ranks = Ranks(*launched())
    with ranks.joined(torch.device("cpu")):
        computed = ranks.map_in_turn(compute, starts)
        if ranks.rank:
            deque(computed, maxlen=0)  # the first process writes
            return
        names_of_parts = (found[start : start + _ROWS_AT_ONCE] for start in starts)
        parts: Iterable[Any] = zip(names_of_parts, computed, strict=True)
        if args.least_sure is not None:
            found, probabilities = map(np.concatenate, zip(*parts, strict=True))
            order = probabilities.max(1).argsort(kind="stable")[:shown]
            parts = [(found[order], probabilities[order])]
        write_columns((describe(*part) for part in parts), args.out, shown)


def evaluate(model: Any, args: argparse.Namespace) -> None:
    """Print the error of a model on labelled examples, for each class and over all, and the cross-entropy."""
    if args.label is None and (is_table(args.data) or is_on_disk(args.data)):
        has_columns = is_table(args.data) or list_shards(args.data)[0].suffix in (".parquet", ".h5ad")
        what = "COLUMN, the column of the labels" if has_columns else "FILE.npy, with a label for every row"
        raise ValueError(f"{args.data} needs --label {what}.")
    x, kind, _, labels = _read(model, args.data, args.label)
    where = str(args.data) if args.label is None else f"--label {args.label}"
    names = get_class_names(model)
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


def write_columns(parts: Iterable[Columns], path: Path | None, number: int) -> None:
    """Write columns of ``number`` rows, some rows at a time, to a file by its ending, or as CSV to standard output.

    A file ``.npy`` gets the columns of real numbers alone, as float32 ``(N, D)``. No file is left behind by an error.
    """
    if path is None:
        for text in _format_csv(parts):
            print(text, end="")
        return
    with atomic_open(path) as file:
        if path.suffix.lower() == ".parquet":
            _write_parquet(parts, file)
        elif path.suffix.lower() == ".npy":
            _write_npy(parts, file, number)
        else:
            file.writelines(text.encode() for text in _format_csv(parts))
    print(f"{number} rows in {path}", file=sys.stderr)


def _format_csv(parts: Iterable[Columns]) -> Iterable[str]:
    for count, columns in enumerate(parts):
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        if count == 0:
            rows.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            rows.writerow([f"{value:.6g}" if isinstance(value, np.floating) else value for value in row])
        yield text.getvalue()


def _write_parquet(parts: Iterable[Columns], file: Any) -> None:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetWriter
    except ImportError as error:
        raise MissingPackageError("Parquet files are written by pyarrow: pip install 'pyro-ssvae[tables]'.") from error
    with ExitStack() as stack:
        writer = None
        for columns in parts:
            table = pyarrow.table(dict(columns))
            writer = writer or stack.enter_context(ParquetWriter(file, table.schema))
            writer.write_table(table)


def _write_npy(parts: Iterable[Columns], file: Any, number: int) -> None:
    for count, columns in enumerate(parts):
        real = [values for values in map(np.asarray, columns.values()) if values.dtype.kind == "f"]
        x = np.stack(real, 1).astype("<f4")
        if count == 0:
            header = {"descr": "<f4", "fortran_order": False, "shape": (number, x.shape[1])}
            np.lib.format.write_array_header_1_0(file, header)
        file.write(x.tobytes())
