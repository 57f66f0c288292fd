"""Semi-supervised deep generative models in Pyro: a classifier, a generator and class probabilities from few labels.

Examples of which a few are labelled become :class:`SemiSupervisedData`; a model such as :class:`M2` holds a generative
model and its guide; an objective such as :class:`SemiSupervisedELBO` bounds their log-probability; :func:`fit` trains
it and writes a run folder; :func:`report` evaluates it on test examples; :func:`load` loads the model again.
"""

from pyro_ssvae import presets
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.errors import PyroSSVAEError
from pyro_ssvae.explorer import explore
from pyro_ssvae.export import export
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.models.m1 import M1
from pyro_ssvae.models.m1m2 import M1M2
from pyro_ssvae.models.m2 import M2
from pyro_ssvae.models.serialization import load, save
from pyro_ssvae.objectives.bounds import SemiSupervisedELBO, UnsupervisedELBO
from pyro_ssvae.objectives.energy import EnergyObjective
from pyro_ssvae.objectives.enum_elbo import StaticEnumELBO
from pyro_ssvae.objectives.handlers import pyro_view
from pyro_ssvae.results import report
from pyro_ssvae.training.config import TrainingConfig
from pyro_ssvae.training.loop import FitResult, fit

__version__ = "0.1.0"

__all__ = [
    "DDGM",
    "M1",
    "M1M2",
    "M2",
    "EnergyObjective",
    "FitResult",
    "PyroSSVAEError",
    "SemiSupervisedData",
    "SemiSupervisedELBO",
    "StaticEnumELBO",
    "TrainingConfig",
    "UnsupervisedELBO",
    "explore",
    "export",
    "fit",
    "load",
    "presets",
    "pyro_view",
    "report",
    "save",
]
