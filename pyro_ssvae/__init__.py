"""Semi-supervised deep generative models in Pyro: a classifier, a generator and class probabilities from few labels.

Examples of which a few are labelled become :class:`SemiSupervisedData`; a model such as :class:`M2` holds a generative
model and its guide; an objective such as :class:`SemiSupervisedELBO` bounds their log-probability; :func:`fit` trains
it and writes a run folder; :func:`report` evaluates it on test examples; :func:`load` loads the model again.
"""

from pyro_ssvae import presets
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
    "presets",
    "pyro_view",
    "report",
    "save",
]
