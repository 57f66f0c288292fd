"""A small classifier of images, whose features and predictions evaluate generated images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.preparation import iterate_batches, prepare
from pyro_ssvae.models.base import evaluation_mode
from pyro_ssvae.objectives import AffineAugmentation

__all__ = ["REFERENCE_STEPS", "ReferenceClassifier", "get_held_out"]

REFERENCE_STEPS = 3000
"""Default number of optimisation steps of a reference classifier."""


class ReferenceClassifier(nn.Module):
    """A small convolutional classifier with 64 features, trained on labelled images to evaluate generated ones.

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
        """Train a classifier on all labelled images of data, with mild augmentation.

        Args:
            data: Images with labels.
            steps: Optimisation steps.
            batch_size: Images per step.
            seed: Seed of weights, batches and augmentation; the caller's random state is left as it was.
            progress: Called after each step, if given.

        Returns:
            The classifier, in evaluation mode, and its error on test images, or validation images if there are no test
            images; ``nan`` without either.

        Raises:
            ValueError: If no training image is labelled.
        """
        known = data.labelled_index
        if not len(known) or data.num_classes is None:
            raise ValueError("A reference classifier needs labelled training images; hand in data with its labels.")
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


def get_held_out(data: SemiSupervisedData) -> tuple[str | None, Tensor, Tensor]:
    """Return ``"test"`` with the test examples as stored and their classes, or the same of validation examples."""
    if len(data.x_test):
        return "test", data.x_test, data.y_test
    return "validation" if len(data.x_validation) else None, data.x_validation, data.y_validation
