"""The models: modules whose methods ``model`` and ``guide`` are Pyro programs."""

from pyro_ssvae.models.base import Model, data_plate
from pyro_ssvae.models.latent_variable import LatentVariableModel, SemiSupervisedModel

__all__ = ["LatentVariableModel", "Model", "SemiSupervisedModel", "data_plate"]
