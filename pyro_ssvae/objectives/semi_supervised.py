r"""The semi-supervised objective J^α of Kingma et al. (2014), equation 9, and its add-ons.

With N = N_l + N_u rows, of which N_l are labelled, and dividing by N so that the unit is nats per datum:

.. math::

    \tfrac{1}{N} J^\alpha = \tfrac{1}{N} \sum_{u} U(x_u) + \tfrac{1}{N} \sum_{l} L(x_l, y_l)
        + \tfrac{\alpha}{N} \cdot \tfrac{1}{N_l} \sum_{l} [-\log q(y_l \mid x_l)]

The paper sets α = 0.1 N. Writing α = c N, the last term is c times the *mean* cross-entropy of the labelled rows;
the argument ``alpha`` of this module is that c (0.1 in the paper).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from pyro_ssvae.data import Batch, SemiSupervisedData
from pyro_ssvae.models import SemiSupervisedModel
from pyro_ssvae.models.diagnostics import NUM_DIAGNOSED, classification_error, posterior_diagnostics
from pyro_ssvae.objectives.base import Loss, Objective, PyroFunction, Validation
from pyro_ssvae.objectives.enum_elbo import StaticEnumELBO, check_draws
from pyro_ssvae.objectives.handlers import GlobalSites, StockELBO
from pyro_ssvae.objectives.regularisers import AffineAugmentation, Consistency

__all__ = ["SemiSupervisedELBO"]


def _empty_guide(x: Tensor, y: Tensor, *, size: int | None = None) -> None:
    """The guide of a model in which everything is observed."""


class SemiSupervisedELBO(Objective):
    """J^α as a module: call it with a batch, get nats per datum, drive it with any optimiser.

    Unlabelled rows go through the module with y enumerated in the guide, labelled rows through the same module with y
    observed, and the classifier learns from labels through an auxiliary Pyro model with the observed site ``y_aux``.

    Args:
        module: The module that owns the networks, usually a :class:`pyro_ssvae.M2`. Its methods ``model``, ``guide``,
            ``classify_model`` and ``classify`` are used unless functions are given.
        num_labelled: Number of labelled training rows N_l.
        num_unlabelled: Number of unlabelled training rows N_u.
        alpha: Weight c of the mean cross-entropy of labelled rows, where the paper's α is c·N (0.1 there). The
            default is 100 times the paper's; the documentation shows why.
        bound_weight: Factor of both bounds, 1 in J^α. Zero leaves the classifier terms alone, as a baseline that shows
            what the generative model is worth.
        bound_batch_size: Unlabelled rows of a batch that the bound is computed on, the first ones; ``None`` for all.
            The bound sums over every class and costs far more per row than the consistency term, which uses all rows.
        augmentation: Augments what the classifier sees of labelled rows; ``None`` for the pure objective.
        consistency: Term that asks q(y|x) to agree across augmentations; ``None`` for the pure objective.
        enumeration: ``"exact"`` sums over every class, ``"top-k"`` over the likeliest ones and one drawn among the
            rest: unbiased, and far cheaper with many classes (:class:`~pyro_ssvae.objectives.StaticEnumELBO`).
        top_k: Classes summed exactly under ``"top-k"``.
        elbo: ``"static"``, or ``"stock"`` for Pyro's own ``TraceEnum_ELBO``, which takes more kinds of pairs.
        analytic_kl: Whether the static bound uses closed forms of the KL of z.
        num_particles: Draws of z per row and class.
        importance_weighted: Whether these weigh each other in one tighter bound within each class, as in the
            importance-weighted autoencoder, rather than being averaged over; it takes two draws or more.
        model: A function ``(x, y=None, *, size=None)`` to use instead of ``module.model``.
        guide: Likewise, instead of ``module.guide``.
        classify_model: Likewise, instead of ``module.classify_model``.

    Raises:
        ValueError: For negative sizes or weights, no rows at all, unknown names, one draw to weigh, or top-k or
            several draws under the stock ELBO.
        EnumerationError: From a call, if the guide enumerates nothing for unlabelled rows.
        StaticELBOError: From a call, for a module that only the stock ELBO takes.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        num_labelled: int,
        num_unlabelled: int,
        alpha: float = 10.0,
        bound_weight: float = 1.0,
        bound_batch_size: int | None = None,
        augmentation: AffineAugmentation | None = None,
        consistency: Consistency | None = None,
        enumeration: str = "exact",
        top_k: int = 1,
        elbo: str = "static",
        analytic_kl: bool = True,
        num_particles: int = 1,
        importance_weighted: bool = False,
        model: PyroFunction | None = None,
        guide: PyroFunction | None = None,
        classify_model: PyroFunction | None = None,
    ) -> None:
        super().__init__(module, num_labelled=num_labelled, num_unlabelled=num_unlabelled, model=model, guide=guide)
        if alpha < 0.0:
            raise ValueError(f"alpha={alpha} must be non-negative (0.1 in the paper, 10 by default).")
        if bound_weight < 0.0:
            raise ValueError(f"bound_weight={bound_weight} must be non-negative (1 in the paper).")
        if bound_batch_size is not None and bound_batch_size < 1:
            raise ValueError(f"bound_batch_size={bound_batch_size} must be at least 1, or None for all rows.")
        check_draws(num_particles, importance_weighted)
        self.alpha = float(alpha)
        self.bound_weight = float(bound_weight)
        self.bound_batch_size = bound_batch_size
        self.augmentation = augmentation
        self.consistency = consistency
        self.enumeration = enumeration
        self.top_k = top_k
        self.elbo = elbo
        self.analytic_kl = analytic_kl
        self.num_particles = num_particles
        self.importance_weighted = importance_weighted
        self._functions["classify_model"] = classify_model
        self._unlabelled_elbo, self._labelled_elbo, self._exact_elbo = self._elbos()

    @classmethod
    def for_data(
        cls, module: SemiSupervisedModel, data: SemiSupervisedData, *, pure: bool = False, **options: Any
    ) -> SemiSupervisedELBO:
        """Return the default objective for a model and data: J^α, and for images the add-ons.

        Args:
            module: The model.
            data: The rows, which say N_l and N_u.
            pure: Whether to leave the add-ons out, so that nothing but J^α remains.
            **options: Arguments of this class, which take precedence.

        Raises:
            ValueError: If ``pure`` comes with an add-on.

        Example:
            >>> from pyro_ssvae import M2
            >>> data = SemiSupervisedData.from_name("digits", num_labels=100)
            >>> SemiSupervisedELBO.for_data(M2(data.event_shape, data.num_classes), data).regularisers
            ['augmentation', 'consistency']
        """
        arguments: dict[str, Any] = {"num_labelled": data.num_labelled, "num_unlabelled": data.num_unlabelled}
        if pure and (options.get("augmentation") is not None or options.get("consistency") is not None):
            raise ValueError("pure=True leaves augmentation and consistency out; hand in neither, or pure=False.")
        if not pure and len(data.event_shape) == 3:
            arguments |= {
                "augmentation": AffineAugmentation(),
                "consistency": Consistency(module.num_classes),
                "bound_batch_size": 48,
            }
        return cls(module, **(arguments | options))

    def _elbos(self) -> tuple[TraceEnum_ELBO, TraceEnum_ELBO, TraceEnum_ELBO]:
        """Return the bounds of unlabelled rows, of labelled rows, and of rows under evaluation."""
        if self.elbo == "stock":
            if self.enumeration != "exact" or self.num_particles > 1:
                raise ValueError(
                    f"enumeration={self.enumeration!r} with num_particles={self.num_particles} needs elbo='static'; "
                    "the stock ELBO here is exact, with one draw."
                )
            # Nothing is enumerated where y is observed, and that is as it should be: here, and only here.
            return StockELBO(), StockELBO(require_enumeration=False), StockELBO()
        if self.elbo != "static":
            raise ValueError(f"elbo={self.elbo!r} must be 'static' or 'stock'.")
        options: dict[str, Any] = {"analytic_kl": self.analytic_kl}
        draws = options | {"num_particles": self.num_particles, "importance_weighted": self.importance_weighted}
        return (
            StaticEnumELBO(enumeration=self.enumeration, top_k=self.top_k, **draws),
            StaticEnumELBO(require_enumeration=False, **draws),
            StaticEnumELBO(**options),
        )

    @property
    def regularisers(self) -> list[str]:
        """Names of the terms beyond J^α, for results."""
        return [part.name for part in (self.augmentation, self.consistency) if part is not None]

    def config(self) -> dict[str, Any]:
        """Return every weight and add-on, JSON-ready, for results; a single draw of z goes without saying."""
        several = {"num_particles": self.num_particles, "importance_weighted": self.importance_weighted}
        draws = several if self.num_particles > 1 else {}
        return {
            "alpha": self.alpha,
            "bound_weight": self.bound_weight,
            "bound_batch_size": self.bound_batch_size,
            "augmentation": self.augmentation.config() if self.augmentation is not None else None,
            "consistency": self.consistency.config() if self.consistency is not None else None,
            "enumeration": self.enumeration,
            "top_k": self.top_k if self.enumeration == "top-k" else None,
            "elbo": self.elbo,
            "analytic_kl": self.analytic_kl if self.elbo == "static" else False,
            **draws,
        }

    @property
    def classify_model(self) -> PyroFunction:
        """The auxiliary model in use."""
        return self._function("classify_model")

    @property
    def has_bound(self) -> bool:
        """Whether the bounds have a weight."""
        return self.bound_weight > 0.0

    @property
    def compilable(self) -> bool:
        """Whether a step can be traced once: the stock ELBO asks how large tensors on the device are."""
        return self.elbo != "stock"

    @property
    def compile_after(self) -> int:
        """Length of the schedule from which compiling pays: a step that sums over many classes gains more by it."""
        num_classes = getattr(self.module, "num_classes", None) or 10
        return 10_000 if self.enumeration == "top-k" else min(10_000, 100_000 // num_classes)

    def loss(self, batch: Batch) -> Loss:
        """Return J^α of a batch, with the regularisers.

        Args:
            batch: Unlabelled examples ``(B_u, *event_shape)`` and labelled ones ``(B_l, *event_shape)`` with classes
                ``(B_l,)``; either side may be ``None``.

        Returns:
            The loss, and its terms, before weighting: ``bound_unlabelled`` (-U) and ``bound_labelled`` (-L), in nats per
            unlabelled and per labelled example, ``classification_loss`` and ``consistency_loss`` in nats per example.
        """
        x_unlabelled, x_labelled, y_labelled = batch
        parts: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        shared = GlobalSites()
        if x_unlabelled is not None and self.bound_weight:
            examples = x_unlabelled[: self.bound_batch_size]
            total = self.bound(self._unlabelled_elbo, shared, examples, size=self.num_unlabelled)
            terms["bound_unlabelled"] = -total.detach() / self.num_unlabelled
            parts.append(self.bound_weight / self.num_examples * total)
            shared.next_pass()
        if x_labelled is not None and self.bound_weight:
            total = self.bound(self._labelled_elbo, shared, x_labelled, y_labelled, size=self.num_labelled)
            terms["bound_labelled"] = -total.detach() / self.num_labelled
            parts.append(self.bound_weight / self.num_examples * total)
        if x_labelled is not None and y_labelled is not None:
            classification = self.classification(x_labelled, y_labelled)
            terms["classification_loss"] = classification.detach()
            parts.append(self.alpha * classification)
        if self.consistency is not None and x_unlabelled is not None:
            consistency = self.consistency(self.module.classify, x_unlabelled)
            terms["consistency_loss"] = consistency.detach()
            parts.append(self.consistency.weight * consistency)
        return Loss(torch.stack(parts).sum(), terms)

    def classification(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean of -log q(y|x) over labelled rows, in nats, with augmentation where it is on."""
        if self.augmentation is not None:
            x = self.augmentation(x)
        loss: Tensor = self._labelled_elbo.differentiable_loss(self.classify_model, _empty_guide, x, y)
        return loss / x.shape[0]

    def _evaluation_elbo(self) -> TraceEnum_ELBO:
        return self._exact_elbo

    def validate(
        self,
        data: SemiSupervisedData,
        *,
        history: Sequence[dict[str, Any]] = (),
        binarisation: str = "none",
        seed: int = 0,
    ) -> Validation:
        """Evaluate on validation examples: the error, by which weights are chosen, and diagnostics of q(y|x) and z."""
        model: Any = self.module
        if not len(data.x_validation):
            return Validation()
        metrics = posterior_diagnostics(model, data.x_validation[:NUM_DIAGNOSED], scale=data.scale)
        error = classification_error(model, data.x_validation, data.y_validation, scale=data.scale)
        if error is None:  # no validation label is known
            return Validation(metrics)
        return Validation({"error": error, **metrics}, score=-error)
