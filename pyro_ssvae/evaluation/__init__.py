"""Evaluation of trained models: metrics, log-likelihood, and comparisons of samples with data."""

from pyro_ssvae._samplers import annealed_log_normaliser
from pyro_ssvae.evaluation.image_metrics import (
    corrupt_images,
    energy_auroc,
    find_nearest,
    measure_generated_images,
    measure_image_model,
)
from pyro_ssvae.evaluation.likelihood import LogLikelihood, log_likelihood
from pyro_ssvae.evaluation.metrics import evaluate_model
from pyro_ssvae.evaluation.reference_classifier import ReferenceClassifier
from pyro_ssvae.evaluation.toy_metrics import Grid, measure_toy_model
from pyro_ssvae.evaluation.two_sample import (
    energy_distance,
    frechet_distance,
    median_distance,
    mode_coverage,
    squared_mmd,
)
from pyro_ssvae.models.diagnostics import (
    active_units,
    class_control,
    classification_error,
    energy_diagnostics,
    latent_diagnostics,
    posterior_diagnostics,
    predict_batches,
)

__all__ = [
    "Grid",
    "ReferenceClassifier",
    "LogLikelihood",
    "active_units",
    "corrupt_images",
    "annealed_log_normaliser",
    "class_control",
    "classification_error",
    "energy_auroc",
    "energy_diagnostics",
    "energy_distance",
    "evaluate_model",
    "frechet_distance",
    "measure_generated_images",
    "measure_image_model",
    "latent_diagnostics",
    "log_likelihood",
    "median_distance",
    "mode_coverage",
    "find_nearest",
    "measure_toy_model",
    "posterior_diagnostics",
    "predict_batches",
    "squared_mmd",
]
