"""Progress of a run: a live bar on a terminal, elsewhere one line per evaluation, and event files of TensorBoard."""

from __future__ import annotations

import os
import platform
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich import progress
from rich.console import Console
from rich.text import Text

from pyro_ssvae._io import writing

_SHOWN = {
    "val/bound": "validation bound {:.1f} nats",
    "val/error": "validation error {:.2%}",
    "train/energy_gap": "energy of data minus samples {:.2f} nats",
    "val/std_ratio": "standard deviation of samples {:.0%} of that of the data",
}


class _RateColumn(progress.ProgressColumn):
    """Steps per second."""

    def render(self, task: progress.Task) -> Text:
        return Text(f"{task.speed:.1f} steps/s" if task.speed else "")


class _Console(Console):
    """A console that falls silent, instead of ending the process, when nobody reads what it prints."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class ProgressReport:
    """Shows steps done (``done`` before, in a resumed run), rate, remaining time and metrics of the last evaluation."""

    def __init__(self, total: int, *, done: int = 0, enabled: bool = True, words: str = "training") -> None:
        self._console = _Console(stderr=True)
        self._total, self._done = total, done
        self._enabled = enabled
        self._progress = progress.Progress(
            progress.TextColumn(words),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            _RateColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[status]}"),
            console=self._console,
            disable=not (enabled and self._console.is_terminal),
        )
        self._task = self._progress.add_task(words, total=total, completed=done, status="")

    def __enter__(self) -> ProgressReport:
        if self._enabled and self._done >= self._total:
            self._console.print(f"All {self._total} steps were done before; there is nothing left to train.")
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self) -> None:
        """Count one step."""
        self._progress.advance(self._task)

    def evaluated(self, metrics: dict[str, Any], steps_per_second: float) -> None:
        """Show the metrics of an evaluation."""
        bounds = (name for name in ("train/bound", "train/bound_unlabelled", "train/bound_labelled") if name in metrics)
        shown = {next(bounds, ""): "bound {:.1f} nats", **_SHOWN}
        status = "  ".join(words.format(metrics[name]) for name, words in shown.items() if name in metrics)
        self._progress.update(self._task, status=status)
        if self._enabled and not self._console.is_terminal:
            left = (self._total - metrics["step"]) / steps_per_second
            self._console.print(
                f"step {metrics['step']}/{self._total}  {steps_per_second:.1f} steps/s  {left:.0f} s left  {status}",
                highlight=False,
                soft_wrap=True,
            )


class TensorBoardLog:
    """Writes the metrics of each evaluation for TensorBoard; does nothing where it is not installed.

    PyTorch's own writer has a thread, whose errors cannot be caught. Curves of a resumed run are cut at ``from_step``.
    """

    def __init__(self, folder: Path, from_step: int = 0) -> None:
        self._records: Any = None
        self._what = f"the TensorBoard log to {folder}"
        if find_spec("tensorboard") is None:
            return
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{time.time_ns():020d}.{platform.node()}.{os.getpid()}"
        with writing(self._what):
            folder.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(open(folder / name, "ab", buffering=0))
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

        with writing(self._what):
            self._records.write(Event(wall_time=time.time(), **entries).SerializeToString())
