"""Progress of a run: a live bar on a terminal, one line an evaluation elsewhere."""

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


class _RateColumn(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} steps/s" if task.speed else "")


class ProgressReport:
    """Shows steps done, rate, remaining time, and the bound and validation error, or how an energy model fares.

    Args:
        total: Number of steps of the schedule.
        done: Steps done before (a resumed run).
        enabled: Whether to show anything.
        words: What is being done.
        console: Where to; standard error by default.
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
        self._console = console or Console(stderr=True)
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
            self._console.print(f"All {self._total} steps had been done before; nothing is left to train.")
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self) -> None:
        """Count one step."""
        self._progress.advance(self._task)

    def evaluated(self, row: dict[str, Any], steps_per_second: float) -> None:
        """Show the metrics of an evaluation."""
        parts = []
        bound = next((row[name] for name in ("bound", "bound_unlabelled", "bound_labelled") if name in row), None)
        if bound is not None:
            parts.append(f"bound {bound:.1f} nats")
        if "validation_bound" in row:
            parts.append(f"validation bound {row['validation_bound']:.1f} nats")
        if "validation_error" in row:
            parts.append(f"validation error {row['validation_error']:.2%}")
        if "energy_gap" in row:
            parts.append(f"energy of data minus samples {row['energy_gap']:.2f} nats")
        if "std_ratio" in row:
            parts.append(f"spread of samples {row['std_ratio']:.0%} of that of the data")
        status = "  ".join(parts)
        self._progress.update(self._task, status=status)
        if self._enabled and not self._console.is_terminal:
            left = (self._total - row["step"]) / steps_per_second
            self._console.print(
                f"step {row['step']}/{self._total}  {steps_per_second:.1f} steps/s  {left:.0f} s left  {status}",
                highlight=False,
                soft_wrap=True,
            )
