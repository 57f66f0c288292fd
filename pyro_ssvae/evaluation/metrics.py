"""Metrics of a trained model on test examples, dispatched by the class of the model."""

from __future__ import annotations

import warnings
from functools import singledispatch
from typing import Any

import numpy as np

from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.models import SemiSupervisedModel
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.models.diagnostics import class_control, energy_diagnostics, latent_diagnostics
from pyro_ssvae.models.m1 import M1
from pyro_ssvae.objectives import Objective

__all__ = ["evaluate_model", "warn_about_class_prior"]

_NUM_CONTROLLED = 1000  # test examples behind class control
_LEAST_ROWS, _MOST_ROWS = 100, 5000  # unlabelled rows behind estimated shares of the classes
_LEAST_LABELS = 5  # of each class, on average
_APART = 0.2  # total variation from which shares contradict a class prior


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
    warn_about_class_prior(model, data, data.class_names)
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


def warn_about_class_prior(model: SemiSupervisedModel, data: SemiSupervisedData, names: Any) -> None:
    """Warn if the unlabelled rows of a table contradict the class prior of a model.

    Their shares of the classes are estimated by a logistic regression on the labels alone, because predictions of the
    model follow its prior. Both its mean prediction and the shares of predicted classes must differ from the prior.

    Args:
        model: The trained model.
        data: Its data.
        names: Names of the classes for the message, by their code.
    """
    known, unknown = (index[:: 1 + len(index) // _MOST_ROWS] for index in (data.labelled_index, data.unlabelled_index))
    number = model.num_classes
    if data.x.dim() > 2 or len(unknown) < _LEAST_ROWS or len(known) < _LEAST_LABELS * number:
        return
    y = data.y[known].numpy()
    if len(np.unique(y)) < number:
        return
    from sklearn.linear_model import LogisticRegression  # takes a second to import

    like = next(model.parameters())
    of_labelled, of_others = (
        model._classifier_input(data.x[index].to(like) / data.scale).detach().flatten(1).cpu().numpy()
        for index in (known, unknown)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-learn, about convergence
        found = LogisticRegression(max_iter=1000).fit(of_labelled, y).predict_proba(of_others)
    prior, counted = model.class_prior.mean().detach().cpu().numpy(), np.bincount(found.argmax(1), minlength=number)
    gaps = [shares - prior for shares in (found.mean(0), counted / len(found))]
    if min(np.abs(gap).sum() / 2.0 for gap in gaps) > _APART:
        k = int(gaps[0].argmin())
        warnings.warn(
            f"The class prior gives class {names[k]} a share of {prior[k]:.0%}, and a classifier of the labels alone "
            f"{found[:, k].mean():.0%} of the unlabelled rows. If the prior is wrong, many predictions are: give known "
            "shares (class_prior=[...] of an estimator, FixedClassPrior of M2), or learn them (class_prior='map', "
            "--class-prior map).",
            UserWarning,
            stacklevel=4,
        )
