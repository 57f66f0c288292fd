r"""The enumerated bound without host-device synchronisation, for models and guides whose structure never changes.

For a guide :math:`q(y \mid x)\, q(z \mid x, y)` the negative bound of an example is

.. math::

    U(x) = \mathrm{KL}\bigl(q(y \mid x) \,\|\, p(y)\bigr) + \sum_y q(y \mid x)\, f(x, y), \qquad
    f(x, y) = -\mathbb E_{q(z \mid x, y)}[\log p(x \mid y, z)] + \mathrm{KL}\bigl(q(z \mid x, y) \,\|\, p(z)\bigr).

Pyro's ``TraceEnum_ELBO`` computes the same number through dice factors, which reads tensors back from the device at
every step to learn the sizes of others. Here the sum is computed as it is written, so a step can be traced once and
compiled, or captured as a CUDA graph.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceEnum_ELBO
from pyro.infer.util import is_validation_enabled
from pyro.util import check_model_guide_match
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_ssvae._arguments import check_choice, checked
from pyro_ssvae.distributions.torch_distributions import innermost
from pyro_ssvae.errors import EnumerationError, StaticELBOError
from pyro_ssvae.objectives.handlers import (
    SAMPLE_DIM,
    DrawSamples,
    EnumerateClass,
    check_unobserved,
    plate_scale,
    sample_sites,
)

Sites = dict[str, Any]
Costs = Iterator[tuple[Any, Tensor]]  # a site, and what it adds to the negative bound
# Whose closed form in Pyro is no mean of log q - log p: it leaves out the log_density of a Delta (to which a guide may
# map other draws), takes different masks for their intersection, and does not fold.
_AT_DRAWS = (dist.Delta, dist.MaskedDistribution, dist.FoldedDistribution)


@checked
class StaticEnumELBO(TraceEnum_ELBO):
    r"""``TraceEnum_ELBO`` for one class enumerated in the guide and reparameterised continuous sites.

    Values and gradients are those of stock ``TraceEnum_ELBO``; with ``analytic_kl`` they are so in expectation, with
    less noise. It drops into ``pyro.infer.SVI`` and into :class:`pyro_ssvae.SemiSupervisedELBO`.

    With ``enumeration="top-k"`` the ``top_k`` likeliest classes :math:`C` of each example are summed exactly, one other
    class u is drawn from what q(y|x) leaves, and stands for all of them:

    .. math::

        \sum_{c \in C} q(c \mid x) f(x, c) + \bigl(1 - q(C \mid x)\bigr) f(x, u), \qquad
        u \sim q(y \mid x, y \notin C),

    with KL(q(y|x)‖p(y)) exact. The gradient adds the score-function term of u, with the mean of f over C as its
    baseline; both are unbiased (Rao-Blackwellized Stochastic Gradients for Discrete Distributions, Liu, Regier,
    Tripuraneni, Jordan, McAuliffe, 2019, https://arxiv.org/abs/1810.04777, equation 8).

    With ``importance_weighted`` the k draws of z of a class give one tighter bound
    (Importance Weighted Autoencoders, Burda, Grosse, Salakhutdinov, 2015, https://arxiv.org/abs/1509.00519, equation 8)
    inside the sum over classes:

    .. math::

        f(x, y) = -\mathbb E \log \tfrac{1}{k} \sum_{i=1}^k \frac{p(x, z_i \mid y)}{q(z_i \mid x, y)},

    so U(x) falls towards :math:`\mathrm{KL}(q(y|x) \,\|\, p(y|x)) - \log p(x)` as k grows, and the classifier goes on
    learning from it. A p(y|z) is part of the weights. Where q(y|·) itself depends on draws, the mean is taken over the
    whole bound of each.

    Args:
        analytic_kl: Whether KL(q(z|·)‖p(z)) is computed in closed form where PyTorch or Pyro registers one and the
            order of sites allows it; drawn values serve elsewhere, and in importance-weighted bounds.
        enumeration: ``"exact"`` or ``"top-k"``.
        top_k: Classes summed exactly under ``"top-k"``; from the number of classes minus one up it is exact.
        require_enumeration: Whether a guide without an enumerated site is an error.
        num_particles: Draws of z, which add a dimension left of the plate.
        importance_weighted: Whether the draws weigh each other in one bound, rather than being averaged over.

    Raises:
        ValueError: For an unknown ``enumeration`` or non-positive counts.
        EnumerationError: From a call, if nothing is enumerated though it is required.
        StaticELBOError: From a call, for a model and guide that are not supported.

    Example:
        >>> import pyro_ssvae
        >>> m2 = pyro_ssvae.M2((1, 8, 8), 10, latent_dim=2, hidden_dims=(8,))
        >>> loss = StaticEnumELBO().differentiable_loss(m2.model, m2.guide, torch.rand(5, 1, 8, 8).round())
        >>> loss.shape
        torch.Size([])
    """

    def __init__(
        self,
        *,
        analytic_kl: bool = True,
        enumeration: str = "exact",
        top_k: int = 1,
        require_enumeration: bool = True,
        num_particles: int = 1,
        importance_weighted: bool = False,
    ) -> None:
        check_choice("enumeration", enumeration, ("exact", "top-k"))
        super().__init__(max_plate_nesting=1, num_particles=num_particles, strict_enumeration_warning=False)
        self.analytic_kl = analytic_kl
        self.require_enumeration = require_enumeration
        self.importance_weighted = importance_weighted and num_particles > 1
        self._top_k = top_k if enumeration == "top-k" else None
        self._dims_with_class = 3 if num_particles > 1 else 2  # of costs that depend on the class, without those of x

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return the negative bound in nats, summed over the examples that the plate stands for; differentiable."""
        classes = EnumerateClass(self._top_k, several_draws=self.num_particles > 1)
        handled = classes(guide)
        if self.num_particles > 1:
            handled = DrawSamples(self.num_particles)(handled)
        model_sites, guide_sites = _trace_sites(model, handled, *args, **kwargs)
        if classes.name is None and self.require_enumeration:
            raise EnumerationError(list(guide_sites))
        _check_reach(model_sites, guide_sites)
        # p(y|z) belongs to the weights of the draws of z, unless these weigh the whole bound of each.
        same_for_draws = self.importance_weighted and not classes.differs_by_sample
        prior = classes.prior(model_sites, same_for_draws=same_for_draws)
        costs = self._costs(model_sites, guide_sites, classes, prior)
        if not self.importance_weighted:
            return self._averaged(costs, classes, prior)
        scale = max(plate_scale(site) for site in model_sites.values())  # of the plate over examples; 1: global sites
        return self._weighted(costs, classes, prior, scale)

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """Return the negative bound as a number, without gradients."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """Return the negative bound as a number, after adding its gradients to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward(retain_graph=self.retain_graph)
        return float(loss.detach())

    def _averaged(self, costs: Costs, classes: EnumerateClass, prior: Any | None) -> Tensor:
        parts: list[Tensor] = []
        by_class: list[Tensor] = []
        for site, cost in costs:
            if cost.dim() >= self._dims_with_class:
                by_class.append(self._by_class(site, cost, classes))
            else:
                parts.append(_sample_mean(cost).sum())
        if classes.name is not None:
            parts.append(_sample_mean(classes.kl(prior)).sum())
        if by_class:
            expectation = classes.expectation(sum(by_class[1:], by_class[0]))
            parts.append(_sample_mean(expectation).sum())
        return sum(parts[1:], parts[0])

    def _weighted(self, costs: Costs, classes: EnumerateClass, prior: Any | None, scale: float) -> Tensor:
        outside: list[Tensor] = []
        inside: list[Tensor] = []
        for site, cost in costs:
            if site["cond_indep_stack"]:
                if cost.dim() >= self._dims_with_class:
                    cost = self._by_class(site, cost, classes)
                elif classes.name is not None and not classes.frames:
                    cost = cost.sum(-1, keepdim=True)  # one class for the plate: its examples are weighed together
                inside.append(cost)
            else:
                outside.append(cost.sum())  # global sites have no draws of their own
        cost = sum(inside[1:], inside[0])
        if classes.name is None:
            return sum(outside, _log_mean_exp(cost, scale).sum())
        kl = classes.kl(prior)
        if kl.shape[SAMPLE_DIM] == 1:  # the same for all draws
            return sum(outside, (kl + classes.expectation(_log_mean_exp(cost, scale))).sum())
        if classes.top_k is not None:
            raise StaticELBOError(
                f"The distribution of {classes.name!r} depends on earlier draws, so top-k enumeration inside an "
                "importance-weighted bound would be biased."
            )
        return sum(outside, _log_mean_exp(kl + classes.expectation(cost), scale).sum())

    def _costs(self, model_sites: Sites, guide_sites: Sites, classes: EnumerateClass, prior: Any | None) -> Costs:
        """Yield what each site adds to the negative bound, by example and class: a KL or a single log-probability.

        The KL of the class, which is summed over all of them, is left out: q(y|x), and p(y) at the site ``prior``.
        """
        closed = self.analytic_kl and not self.importance_weighted
        done: set[str] = set()
        for name, site in guide_sites.items():
            if name == classes.name:
                continue
            kl = _analytic_kl(name, model_sites, guide_sites) if closed else None
            if kl is not None:
                done.add(name)
            yield site, _log_prob(site) if kl is None else kl
        for name, site in model_sites.items():
            if name not in done and site is not prior:
                yield site, -_log_prob(site)

    def _by_class(self, site: Any, cost: Tensor, classes: EnumerateClass) -> Tensor:
        """Return a cost that depends on the class, summed over the plate if the class is outside of it."""
        frames = {frame.name for frame in site["cond_indep_stack"] if frame.vectorized}
        if classes.name is None or cost.dim() > self._dims_with_class or not classes.frames <= frames:
            raise StaticELBOError(
                f"Site {site['name']!r} has log-probabilities of shape {tuple(cost.shape)} in plates "
                f"{sorted(frames) or 'none'}, which do not line up with one plate and the class {classes.name!r}. "
                "Declare event dimensions with .to_event."
            )
        return cost if classes.frames else cost.sum(-1, keepdim=True)


def _sample_mean(cost: Tensor) -> Tensor:
    """Return the mean over draws of a cost ``(k, B)``, or the cost where it does not depend on them."""
    return cost if cost.dim() < -SAMPLE_DIM else cost.mean(SAMPLE_DIM)


def _log_mean_exp(cost: Tensor, scale: float) -> Tensor:
    """Return the negative bound of k draws from the costs of each, ``(..., k, B)`` to ``(..., 1, B)``.

    Costs are scaled for the examples that a minibatch stands for; the weights of draws are those of one example.
    """
    if cost.dim() < -SAMPLE_DIM:
        return cost
    log_weights = -cost / scale
    return -scale * (log_weights.logsumexp(SAMPLE_DIM, keepdim=True) - math.log(cost.shape[SAMPLE_DIM]))


def check_draws(num_particles: int, importance_weighted: bool) -> None:
    """Raise ``ValueError`` for an importance-weighted bound of a single draw."""
    if importance_weighted and num_particles == 1:
        raise ValueError(
            "importance_weighted=True weighs several draws of z, and num_particles=1 draws one. Set num_particles=5 "
            "(--num-particles 5), or leave importance_weighted out."
        )


def closed_forms(model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> dict[str, bool]:
    """Return which sites of the guide, called with ``args``, have a KL in closed form for ``analytic_kl``, by name."""
    with pyro.validation_enabled(False):
        model_sites, guide_sites = _trace_sites(model, guide, *args)
        return {name: _analytic_kl(name, model_sites, guide_sites) is not None for name in guide_sites}


def _trace_sites(
    model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
) -> tuple[Sites, Sites]:
    """Run the guide, and the model on its draws; return the sample sites of model and guide by name."""
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    check = is_validation_enabled()
    if check:
        check_model_guide_match(model_trace, guide_trace, 1)
    return sample_sites(model_trace, check=check), sample_sites(guide_trace, check=check)


def _log_prob(site: Any) -> Tensor:
    log_prob: Tensor = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(log_prob, site["scale"], site["mask"])


def _check_reach(model_sites: Sites, guide_sites: Sites) -> None:
    check_unobserved(guide_sites, model_sites)
    for name, site in guide_sites.items():
        enumerated = site["infer"].get("_enumerate_dim") is not None
        if not (site["is_observed"] or enumerated or site["fn"].has_rsample):
            raise StaticELBOError(
                f"Site {name!r} of the guide is a {type(site['fn']).__name__}, which is not reparameterised, so "
                "gradients cannot pass through its draws."
            )
    for name, site in model_sites.items():
        if not site["is_observed"] and name not in guide_sites:
            how = "enumerated in the model" if site["infer"].get("enumerate") else "in the model but not in the guide"
            raise StaticELBOError(f"Site {name!r} is {how}.")


def _analytic_kl(name: str, model_sites: Sites, guide_sites: Sites) -> Tensor | None:
    """Return KL(q‖p) of a site in closed form, or ``None`` where there is none or it would be another quantity.

    p may depend only on sites that the guide draws before this one. If it depends on a site that the guide draws later,
    p is conditioned on a value that was itself drawn given this site, so log q - log p must be evaluated at the draw.
    That is also done for the distributions in ``_AT_DRAWS``.
    """
    ours, theirs = guide_sites[name], model_sites.get(name)
    if theirs is None or ours["is_observed"] or theirs["is_observed"]:
        return None
    if not all(_same(ours[part], theirs[part]) for part in ("scale", "mask")):
        return None
    if not (_before(name, model_sites) & guide_sites.keys()) <= _before(name, guide_sites):
        return None
    if any(isinstance(innermost(site["fn"]), _AT_DRAWS) for site in (ours, theirs)):
        return _log_prob(ours) - _log_prob(theirs)
    try:
        kl: Tensor = kl_divergence(ours["fn"], theirs["fn"])
    except NotImplementedError:  # raised where there is no closed form
        return None
    return scale_and_mask(kl, ours["scale"], ours["mask"])


def _before(name: str, sites: Sites) -> set[str]:
    return set(itertools.takewhile(lambda other: other != name, sites))


def _same(a: Any, b: Any) -> bool:
    return a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b)
