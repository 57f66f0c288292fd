"""Missing values: what is left out of the bound, what networks see, what is filled in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import AffineTransform
from torch import Tensor, nn

import pyro_ssvae
from pyro_ssvae import DDGM, M1, M1M2, M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, UnsupervisedELBO, fit
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
from pyro_ssvae.evaluation import log_likelihood
from pyro_ssvae.models.base import seeded

COLUMNS = 6
SEEN, UNSEEN = [0, 1, 3, 5], [2, 4]


def make_mixed(columns: int) -> Likelihood:
    return Mixed([(range(columns // 2), Gaussian()), (range(columns // 2, columns), NegativeBinomial())])


MAKERS: dict[str, Callable[[], Likelihood]] = {
    "gaussian": Gaussian,
    "laplace": Laplace,
    "bernoulli": Bernoulli,
    "continuous_bernoulli": LIKELIHOODS["continuous_bernoulli"],
    "poisson": Poisson,
    "negative_binomial": NegativeBinomial,
    "offset": lambda: NegativeBinomial(offset=True),
    "categorical": lambda: Categorical(4, 1.0),
    "logistic": lambda: DiscretisedLogistic(4, 1.0),
}


def make_table(name: str, rows: int = 60, columns: int = COLUMNS) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if name in ("gaussian", "laplace", "mixed"):
        x = torch.randn(rows, columns, generator=generator) * torch.logspace(-2, 3, columns) + 5.0
        x[:, columns // 2 :] = x[:, columns // 2 :].abs().round() if name == "mixed" else x[:, columns // 2 :]
        return x
    if name in ("bernoulli", "categorical", "logistic"):
        return torch.randint(2 if name == "bernoulli" else 4, (rows, columns), generator=generator).float()
    if name == "continuous_bernoulli":
        return torch.rand(rows, columns, generator=generator)
    return torch.poisson(torch.logspace(0, 2, columns).expand(rows, columns), generator=generator)


def remove(x: Tensor, fraction: float = 0.3) -> Tensor:
    gone = torch.rand(x.shape, generator=torch.Generator().manual_seed(4)) < fraction
    return torch.where(gone, torch.nan, x)


def restrict(full: nn.Linear, part: nn.Linear, seen: Tensor) -> None:
    """Give a layer over the observed columns the weights of one over all, of which the other inputs are constant."""
    others = [column for column in range(full.in_features) if column not in SEEN]
    part.weight.copy_(full.weight[:, SEEN])
    part.bias.copy_(full.bias + full.weight[:, others] @ seen[0, others])


def copy_weights(full: Any, part: Any, x: Tensor) -> None:
    """Give a model over the observed columns the weights of a model over all of them."""
    seen, saved, own = full.likelihood.network_input(x), full.state_dict(), part.state_dict()
    last = [name for name in saved if name.startswith("decoder") and name.endswith(("weight", "bias"))][-2:]
    part.load_state_dict(
        {name: value for name, value in saved.items() if "likelihood" not in name and own[name].shape == value.shape}
        | {name: saved[name].unflatten(0, (-1, COLUMNS))[:, SEEN].flatten(0, 1) for name in last}
        | {name: value for name, value in own.items() if "likelihood" in name},
        strict=False,
    )
    with torch.no_grad():
        if isinstance(full, M1):
            restrict(full.encoder.layers[0], part.encoder.layers[0], seen)
        else:
            restrict(full.encoder.first.linear, part.encoder.first.linear, seen)
            restrict(full.classifier.layers[0], part.classifier.layers[0], seen)


@pytest.mark.parametrize("kind", [M1, M2])
@pytest.mark.parametrize("name", [*MAKERS, "mixed"])
def test_the_bound_is_that_of_a_model_of_the_observed_columns(name: str, kind: Any) -> None:
    x = make_table(name)
    make_full = (lambda: make_mixed(COLUMNS)) if name == "mixed" else MAKERS[name]
    make_part = (lambda: make_mixed(len(SEEN))) if name == "mixed" else MAKERS[name]
    options: dict[str, Any] = {"latent_dim": 2, "hidden_dims": (8,)} | ({"num_classes": 3} if kind is M2 else {})
    pyro.set_rng_seed(0)
    full = kind((COLUMNS,), likelihood=make_full(), missing=True, **options)
    part = kind((len(SEEN),), likelihood=make_part(), **options)
    holes = x.clone()
    holes[:, UNSEEN] = torch.nan
    full.likelihood.fit_units(holes)
    part.likelihood.fit_units(x[:, SEEN])
    copy_weights(full, part, holes)
    losses = []
    for model, examples in ((full, holes), (part, x[:, SEEN])):
        sizes: dict[str, Any] = {"num_labelled": 60, "num_unlabelled": 60, "alpha": 1.0}
        objective: Any = SemiSupervisedELBO(model, **sizes) if kind is M2 else UnsupervisedELBO(model, num_examples=60)
        with seeded(1):
            labelled = (examples, torch.arange(60) % 3) if kind is M2 else (None, None)
            loss = objective((examples, *labelled))
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    gradients = [parameter.grad for parameter in full.parameters() if parameter.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    of_decoder = gradients[[p is list(full.decoder.parameters())[-1] for p in full.parameters()].index(True)]
    assert not of_decoder.unflatten(0, (-1, COLUMNS))[:, UNSEEN].any()


class FixedScale(Likelihood):
    """Gaussian elements of a known standard deviation."""

    name, num_params = "fixed_scale", 1

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, params: Tensor, event_dim: int) -> torch.distributions.Distribution:
        return dist.Normal(params.squeeze(-1 - event_dim), self.scale).to_event(event_dim)


class ExactPosterior(nn.Module):
    """q(z|x) = p(z|x) of a linear Gaussian model, from the observed values and what is missing."""

    def __init__(self, weight: Tensor, scale: float) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(weight), scale

    def forward(self, x: Tensor) -> Tensor:
        values, missing = x.chunk(2, -1)
        observed = 1.0 - missing
        weighted = observed.unsqueeze(-1) * self.weight / self.scale**2  # (B, D, 1)
        variance = 1.0 / (1.0 + (weighted * self.weight).sum(1))
        loc = variance * (weighted * values.unsqueeze(-1)).sum(1)
        return torch.cat([loc, 0.5 * variance.log()], -1)


def test_log_likelihood_is_that_of_the_observed_values_in_closed_form() -> None:
    weight, scale = torch.tensor([[1.0], [-0.5], [2.0], [0.3]]), 0.7
    m1 = M1(
        (4,),
        latent_dim=1,
        hidden_dims=(),
        likelihood=FixedScale(scale),
        encoder=ExactPosterior(weight, scale),
        missing=True,
    )
    with torch.no_grad():
        m1.decoder.layers[0].weight.copy_(weight)
        m1.decoder.layers[0].bias.zero_()
    x = remove(torch.randn(30, 4), 0.4)
    x[0] = torch.nan
    found = log_likelihood(m1, x, num_samples=2).log_px
    covariance = weight @ weight.T + scale**2 * torch.eye(4)
    imputed = m1.impute(x, num_samples=4000)
    for row, log_px, filled in zip(x, found, imputed, strict=True):
        known = ~row.isnan()
        assert torch.equal(filled[known], row[known])
        if known.any():
            among = covariance[known][:, known]
            normal = torch.distributions.MultivariateNormal(torch.zeros(int(known.sum())), among)
            assert float(log_px) == pytest.approx(float(normal.log_prob(row[known])), abs=1e-4)
            mean = covariance[~known][:, known] @ torch.linalg.solve(among, row[known])
            torch.testing.assert_close(filled[~known], mean, atol=0.15, rtol=0.0)
        else:
            assert float(log_px) == pytest.approx(0.0, abs=1e-5)


def test_units_are_those_of_the_observed_values() -> None:
    x = make_table("gaussian")
    x[1::3, 0] = x[::2, 1] = torch.nan
    gaussian = Gaussian()
    gaussian.missing = True
    gaussian.fit_units(x)
    seen, missing = gaussian.network_input(x).chunk(2, -1)
    assert torch.equal(missing == 1.0, x.isnan())
    assert not seen[x.isnan()].any()
    for column in range(COLUMNS):
        values = seen[~x[:, column].isnan(), column]
        assert float(values.mean()) == pytest.approx(0.0, abs=1e-3)
        assert float(values.std(correction=0)) == pytest.approx(1.0, abs=1e-3)


def test_networks_see_the_mean_for_a_missing_zero_or_one() -> None:
    x = torch.tensor([[0.0, 1.0], [1.0, torch.nan], [0.0, 1.0], [torch.nan, 1.0], [0.0, 0.0]])
    data = SemiSupervisedData.from_arrays(x)
    m1 = M1.for_data(data, latent_dim=1, hidden_dims=(4,), likelihood="auto")
    expected = torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 0.75, 0.0, 1.0], [0.25, 1.0, 1.0, 0.0]])
    torch.testing.assert_close(m1.likelihood.network_input(x[[0, 1, 3]]), expected)


AFFINE = AffineTransform(1.0, 2.0)


def choose_level(first: Tensor, second: Tensor) -> Any:
    return dist.Categorical(logits=torch.stack([first, second, first], -1))


class _Own(Likelihood):
    name = "own"

    def __init__(self, family: Callable[..., Any], num_params: int) -> None:
        super().__init__()
        self.family, self.num_params = family, num_params

    def forward(self, params: Tensor, event_dim: int) -> Any:
        return self.family(*params.unbind(-1 - event_dim)).to_event(event_dim)


@pytest.mark.parametrize(
    ("family", "num_params"),
    [
        (lambda logits: dist.Bernoulli(logits=logits), 1),
        (choose_level, 2),
        (lambda logits: dist.Binomial(5, logits=logits), 1),
        (lambda logits: dist.Geometric(logits=logits), 1),
        (lambda log_rate: dist.Poisson(log_rate.exp()), 1),
        (lambda loc, log_scale: dist.Cauchy(loc, log_scale.exp()), 2),
        (lambda loc, log_scale: dist.StudentT(1.0, loc, log_scale.exp()), 2),
        (lambda loc, log_scale: dist.TransformedDistribution(dist.Normal(loc, log_scale.exp()), AFFINE), 2),
    ],
)
def test_missing_values_under_a_likelihood_of_ones_own(family: Callable[..., Any], num_params: int) -> None:
    """Also of whole numbers, which the mean is not, and where there is no mean, or none in closed form."""
    torch.manual_seed(0)
    m2 = M2((3,), 2, latent_dim=2, hidden_dims=(8,), likelihood=_Own(family, num_params), missing=True)
    x = torch.tensor([[0.0, 1.0, torch.nan], [1.0, 1.0, 0.0], [torch.nan, 0.0, 1.0]])
    loss = SemiSupervisedELBO(m2, num_labelled=3, num_unlabelled=5)((x, None, None))
    loss.backward()
    assert m2.impute(x[:0]).shape == (0, 3)
    assert m2.impute(x).isfinite().all()
    if family is choose_level:
        assert set(m2.impute(x).unique().tolist()) <= {0.0, 1.0, 2.0}
    assert m2.generate(3)[0].isfinite().all()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in m2.parameters() if p.grad is not None)
    z, y = torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)
    expected = m2.decode(y, z).base_dist.log_prob(torch.tensor([0.0, 1.0, 0.0]))[..., :2].sum(-1)
    torch.testing.assert_close(m2.decode(y, z).log_prob(x[:1]), expected)


@pytest.mark.parametrize("name", [*MAKERS, "mixed"])
def test_fit_save_load_predict_and_impute(name: str, tmp_path: Path) -> None:
    x = make_table(name)
    likelihood = make_mixed(COLUMNS) if name == "mixed" else MAKERS[name]()
    holes = remove(x)
    data = SemiSupervisedData.from_arrays(holes, torch.where(torch.arange(60) < 20, torch.arange(60) % 3, -1))
    m2 = M2.for_data(data, latent_dim=2, hidden_dims=(8,), likelihood=likelihood)
    assert m2.missing
    objective = SemiSupervisedELBO.for_data(m2, data)
    config = TrainingConfig(max_steps=5, device="cpu", compile="eager", batch_size=20)
    assert fit(objective, data, config, progress=False).metrics[-1]["train/loss"] < float("inf")
    again = pyro_ssvae.load(pyro_ssvae.save(m2, tmp_path))
    assert torch.equal(again.predict_proba(holes), m2.predict_proba(holes))
    assert torch.equal(again.predict_proba(holes.numpy()), m2.predict_proba(holes))
    assert log_likelihood(again, holes, num_samples=3).log_px.isfinite().all()
    filled = again.impute(holes, num_samples=3)
    assert filled.isfinite().all()
    assert torch.equal(filled[~holes.isnan()], holes[~holes.isnan()])
    assert torch.equal(filled, m2.impute(holes.tolist(), num_samples=3))
    if name == "categorical":
        assert set(filled.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}


def train(model: Any, data: SemiSupervisedData, steps: int) -> Any:
    objective = (SemiSupervisedELBO if model.num_classes else UnsupervisedELBO).for_data(model, data)
    config = TrainingConfig(max_steps=steps, device="cpu", compile="eager", learning_rate=1e-2, warmup_steps=5)
    fit(objective, data, config, progress=False)
    return model


@pytest.mark.slow
def test_correlated_columns_are_imputed_better_than_by_their_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 2
    z = torch.randn(300, 1, generator=generator)
    x = z * torch.tensor([1.0, -2.0, 50.0, 0.5]) + (y.unsqueeze(-1) - 0.5) * torch.tensor([3.0, 3.0, 0.0, 2.0])
    x = x + torch.tensor([0.2, 0.4, 10.0, 0.1]) * torch.randn(300, 4, generator=generator)
    holes = remove(x, 0.2)
    data = SemiSupervisedData.from_arrays(holes, torch.where(torch.arange(300) < 40, y, -1))
    options: dict[str, Any] = {"latent_dim": 2, "hidden_dims": (32,), "likelihood": "gaussian"}
    m1 = train(M1.for_data(data.without_labels(), **options), data.without_labels(), 400)
    m2 = train(M2.for_data(data, prior="vamp", **options), data, 400)
    stack = train(M1M2.for_data(data, m1=m1, latent_dim=2, hidden_dims=(16,)), data, 30)
    spread = x.std(0)
    gone = holes.isnan()
    by_mean = (((holes.nanmean(0) - x) / spread)[gone]).square().mean()
    for model in (m1, m2, stack):
        error = (((model.impute(holes) - x) / spread)[gone]).square().mean()
        assert float(error) < 0.5 * float(by_mean)
    assert float((m2.predict(holes) != y).float().mean()) < 0.2
    of_x = M1M2.from_m1(m1, 2, classify_from="x", hidden_dims=(8,))
    assert of_x.predict(holes).shape == (300,)


def test_levels_and_counts_are_imputed() -> None:
    """A column that is a function of another: its level, or its count given the total of the row."""
    codes = torch.arange(240) % 3
    x = torch.stack([codes.float(), (2 - codes).float()], -1)
    holes = x.clone()
    holes[::5, 1] = torch.nan
    data = SemiSupervisedData.from_arrays(holes)
    likelihood = Categorical(3, 1.0, one_hot=True)
    m1 = train(M1.for_data(data, latent_dim=2, hidden_dims=(16,), likelihood=likelihood), data, 250)
    assert m1.likelihood.network_input(holes).shape == (240, 8)
    assert float((m1.impute(holes) == x).float().mean()) > 0.97
    sizes = 10.0 ** torch.linspace(0.0, 2.0, 240).unsqueeze(-1)
    counts = torch.poisson(sizes * torch.tensor([5.0, 10.0, 1.0]), generator=torch.Generator().manual_seed(0))
    holes = counts.clone()
    holes[::3, 1] = torch.nan
    data = SemiSupervisedData.from_arrays(holes)
    m1 = train(M1.for_data(data, latent_dim=1, hidden_dims=(8,), likelihood=NegativeBinomial(offset=True)), data, 50)
    error = (m1.impute(holes)[::3, 1] / (10.0 * sizes[::3, 0])).log().abs()
    assert float(error.mean()) < 0.4


def test_models_for_complete_data_refuse_missing_values() -> None:
    x = make_table("gaussian")
    holes = remove(x)
    complete, incomplete = SemiSupervisedData.from_arrays(x), SemiSupervisedData.from_arrays(holes)
    m1 = M1.for_data(complete, latent_dim=2, hidden_dims=(8,), likelihood="gaussian")
    assert not m1.missing
    for call in (m1.transform, m1.impute, lambda x: log_likelihood(m1, x)):
        with pytest.raises(ValueError, match=r"holds \d+ values that are NaN.*column 0, 1.*or with missing=True"):
            call(holes)
    for model in (m1, DDGM.for_data(incomplete)):
        with pytest.raises(ValueError, match=r"has missing values \(NaN\), which this .* does not take"):
            model.check_data(incomplete)
    with pytest.raises(ValueError, match="missing=True is for rows of tables"):
        M2((1, 8, 8), 3, missing=True)
    taking = M1.for_data(incomplete, latent_dim=2, hidden_dims=(8,), likelihood="gaussian")
    holes[3, 1] = torch.inf
    with pytest.raises(ValueError, match=r"1 values that are infinite.*the first in x\[3\]"):
        taking.transform(holes)


def test_values_outside_the_domain_are_found_among_missing_ones() -> None:
    x = remove(make_table("poisson"))
    x[~x.isnan()] += 0.5
    data = SemiSupervisedData.from_arrays(x)
    with pytest.raises(ValueError, match=r"Poisson needs counts.*up to 0.5 away"):
        M1.for_data(data, likelihood="poisson").check_data(data)
