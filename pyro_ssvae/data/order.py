"""The order in which examples are drawn, and reading those on disk before they are needed."""

from __future__ import annotations

import math
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_ssvae.data.storage import ExampleSource

_MIXED = 2**26  # bytes of the blocks whose rows are mixed; twice as much is held
_BATCHES_AHEAD = 2  # of each thread


def derive_seed(seed: int, *path: int) -> int:
    """Return a seed for one of several generators, so that their numbers are independent."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0]) >> 1


def _count_joined(number: int, batch_size: int, join_single: bool) -> int:
    """Return 1 if a last batch of one example is joined to the one before it, else 0."""
    return int(join_single and number > batch_size > 1 and number % batch_size == 1)


class ShuffledIndices:
    """Batches of indices in random order, shuffled anew for each pass."""

    def __init__(self, index: Tensor, batch_size: int, storage: torch.device, seed: int, join_single: bool) -> None:
        self.index, self.batch_size, self.storage = index, batch_size, storage  # (n,), on the CPU
        self.joined = _count_joined(len(index), batch_size, join_single)
        self.num_batches = math.ceil(len(index) / batch_size) - self.joined  # of a pass
        self.generator = torch.Generator().manual_seed(seed)
        self.order, self.position = index[:0].to(storage), 0

    def next(self) -> Tensor | None:
        """Return the next indices, shape ``(B,)``, or ``None`` if there are none at all."""
        if len(self.index) == 0:
            return None
        self._start_pass()
        start, self.position = self.position, self.position + self.batch_size
        if self.position == len(self.order) - self.joined:
            self.position += self.joined
        return self.order[start : self.position]

    def _start_pass(self) -> None:
        if self.position >= len(self.order):
            order = self.index[torch.randperm(len(self.index), generator=self.generator)]
            self.order, self.position = order.to(self.storage), 0  # moved once per pass, not once per batch

    def upcoming(self, workers: int) -> list[tuple[int, int]]:
        """Return where the next batches start in the order, together with the order itself."""
        self._start_pass()
        end = min(len(self.order), self.position + _BATCHES_AHEAD * workers * self.batch_size)
        return [(start, id(self.order)) for start in range(self.position, end, self.batch_size)]

    def find(self, key: tuple[int, int]) -> Tensor:
        """Return the indices of a batch, ascending."""
        return self.order[key[0] : key[0] + self.batch_size].sort().values

    def state_dict(self) -> dict[str, Any]:
        """Return what determines all later batches."""
        order = self.order.to("cpu", copy=True)
        return {"order": order, "position": self.position, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any], name: str) -> None:
        """Continue from a state; raise ``ValueError`` for one of other examples than the ``name`` ones here."""
        order = state.get("order", self.index[:0]).cpu()
        if "order" not in state or (len(order) and not torch.equal(order.sort().values, self.index)):
            raise ValueError(
                f"The state belongs to {len(order)} {name} examples that are not the {len(self.index)} {name} examples "
                "of this data; use the data and label split that it was saved with."
            )
        self.generator.set_state(state["generator"].cpu())
        self.order, self.position = order.to(self.storage), state["position"]


class ShuffledBlocks:
    """Batches of the wanted rows of a source, in an order in which it is read fast.

    In each pass the blocks of the source are shuffled, and divided into groups of about 64 MiB; the rows of a group
    are shuffled together. Every order follows from the seed, so that the state is a pass and a position.
    """

    def __init__(self, wanted: Tensor, source: ExampleSource, batch_size: int, seed: int, join_single: bool) -> None:
        assert source.bounds is not None
        self.wanted, self.batch_size, self.seed = wanted.numpy(), batch_size, seed
        self._low, self._high = source.bounds[:-1], source.bounds[1:]
        self._counts = np.add.reduceat(self.wanted, self._low, dtype=np.int64)
        self.number = int(self._counts.sum())
        self.joined = _count_joined(self.number, batch_size, join_single)
        self.num_batches = math.ceil(self.number / batch_size) - self.joined
        self._mixed = max(2, int(_MIXED * len(self._low) // max(1, source.numel() * source.element_size())))
        self.passed, self.position = 0, 0
        self._order = lru_cache(maxsize=2)(self._draw_order)
        self._rows = lru_cache(maxsize=2)(self._shuffle)

    def _draw_order(self, passed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the order of the blocks in a pass, and where each group ends in the order of its rows."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, passed))
        order = torch.randperm(len(self._low), generator=generator).numpy()
        sizes = np.add.reduceat(self._counts[order], np.arange(0, len(order), self._mixed))
        return order, np.cumsum(sizes)

    def find(self, key: tuple[int, int]) -> Tensor:
        """Return the rows of a group of a pass, ascending."""
        passed, group = key
        blocks = np.sort(self._order(passed)[0][group * self._mixed : (group + 1) * self._mixed])
        rows = np.concatenate([np.arange(self._low[block], self._high[block]) for block in blocks])
        return torch.from_numpy(rows[self.wanted[rows]])

    def _shuffle(self, passed: int, group: int) -> Tensor:
        rows = self.find((passed, group))
        generator = torch.Generator().manual_seed(derive_seed(self.seed, passed, group))
        return rows[torch.randperm(len(rows), generator=generator)]

    def next(self) -> Tensor | None:
        """Return the next rows, shape ``(B,)``, or ``None`` if there are none at all."""
        if self.number == 0:
            return None
        self._start_pass()
        start, stop = self.position, min(self.position + self.batch_size, self.number)
        stop += self.joined if stop == self.number - self.joined else 0
        ends = self._order(self.passed)[1]
        first, last = np.searchsorted(ends, [start, stop - 1], side="right").tolist()
        parts = []
        for group in range(first, last + 1):
            begin = int(ends[group - 1]) if group else 0
            parts.append(self._rows(self.passed, group)[max(0, start - begin) : stop - begin])
        self.position = stop
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _start_pass(self) -> None:
        if self.position >= self.number:
            self.passed, self.position = self.passed + 1, 0

    def upcoming(self, workers: int) -> list[tuple[int, int]]:
        """Return pass and number of the group in use and of the next one."""
        self._start_pass()
        ends = self._order(self.passed)[1]
        group = int(np.searchsorted(ends, self.position, side="right"))
        following = (self.passed, group + 1) if group + 1 < len(ends) else (self.passed + 1, 0)
        return [(self.passed, group), following]

    def _describe(self) -> int:
        return zlib.crc32(np.packbits(self.wanted).tobytes(), len(self._low))

    def state_dict(self) -> dict[str, Any]:
        """Return what determines all later batches."""
        return {"pass": self.passed, "position": self.position, "rows": self._describe()}

    def load_state_dict(self, state: dict[str, Any], name: str) -> None:
        """Continue from a state; raise ``ValueError`` for one of other examples than the ``name`` ones here."""
        if state.get("rows") != self._describe():
            raise ValueError(
                f"The state belongs to {name} examples that are not the {self.number} {name} examples of this data, or "
                "that lay in memory; use the data and label split that it was saved with."
            )
        self.passed, self.position = state["pass"], state["position"]


Order: TypeAlias = ShuffledIndices | ShuffledBlocks


def make_order(source: ExampleSource, y: Tensor, batch_size: int, seed: int, join_single: bool) -> Order:
    """Return the order of the unlabelled examples of a source."""
    if source.bounds is not None:
        return ShuffledBlocks(y < 0, source, batch_size, seed, join_single)
    index = torch.nonzero(y < 0).squeeze(-1)
    return ShuffledIndices(index, batch_size, torch.device("cpu"), seed, join_single)


class HeldRows:
    """Some rows of a source in memory; they are selected as from a tensor of all."""

    def __init__(self, source: ExampleSource, rows: Tensor) -> None:
        self._rows, self._x = rows, source.read(rows)

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return the examples with these numbers."""
        return self._x.index_select(dim, torch.searchsorted(self._rows, index))


class ReadAhead:
    """Rows of a source, selected as from a tensor; those that come next in an order are read by threads meanwhile."""

    def __init__(self, source: ExampleSource) -> None:
        self._source = source
        self._pool = ThreadPoolExecutor(max(1, source.workers), "examples")
        self._held: dict[tuple[int, int], tuple[Tensor, Future[Tensor]]] = {}

    def expect(self, order: Order) -> None:
        """Start to read what comes next, and let what came before go; it changes no order."""
        if not self._source.workers or not order.num_batches:
            return
        keys = order.upcoming(self._source.workers)
        for key in self._held.keys() - keys:
            self._held.pop(key)[1].cancel()
        for key in keys:
            if key not in self._held:
                rows = order.find(key)
                self._held[key] = rows, self._pool.submit(self._source.read, rows)

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return the examples with these numbers; those that were not expected are read at once."""
        x, missing = None, torch.ones(len(index), dtype=torch.bool)
        for rows, reading in self._held.values():
            position = torch.searchsorted(rows, index).clamp_(max=max(0, len(rows) - 1))
            held = rows[position] == index if len(rows) else ~missing
            if held.all():
                return reading.result().index_select(dim, position)
            if held.any():  # of a batch from two groups
                x = torch.empty(len(index), *self._source.shape[1:], dtype=self._source.dtype) if x is None else x
                x[held] = reading.result()[position[held]]
                missing &= ~held
        if x is None:
            return self._source.read(index)
        if missing.any():
            x[missing] = self._source.read(index[missing])
        return x
