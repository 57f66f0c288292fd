"""Whole training steps as CUDA graphs: captured once, then launched by a single call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_ssvae.data import Batch, BatchStream
from pyro_ssvae.data.preparation import BatchIndices
from pyro_ssvae.training.compilation import shapes_of

__all__ = ["CapturedSteps"]

_WARM_UP = 3  # steps on a side stream before a capture, as CUDA's libraries want them; they train like any other


class CapturedSteps:
    """Runs a step as a CUDA graph, one for each shape of batch.

    The first steps of each shape run eagerly. A captured step reads the indices of its examples from buffers at fixed
    addresses; gathering, scaling and binarising the examples are part of the graph where the data lies on the device.
    The states of the generators are registered, so draws continue where the step before stopped.

    Args:
        step: Does a step on a batch, without host-device synchronisation; every tensor it keeps must stay at its
            address. It returns the names of what it logged.
        stream: Gathers examples.
        device: The CUDA device.
    """

    def __init__(self, step: Callable[[Batch], list[str]], stream: BatchStream, device: torch.device) -> None:
        self._step = step
        self._stream = stream
        self._side = torch.cuda.Stream(device)
        self._captured: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, Any, list[str]]] = {}
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._pool: Any = None

    def __call__(self, indices: BatchIndices, variant: tuple[Any, ...] = ()) -> list[str]:
        """Do a step on the examples with these indices.

        Args:
            indices: Which examples.
            variant: What else a captured step depends on; each value gets a graph of its own.

        Returns:
            What the step returned when it was captured.
        """
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
