"""Evaluation: the numbers that runs report."""

from pyro_ssvae.evaluation.metrics import (
    class_control,
    classification_error,
    mean_bound,
    posterior_diagnostics,
    predict_rows,
)

__all__ = ["class_control", "classification_error", "mean_bound", "posterior_diagnostics", "predict_rows"]
