"""Errors that callers may want to tell apart; bad arguments raise ``ValueError`` or ``TypeError``."""

from __future__ import annotations

from pathlib import Path

__all__ = ["DataUnavailableError", "NonFiniteLossError", "RunFolderError", "TrainingFailedError"]


class DataUnavailableError(RuntimeError):
    """A named data set is neither at hand nor downloadable."""


class RunFolderError(RuntimeError):
    """A run folder cannot be used, read or written."""


class TrainingFailedError(RuntimeError):
    """Training goes nowhere, though every loss is finite: a generator has collapsed, or energies diverge.

    Args:
        step: The step of the evaluation that told.
        why: What is wrong, in words.
        checkpoint: The last checkpoint written before it, or ``None``.
    """

    def __init__(self, step: int, why: str, checkpoint: Path | None) -> None:
        kept = f"The last good checkpoint is {checkpoint}." if checkpoint else "No checkpoint was written before."
        super().__init__(f"Training stopped at step {step}: {why}. {kept}")
        self.step = step
        self.checkpoint = checkpoint


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number.

    Args:
        step: The first step whose loss was not finite, counted from 1.
        checkpoint: The last checkpoint written before it, or ``None``.
    """

    def __init__(self, step: int, checkpoint: Path | None) -> None:
        kept = f"The last good checkpoint is {checkpoint}." if checkpoint else "No checkpoint was written before."
        super().__init__(
            f"The loss is not finite from step {step} on. {kept} Try a smaller learning rate or gradient clipping "
            "(gradient_clip=10), and check the data's scale."
        )
        self.step = step
        self.checkpoint = checkpoint
