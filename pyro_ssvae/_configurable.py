"""Modules that record the arguments of their constructor and can be rebuilt from them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from pyro_ssvae._arguments import bind_arguments

REGISTRY: dict[str, type[Configurable]] = {}
"""Classes that configurations may name; a subclass of :class:`Configurable` registers itself."""


class Configurable(nn.Module):
    """A module that records the arguments of its constructor, each stated once, in the signature of ``__init__``.

    :func:`describe` converts them to a JSON-ready configuration, and :func:`build` makes the module again. A subclass
    with ``abstract=True`` in its head is a base class that no configuration names.
    """

    _arguments: dict[type, dict[str, Any]]  # by the class whose constructor took them

    def __init_subclass__(cls, *, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _record_arguments(cls, cls.__init__)  # type: ignore[method-assign]
        registered = REGISTRY.get(cls.__name__)
        # A class of the caller's own must not replace a class of the library that has the same name.
        if not abstract and (registered is None or is_library_class(cls) or not is_library_class(registered)):
            REGISTRY[cls.__name__] = cls


def _record_arguments(cls: type, init: Callable[..., None]) -> Callable[..., None]:
    """Return a constructor that stores its arguments, defaults included; classes of this package check them too."""
    signature = inspect.signature(init)
    bind = functools.partial(bind_arguments, init, signature) if is_library_class(cls) else signature.bind

    @functools.wraps(init)
    def recorded(self: Configurable, *args: Any, **kwargs: Any) -> None:
        bound = bind(self, *args, **kwargs)
        init(*bound.args, **bound.kwargs)
        bound.apply_defaults()
        arguments: dict[str, Any] = {}
        for name, value in list(bound.arguments.items())[1:]:  # without self
            if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                arguments |= value
            elif signature.parameters[name].kind is not inspect.Parameter.VAR_POSITIONAL:
                arguments[name] = value
            elif value:
                arguments["*"] = value  # build passes what stands before by position too
        self.__dict__.setdefault("_arguments", {})[cls] = arguments

    return recorded


def is_library_class(cls: type) -> bool:
    """Return whether a class is one of this package."""
    return cls.__module__.startswith("pyro_ssvae.")


def find_parameters(cls: type) -> set[str]:
    """Return the names of the arguments of a class, with those that its constructors pass on by ``**kwargs``."""
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        first, *parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        kinds = {parameter.kind for parameter in parameters}
        names |= {one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
        if first.VAR_KEYWORD not in kinds:
            break
    return names


class _CustomError(TypeError):
    """A value is, or holds, an object of the caller's own, which a configuration cannot rebuild."""


def describe(module: Configurable, cls: type | None = None) -> dict[str, Any]:
    """Return how to build a module again, as an instance of its class or of a base class ``cls`` of it, JSON-ready.

    ``"class"`` is the name of the class; ``"arguments"`` are those of its constructor, in which modules of this package
    are described too and ``"*"`` holds further positional ones; ``"custom"`` are the arguments that only the caller can
    supply, by name, with their class.
    """
    cls = type(module) if cls is None else cls
    recorded: dict[type, dict[str, Any]] = getattr(module, "_arguments", {})
    arguments: dict[str, Any] = {}
    custom: dict[str, str] = {}
    for name, value in next((recorded[base] for base in cls.__mro__ if base in recorded), {}).items():
        try:
            arguments[name] = _encode(value)
        except _CustomError as error:
            custom[name] = str(error)
    return {"class": cls.__name__, "arguments": arguments, "custom": custom}


def _encode(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Configurable) and is_library_class(type(value)):
        config = describe(value)
        if config["custom"]:
            raise _CustomError(f"{config['class']} with its {', '.join(config['custom'])}")
        return {name: config[name] for name in ("class", "arguments")}
    if isinstance(value, nn.Module):
        raise _CustomError(type(value).__name__)
    if isinstance(value, Mapping):
        if "class" not in value and all(isinstance(name, str) for name in value):
            return {name: _encode(part) for name, part in value.items()}
        return {"class": "dict", "items": [[_encode(name), _encode(part)] for name, part in value.items()]}
    if hasattr(value, "tolist"):  # tensors, arrays, and the scalars of both
        return value.tolist()
    if isinstance(value, Iterable):
        return [_encode(part) for part in value]
    raise _CustomError(type(value).__name__)


def build(config: Mapping[str, Any], cls: type | None = None, **given: Any) -> Any:
    """Build a module from what :func:`describe` returned, by default of its class; ``given`` has precedence."""
    arguments = {name: _decode(value) for name, value in config["arguments"].items()} | given
    names = list(arguments)
    before = names[: names.index("*")] if "*" in arguments else []
    positional = [arguments.pop(name) for name in before] + arguments.pop("*", [])
    return (REGISTRY[config["class"]] if cls is None else cls)(*positional, **arguments)


def _decode(value: Any) -> Any:
    if isinstance(value, Mapping) and value.get("class") == "dict":
        items = [[_decode(part) for part in item] for item in value["items"]]
        return {tuple(name) if isinstance(name, list) else name: part for name, part in items}
    if isinstance(value, Mapping):
        return build(value) if "class" in value else {name: _decode(part) for name, part in value.items()}
    return [_decode(part) for part in value] if isinstance(value, list) else value
