"""Downloads through torchvision, with time limits and without partial files."""

from __future__ import annotations

import http.client
import os
import queue
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["download"]

_PROBE_SECONDS = 8.0  # for any server to answer, name look-up included
_STALL_SECONDS = 20.0  # without a byte, once a download is under way


def download(class_name: str, subfolder: str, root: Path) -> Path:
    """Download a data set by the name of its class in :mod:`torchvision.datasets`, and return its folder.

    The class keeps its unpacked files in a subfolder of its root. They are downloaded to a temporary folder, where
    torchvision checks their MD5 sums, and only then moved to ``root / subfolder``: an interrupted download leaves
    nothing that a later run could take for data.

    Raises:
        OSError: If no server answers, the download breaks off or ``root`` cannot be written.
        RuntimeError: If the files are not those expected.
    """
    import torchvision.datasets

    dataset = getattr(torchvision.datasets, class_name)
    mirrors = getattr(dataset, "mirrors", None)
    _probe([dataset.url] if mirrors is None else [mirror + dataset.resources[0][0] for mirror in mirrors])
    root.mkdir(parents=True, exist_ok=True)
    target = root / subfolder
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=root) as partial:
        try:
            with _socket_timeout(_STALL_SECONDS):
                dataset(partial, train=False, download=True)
        except http.client.HTTPException as error:
            raise OSError(f"the connection broke off: {error!r}") from error
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted((Path(partial) / subfolder).iterdir()):
            if file.suffix != ".gz":
                os.replace(file, target / file.name)
    return target


def _probe(addresses: Sequence[str]) -> None:
    """Raise ``OSError`` unless a server answers within ``_PROBE_SECONDS``.

    A socket's timeout does not cover the look-up of the name, so each request runs in a thread that may be abandoned.
    """
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    for address in addresses:
        threading.Thread(target=_request, args=(address, answers), daemon=True).start()
    deadline = time.monotonic() + _PROBE_SECONDS
    reasons: list[str] = []
    for _ in addresses:
        try:
            reason = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            reasons.append(f"no answer within {_PROBE_SECONDS:g} s")
            break
        if not reason:
            return
        reasons.append(reason)
    raise OSError("; ".join(dict.fromkeys(reasons)))


def _request(address: str, answers: queue.SimpleQueue[str]) -> None:
    """Put the reason why a server does not answer into the queue, or an empty string if it does."""
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):
            answers.put("")
    except urllib.error.HTTPError as error:
        error.close()
        answers.put(f"HTTP status {error.code}")
    except urllib.error.URLError as error:
        answers.put(str(error.reason))
    except (OSError, ValueError, http.client.HTTPException) as error:
        answers.put(str(error) or type(error).__name__)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)  # torchvision sets none, and would wait forever
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
