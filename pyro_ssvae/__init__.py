"""Semi-supervised deep generative models in Pyro: a classifier, a generator and honest probabilities from few labels.

The flow: rows of which a few carry labels become :class:`SemiSupervisedData`; a model/guide pair such as :class:`M2`
says how they came about; an objective such as :class:`SemiSupervisedELBO` bounds their log-probability; :func:`fit`
trains it and leaves a run folder; :func:`load` brings the model back.
"""

from pyro_ssvae.data import SemiSupervisedData
from pyro_ssvae.errors import (
    DataUnavailableError,
    EnumerationError,
    NonFiniteLossError,
    PyroSSVAEError,
    RunFolderError,
    StaticELBOError,
    TrainingFailedError,
)
from pyro_ssvae.models import DDGM, M1, M1M2, M2, load, pyro_view, save
from pyro_ssvae.objectives import EnergyObjective, SemiSupervisedELBO, StaticEnumELBO, UnsupervisedELBO
from pyro_ssvae.results import report
from pyro_ssvae.training import FitResult, TrainingConfig, fit

__version__ = "0.1.0"

__all__ = [
    "DDGM",
    "M1",
    "M1M2",
    "M2",
    "DataUnavailableError",
    "EnergyObjective",
    "EnumerationError",
    "FitResult",
    "NonFiniteLossError",
    "PyroSSVAEError",
    "RunFolderError",
    "SemiSupervisedData",
    "SemiSupervisedELBO",
    "StaticELBOError",
    "StaticEnumELBO",
    "TrainingConfig",
    "TrainingFailedError",
    "UnsupervisedELBO",
    "fit",
    "load",
    "pyro_view",
    "report",
    "save",
]
