"""Figures of M1: interpolations and traversals of its latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_ssvae._checks import as_count
from pyro_ssvae.data import SemiSupervisedData
from pyro_ssvae.models import M1
from pyro_ssvae.plots.figures import figures, get_held_out_examples, get_image_options
from pyro_ssvae.plots.image_grid import new_image_grid, to_tiles
from pyro_ssvae.plots.images import plot_reconstructions, plot_samples
from pyro_ssvae.plots.inputs import as_image_shape, check_examples, map_batches
from pyro_ssvae.plots.latent import plot_latent_map
from pyro_ssvae.plots.style import set_title

__all__ = ["plot_interpolations", "plot_traversals"]

_MAX_PAIRS = 4


@figures.register(M1)
def _figures(
    model: M1, data: SemiSupervisedData, *, image_shape: Sequence[int] | None, max_points: int, seed: int
) -> dict[str, Callable[[], Figure]]:
    """Return the figures of M1; most of them need at least two held-out examples."""
    _, x, y = get_held_out_examples(data)
    found: dict[str, Callable[[], Figure]] = {}
    options = get_image_options(data, image_shape)
    if options is not None:
        found["samples"] = lambda: plot_samples(model, seed=seed, **options)
        if len(x) >= 2:
            pairs = min(_MAX_PAIRS, len(x) // 2)
            found |= {
                "reconstructions": lambda: plot_reconstructions(model, x, **options),
                "interpolations": lambda: plot_interpolations(model, x[:pairs], x[pairs : 2 * pairs], **options),
                "traversals": lambda: plot_traversals(model, x[:max_points], **options),
            }
    if len(x) >= 2:
        names = data.class_names or None
        found["latent_map"] = lambda: plot_latent_map(
            model, x[:max_points], y[:max_points], class_names=names, seed=seed
        )
    return found


def plot_interpolations(
    model: M1,
    start: Tensor,
    end: Tensor,
    *,
    steps: int = 10,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Draw images decoded between the latents of two images: along a straight line, and below it along an arc.

    Args:
        model: The model.
        start: Examples with shape ``(N, *event_shape)``, scaled as in training.
        end: Examples of the same shape.
        steps: Images of each interpolation, both ends included.
        image_shape: Shape of the images where examples are stored in another shape, for example ``(1, 28, 28)``.
        value_range: Values of x shown as black and as white.

    Returns:
        Two rows of images for each pair, with ``start`` at the left and ``end`` at the right.

    Raises:
        TypeError: If examples are not floating-point tensors.
        ValueError: If examples are not images, or do not fit the model or each other.

    Example:
        >>> from pyro_ssvae import M1
        >>> m1 = M1((1, 8, 8), latent_dim=2, hidden_dims=(8,))
        >>> figure = plot_interpolations(m1, torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8))
    """
    shape = as_image_shape(model.event_shape, image_shape)
    start, end = check_examples(model, start, "start"), check_examples(model, end, "end")
    rows = []
    for spherical in (False, True):
        path = model.interpolate(start, end, steps=steps, spherical=spherical).cpu()  # (steps, N, *event)
        rows.append(torch.cat([start[None].cpu(), path, end[None].cpu()]).transpose(0, 1))
    x = torch.stack(rows, 1).flatten(0, 2)  # (N * 2 * (steps + 2), *event)
    tiles = to_tiles(x, shape, value_range, steps + 2)
    figure = new_image_grid(tiles, ["straight", "arc"] * len(start), rows_per_group=2)
    set_title(figure, "Interpolations of z between two images", "left and right: given images; between: mean of p(x|z)")
    return figure


def plot_traversals(
    model: M1,
    x: Tensor,
    *,
    num_latents: int = 10,
    values: Sequence[float] = (-3.0, -2.25, -1.5, -0.75, 0.0, 0.75, 1.5, 2.25, 3.0),
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Draw how an image changes with single latents: those whose posterior means vary most over the examples.

    Args:
        model: The model.
        x: Examples with shape ``(N, *event_shape)``, scaled as in training; the first one is changed.
        num_latents: Largest number of latents shown.
        values: Values that each latent is set to.
        image_shape: Shape of the images where examples are stored in another shape, for example ``(1, 28, 28)``.
        value_range: Values of x shown as black and as white.

    Returns:
        A row of images for each latent.

    Raises:
        TypeError: If ``x`` is not a floating-point tensor.
        ValueError: If examples are not images, or do not fit the model.

    Example:
        >>> from pyro_ssvae import M1
        >>> figure = plot_traversals(M1((1, 8, 8), latent_dim=2, hidden_dims=(8,)), torch.rand(4, 1, 8, 8))
    """
    shape = as_image_shape(model.event_shape, image_shape)
    x = check_examples(model, x)
    std = map_batches(model.transform, x).std(0, correction=0)
    chosen = std.argsort(descending=True)[: as_count(num_latents, "num_latents", least=1)].tolist()
    images = torch.cat([model.traverse(x[:1], dim, values).squeeze(1).cpu() for dim in chosen])
    names = [f"z[{dim}] ({std[dim]:.2f})" for dim in chosen]
    figure = new_image_grid(
        to_tiles(images, shape, value_range, len(values)), names, [f"{value:g}" for value in values]
    )
    note = "mean of p(x|z) with one latent set to the value above; in brackets: std of its posterior mean over examples"
    set_title(figure, "Traversals of single latents", note)
    return figure
