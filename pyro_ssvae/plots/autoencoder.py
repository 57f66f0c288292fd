"""Figures of a model without classes: what M1 generates, and what its latents do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_ssvae._checks import as_count
from pyro_ssvae.models import M1
from pyro_ssvae.models.base import fork_random_state
from pyro_ssvae.plots.image_grid import new_image_grid, to_rgb
from pyro_ssvae.plots.inputs import as_image_shape, check_rows, in_batches
from pyro_ssvae.plots.style import set_title

__all__ = ["plot_autoencoding", "plot_interpolations", "plot_prior_samples", "plot_traversals"]


def plot_prior_samples(
    model: M1,
    *,
    num_rows: int = 10,
    num_columns: int = 10,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Figure:
    """Draw images from the generative model.

    Args:
        model: The model.
        num_rows: Rows of images.
        num_columns: Images in a row.
        image_shape: Shape of the image that a row of another shape holds, as ``(1, 28, 28)``.
        value_range: Values of x shown as black and as white.
        seed: Of the draws of z.

    Returns:
        Means of p(x|z), with z drawn from its prior.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If rows are no images.

    Example:
        >>> from pyro_ssvae import M1
        >>> figure = plot_prior_samples(M1((1, 8, 8), latent_dim=2, hidden_dims=(8,)), num_rows=2)
    """
    num_rows, num_columns = as_count(num_rows, "num_rows", least=1), as_count(num_columns, "num_columns", least=1)
    shape = as_image_shape(model.event_shape, image_shape)
    with fork_random_state(model, seed):
        x = model.generate(num_rows * num_columns)
    figure = new_image_grid(_tiles(x, shape, value_range, num_rows, num_columns))
    set_title(figure, "Generated images", "mean of p(x|z), z drawn from p(z)")
    return figure


def plot_autoencoding(
    model: M1,
    x: Tensor,
    *,
    num_columns: int = 10,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Show images above their reconstructions.

    Args:
        model: The model.
        x: Rows with shape ``(N, *event_shape)``, scaled as in training.
        num_columns: Images in a row; two rows of pairs are shown, as far as ``x`` goes.
        image_shape: Shape of the image that a row of another shape holds, as ``(1, 28, 28)``.
        value_range: Values of x shown as black and as white.

    Returns:
        x, and below it the mean of p(x|z) at the mean of q(z|x).

    Raises:
        TypeError: If ``x`` is no floating-point tensor.
        ValueError: If rows are no images, or do not fit the model.

    Example:
        >>> from pyro_ssvae import M1
        >>> figure = plot_autoencoding(M1((1, 8, 8), latent_dim=2, hidden_dims=(8,)), torch.rand(4, 1, 8, 8))
    """
    shape = as_image_shape(model.event_shape, image_shape)
    num_columns = min(as_count(num_columns, "num_columns", least=1), len(x))
    bands = min(2, len(x) // num_columns)
    rows = check_rows(model, x)[: bands * num_columns]
    pairs = [_tiles(part, shape, value_range, bands, num_columns) for part in (rows, model.reconstruct(rows))]
    tiles = np.stack(pairs, 1).reshape(2 * bands, *pairs[0].shape[1:])
    figure = new_image_grid(tiles, ["x", "again"] * bands)
    set_title(figure, "Images and their reconstructions", "below each: mean of p(x|z) at the mean of q(z|x)")
    return figure


def plot_interpolations(
    model: M1,
    start: Tensor,
    end: Tensor,
    *,
    steps: int = 10,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Show the way from one image to another in the space of latents: straight, and below it along the arc.

    Args:
        model: The model.
        start: Rows with shape ``(N, *event_shape)``, scaled as in training.
        end: As many.
        steps: Images of each way, both ends included.
        image_shape: Shape of the image that a row of another shape holds, as ``(1, 28, 28)``.
        value_range: Values of x shown as black and as white.

    Returns:
        Two rows of images for each pair, with the given ones at the sides.

    Raises:
        TypeError: If rows are no floating-point tensors.
        ValueError: If rows are no images, or do not fit the model or each other.

    Example:
        >>> from pyro_ssvae import M1
        >>> m1 = M1((1, 8, 8), latent_dim=2, hidden_dims=(8,))
        >>> figure = plot_interpolations(m1, torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8))
    """
    shape = as_image_shape(model.event_shape, image_shape)
    start, end = check_rows(model, start, "start"), check_rows(model, end, "end")
    ways = []
    for spherical in (False, True):
        path = model.interpolate(start, end, steps=steps, spherical=spherical).cpu()  # (steps, N, *event)
        ways.append(torch.cat([start[None], path, end[None]]).transpose(0, 1))
    x = torch.stack(ways, 1).flatten(0, 2)
    figure = new_image_grid(_tiles(x, shape, value_range, 2 * len(start), steps + 2), ["straight", "arc"] * len(start))
    set_title(figure, "From one image to another", "given images at the sides, decoded latents between them")
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
    """Show what single latents do to an image: those whose means vary most over the rows.

    Args:
        model: The model.
        x: Rows with shape ``(N, *event_shape)``, scaled as in training; the first one is changed.
        num_latents: How many latents are shown, at most.
        values: What they are set to.
        image_shape: Shape of the image that a row of another shape holds, as ``(1, 28, 28)``.
        value_range: Values of x shown as black and as white.

    Returns:
        A row of images for each latent.

    Raises:
        TypeError: If ``x`` is no floating-point tensor.
        ValueError: If rows are no images, or do not fit the model.

    Example:
        >>> from pyro_ssvae import M1
        >>> figure = plot_traversals(M1((1, 8, 8), latent_dim=2, hidden_dims=(8,)), torch.rand(4, 1, 8, 8))
    """
    shape = as_image_shape(model.event_shape, image_shape)
    rows = check_rows(model, x)
    spread = in_batches(model.transform, rows).std(0, correction=0)
    chosen = spread.argsort(descending=True)[: as_count(num_latents, "num_latents", least=1)].tolist()
    images = torch.cat([model.traverse(rows[:1], dim, values).squeeze(1).cpu() for dim in chosen])
    names = [f"z[{dim}] ({spread[dim]:.2f})" for dim in chosen]
    tiles = _tiles(images, shape, value_range, len(chosen), len(values))
    figure = new_image_grid(tiles, names, [f"{value:g}" for value in values])
    set_title(figure, "Single latents", "set to the value above; in brackets, how much their means vary over rows")
    return figure


def _tiles(
    x: Tensor, shape: tuple[int, int, int], value_range: tuple[float, float], num_rows: int, num_columns: int
) -> np.ndarray:
    return to_rgb(x, shape, value_range).reshape(num_rows, num_columns, *shape[1:], 3)
