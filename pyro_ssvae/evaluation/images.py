r"""What a model of images is measured by: the features of a small classifier, and what its energy takes for real."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from pyro_ssvae.data import SemiSupervisedData, iterate_rows, prepare
from pyro_ssvae.evaluation.samples import frechet_distance
from pyro_ssvae.models import DDGM
from pyro_ssvae.models.base import evaluation_mode, own_randomness
from pyro_ssvae.objectives import AffineAugmentation

__all__ = ["ImageJudge", "altered", "energy_auroc", "generation_measures", "image_measures", "nearest_rows"]

_SYMMETRIC = (0, 1, 8)  # digits that flipping left to right hardly changes
ALTERATIONS = ("noise", "permuted", "shifted", "flipped", "blank", "blurred")
"""What :func:`altered` does to images."""


class ImageJudge(nn.Module):
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
        cls, data: SemiSupervisedData, *, steps: int = 3000, batch_size: int = 100, seed: int = 0
    ) -> tuple[ImageJudge, float]:
        """Train on every labelled row of data, on mildly augmented images.

        Args:
            data: Images of which the training rows carry labels.
            steps: Optimisation steps.
            batch_size: Rows of a step.
            seed: Of weights, order and augmentation; the caller's random state is left as it was.

        Returns:
            The judge, in evaluation mode, and its error on test rows (``nan`` without any).

        Raises:
            ValueError: If no training row carries a label.
        """
        known = data.labelled_index
        if not len(known):
            raise ValueError("A judge needs labelled training rows; hand in data with its labels.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            judge = cls(data.event_shape, data.num_classes)
            augmentation = AffineAugmentation(strength=0.5)
            optimizer = torch.optim.AdamW(judge.parameters(), fused=True)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
            for _ in range(steps):
                chosen = known[torch.randint(len(known), (batch_size,))]
                logits = judge(augmentation(prepare(data.x[chosen], scale=data.scale)))
                optimizer.zero_grad()
                F.cross_entropy(logits, data.y[chosen]).backward()
                optimizer.step()
                schedule.step()
        judge.eval()
        if not len(data.x_test):
            return judge, float("nan")
        _, probabilities = judge.judge(data.x_test, scale=data.scale)
        return judge, float((probabilities.argmax(-1) != data.y_test).double().mean())

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, with shape ``(B, K)``, of images ``(B, C, H, W)``."""
        logits: Tensor = self.head(self.body(x))
        return logits

    def judge(self, x: Tensor, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return features ``(N, 64)`` and probabilities ``(N, K)`` of images, in evaluation mode, on the CPU.

        Args:
            x: Images with shape ``(N, C, H, W)``, as stored.
            scale: Divides ``x``.
        """
        like = next(self.parameters())
        with torch.no_grad(), evaluation_mode(self):
            features = [self.body(batch.to(like)) for batch in iterate_rows(x, scale=scale, device=like.device)]
            return torch.cat(features).cpu(), torch.cat([self.head(part).softmax(-1) for part in features]).cpu()


def generation_measures(
    model: DDGM, data: SemiSupervisedData, judge: ImageJudge, *, num_samples: int = 5000, seed: int = 0
) -> dict[str, Any]:
    """Hold generated images against real ones, in the eyes of a judge.

    Args:
        model: The model.
        data: Images; training and test rows are drawn from without replacement.
        judge: From :meth:`ImageJudge.train_on`.
        num_samples: Images generated, and real ones of each kind at most.
        seed: Of everything drawn; the caller's random state is left as it was.

    Returns:
        ``frechet_distance`` of generated to training images in the judge's features, ``frechet_floor``, that of test
        to training images, ``class_shares`` of generated images, ``least_share``, and the mean largest probability,
        ``confidence``, beside that of test images, ``real_confidence``.
    """
    generator = torch.Generator().manual_seed(seed)
    real, test = (x[torch.randperm(len(x), generator=generator)[:num_samples]] for x in (data.x, data.x_test))
    samples = drawn_rows(model, num_samples, seed)
    features, probabilities = judge.judge(samples)
    of_real, _ = judge.judge(real, scale=data.scale)
    of_test, real_probabilities = judge.judge(test, scale=data.scale)
    shares = torch.bincount(probabilities.argmax(-1), minlength=data.num_classes).double() / num_samples
    return {
        "frechet_distance": frechet_distance(features, of_real),
        "frechet_floor": frechet_distance(of_test, of_real),
        "class_shares": shares.tolist(),
        "least_share": float(shares.min()),
        "confidence": float(probabilities.max(-1).values.mean()),
        "real_confidence": float(real_probabilities.max(-1).values.mean()),
    }


def image_measures(
    model: DDGM,
    data: SemiSupervisedData,
    known: SemiSupervisedData | None = None,
    *,
    num_samples: int = 5000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return everything that an energy model of images is measured by.

    Args:
        model: The model.
        data: What it was trained on, and test rows.
        known: The same data with its labels, for a judge to learn from (:meth:`ImageJudge.train_on`); ``None`` or
            data without labels for measures that need none.
        num_samples: Images generated for the judge.
        seed: Of the judge and of everything drawn; the caller's random state is left as it was.

    Returns:
        What :func:`generation_measures` returns, with the judge's own ``judge_error``; ``auroc``, from
        :func:`energy_auroc` on test rows; and ``nearest_training_image``, the median distance to the nearest training
        image of up to 200 ``generated`` and as many ``test`` images.
    """
    found: dict[str, Any] = {}
    if known is not None and known.num_labelled:
        judge, error = ImageJudge.train_on(known, seed=seed)
        found = {"judge_error": error, **generation_measures(model, data, judge, num_samples=num_samples, seed=seed)}
    x_test, train = prepare(data.x_test, scale=data.scale), prepare(data.x, scale=data.scale)
    found["auroc"] = energy_auroc(model, x_test, data.y_test if data.name == "mnist" else None, seed=seed)
    count = min(200, len(x_test))
    compared = {"generated": drawn_rows(model, count, seed), "test": x_test[:count]}
    found["nearest_training_image"] = {
        name: float(nearest_rows(rows, train)[0].median()) for name, rows in compared.items()
    }
    return found


def altered(x: Tensor, kind: str, generator: torch.Generator) -> Tensor:
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
        return gaussian_blur(x, kernel_size=[13, 13], sigma=[2.0, 2.0])
    raise ValueError(f"kind={kind!r} must be one of {', '.join(ALTERATIONS)}.")


def energy_auroc(model: DDGM, x: Tensor, y: Tensor | None = None, *, seed: int = 0) -> dict[str, float]:
    """Return how well the energy tells real images from altered ones: the area under the ROC curve, by alteration.

    One half is chance, 1 is perfect; a blank image that has less energy than all real ones gives 0.

    Args:
        model: The model.
        x: Real images with shape ``(N, C, H, W)``, as the model sees them, that it was not trained on.
        y: Their classes, where they are digits: 0, 1 and 8 are then left out of ``"flipped"``.
        seed: Of what is random.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for kind in ALTERATIONS:
        kept = x
        if kind == "flipped" and y is not None:
            kept = x[~torch.isin(y, torch.tensor(_SYMMETRIC))]
        energies = [energies_of(model, images) for images in (kept, altered(kept, kind, generator))]
        truth = torch.arange(2).repeat_interleave(len(kept))
        found[kind] = float(roc_auc_score(truth.numpy(), torch.cat(energies).numpy()))
    return found


def drawn_rows(model: DDGM, count: int, seed: int) -> Tensor:
    """Return generated rows ``(count, *event_shape)``, drawn in parts by a seed of their own, on the CPU."""
    with own_randomness(model, seed):
        return torch.cat([model.sample(min(500, count - done)).cpu() for done in range(0, count, 500)])


def energies_of(model: DDGM, x: Tensor) -> Tensor:
    """Return E(x) of many rows, in nats, with shape ``(N,)``, taken in parts, on the CPU."""
    return torch.cat([model.energy(part).cpu() for part in x.split(1000)])


def nearest_rows(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Euclidean distance of each row to the nearest reference row, and which that is.

    Args:
        x: Rows with shape ``(N, *event_shape)``.
        reference: Rows with shape ``(M, *event_shape)``.

    Returns:
        Distances and positions in ``reference``, both with shape ``(N,)``.
    """
    flat = reference.flatten(1)
    nearest = torch.cat([torch.cdist(part, flat).argmin(-1) for part in x.flatten(1).split(500)])
    return (x.flatten(1) - flat[nearest]).norm(dim=-1), nearest
