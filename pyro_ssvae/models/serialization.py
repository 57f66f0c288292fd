"""Saved models: a folder with ``config.json`` (how to build it) and ``model.safetensors`` (its weights). No pickle."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from pyro_ssvae._arguments import as_device, checked
from pyro_ssvae._configurable import REGISTRY, build, find_parameters, is_library_class
from pyro_ssvae._io import one_line, read_json, suggest_names, write_atomically, write_json
from pyro_ssvae._warnings import warn
from pyro_ssvae.data.features import FeatureSource
from pyro_ssvae.distributions.likelihoods import Likelihood
from pyro_ssvae.models.base import FORMAT, Model

CONFIG, WEIGHTS = "config.json", "model.safetensors"

_ENTRIES = {
    "format": int,
    "class": str,
    "arguments": dict,
    "custom": dict,
    "base": dict,
    "data": dict,
    "m1_frozen": bool,
}
_LARGEST_CONSTANTS = 2**28  # bytes of what a model computes from its arguments and does not save
_MOST_PARTS = 10_000  # modules that a configuration describes
_Header = dict[str, tuple[tuple[int, ...], str]]  # shapes and dtypes of the saved weights, by name


@checked
def save(model: Model, folder: str | Path) -> Path:
    """Write a model, in any mode and on any device, to a folder, which is created if needed; return the folder.

    Raises:
        TypeError: If ``get_extra_state`` of a module of one's own returns no tensor.
        OSError: If the folder cannot be written, for example on a full disk; no incomplete file is left.
    """
    check_state(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Copies, because the parts of an M1M2 share modules, and the format refuses shared memory.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    state = {_uncompiled(name): tensor for name, tensor in tensors.items()}
    write_atomically(folder / WEIGHTS, save_tensors(state))
    write_json(folder / CONFIG, model.config())
    return folder


@checked
def load(
    folder: str | Path, *, device: str | torch.device = "cpu", cls: type[Model] | None = None, **modules: Any
) -> Any:
    """Return a saved model, in evaluation mode.

    Args:
        folder: A model folder, or the folder of a run, which holds one as ``model/``.
        device: Where to put the model; it may have been saved from another device.
        cls: The class to build. By default a model of this package is built as its class, a subclass of one as that
            model (with a warning), and any other class by its name, for which it must have been imported.
        **modules: Arguments that the configuration cannot rebuild, because the model was built with modules of your
            own: ``encoder=``, ``prior=`` and so on, or ``m1=`` and ``m2=`` if those of an M1M2 have such modules. Their
            weights are loaded too.

    Raises:
        TypeError: If ``folder`` is no path, ``device`` no device or ``cls`` no class of models.
        FileNotFoundError: If there is no model in the folder.
        ValueError: For a damaged file, another format, an unknown class, a missing module of your own, or weights that
            do not fit or are not finite; memory for a model is taken after that.

    Example:
        >>> import tempfile, torch, pyro_ssvae
        >>> m2 = pyro_ssvae.M2((1, 8, 8), 10, latent_dim=2, hidden_dims=(8,)).eval()
        >>> loaded = pyro_ssvae.load(pyro_ssvae.save(m2, tempfile.mkdtemp()))
        >>> x = torch.rand(3, 1, 8, 8)
        >>> torch.equal(loaded.classify(x), m2.classify(x))
        True
    """
    device = as_device(device)
    if cls is not None and not (isinstance(cls, type) and issubclass(cls, Model)):
        raise TypeError(f"cls={cls!r} must be a class of models, for example cls=M2.")
    folder = _find_model(Path(folder))
    saved = _read_config(folder / CONFIG)
    config, cls = _select(saved, cls)
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}
            header = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
            _check_lengths(config, len(header))
            _compare_on_meta(config, cls, modules, header, saved["class"])
            state = {name: file.get_tensor(name) for name in header}
        model = _build(config, cls, modules)
        if all(header[_uncompiled(name)][1] == "F64" for name, _ in model.named_parameters()):
            model.double()
        own = {_uncompiled(name): name for name in model.state_dict()}
        model.load_state_dict({own.get(name, name): tensor for name, tensor in state.items()})
        _check_values(model)
    except (SafetensorError, RuntimeError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"{folder / WEIGHTS} is damaged or does not fit {folder / CONFIG}: {told}") from error
    _restore_data(model, config.get("data"))
    if not config.get("m1_frozen", True) and hasattr(model, "unfreeze_m1"):
        model.unfreeze_m1()
    return model.to(device).eval()


def check_state(module: nn.Module) -> None:
    """Raise ``TypeError`` if a part of a module has a state that is no tensor, which cannot be saved."""
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            path = name.rpartition(".")[0]
            place = f" ({path})" if path else ""
            raise TypeError(
                f"get_extra_state of {type(module.get_submodule(path)).__name__}{place} returns the type "
                f"{type(value).__name__}, and only tensors are saved: return a tensor, or keep the value in a buffer "
                "or in an argument of the constructor."
            )


def _find_model(folder: Path) -> Path:
    """Return the folder of a model, which is that folder or ``model/`` in it."""
    if not (folder / CONFIG).is_file() and (folder / "model" / CONFIG).is_file():
        folder = folder / "model"
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"No saved model in {folder}: expected {CONFIG} and {WEIGHTS}, there or in its folder model/."
            f"{suggest_names(folder)}"
        )
    return folder


def _restore_data(model: Any, data: Mapping[str, Any] | None) -> None:
    """Set what a model knows of its training examples; one that was saved before it met any knows no units either."""
    if data is None:
        for part in model.modules():
            if isinstance(part, Likelihood) and all(getattr(part, name) is None for name in part._unit_names):
                part._units_known = False
        return
    model.data_scale, model._data_range = data["scale"], tuple(data["range"])
    model.class_names, model.feature_names = tuple(data["class_names"]), tuple(data.get("feature_names", ()))
    model.categories = {name: tuple(words) for name, words in data.get("categories", {}).items()}
    model.feature_source = FeatureSource.from_config(data["features"]) if "features" in data else None


def _uncompiled(name: str) -> str:
    """Return the name of a weight as it is where no network is wrapped by ``torch.compile``."""
    return name.replace("_orig_mod.", "")


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if config.get("format") != FORMAT or type(config["format"]) is not int:
        raise ValueError(f"{path} has format {config.get('format')!r}; this version reads format {FORMAT}.")
    if lacking := {"class", "arguments", "custom"} - config.keys():
        raise ValueError(f"{path} is damaged: it lacks the entry {min(lacking)!r}.")
    for name, value in [*config.items(), *(config["base"].items() if isinstance(config.get("base"), dict) else ())]:
        if name not in _ENTRIES or type(value) is not _ENTRIES[name]:
            raise ValueError(f"{path} is damaged: unexpected entry {name!r}, {str(value)[:60]}.")
    if not all(isinstance(value, str) for value in config["custom"].values()):
        raise ValueError(f"{path} is damaged: the entry 'custom' must hold names of classes.")
    if "data" in config:
        _check_data_entry(config["data"], path)
    return config


def _check_data_entry(data: Mapping[str, Any], path: Path) -> None:
    ends, categories = data.get("range"), data.get("categories", {})
    numbers = [data.get("scale"), *(ends if isinstance(ends, list) else ())]
    finite = all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
    lists = [data.get("class_names"), data.get("feature_names", [])]
    lists += [*categories.values(), list(categories)] if isinstance(categories, dict) else [None]
    named = all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists)
    if len(numbers) != 3 or not finite or not named or numbers[0] <= 0 or not {*categories} <= {*lists[1]}:
        raise ValueError(f"{path} is damaged: the entry 'data' must hold scale, range and names.")
    if "features" in data:
        try:
            FeatureSource.from_config(data["features"])
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is damaged: the entry 'features' says not how they were computed.") from error


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every entry of the mappings in a configuration."""
    if isinstance(value, Mapping):
        yield from value.items()
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _walk(part)


def _check_lengths(config: Mapping[str, Any], num_tensors: int) -> None:
    """Raise ``ValueError`` for more layers or parts than the saved weights, so that building them takes little."""
    entries = list(_walk(config))
    sizes = [value for name, value in entries if name == "hidden_dims"]
    layers = [len(size) if isinstance(size, list) else size for size in sizes]
    parts = sum(name == "class" for name, _ in entries)
    if parts > _MOST_PARTS or any(isinstance(number, int) and number > num_tensors for number in layers):
        raise ValueError(f"{CONFIG} describes more layers than {WEIGHTS} holds weights ({num_tensors}).")


def _compare_on_meta(
    config: dict[str, Any], cls: type[Model], modules: dict[str, Any], header: _Header, saved_class: str
) -> None:
    """Raise ``ValueError`` unless the weights are those of the model; done without memory for either.

    Constructors of other packages may need numbers; their models are compared when the weights are loaded.
    """
    try:
        with torch.device("meta"):
            model = _build(config, cls, copy.deepcopy(modules))  # which building a model may change
    except Exception:
        if modules or not is_library_class(cls):
            return
        raise
    needed = {_uncompiled(name): tensor for name, tensor in model.state_dict().items()}
    if lacking := sorted(needed.keys() - header.keys()):
        raise ValueError(f"{WEIGHTS} does not fit {CONFIG}: it lacks {', '.join(lacking[:3])}.")
    optional = {  # buffers that a new model leaves open, such as the units of a likelihood
        f"{path}.{name}".removeprefix(".")
        for path, part in model.named_modules(remove_duplicate=False)  # an M1M2 has the parts of its M1 twice
        for name, buffer in part._buffers.items()
        if buffer is None
    }
    if unknown := sorted(header.keys() - needed.keys() - optional):
        hint = "" if saved_class == cls.__name__ else f"; pass cls={saved_class}"
        raise ValueError(f"{WEIGHTS} does not fit {CONFIG}: it holds {unknown[0]}, which the model has not{hint}.")
    for name, wanted in needed.items():
        shape, dtype = header[name]
        kind = "F" if wanted.is_floating_point() else "B" if wanted.dtype == torch.bool else "I"
        if (shape, "B" if dtype == "BOOL" else "F" if "F" in dtype else "I") != (tuple(wanted.shape), kind):
            raise ValueError(
                f"{WEIGHTS} does not fit {CONFIG}: {name} has shape {shape} and type {dtype}, and "
                f"{tuple(wanted.shape)} and {wanted.dtype} are needed."
            )
    size = sum(buffer.nbytes for name, buffer in model.named_buffers() if name not in needed)
    if size > _LARGEST_CONSTANTS:
        raise ValueError(f"{CONFIG} describes a model with {size:,} bytes of constants.")


def _check_values(model: Model) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        bad = ~tensor.detach().isfinite() if isinstance(tensor, torch.nn.Parameter) else tensor.isnan()
        if bad.any():
            raise RuntimeError(f"{int(bad.sum())} numbers of {name} are NaN or infinite")


def _build(config: dict[str, Any], cls: type[Model], modules: dict[str, Any]) -> Any:
    known = {*find_parameters(cls), *config["arguments"], *config["custom"]}
    if unknown := modules.keys() - known:
        raise ValueError(f"{', '.join(sorted(unknown))}: no such argument of {cls.__name__}.")
    if missing := config["custom"].keys() - modules.keys():
        given = ", ".join(f"{name}=<your {config['custom'][name]}>" for name in sorted(missing))
        raise ValueError(f"The model was built with modules of your own; hand them in again: load(folder, {given}).")
    try:
        return build(config, cls, **modules)
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # a damaged configuration gives errors of many types
        raise ValueError(f"{CONFIG} describes no {cls.__name__} that can be built ({one_line(error)}).") from error


def _select(config: dict[str, Any], cls: type[Model] | None) -> tuple[dict[str, Any], type[Model]]:
    """Return the class to build and the configuration with its arguments."""
    base = {**config, **config.get("base", {})}  # of the model of this package, where the class is a subclass of one
    if cls is not None:
        return (base if is_library_class(cls) else config), cls
    name = base["class"]
    registered = REGISTRY.get(name)
    if registered is None or not issubclass(registered, Model):
        known = ", ".join(sorted(name for name, kind in REGISTRY.items() if issubclass(kind, Model)))
        raise ValueError(f"Unknown model {name!r}. Import its module, or pass cls={name}; known are {known}.")
    if "base" in config:
        warn(
            f"The model was saved from {config['class']}, a subclass of {name} of this package, and is loaded as the "
            f"latter, without what the subclass changes. Pass cls={config['class']} to pyro_ssvae.load for the "
            "subclass."
        )
    return base, registered
