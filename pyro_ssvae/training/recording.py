"""The loss and its gradients, recorded once as a list of tensor operations and replayed.

Running a Pyro pair costs Python: handlers, traces, distributions, at every step the same. What is left of it after
``make_fx`` has watched one step is a plain sequence of tensor operations, forward and backward, which draws the same
random numbers and gives the same loss, to the last bit.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_ssvae.data import Batch

__all__ = ["RecordedLoss", "has_compiler", "preserved", "shapes"]


def has_compiler() -> bool:
    """Whether a C++ compiler is at hand, which Inductor needs on the CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if name)


@contextmanager
def preserved(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Run something and leave random generators and buffers as they were.

    Args:
        module: Whose buffers are kept.
        device: Whose default generator is kept, besides the CPU's.
    """
    buffers = list(module.buffers())
    values = [buffer.detach().clone() for buffer in buffers]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value)


class RecordedLoss:
    """Computes a module's loss and gradients by replaying a recording, one for each shape of batch.

    Args:
        module: Called with a batch, returns the loss.
        latest: Returns the detached terms behind the last loss, by name.
        device: Where everything lies.
        trained: The parameters that get gradients; all that require them when ``None``.
        compiled_shape: Shapes of a batch, as :func:`shapes` gives them, whose recording Inductor compiles; other
            shapes, which are rare, are replayed operation by operation. ``None`` to compile nothing.

    Raises:
        Exception: From a call, whatever recording or compiling raises: the module reads numbers back from the
            device, for instance. Generators and buffers are then as before the call.
    """

    def __init__(
        self,
        module: nn.Module,
        latest: Callable[[], dict[str, Tensor]],
        device: torch.device,
        compiled_shape: tuple[Any, ...] | None = None,
        trained: Sequence[Tensor] | None = None,
    ) -> None:
        self._module = module
        self._latest = latest
        self._device = device
        self._compiled_shape = compiled_shape
        self._recordings: dict[tuple[Any, ...], tuple[Callable[..., Any], list[str]]] = {}
        named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        chosen = set(named) if trained is None else _names_of(named, trained)
        self._names: list[str] = [name for name in named if name in chosen]
        self._parameters: list[Tensor] = [named[name] for name in self._names]
        # What is not trained here is handed over with the buffers.
        others = {name: parameter for name, parameter in named.items() if name not in chosen}
        buffers = {**others, **dict(module.named_buffers())}
        self._buffer_names, self._buffers = list(buffers), list(buffers.values())

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Put the gradients into the parameters; return the loss and its terms."""
        key = (*shapes(batch), self._module.training)
        if key not in self._recordings:
            self._recordings[key] = self._record(batch)
        run, terms = self._recordings[key]
        with torch.no_grad():
            loss, values, gradients = run(*self._arguments(batch))
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss, dict(zip(terms, values, strict=True))

    def _arguments(self, batch: Batch) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        return self._parameters, self._buffers, [part for part in batch if part is not None]

    def _record(self, batch: Batch) -> tuple[Callable[..., Any], list[str]]:
        present = [part is not None for part in batch]
        terms: list[str] = []

        def step(parameters: list[Tensor], buffers: list[Tensor], parts: list[Tensor]) -> Any:
            given = iter(parts)
            inputs = Batch(*(next(given) if here else None for here in present))
            state = dict(zip((*self._names, *self._buffer_names), (*parameters, *buffers), strict=True))
            loss = functional_call(self._module, state, (inputs,))
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            latest = self._latest()
            terms[:] = list(latest)
            return loss.detach(), list(latest.values()), _owned(gradients, parameters)

        with preserved(self._module, self._device):
            graph: Callable[..., Any] = make_fx(step)(*self._arguments(batch))
            if shapes(batch) == self._compiled_shape:
                graph = self._compile(graph, batch)
        return graph, terms

    def _compile(self, graph: Callable[..., Any], batch: Batch) -> Callable[..., Any]:
        compiled: Callable[..., Any] = torch.compile(
            graph, fullgraph=True, dynamic=False, options={"fallback_random": True}
        )
        # Without a GPU, every build of PyTorch with CUDA logs that it has found none.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        try:
            with torch.no_grad():
                compiled(*self._arguments(batch))
        except Exception as problem:  # a broken compiler, say: the recording itself still runs
            reason = " ".join(str(problem).split())[:200]
            warnings.warn(f"Inductor cannot compile the step, which is replayed instead: {reason}", stacklevel=2)
            return graph
        return compiled


def _names_of(named: dict[str, nn.Parameter], trained: Sequence[Tensor]) -> set[str]:
    wanted = {id(parameter) for parameter in trained}
    return {name for name, parameter in named.items() if id(parameter) in wanted}


def shapes(parts: Iterable[Tensor | None]) -> tuple[Any, ...]:
    """Return what a recording depends on: the shapes of the parts of a batch."""
    return tuple(None if part is None else tuple(part.shape) for part in parts)


def _owned(gradients: tuple[Tensor | None, ...], parameters: list[Tensor]) -> list[Tensor | None]:
    """Return gradients laid out as their parameters, no two of which share memory, as ``backward`` would leave them."""
    seen: set[int] = set()
    owned: list[Tensor | None] = []
    for gradient, parameter in zip(gradients, parameters, strict=True):
        if gradient is not None:
            if gradient.stride() != parameter.stride():
                gradient = torch.empty_like(parameter).copy_(gradient)
            elif gradient.untyped_storage().data_ptr() in seen:
                gradient = gradient.clone()
            seen.add(gradient.untyped_storage().data_ptr())
        owned.append(gradient)
    return owned
