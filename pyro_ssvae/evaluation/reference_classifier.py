r"""A small classifier, and generated images in its eyes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_ssvae.data import SemiSupervisedData, iterate_batches, prepare
from pyro_ssvae.evaluation.two_sample import frechet_distance
from pyro_ssvae.models import DDGM
from pyro_ssvae.models.base import evaluation_mode, fork_random_state
from pyro_ssvae.objectives import AffineAugmentation

__all__ = ["REFERENCE_STEPS", "REFINING_STEPS", "ReferenceClassifier", "measure_generated_images", "get_held_out"]

REFERENCE_STEPS = 3000
"""Optimisation steps of a reference."""

SETS = 10
"""Sets of a kind between which the Fréchet distance is averaged, at most."""

REFINING_STEPS = 20
"""Steps of z behind the images that measures and figures call refined."""


class ReferenceClassifier(nn.Module):
    """A small convolutional classifier with 64 features, trained on labelled rows to judge generated images by.

    Args:
        event_shape: Shape of one image, ``(C, H, W)``.
        num_classes: Number of classes ``K``.
    """

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
        with torch.no_grad():
            width = body.eval()(torch.zeros(1, *event_shape)).shape[-1]
        self.body = nn.Sequential(body.train(), nn.Linear(width, 64), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(64, num_classes))

    @classmethod
    def train_on(
        cls,
        data: SemiSupervisedData,
        *,
        steps: int = REFERENCE_STEPS,
        batch_size: int = 100,
        seed: int = 0,
        progress: Callable[[], None] | None = None,
    ) -> tuple[ReferenceClassifier, float]:
        """Train on every labelled row of data, on mildly augmented images.

        Args:
            data: Images of which the training rows carry labels.
            steps: Optimisation steps.
            batch_size: Rows of a step.
            seed: Of weights, order and augmentation; the caller's random state is left as it was.
            progress: Called after each step, if given.

        Returns:
            The reference, in evaluation mode, and its error on test rows, in their absence on validation rows (``nan``
            without either).

        Raises:
            ValueError: If no training row carries a label.
        """
        known = data.labelled_index
        if not len(known) or data.num_classes is None:
            raise ValueError("A judge needs labelled training rows; hand in data with its labels.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            reference = cls(data.event_shape, data.num_classes)
            augmentation = AffineAugmentation(strength=0.5)
            optimizer = torch.optim.AdamW(reference.parameters(), fused=True)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
            for _ in range(steps):
                chosen = known[torch.randint(len(known), (batch_size,))]
                logits = reference(augmentation(prepare(data.x[chosen], scale=data.scale)))
                optimizer.zero_grad()
                F.cross_entropy(logits, data.y[chosen]).backward()
                optimizer.step()
                schedule.step()
                if progress is not None:
                    progress()
        reference.eval()
        _, x, y = get_held_out(data)
        x, y = x[y >= 0], y[y >= 0]
        if not len(x):
            return reference, float("nan")
        _, probabilities = reference.evaluate(x, scale=data.scale)
        return reference, float((probabilities.argmax(-1) != y).double().mean())

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, with shape ``(B, K)``, of images ``(B, C, H, W)``."""
        logits: Tensor = self.head(self.body(x))
        return logits

    def evaluate(self, x: Tensor, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return features ``(N, 64)`` and probabilities ``(N, K)`` of images, in evaluation mode, on the CPU.

        Args:
            x: Images with shape ``(N, C, H, W)``, as stored.
            scale: Divides ``x``.
        """
        like = next(self.parameters())
        with torch.no_grad(), evaluation_mode(self):
            features = [self.body(batch.to(like)) for batch in iterate_batches(x, scale=scale, device=like.device)]
            return torch.cat(features).cpu(), torch.cat([self.head(part).softmax(-1) for part in features]).cpu()


def measure_generated_images(
    model: DDGM,
    data: SemiSupervisedData,
    reference: ReferenceClassifier,
    *,
    num_samples: int = 5000,
    latent_steps: int = REFINING_STEPS,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Hold generated images against real ones, in the eyes of a reference.

    With the judge's features h(x) and probabilities p(y|x),

    .. math:: \text{share}_k = \frac1N \sum_n \bigl[\arg\max_y p(y \mid x_n) = k\bigr], \qquad
        \text{confidence} = \frac1N \sum_n \max_y p(y \mid x_n)

    and :func:`~pyro_ssvae.evaluation.frechet_distance` of h. That distance is larger for smaller sets, so all of them,
    generated, training and held-out ones, are cut to one size, and it varies with what is drawn into them, so it is the
    mean over pairs of sets of which no two of a kind overlap, up to ten of a kind.

    Args:
        model: The model.
        data: Images; training rows, and test rows or in their absence validation rows, are drawn without replacement.
        reference: From :meth:`ReferenceClassifier.train_on`.
        num_samples: Images of a set at most, at least 2. So many refined ones are generated, and others for as many
            sets as training images fill.
        latent_steps: Steps of the refined images (:meth:`pyro_ssvae.DDGM.sample`); 0 for none.
        seed: Of everything drawn; the caller's random state is left as it was.

    Returns:
        ``frechet_distance`` of generated to training images, ``frechet_rows``, the size of the sets, and
        ``frechet_sets``, how many there are of training images; ``class_shares`` of generated images, ``least_share``
        of them, and ``confidence``; the same of refined images with ``refined_`` before it. With held-out rows also
        ``frechet_floor``, the distance of held-out to training images (two rows at least), ``real_class_shares`` and
        ``real_confidence``, of held-out images. Without any these are left out: training rows would flatter the reference.

    Raises:
        ValueError: For fewer than two samples or training rows.
    """
    if num_samples < 2 or len(data.x) < 2:
        raise ValueError(
            f"num_samples={num_samples} and the {len(data.x)} training rows must both be at least 2: the Fréchet "
            "distance takes the covariance of features."
        )
    generator = torch.Generator().manual_seed(seed)
    _, held_out, _ = get_held_out(data)
    orders = (torch.randperm(len(x), generator=generator)[: SETS * num_samples] for x in (data.x, held_out))
    real, other = (x[order] for x, order in zip((data.x, held_out), orders, strict=True))
    enough = len(other) >= 2
    count = min(num_samples, len(real), *([len(other)] if enough else []))
    num_sets = min(SETS, len(real) // count)
    of_real, _ = reference.evaluate(real[: num_sets * count], scale=data.scale)
    found: dict[str, Any] = {"frechet_rows": count, "frechet_sets": num_sets}
    for prefix, steps in {"": 0, "refined_": latent_steps}.items():
        if prefix and not steps:
            continue
        drawn = num_samples if prefix else max(num_samples, num_sets * count)  # refined images take long
        features, probabilities = _judge_samples(reference, model, drawn, seed, steps)
        shares = _class_shares(probabilities)
        found |= {
            f"{prefix}frechet_distance": _mean_distance(features, of_real, count),
            f"{prefix}class_shares": shares,
            f"{prefix}least_share": min(shares),
            f"{prefix}confidence": _confidence(probabilities),
        }
    if len(other):
        of_other, probabilities = reference.evaluate(other[: SETS * count], scale=data.scale)
        found |= {"real_class_shares": _class_shares(probabilities), "real_confidence": _confidence(probabilities)}
        if enough:
            found["frechet_floor"] = _mean_distance(of_other, of_real, count)
    return found


def _judge_samples(
    reference: ReferenceClassifier, model: DDGM, count: int, seed: int, latent_steps: int
) -> tuple[Tensor, Tensor]:
    """Return features and probabilities of generated images, of which few are in memory at a time."""
    with fork_random_state(model, seed):
        parts = [
            reference.evaluate(model.sample(min(500, count - done), latent_steps=latent_steps))
            for done in range(0, count, 500)
        ]
    features, probabilities = zip(*parts, strict=True)
    return torch.cat(features), torch.cat(probabilities)


def _mean_distance(x: Tensor, y: Tensor, count: int) -> float:
    """Return the mean Fréchet distance over pairs of sets of ``count`` rows, up to ten of either kind."""
    firsts, seconds = ([part for part in rows.split(count)[:SETS] if len(part) == count] for rows in (x, y))
    return statistics.mean(frechet_distance(first, second) for first in firsts for second in seconds)


def get_held_out(data: SemiSupervisedData) -> tuple[str | None, Tensor, Tensor]:
    """Return test rows as stored and their classes, in their absence validation rows, and which they are."""
    if len(data.x_test):
        return "test", data.x_test, data.y_test
    return "validation" if len(data.x_validation) else None, data.x_validation, data.y_validation


def _class_shares(probabilities: Tensor) -> list[float]:
    count = torch.bincount(probabilities.argmax(-1), minlength=probabilities.shape[-1])
    shares: list[float] = (count.double() / len(probabilities)).tolist()
    return shares


def _confidence(probabilities: Tensor) -> float:
    return float(probabilities.max(-1).values.mean())
