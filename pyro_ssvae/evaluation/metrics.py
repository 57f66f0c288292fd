"""Metrics of a trained model on test examples, dispatched by the class of the model."""

from __future__ import annotations

import warnings
from functools import singledispatch
from typing import Any

from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.models import SemiSupervisedModel
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.models.diagnostics import class_control, energy_diagnostics, latent_diagnostics
from pyro_ssvae.models.m1 import M1
from pyro_ssvae.objectives import Objective

__all__ = ["evaluate_model"]

_NUM_CONTROLLED = 1000  # test examples behind class control


@singledispatch
def evaluate_model(
    model: Any, objective: Objective, data: SemiSupervisedData, *, binarisation: str = "none", seed: int = 0
) -> dict[str, Any]:
    """Return what is reported of a model on test examples besides its error; ``None`` where it is not defined.

    Register a function for a model class of your own to report more::

        @evaluate_model.register
        def _(model: MyModel, objective, data, *, binarisation="none", seed=0): ...

    Args:
        model: The trained model, whose class decides which function is called.
        objective: The objective it was trained with.
        data: The data.
        binarisation: As in training.
        seed: Of binarisation and draws.

    Returns:
        ``bound``: the mean bound of log p(x), in nats per example; more for the models of this package.
    """
    if not (len(data.x_test) and objective.has_bound):
        return {"bound": None}
    return {"bound": objective.mean_bound(data.x_test, scale=data.scale, binarisation=binarisation, seed=seed)}


_test_bound = evaluate_model.dispatch(object)


@evaluate_model.register
def _(
    model: SemiSupervisedModel, objective: Objective, data: SemiSupervisedData, *, seed: int = 0, **options: Any
) -> dict[str, Any]:
    found = _test_bound(model, objective, data, seed=seed, **options)
    few = data.x_test[:_NUM_CONTROLLED]
    control = None if found["bound"] is None else class_control(model, few, scale=data.scale, seed=seed)
    return {**found, "class_control": control}


@evaluate_model.register
def _(model: M1, objective: Objective, data: SemiSupervisedData, **options: Any) -> dict[str, Any]:
    found = _test_bound(model, objective, data, **options)
    if found["bound"] is None:
        return {**found, "kl_z": None, "active_units": None}
    latents = latent_diagnostics(model, data.x_test, scale=data.scale)
    if latents["active_units"] == 0:
        warnings.warn(
            f"Posterior collapse: none of the {model.latent_dim} latents varies between examples, so the decoder "
            "ignores z. A likelihood of another scale, fewer latents, or --training.kl_warmup 0.2 often help.",
            stacklevel=3,
        )
    return {**found, **latents}


@evaluate_model.register
def _(model: DDGM, objective: Objective, data: SemiSupervisedData, *, seed: int = 0, **options: Any) -> dict[str, Any]:
    if not len(data.x_test):
        return {}
    return dict(energy_diagnostics(model, data.x_test, scale=data.scale, seed=seed))
