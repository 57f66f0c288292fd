"""Weights of draws from the guide, from which log p(x) and p(y|x) are estimated."""

from __future__ import annotations

from typing import Any

import pyro.poutine as poutine
import torch
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_ssvae.distributions.torch_distributions import as_independent_normal
from pyro_ssvae.errors import StaticELBOError
from pyro_ssvae.objectives.handlers import DrawSamples, EnumerateClass

_SAMPLE_DIM, _CLASS_DIM = -2, -3  # left of the plate over examples, at -1


class _CommonDraws(DrawSamples):
    """Draws that all examples and classes share, moved and scaled by the posterior of each."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        super()._pyro_sample(msg)
        normal = as_independent_normal(msg["fn"])
        if msg["is_observed"] or normal is None or not msg["cond_indep_stack"]:
            return
        shape = [1] * (-self._dim) + list(msg["fn"].event_shape)
        shape[0] = self._number
        msg["value"] = normal.loc + normal.scale * torch.randn(shape, dtype=normal.loc.dtype, device=normal.loc.device)


def importance_log_weights(
    module: Any, x: Tensor, num_samples: int, common_draws: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return the log weights of fresh draws, in nats, and log p(y), for ``B`` examples as the model sees them.

    These are, for ``S`` draws,

    - log p(x, z_i|y) - log q(z_i|x, y), shape ``(K, S, B)``, and log p(y) or log p(y|x), shape ``(K, B)``;
    - log p(x, y, z_i) - log q(z_i|x, y), shape ``(K, S, B)``, and ``None`` where p(y|z) depends on the draws;
    - log p(x, z_i) - log q(z_i|x), shape ``(S, B)``, and ``None`` where nothing is enumerated.

    Raises:
        StaticELBOError: For classes that cannot be summed out.
    """
    classes = EnumerateClass(_CLASS_DIM, sample_dim=_SAMPLE_DIM)
    draws = (_CommonDraws if common_draws else DrawSamples)(num_samples, _SAMPLE_DIM)
    model_sites, guide_sites = _trace_sites(module, x, draws, classes)
    total: Any = 0.0
    for sign, sites in ((1.0, model_sites), (-1.0, guide_sites)):
        for name, site in sites.items():
            if site["type"] == "sample" and site["cond_indep_stack"] and name != classes.name:
                total = total + sign * site["fn"].log_prob(site["value"])
    if classes.name is None:
        return total.expand(num_samples, len(x)), None
    shape = len(classes.log_q), num_samples, len(x)
    site = model_sites[classes.name]
    log_py = site["fn"].log_prob(site["value"])  # (K, S or 1, B or 1)
    if classes.prior(model_sites, same_for_draws=True) is None:
        return (total + log_py).expand(shape), None
    return total.expand(shape), log_py[:, 0].expand(-1, len(x))


def _trace_sites(
    module: Any, x: Tensor, draws: DrawSamples, classes: EnumerateClass
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the guide, and the model on its draws; return the sites of model and guide by name."""
    prior = getattr(module, "class_prior", None)
    data = {"pi": prior.mean()} if prior is not None else {}
    model, guide = (poutine.condition(function, data=data) for function in (module.model, module.guide))
    try:
        guide_trace = poutine.trace(draws(classes(guide))).get_trace(x)
    except StaticELBOError as error:
        advice = "log_likelihood sums over one class; leave the mark out for other sites, which are drawn then."
        # Pyro raises a copy that has the shapes of the sites, and the advice for training, in its reason.
        first = error.__cause__ if isinstance(error.__cause__, StaticELBOError) else error
        raise StaticELBOError(first.reason, advice) from None
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x)
    if classes.name is not None and classes.name not in model_trace.nodes:
        raise StaticELBOError(
            f"The guide enumerates {classes.name!r}, and the model has no such site.",
            f"log_likelihood needs p({classes.name}): add the site to the model.",
        )
    return prune_subsample_sites(model_trace).nodes, prune_subsample_sites(guide_trace).nodes
