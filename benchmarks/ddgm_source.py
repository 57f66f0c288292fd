"""Settings and networks of the DDGM of the source document (musyoku, in Chainer), and their initial weights.

The initialisation matters: with the default one of linear layers, the same settings cover only some modes of the ring.
The energy networks are weight-normalised; each unit's scale and shift are set so that it has mean 0 and variance 1 on a
first batch (Salimans & Kingma, Weight Normalization, 2016, https://arxiv.org/abs/1602.07868, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized

from pyro_ssvae import DDGM
from pyro_ssvae.networks.energy import MLPFeatures, MLPGenerator, SoftplusExperts
from pyro_ssvae.presets import DDGM_IMAGES, Preset

DDGM_SOURCE = Preset(
    objective={"entropy": "batch_norm", "generator_rate": 1.0, "generator_steps": 1},
    training={
        **DDGM_IMAGES.training, "max_steps": 15_000, "batch_size": 100, "learning_rate": 2e-4, "decay_start": 1.0,
        "ema_decay": 0.0,
    },
)  # fmt: skip
"""The settings of the source."""
_STD = 0.05  # of the initial weights


class _InputNoise(nn.Module):
    """Add Gaussian noise to the input in training mode, as the source does for digits."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        return x + self.noise * torch.randn_like(x) if self.training else x


def source_networks(event_shape: Sequence[int]) -> dict[str, Any]:
    """Return the arguments of DDGM for points in the plane or for images."""
    if len(event_shape) == 1:
        return {
            "features": MLPFeatures(event_shape, (128,), 128),
            "experts": weight_norm(SoftplusExperts(128, 4)),
            "generator": MLPGenerator(4, event_shape, (128, 128)),
        }
    return {
        "latent_dim": 10,
        "prior": "uniform",
        "features": nn.Sequential(_InputNoise(0.3), MLPFeatures(event_shape, (1000, 500, 250), 128)),
        "experts": weight_norm(SoftplusExperts(128, 128)),
        "generator": MLPGenerator(10, event_shape, (500, 500), output="sigmoid"),
    }


@torch.no_grad()
def initialise(model: DDGM, x: Tensor) -> None:
    """Set the initial weights of a model with :func:`source_networks`, by a first batch ``(B, *event_shape)``."""
    for layer in model.generator.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=_STD)
            nn.init.zeros_(layer.bias)
    net, inputs = model.train().energy_net, []
    for layer in net.modules():  # in order: a layer's input depends on the layers before it
        if isinstance(layer, nn.Linear) and is_parametrized(layer):
            weight: Any = layer.parametrizations.weight
            nn.init.normal_(weight.original1, std=_STD)
            weight.original0.fill_(1.0)
            handle = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
            net(x)
            handle.remove()
            units = F.linear(inputs[-1], layer.weight)
            weight.original0.div_(units.std(0).unsqueeze(-1))
            layer.bias.copy_(-units.mean(0) / units.std(0))
