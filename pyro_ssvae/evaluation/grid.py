r"""Densities in the plane on a grid, where even an energy model can be normalised."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Grid"]

_SMALL = 1e-12  # of a cell's probability, below which it does not count in a logarithm


@dataclass(frozen=True)
class Grid:
    r"""A square grid of points :math:`[-e, e]^2`, and probabilities over its cells.

    A table of probabilities has shape ``(size, size)``, rows by the second coordinate, and sums to one.

    Args:
        extent: e.
        size: Points along each side.

    Raises:
        ValueError: For a non-positive extent or fewer than two points.

    Example:
        >>> grid = Grid(extent=6.0, size=121)
        >>> table = grid.probabilities(lambda x: -0.5 * x.square().sum(-1))
        >>> round(grid.log_normaliser(lambda x: -0.5 * x.square().sum(-1)), 4)  # log 2π
        1.8379
    """

    extent: float = 4.5
    size: int = 361

    def __post_init__(self) -> None:
        """Check both values."""
        if not self.extent > 0.0 or self.size < 2:
            raise ValueError(f"extent={self.extent} must be positive, and size={self.size} at least 2.")

    @property
    def cell(self) -> float:
        """Side of a cell."""
        return 2.0 * self.extent / (self.size - 1)

    def points(self) -> Tensor:
        """Return the points, shape ``(size * size, 2)``."""
        side = torch.linspace(-self.extent, self.extent, self.size)
        second, first = torch.meshgrid(side, side, indexing="ij")
        return torch.stack([first, second], -1).view(-1, 2)

    def _log_values(self, log_density: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.no_grad():
            return torch.cat([log_density(part).cpu() for part in self.points().split(20_000)]).double()

    def probabilities(self, log_density: Callable[[Tensor], Tensor]) -> Tensor:
        r"""Return the cells' probabilities under a density known up to a factor, :math:`q_c \propto e^{\log q(x_c)}`.

        Args:
            log_density: Maps points ``(N, 2)`` to log-densities ``(N,)``, in nats: −E(x) of an energy model.
        """
        return self._log_values(log_density).softmax(0).view(self.size, self.size)

    def log_normaliser(self, log_density: Callable[[Tensor], Tensor]) -> float:
        r"""Return log ∫ exp(log_density) over the square, in nats: log Z of an energy model for −E(x).

        .. math:: \log Z \approx \log \sum_c e^{-E(x_c)} + 2 \log h

        with the side h of a cell.
        """
        return float(self._log_values(log_density).logsumexp(0)) + 2.0 * math.log(self.cell)

    def histogram(self, x: Tensor) -> Tensor:
        """Return the shares of samples ``(N, 2)`` that are nearest to each point; those outside the grid are left out.

        Raises:
            ValueError: If none lies in the grid.
        """
        index = ((x.double() + self.extent) / self.cell).round().long()
        index = index[((index >= 0) & (index < self.size)).all(-1)]
        if not len(index):
            raise ValueError(f"None of {len(x)} samples lies in the grid [-{self.extent}, {self.extent}]².")
        counts = torch.bincount(index[:, 1] * self.size + index[:, 0], minlength=self.size**2).double()
        return (counts / counts.sum()).view(self.size, self.size)

    def smooth(self, table: Tensor, scale: float) -> Tensor:
        """Return a table after adding Gaussian noise of standard deviation ``scale`` to the point that it describes."""
        reach = math.ceil(4.0 * scale / self.cell)
        offsets = torch.arange(-reach, reach + 1, dtype=torch.float64) * self.cell
        kernel = (-0.5 * (offsets / scale).square()).softmax(0).view(1, 1, -1)
        rows = torch.nn.functional.conv1d(table.double().unsqueeze(1), kernel, padding=reach).squeeze(1)
        columns = torch.nn.functional.conv1d(rows.T.unsqueeze(1), kernel, padding=reach).squeeze(1).T
        return columns / columns.sum()

    @staticmethod
    def total_variation(p: Tensor, q: Tensor) -> float:
        """Return ½ Σ|p − q|, from 0 (equal) to 1 (nothing in common)."""
        return float(0.5 * (p - q).abs().sum())

    @staticmethod
    def kl_divergence(p: Tensor, q: Tensor) -> float:
        """Return KL(p ‖ q) in nats."""
        kept = p > _SMALL
        return float((p[kept] * (p[kept].log() - q[kept].clamp_min(torch.finfo(q.dtype).tiny).log())).sum())
