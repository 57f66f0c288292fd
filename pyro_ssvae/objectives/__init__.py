"""Objectives: bounds and losses as modules that know nothing of optimisers, devices or files."""

from pyro_ssvae.objectives.add_ons import AffineAugmentation, Consistency
from pyro_ssvae.objectives.enumeration import EnumeratedELBO, EnumerationError
from pyro_ssvae.objectives.semi_supervised import SemiSupervisedELBO

__all__ = ["AffineAugmentation", "Consistency", "EnumeratedELBO", "EnumerationError", "SemiSupervisedELBO"]
