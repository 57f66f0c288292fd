"""Pyro handlers used by the bounds, and the view of a module for stock Pyro."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceEnum_ELBO
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from pyro.poutine.util import site_is_subsample
from pyro.util import check_site_shape
from torch import Tensor, nn

from pyro_ssvae.errors import EnumerationError, StaticELBOError

SAMPLE_DIM = -2
"""Dimension of several draws of continuous sites, left of the plate over examples; classes are left of both."""


class StockELBO(TraceEnum_ELBO):
    """Stock ``TraceEnum_ELBO`` over one plate that raises ``EnumerationError`` unless the guide enumerates a site.

    Stock Pyro warns, and only while validation is on; a bound that silently samples y instead of summing over it
    is a different, noisier objective (https://github.com/pyro-ppl/pyro/issues/946).
    """

    def __init__(self, *, require_enumeration: bool = True) -> None:
        super().__init__(max_plate_nesting=1, strict_enumeration_warning=require_enumeration)
        self._require = require_enumeration

    def _get_trace(self, *functions_and_arguments: Any) -> tuple[Trace, Trace]:
        model_trace, guide_trace = super()._get_trace(*functions_and_arguments)
        sites = {name: site for name, site in guide_trace.nodes.items() if site["type"] == "sample"}
        if self._require and all(site["infer"].get("_enumerate_dim") is None for site in sites.values()):
            raise EnumerationError(list(sites))
        check_unobserved(sites, model_trace.nodes)
        return model_trace, guide_trace


class EnumerateClass(Messenger):
    """Give the one enumerated site of a guide several values at once, at the leftmost batch dimension.

    One instance serves one pass. With ``top_k=None`` the values are the whole support, shape ``(K, 1)`` left of one
    plate. Else they are the ``top_k`` likeliest values of each example and one drawn among the others, shape ``(top_k +
    1, B)``. With ``several_draws`` there is a dimension for those of continuous sites (:class:`DrawSamples`). A guide
    whose enumeration the static bound does not support raises ``StaticELBOError`` while it runs.

    Attributes:
        name: Name of the site, ``None`` until it has been met; what follows is there from then on.
        frames: Names of the plates that hold the site.
        log_q: log q(y|x) of every value, shape ``(K, *plates)``, in nats.
        top_k: Number of values summed exactly; ``None`` where that is all of them.
    """

    def __init__(self, top_k: int | None = None, *, several_draws: bool = False) -> None:
        super().__init__()
        self._dim, self._top_k = -3 if several_draws else -2, top_k
        self.name: str | None = None

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        mark = msg["infer"].get("enumerate")
        if msg["is_observed"] or mark is None:
            return
        name, fn = msg["name"], msg["fn"]
        if self.name is not None:
            raise StaticELBOError(f"The guide enumerates both {self.name!r} and {name!r}; one site is possible here.")
        if mark != "parallel" or msg["infer"].get("num_samples") is not None:
            raise StaticELBOError(
                f"Site {name!r} is marked {msg['infer']}; only {{'enumerate': 'parallel'}} is possible."
            )
        if not fn.has_enumerate_support:
            raise StaticELBOError(f"Site {name!r} is to be enumerated, but {type(fn).__name__} has no finite support.")
        plates = {frame.dim for frame in msg["cond_indep_stack"] if frame.vectorized}
        sizes = {-1 - i: size for i, size in enumerate(reversed(fn.batch_shape))}
        if loose := [dim for dim in sizes if sizes[dim] > 1 and dim not in {*plates, *range(self._dim + 1, -1)}]:
            raise StaticELBOError(
                f"Site {name!r} has batch shape {tuple(fn.batch_shape)}, of which dimension {loose[0]} is no plate."
            )
        self.name = name
        self.frames = frozenset(frame.name for frame in msg["cond_indep_stack"] if frame.vectorized)
        self._scale, self._mask = msg["scale"], msg["mask"]
        msg["infer"]["_enumerate_dim"] = self._dim
        msg["value"], msg["done"] = self._values(fn), True

    def _support(self, fn: Any) -> Tensor:
        """Return all values along a dimension of their own, ``(K, 1, *event)`` left of one plate."""
        support = fn.enumerate_support(expand=False)
        values: Tensor = support.reshape(support.shape[:1] + (1,) * (-1 - self._dim) + fn.event_shape)
        # An attribute Pyro sets on tensors: Categorical.log_prob then reshapes its logits instead of gathering them.
        if hasattr(support, "_pyro_categorical_support"):
            values._pyro_categorical_support = support._pyro_categorical_support  # type: ignore[attr-defined]
        return values

    def _values(self, fn: Any) -> Tensor:
        support = self._support(fn)
        self.log_q = fn.log_prob(support)  # (K, *plates)
        num_classes = self.log_q.shape[0]
        self.top_k = None if self._top_k is None or self._top_k >= num_classes - 1 else self._top_k
        if self.top_k is None:
            return support
        top = self.log_q.detach().topk(self.top_k, dim=0).indices
        self._others = self.log_q.exp().scatter(0, top, 0.0)  # q(y|x) of the classes that are not summed exactly
        with torch.no_grad():
            # One uniform number per example, looked up in the cumulative mass of the other classes; in float64, so that
            # rounding cannot carry it past the last of them.
            mass = self._others.cumsum(0, dtype=torch.float64)
            drawn = torch.rand_like(mass[:1]) * mass[-1:]
            other = (mass <= drawn).sum(0, keepdim=True).clamp_max(num_classes - 1)
            self._chosen = torch.cat([top, other])  # (top_k + 1, *plates)
        return support.reshape(support.shape[:1] + fn.event_shape)[self._chosen]

    def kl(self, prior: Any | None) -> Tensor:
        """Return KL(q(y|x) ‖ p(y)) per example, in nats; without p(y), a site, the negative entropy of q(y|x)."""
        cost = scale_and_mask(_finite(self.log_q), self._scale, self._mask)
        if prior is not None:
            log_p = prior["fn"].log_prob(self._support(prior["fn"]))
            cost = cost - scale_and_mask(log_p, prior["scale"], prior["mask"])
        return (self.log_q.exp() * cost).sum(0)

    def prior(self, model_sites: dict[str, Any], *, same_for_draws: bool = False) -> Any | None:
        """Return the model's site if its distribution is the same for every class, and (if asked) for every draw."""
        dim = SAMPLE_DIM if same_for_draws else self._dim
        site = model_sites.get(self.name or "")
        return site if site is not None and len(site["fn"].batch_shape) < -dim else None

    @property
    def differs_by_sample(self) -> bool:
        """Whether q(y|x) is another distribution for every draw of what the guide drew before."""
        return self.name is not None and self._dim < SAMPLE_DIM and self.log_q.shape[SAMPLE_DIM] > 1

    def expectation(self, cost: Tensor) -> Tensor:
        r"""Return :math:`\sum_y q(y|x) f(x, y)` per example, from f at the values, shape ``(values, *plates)``."""
        if self.top_k is None:
            return (self.log_q.exp() * cost).sum(0)
        k = self.top_k
        log_q = _finite(self.log_q.gather(0, self._chosen))
        q_top, cost_top, cost_other = log_q[:k].exp(), cost[:k], cost[k]
        rest = self._others.sum(0)  # 1 - q(C|x), without cancellation
        exact = (q_top * cost_top).sum(0)
        estimate = exact + rest.detach() * cost_other
        baseline = (exact / q_top.sum(0)).detach()
        score = (rest * (cost_other - baseline)).detach() * log_q[k] + baseline * rest
        return estimate + (score - score.detach())


def _finite(log_q: Tensor) -> Tensor:
    """Return log q(y|x), with a number where logits are -∞: it is multiplied by q(y|x), and 0 · ∞ would be NaN."""
    return torch.where(log_q == -torch.inf, -1e4, log_q)


def sample_sites(trace: Trace, *, check: bool = True) -> dict[str, Any]:
    """Return the sites of a model or guide by name, without those of subsampling.

    With ``check``, ``StaticELBOError`` for a site that differs between examples outside of the one plate over them.
    """
    nodes: dict[str, Any] = trace.nodes
    sites = {name: node for name, node in nodes.items() if node["type"] == "sample" and not site_is_subsample(node)}
    for name, site in sites.items() if check else ():
        fn, value = site["fn"], torch.as_tensor(site["value"])
        try:
            shape = torch.broadcast_shapes(fn.batch_shape, value.shape[: value.dim() - fn.event_dim])
            # Without ``infer``, by which Pyro would refuse a p(y|z): left of the plate any shape is possible here.
            check_site_shape({**site, "infer": {}, "log_prob": torch.empty(shape, device="meta")}, 1)
        except (ValueError, RuntimeError) as error:
            raise StaticELBOError(
                f"Site {name!r} does not lie in the one plate over the examples ({' '.join(str(error).split())}).",
                "Sample it inside `with data_plate(x, size):`, in no other plate, with event dimensions declared by "
                ".to_event.",
            ) from error
    return sites


def check_unobserved(guide_sites: Mapping[str, Any], model_sites: Mapping[str, Any]) -> None:
    """Raise ``StaticELBOError`` for a site of the model that the guide observes too."""
    for name in guide_sites.keys() & model_sites.keys():
        if guide_sites[name]["is_observed"]:
            raise StaticELBOError(
                f"Site {name!r} is observed in the guide, so its log-probability there would be subtracted from the "
                "bound.",
                f"Leave the site out of the guide where its value is given: `if {name} is None:`.",
            )


class DrawSamples(Messenger):
    """Draw ``number`` values of each continuous guide site in a plate, at dimension ``SAMPLE_DIM``.

    A site whose density is masked out is drawn once: several draws of it would be averaged inside a logarithm with
    no density to weigh them by, which is no bound (z1 in stacked training of M1M2).
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["is_observed"] or not msg["cond_indep_stack"] or msg["mask"] is False:
            return
        if msg["infer"].get("enumerate") is not None:
            return
        shape = [1] * (-SAMPLE_DIM - len(msg["fn"].batch_shape)) + list(msg["fn"].batch_shape)
        if shape[SAMPLE_DIM] == 1:
            shape[SAMPLE_DIM] = self._number
            msg["fn"] = msg["fn"].expand(torch.Size(shape))


def plate_scale(site: Any) -> float:
    """Return the number of examples that each example of a minibatch stands for."""
    return math.prod(frame.full_size / frame.size for frame in site["cond_indep_stack"] if frame.vectorized)


class PlateSizes(Messenger):
    """Records how many examples the plates of model and guide stand for, and whether there are any.

    A plate without ``size`` scales the bound of a minibatch as if that were the whole data set.
    """

    def __init__(self) -> None:
        super().__init__()
        self._plates: dict[tuple[int, int], str] = {}  # by their sizes, with the name of a site

    def _pyro_post_sample(self, msg: Any) -> None:
        for frame in msg["cond_indep_stack"] if not site_is_subsample(msg) else ():
            if frame.vectorized:
                self._plates.setdefault((frame.size, frame.full_size), msg["name"])

    def check(self, batch: int, size: int) -> None:
        """Raise ``StaticELBOError`` unless all plates let ``batch`` examples stand for ``size``."""
        advice = (
            "Sample the sites of examples inside `with data_plate(x, size):` in model and guide, and latents of the "
            "data set in no plate, with their dimensions declared by .to_event."
        )
        if not self._plates:
            raise StaticELBOError("No site of model and guide lies in a plate over the examples.", advice)
        for (held, full), name in self._plates.items():
            if held != batch:
                raise StaticELBOError(
                    f"Site {name!r} lies in a plate of {held} elements, and there are {batch} examples.", advice
                )
            if full != size:
                raise StaticELBOError(
                    f"Site {name!r} lies in a plate in which {batch} examples stand for {full}, and they stand for "
                    f"{size}.",
                    advice,
                )


class GlobalSites(Messenger):
    """Share random sites outside every plate (π) between passes, and score all sites there in the first pass only.

    One instance serves one evaluation of an objective. The first pass draws the global sites from its guide and
    scores them; every later pass meets the same values with their log-probabilities masked out, and so those of
    observed sites such as the penalty of ``pyro.factor``.
    """

    def __init__(self, score: bool = True) -> None:
        super().__init__()
        self._values: dict[str, Tensor] = {}
        self._score = score

    def next_pass(self) -> None:
        """Start the next pass, in which the global sites are no longer scored."""
        self._score = False

    def _pyro_sample(self, msg: Any) -> None:
        if msg["cond_indep_stack"] or site_is_subsample(msg) or self._score:
            return
        msg["mask"] = False
        if msg["name"] in self._values and not msg["is_observed"]:
            msg["value"] = self._values[msg["name"]]

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["cond_indep_stack"] and not msg["is_observed"]:
            self._values.setdefault(msg["name"], msg["value"])


class ScaleSite(Messenger):
    """Scale the log-probability of a named site, in model and guide alike, by a tensor; used to anneal the KL of z."""

    def __init__(self, name: str, scale: Tensor) -> None:
        super().__init__()
        self._name, self._scale = name, scale
        self._products: dict[Any, Any] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] == self._name:
            # One product for model and guide: scales are compared by identity, which needs no synchronisation.
            before = msg["scale"]
            if before not in self._products:
                self._products[before] = before * self._scale
            msg["scale"] = self._products[before]


def pyro_view(module: nn.Module, *functions: str) -> tuple[Callable[..., Any], ...]:
    """Present functions of a module to stock ``pyro.infer.SVI``.

    ``SVI`` trains ``param`` sites, and modules produce none. Each returned function declares the module's parameters as
    such sites and then calls the method. Pyro's global parameter store stays empty, so that models cannot interfere.

    Args:
        module: A module with methods ``model`` and ``guide``, for example :class:`pyro_ssvae.M2`.
        *functions: Names of its methods; ``"model"`` and ``"guide"`` when none are given.

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
            for label, parameter in module.named_parameters():  # as pyro.param does, but without its store
                alias: Any = parameter.detach()
                alias.unconstrained = weakref.ref(parameter)  # SVI reads this attribute
                effectful(type="param")(lambda *_, alias=alias, **__: alias)(label, name=label)
            return getattr(module, name)(*args, **kwargs)

        return call

    return tuple(view(name) for name in functions or ("model", "guide"))
