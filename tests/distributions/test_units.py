"""The units of the data: models fitted to a table in other units are the same model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_ssvae
from pyro_ssvae import M1, M1M2, M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, UnsupervisedELBO, fit
from pyro_ssvae.distributions import Bernoulli, Gaussian, Laplace, Likelihood, Mixed, NegativeBinomial
from pyro_ssvae.distributions import Poisson as PoissonLikelihood
from pyro_ssvae.evaluation import log_likelihood

CLASSES = torch.arange(120) % 3


class StudentT(Likelihood):
    num_params = 2
    name = "student_t"
    real_valued = True

    def forward(self, params: Tensor, event_dim: int) -> dist.TorchDistribution:
        loc, log_scale = params.unbind(-1 - event_dim)
        return dist.StudentT(5.0, *self.in_units(loc, log_scale.clamp(-3.0, 3.0).exp())).to_event(event_dim)


def make_table(columns: int = 4) -> Tensor:
    return torch.randn(3, columns)[CLASSES] * 2.0 + torch.randn(120, columns)


def make_data(x: Tensor) -> SemiSupervisedData:
    return SemiSupervisedData.from_arrays(x, torch.where(torch.arange(120) < 15, CLASSES, -1))


def make_m2(data: SemiSupervisedData, likelihood: str | Likelihood, **options: Any) -> M2:
    pyro.set_rng_seed(1)
    return M2(data.event_shape, 3, latent_dim=2, hidden_dims=(16,), likelihood=likelihood, **options)


def train(model: Any, data: SemiSupervisedData, steps: int = 30, **options: Any) -> Any:
    objective = (SemiSupervisedELBO if model.num_classes else UnsupervisedELBO).for_data(model, data)
    options = {"compile": "eager", "device": "cpu", "warmup_steps": 5} | options
    settings = {name: options.pop(name) for name in ("out", "resume", "on_evaluation") if name in options}
    return fit(objective, data, TrainingConfig(max_steps=steps, **options), progress=False, **settings)


@pytest.mark.parametrize("make", [Gaussian, Laplace, StudentT])
@pytest.mark.parametrize("scale", [1e8, 1e-25])
def test_training_does_not_depend_on_the_scale(make: Callable[[], Likelihood], scale: float) -> None:
    """log p(s x) = log p(x) - D log s, and the same predictions, after training."""
    x = make_table()
    found = []
    for factor in (1.0, scale):
        data = make_data(factor * x)
        m2 = make_m2(data, make())
        train(m2, data)
        log_px = log_likelihood(m2, data.x, num_samples=5).log_px + 4 * math.log(factor)
        found.append((m2.predict_proba(data.x), log_px, m2.generate(3, y=1)[0] / factor))
        assert log_px.isfinite().all()
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs, ours, atol=2e-3, rtol=2e-3)


def test_training_does_not_depend_on_shift_or_pseudo_inputs_on_scale() -> None:
    x = make_table()
    found = []
    for factor, shift in ((1.0, 0.0), (1024.0, 2.0**20)):
        data = make_data(factor * x + shift)
        m2 = make_m2(data, "gaussian", prior="vamp")
        train(m2, data)
        found.append(m2.predict_proba(data.x))
    torch.testing.assert_close(found[1], found[0], atol=5e-3, rtol=0.0)


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_constant_and_huge_columns(name: str) -> None:
    x = torch.cat([make_table(), torch.zeros(120, 1), torch.full((120, 1), 1e8), 1e8 * make_table(1)], 1)
    data = make_data(x)
    m2 = make_m2(data, name)
    train(m2, data, 100)
    assert float((m2.predict(x) != CLASSES).float().mean()) < 0.15
    assert log_likelihood(m2, x, num_samples=5).log_px.isfinite().all()
    drawn = m2.generate(200)[0]
    assert float((drawn[:, 5] / 1e8 - 1.0).abs().max()) < 1e-3
    constant = make_data(torch.full((120, 2), 3.0))
    assert train(make_m2(constant, name), constant, 5).metrics[-1]["train/loss"] == pytest.approx(0.0, abs=100.0)


def test_networks_see_standardised_columns_and_channels() -> None:
    gaussian = Gaussian()
    table = make_table() * torch.tensor([1.0, 1e-6, 1e6, 5.0]) + 7.0
    assert gaussian.network_input(table) is table
    gaussian.fit_units(table)
    seen = gaussian.network_input(table)
    torch.testing.assert_close(seen.mean(0), torch.zeros(4), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(seen.std(0, correction=0)[[0, 2, 3]], torch.ones(3))
    gaussian.fit_units(10.0 * table)  # they are known
    torch.testing.assert_close(gaussian.network_input(table), seen)
    images = torch.randn(50, 2, 4, 4) * torch.tensor([3.0, 300.0]).view(2, 1, 1)
    gaussian = Gaussian()
    gaussian.fit_units(images)
    seen = gaussian.network_input(images)
    torch.testing.assert_close(seen.std((0, 2, 3), correction=0), torch.ones(2))
    rare = torch.zeros(1000, 2)
    rare[0, 0], rare[:, 1] = 1.0, torch.randn(1000)
    gaussian = Gaussian()
    gaussian.fit_units(rare)
    assert float(gaussian.network_input(rare).abs().max()) <= 20.0


@pytest.mark.parametrize("name", ["bernoulli", "continuous_bernoulli", "discretised_logistic", "gaussian"])
def test_images_in_the_unit_interval_are_left_as_they_are(name: str) -> None:
    data = SemiSupervisedData.from_name("digits", num_labels=100)
    m1 = M1.for_data(data, latent_dim=2, hidden_dims=(8,), likelihood=name)
    x = data.x[:5] / data.scale
    assert m1.likelihood.network_input(x) is x
    assert not any("likelihood" in entry for entry in m1.state_dict())


@pytest.mark.parametrize("kind", [PoissonLikelihood, NegativeBinomial])
def test_counts_are_relative_to_their_columns(kind: type[Likelihood]) -> None:
    x = torch.poisson(torch.tensor([0.1, 3.0, 1e4]).expand(500, 3))
    likelihood = kind()
    raw = torch.zeros(2, likelihood.num_params, 3)
    torch.testing.assert_close(likelihood(raw, 1).mean, torch.ones(2, 3))
    likelihood.fit_units(x)
    torch.testing.assert_close(likelihood(raw, 1).mean, x.mean(0).expand(2, 3), rtol=1e-4, atol=0.0)
    seen = likelihood.network_input(x)
    assert float(seen.min()) >= 0.0
    torch.testing.assert_close(seen.std(0, correction=0), torch.ones(3), atol=0.05, rtol=0.0)
    assert bool((seen[:, 2].argsort() == likelihood.network_input(3.0 * x)[:, 2].argsort()).all())
    empty = kind()
    empty.fit_units(torch.zeros(10, 2))
    assert empty(torch.zeros(1, likelihood.num_params, 2), 1).log_prob(torch.ones(2)).isfinite().all()


@pytest.mark.parametrize(("name", "mean"), [("poisson", 100), ("negative_binomial", 1), ("negative_binomial", 10_000)])
def test_counts_of_any_size_are_classified(name: str, mean: int) -> None:
    g = np.random.default_rng(0)
    rates = g.gamma(1.0, mean, size=(3, 30))[CLASSES]
    data = make_data(torch.from_numpy(g.poisson(rates)))
    m2 = make_m2(data, name)
    train(m2, data, 100)
    assert float((m2.predict(data.x) != CLASSES).float().mean()) < 0.05
    assert log_likelihood(m2, data.x, num_samples=5).log_px.isfinite().all()


def test_networks_see_principal_components_of_counts() -> None:
    g = np.random.default_rng(0)
    style = g.normal(size=(400, 1))
    rates = np.exp(2.0 + 0.5 * style * g.choice([-1.0, 1.0], 40) + 0.3 * g.normal(size=40))
    x = torch.as_tensor(g.poisson(rates * g.uniform(0.5, 2.0, (400, 1)))).float()
    likelihood = NegativeBinomial(offset=True, columns=40, components=3)
    assert likelihood.network_input(x[:2]).shape == (2, 3)
    likelihood.fit_units(x)
    seen = likelihood.network_input(x)
    torch.testing.assert_close(seen.square().mean(), torch.tensor(1.0), atol=0.01, rtol=0.0)
    assert abs(np.corrcoef(seen[:, 0], style[:, 0])[0, 1]) > 0.95
    torch.testing.assert_close(likelihood.network_input(2.0 * x)[:, 0], seen[:, 0], atol=0.05, rtol=0.0)
    assert np.corrcoef(seen.T)[0, 1] == pytest.approx(0.0, abs=1e-3)
    few = NegativeBinomial(offset=True, components=3)
    few.fit_units(x[:2])
    assert few.network_input(x[:5]).isfinite().all()
    assert few.network_input(x[:5]).shape == (5, 3)
    with pytest.raises(ValueError, match="components=0"):
        NegativeBinomial(components=0)


def test_poisson_warns_of_counts_that_vary_too_much() -> None:
    x = torch.poisson(torch.tensor([[10.0], [30_000.0]]).expand(2, 3).repeat(50, 1))
    with pytest.warns(UserWarning, match="far too large weight: use likelihood='negative_binomial'"):
        PoissonLikelihood().fit_units(x)


def test_mixed_has_the_units_of_its_parts() -> None:
    parts = [([3, 0], Gaussian()), ([1], NegativeBinomial()), ([2], Bernoulli())]
    x = torch.stack(
        [1e6 * torch.randn(120), torch.poisson(torch.full((120,), 900.0)), CLASSES % 2, torch.randn(120)], -1
    )
    mixed = Mixed(parts)
    assert torch.equal(mixed.network_input(x), x)
    mixed.fit_units(x)
    seen = mixed.network_input(x)
    torch.testing.assert_close(seen[:, 2], x[:, 2])
    torch.testing.assert_close(seen[:, 0], (x[:, 0] - x[:, 0].mean()) / x[:, 0].std(correction=0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(seen[:, 1].mean(), torch.tensor(3.0), atol=1e-2, rtol=0.0)
    mean = mixed(torch.zeros(1, 2, 4), 1).mean[0]
    torch.testing.assert_close(mean[:2] / x[:, :2].mean(0), torch.ones(2), atol=1e-3, rtol=0.0)


def test_units_are_saved_and_those_of_a_loaded_model_kept(tmp_path: Path) -> None:
    data = make_data(100.0 * make_table())
    m2 = make_m2(data, "gaussian")
    old = {name: value.clone() for name, value in m2.state_dict().items()}  # of a model without units
    train(m2, data, 5)
    again = pyro_ssvae.load(pyro_ssvae.save(m2, tmp_path))
    torch.testing.assert_close(again.predict_proba(data.x), m2.predict_proba(data.x), atol=0.0, rtol=0.0)
    train(again, make_data(data.x + 1e4), 2)
    torch.testing.assert_close(again.likelihood.network_input(data.x), m2.likelihood.network_input(data.x))
    m2.load_state_dict(old)
    train(m2, data, 2)
    assert m2.likelihood.network_input(data.x) is data.x
    assert m2.state_dict().keys() == old.keys()


def test_units_in_a_resumed_run(tmp_path: Path) -> None:
    data = make_data(1e5 * make_table())
    whole = train(make_m2(data, "gaussian"), data, 12, evaluate_every=4)

    def stop(model: M2, metrics: dict[str, Any]) -> None:
        if metrics["step"] == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make_m2(data, "gaussian"), data, 12, evaluate_every=4, out=tmp_path / "run", on_evaluation=stop)
    rest = train(make_m2(data, "gaussian"), data, 12, evaluate_every=4, out=tmp_path / "run", resume=True)
    for name, weights in whole.last_weights.items():
        assert torch.equal(rest.last_weights[name], weights)


def test_a_stack_has_the_units_of_its_m1() -> None:
    data = make_data(1e4 * make_table())
    m1 = M1(data.event_shape, latent_dim=3, hidden_dims=(16,), likelihood="gaussian")
    stack = M1M2.from_m1(M1(data.event_shape, latent_dim=3, likelihood="gaussian"), 3)
    train(stack, data, 2)
    assert stack.likelihood.network_input(data.x) is data.x  # M1 is frozen, and may have been trained without units
    train(m1, data.without_labels(), 20)
    for of in ("z1", "x"):
        stack = M1M2.from_m1(m1, 3, latent_dim=2, hidden_dims=(16,), classify_from=of)
        train(stack, data, 20)
        assert stack.likelihood is m1.likelihood
        assert float(stack.likelihood.network_input(data.x).abs().max()) < 10.0
        assert log_likelihood(stack, data.x, num_samples=3).log_px.isfinite().all()
    joint = M1M2.from_m1(M1(data.event_shape, latent_dim=3, likelihood="gaussian"), 3).unfreeze_m1()
    train(joint, data, 2)
    assert float(joint.m1.likelihood.network_input(data.x).abs().max()) < 10.0


def test_an_example_far_from_all_others_has_a_finite_posterior() -> None:
    m2 = make_m2(make_data(make_table()), "gaussian")
    far = torch.full((2, 4), 1e6)
    posterior = m2.encode(far, torch.zeros(2, dtype=torch.int64))
    assert posterior.base_dist.scale.isfinite().all()
    assert posterior.log_prob(posterior.rsample()).isfinite().all()


def test_models_of_one_likelihood_have_units_of_their_own() -> None:
    likelihood, table = Gaussian(), make_table()
    first, second = (
        M1.for_data(make_data(x).without_labels(), likelihood=likelihood, latent_dim=2) for x in (table, 1e4 * table)
    )
    ratio = second.likelihood._unit / first.likelihood._unit
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1e4))
    model = M1((4,), likelihood=likelihood, missing=True)
    with pytest.raises(ValueError, match="belongs to a model with missing=True; give the one with missing=False"):
        M1((4,), likelihood=likelihood)
    assert model.likelihood.missing


def test_a_model_that_is_saved_before_it_meets_data_has_no_units(tmp_path: Path) -> None:
    data = make_data(1e4 * make_table())
    models = [M2(data.event_shape, 2, latent_dim=2, hidden_dims=(4,), likelihood="gaussian")]
    models.append(pyro_ssvae.load(pyro_ssvae.save(models[0], tmp_path)))
    for model in models:
        model.fit_units(data)
    assert torch.equal(models[0].likelihood._unit, models[1].likelihood._unit)


def test_double_precision_is_kept_by_saving(tmp_path: Path) -> None:
    data = make_data(1e4 * make_table())
    m2 = make_m2(data, "gaussian")
    train(m2, data, 3, precision="64-true")
    loaded = pyro_ssvae.load(pyro_ssvae.save(m2.eval(), tmp_path))
    assert {tensor.dtype for tensor in (*loaded.parameters(), loaded.likelihood._unit)} == {torch.float64}
    assert torch.equal(loaded.predict_proba(data.x), m2.predict_proba(data.x))
