"""Several processes that train one run, and their messages."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import cache, reduce
from itertools import count
from multiprocessing.connection import Client, Connection, Listener
from multiprocessing.process import BaseProcess
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore, rendezvous  # type: ignore[attr-defined]

from pyro_ssvae._division import Division, divided_draws
from pyro_ssvae.errors import PyroSSVAEError, TrainingFailedError

_TIMEOUT = timedelta(hours=6)  # of a message: the others wait while the first process evaluates or writes a report
_SHARED = "/dev/shm"  # files and sockets that processes of one machine share, on Linux
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


class Links:
    """Connections to the other processes of one machine, many times faster than gloo for short messages."""

    def __init__(self, rank: int, others: dict[int, Connection]) -> None:
        self._rank, self._others = rank, others

    def exchange(self, message: bytes) -> Callable[[], list[bytes]]:
        """Send at most 64 KiB to all; the function returned gives, once, those of all in the order of ranks."""
        with _lost_as_error():
            for link in self._others.values():
                link.send_bytes(message)

        def receive() -> list[bytes]:
            with _lost_as_error():
                found = {other: link.recv_bytes() for other, link in self._others.items()}
            found[self._rank] = message
            return [found[rank] for rank in range(len(found))]

        return receive

    def close(self) -> None:
        """Close the connections; messages of the others fail."""
        for link in self._others.values():
            link.close()


@contextmanager
def _lost_as_error() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise dist.DistNetworkError("A process that trains this run has ended.") from error


class Ranks:
    """The processes that train one run; messages between them are sent only within :meth:`joined`.

    Attributes:
        rank: Number of this process, from 0; process 0 alone writes files.
        size: Number of processes.
        request: A number that this process sends with its gradients, positive if it wants to stop.
        requests: The sum of what all have sent in the last step, on the device.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank, self.size, self._store = rank, size, store
        self.device = torch.device("cpu")
        self.request, self.requests = 0.0, torch.zeros(())
        self._links: Links | None = None  # if all are processes of one machine
        self._sums = torch.empty(0)  # over processes, of the last message
        self._memory: Tensor | None = None  # shared: two messages of each process, which take turns
        self._shares, self._turn = False, 0

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
            self._links = self._connect() if device.type == "cpu" else None
            self._shares = self._links is not None
            with divided_draws():
                yield
        finally:
            if self._links is not None:
                self._links.close()
            dist.destroy_process_group()

    def _connect(self) -> Links | None:
        """Return connections to the others, if all are processes of one machine."""
        listener, links, folder = None, {}, ""
        with ExitStack() as stack:
            with suppress(OSError):  # no such folder, or no sockets in it: through gloo, then
                if self.rank == 0:
                    folder = stack.enter_context(TemporaryDirectory(dir=_SHARED))
            folder = self.from_first(folder)
            with suppress(OSError):
                if folder:
                    listener = Listener(f"{folder}/{self.rank}", "AF_UNIX", backlog=self.size)
            apart = bool(self.largest(int(listener is None)))
            if listener is not None and not apart:
                links = {other: Client(f"{folder}/{other}", "AF_UNIX") for other in range(self.rank)}
                for link in links.values():
                    link.send_bytes(str(self.rank).encode())
                self.largest(0)  # all wait to be accepted
                for _ in range(self.rank + 1, self.size):
                    link = listener.accept()
                    links[int(link.recv_bytes())] = link
            if listener is not None:
                listener.close()
            self.largest(0)  # process 0 may delete the folder
        return None if apart else Links(self.rank, links)

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

    def from_first(self, value: Any) -> Any:
        """Return what process 0 gives."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, 0, device=self.device)
        return values[0]

    def copy_from_first(self, module: nn.Module) -> None:
        """Give parameters and buffers the values that they have in process 0."""
        for tensor in (*module.parameters(), *module.buffers()) if self.size > 1 else ():
            values = tensor.detach().contiguous()
            dist.broadcast(values, 0)
            tensor.detach().copy_(values)

    def sum_gradients(
        self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None], others: Sequence[Tensor]
    ) -> list[Tensor]:
        """Give parameters the sums of their gradients over processes, and return those of other tensors.

        The gradients hold until the next call, which writes to the same memory: the system maps new memory page by
        page, which takes longer than the sum.
        """
        found = [(part, gradient) for part, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
        sums = self._sum([*(gradient for _, gradient in found), *others])
        for (parameter, _), total in zip(found, sums, strict=False):
            parameter.grad = total if parameter.is_contiguous() else torch.empty_like(parameter).copy_(total)
        return [total.clone() for total in sums[len(found) :]]

    def _sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums over processes, in one message; the gradients of small networks are not worth several."""
        parts = [*(tensor.detach().reshape(-1) for tensor in tensors), tensors[0].new_tensor([self.request])]
        length = sum(part.numel() for part in parts)
        dtype = reduce(torch.promote_types, (part.dtype for part in parts))
        if self._sums.dtype != dtype or len(self._sums) < length:
            self._sums = torch.empty(length, dtype=dtype, device=parts[0].device)
        flat = self._sums[:length]
        if (memory := self._shared_memory(length, dtype)) is None or self._links is None:
            torch.cat(parts, out=flat)
            dist.all_reduce(flat)
        else:
            # The other message of a process may still be read; it is written again only after the next exchange.
            self._turn = 1 - self._turn
            messages = memory[self._turn, :, :length]
            torch.cat(parts, out=messages[self.rank])
            self._links.exchange(b"")()
            reduce(Tensor.add_, messages[2:], torch.add(messages[0], messages[1], out=flat))  # faster than sum(0)
        self.requests = flat[-1].clone()
        sums = flat[:-1].split([tensor.numel() for tensor in tensors])
        return [total.view(tensor.shape).to(tensor.dtype) for total, tensor in zip(sums, tensors, strict=True)]

    def _shared_memory(self, length: int, dtype: torch.dtype) -> Tensor | None:
        """Return memory for messages, several times faster than sending them, if all are processes of one machine."""
        memory = self._memory
        if not self._shares or (memory is not None and memory.dtype == dtype and memory.shape[2] >= length):
            return memory
        size = 2 * self.size * length
        with ExitStack() as stack:
            name = ""
            with suppress(OSError):  # memory does not suffice: through gloo, then
                if self.rank == 0:
                    file = stack.enter_context(NamedTemporaryFile(dir=_SHARED))
                    os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
                    name = file.name
            name = self.from_first(name)
            self._shares, self._memory = bool(name), None
            if self._shares:
                self._memory = torch.from_file(name, shared=True, size=size, dtype=dtype).view(2, self.size, length)
                self.largest(0)  # all have opened it, and process 0 may delete its name
        return self._memory

    def map_in_turn(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """Yield, in process 0, what a function makes of items, in order; the processes take turns to compute it.

        In the others the iterator yields nothing, and has to be exhausted too. Process 0 raises all errors, and
        ``PyroSSVAEError`` if another process has ended.
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
        exchange = None if self._links is None else self._links.exchange
        with Division(self.rank, self.size, exchange).active() if self.size > 1 else nullcontext() as division:
            yield [part if division is None else division.take(part) for part in parts]


def is_lost(error: BaseException) -> bool:
    """Whether an error of a message says that another process has ended."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


@contextmanager
def processes(number: int | None, train: Callable[..., Any], *arguments: Any) -> Iterator[Ranks]:
    """Yield the processes of a run: those of a launcher, or ``number`` that are started here and ended afterwards.

    Those that are started call ``train(*arguments, ranks)``. A number under a launcher, or arguments that cannot be
    sent to other processes, raise ``ValueError``, a process that cannot be started ``TrainingFailedError``.
    """
    rank, size = launched()
    if number == 1 or (number is None and size == 1):
        yield Ranks()
        return
    if size > 1:
        if number not in (None, size):
            raise ValueError(f"devices={number}, and a launcher has started {size} processes; leave devices out.")
        yield Ranks(rank, size)
        return
    assert number is not None
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(1)  # the program of the process that starts others, read anew by one of them: it is told below
    try:
        content = pickle.dumps((train, arguments))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"devices={number} sends objective and data to other processes, which fails ({error}): define classes and "
            "functions in a module, or start the program by torchrun."
        ) from error
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // number))
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    workers: list[BaseProcess] = []
    try:
        _start(workers, number, content, store.port)
        yield Ranks(0, number, store)
        for worker in workers:
            worker.join()
    finally:
        torch.set_num_threads(threads)
        for worker in workers:
            worker.join(5.0)
            worker.kill()


def _start(workers: list[BaseProcess], number: int, content: bytes, port: int) -> None:
    """Add the other ``number - 1`` processes to ``workers``, and wait until each has received its work."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for other in range(1, number):
        here, there = context.Pipe()
        options = (other, number, port, torch.get_num_threads(), there)
        worker = context.Process(target=_work, args=options, daemon=True)
        worker.start()
        workers.append(worker)
        there.close()
        pipes.append(here)
    for pipe in pipes:
        try:
            pipe.send_bytes(content)  # an argument of a process that ends at once would be waited for endlessly
            pipe.recv()
        except (EOFError, OSError):
            why = "a process could not be started; a script needs its calls under if __name__ == '__main__'"
            raise TrainingFailedError(0, why, None) from None


def _work(rank: int, size: int, port: int, threads: int, pipe: Any) -> None:
    """Train as a process that was started; process 0 tells of errors that all have."""
    torch.set_num_threads(threads)
    try:
        train, arguments = pickle.loads(pipe.recv_bytes())  # from the process that has started this one
        store = TCPStore("127.0.0.1", port, is_master=False)
        pipe.send("ready")
        train(*arguments, Ranks(rank, size, store))
    except (KeyboardInterrupt, SystemExit, PyroSSVAEError, ValueError, TypeError):
        sys.exit(1)
