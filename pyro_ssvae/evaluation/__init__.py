"""Evaluation of trained models: metrics, log-likelihood, and comparisons of samples with data."""

from pyro_ssvae._samplers import annealed_log_normaliser
from pyro_ssvae.evaluation.image_metrics import measure_image_model
from pyro_ssvae.evaluation.metrics import LogLikelihood, evaluate_model, log_likelihood
from pyro_ssvae.evaluation.samples import energy_distance, frechet_distance, measure_toy_model, squared_mmd
from pyro_ssvae.models.diagnostics import active_units, class_control

__all__ = [
    "LogLikelihood",
    "active_units",
    "annealed_log_normaliser",
    "class_control",
    "energy_distance",
    "evaluate_model",
    "frechet_distance",
    "log_likelihood",
    "measure_image_model",
    "measure_toy_model",
    "squared_mmd",
]
