"""Training: one loop for every model, and the run folder it writes."""

from pyro_ssvae.training.run_folder import RunFolder

__all__ = ["RunFolder"]
