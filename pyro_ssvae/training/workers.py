"""Starting the other processes of ``fit(..., devices=N)``; this one is process 0."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pyro_ssvae._ranks import Ranks, launched
from pyro_ssvae.errors import PyroSSVAEError, TrainingFailedError


@contextmanager
def processes(number: int | None, train: Callable[..., Any], *arguments: Any) -> Iterator[Ranks]:
    """Yield the processes of a run: those of a launcher, or ``number`` that are started here and ended afterwards.

    Those that are started call ``train(*arguments, ranks)``.

    Raises:
        ValueError: For a number under a launcher, or arguments that cannot be sent to other processes.
        TrainingFailedError: If a process cannot be started.
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
    context = multiprocessing.get_context("spawn")
    workers, pipes = [], []
    try:
        for other in range(1, number):
            here, there = context.Pipe()
            options = (other, number, store.port, torch.get_num_threads(), there)
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
        yield Ranks(0, number, store)
        for worker in workers:
            worker.join()
    finally:
        torch.set_num_threads(threads)
        for worker in workers:
            worker.join(5.0)
            worker.kill()


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
