"""Networks of the models: plain modules, replaceable by any of your own.

Every network here maps tensors to *raw numbers* (logits, locations, log-scales, features). Turning those into
distributions and energies is the business of the models and of :mod:`pyro_ssvae.distributions`.
"""

from pyro_ssvae.networks.energy import (
    ConvFeatures,
    ConvGenerator,
    EnergyNet,
    MLPFeatures,
    MLPGenerator,
    SoftplusExperts,
    UpsampledConv2d,
    make_features,
    make_generator,
)
from pyro_ssvae.networks.variational import (
    ACTIVATIONS,
    MLP,
    ConditionalMLP,
    ConvClassifier,
    CrossedLinear,
    FactoredLinear,
    make_classifier,
)

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "ConditionalMLP",
    "ConvClassifier",
    "ConvFeatures",
    "ConvGenerator",
    "CrossedLinear",
    "EnergyNet",
    "FactoredLinear",
    "MLPFeatures",
    "MLPGenerator",
    "SoftplusExperts",
    "UpsampledConv2d",
    "make_classifier",
    "make_features",
    "make_generator",
]
