"""The faster modes of a step: compiled losses on the CPU, and captured steps on a GPU.

Running a Pyro model and guide costs Python at every step: handlers, traces, distributions. What is left of it after
``make_fx`` has traced one step is a plain sequence of tensor operations, forward and backward, which draws the same
random numbers and gives the same loss.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_ssvae.data import Batch, BatchStream
from pyro_ssvae.data.preparation import BatchIndices
from pyro_ssvae.objectives.base import Loss, Objective
from pyro_ssvae.training.config import TrainingConfig

_WARM_UP = 3  # steps on a side stream before a capture, as CUDA's libraries want them; they train like any other


def choose_mode(
    config: TrainingConfig, device: torch.device, objective: Objective, total: int, processes: int = 1
) -> str:
    """Return the mode that the settings name, or for ``"auto"`` the fastest one that is available."""
    if processes > 1:
        if config.compile in ("graph", "compiled"):
            raise ValueError(f"compile={config.compile!r} is for one process, and there are {processes}; use auto.")
        return "eager"
    if config.compile == "graph" and device.type != "cuda":
        raise ValueError("compile='graph' captures a CUDA graph and needs device='cuda'; use auto, compiled or eager.")
    if config.compile == "compiled" and not has_compiler():
        raise ValueError("compile='compiled' needs a C++ compiler (c++, g++ or clang++); use auto or eager.")
    if config.compile != "auto":
        return config.compile
    if not objective.compilable or config.precision == "16-mixed":  # loss scaling asks whether gradients are finite
        return "eager"
    if device.type == "cuda":
        return "graph"
    return "compiled" if total >= objective.compile_after and has_compiler() else "eager"


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which Inductor needs on the CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if name)


@contextmanager
def preserve_state(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Run something, and restore the buffers of a module and the generators of CPU and device afterwards."""
    buffers = list(module.buffers())
    values = [buffer.detach().clone() for buffer in buffers]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value)


class _LossModule(nn.Module):
    """A function that returns a loss, as a module with the parameters and buffers of its objective."""

    def __init__(self, objective: nn.Module, function: Callable[[Batch], Loss]) -> None:
        super().__init__()
        self.objective = objective
        self._function = function

    def forward(self, batch: Batch) -> Loss:
        return self._function(batch)


class CompiledLoss:
    """A loss and its gradients with respect to some parameters, traced and compiled for one shape of batch.

    The objective owns all parameters and buffers that the loss depends on. Tracing and compiling raise errors of any
    type, for example because the loss reads numbers back from the device; generators and buffers are then as before.
    """

    def __init__(
        self,
        objective: nn.Module,
        function: Callable[[Batch], Loss],
        trained: Sequence[nn.Parameter],
        batch: Batch,
        device: torch.device,
    ) -> None:
        self._module = _LossModule(objective, function)
        wanted = {id(parameter) for parameter in trained}
        named = {name: part for name, part in self._module.named_parameters() if part.requires_grad}
        self._trained = {name: part for name, part in named.items() if id(part) in wanted}
        self._state: dict[str, Tensor] = {**named, **dict(self._module.named_buffers())}
        self._terms: list[str] = []
        with preserve_state(objective, device):
            self._run = self._compile(batch)

    def __call__(self, batch: Batch) -> Loss:
        """Put the gradients into the parameters, and return the loss, detached."""
        with torch.no_grad():
            loss, *rest = self._run(*self._inputs(batch))
        gradients = rest[len(self._terms) :]
        for parameter, gradient in zip(self._trained.values(), gradients, strict=True):
            parameter.grad = gradient
        return Loss(loss, dict(zip(self._terms, rest, strict=False)))

    def _inputs(self, batch: Batch) -> list[Tensor]:
        return [*self._state.values(), *(part for part in batch if part is not None)]

    def _compile(self, batch: Batch) -> Callable[..., Any]:
        def step(*given: Tensor) -> list[Tensor | None]:
            values = iter(given)
            state = {name: next(values) for name in self._state}
            inputs = Batch(*(None if part is None else next(values) for part in batch))
            loss = functional_call(self._module, state, (inputs,))
            self._terms = list(loss.terms)
            parameters = [state[name] for name in self._trained]
            gradients = torch.autograd.grad(loss.total, parameters, allow_unused=True)
            return [loss.total.detach(), *loss.terms.values(), *clone_shared_gradients(gradients, parameters)]

        # Copies, because a tensor that is passed twice would be traced as one input.
        values = [value.detach().clone().requires_grad_(value.requires_grad) for value in self._inputs(batch)]
        graph = make_fx(step)(*values)
        compiled = torch.compile(graph, fullgraph=True, dynamic=False, options={"fallback_random": True})
        # Every build of PyTorch with CUDA logs a warning on machines without a GPU.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        with torch.no_grad():
            compiled(*self._inputs(batch))
        return compiled


def shapes_of(parts: Iterable[Tensor | None]) -> tuple[Any, ...]:
    """Return the shapes of the parts of a batch, on which a compiled step depends."""
    return tuple(None if part is None else tuple(part.shape) for part in parts)


def clone_shared_gradients(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Return gradients laid out in memory as their parameters, no two of which share memory.

    Fused optimisers read both as they lie in memory: a gradient with other strides would update the wrong elements.
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


class CapturedSteps:
    """Runs a step as a CUDA graph, one for each shape of batch; the first steps of each shape run eagerly.

    A captured step reads the indices of its examples from buffers at fixed addresses; gathering, scaling and binarising
    the examples are part of the graph where the data lies on the device. The states of the generators are registered,
    so draws continue where the step before stopped. A step must not synchronise host and device, and must keep its
    tensors at their addresses; it returns the names of terms.
    """

    def __init__(self, step: Callable[[Batch], list[str]], stream: BatchStream, device: torch.device) -> None:
        self._step = step
        self._stream = stream
        self._side = torch.cuda.Stream(device)
        self._captured: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, Any, list[str]]] = {}
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._pool: Any = None

    def __call__(self, indices: BatchIndices, variant: tuple[Any, ...] = ()) -> list[str]:
        """Do a step; each value of ``variant``, what else a captured step depends on, gets a graph of its own."""
        inputs: BatchIndices | Batch = indices if self._stream.resident else self._stream.gather(indices)
        key = (variant, shapes_of(inputs))
        if key not in self._captured:
            if self._seen[key] < _WARM_UP:
                self._seen[key] += 1
                return self._run_beside(inputs)
            self._captured[key] = self._capture(inputs)
        graph, static, names = self._captured[key]
        for buffer, part in zip(static, inputs, strict=True):
            if buffer is not None:
                buffer.copy_(part, non_blocking=True)
        graph.replay()
        return names

    def _run_beside(self, inputs: BatchIndices | Batch) -> list[str]:
        """Run eagerly on the side stream, as CUDA's libraries want it before a capture."""
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            names = self._run(inputs)
        torch.cuda.current_stream().wait_stream(self._side)
        return names

    def _run(self, inputs: BatchIndices | Batch) -> list[str]:
        return self._step(inputs if isinstance(inputs, Batch) else self._stream.gather(inputs))

    def _capture(self, inputs: BatchIndices | Batch) -> tuple[torch.cuda.CUDAGraph, BatchIndices | Batch, list[str]]:
        static = type(inputs)(*(part.clone() if isinstance(part, Tensor) else None for part in inputs))
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._stream.noise)
        # Capturing runs nothing: the step itself is done by the first replay.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._side):
            names = self._run(static)
        self._pool = graph.pool()
        return graph, static, names
