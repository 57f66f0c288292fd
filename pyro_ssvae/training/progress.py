"""Progress of a run: a live bar on a terminal, elsewhere one line per evaluation."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["ProgressReport"]

_SHOWN = {
    "val/bound": "validation bound {:.1f} nats",
    "val/error": "validation error {:.2%}",
    "train/energy_gap": "energy of data minus samples {:.2f} nats",
    "val/std_ratio": "standard deviation of samples {:.0%} of that of the data",
}


class _RateColumn(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} steps/s" if task.speed else "")


class _Console(Console):
    """A console that falls silent, instead of ending the process, when nobody reads what it prints."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class ProgressReport:
    """Shows steps done, rate, remaining time and the main metrics of the last evaluation.

    Args:
        total: Number of steps of the schedule.
        done: Steps done before, in a resumed run.
        enabled: Whether to show anything.
        words: Label of the bar.
        console: Where to print; standard error by default.
    """

    def __init__(
        self,
        total: int,
        *,
        done: int = 0,
        enabled: bool = True,
        words: str = "training",
        console: Console | None = None,
    ) -> None:
        self._console = console or _Console(stderr=True)
        self._total, self._done = total, done
        self._enabled = enabled
        self._progress = Progress(
            TextColumn(words),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
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
