"""Several processes that train one run: their messages, and what a loss needs beside a process's own examples.

Every process has the same batch and the same random generators. It takes every ``size``-th example of the batch, and
draws the random numbers of the whole batch, of which it uses those of its examples; so the numbers do not depend on how
many processes there are, and generators never diverge. A batch that cannot be divided equally is computed by all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from datetime import timedelta
from functools import cache, reduce
from itertools import count
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]
from torch.overrides import TorchFunctionMode

from pyro_ssvae.errors import PyroSSVAEError

_TIMEOUT = timedelta(hours=6)  # of a message: the others wait while the first process evaluates or writes a report
_SHARED = "/dev/shm"  # files in memory that processes of one machine share, on Linux
_numbers = count()  # of the runs of processes that a launcher has started


def launched() -> tuple[int, int]:
    """Return the rank of this process, and how many a launcher such as torchrun has started; (0, 1) without one."""
    size = os.environ.get("WORLD_SIZE", "1").strip()
    if size in ("", "0", "1"):
        return 0, 1
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ValueError(
            f"WORLD_SIZE={size} says that several processes were started, and {missing[0]} is not set: start them by "
            "torchrun, or unset WORLD_SIZE."
        )
    return int(os.environ["RANK"]), int(size)


@cache
def _launcher_store() -> Any:
    return next(iter(rendezvous("env://", timeout=_TIMEOUT)))[0]


def _attempt() -> str:
    """Return how often torchrun has started these processes again, if they are those of one machine.

    Its store then still holds the addresses of the processes before. For several machines, whose numbers may differ, it
    makes a new store.
    """
    alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if alone else "0"


class Ranks:
    """The processes that train one run; messages between them are sent only within :meth:`joined`.

    Attributes:
        rank: Number of this process, from 0; process 0 alone writes files.
        size: Number of processes.
        request: A number that this process sends with its gradients, positive if it wants to stop.
        requests: The mean of what all have sent in the last step, on the device.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank, self.size, self._store = rank, size, store
        self.device = torch.device("cpu")
        self.request, self.requests = 0.0, torch.zeros(())
        self._memory: Tensor | None = None  # shared: two messages of each process, which take turns
        self._shares, self._turn = True, 0

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Connect the processes; when one leaves, also by an error, messages of the others fail."""
        self.device = device
        if self.size == 1:
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        store = self._store or PrefixStore(f"pyro_ssvae/{_attempt()}/{next(_numbers)}", _launcher_store())
        options: dict[str, Any] = {"rank": self.rank, "world_size": self.size, "timeout": _TIMEOUT}
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, **options)
        try:
            self.largest(0)  # all have arrived
            yield
        finally:
            dist.destroy_process_group()

    def largest(self, number: int) -> int:
        """Return the largest of the numbers of all processes."""
        if self.size == 1:
            return number
        value = torch.tensor(number, device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def agree(self, request: int, *, wait: bool) -> int:
        """Return the largest request of all processes to stop, once gradients have told of one, else 0."""
        self.request = float(request)
        return self.largest(request) if not wait and float(self.requests) > 0.0 else 0

    def from_first(self, content: bytes) -> bytes:
        """Return what process 0 gives."""
        if self.size == 1:
            return content
        length = self.largest(len(content) if self.rank == 0 else 0)
        buffer = torch.zeros(length, dtype=torch.uint8)
        if self.rank == 0 and length:
            buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        buffer = buffer.to(self.device)
        dist.broadcast(buffer, 0)
        return buffer.cpu().numpy().tobytes()

    def values_from_first(self, values: Any) -> Any:
        """Return numbers and strings that process 0 gives, in lists and dictionaries."""
        if self.size == 1:
            return values
        return json.loads(self.from_first(json.dumps(values, default=lambda number: number.item()).encode()))

    def copy_from_first(self, module: nn.Module) -> None:
        """Give parameters and buffers the values that they have in process 0."""
        for tensor in (*module.parameters(), *module.buffers()) if self.size > 1 else ():
            values = tensor.detach().contiguous()
            dist.broadcast(values, 0)
            tensor.detach().copy_(values)

    def average_gradients(
        self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None], others: Sequence[Tensor]
    ) -> list[Tensor]:
        """Give parameters the means of their gradients over processes, and return those of other tensors."""
        found = [(part, gradient) for part, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
        means = self._average([*(gradient for _, gradient in found), *others])
        for (parameter, _), mean in zip(found, means, strict=False):
            parameter.grad = mean if parameter.is_contiguous() else torch.empty_like(parameter).copy_(mean)
        return means[len(found) :]

    def _average(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the means over processes, in one message; the gradients of small networks are not worth several."""
        parts = [*(tensor.detach().reshape(-1) for tensor in tensors), tensors[0].new_tensor([self.request])]
        length = sum(part.numel() for part in parts)
        dtype = reduce(torch.promote_types, (part.dtype for part in parts))
        if (memory := self._shared_memory(length, dtype)) is None:
            flat = torch.cat(parts)
            dist.all_reduce(flat)
            flat = flat / self.size
        else:
            # The other message of a process may still be read; it is written again only after the next barrier.
            self._turn = 1 - self._turn
            messages = memory[self._turn, :, :length]
            torch.cat(parts, out=messages[self.rank])
            dist.barrier()
            flat = messages.mean(0)
        self.requests = flat[-1]
        means = flat[:-1].split([tensor.numel() for tensor in tensors])
        return [mean.view(tensor.shape).to(tensor.dtype) for mean, tensor in zip(means, tensors, strict=True)]

    def _shared_memory(self, length: int, dtype: torch.dtype) -> Tensor | None:
        """Return memory for messages, several times faster than sending them, if all are processes of one machine."""
        memory = self._memory
        if not self._shares or (memory is not None and memory.dtype == dtype and memory.shape[2] >= length):
            return memory
        size = 2 * self.size * length
        with ExitStack() as stack:
            name = ""
            if self.rank == 0 and self.device.type == "cpu":
                try:
                    file = stack.enter_context(NamedTemporaryFile(dir=_SHARED))
                    os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)  # fails where memory does not suffice
                    name = file.name
                except OSError:  # no such folder, or it is full: through gloo, then
                    pass
            name = self.values_from_first(name)
            self._shares = not self.largest(int(not Path(name).is_file()))
            self._memory = None
            if self._shares:
                self._memory = torch.from_file(name, shared=True, size=size, dtype=dtype).view(2, self.size, length)
                self.largest(0)  # all have opened it, and process 0 may delete its name
        return self._memory

    def map_in_turn(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """Yield, in process 0, what a function makes of items, in order; the processes take turns to compute it.

        In the others the iterator yields nothing, and has to be exhausted too. Process 0 raises all errors.

        Raises:
            PyroSSVAEError: If another process has ended.
        """
        for first in range(0, len(items), self.size):
            own: list[Any] | Exception = []
            try:
                own = [function(item) for item in items[first + self.rank : first + self.rank + 1]]
            except Exception as error:
                own = error
            for found in self._gather(own):
                if isinstance(found, Exception):
                    raise found
                yield from found
            if isinstance(own, Exception):
                raise own

    def _gather(self, value: Any) -> list[Any]:
        """Return what all processes give, in process 0, and nothing in the others."""
        found = [value] * (self.size if self.rank == 0 else 0)
        if self.size > 1:
            try:
                dist.gather_object(value, found or None)
            except RuntimeError as error:
                if not is_lost(error):
                    raise
                raise PyroSSVAEError(f"One of the {self.size} processes that share the work has ended.") from error
        return found

    @contextmanager
    def divide(self, parts: Iterable[Tensor | None]) -> Iterator[list[Tensor | None]]:
        """Yield this process's examples of the parts of a batch; within the context, losses know of the others."""
        if self.size == 1:
            yield list(parts)
            return
        division = Division(self.rank, self.size)
        token = _active.set(division)
        try:
            yield [division.take(part) for part in parts]
        finally:
            _active.reset(token)

    def draws(self) -> AbstractContextManager[Any]:
        """Return a context, within that of :meth:`divide`, in which random numbers are those of the whole batch."""
        return _active.get() or nullcontext()  # for losses only: every call of PyTorch in it passes through Python


def is_lost(error: BaseException) -> bool:
    """Whether an error of a message says that another process has ended."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


class _Sum(torch.autograd.Function):
    """The sum over processes; differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Sum.apply(*gradients)


# Of a shape; in place, like another tensor, or by the probabilities in another tensor: by rows of their first argument.
_DRAWS_OF_SHAPE = {torch.rand, torch.randn, torch.randint}
_DRAWS = {torch.rand_like, torch.randn_like, torch.bernoulli, torch.multinomial, Tensor.multinomial, Tensor.bernoulli}
_DRAWS_IN_PLACE = {Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.exponential_, Tensor.random_}
_DIVIDED = _DRAWS_OF_SHAPE | _DRAWS | _DRAWS_IN_PLACE | {F.batch_norm, F.dropout}


class Division(TorchFunctionMode):
    """Draws random numbers for the examples of all processes, and normalises batches over all of them.

    A dimension is that of examples if it has as many elements as this process has examples.
    """

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size
        self.counts: set[int] = set()  # examples of this process, of parts of the batch that are divided

    def take(self, part: Tensor | None) -> Tensor | None:
        """Return this process's examples."""
        if part is None or len(part) % self.size:
            return part
        self.counts.add(len(part) // self.size)
        return part[self.rank :: self.size]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _DIVIDED:
            return func(*args, **kwargs)
        if func in _DRAWS_OF_SHAPE:
            *front, shape = (*args, kwargs["size"]) if "size" in kwargs else args
            front, shape = ([], args) if isinstance(shape, int) else (front, shape)
            if (dim := self._dim(shape)) is not None:
                options = {name: value for name, value in kwargs.items() if name != "size"}
                return self._own(func(*front, self._whole(shape, dim), **options), dim)
        elif func is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        elif func is F.dropout:
            return self._dropout(*args, **kwargs)
        else:
            x, *rest = args
            if (dim := self._dim(x.shape)) is not None:
                return self._draw(func, dim, x, *rest, **kwargs)
        return func(*args, **kwargs)

    def _dim(self, shape: Sequence[int]) -> int | None:
        """Return the dimension of examples; classes or draws may be left of it in three dimensions."""
        order = (1, 0, 2) if len(shape) == 3 else range(len(shape))
        return next((dim for dim in order if shape[dim] in self.counts), None)

    def _whole(self, shape: Sequence[int], dim: int) -> tuple[int, ...]:
        return (*shape[:dim], shape[dim] * self.size, *shape[dim + 1 :])

    def _own(self, x: Tensor, dim: int) -> Tensor:
        return x[(slice(None),) * dim + (slice(self.rank, None, self.size),)]

    def _draw(self, func: Any, dim: int, x: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        shape = self._whole(x.shape, dim)
        if func in _DRAWS_IN_PLACE:
            return x.copy_(self._own(func(x.new_empty(shape), *rest, **kwargs), dim))
        whole = x.new_ones(shape)
        self._own(whole, dim).copy_(x.detach())
        return self._own(func(whole, *rest, **kwargs), dim)

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        dim = self._dim(x.shape)
        if dim is None or not training or not 0.0 < p < 1.0:
            return F.dropout(x, p, training, inplace)
        kept = x.new_empty(self._whole(x.shape, dim)).bernoulli_(1.0 - p)
        return x * self._own(kept, dim).div(1.0 - p)

    def _batch_norm(
        self, x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None = None,
        bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        if not training:
            return F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)
        dims = [0, *range(2, x.dim())]
        found = _Sum.apply(x.mean(dims, keepdim=True)) / self.size
        squares = _Sum.apply((x - found).square().mean(dims, keepdim=True)) / self.size
        divided = any(x.shape[0] % number == 0 for number in self.counts)
        number = x.numel() // x.shape[1] * (self.size if divided else 1)
        if mean is not None and var is not None:
            mean.lerp_(found.detach().view(-1), momentum)
            var.lerp_(squares.detach().view(-1) * (number / max(1, number - 1)), momentum)
        shape = (1, -1, *(1 for _ in dims[1:]))
        x = (x - found) * (squares + eps).rsqrt()
        x = x if weight is None else x * weight.view(shape)
        return x if bias is None else x + bias.view(shape)


_active: ContextVar[Division | None] = ContextVar("division", default=None)


def gather_rows(x: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of the batch; differentiable."""
    division = _active.get()
    if division is None or len(x) not in division.counts:
        return x
    whole = x.new_zeros(len(x) * division.size, *x.shape[1:])
    whole[division.rank :: division.size] = x
    found: Tensor = _Sum.apply(whole)
    return found


def own_rows(whole: Tensor, like: Tensor) -> Tensor:
    """Return the rows of this process of what :func:`gather_rows` returned for ``like``."""
    division = _active.get()
    return whole if division is None or len(whole) == len(like) else whole[division.rank :: division.size]


def first_rows(x: Tensor, number: int | None) -> Tensor:
    """Return those of this process's rows that are among the first ``number`` of the batch."""
    division = _active.get()
    if number is None or division is None or len(x) not in division.counts or number >= len(x) * division.size:
        return x[:number]
    if number % division.size:
        raise ValueError(
            f"bound_batch_size={number} is not a multiple of {division.size} processes; choose one that is, or None."
        )
    division.counts.add(number // division.size)
    return x[: number // division.size]


def mean_over_ranks(x: Tensor) -> Callable[[], Tensor]:
    """Start to take the mean over processes of a mean over rows, without gradient; the function returned gives it.

    What runs before the call of that function need not wait for the other processes.
    """
    division = _active.get()
    if division is None:
        return lambda: x
    message = dist.all_reduce(total := x.detach().clone(), async_op=True)

    def finish() -> Tensor:
        message.wait()
        return total / division.size

    return finish
