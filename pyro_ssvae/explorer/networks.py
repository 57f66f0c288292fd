"""The networks of a model as the page runs them: few graphs with named inputs and outputs, and how they are put together.

log p(x) is estimated by importance sampling from the guide, with draws that the page holds, so that Python and the page
compute the same number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ssvae.distributions.torch_distributions import as_independent_normal
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.models.m1 import M1
from pyro_ssvae.models.m1m2 import M1M2
from pyro_ssvae.models.semi_supervised import SemiSupervisedModel

__all__ = ["Graph", "encode_rows", "kind_of", "make_graphs", "score_rows"]

_INPUTS = {"y": torch.int64}


class Graph(nn.Module):
    """A function of a model with named inputs and outputs.

    Args:
        model: The model, whose parameters it uses.
        function: What is computed.
        inputs: Names of the inputs, with the shape of one example.
        outputs: Names of the outputs.
    """

    def __init__(
        self, model: nn.Module, function: Callable[..., Any], inputs: dict[str, tuple[int, ...]], outputs: list[str]
    ) -> None:
        super().__init__()
        self.model, self.function, self.inputs, self.outputs = model, function, inputs, outputs

    def forward(self, *inputs: Tensor) -> Any:
        """Map inputs ``(B, ...)`` to outputs ``(B, ...)``."""
        return self.function(*inputs)

    def examples(self) -> tuple[Tensor, ...]:
        """Return inputs by which the graph may be traced."""
        return tuple(torch.zeros(3, *shape, dtype=_INPUTS.get(name)) for name, shape in self.inputs.items())


def kind_of(model: Any) -> str:
    """Return ``"m1"``, ``"m2"``, ``"m1m2"`` or ``"ddgm"``.

    Raises:
        TypeError: For a model of another kind.
    """
    for kind, cls in (("ddgm", DDGM), ("m1", M1), ("m1m2", M1M2), ("m2", SemiSupervisedModel)):
        if isinstance(model, cls):
            return kind
    raise TypeError(f"The explorer is for M1, M2, M1M2 and DDGM; {type(model).__name__} is none of them.")


def make_graphs(model: Any) -> dict[str, Graph]:
    """Return the graphs of a model by name.

    ``encoder`` maps x (and y) to location and scale of q(z|x,y); ``decoder`` maps z (and y) and x to the mean of
    p(x|y,z) and log p(x, z|y). M1+M2 has both for z1, and ``upper_encoder`` and ``upper_decoder`` for z given z1.
    ``classifier`` maps x to logits. Those of a DDGM are ``energy``, to E(x), features and logits, and ``generator``.
    """
    x, y, z = {"x": tuple(model.event_shape)}, {"y": ()}, {"z": (model.latent_dim,)}
    kind = kind_of(model)
    if kind == "ddgm":
        return _make_ddgm_graphs(model, x, z)
    graphs = {"classifier": Graph(model, model.classify, x, ["logits"])} if kind != "m1" else {}
    if kind == "m1m2":
        z1 = {"z1": (len(model.active),)}

        def decode_z1(z: Tensor, y: Tensor, z1: Tensor) -> tuple[Tensor, Tensor]:
            below = model.decode_z1(y, z)
            return below.mean, below.log_prob(z1) + model.prior().log_prob(z)

        return graphs | {
            "encoder": Graph(model, lambda x: _normal(model.encode_z1(x)), x, ["loc", "scale"]),
            "decoder": Graph(model, lambda z1, x: _observe(model.decode_x(z1), x), z1 | x, ["mean", "log_p"]),
            "upper_encoder": Graph(
                model, lambda z1, y: _normal(model.encode_z(z1, y)), z1 | y, ["loc", "scale"]
            ),
            "upper_decoder": Graph(model, decode_z1, z | y | z1, ["mean", "log_p"]),
        }
    given = y if kind == "m2" else {}

    def decode(z: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_p = _observe(model.decode(*others[:-1], z), others[-1])
        return mean, log_p + model.prior().log_prob(z)

    return graphs | {
        "encoder": Graph(model, lambda *args: _normal(model.encode(*args)), x | given, ["loc", "scale"]),
        "decoder": Graph(model, decode, z | given | x, ["mean", "log_p"]),
    }


def _make_ddgm_graphs(model: DDGM, x: dict[str, Any], z: dict[str, Any]) -> dict[str, Graph]:
    def score(x: Tensor) -> tuple[Tensor, ...]:
        logits = () if model.num_classes is None else (model.classify(x),)
        return model.energy_net(x), model.energy_net.features(x).flatten(1), *logits

    outputs = ["energy", "features", *(["logits"] if model.num_classes else [])]
    return {"energy": Graph(model, score, x, outputs), "generator": Graph(model, model.generator, z, ["mean"])}


def _normal(posterior: Any) -> tuple[Tensor, Tensor]:
    normal = as_independent_normal(posterior)
    if normal is None:
        raise TypeError("The explorer needs a diagonal Gaussian q(z|x,y), and encode returns another distribution.")
    return normal.loc, normal.scale


def _observe(distribution: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return distribution.mean, distribution.log_prob(x)


def encode_rows(graphs: dict[str, Graph], x: Tensor, y: Tensor) -> Tensor:
    """Return what the map shows of rows ``(B, ...)`` of classes ``y``: means of z or z1, or features."""
    if "energy" in graphs:
        features: Tensor = graphs["energy"](x)[1]
        return features
    encoder = graphs["encoder"]
    loc: Tensor = encoder(x, y)[0] if "y" in encoder.inputs else encoder(x)[0]
    return loc


def score_rows(graphs: dict[str, Graph], x: Tensor, draws: dict[str, Tensor], num_classes: int) -> Tensor:
    """Return log p(x|y), ``(B, K)``, or log p(x), ``(B, 1)``, or -E(x), ``(B, 1)``, for rows ``(B, ...)``.

    Args:
        graphs: From :func:`make_graphs`.
        x: The rows.
        draws: Standard normal draws ``z``, ``(S, K, L)``, and for M1+M2 ``z1``, ``(S, L1)``, shared by all rows.
        num_classes: K, or 1 for a model without classes.
    """
    if "energy" in graphs:
        return -graphs["energy"](x)[0].unsqueeze(-1)
    return torch.cat([_score_class(graphs, x, draws, k) for k in range(num_classes)], -1)


def _score_class(graphs: dict[str, Graph], x: Tensor, draws: dict[str, Tensor], k: int) -> Tensor:
    weights = []
    given = (torch.full((len(x),), k),) if "y" in graphs["decoder"].inputs else ()
    loc, scale = graphs["encoder"](x, *given)
    eps = draws.get("z1", draws["z"][:, k] if "z1" not in draws else None)
    for number, noise in enumerate(eps):
        z = loc + scale * noise
        weight = graphs["decoder"](z, *given, x)[1] - _log_normal(noise, scale)
        if "upper_encoder" in graphs:
            y = torch.full((len(x),), k)
            above, width = graphs["upper_encoder"](z, y)
            upper = draws["z"][number, k]
            log_p = graphs["upper_decoder"](above + width * upper, y, z)[1]
            weight = weight + log_p - _log_normal(upper, width)
        weights.append(weight)
    return (torch.stack(weights, -1).logsumexp(-1, keepdim=True)) - math.log(len(weights))


def _log_normal(noise: Tensor, scale: Tensor) -> Tensor:
    """Return the log-density of ``loc + scale * noise``, summed over the last dimension."""
    return (-0.5 * noise.square() - scale.log() - 0.5 * math.log(2.0 * math.pi)).sum(-1)
