"""The map of the latents: where the rows lie in z."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from pyro_ssvae._checks import as_seed, to_numpy
from pyro_ssvae.models import M1, SemiSupervisedModel
from pyro_ssvae.plots.inputs import (
    as_class_names,
    as_classes,
    check_rows,
    encode_means,
    in_batches,
)
from pyro_ssvae.plots.style import FAINT, INK, class_colours, new_figure, set_title, style_axes

__all__ = ["plot_latent_map"]

_METHODS = ("auto", "pca", "tsne")
_MOST_NAMED_CLASSES = 20


def plot_latent_map(
    model: SemiSupervisedModel | M1,
    x: Tensor,
    y: Any,
    *,
    labelled: Any = None,
    method: str = "auto",
    class_names: Sequence[str] | None = None,
    note: str = "M2 asks z to hold what the class does not say: mixed colours are as intended.",
    seed: int = 0,
) -> Figure:
    """Show the means of q(z|x,y), or of M1's q(z|x), in two dimensions, coloured by class.

    Args:
        model: The model, with ``L`` latents, and ``K`` classes or none.
        x: Rows with shape ``(N, *event_shape)``, scaled as in training.
        y: Their classes, with shape ``(N,)``; -1 where not known, which q(z|x,y) takes as
            predicted and the map shows in grey.
        labelled: Which rows carried their label in training, booleans with shape ``(N,)``; they
            are ringed.
        method: ``"pca"``, ``"tsne"``, or ``"auto"``: one or two latents as they are, and PCA of
            more.
        class_names: ``K`` names.
        note: What to make of the map, written below it.
        seed: Of t-SNE and of the order in which points are drawn over each other.

    Returns:
        The map.

    Raises:
        TypeError: If ``x`` is no floating-point tensor, or ``y`` holds no numbers.
        ValueError: If the method is unknown, or arguments do not fit each other or the model.

    Example:
        >>> from pyro_ssvae import M2
        >>> m2 = M2((6,), num_classes=3, latent_dim=4, hidden_dims=(8,))
        >>> figure = plot_latent_map(m2, torch.rand(5, 6), [0, 1, 2, -1, -1])
    """
    if method not in _METHODS:
        raise ValueError(f"method={method!r} is unknown; use one of {', '.join(_METHODS)}.")
    rows = check_rows(model, x)
    ringed = _as_mask(labelled, len(rows))
    generator = np.random.default_rng(as_seed(seed))
    if isinstance(model, M1):
        classes = completed = as_classes(y, "y", len(rows), None, allow_unlabelled=True)
        num_classes, which = max(1, int(classes.max()) + 1), "q(z|x)"
        num_classes = num_classes if class_names is None else max(num_classes, len(class_names))
        z = in_batches(model.transform, rows).double().numpy()
    else:
        num_classes, which = model.num_classes, "q(z|x,y)"
        classes = as_classes(y, "y", len(rows), num_classes, allow_unlabelled=True)
        completed = torch.where(classes < 0, in_batches(model.predict, rows), classes)
        z = encode_means(model, rows, completed).double().numpy()
    names = as_class_names(class_names, num_classes)
    points, axis_names, how = _project(z, method, completed.numpy(), generator, seed)

    figure = new_figure(6.6, 5.2)
    axes = figure.subplots()
    grey = [(0.8, 0.8, 0.8, 1.0)]  # last, where class -1 finds it
    colours = np.vstack([class_colours(num_classes), grey])[classes.numpy()]
    # In shuffled order, or the last class would cover the others.
    order = generator.permutation(len(points))
    _scatter(axes, points[order], colours[order], ringed[order])
    style_axes(axes)
    axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
    if model.latent_dim == 1 and method != "tsne":
        axes.set_yticks([])
    else:
        axes.set_aspect("equal", adjustable="datalim")  # distances mean the same both ways
    _add_legend(figure, axes, names, bool((classes < 0).any()), int(ringed.sum()))
    set_title(figure, f"Latent map: mean of {which} of {len(rows):,} rows{how}", note)
    return figure


def _as_mask(labelled: Any, num_rows: int) -> NDArray[np.bool_]:
    if labelled is None:
        return np.zeros(num_rows, bool)
    mask = to_numpy(labelled, "labelled")
    if mask.shape != (num_rows,) or not np.isin(mask, (0, 1)).all():
        raise ValueError(
            f"labelled has shape {mask.shape} and holds {np.unique(mask)[:5].tolist()}; one "
            f"boolean for each of the {num_rows} rows is needed, for example data.y >= 0."
        )
    return mask.astype(bool)


def _project(
    z: NDArray[np.float64],
    method: str,
    classes: NDArray[np.int64],
    generator: np.random.Generator,
    seed: int,
) -> tuple[NDArray[np.float64], tuple[str, str], str]:
    """Return points ``(N, 2)``, the names of their axes and how they were found."""
    num_rows, latent_dim = z.shape
    if method == "tsne":
        if num_rows < 4:
            raise ValueError(f"t-SNE needs 4 rows, got {num_rows}; use method='pca' or more rows.")
        perplexity = min(30.0, (num_rows - 1) / 3)
        start = "pca" if min(num_rows, latent_dim) >= 2 else "random"
        tsne = TSNE(2, perplexity=perplexity, init=start, random_state=seed)
        return tsne.fit_transform(z), ("t-SNE 1", "t-SNE 2"), ", t-SNE"
    if latent_dim == 1:
        spread = classes + generator.uniform(-0.35, 0.35, num_rows)
        return np.column_stack([z, spread]), ("z", "class"), ""
    if latent_dim == 2 and method == "auto":
        return z, ("z[0]", "z[1]"), ""
    if num_rows < 2:
        raise ValueError("PCA needs at least 2 rows; hand in more.")
    pca = PCA(2, svd_solver="full")
    with np.errstate(invalid="ignore"):  # identical rows have no variance to share out
        points = pca.fit_transform(z)
    shares = np.nan_to_num(pca.explained_variance_ratio_)
    axis_names = (f"PC 1 ({shares[0]:.0%} of the variance)", f"PC 2 ({shares[1]:.0%})")
    return points, axis_names, f", PCA of {latent_dim} dimensions"


def _scatter(
    axes: Axes,
    points: NDArray[np.float64],
    colours: NDArray[np.float64],
    ringed: NDArray[np.bool_],
) -> None:
    size = float(np.clip(20_000 / len(points), 5.0, 24.0))
    x, y = points[~ringed].T
    axes.scatter(x, y, s=size, c=colours[~ringed], alpha=0.75, linewidths=0)
    x, y = points[ringed].T
    axes.scatter(x, y, s=34.0, c=colours[ringed], edgecolors=INK, linewidths=0.9, zorder=3)


def _add_legend(
    figure: Figure,
    axes: Axes,
    names: Sequence[str],
    unknown: bool,
    num_ringed: int,
) -> None:
    """Name classes at the right: by points, or where there are too many by a colour bar."""
    colours = class_colours(len(names))
    point: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 6}
    many = len(names) > _MOST_NAMED_CLASSES
    entries = [] if many else list(zip(names, colours, strict=True))
    handles = [Line2D([], [], color=tuple(c), label=name, **point) for name, c in entries]
    if unknown:
        handles.append(Line2D([], [], color="#cccccc", label="not known", **point))
    if num_ringed:
        ring: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": INK}
        handles.append(Line2D([], [], label=f"labelled ({num_ringed:,})", **point, **ring))
    if many:
        norm = BoundaryNorm(np.arange(len(names) + 1) - 0.5, len(names))
        bar = figure.colorbar(
            ScalarMappable(norm, ListedColormap(colours)),
            ax=axes,
            ticks=MaxNLocator(8, integer=True),
        )
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=0, labelcolor=INK)
        bar.ax.minorticks_off()
        bar.set_label("class", fontsize=8, color=FAINT)
    if handles:
        figure.legend(
            handles=handles,
            loc="outside right upper",
            fontsize=8,
            frameon=False,
            labelcolor=INK,
        )
