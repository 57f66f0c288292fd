"""The models: modules whose methods ``model`` and ``guide`` are Pyro programs."""

from pyro_ssvae._samplers import langevin
from pyro_ssvae.models.base import LatentVariableModel, Model, data_plate, pyro_view
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.models.m1 import M1
from pyro_ssvae.models.m1m2 import M1M2
from pyro_ssvae.models.m2 import M2
from pyro_ssvae.models.semi_supervised import SemiSupervisedModel
from pyro_ssvae.models.serialization import load, save

__all__ = [
    "DDGM",
    "M1",
    "M1M2",
    "M2",
    "LatentVariableModel",
    "Model",
    "SemiSupervisedModel",
    "data_plate",
    "langevin",
    "load",
    "pyro_view",
    "save",
]
