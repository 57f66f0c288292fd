"""Saved models: a folder with ``config.json`` (how to build it) and ``model.safetensors`` (its weights). No pickle."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from pyro_ssvae._arguments import checked
from pyro_ssvae._checks import as_device
from pyro_ssvae._configurable import REGISTRY, build
from pyro_ssvae._io import read_json, write_atomically, write_json
from pyro_ssvae.models.base import FORMAT, Model

__all__ = ["load", "save"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@checked
def save(model: Model, folder: str | Path) -> Path:
    """Write a model to a folder, each file atomically.

    Args:
        model: The model, in training or evaluation mode, on any device.
        folder: The folder, created if it does not exist.

    Returns:
        The folder.

    Raises:
        OSError: If the folder cannot be written, for example on a full disk; no incomplete file is left.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Copies, because the parts of an M1M2 share modules, and the format refuses shared memory.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    write_atomically(folder / WEIGHTS, save_tensors(state))
    write_json(folder / CONFIG, model.config())
    return folder


@checked
def load(
    folder: str | Path, *, device: str | torch.device = "cpu", cls: type[Model] | None = None, **modules: Any
) -> Any:
    """Load a saved model, in evaluation mode.

    Args:
        folder: A model folder, or the folder of a run, which holds one as ``model/``.
        device: Where to put the model; it may have been saved from another device.
        cls: The class to build. By default a model of this package is built as its class, a subclass of one as that
            model (with a warning), and any other class by its name, for which it must have been imported.
        **modules: Arguments that the configuration cannot rebuild, because the model was built with modules of your
            own: ``encoder=``, ``prior=`` and so on, or ``m1=`` and ``m2=`` if those of an M1M2 have such modules. Their
            weights are loaded too.

    Returns:
        The model.

    Raises:
        TypeError: If ``folder`` is no path, ``device`` no device or ``cls`` no class of models.
        FileNotFoundError: If there is no model in the folder.
        ValueError: For a damaged file, another format, an unknown class, a missing module of your own, or weights that
            do not fit.

    Example:
        >>> import tempfile, torch, pyro_ssvae
        >>> m2 = pyro_ssvae.M2((1, 8, 8), 10, latent_dim=2, hidden_dims=(8,)).eval()
        >>> loaded = pyro_ssvae.load(pyro_ssvae.save(m2, tempfile.mkdtemp()))
        >>> x = torch.rand(3, 1, 8, 8)
        >>> torch.equal(loaded.classify(x), m2.classify(x))
        True
    """
    folder, device = Path(folder), as_device(device)
    if cls is not None and not (isinstance(cls, type) and issubclass(cls, Model)):
        raise TypeError(f"cls={cls!r} must be a class of models, for example cls=M2.")
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
        if data := config.get("data"):
            model.data_scale, model._data_range = data["scale"], tuple(data["range"])
            model.class_names, model.feature_names = tuple(data["class_names"]), tuple(data.get("feature_names", ()))
            model.categories = {name: tuple(words) for name, words in data.get("categories", {}).items()}
    except KeyError as error:
        raise ValueError(f"{folder / CONFIG} lacks the entry {error}; the file is damaged.") from error
    try:
        state = load_tensors((folder / WEIGHTS).read_bytes())
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged or does not fit {folder / CONFIG}: {error}") from error
    return model.to(device).eval()


def _build(config: dict[str, Any], cls: type[Model] | None, modules: dict[str, Any]) -> Any:
    config, cls = _select(config, cls)
    known = {*inspect.signature(cls).parameters, *config["arguments"], *config["custom"]}
    if unknown := modules.keys() - known:
        raise ValueError(f"{', '.join(sorted(unknown))}: no such argument of {cls.__name__}.")
    if missing := config["custom"].keys() - modules.keys():
        given = ", ".join(f"{name}=<your {config['custom'][name]}>" for name in sorted(missing))
        raise ValueError(f"The model was built with modules of your own; hand them in again: load(folder, {given}).")
    return build(config, cls, **modules)


def _select(config: dict[str, Any], cls: type[Model] | None) -> tuple[dict[str, Any], type[Model]]:
    """Return the class to build and the configuration with its arguments."""
    base = {**config, **config.get("base", {})}  # of the model of this package, where the class is a subclass of one
    if cls is not None:
        return (base if cls.__name__ == base["class"] else config), cls
    name = base["class"]
    registered = REGISTRY.get(name)
    if registered is None or not issubclass(registered, Model):
        models = sorted(name for name, kind in REGISTRY.items() if issubclass(kind, Model))
        raise ValueError(
            f"Unknown model {name!r}. Import the module that defines it, or pass cls={name}; known are "
            f"{', '.join(models)}."
        )
    if config["class"] != name:
        warnings.warn(
            f"The model was saved from {config['class']}, a subclass of {name}; it is loaded as {name}, without what "
            f"the subclass changes. Pass cls={config['class']} to get the subclass.",
            stacklevel=5,
        )
    return base, registered
