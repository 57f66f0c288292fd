"""Pyro handlers and the enumerated ELBO behind the semi-supervised objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.infer import TraceEnum_ELBO
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

__all__ = ["EnumeratedELBO", "EnumerationError", "GlobalSites", "ScaleSites"]


class EnumerationError(RuntimeError):
    """A bound that should sum over the classes found nothing to sum over."""


class EnumeratedELBO(TraceEnum_ELBO):
    """``TraceEnum_ELBO`` over one plate that refuses to run without enumeration.

    Stock Pyro warns, and only while validation is on; a bound that silently samples y instead of summing over it
    is a different, noisier objective (https://github.com/pyro-ppl/pyro/issues/946).

    Raises:
        EnumerationError: From any of the loss functions, if no site of the guide was enumerated.
    """

    def __init__(self) -> None:
        super().__init__(max_plate_nesting=1, strict_enumeration_warning=True)

    def _get_trace(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Trace, Trace]:
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        if all(site["infer"].get("_enumerate_dim") is None for _, site in _sample_sites(guide_trace)):
            names = ", ".join(name for name, _ in _sample_sites(guide_trace)) or "none"
            raise EnumerationError(
                "The bound of the unlabelled rows sums over the classes, but the guide enumerated no site (its "
                f"sites: {names}). Mark the class in the guide: pyro.sample('y', dist.Categorical(logits=...), "
                "infer={'enumerate': 'parallel'}), or decorate the guide with config_enumerate."
            )
        return model_trace, guide_trace


def _sample_sites(trace: Trace) -> list[tuple[str, Any]]:
    return [(name, site) for name, site in trace.nodes.items() if site["type"] == "sample"]


class GlobalSites(Messenger):
    """Share random sites outside every plate (π) between passes, and score them in the first pass only.

    One instance serves one evaluation of an objective. The first pass draws the global sites from its guide and
    scores them; every later pass meets the same values with their log-probabilities masked out.
    """

    def __init__(self, score: bool = True) -> None:
        super().__init__()
        self._values: dict[str, Tensor] = {}
        self._score = score

    def next_pass(self) -> None:
        """Declare that what has been drawn so far is scored."""
        self._score = False

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["cond_indep_stack"] or msg["is_observed"] or type(msg["fn"]).__name__ == "_Subsample":
            return
        if not self._score:
            msg["mask"] = False
            if msg["name"] in self._values:
                msg["value"] = self._values[msg["name"]]

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if not msg["cond_indep_stack"] and not msg["is_observed"]:
            self._values.setdefault(msg["name"], msg["value"])


class ScaleSites(Messenger):
    """Scale the log-probabilities of named sites, in model and guide alike; it warms up the KL of z.

    Args:
        names: Sites to scale.
        scale: Factor of their log-probabilities.
    """

    def __init__(self, names: tuple[str, ...], scale: float) -> None:
        super().__init__()
        self._names = names
        self._scale = scale

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self._names:
            msg["scale"] = msg["scale"] * self._scale
