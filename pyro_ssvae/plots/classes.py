"""Figures by class: confusion matrix, reliability diagram, means of the features of tables, latent map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, PowerNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from pyro_ssvae._arguments import as_count, as_seed
from pyro_ssvae._arrays import as_array, to_numpy
from pyro_ssvae.models import SemiSupervisedModel
from pyro_ssvae.models.base import fork_random_state, get_device
from pyro_ssvae.models.m1 import M1
from pyro_ssvae.plots import style

_MAX_NAMED_CLASSES = 20  # more have no counts in cells and a colour bar for a legend
_MAX_CLASSES = 2000  # of a confusion matrix
_SHORT_NAME = 10  # characters
_SAMPLES_PER_CLASS = 200
_COLOUR_LIMIT = 2.0  # standard deviations
_GREY = "#cccccc"  # examples of unknown class


def plot_confusion_matrix(
    y_true: Any, y_pred: Any, class_names: Sequence[str] | None = None, *, title: str = "Confusion matrix"
) -> Figure:
    """Draw how many examples of each true class (rows) are predicted as each class (columns).

    Counts are written for up to 20 classes, in cells coloured by their share of the true class in percent. The title
    is followed by the error. Without names there are as many classes as the largest
    number needs.

    Example:
        >>> figure = plot_confusion_matrix([0, 0, 1, 1], [0, 1, 1, 1], ["cat", "dog"])
        >>> figure.get_suptitle()
        'Confusion matrix: error 25.00% (1 of 4 examples)'
    """
    num_examples = as_array(y_true, "y_true").size
    given = None if class_names is None else len(class_names)
    true, pred = (
        style.as_classes(y, name, num_examples, given) for y, name in ((y_true, "y_true"), (y_pred, "y_pred"))
    )
    if num_examples == 0:
        raise ValueError("y_true is empty, so there is no error; pass at least one example.")
    num_classes = given or int(max(true.max(), pred.max())) + 1
    if num_classes > _MAX_CLASSES:
        raise ValueError(f"There are {num_classes:,} classes, and at most {_MAX_CLASSES:,} can be drawn.")
    names = style.as_class_names(class_names, num_classes)
    counts = np.bincount(true * num_classes + pred, minlength=num_classes**2).reshape(num_classes, num_classes)
    percent = 100.0 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    wrong = num_examples - int(np.trace(counts))

    side = min(8.0, 2.0 + 0.42 * num_classes)
    figure, axes = style.new_axes(side + 0.9, side)
    # The square root makes confusions of one percent visible next to a diagonal of ninety-nine.
    image = axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, 0.0, 100.0))
    style.style_axes(axes, frame=False)
    if num_classes <= _MAX_NAMED_CLASSES:
        for i, j in np.argwhere(counts):
            colour = "white" if percent[i, j] > 40.0 else style.INK
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=7.5, color=colour)
    for vertical in (False, True):
        style.name_ticks(axes, names, vertical=vertical)
    axes.set(xlabel="predicted", ylabel="true")
    ticks = [0, 1, 5, 20, 50, 100]
    style.add_colour_bar(figure, image, axes, "share of the true class", shrink=0.8, ticks=ticks, format="%d%%")
    style.set_title(figure, f"{title}: error {wrong / num_examples:.2%} ({wrong:,} of {num_examples:,} examples)")
    return figure


def plot_reliability(probabilities: Any, y: Any, *, num_bins: int = 15, title: str = "Reliability") -> Figure:
    """Draw the accuracy of a classifier against its confidence, the largest of its ``probabilities`` ``(N, K)``.

    Examples are sorted by confidence into bins of equal width. Drawn are accuracy, with its 68% interval, against mean
    confidence of each bin, above the share of examples in each bin. The title is followed by the expected calibration
    error, the mean over examples of the difference between accuracy and mean confidence of their bin. (On Calibration
    of Modern Neural Networks, Guo et al., 2017, https://arxiv.org/abs/1706.04599, equation 3.)

    Example:
        >>> plot_reliability([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]], [0, 1, 0, 0]).get_suptitle()
        'Reliability: expected calibration error 35.0%'
    """
    p = _as_probabilities(probabilities)
    true = style.as_classes(y, "y", len(p), p.shape[1]).numpy()
    num_bins = as_count(num_bins, "num_bins", least=1)
    confidence, correct = p.max(1), p.argmax(1) == true
    index = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(index, minlength=num_bins)
    full = counts > 0
    n = counts[full]
    accuracy = np.bincount(index, correct, num_bins)[full] / n
    mean_confidence = np.bincount(index, confidence, num_bins)[full] / n
    calibration_error = float((n * np.abs(accuracy - mean_confidence)).sum() / n.sum())

    figure = style.new_figure(4.6, 5.2)
    axes, share = figure.subplots(2, 1, sharex=True, height_ratios=[3.5, 1])
    axes.plot([0, 1], [0, 1], color=style.FAINT, linewidth=1.0, linestyle="--", label="calibrated")
    points: dict[str, Any] = {"color": style.ACCENT, "linestyle": "", "marker": "o", "markersize": 5, "elinewidth": 1.0}
    interval = _wilson_interval(accuracy, n)
    axes.errorbar(mean_confidence, accuracy, interval, clip_on=False, label="model, 68% interval", **points)
    style.style_axes(axes, grid=True)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), ylabel="accuracy")
    axes.legend(loc="best", fontsize=8, frameon=False, labelcolor=style.INK)
    edges = np.linspace(0, 1, num_bins + 1)
    share.bar(edges[:-1], counts / len(p), np.diff(edges), align="edge", color=style.ACCENT, edgecolor="white")
    style.style_axes(share)
    share.yaxis.set_major_formatter("{x:.0%}")
    share.set(xlabel="confidence: probability of the predicted class", ylabel="share")
    note = f"{len(p):,} examples, accuracy {correct.mean():.1%}, mean confidence {confidence.mean():.1%}"
    style.set_title(figure, f"{title}: expected calibration error {calibration_error:.1%}", note)
    return figure


def _wilson_interval(p: NDArray[np.float64], n: NDArray[np.int64]) -> list[NDArray[np.float64]]:
    """Return how far the 68% Wilson interval of proportions ``p`` of ``n`` reaches below and above them."""
    centre, half = (p * n + 0.5) / (n + 1), np.sqrt(n * p * (1 - p) + 0.25) / (n + 1)
    return [p - np.minimum(centre - half, p), np.maximum(centre + half, p) - p]


def _as_probabilities(values: Any) -> NDArray[np.float64]:
    p = to_numpy(values, "probabilities").astype(np.float64)
    if p.ndim != 2 or p.shape[1] < 2 or len(p) == 0:
        raise ValueError(
            f"probabilities have shape {p.shape}; (N, K) with at least one example and two classes is needed."
        )
    if not ((p >= 0.0).all() and np.allclose(p.sum(1), 1.0, atol=1e-3)):
        raise ValueError(
            f"probabilities lie in [{p.min():g}, {p.max():g}]; they must be non-negative and sum to 1. "
            "Convert logits by .softmax(-1)."
        )
    return p


def plot_feature_means(
    model: SemiSupervisedModel,
    x: Tensor | None = None,
    y: Any = None,
    *,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> Figure:
    """Draw the mean of every feature in every class, of 200 samples per class and of given data with known classes.

    Shown are class means minus the mean over classes, in standard deviations of each feature (of the data, without
    data of the samples). A class without data is left white. Features of a table have the names of its columns; of a
    column of words each word is a feature, its mean the share of rows with that word.
    """
    if model.num_classes is None:
        raise ValueError(f"Class means need a model with classes, and this {type(model).__name__} has none.")
    names = style.as_class_names(class_names, model.num_classes)
    if (x is None) != (y is None):
        raise ValueError(f"{'y' if x is None else 'x'} was given alone; pass both x and y, or neither.")
    classes = torch.arange(model.num_classes, device=get_device(model)).repeat_interleave(_SAMPLES_PER_CLASS)
    with fork_random_state(model, seed):
        samples, _ = model.generate(len(classes), classes)
    tables = {"samples": (_flatten(samples), classes.cpu().numpy())}
    if x is not None:
        x = style.check_examples(model, x)
        given = style.as_classes(y, "y", len(x), model.num_classes, allow_unlabelled=True).numpy()
        if (given >= 0).any():
            tables["data"] = (_flatten(x)[given >= 0], given[given >= 0])
    tables = {title: (_expand_words(model, values), given) for title, (values, given) in tables.items()}
    means = {
        title: np.stack([_observed_mean(values[classes == k]) for k in range(len(names))])
        for title, (values, classes) in tables.items()
    }
    reference = list(tables)[-1]
    centre, std = _observed_mean(means[reference]), np.ma.masked_invalid(tables[reference][0]).std(0).filled(np.nan)
    std[std == 0.0] = np.inf  # a constant feature does not differ between classes

    features = _name_features(model, len(std))
    width, height = np.clip([2.2 + 0.28 * len(std), 0.24 * len(names)], [5.0, 0.7], [11.0, 4.0])
    figure = style.new_figure(float(width), float(len(means) * (height + 0.4) + 1.2 + 0.05 * max(map(len, features))))
    panels = figure.subplots(len(means), 1, sharex=True, squeeze=False)[:, 0]
    colours: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -_COLOUR_LIMIT, "vmax": _COLOUR_LIMIT}
    for axes, (title, mean) in zip(panels, means.items(), strict=True):
        image = axes.imshow((mean - centre) / std, aspect="auto", interpolation="nearest", **colours)
        style.style_axes(axes, title=title, frame=False)
        style.name_ticks(axes, names, vertical=True, most=20)
    style.name_ticks(panels[-1], features)
    panels[-1].set_xlabel("feature")
    style.add_colour_bar(figure, image, list(panels), "standard deviations", extend="both", shrink=0.9, aspect=25)
    style.set_title(figure, "Class means of every feature", "relative to the mean over classes")
    return figure


def _expand_words(model: Any, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return columns of zeros and ones, one for each word, in place of those of codes."""
    if not model.categories:
        return x
    columns: list[NDArray[np.float64]] = []
    for name, values in zip(model.feature_names, x.T * (model.data_scale or 1.0), strict=True):
        words = range(len(model.categories.get(name, ())))
        found = [np.where(np.isnan(values), np.nan, np.rint(values) == code) for code in words]
        columns += found if len(found) > 2 else [values]
    return np.stack(columns, 1)


def _name_features(model: Any, number: int) -> list[str]:
    names = []
    for name in model.feature_names or map(str, range(number)):
        words = model.categories.get(name, ())
        names += [f"{name}: {word}" for word in words] if len(words) > 2 else [name]
    return [style.escape(name) for name in names]


def _flatten(x: Tensor) -> NDArray[np.float64]:
    return x.detach().double().cpu().reshape(len(x), -1).numpy()


def _observed_mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each column over its observed values, NaN where there are none."""
    return np.ma.masked_invalid(x).mean(0).filled(np.nan)


def plot_latent_map(
    model: SemiSupervisedModel | M1,
    x: Tensor,
    y: Any = None,
    *,
    labelled: Any = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> Figure:
    """Draw the means of q(z|x,y), or of q(z|x) for M1, coloured by class; of three or more latents a PCA in the plane.

    Where y is unknown (-1, or ``None`` for all), q(z|x,y) is taken at the predicted class, and the point is grey.
    Examples that were ``labelled`` in training, booleans ``(N,)``, are ringed.
    """
    x = style.check_examples(model, x)
    ringed = _as_mask(labelled, len(x))
    generator = np.random.default_rng(as_seed(seed))
    y = torch.full((len(x),), -1) if y is None else y
    classes = shown = style.as_classes(y, "y", len(x), model.num_classes, allow_unlabelled=True)
    given, posterior, note = None, "q(z|x)", "The classes were not used in training."
    if model.num_classes is not None:
        given = shown = style.complete_classes(model, x, classes)
        posterior, note = "q(z|x,y)", "z describes what the class leaves open, so the classes should overlap."
    z = style.encode_means(model, x, given).double().numpy()
    names = style.as_class_names(class_names, model.num_classes or max(int(classes.max()) + 1, len(class_names or ())))
    points, axis_names, how = _project(z, shown.numpy(), generator)

    longest = max(map(len, names), default=0) if len(names) <= _MAX_NAMED_CLASSES else 0
    figure, axes = style.new_axes(6.6 + style.CHARACTER * max(0, longest - _SHORT_NAME), 5.2)
    colours = np.vstack([style.class_colours(len(names)), to_rgba(_GREY)])[classes.numpy()]  # -1 is the last one, grey
    order = generator.permutation(len(points))  # in order of class, the last one would cover the others
    (x1, x2), colours, ringed = points[order].T, colours[order], ringed[order]
    size = float(np.clip(20_000 / len(points), 5.0, 24.0))
    axes.scatter(x1[~ringed], x2[~ringed], s=size, c=colours[~ringed], alpha=0.75, linewidths=0)
    axes.scatter(x1[ringed], x2[ringed], s=34.0, c=colours[ringed], edgecolors=style.INK, linewidths=0.9, zorder=3)
    style.style_axes(axes)
    axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
    if model.latent_dim == 1:
        axes.set_yticks([])
    else:
        axes.set_aspect("equal", adjustable="datalim")  # equal distances in both directions
    _add_legend(figure, axes, names, bool((classes < 0).any()), int(ringed.sum()))
    style.set_title(figure, f"Latent map: mean of {posterior} of {len(x):,} examples{how}", note)
    return figure


def _as_mask(labelled: Any, num_examples: int) -> NDArray[np.bool_]:
    mask = to_numpy([False] * num_examples if labelled is None else labelled, "labelled")
    if mask.shape != (num_examples,) or not np.isin(mask, (0, 1)).all():
        raise ValueError(
            f"labelled has shape {mask.shape} and holds {np.unique(mask)[:3]}; one boolean for each of the "
            f"{num_examples} examples is needed, for example data.y >= 0."
        )
    return mask.astype(bool)


def _project(
    z: NDArray[np.float64], classes: NDArray[np.int64], generator: np.random.Generator
) -> tuple[NDArray[np.float64], tuple[str, str], str]:
    """Return points ``(N, 2)``, the names of their axes, and the method in words."""
    num_examples, latent_dim = z.shape
    if latent_dim == 1:
        shifted = classes + generator.uniform(-0.35, 0.35, num_examples)
        return np.column_stack([z, shifted]), ("z", "class"), ""
    if latent_dim == 2:
        return z, ("z[0]", "z[1]"), ""
    if num_examples < 2:
        raise ValueError("PCA needs at least 2 examples; pass more.")
    from sklearn.decomposition import PCA

    pca = PCA(2, svd_solver="full")
    with np.errstate(invalid="ignore"):  # equal examples have no variance
        points = pca.fit_transform(z)
    shares = np.nan_to_num(pca.explained_variance_ratio_)
    names = (f"PC 1 ({shares[0]:.0%} of the variance)", f"PC 2 ({shares[1]:.0%})")
    return points, names, f", PCA of {latent_dim} dimensions"


def _add_legend(figure: Figure, axes: Axes, names: Sequence[str], unknown: bool, num_ringed: int) -> None:
    """Name classes at the right: up to 20 by points, more by a colour bar."""
    colours = style.class_colours(len(names))
    point: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 6}
    handles = []
    if len(names) > _MAX_NAMED_CLASSES:
        norm = BoundaryNorm(np.arange(len(names) + 1) - 0.5, len(names))
        mappable = ScalarMappable(norm, ListedColormap(colours))
        style.add_colour_bar(figure, mappable, axes, "class", ticks=MaxNLocator(8, integer=True))
    else:
        handles = [Line2D([], [], color=c, label=name, **point) for name, c in zip(names, colours, strict=True)]
    if unknown:
        handles.append(Line2D([], [], color=_GREY, label="unknown", **point))
    if num_ringed:
        ring: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": style.INK}
        handles.append(Line2D([], [], label=f"labelled ({num_ringed:,})", **point, **ring))
    if handles:
        figure.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False, labelcolor=style.INK)
