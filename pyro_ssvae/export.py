"""Export of trained models: their networks as ONNX files and as programs of ``torch.export``."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pyro_ssvae.distributions.torch_distributions import as_independent_normal
from pyro_ssvae.errors import MissingPackageError
from pyro_ssvae.models.base import Model
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.models.latent_variable import LatentVariableModel
from pyro_ssvae.models.m1m2 import M1M2

__all__ = ["Network", "as_onnx", "describe", "make_networks", "trace"]


class Network(nn.Module):
    """A function of a model as a module, whose inputs and outputs have names.

    The model is not registered as a part, so that a program of the network holds only the weights that it uses.

    Args:
        function: Maps tensors ``(B, *shape)`` to a tensor, or a tuple of them.
        inputs: The shapes of its inputs, without the batch dimension, by name.
        outputs: The names of its outputs.
    """

    def __init__(self, function: Callable[..., Any], inputs: Mapping[str, tuple[int, ...]], *outputs: str) -> None:
        super().__init__()
        self.function, self.inputs, self.outputs = function, dict(inputs), outputs

    def forward(self, *inputs: Tensor) -> Any:
        """Return the outputs for inputs in the order of their names."""
        return self.function(*inputs)


def make_networks(model: Model) -> dict[str, Network]:
    """Return the networks of a model by name, as float32 modules on the CPU that share nothing with the model.

    - ``classifier``: x to the probabilities of the classes;
    - ``encoder``: x, and y in a model with classes, to mean and scale of z;
    - ``decoder``: y, in a model with classes, and z to the mean of x;
    - ``encoder_z1`` and ``decoder_z1`` of an M1M2: x to mean and scale of z1, and z1 to the mean of x;
    - ``energy`` and ``generator`` of a DDGM: x to E(x), and z to x.

    Classes are one-hot, ``(B, K)``; x is in the units that ``model.predict_proba`` takes.
    """
    model = copy.deepcopy(model).float().cpu().eval().requires_grad_(False)
    for part in model.modules():
        for name in [*getattr(part, "parametrizations", ())]:
            parametrize.remove_parametrizations(part, name)  # keeps the weights that they give
    x, z = {"x": tuple(model.event_shape)}, {"z": (model.latent_dim,)}
    y = {} if model.num_classes is None else {"y": (model.num_classes,)}
    found = {}
    if model.num_classes is not None:
        found["classifier"] = Network(lambda x: model.classify(x).softmax(-1), x, "probabilities")
    if isinstance(model, DDGM):
        found["energy"] = Network(model.energy_net, x, "energy")
        found["generator"] = Network(model.generator, z, "x")
    if isinstance(model, LatentVariableModel):
        encode: Any = model.encode
        decode: Any = model.decode
        found["encoder"] = Network(lambda x, *y: _moments(encode(x, *map(_index, y))), x | y, "mean", "scale")
        found["decoder"] = Network(lambda *given: decode(*map(_index, given[:-1]), given[-1]).mean, y | z, "mean")
    if isinstance(model, M1M2):
        z1 = {"z1": (len(model.active),)}
        found["encoder_z1"] = Network(lambda x: _moments(model.encode_z1(x)), x, "mean", "scale")
        found["decoder_z1"] = Network(lambda z1: model.decode_x(z1).mean, z1, "mean")
    return found


def as_onnx(network: Network, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a network as the content of an ONNX file, with a dynamic batch dimension and all weights inside.

    Inputs and outputs are float32, with the names of the network's.

    Args:
        network: One of :func:`make_networks`.
        metadata: Written into the file, by :func:`describe` for example.

    Raises:
        MissingPackageError: If onnx or onnxscript is not installed.
    """
    return _write_onnx(trace(network), network, metadata or {})


def trace(network: Network) -> torch.export.ExportedProgram:
    """Return a network as a program of ``torch.export``, with a dynamic batch dimension."""
    batch = torch.export.Dim("batch")
    examples = tuple(torch.zeros(3, *shape) for shape in network.inputs.values())
    with _quiet(), pyro.validation_enabled(False), torch.no_grad():
        return torch.export.export(
            network, examples, dynamic_shapes=(tuple({0: batch} for _ in examples),), strict=False
        )


def describe(model: Model) -> dict[str, str]:
    """Return what users of an exported file need to know of a model, as JSON by name."""
    from pyro_ssvae import __version__

    likelihood = getattr(model, "likelihood", None)
    values = {
        "model": type(model).__name__,
        "class_names": model.class_names or [str(number) for number in range(model.num_classes or 0)],
        "scale": model.data_scale,
        "event_shape": list(model.event_shape),
        "latent_dim": model.latent_dim,
        "likelihood": None if likelihood is None else {"name": likelihood.name, **likelihood.config()},
        "feature_names": model.feature_names,
        "categories": model.categories,
        "missing": model.missing,
        "pyro_ssvae": __version__,
    }
    return {name: json.dumps(value) for name, value in values.items()}


def _index(y: Tensor) -> Tensor:
    return y.argmax(-1)


def _moments(distribution: Any) -> tuple[Tensor, Tensor]:
    normal = as_independent_normal(distribution)
    if normal is None:
        raise TypeError(f"the posterior is a {type(distribution).__name__}, and only a diagonal Gaussian is exported")
    return normal.loc, normal.scale


def _write_onnx(program: torch.export.ExportedProgram, network: Network, metadata: Mapping[str, str]) -> bytes:
    try:
        import onnxscript  # noqa: F401 - torch.onnx uses it
    except ImportError as error:
        raise MissingPackageError(
            "Export to ONNX needs onnx and onnxscript: pip install 'pyro-ssvae[export]'"
        ) from error
    inputs, outputs = [*network.inputs], [*network.outputs]
    with _quiet():
        written = torch.onnx.export(
            program, input_names=inputs, output_names=outputs, dynamo=True, external_data=False, verbose=False
        )
    assert written is not None
    for node in written.model.graph:
        node.metadata_props.clear()  # of the source code that the node comes from
    written.model.metadata_props.update(metadata)
    content: bytes = written.model_proto.SerializeToString()
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
