"""The folder of a run: settings, metrics, checkpoint, model, label split, figures and result."""

from __future__ import annotations

import csv
import io
import pickle
from pathlib import Path
from typing import Any

import torch
import yaml

from pyro_ssvae._io import atomic_open, read_json, write_atomically, write_json
from pyro_ssvae.errors import RunFolderError

__all__ = ["RunFolder"]


class RunFolder:
    """Paths and formats of one run; every file is written atomically, and nothing is ever unpickled.

    Args:
        path: The folder; made by :meth:`create`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.csv"
        self.checkpoint = self.path / "checkpoints" / "last.pt"
        self.model = self.path / "model"
        self.split = self.path / "split.npz"
        self.tensorboard = self.path / "tensorboard"
        self.figures = self.path / "figures"
        self.result = self.path / "result.json"

    def create(self, config: dict[str, Any]) -> None:
        """Make the folder and write ``config.yaml``.

        Raises:
            RunFolderError: If a run is there already, or the folder cannot be made.
        """
        if self.config.exists():
            raise RunFolderError(
                f"{self.path} already holds a run. Continue it with --resume {self.path} (resume=True), or choose "
                "another folder."
            )
        try:
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.config, yaml.safe_dump(config, sort_keys=False).encode())
        except OSError as error:
            raise RunFolderError(f"Cannot make the run folder {self.path}: {error}.") from error

    def read_config(self) -> dict[str, Any]:
        """Return the settings of the run.

        Raises:
            RunFolderError: If the folder holds no readable run.
        """
        if not self.config.is_file():
            raise RunFolderError(
                f"{self.path} holds no run (no config.yaml). Give the folder that an earlier run wrote."
            )
        try:
            config = yaml.safe_load(self.config.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RunFolderError(f"{self.config} is not readable YAML: {error}") from error
        if not isinstance(config, dict):
            raise RunFolderError(f"{self.config} must hold settings by name.")
        return config

    def write_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the training state.

        Raises:
            RunFolderError: If it cannot be written, for example on a full disk; the one before stays.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self._write(self.checkpoint, buffer.getvalue())

    def read_checkpoint(self, device: torch.device) -> dict[str, Any]:
        """Return the training state, on a device.

        Raises:
            RunFolderError: If there is none or it is unreadable.
        """
        if not self.checkpoint.is_file():
            raise RunFolderError(
                f"{self.path} has no checkpoint yet ({self.checkpoint.name}); start the run afresh in another folder."
            )
        try:
            state = torch.load(self.checkpoint, map_location=device, weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            raise RunFolderError(
                f"The checkpoint {self.checkpoint} is unreadable ({type(error).__name__}). The model of the last "
                f"evaluation, if any, is in {self.model}; training must start afresh in another folder."
            ) from error
        if not isinstance(state, dict) or "step" not in state:
            raise RunFolderError(f"{self.checkpoint} is not a checkpoint of this package.")
        return state

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Write all rows of ``metrics.csv``; columns are the union of the rows' names, blanks where absent."""
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._write(self.metrics, text.getvalue().encode())

    def write_result(self, result: dict[str, Any]) -> None:
        """Write ``result.json``."""
        try:
            write_json(self.result, result)
        except OSError as error:
            raise RunFolderError(f"Cannot write {self.result}: {error}.") from error

    def read_result(self) -> dict[str, Any]:
        """Return ``result.json``."""
        return read_json(self.result)

    def _write(self, path: Path, content: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_open(path) as file:
                file.write(content)
        except OSError as error:
            kept = f" The last good checkpoint is {self.checkpoint}." if self.checkpoint.is_file() else ""
            raise RunFolderError(f"Cannot write {path}: {error}.{kept}") from error
