"""A model is a folder: ``config.json`` (how to build it) and ``model.safetensors`` (its weights). No pickle."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from pyro_ssvae._io import read_json, write_atomically, write_json
from pyro_ssvae.distributions.factory import make_class_prior, make_likelihood, make_prior
from pyro_ssvae.models.base import Model
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.models.m1 import M1
from pyro_ssvae.models.m1m2 import M1M2
from pyro_ssvae.models.m2 import M2

__all__ = ["load", "save"]

FORMAT = 1
_MODELS: dict[str, type[Model]] = {"DDGM": DDGM, "M1": M1, "M2": M2, "M1M2": M1M2}
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save(model: Model, folder: str | Path) -> Path:
    """Write a model to a folder, each file atomically.

    Args:
        model: The model; any training or evaluation mode, any device.
        folder: Where to; made if missing.

    Returns:
        The folder.

    Raises:
        OSError: If the folder cannot be written, for example on a full disk; nothing half-written is left.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Copies, because a stack and the model below it share a likelihood, and the format refuses shared memory.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    write_atomically(folder / WEIGHTS, save_tensors(state))
    write_json(folder / CONFIG, model.config())
    return folder


def load(
    folder: str | Path, *, device: str | torch.device = "cpu", cls: type[Model] | None = None, **modules: Any
) -> Any:
    """Bring a saved model back, in evaluation mode.

    Args:
        folder: A model folder, or the folder of a run, which holds one as ``model/``.
        device: Where to put it; a model trained on CUDA loads on the CPU and the other way round.
        cls: Your subclass, if the model was an instance of one; the library's class otherwise.
        **modules: The modules of your own that the model was built with (``classifier=``, ``encoder=``, ``decoder=``,
            ``prior=``, ``likelihood=``, ``class_prior=``; ``features=``, ``experts=``, ``generator=``), which a
            configuration cannot rebuild. Their weights are loaded. ``m1=`` hands in the M1 of a stack, where that has
            such modules.

    Returns:
        The model.

    Raises:
        FileNotFoundError: If there is no model in the folder.
        ValueError: For a damaged file, another format, a missing module of your own, or weights that do not fit.

    Example:
        >>> import tempfile, torch, pyro_ssvae
        >>> m2 = pyro_ssvae.M2((1, 8, 8), 10, latent_dim=2, hidden_dims=(8,)).eval()
        >>> twin = pyro_ssvae.load(pyro_ssvae.save(m2, tempfile.mkdtemp()))
        >>> x = torch.rand(3, 1, 8, 8)
        >>> torch.equal(twin.classify(x), m2.classify(x))
        True
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() and (folder / "model" / CONFIG).is_file():
        folder = folder / "model"
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"No saved model in {folder}: expected {CONFIG} and {WEIGHTS}, there or in its folder model/."
        )
    config = read_json(folder / CONFIG)
    try:
        if config["format"] != FORMAT:
            raise ValueError(f"{folder / CONFIG} has format {config['format']}; this version reads format {FORMAT}.")
        model = _build(config, cls, modules)
    except KeyError as error:
        raise ValueError(f"{folder / CONFIG} lacks the entry {error}; the file is damaged.") from error
    try:
        state = load_tensors((folder / WEIGHTS).read_bytes())
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged or does not fit {folder / CONFIG}: {error}") from error
    return model.to(device).eval()


def _build(config: dict[str, Any], cls: type[Model] | None, modules: dict[str, Any]) -> Any:
    kind: Any = cls or _class_of(config)
    return kind(**_arguments(_MODELS[config["base"]], config, modules))


def _class_of(config: dict[str, Any]) -> type[Model]:
    base = config["base"]
    if base not in _MODELS:
        raise ValueError(f"Unknown model {base!r}; this version knows {', '.join(_MODELS)}.")
    if config["class"] != base:
        warnings.warn(
            f"The model was saved from {config['class']}, a subclass of {base}; it is loaded as {base}, which "
            f"shares its networks. Pass cls={config['class']} to get the subclass.",
            stacklevel=3,
        )
    return _MODELS[base]


def _arguments(kind: type[Model], config: dict[str, Any], modules: dict[str, Any]) -> dict[str, Any]:
    """Return constructor arguments: what the configuration says, completed by the caller's modules."""
    arguments = dict(config["arguments"])
    unknown = set(modules) - set(inspect.signature(kind).parameters)
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))}: no such argument of {kind.__name__}.")
    missing = {name: whose for name, whose in config["custom"].items() if name not in modules}
    below = config["parts"].get("m1")
    if below is not None and below["custom"] and "m1" not in modules:
        missing["m1"] = f"M1 with its {', '.join(below['custom'])}"
    if missing:
        given = ", ".join(f"{name}=<your {whose}>" for name, whose in missing.items())
        raise ValueError(f"The model was built with modules of your own; hand them in again: load(folder, {given}).")
    if below is not None and "m1" not in modules:
        arguments["m1"] = _build(below, None, {})
    if "likelihood" not in modules and "likelihood" in config["parts"]:
        arguments["likelihood"] = make_likelihood(**config["parts"]["likelihood"])
    if "prior" not in modules and "prior" in config["parts"]:
        arguments["prior"] = make_prior(latent_dim=arguments["latent_dim"], **config["parts"]["prior"])
    if "class_prior" not in modules and "class_prior" in config["parts"]:
        part = config["parts"]["class_prior"]
        arguments["class_prior"] = make_class_prior(num_classes=arguments["num_classes"], **part)
    return arguments | modules
