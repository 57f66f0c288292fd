"""Objectives: bounds and losses as modules that know nothing of optimisers, devices or files."""

from pyro_ssvae.objectives.alternating import AlternatingObjective, Group, Turn
from pyro_ssvae.objectives.augmentation import NegativeAugmentation, shift_and_flip
from pyro_ssvae.objectives.base import Loss, Objective
from pyro_ssvae.objectives.energy import EnergyObjective
from pyro_ssvae.objectives.energy_losses import EnergyLoss, normalise_importance_weights, perturb_samples
from pyro_ssvae.objectives.entropy import (
    ENTROPIES,
    BatchNormEntropy,
    Entropy,
    MutualInformationEntropy,
    NearestNeighbourEntropy,
    make_entropy,
)
from pyro_ssvae.objectives.enum_elbo import StaticEnumELBO
from pyro_ssvae.objectives.handlers import EnumerationError, StaticELBOError
from pyro_ssvae.objectives.regularisers import AffineAugmentation, Consistency
from pyro_ssvae.objectives.semi_supervised import SemiSupervisedELBO
from pyro_ssvae.objectives.unsupervised import UnsupervisedELBO

__all__ = [
    "ENTROPIES",
    "AffineAugmentation",
    "AlternatingObjective",
    "BatchNormEntropy",
    "Consistency",
    "EnergyLoss",
    "EnergyObjective",
    "Entropy",
    "EnumerationError",
    "NegativeAugmentation",
    "Group",
    "MutualInformationEntropy",
    "Loss",
    "NearestNeighbourEntropy",
    "Objective",
    "SemiSupervisedELBO",
    "StaticELBOError",
    "StaticEnumELBO",
    "Turn",
    "UnsupervisedELBO",
    "perturb_samples",
    "normalise_importance_weights",
    "shift_and_flip",
    "make_entropy",
]
