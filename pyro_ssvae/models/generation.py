"""What models generate: p(x|y,z) at draws or given latents, for a subclass by its own model function."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_ssvae._warnings import warn
from pyro_ssvae.distributions.torch_distributions import mean_or_centre
from pyro_ssvae.models.base import get_device, seeded

_DRAWS = 100  # behind a mean that has no closed form
_BETWEEN = ("a", "z1")  # latents between z and x, which ``decode`` sets to their means


def mean_of(distribution: Any) -> Tensor:
    """Return the mean of a distribution; where it has none in closed form, that of 100 draws by a fixed seed."""
    try:
        mean = mean_or_centre(distribution)
    except NotImplementedError:
        cuda = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_initialized() else None
        with seeded(0, cuda):  # no draw is needed to know the device
            mean = distribution.sample((_DRAWS,)).mean(0)
    return mean


def generate_x(model: Any, num_samples: int, y: Tensor | None = None) -> tuple[Any, Tensor | None]:
    """Return p(x|y,z) at draws of z from the generative model, and the classes, each of batch shape ``(num_samples,)``.

    Without classes y ``(num_samples,)`` they are drawn too, from π; a model without classes returns ``None`` for them.
    """
    own = _run_own(model, num_samples, y, None)
    if own is not None:
        return own
    if y is None and model.num_classes is not None:
        y = torch.distributions.Categorical(model.class_prior.mean()).sample((num_samples,))
    z = model.prior().sample((num_samples,))
    return model.decode(*(() if y is None else (y,)), z), y


def decode_means(model: Any, y: Tensor | None, z: Tensor) -> Tensor:
    """Return the means of p(x|y,z), or of p(x|z) if y is ``None``, ``(..., B, *event_shape)``.

    The latents z are ``(..., B, L)``, and y has their shape without ``L``, or one that broadcasts to it.
    """
    shape = z.shape[:-1]
    classes = None if y is None else y.expand(shape).flatten()
    own = _run_own(model, shape.numel(), classes, z.flatten(0, -2))
    if own is not None:
        return mean_of(own[0]).reshape(*shape, *model.event_shape)
    return mean_of(model.decode(*(() if y is None else (y,)), z))


class _AsLearned(Messenger):
    """Draws latents of the data set, such as the shares of the classes, from the guide, and not from their priors."""

    def __init__(self, guide: Callable[..., Any], *arguments: Any) -> None:
        super().__init__()
        self._guide, self._arguments = guide, arguments
        self._nodes: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["cond_indep_stack"] or msg["is_observed"] or site_is_subsample(msg):
            return
        if not self._nodes:
            with poutine.block():
                self._nodes = dict(poutine.trace(self._guide).get_trace(*self._arguments).nodes)
        if msg["name"] in self._nodes:
            msg["value"], msg["done"] = self._nodes[msg["name"]]["value"], True


class _AtMeans(Messenger):
    """Sets latents between z and x to their means."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in _BETWEEN and not msg["is_observed"]:
            msg["value"], msg["done"] = mean_of(msg["fn"]), True


def _run_own(model: Any, num: int, y: Tensor | None, z: Tensor | None) -> tuple[Any, Tensor | None] | None:
    """Return p(x|·) and y in a run of a model function of the caller's own, with y and z given, or drawn if ``None``.

    It is ``None`` for a model function of this package, and with a warning where the sites have other names.
    """
    functions = [getattr(model, name) for name in ("model", "sample_z1") if hasattr(model, name)]
    if all(getattr(function, "__module__", "").startswith("pyro_ssvae.") for function in functions):
        return None
    arguments = () if model.num_classes is None else (y,)
    draws_y = model.num_classes is not None and y is None
    function = model.model if z is None else poutine.condition(model.model, {"z": z})
    # Its density is not computed, so that the values of x do not matter.
    x = torch.zeros(num, *model.event_shape, device=get_device(model), dtype=next(model.parameters()).dtype)
    with poutine.block(), _AtMeans(), _AsLearned(model.guide, x, *arguments):
        with poutine.trace() as tracer:
            function(x, *arguments)
    nodes: dict[str, Any] = tracer.trace.nodes
    if draws_y and "y" in nodes and _depends_on_x(function, tracer.trace, x):
        warn(
            f"p(y|x) of {type(model).__name__}.model depends on x, which is not known before it is generated; y is "
            "drawn for x = 0. Pass the classes to generate, y=..."
        )
    needed = {"x", *(["y"] if draws_y else []), *([] if z is None else ["z"])}
    if missing := needed - nodes.keys():
        warn(
            f"{type(model).__name__}.model has no site {', '.join(sorted(missing))}; examples are generated by prior() "
            "and decode(), which may differ from it. Name its sites z, y and x."
        )
        return None
    return nodes["x"]["fn"], nodes["y"]["value"] if draws_y else y


def _depends_on_x(function: Any, trace: poutine.Trace, x: Tensor) -> bool:
    """Return whether p(y|x) of a run of a model function at x = 0 is another at x = 1."""
    drawn: Any = trace.nodes["y"]
    with suppress(Exception):  # of a function that takes x for indices, say
        again: Any = poutine.trace(poutine.replay(function, trace=trace)).get_trace(x + 1.0).nodes["y"]
        return not torch.equal(*(site["fn"].log_prob(drawn["value"]) for site in (drawn, again)))
    return False
