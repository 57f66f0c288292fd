"""The networks of a model as the page runs them: those of the export, with log-densities as further outputs.

log p(x) is estimated by importance sampling from the guide, with draws that the page holds, so that Python and the page
compute the same number.
"""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_ssvae.export import Network, make_networks
from pyro_ssvae.models.base import Model
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.models.latent_variable import SemiSupervisedModel
from pyro_ssvae.models.m1 import M1
from pyro_ssvae.models.m1m2 import M1M2

__all__ = ["encode_rows", "find_kind", "make_page_networks", "score_rows"]

_Shapes = dict[str, tuple[int, ...]]


@singledispatch
def find_kind(model: Any) -> str:
    """Return ``"m1"``, ``"m2"``, ``"m1m2"`` or ``"ddgm"``.

    Raises:
        TypeError: For a model of another kind.
    """
    raise TypeError(f"The explorer is for M1, M2, M1M2 and DDGM; {type(model).__name__} is none of them.")


for _cls, _kind in ((DDGM, "ddgm"), (M1, "m1"), (M1M2, "m1m2"), (SemiSupervisedModel, "m2")):
    find_kind.register(_cls, lambda _, kind=_kind: kind)


def make_page_networks(model: Model) -> dict[str, Network]:
    """Return the networks of a model on the CPU, in evaluation mode, by name.

    - ``classifier``: x to the probabilities of the classes;
    - ``encoder``: x (and y) to mean and scale of q(z|x,y); of M1+M2: x to those of q(z1|x);
    - ``decoder``: z (and y) and x to the mean of p(x|y,z) and log p(x,z|y); of M1+M2: z1 and x, and log p(x|z1);
    - ``upper_encoder`` and ``upper_decoder`` of M1+M2: the same for z given z1;
    - ``energy`` and ``generator`` of a DDGM: x to E(x) and features, and z to x.
    """
    found = make_networks(model)
    found.pop("likelihood", None)  # the decoder has it as an output
    z: _Shapes = {"z": (model.latent_dim,)}
    own: Any = model
    if find_kind(model) == "ddgm":
        energy_net = own.energy_net
        inputs = found["energy"].inputs
        both = Network(lambda x: (energy_net(x), energy_net.features(x).flatten(1)), inputs, "energy", "features")
        found["energy"] = both
        return found
    if find_kind(model) == "m1m2":
        return _make_stacked(own, found, z)

    def decode(*given: Tensor) -> tuple[Tensor, Tensor]:
        *y, z, x = given
        below = own.decode(*(part.argmax(-1) for part in y), z)
        return below.mean, below.log_prob(x) + model.prior().log_prob(z)

    inputs = {**found["decoder"].inputs, "x": tuple(model.event_shape)}
    return found | {"decoder": Network(decode, inputs, "mean", "log_p")}


def _make_stacked(model: M1M2, found: dict[str, Network], z: _Shapes) -> dict[str, Network]:
    z1, y, x = {"z1": (len(model.active),)}, {"y": (model.num_classes,)}, {"x": tuple(model.event_shape)}

    def encode_upper(z1: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        posterior: Any = model.encode_z(z1, y.argmax(-1))
        return posterior.base_dist.loc, posterior.base_dist.scale

    def decode(z1: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        below = model.decode_x(z1)
        return below.mean, below.log_prob(x)

    def decode_upper(y: Tensor, z: Tensor, z1: Tensor) -> tuple[Tensor, Tensor]:
        below = model.decode_z1(y.argmax(-1), z)
        return below.mean, below.log_prob(z1) + model.prior().log_prob(z)

    return {
        "classifier": found["classifier"],
        "encoder": found["encoder_z1"],
        "decoder": Network(decode, z1 | x, "mean", "log_p"),
        "upper_encoder": Network(encode_upper, z1 | y, "mean", "scale"),
        "upper_decoder": Network(decode_upper, y | z | z1, "mean", "log_p"),
    }


def encode_rows(networks: dict[str, Network], x: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """Return what the map shows of rows ``(B, ...)`` of classes ``y``: means of z or z1, or features."""
    if "energy" in networks:
        features: Tensor = networks["energy"](x)[1]
        return features
    mean: Tensor = networks["encoder"](x, *_given(networks["encoder"], y, num_classes))[0]
    return mean


def score_rows(networks: dict[str, Network], x: Tensor, draws: dict[str, Tensor], num_classes: int) -> Tensor:
    """Return log p(x|y), ``(B, K)``, or log p(x), ``(B, 1)``, or -E(x), ``(B, 1)``, for rows ``(B, ...)``.

    Args:
        networks: From :func:`make_page_networks`.
        x: The rows.
        draws: Standard normal draws ``z``, ``(S, K, L)``, and for M1+M2 ``z1``, ``(S, L1)``, shared by all rows.
        num_classes: K, or 1 for a model without classes.
    """
    if "energy" in networks:
        return -networks["energy"](x)[0].unsqueeze(-1)
    return torch.stack([_score_class(networks, x, draws, k, num_classes) for k in range(num_classes)], -1)


def _score_class(networks: dict[str, Network], x: Tensor, draws: dict[str, Tensor], k: int, num_classes: int) -> Tensor:
    """Return log p(x|y), ``(B,)``, of one class ``y``, as the mean over draws of p(x,z|y) / q(z|x,y)."""
    y = torch.full((len(x),), k)
    mean, scale = networks["encoder"](x, *_given(networks["encoder"], y, num_classes))
    given = _given(networks["decoder"], y, num_classes)
    weights = []
    for number, upper in enumerate(draws["z"][:, k]):
        noise = draws["z1"][number] if "z1" in draws else upper
        z = mean + scale * noise
        weight = networks["decoder"](*given, z, x)[1] - _log_normal(noise, scale)
        if "z1" in draws:
            classes = _given(networks["upper_encoder"], y, num_classes)
            above, width = networks["upper_encoder"](z, *classes)
            weight += networks["upper_decoder"](*classes, above + width * upper, z)[1] - _log_normal(upper, width)
        weights.append(weight)
    return torch.stack(weights).logsumexp(0) - math.log(len(weights))


def _given(network: Network, y: Tensor, num_classes: int) -> tuple[Tensor, ...]:
    """Return the classes as the network takes them, if it does."""
    return (F.one_hot(y, num_classes).float(),) if "y" in network.inputs else ()


def _log_normal(noise: Tensor, scale: Tensor) -> Tensor:
    """Return the log-density of ``mean + scale * noise``, summed over the last dimension."""
    return (-0.5 * noise.square() - scale.log() - 0.5 * math.log(2.0 * math.pi)).sum(-1)
