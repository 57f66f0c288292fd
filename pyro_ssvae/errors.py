"""Errors of the package, under one base class; bad arguments raise ``ValueError`` or ``TypeError``."""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "DataUnavailableError",
    "EnumerationError",
    "MissingPackageError",
    "NonFiniteLossError",
    "PyroSSVAEError",
    "RunFolderError",
    "StaticELBOError",
    "TrainingFailedError",
]

_STOCK = (
    "Stock Pyro covers more: build the objective with elbo='stock', or give SVI "
    "pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)."
)


class PyroSSVAEError(Exception):
    """Base class of the errors below."""


class DataUnavailableError(PyroSSVAEError, RuntimeError):
    """A named data set is neither on disk nor downloadable."""


class MissingPackageError(PyroSSVAEError, ImportError):
    """A package that an optional feature needs is not installed."""


class RunFolderError(PyroSSVAEError, RuntimeError):
    """A run folder cannot be used, read or written."""


class EnumerationError(PyroSSVAEError, RuntimeError):
    """A bound that sums over the classes needs an enumerated site, and the guide, with these sites, has none."""

    def __init__(self, sites: list[str]) -> None:
        super().__init__(
            "The bound of the unlabelled examples sums over the classes, but the guide enumerated no site (its sites: "
            f"{', '.join(sites) or 'none'}). Mark the class in the guide: pyro.sample('y', "
            "dist.Categorical(logits=...), infer={'enumerate': 'parallel'}), or decorate the guide with "
            "config_enumerate."
        )


class StaticELBOError(PyroSSVAEError, NotImplementedError):
    """:class:`~pyro_ssvae.StaticEnumELBO` or ``log_likelihood`` does not support a module, for a ``reason``.

    Pyro's ``TraceEnum_ELBO`` may support it in place of the former; ``advice`` says what to do.
    """

    def __init__(self, reason: str, advice: str = _STOCK) -> None:
        super().__init__(f"{reason} {advice}")
        self.reason = reason


class _TrainingStoppedError(PyroSSVAEError, RuntimeError):
    """Training cannot go on after ``step``, counted from 1; ``checkpoint`` is the last one written, or ``None``."""

    def __init__(self, message: str, step: int, checkpoint: Path | None, remedy: str = "") -> None:
        kept = f"The last good checkpoint is {checkpoint}." if checkpoint else "No checkpoint was written before."
        super().__init__(f"{message} {kept} {remedy}".rstrip())
        self.step = step
        self.checkpoint = checkpoint


class TrainingFailedError(_TrainingStoppedError):
    """Training failed although every loss is finite: a generator collapses, energies diverge, or memory runs out.

    ``step`` is the step at which it was found, ``checkpoint`` the last one written before it, or ``None``.
    """

    def __init__(self, step: int, why: str, checkpoint: Path | None) -> None:
        super().__init__(f"Training stopped at step {step}: {why}.", step, checkpoint)


class NonFiniteLossError(_TrainingStoppedError):
    """The loss, or a weight, became infinite or not a number.

    ``step`` is the first step with such a loss, or the step at which such weights were found, counted from 1;
    ``checkpoint`` is the last one written before it, or ``None``.
    """

    def __init__(
        self, step: int, checkpoint: Path | None, what: str = "The loss is not finite from step {} on."
    ) -> None:
        remedy = "Try a smaller learning rate or gradient clipping (gradient_clip=10), and check the data's scale."
        super().__init__(what.format(step), step, checkpoint, remedy)
