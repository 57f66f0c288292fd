"""Evaluation: the numbers that runs report."""

from pyro_ssvae.evaluation.annealing import annealed_log_normaliser
from pyro_ssvae.evaluation.grid import Grid
from pyro_ssvae.evaluation.likelihood import LogLikelihood, log_likelihood
from pyro_ssvae.evaluation.metrics import (
    active_units,
    class_control,
    classification_error,
    energy_diagnostics,
    latent_diagnostics,
    mean_bound,
    posterior_diagnostics,
    predict_rows,
    validation_metrics,
)
from pyro_ssvae.evaluation.plane import plane_measures
from pyro_ssvae.evaluation.samples import energy_distance, frechet_distance, mode_coverage, squared_mmd

__all__ = [
    "Grid",
    "annealed_log_normaliser",
    "energy_distance",
    "frechet_distance",
    "mode_coverage",
    "plane_measures",
    "squared_mmd",
    "LogLikelihood",
    "active_units",
    "class_control",
    "classification_error",
    "energy_diagnostics",
    "latent_diagnostics",
    "log_likelihood",
    "mean_bound",
    "posterior_diagnostics",
    "predict_rows",
    "validation_metrics",
]
