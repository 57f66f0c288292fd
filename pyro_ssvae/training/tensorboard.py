"""TensorBoard event files, where TensorBoard is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["TensorBoardLog"]


class TensorBoardLog:
    """Writes the metrics of each evaluation for TensorBoard; does nothing where it is not installed.

    Args:
        folder: Where the event files go.
        from_step: First step to write; curves of a resumed run are cut there.
    """

    def __init__(self, folder: Path, from_step: int = 0) -> None:
        self._writer: Any = None
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(folder, purge_step=from_step)

    def write(self, metrics: dict[str, Any]) -> None:
        """Write one evaluation."""
        if self._writer is not None:
            # Otherwise its thread writes later, and where the folder is gone ends with an error of its own.
            for name, value in metrics.items():
                if name not in ("step", "epoch"):
                    self._writer.add_scalar(name, value, metrics["step"])
            self._writer.flush()

    def close(self) -> None:
        """Write out what is buffered."""
        if self._writer is not None:
            self._writer.close()
