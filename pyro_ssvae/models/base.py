"""What every model/guide module shares: rows, latents, the data plate, and the view for stock Pyro."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.runtime import InferDict, effectful
from torch import Tensor, nn

from pyro_ssvae._checks import as_seed
from pyro_ssvae.data import SemiSupervisedData, iterate_batches
from pyro_ssvae.distributions import Likelihood, Prior, StandardNormal, Uniform
from pyro_ssvae.distributions.factory import make_likelihood, make_prior

__all__ = [
    "ENUMERATE",
    "Model",
    "LatentVariableModel",
    "data_plate",
    "declare_parameters",
    "get_device",
    "evaluation_mode",
    "full_precision",
    "fork_random_state",
    "pyro_view",
]

ENUMERATE: InferDict = {"enumerate": "parallel", "expand": False}
"""The ``infer`` argument of a site that is summed over. ``expand=False`` keeps y at shape ``(K, 1)``, so that what
depends on y alone is computed K times and not K x batch times."""


class Model(nn.Module):
    """Base class of the models here: rows of some shape, and latents under a prior.

    A subclass makes its networks, calls :meth:`_complete`, and defines ``model`` and ``guide``.

    Args:
        event_shape: Shape of one row.
        latent_dim: Number of latents ``L``.
        prior: A name, a module that returns p(z) when called, or ``None`` for the standard normal.
        options: The constructor's other arguments, JSON-ready, for :meth:`config`.
        modules: Those arguments that may hold modules of the caller's own, by name.

    Raises:
        ValueError: For an empty event shape, a non-positive ``latent_dim`` or unknown names.
        TypeError: For a prior of the wrong type.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int,
        prior: str | nn.Module | None,
        options: dict[str, Any],
        modules: dict[str, Any],
    ) -> None:
        super().__init__()
        if not event_shape or any(size < 1 for size in event_shape):
            raise ValueError(
                f"event_shape={tuple(event_shape)!r} must hold positive sizes, for example (1, 28, 28) or (30,)."
            )
        if latent_dim < 1:
            raise ValueError(f"latent_dim={latent_dim} must be at least 1.")
        self.event_shape = torch.Size(event_shape)
        self.latent_dim = int(latent_dim)
        self.prior = make_prior(prior, latent_dim)
        self._options = {"latent_dim": latent_dim, **options}
        self._own = {name: type(part).__name__ for name, part in modules.items() if isinstance(part, nn.Module)}

    num_classes: int | None = None

    def initialise(self, x: Tensor) -> None:
        """Let the prior take starting values from training examples ``(B, *event_shape)``."""
        if isinstance(self.prior, Prior):
            self.prior.start_from(x)

    def check_examples(self, x: Tensor) -> None:
        """Raise ``ValueError`` where examples ``(B, *event_shape)`` hold values that the model cannot have drawn."""

    def check_data(self, data: SemiSupervisedData) -> None:
        """Check that the model fits a data set.

        Raises:
            ValueError: If the shape of examples, the number of classes or values do not fit.
        """
        if tuple(self.event_shape) != tuple(data.event_shape):
            raise ValueError(
                f"The model expects examples of shape {tuple(self.event_shape)}, the data has {data.event_shape}. "
                "Build the model with event_shape=data.event_shape."
            )
        if self.num_classes is not None and data.num_classes is None:
            raise ValueError(
                f"The model has {self.num_classes} classes, and the data no labels. Give labels, or num_classes="
                f"{self.num_classes} to cluster without any; M1, and DDGM without num_classes, need no classes."
            )
        if self.num_classes is not None and data.num_classes is not None and self.num_classes < data.num_classes:
            raise ValueError(
                f"The model has {self.num_classes} classes, the data {data.num_classes}. Build the model with "
                "num_classes=data.num_classes."
            )
        for examples in (data.x, data.x_validation, data.x_test):
            for batch in iterate_batches(examples, scale=data.scale, batch_size=4096):
                self.check_examples(batch)

    def _complete(self) -> None:
        """Let the prior see the finished model."""
        if isinstance(self.prior, Prior):
            self.prior.attach(self)

    @property
    def event_size(self) -> int:
        """Number of elements of a row."""
        return math.prod(self.event_shape)

    def _parts(self) -> dict[str, Any]:
        """Return the parts that a saved configuration can name; a standard normal goes without saying."""
        return {} if isinstance(self.prior, StandardNormal) else {"prior": self.prior}

    def config(self) -> dict[str, Any]:
        """Return what :func:`pyro_ssvae.load` needs to rebuild the model, JSON-ready."""
        parts = self._parts()
        library = {
            name: {name: part.name, **part.config()}
            for name, part in parts.items()
            if type(part).__module__.startswith("pyro_ssvae.")
        }
        own = {name: type(part).__name__ for name, part in parts.items() if name not in library}
        base = next(kind for kind in type(self).__mro__ if kind.__module__.startswith("pyro_ssvae."))
        return {
            "format": 1,
            "base": base.__name__,
            "class": type(self).__name__,
            "arguments": {"event_shape": list(self.event_shape), **self._options},
            "parts": library,
            "custom": self._own | own,
        }

    def _check_rows(self, x: Tensor) -> None:
        if x.shape[1:] != self.event_shape:
            raise ValueError(
                f"Rows must have shape {tuple(self.event_shape)}, so x must be (B, "
                f"{', '.join(map(str, self.event_shape))}); got {tuple(x.shape)}."
            )
        if not x.is_floating_point():
            raise TypeError(
                f"Rows must be floating point, scaled as in training; got {x.dtype}. Give x.float() / data.scale, "
                "where the scale is 255 for 8-bit pixels."
            )


class LatentVariableModel(Model):
    """Base class of models whose rows follow a likelihood given latents, and whose latents are inferred.

    Args:
        event_shape: Shape of one row.
        latent_dim: Number of latents ``L``.
        likelihood: A name or a :class:`~pyro_ssvae.distributions.Likelihood`.
        prior: A name, a module that returns p(z) when called, or ``None`` for the standard normal.
        options: As for :class:`Model`.
        modules: Likewise.

    Raises:
        ValueError: For an empty event shape, a non-positive ``latent_dim`` or unknown names.
        TypeError: For a likelihood or prior of the wrong type.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int,
        likelihood: str | Likelihood,
        prior: str | nn.Module | None,
        options: dict[str, Any],
        modules: dict[str, Any],
    ) -> None:
        super().__init__(event_shape, latent_dim, prior, options, modules)
        if isinstance(self.prior, Uniform):
            raise ValueError("prior='uniform' has no density where a Gaussian guide reaches; take another prior of z.")
        self.likelihood = make_likelihood(likelihood)

    def check_examples(self, x: Tensor) -> None:
        """Raise ``ValueError`` where examples ``(B, *event_shape)`` lie outside the domain of the likelihood."""
        self.likelihood.check(x)

    def _posterior(self, params: Tensor) -> dist.TorchDistribution:
        """Return a diagonal Gaussian over z, for location and log-scale ``(..., 2 * L)``."""
        loc, log_scale = full_precision(params).chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def _observation(self, params: Tensor, batch_shape: torch.Size) -> dist.TorchDistribution:
        """Return the likelihood's distribution of rows, for the decoder's raw numbers ``(*batch_shape, P * D)``."""
        params = full_precision(params).reshape(*batch_shape, self.likelihood.num_params, *self.event_shape)
        distribution: dist.TorchDistribution = self.likelihood(params, len(self.event_shape))
        return distribution

    def _parts(self) -> dict[str, Any]:
        return {"likelihood": self.likelihood, **super()._parts()}


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


def get_device(module: nn.Module) -> torch.device:
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


@contextmanager
def fork_random_state(model: nn.Module, seed: int) -> Iterator[None]:
    """Draw by ``seed``, with the model in evaluation mode; then restore everything.

    ``torch.manual_seed`` would also reseed devices that are not restored here.
    """
    seed = as_seed(seed)
    device = get_device(model)
    cuda = [device] if device.type == "cuda" else []
    with torch.no_grad(), evaluation_mode(model), torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for found in cuda:
            with torch.cuda.device(found):
                torch.cuda.manual_seed(seed)
        yield


def pyro_view(module: nn.Module, *functions: str) -> tuple[Callable[..., Any], ...]:
    """Present functions of a module to stock ``pyro.infer.SVI``.

    ``SVI`` trains what appears as a ``param`` site, and plain modules produce none. Each view declares the module's
    parameters as such sites and then calls the module. The tensors are the module's own, and Pyro's global parameter
    store stays empty, so models cannot meet there.

    Args:
        module: A model/guide module, for example :class:`pyro_ssvae.M2`.
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
            declare_parameters(module)
            return getattr(module, name)(*args, **kwargs)

        return call

    return tuple(view(name) for name in functions or ("model", "guide"))


def declare_parameters(module: nn.Module) -> None:
    """Emit ``param`` sites whose values lead to a module's parameters, as ``pyro.param`` does without its store."""
    for name, parameter in module.named_parameters():
        alias = parameter.detach()
        # The attribute that Pyro puts on the tensors of its store, and SVI reads; torch's types know nothing of it.
        alias.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]
        effectful(type="param")(lambda *_, alias=alias, **__: alias)(name, name=name)
