"""What is logged of groups that step in turn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pyro_ssvae import NonFiniteLossError, SemiSupervisedData, TrainingConfig, fit
from pyro_ssvae.data import BatchStream, make_toy_data
from pyro_ssvae.models import DDGM
from pyro_ssvae.objectives import EnergyObjective
from pyro_ssvae.plots import plot_training_curves
from pyro_ssvae.presets import DDGM_TOY
from pyro_ssvae.training.alternating import AlternatingStep
from pyro_ssvae.training.device import make_fabric

SETTINGS: dict[str, Any] = {"max_steps": 6, "batch_size": 32, "evaluate_every": 3, "device": "cpu"}


IMAGES = {"gradient_penalty": 0.1, "penalty_fraction": 0.25, "negative_weight": 1.0, "generator_steps": 1}


def make_objective(**options: Any) -> tuple[EnergyObjective, Any]:
    data = make_toy_data("ring", num_train=300, num_validation=100)
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

    def watched(place: int, chain: Any, batch: Any) -> Any:
        for turn, found in zip(chain, gradients(place, chain, batch), strict=True):
            slopes = [p.grad.flatten() for p in objective.groups()[turn.group].parameters if p.grad is not None]
            norms[turn.group].append(float(torch.cat(slopes).norm()))
            yield found

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
    objective, data = make_objective(mle_fraction=0.5, generator_rate=2.0)
    rates = {"learning_rate": 1.0, "warmup_steps": 0, "decay_start": 0.0, "final_learning_rate": 0.0}
    config = TrainingConfig(compile="eager", **rates, **SETTINGS)
    stream = BatchStream(data, batch_size=32, labelled_batch_size=1, device=torch.device("cpu"), seed=0)
    step = AlternatingStep(objective, stream, config, make_fabric(config), 6)
    step._gradients = lambda *_: iter([(torch.zeros(()), {})])  # type: ignore[method-assign]
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
    objective, data = make_objective(**DDGM_TOY.objective | {"langevin_steps": 1})
    run = fit(objective, data, TrainingConfig(compile="inductor", **SETTINGS), progress=False)
    assert (run.step_mode, run.why_eager) == ("inductor", None)


def steps_of_images(mode: str, number: int, **options: Any) -> tuple[EnergyObjective, AlternatingStep]:
    """Return convolutional networks after some steps, and what did these."""
    torch.manual_seed(0)
    data = SemiSupervisedData.from_arrays(torch.rand(128, 1, 28, 28), torch.arange(128) % 2).without_labels()
    objective = EnergyObjective.for_data(DDGM((1, 28, 28)), data, **IMAGES, **options)
    config = TrainingConfig(compile=mode, learning_rate=1e-3, **SETTINGS | {"batch_size": 64})
    stream = BatchStream(data, batch_size=64, labelled_batch_size=1, device=torch.device("cpu"), seed=0)
    step = AlternatingStep(objective, stream, config, make_fabric(config), number)
    for count in range(number):
        step(count)
    return objective, step


def test_a_step_moves_every_weight_along_its_own_gradient() -> None:
    # A fused optimiser reads gradients as they lie in memory, and convolutions may return them in another order.
    objective, step = steps_of_images("eager", 0)
    before = {name: value.detach().clone() for name, value in objective.module.energy_net.named_parameters()}
    gradients: dict[str, torch.Tensor] = {}
    apply = step._apply

    def watched(group: str) -> torch.Tensor:
        if group == "energy":
            gradients.update(
                {name: value.grad.clone() for name, value in objective.module.energy_net.named_parameters()}
            )
        return apply(group)

    step._apply = watched  # type: ignore[method-assign]
    step.total = 1000
    step(500)
    for name, value in objective.module.energy_net.named_parameters():
        slope, moved = gradients[name], value.detach() - before[name]
        steep = slope.abs() > 1e-4 * slope.abs().max()
        assert bool((torch.sign(moved) == -torch.sign(slope))[steep].all()), name  # so does Adam's first step


@pytest.mark.parametrize(("mode", "shared"), [("replay", False), ("replay", True), ("inductor", True)])
def test_recorded_turns_of_images_are_the_eager_ones(mode: str, shared: bool) -> None:
    eager, _ = steps_of_images("eager", 5, shared_draws=shared)
    recorded, step = steps_of_images(mode, 5, shared_draws=shared)
    assert (step.mode, step.why_eager) == (mode, None)
    for (name, value), found in zip(eager.state_dict().items(), recorded.state_dict().values(), strict=True):
        torch.testing.assert_close(found, value, rtol=0.0, atol=2e-4, msg=name)  # five steps of up to 3e-3 each


@pytest.mark.parametrize("entropy", ["nearest_neighbour", "mutual_information", "batch_norm", "score"])
def test_recorded_turns_that_share_draws_are_the_eager_ones(entropy: str) -> None:
    found = []
    for mode in ("eager", "replay"):
        objective, data = make_objective(entropy=entropy, shared_draws=True, langevin_steps=2)
        run = fit(objective, data, TrainingConfig(compile=mode, **SETTINGS), progress=False)
        assert (run.step_mode, run.why_eager) == (mode, None)
        found.append(run.last_weights)
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, msg=name)


def test_shared_draws_give_the_generator_the_energy_after_its_step() -> None:
    objective, data = make_objective(shared_draws=True, generator_steps=1)
    module, calls = objective.module, []
    guide = module.guide

    def watched(x: torch.Tensor, *, size: int | None = None) -> torch.Tensor:
        calls.append(torch.get_rng_state())
        return guide(x, size=size)

    objective._functions["guide"] = watched
    config = TrainingConfig(compile="eager", gradient_clip=None, **SETTINGS)
    stream = BatchStream(data, batch_size=32, labelled_batch_size=1, device=torch.device("cpu"), seed=0)
    step = AlternatingStep(objective, stream, config, make_fabric(config), 6)
    seen: dict[str, list[torch.Tensor]] = {}
    apply = step._apply

    def kept(group: str) -> torch.Tensor:
        if group == "generator":  # by hand: the same z, through weights that the energy has just been given
            torch.set_rng_state(calls[-1])
            z = module.prior().sample((32,))
            x = module.generator(z)
            loss = module.energy_net(x).mean() - objective.entropy(z, x, module.generator)
            parameters = list(module.generator.parameters())
            seen["found"] = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
            seen["expected"] = list(torch.autograd.grad(loss, parameters))
        return apply(group)

    step._apply = kept  # type: ignore[method-assign]
    step(0)
    assert len(calls) == 1
    for found, expected in zip(seen["found"], seen["expected"], strict=True):
        torch.testing.assert_close(found, expected)
