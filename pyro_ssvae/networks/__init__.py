"""Networks of the models: plain modules, which may be replaced by others.

Every network returns raw numbers (logits, locations, log-scales, features). Models and :mod:`pyro_ssvae.distributions`
map them to distributions and energies. Convolutional networks have a name only, ``"conv"`` or ``"resnet"``.
"""

from pyro_ssvae.networks.energy import MLPFeatures, MLPGenerator
from pyro_ssvae.networks.variational import ACTIVATIONS, MLP, ConditionalMLP

__all__ = ["ACTIVATIONS", "MLP", "ConditionalMLP", "MLPFeatures", "MLPGenerator"]
