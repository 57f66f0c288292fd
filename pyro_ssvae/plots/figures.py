"""The figures of a run, by the class of its model, and saving them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.preparation import rescale
from pyro_ssvae.data.storage import sample_rows
from pyro_ssvae.evaluation.image_metrics import get_held_out
from pyro_ssvae.models import Model, SemiSupervisedModel
from pyro_ssvae.models.base import fork_random_state
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.models.diagnostics import NUM_DIAGNOSED, latent_diagnostics, posterior_diagnostics
from pyro_ssvae.models.m1 import M1
from pyro_ssvae.plots.classes import plot_confusion_matrix, plot_feature_means, plot_latent_map, plot_reliability
from pyro_ssvae.plots.curves import plot_training_curves
from pyro_ssvae.plots.ddgm import plot_energies, plot_features_and_latents, plot_nearest
from pyro_ssvae.plots.images import (
    plot_analogies,
    plot_interpolations,
    plot_reconstructions,
    plot_samples,
    plot_traversals,
)
from pyro_ssvae.plots.style import ALARM, as_image_shape, decode_classes, save_figure

_NUM_INTERPOLATIONS = 4
_NUM_ANALOGIES = 6  # of a DDGM
_MAX_CLASSES_OF_ANALOGIES = 20  # of a model with classes, each a column
_MAX_LABELLED = 500
_MAX_POINTS = 2000  # held-out examples in a figure that shows many, such as the latent map
_LEAST_KL = 1.0  # nats; latents that carry less are hardly used
_LEAST_SHARE = 0.01  # of the variance of x, explained by the class
_SHOW_LATENTS = ("samples", "reconstructions", "analogies", "interpolations", "traversals", "latent_map")
_SHOW_CLASSES = ("samples", "analogies", "feature_means")

_Drawings = dict[str, Callable[[], Figure]]


@functools.singledispatch
def figures(model: nn.Module, data: SemiSupervisedData, *, seed: int = 0) -> _Drawings:
    """Return the figures of a trained model, as functions that draw them, by file name without ending.

    This is a :func:`functools.singledispatch` function of the class of the model. A class of your own inherits the
    figures of its base class, or gets others by ``@figures.register(MyModel)``; an unknown class has none. ``data`` is
    what the model was trained on.
    """
    return {}


@figures.register
def _(model: M1, data: SemiSupervisedData, *, seed: int = 0) -> _Drawings:
    _, x, y = _get_held_out_examples(data)
    options, found = _get_image_options(data), _Drawings()
    few_x, few_y, names = x[:_MAX_POINTS], y[:_MAX_POINTS], data.class_names or None
    if options is not None:
        found["samples"] = lambda: plot_samples(model, seed=seed, **options)
    if options is not None and len(x) >= 2:
        start, end = (part[:_NUM_INTERPOLATIONS] for part in x[: len(x) // 2 * 2].chunk(2))
        found["reconstructions"] = lambda: plot_reconstructions(model, x, y, seed=seed, **options)
        found["interpolations"] = lambda: plot_interpolations(model, start, end, **options)
        found["traversals"] = lambda: plot_traversals(model, few_x, **options)
    if len(x) >= 2:
        found["latent_map"] = lambda: plot_latent_map(model, few_x, few_y, class_names=names, seed=seed)
    return _add_warnings(found, model, data)


@figures.register
def _(model: SemiSupervisedModel, data: SemiSupervisedData, *, seed: int = 0) -> _Drawings:
    part, x, y = _get_held_out_examples(data)
    labelled = data.labelled_index[: _MAX_LABELLED if len(x) else None]
    x_labelled, y_labelled = rescale(data.x[labelled], data.scale), data.y[labelled]
    shared: dict[str, Any] = {"class_names": _get_class_names(model, data), "seed": seed}
    options, found = _get_image_options(data), _Drawings()
    if options is None:
        given = (x, y) if len(x) else ()
        found["feature_means"] = lambda: plot_feature_means(model, *given, **shared)
    else:
        options |= shared
        shown = (x, y) if len(x) else (x_labelled, y_labelled)
        found["samples"] = lambda: plot_samples(model, **options)
        if len(shown[0]) and model.num_classes <= _MAX_CLASSES_OF_ANALOGIES:
            found["analogies"] = lambda: plot_analogies(model, *shown, **options)
        if len(shown[0]):
            found["reconstructions"] = lambda: plot_reconstructions(model, *shown, **options)
    if len(x):
        points = torch.cat([x[:_MAX_POINTS], x_labelled]), torch.cat([y[:_MAX_POINTS], y_labelled])
        ringed = torch.arange(len(points[0])) >= len(x[:_MAX_POINTS])
        found["latent_map"] = lambda: plot_latent_map(model, *points, labelled=ringed, **shared)
    return _add_warnings(found, model, data) | _get_classifier_figures(model, x, y, shared["class_names"], part)


@figures.register
def _(model: DDGM, data: SemiSupervisedData, *, seed: int = 0) -> _Drawings:
    part, x, y = _get_held_out_examples(data)
    found: _Drawings = {"features_and_latents": lambda: plot_features_and_latents(model, seed=seed)}
    options = _get_image_options(data)
    with fork_random_state(model, seed):
        start, end = model.prior().sample((2, _NUM_INTERPOLATIONS))
    if options is not None:
        found["samples"] = lambda: plot_samples(model, seed=seed, **options)
        found["nearest"] = lambda: plot_nearest(model, rescale(sample_rows(data.x), data.scale), seed=seed, **options)
    if options is not None or data.event_shape == (2,):
        found["interpolations"] = lambda: plot_interpolations(model, start, end, **(options or {}))
    if options is not None and len(x) >= 3:
        chosen = _choose_analogies(y, seed)
        found["analogies"] = lambda: plot_analogies(model, x[chosen], y[chosen], **options)
        if len(data.event_shape) == 3:
            found["energies"] = lambda: plot_energies(model, x[:_MAX_POINTS], seed=seed)
    if model.num_classes is None:
        return found
    return found | _get_classifier_figures(model, x, y, _get_class_names(model, data), part)


def save_figures(
    model: nn.Module,
    data: SemiSupervisedData,
    metrics_path: str | os.PathLike[str] | None,
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
) -> list[Path]:
    """Save the :func:`figures` of a trained model, and its training curves, as PNG files, and return their paths.

    Figures of data show test examples, or validation examples if there are none; without either they are left out.
    There are no curves if ``metrics_path``, the ``metrics.csv`` of the run, is ``None``, missing or without a row. The
    folder is created if needed, and each file is written atomically.
    """
    event_shape = tuple(getattr(model, "event_shape", data.event_shape))
    num_classes = getattr(model, "num_classes", None)
    if event_shape != data.event_shape or (num_classes is not None and num_classes < (data.num_classes or 0)):
        raise ValueError(
            f"The model takes examples of shape {event_shape} and {num_classes or 'no'} classes, the data has "
            f"{data.event_shape} and {data.num_classes or 'no'}. Pass the data that the model was trained on."
        )
    drawings = figures(model, data, seed=seed)
    metrics = None if metrics_path is None else Path(metrics_path)
    if metrics and metrics.is_file() and metrics.read_text(encoding="utf-8").count("\n") > 1:
        drawings = drawings | {"training_curves": lambda: plot_training_curves(metrics)}
    return [save_figure(draw(), Path(folder) / f"{name}.png") for name, draw in drawings.items()]


def _get_held_out_examples(data: SemiSupervisedData) -> tuple[str, Tensor, Tensor]:
    """Return what the held-out data is called, its examples scaled as in training, and its classes."""
    part, x, y = get_held_out(data)
    return f"{part} data", rescale(x, data.scale), y


def _get_class_names(model: Model, data: SemiSupervisedData) -> list[str]:
    """Return a name for each class of the model, which may have more classes than the data."""
    return [*data.class_names, *map(str, range(len(data.class_names), model.num_classes or 0))]


def _get_image_options(data: SemiSupervisedData) -> dict[str, Any] | None:
    """Return what plot functions of images take, a range of values that holds [0, 1], or ``None`` without images."""
    try:
        as_image_shape(data.event_shape)
    except ValueError:
        return None
    low, high = rescale(torch.stack(sample_rows(data.x).aminmax()), data.scale).tolist()
    return {"value_range": (min(0.0, low), max(1.0, high))}


def _add_warnings(found: _Drawings, model: M1 | SemiSupervisedModel, data: SemiSupervisedData) -> _Drawings:
    """Return the same figures, with a red line under the title where they show latents or classes that are not used."""
    warnings = functools.cache(lambda: _find_warnings(model, data))

    def draw(name: str) -> Figure:
        figure = found[name]()
        lines = [text for text, shown in zip(warnings(), (_SHOW_LATENTS, _SHOW_CLASSES), strict=True) if name in shown]
        if any(lines):
            axes = figure.axes[0]
            text = "\n".join(filter(None, [*lines, axes.get_title(loc="left")]))
            axes.set_title(text, loc="left", fontsize=8, color=ALARM)
        return figure

    return {name: functools.partial(draw, name) for name in found}


def _find_warnings(model: Any, data: SemiSupervisedData) -> tuple[str, str]:
    """Return what to say of latents that carry nothing, and of a class without effect; empty where all is well."""
    x = _get_held_out_examples(data)[1][:NUM_DIAGNOSED]
    x = x if len(x) else rescale(data.x[:NUM_DIAGNOSED], data.scale)
    if model.num_classes is None:
        kl, share = latent_diagnostics(model, x)["kl_z"], 1.0
    else:
        kl, share = posterior_diagnostics(model, x)["kl_z"], _measure_class_effect(model, x)
    no_latents = f"The latents carry {kl:.2g} nats: z is hardly used."
    no_class = f"At the same z, the class explains {share:.1%} of the variance of x: y is hardly used."
    return no_latents if kl < _LEAST_KL else "", no_class if share < _LEAST_SHARE else ""


def _measure_class_effect(model: SemiSupervisedModel, x: Tensor) -> float:
    """Return the variance of means of p(x|y,z) over y at the same z, as a share of that of x."""
    variance = np.ma.masked_invalid(x.flatten(1).double().numpy()).var(0).filled(np.nan)
    if x.ndim > 2:
        variance[:] = variance.mean()  # pixels have one unit, and some hardly vary; columns of a table differ in units
    variance[variance == 0.0] = np.inf
    x = x[: 1 + NUM_DIAGNOSED // model.num_classes]
    means = decode_classes(model, x, model.predict(x)).flatten(2).double().numpy()
    explained = means.var(1).mean(0)
    return float(np.nanmean(explained / variance))  # over columns with a value


def _get_classifier_figures(model: Model, x: Tensor, y: Tensor, names: Sequence[str], part: str) -> _Drawings:
    known = y >= 0
    if not known.any():
        return {}
    predict = functools.cache(lambda: model.predict_proba(x[known]).cpu())
    return {
        "confusion_matrix": lambda: plot_confusion_matrix(
            y[known], predict().argmax(-1), names, title=f"Confusion matrix, {part}"
        ),
        "reliability": lambda: plot_reliability(predict(), y[known], title=f"Reliability, {part}"),
    }


def _choose_analogies(y: Tensor, seed: int) -> Tensor:
    """Return indices of examples a, b and c of each analogy, one after another.

    Where the known classes allow, a and b are of one class and c of another, so that the answer can be checked.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(values: Tensor, count: int) -> Tensor:
        return values[torch.randperm(len(values), generator=generator)[:count]]

    known = (y >= 0).nonzero().squeeze(-1)
    classes = (torch.bincount(y[known]) >= 2).nonzero().squeeze(-1)
    if len(classes) == 0 or len(y[known].unique()) < 2:
        return draw(torch.arange(len(y)), min(3 * _NUM_ANALOGIES, len(y) // 3 * 3))
    order = draw(classes, len(classes)).tolist()
    chosen = []
    for number in range(_NUM_ANALOGIES):
        same = y[known] == order[number % len(order)]
        chosen += [draw(known[same], 2), draw(known[~same], 1)]
    return torch.cat(chosen)
