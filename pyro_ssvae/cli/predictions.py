"""Use of a trained model: predictions for rows and images in files, its error on those with labels, and samples."""

from __future__ import annotations

import argparse
import csv
import inspect
import io
import math
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_ssvae._arguments import as_count, as_seed
from pyro_ssvae._arrays import CHANNELS, as_text
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
from pyro_ssvae.models.generation import generate_x
from pyro_ssvae.models.serialization import WEIGHTS, load
from pyro_ssvae.training import RunFolder

Columns = Mapping[str, Sequence[Any]]

_ROWS_AT_ONCE = 10_000
TABLES = (".csv", ".parquet", ".npy")  # endings of the files that :func:`_write_columns` writes


def load_last(folder: Path) -> Any:
    """Return the model of a run, or that of the last stage of M1+M2, or that in a folder without a run."""
    if (folder / WEIGHTS).is_file():
        return load(folder)
    RunFolder(folder).read_config()
    return load(RunFolder(folder).runs()[-1].path)


def _read(model: Any, path: Path, label: str | None) -> tuple[Any, str, NDArray[Any], Any]:
    """Return examples as a model takes them, what names them (file or row), these names, and labels as words."""
    check_path(path, "a table, a file or folder of rows, an .npz file, an image or a folder of images", Path.exists)
    words = None
    if label is not None and is_label_file(label):
        words, label = [*map(_as_word, read_label_file(label).tolist())], None
    if is_table(path):
        x = read_table(path, label)
        words = words if label is None else _as_words(select_columns(x, [label])[label])
        return x, "row", np.arange(len(x)), words
    if is_on_disk(path):
        words = words if label is None else _as_words(read_label_column(path, label))
        x, _ = as_input(model, path)
        return x, "row", np.arange(len(x)), words
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
    return x, "row", np.arange(len(x)), None if y is None else [*map(_as_word, y.ravel().tolist())]


def _read_images(model: Any, path: Path) -> tuple[Any, str, NDArray[Any], Any]:
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
    return x, "file", np.array(images.files), np.array(found)


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


def predict(args: argparse.Namespace) -> None:
    """Write file or row number and what the model says of each example; several processes divide the rows."""
    model = load_last(args.run)
    if args.least_sure is not None and model.num_classes is None:
        raise ValueError(f"--least-sure {args.least_sure}: this {type(model).__name__} has no classes.")
    if args.out is not None:
        check_output(args.out)
        if args.out.suffix.lower() not in TABLES and (args.out.is_file() or not args.out.exists()):  # no pipe or device
            raise ValueError(f"--out {args.out} must end in {', '.join(TABLES[:-1])} or {TABLES[-1]}.")
    x, kind, found, _ = _read(model, args.data, None)
    scale = 1.0
    if is_table(args.data) or is_on_disk(args.data):
        x, scale = as_input(model, x)  # also that an error has the number of the row in the file

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
        _write_columns((describe(*part) for part in parts), args.out, shown)


def evaluate(args: argparse.Namespace) -> None:
    """Print the error of a model on labelled examples, for each class and over all, and the cross-entropy."""
    model = load_last(args.run)
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


def sample(args: argparse.Namespace) -> None:
    """Write examples that a model generates, of one class if that is asked for."""
    model, label = load_last(args.run), args.y
    torch.manual_seed(as_seed(args.seed))
    if label is not None and (model.num_classes is None or not hasattr(model, "generate")):
        raise ValueError(f"--y {label}: {type(model).__name__} does not generate examples of one class.")
    if label is not None and label.isdecimal() and label not in model.class_names:
        label = int(label)
    if args.out is not None and args.out.suffix.lower() in TABLES:
        return _write_columns([_sample_rows(model, label, args)], args.out, args.num_samples)
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


def _write_columns(parts: Iterable[Columns], path: Path | None, number: int) -> None:
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
        rows.writerows(map(as_text, row) for row in zip(*columns.values(), strict=True))
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
