"""Export of trained models: their networks as ONNX files and as programs of ``torch.export``."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import singledispatch
from importlib.util import find_spec
from io import BytesIO, StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import pyro
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pyro_ssvae._arguments import as_path, checked
from pyro_ssvae._configurable import describe as describe_module
from pyro_ssvae._io import one_line, write_atomically, write_json
from pyro_ssvae.distributions.torch_distributions import as_independent_normal
from pyro_ssvae.errors import MissingPackageError
from pyro_ssvae.models.base import Model, as_input, fork_random_state
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.models.diagnostics import get_class_names
from pyro_ssvae.models.latent_variable import LatentVariableModel
from pyro_ssvae.models.m1m2 import M1M2

_ENCODED = {"encoder": "z", "encoder_z1": "z1"}  # what the first output of a network is an input of
_EXAMPLES = 64  # on which files are checked
_TOLERANCE = 1e-3  # relative to the largest number of an output
_Program: TypeAlias = "torch.export.ExportedProgram"


@checked
def export(model: Model, folder: str | Path, x: ArrayLike | None = None, *, aoti: bool = False) -> dict[str, Any]:
    """Write the networks of a model to a folder, for programs that do without this package.

    They are ``classifier``, ``encoder``, ``decoder`` and ``likelihood``, or ``energy`` and ``generator`` of a DDGM.
    Each is written as ``NAME.onnx`` and ``NAME.pt2``, a program of ``torch.export``, and compared with the model.

    Args:
        model: The model; it is not changed.
        folder: The folder, created if it does not exist. Files of an earlier export are replaced.
        x: Examples ``(B, *event_shape)`` to compare on, as for ``predict_proba``, of which the first 64 are taken;
            ``None`` for examples that the model generates.
        aoti: Whether to compile each network, by AOTInductor, as a package for C++ (``NAME.aoti.pt2``); takes about
            half a minute each and a C++ compiler. It runs on machines like this one, with this version of PyTorch.

    Returns:
        The content of ``export.json``: names of classes and columns, scale, shapes and likelihood; under ``networks``,
        by name, the shapes of inputs, the names of outputs and for each file its size in bytes and the largest absolute
        difference of its outputs from those of the model; and under ``not_exported`` why a network or file could not
        be written.

    Raises:
        MissingPackageError: If onnx, onnxscript or onnxruntime is not installed.
        ValueError: For examples that the model does not take.
        OSError: If the folder cannot be written.
    """
    _check_packages()
    folder = as_path(folder, "folder")
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file, and a folder is needed.")
    folder.mkdir(parents=True, exist_ok=True)
    values = _take_values(model, x)
    networks = make_networks(model)
    metadata = _describe(model)
    report: dict[str, Any] = {**metadata, "examples": len(values["x"]), "networks": {}, "not_exported": {}}
    for name, network in networks.items():
        files = {}
        for suffix in _WRITERS:
            (folder / (name + suffix)).unlink(missing_ok=True)  # of an earlier export
        with _named_failure(name, report["not_exported"]):
            given = [values[key] for key in network.inputs]
            outputs = _as_tuple(network(*given))
            values |= {_ENCODED[name]: outputs[0]} if name in _ENCODED else {}
            program = trace(network)
            for suffix, write in _WRITERS.items():
                file = folder / (name + suffix)
                if aoti or suffix != _AOTI:
                    with _named_failure(file.name, report["not_exported"]):
                        write_atomically(file, write(program, network, metadata))
                        files[file.name] = {"bytes": file.stat().st_size, "difference": _compare(file, given, outputs)}
        if files:
            report["networks"][name] = {"inputs": network.inputs, "outputs": network.outputs, "files": files}
    write_json(folder / "export.json", report)
    return report


def _take_values(model: Model, x: ArrayLike | None) -> dict[str, Tensor]:
    """Return examples, classes and draws of z, ``(B, ...)``, by the name of the input that they are for."""
    with fork_random_state(model, 0):
        z = model.prior().sample((_EXAMPLES,))
        if x is None:
            generate: Any = model.sample if hasattr(model, "sample") else model.generate
            x = _as_tuple(generate(_EXAMPLES))[0]
    given: Any = x if isinstance(x, (str, os.PathLike)) else x[:_EXAMPLES]  # type: ignore[index]
    stored, scale = as_input(model, given)
    if not len(examples := stored[:_EXAMPLES]):
        raise ValueError("x holds no examples; give some to compare on, or leave x out.")
    values = {"x": examples / scale, "z": z[: len(examples)]}
    if model.num_classes is not None:
        values["y"] = torch.eye(model.num_classes)[torch.arange(len(examples)) % model.num_classes]
    return {name: value.float().cpu() for name, value in values.items()}


@contextmanager
def _named_failure(name: str, failures: dict[str, str]) -> Iterator[None]:
    """Note why a network or file cannot be exported, and go on."""
    try:
        yield
    except OSError:  # of the folder, not of the network
        raise
    except Exception as error:  # torch.export, and modules of the caller's own, raise errors of many types
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        failures[name] = one_line(cause)


def _compare(file: Path, given: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """Return the largest absolute difference of a file's outputs; remove a file that fails, or is wrong."""
    try:
        found = 0.0
        for got, wanted in zip(_run(file, given), outputs, strict=True):
            found = max(found, difference := float((got - wanted).abs().max()))
            if not difference <= _TOLERANCE * (1.0 + float(wanted.abs().max())):
                raise ValueError(f"its outputs differ from those of the model by {difference:.2g}")
        return found
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def _run(file: Path, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
    with _quiet(), torch.no_grad():
        if file.suffix == ".onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(file)
            names = [value.name for value in session.get_inputs()]
            outputs = session.run(None, {name: value.numpy() for name, value in zip(names, given, strict=True)})
            return tuple(map(torch.from_numpy, outputs))
        if ".aoti" in file.suffixes:
            return _as_tuple(torch._inductor.aoti_load_package(str(file))(*given))
        return _as_tuple(torch.export.load(file).module()(*given))


class Network(nn.Module):
    """A function of tensors ``(B, *shape)`` as a module, with the shapes of its inputs by name, and names of outputs.

    The model is not registered as a part, so that a program of the network holds only the weights that it uses.
    """

    def __init__(self, function: Callable[..., Any], inputs: Mapping[str, tuple[int, ...]], *outputs: str) -> None:
        super().__init__()
        self.function, self.inputs, self.outputs = function, dict(inputs), outputs

    def forward(self, *inputs: Tensor) -> Any:
        """Return the outputs for inputs in the order of their names."""
        return self.function(*inputs)


def make_networks(model: Model) -> dict[str, Network]:
    """Return the networks of a model by name, as float32 modules on the CPU that share nothing with the model.

    Classes are one-hot, ``(B, K)``; x is in the units that ``model.predict_proba`` takes.
    """
    model = copy.deepcopy(model).float().cpu().eval().requires_grad_(False)
    found = {}
    if model.num_classes is not None:
        x = {"x": tuple(model.event_shape)}
        found["classifier"] = Network(lambda x: model.classify(x).softmax(-1), x, "probabilities")
    return found | _make_own_networks(model)


@singledispatch
def _make_own_networks(model: Any) -> dict[str, Network]:
    """Return the networks of a kind of model, but for the classifier."""
    return {}


@_make_own_networks.register
def _(model: DDGM) -> dict[str, Network]:
    x, z = {"x": tuple(model.event_shape)}, {"z": (model.latent_dim,)}
    return {"energy": Network(model.energy_net, x, "energy"), "generator": Network(model.generator, z, "x")}


@_make_own_networks.register
def _(model: LatentVariableModel) -> dict[str, Network]:
    x, z = {"x": tuple(model.event_shape)}, {"z": (model.latent_dim,)}
    y = {} if model.num_classes is None else {"y": (model.num_classes,)}
    encode: Any = model.encode

    def decode(*given: Tensor) -> Any:
        *classes, latents = given
        decoded: Any = model.decode
        return decoded(*(one.argmax(-1) for one in classes), latents)

    found = {
        "encoder": Network(lambda x, *y: _moments(encode(x, *(one.argmax(-1) for one in y))), x | y, "mean", "scale"),
        "decoder": Network(lambda *given: decode(*given).mean, y | z, "mean"),
    }
    if not getattr(model, "skip", False):  # with which p(x|y,z) is an integral over a
        found["likelihood"] = Network(lambda x, *given: decode(*given).log_prob(x), x | y | z, "log_likelihood")
    return found


@_make_own_networks.register
def _(model: M1M2) -> dict[str, Network]:
    found = _make_own_networks.dispatch(LatentVariableModel)(model)
    del found["likelihood"]  # p(x|y,z) is an integral over z1
    x, z1 = {"x": tuple(model.event_shape)}, {"z1": (len(model.active),)}
    found["encoder_z1"] = Network(lambda x: _moments(model.encode_z1(x)), x, "mean", "scale")
    found["decoder_z1"] = Network(lambda z1: model.decode_x(z1).mean, z1, "mean")
    return found


def trace(network: Network) -> _Program:
    """Return a network as a program of ``torch.export``, with a dynamic batch dimension."""
    batch = torch.export.Dim("batch")
    examples = tuple(torch.zeros(3, *shape, dtype=torch.float32) for shape in network.inputs.values())
    shapes = (tuple({0: batch} for _ in examples),)
    with _quiet(), pyro.validation_enabled(False), torch.no_grad():
        program = torch.export.export(network, examples, dynamic_shapes=shapes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # which has paths of this machine
    return program


def _describe(model: Model) -> dict[str, Any]:
    """Return what users of an exported file need to know of a model; ``scale`` is what integers are divided by."""
    from pyro_ssvae import __version__

    likelihood = getattr(model, "likelihood", None)
    return {
        "model": type(model).__name__,
        "class_names": get_class_names(model),
        "scale": model.data_scale or 1.0,
        "event_shape": list(model.event_shape),
        "latent_dim": model.latent_dim,
        "likelihood": None
        if likelihood is None
        else {"name": likelihood.name, **describe_module(likelihood)["arguments"]},
        "feature_names": model.feature_names,
        "categories": model.categories,
        "missing": model.missing,
        "pyro_ssvae": __version__,
    }


def _moments(distribution: Any) -> tuple[Tensor, Tensor]:
    normal = as_independent_normal(distribution)
    if normal is None:
        raise TypeError(f"the posterior is a {type(distribution).__name__}, and only a diagonal Gaussian is exported")
    return normal.loc, normal.scale


def as_onnx(program: _Program, network: Network, metadata: Mapping[str, Any]) -> bytes:
    """Return the program of a network as the content of an ONNX file, with all weights and metadata as JSON inside."""
    _check_packages()
    with _quiet():
        if any(node.target in _STABLE for node in program.graph.nodes):
            program = program.run_decompositions(_STABLE)
        written = torch.onnx.export(
            program,
            input_names=[*network.inputs],
            output_names=[*network.outputs],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert written is not None
    for node in written.model.graph:
        node.metadata_props.clear()  # of the source code that the node comes from
    written.model.metadata_props.update({name: json.dumps(value) for name, value in metadata.items()})
    return written.model_proto.SerializeToString()


def _expm1(x: Tensor) -> Tensor:
    """Return e^x - 1, which ONNX has not, to single precision also near zero."""
    series = x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0 * (1.0 + x / 5.0))))
    return torch.where(x.abs() < 0.2, series, x.exp() - 1.0)


def _lgamma(x: Tensor) -> Tensor:
    """Return log Γ(x) of positive numbers, which ONNX has not, by Stirling's series at x + 3."""
    y = x + 3.0
    series = (1.0 / 12.0 - (1.0 / 360.0 - 1.0 / (1260.0 * y * y)) / (y * y)) / y
    return (y - 0.5) * y.log() - y + 0.5 * math.log(2.0 * math.pi) + series - (x * (x + 1.0) * (x + 2.0)).log()


def _write_program(program: _Program, _: Network, metadata: Mapping[str, Any]) -> bytes:
    buffer = BytesIO()
    with _quiet():
        torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(metadata)})
    return buffer.getvalue()


def _compile(program: _Program, *_: Any) -> bytes:
    with TemporaryDirectory() as folder, _quiet():
        path = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/network.pt2")
        return Path(path).read_bytes()


_STABLE: Any = {  # operators that ONNX has not, or that overflow as torch.onnx writes them
    torch.ops.aten.expm1.default: _expm1,
    torch.ops.aten.lgamma.default: _lgamma,
    torch.ops.aten.log_sigmoid.default: lambda x: -nn.functional.softplus(-x),
}
_AOTI = ".aoti.pt2"
_WRITERS = {".onnx": as_onnx, ".pt2": _write_program, _AOTI: _compile}


def _check_packages() -> None:
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise MissingPackageError(f"Export needs {', '.join(missing)}: pip install 'pyro-ssvae[export]'.")


def _as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out warnings, and what torch.export prints of a network that it cannot export."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
