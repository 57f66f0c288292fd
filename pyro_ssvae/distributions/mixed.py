"""A likelihood that gives the columns of a table different distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_ssvae.distributions.likelihoods import Likelihood
from pyro_ssvae.distributions.torch_distributions import impute, leave_out_missing

__all__ = ["Mixed"]


class Mixed(Likelihood):
    """Different distributions for different columns of a table, conditionally independent given the latents.

    Args:
        parts: Pairs of column indices and their likelihood. Every column of the table belongs to exactly one.

    Raises:
        ValueError: If there are no parts, a part has no columns, or columns are not 0 to D - 1, each once.
        TypeError: If a part is no :class:`Likelihood`.

    Example:
        >>> from pyro_ssvae.distributions import Categorical, Gaussian, Poisson
        >>> mixed = Mixed([([0, 2], Gaussian()), ([1], Poisson()), ([3], Categorical(levels=4, spacing=1))])
        >>> mixed(torch.zeros(8, mixed.num_params, 4), event_dim=1).event_shape
        torch.Size([4])
    """

    name = "mixed"
    _order: Tensor
    _positions: Tensor

    def __init__(self, parts: Sequence[tuple[Sequence[int], Likelihood]]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("Mixed needs at least one part, for example [([0, 1], Gaussian()), ([2], Poisson())].")
        self.columns = [[int(column) for column in columns] for columns, _ in parts]
        for _, likelihood in parts:
            if not isinstance(likelihood, Likelihood):
                raise TypeError(f"Each part needs a Likelihood, not {type(likelihood).__name__}.")
        flat = sorted(column for columns in self.columns for column in columns)
        if flat != list(range(len(flat))) or not all(self.columns):
            raise ValueError(f"The parts must name each column from 0 up once; got {self.columns}.")
        self.parts = nn.ModuleList(likelihood for _, likelihood in parts)
        self.num_params = max(likelihood.num_params for _, likelihood in parts)
        # On the device, where indexing by lists would copy them from the host in every step.
        order = torch.tensor([column for columns in self.columns for column in columns])
        self.register_buffer("_order", order, persistent=False)
        self.register_buffer("_positions", order.argsort(), persistent=False)  # column -> position among the groups

    def forward(self, params: Tensor, event_dim: int) -> TorchDistribution:
        """Return the joint distribution of a row of the table.

        Args:
            params: Raw numbers with shape ``(*batch, P, D)``, P the largest ``num_params`` of a part; the other parts
                use the first ones.
            event_dim: 1.

        Raises:
            ValueError: If events are no vectors, or have another number of columns than the parts.
        """
        columns = sum(map(len, self.columns))
        if event_dim != 1 or params.shape[-1] != columns:
            raise ValueError(
                f"Mixed is for rows of {columns} columns; got events with {event_dim} dimension(s), the last of size "
                f"{params.shape[-1]}."
            )
        distributions = [
            likelihood(group[..., : likelihood.num_params, :], 1) for group, likelihood in self._split(params)
        ]
        if self.missing:
            distributions = [leave_out_missing(distribution) for distribution in distributions]
        return _Joint(distributions, self._order, self._positions)

    def fit_units(self, x: Tensor, scale: float = 1.0) -> None:
        """Estimate the units of the columns of every part, from examples ``(N, D)``."""
        if x.shape[-1] == len(self._order):  # otherwise `check` will say so
            for columns, likelihood in self._split(x):
                likelihood.fit_units(columns, scale)

    def _standardise(self, x: Tensor) -> Tensor:
        """Return the columns as each part gives them, in the order of the parts if their number differs."""
        parts = [(columns, likelihood._standardise(columns)) for columns, likelihood in self._split(x)]
        if all(columns is seen for columns, seen in parts):
            return x
        joined = torch.cat([seen for _, seen in parts], -1)
        return joined.index_select(-1, self._positions) if joined.shape == x.shape else joined

    def _split(self, x: Tensor) -> zip[tuple[Tensor, Likelihood]]:
        if x.shape[-1] != len(self._order):
            raise ValueError(f"Mixed is for rows of {len(self._order)} columns, the data has {x.shape[-1]} columns.")
        groups = x.index_select(-1, self._order).split([len(group) for group in self.columns], -1)
        return zip(groups, self._likelihoods(), strict=True)

    def check(self, x: Tensor) -> None:
        """Raise ``ValueError``, naming the columns, if the check of a part fails for its columns."""
        for columns, likelihood in zip(self.columns, self._likelihoods(), strict=True):
            if max(columns) >= x.shape[-1]:
                raise ValueError(f"Mixed names column {max(columns)}, the data has {x.shape[-1]} columns.")
            try:
                likelihood.check(x[..., columns])
            except ValueError as error:
                raise ValueError(f"Columns {columns}: {error}") from error

    def config(self) -> dict[str, Any]:
        """Return names and arguments of the parts, JSON-serialisable."""
        return {
            "parts": [
                [columns, {"likelihood": likelihood.name, **likelihood.config()}]
                for columns, likelihood in zip(self.columns, self._likelihoods(), strict=True)
            ]
        }

    def _likelihoods(self) -> list[Likelihood]:
        return [cast(Likelihood, part) for part in self.parts]  # the elements of a ModuleList are typed as Module


class _Joint(TorchDistribution):
    """Independent distributions of groups of columns, with values in the order of the table.

    Args:
        distributions: One per group, with equal batch shapes and event shape ``(columns of the group,)``.
        order: The columns of the groups, one group after the other, with shape ``(D,)``.
        positions: The position of each column in ``order``, with shape ``(D,)``.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    takes_missing = True

    def __init__(self, distributions: Sequence[TorchDistribution], order: Tensor, positions: Tensor) -> None:
        self.has_rsample = all(distribution.has_rsample for distribution in distributions)
        self.distributions, self._order, self._positions = list(distributions), order, positions
        super().__init__(self.distributions[0].batch_shape, order.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Joint:
        expanded = [distribution.expand(batch_shape) for distribution in self.distributions]
        return _Joint(expanded, self._order, self._positions)

    def log_prob(self, value: Tensor) -> Tensor:
        parts = [distribution.log_prob(group) for distribution, group in self._split(value)]
        return torch.stack(torch.broadcast_tensors(*parts)).sum(0)

    def impute(self, weights: Tensor, x: Tensor) -> Tensor:
        return self._join([impute(distribution, weights, group) for distribution, group in self._split(x)])

    def _split(self, x: Tensor) -> zip[tuple[TorchDistribution, Tensor]]:
        sizes = [distribution.event_shape[0] for distribution in self.distributions]
        return zip(self.distributions, x.index_select(-1, self._order).split(sizes, -1), strict=True)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self._join([distribution.sample(sample_shape) for distribution in self.distributions])

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._join([distribution.rsample(sample_shape) for distribution in self.distributions])

    @property
    def mean(self) -> Tensor:
        """Return the means of all columns, with shape ``(*batch, D)``."""
        return self._join([distribution.mean for distribution in self.distributions])

    @property
    def variance(self) -> Tensor:
        """Return the variances of all columns, with shape ``(*batch, D)``."""
        return self._join([distribution.variance for distribution in self.distributions])

    def _join(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, -1).index_select(-1, self._positions)
