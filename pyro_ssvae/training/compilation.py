"""The loss and its gradients, recorded once as a list of tensor operations and replayed.

Running a Pyro module costs Python: handlers, traces, distributions, at every step the same. What is left of it after
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
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_ssvae.data import Batch

__all__ = ["RecordedLoss", "has_compiler", "clone_shared_gradients", "preserve_state", "shapes"]


def has_compiler() -> bool:
    """Whether a C++ compiler is at hand, which Inductor needs on the CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if name)


@contextmanager
def preserve_state(module: nn.Module, device: torch.device) -> Iterator[None]:
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


class _Part(NamedTuple):
    """What a loss is computed by, from all values before it, and the names of its terms."""

    run: Callable[..., tuple[list[Any], list[Tensor]]]
    terms: list[str]


class RecordedLoss:
    """Computes losses and their gradients by replaying a recording, one for each shape of batch.

    Args:
        modules: Called with a batch, returns the loss. Or several over the same parameters, whose losses are taken one
            after another at the weights found then; what one computes and keeps, the next may go on from.
        latest: Returns the detached terms behind the last loss, by name.
        device: Where everything lies.
        trained: The parameters that get gradients, of each module; all that require them when ``None``.
        compiled_shape: Shapes of a batch, as :func:`shapes` gives them, whose recording Inductor compiles; other
            shapes, which are rare, are replayed operation by operation. ``None`` to compile nothing.

    Raises:
        Exception: From a call or :meth:`record`, whatever recording or compiling raises: a module reads numbers back
            from the device, for instance. Generators and buffers are then as before the call.
    """

    def __init__(
        self,
        modules: nn.Module | Sequence[nn.Module],
        latest: Callable[[], dict[str, Tensor]],
        device: torch.device,
        compiled_shape: tuple[Any, ...] | None = None,
        trained: Sequence[Sequence[Tensor]] | None = None,
    ) -> None:
        self._modules = [modules] if isinstance(modules, nn.Module) else list(modules)
        self._latest = latest
        self._device = device
        self._compiled_shape = compiled_shape
        self._recordings: dict[tuple[Any, ...], list[_Part]] = {}
        module = self._modules[0]
        named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        chosen = [set(named)] if trained is None else [_names_of(named, part) for part in trained]
        self._names: list[list[str]] = [[name for name in named if name in part] for part in chosen]
        self._trained: list[list[nn.Parameter]] = [[named[name] for name in part] for part in self._names]
        self._state: dict[str, Tensor] = {**named, **dict(module.named_buffers())}

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Put the gradients of the only loss into the parameters; return it and its terms."""
        ((loss, terms),) = self.in_turn(batch)
        return loss, terms

    def in_turn(self, batch: Batch) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Put the gradients of each loss into its parameters, and yield it and its terms, before the next is taken."""
        parts, values = self.record(batch), self._arguments(batch)
        for part, trained in zip(parts, self._trained, strict=True):
            with torch.no_grad():
                (loss, *found), kept = part.run(*values)
            values += kept
            terms, gradients = found[: len(part.terms)], found[len(part.terms) :]
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.grad = gradient
            yield loss, dict(zip(part.terms, terms, strict=True))

    def record(self, batch: Batch) -> list[_Part]:
        """Return what replays the losses of batches of this shape, recorded now if it has not been yet."""
        key = (*shapes(batch), self._modules[0].training)
        if key not in self._recordings:
            with preserve_state(self._modules[0], self._device):
                self._recordings[key] = self._record(batch)
        return self._recordings[key]

    def _arguments(self, batch: Batch) -> list[Tensor]:
        """Return the state, what is trained before the last loss once more, for its new values, and the batch."""
        renewed = (parameter for part in self._trained[:-1] for parameter in part)
        return [*self._state.values(), *renewed, *(part for part in batch if part is not None)]

    def _record(self, batch: Batch) -> list[_Part]:
        terms: list[list[str]] = []

        def step(*given: Tensor) -> list[Tensor | None]:
            values, found = iter(given), []
            state = {name: next(values) for name in self._state}
            renewed = [{name: next(values) for name in names} for names in self._names[:-1]]
            inputs = Batch(*(None if part is None else next(values) for part in batch))
            for module, names, new in zip(self._modules, self._names, [*renewed, {}], strict=True):
                loss = functional_call(module, state, (inputs,))
                parameters = [state[name] for name in names]
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                latest = self._latest()
                terms.append(list(latest))
                found += [loss.detach(), *latest.values(), *clone_shared_gradients(gradients, parameters)]
                state |= new
            return found

        # Where a tensor is handed over twice, a recording cannot tell which was meant.
        values = [value.detach().clone().requires_grad_(value.requires_grad) for value in self._arguments(batch)]
        recording = make_fx(step)(*values)
        counts = [1 + len(names) + len(part) for names, part in zip(terms, self._trained, strict=True)]
        parts = _cut(recording, counts)
        if shapes(batch) == self._compiled_shape:
            parts = _compiled(parts, self._arguments(batch))
        return [_Part(run, names) for run, names in zip(parts, terms, strict=True)]


def _cut(recording: fx.GraphModule, counts: Sequence[int]) -> list[Callable[..., Any]]:
    """Return a recording in parts, each of which ends with the last of so many outputs.

    A part is called with what the recording is called with, and with what earlier parts keep for later ones. It returns
    its outputs, and what it keeps.
    """
    *nodes, last = recording.graph.nodes
    outputs: list[fx.Node | None] = list(last.args[0])
    place = {node: number for number, node in enumerate(nodes)}
    known = [node for node in nodes if node.op == "placeholder"]
    body, begin = set(nodes) - set(known), 0
    parts: list[Callable[..., Any]] = []
    for count in counts:
        own, outputs = outputs[:count], outputs[count:]
        end = 1 + max(place[node] for node in own if node is not None) if outputs else len(nodes)
        part, wanted = fx.Graph(), set(outputs)
        copies = {node: part.placeholder(node.name) for node in known}
        within = [node for node in nodes[begin:end] if node in body]
        for node in within:
            copies[node] = part.node_copy(node, copies.__getitem__)
        kept = [n for n in within if n in wanted or any(place.get(user, -1) >= end for user in n.users)]
        part.output(([None if node is None else copies[node] for node in own], [copies[node] for node in kept]))
        parts.append(fx.GraphModule(recording, part))
        known, begin = known + kept, end
    return parts


def _compiled(parts: list[Callable[..., Any]], values: list[Tensor]) -> list[Callable[..., Any]]:
    options: dict[str, Any] = {"fallback_random": True}
    compiled = [torch.compile(part, fullgraph=True, dynamic=False, options=options) for part in parts]
    # Without a GPU, every build of PyTorch with CUDA logs that it has found none.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        with torch.no_grad():
            for part in compiled:
                values += part(*values)[1]
    except Exception as problem:  # a broken compiler, say: the recording itself still runs
        reason = " ".join(str(problem).split())[:200]
        warnings.warn(f"Inductor cannot compile the step, which is replayed instead: {reason}", stacklevel=2)
        return parts
    return compiled


def _names_of(named: dict[str, nn.Parameter], trained: Sequence[Tensor]) -> set[str]:
    wanted = {id(parameter) for parameter in trained}
    return {name for name, parameter in named.items() if id(parameter) in wanted}


def shapes(parts: Iterable[Tensor | None]) -> tuple[Any, ...]:
    """Return what a recording depends on: the shapes of the parts of a batch."""
    return tuple(None if part is None else tuple(part.shape) for part in parts)


def clone_shared_gradients(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Return gradients laid out as their parameters, no two of which share memory, as ``backward`` would leave them.

    Fused optimisers read both as they lie in memory: a gradient laid out in another way would move the wrong numbers.
    """
    seen: set[int] = set()
    found: list[Tensor | None] = []
    for gradient, parameter in zip(gradients, parameters, strict=True):
        if gradient is not None:
            if gradient.stride() != parameter.stride():
                gradient = torch.empty_like(parameter).copy_(gradient)
            elif gradient.untyped_storage().data_ptr() in seen:
                gradient = gradient.clone()
            seen.add(gradient.untyped_storage().data_ptr())
        found.append(gradient)
    return found
