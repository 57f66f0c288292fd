"""Figures of DDGM that are saved with a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_ssvae.data import SemiSupervisedData, prepare
from pyro_ssvae.models import DDGM
from pyro_ssvae.plots.figures import (
    figures,
    get_class_names,
    get_classifier_figures,
    get_held_out_examples,
    get_image_options,
)
from pyro_ssvae.plots.generator import plot_energies, plot_generated, plot_nearest
from pyro_ssvae.plots.relations import plot_arithmetic, plot_features_and_latents, plot_paths, plot_plane_paths

_MAX_ANALOGIES = 6


@figures.register(DDGM)
def _figures(
    model: DDGM, data: SemiSupervisedData, *, image_shape: Sequence[int] | None, max_points: int, seed: int
) -> dict[str, Callable[[], Figure]]:
    """Return the figures of an energy model of images, points in the plane or tables."""
    part, x, y = get_held_out_examples(data)
    found: dict[str, Callable[[], Figure]] = {
        "features_and_latents": lambda: plot_features_and_latents(model, seed=seed)
    }
    options = get_image_options(data, image_shape)
    if options is not None:
        options["seed"] = seed
        train = prepare(data.x, scale=data.scale)
        found |= {
            "samples": lambda: plot_generated(model, **options),
            "nearest": lambda: plot_nearest(model, train, **options),
            "paths": lambda: plot_paths(model, **options),
        }
        if len(x) >= 3:
            chosen, note = _choose_analogies(y, seed)
            found["arithmetic"] = lambda: plot_arithmetic(model, x[chosen], note=note, **options)
        if len(x) and len(data.event_shape) == 3:
            found["energies"] = lambda: plot_energies(model, x[:max_points], seed=seed)
    elif data.event_shape == (2,):
        found["paths"] = lambda: plot_plane_paths(model, seed=seed)
    if len(x) and model.num_classes is not None:
        found |= get_classifier_figures(model, x, y, get_class_names(model, data), part)
    return found


def _choose_analogies(y: Tensor, seed: int) -> tuple[Tensor, str]:
    """Return indices of examples a, b and c of each analogy, one after another, and what to expect of the answers.

    Where the known classes allow, a and b are of one class and c of another, so that the answer can be judged.
    """
    generator = torch.Generator().manual_seed(seed)
    known = (y >= 0).nonzero().squeeze(-1)
    classes = (torch.bincount(y[known]) >= 2).nonzero().squeeze(-1)
    if len(classes) == 0 or len(y[known].unique()) < 2:
        count = min(3 * _MAX_ANALOGIES, len(y) // 3 * 3)
        return torch.randperm(len(y), generator=generator)[:count], ""

    def draw(values: Tensor, count: int) -> Tensor:
        return values[torch.randperm(len(values), generator=generator)[:count]]

    order = draw(classes, len(classes)).tolist()
    chosen = []
    for number in range(_MAX_ANALOGIES):
        same = y[known] == order[number % len(order)]
        chosen += [draw(known[same], 2), draw(known[~same], 1)]
    return torch.cat(chosen), "a and b are of one class, c of another: the answer should be c's class in b's style"
