r"""Metrics of a trained model on test examples, by its class; log-likelihood and p(y|x) by importance sampling.

With draws :math:`z_i \sim q(z \mid x, y)` and weights :math:`w_{yi} = p(x, z_i \mid y) / q(z_i \mid x, y)`,

.. math::

    p(x) \approx \frac{1}{k} \sum_{i=1}^k W_i, \qquad W_i = \sum_y p(y)\, w_{yi},

where the sum over classes is exact (Burda, Grosse, Salakhutdinov, 2015, https://arxiv.org/abs/1509.00519, appendix D,
for a model without classes). The estimate of p(x) is unbiased; that of log p(x) is a lower bound on average, which
rises with k.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pyro_ssvae._arguments import checked
from pyro_ssvae._arrays import as_examples
from pyro_ssvae._warnings import warn
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.preparation import rescale
from pyro_ssvae.data.storage import sample_rows
from pyro_ssvae.distributions.priors import cache_prior
from pyro_ssvae.evaluation.importance import importance_log_weights
from pyro_ssvae.models import SemiSupervisedModel
from pyro_ssvae.models.base import as_input, fork_random_state
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.models.diagnostics import (
    NUM_DIAGNOSED,
    class_control,
    energy_diagnostics,
    iterate_batches_for,
    latent_diagnostics,
)
from pyro_ssvae.models.m1 import M1
from pyro_ssvae.objectives import Objective

_NUM_CONTROLLED = 1000  # test examples behind class control
_LEAST_ROWS, _MOST_ROWS = 100, 5000  # unlabelled rows behind estimated shares of the classes
_LEAST_LABELS = 5  # of each class, on average
_FOLDS = 5  # of the labels that are left out
_APART = 0.2  # total variation from which shares contradict a class prior
_CHECK_BATCH_SIZE = 4096
_SAMPLES_AT_A_TIME = 100  # decoded together; fewer where a single example with so many is too large
_MAX_ELEMENTS = 2_000_000  # elements of the widest layer in one pass: 8 MB, so that memory stays small


@singledispatch
def evaluate_model(
    model: Any, objective: Objective, data: SemiSupervisedData, *, binarisation: str = "none", seed: int = 0
) -> dict[str, Any]:
    """Return what is reported of a model on test examples besides its error; ``None`` where it is not defined.

    Register a function for a model class of your own to report more::

        @evaluate_model.register
        def _(model: MyModel, objective, data, *, binarisation="none", seed=0): ...

    ``binarisation`` is as in training, and ``seed`` that of binarisation and draws.

    Returns:
        ``bound``: the mean bound on log p(x), in nats per example; more for the models of this package.
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
    found, latents = _test_bound(model, objective, data, **options), diagnose_latents(model, data)
    return {**found, "kl_z": None, "active_units": None, **(latents if found["bound"] is not None else {})}


@evaluate_model.register
def _(model: DDGM, objective: Objective, data: SemiSupervisedData, *, seed: int = 0, **options: Any) -> dict[str, Any]:
    if not len(data.x_test):
        return {}
    return dict(energy_diagnostics(model, data.x_test, scale=data.scale, seed=seed))


def diagnose_latents(model: M1, data: SemiSupervisedData) -> dict[str, float]:
    """Return what the latents of M1 carry, of test examples, or of training without any; warn if no latent varies."""
    x = data.x_test if len(data.x_test) else sample_rows(data.x)[:NUM_DIAGNOSED]
    latents = latent_diagnostics(model, x, scale=data.scale)
    if latents.get("active_units") == 0:
        warn(
            f"Posterior collapse: none of the {model.latent_dim} latents varies between examples, so they carry "
            "nothing. Try another likelihood ('bernoulli' suits zeros and ones, 'auto' chooses for a table), more "
            "steps, or training with kl_warmup=0.5. If no value of an example depends on the others, there is nothing "
            "to learn."
        )
    return latents


def warn_about_class_prior(model: SemiSupervisedModel, data: SemiSupervisedData, names: Any) -> None:
    """Warn if the unlabelled rows of a table contradict the class prior of a model; ``names`` are those of the classes.

    Their shares of the classes are estimated by a logistic regression on the labels alone, because predictions of the
    model follow its prior. Its mean prediction, with and without correction by the mean error of predictions for labels
    left out, and the shares of predicted classes must all differ from the prior.
    """
    known, unknown = (index[:: 1 + len(index) // _MOST_ROWS] for index in (data.labelled_index, data.unlabelled_index))
    number = model.num_classes
    if data.x.dim() > 2 or len(unknown) < _LEAST_ROWS or len(known) < _LEAST_LABELS * number:
        return
    y = data.y[known].numpy()
    if (fewest := int(np.bincount(y, minlength=number).min())) < 2:
        return
    from sklearn.linear_model import LogisticRegression  # takes a second to import
    from sklearn.model_selection import cross_val_predict

    like = next(model.parameters())
    of_labelled, of_others = (
        model._classifier_input(data.x[index].to(like) / data.scale).detach().flatten(1).cpu().numpy()
        for index in (known, unknown)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-learn, about convergence
        classifier = LogisticRegression(max_iter=1000)
        left_out = cross_val_predict(classifier, of_labelled, y, cv=min(_FOLDS, fewest), method="predict_proba")
        found = classifier.fit(of_labelled, y).predict_proba(of_others)
    prior, counted = model.class_prior.mean().detach().cpu().numpy(), np.bincount(found.argmax(1), minlength=number)
    error = left_out.mean(0) - np.bincount(y, minlength=number) / len(y)
    gaps = [shares - prior for shares in (found.mean(0), found.mean(0) - error, counted / len(found))]
    if min(np.abs(gap).sum() / 2.0 for gap in gaps) > _APART:
        k = int(gaps[0].argmin())
        warn(
            f"The class prior gives class {names[k]} a share of {prior[k]:.0%}, and a classifier of the labels alone "
            f"{found[:, k].mean():.0%} of the unlabelled rows. If the prior is wrong, many predictions are: in Python "
            "give M2 or an estimator the known shares, or learn them by class_prior='map'."
        )


@dataclass(frozen=True)
class LogLikelihood:
    r"""Estimates of log p(x) per example, in nats; on the CPU, in float64.

    Attributes:
        log_px: log p(x), shape ``(N,)``; of the observed values where some are missing or masked.
        standard_error: Standard error of ``log_px``, from the variance of the weights, shape ``(N,)``; NaN for a single
            draw.
        effective_samples: Effective sample size :math:`(\sum W)^2 / \sum W^2`, shape ``(N,)``, of ``num_samples``.
        log_px_given_y: log p(x|y), shape ``(N, K)``; ``None`` for a model without classes, with a p(y|z) or a masked y.
        log_prior: log p(y) of each example, shape ``(N, K)``; ``None`` for a model without classes, with a p(y|z),
            whose mean over p(z) is not computed, or a masked y.
        num_samples: Draws per example and class.
        log_joint: log p(x, y), shape ``(N, K)``; ``None`` for a model without classes.
    """

    log_px: Tensor
    standard_error: Tensor
    effective_samples: Tensor
    log_px_given_y: Tensor | None
    log_prior: Tensor | None
    num_samples: int
    log_joint: Tensor | None = None

    @property
    def mean(self) -> float:
        """Mean of log p(x) over the examples."""
        return float(self.log_px.mean())

    @property
    def mean_error(self) -> float:
        """Standard error of :attr:`mean` due to sampling z; the choice of the examples is not included."""
        return float(self.standard_error.square().sum().sqrt()) / len(self.log_px)

    def class_posterior(self) -> Tensor:
        """Return p(y|x) ∝ p(x, y), shape ``(N, K)``.

        Raises:
            ValueError: For a model without classes.
        """
        if self.log_joint is None:
            raise ValueError("The model has no classes, so there is no p(y|x).")
        return self.log_joint.softmax(-1)


@checked
def log_likelihood(
    module: nn.Module,
    x: ArrayLike,
    *,
    num_samples: int = 1000,
    scale: float | None = None,
    binarisation: str = "none",
    seed: int = 0,
    common_draws: bool = False,
) -> LogLikelihood:
    """Estimate log p(x) by importance sampling from the guide, in constant memory.

    Values masked by ``poutine.mask`` in the model are left out: p(x) is that of the others, and 1 where all are masked.

    Args:
        module: A module with methods ``model`` and ``guide``; a class enumerated in the guide is summed out exactly. A
            random class prior is fixed at its mean.
        x: Examples with shape ``(N, *event_shape)``, as stored: a tensor, an array, a table or nested lists.
        num_samples: Draws per example (and class).
        scale: Divides ``x``; if ``None``, integers are divided by the ``data_scale`` of the model.
        binarisation: As in training; ``"dynamic"`` and ``"static"`` both draw each value once, fixed by the seed.
        seed: Seed of the binarisation and the draws; the caller's random state is left as it was.
        common_draws: Whether all examples share their draws (before these are moved and scaled by q(z|x)), so that the
            estimate for an example does not depend on the others. The errors are then not independent, and
            :attr:`LogLikelihood.mean_error` does not hold. Where q(z|x) is not a diagonal Gaussian, draws stay
            independent, and the estimate depends on which examples are passed together.

    Raises:
        TypeError: For a :class:`pyro_ssvae.DDGM`, which has no q(z|x).
        ValueError: If there are no examples, they have another shape than the model's or lie outside the domain of its
            likelihood, or a number is not positive. Also for sites of model or guide that ``poutine.scale`` scales, and
            for a latent site that ``poutine.mask`` masks in only one of them.
        StaticELBOError: For classes that cannot be summed out, latents that all examples share, and sites that differ
            between examples outside of the plate over them.
    """
    if hasattr(module, "energy"):
        raise TypeError(
            "log_likelihood weights draws of q(z|x), and a DDGM has none. Its density is exp(-energy(x)) / Z; for"
            " points in the plane evaluation.annealed_log_normaliser(ddgm.energy_net, ...) estimates log Z."
        )
    if hasattr(module, "data_scale"):
        x, scale = as_input(module, x, scale)
    else:
        x, scale = x if isinstance(x, Tensor) else as_examples(x), 1.0 if scale is None else scale
    if len(x) == 0:
        raise ValueError("The likelihood of zero examples is not defined; pass at least one.")
    if binarisation == "none" and hasattr(module, "check_examples"):  # zeros and ones suit every likelihood
        _check_examples(module, x, scale)
    options: dict[str, Any] = {"scale": scale, "binarisation": binarisation, "seed": seed}
    at_a_time, batch_size = _choose_sizes(module, x, num_samples, options)
    joined: dict[str, Any] = {}  # allocated once: small tensors kept from each batch would fragment the memory
    done = 0
    with (
        fork_random_state(module, seed),
        torch.inference_mode(),
        pyro.validation_enabled(False),
        cache_prior(getattr(module, "prior", None)),
    ):
        for batch in iterate_batches_for(module, x, batch_size=batch_size, **options):
            if common_draws:
                torch.manual_seed(seed)
            found = _estimate_batch(module, batch, num_samples, at_a_time, common_draws)
            for name, values in vars(found).items():
                if isinstance(values, Tensor):
                    whole = joined.setdefault(name, values.new_empty(len(x), *values.shape[1:]))
                    whole[done : done + len(batch)] = values
            done += len(batch)
    return replace(found, **joined)


def _check_examples(module: Any, x: Tensor, scale: float) -> None:
    """Raise ``ValueError`` for examples that the model cannot have been trained on."""
    try:
        for batch in x.split(_CHECK_BATCH_SIZE):
            module.check_examples(rescale(batch, scale))
    except ValueError as error:
        raise ValueError(f"x / scale, with scale={scale:g}, is not what the model takes. {error}") from error


def _choose_sizes(module: nn.Module, x: Tensor, num_samples: int, options: dict[str, Any]) -> tuple[int, int]:
    """Return how many draws, and how many examples, are computed together; the random state stays as it was."""
    with fork_random_state(module, options["seed"]), torch.inference_mode(), pyro.validation_enabled(False):
        width = _width(module, next(iterate_batches_for(module, x[:1], **options)))
    at_a_time = max(1, min(num_samples, _SAMPLES_AT_A_TIME, _MAX_ELEMENTS // width))
    return at_a_time, max(1, _MAX_ELEMENTS // (width * at_a_time))


def _width(module: nn.Module, x: Tensor) -> int:
    """Return how many elements each draw for one example adds to the widest layer, all classes together.

    It is the difference between two draws and one: layers that see only the example, as a classifier, do not count.
    """
    sizes: list[list[int]] = []

    def record(layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes[-1].append(output.numel())

    hooks = [part.register_forward_hook(record) for part in module.modules()]
    try:
        for num_samples in (1, 2):
            sizes.append([])
            importance_log_weights(module, x, num_samples)
    finally:
        for hook in hooks:
            hook.remove()
    num_params = getattr(getattr(module, "likelihood", None), "num_params", 1)
    observation = (getattr(module, "num_classes", None) or 1) * max(1, num_params * x.numel())
    return max(observation, *(two - one for one, two in zip(*sizes, strict=False)), 1)


def _estimate_batch(
    module: nn.Module, x: Tensor, num_samples: int, at_a_time: int, common_draws: bool
) -> LogLikelihood:
    """Return the estimates for one batch of examples, from ``at_a_time`` draws at a time."""
    sums: list[Tensor] = []  # log ΣW and log ΣW², (B,), and with classes log Σw, (K, B)
    given_y = joint = log_py = None
    for start in range(0, num_samples, at_a_time):
        log_weights, log_py = importance_log_weights(module, x, min(at_a_time, num_samples - start), common_draws)
        log_weights = log_weights.double()
        by_class = [log_weights.logsumexp(1)] if log_weights.dim() == 3 else []
        if log_weights.dim() == 3:  # (K, S, B)
            log_weights = (log_weights if log_py is None else log_weights + log_py.double().unsqueeze(1)).logsumexp(0)
        found = [log_weights.logsumexp(0), (2.0 * log_weights).logsumexp(0), *by_class]
        sums = [*map(torch.logaddexp, sums, found)] if sums else found
    log_k = math.log(num_samples)
    first, second, *by_class = sums
    if by_class:
        joint = (by_class[0] - log_k).T.cpu()  # (B, K)
    if joint is not None and log_py is not None:
        log_py = log_py.double().T.cpu()
        given_y, joint = joint, joint + log_py
    second_moment = (second - 2.0 * first + log_k).exp()  # E[W²] / E[W]²
    variance = (second_moment - 1.0).clamp_min(0.0)  # of W / E[W], over the draws
    no_error = torch.full_like(variance, torch.nan)
    return LogLikelihood(
        log_px=(first - log_k).cpu(),
        standard_error=((variance / (num_samples - 1)).sqrt() if num_samples > 1 else no_error).cpu(),
        effective_samples=(2.0 * first - second).exp().cpu(),
        log_px_given_y=given_y,
        log_prior=log_py,
        log_joint=joint,
        num_samples=num_samples,
    )
