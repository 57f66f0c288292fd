"""Evaluation: the numbers that runs report."""

from pyro_ssvae.evaluation.metrics import (
    classification_error,
    mean_bound,
    posterior_diagnostics,
    predict_rows,
)

__all__ = ["classification_error", "mean_bound", "posterior_diagnostics", "predict_rows"]
