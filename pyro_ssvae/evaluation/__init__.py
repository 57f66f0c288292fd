"""Evaluation: the numbers that runs report."""

from pyro_ssvae.evaluation.likelihood import LogLikelihood, log_likelihood
from pyro_ssvae.evaluation.metrics import (
    active_units,
    class_control,
    classification_error,
    latent_diagnostics,
    mean_bound,
    posterior_diagnostics,
    predict_rows,
    validation_metrics,
)

__all__ = [
    "LogLikelihood",
    "active_units",
    "class_control",
    "classification_error",
    "latent_diagnostics",
    "log_likelihood",
    "mean_bound",
    "posterior_diagnostics",
    "predict_rows",
    "validation_metrics",
]
