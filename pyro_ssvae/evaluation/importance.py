"""Weights of draws from the guide, from which log p(x) and p(y|x) are estimated."""

from __future__ import annotations

import math
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_ssvae.distributions.torch_distributions import as_independent_normal
from pyro_ssvae.errors import StaticELBOError
from pyro_ssvae.objectives.handlers import SAMPLE_DIM, DrawSamples, EnumerateClass, plate_scale, sample_sites

_INSIDE = "Sample it inside `with data_plate(x, size):`, or declare its dimensions by .to_event."


class _CommonDraws(DrawSamples):
    """Draws that all examples and classes share, moved and scaled by the posterior of each."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        super()._pyro_sample(msg)
        normal = as_independent_normal(msg["fn"])
        if msg["is_observed"] or normal is None or not msg["cond_indep_stack"]:
            return
        shape = [1] * -SAMPLE_DIM + list(msg["fn"].event_shape)
        shape[0] = self._number
        msg["value"] = normal.loc + normal.scale * torch.randn(shape, dtype=normal.loc.dtype, device=normal.loc.device)


def importance_log_weights(
    module: Any, x: Tensor, num_samples: int, common_draws: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return the log weights of fresh draws, in nats, and log p(y), for ``B`` examples as the model sees them.

    These are, for ``S`` draws,

    - log p(x, z_i|y) - log q(z_i|x, y), shape ``(K, S, B)``, and log p(y) or log p(y|x), shape ``(K, B)``;
    - log p(x, y, z_i) - log q(z_i|x, y), shape ``(K, S, B)``, and ``None`` where p(y|z) depends on the draws, or y is
      masked;
    - log p(x, z_i) - log q(z_i|x), shape ``(S, B)``, and ``None`` where nothing is enumerated.

    Masked values of x are left out, and so is the density of a z that is masked in model and guide. A masked y is
    drawn from q(y|x), with no density of its own.
    """
    classes = EnumerateClass(several_draws=True)
    draws = (_CommonDraws if common_draws else DrawSamples)(num_samples)
    model_sites, guide_sites = _trace_sites(module, x, draws, classes)
    _check_densities(model_sites, guide_sites)
    total: Any = 0.0
    for sign, sites in ((1.0, model_sites), (-1.0, guide_sites)):
        for name, site in sites.items():
            if name != classes.name:
                # Of one example, whatever the plate stands for.
                total = total + sign * scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])
    if classes.name is None:
        return total.expand(num_samples, len(x)), None
    shape = len(classes.log_q), num_samples, len(x)
    site = model_sites[classes.name]
    log_py = site["fn"].log_prob(site["value"])  # (K, S or 1, B or 1)
    masked = site["mask"] is not None and site["mask"] is not True
    if masked:
        log_py = torch.where(torch.as_tensor(site["mask"], device=log_py.device), log_py, classes.log_q)
    if masked or classes.prior(model_sites, same_for_draws=True) is None:
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
    model_sites, guide_sites = (
        {name: site for name, site in sample_sites(trace).items() if name == classes.name or _is_local(site)}
        for trace in (model_trace, guide_trace)
    )
    return model_sites, guide_sites


def _is_local(site: Any) -> bool:
    """Whether a site lies in the plate over examples; ``StaticELBOError`` if its density may not be left out else."""
    name = site["name"]
    if site["cond_indep_stack"]:
        return True
    if not site["is_observed"]:
        raise StaticELBOError(
            f"The latent site {name!r} is the same for all examples, and log_likelihood draws those of each.",
            f"Condition model and guide on a value of it first: poutine.condition(model, data={{{name!r}: value}}).",
        )
    if site["fn"].batch_shape:
        raise StaticELBOError(f"Site {name!r} lies outside of the plate over the examples.", _INSIDE)
    return False


def _check_densities(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> None:
    """Raise ``ValueError`` where the weights of draws would not be those of a likelihood."""
    for owner, sites in (("model", model_sites), ("guide", guide_sites)):
        for name, site in sites.items():
            if _is_scaled(site):
                raise ValueError(
                    f"Site {name!r} of the {owner} is scaled, and a power of a density is no likelihood. Leave "
                    "poutine.scale out of model and guide for log_likelihood."
                )
    for name in model_sites.keys() & guide_sites.keys():
        ours, theirs = guide_sites[name]["mask"], model_sites[name]["mask"]
        if not (ours is theirs or _same_mask(ours, theirs)):
            raise ValueError(
                f"Site {name!r} is not masked alike in model and guide, so its two densities do not belong to one "
                "likelihood. Apply the same poutine.mask in both, or in neither."
            )


def _is_scaled(site: Any) -> bool:
    """Whether a site is scaled by more than its plate, which stands for further examples."""
    scale, of_plate = site["scale"], plate_scale(site)
    if isinstance(scale, Tensor):
        return not torch.allclose(scale, torch.full_like(scale, of_plate))
    return not math.isclose(scale, of_plate)


def _same_mask(a: Any, b: Any) -> bool:
    tensors = [mask if isinstance(mask, Tensor) else torch.tensor(mask is not False) for mask in (a, b)]
    device = next((mask.device for mask in (a, b) if isinstance(mask, Tensor)), None)
    return torch.equal(*torch.broadcast_tensors(*(tensor.to(device) for tensor in tensors)))
