"""What every contender of the step benchmark shares: its face, its sizes, its constants."""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import torch
from torch import Tensor

__all__ = ["ALPHA", "LEARNING_RATE", "MNIST", "NUM_LABELLED", "NUM_UNLABELLED", "Contender", "Sizes", "Unavailable"]


LEARNING_RATE = 1e-3
NUM_LABELLED = 100  # rows that the minibatches stand for: MNIST with 100 labels
NUM_UNLABELLED = 49_900
ALPHA = 10.0  # weight of the labelled rows' mean cross-entropy


class Unavailable(Exception):
    """A contender cannot be run here, and why; the reason goes into the table."""


@dataclass(frozen=True)
class Sizes:
    """Widths of every network: features of a row, hidden units, latents."""

    features: int = 784
    hidden: int = 500
    latent: int = 50


MNIST = Sizes()


class Contender:
    """One implementation of a training step.

    Args:
        num_classes: Number of classes ``K``.
        labelled_rows: Labelled rows handed in at each step, 0 for none.
        device: Where parameters and rows live.
        precision: ``"fp32"``, or ``"bf16"`` for networks under autocast and the bound in float32.
        seed: Of initial weights and draws.

    Raises:
        Unavailable: If it cannot run here.
    """

    any_batch_size = True
    """Whether steps may differ in their number of rows; not so where a step is recorded."""

    warm_up = 1
    """Steps until a step takes what it will always take."""

    def __init__(self, *, num_classes: int, labelled_rows: int, device: str, precision: str, seed: int) -> None:
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision={precision!r} must be 'fp32' or 'bf16'.")
        pyro.set_rng_seed(seed)
        self.num_classes = num_classes
        self.labelled_rows = labelled_rows
        self.device = torch.device(device)
        self.precision = precision

    def step(self, x_unlabelled: Tensor, x_labelled: Tensor | None = None, y_labelled: Tensor | None = None) -> None:
        """Take one optimisation step on rows ``(B, features)`` and, where given, labelled rows and classes ``(B_l,)``.

        Raises:
            NotImplementedError: From this base class.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step(x_unlabelled, x_labelled, y_labelled).")

    def autocast(self) -> torch.autocast:
        """Return the context that networks run in."""
        # A recorded step must not keep casts of weights beyond the step, so none are kept anywhere.
        enabled = self.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)
