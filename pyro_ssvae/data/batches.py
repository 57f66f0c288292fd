"""An endless stream of batches: unlabelled rows, labelled rows, their classes."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyro_ssvae._checks import as_count, as_seed
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.rows import as_device, at_threshold, binarise, check_binarisation, derived_seed, to_unit

__all__ = ["Batch", "BatchStream", "Rows"]


class Batch(NamedTuple):
    """Rows of one step, on the device.

    ``x_unlabelled`` is ``(U, *event)`` and ``x_labelled`` ``(L, *event)``, float32, divided by the
    scale and binarised as asked; ``y_labelled`` is ``(L,)``, int64. ``None`` stands for rows of
    which the data has none at all.
    """

    x_unlabelled: Tensor | None
    x_labelled: Tensor | None
    y_labelled: Tensor | None


class Rows(NamedTuple):
    """Numbers of the rows of one step, ``(U,)`` and ``(L,)``, int64, where the training set lies."""

    unlabelled: Tensor | None
    labelled: Tensor | None


class BatchStream:
    """Endless iterator of :class:`Batch` over semi-supervised data.

    Unlabelled and labelled rows go round independently, each in a fresh random order every time;
    the last batch of a round is what is left, and a batch size beyond the number of rows means all
    of them. The order is drawn on the CPU, so that every device sees the same rows.

    Args:
        data: The rows.
        batch_size: Unlabelled rows a step.
        labelled_batch_size: Labelled rows a step.
        device: Where batches are wanted.
        binarisation: ``"none"``; ``"dynamic"`` draws every value from a Bernoulli distribution
            whenever its row comes up; ``"static"`` draws it once, fixed by the seed; ``"threshold"``
            asks whether it exceeds 0.5.
        seed: Of order and binarisation.
        resident: Whether the training set is moved to the device; ``"auto"`` does so where it
            takes at most half of the free memory, and streams rows from pinned memory else.

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
    ) -> None:
        batch_size = as_count(batch_size, "batch_size", least=1)
        labelled_batch_size = as_count(labelled_batch_size, "labelled_batch_size", least=1)
        check_binarisation(binarisation, data.x, data.scale)
        if resident not in (True, False, "auto"):
            raise ValueError(f"resident={resident!r} must be True, False or 'auto'.")
        self.seed = as_seed(seed)
        self.binarisation = binarisation
        self.device = as_device(device)
        x, self._scale = data.x, data.scale
        if binarisation == "static":
            x, self._scale = binarise(x, scale=data.scale, seed=self.seed), 1.0
        keep = _fits(x, self.device) if resident == "auto" else bool(resident)
        self._home = self.device if keep else torch.device("cpu")
        self._x, self._y = x.to(self._home), data.y.to(self._home)
        self._unlabelled = _Round(data.unlabelled_index, batch_size, self._home, self.seed, 1)
        self._labelled = _Round(data.labelled_index, labelled_batch_size, self._home, self.seed, 2)
        self.noise = torch.Generator(self.device).manual_seed(derived_seed(self.seed, 3))
        self._step = 0

    @property
    def resident(self) -> bool:
        """Whether the training rows lie on the device."""
        return self._home == self.device

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every unlabelled row was seen; every labelled row, where all have labels."""
        return self._unlabelled.length or self._labelled.length

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> Batch:
        return self.gather(self.next_indices())

    def next_indices(self) -> Rows:
        """Return the numbers of the next rows; the stream has then moved on."""
        self._step += 1
        return Rows(self._unlabelled.next(), self._labelled.next())

    def gather(self, rows: Rows) -> Batch:
        """Return the rows with these numbers, scaled and binarised, on the device; without asking it anything."""
        unlabelled, labelled = rows
        return Batch(
            None if unlabelled is None else self._rows(unlabelled),
            None if labelled is None else self._rows(labelled),
            None if labelled is None else self._to_device(self._y.index_select(0, labelled)),
        )

    def _rows(self, rows: Tensor) -> Tensor:
        x = to_unit(self._to_device(self._x.index_select(0, rows)), self._scale)
        if self.binarisation == "threshold":
            return at_threshold(x)
        if self.binarisation != "dynamic":
            return x
        noise = torch.rand(x.shape, generator=self.noise, device=self.device)
        return (noise < x).to(torch.float32)

    def _to_device(self, values: Tensor) -> Tensor:
        if self.resident:
            return values
        if self.device.type == "cuda":
            values = values.pin_memory()
        return values.to(self.device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what the rest of the stream depends on: CPU tensors, numbers and strings."""
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
        """Go on from a state of a stream over the same data, with the batches it would have given.

        Args:
            state: What :meth:`state_dict` returned, its tensors on any device.

        Raises:
            ValueError: If it belongs to other rows, another seed or another binarisation.

        Warns:
            UserWarning: If it comes from another kind of device and binarisation is dynamic: the
                rows are the same, the noise is not.
        """
        for name in ("seed", "binarisation"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"The state has {name}={state[name]!r}, this stream {getattr(self, name)!r}; "
                    f"build the stream with {name}={state[name]!r}."
                )
        for name, cycle in (("unlabelled", self._unlabelled), ("labelled", self._labelled)):
            cycle.check(state[name], name)
        self._unlabelled.load_state_dict(state["unlabelled"])
        self._labelled.load_state_dict(state["labelled"])
        self._step = int(state["step"])
        if state["noise_device"] == self.device.type:
            self.noise.set_state(state["noise"].cpu())
            return
        self.noise.manual_seed(derived_seed(self.seed, 3, self._step))
        if self.binarisation == "dynamic":
            warnings.warn(
                f"The state comes from {state['noise_device']}, this stream is on "
                f"{self.device.type}: the same rows follow, but binarised with other noise.",
                UserWarning,
                stacklevel=2,
            )


class _Round:
    """Rows in a random order, drawn anew whenever all were given out."""

    order: Tensor  # (n,), on the CPU
    order_at_home: Tensor  # the same, where the data lies
    position: int

    def __init__(self, rows: Tensor, batch_size: int, home: torch.device, seed: int, number: int) -> None:
        self.rows = rows  # (n,), on the CPU
        self.batch_size = batch_size
        self.home = home
        self.generator = torch.Generator().manual_seed(derived_seed(seed, number))
        self._put(rows[:0], 0)

    @property
    def length(self) -> int:
        """Batches in a round."""
        return math.ceil(len(self.rows) / self.batch_size)

    def next(self) -> Tensor | None:
        """Return the next rows, shape ``(B,)``, or ``None`` if there are none at all."""
        if len(self.rows) == 0:
            return None
        if self.position >= len(self.order):
            self._put(self.rows[torch.randperm(len(self.rows), generator=self.generator)], 0)
        start, self.position = self.position, self.position + self.batch_size
        return self.order_at_home[start : self.position]

    def _put(self, order: Tensor, position: int) -> None:
        self.order, self.position = order, position
        self.order_at_home = order.to(self.home)  # once a round, not once a batch

    def state_dict(self) -> dict[str, Any]:
        return {
            "order": self.order.clone(),
            "position": self.position,
            "generator": self.generator.get_state(),
        }

    def check(self, state: dict[str, Any], name: str) -> None:
        order = state["order"].cpu()
        if len(order) and not torch.equal(order.sort().values, self.rows):
            raise ValueError(
                f"The state goes through {len(order)} {name} rows that are not the "
                f"{len(self.rows)} {name} rows of this data; use the data and label split that it "
                "was saved with."
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"].cpu())
        self._put(state["order"].cpu(), int(state["position"]))


def _fits(x: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return x.numel() * x.element_size() <= free // 2
