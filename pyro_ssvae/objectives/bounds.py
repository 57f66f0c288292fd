r"""The bounds: J^α with optional regularisers, and that of a model without classes.

The semi-supervised objective J^α is equation 9 of Kingma et al. (2014). With N = N_l + N_u examples, of which N_l are
labelled, and dividing by N so that the unit is nats per example:

.. math::

    \tfrac{1}{N} J^\alpha = \tfrac{1}{N} \sum_{u} U(x_u) + \tfrac{1}{N} \sum_{l} L(x_l, y_l)
        + \tfrac{\alpha}{N} \cdot \tfrac{1}{N_l} \sum_{l} [-\log q(y_l \mid x_l)]

The paper sets α = 0.1 N. Writing α = c N, the last term is c times the *mean* cross-entropy of the labelled examples;
the argument ``alpha`` of this module is that c (0.1 in the paper).

The bound of a model without classes is equation 3 of Kingma & Welling (2013):

.. math::

    -\log p(x) \le -\mathbb E_{q(z \mid x)}[\log p(x \mid z)] + \mathrm{KL}\bigl(q(z \mid x) \,\|\, p(z)\bigr)
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from pyro_ssvae._arguments import check_choice, checked
from pyro_ssvae._division import first_rows
from pyro_ssvae.data import Batch
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.models.base import fork_random_state
from pyro_ssvae.models.diagnostics import NUM_DIAGNOSED, classification_error, latent_diagnostics, posterior_diagnostics
from pyro_ssvae.objectives.augmentation import Augmentation
from pyro_ssvae.objectives.base import Loss, Objective, PyroFunction, Validation
from pyro_ssvae.objectives.enum_elbo import StaticEnumELBO, check_draws, closed_forms
from pyro_ssvae.objectives.handlers import GlobalSites, StockELBO
from pyro_ssvae.objectives.regularisers import Consistency, choose_regularisers


def _empty_guide(x: Tensor, y: Tensor, *, size: int | None = None) -> None:
    """The guide of a model in which everything is observed."""


@checked
class SemiSupervisedELBO(Objective):
    """J^α as a module: call it with a batch, get a loss in nats per example, minimise it with any optimiser.

    For unlabelled examples y is enumerated in the guide, for labelled ones it is observed; the classifier also learns
    from labels through an auxiliary Pyro model with the observed site ``y_aux``.

    Args:
        module: The module that owns the networks, usually a :class:`pyro_ssvae.M2`. Its methods ``classify_model`` and
            ``classify`` are used, ``model`` and ``guide`` unless functions are given, and in validation
            ``predict_proba`` and, where it has one, ``encode``.
        num_labelled: Number of labelled training examples N_l.
        num_unlabelled: Number of unlabelled training examples N_u.
        alpha: Weight c of the mean cross-entropy of labelled examples, where the paper's α is c·N (0.1 there). The
            default is 100 times the paper's; the documentation shows why.
        bound_weight: Factor of both bounds, 1 in J^α. With zero only the classifier's terms are left, a baseline that
            shows what the generative model adds.
        bound_batch_size: Number of unlabelled examples of a batch on which the bound is computed; ``None`` for all. The
            bound sums over every class and costs far more per example than the consistency term, which uses all.
        augmentation: Augmentation of labelled examples for the classifier; ``None`` for the pure objective.
        consistency: Consistency of q(y|x) across augmentations; ``None`` for the pure objective.
        enumeration: ``"exact"`` sums over every class, ``"top-k"`` over the likeliest ones and one drawn among the
            rest: unbiased, and far cheaper with many classes. As for :class:`~pyro_ssvae.StaticEnumELBO`, like
            ``top_k``, ``analytic_kl``, ``num_particles`` and ``importance_weighted`` (which needs two draws or more).
        elbo: ``"static"``, or ``"stock"`` for Pyro's own ``TraceEnum_ELBO``, which supports more models and guides.
        model: A function ``(x, y=None, *, size=None)`` to use instead of ``module.model``.
        guide: Likewise, instead of ``module.guide``.

    Raises:
        ValueError: For negative sizes or weights, no examples at all, unknown names, an importance-weighted bound of
            one draw, or top-k or several draws under the stock ELBO.
        EnumerationError: From a call, if the guide enumerates nothing for unlabelled examples.
        StaticELBOError: From a call, for a model and guide that only the stock ELBO supports.
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
        augmentation: Augmentation | None = None,
        consistency: Consistency | None = None,
        enumeration: str = "exact",
        top_k: int = 1,
        elbo: str = "static",
        analytic_kl: bool = True,
        num_particles: int = 1,
        importance_weighted: bool = False,
        model: PyroFunction | None = None,
        guide: PyroFunction | None = None,
    ) -> None:
        super().__init__(module, num_labelled=num_labelled, num_unlabelled=num_unlabelled, model=model, guide=guide)
        check_draws(num_particles, importance_weighted)
        if not (bound_weight or num_labelled or consistency):
            raise ValueError("bound_weight=0 without labels and consistency leaves nothing to train on; give labels.")
        self.alpha, self.bound_weight, self.bound_batch_size = float(alpha), float(bound_weight), bound_batch_size
        self.augmentation, self.consistency = augmentation, consistency
        self.enumeration, self.top_k, self.elbo, self.analytic_kl = enumeration, top_k, elbo, analytic_kl
        self.num_particles, self.importance_weighted = num_particles, importance_weighted
        self._unlabelled_elbo, self._labelled_elbo, self._evaluation_elbo = self._elbos()
        self.has_bound = bound_weight > 0.0
        self.compilable = elbo == "static"  # the stock ELBO reads tensors back from the device
        if enumeration == "exact":  # a step that sums over many classes gains more by compiling
            self.compile_after = min(10_000, 100_000 // (getattr(module, "num_classes", None) or 10))

    @classmethod
    @checked
    def for_data(
        cls, module: nn.Module, data: SemiSupervisedData, *, pure: bool = False, **options: Any
    ) -> SemiSupervisedELBO:
        """Return the default objective for a model and data: J^α, with augmentation and consistency.

        Grey images on a plain background are rotated, zoomed, sheared and shifted, and their pseudo-labels also
        follow the labels of similar images (:class:`~pyro_ssvae.objectives.NeighbourDensities`), if these predict the
        labels that cross-validation hides. Other images are cropped, flipped and changed in brightness, contrast and
        colour. Half of the images stay as they are, unless similar images predict the labels. The bound of an M2 of
        images has ``bound_weight=1`` under a Bernoulli likelihood, else 0.1, or 0.01 in colour and on a plain
        background without such similar images; grey values on a plain background have a steeper ``kl_schedule``.
        Columns of tables get noise or values of other rows. Pretrained features are exchanged between images, and their
        bound has the weight of ``presets.FEATURES``.

        Args:
            module: The model.
            data: The data, which gives N_l and N_u.
            pure: Whether to leave the regularisers out, so that only J^α remains.
            **options: Arguments of this class, which take precedence.

        Raises:
            ValueError: If ``pure`` comes with a regulariser.

        Example:
            >>> from pyro_ssvae import M2
            >>> data = SemiSupervisedData.from_name("digits", num_labels=100)
            >>> SemiSupervisedELBO.for_data(M2(data.event_shape, data.num_classes), data).regularisers
            ['augmentation', 'consistency']
        """
        arguments: dict[str, Any] = {"num_labelled": data.num_labelled, "num_unlabelled": data.num_unlabelled}
        if pure and (options.get("augmentation") is not None or options.get("consistency") is not None):
            raise ValueError("pure=True leaves augmentation and consistency out; pass neither, or pure=False.")
        if not pure:
            if getattr(module, "num_classes", None) is None:
                raise ValueError(
                    f"{type(module).__name__} has no classes, which this objective needs: UnsupervisedELBO is for M1, "
                    "EnergyObjective for DDGM."
                )
            arguments |= choose_regularisers(module, data)
        schedule = arguments.pop("kl_schedule", cls.kl_schedule)
        objective = cls(module, **(arguments | options))
        objective.kl_schedule = schedule
        return objective

    def _elbos(self) -> tuple[TraceEnum_ELBO, TraceEnum_ELBO, TraceEnum_ELBO]:
        check_choice("elbo", self.elbo, ("static", "stock"))
        if self.elbo == "stock" and (self.enumeration != "exact" or self.num_particles > 1):
            raise ValueError(
                f"enumeration={self.enumeration!r} with num_particles={self.num_particles} needs elbo='static'; the "
                "stock ELBO here is exact, with one draw."
            )
        # Where y is observed nothing is enumerated, so it is not required.
        if self.elbo == "stock":
            return StockELBO(), StockELBO(require_enumeration=False), StockELBO()
        draws = {name: getattr(self, name) for name in ("analytic_kl", "num_particles", "importance_weighted")}
        return (
            StaticEnumELBO(enumeration=self.enumeration, top_k=self.top_k, **draws),
            StaticEnumELBO(require_enumeration=False, **draws),
            StaticEnumELBO(analytic_kl=self.analytic_kl),
        )

    @property
    def regularisers(self) -> list[str]:
        """Names of the terms beyond J^α, for results."""
        return [part.name for part in (self.augmentation, self.consistency) if part is not None]

    def config(self) -> dict[str, Any]:
        """Return every setting, JSON-ready, for results; settings of several draws only where there are several."""
        several = ("num_particles", "importance_weighted") if self.num_particles > 1 else ()
        names = "alpha bound_weight bound_batch_size augmentation consistency enumeration top_k elbo analytic_kl"
        return {name: getattr(self, name) for name in (*names.split(), *several)} | {
            "augmentation": self.augmentation.config() if self.augmentation is not None else None,
            "consistency": self.consistency.config() if self.consistency is not None else None,
            "top_k": self.top_k if self.enumeration == "top-k" else None,
            "analytic_kl": self.analytic_kl and self.elbo == "static",
        }

    def loss(self, batch: Batch) -> Loss:
        """Return J^α of a batch plus the regularisers.

        Its terms are ``bound_unlabelled`` (-U) and ``bound_labelled`` (-L), in nats per unlabelled and per labelled
        example, ``classification_loss`` and ``consistency_loss``, in nats per example.
        """
        x_unlabelled, x_labelled, y_labelled = batch
        parts: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        shared = GlobalSites()
        if x_unlabelled is not None and self.bound_weight:
            examples = first_rows(x_unlabelled, self.bound_batch_size)
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
        """Return the mean of -log q(y|x) over labelled examples, in nats, augmented where augmentation is on."""
        if self.augmentation is not None:
            x = self.augmentation(x)
        return self._labelled_elbo.differentiable_loss(self.module.classify_model, _empty_guide, x, y) / x.shape[0]

    def validate(self, data: SemiSupervisedData, **options: Any) -> Validation:
        """Evaluate on validation examples: the error, by which weights are chosen, and diagnostics of q(y|x) and z.

        The other arguments of :meth:`Objective.validate` have no effect here.
        """
        if not len(data.x_validation):
            return Validation()
        metrics = posterior_diagnostics(self.module, data.x_validation[:NUM_DIAGNOSED], scale=data.scale)
        error = classification_error(self.module, data.x_validation, data.y_validation, scale=data.scale)
        if error is None:  # no validation label is known
            return Validation(metrics)
        num_known = int((data.y_validation >= 0).sum())
        standard_error = (error * (1.0 - error) / num_known) ** 0.5  # of a binomial fraction
        return Validation({"error": error, **metrics}, score=-error, standard_error=standard_error)


@checked
class UnsupervisedELBO(Objective):
    """The negative bound on log p(x), with which M1 is trained; labels are not used.

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

    kl_schedule = (0.15, 1.0)  # there is no class to keep out of z

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
