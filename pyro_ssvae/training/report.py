"""What a finished run reports: ``result.json`` and the figures."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import pyro
import torch
import torchvision

import pyro_ssvae
from pyro_ssvae.data import SemiSupervisedData
from pyro_ssvae.evaluation import class_control, classification_error, mean_bound
from pyro_ssvae.models import M2
from pyro_ssvae.models.base import device_of
from pyro_ssvae.objectives import SemiSupervisedELBO
from pyro_ssvae.plots import save_run_figures
from pyro_ssvae.training.loop import FitResult
from pyro_ssvae.training.run_folder import RunFolder

__all__ = ["report"]


def report(
    objective: SemiSupervisedELBO, data: SemiSupervisedData, run: FitResult, *, seed: int = 0, figures: bool = True
) -> dict[str, Any]:
    """Evaluate a finished run on the test rows, once, and write ``result.json`` and ``figures/``.

    Args:
        objective: The trained objective, holding the weights that validation picked.
        data: The rows; without test or validation rows the corresponding entries are ``None``.
        run: What :func:`pyro_ssvae.fit` returned.
        seed: Of the run; it also fixes the binarisation and draws behind ``test_elbo``.
        figures: Whether to draw.

    Returns:
        The result. Errors are fractions: ``test_error`` and ``validation_error`` at the evaluation that validation
        picked, ``*_last`` at the last step, for which no validation label was used. ``test_elbo`` is the mean of -U(x)
        over test rows, in nats per datum, and ``class_control`` that of
        :func:`pyro_ssvae.evaluation.class_control`; ``None`` where no bound was trained.
    """
    pair: M2 = objective.pair  # type: ignore[assignment]
    chosen = _errors(pair, data)
    picked = {name: tensor.clone() for name, tensor in pair.state_dict().items()}
    pair.load_state_dict(run.last_weights)
    last = _errors(pair, data)
    pair.load_state_dict(picked)
    elbo, control = None, None
    if len(data.x_test) and objective.bound_weight:
        binarisation = "none" if run.config.binarisation == "none" else "dynamic"
        elbo = mean_bound(objective, data.x_test, scale=data.scale, binarisation=binarisation, seed=seed)
        control = class_control(pair, data.x_test[:1000], scale=data.scale, seed=seed)
    device = device_of(pair)
    result: dict[str, Any] = {
        "model": type(pair).__name__,
        "data": data.name,
        "num_labels": data.num_labelled,
        "num_unlabelled": data.num_unlabelled,
        "seed": seed,
        "add_ons": objective.add_ons,
        "objective": objective.config(),
        "likelihood": pair.likelihood.name,
        "kl_weight": [run.config.kl_weight_at(int(t * run.steps / 10), run.steps, data.x.shape[0]) for t in range(10)],
        "class_prior": pair.class_prior.name,
        "binarisation": run.config.binarisation,
        **chosen,
        **{f"{name}_last": value for name, value in last.items()},
        "best_step": run.best_step,
        "test_elbo": elbo,
        "class_control": control,
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
    if run.folder is not None:
        folder = RunFolder(run.folder)
        folder.write_result(result)
        if figures:
            save_run_figures(pair, data, folder.metrics, folder.figures)
    return result


def _errors(pair: M2, data: SemiSupervisedData) -> dict[str, float | None]:
    rows = {"test_error": (data.x_test, data.y_test), "validation_error": (data.x_validation, data.y_validation)}
    return {
        name: classification_error(pair, x, y, scale=data.scale) if len(x) else None for name, (x, y) in rows.items()
    }
