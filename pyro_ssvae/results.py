"""The report of a finished run: ``result.json`` and the figures."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from typing import Any

import torch

from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.evaluation import log_likelihood
from pyro_ssvae.evaluation.metrics import evaluate_model
from pyro_ssvae.models import Model
from pyro_ssvae.models.base import get_device
from pyro_ssvae.models.diagnostics import classification_error
from pyro_ssvae.objectives import Objective
from pyro_ssvae.training.loop import FitResult
from pyro_ssvae.training.run_folder import RunFolder

__all__ = ["report"]


def report(
    objective: Objective,
    data: SemiSupervisedData,
    run: FitResult,
    *,
    figures: bool = True,
    num_samples: int = 0,
) -> dict[str, Any]:
    """Evaluate a finished run on the test examples, once, and write ``result.json`` and ``figures/`` to its folder.

    The seed of the run also fixes the binarisation and draws behind the metrics.

    Args:
        objective: The trained objective, with the weights that validation chose.
        data: The data; without test or validation examples the corresponding entries are ``None``.
        run: What :func:`pyro_ssvae.fit` returned.
        figures: Whether to draw figures.
        num_samples: Importance samples per test example (and class) behind ``test/log_likelihood``; 0 for none.

    Returns:
        The result, as the documentation lists it (*The result file*). Errors are fractions: ``test/error`` and
        ``val/error`` with the weights that validation chose, ``test/error_last`` and ``val/error_last`` with those of
        the last step, for which no validation label was used. ``test/bound`` is the mean bound of test examples in nats
        per example, with classes summed out.

    Warns:
        UserWarning: If the latents of a model without classes do not vary between examples (posterior collapse).
    """
    model: Any = objective.module
    drawn: dict[str, Any] = {"binarisation": run.config.binarisation, "seed": run.config.seed}
    found = evaluate_model(model, objective, data, **drawn)
    result: dict[str, Any] = {
        **_describe(objective, data, run),
        **(_measure_errors(model, data, run) if model.num_classes is not None else {}),
        "best_step": run.best_step,
        **{f"test/{name}": value for name, value in found.items()},
        **(_estimate_likelihood(model, data, num_samples, drawn) if num_samples and found.get("bound") else {}),
        **_describe_run(model, run),
    }
    if run.folder is not None:
        folder = RunFolder(run.folder)
        if figures:
            from pyro_ssvae.plots import save_figures  # imports matplotlib

            save_figures(model, data, folder.metrics, folder.figures)
        folder.write_result(result)  # last: a folder with a result is complete
    return result


def _describe(objective: Objective, data: SemiSupervisedData, run: FitResult) -> dict[str, Any]:
    """Return what was trained, on what."""
    model = objective.module
    parts = {name: getattr(model, name, None) for name in ("likelihood", "prior", "class_prior")}
    weight_at, total = run.config.kl_weight_at, run.steps
    return {
        "model": type(model).__name__,
        "data": data.name,
        "num_labels": data.num_labelled,
        "num_unlabelled": data.num_unlabelled,
        "seed": run.config.seed,
        "regularisers": objective.regularisers,
        "objective": objective.config(),
        "loss": objective.describe(),
        **{name: getattr(part, "name", type(part).__name__) for name, part in parts.items() if part is not None},
        "kl_weight": [
            weight_at(int(tenth * total / 10), total, len(data.x), peaks=objective.peaks_kl) for tenth in range(10)
        ],
        "binarisation": run.config.binarisation,
    }


def _measure_errors(model: Any, data: SemiSupervisedData, run: FitResult) -> dict[str, float | None]:
    """Return errors with the weights that validation chose, and with those of the last step."""

    def measure(suffix: str) -> dict[str, float | None]:
        parts = {"test": (data.x_test, data.y_test), "val": (data.x_validation, data.y_validation)}
        return {
            f"{name}/error{suffix}": classification_error(model, x, y, scale=data.scale) if len(x) else None
            for name, (x, y) in parts.items()
        }

    errors = measure("")
    chosen = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(run.last_weights)
    errors |= measure("_last")
    model.load_state_dict(chosen)
    return errors


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
