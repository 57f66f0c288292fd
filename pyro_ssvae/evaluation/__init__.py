"""Evaluation of trained models: metrics, log-likelihood, and comparisons of samples with data."""

from pyro_ssvae.evaluation.image_metrics import measure_image_model
from pyro_ssvae.evaluation.metrics import LogLikelihood, evaluate_model, log_likelihood
from pyro_ssvae.evaluation.samples import annealed_log_normaliser, measure_toy_model
from pyro_ssvae.models.diagnostics import active_units, class_control

__all__ = [
    "LogLikelihood",
    "active_units",
    "annealed_log_normaliser",
    "class_control",
    "evaluate_model",
    "log_likelihood",
    "measure_image_model",
    "measure_toy_model",
]
