"""What is logged of groups that step in turn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pyro_ssvae import NonFiniteLossError, TrainingConfig, fit
from pyro_ssvae.data import BatchStream, plane_data
from pyro_ssvae.models import DDGM
from pyro_ssvae.objectives import EnergyObjective
from pyro_ssvae.plots import plot_training_curves
from pyro_ssvae.recipes import DDGM_PLANE
from pyro_ssvae.training.alternating import AlternatingStep
from pyro_ssvae.training.device import make_fabric

SETTINGS: dict[str, Any] = {"max_steps": 6, "batch_size": 32, "evaluate_every": 3, "device": "cpu"}


def make_objective(**options: Any) -> tuple[EnergyObjective, Any]:
    data = plane_data("ring", num_rows=300, num_validation=100)
    torch.manual_seed(0)
    return EnergyObjective.for_data(DDGM((2,)), data, **options), data


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_norms_are_those_of_the_gradients_before_clipping(clip: float | None) -> None:
    objective, data = make_objective(entropy="mutual_information", generator_steps=2)
    config = TrainingConfig(gradient_clip=clip, compile="eager", **SETTINGS)
    stream = BatchStream(data, batch_size=32, labelled_batch_size=1, device=torch.device("cpu"), seed=0)
    step = AlternatingStep(objective, stream, config, make_fabric(config), 6)
    norms: dict[str, list[float]] = {"energy": [], "generator": [], "critic": []}
    gradients = step._gradients

    def watched(place: int, turn: Any, batch: Any) -> Any:
        found = gradients(place, turn, batch)
        slopes = [p.grad.flatten() for p in objective.groups()[turn.group].parameters if p.grad is not None]
        norms[turn.group].append(float(torch.cat(slopes).norm()))
        return found

    step._gradients = watched  # type: ignore[method-assign]
    for number in range(3):
        step(number)
    means = step.take_means()
    assert [len(found) for found in norms.values()] == [3, 6, 6]
    for name, found in norms.items():
        assert means[f"gradient_norm_{name}"] == pytest.approx(sum(found) / len(found), rel=1e-5)
        assert means[f"gradient_norm_{name}"] > 1e-3
    assert "train_loss" not in means


def test_the_rate_of_a_group_falls_within_its_share_of_the_schedule() -> None:
    objective, data = make_objective(settling=0.5, generator_rate=2.0)
    rates = {"learning_rate": 1.0, "warmup_steps": 0, "decay_start": 0.0, "final_learning_rate": 0.0}
    config = TrainingConfig(compile="eager", **rates, **SETTINGS)
    stream = BatchStream(data, batch_size=32, labelled_batch_size=1, device=torch.device("cpu"), seed=0)
    step = AlternatingStep(objective, stream, config, make_fabric(config), 6)
    step._gradients = lambda *_: (torch.zeros(()), {})  # type: ignore[method-assign]
    found, weights = [], []
    for number in range(6):
        step(number)
        weights.append(step.average._weight)
        found.append([optimizer.param_groups[0]["lr"] for optimizer in step._optimizers.values()])
    cosine = [0.5 * (1.0 + math.cos(math.pi * k / 3)) for k in (1, 2, 3)]
    assert [energy for energy, _ in found] == pytest.approx(2 * cosine)  # in halves
    assert weights == pytest.approx(2 * [10 / 11, 10 / 12, 10 / 13])  # averages forget what was before
    assert [generator for _, generator in found[:3]] == pytest.approx([2.0 * rate for rate in cosine])


def test_curves_show_every_group() -> None:
    objective, data = make_objective(entropy="mutual_information")
    run = fit(objective, data, TrainingConfig(compile="eager", **SETTINGS), progress=False)
    figure = plot_training_curves(run.metrics)
    (norms,) = (axes for axes in figure.axes if axes.get_title(loc="left").startswith("Norm of the loss's gradient"))
    assert len(norms.lines) == 3
    assert len({line.get_color() for line in norms.lines}) == 3
    assert all(axes.get_title(loc="left") != "Training loss" for axes in figure.axes)


def test_any_loss_that_is_not_finite_is_found() -> None:
    objective, data = make_objective()
    generator_loss = objective._generator_loss
    calls: list[int] = []

    def bursting(batch: Any) -> Any:
        calls.append(0)
        return generator_loss(batch) * (float("inf") if len(calls) > 7 else 1.0)  # two of the check and of each step

    objective._generator_loss = bursting  # type: ignore[method-assign]
    config = TrainingConfig(compile="eager", **SETTINGS)
    with pytest.raises(NonFiniteLossError, match="not finite from step 3 on"):
        fit(objective, data, config, progress=False)


def test_the_recipe_of_the_plane_is_compiled() -> None:
    # A turn that Inductor cannot compile is replayed with a warning, and warnings are errors here.
    objective, data = make_objective(**DDGM_PLANE.objective | {"langevin_steps": 1})
    run = fit(objective, data, TrainingConfig(compile="inductor", **SETTINGS), progress=False)
    assert (run.step_mode, run.why_eager) == ("inductor", None)
