"""Objectives: bounds and losses as modules that know nothing of optimisers, devices or files."""

from pyro_ssvae.objectives.add_ons import AffineAugmentation, Consistency
from pyro_ssvae.objectives.alternating import AlternatingObjective, Group, Turn
from pyro_ssvae.objectives.base import Objective
from pyro_ssvae.objectives.contrast import ContentContrast
from pyro_ssvae.objectives.energy import EnergyObjective
from pyro_ssvae.objectives.energy_elbo import EnergyELBO
from pyro_ssvae.objectives.entropy import (
    ENTROPIES,
    BatchNormEntropy,
    Entropy,
    MutualInformationEntropy,
    NearestNeighbourEntropy,
    ScoreEntropy,
    make_entropy,
)
from pyro_ssvae.objectives.enumeration import EnumerationError, StaticELBOError
from pyro_ssvae.objectives.jitter import jittered
from pyro_ssvae.objectives.semi_supervised import SemiSupervisedELBO
from pyro_ssvae.objectives.static import StaticEnumELBO
from pyro_ssvae.objectives.unsupervised import UnsupervisedELBO
from pyro_ssvae.objectives.weights import blurred_rows, importance_weights

__all__ = [
    "ENTROPIES",
    "AffineAugmentation",
    "AlternatingObjective",
    "BatchNormEntropy",
    "Consistency",
    "EnergyELBO",
    "EnergyObjective",
    "Entropy",
    "EnumerationError",
    "ContentContrast",
    "Group",
    "MutualInformationEntropy",
    "NearestNeighbourEntropy",
    "Objective",
    "ScoreEntropy",
    "SemiSupervisedELBO",
    "StaticELBOError",
    "StaticEnumELBO",
    "Turn",
    "UnsupervisedELBO",
    "blurred_rows",
    "importance_weights",
    "jittered",
    "make_entropy",
]
