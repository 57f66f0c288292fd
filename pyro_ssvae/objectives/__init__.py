"""Objectives: bounds and losses as modules that know nothing of optimisers, devices or files."""

from pyro_ssvae.objectives.add_ons import AffineAugmentation, Consistency
from pyro_ssvae.objectives.base import Objective
from pyro_ssvae.objectives.enumeration import EnumerationError, StaticELBOError
from pyro_ssvae.objectives.semi_supervised import SemiSupervisedELBO
from pyro_ssvae.objectives.static import StaticEnumELBO
from pyro_ssvae.objectives.unsupervised import UnsupervisedELBO

__all__ = [
    "AffineAugmentation",
    "Consistency",
    "EnumerationError",
    "Objective",
    "SemiSupervisedELBO",
    "StaticELBOError",
    "StaticEnumELBO",
    "UnsupervisedELBO",
]
