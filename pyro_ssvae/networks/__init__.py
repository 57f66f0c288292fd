"""Networks of the models: plain modules, which may be replaced by others.

Every network returns raw numbers (logits, locations, log-scales, features). Models and :mod:`pyro_ssvae.distributions`
map them to distributions and energies.
"""

from pyro_ssvae.networks.energy import ConvFeatures, ConvGenerator, MLPFeatures, MLPGenerator
from pyro_ssvae.networks.variational import ACTIVATIONS, MLP, ConditionalMLP, ConvClassifier

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "ConditionalMLP",
    "ConvClassifier",
    "ConvFeatures",
    "ConvGenerator",
    "MLPFeatures",
    "MLPGenerator",
]
