"""Training: one loop for every model, and the run folder it writes."""

from pyro_ssvae.training.config import TrainingConfig
from pyro_ssvae.training.loop import FitResult, fit
from pyro_ssvae.training.run_folder import RunFolder

__all__ = ["FitResult", "RunFolder", "TrainingConfig", "fit"]
