"""Figures of tables: what sets the classes apart, in the data and in the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pyro_ssvae._checks import as_count
from pyro_ssvae.models import SemiSupervisedModel
from pyro_ssvae.models.base import fork_random_state, get_device
from pyro_ssvae.plots.inputs import as_class_names, as_classes, check_rows
from pyro_ssvae.plots.style import INK, new_figure, set_title, style_axes

__all__ = ["plot_feature_means"]

_MOST_TICKS = 40
_LIMIT = 2.0  # standard deviations at which the colours end


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
    """Show the mean of every feature in every class, of generated rows and of given ones.

    Args:
        model: The model, with ``K`` classes.
        x: Rows with shape ``(N, *event_shape)``, scaled as in training, to compare with.
        y: Their classes, with shape ``(N,)``; needed with ``x``.
        num_per_class: Rows generated per class.
        class_names: ``K`` names.
        feature_names: ``D`` names, one for each number in a row.
        seed: Of the draws of z.

    Returns:
        Class means less the mean over classes, in standard deviations of each feature (of the
        given rows, else of the generated ones). A class without a given row is left white.

    Raises:
        TypeError: If ``x`` is no floating-point tensor, or a number no integer.
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
            f"feature_names holds {len(features)} names for {num_features} features; give one "
            "for each number in a row, or none for 0, 1, ..."
        )
    if (x is None) != (y is None):
        alone = "y" if x is None else "x"
        raise ValueError(f"{alone} was given alone; hand in both x and y, or neither.")
    classes = torch.arange(model.num_classes, device=get_device(model))
    classes = classes.repeat_interleave(num_per_class)
    with fork_random_state(model, seed):
        drawn, _ = model.generate(len(classes), classes)
    tables = {"generated": (_flat(drawn), classes.cpu().numpy())}
    if x is not None:
        rows = check_rows(model, x)
        tables["given"] = (_flat(rows), as_classes(y, "y", len(rows), model.num_classes).numpy())
    means = {panel: _class_means(*table, len(names)) for panel, table in tables.items()}
    reference = "given" if x is not None else "generated"
    centre, spread = np.nanmean(means[reference], 0), tables[reference][0].std(0)
    spread[spread == 0.0] = np.inf  # a feature that never changes sets no class apart
    shown = {panel: (mean - centre) / spread for panel, mean in means.items()}
    return _heat_maps(shown, names, features)


def _flat(x: Tensor) -> NDArray[np.float64]:
    return x.detach().double().cpu().reshape(len(x), -1).numpy()


def _class_means(
    x: NDArray[np.float64],
    y: NDArray[np.int64],
    num_classes: int,
) -> NDArray[np.float64]:
    """Return means with shape ``(K, D)``, NaN for classes without a row."""
    means = np.full((num_classes, x.shape[1]), np.nan)
    for k in np.unique(y):
        means[k] = x[y == k].mean(0)
    return means


def _heat_maps(
    panels: dict[str, NDArray[np.float64]],
    names: Sequence[str],
    features: Sequence[str],
) -> Figure:
    num_classes, num_features = len(names), len(features)
    width = float(np.clip(2.2 + 0.28 * num_features, 5.0, 11.0))
    height = float(np.clip(0.24 * num_classes, 0.7, 4.0))
    figure = new_figure(width, len(panels) * (height + 0.4) + 1.2)
    panes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (panel, values) in zip(panes, panels.items(), strict=True):
        image = axes.imshow(
            values,
            cmap="RdBu_r",
            vmin=-_LIMIT,
            vmax=_LIMIT,
            aspect="auto",
            interpolation="nearest",
        )
        style_axes(axes, frame=False)
        step = -(-num_classes // 20)
        axes.set_yticks(np.arange(0, num_classes, step), list(names)[::step])
        axes.set_title(f"{panel} rows", loc="left", fontsize=9, color=INK)
    step = -(-num_features // _MOST_TICKS)
    shown = list(features)[::step]
    slant: dict[str, Any] = {"rotation": 40.0, "ha": "right", "rotation_mode": "anchor"}
    slant = slant if max(map(len, shown)) > 3 else {}
    panes[-1].set_xticks(np.arange(0, num_features, step), shown, **slant)
    panes[-1].set_xlabel("feature")
    bar = figure.colorbar(image, ax=list(panes), extend="both", shrink=0.9, aspect=25)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=0, labelcolor=INK)
    bar.set_label("standard deviations", fontsize=8, color=INK)
    set_title(figure, "Class means of every feature", "relative to the mean over classes")
    return figure
