"""Models of the papers, as Pyro model/guide pairs: one file each."""

from pyro_ssvae.models.base import data_plate, pyro_view
from pyro_ssvae.models.m2 import M2
from pyro_ssvae.models.saving import load, save

__all__ = ["M2", "data_plate", "load", "pyro_view", "save"]
