"""Figures of M2, M1+M2 and other models with classes: analogies of images, and class means of tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pyro_ssvae._checks import as_count
from pyro_ssvae.data import SemiSupervisedData, prepare
from pyro_ssvae.models import SemiSupervisedModel
from pyro_ssvae.models.base import fork_random_state, get_device
from pyro_ssvae.plots.figures import (
    figures,
    get_class_names,
    get_classifier_figures,
    get_held_out_examples,
    get_image_options,
)
from pyro_ssvae.plots.image_grid import new_image_grid, to_rgb, to_tiles
from pyro_ssvae.plots.images import plot_reconstructions, plot_samples
from pyro_ssvae.plots.inputs import (
    as_class_names,
    as_classes,
    as_image_shape,
    check_examples,
    complete_classes,
    decode_means,
    encode_means,
    select_examples,
)
from pyro_ssvae.plots.latent import plot_latent_map
from pyro_ssvae.plots.style import INK, add_colour_bar, name_ticks, new_figure, set_title, style_axes

__all__ = ["plot_analogies", "plot_feature_means"]

_MAX_CLASSES_OF_ANALOGIES = 20  # each class is a column
_MAX_LABELLED = 500
_COLOUR_LIMIT = 2.0  # standard deviations


@figures.register(SemiSupervisedModel)
def _figures(
    model: SemiSupervisedModel,
    data: SemiSupervisedData,
    *,
    image_shape: Sequence[int] | None,
    max_points: int,
    seed: int,
) -> dict[str, Callable[[], Figure]]:
    """Return the figures of a model with classes; without held-out examples images show labelled training examples."""
    names = get_class_names(model, data)
    part, x, y = get_held_out_examples(data)
    labelled = data.labelled_index[:_MAX_LABELLED] if len(x) else data.labelled_index
    x_labelled, y_labelled = prepare(data.x[labelled], scale=data.scale), data.y[labelled]
    found: dict[str, Callable[[], Figure]] = {}
    options = get_image_options(data, image_shape)
    if options is None:
        given = (x, y) if len(x) else (None, None)
        found["feature_means"] = lambda: plot_feature_means(model, *given, class_names=names, seed=seed)
    else:
        options["class_names"] = names
        found["samples"] = lambda: plot_samples(model, seed=seed, **options)
        shown_x, shown_y = (x, y) if len(x) else (x_labelled, y_labelled)
        if len(shown_x) and model.num_classes <= _MAX_CLASSES_OF_ANALOGIES:
            first = torch.tensor([int((shown_y == k).nonzero()[0]) for k in shown_y.unique()[:10]])
            found["analogies"] = lambda: plot_analogies(model, shown_x[first], shown_y[first], **options)
        if len(shown_x):
            found["reconstructions"] = lambda: plot_reconstructions(model, shown_x, shown_y, **options)
    if len(x):
        map_x = torch.cat([x[:max_points], x_labelled])
        map_y = torch.cat([y[:max_points], y_labelled])
        ringed = torch.arange(len(map_x)) >= len(x[:max_points])
        found["latent_map"] = lambda: plot_latent_map(
            model, map_x, map_y, labelled=ringed, class_names=names, seed=seed
        )
        found |= get_classifier_figures(model, x, y, names, part)
    return found


def plot_analogies(
    model: SemiSupervisedModel,
    x: Tensor,
    y: Any = None,
    *,
    num_images: int = 10,
    class_names: Sequence[str] | None = None,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Draw images in the left column and, at the right of each, an image of every class decoded from the same z.

    Args:
        model: The model, with ``K`` classes.
        x: Examples with shape ``(N, *event_shape)``, scaled as in training.
        y: Their classes, with shape ``(N,)``; predicted where not given or -1.
        num_images: Largest number of examples shown, from the first on.
        class_names: ``K`` names.
        image_shape: Shape of the images where examples are stored in another shape, for example ``(1, 28, 28)``.
        value_range: Values of x shown as black and as white.

    Returns:
        Means of p(x|y',z) for every class y', with z the mean of q(z|x,y).

    Raises:
        TypeError: If ``x`` is not a floating-point tensor, or ``y`` holds no numbers.
        ValueError: If examples are not images, or an argument does not fit the model.

    Example:
        >>> from pyro_ssvae import M2
        >>> m2 = M2((1, 8, 8), num_classes=3, latent_dim=2, hidden_dims=(8,))
        >>> figure = plot_analogies(m2, torch.rand(4, 1, 8, 8))
    """
    names = as_class_names(class_names, model.num_classes)
    shape = as_image_shape(model.event_shape, image_shape)
    x, y = select_examples(model, x, y, num_images)
    z = encode_means(model, x, complete_classes(model, x, y))
    classes = torch.arange(model.num_classes).repeat(len(x))
    decoded = decode_means(model, classes, z.repeat_interleave(model.num_classes, 0))
    given = to_rgb(x, shape, value_range)[:, None]
    tiles = np.concatenate([given, to_tiles(decoded, shape, value_range, model.num_classes)], axis=1)
    figure = new_image_grid(tiles, column_names=["given", *names], lead=1)
    which = "predicted" if bool((y < 0).all()) else "true" if bool((y >= 0).all()) else "true or predicted"
    note = f"mean of p(x|y,z) for each y; z is the mean of q(z|x,y) at the {which} class"
    set_title(figure, "Analogies: every class in the style of the given image", note)
    return figure


def plot_feature_means(
    model: SemiSupervisedModel,
    x: Tensor | None = None,
    y: Any = None,
    *,
    num_per_class: int = 200,
    class_names: Sequence[str] | None = None,
    feature_names: Sequence[str] | None = None,
    seed: int = 0,
) -> Figure:
    """Draw the mean of every feature in every class, of generated samples and of given data.

    Args:
        model: The model, with ``K`` classes.
        x: Data with shape ``(N, *event_shape)``, scaled as in training, to compare with.
        y: Their classes, with shape ``(N,)``; needed with ``x``. Examples of -1 (unknown) are left out.
        num_per_class: Samples generated per class.
        class_names: ``K`` names.
        feature_names: ``D`` names, one for each element of an example.
        seed: Seed of the draws of z.

    Returns:
        Class means minus the mean over classes, in standard deviations of each feature (of the data, without data of
        the samples). A class without data is left white.

    Raises:
        TypeError: If ``x`` is not a floating-point tensor, or a number not an integer.
        ValueError: If arguments do not fit each other or the model.

    Example:
        >>> from pyro_ssvae import M2
        >>> m2 = M2((6,), num_classes=3, latent_dim=2, hidden_dims=(8,), likelihood="gaussian")
        >>> figure = plot_feature_means(m2, torch.rand(9, 6), torch.arange(9) % 3)
    """
    names = as_class_names(class_names, model.num_classes)
    num_per_class = as_count(num_per_class, "num_per_class", least=1)
    num_features = math.prod(model.event_shape)
    features = [*map(str, range(num_features) if feature_names is None else feature_names)]
    if len(features) != num_features:
        raise ValueError(
            f"feature_names holds {len(features)} names for {num_features} features; give one for each element of an "
            "example, or none for 0, 1, ..."
        )
    if (x is None) != (y is None):
        raise ValueError(f"{'y' if x is None else 'x'} was given alone; pass both x and y, or neither.")
    classes = torch.arange(model.num_classes, device=get_device(model)).repeat_interleave(num_per_class)
    with fork_random_state(model, seed):
        samples, _ = model.generate(len(classes), classes)
    tables = {"samples": (_flatten(samples), classes.cpu().numpy())}
    if x is not None:
        x = check_examples(model, x)
        given = as_classes(y, "y", len(x), model.num_classes, allow_unlabelled=True).numpy()
        if (given >= 0).any():
            tables["data"] = (_flatten(x)[given >= 0], given[given >= 0])
    means = {title: _class_means(*table, len(names)) for title, table in tables.items()}
    reference = list(tables)[-1]
    centre, std = np.nanmean(means[reference], 0), tables[reference][0].std(0)
    std[std == 0.0] = np.inf  # a constant feature does not differ between classes
    return _draw_heat_maps({title: (mean - centre) / std for title, mean in means.items()}, names, features)


def _flatten(x: Tensor) -> NDArray[np.float64]:
    return x.detach().double().cpu().reshape(len(x), -1).numpy()


def _class_means(x: NDArray[np.float64], y: NDArray[np.int64], num_classes: int) -> NDArray[np.float64]:
    """Return means with shape ``(K, D)``, NaN for classes without an example."""
    means = np.full((num_classes, x.shape[1]), np.nan)
    for k in np.unique(y):
        means[k] = x[y == k].mean(0)
    return means


def _draw_heat_maps(panels: dict[str, NDArray[np.float64]], names: Sequence[str], features: Sequence[str]) -> Figure:
    """Draw class means ``(K, D)`` in panels below each other, by title."""
    width = float(np.clip(2.2 + 0.28 * len(features), 5.0, 11.0))
    height = float(np.clip(0.24 * len(names), 0.7, 4.0))
    figure = new_figure(width, len(panels) * (height + 0.4) + 1.2)
    panes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    colours: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -_COLOUR_LIMIT, "vmax": _COLOUR_LIMIT}
    for axes, (title, values) in zip(panes, panels.items(), strict=True):
        image = axes.imshow(values, aspect="auto", interpolation="nearest", **colours)
        style_axes(axes, frame=False)
        step = -(-len(names) // 20)
        axes.set_yticks(np.arange(0, len(names), step), list(names)[::step])
        axes.set_title(title, loc="left", fontsize=9, color=INK)
    name_ticks(panes[-1], features)
    panes[-1].set_xlabel("feature")
    add_colour_bar(figure, image, list(panes), "standard deviations", extend="both", shrink=0.9, aspect=25)
    set_title(figure, "Class means of every feature", "relative to the mean over classes")
    return figure
