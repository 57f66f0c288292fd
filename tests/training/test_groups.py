"""Objectives with several groups of parameters: their updates, learning rates, and what is logged of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_ssvae import (
    DDGM,
    M1,
    M2,
    EnergyObjective,
    SemiSupervisedData,
    SemiSupervisedELBO,
    TrainingConfig,
    UnsupervisedELBO,
    fit,
)
from pyro_ssvae.data import Batch, make_toy_data
from pyro_ssvae.errors import NonFiniteLossError
from pyro_ssvae.models import data_plate
from pyro_ssvae.objectives import Loss, Objective, ParameterGroup, Update
from pyro_ssvae.plots import plot_training_curves
from pyro_ssvae.presets import DDGM_TOY

SETTINGS: dict[str, Any] = {"max_steps": 6, "batch_size": 32, "evaluate_every": 3, "device": "cpu", "ema_decay": 0.0}


class TwoNumbers(nn.Module):
    """Two numbers, each trained by a loss of its own that depends on both."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(3.0))
        self.b = nn.Parameter(torch.tensor(5.0))


class TwoLosses(Objective):
    """a minimises (a - b)², b minimises b² a, twice in each step."""

    def __init__(self, rates: tuple[float, float] = (1.0, 2.0), fraction: float = 1.0) -> None:
        super().__init__(TwoNumbers(), num_labelled=0, num_unlabelled=64)
        self.rates, self.fraction = rates, fraction
        self.calls: list[tuple[str, float, float]] = []
        self.scale: Callable[[int], float] = lambda _: 1.0

    def config(self) -> dict[str, Any]:
        return {}

    def groups(self) -> dict[str, ParameterGroup]:
        parts = {"first": self.module.a, "second": self.module.b}
        both = zip(parts.items(), self.rates, strict=True)
        return {name: ParameterGroup([part], rate, fraction=self.fraction) for (name, part), rate in both}

    def updates(self, progress: float = 0.0) -> list[Update]:
        return [Update("first", self.first), Update("second", self.second), Update("second", self.second)]

    def first(self, batch: Batch) -> Loss:
        return self._keep("first", (self.module.a - self.module.b).square())

    def second(self, batch: Batch) -> Loss:
        return self._keep("second", self.module.b.square() * self.module.a)

    def _keep(self, name: str, loss: Tensor) -> Loss:
        self.calls.append((name, float(self.module.a.detach()), float(self.module.b.detach())))
        loss = loss * self.scale(len(self.calls))
        return Loss(loss, {f"{name}_loss": loss.detach()})


def make_points() -> SemiSupervisedData:
    return SemiSupervisedData.from_arrays(torch.randn(64, 2), torch.zeros(64) - 1, num_classes=2)


def train(objective: Objective, **settings: Any) -> list[dict[str, Any]]:
    with pytest.warns(UserWarning, match="No training"):
        data = make_points()
    return fit(objective, data, TrainingConfig(**SETTINGS | settings), progress=False).metrics


def adam(values: list[float], gradients: list[float], rate: float) -> float:
    """Return a number after steps of Adam, by hand."""
    value, first, second = values[0], 0.0, 0.0
    for count, gradient in enumerate(gradients, start=1):
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        value -= rate * (first / (1 - 0.9**count)) / (math.sqrt(second / (1 - 0.999**count)) + 1e-8)
    return value


def test_each_update_follows_the_gradient_of_its_own_loss_at_the_weights_after_the_update_before() -> None:
    objective = TwoLosses()
    train(objective, max_steps=1, evaluate_every=1, learning_rate=0.1, warmup_steps=0, decay_start=1.0)
    (_, a0, b0), (_, a1, b1), (_, a2, b2) = objective.calls[3:6]  # the first three are of the check before training
    assert [name for name, *_ in objective.calls[3:]] == ["first", "second", "second"]
    assert (a0, b0, b1) == (3.0, 5.0, 5.0)
    assert a1 == pytest.approx(adam([a0], [2 * (a0 - b0)], 0.1), rel=1e-5)
    assert (a2, b2) == (a1, pytest.approx(adam([b1], [2 * b1 * a1], 0.2), rel=1e-5))
    assert float(objective.module.b.detach()) == pytest.approx(adam([b1], [2 * b1 * a1, 2 * b2 * a1], 0.2), rel=1e-5)


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_norms_are_those_of_the_gradients_before_clipping_averaged_over_updates(clip: float | None) -> None:
    objective = TwoLosses()
    metrics = train(objective, gradient_clip=clip, max_steps=2, evaluate_every=2)[-1]
    calls = objective.calls[3:]
    first = [abs(2 * (a - b)) for name, a, b in calls if name == "first"]
    second = [abs(2 * b * a) for name, a, b in calls if name == "second"]
    assert metrics["train/gradient_norm_first"] == pytest.approx(sum(first) / 2, rel=1e-5)
    assert metrics["train/gradient_norm_second"] == pytest.approx(sum(second) / 4, rel=1e-5)
    assert metrics["train/first_loss"] == pytest.approx(sum((a - b) ** 2 for n, a, b in calls if n == "first") / 2)
    assert "train/loss" not in metrics


def test_the_learning_rate_of_a_group_decays_within_its_fraction_of_the_schedule_and_starts_again() -> None:
    objective = TwoLosses(rates=(0.5, 1.0), fraction=0.5)
    rates = {"learning_rate": 1.0, "warmup_steps": 0, "decay_start": 0.0, "final_learning_rate": 0.0}
    metrics = train(objective, **rates, evaluate_every=1)
    cosine = [0.5 * 0.5 * (1.0 + math.cos(math.pi * k / 3)) for k in (1, 2, 3)]
    assert [row["learning_rate"] for row in metrics] == pytest.approx(2 * cosine)


def test_a_loss_of_any_group_that_is_not_finite_stops_training() -> None:
    objective = TwoLosses()
    objective.scale = lambda calls: math.inf if calls > 10 else 1.0  # three of the check, and three of each step
    with pytest.raises(NonFiniteLossError, match="not finite from step 3 on"):
        train(objective)


def test_several_losses_are_not_one_number() -> None:
    objective, batch = TwoLosses(), Batch(torch.zeros(2, 2), None, None)
    assert {name: float(loss.total.detach()) for name, loss in objective.losses(batch).items()} == {
        "first": 4.0,
        "second": 75.0,
    }
    with pytest.raises(ValueError, match="a loss for each of first, second"):
        objective(batch)


def make_energy_objective(**options: Any) -> tuple[EnergyObjective, SemiSupervisedData]:
    data = make_toy_data("ring", num_train=300, num_validation=100)
    torch.manual_seed(0)
    return EnergyObjective.for_data(DDGM((2,)), data, **options), data


def test_curves_show_every_group() -> None:
    objective, data = make_energy_objective()
    run = fit(objective, data, TrainingConfig(compile="eager", **SETTINGS), progress=False)
    figure = plot_training_curves(run.metrics)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    (norms,) = (axes for axes in figure.axes if axes.get_title(loc="left").startswith("Gradient of the loss"))
    assert len({line.get_label() for line in norms.lines}) == 2
    assert "Training loss" not in titles


@pytest.mark.usefixtures("traced_or_compiled")
def test_the_preset_for_points_is_compiled() -> None:
    # A loss that cannot be compiled runs eagerly with a warning, and warnings are errors here.
    objective, data = make_energy_objective(**DDGM_TOY.objective | {"langevin_steps": 1})
    run = fit(objective, data, TrainingConfig(compile="compiled", **SETTINGS), progress=False)
    assert (run.step_mode, run.why_eager) == ("compiled", None)
    objective, _ = make_energy_objective(**DDGM_TOY.objective | {"langevin_steps": 1})
    eager = fit(objective, data, TrainingConfig(compile="eager", **SETTINGS), progress=False)
    for name, value in eager.last_weights.items():
        # Biases before batch norm have a gradient of zero up to rounding, which Adam scales up.
        torch.testing.assert_close(run.last_weights[name], value, rtol=0.0, atol=2e-3, msg=name)


def test_a_step_moves_every_weight_of_convolutions_along_its_own_gradient() -> None:
    # A fused optimiser reads gradients as they lie in memory, and convolutions may return them in another order.
    data = SemiSupervisedData.from_arrays(torch.rand(128, 1, 28, 28), torch.arange(128) % 2).without_labels()
    options = {"gradient_penalty": 0.1, "penalty_fraction": 0.25, "negative_weight": 1.0, "generator_steps": 1}
    torch.manual_seed(0)
    objective = EnergyObjective.for_data(DDGM((1, 28, 28)), data, **options)
    net = objective.module.energy_net
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    gradients: dict[str, Tensor] = {}
    update = objective.updates()[0]

    def losses_with_gradients(batch: Batch) -> Loss:
        state = torch.get_rng_state()
        loss = update.loss(batch)
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        named = dict(net.named_parameters())
        found = torch.autograd.grad(update.loss(batch).total, list(named.values()))
        gradients.update(zip(named, found, strict=True))
        torch.set_rng_state(after)
        return loss

    objective.updates = lambda progress=0.0: [Update("energy", losses_with_gradients)]  # type: ignore[method-assign]
    settings = SETTINGS | {"batch_size": 64, "max_steps": 1, "evaluate_every": 1, "warmup_steps": 0}
    fit(objective, data, TrainingConfig(compile="eager", learning_rate=1e-3, **settings), progress=False)
    for name, value in net.named_parameters():
        slope, moved = gradients[name], value.detach() - before[name]
        steep = slope.abs() > 1e-4 * slope.abs().max()
        assert bool((torch.sign(moved) == -torch.sign(slope))[steep].all()), name  # so does Adam's first step


def test_shared_draws_give_the_generator_the_samples_of_the_energy_after_its_step() -> None:
    drawn: list[Tensor] = []
    data = make_toy_data("ring", num_train=300, num_validation=100)
    torch.manual_seed(0)
    ddgm = DDGM((2,))

    def guide(x: Tensor, *, size: int | None = None) -> Tensor:
        samples = ddgm.guide(x, size=size)
        drawn.append(samples.detach())
        return samples

    objective = EnergyObjective.for_data(ddgm, data, shared_draws=True, generator_steps=1, guide=guide)
    scored: list[tuple[Tensor, Tensor]] = []
    hook = ddgm.energy_net.register_forward_hook(lambda _, x, energy: scored.append((x[0].detach(), energy.detach())))
    run = fit(objective, data, TrainingConfig(**SETTINGS | {"max_steps": 1, "evaluate_every": 1}), progress=False)
    hook.remove()
    assert run.step_mode == "eager"
    assert len(drawn) == 2  # one draw of the check before training, one of the only step
    energies = [energy for x, energy in scored if torch.equal(x, drawn[1])]
    # The check restores the random state, so its samples are the same: its two energies come first.
    _, before, in_energy_update, in_generator_update = energies
    torch.testing.assert_close(in_energy_update, before)
    torch.testing.assert_close(in_generator_update, ddgm.energy_net(drawn[1]))
    assert not torch.allclose(in_energy_update, in_generator_update)


class _FurtherEnergy(DDGM):
    def __init__(self, event_shape: tuple[int, ...], **options: Any) -> None:
        super().__init__(event_shape, **options)
        self.further = nn.Linear(2, 1)

    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, size):
            pyro.factor("energy", -self.energy_net(x) - self.further(x).squeeze(-1).square())


class _ParamSite(M2):
    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        scale = pyro.param("own_scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with data_plate(x, size):
            z = pyro.sample("z", self.prior())
            y = pyro.sample("y", dist.Categorical(logits=self.class_prior.model()), obs=y)
            pyro.sample("x", dist.Normal(self.decode(y, z).mean, scale).to_event(3), obs=x)


def _make_losses_with_untrained_parameters(case: str) -> tuple[Objective, SemiSupervisedData]:
    if case == "group":
        points = make_toy_data("ring", num_train=64)
        return EnergyObjective.for_data(_FurtherEnergy(points.event_shape), points), points
    digits = SemiSupervisedData.from_name("digits", num_labels=100)
    if case == "site":
        module = _ParamSite(digits.event_shape, 10, latent_dim=2, hidden_dims=(8,))
        return SemiSupervisedELBO.for_data(module, digits), digits
    net, other = M1(digits.event_shape, latent_dim=2, hidden_dims=(8,)), nn.Linear(2, 2)

    def model(x: Tensor, *, size: int | None = None) -> None:
        with data_plate(x, size):
            z = pyro.sample("z", net.prior())
            pyro.sample("x", net.decode(other(z)), obs=x)

    unlabelled = digits.without_labels()
    return UnsupervisedELBO.for_data(net, unlabelled, model=model), unlabelled


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("group", "further.bias, further.weight. Make"),
        ("site", "not trained: pyro.param 'own_scale'. Make"),
        ("function", r"one of shape \(2,\) that the module does not hold. Make"),
    ],
)
def test_parameters_that_nothing_trains_are_named_before_training(case: str, words: str) -> None:
    objective, data = _make_losses_with_untrained_parameters(case)
    with pytest.warns(UserWarning, match=words):
        fit(objective, data, TrainingConfig(max_steps=1, device="cpu"), progress=False)
    pyro.clear_param_store()
