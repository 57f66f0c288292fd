"""The DDGM's objective: gradients by autograd, stock SVI, entropies against closed forms, guards."""

from __future__ import annotations

import re
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor, nn

import pyro_ssvae
from pyro_ssvae import DDGM, EnergyObjective, SemiSupervisedData, TrainingConfig, fit
from pyro_ssvae.data import Batch, make_toy_data
from pyro_ssvae.models.base import data_plate
from pyro_ssvae.models.diagnostics import find_failure, has_collapsed
from pyro_ssvae.objectives import EnergyLoss, NearestNeighbourEntropy
from pyro_ssvae.objectives.energy_terms import normalise_importance_weights, perturb_samples


def make_ddgm(**options: object) -> DDGM:
    torch.manual_seed(0)
    return DDGM((2,), **options)


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_losses_by_hand(share: float) -> None:
    ddgm = make_ddgm().eval()  # batch normalisation by running statistics: draws can be repeated
    options = {"gradient_penalty": 0.3, "penalty_fraction": share}
    elbo = EnergyLoss(NearestNeighbourEntropy(), ddgm.generator, **options)
    x = torch.randn(40, 2)
    torch.manual_seed(5)
    loss, terms = elbo.energy_loss(ddgm.model, ddgm.guide, x)
    torch.manual_seed(5)
    generated = ddgm.generator(ddgm.prior().expand((40,)).sample())
    leaf = x.clone().requires_grad_()
    of_data, of_samples = ddgm.energy_net(leaf), ddgm.energy_net(generated)
    (slope,) = torch.autograd.grad(of_data.sum(), leaf)
    size = slope[: round(40 * share)].square().sum(-1).mean()
    torch.testing.assert_close(loss, of_data.mean() - of_samples.mean() + 0.15 * size)
    torch.testing.assert_close(terms["energy_gradient_norm"], size.sqrt())
    torch.manual_seed(5)
    of_generator, terms = elbo.generator_loss(ddgm.model, ddgm.guide, x)
    torch.testing.assert_close(of_generator, of_samples.mean() - terms["entropy"])
    with pytest.raises(ValueError, match="penalty_fraction=0"):
        EnergyLoss(NearestNeighbourEntropy(), ddgm.generator, penalty_fraction=0)


def test_each_network_gets_the_gradient_of_its_own_loss() -> None:
    ddgm = make_ddgm().eval()
    elbo = EnergyLoss(NearestNeighbourEntropy(), ddgm.generator)
    x = torch.randn(30, 2)
    torch.manual_seed(3)
    elbo.loss_and_grads(*pyro_ssvae.pyro_view(ddgm), x)
    found = {name: parameter.grad for name, parameter in ddgm.named_parameters()}
    torch.manual_seed(3)
    energy_loss, _ = elbo.energy_loss(ddgm.model, ddgm.guide, x)
    generator_loss, _ = elbo.generator_loss(ddgm.model, ddgm.guide, x)
    for module, loss in (("energy_net", energy_loss), ("generator", generator_loss)):
        for name, parameter in getattr(ddgm, module).named_parameters():
            (expected,) = torch.autograd.grad(loss, parameter, retain_graph=True)
            torch.testing.assert_close(found[f"{module}.{name}"], expected)


def test_stock_svi_trains_model_and_guide() -> None:
    pyro.clear_param_store()
    ddgm = make_ddgm()
    torch.manual_seed(0)
    elbo = EnergyLoss(NearestNeighbourEntropy(), ddgm.generator, gradient_penalty=0.01)
    before = {name: tensor.clone() for name, tensor in ddgm.named_parameters()}
    svi = SVI(*pyro_ssvae.pyro_view(ddgm), pyro.optim.Adam({"lr": 1e-3, "betas": (0.5, 0.999)}), elbo)
    x = make_toy_data("ring", num_train=2000).x
    for step in range(80):
        svi.step(x[100 * (step % 20) :][:100])
    assert all(not torch.equal(tensor, before[name]) for name, tensor in ddgm.named_parameters())
    assert len(pyro.get_param_store()) == 0
    # The energy tells the data from what is far off.
    assert float(ddgm.energy(x[:500]).mean()) < float(ddgm.energy(x[:500] + 3.0).mean())


def test_networks_may_have_separate_optimisers() -> None:
    ddgm = make_ddgm().eval()
    elbo = EnergyLoss(NearestNeighbourEntropy(), ddgm.generator, gradient_penalty=0.1)
    x = torch.randn(30, 2)
    sides = {"energy": ddgm.energy_net, "generator": ddgm.generator}
    before = {side: [parameter.clone() for parameter in module.parameters()] for side, module in sides.items()}
    for side in sides:
        SVI(*pyro_ssvae.pyro_view(ddgm), pyro.optim.Adam({"lr": 1e-3}), elbo.only(side)).step(x)
        for name, module in sides.items():
            now = list(module.parameters())
            moved = [not torch.equal(old, new) for old, new in zip(before[name], now, strict=True)]
            assert any(moved) == (name == side)
            before[name] = [parameter.clone() for parameter in now]
    with pytest.raises(ValueError, match="energy, generator"):
        elbo.only("data")


def test_labelled_data_add_their_cross_entropy_under_svi() -> None:
    data = make_toy_data("ring", num_train=500)
    ddgm = make_ddgm(num_classes=10)
    elbo = EnergyLoss(NearestNeighbourEntropy(dim=2), ddgm.generator, gradient_penalty=0.003, alpha=2.0)
    svi = SVI(*pyro_ssvae.pyro_view(ddgm), pyro.optim.Adam({"lr": 1e-3}), elbo)
    labelled = data.x[:6], torch.tensor([0, 1, 2, 0, 1, 2])
    svi.step(data.x[:50], *labelled)
    ddgm.eval()
    torch.manual_seed(0)
    whole = svi.evaluate_loss(data.x[:50], *labelled)
    torch.manual_seed(0)
    without = svi.evaluate_loss(data.x[:50])
    cross_entropy = nn.functional.cross_entropy(ddgm.classify(labelled[0]), labelled[1])
    assert whole - without == pytest.approx(2.0 * float(cross_entropy.detach()), abs=1e-4)
    objective = EnergyObjective.for_data(ddgm, data, gradient_penalty=0.003, alpha=2.0)
    before = [parameter.clone() for parameter in ddgm.parameters()]
    fit(objective, data, TrainingConfig(max_steps=3, batch_size=50, device="cpu"), progress=False)
    # Energies of classes move with E(x) itself, whether or not examples carry labels.
    assert not any(torch.equal(old, new) for old, new in zip(before, ddgm.parameters(), strict=True))


def test_importance_weighted_samples_follow_the_energy() -> None:
    torch.manual_seed(0)
    x = 2.0 * torch.rand(4000, 2) - 1.0  # a generator that is even on a square
    blurred, log_density = perturb_samples(x.requires_grad_(), 0.3)
    assert not blurred.requires_grad
    distance = (blurred[:3, None] - x[None]).square().sum(-1)
    expected = (-distance / 0.18).exp().sum(-1).log()
    torch.testing.assert_close(log_density[:3], expected.detach(), rtol=1e-4, atol=1e-4)
    # An energy whose distribution is a Gaussian inside: weighted moments are its moments.
    mean, variance = torch.tensor([0.3, -0.2]), 0.09
    energy = ((blurred - mean).square().sum(-1) / (2 * variance)).requires_grad_()
    weights = normalise_importance_weights(energy, log_density)
    assert not weights.requires_grad
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close((weights[:, None] * blurred).sum(0), mean, atol=0.03, rtol=0)
    second = (weights[:, None] * (blurred - mean).square()).sum(0)
    torch.testing.assert_close(second, torch.full((2,), variance), atol=0.015, rtol=0)
    # Weights are truncated at the square root of their number, as a multiple of their mean: here at a half, 2 / 4.
    shares = torch.tensor([0.97, 0.01, 0.01, 0.01])
    truncated = torch.tensor([0.5, 0.01, 0.01, 0.01]) / 0.53
    torch.testing.assert_close(normalise_importance_weights(-shares.log(), torch.zeros(4)), truncated)


def test_importance_weighted_phase_at_the_end() -> None:
    data = make_toy_data("ring", num_train=500)
    ddgm = make_ddgm()
    objective = EnergyObjective.for_data(ddgm, data, mle_fraction=0.5, generator_steps=2, gradient_penalty=0.5)
    assert [update.group for update in objective.updates(0.4)] == ["energy", "generator", "generator"]
    assert [update.group for update in objective.updates(0.5)] == ["energy"]
    seen = []

    def look(module: DDGM, row: dict[str, float]) -> None:
        live = [parameter.detach().clone() for parameter in module.generator.parameters()]
        logged = {"train/entropy", "train/sample_std", "train/energy_gap"} <= set(row)
        seen.append(
            (
                live,
                logged,
                row["train/energy_data"] - row["train/energy_samples"]
                == pytest.approx(row["train/energy_gap"], abs=1e-4),
            )
        )

    config = TrainingConfig(max_steps=12, batch_size=64, evaluate_every=6, ema_decay=0.0, device="cpu")
    run = fit(objective, data, config, progress=False, on_evaluation=look)
    (middle, *first), (end, *second) = seen
    assert second == [True, True]  # of the weighted samples
    last = run.metrics[-1]["learning_rate"]  # of the sixth of six steps anew, not of the twelfth of twelve
    assert last == pytest.approx(config.learning_rate_at(5, 6))
    assert last != pytest.approx(config.learning_rate_at(11, 12))
    assert first[0]
    assert all(torch.equal(old, new) for old, new in zip(middle, end, strict=True))
    x = data.x[:64]
    ddgm.eval()
    torch.manual_seed(0)
    weighted, _ = objective.energy_loss_fn.energy_loss(ddgm.model, ddgm.guide, x, importance_weighted=True)
    torch.manual_seed(0)
    samples, log_density = perturb_samples(ddgm.generator(ddgm.prior().expand((64,)).sample()), 0.2)
    energies = ddgm.energy_net(samples)
    expected = (
        ddgm.energy_net(x).mean() - (normalise_importance_weights(energies, log_density) * energies).sum()
    )  # no penalty
    torch.testing.assert_close(weighted, expected)
    with pytest.raises(ValueError, match="mle_fraction=1.0"):
        EnergyObjective.for_data(ddgm, data, mle_fraction=1.0)


def test_the_ratio_of_steps_is_free() -> None:
    objective = EnergyObjective(make_ddgm(), num_unlabelled=10, generator_steps=3)
    assert [update.group for update in objective.updates()] == ["energy"] + ["generator"] * 3
    with pytest.raises(ValueError, match="generator_steps=0"):
        EnergyObjective(make_ddgm(), num_unlabelled=10, generator_steps=0)


def test_fit_updates_energy_and_generator(tmp_path: Path, device: torch.device) -> None:
    data = make_toy_data("ring", num_train=2000)
    ddgm = make_ddgm()
    objective = EnergyObjective.for_data(ddgm, data, gradient_penalty=0.003)
    losses = objective.losses(Batch(data.x[:50], None, None))
    assert set(losses) == {"energy", "generator"} == set(objective.groups())
    config = TrainingConfig(max_steps=60, batch_size=128, learning_rate=5e-4, gradient_clip=10.0, device=str(device))
    run = fit(objective, data, config, out=tmp_path / "run", progress=False)
    last = run.metrics[-1]
    assert {"energy_gap", "entropy", "energy_gradient_norm", "sample_std", "energy_data"} <= {
        name.removeprefix("train/") for name in last
    }
    assert run.metrics[0]["val/std_ratio"] != last["val/std_ratio"]
    twin = pyro_ssvae.load(tmp_path / "run")
    torch.testing.assert_close(twin.energy(data.x[:5]), ddgm.energy(data.x[:5]).cpu())


def test_resuming_changes_nothing(tmp_path: Path) -> None:
    data = make_toy_data("spiral", num_train=1000)
    settings = {"batch_size": 64, "learning_rate": 5e-4, "evaluate_every": 20, "device": "cpu"}

    def objective() -> EnergyObjective:
        return EnergyObjective.for_data(make_ddgm(), data, langevin_steps=2)

    whole = objective()
    fit(whole, data, TrainingConfig(max_steps=40, **settings), progress=False)
    first, second = objective(), objective()
    out = tmp_path / "run"
    interrupted = TrainingConfig(max_steps=40, max_minutes=1e-9, **settings)
    fit(first, data, interrupted, out=out, progress=False)
    run = fit(second, data, TrainingConfig(max_steps=40, **settings), out=out, resume=True, progress=False)
    assert run.steps == 40
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, second.module.state_dict()[name]), name


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"val/std_ratio": 0.01, "train/energy_gap": 0.1}, "collapsed"),
        ({"val/std_ratio": 0.9, "train/energy_gap": -1e5}, "diverge"),
        ({"val/std_ratio": 0.9, "train/energy_gap": 0.1, "train/energy_data": -2e6}, "those of data are 2e\\+06 nats"),
        ({"val/std_ratio": 0.9, "train/energy_gap": 0.1}, None),
        ({}, None),
    ],
)
def test_failures_are_found_in_the_history_of_evaluations(row: dict[str, float], words: str | None) -> None:
    assert has_collapsed(row) == (words == "collapsed")
    assert find_failure(4 * [row]) is None or words == "diverge" or "nats" in str(words)
    failure = find_failure(5 * [row])
    assert failure is None if words is None else re.search(words, str(failure))


def test_functions_in_place_of_model_and_guide() -> None:
    """A model that adds x1 to the energy, and a guide with z of half the width, written as plain functions."""
    data, module = make_toy_data("ring", num_train=500), make_ddgm()

    def model(x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, size):
            pyro.factor("energy", -module.energy_net(x) - x[:, 0])

    def guide(x: Tensor, *, size: int | None = None) -> Tensor:
        with data_plate(x, size):
            z = pyro.sample("z", pyro.distributions.Uniform(-0.5 * torch.ones(4), 0.5).to_event(1))
        return module.generator(z)

    objective = EnergyObjective.for_data(module, data, model=model, guide=guide)
    x = data.x[:64]
    torch.manual_seed(3)
    losses = objective.losses(Batch(x, None, None))
    torch.manual_seed(3)
    samples = module.generator(torch.rand(64, 4) - 0.5)
    expected = (module.energy_net(x) + x[:, 0]).mean() - (module.energy_net(samples) + samples[:, 0]).mean()
    torch.testing.assert_close(losses["energy"].total, expected)
    run = fit(objective, data, TrainingConfig(max_steps=20, batch_size=32, device="cpu"), progress=False)
    assert (run.steps, run.why_eager) == (20, None)


def test_wrong_models_and_entropies_are_refused() -> None:
    with pytest.raises(TypeError, match="trains a DDGM, not M1"):
        EnergyObjective(pyro_ssvae.M1((2,), latent_dim=2, hidden_dims=()), num_unlabelled=10)
    with pytest.raises(TypeError, match=r"NearestNeighbourEntropy\(\), not str"):
        EnergyLoss("score", make_ddgm().generator)


def test_config_holds_every_setting() -> None:
    """Results name every setting, so the configuration must change with each of them."""
    found = EnergyObjective(make_ddgm(), num_unlabelled=1, entropy=NearestNeighbourEntropy(dim=1.5)).config()
    assert found["entropy_settings"] == {"dim": 1.5}
    changed = EnergyObjective(make_ddgm(), num_unlabelled=1, negative_weight=1.0, generator_rate=5.0).config()
    assert (found["negative_weight"], changed["negative_weight"]) == (0.0, 1.0)
    assert (found["generator_rate"], changed["generator_rate"]) == (3.0, 5.0)


@pytest.mark.slow
def test_labelled_data_train_the_class_energies() -> None:
    data = SemiSupervisedData.from_arrays(
        *two_classes(2000, few=20), x_validation=two_classes(500)[0], y_validation=two_classes(500)[1]
    )
    ddgm = make_ddgm(num_classes=2)
    objective = EnergyObjective.for_data(ddgm, data, gradient_penalty=0.01)
    x, y = data.x[:4], torch.tensor([0, 1, 1, 0])
    ddgm.eval()
    torch.manual_seed(0)
    plain = objective.updates()[0].loss(Batch(x, None, None)).total
    torch.manual_seed(0)
    labelled = objective.updates()[0].loss(Batch(x, x, y)).total
    by_hand = -(-ddgm.energy_net.by_class(x)).log_softmax(-1)[torch.arange(4), y].mean()
    torch.testing.assert_close(labelled - plain, by_hand, atol=1e-5, rtol=1e-5)
    config = TrainingConfig(max_steps=300, batch_size=100, learning_rate=5e-4, gradient_clip=10.0, device="cpu")
    run = fit(objective, data, config, progress=False)
    assert run.metrics[-1]["val/error"] < 0.05
    assert ddgm.predict_proba(x).sum(-1).tolist() == pytest.approx([1.0] * 4)
    with pytest.raises(ValueError, match="num_classes=K"):
        EnergyObjective.for_data(make_ddgm(), data)
    with pytest.raises(ValueError, match="no classes"):
        make_ddgm().predict(x)


def two_classes(count: int, few: int | None = None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    y = torch.arange(count) % 2
    x = torch.randn(count, 2, generator=generator) * 0.3 + 2.0 * y.unsqueeze(-1) - 1.0
    return x, y if few is None else torch.where(torch.arange(count) < few, y, -1)


@pytest.mark.parametrize("frozen", ["features", "energy", "generator"])
def test_frozen_parameters_under_stock_svi(frozen: str) -> None:
    pyro.clear_param_store()
    ddgm = make_ddgm()
    sides = {"features": ddgm.energy_net.features, "energy": ddgm.energy_net, "generator": ddgm.generator}
    sides[frozen].requires_grad_(False)
    before = {name: value.clone() for name, value in ddgm.named_parameters()}
    loss = EnergyLoss(NearestNeighbourEntropy(), ddgm.generator)
    SVI(*pyro_ssvae.pyro_view(ddgm), pyro.optim.Adam({"lr": 1e-2}), loss).step(torch.randn(20, 2))
    for name, value in ddgm.named_parameters():
        assert torch.equal(value, before[name]) == (not value.requires_grad)
