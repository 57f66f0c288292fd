"""What a finished run reports: ``result.json`` and the figures."""

from __future__ import annotations

import platform
import time
import warnings
from importlib.metadata import version
from typing import Any

import pyro
import torch
import torchvision

import pyro_ssvae
from pyro_ssvae.data import SemiSupervisedData
from pyro_ssvae.evaluation import (
    class_control,
    classification_error,
    energy_diagnostics,
    latent_diagnostics,
    log_likelihood,
    mean_bound,
)
from pyro_ssvae.models import DDGM, M1, LatentVariableModel, Model, SemiSupervisedModel
from pyro_ssvae.models.base import get_device
from pyro_ssvae.objectives import Objective, UnsupervisedELBO
from pyro_ssvae.plots import save_figures
from pyro_ssvae.training.loop import FitResult
from pyro_ssvae.training.run_folder import RunFolder

__all__ = ["report"]

_DIAGNOSED_ROWS = 1000  # test rows behind class control


def report(
    objective: Objective,
    data: SemiSupervisedData,
    run: FitResult,
    *,
    seed: int = 0,
    figures: bool = True,
    num_samples: int = 0,
) -> dict[str, Any]:
    """Evaluate a finished run on the test rows, once, and write ``result.json`` and ``figures/``.

    Args:
        objective: The trained objective, holding the weights that validation picked.
        data: The rows; without test or validation rows the corresponding entries are ``None``.
        run: What :func:`pyro_ssvae.fit` returned.
        seed: Of the run; it also fixes the binarisation and draws behind ``test_elbo``.
        figures: Whether to draw.
        num_samples: Importance samples per test row (and class) behind ``test_log_likelihood``; 0 for none.

    Returns:
        The result. Errors are fractions: ``test_error`` and ``validation_error`` at the evaluation that validation
        picked, ``*_last`` at the last step, for which no validation label was used. ``test_elbo`` is the mean bound of
        test rows, in nats per datum (classes summed), and ``class_control`` that of
        :func:`pyro_ssvae.evaluation.class_control`; ``None`` where no bound was trained. A model without classes has
        no errors, but ``kl_z`` and ``active_units``, on test rows, and the terms of its loss.

    Warns:
        UserWarning: If the latents of a model without classes carry next to nothing (posterior collapse).
    """
    module: Model = objective.module  # type: ignore[assignment]
    classes = _of_classes(module, data, run) if isinstance(module, Model) and module.num_classes is not None else {}
    result: dict[str, Any] = {
        "model": type(module).__name__,
        "data": data.name,
        "num_labels": data.num_labelled,
        "num_unlabelled": data.num_unlabelled,
        "seed": seed,
        "regularisers": objective.regularisers,
        "objective": objective.config(),
        **({"likelihood": module.likelihood.name} if isinstance(module, LatentVariableModel) else {}),
        "prior": getattr(module.prior, "name", type(module.prior).__name__),
        "kl_weight": _kl_weights(run, len(data.x), objective.peaks_kl),
        "binarisation": run.config.binarisation,
        **classes,
        "best_step": run.best_step,
        **_of_bound(objective, data, run, seed, num_samples),
        **_of_run(module, run),
    }
    if run.folder is not None:
        folder = RunFolder(run.folder)
        folder.write_result(result)
        if figures:
            save_figures(module, data, folder.metrics, folder.figures)
    return result


def _of_classes(module: Model, data: SemiSupervisedData, run: FitResult) -> dict[str, Any]:
    """Return what is said of classes: the prior, errors at the picked evaluation and at the last step."""
    chosen = _errors(module, data)
    picked = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.load_state_dict(run.last_weights)
    last = _errors(module, data)
    module.load_state_dict(picked)
    return {
        **({"class_prior": module.class_prior.name} if isinstance(module, SemiSupervisedModel) else {}),
        **chosen,
        **{f"{name}_last": value for name, value in last.items()},
    }


def _kl_weights(run: FitResult, num_rows: int, squeezes: bool) -> list[float]:
    """Return the weight of the KL of z at ten steps of the schedule, evenly spread."""
    weight = run.config.kl_weight_at
    return [weight(int(tenth * run.steps / 10), run.steps, num_rows, squeezes=squeezes) for tenth in range(10)]


def _errors(module: Model, data: SemiSupervisedData) -> dict[str, float | None]:
    rows = {"test_error": (data.x_test, data.y_test), "validation_error": (data.x_validation, data.y_validation)}
    return {
        name: classification_error(module, x, y, scale=data.scale) if len(x) else None for name, (x, y) in rows.items()
    }


def _of_bound(
    objective: Objective, data: SemiSupervisedData, run: FitResult, seed: int, num_samples: int
) -> dict[str, Any]:
    """Return what is said of densities and latents, on test rows."""
    module: Any = objective.module
    known = bool(len(data.x_test)) and bool(objective.bound_weight)
    rows: dict[str, Any] = {"scale": data.scale}
    drawn: dict[str, Any] = {**rows, "binarisation": run.config.binarisation, "seed": seed}
    found: dict[str, Any] = {"test_elbo": mean_bound(objective, data.x_test, **drawn) if known else None}
    if isinstance(module, SemiSupervisedModel):
        few = data.x_test[:_DIAGNOSED_ROWS]
        found["class_control"] = class_control(module, few, **rows, seed=seed) if known else None
    if isinstance(module, M1):
        latents: Any = {"kl_z": None, "active_units": None}
        if known:
            latents = latent_diagnostics(module, data.x_test, **rows)
        found |= latents
        if known and latents["active_units"] == 0:
            warnings.warn(
                f"Posterior collapse: none of the {module.latent_dim} latents varies from row to row, so the decoder "
                "ignores z. A likelihood of another scale, fewer latents, or --training.kl_warmup 0.2 often help.",
                stacklevel=3,
            )
    if isinstance(module, DDGM) and len(data.x_test):
        found |= energy_diagnostics(module, data.x_test, scale=data.scale, seed=seed)
    if isinstance(objective, UnsupervisedELBO):
        found["loss_terms"] = objective.terms()
    if num_samples and known:
        started = time.perf_counter()
        estimate = log_likelihood(module, data.x_test, num_samples=num_samples, **drawn)
        found |= {
            "test_log_likelihood": estimate.mean,
            "test_log_likelihood_error": estimate.mean_error if num_samples > 1 else None,
            "test_log_likelihood_samples": num_samples,
            "effective_samples": float(estimate.effective_samples.median()),
            "likelihood_seconds": round(time.perf_counter() - started, 1),
        }
    elif isinstance(module, M1):
        found["test_log_likelihood"] = None
    return found


def _of_run(module: Model, run: FitResult) -> dict[str, Any]:
    """Return how long it took, and on what."""
    device = get_device(module)
    return {
        "train_seconds": round(run.train_seconds, 1),
        "epochs": round(run.epochs, 3),
        "steps": run.steps,
        "stopped_by": run.stopped_by,
        "precision": run.config.precision,
        "step_mode": run.step_mode,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "versions": {
            "pyro_ssvae": pyro_ssvae.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "pyro": pyro.__version__,
            "lightning_fabric": version("lightning-fabric"),
        },
    }
