"""What every model/guide pair shares: the data plate, site names, saving, and the Pyro-native view."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.poutine.runtime import InferDict, effectful
from torch import Tensor, nn

__all__ = ["ENUMERATE", "data_plate", "device_of", "evaluation_mode", "full_precision", "pyro_view"]

ENUMERATE: InferDict = {"enumerate": "parallel", "expand": False}
"""The ``infer`` argument of a site that is summed over. ``expand=False`` keeps y at shape ``(K, 1)``, so that what
depends on y alone is computed K times and not K x batch times."""


def data_plate(x: Tensor, size: int | None) -> pyro.plate:
    """Return the plate over rows, at dimension -1.

    Args:
        x: Rows of a minibatch, with shape ``(B, *event_shape)``.
        size: Number of rows ``N`` the minibatch stands for; log-probabilities are scaled by N/B. ``None`` is B.

    Returns:
        ``pyro.plate("data", size, subsample_size=B)``. The indices are handed in, because Pyro would otherwise
        draw a permutation of all N rows at every step only to drop it.
    """
    batch = x.shape[0]
    rows = torch.arange(batch, device=x.device)
    return pyro.plate("data", batch if size is None else size, subsample=rows, dim=-1)


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter."""
    return next(module.parameters()).device


def full_precision(tensor: Tensor) -> Tensor:
    """Return half-precision outputs of networks (under autocast) as float32, in which all bounds are computed."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode and restore, afterwards, the mode of every part of it."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def pyro_view(pair: nn.Module, *functions: str) -> tuple[Callable[..., Any], ...]:
    """Present functions of a pair to stock ``pyro.infer.SVI``.

    ``SVI`` trains what appears as a ``param`` site, and plain modules produce none. Each view declares the pair's
    parameters as such sites and then calls the pair. The tensors are the pair's own, and Pyro's global parameter
    store stays empty, so models cannot meet there.

    Args:
        pair: A model/guide pair, for example :class:`pyro_ssvae.M2`.
        *functions: Names of its methods; ``"model"`` and ``"guide"`` when none are given.

    Returns:
        One callable per name.

    Example:
        >>> import pyro, pyro_ssvae
        >>> from pyro.infer import SVI, TraceEnum_ELBO
        >>> m2 = pyro_ssvae.M2((1, 8, 8), 10, latent_dim=2, hidden_dims=(8,))
        >>> model, guide = pyro_ssvae.pyro_view(m2)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), TraceEnum_ELBO(max_plate_nesting=1))
        >>> loss = svi.step(torch.rand(5, 1, 8, 8).round())
    """

    def view(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            for parameter_name, parameter in pair.named_parameters():
                _declare(parameter_name, parameter)
            return getattr(pair, name)(*args, **kwargs)

        return call

    return tuple(view(name) for name in functions or ("model", "guide"))


def _declare(name: str, parameter: nn.Parameter) -> None:
    """Emit a ``param`` site whose value leads back to the parameter, as ``pyro.param`` does, but without the store."""
    alias = parameter.detach()
    # The attribute that Pyro itself puts on the tensors of its store, and SVI reads; torch's types know nothing of it.
    alias.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]
    effectful(type="param")(lambda *_, **__: alias)(name, name=name)
