r"""The bound of a model without classes (Kingma & Welling, 2013, equation 3).

.. math::

    -\log p(x) \le -\mathbb E_{q(z \mid x)}[\log p(x \mid z)] + \mathrm{KL}\bigl(q(z \mid x) \,\|\, p(z)\bigr)
"""

from __future__ import annotations

from typing import Any

from torch import nn

from pyro_ssvae._arguments import checked
from pyro_ssvae.data import Batch
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.models.base import fork_random_state
from pyro_ssvae.models.diagnostics import NUM_DIAGNOSED, latent_diagnostics
from pyro_ssvae.objectives.base import Loss, Objective, PyroFunction, Validation
from pyro_ssvae.objectives.enum_elbo import StaticEnumELBO, check_draws, closed_forms
from pyro_ssvae.objectives.handlers import GlobalSites


@checked
class UnsupervisedELBO(Objective):
    """The negative bound of log p(x), with which M1 is trained; labels are not used.

    Args:
        module: The module that owns the networks, usually a :class:`pyro_ssvae.M1`, with methods ``model(x, *, size)``
            and ``guide(x, *, size)``.
        num_examples: Number of training examples N.
        num_particles: As for :class:`~pyro_ssvae.StaticEnumELBO`, like ``importance_weighted`` and ``analytic_kl``.
        importance_weighted: Needs two draws or more.
        model: A function ``(x, *, size=None)`` to use instead of ``module.model``.
        guide: A function ``(x, *, size=None)`` to use instead of ``module.guide``.

    Raises:
        ValueError: For non-positive sizes, or an importance-weighted bound of one draw.
        StaticELBOError: From a call, for a module with sites that are not reparameterised.

    Example:
        >>> import torch, pyro_ssvae
        >>> m1 = pyro_ssvae.M1((1, 8, 8), latent_dim=2, hidden_dims=(8,))
        >>> objective = UnsupervisedELBO(m1, num_examples=1000, num_particles=5, importance_weighted=True)
        >>> objective(Batch(torch.rand(7, 1, 8, 8).round(), None, None)).shape
        torch.Size([])
    """

    peaks_kl = False  # there is no class

    def __init__(
        self,
        module: nn.Module,
        *,
        num_examples: int,
        num_particles: int = 1,
        importance_weighted: bool = False,
        analytic_kl: bool = True,
        model: PyroFunction | None = None,
        guide: PyroFunction | None = None,
    ) -> None:
        super().__init__(module, num_labelled=0, num_unlabelled=num_examples, model=model, guide=guide)
        check_draws(num_particles, importance_weighted)
        options: dict[str, Any] = {"require_enumeration": False, "analytic_kl": analytic_kl}
        self._elbo = StaticEnumELBO(num_particles=num_particles, importance_weighted=importance_weighted, **options)
        self._evaluation_elbo = StaticEnumELBO(**options)

    @classmethod
    @checked
    def for_data(cls, module: nn.Module, data: SemiSupervisedData, **options: Any) -> UnsupervisedELBO:
        """Return the objective for a model and data; ``ValueError`` if training examples carry labels."""
        if data.num_labelled:
            raise ValueError(
                f"{data.num_labelled} training examples carry labels, which this objective does not use; pass "
                "data.without_labels() to the objective and to fit."
            )
        return cls(module, num_examples=data.num_unlabelled, **options)

    def config(self) -> dict[str, Any]:
        """Return every setting, JSON-ready, for results."""
        return {name: getattr(self._elbo, name) for name in ("num_particles", "importance_weighted", "analytic_kl")}

    def describe(self) -> str:
        """Return in words which terms the loss contains."""
        elbo = self._elbo
        if elbo.importance_weighted:
            return f"importance-weighted bound of {elbo.num_particles} samples: -log mean p(x|z)p(z)/q(z|x)"
        how = "by samples"
        if elbo.analytic_kl and hasattr(self.module, "event_shape"):
            example = next(self.module.parameters()).new_zeros(1, *self.module.event_shape)
            with fork_random_state(self.module, 0):
                how = "in closed form" if all(closed_forms(self.model, self.guide, example).values()) else how
        return f"-E[log p(x|z)] by {elbo.num_particles} sample(s) + KL(q(z|x) || p(z)) {how}"

    def loss(self, batch: Batch) -> Loss:
        """Return the negative bound of a batch, with the term ``bound`` in nats per example (higher is better)."""
        if batch.x_unlabelled is None:
            raise ValueError("The batch holds labelled examples only; train on data.without_labels().")
        total = self.bound(self._elbo, GlobalSites(), batch.x_unlabelled, size=self.num_examples) / self.num_examples
        return Loss(total, {"bound": -total.detach()})

    def validate(
        self, data: SemiSupervisedData, *, binarisation: str = "none", seed: int = 0, **options: Any
    ) -> Validation:
        """Evaluate on validation examples: ``bound``, by which weights are chosen, and :func:`latent_diagnostics`."""
        x = data.x_validation
        if not len(x):
            return Validation()
        metrics = {"bound": self.mean_bound(x, scale=data.scale, binarisation=binarisation, seed=seed)}
        metrics |= latent_diagnostics(self.module, x[:NUM_DIAGNOSED], scale=data.scale)
        return Validation(metrics, score=metrics["bound"])
