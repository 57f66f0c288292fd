"""Regularisers added to J^α: augmentation of the classifier's input, consistency of q(y|x) across augmentations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_ssvae._arguments import checked
from pyro_ssvae._arrays import value_range
from pyro_ssvae._configurable import Configurable, describe
from pyro_ssvae._division import gather_rows, mean_over_ranks
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.preparation import find_background
from pyro_ssvae.data.storage import sample_rows, space
from pyro_ssvae.distributions import Bernoulli, FixedClassPrior
from pyro_ssvae.distributions.likelihoods import fill_missing, group_columns, select_examples, standard_units
from pyro_ssvae.models.base import full_precision
from pyro_ssvae.networks.images import make_affine_maps
from pyro_ssvae.objectives.energy_terms import draw_positions, gather_pixels
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

# Weights of the bound of images whose likelihood is not Bernoulli, chosen as docs/results_images.md says.
_GREY_BOUND, _COLOUR_BOUND = 0.1, 0.01

# Share of the images on a plain background that are changed, unless their neighbours predict the labels: a classifier
# of changed images alone errs more often on others (docs/results.md).
_CHANGED = 0.5

_BRIGHTNESS = 0.05  # standard deviation of changes of brightness, where x fills [0, 1]

CONSISTENCY_WEIGHT = 10.0
"""Default weight of the consistency."""

TABLE_ALIGNMENT = 0.5
"""Default power of the alignment with known or estimated class frequencies on tables (docs/results_tables.md)."""


class Augmentation(Configurable, abstract=True):
    """Base class of random changes of the examples of a batch, which keep their shape."""

    name = "augmentation"

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return describe(self)["arguments"]


class AffineAugmentation(Augmentation):
    """A random affine map for each image of a batch, by bilinear sampling; ``fill`` is what lies outside the image.

    Args:
        rotation: Standard deviation of the angle, in radians.
        log_scale: Standard deviation of the logarithm of the zoom, drawn for each axis.
        shear: Standard deviation of the shear, as a slope.
        shift: Standard deviation of the translation, as a fraction of the image's size.
        strength: Factor of all four.
        fill: Value of the pixels outside the image, in the units of x.
        probability: Probability of an image to be changed at all.

    Raises:
        ValueError: For a probability outside [0, 1].

    Example:
        >>> AffineAugmentation(strength=0.0)(torch.ones(2, 1, 8, 8)).mean()
        tensor(1.)
    """

    def __init__(
        self,
        rotation: float = 0.15,
        log_scale: float = 0.08,
        shear: float = 0.15,
        shift: float = 0.04,
        strength: float = 1.0,
        fill: float = 0.0,
        probability: float = 1.0,
    ) -> None:
        super().__init__()
        self.rotation, self.log_scale, self.shear, self.shift = rotation, log_scale, shear, shift
        self.strength, self.fill, self.probability = strength, fill, probability

    def forward(self, x: Tensor) -> Tensor:
        """Return augmented images with the shape of ``x``, ``(B, C, H, W)``."""
        if x.dim() != 4:
            raise ValueError(f"Affine maps are for images (B, C, H, W), and the examples here are {tuple(x.shape)}.")
        grid = F.affine_grid(self.maps(x), list(x.shape), align_corners=False)
        if not self.fill:
            return F.grid_sample(x, grid, align_corners=False)
        return F.grid_sample(x - self.fill, grid, align_corners=False) + self.fill

    def maps(self, x: Tensor) -> Tensor:
        """Draw maps from output to input coordinates, each in [-1, 1], for images ``(B, C, H, W)``: ``(B, 2, 3)``."""
        draws = torch.randn(6, x.shape[0], device=x.device, dtype=x.dtype) * self.strength
        if self.probability < 1.0:
            draws = draws * (torch.rand(x.shape[0], device=x.device) < self.probability)
        scales = (self.rotation, self.log_scale, self.log_scale, self.shear, self.shift, self.shift)
        return make_affine_maps(torch.stack([scale * draw for scale, draw in zip(scales, draws, strict=True)]))


class PhotoAugmentation(Augmentation):
    """A random crop, flip and change of colours for each photograph of a batch.

    The crop has the size of the image and is taken from the image with mirrored margins. Colours are changed by the
    same amounts in all pixels of an image. The last of four channels is opacity, and keeps its values.

    Args:
        crop: Largest shift of the crop, as a fraction of the height and of the width.
        flip: Probability of exchanging left and right.
        brightness: Standard deviation of what is added, in the units of x.
        contrast: Standard deviation of the logarithm of the factor of differences from the mean pixel.
        saturation: That of the factor of differences from grey.
        strength: Factor of all but ``flip``.

    Example:
        >>> PhotoAugmentation()(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        crop: float = 0.125,
        flip: float = 0.5,
        brightness: float = _BRIGHTNESS,
        contrast: float = 0.15,
        saturation: float = 0.2,
        strength: float = 1.0,
    ) -> None:
        super().__init__()
        self.crop, self.flip, self.strength = crop, flip, strength
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation

    def forward(self, x: Tensor) -> Tensor:
        """Return augmented images with the shape of ``x``, ``(B, C, H, W)``."""
        if x.dim() != 4:
            raise ValueError(f"Crops are of images (B, C, H, W), and the examples here are {tuple(x.shape)}.")
        down, along = (self._positions(x, size) for size in x.shape[-2:])
        x = gather_pixels(x, down, along, self.flip)
        added, contrast, saturation = torch.randn(3, len(x), 1, 1, 1, device=x.device, dtype=x.dtype) * self.strength
        x, opacity = (x[:, :3], x[:, 3:]) if x.shape[1] == 4 else (x, x[:, :0])
        grey = x.mean(1, keepdim=True)
        x = grey + (self.saturation * saturation).exp() * (x - grey)
        mean = grey.mean((2, 3), keepdim=True)
        x = mean + (self.contrast * contrast).exp() * (x - mean) + self.brightness * added
        return torch.cat([x, opacity], 1) if opacity.shape[1] else x

    def _positions(self, x: Tensor, size: int) -> Tensor:
        positions = draw_positions(x, size, min(round(self.crop * self.strength * size), size - 1)).abs()
        return size - 1 - (size - 1 - positions).abs()


class ColumnAugmentation(Augmentation):
    """Random changes of the rows of a table: values of other rows of the batch, and noise; missing values stay missing.

    Args:
        swap: Probability of a value to be replaced by that of another row in the same column; one for each column, or
            one for all.
        noise: Standard deviation of the noise in the units of x, likewise.

    Raises:
        ValueError: For a probability outside [0, 1], or negative noise.

    Example:
        >>> ColumnAugmentation(swap=[1.0, 0.0])(torch.ones(3, 2)).sum()
        tensor(6.)
    """

    swap: Tensor
    noise: Tensor

    def __init__(self, swap: float | Sequence[float] = 0.2, noise: float | Sequence[float] = 0.0) -> None:
        super().__init__()
        for given, values, most in (("swap", swap, 1.0), ("noise", noise, math.inf)):
            numbers = torch.as_tensor(values, dtype=torch.get_default_dtype())
            if not ((numbers >= 0.0) & (numbers <= most) & numbers.isfinite()).all():
                raise ValueError(f"{given}={values} must be at least 0 and {'at most 1' if most == 1 else 'finite'}.")
            self.register_buffer(given, numbers)
        self._swaps, self._adds = bool(self.swap.any()), bool(self.noise.any())

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, in single precision."""
        return {"swap": self.swap.tolist(), "noise": self.noise.tolist()}

    def forward(self, x: Tensor) -> Tensor:
        """Return changed rows with the shape of ``x``, ``(B, D)``."""
        if self._swaps:
            rows = gather_rows(x)
            others = rows.gather(0, torch.randint(len(rows), x.shape, device=x.device))
            x = torch.where(torch.rand(x.shape, device=x.device) < self.swap, others, x)
        return x + self.noise * torch.randn_like(x) if self._adds else x


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

    Those of tables are weaker the more labels there are. The bound of images whose likelihood is not Bernoulli, of
    hundreds of nats or thousands, has a tenth of its weight in J^α, in colour a hundredth, and that of a table with
    fewer rows than columns (but those of counts) the square of their ratio: with its whole weight the noise of the
    columns decides q(y|x). Predictions are aligned with the class prior if it is fixed, for tables less strongly and
    only if it is given: the classes of a table are seldom of equal size, and alignment with equal shares then does much
    harm. Without any label there is no consistency, as confident predictions would be arbitrary.
    """
    number, prior = int(module.num_classes), getattr(module, "class_prior", None)
    options: dict[str, Any] = {"align": float(prior is None or isinstance(prior, FixedClassPrior))}
    if isinstance(prior, FixedClassPrior) and not prior.uniform:
        options["shares"] = prior.mean().tolist()
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


def _choose_for_images(module: Any, data: SemiSupervisedData) -> tuple[Augmentation, dict[str, Any], dict[str, Any]]:
    """Return the augmentation of labelled images, and arguments of their consistency and of the objective."""
    background = None if data.event_shape[0] >= 3 else find_background(data.x, data.scale)
    kind: Callable[..., Augmentation]
    options: dict[str, Any] = {}
    if background is None:
        kind = _photo_augmentation(data)
    else:
        options["neighbours"] = neighbours = NeighbourDensities.for_data(data, background=background)
        share = _CHANGED if neighbours is None else 1.0
        kind = partial(AffineAugmentation, fill=background, probability=share)
    weak, options["strong"] = kind(), kind(strength=1.5)
    likelihood = None if getattr(module, "bound_of_latents", False) else getattr(module, "likelihood", None)
    if likelihood is None or isinstance(likelihood, Bernoulli):
        return weak, options, {}
    return weak, options, {"bound_weight": _GREY_BOUND if data.event_shape[0] < 3 else _COLOUR_BOUND}


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
    return PhotoAugmentation if usual else partial(PhotoAugmentation, brightness=_BRIGHTNESS * (high - low))


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
