"""Measures of energy models of images, by features of a reference classifier and by energies of other images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.preparation import iterate_batches, rescale
from pyro_ssvae.data.storage import sample_rows
from pyro_ssvae.models.base import fork_random_state, seeded
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.networks.variational import check_module, evaluation_mode
from pyro_ssvae.objectives.augmentation import AffineAugmentation

CORRUPTIONS = ("noise", "permuted", "shifted", "flipped", "blank", "blurred")
REFERENCE_STEPS = 3000
_REFERENCE_BATCH = 100
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

    Args:
        model: The model.
        data: Its training data. Held-out images are the test images, or the validation images if there are none.
        known: The same data with labels, to train a reference classifier on, if there is one.
        others: Images of other data sets by name, each ``(M, C, H, W)``, scaled as in training.
        num_samples: Largest number of images in a set of the Fréchet distance; at least 2.
        seed: Seed of the classifier and of all draws; the caller's random state is left as it was.
        progress: Called after each of the classifier's steps, if given.

    Returns:
        What the documentation lists (*The run folder and the result file*): of generated images only with ``known``
        labels, and ``auroc`` only with held-out images. ``nearest_training_image`` is of up to 200 images.

    Raises:
        ValueError: For fewer than two samples or training images, or if others are empty, not floating point, of
            another shape, or named like a corruption.
    """
    if min(num_samples, len(data.x)) < 2:
        raise ValueError(
            f"num_samples={num_samples} and the {len(data.x)} training images must both be at least 2: the Fréchet "
            "distance takes the covariance of features."
        )
    _check_others(model, others or {})
    part, x, y = get_held_out(data)
    found: dict[str, Any] = {"held_out": part}
    if known is not None and known.num_labelled:
        reference, error = ReferenceClassifier.train_on(known, seed=seed, progress=progress)
        found |= {} if math.isnan(error) else {"reference_error": error}
        found |= measure_generated_images(model, data, reference, num_samples=num_samples, seed=seed)
    x, train = rescale(x, data.scale), rescale(sample_rows(data.x), data.scale)
    if part is not None:
        found["auroc"] = energy_auroc(model, x, y if data.name in _DIGITS else None, others, seed=seed)
    count = min(200, len(x)) or 200
    compared = {"generated": sample_images(model, count, seed)} | ({part: x[:count]} if part is not None else {})
    found["nearest_training_image"] = nearest = {}
    for name, images in compared.items():
        quantiles = find_nearest(images, train)[0].quantile(torch.tensor([0.0, 0.05, 0.5]))
        nearest[name] = dict(zip(("least", "low", "median"), quantiles.tolist(), strict=True))
    return found


def measure_generated_images(
    model: DDGM, data: SemiSupervisedData, reference: ReferenceClassifier, *, num_samples: int = 5000, seed: int = 0
) -> dict[str, Any]:
    """Compare generated with real images by the features h(x) and probabilities p(y|x) of a reference classifier.

    The :func:`frechet_distance` of features is biased upwards for small sets, so generated, training and held-out
    images are split into disjoint sets of one size, up to ``num_samples``, and it is averaged over all pairs of up to
    ten sets of either kind. At least ``num_samples`` images are generated. Shares of classes are those of predictions,
    and the confidence is the mean of the largest probability.
    """
    generator = torch.Generator().manual_seed(seed)
    real, other = (
        x[torch.randperm(len(x), generator=generator)[: _MAX_SETS * num_samples]]
        for x in (sample_rows(data.x), get_held_out(data)[1])
    )
    size = min(num_samples, len(real), len(other) if len(other) >= 2 else num_samples)
    num_sets = min(_MAX_SETS, len(real) // size)
    real_features, _ = reference.evaluate(real[: num_sets * size], scale=data.scale)
    # A few images at a time are in memory.
    parts = [reference.evaluate(part) for part in _samples(model, max(num_samples, num_sets * size), seed)]
    features, probabilities = (torch.cat(part) for part in zip(*parts, strict=True))
    found: dict[str, Any] = {"frechet_size": size, "frechet_sets": num_sets}
    found["frechet_distance"] = _mean_distance(features, real_features, size)
    found["class_shares"], found["confidence"] = _describe_predictions(probabilities)
    found["least_share"] = min(found["class_shares"])
    if len(other):
        features, probabilities = reference.evaluate(other[: _MAX_SETS * size], scale=data.scale)
        found["real_class_shares"], found["real_confidence"] = _describe_predictions(probabilities)
    if len(other) >= 2:
        found["frechet_floor"] = _mean_distance(features, real_features, size)
    return found


def frechet_distance(x: Tensor, y: Tensor) -> float:
    r"""Return the squared Fréchet distance between Gaussians fitted to two sets of features.

    .. math:: \|\mu_x - \mu_y\|^2 + \mathrm{tr}\bigl(C_x + C_y - 2 (C_x^{1/2} C_y C_x^{1/2})^{1/2}\bigr)

    (GANs Trained by a Two Time-Scale Update Rule, Heusel et al., 2017, equation 6.) The estimate is biased upwards for
    small samples: compare it with the distance of two real samples of the same sizes. Features have shapes ``(N, D)``
    and ``(M, D)``, with N and M at least 2.
    """
    x, y = x.double(), y.double()
    first, second = torch.cov(x.T).view(x.shape[1], -1), torch.cov(y.T).view(x.shape[1], -1)
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp_min(0.0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0.0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + first.trace() + second.trace() - 2.0 * cross)


def _mean_distance(x: Tensor, y: Tensor, size: int) -> float:
    """Return the mean Fréchet distance over pairs of sets of ``size`` images, up to ten of either kind."""
    firsts, seconds = ([part for part in images.split(size)[:_MAX_SETS] if len(part) == size] for images in (x, y))
    return statistics.mean(frechet_distance(first, second) for first in firsts for second in seconds)


def _describe_predictions(probabilities: Tensor) -> tuple[list[float], float]:
    count = torch.bincount(probabilities.argmax(-1), minlength=probabilities.shape[-1])
    return (count.double() / len(probabilities)).tolist(), float(probabilities.max(-1).values.mean())


class ReferenceClassifier(nn.Module):
    """A small convolutional classifier of images ``(C, H, W)`` with 64 features, which evaluates generated images."""

    def __init__(self, event_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        body = nn.Sequential(
            nn.Conv2d(event_shape[0], 32, 5, stride=2, padding=2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Flatten(),
        )
        width = int(check_module(body, event_shape, (None,), "body")[-1])
        self.body = nn.Sequential(body, nn.Linear(width, 64), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(64, num_classes))

    @classmethod
    def train_on(
        cls,
        data: SemiSupervisedData,
        *,
        steps: int = REFERENCE_STEPS,
        seed: int = 0,
        progress: Callable[[], None] | None = None,
    ) -> tuple[ReferenceClassifier, float]:
        """Train a classifier on all labelled images of data, with mild augmentation; call ``progress`` after each step.

        Returns it, in evaluation mode, and its error on held-out images (:func:`get_held_out`), or NaN without any.
        """
        known = data.labelled_index
        with seeded(seed), torch.enable_grad():
            reference = cls(data.event_shape, data.num_classes or 0)
            augmentation = AffineAugmentation(strength=0.5)
            optimizer = torch.optim.AdamW(reference.parameters(), fused=True)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
            for _ in range(steps):
                chosen = known[torch.randint(len(known), (_REFERENCE_BATCH,))]
                logits = reference(augmentation(rescale(data.x[chosen], data.scale)))
                optimizer.zero_grad()
                F.cross_entropy(logits, data.y[chosen]).backward()
                optimizer.step()
                schedule.step()
                if progress is not None:
                    progress()
        reference.eval()
        _, x, y = get_held_out(data)
        if not bool((y >= 0).any()):
            return reference, float("nan")
        _, probabilities = reference.evaluate(x[y >= 0], scale=data.scale)
        return reference, float((probabilities.argmax(-1) != y[y >= 0]).double().mean())

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, with shape ``(B, K)``, of images ``(B, C, H, W)``."""
        return self.head(self.body(x))

    def evaluate(self, x: Tensor, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return features ``(N, 64)`` and probabilities ``(N, K)``, on the CPU, of stored images over ``scale``."""
        like = next(self.parameters())
        with torch.no_grad(), evaluation_mode(self):
            features = [self.body(batch.to(like)) for batch in iterate_batches(x, scale=scale, device=like.device)]
            return torch.cat(features).cpu(), torch.cat([self.head(part).softmax(-1) for part in features]).cpu()


def get_held_out(data: SemiSupervisedData) -> tuple[str | None, Tensor, Tensor]:
    """Return ``"test"`` with the test examples as stored and their classes, or the same of validation examples."""
    if len(data.x_test):
        return "test", data.x_test, data.y_test
    return "validation" if len(data.x_validation) else None, data.x_validation, data.y_validation


def corrupt_images(x: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Return images ``(N, C, H, W)`` in [0, 1] corrupted in one way, with the same shape.

    ``kind`` is ``"noise"`` (uniform pixels), ``"permuted"`` (the pixels of each image in a random order), ``"shifted"``
    (4 pixels in a random direction, filled with black), ``"flipped"`` (left to right), ``"blank"`` (all black) or
    ``"blurred"`` (Gaussian, standard deviation 2 pixels).
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
    from torchvision.transforms.functional import gaussian_blur

    return gaussian_blur(x, kernel_size=[13, 13], sigma=[2.0, 2.0])


def energy_auroc(
    model: DDGM, x: Tensor, y: Tensor | None = None, others: Mapping[str, Tensor] | None = None, *, seed: int = 0
) -> dict[str, float]:
    r"""Return how well the energy tells real images from corrupted and from other ones: the area under the ROC curve.

    .. math:: \mathrm{AUROC} = P\bigl(E(x') > E(x)\bigr) + \tfrac12 P\bigl(E(x') = E(x)\bigr)

    for a real image x, ``(N, C, H, W)``, that the model was not trained on, and another image x'. There is an area for
    each of ``CORRUPTIONS``, unless no real image remains, and for each of ``others``, images by name. If images are
    digits, their classes ``y`` leave the nearly symmetric 0, 1 and 8 out of ``"flipped"``.
    """
    generator = torch.Generator().manual_seed(seed)
    real = model.energy(x).cpu()
    found = {}
    for kind in CORRUPTIONS:
        kept = torch.ones(len(x), dtype=torch.bool)
        if kind == "flipped" and y is not None:
            kept = ~torch.isin(y, torch.tensor(_SYMMETRIC))
        if kept.any():
            found[kind] = _auroc(real[kept], model.energy(corrupt_images(x[kept], kind, generator)).cpu())
    return found | {name: _auroc(real, model.energy(images).cpu()) for name, images in (others or {}).items()}


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


def find_nearest(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Euclidean distances ``(N,)`` of examples to their nearest reference examples, and these' indices."""
    flat = reference.flatten(1).to(x.dtype)
    nearest = torch.cat([torch.cdist(part, flat).argmin(-1) for part in x.flatten(1).split(500)])
    return (x.flatten(1) - flat[nearest]).norm(dim=-1), nearest
