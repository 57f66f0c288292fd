"""Priors of z: densities that integrate to one, samples that follow them, copies, saving."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

import pyro_ssvae
from pyro_ssvae import DDGM, M1, M2, SemiSupervisedELBO, UnsupervisedELBO
from pyro_ssvae.data import Batch
from pyro_ssvae.distributions import PRIORS, FixedClassPrior, Flow, MixtureOfGaussians, StudentT, VampPrior
from pyro_ssvae.distributions.choice import make_prior
from pyro_ssvae.distributions.priors import Prior, StandardNormal
from pyro_ssvae.distributions.torch_distributions import DiagonalMixture
from tests.objectives.small import LogNormalM1, take_steps

NAMES = list(PRIORS)


def attached(name: str) -> Prior:
    """A prior of two latents away from its starting point, part of an M1."""
    m1 = M1((4,), latent_dim=2, hidden_dims=(8,), prior=name)
    with torch.no_grad():
        for parameter in m1.prior.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    m1.prior.keep = [m1]  # a VampPrior needs its model
    return m1.prior


@pytest.mark.parametrize("name", NAMES)
def test_density_integrates_to_one_and_samples_follow_it(name: str) -> None:
    with torch.no_grad():
        prior = attached(name)()
        # z = tan(u) maps the plane to a square, heavy tails included.
        u = torch.linspace(-math.pi / 2, math.pi / 2, 403)[1:-1]
        z = torch.cartesian_prod(u.tan(), u.tan())
        weight = (1 + z.square()).prod(-1) * (u[1] - u[0]) ** 2
        density = prior.log_prob(z).exp() * weight
        assert float(density.sum()) == pytest.approx(1.0, abs=0.01)
        inside = (z.square().sum(-1) < 1.5).float()
        samples = prior.sample((40_000,))
        share = float((samples.square().sum(-1) < 1.5).float().mean())
        assert share == pytest.approx(float((density * inside).sum()), abs=0.015)


def test_closed_forms() -> None:
    z = torch.randn(5, 3)
    torch.testing.assert_close(StandardNormal(3)().log_prob(z), torch.distributions.Normal(0, 1).log_prob(z).sum(-1))
    expected = torch.distributions.StudentT(4.0).log_prob(z).sum(-1)
    torch.testing.assert_close(StudentT(3, df=4.0)().log_prob(z), expected)
    mixture = MixtureOfGaussians(3, num_components=4)
    parts = torch.distributions.Normal(mixture.loc, mixture.log_scale.exp()).log_prob(z.unsqueeze(1)).sum(-1)
    torch.testing.assert_close(mixture().log_prob(z), (parts - math.log(4)).logsumexp(-1))
    flow = Flow(3)  # starts out as the identity, up to the order of latents
    torch.testing.assert_close(flow().log_prob(z), StandardNormal(3)().log_prob(z))


def test_vamp_is_the_mixture_of_posteriors_at_its_pseudo_inputs() -> None:
    m2 = M2((4,), 3, latent_dim=2, hidden_dims=(8,), prior=VampPrior(2, num_components=5))
    x = torch.rand(3, 4)
    m2.prior.start_from(x)
    torch.testing.assert_close(m2.prior.pseudo_inputs.sigmoid()[:3], x.clamp(0.02, 0.98))
    u, y = m2.prior.pseudo_inputs.sigmoid(), torch.tensor([0, 1, 2, 0, 1])
    z = torch.randn(7, 2)
    parts = torch.stack([m2.encode(u[i : i + 1], y[i : i + 1]).log_prob(z) for i in range(5)])
    torch.testing.assert_close(m2.prior().log_prob(z), parts.logsumexp(0) - math.log(5))
    with pytest.raises(RuntimeError, match="needs the guide"):
        VampPrior(2)()


def mixtures(dtype: torch.dtype, scale: float, loc: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    parts = torch.randn(6), loc * torch.randn(6, 4), scale * torch.randn(6, 4).exp()
    return tuple(part.to(dtype).requires_grad_() for part in parts)


def stock(logits: Tensor, loc: Tensor, scale: Tensor) -> dist.MixtureSameFamily:
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, scale).to_event(1))


@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_mixture_equals_stock_pyro_in_value_and_gradient(scale: float) -> None:
    parts = mixtures(torch.float64, scale)
    z = torch.randn(3, 5, 4).double().requires_grad_()
    ours, theirs = (distribution(*parts).log_prob(z) for distribution in (DiagonalMixture, stock))
    torch.testing.assert_close(ours, theirs)
    gradients = (torch.autograd.grad(value.sum(), [*parts, z]) for value in (ours, theirs))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(DiagonalMixture(*parts).mean, stock(*parts).mean)
    torch.testing.assert_close(DiagonalMixture(*parts).variance, stock(*parts).variance)


def test_mixture_is_accurate_far_from_zero() -> None:
    """Components of small scale far from zero: in float32 the terms of an expanded square would cancel."""
    parts = [part.detach() for part in mixtures(torch.float32, 0.01, loc=30.0)]
    z = parts[1] + 0.01
    exact = stock(*(part.double() for part in parts)).log_prob(z.double())
    torch.testing.assert_close(DiagonalMixture(*parts).log_prob(z).double(), exact, atol=1e-4, rtol=1e-5)


def test_mixture_serves_in_stock_pyro() -> None:
    parts = [part.detach() for part in mixtures(torch.float32, 0.5)]
    distribution = DiagonalMixture(*parts)
    assert distribution.expand((2, 3)).sample((5,)).shape == (5, 2, 3, 4)
    assert distribution.expand((2, 3)).log_prob(torch.zeros(3, 4)).shape == (2, 3)
    samples = distribution.sample((40_000,))
    torch.testing.assert_close(samples.mean(0), distribution.mean, atol=0.03, rtol=0.0)
    torch.testing.assert_close(samples.var(0), distribution.variance, atol=0.1, rtol=0.05)
    loc = torch.zeros(7, 4, requires_grad=True)

    def model() -> None:
        with pyro.plate("data", 7):
            pyro.sample("z", distribution)

    def guide() -> None:
        with pyro.plate("data", 7):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    torch.manual_seed(0)
    loss = Trace_ELBO().differentiable_loss(model, guide)
    torch.manual_seed(0)
    q = dist.Normal(loc, 1.0).to_event(1)
    z = q.rsample()
    torch.testing.assert_close(loss, (q.log_prob(z) - stock(*parts).log_prob(z)).sum())
    loss.backward()
    assert bool((loc.grad != 0).all())


def test_vamp_is_of_posteriors_of_any_distribution() -> None:
    m1 = LogNormalM1((4,), latent_dim=2, hidden_dims=(8,), prior=VampPrior(2, num_components=5))
    qz = torch.distributions.LogNormal
    z = torch.rand(7, 2) + 0.5
    with torch.no_grad():
        base = M1.encode(m1, m1.prior.pseudo_inputs.sigmoid()).base_dist
        parts = qz(base.loc, base.scale).log_prob(z.unsqueeze(1)).sum(-1)
        torch.testing.assert_close(m1.prior().log_prob(z), parts.logsumexp(-1) - math.log(5))
        assert bool((m1.prior().sample((100,)) > 0).all())


@pytest.mark.parametrize("name", NAMES)
def test_models_with_it_train_copy_and_save(name: str, tmp_path: Path) -> None:
    x, y = torch.rand(9, 6).round(), torch.arange(3)
    m1, m2 = (
        M1((6,), latent_dim=2, hidden_dims=(8,), prior=name),
        M2((6,), 3, latent_dim=2, hidden_dims=(8,), prior=name),
    )
    models = {
        "m1": (m1, UnsupervisedELBO(m1, num_examples=30), Batch(x, None, None)),
        "m2": (m2, SemiSupervisedELBO(m2, num_labelled=3, num_unlabelled=30), Batch(x, x[:3], y)),
    }
    for where, (module, objective, batch) in models.items():
        losses = take_steps(objective, batch, 40)
        assert sum(losses[-5:]) < sum(losses[:5])
        assert all(parameter.grad is not None for parameter in module.prior.parameters())
        twin = pyro_ssvae.load(pyro_ssvae.save(module, tmp_path / where))
        z = torch.randn(4, 2)
        for other in (twin, copy.deepcopy(module)):
            torch.testing.assert_close(other.prior().log_prob(z), module.prior().log_prob(z))
    duplicate = copy.deepcopy(m1)
    with torch.no_grad():
        duplicate.encoder.layers[0].weight.zero_()
    if name == "vamp":  # the copy's prior goes through the copy's own encoder
        assert not torch.equal(duplicate.prior().log_prob(z), m1.prior().log_prob(z))


def test_bad_arguments() -> None:
    for prior, words in (
        ("normals", "normal, student_t"),
        (3, "name or a module"),
        (StandardNormal(4), "latent_dim=3"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            make_prior(prior, 3)
    for build, words in (
        (lambda: StudentT(2, df=0.0), "df=0"),
        (lambda: MixtureOfGaussians(2, num_components=0), "num_components=0"),
        (lambda: Flow(1), "latent_dim >= 2"),
        (lambda: StandardNormal(0), "latent_dim=0"),
    ):
        with pytest.raises(ValueError, match=words):
            build()


@pytest.mark.parametrize("name", ["map", "dirichlet"])
def test_class_priors_with_a_vanishing_class_have_finite_losses_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    m2 = M2((6,), 3, latent_dim=2, hidden_dims=(8,), class_prior=name)
    with torch.no_grad():
        m2.class_prior.logits.copy_(torch.tensor([0.0, 0.0, -300.0]))
    loss = SemiSupervisedELBO(m2, num_labelled=3, num_unlabelled=30)(Batch(torch.rand(9, 6).round(), None, None))
    loss.backward()
    assert loss.isfinite()
    assert m2.class_prior.logits.grad.isfinite().all()


@pytest.mark.parametrize("probs", ["flow", [None], {}, b"x", [0.5, "half"]])
def test_probabilities_that_are_no_numbers_are_refused(probs: object) -> None:
    with pytest.raises(TypeError, match="2 numbers are needed, one per class"):
        FixedClassPrior(2, probs)  # type: ignore[arg-type]


def test_a_prior_of_ones_own_is_called_without_arguments() -> None:
    with pytest.raises(TypeError, match="a Linear, must return a distribution over z when called without arguments"):
        M1((3,), prior=torch.nn.Linear(2, 2))


def test_a_vamp_prior_is_of_one_model_with_posteriors() -> None:
    prior = VampPrior(2, num_components=5)
    m1 = M1((3,), latent_dim=2, hidden_dims=(4,), prior=prior)
    before = prior().log_prob(torch.zeros(2))
    with pytest.raises(ValueError, match="belongs to another model; give each"):
        M1((3,), latent_dim=2, hidden_dims=(4,), prior=prior)
    assert torch.equal(m1.prior().log_prob(torch.zeros(2)), before)
    with pytest.raises(ValueError, match=r"q\(z\|x\), and DDGM has none"):
        DDGM((2,), prior="vamp")


def test_large_probabilities_are_normalised() -> None:
    torch.testing.assert_close(FixedClassPrior(2, [3e38, 3e38]).mean(), torch.tensor([0.5, 0.5]))
