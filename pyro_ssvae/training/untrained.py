"""A check before training: whether the losses depend on parameters that nothing trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pyro
from torch import Tensor, nn

from pyro_ssvae._warnings import warn

if TYPE_CHECKING:
    from pyro_ssvae.objectives import Loss, Objective, ParameterGroup

_MOST_NAMES = 5  # of parameters in a message


def warn_untrained(
    objective: Objective, groups: Mapping[str, ParameterGroup], losses: Mapping[str, Loss], *, rank: int = 0
) -> None:
    """Warn, in the first process, of parameters that the losses depend on and that belong to no group of the objective.

    ``ValueError`` if all parameters of a group are frozen, or its loss depends on frozen ones alone.
    """
    for name, group in groups.items():
        if not any(parameter.requires_grad for parameter in group.parameters):
            raise ValueError(
                f"All parameters of the group {name!r} are frozen; call requires_grad_(True) of some to train them."
            )
    for name, loss in losses.items():
        if not loss.total.requires_grad:
            raise ValueError(
                f"The loss of the group {name!r} depends on no parameter that is trained; call requires_grad_(True) of "
                "some that it depends on."
            )
    if rank:
        return
    trained = {id(parameter) for group in groups.values() for parameter in group.parameters}
    names = {id(parameter): f"pyro.param {name!r}" for name, parameter in pyro.get_param_store().named_parameters()}
    names |= {id(parameter): name for name, parameter in objective.module.named_parameters()}
    found: list[str] = []
    for leaf in _leaves([loss.total for loss in losses.values()]):
        if id(leaf) not in trained and (isinstance(leaf, nn.Parameter) or id(leaf) in names):
            found.append(names.get(id(leaf), f"one of shape {tuple(leaf.shape)} that the module does not hold"))
    if found:
        more = f" and {len(found) - _MOST_NAMES} more" if len(found) > _MOST_NAMES else ""
        told = ", ".join(sorted(found)[:_MOST_NAMES]) + more
        warn(
            f"The loss depends on parameters that are not trained: {told}. Make them part of the module, in one of the "
            "groups of the objective, or freeze them by requires_grad_(False)."
        )


def _leaves(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the tensors at which the gradients of others end."""
    found: list[Tensor] = []
    waiting = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            found.append(node.variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return found
