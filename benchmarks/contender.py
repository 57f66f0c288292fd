"""What all contenders of the step benchmark share: interface, sizes and constants."""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import torch
from torch import Tensor

__all__ = ["ALPHA", "LEARNING_RATE", "MNIST", "NUM_LABELLED", "NUM_UNLABELLED", "Contender", "Sizes", "Unavailable"]

LEARNING_RATE = 1e-3
NUM_LABELLED = 100  # training examples that minibatches stand for: MNIST with 100 labels
NUM_UNLABELLED = 49_900
ALPHA = 10.0  # weight of the mean cross-entropy of labelled examples


class Unavailable(Exception):
    """A contender cannot run here, for the reason that the message gives."""


@dataclass(frozen=True)
class Sizes:
    """Widths of every network: pixels of an example, hidden units, latents."""

    features: int = 784
    hidden: int = 500
    latent: int = 50


MNIST = Sizes()


class Contender:
    """One implementation of a training step of M2.

    Args:
        num_classes: Number of classes ``K``.
        device: Device of parameters and batches.
        precision: ``"fp32"``, or ``"bf16"`` for networks under autocast and the bound in float32.
        seed: Seed of initial weights and draws.
        sizes: Widths of the networks.

    Raises:
        Unavailable: If it cannot run here.
    """

    warm_up = 1
    """Steps before a step takes its usual time."""

    precisions: tuple[str, ...] = ("fp32", "bf16")
    """Precisions that it is written for."""

    def __init__(
        self, *, num_classes: int, device: str = "cpu", precision: str = "fp32", seed: int = 0, sizes: Sizes = MNIST
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision={precision!r} must be 'fp32' or 'bf16'.")
        if precision not in self.precisions:
            raise Unavailable(f"{type(self).__name__} is written for {', '.join(self.precisions)}")
        pyro.set_rng_seed(seed)
        self.num_classes, self.precision, self.sizes = num_classes, precision, sizes
        self.device = torch.device(device)

    def step(self, x_unlabelled: Tensor, x_labelled: Tensor | None = None, y_labelled: Tensor | None = None) -> None:
        """Take one optimisation step.

        Args:
            x_unlabelled: Unlabelled examples, ``(B, features)``.
            x_labelled: Labelled examples, ``(B_l, features)``, if any.
            y_labelled: Their classes, ``(B_l,)``.

        Raises:
            NotImplementedError: From this base class.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step(x_unlabelled, x_labelled, y_labelled).")

    def autocast(self) -> torch.autocast:
        """Return the context that networks run in."""
        # A captured step must not keep casts of weights beyond the step, so casts are never cached.
        enabled = self.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)
