r"""What a model of images is measured by: the features of a small classifier, and what its energy takes for real."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_ssvae.data import SemiSupervisedData, prepare
from pyro_ssvae.evaluation.reference_classifier import ReferenceClassifier, get_held_out, measure_generated_images
from pyro_ssvae.models import DDGM
from pyro_ssvae.models.base import fork_random_state

__all__ = [
    "CORRUPTIONS",
    "corrupt_images",
    "sample_images",
    "compute_energies",
    "energy_auroc",
    "measure_image_model",
    "find_nearest",
]

_DIGITS = ("mnist", "digits")  # data whose classes are the digits
_SYMMETRIC = (0, 1, 8)  # digits that flipping left to right hardly changes
CORRUPTIONS = ("noise", "permuted", "shifted", "flipped", "blank", "blurred")
"""What :func:`corrupt_images` does to images."""


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
    """Return everything that an energy model of images is measured by.

    Real images that the model has not seen are test rows, in their absence validation rows. Without either, what needs
    them is left out; training rows never stand in.

    Args:
        model: The model.
        data: What it was trained on, and rows held out.
        known: The same data with its labels, for a judge to learn from (:meth:`ReferenceClassifier.train_on`); ``None`` or
            data without labels for measures that need none.
        others: Images of other data by name, for ``auroc``, as in :func:`energy_auroc`.
        num_samples: As in :func:`measure_generated_images`.
        seed: Of the judge and of everything drawn; the caller's random state is left as it was.
        progress: Called after each of the judge's ``REFERENCE_STEPS`` steps, if given.

    Returns:
        ``held_out``: ``"test"``, ``"validation"`` or ``None``, the rows that were held out. With a judge what
        :func:`measure_generated_images` returns, and on held-out rows its own ``judge_error``. On held-out rows ``auroc``,
        from :func:`energy_auroc`. ``nearest_training_image``, distances to the nearest training image
        (:func:`find_nearest`) of up to 200 ``generated`` images and as many held-out ones, under ``test`` or
        ``validation``: of each the ``least``, the ``low`` one that 5 % lie below, and the ``median``.

    Raises:
        ValueError: For fewer than two samples, or other data that do not fit (:func:`energy_auroc`).
    """
    if num_samples < 2:
        raise ValueError(f"num_samples={num_samples} must be at least 2: distances compare sets of images.")
    _check_others(model, others or {})
    part, x, y = get_held_out(data)
    found: dict[str, Any] = {"held_out": part}
    if known is not None and known.num_labelled:
        reference, error = ReferenceClassifier.train_on(known, seed=seed, progress=progress)
        found |= {} if math.isnan(error) else {"judge_error": error}
        found |= measure_generated_images(model, data, reference, num_samples=num_samples, seed=seed)
    x, train = prepare(x, scale=data.scale), prepare(data.x, scale=data.scale)
    if part is not None:
        found["auroc"] = energy_auroc(model, x, y if data.name in _DIGITS else None, others, seed=seed)
    count = min(200, len(x)) or 200
    compared = {"generated": sample_images(model, count, seed)} | ({part: x[:count]} if part is not None else {})
    found["nearest_training_image"] = {
        name: _summary_of(find_nearest(rows, train)[0]) for name, rows in compared.items()
    }
    return found


def _summary_of(distances: Tensor) -> dict[str, float]:
    quantiles = torch.tensor([0.0, 0.05, 0.5])
    return dict(zip(("least", "low", "median"), distances.cpu().quantile(quantiles).tolist(), strict=True))


def corrupt_images(x: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Return images that are no longer what they were, with the shape of ``x``.

    Args:
        x: Images with shape ``(N, C, H, W)``, in [0, 1].
        kind: ``"noise"`` (uniform pixels), ``"permuted"`` (the pixels of each image in an order of its own),
            ``"shifted"`` (4 pixels in a direction of its own, black behind), ``"flipped"`` (left to right),
            ``"blank"`` (all black), ``"blurred"`` (Gaussian, standard deviation 2 pixels).
        generator: Of what is random.

    Raises:
        ValueError: For an unknown kind.
    """
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
    r"""Return how well the energy tells real images from corrupt_images and from other ones: the area under the ROC curve.

    .. math:: \mathrm{AUROC} = P\bigl(E(x') > E(x)\bigr) + \tfrac12 P\bigl(E(x') = E(x)\bigr)

    for a real image x and one x' of the other kind. One half is chance, 1 is perfect; a blank image that has less
    energy than all real ones gives 0.

    Args:
        model: The model.
        x: Real images with shape ``(N, C, H, W)``, as the model sees them, that it was not trained on.
        y: Their classes, where they are digits: 0, 1 and 8 are then left out of ``"flipped"``.
        others: Images of other data by name, each ``(M, C, H, W)``, floating point, as the model sees them.
        seed: Of what is random.

    Returns:
        An area for each kind of :func:`corrupt_images` images, left out where no real image remains, and for each name in
        ``others``.

    Raises:
        ValueError: For no real image, or others that are not floating point, of another shape, none at all, or named
            like an alteration.
    """
    others = others or {}
    _check_others(model, others)
    if not len(x):
        raise ValueError("There is no real image to tell others from; hand in test or validation rows.")
    generator = torch.Generator().manual_seed(seed)
    real = compute_energies(model, x)
    found = {}
    for kind in CORRUPTIONS:
        kept = torch.ones(len(x), dtype=torch.bool)
        if kind == "flipped" and y is not None:
            kept = ~torch.isin(y, torch.tensor(_SYMMETRIC))
        if kept.any():
            found[kind] = _area(real[kept], compute_energies(model, corrupt_images(x[kept], kind, generator)))
    return found | {name: _area(real, compute_energies(model, images)) for name, images in others.items()}


def _area(real: Tensor, other: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    truth = torch.cat([torch.zeros(len(real)), torch.ones(len(other))])
    return float(roc_auc_score(truth.numpy(), torch.cat([real, other]).numpy()))


def _check_others(model: DDGM, others: Mapping[str, Tensor]) -> None:
    for name, images in others.items():
        if name in CORRUPTIONS:
            raise ValueError(f"others[{name!r}] has the name of an alteration; take another one.")
        if images.shape[1:] != model.event_shape or not images.is_floating_point() or not len(images):
            raise ValueError(
                f"others[{name!r}] has shape {tuple(images.shape)} and dtype {images.dtype}; at least one floating-"
                f"point image of shape {tuple(model.event_shape)} is needed, scaled as in training."
            )


def sample_images(model: DDGM, count: int, seed: int, **options: Any) -> Tensor:
    """Return rows ``(count, *event_shape)`` of ``model.sample``, drawn in parts by a seed of their own, on the CPU."""
    with fork_random_state(model, seed):
        return torch.cat([model.sample(min(500, count - done), **options).cpu() for done in range(0, count, 500)])


def compute_energies(model: DDGM, x: Tensor) -> Tensor:
    """Return E(x) of many rows, in nats, with shape ``(N,)``, taken in parts, on the CPU."""
    return torch.cat([model.energy(part).cpu() for part in x.split(1000)])


def find_nearest(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the Euclidean distance of each row to the nearest reference row, and which that is.

    .. math:: d_n = \min_m \|x_n - r_m\|

    Args:
        x: Rows with shape ``(N, *event_shape)``.
        reference: Rows with shape ``(M, *event_shape)``.

    Returns:
        Distances and positions in ``reference``, both with shape ``(N,)``.
    """
    flat = reference.flatten(1)
    nearest = torch.cat([torch.cdist(part, flat).argmin(-1) for part in x.flatten(1).split(500)])
    return (x.flatten(1) - flat[nearest]).norm(dim=-1), nearest
