"""Examples as the model sees them: float32, divided by the scale, binarised if asked, and in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_ssvae._arguments import as_count, as_device, as_seed, check_choice
from pyro_ssvae._io import check_memory
from pyro_ssvae._warnings import warn
from pyro_ssvae.data.order import HeldRows, ReadAhead, ShuffledIndices, derive_seed, make_order
from pyro_ssvae.data.storage import ExampleSource, sample_rows

if TYPE_CHECKING:
    from pyro_ssvae.data.dataset import SemiSupervisedData

BINARISATIONS = ("none", "static", "dynamic", "threshold")
_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue in grey (ITU-R BT.601)
_CHUNK = 4096
_READ = 2_000_000  # values of the examples that are read at once, and on a GPU computed at once
_COMPUTED, _ROWS = 2**18, 2**11  # of those computed at once on a CPU; larger layers do not fit into its caches
_BACKGROUND = 0.25  # mean distance of corners from their median, in standard deviations of the pixels


def rescale(x: Tensor, scale: float) -> Tensor:
    """Return ``x / scale`` as float32, with the device and shape of ``x``."""
    x = x.to(torch.float32)
    return x if scale == 1.0 else x / scale


def find_background(x: Tensor | ExampleSource, scale: float) -> float | None:
    """Return the value of the corners of images over ``scale``; ``None`` where they differ, as in photographs."""
    rows = sample_rows(x)
    some = rescale(rows[:: 1 + len(rows) // 10_000], scale)
    height, width = (max(1, size // 14) for size in some.shape[-2:])
    sides = [(slice(height), slice(-height, None)), (slice(width), slice(-width, None))]
    corners = torch.cat([some[..., i, j] for i in sides[0] for j in sides[1]], -1)
    background = corners.median()
    return background.item() if (corners - background).abs().mean() < _BACKGROUND * some.std() else None


def threshold(x: Tensor) -> Tensor:
    """Return one where ``x`` exceeds 0.5 and zero elsewhere, as float32."""
    return (x > 0.5).to(torch.float32)


def check_binarisation(binarisation: str, x: Tensor, scale: float) -> None:
    """Raise ``ValueError`` for an unknown binarisation, or one that needs ``x / scale`` in [0, 1] where it is not."""
    check_choice("binarisation", binarisation, BINARISATIONS)
    if binarisation == "none" or x.numel() == 0:
        return
    low, high = (float(end) / scale for end in sample_rows(x).aminmax())
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(
            f"binarisation={binarisation!r} needs values in [0, 1]: x / scale runs from {low:g} to {high:g} "
            f"(scale={scale:g}). Set the scale to the largest value of non-negative x, or use binarisation='none'."
        )


def binarise(x: Tensor, *, scale: float = 1.0, seed: int = 0) -> Tensor:
    """Draw every value once from a Bernoulli distribution with mean ``x / scale``.

    The convention of On the Quantitative Analysis of Deep Belief Networks (Salakhutdinov & Murray, 2008). Values are
    drawn on the CPU, so they are the same for every device. The result is uint8, on the CPU, and its scale is 1.
    """
    generator = torch.Generator().manual_seed(derive_seed(as_seed(seed), 0))
    drawn = torch.empty(x.shape, dtype=torch.uint8)
    for start in range(0, len(x), _CHUNK):
        mean = rescale(x[start : start + _CHUNK].cpu(), scale)
        drawn[start : start + _CHUNK] = torch.rand(mean.shape, generator=generator) < mean
    return drawn


def iterate_batches(
    x: Tensor,
    *,
    scale: float = 1.0,
    batch_size: int = 1000,
    device: torch.device | str = "cpu",
    binarisation: str = "none",
    seed: int = 0,
) -> Iterator[Tensor]:
    """Yield examples ``(N, *event_shape)`` as stored, in order, in batches on a device; for evaluation.

    Batches are float32, divided by the scale, and may share memory with x. ``"static"`` and ``"dynamic"`` binarisation
    both draw each value once, by the seed alone.
    """
    batch_size, device = as_count(batch_size, "batch_size", least=1), as_device(device)
    check_binarisation(binarisation, x, scale)
    if binarisation in ("static", "dynamic"):
        x, scale = binarise(x, scale=scale, seed=seed), 1.0
    batches = (rescale(batch.to(device), scale) for batch in x.split(batch_size) if len(batch))
    return map(threshold, batches) if binarisation == "threshold" else batches


def map_examples(
    function: Callable[[Tensor], Tensor],
    x: Tensor | ExampleSource,
    *,
    scale: float,
    like: Tensor,
    dim: int = 0,
    copies: int = 1,
) -> Tensor:
    """Return what a function makes of all examples ``(N, *event_shape)``, as stored, in batches joined along ``dim``.

    The function maps examples ``(B, *event_shape)`` of the device and type of ``like`` to values with B at dimension
    ``dim``, and holds ``copies`` of each at a time.
    """
    size = x.shape[1:].numel() * copies
    number = max(1, _READ // size)
    at_once = max(1, min(_ROWS // copies, _COMPUTED // size)) if like.device.type == "cpu" else number
    found, done = torch.empty(0), 0
    for batch in (batch for part in x.split(number) for batch in part.split(at_once)):
        values = function(batch.to(like) if scale == 1.0 else batch.to(like) / scale)
        if not done:  # the whole result at once: small parts, kept in between, would keep freed memory from being used
            found = values.new_empty(*values.shape[:dim], len(x), *values.shape[dim + 1 :])
        found.narrow(dim, done, len(batch)).copy_(values)
        done += len(batch)
    return found


def convert_images(x: Tensor, event_shape: Sequence[int]) -> Tensor:
    """Return images in [0, 1] with another size, and 1, 3 or 4 channels (4: with opacity)."""
    if x.dim() != 4 or len(event_shape) != 3 or {x.shape[1], event_shape[0]} - {1, 3, 4}:
        raise ValueError(
            f"Images (N, C, H, W) and a shape (C, H, W) are needed, both with 1, 3 or 4 channels; got {tuple(x.shape)} "
            f"and {tuple(event_shape)}."
        )
    channels, *size = event_shape
    x, opacity = (x[:, :3], x[:, 3:]) if x.shape[1] == 4 else (x, torch.ones_like(x[:, :1]))
    if channels == 1 and x.shape[1] == 3:
        x = (x * torch.tensor(_LUMINANCE, device=x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    elif channels >= 3:
        x = x.expand(-1, 3, -1, -1)
    if channels == 4:
        x = torch.cat([x, opacity], 1)
    if list(x.shape[2:]) == size:
        return x
    return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False).clamp(0.0, 1.0)


class Batch(NamedTuple):
    """Examples of one step, on the device.

    ``x_unlabelled`` has shape ``(U, *event_shape)`` and ``x_labelled`` ``(L, *event_shape)``; both are float32, divided
    by the scale and binarised if asked. ``y_labelled`` has shape ``(L,)``, int64. A field is ``None`` where the data
    has no such examples.
    """

    x_unlabelled: Tensor | None
    x_labelled: Tensor | None
    y_labelled: Tensor | None

    def cast(self, dtype: torch.dtype) -> Batch:
        """Return the batch with floating-point examples of a type, such as that of the weights of a model."""
        parts = (part if part is None or not part.is_floating_point() else part.to(dtype) for part in self)
        return Batch(*parts)


class BatchIndices(NamedTuple):
    """Indices of the examples of one step, ``(U,)`` and ``(L,)``, int64, on the device of the training set."""

    unlabelled: Tensor | None
    labelled: Tensor | None


class BatchStream:
    """Endless iterator of :class:`Batch` over semi-supervised data.

    Unlabelled and labelled examples are iterated independently, each set in a new random order on every pass. The last
    batch of a pass may be smaller. The order is drawn on the CPU, so it is the same for every device. Of an array on
    disk blocks are shuffled, and then the rows of many blocks together; a thread reads ahead. Examples are moved to the
    device if they take at most half of its free memory, otherwise each batch is copied from pinned memory.

    Args:
        data: The examples.
        batch_size: Unlabelled examples per step; all of them if there are fewer.
        labelled_batch_size: Labelled examples per step; all of them if there are fewer.
        device: Device of the batches.
        binarisation: ``"none"``; ``"dynamic"`` draws every value from a Bernoulli distribution each time that its
            example is used; ``"static"`` draws it once, by the seed; ``"threshold"`` gives one where it exceeds 0.5.
        seed: Seed of order and binarisation.
        join_single: Whether a last batch of one example is joined to the batch before it, which batch normalisation
            needs.

    Raises:
        TypeError: If sizes or seed are not integers.
        ValueError: If an argument is out of range, binarisation meets values outside [0, 1], or is static for examples
            on disk.

    Example:
        >>> from pyro_ssvae import SemiSupervisedData
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
        join_single: bool = False,
    ) -> None:
        batch_size = as_count(batch_size, "batch_size", least=1)
        labelled_batch_size = as_count(labelled_batch_size, "labelled_batch_size", least=1)
        check_binarisation(binarisation, data.x, data.scale)
        self.seed, self.binarisation, self.device = as_seed(seed), binarisation, as_device(device)
        self._x: Any = data.x
        self._scale = data.scale
        seeds = derive_seed(self.seed, 1), derive_seed(self.seed, 2)
        is_on_disk = isinstance(data.x, ExampleSource)
        if is_on_disk and binarisation == "static":
            raise ValueError("binarisation='static' needs examples in memory, and these stay on disk; use another one.")
        if binarisation == "static":
            self._x, self._scale = binarise(data.x, scale=data.scale, seed=self.seed), 1.0
        is_resident = not is_on_disk and _fits_in_memory(self._x, self.device)
        self._storage = self.device if is_resident else torch.device("cpu")
        self._y, labelled = data.y.to(self._storage), data.labelled_index
        self._labelled = ShuffledIndices(labelled, labelled_batch_size, self._storage, seeds[1], join_single)
        if isinstance(data.x, ExampleSource):
            check_memory(len(labelled) * data.x[0].nbytes, f"{len(labelled)} labelled examples")
            self._unlabelled = make_order(data.x, data.y, batch_size, seeds[0], join_single)
            self._x, self._x_labelled = ReadAhead(data.x), HeldRows(data.x, labelled)
        else:
            self._unlabelled = ShuffledIndices(data.unlabelled_index, batch_size, self._storage, seeds[0], join_single)
            self._x = self._x_labelled = self._x.to(self._storage)
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
        if isinstance(self._x, ReadAhead):
            self._x.expect(self._unlabelled)
        return BatchIndices(self._unlabelled.next(), self._labelled.next())

    def gather(self, indices: BatchIndices) -> Batch:
        """Return the examples with these indices, scaled and binarised, without host-device synchronisation."""
        unlabelled, labelled = indices
        return Batch(
            None if unlabelled is None else self._prepare(self._x, unlabelled),
            None if labelled is None else self._prepare(self._x_labelled, labelled),
            None if labelled is None else self._to_device(self._y.index_select(0, labelled)),
        )

    def _prepare(self, examples: Any, index: Tensor) -> Tensor:
        x = rescale(self._to_device(examples.index_select(0, index)), self._scale)
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
        self._unlabelled.load_state_dict(state["unlabelled"], "unlabelled")
        self._labelled.load_state_dict(state["labelled"], "labelled")
        self._step = int(state["step"])
        if state["noise_device"] == self.device.type:
            self.noise.set_state(state["noise"].cpu())
            return
        self.noise.manual_seed(derive_seed(self.seed, 3, self._step))
        if self.binarisation == "dynamic":
            warn(
                f"The state comes from {state['noise_device']}, this stream is on {self.device.type}: the same "
                "examples follow, but their dynamic binarisation differs."
            )


def _fits_in_memory(x: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return x.numel() * x.element_size() <= free // 2
