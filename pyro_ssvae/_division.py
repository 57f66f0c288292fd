"""What a loss needs beside the examples of its own process, where several processes train one run.

Every process has the same batch and the same random generators. It takes every ``size``-th example of the batch, and
draws the random numbers of the whole batch, of which it uses those of its examples; so the numbers do not depend on how
many processes there are, and generators never diverge. A batch that cannot be divided equally is computed by all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

_SHORT = 2**16  # bytes of a message that a socket takes before another process receives it


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


class Division:
    """This process's part of a batch, with the random numbers and the means of the whole batch.

    A dimension is that of examples if it has as many elements as this process has examples. ``exchange`` sends short
    messages to the others, if that is faster than by torch.distributed.
    """

    def __init__(
        self, rank: int, size: int, exchange: Callable[[bytes], Callable[[], list[bytes]]] | None = None
    ) -> None:
        self.rank, self.size, self._exchange = rank, size, exchange
        self.counts: set[int] = set()  # examples of this process, of parts of the batch that are divided

    @contextmanager
    def active(self) -> Iterator[Division]:
        """Let losses, and draws within :func:`divided_draws`, know of the other processes."""
        token = _active.set(self)
        try:
            yield self
        finally:
            _active.reset(token)

    def take(self, part: Tensor | None) -> Tensor | None:
        """Return this process's examples."""
        if part is None or len(part) % self.size:
            return part
        self.counts.add(len(part) // self.size)
        return part[self.rank :: self.size]

    def mean(self, x: Tensor) -> Callable[[], Tensor]:
        """Start to take the mean over processes; the function returned gives it."""
        if self._exchange is None or x.nbytes > _SHORT:
            message = dist.all_reduce(total := x.clone(), async_op=True)
        else:
            message, finish = None, self._exchange(x.reshape(-1).view(torch.uint8).numpy().tobytes())

        def receive() -> Tensor:
            if message is not None:
                message.wait()
                return total / self.size
            parts = [torch.frombuffer(bytearray(part), dtype=x.dtype) for part in finish()]
            return (sum(parts[1:], parts[0]) / self.size).view(x.shape)

        return receive

    def draw_of_shape(self, draw: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return this process's part of a tensor that is drawn from its shape, the last of the arguments."""
        *front, shape = (*args, kwargs.pop("size")) if "size" in kwargs else args
        front, shape = ([], args) if isinstance(shape, int) else (front, shape)
        if (dim := self._dim(shape)) is None:
            return draw(*front, shape, **kwargs)
        return self._own(draw(*front, self._whole(shape, dim), **kwargs), dim)

    def draw_in_place(self, draw: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Fill a tensor with this process's part of what is drawn."""
        if (dim := self._dim(x.shape)) is None:
            return draw(x, *args, **kwargs)
        return x.copy_(self._own(draw(x.new_empty(self._whole(x.shape, dim)), *args, **kwargs), dim))

    def draw_like(self, draw: Callable[..., Tensor], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return this process's part of what is drawn like a tensor, or by the probabilities in it."""
        if (dim := self._dim(input.shape)) is None:
            return draw(input, *args, **kwargs)
        whole = input.new_ones(self._whole(input.shape, dim))
        self._own(whole, dim).copy_(input.detach())
        return self._own(draw(whole, *args, **kwargs), dim)

    def _dim(self, shape: Sequence[int]) -> int | None:
        """Return the dimension of examples; classes or draws may be left of it in three dimensions."""
        order = (1, 0, 2) if len(shape) == 3 else range(len(shape))
        return next((dim for dim in order if shape[dim] in self.counts), None)

    def _whole(self, shape: Sequence[int], dim: int) -> tuple[int, ...]:
        return (*shape[:dim], shape[dim] * self.size, *shape[dim + 1 :])

    def _own(self, x: Tensor, dim: int) -> Tensor:
        return x[(slice(None),) * dim + (slice(self.rank, None, self.size),)]

    def dropout(
        self, drop: Callable[..., Tensor], input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        """Do what ``F.dropout`` does, from where random numbers are not divided."""
        if not training or not 0.0 < p < 1.0:
            return drop(input, p, training, inplace)
        return input * torch.empty_like(input).bernoulli_(1.0 - p).div_(1.0 - p)

    def batch_norm(
        self, norm: Callable[..., Tensor], input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
        weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False, momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        """Normalise by means and variances over all processes."""
        if not training:
            return norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        dims = [0, *range(2, input.dim())]
        mean = _Sum.apply(input.mean(dims, keepdim=True)) / self.size
        var = _Sum.apply((input - mean).square().mean(dims, keepdim=True)) / self.size
        divided = any(input.shape[0] % number == 0 for number in self.counts)
        number = input.numel() // input.shape[1] * (self.size if divided else 1)
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.detach().view(-1), momentum)
            running_var.lerp_(var.detach().view(-1) * (number / max(1, number - 1)), momentum)
        shape = (1, -1, *(1 for _ in dims[1:]))
        x: Tensor = (input - mean) * (var + eps).rsqrt()
        x = x if weight is None else x * weight.view(shape)
        return x if bias is None else x + bias.view(shape)


_DIVIDED: list[tuple[Any, list[str], Callable[..., Tensor]]] = [
    (torch, ["rand", "randn", "randint"], Division.draw_of_shape),
    (torch, ["rand_like", "randn_like", "bernoulli", "multinomial"], Division.draw_like),
    (Tensor, ["bernoulli", "multinomial"], Division.draw_like),
    (Tensor, ["normal_", "uniform_", "bernoulli_", "exponential_", "random_"], Division.draw_in_place),
    (F, ["dropout"], Division.dropout),
    (F, ["batch_norm"], Division.batch_norm),
]


@contextmanager
def divided_draws() -> Iterator[None]:
    """Let functions of PyTorch draw random numbers of the whole batch, and normalise it, where a division is active.

    They are replaced: with a ``TorchFunctionMode`` every call would pass through Python, and steps take longer.
    """
    places = [(owner, name, method) for owner, names, method in _DIVIDED for name in names]
    originals = [getattr(owner, name) for owner, name, _ in places]
    for (owner, name, method), original in zip(places, originals, strict=True):
        setattr(owner, name, _divide_draw(original, method))
    try:
        yield
    finally:
        for (owner, name, _), original in zip(places, originals, strict=True):
            setattr(owner, name, original)


def _divide_draw(function: Callable[..., Tensor], method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(function)
    def draw(*args: Any, **kwargs: Any) -> Tensor:
        division = _active.get()  # none in other threads
        return function(*args, **kwargs) if division is None else method(division, function, *args, **kwargs)

    return draw


_active: ContextVar[Division | None] = ContextVar("division", default=None)


def gather_rows(x: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of the batch; differentiable."""
    division = _active.get()
    if division is None or len(x) not in division.counts:
        return x
    whole = x.new_zeros(len(x) * division.size, *x.shape[1:])
    whole[division.rank :: division.size] = x
    return _Sum.apply(whole)


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
    return division.mean(x.detach())
