"""An endless stream of batches of unlabelled examples, labelled examples and their labels."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyro_ssvae._arguments import as_count, as_device, as_seed
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.preparation import binarise, check_binarisation, derive_seed, rescale, threshold

__all__ = ["Batch", "BatchIndices", "BatchStream"]


class Batch(NamedTuple):
    """Examples of one step, on the device.

    ``x_unlabelled`` has shape ``(U, *event_shape)`` and ``x_labelled`` ``(L, *event_shape)``; both are float32, divided
    by the scale and binarised if asked. ``y_labelled`` has shape ``(L,)``, int64. A field is ``None`` where the data
    has no such examples.
    """

    x_unlabelled: Tensor | None
    x_labelled: Tensor | None
    y_labelled: Tensor | None


class BatchIndices(NamedTuple):
    """Indices of the examples of one step, ``(U,)`` and ``(L,)``, int64, on the device of the training set."""

    unlabelled: Tensor | None
    labelled: Tensor | None


class BatchStream:
    """Endless iterator of :class:`Batch` over semi-supervised data.

    Unlabelled and labelled examples are iterated independently, each set in a new random order on every pass. The last
    batch of a pass may be smaller. The order is drawn on the CPU, so it is the same for every device.

    Args:
        data: The examples.
        batch_size: Unlabelled examples per step; all of them if there are fewer.
        labelled_batch_size: Labelled examples per step; all of them if there are fewer.
        device: Device of the batches.
        binarisation: ``"none"``; ``"dynamic"`` draws every value from a Bernoulli distribution each time that its
            example is used; ``"static"`` draws it once, by the seed; ``"threshold"`` gives one where it exceeds 0.5.
        seed: Seed of order and binarisation.
        resident: Whether the training set is moved to the device; ``"auto"`` does so if it takes at most half of the
            free memory, and otherwise copies each batch from pinned memory.
        join_single: Whether a last batch of one example is joined to the batch before it, which batch normalisation
            needs.

    Raises:
        TypeError: If sizes or seed are not integers.
        ValueError: If an argument is out of range, or binarisation meets values outside [0, 1].

    Example:
        >>> data = SemiSupervisedData.from_arrays([[0.0], [0.2], [0.9], [1.0]], [0, -1, -1, 1])
        >>> stream = BatchStream(data, batch_size=2, labelled_batch_size=2)
        >>> batch = next(stream)
        >>> batch.x_unlabelled.shape, sorted(batch.y_labelled.tolist())
        (torch.Size([2, 1]), [0, 1])
    """

    def __init__(
        self,
        data: SemiSupervisedData,
        *,
        batch_size: int = 100,
        labelled_batch_size: int = 100,
        device: torch.device | str = "cpu",
        binarisation: str = "none",
        seed: int = 0,
        resident: bool | Literal["auto"] = "auto",
        join_single: bool = False,
    ) -> None:
        batch_size = as_count(batch_size, "batch_size", least=1)
        labelled_batch_size = as_count(labelled_batch_size, "labelled_batch_size", least=1)
        check_binarisation(binarisation, data.x, data.scale)
        if resident not in (True, False, "auto"):
            raise ValueError(f"resident={resident!r} must be True, False or 'auto'.")
        self.seed, self.binarisation, self.device = as_seed(seed), binarisation, as_device(device)
        x, self._scale = data.x, data.scale
        if binarisation == "static":
            x, self._scale = binarise(x, scale=data.scale, seed=self.seed), 1.0
        if resident == "auto":
            resident = _fits_in_memory(x, self.device)
        self._storage = self.device if resident else torch.device("cpu")
        self._x, self._y = x.to(self._storage), data.y.to(self._storage)
        self._unlabelled, self._labelled = (
            _ShuffledIndices(index, size, self._storage, derive_seed(self.seed, number), join_single)
            for number, index, size in (
                (1, data.unlabelled_index, batch_size),
                (2, data.labelled_index, labelled_batch_size),
            )
        )
        self.noise = torch.Generator(self.device).manual_seed(derive_seed(self.seed, 3))
        self._step = 0

    @property
    def resident(self) -> bool:
        """Whether the training set is stored on the device."""
        return self._storage == self.device

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over the unlabelled examples; over the labelled ones if there are no others."""
        return self._unlabelled.num_batches or self._labelled.num_batches

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> Batch:
        return self.gather(self.next_indices())

    def next_indices(self) -> BatchIndices:
        """Return the indices of the next batch and advance the stream."""
        self._step += 1
        return BatchIndices(self._unlabelled.next(), self._labelled.next())

    def gather(self, indices: BatchIndices) -> Batch:
        """Return the examples with these indices, scaled and binarised, without host-device synchronisation."""
        unlabelled, labelled = indices
        return Batch(
            None if unlabelled is None else self._prepare(unlabelled),
            None if labelled is None else self._prepare(labelled),
            None if labelled is None else self._to_device(self._y.index_select(0, labelled)),
        )

    def _prepare(self, index: Tensor) -> Tensor:
        x = rescale(self._to_device(self._x.index_select(0, index)), self._scale)
        if self.binarisation == "threshold":
            return threshold(x)
        if self.binarisation != "dynamic":
            return x
        return (torch.rand(x.shape, generator=self.noise, device=self.device) < x).to(torch.float32)

    def _to_device(self, values: Tensor) -> Tensor:
        if self.resident:
            return values
        values = values.pin_memory() if self.device.type == "cuda" else values
        return values.to(self.device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that determines all later batches: CPU tensors, numbers and strings."""
        return {
            "seed": self.seed,
            "binarisation": self.binarisation,
            "step": self._step,
            "unlabelled": self._unlabelled.state_dict(),
            "labelled": self._labelled.state_dict(),
            "noise": self.noise.get_state(),
            "noise_device": self.device.type,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the :meth:`state_dict` of a stream over the same data, its tensors on any device.

        Raises:
            ValueError: If it belongs to other data, another seed or another binarisation.

        Warns:
            UserWarning: If it comes from another type of device and binarisation is dynamic, which then differs.
        """
        for name in ("seed", "binarisation"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"The state has {name}={state[name]!r}, this stream {getattr(self, name)!r}; build the stream with "
                    f"{name}={state[name]!r}."
                )
        self._unlabelled.check_state(state["unlabelled"], "unlabelled")
        self._labelled.check_state(state["labelled"], "labelled")
        self._unlabelled.load_state_dict(state["unlabelled"])
        self._labelled.load_state_dict(state["labelled"])
        self._step = int(state["step"])
        if state["noise_device"] == self.device.type:
            self.noise.set_state(state["noise"].cpu())
            return
        self.noise.manual_seed(derive_seed(self.seed, 3, self._step))
        if self.binarisation == "dynamic":
            warnings.warn(
                f"The state comes from {state['noise_device']}, this stream is on {self.device.type}: the same "
                "examples follow, but their dynamic binarisation differs.",
                UserWarning,
                stacklevel=2,
            )


class _ShuffledIndices:
    """Batches of indices in random order, shuffled anew for each pass."""

    def __init__(self, index: Tensor, batch_size: int, storage: torch.device, seed: int, join_single: bool) -> None:
        self.index, self.batch_size, self.storage = index, batch_size, storage  # (n,), on the CPU
        self.joined = int(join_single and len(index) > batch_size > 1 and len(index) % batch_size == 1)
        self.num_batches = math.ceil(len(index) / batch_size) - self.joined  # of a pass
        self.generator = torch.Generator().manual_seed(seed)
        self.order, self.position = index[:0].to(storage), 0

    def next(self) -> Tensor | None:
        """Return the next indices, shape ``(B,)``, or ``None`` if there are none at all."""
        if len(self.index) == 0:
            return None
        if self.position >= len(self.order):
            order = self.index[torch.randperm(len(self.index), generator=self.generator)]
            self.order, self.position = order.to(self.storage), 0  # moved once per pass, not once per batch
        start, self.position = self.position, self.position + self.batch_size
        if self.position == len(self.order) - self.joined:
            self.position += self.joined
        return self.order[start : self.position]

    def state_dict(self) -> dict[str, Any]:
        order = self.order.to("cpu", copy=True)
        return {"order": order, "position": self.position, "generator": self.generator.get_state()}

    def check_state(self, state: dict[str, Any], name: str) -> None:
        order, position = state["order"].cpu(), state["position"]
        if type(position) is not int or not 0 <= position < len(order) + self.batch_size:
            raise ValueError(f"The state has position {position!r} in {len(order)} {name} examples; it is damaged.")
        if len(order) and not torch.equal(order.sort().values, self.index):
            raise ValueError(
                f"The state belongs to {len(order)} {name} examples that are not the {len(self.index)} {name} examples "
                "of this data; use the data and label split that it was saved with."
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"].cpu())
        self.order, self.position = state["order"].to(self.storage), int(state["position"])


def _fits_in_memory(x: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return x.numel() * x.element_size() <= free // 2
