"""Networks of the source document's DDGM (musyoku, in Chainer), and the weights they start from.

The start decides: from the usual one of linear layers, the same recipe follows the ring from mode to mode, and covers
some of them. Energies here are weight-normalised, with small directions, which therefore turn fast, and scales and
shifts by which every unit has mean 0 and variance 1 over a first batch (Salimans & Kingma, Weight Normalization, 2016,
https://arxiv.org/abs/1602.07868, section 3).
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
from pyro_ssvae.networks import MLPFeatures, MLPGenerator, SoftplusExperts

_STD = 0.05  # of every weight


class _Noisy(nn.Module):
    """Adds noise to what an energy sees in training, as the source document does for digits."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        """Return noisy rows in training mode, and rows as they are otherwise."""
        return x + self.noise * torch.randn_like(x) if self.training else x


def source_parts(event_shape: Sequence[int]) -> dict[str, Any]:
    """Return arguments of DDGM: for points in the plane, or for images."""
    if len(event_shape) == 1:
        return {
            "features": MLPFeatures(event_shape, (128,), 128),
            "experts": weight_norm(SoftplusExperts(128, 4)),
            "generator": MLPGenerator(4, event_shape, (128, 128)),
        }
    return {
        "latent_dim": 10,
        "prior": "uniform",
        "features": nn.Sequential(_Noisy(0.3), MLPFeatures(event_shape, (1000, 500, 250), 128)),
        "experts": weight_norm(SoftplusExperts(128, 128)),
        "generator": MLPGenerator(10, event_shape, (500, 500), output="sigmoid"),
    }


@torch.no_grad()
def start(model: DDGM, x: Tensor) -> None:
    """Give a model with :func:`source_parts` the weights that the source starts from.

    Args:
        model: The model.
        x: A first batch of data, ``(B, *event_shape)``, scaled as in training.
    """
    for part in model.generator.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=_STD)
            nn.init.zeros_(part.bias)
    net = model.train().energy_net
    for layer in net.modules():
        if isinstance(layer, nn.Linear) and is_parametrized(layer):
            _normalise(layer, net, x)


def _normalise(layer: Any, net: nn.Module, x: Tensor) -> None:
    """Give the units of a weight-normalised layer mean 0 and variance 1 on ``x``; those before it have theirs."""
    scale, direction = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    nn.init.normal_(direction, std=_STD)
    scale.fill_(1.0)
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    net(x)
    handle.remove()
    units = F.linear(seen[0], layer.weight)
    scale.div_(units.std(0).unsqueeze(-1))
    layer.bias.copy_(-units.mean(0) / units.std(0))
