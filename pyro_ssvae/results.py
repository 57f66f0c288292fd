"""The report of a finished run: ``result.json`` and the figures."""

from __future__ import annotations

import copy
import math
import platform
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from pyro_ssvae._arguments import checked
from pyro_ssvae._ranks import launched
from pyro_ssvae._warnings import warn
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.storage import space
from pyro_ssvae.evaluation import log_likelihood
from pyro_ssvae.evaluation.metrics import evaluate_model
from pyro_ssvae.models import Model
from pyro_ssvae.models.base import get_device, seeded
from pyro_ssvae.models.diagnostics import classification_error, predict_batches
from pyro_ssvae.networks.variational import evaluation_mode
from pyro_ssvae.objectives import Objective
from pyro_ssvae.objectives.bounds import SemiSupervisedELBO
from pyro_ssvae.training.loop import FitResult, fit
from pyro_ssvae.training.run_folder import RunFolder

_ALONE_STEPS = 300  # of a classifier on the labels alone
_ALONE_LABELS = 5000  # beyond which there is nothing to find out
_ENOUGH = 50  # validation labels: an error of 10 % has a standard error of 4 points
_FOLDS = 3
_OF_THE_LOSS = ("loss", "losses", "updates", "groups")


@checked
def report(
    objective: Objective, data: SemiSupervisedData, run: FitResult, *, figures: bool = True, num_samples: int = 0
) -> dict[str, Any]:
    """Evaluate a finished run on the test examples, once, and write ``result.json`` and ``figures/`` to its folder.

    The seed of the run also fixes the binarisation and draws behind the metrics.

    A semi-supervised fit is compared with the same classifier trained on the labels alone, for up to 300 steps, unless
    its loss is the caller's own, or its classifier frozen. With 50 labelled validation examples or more, the fit is
    worse if it errs on more of them by two standard errors of that difference, which is one of paired predictions
    (McNemar's test). With fewer, the error of the labels alone comes from stratified cross-validation on the training
    labels, and the fit is worse if both classifiers disagree on more unlabelled examples than twice the upper end of
    the 95 % interval of that error; with 10 labels only a fit that has failed is found.

    Args:
        objective: The trained objective, with the weights that validation chose.
        data: The data; without test or validation examples the corresponding entries are ``None``.
        run: What :func:`pyro_ssvae.fit` returned.
        figures: Whether to draw figures.
        num_samples: Importance samples per test example (and class) behind ``test/log_likelihood``; 0 for none.

    Returns:
        The result, as the documentation lists it (*The run folder and the result file*). Errors are fractions:
        ``test/error`` and ``val/error`` with the weights that validation chose, ``test/error_last`` and
        ``val/error_last`` with those of the last step, for which no validation label was used. ``test/bound`` is the
        mean bound of test examples in nats per example, with classes summed out.

    Of several processes, only the first evaluates and writes; the others return an empty dictionary.

    Warns:
        UserWarning: If the latents of a model without classes do not vary between examples (posterior collapse), a
            semi-supervised fit is worse than its classifier on the labels alone, or the unlabelled rows of a table have
            other shares of the classes than the class prior, by a logistic regression on the labels.
    """
    if launched()[0]:
        return {}
    model: Any = objective.module
    drawn: dict[str, Any] = {"binarisation": run.config.binarisation, "seed": run.config.seed}
    found = evaluate_model(model, objective, data, **drawn)
    result: dict[str, Any] = {
        **_describe(objective, data, run),
        **(_measure_errors(model, data, run) if getattr(model, "num_classes", None) is not None else {}),
        **_compare_with_labels_alone(objective, data, run),
        "best_step": run.best_step,
        **{f"test/{name}": value for name, value in found.items()},
        **(_estimate_likelihood(model, data, num_samples, drawn) if num_samples and found.get("bound") else {}),
        **_describe_run(model, run),
    }
    if run.folder is not None:
        folder = RunFolder(run.folder)
        folder.check()
        if figures:
            from pyro_ssvae.plots.figures import save_figures  # imports matplotlib

            save_figures(model, data, folder.metrics, folder.figures)
        folder.write_result(result)  # last: a folder with a result is complete
    return result


def _describe(objective: Objective, data: SemiSupervisedData, run: FitResult) -> dict[str, Any]:
    """Return what was trained, on what."""
    model = objective.module
    parts = {name: getattr(model, name, None) for name in ("likelihood", "prior", "class_prior")}
    total = run.config.total_steps(round(run.steps / run.epochs)) if run.steps else 1  # a run may end early
    weights = [
        run.config.kl_weight_at(int(tenth * run.steps / 10), total, len(data.x), schedule=objective.kl_schedule)
        for tenth in range(10)
    ]
    return {
        "model": type(model).__name__,
        "data": data.name,
        "num_labels": data.num_labelled,
        "num_unlabelled": data.num_unlabelled,
        **({} if data.feature_source is None else {"features": data.feature_source.config()}),
        "seed": run.config.seed,
        "regularisers": objective.regularisers,
        "objective": objective.config(),
        "loss": objective.describe(),
        **{name: getattr(part, "name", type(part).__name__) for name, part in parts.items() if part is not None},
        "kl_weight": weights,
        "binarisation": run.config.binarisation,
    }


def _measure_errors(model: Any, data: SemiSupervisedData, run: FitResult) -> dict[str, float | None]:
    chosen = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    errors = {}
    for suffix, weights in (("", chosen), ("_last", run.last_weights)):
        model.load_state_dict(weights)
        for name, x, y in (("test", data.x_test, data.y_test), ("val", data.x_validation, data.y_validation)):
            errors[f"{name}/error{suffix}"] = classification_error(model, x, y, scale=data.scale)
    model.load_state_dict(chosen)
    return errors


def _compare_with_labels_alone(objective: Objective, data: SemiSupervisedData, run: FitResult) -> dict[str, Any]:
    """Return errors of the classifier on the labels alone, and whether the fit is worse, of which it warns."""
    if not isinstance(objective, SemiSupervisedELBO) or not (objective.bound_weight or objective.consistency):
        return {}
    if any(getattr(type(objective), name) is not getattr(SemiSupervisedELBO, name) for name in _OF_THE_LOSS):
        return {}  # a loss of the caller's own may need unlabelled examples
    if data.num_labelled > _ALONE_LABELS or not data.num_unlabelled or len(data.y.unique()) < 3:  # two classes and -1
        return {}
    if not _trains_classifier(copy.deepcopy(objective.module), data):
        return {}
    print(f"Training the classifier on the {data.num_labelled} labels alone, for comparison.", file=sys.stderr)
    model, alone = objective.module, _train_on_labels(objective, data, run)
    x, y = data.known_validation
    enough = len(x) >= _ENOUGH
    if enough:
        wrong, wrong_alone = _predict(model, x, data) != y, _predict(alone, x, data) != y
        error, excess = float(wrong_alone.double().mean()), float((wrong.int() - wrong_alone.int()).sum())
        worse = excess > 2.0 * math.sqrt(int((wrong ^ wrong_alone).sum()))
    else:
        error = _cross_validate(objective, data, run)
        x = data.x[data.unlabelled_index[space(0, data.num_unlabelled, _ALONE_LABELS)]]
        apart = float((_predict(model, x, data) != _predict(alone, x, data)).double().mean())
        worse = apart > 2.0 * _upper_end(error, data.num_labelled)
    if worse:
        where = "validation examples" if enough else "the labels, by cross-validation"
        warn(
            f"The fit is worse than the same classifier on the {data.num_labelled} labels alone, which errs on "
            f"{error:.1%} of {where}. Lower bound_weight (--bound-weight 0.1; with 0 the classifier is left), or "
            "change the regularisers."
        )
    return {
        "test/error_labels_alone": classification_error(alone, data.x_test, data.y_test, scale=data.scale),
        "val/error_labels_alone": error if math.isfinite(error) else None,
        "worse_than_labels_alone": worse,
    }


def _trains_classifier(model: Any, data: SemiSupervisedData) -> bool:
    """Whether not all parameters that q(y|x) depends on are frozen."""
    example = next(model.parameters()).new_zeros(1, *data.event_shape)
    with seeded(0, get_device(model)), evaluation_mode(model), torch.enable_grad():
        return model.classify(example).requires_grad


def _train_on_labels(objective: SemiSupervisedELBO, data: SemiSupervisedData, run: FitResult) -> Any:
    """Return a copy of the model whose classifier is trained anew, on the labels alone."""
    known = data.labelled_index
    alone = copy.deepcopy(objective)
    alone.alpha, alone.bound_weight, alone.consistency = 1.0, 0.0, None
    alone.num_labelled, alone.num_unlabelled = len(known), 0
    with seeded(run.config.seed or 0, get_device(alone)):
        for part in alone.modules():
            reset: Any = getattr(part, "reset_parameters", None)  # all layers of PyTorch have it
            if reset is not None and any(parameter.requires_grad for parameter in part.parameters(recurse=False)):
                reset()
    none = {f"{name}_validation": getattr(data, f"{name}_validation")[:0] for name in "xy"}
    labels = replace(data, x=data.x[known], y=data.y[known], split=None, **none)
    steps, precision = min(run.steps, _ALONE_STEPS), run.config.precision
    settings = replace(
        run.config, max_steps=steps, max_epochs=None, max_minutes=None, patience=None, evaluate_every=None,
        kl_weight=1.0, ema_decay=0.0, compile="eager", device=str(get_device(alone)),
        precision=precision if precision == "64-true" else "32-true",
    )  # fmt: skip
    fit(alone, labels, settings, progress=False, devices=1)
    return alone.module


def _cross_validate(objective: SemiSupervisedELBO, data: SemiSupervisedData, run: FitResult) -> float:
    """Return the error of the classifier on labels that it was not trained on; NaN with one label of a class."""
    from sklearn.model_selection import StratifiedKFold  # takes a second to import

    known = data.labelled_index
    y = data.y[known]
    folds = min(_FOLDS, int(y.unique(return_counts=True)[1].min()))
    if folds < 2:
        return math.nan
    wrong = 0
    for _, held_out in StratifiedKFold(folds, shuffle=True, random_state=run.config.seed).split(y, y):
        hidden, index = data.y.clone(), known[held_out]
        hidden[index] = -1
        alone = _train_on_labels(objective, replace(data, y=hidden, split=None), run)
        wrong += int((_predict(alone, data.x[index], data) != data.y[index]).sum())
    return wrong / len(y)


def _upper_end(error: float, count: int) -> float:
    """Return the upper end of the 95 % interval of an error on ``count`` examples (Wilson, 1927)."""
    square = 1.96**2 / count
    return (error + square / 2 + math.sqrt(square * (error * (1 - error) + square / 4))) / (1 + square)


def _predict(model: Any, x: Tensor, data: SemiSupervisedData) -> Tensor:
    return predict_batches(model, x, scale=data.scale).argmax(-1)


def _estimate_likelihood(
    model: Model, data: SemiSupervisedData, num_samples: int, drawn: dict[str, Any]
) -> dict[str, float | None]:
    """Return the importance-sampling estimate of log p(x) of test examples, in nats."""
    started = time.perf_counter()
    estimate = log_likelihood(model, data.x_test, num_samples=num_samples, scale=data.scale, **drawn)
    return {
        "test/log_likelihood": estimate.mean,
        "test/log_likelihood_error": estimate.mean_error if num_samples > 1 else None,
        "test/log_likelihood_samples": num_samples,
        "test/effective_samples": float(estimate.effective_samples.median()),
        "test/log_likelihood_seconds": round(time.perf_counter() - started, 1),
    }


def _describe_run(model: Model, run: FitResult) -> dict[str, Any]:
    """Return how long training took, and on what."""
    device = get_device(model)
    is_cuda = device.type == "cuda"
    return {
        "train_seconds": round(run.train_seconds, 1),
        "epochs": round(run.epochs, 3),
        "steps": run.steps,
        "stopped_by": run.stopped_by,
        "precision": run.config.precision,
        "step_mode": run.step_mode,
        "device": torch.cuda.get_device_name(device) if is_cuda else f"cpu, {torch.get_num_threads()} threads",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("pyro-ssvae", "pyro-ppl", "torch", "torchvision")},
        },
    }
