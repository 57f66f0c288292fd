"""Objectives with one loss for each group of parameters, stepped in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyro
from torch import Tensor, nn

from pyro_ssvae.data import Batch
from pyro_ssvae.objectives.base import Objective

__all__ = ["AlternatingObjective", "Group", "Turn"]


class Group(NamedTuple):
    """Parameters that step together.

    ``parameters`` are theirs, ``rate`` their learning rate as a multiple of that of the settings, ``betas`` Adam's;
    ``share`` is that of the schedule over which their rate falls; rates and averages of weights then begin once more.
    """

    parameters: list[nn.Parameter]
    rate: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    share: float = 1.0


class Turn(NamedTuple):
    """A step of one group: its name, and the loss of a batch that it then minimises, in nats per row.

    One that ``continues`` the turn before may use what the objective kept of that one's loss, with its graph. What is
    kept must not depend on parameters that have stepped in between.
    """

    group: str
    loss: Callable[[Batch], Tensor]
    continues: bool = False


class AlternatingObjective(Objective):
    """Base class of objectives whose groups of parameters minimise losses of their own, against each other.

    A subclass defines :meth:`groups` and :meth:`turns`. There is no bound: nothing is said about densities.
    """

    bound_weight = 0.0

    def groups(self) -> dict[str, Group]:
        """Return the groups by name."""
        raise NotImplementedError(f"{type(self).__name__} must define groups() -> dictionary of Group.")

    def turns(self, progress: float = 0.0) -> list[Turn]:
        """Return who steps after whom. A loss is computed after the step before it, and sets :attr:`latest`.

        Args:
            progress: Share of the schedule that is done, in [0, 1).
        """
        raise NotImplementedError(f"{type(self).__name__} must define turns(progress) -> list of Turn.")

    def forward(self, batch: Batch) -> dict[str, Tensor]:  # type: ignore[override]  # a loss for each group
        """Return the losses of all groups at the present weights."""
        with pyro.validation_enabled(False):
            return {turn.group: turn.loss(Batch(*batch)) for turn in self.turns()}
