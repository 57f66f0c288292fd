r"""Class priors p(y|π)p(π): π fixed, learned by maximum a posteriori, or with a Dirichlet posterior.

Each has a model and a guide with the one global site ``"pi"``, which belongs to the whole data set and is scored once
per objective. Two of them learn π:

* :class:`MAPClassPrior`: a *point mass*, q(π) = δ(π - π̂). The bound gains log p(π̂); it is exact up to a constant
  (the entropy of the point mass, which does not depend on π̂).
* :class:`DirichletClassPrior`: a *Dirichlet* q(π). The bound gains -KL(q(π) ‖ p(π)), and log p(y|π) is averaged over
  q(π).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ssvae._arguments import as_count, show
from pyro_ssvae._configurable import Configurable

__all__ = ["ClassPrior", "DirichletClassPrior", "FixedClassPrior", "MAPClassPrior"]


class ClassPrior(Configurable):
    """Base class of class priors.

    Attributes:
        num_classes: Number of classes ``K``.
        name: Name in results and saved configurations.
    """

    name: str

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = as_count(num_classes, "num_classes", least=2)

    def model(self) -> Tensor:
        """Sample site ``"pi"`` if π is random; return log π with shape ``(K,)``."""
        raise NotImplementedError(f"{type(self).__name__} must define model() -> log pi.")

    def guide(self) -> None:
        """Sample site ``"pi"`` from q(π) if π is random."""

    def mean(self) -> Tensor:
        """Return the estimate of π, with shape ``(K,)``: the fixed value, the MAP or the posterior mean."""
        raise NotImplementedError(f"{type(self).__name__} must define mean() -> pi.")

    def config(self) -> dict[str, Any]:
        """Return the arguments that rebuild the prior, JSON-serialisable."""
        return {}


class FixedClassPrior(ClassPrior):
    """A known π: uniform, or given.

    Args:
        num_classes: Number of classes ``K``.
        probs: ``K`` positive numbers, normalised to sum to one; uniform if ``None``.

    Raises:
        TypeError: If ``probs`` are no numbers.
        ValueError: If ``probs`` has another length than ``K`` or a value that is not positive and finite.
    """

    name = "fixed"
    log_pi: Tensor

    def __init__(self, num_classes: int, probs: Sequence[float] | Tensor | None = None) -> None:
        super().__init__(num_classes)
        try:
            pi = torch.as_tensor([1.0] * num_classes if probs is None else probs, dtype=torch.float32, device="cpu")
            pi.tolist()
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{show('probs', probs)}; {num_classes} numbers are needed, one per class.") from error
        if pi.shape != (num_classes,) or not bool(((pi > 0) & pi.isfinite()).all()):
            raise ValueError(
                f"probs must hold {num_classes} positive finite numbers, one per class; got {pi.tolist()}."
            )
        self.register_buffer("log_pi", (pi / pi.sum()).log())

    @property
    def uniform(self) -> bool:
        """Whether all classes have the same probability."""
        return bool((self.log_pi == self.log_pi[0]).all())

    def model(self) -> Tensor:
        """Return log π; there is no random site."""
        return self.log_pi

    def mean(self) -> Tensor:
        """Return π."""
        return self.log_pi.exp()


class _LearnedClassPrior(ClassPrior):
    """Base class of the priors p(π) = Dir(concentration, ..., concentration)."""

    concentration: Tensor

    def __init__(self, num_classes: int, concentration: float, least: float) -> None:
        super().__init__(num_classes)
        if not concentration >= least or concentration <= 0.0:
            needed = f"at least {least:g}" if least else "positive"
            reason = ": below one its density has no maximum" if least else ""
            raise ValueError(f"concentration={concentration} must be {needed} for a symmetric Dirichlet prior{reason}.")
        self.register_buffer("concentration", torch.full((num_classes,), float(concentration)))
        self.logits = nn.Parameter(torch.zeros(num_classes))

    def model(self) -> Tensor:
        """Sample ``"pi"`` from the symmetric Dirichlet prior and return log π, with shape ``(K,)``."""
        pi: Tensor = pyro.sample("pi", dist.Dirichlet(self.concentration))
        return pi.log()

    def mean(self) -> Tensor:
        """Return the point estimate or the posterior mean of π."""
        return self.logits.softmax(-1)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"concentration": float(self.concentration[0])}


class MAPClassPrior(_LearnedClassPrior):
    r"""π learned by maximum a posteriori: a point mass q(π) = δ(π - softmax(logits)).

    Training maximises :math:`\log p(\pi) + \sum_n (\text{bound of example } n)`.

    Args:
        num_classes: Number of classes ``K``.
        concentration: Concentration of the symmetric Dirichlet prior, at least one; one is maximum likelihood.
    """

    name = "map"

    def __init__(self, num_classes: int, concentration: float = 2.0) -> None:
        super().__init__(num_classes, concentration, least=1.0)

    def guide(self) -> None:
        """Sample ``"pi"`` from the point mass."""
        pyro.sample("pi", dist.Delta(self.mean(), event_dim=1))


class DirichletClassPrior(_LearnedClassPrior):
    r"""π with a Dirichlet variational posterior, q(π) = Dir(a), :math:`a = \text{total} \cdot \mathrm{softmax}(l)`.

    The mean and the total of ``a`` are separate parameters, because the mean converges within a few hundred steps while
    the total grows to the order of the number of examples.

    Args:
        num_classes: Number of classes ``K``.
        concentration: Concentration of the symmetric Dirichlet prior; positive.
        initial_total: Sum of ``a`` before training; with a few hundred the first draws of π are near uniform.
    """

    name = "dirichlet"

    def __init__(self, num_classes: int, concentration: float = 1.0, initial_total: float = 1000.0) -> None:
        super().__init__(num_classes, concentration, least=0.0)
        if initial_total <= 0.0:
            raise ValueError(f"initial_total={initial_total} must be positive.")
        self.log_total = nn.Parameter(torch.tensor(float(initial_total)).log())

    def posterior(self) -> dist.Dirichlet:
        """Return q(π), with event shape ``(K,)``."""
        return dist.Dirichlet(self.log_total.exp() * self.mean())

    def guide(self) -> None:
        """Sample ``"pi"`` from q(π), reparameterised."""
        pyro.sample("pi", self.posterior())
