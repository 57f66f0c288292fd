"""Examples that a user gives to a model, as the model takes them."""

from __future__ import annotations

import warnings
from typing import Any

from numpy.typing import ArrayLike
from torch import Tensor

from pyro_ssvae._arguments import as_scale
from pyro_ssvae._arrays import as_examples, check_finite, to_numpy, value_range
from pyro_ssvae.data.tables import encode_rows, read_table

__all__ = ["as_input"]

_TOLERANCE = 1e-3  # by which rounding may take a mean in [0, 1] outside of it


def as_input(model: Any, x: ArrayLike, scale: float | None = None) -> tuple[Tensor, float]:
    """Return examples as a tensor, of the model's shape, and what they are to be divided by.

    They are finite, or NaN where missing if the model allows that.

    Args:
        model: The model.
        x: A tensor, an array, a table or nested lists, with shape ``(B, *event_shape)``. Of a DataFrame, an AnnData and
            the like, columns are taken by name if the model knows the names of its columns. Of images, features are
            computed if the model is one of features.
        scale: What to divide by. ``None``: integers are divided by the scale of training, other numbers by 1; those
            that were probably meant to be divided are refused or warned about.
    """
    divisor: float | None = 1.0
    if model.feature_source is not None:
        x = model.feature_source.convert(x)
    if model.feature_names and any(hasattr(x, name) for name in ("iloc", "var_names", "to_pandas")):
        x = encode_rows(read_table(x), model.feature_names, model.categories)
    if not (isinstance(x, Tensor) and x.is_floating_point() and x.shape[1:] == model.event_shape):
        array = to_numpy(x, "x")
        divisor = model.data_scale if array.dtype.kind in "iu" else 1.0
        allowed = {"allow_empty": True, "allow_missing": model.missing}
        x = as_examples(array, "x", event_shape=model.event_shape, **allowed)
    x = x.detach()
    if x.shape[1:] != model.event_shape:
        raise ValueError(
            f"Examples must have shape {tuple(model.event_shape)}, so x must be (B, "
            f"{', '.join(map(str, model.event_shape))}); got {tuple(x.shape)}."
        )
    if x.is_meta:  # has no values
        if not next(model.parameters()).is_meta:
            raise ValueError("x is on the device 'meta', where tensors hold no values; pass it on the CPU.")
        return x, 1.0 if divisor is None else divisor
    check_finite(x, "x", allow_missing=model.missing)
    divisor = as_scale(divisor if scale is None else scale, x)
    if scale is None and len(x):
        _check_scale(model, *(end / divisor for end in value_range(x)))
    return x, divisor


def _check_scale(model: Any, low: float, high: float) -> None:
    """Raise an error, or warn, for values that were not divided by the scale of training."""
    scale = model.data_scale or 1.0
    advice = "" if scale == 1.0 else f" The model was trained on values divided by {scale:g}: give x / {scale:g}."
    likelihood = getattr(model, "likelihood", None)
    if getattr(likelihood, "unit_interval", False) and not (low >= -_TOLERANCE and high <= 1.0 + _TOLERANCE):
        raise ValueError(
            f"x spans [{low:g}, {high:g}], and the likelihood of the model, {getattr(likelihood, 'name', '')}, needs "
            f"values in [0, 1].{advice or ' Scale x as in training.'}"
        )
    if advice and model._data_range is not None:
        least, most = model._data_range
        width = max(most - least, abs(most))
        if high > most + width and least - width <= low / scale and high / scale <= most + width:
            warnings.warn(f"x goes up to {high:g}, the training examples to {most:g}.{advice}", stacklevel=5)
