"""Networks of the models: plain modules, which may be replaced by others.

Every network returns raw numbers (logits, locations, log-scales, features). Models and :mod:`pyro_ssvae.distributions`
map them to distributions and energies. Convolutional networks have a name only, ``"conv"`` or ``"resnet"``.
"""

from pyro_ssvae.networks.variational import MLP, ConditionalMLP

__all__ = ["MLP", "ConditionalMLP"]
