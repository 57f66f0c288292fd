"""Measures of energy models of images, by features of a reference classifier and by energies of other images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_ssvae.data import SemiSupervisedData, prepare
from pyro_ssvae.evaluation.reference_classifier import ReferenceClassifier, get_held_out
from pyro_ssvae.evaluation.two_sample import frechet_distance
from pyro_ssvae.models import DDGM
from pyro_ssvae.models.base import fork_random_state

__all__ = [
    "CORRUPTIONS",
    "compute_energies",
    "corrupt_images",
    "energy_auroc",
    "find_nearest",
    "measure_generated_images",
    "measure_image_model",
    "sample_images",
]

CORRUPTIONS = ("noise", "permuted", "shifted", "flipped", "blank", "blurred")
"""What :func:`corrupt_images` does to images."""

_DIGITS = ("mnist", "digits")  # data sets whose classes are the digits
_SYMMETRIC = (0, 1, 8)  # digits that look alike when flipped from left to right
_MAX_SETS = 10  # sets of each kind over whose pairs the Fréchet distance is averaged
_SAMPLES_AT_A_TIME = 500


def measure_image_model(
    model: DDGM,
    data: SemiSupervisedData,
    known: SemiSupervisedData | None = None,
    *,
    others: Mapping[str, Tensor] | None = None,
    num_samples: int = 5000,
    seed: int = 0,
    progress: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Return all measures of an energy model of images.

    Held-out images are the test images, or the validation images if there are none. Measures that need held-out images
    are left out without either.

    Args:
        model: The model.
        data: Its training data, with held-out images.
        known: The same data with labels, to train a :class:`ReferenceClassifier` on; ``None``, or data without labels,
            to leave out what needs one.
        others: Images of other data sets by name, as for :func:`energy_auroc`.
        num_samples: As for :func:`measure_generated_images`.
        seed: Seed of the classifier and of all draws; the caller's random state is left as it was.
        progress: Called after each of the classifier's ``REFERENCE_STEPS`` steps, if given.

    Returns:
        ``held_out``: ``"test"``, ``"validation"`` or ``None``. With a classifier, the results of
        :func:`measure_generated_images` and its error on held-out images, ``reference_error``. With held-out images,
        ``auroc`` from :func:`energy_auroc`. ``nearest_training_image``: distances to the nearest training image
        (:func:`find_nearest`) of up to 200 ``generated`` images and as many held-out ones, ``test`` or ``validation``:
        for each the minimum ``least``, the 5 % quantile ``low`` and the ``median``.

    Raises:
        ValueError: For fewer than two samples, or other images that do not fit (:func:`energy_auroc`).
    """
    if num_samples < 2:
        raise ValueError(f"num_samples={num_samples} must be at least 2: the Fréchet distance compares sets of images.")
    _check_others(model, others or {})
    part, x, y = get_held_out(data)
    found: dict[str, Any] = {"held_out": part}
    if known is not None and known.num_labelled:
        reference, error = ReferenceClassifier.train_on(known, seed=seed, progress=progress)
        found |= {} if math.isnan(error) else {"reference_error": error}
        found |= measure_generated_images(model, data, reference, num_samples=num_samples, seed=seed)
    x, train = prepare(x, scale=data.scale), prepare(data.x, scale=data.scale)
    if part is not None:
        found["auroc"] = energy_auroc(model, x, y if data.name in _DIGITS else None, others, seed=seed)
    count = min(200, len(x)) or 200
    compared = {"generated": sample_images(model, count, seed)} | ({part: x[:count]} if part is not None else {})
    found["nearest_training_image"] = {
        name: _summarise(find_nearest(images, train)[0]) for name, images in compared.items()
    }
    return found


def _summarise(distances: Tensor) -> dict[str, float]:
    quantiles = torch.tensor([0.0, 0.05, 0.5])
    return dict(zip(("least", "low", "median"), distances.cpu().quantile(quantiles).tolist(), strict=True))


def measure_generated_images(
    model: DDGM,
    data: SemiSupervisedData,
    reference: ReferenceClassifier,
    *,
    num_samples: int = 5000,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Compare generated with real images by the features h(x) and probabilities p(y|x) of a reference classifier.

    .. math:: \text{share}_k = \frac1N \sum_n \bigl[\arg\max_y p(y \mid x_n) = k\bigr], \qquad
        \text{confidence} = \frac1N \sum_n \max_y p(y \mid x_n)

    and :func:`~pyro_ssvae.evaluation.frechet_distance` of h. That distance is biased upwards for small sets, so
    generated, training and held-out images are split into disjoint sets of one size, and it is averaged over all pairs
    of up to ten sets of either kind.

    Args:
        model: The model.
        data: Training images and held-out ones, test or else validation images; both are drawn without replacement.
        reference: From :meth:`ReferenceClassifier.train_on`.
        num_samples: Largest number of images in a set; at least 2. At least so many images are generated.
        seed: Seed of all draws; the caller's random state is left as it was.

    Returns:
        ``frechet_distance`` of generated from training images, ``frechet_rows``, the size of the sets, and
        ``frechet_sets``, the number of sets of training images; ``class_shares`` of generated images, the smallest of
        them, ``least_share``, and ``confidence``. With held-out images ``real_class_shares`` and ``real_confidence`` of
        these and, for at least two, ``frechet_floor``, their Fréchet distance from training images.

    Raises:
        ValueError: For fewer than two samples or training images.
    """
    if num_samples < 2 or len(data.x) < 2:
        raise ValueError(
            f"num_samples={num_samples} and the {len(data.x)} training images must both be at least 2: the Fréchet "
            "distance takes the covariance of features."
        )
    generator = torch.Generator().manual_seed(seed)
    _, held_out, _ = get_held_out(data)
    orders = (torch.randperm(len(x), generator=generator)[: _MAX_SETS * num_samples] for x in (data.x, held_out))
    real, other = (x[order] for x, order in zip((data.x, held_out), orders, strict=True))
    enough = len(other) >= 2
    size = min(num_samples, len(real), *([len(other)] if enough else []))
    num_sets = min(_MAX_SETS, len(real) // size)
    real_features, _ = reference.evaluate(real[: num_sets * size], scale=data.scale)
    # A few images at a time are in memory.
    parts = [reference.evaluate(part) for part in _samples(model, max(num_samples, num_sets * size), seed)]
    features, probabilities = (torch.cat(part) for part in zip(*parts, strict=True))
    shares = _class_shares(probabilities)
    found: dict[str, Any] = {
        "frechet_rows": size,
        "frechet_sets": num_sets,
        "frechet_distance": _mean_distance(features, real_features, size),
        "class_shares": shares,
        "least_share": min(shares),
        "confidence": _confidence(probabilities),
    }
    if len(other):
        features, probabilities = reference.evaluate(other[: _MAX_SETS * size], scale=data.scale)
        found |= {"real_class_shares": _class_shares(probabilities), "real_confidence": _confidence(probabilities)}
        if enough:
            found["frechet_floor"] = _mean_distance(features, real_features, size)
    return found


def _mean_distance(x: Tensor, y: Tensor, size: int) -> float:
    """Return the mean Fréchet distance over pairs of sets of ``size`` images, up to ten of either kind."""
    firsts, seconds = ([part for part in rows.split(size)[:_MAX_SETS] if len(part) == size] for rows in (x, y))
    return statistics.mean(frechet_distance(first, second) for first in firsts for second in seconds)


def _class_shares(probabilities: Tensor) -> list[float]:
    count = torch.bincount(probabilities.argmax(-1), minlength=probabilities.shape[-1])
    shares: list[float] = (count.double() / len(probabilities)).tolist()
    return shares


def _confidence(probabilities: Tensor) -> float:
    return float(probabilities.max(-1).values.mean())


def corrupt_images(x: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Return corrupted images, with the shape of ``x``.

    Args:
        x: Images with shape ``(N, C, H, W)``, in [0, 1].
        kind: ``"noise"`` (uniform pixels), ``"permuted"`` (the pixels of each image in a random order), ``"shifted"``
            (4 pixels in a random direction, filled with black), ``"flipped"`` (left to right), ``"blank"`` (all black),
            ``"blurred"`` (Gaussian, standard deviation 2 pixels).
        generator: Source of randomness.

    Raises:
        ValueError: For an unknown kind.
    """
    from torchvision.transforms.functional import gaussian_blur

    if kind == "noise":
        return torch.rand(x.shape, generator=generator)
    if kind == "permuted":
        order = torch.rand(len(x), x.shape[-1] * x.shape[-2], generator=generator).argsort(-1)
        return x.flatten(2).gather(-1, order.unsqueeze(1).expand(-1, x.shape[1], -1)).view(x.shape)
    if kind == "shifted":
        padded = F.pad(x, (4, 4, 4, 4))
        height, width = x.shape[-2:]
        offsets = torch.tensor([(0, 4), (8, 4), (4, 0), (4, 8)])[torch.randint(4, (len(x),), generator=generator)]
        return torch.stack(
            [image[:, i : i + height, j : j + width] for image, (i, j) in zip(padded, offsets.tolist(), strict=True)]
        )
    if kind == "flipped":
        return x.flip(-1)
    if kind == "blank":
        return torch.zeros_like(x)
    if kind == "blurred":
        from torchvision.transforms.functional import gaussian_blur

        return gaussian_blur(x, kernel_size=[13, 13], sigma=[2.0, 2.0])
    raise ValueError(f"kind={kind!r} must be one of {', '.join(CORRUPTIONS)}.")


def energy_auroc(
    model: DDGM,
    x: Tensor,
    y: Tensor | None = None,
    others: Mapping[str, Tensor] | None = None,
    *,
    seed: int = 0,
) -> dict[str, float]:
    r"""Return how well the energy tells real images from corrupted and from other ones: the area under the ROC curve.

    .. math:: \mathrm{AUROC} = P\bigl(E(x') > E(x)\bigr) + \tfrac12 P\bigl(E(x') = E(x)\bigr)

    for a real image x and another image x'. One half is chance, 1 is perfect, and 0 means that all x' have less energy
    than all x.

    Args:
        model: The model.
        x: Real images with shape ``(N, C, H, W)``, scaled as in training, that it was not trained on.
        y: Their classes if they are digits, to leave the nearly symmetric 0, 1 and 8 out of ``"flipped"``.
        others: Images of other data sets by name, each ``(M, C, H, W)``, scaled as in training.
        seed: Seed of the corruptions.

    Returns:
        An area for each of ``CORRUPTIONS``, unless no real image remains, and for each name in ``others``.

    Raises:
        ValueError: Without real images, or if others are empty, not floating point, of another shape, or named like a
            corruption.
    """
    others = others or {}
    _check_others(model, others)
    if not len(x):
        raise ValueError("There is no real image to tell others from; hand in test or validation images.")
    generator = torch.Generator().manual_seed(seed)
    real = compute_energies(model, x)
    found = {}
    for kind in CORRUPTIONS:
        kept = torch.ones(len(x), dtype=torch.bool)
        if kind == "flipped" and y is not None:
            kept = ~torch.isin(y, torch.tensor(_SYMMETRIC))
        if kept.any():
            found[kind] = _auroc(real[kept], compute_energies(model, corrupt_images(x[kept], kind, generator)))
    return found | {name: _auroc(real, compute_energies(model, images)) for name, images in others.items()}


def _auroc(real: Tensor, other: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    truth = torch.cat([torch.zeros(len(real)), torch.ones(len(other))])
    return float(roc_auc_score(truth.numpy(), torch.cat([real, other]).numpy()))


def _check_others(model: DDGM, others: Mapping[str, Tensor]) -> None:
    for name, images in others.items():
        if name in CORRUPTIONS:
            raise ValueError(f"others[{name!r}] has the name of a corruption; take another one.")
        if images.shape[1:] != model.event_shape or not images.is_floating_point() or not len(images):
            raise ValueError(
                f"others[{name!r}] has shape {tuple(images.shape)} and dtype {images.dtype}; at least one floating-"
                f"point image of shape {tuple(model.event_shape)} is needed, scaled as in training."
            )


def sample_images(model: DDGM, count: int, seed: int) -> Tensor:
    """Return samples of a model, ``(count, *event_shape)``, drawn by a seed of their own, on the CPU."""
    return torch.cat(list(_samples(model, count, seed)))


def _samples(model: DDGM, count: int, seed: int) -> Iterator[Tensor]:
    with fork_random_state(model, seed):
        for done in range(0, count, _SAMPLES_AT_A_TIME):
            yield model.sample(min(_SAMPLES_AT_A_TIME, count - done)).cpu()


def compute_energies(model: DDGM, x: Tensor) -> Tensor:
    """Return E(x) in nats, with shape ``(N,)``, computed in batches, on the CPU."""
    return torch.cat([model.energy(part).cpu() for part in x.split(1000)])


def find_nearest(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the Euclidean distances of examples to their nearest reference examples, and the indices of these.

    .. math:: d_n = \min_m \|x_n - r_m\|

    Args:
        x: Examples with shape ``(N, *event_shape)``.
        reference: Examples r with shape ``(M, *event_shape)``.

    Returns:
        Distances and indices into ``reference``, both with shape ``(N,)``.
    """
    flat = reference.flatten(1).to(x.dtype)
    nearest = torch.cat([torch.cdist(part, flat).argmin(-1) for part in x.flatten(1).split(500)])
    return (x.flatten(1) - flat[nearest]).norm(dim=-1), nearest
