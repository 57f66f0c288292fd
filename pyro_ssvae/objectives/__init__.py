"""Objectives: bounds and losses as modules that know nothing of optimisers, devices or files."""

from pyro_ssvae.objectives.augmentation import NegativeAugmentation, shift_and_flip
from pyro_ssvae.objectives.base import Loss, Objective, ParameterGroup, Update, Validation
from pyro_ssvae.objectives.energy import EnergyObjective
from pyro_ssvae.objectives.energy_losses import EnergyLoss
from pyro_ssvae.objectives.entropy import (
    ENTROPIES,
    BatchNormEntropy,
    Entropy,
    MutualInformationEntropy,
    NearestNeighbourEntropy,
    make_entropy,
)
from pyro_ssvae.objectives.enum_elbo import StaticEnumELBO
from pyro_ssvae.objectives.regularisers import AffineAugmentation, Consistency
from pyro_ssvae.objectives.semi_supervised import SemiSupervisedELBO
from pyro_ssvae.objectives.unsupervised import UnsupervisedELBO

__all__ = [
    "ENTROPIES",
    "AffineAugmentation",
    "BatchNormEntropy",
    "Consistency",
    "EnergyLoss",
    "EnergyObjective",
    "Entropy",
    "NegativeAugmentation",
    "Loss",
    "MutualInformationEntropy",
    "NearestNeighbourEntropy",
    "Objective",
    "SemiSupervisedELBO",
    "StaticEnumELBO",
    "ParameterGroup",
    "Update",
    "Validation",
    "UnsupervisedELBO",
    "shift_and_flip",
    "make_entropy",
]
