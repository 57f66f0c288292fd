"""What the estimators share: checks of the input, training, prediction in double precision."""

from __future__ import annotations

import copy
import inspect
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import Tags, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from pyro_ssvae._arguments import MAX_SEED, as_count, as_path, bind_arguments, show
from pyro_ssvae._arrays import as_array, as_images, check_finite, check_table, find_offsets, holds_numbers
from pyro_ssvae._io import check_path
from pyro_ssvae._warnings import warn
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.labels import read_labels
from pyro_ssvae.data.readers import list_shards, read_tables, reading
from pyro_ssvae.data.storage import open_source
from pyro_ssvae.data.tables import decode_categories, encode_categories, find_categories, read_table, select_columns
from pyro_ssvae.distributions.choice import choose_likelihood, describe_likelihood, make_likelihood
from pyro_ssvae.evaluation import log_likelihood
from pyro_ssvae.models import Model
from pyro_ssvae.objectives import Objective
from pyro_ssvae.training.config import TrainingConfig
from pyro_ssvae.training.loop import FitResult, fit

Array = NDArray[Any]

_ROWS_AT_ONCE = 10_000
PYRO_LOCK = threading.RLock()
"""Held while Pyro runs or random numbers are drawn: all threads share Pyro's handlers and torch's random state."""
ONE_PASS = {"max_epochs": 1, "max_steps": None, "warmup_steps": 0, "kl_warmup": 0.0, "decay_start": 1.0}
"""Settings of training for ``partial_fit``."""


def encode_targets(
    y: ArrayLike, classes: ArrayLike | None, num_classes: int | None
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return labels ``(N,)`` for an estimator as indices of classes, -1 where unknown, and the classes, sorted.

    Numbers may leave gaps. ``classes`` are all classes, if some may have no label, and ``num_classes`` is the number of
    clusters, if there is no label at all.
    """
    known, labelled = select_known(y)
    if classes is None:
        found = np.unique(known) if len(known) or num_classes is None else np.arange(num_classes)
        if num_classes not in (None, len(found)):
            raise ValueError(
                f"n_classes={num_classes} is for y without labels, and y has labels of {len(found)} class(es): "
                f"{found.tolist()[:5]}. Name all classes by classes=[...] instead."
            )
    else:
        found = sort_classes(classes)
        if missing := sorted(set(known.tolist()) - set(found.tolist()), key=str):
            raise ValueError(f"y holds labels that classes={found.tolist()} lacks: {missing[:5]}.")
    if len(found) < 2:
        raise ValueError(
            f"At least two classes are needed; y has {len(found)} class(es) among {len(known)} labelled examples (-1, "
            "None, NaN or '' marks an unlabelled one). Name all classes by classes=[...], or cluster without labels by "
            "n_classes=K."
        )
    codes = np.full(len(labelled), -1)
    codes[labelled] = np.searchsorted(found, known)
    return codes, found


def sort_classes(classes: ArrayLike) -> NDArray[Any]:
    """Return the classes named by a parameter, sorted, without what marks unlabelled examples."""
    return np.unique(select_known(classes, "classes")[0])


def select_known(y: ArrayLike, name: str = "y") -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the labels of labelled examples, whole numbers or words, and a mask ``(N,)`` of these examples."""
    labels = column_or_1d(read_labels(y, name), warn=True)
    if labels.dtype.kind not in "biufU":
        raise TypeError(f"{name} has dtype {labels.dtype}; labels are whole numbers or words.")
    labelled = labels != "" if labels.dtype.kind == "U" else (labels == labels) & (labels != -1)
    known = labels[labelled]
    if len(known):
        check_classification_targets(known)
    if known.dtype.kind == "f":  # whole, by the check; or True and False beside None
        given = np.asarray(y, dtype=object).ravel()[labelled]
        known = known.astype(bool if all(isinstance(label, (bool, np.bool_)) for label in given) else np.int64)
    return known, labelled


def _as_table(X: Any) -> Any:
    """Return tensors and sparse matrices as arrays, an AnnData and polars or PyArrow but for numbers as a DataFrame."""
    if hasattr(X, "obs") and hasattr(X, "var_names"):  # an AnnData
        return read_table(X)
    if isinstance(X, (Tensor, np.ma.MaskedArray)) or hasattr(X, "toarray"):
        return as_array(X, "X")
    return X.to_pandas() if hasattr(X, "to_pandas") and not holds_numbers(X) else X


parameters = dataclass(kw_only=True, eq=False, repr=False)
"""Makes a constructor whose parameters, in the sense of scikit-learn, are the annotated names of classes."""


@parameters
class Parameters:
    """Parameters of all estimators."""

    latent_dim: int | None = None
    max_steps: int | None = None
    batch_size: int = 128
    learning_rate: float = 3e-3
    max_time: float | None = None
    device: str = "auto"
    random_state: Any = None
    verbose: int = 0
    callbacks: Sequence[Callable[[Any, dict[str, Any]], None]] | None = None


class DeepEstimator(Parameters, BaseEstimator):
    """Base class of the estimators; a subclass defines ``fit`` and what its model offers."""

    _allow_missing = True
    _offsets: Array | None = None  # of columns whose mean is large compared with their deviation
    _fill: Array | None = None  # what stands for missing values in new rows, if training had none
    model_: Any
    history_: list[dict[str, Any]]
    n_iter_: int
    classes_: Array
    categories_: dict[int, Array]

    # Input.

    def _check_rows(self, X: ArrayLike, *, reset: bool, min_rows: int = 1) -> Array:
        """Return examples as an array, ``(N, *event_shape)``: float64, or uint8 for images of 8 bits.

        Words become codes, and missing values NaN. Columns with a large mean are moved to about 0: training is in
        single precision.
        """
        if not reset:
            check_is_fitted(self, "model_")
        elif hasattr(self, "model_"):
            del self.model_  # which must not be used with classes or columns of a fit that fails
        rows = self._as_numbers(self._encode(X, reset), reset, min_rows)
        if reset:
            self._offsets = self._fill = None
        if rows.ndim > 2:
            return rows
        if reset:
            self._learn_columns(rows)
        rows = rows if self._offsets is None else rows - self._offsets
        return rows if reset else self._fill_unexpected(rows)

    def _encode(self, X: Any, reset: bool) -> Any:
        """Return images with channels first, as samples are, and tables with codes for words."""
        X = _as_table(X)
        if isinstance(X, np.ndarray):
            X = as_images(X, "X", None if reset else self.model_.event_shape)
        given: Any = getattr(X, "dtype", None)
        if getattr(given, "kind", "O") in "mM":  # which would become numbers of nanoseconds
            raise TypeError(f"X has dtype {given}; give dates and durations as numbers, of days, say.")
        if not self._allow_missing:
            return encode_categories(X, {})
        if reset:
            self.categories_ = find_categories(X)
        elif hasattr(X, "columns") and hasattr(self, "feature_names_in_"):
            validate_data(self, X, reset=False, skip_check_array=True)  # names, before words are looked up in columns
        return encode_categories(X, self.categories_)

    def _as_numbers(self, X: Any, reset: bool, min_rows: int) -> Array:
        """Return what scikit-learn accepts as an array of numbers; its errors say what X should be."""
        is_image = len(getattr(X, "shape", ())) > 2
        dtype = np.uint8 if is_image and getattr(X, "dtype", None) == np.uint8 else np.float64
        options = {"ensure_min_samples": min_rows, "ensure_all_finite": False, "allow_nd": True, "order": "C"}
        try:
            rows = validate_data(self, X, reset=reset, dtype=dtype, **options)
            if rows.ndim > 4:
                raise ValueError(f"there are {rows.ndim} dimensions, {rows.shape}.")
            if rows.dtype != np.uint8:
                with np.errstate(over="ignore"):  # what overflows becomes infinite, and is found
                    single = torch.from_numpy(rows.astype(np.float32))
                names = getattr(self, "feature_names_in_", ())
                check_finite(single, "X", allow_missing=self._allow_missing and rows.ndim == 2, columns=names)
        except (TypeError, ValueError) as error:
            if re.search(r"\bX\b|feature names", str(error)):  # it says what is wrong
                raise
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{type(self).__name__} needs a table (N, D) or images (N, C, H, W) as X: {error}") from error
        return rows

    def _learn_columns(self, rows: Array) -> None:
        """Keep what new rows of a table need, and check its columns."""
        names = getattr(self, "feature_names_in_", range(rows.shape[1]))
        missing = np.isnan(rows)
        check_table(rows, "X", names, offsets=False)
        self._offsets = find_offsets(rows)
        self._fill = None if missing.any() else rows.mean(0) - (0.0 if self._offsets is None else self._offsets)

    def _fill_unexpected(self, rows: Array) -> Array:
        """Return new rows without missing values if training had none, so that the model knows of none."""
        missing = np.isnan(rows)
        if self._fill is None or getattr(self.model_, "missing", True) or not missing.any():
            return rows
        names = getattr(self, "feature_names_in_", range(rows.shape[1]))
        columns = ", ".join(str(names[column]) for column in np.flatnonzero(missing.any(0))[:5])
        warn(
            f"Values are missing in column {columns}, and none were in training: the means of the columns there stand "
            "for them. A model that is trained with missing values leaves them out instead."
        )
        return np.where(missing, self._fill, rows)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.categorical = self._allow_missing
        tags.input_tags.sparse = True
        return tags

    def _as_data(self, X: Array, y: Array | None = None, num_classes: int | None = None) -> SemiSupervisedData:
        empty = np.isnan(X).all(0) & (X.ndim == 2)  # columns in the rows of a partial_fit, which from_arrays refuses
        if empty.any():
            X = X.copy()
            X[0, empty] = 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about classes without a label, in terms of from_arrays
            data = SemiSupervisedData.from_arrays(X, y, num_classes=num_classes, name="X", seed=self._draw_seed())
        if empty.any():
            data.x[0, torch.from_numpy(empty)] = torch.nan
        return data

    def _draw_seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    # Training.

    def _check_parameters(self) -> None:
        """Check the parameters by the annotations of the constructor, and their ranges by their names."""
        init: Any = type(self).__init__
        given = self.get_params(deep=False)
        if isinstance(given["verbose"], bool):
            given["verbose"] = int(given["verbose"])
        bind_arguments(init, inspect.signature(init), self, **given)
        if isinstance(self.random_state, Integral):
            as_count(self.random_state, "random_state", most=MAX_SEED)
        callbacks = () if self.callbacks is None else self.callbacks
        if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
            raise TypeError(f"{show('callbacks', callbacks)}; a list of functions of model and metrics is needed.")

    def _config(self, **changes: Any) -> TrainingConfig:
        settings = {
            "max_steps": self.max_steps,
            "max_minutes": None if self.max_time is None else self.max_time / 60.0,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "device": self.device,
        }
        return TrainingConfig(**(settings | changes))

    def _train(self, objective: Objective, data: SemiSupervisedData, **changes: Any) -> FitResult:
        """Train, and record what happened."""

        def call(module: Any, metrics: dict[str, Any]) -> None:
            for callback in self.callbacks or ():
                callback(module, metrics)

        config, before = self._config(**changes), copy.deepcopy(objective.module.state_dict())
        try:
            done = fit(objective, data, config, progress=bool(self.verbose), on_evaluation=call)
        except BaseException:  # also Ctrl-C
            objective.module.load_state_dict(before)  # under warm_start it is the model of an earlier fit
            raise
        again = objective.module is getattr(self, "model_", None)
        self.model_ = objective.module
        self.history_ = [*(self.history_ if again else ()), *done.metrics]
        self.n_iter_ = (self.n_iter_ if again else 0) + done.steps
        return done

    # Prediction.

    def _apply(self, function: Callable[[Any, Tensor], Tensor], X: ArrayLike) -> Array:
        """Apply a function of model and examples, for tables in double precision; some at a time if they are on disk.

        In single precision the answer for an example depends, in its last digits, on the others of the batch.
        """
        check_is_fitted(self, "model_")
        rows = (self._check_rows(part, reset=False) for part in self._split(X))
        return torch.cat([function(*self._in_double(part)).detach().cpu() for part in rows]).numpy()

    def _split(self, X: Any) -> Iterator[Any]:
        """Yield examples as they are, or in parts if they are on disk, of which tables have the columns of training."""
        names = getattr(self, "feature_names_in_", ())
        files = list_shards(as_path(X, "X")) if isinstance(X, (str, os.PathLike)) else []
        if files and files[0].suffix == ".parquet" and len(names):
            check_path(files[0], "a Parquet file", Path.is_file)
            with reading(files[0]):
                yield from (select_columns(part, names) for part in read_tables(files, _ROWS_AT_ONCE))
            return
        source = open_source(X, self.model_.event_shape, names=names)
        if source is not None and source.names and len(names):
            import pandas

            yield from (pandas.DataFrame(part, columns=names) for part in source.split_unchecked(_ROWS_AT_ONCE))
            return
        if source is None and hasattr(X, "var_names") and len(names):
            X = select_columns(read_table(X), names)
        yield from [X] if source is None else source.split_unchecked(_ROWS_AT_ONCE)

    def _in_double(self, rows: Array) -> tuple[Model, Tensor]:
        model = self.model_ if rows.ndim > 2 else copy.deepcopy(self.model_).double()
        dtype = next(model.parameters()).dtype
        return model, torch.tensor(rows, dtype=dtype) / self.model_.data_scale

    @contextmanager
    def _sampling(self, n_samples: int) -> Iterator[Any]:
        """Give the trained model, with the random state of torch seeded by ``random_state`` for the time being."""
        check_is_fitted(self, "model_")
        as_count(n_samples, "n_samples", least=1)
        with PYRO_LOCK, torch.random.fork_rng():
            torch.manual_seed(self._draw_seed())
            yield self.model_

    def _in_units_of_input(self, x: Tensor) -> Array:
        rows = x.cpu().numpy() * self.model_.data_scale
        return decode_categories(self._move_back(rows), getattr(self, "categories_", {}))

    def _move_back(self, rows: Array) -> Array:
        return rows if self._offsets is None else rows + self._offsets


@parameters
class GenerativeEstimator(DeepEstimator):
    """Base class of estimators with an M1 or M2: of mixed columns, with missing values, and a bound on log p(x)."""

    hidden_dims: Sequence[int] | None = None
    likelihood: Any = "auto"
    warm_start: bool = False

    def _sizes(self, X: Array, announce: bool = True) -> dict[str, Any]:
        """Return arguments of the model: what is chosen for the parameters left at ``None`` or ``"auto"``."""
        image, columns = X.ndim > 2, int(np.prod(X.shape[1:]))
        latent_dim = (50 if image else min(10, max(2, columns // 4))) if self.latent_dim is None else self.latent_dim
        hidden_dims = ((500,) if image else (128,)) if self.hidden_dims is None else tuple(self.hidden_dims)
        automatic = isinstance(self.likelihood, str) and self.likelihood == "auto"
        levels = {column: len(known) for column, known in self.categories_.items()}
        likelihood = choose_likelihood(X, levels) if automatic else make_likelihood(copy.deepcopy(self.likelihood))
        self.likelihood_ = describe_likelihood(likelihood, columns)
        if self.verbose and announce:
            print(f"likelihood: {self.likelihood_}")
        sizes = {"latent_dim": latent_dim, "hidden_dims": hidden_dims, "likelihood": likelihood}
        return sizes | ({"missing": True} if levels else {})  # for categories that occur in prediction only

    def impute(self, X: ArrayLike) -> Array:
        """Return a table with its missing values filled in: by their posterior mean, or most probable category.

        Observed values are returned as they are, except for categories that were not seen in training, which count as
        missing. The array is of type ``object`` if there are columns of words. If all rows of training were complete,
        the model knows of no missing values, and the means of columns are filled in, with a warning: replace some
        values in training by NaN.
        """
        rows = filled = self._check_rows(X, reset=False)
        if np.isnan(rows).any():
            model, x = self._in_double(rows)
            with PYRO_LOCK:
                filled = model.impute(x).cpu().numpy() * self.model_.data_scale  # type: ignore[operator]
        return decode_categories(self._move_back(np.where(np.isnan(rows), filled, rows)), self.categories_)

    def score_samples(self, X: ArrayLike, num_samples: int = 100) -> Array:
        """Return estimates of log p(x) in nats, shape ``(N,)``, by importance sampling.

        Each takes ``num_samples`` draws of z (per class), the same ones for every example.
        """
        options: Any = {"num_samples": num_samples, "common_draws": True}
        with PYRO_LOCK:
            return self._apply(lambda model, x: log_likelihood(model, x, **options).log_px, X)
