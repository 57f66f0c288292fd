r"""Class priors p(y|π)p(π): π fixed, learned by maximum a posteriori, or with a Dirichlet posterior.

Each is a small model/guide pair over the one global site ``"pi"``. The two learned ones are the two derivations
of the labelled bound in the source documents:

* :class:`MAPClassPrior`: a *point mass* on π, q(π) = δ(π - π̂). The bound gains log p(π̂); it is exact up to a
  constant (the entropy of the point mass, which does not depend on π̂).
* :class:`DirichletClassPrior`: a *Dirichlet* q(π), so the bound gains -KL(q(π) ‖ p(π)) and log p(y|π) is
  averaged over q(π).

The global term belongs to the whole data set and is scored once per objective, never once per pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ssvae._configurable import Configurable

__all__ = ["ClassPrior", "DirichletClassPrior", "FixedClassPrior", "MAPClassPrior", "make_class_prior"]


class ClassPrior(Configurable):
    """Base class of class priors.

    Attributes:
        num_classes: Number of classes ``K``.
        name: Short name that results and saved configurations carry.
    """

    name: str

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes} must be at least 2.")
        self.num_classes = num_classes

    def model(self) -> Tensor:
        """Sample site ``"pi"`` where π is random; return log π with shape ``(K,)``, in nats."""
        raise NotImplementedError(f"{type(self).__name__} must define model() -> log pi.")

    def guide(self) -> None:
        """Sample site ``"pi"`` from q(π) where π is random."""

    def mean(self) -> Tensor:
        """Return the estimate of π, with shape ``(K,)``: the fixed value, the MAP or the posterior mean."""
        raise NotImplementedError(f"{type(self).__name__} must define mean() -> pi.")

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild the prior, JSON-ready."""
        return {}


class FixedClassPrior(ClassPrior):
    """A known π: uniform, or given.

    Args:
        num_classes: Number of classes ``K``.
        probs: ``K`` positive probabilities; scaled to sum to one. Uniform when ``None``.

    Raises:
        ValueError: If ``probs`` has another length than ``K`` or a value that is not positive and finite.
    """

    name = "fixed"
    log_pi: Tensor

    def __init__(self, num_classes: int, probs: Sequence[float] | Tensor | None = None) -> None:
        super().__init__(num_classes)
        pi = torch.ones(num_classes) if probs is None else torch.as_tensor(probs, dtype=torch.float32)
        if pi.shape != (num_classes,) or not bool(((pi > 0) & pi.isfinite()).all()):
            raise ValueError(
                f"probs must hold {num_classes} positive finite numbers, one per class; got {pi.tolist()}."
            )
        self.register_buffer("log_pi", (pi / pi.sum()).log())

    def model(self) -> Tensor:
        """Return log π; there is no random site."""
        return self.log_pi

    def mean(self) -> Tensor:
        """Return π."""
        return self.log_pi.exp()


class _LearnedClassPrior(ClassPrior):
    """What the two Dirichlet priors share: p(π) = Dir(concentration, ..., concentration)."""

    concentration: Tensor

    def __init__(self, num_classes: int, concentration: float, least: float) -> None:
        super().__init__(num_classes)
        if not concentration >= least or concentration <= 0.0:
            raise ValueError(
                f"concentration={concentration} must be "
                + (f"at least {least:g}" if least else "positive")
                + " for a symmetric Dirichlet prior"
                + (": below one its density has no maximum." if least else ".")
            )
        self.register_buffer("concentration", torch.full((num_classes,), float(concentration)))

    def model(self) -> Tensor:
        """Sample ``"pi"`` from the symmetric Dirichlet prior and return log π, with shape ``(K,)``."""
        pi: Tensor = pyro.sample("pi", dist.Dirichlet(self.concentration))
        return pi.log()

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"concentration": float(self.concentration[0])}


class MAPClassPrior(_LearnedClassPrior):
    r"""π learned by maximum a posteriori: a point mass q(π) = δ(π - softmax(logits)).

    Maximises :math:`\log p(\pi) + \sum_n (\text{bound of row } n)`.

    Args:
        num_classes: Number of classes ``K``.
        concentration: Of the symmetric Dirichlet prior; at least one, where one is maximum likelihood.
    """

    name = "map"

    def __init__(self, num_classes: int, concentration: float = 2.0) -> None:
        super().__init__(num_classes, concentration, least=1.0)
        self.logits = nn.Parameter(torch.zeros(num_classes))

    def guide(self) -> None:
        """Sample ``"pi"`` from the point mass."""
        pyro.sample("pi", dist.Delta(self.mean(), event_dim=1))

    def mean(self) -> Tensor:
        """Return the point estimate of π."""
        return self.logits.softmax(-1)


class DirichletClassPrior(_LearnedClassPrior):
    r"""π with a Dirichlet variational posterior, q(π) = Dir(a), :math:`a = \text{total} \cdot \mathrm{softmax}(l)`.

    The mean and the total of ``a`` are separate parameters, because the mean is found within a few hundred
    steps while the total grows to the order of the number of rows.

    Args:
        num_classes: Number of classes ``K``.
        concentration: Of the symmetric Dirichlet prior; positive.
        initial_total: Sum of ``a`` before training. A few hundred keeps the first draws of π near uniform.
    """

    name = "dirichlet"

    def __init__(self, num_classes: int, concentration: float = 1.0, initial_total: float = 1000.0) -> None:
        super().__init__(num_classes, concentration, least=0.0)
        if initial_total <= 0.0:
            raise ValueError(f"initial_total={initial_total} must be positive.")
        self.logits = nn.Parameter(torch.zeros(num_classes))
        self.log_total = nn.Parameter(torch.tensor(float(initial_total)).log())

    def posterior(self) -> dist.Dirichlet:
        """Return q(π), with event shape ``(K,)``."""
        return dist.Dirichlet(self.log_total.exp() * self.mean())

    def guide(self) -> None:
        """Sample ``"pi"`` from q(π), reparameterised."""
        pyro.sample("pi", self.posterior())

    def mean(self) -> Tensor:
        """Return the posterior mean of π."""
        return self.logits.softmax(-1)


_CLASS_PRIORS: dict[str, type[ClassPrior]] = {
    "uniform": FixedClassPrior,
    "fixed": FixedClassPrior,
    "map": MAPClassPrior,
    "dirichlet": DirichletClassPrior,
}


def make_class_prior(class_prior: str | ClassPrior, num_classes: int, **config: Any) -> ClassPrior:
    """Return a class prior by name, or the given one after a check.

    Args:
        class_prior: ``"uniform"``, ``"map"``, ``"dirichlet"`` or a :class:`ClassPrior`.
        num_classes: Number of classes ``K``.
        **config: Arguments of the named prior.

    Raises:
        ValueError: For an unknown name, or a prior over another number of classes.
        TypeError: For anything that is neither a name nor a :class:`ClassPrior`.

    Example:
        >>> make_class_prior("uniform", 4).mean()
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    if isinstance(class_prior, ClassPrior):
        if class_prior.num_classes != num_classes:
            raise ValueError(f"class_prior is over {class_prior.num_classes} classes but the model has {num_classes}.")
        return class_prior
    if not isinstance(class_prior, str):
        raise TypeError(
            f"class_prior must be a name or a ClassPrior, not {type(class_prior).__name__}; for known "
            "probabilities pass FixedClassPrior(num_classes, probs)."
        )
    if class_prior not in _CLASS_PRIORS:
        raise ValueError(f"class_prior={class_prior!r} is unknown; choose uniform, map or dirichlet.")
    return _CLASS_PRIORS[class_prior](num_classes, **config)
