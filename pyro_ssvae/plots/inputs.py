"""Validation of arguments of plot functions, and outputs of models in batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_ssvae._arguments import as_count, as_seed
from pyro_ssvae._arrays import as_labels
from pyro_ssvae.models import Model
from pyro_ssvae.models.base import evaluation_mode

__all__ = [
    "as_class_names",
    "as_classes",
    "as_image_shape",
    "check_examples",
    "complete_classes",
    "decode_means",
    "encode_means",
    "map_batches",
    "select_examples",
]

_BATCH_SIZE = 1000


def map_batches(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Return ``function(*tensors)``, computed in batches along the first dimension, on the CPU."""
    batches = zip(*(tensor.split(_BATCH_SIZE) for tensor in tensors), strict=True)
    return torch.cat([function(*batch).cpu() for batch in batches])


def encode_means(model: Any, x: Tensor, y: Tensor | None) -> Tensor:
    """Return the means of q(z|x,y), or of q(z|x) if ``y`` is ``None``, ``(N, L)``, on the CPU."""
    return _map_means(model, model.encode, x, y)


def decode_means(model: Any, y: Tensor | None, z: Tensor) -> Tensor:
    """Return the means of p(x|y,z), or of p(x|z) if ``y`` is ``None``, ``(N, *event)``, on the CPU."""
    return _map_means(model, lambda z, *y: model.decode(*y, z), z, y)


def _map_means(model: Any, function: Callable[..., Any], values: Tensor, y: Tensor | None) -> Tensor:
    like = next(model.parameters())
    given = () if y is None else (y.to(like.device),)
    with torch.no_grad(), evaluation_mode(model):
        return map_batches(lambda *args: function(*args).mean, values.to(like), *given)


def complete_classes(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """Return ``y``, shape ``(N,)``, with the predicted class in place of -1."""
    return y if bool((y >= 0).all()) else torch.where(y < 0, map_batches(model.predict, x), y)


def check_examples(model: Model, x: Any, name: str = "x") -> Tensor:
    """Return at least one example that the model can take, detached."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        given = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"{name} must be a floating-point tensor, scaled as in training; got {given}. "
            f"Convert it, for example by torch.as_tensor({name}).float() / 255 for 8-bit pixels."
        )
    event_shape = tuple(model.event_shape)
    if tuple(x.shape[1:]) != event_shape or len(x) == 0:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; the model takes examples of shape {event_shape}, so "
            f"(N, {', '.join(map(str, event_shape))}) with N of at least 1. For one example use {name}.unsqueeze(0)."
        )
    return x.detach()


def select_examples(model: Model, x: Any, y: Any, num_images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return examples and their classes, -1 where unknown or ``y`` is ``None``.

    Of more than ``num_images``, so many are drawn at random, from all classes alike, and sorted by class.
    """
    x = check_examples(model, x)
    num_images = as_count(num_images, "num_images", least=1)
    y = as_classes(torch.full((len(x),), -1) if y is None else y, "y", len(x), model.num_classes, allow_unlabelled=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(as_seed(seed)))
    if len(x) <= num_images:
        return x, y
    rank = torch.zeros_like(y)  # of an example in its class, in this order
    for k in y.unique():
        same = y[order] == k
        rank[same] = torch.arange(int(same.sum()))
    chosen = order[rank.argsort(stable=True)[:num_images]]
    chosen = chosen[y[chosen].argsort(stable=True)]
    return x[chosen], y[chosen]


def as_classes(
    values: Any, name: str, num_examples: int, num_classes: int | None, *, allow_unlabelled: bool = False
) -> Tensor:
    """Return class indices, ``(N,)``, int64, on the CPU, below ``num_classes`` if that is known."""
    y = as_labels(values, name, num_examples, allow_unlabelled=allow_unlabelled)
    if num_classes is not None and len(y) and int(y.max()) >= num_classes:
        raise ValueError(
            f"{name} holds class {int(y.max())}; there are {num_classes} classes, so 0 to {num_classes - 1} are "
            "allowed. Pass labels that belong to this model, or all class names."
        )
    return y


def as_class_names(class_names: Sequence[str] | None, num_classes: int) -> list[str]:
    """Return a name for each class: those given, else "0", "1", ..."""
    names = [str(name) for name in (range(num_classes) if class_names is None else class_names)]
    if len(names) != num_classes:
        raise ValueError(
            f"class_names holds {len(names)} names for {num_classes} classes; give one for each class, as "
            "data.class_names does."
        )
    return names


def as_image_shape(event_shape: Sequence[int], image_shape: Sequence[int] | None = None) -> tuple[int, int, int]:
    """Return channels, height and width of examples that are images: ``(1, H, W)``, ``(3, H, W)`` or ``(H, W)``.

    A flat example is never guessed to be an image, whatever its length.
    """
    event, shape = tuple(event_shape), tuple(event_shape if image_shape is None else image_shape)
    possible = len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))
    if not possible or min(shape) < 1 or math.prod(shape) != math.prod(event):
        given = "" if image_shape is None else f" with image_shape={shape}"
        raise ValueError(
            f"Examples of shape {event}{given} are not images: (1, H, W), (3, H, W) and (H, W) are allowed. Where "
            "pixels are stored in another shape, pass image_shape=(channels, height, width) with as many elements; "
            "for tables use plot_feature_means."
        )
    channels, height, width = shape if len(shape) == 3 else (1, *shape)
    return channels, height, width
