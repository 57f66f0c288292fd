"""What figures are made from: checks at the door, and a model's outputs on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_ssvae._checks import as_labels
from pyro_ssvae.models import Model, SemiSupervisedModel
from pyro_ssvae.models.base import evaluation_mode

__all__ = [
    "as_class_names",
    "as_classes",
    "as_image_shape",
    "check_rows",
    "decode_means",
    "encode_means",
    "in_batches",
]

_BATCH = 1000


def in_batches(function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """Return ``function`` of equally many rows each, computed in batches, on the CPU."""
    batches = zip(*(part.split(_BATCH) for part in rows), strict=True)
    return torch.cat([function(*batch).cpu() for batch in batches])


def encode_means(model: SemiSupervisedModel, x: Tensor, y: Tensor) -> Tensor:
    """Return the means of q(z|x,y), ``(N, L)``, on the CPU, of x ``(N, *event)``, y ``(N,)``."""
    like = next(model.parameters())
    with torch.no_grad(), evaluation_mode(model):
        return in_batches(lambda x, y: model.encode(x.to(like), y.to(like.device)).mean, x, y)


def decode_means(model: SemiSupervisedModel, y: Tensor, z: Tensor) -> Tensor:
    """Return the means of p(x|y,z), ``(N, *event)``, on the CPU, of y ``(N,)``, z ``(N, L)``."""
    like = next(model.parameters())
    with torch.no_grad(), evaluation_mode(model):
        return in_batches(lambda y, z: model.decode(y.to(like.device), z.to(like)).mean, y, z)


def check_rows(model: Model, x: Any, name: str = "x") -> Tensor:
    """Return rows that the model can take.

    Raises:
        TypeError: If they are no floating-point tensor.
        ValueError: If their shape is not ``(N, *event_shape)`` with at least one row.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        given = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"{name} must be a floating-point tensor, scaled as in training; got {given}. "
            f"Convert it, for example by torch.as_tensor({name}).float() / 255 for 8-bit pixels."
        )
    event_shape = tuple(model.event_shape)
    if tuple(x.shape[1:]) != event_shape or len(x) == 0:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; the model takes rows of shape {event_shape}, so "
            f"(N, {', '.join(map(str, event_shape))}) with N of at least 1. For one row use "
            f"{name}.unsqueeze(0)."
        )
    return x.detach()


def as_classes(
    values: Any,
    name: str,
    num_rows: int,
    num_classes: int | None,
    *,
    allow_unlabelled: bool = False,
) -> Tensor:
    """Return class indices, ``(N,)``, int64, on the CPU, below ``num_classes`` if that is known.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If they are no class indices, one for each row.
    """
    y = as_labels(values, name, num_rows, allow_unlabelled=allow_unlabelled)
    if num_classes is not None and len(y) and int(y.max()) >= num_classes:
        raise ValueError(
            f"{name} holds class {int(y.max())}; there are {num_classes} classes, so 0 to "
            f"{num_classes - 1} are allowed. Hand in labels that belong to this model, or all "
            "class names."
        )
    return y


def as_class_names(class_names: Sequence[str] | None, num_classes: int) -> list[str]:
    """Return a name for each class: as given, else "0", "1", ...

    Raises:
        ValueError: If there are fewer or more names than classes.
    """
    names = [str(name) for name in (range(num_classes) if class_names is None else class_names)]
    if len(names) != num_classes:
        raise ValueError(
            f"class_names holds {len(names)} names for {num_classes} classes; give one for "
            "each class, as data.class_names does."
        )
    return names


def as_image_shape(
    event_shape: Sequence[int],
    image_shape: Sequence[int] | None = None,
) -> tuple[int, int, int]:
    """Return channels, height and width of an event that is an image.

    A flat event is never guessed to be one, whatever its length.

    Args:
        event_shape: Shape of a row: ``(1, H, W)``, ``(3, H, W)`` or ``(H, W)`` are images.
        image_shape: One of these shapes with as many elements, for rows of any shape.

    Raises:
        ValueError: If the event is no image.
    """
    event, shape = tuple(event_shape), tuple(event_shape if image_shape is None else image_shape)
    possible = len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))
    if not possible or min(shape) < 1 or math.prod(shape) != math.prod(event):
        asked = "" if image_shape is None else f" with image_shape={shape}"
        raise ValueError(
            f"Rows of shape {event}{asked} are no images: (1, H, W), (3, H, W) and (H, W) are "
            "allowed. Where rows hold pixels in another shape, hand in image_shape=(channels, "
            "height, width) with as many elements; for tables there is "
            "plot_feature_means."
        )
    channels, height, width = shape if len(shape) == 3 else (1, *shape)
    return channels, height, width
