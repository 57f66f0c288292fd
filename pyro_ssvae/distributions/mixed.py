"""A likelihood that gives the columns of a table different distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_ssvae.distributions.likelihoods import Likelihood

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

    def forward(self, params: Tensor, event_dim: int) -> TorchDistribution:
        """Return the joint distribution of a row of the table.

        The raw numbers have shape ``(*batch, P, D)``, P the largest ``num_params`` of a part; the other parts use the
        first ones. Another number of columns than in the parts raises ``ValueError``.
        """
        columns = sum(map(len, self.columns))
        if event_dim != 1 or params.shape[-1] != columns:
            found = f"events with {event_dim} dimension(s), the last of size {params.shape[-1]}"
            raise ValueError(f"Mixed is for rows of {columns} columns; got {found}.")
        parts = zip(self.columns, self._likelihoods(), strict=True)
        return _Joint([part(params[..., : part.num_params, columns], 1) for columns, part in parts], self.columns)

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
        parts = [{"likelihood": part.name, **part.config()} for part in self._likelihoods()]
        return {"parts": [list(part) for part in zip(self.columns, parts, strict=True)]}

    def _likelihoods(self) -> list[Likelihood]:
        return [cast(Likelihood, part) for part in self.parts]  # the elements of a ModuleList are typed as Module


class _Joint(TorchDistribution):
    """Independent distributions of groups of columns, with equal batch shapes and values in the order of the table."""

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector

    def __init__(self, distributions: Sequence[TorchDistribution], columns: Sequence[Sequence[int]]) -> None:
        self.has_rsample = all(part.has_rsample for part in distributions)
        self.distributions, self.columns = list(distributions), [list(group) for group in columns]
        order = [column for group in self.columns for column in group]
        self._positions = sorted(range(len(order)), key=order.__getitem__)  # column -> position among the groups
        super().__init__(self.distributions[0].batch_shape, torch.Size((len(order),)), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Joint:
        return _Joint([part.expand(batch_shape) for part in self.distributions], self.columns)

    def log_prob(self, value: Tensor) -> Tensor:
        groups = [value[..., group] for group in self.columns]
        parts = [part.log_prob(group) for part, group in zip(self.distributions, groups, strict=True)]
        return torch.stack(torch.broadcast_tensors(*parts)).sum(0)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self._join([part.sample(sample_shape) for part in self.distributions])

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._join([part.rsample(sample_shape) for part in self.distributions])

    @property
    def mean(self) -> Tensor:
        return self._join([part.mean for part in self.distributions])

    @property
    def variance(self) -> Tensor:
        return self._join([part.variance for part in self.distributions])

    def _join(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, -1)[..., self._positions]
