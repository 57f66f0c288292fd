"""The latent map: posterior means of z in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from pyro_ssvae._checks import as_seed, to_numpy
from pyro_ssvae.models import M1, SemiSupervisedModel
from pyro_ssvae.plots.inputs import (
    as_class_names,
    as_classes,
    check_examples,
    complete_classes,
    encode_means,
)
from pyro_ssvae.plots.style import INK, add_colour_bar, class_colours, new_figure, set_title, style_axes

__all__ = ["plot_latent_map"]

_METHODS = ("auto", "pca", "tsne")
_MAX_NAMED_CLASSES = 20
_GREY = "#cccccc"  # examples of unknown class


def plot_latent_map(
    model: SemiSupervisedModel | M1,
    x: Tensor,
    y: Any,
    *,
    labelled: Any = None,
    method: str = "auto",
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> Figure:
    """Draw the means of q(z|x,y), or of q(z|x) for M1, in two dimensions, coloured by class.

    Args:
        model: The model, with ``L`` latents.
        x: Examples with shape ``(N, *event_shape)``, scaled as in training.
        y: Their classes, with shape ``(N,)``; -1 where unknown: q(z|x,y) is then taken at the predicted class, and the
            point is grey.
        labelled: Which examples were labelled in training, booleans with shape ``(N,)``; their points are ringed.
        method: ``"pca"``, ``"tsne"``, or ``"auto"``: PCA of three or more latents, fewer as they are.
        class_names: ``K`` names.
        seed: Seed of t-SNE and of the order in which points are drawn over each other.

    Raises:
        TypeError: If ``x`` is not a floating-point tensor, or ``y`` holds no numbers.
        ValueError: If the method is unknown, or arguments do not fit each other or the model.

    Example:
        >>> import torch
        >>> from pyro_ssvae import M2
        >>> m2 = M2((6,), num_classes=3, latent_dim=4, hidden_dims=(8,))
        >>> figure = plot_latent_map(m2, torch.rand(5, 6), [0, 1, 2, -1, -1])
    """
    if method not in _METHODS:
        raise ValueError(f"method={method!r} is unknown; use one of {', '.join(_METHODS)}.")
    x = check_examples(model, x)
    ringed = _as_mask(labelled, len(x))
    generator = np.random.default_rng(as_seed(seed))
    classes = as_classes(y, "y", len(x), model.num_classes, allow_unlabelled=True)
    if model.num_classes is None:
        num_classes = max(int(classes.max()) + 1, len(class_names or ()))
        given, posterior, note = None, "q(z|x)", "The classes were not used in training."
    else:
        num_classes, given, posterior = model.num_classes, complete_classes(model, x, classes), "q(z|x,y)"
        note = "z describes what the class leaves open, so the classes should overlap."
    z = encode_means(model, x, given).double().numpy()
    names = as_class_names(class_names, num_classes)
    points, axis_names, how = _project(z, method, (classes if given is None else given).numpy(), generator, seed)

    figure = new_figure(6.6, 5.2)
    axes = figure.subplots()
    colours = np.vstack([class_colours(num_classes), to_rgba(_GREY)])[classes.numpy()]  # -1 is the last one, grey
    order = generator.permutation(len(points))  # in order of class, the last one would cover the others
    (x1, x2), colours, ringed = points[order].T, colours[order], ringed[order]
    size = float(np.clip(20_000 / len(points), 5.0, 24.0))
    axes.scatter(x1[~ringed], x2[~ringed], s=size, c=colours[~ringed], alpha=0.75, linewidths=0)
    axes.scatter(x1[ringed], x2[ringed], s=34.0, c=colours[ringed], edgecolors=INK, linewidths=0.9, zorder=3)
    style_axes(axes)
    axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
    if model.latent_dim == 1 and method != "tsne":
        axes.set_yticks([])
    else:
        axes.set_aspect("equal", adjustable="datalim")  # equal distances in both directions
    _add_legend(figure, axes, names, bool((classes < 0).any()), int(ringed.sum()))
    set_title(figure, f"Latent map: mean of {posterior} of {len(x):,} examples{how}", note)
    return figure


def _as_mask(labelled: Any, num_examples: int) -> NDArray[np.bool_]:
    if labelled is None:
        return np.zeros(num_examples, bool)
    mask = to_numpy(labelled, "labelled")
    if mask.shape != (num_examples,) or not np.isin(mask, (0, 1)).all():
        raise ValueError(
            f"labelled has shape {mask.shape} and holds {np.unique(mask)[:5].tolist()}; one boolean for each of the "
            f"{num_examples} examples is needed, for example data.y >= 0."
        )
    return mask.astype(bool)


def _project(
    z: NDArray[np.float64],
    method: str,
    classes: NDArray[np.int64],
    generator: np.random.Generator,
    seed: int,
) -> tuple[NDArray[np.float64], tuple[str, str], str]:
    """Return points ``(N, 2)``, the names of their axes, and the method in words."""
    num_examples, latent_dim = z.shape
    if method == "tsne":
        from sklearn.manifold import TSNE

        if num_examples < 4:
            raise ValueError(f"t-SNE needs 4 examples, got {num_examples}; use method='pca' or more examples.")
        perplexity = min(30.0, (num_examples - 1) / 3)
        start = "pca" if min(num_examples, latent_dim) >= 2 else "random"
        tsne = TSNE(2, perplexity=perplexity, init=start, random_state=seed)
        return tsne.fit_transform(z), ("t-SNE 1", "t-SNE 2"), ", t-SNE"
    if latent_dim == 1:
        position = classes + generator.uniform(-0.35, 0.35, num_examples)
        return np.column_stack([z, position]), ("z", "class"), ""
    if latent_dim == 2 and method == "auto":
        return z, ("z[0]", "z[1]"), ""
    if num_examples < 2:
        raise ValueError("PCA needs at least 2 examples; pass more.")
    from sklearn.decomposition import PCA

    pca = PCA(2, svd_solver="full")
    with np.errstate(invalid="ignore"):  # equal examples have no variance
        points = pca.fit_transform(z)
    shares = np.nan_to_num(pca.explained_variance_ratio_)
    axis_names = (f"PC 1 ({shares[0]:.0%} of the variance)", f"PC 2 ({shares[1]:.0%})")
    return points, axis_names, f", PCA of {latent_dim} dimensions"


def _add_legend(figure: Figure, axes: Axes, names: Sequence[str], unknown: bool, num_ringed: int) -> None:
    """Name classes at the right: up to 20 by points, more by a colour bar."""
    colours = class_colours(len(names))
    point: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 6}
    many = len(names) > _MAX_NAMED_CLASSES
    handles = (
        [] if many else [Line2D([], [], color=c, label=name, **point) for name, c in zip(names, colours, strict=True)]
    )
    if unknown:
        handles.append(Line2D([], [], color=_GREY, label="unknown", **point))
    if num_ringed:
        ring: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": INK}
        handles.append(Line2D([], [], label=f"labelled ({num_ringed:,})", **point, **ring))
    if many:
        norm = BoundaryNorm(np.arange(len(names) + 1) - 0.5, len(names))
        mappable = ScalarMappable(norm, ListedColormap(colours))
        add_colour_bar(figure, mappable, axes, "class", ticks=MaxNLocator(8, integer=True))
    if handles:
        figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False, labelcolor=INK)
