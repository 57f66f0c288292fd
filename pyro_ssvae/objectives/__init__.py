"""Objectives: bounds and losses as modules that know nothing of optimisers, devices or files."""

from pyro_ssvae.objectives.augmentation import AffineAugmentation, ColumnAugmentation, PhotoAugmentation
from pyro_ssvae.objectives.base import Loss, Objective, ParameterGroup, Update, Validation
from pyro_ssvae.objectives.energy import EnergyLoss
from pyro_ssvae.objectives.energy_terms import BatchNormEntropy, Entropy, NearestNeighbourEntropy
from pyro_ssvae.objectives.neighbours import NeighbourDensities
from pyro_ssvae.objectives.regularisers import Consistency

__all__ = [
    "AffineAugmentation",
    "BatchNormEntropy",
    "ColumnAugmentation",
    "Consistency",
    "EnergyLoss",
    "Entropy",
    "Loss",
    "NearestNeighbourEntropy",
    "NeighbourDensities",
    "PhotoAugmentation",
    "Objective",
    "ParameterGroup",
    "Update",
    "Validation",
]
