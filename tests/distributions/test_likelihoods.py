"""Every likelihood: closed form, domain, and finding again the distribution that data was drawn from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_ssvae import M2, SemiSupervisedELBO
from pyro_ssvae._configurable import build, describe
from pyro_ssvae.data import Batch
from pyro_ssvae.distributions import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    DiscretisedLogistic,
    Gaussian,
    Laplace,
    Likelihood,
    Mixed,
    NegativeBinomial,
    Poisson,
)
from pyro_ssvae.distributions.choice import make_likelihood
from pyro_ssvae.distributions.likelihoods import ContinuousBernoulli
from tests.objectives.small import take_steps


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_continuous_bernoulli_is_a_density_on_the_unit_interval() -> None:
    grid = torch.linspace(0.0, 1.0, 20_001, dtype=torch.float64)
    for logit in (-6.0, -0.3, 0.0, 2.0):
        distribution = ContinuousBernoulli()(torch.full((1, 1), logit, dtype=torch.float64), 1)
        density = distribution.log_prob(grid.unsqueeze(-1)).exp()
        assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=1e-5)
        mean = float(torch.trapezoid(density * grid, grid))
        assert float(distribution.mean) == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("logit", [-700.0, -50.0, -17.0, -0.31, -0.29, 1e-7, 0.25, 0.35, 5.0, 17.0, 50.0, 700.0])
def test_continuous_bernoulli_is_in_closed_form_for_every_logit(logit: float) -> None:
    """log C = log(|l| / tanh(|l| / 2)), in value and gradient; single precision agrees."""
    x = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    logits = torch.full((1, 3), logit, dtype=torch.float64, requires_grad=True)
    log_prob = ContinuousBernoulli()(logits, 1).log_prob(x)
    reference = torch.full((3,), logit, dtype=torch.float64, requires_grad=True)
    size = reference.abs()
    expected = (x * reference - F.softplus(reference) + (size / (size / 2).tanh()).log()).sum()
    torch.testing.assert_close(log_prob, expected, atol=1e-9, rtol=1e-12)
    log_prob.backward()
    mean = ContinuousBernoulli()(logits, 1).base_dist.mean.detach()
    torch.testing.assert_close(logits.grad[0], x - mean, atol=1e-8, rtol=1e-8)  # of an exponential family
    single = ContinuousBernoulli()(logits.detach().float(), 1).log_prob(x.float())
    torch.testing.assert_close(single.double(), log_prob.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("logit", [-30.0, -0.2, 0.0, 2.0, 100.0])
def test_continuous_bernoulli_draws_have_its_moments(logit: float) -> None:
    distribution = ContinuousBernoulli()(torch.full((1, 1), logit), 1)
    drawn = distribution.rsample((40_000,))
    assert bool(((drawn >= 0) & (drawn <= 1)).all())
    assert float(drawn.mean()) == pytest.approx(
        float(distribution.mean), abs=4.5 * float(distribution.variance) ** 0.5 / 200
    )
    assert float(drawn.var()) == pytest.approx(float(distribution.variance), rel=0.06)
    zero = torch.zeros(1, 1, requires_grad=True)
    ContinuousBernoulli()(zero, 1).log_prob(torch.tensor([0.3])).backward()
    assert zero.grad.item() == pytest.approx(-0.2)


def test_bernoulli_is_in_closed_form_with_and_without_gradients() -> None:
    logits = torch.linspace(-200.0, 200.0, 801, requires_grad=True)
    x = torch.rand(801)
    distribution = Bernoulli()(logits.unsqueeze(-1), 0)
    expected = x.double() * logits.double() - F.softplus(logits.double())
    torch.testing.assert_close(distribution.log_prob(x).double(), expected, atol=1e-5, rtol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(distribution.log_prob(x).double(), expected.detach(), atol=1e-5, rtol=1e-6)
        assert distribution.expand((3, 801)).log_prob(x).shape == (3, 801)
    (slope,) = torch.autograd.grad(distribution.log_prob(x).sum(), logits)
    torch.testing.assert_close(slope, x - logits.detach().sigmoid())


def test_laplace_is_in_closed_form() -> None:
    distribution = Laplace(min_scale=0.1)(torch.randn(4, 2, 3).double(), 1)
    x, base = torch.randn(4, 3).double(), distribution.base_dist
    expected = stats.laplace.logpdf(x.numpy(), base.loc.numpy(), base.scale.numpy()).sum(-1)
    torch.testing.assert_close(distribution.log_prob(x), torch.as_tensor(expected))


def test_categorical_is_a_table_lookup() -> None:
    logits = torch.randn(4, 6, 3).double()  # 6 levels, 3 elements
    distribution = Categorical(levels=6)(logits, 1)
    index = torch.randint(6, (4, 3))
    expected = logits.log_softmax(1).gather(1, index.unsqueeze(1)).squeeze(1).sum(-1)
    torch.testing.assert_close(distribution.log_prob(index.double() / 5), expected)
    values = torch.arange(6).double() / 5
    torch.testing.assert_close(distribution.mean, torch.einsum("bld,l->bd", logits.softmax(1), values))
    many = distribution.sample((4000,))
    assert set((many * 5).round().unique().tolist()) <= set(range(6))
    error = distribution.base_dist.variance.sqrt() / math.sqrt(4000)
    assert bool(((many.mean(0) - distribution.mean).abs() < 4.5 * error).all())


@pytest.mark.parametrize(("loc", "log_scale"), [(0.4, 0.0), (0.9, -2.0), (-0.1, 1.0), (0.5, -4.0)])
def test_cells_of_the_discretised_logistic(loc: float, log_scale: float) -> None:
    distribution = DiscretisedLogistic(levels=16)(numbers(loc, log_scale).view(2, 1), 1)
    values = torch.arange(16).double().unsqueeze(-1) / 15
    log_probs = distribution.log_prob(values)
    assert float(log_probs.exp().sum()) == pytest.approx(1.0, abs=1e-9)
    scale = math.exp(log_scale) * 16 / 10 / 15
    above = stats.logistic.cdf((values[:, 0] + 0.5 / 15).numpy(), loc, scale)
    below = stats.logistic.cdf((values[:, 0] - 0.5 / 15).numpy(), loc, scale)
    above[-1], below[0] = 1.0, 0.0
    torch.testing.assert_close(log_probs.exp(), torch.as_tensor(above - below), atol=1e-9, rtol=1e-6)
    share = torch.bincount((distribution.sample((20_000,)) * 15).round().long().flatten(), minlength=16) / 20_000
    assert float((share - log_probs.exp()).abs().max()) < 0.02


def test_a_far_off_logistic_keeps_finite_gradients() -> None:
    params = torch.tensor([[0.0], [-9.0]], requires_grad=True)
    log_prob = DiscretisedLogistic()(params, 1).log_prob(torch.tensor([1.0 / 255 * 200]))
    log_prob.backward()
    assert torch.isfinite(log_prob)
    assert torch.isfinite(params.grad).all()


def test_counts_are_in_closed_form() -> None:
    x = torch.randint(0, 30, (4, 3)).double()
    log_rate = torch.randn(4, 1, 3).double()
    expected = stats.poisson.logpmf(x.numpy(), log_rate[:, 0].exp().numpy()).sum(-1)
    torch.testing.assert_close(Poisson()(log_rate, 1).log_prob(x), torch.as_tensor(expected))
    params = torch.randn(4, 2, 3).double()
    distribution = NegativeBinomial()(params, 1)
    mean, total = params[:, 0].exp(), params[:, 1].exp()
    expected = stats.nbinom.logpmf(x.numpy(), total.numpy(), (total / (total + mean)).numpy()).sum(-1)
    torch.testing.assert_close(distribution.log_prob(x), torch.as_tensor(expected))
    torch.testing.assert_close(distribution.mean, mean)
    torch.testing.assert_close(distribution.variance, mean + mean.square() / total)


def test_counts_with_one_dispersion_for_each_column() -> None:
    """It is found, and the probability is that of a decoder that returns the same number everywhere."""
    random = np.random.default_rng(0)
    r, m = np.array([0.5, 8.0]), np.array([4.0, 9.0])
    x = torch.as_tensor(random.poisson(random.gamma(r, m / r, (4000, 2)))).float()
    likelihood, params = NegativeBinomial(columns=2), torch.zeros(1, 2, requires_grad=True)
    optimizer = torch.optim.Adam([*likelihood.parameters(), params], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss = -likelihood(params, 1).log_prob(x).mean()
        loss.backward()
        optimizer.step()
    assert likelihood.log_total.exp().tolist() == pytest.approx(r.tolist(), rel=0.15)
    assert likelihood(params, 1).mean.tolist() == pytest.approx(m.tolist(), rel=0.1)
    again = build(describe(likelihood), offset=True)
    nn.init.constant_(again.log_total, 0.7)
    by_decoder, x = NegativeBinomial(offset=True), x[:5]
    for one in (again, by_decoder):
        one.fit_units(x)
    raw = torch.randn(3, 5, 1, 2)
    both = torch.cat([raw, again.log_total.expand_as(raw)], -2)
    x[0, 1] = math.nan
    torch.testing.assert_close(again(raw, 1).log_prob(x), by_decoder(both, 1).log_prob(x))
    with pytest.raises(ValueError, match="columns=0"):
        NegativeBinomial(columns=0)


def mixed() -> Mixed:
    return Mixed([([0, 3], Gaussian()), ([1], Poisson()), ([2], Categorical(levels=4, spacing=1))])


@pytest.mark.parametrize("log_rate", [-120.0, -1e4, 50.0])
@pytest.mark.parametrize("kind", [Poisson, NegativeBinomial])
def test_counts_at_extreme_rates_have_finite_gradients(kind: type[Likelihood], log_rate: float) -> None:
    likelihood = kind()
    params = torch.full((1, likelihood.num_params, 1), log_rate, requires_grad=True)
    log_prob = likelihood(params, 1).log_prob(torch.tensor([[2.0]])).sum()
    log_prob.backward()
    assert log_prob.isfinite()
    assert params.grad.isfinite().all()


@pytest.mark.parametrize("log_r", [0.0, 5.0, 10.0])
def test_one_dispersion_is_accurate_near_a_poisson(log_r: float) -> None:
    likelihood, x = NegativeBinomial(columns=1), torch.tensor([[0.0], [3.0]])
    torch.nn.init.constant_(likelihood.log_total, log_r)
    for log_mean in (-7.0, -3.0, 0.0, 3.0):
        params = torch.full((1, 1, 1), log_mean, requires_grad=True)
        found = likelihood(params, 1).log_prob(x)
        r, mean = numbers(log_r).exp(), numbers(log_mean).exp()
        exact = torch.distributions.NegativeBinomial(r, logits=mean.log() - r.log()).log_prob(x.double()).squeeze(-1)
        assert found[0].item() == pytest.approx(exact[0].item(), rel=1e-5)
        # float32 resolves log Γ(r), 2e5 at r = 22,000, to a hundredth
        assert found[1].item() == pytest.approx(exact[1].item(), abs=1e-5 + 1e-6 * math.lgamma(math.exp(log_r)))
        (gradient,) = torch.autograd.grad(found[0], params)
        expected = -mean / (1.0 + mean / r)
        torch.testing.assert_close(gradient.double().flatten(), expected, rtol=1e-4, atol=0.0)


def test_mixed_gives_each_column_its_distribution() -> None:
    params = torch.randn(5, 4, 4).double()
    distribution = mixed()(params, 1)
    x = torch.stack([torch.randn(5), torch.arange(5.0), torch.arange(5.0) % 4, torch.randn(5)], -1).double()
    expected = Gaussian()(params[:, :2, [0, 3]], 1).log_prob(x[:, [0, 3]])
    expected = expected + Poisson()(params[:, :1, [1]], 1).log_prob(x[:, [1]])
    expected = expected + params[:, :, 2].log_softmax(-1)[torch.arange(5), x[:, 2].long()]
    torch.testing.assert_close(distribution.log_prob(x), expected)
    torch.testing.assert_close(distribution.mean[:, 3], params[:, 0, 3])
    drawn = distribution.sample((7,))
    assert drawn.shape == (7, 5, 4)
    mixed().check(drawn)
    assert distribution.expand((3, 5)).log_prob(x).shape == (3, 5)
    again = build(describe(mixed()))
    torch.testing.assert_close(again(params, 1).log_prob(x), expected)


def test_mixed_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="at least one part"):
        Mixed([])
    with pytest.raises(ValueError, match="once"):
        Mixed([([0, 1], Gaussian()), ([1], Poisson())])
    with pytest.raises(TypeError, match="needs a Likelihood"):
        Mixed([([0], "gaussian")])
    with pytest.raises(ValueError, match=r"Columns \[1\]: Poisson needs counts"):
        mixed().check(torch.tensor([[0.3, 0.5, 1.0, 2.0]]))
    with pytest.raises(ValueError, match="rows of 4 columns"):
        mixed()(torch.zeros(2, 4, 1, 4), 2)
    with pytest.raises(ValueError, match="the data has 3 columns"):
        mixed().check(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="is unknown.*such as Mixed"):
        make_likelihood("mixed")


@pytest.mark.parametrize(
    ("likelihood", "good", "bad", "words"),
    [
        (ContinuousBernoulli(), [0.0, 1.0], [1.5], r"\[0, 1\]"),
        (Categorical(), [0.0, 7 / 255, 1.0], [0.5], "off the grid"),
        (Categorical(levels=3, spacing=1), [0.0, 2.0], [3.0], "3 levels"),
        (DiscretisedLogistic(), [0.0, 1.0], [-1.0], "DiscretisedLogistic needs values"),
        (Poisson(), [0.0, 12.0], [0.5], "whole numbers"),
        (NegativeBinomial(), [3.0], [-1.0], "minimum of -1"),
        (Laplace(), [-5.0, 5.0], None, ""),
        (Bernoulli(), [0.5], [math.nan], r"\[0, 1\]"),
        (ContinuousBernoulli(), [0.5], [math.nan], r"\[0, 1\]"),
        (Poisson(), [1.0], [math.nan], "needs counts"),
        (NegativeBinomial(), [1.0], [math.inf], "needs counts"),
        (Categorical(), [0.0], [math.nan], "Categorical needs values"),
        (Categorical(), [0.0], [math.inf], "Categorical needs values"),
        (DiscretisedLogistic(), [0.0], [math.nan], "DiscretisedLogistic needs values"),
    ],
)
def test_domains(likelihood: Likelihood, good: list[float], bad: list[float] | None, words: str) -> None:
    likelihood.check(torch.tensor(good))
    if bad is not None:
        with pytest.raises(ValueError, match=words):
            likelihood.check(torch.tensor(bad))


def distributions() -> dict[str, tuple[Likelihood, Tensor]]:
    """Each likelihood with raw numbers, ``(P, 1)``, of a distribution that data is drawn from."""
    return {
        "bernoulli": (Bernoulli(), torch.tensor([[0.8]])),
        "continuous_bernoulli": (ContinuousBernoulli(), torch.tensor([[1.5]])),
        "gaussian": (Gaussian(), torch.tensor([[0.3], [0.5]])),
        "laplace": (Laplace(), torch.tensor([[-0.4], [0.2]])),
        "categorical": (Categorical(levels=5), torch.tensor([[1.0], [0.0], [-1.0], [0.5], [0.2]])),
        "discretised_logistic": (DiscretisedLogistic(), torch.tensor([[0.6], [0.3]])),
        "poisson": (Poisson(), torch.tensor([[1.2]])),
        "negative_binomial": (NegativeBinomial(), torch.tensor([[1.5], [0.4]])),
    }


def fit_params(likelihood: Likelihood, params: Tensor, x: Tensor) -> None:
    """Maximise the likelihood of ``x`` over raw numbers and the parameters of the likelihood."""
    learned = [params, *likelihood.parameters()]
    optimizer = torch.optim.LBFGS(learned, lr=0.5, max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -likelihood(params, 1).log_prob(x).mean()
        value.backward()
        return value

    optimizer.step(loss)


def test_every_named_likelihood_is_tried() -> None:
    assert set(distributions()) == set(LIKELIHOODS)


@pytest.mark.parametrize("name", list(LIKELIHOODS))
def test_fitting_finds_the_distribution_that_data_was_drawn_from(name: str) -> None:
    likelihood, truth = distributions()[name]
    x = likelihood(truth, 1).sample((20_000,))
    likelihood.check(x)
    params = torch.zeros_like(truth, requires_grad=True)
    fit_params(likelihood, params, x)
    with torch.no_grad():
        at_truth = likelihood(truth, 1).log_prob(x)
        at_fit = likelihood(params, 1).log_prob(x)
        # The fit beats the truth on the sample by about (number of parameters) / 2N nats per example, and no more.
        gain = float((at_fit - at_truth).mean())
        assert -1e-5 < gain < 10 * truth.numel() / len(x)
        found, wanted = likelihood(params, 1), likelihood(truth, 1)
        assert float(found.mean) == pytest.approx(float(wanted.mean), abs=4.5 * float(x.std()) / math.sqrt(len(x)))


@pytest.mark.parametrize(("kind", "distribution"), [(Gaussian, stats.norm), (Laplace, stats.laplace)])
def test_location_and_scale_find_those_of_the_data(kind: type, distribution: Any) -> None:
    """The maximum-likelihood location and scale have closed forms."""
    likelihood = kind()
    x = torch.as_tensor(distribution.rvs([0.5, -2.0], 0.3, size=(4000, 2), random_state=0), dtype=torch.float32)
    params = torch.zeros(2, 2, requires_grad=True)
    fit_params(likelihood, params, x)
    found = likelihood(params, 1).base_dist
    centre = x.mean(0) if kind is Gaussian else x.median(0).values
    off = x - centre
    scale = off.square().mean(0).sqrt() if kind is Gaussian else off.abs().mean(0)
    torch.testing.assert_close(found.loc.detach(), centre, atol=2e-3, rtol=0.0)
    torch.testing.assert_close(found.scale.detach(), scale, atol=2e-3, rtol=0.0)
    assert scale.tolist() == pytest.approx([0.3, 0.3], rel=0.05)


def test_mixed_finds_the_distributions_that_its_columns_were_drawn_from() -> None:
    likelihood = mixed()
    truth = torch.tensor([[0.5, 1.2, 1.0, -2.0], [0.4, 0.0, 0.0, -1.0], [0.0, 0.0, -1.0, 0.0], [0.0, 0.0, 0.5, 0.0]])
    x = likelihood(truth, 1).sample((20_000,))
    params = torch.zeros_like(truth, requires_grad=True)
    fit_params(likelihood, params, x)
    with torch.no_grad():
        found, wanted = likelihood(params, 1), likelihood(truth, 1)
        gain = float((found.log_prob(x) - wanted.log_prob(x)).mean())
        assert -1e-5 < gain < 10 * 9 / len(x)  # nine numbers count: 2 + 2 + 1 + 4
        error = 4.5 * x.std(0) / math.sqrt(len(x))
        assert bool(((found.mean - wanted.mean).abs() < error).all())
        torch.testing.assert_close(found.variance, x.var(0), rtol=0.05, atol=0.0)


@pytest.mark.parametrize("name", list(LIKELIHOODS))
def test_m2_trains_under_every_likelihood(name: str, device: torch.device) -> None:
    m2 = M2((5,), 3, latent_dim=2, hidden_dims=(8,), likelihood=name)
    objective = SemiSupervisedELBO(m2, num_labelled=3, num_unlabelled=30).to(device)
    x, y = torch.rand(9, 5, device=device).round(), torch.arange(3, device=device)
    losses = take_steps(objective, Batch(x, x[:3], y), 30)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert m2.generate(4)[0].shape == (4, 5)


class _Unfinished(Likelihood):
    name = "unfinished"


@pytest.mark.parametrize(
    ("likelihood", "error", "words"),
    [
        (_Unfinished(), TypeError, "_Unfinished must define num_params"),
        (NegativeBinomial(columns=5), ValueError, "columns=5, and rows have 3 columns"),
    ],
)
def test_likelihoods_that_do_not_fit_say_so(likelihood: Likelihood, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        M2((3,), 2, latent_dim=2, hidden_dims=(4,), likelihood=likelihood).generate(1)


def test_unknown_names_are_listed() -> None:
    with pytest.raises(ValueError, match="bernoulli, continuous_bernoulli.*Mixed"):
        make_likelihood("normal")
    assert isinstance(make_likelihood("poisson")(torch.zeros(2, 1, 3), 1), dist.Independent)
