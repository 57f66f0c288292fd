"""TensorBoard event files, where TensorBoard is installed."""

from __future__ import annotations

import os
import platform
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pyro_ssvae.errors import RunFolderError

__all__ = ["TensorBoardLog"]


class TensorBoardLog:
    """Writes the metrics of each evaluation for TensorBoard; does nothing where it is not installed.

    PyTorch's own writer has a thread, whose errors cannot be caught.

    Args:
        folder: Where the event files go.
        from_step: First step to write; curves of a resumed run are cut there.

    Raises:
        RunFolderError: If the file cannot be written; from :meth:`write` too.
    """

    def __init__(self, folder: Path, from_step: int = 0) -> None:
        self._records: Any = None
        self._folder = folder
        if find_spec("tensorboard") is None:
            return
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{time.time_ns():020d}.{platform.node()}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(open(folder / name, "ab", buffering=0))
        except OSError as error:
            raise RunFolderError(f"Cannot write the TensorBoard log to {folder}: {error}.") from error
        self._add(file_version="brain.Event:2")
        self._add(step=from_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, metrics: dict[str, Any]) -> None:
        """Write one evaluation."""
        if self._records is not None:
            from tensorboard.compat.proto.summary_pb2 import Summary

            values = {name: value for name, value in metrics.items() if name not in ("step", "epoch")}
            values = {name: value for name, value in values.items() if isinstance(value, (int, float))}
            scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            self._add(step=metrics["step"], summary=Summary(value=scalars))

    def close(self) -> None:
        """Close the file."""
        if self._records is not None:
            self._records.close()

    def _add(self, **entries: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        try:
            self._records.write(Event(wall_time=time.time(), **entries).SerializeToString())
        except OSError as error:
            raise RunFolderError(f"Cannot write the TensorBoard log to {self._folder}: {error}.") from error
