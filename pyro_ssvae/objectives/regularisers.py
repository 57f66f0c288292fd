"""Consistency of q(y|x) across augmentations, and the choice of the regularisers that are added to J^α."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_ssvae._arguments import checked
from pyro_ssvae._arrays import value_range
from pyro_ssvae._division import mean_over_ranks
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.preparation import find_background
from pyro_ssvae.data.storage import sample_rows, space
from pyro_ssvae.distributions import Bernoulli, FixedClassPrior
from pyro_ssvae.distributions.likelihoods import fill_missing, group_columns, select_examples, standard_units
from pyro_ssvae.models.base import full_precision
from pyro_ssvae.objectives.augmentation import (
    BRIGHTNESS,
    AffineAugmentation,
    Augmentation,
    ColumnAugmentation,
    PhotoAugmentation,
)
from pyro_ssvae.objectives.neighbours import NeighbourDensities
from pyro_ssvae.presets import FEATURES

# Of tables, chosen with five labels a class (docs/results_tables.md).
_NOISE = 0.25  # standard deviation of the noise on labelled rows, in standard deviations of the column
_SWAP_CODES = 0.3  # share of the categories of labelled rows that are exchanged, where noise has no meaning
_SWAP = 0.2  # share of the columns that consistency changes
_LEAST_RESIDUAL = 0.25  # share of a column's variance left by regression on the others, below which they predict it
_LEAST_SHRINKAGE = 0.05  # of the covariance of columns
_MOST_COMPARED, _MOST_ROWS = 1000, 20_000  # numeric columns up to which it is made, and evenly spaced rows of it
_WIDE = 2000  # columns times classes, from which bounds of all rows of a batch take most of the time
_FEW_LABELS = 5  # of each class, up to which regularisers have their full weight

# Weights of the bound of images whose likelihood is not Bernoulli, the small one for images in colour, and for those on
# a plain background unless their neighbours predict the labels: else images are alike for other reasons than the class.
# The share of images that are changed, unless neighbours predict the labels, is below 1 as a classifier that has seen
# no other images errs more often on them. All were chosen as docs/results.md and docs/results_images.md say.
_BOUND, _SMALL_BOUND = 0.1, 0.01
_CHANGED = 0.5
_STEEP = (0.0, 30.0)  # Objective.kl_schedule of grey values on a plain background; photographs learn too slowly with it
_UNEQUAL = 0.01  # p-value of equal class frequencies, up to which those of the labels are taken

CONSISTENCY_WEIGHT = 10.0
"""Default weight of the consistency."""

TABLE_ALIGNMENT = 0.5
"""Default power of the alignment with known or estimated class frequencies on tables (docs/results_tables.md)."""


@checked
class Consistency(nn.Module):
    r"""Cross-entropy of a strongly augmented example against the confident pseudo-label of the example itself.

    For examples whose likeliest class ŷ has :math:`q(\hat y \mid x)` of at least ``threshold``, the loss is
    :math:`-\log q(\hat y \mid \mathrm{strong}(x))`; other examples count as zero. No gradient flows through ŷ.
    (FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence, Sohn et al., 2020,
    https://arxiv.org/abs/2001.07685, equation 4, without its weak augmentation.)

    Predictions are first multiplied by the ratio of the shares of the classes to their running mean, to the power of
    ``align``, so that confident mistakes do not accumulate in one class (ReMixMatch, Berthelot et al., 2020,
    https://arxiv.org/abs/1911.09785, section 3.1, with a power of 1).

    Args:
        num_classes: Number of classes ``K``.
        weight: Factor of this term in the objective.
        threshold: Least probability of the likeliest class, in [0, 1].
        strong: The strong augmentation; ``None`` is one of grey images.
        align: Power of the ratio: with 1 the mean prediction is aligned with ``shares``, with 0 it is not.
        shares: Shares of the classes among unlabelled examples; uniform if ``None``.
        decay: Decay per step of the running mean of predictions, in [0, 1].
        neighbours: What returns the logarithms of the densities of the classes among similar images, ``(B, K)``, at x:
            q(y|x) in the pseudo-label is multiplied by them, so that a kind of image of which no example is labelled is
            less often given the class that q(y|x) happens to prefer.

    Raises:
        ValueError: For a negative weight, or a threshold, power or decay out of range.
    """

    name = "consistency"
    mean_prediction: Tensor
    shares: Tensor | None

    def __init__(
        self,
        num_classes: int,
        *,
        weight: float = CONSISTENCY_WEIGHT,
        threshold: float = 0.9,
        strong: Augmentation | None = None,
        align: float = 1.0,
        shares: Sequence[float] | None = None,
        decay: float = 0.99,
        neighbours: NeighbourDensities | None = None,
    ) -> None:
        super().__init__()
        self.weight, self.threshold, self.align, self.decay = weight, threshold, align, decay
        self.neighbours = neighbours
        self.strong = strong if strong is not None else AffineAugmentation(strength=1.5)
        self.register_buffer("mean_prediction", torch.full((num_classes,), 1.0 / num_classes))
        self.register_buffer("shares", None if shares is None else FixedClassPrior(num_classes, shares).mean())

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        names = ("weight", "threshold", "align", "decay")
        shares = None if self.shares is None else self.shares.tolist()
        settings = {name: getattr(self, name) for name in names} | {"shares": shares, "strong": self.strong.config()}
        return settings | {"neighbours": self.neighbours.config() if self.neighbours is not None else None}

    def forward(self, classify: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return the mean loss, in nats, of x ``(B, *event_shape)``; ``classify`` maps x to logits ``(B, K)``."""
        with torch.no_grad():
            target = full_precision(classify(x))
            target = (target if self.neighbours is None else target + self.neighbours(x)).softmax(-1)
            mean = mean_over_ranks(target.mean(0)) if self.align else None
        logits = full_precision(classify(self.strong(x)))  # while other processes send their means
        with torch.no_grad():
            if mean is not None:
                self.mean_prediction.lerp_(mean().to(self.mean_prediction), 1.0 - self.decay)
                target = target / self.mean_prediction**self.align
                target = target if self.shares is None else target * self.shares**self.align
                target = target / target.sum(-1, keepdim=True)
            confidence, y = target.max(-1)
        loss = F.cross_entropy(logits, y, reduction="none")
        return (loss * (confidence >= self.threshold)).mean()


def choose_regularisers(module: Any, data: SemiSupervisedData) -> dict[str, Any]:
    """Return the default regularisers for a model and data, as arguments of :class:`SemiSupervisedELBO`.

    For grey values on a plain background the attribute ``kl_schedule`` is among them.

    Those of tables are weaker the more labels there are. The bound of images whose likelihood is not Bernoulli, of
    hundreds of nats or thousands, has a tenth of its weight in J^α, and a hundredth in colour, or on a plain background
    unless similar images predict the labels. That of a table with fewer rows than columns (but those of counts) has the
    square of their ratio as its weight: with its whole weight the noise of the columns decides q(y|x). Predictions are
    aligned with the class prior if it is fixed, for tables less strongly and only if it is given: the classes of a
    table are seldom of equal size, and alignment with equal shares then does much harm. Of images whose numbers of
    labels are clearly unequal they are aligned with the shares of the labels instead of a uniform prior. Without any
    label there is no consistency, as confident predictions would be arbitrary.
    """
    number, prior = int(module.num_classes), getattr(module, "class_prior", None)
    options: dict[str, Any] = {"align": float(prior is None or isinstance(prior, FixedClassPrior))}
    if isinstance(prior, FixedClassPrior) and not prior.uniform:
        options["shares"] = prior.mean().tolist()
    elif options["align"] and (data.feature_source is not None or len(data.event_shape) == 3):
        options["shares"] = _estimate_shares(data, number)
    weak: Augmentation
    if data.feature_source is not None:
        weak, found = ColumnAugmentation(0.3), dict(FEATURES.objective)
        options["strong"] = ColumnAugmentation(0.5)
    elif len(data.event_shape) == 3:
        weak, of_images, found = _choose_for_images(module, data)
        options |= of_images
    elif len(data.event_shape) == 1:
        weak, of_tables, found = _choose_for_table(module, data)
        # Their classes are seldom of equal size.
        options |= {**of_tables, "align": TABLE_ALIGNMENT * ("shares" in options)}
    else:
        return {}
    consistency = Consistency(number, **options) if data.num_labelled else None
    return {"augmentation": weak, "consistency": consistency, "bound_batch_size": 48, **found}


def _estimate_shares(data: SemiSupervisedData, number: int) -> list[float] | None:
    """Return the shares of the classes among the labels, or ``None`` if they could be equal by a chi-squared test."""
    from scipy.stats import chisquare  # takes long to import

    counts = torch.bincount(data.y[data.labelled_index], minlength=number)
    if not data.num_labelled or chisquare(counts.numpy()).pvalue > _UNEQUAL:
        return None
    return ((counts + 1.0) / (counts + 1.0).sum()).tolist()


def _choose_for_images(module: Any, data: SemiSupervisedData) -> tuple[Augmentation, dict[str, Any], dict[str, Any]]:
    """Return the augmentation of labelled images, and arguments of their consistency and of the objective."""
    in_colour = data.event_shape[0] >= 3
    background = None if in_colour else find_background(data.x, data.scale)
    kind: Callable[..., Augmentation]
    found: dict[str, Any]
    if background is None:
        kind, neighbours = _photo_augmentation(data), None
        found = {"bound_weight": _SMALL_BOUND if in_colour else _BOUND}
    else:
        kind = partial(AffineAugmentation, fill=background)
        neighbours = NeighbourDensities.for_data(data, background=background)
        found = {"bound_weight": _SMALL_BOUND if neighbours is None else _BOUND, "kl_schedule": _STEEP}
    kind = partial(kind, probability=_CHANGED if neighbours is None else 1.0)
    weak, options = kind(), {"strong": kind(strength=1.5), "neighbours": neighbours}
    likelihood = None if getattr(module, "bound_of_latents", False) else getattr(module, "likelihood", None)
    return weak, options, {} if likelihood is None or isinstance(likelihood, Bernoulli) else found


def _choose_for_table(module: Any, data: SemiSupervisedData) -> tuple[Augmentation, dict[str, Any], dict[str, Any]]:
    """Return the augmentation of labelled rows, and arguments of their consistency and of the objective."""
    number, (width,), likelihood = int(module.num_classes), data.event_shape, getattr(module, "likelihood", None)
    few = min(1.0, _FEW_LABELS * number / max(1, data.num_labelled))
    scales = _noise_scales(data, likelihood)
    swap, noise = few**0.5 * _SWAP_CODES * (scales == 0), few**0.5 * _NOISE * scales
    found: dict[str, Any] = {"bound_batch_size": 48 if width * number > _WIDE else None}
    groups = group_columns(likelihood, width)
    columns = sum(len(group) for group, part in groups if not getattr(part, "of_counts", False))
    if len(data.x) < columns and not getattr(module, "bound_of_latents", False):
        found["bound_weight"] = (len(data.x) / columns) ** 2
    options = {"weight": CONSISTENCY_WEIGHT * few, "strong": ColumnAugmentation(_SWAP)}
    return ColumnAugmentation(swap.tolist(), noise.tolist()), options, found


def _photo_augmentation(data: SemiSupervisedData) -> Callable[..., Augmentation]:
    """Return the augmentation of photographs, with changes of brightness in units of x unless x fills [0, 1]."""
    low, high = (end / data.scale for end in value_range(sample_rows(data.x)))
    usual = 0.0 <= low and 0.5 <= high <= 1.0
    return PhotoAugmentation if usual else partial(PhotoAugmentation, brightness=BRIGHTNESS * (high - low))


def exchange_unpredicted(module: Any, data: SemiSupervisedData) -> ColumnAugmentation:
    """Return the strong augmentation of a table that leaves columns alone which the other columns predict.

    A row that has the value of another one in such a column is unlike any row of the data.
    """
    predicted = _find_predicted(data, _noise_scales(data, getattr(module, "likelihood", None)))
    return ColumnAugmentation((_SWAP * ~predicted).tolist())


def _find_predicted(data: SemiSupervisedData, scales: Tensor) -> Tensor:
    r"""Return which columns of a table the other numeric ones predict, ``(D,)``, by linear regression.

    With the inverse Θ of the covariance C, a fraction :math:`1 / (\Theta_{jj} C_{jj})` of the variance of column j is
    left; ``scales`` are 0 for categories.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage, shrunk_covariance  # imports much of scikit-learn

    rows = sample_rows(data.x)
    x = select_examples(rows[space(0, len(rows), _MOST_ROWS)], data.scale)
    found = torch.zeros(x.shape[1], dtype=torch.bool)
    columns = ((scales > 0) & ~((x == 0) | (x == 1) | x.isnan()).all(0)).nonzero()[:, 0]
    if not 2 <= len(columns) <= _MOST_COMPARED or len(x) < 2:
        return found
    observed = (~x[:, columns].isnan()).double()
    values = fill_missing(x[:, columns]) / scales[columns]
    values -= values.mean(0)
    # Of each pair of columns in the rows that have both; then positive definite by the eigenvalues.
    covariance = values.T @ values / (observed.T @ observed).clamp_min(1.0)
    shrinkage = max(_LEAST_SHRINKAGE, float(ledoit_wolf_shrinkage(values.numpy())))
    variances, directions = torch.linalg.eigh(torch.from_numpy(shrunk_covariance(covariance.numpy(), shrinkage)))
    variances = variances.clamp_min(_LEAST_SHRINKAGE * float(covariance.diag().mean()))
    found[columns] = (directions**2 / variances).sum(1) * covariance.diag() > 1.0 / _LEAST_RESIDUAL
    return found


def _noise_scales(data: SemiSupervisedData, likelihood: Any) -> Tensor:
    """Return what one unit of noise is, ``(D,)``: a standard deviation, 1 for zeros and ones, 0 for categories."""
    x = select_examples(sample_rows(data.x), data.scale)
    _, scales = standard_units(x)
    scales[((x == 0) | (x == 1) | x.isnan()).all(0)] = 1.0  # the networks see them as they are
    for columns, part in group_columns(likelihood, x.shape[1]):
        if getattr(part, "one_hot", False):
            scales[columns] = 0.0
    return scales
