"""Evaluation: the numbers that runs report."""

from pyro_ssvae.evaluation.annealing import annealed_log_normaliser
from pyro_ssvae.evaluation.grid import Grid
from pyro_ssvae.evaluation.images import altered, energy_auroc, image_measures, nearest_rows
from pyro_ssvae.evaluation.judge import ImageJudge, generation_measures
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
from pyro_ssvae.evaluation.samples import (
    energy_distance,
    frechet_distance,
    median_distance,
    mode_coverage,
    squared_mmd,
)

__all__ = [
    "Grid",
    "ImageJudge",
    "LogLikelihood",
    "active_units",
    "altered",
    "annealed_log_normaliser",
    "class_control",
    "classification_error",
    "energy_auroc",
    "energy_diagnostics",
    "energy_distance",
    "frechet_distance",
    "generation_measures",
    "image_measures",
    "latent_diagnostics",
    "log_likelihood",
    "mean_bound",
    "median_distance",
    "mode_coverage",
    "nearest_rows",
    "plane_measures",
    "posterior_diagnostics",
    "predict_rows",
    "squared_mmd",
    "validation_metrics",
]
