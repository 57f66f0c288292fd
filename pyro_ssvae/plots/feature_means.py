"""Class means of the features of tables, for models with classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pyro_ssvae.models import SemiSupervisedModel
from pyro_ssvae.models.base import fork_random_state, get_device
from pyro_ssvae.plots.inputs import as_class_names, as_classes, check_examples
from pyro_ssvae.plots.style import add_colour_bar, name_ticks, new_figure, set_title, style_axes

__all__ = ["plot_feature_means"]

_SAMPLES_PER_CLASS = 200
_COLOUR_LIMIT = 2.0  # standard deviations


def plot_feature_means(
    model: SemiSupervisedModel,
    x: Tensor | None = None,
    y: Any = None,
    *,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> Figure:
    """Draw the mean of every feature in every class, of 200 samples per class and of given data.

    Args:
        model: The model, with ``K`` classes.
        x: Data with shape ``(N, *event_shape)``, scaled as in training, to compare with.
        y: Their classes, with shape ``(N,)``; needed with ``x``. Examples of -1 (unknown) are left out.
        class_names: ``K`` names.
        seed: Seed of the draws of z.

    Returns:
        Class means minus the mean over classes, in standard deviations of each feature (of the data, without data of
        the samples). A class without data is left white.

    Raises:
        TypeError: If ``x`` is not a floating-point tensor.
        ValueError: If arguments do not fit each other or the model.

    Example:
        >>> from pyro_ssvae import M2
        >>> m2 = M2((6,), num_classes=3, latent_dim=2, hidden_dims=(8,), likelihood="gaussian")
        >>> figure = plot_feature_means(m2, torch.rand(9, 6), torch.arange(9) % 3)
    """
    names = as_class_names(class_names, model.num_classes)
    if (x is None) != (y is None):
        raise ValueError(f"{'y' if x is None else 'x'} was given alone; pass both x and y, or neither.")
    classes = torch.arange(model.num_classes, device=get_device(model)).repeat_interleave(_SAMPLES_PER_CLASS)
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

    width = float(np.clip(2.2 + 0.28 * len(std), 5.0, 11.0))
    height = float(np.clip(0.24 * len(names), 0.7, 4.0))
    figure = new_figure(width, len(means) * (height + 0.4) + 1.2)
    panels = figure.subplots(len(means), 1, sharex=True, squeeze=False)[:, 0]
    colours: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -_COLOUR_LIMIT, "vmax": _COLOUR_LIMIT}
    for axes, (title, mean) in zip(panels, means.items(), strict=True):
        image = axes.imshow((mean - centre) / std, aspect="auto", interpolation="nearest", **colours)
        style_axes(axes, title=title, frame=False)
        name_ticks(axes, names, vertical=True, most=20)
    name_ticks(panels[-1], [*map(str, range(len(std)))])
    panels[-1].set_xlabel("feature")
    add_colour_bar(figure, image, list(panels), "standard deviations", extend="both", shrink=0.9, aspect=25)
    set_title(figure, "Class means of every feature", "relative to the mean over classes")
    return figure


def _flatten(x: Tensor) -> NDArray[np.float64]:
    return x.detach().double().cpu().reshape(len(x), -1).numpy()


def _class_means(x: NDArray[np.float64], y: NDArray[np.int64], num_classes: int) -> NDArray[np.float64]:
    """Return means with shape ``(K, D)``, NaN for classes without an example."""
    means = np.full((num_classes, x.shape[1]), np.nan)
    for k in np.unique(y):
        means[k] = x[y == k].mean(0)
    return means
