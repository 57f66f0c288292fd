"""log p(x) by importance sampling against closed forms, and the class posterior by Bayes' rule."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_ssvae import DDGM, M1, M1M2, M2, SemiSupervisedELBO, UnsupervisedELBO
from pyro_ssvae.distributions import FixedClassPrior, VampPrior
from pyro_ssvae.evaluation import log_likelihood
from pyro_ssvae.evaluation.metrics import _width
from pyro_ssvae.models import data_plate

D, L, K = 4, 2, 3


class LinearGaussian(nn.Module):
    """z ~ N(0, I), x ~ N(W_y z + b_y, s²), with a deliberately inexact guide; y ~ Cat(π), or absent."""

    scale = 0.8

    def __init__(self, classes: bool) -> None:
        super().__init__()
        count = K if classes else 1
        self.classes = classes
        if classes:
            self.num_classes = K
        self.weight = nn.Parameter(torch.randn(count, D, L, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(count, D, dtype=torch.float64))
        self.log_pi = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()

    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(L).double(), 1.0).to_event(1))
            y = pyro.sample("y", dist.Categorical(logits=self.log_pi), obs=y) if self.classes else torch.tensor(0)
            mean = (self.weight[y] @ z.unsqueeze(-1)).squeeze(-1) + self.bias[y]
            pyro.sample("x", dist.Normal(mean, self.scale).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, size):
            if self.classes and y is None:
                distribution = dist.Categorical(logits=self.log_pi.expand(len(x), K))
                y = pyro.sample("y", distribution, infer={"enumerate": "parallel", "expand": False})
            w = self.weight[y if y is not None else 0]
            covariance = torch.linalg.inv(torch.eye(L).double() + w.mT @ w / self.scale**2)
            mean = (covariance @ w.mT @ (x - self.bias[y if y is not None else 0]).unsqueeze(-1)).squeeze(-1)
            deviation = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
            pyro.sample("z", dist.Normal(mean / self.scale**2 + 0.1, 1.3 * deviation).to_event(1))

    def log_px_given_y(self, x: Tensor) -> Tensor:
        """The closed form, with shape (N, classes)."""
        covariance = self.weight @ self.weight.mT + self.scale**2 * torch.eye(D).double()
        distribution = torch.distributions.MultivariateNormal(self.bias, covariance)
        return distribution.log_prob(x.unsqueeze(1)).detach()


def test_log_likelihood_without_classes_is_the_closed_form() -> None:
    module = LinearGaussian(classes=False)
    x = torch.randn(60, D, dtype=torch.float64)
    exact = module.log_px_given_y(x).squeeze(1)
    found = log_likelihood(module, x.float(), num_samples=4000)
    deviation = (found.log_px - exact) / found.standard_error
    assert abs(float(found.log_px.mean() - exact.mean())) < 3 * found.mean_error + 1e-6
    assert float(deviation.abs().max()) < 4.5  # of sixty
    assert 0.7 < float(deviation.std()) < 1.4  # the stated errors are those that are made
    assert bool(((found.effective_samples > 100) & (found.effective_samples <= 4000)).all())
    assert found.log_px_given_y is None
    with pytest.raises(ValueError, match="no classes"):
        found.class_posterior()


def test_classes_are_summed_and_bayes_rule_holds() -> None:
    module = LinearGaussian(classes=True)
    x = torch.randn(40, D, dtype=torch.float64)
    by_class = module.log_px_given_y(x)
    exact = (by_class + module.log_pi).logsumexp(-1)
    found = log_likelihood(module, x.float(), num_samples=4000)
    assert abs(float(found.log_px.mean() - exact.mean())) < 3 * found.mean_error + 1e-6
    posterior = (by_class + module.log_pi).softmax(-1)
    torch.testing.assert_close(found.class_posterior(), posterior, atol=0.03, rtol=0.0)
    torch.testing.assert_close(found.log_prior, module.log_pi.expand_as(found.log_prior))
    again = log_likelihood(module, x.float(), num_samples=4000).class_posterior()
    assert torch.equal(again, found.class_posterior())


class Ignorant(nn.Module):
    """A decoder that looks at y alone."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(K, D))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.logits[y].expand(*torch.broadcast_shapes(z.shape[:-1], y.shape), D)


def test_the_posterior_of_a_discrete_model_is_exact() -> None:
    prior = FixedClassPrior(K, [0.6, 0.3, 0.1])
    m2 = M2((D,), K, latent_dim=L, hidden_dims=(8,), decoder=Ignorant(), class_prior=prior)
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * D)  # every possible example
    log_px = dist.Bernoulli(logits=m2.decoder.logits).to_event(1).log_prob(x.unsqueeze(1)).detach()
    joint = log_px + prior.log_pi
    # z explains nothing, so its weights average to one: only their noise is left.
    found = log_likelihood(m2, x, num_samples=30_000)
    torch.testing.assert_close(found.log_px, joint.logsumexp(-1).double(), atol=0.05, rtol=0.0)
    torch.testing.assert_close(found.class_posterior(), joint.softmax(-1).double(), atol=0.03, rtol=0.0)
    assert float(found.log_px.exp().sum()) == pytest.approx(1.0, abs=0.02)
    with torch.no_grad():  # a guide that is the prior leaves no noise either
        for layer in (m2.encoder.rest[-1].layers[-1],):
            layer.weight.zero_()
            layer.bias.zero_()
    found = log_likelihood(m2, x, num_samples=10)
    torch.testing.assert_close(found.class_posterior(), joint.softmax(-1).double(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.standard_error, torch.zeros(len(x)).double(), atol=1e-3, rtol=0.0)


def models() -> dict[str, nn.Module]:
    m1 = M1((6,), latent_dim=3, hidden_dims=(8,))
    return {
        "m1": m1,
        "m2": M2((6,), K, latent_dim=2, hidden_dims=(8,)),
        "m1m2": M1M2.from_m1(M1((6,), latent_dim=3, hidden_dims=(8,)), K, latent_dim=2, hidden_dims=(8,)),
        "dirichlet": M2((6,), K, latent_dim=2, hidden_dims=(8,), class_prior="dirichlet"),
    }


@pytest.mark.parametrize("name", ["m1", "m2", "m1m2", "dirichlet"])
def test_likelihood_is_above_the_bound_and_rises_with_samples(
    name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = models()[name].to(device)
    x = torch.rand(200, 6).round()
    objective = (
        UnsupervisedELBO(module, num_examples=200)
        if name == "m1"
        else SemiSupervisedELBO(module, num_labelled=3, num_unlabelled=200)
    )
    bound = objective.to(device).mean_bound(x)
    few, more, many = (log_likelihood(module, x, num_samples=k) for k in (1, 10, 1000))
    assert few.mean < more.mean + 0.05
    assert bound < many.mean
    assert more.mean < many.mean + 3 * more.mean_error
    assert few.mean < many.mean
    assert many.log_px.device.type == "cpu"
    # Portions make no difference to what is estimated.
    monkeypatch.setattr("pyro_ssvae.evaluation.metrics._SAMPLES_AT_A_TIME", 7)
    portions = log_likelihood(module, x, num_samples=1000)
    assert portions.mean == pytest.approx(many.mean, abs=4 * math.hypot(many.mean_error, portions.mean_error))


def log_weights_by_hand(m1: M1, x: Tensor, number: int) -> Tensor:
    """log p(x,z) - log q(z|x) of the draws that the generator gives next, shape (number, B)."""
    with torch.no_grad():
        qz = m1.encode(x)
        z = qz.expand(torch.Size([number, len(x)])).sample()
        return m1.decode(z).log_prob(x) + m1.prior().log_prob(z) - qz.log_prob(z)


def test_one_sample_is_a_plain_log_weight() -> None:
    m1 = M1((6,), latent_dim=3, hidden_dims=(8,))
    x = torch.rand(5, 6).round()
    found = log_likelihood(m1, x, num_samples=1, seed=3)
    torch.default_generator.manual_seed(3)
    torch.testing.assert_close(found.log_px.float(), log_weights_by_hand(m1, x, 1).squeeze(0))
    torch.testing.assert_close(found.effective_samples, torch.ones(5).double())


def test_the_standard_error_is_that_of_the_sample() -> None:
    m1 = M1((6,), latent_dim=3, hidden_dims=(8,)).double()
    x = torch.rand(5, 6).round()
    found = log_likelihood(m1, x, num_samples=3, seed=3)
    torch.default_generator.manual_seed(3)
    weights = log_weights_by_hand(m1, x.double(), 3).exp()
    torch.testing.assert_close(found.standard_error, weights.std(0) / weights.mean(0) / math.sqrt(3))
    single = log_likelihood(m1, x, num_samples=1)
    assert bool(single.standard_error.isnan().all())
    assert math.isnan(single.mean_error)


def test_a_stack_agrees_with_ancestral_sampling() -> None:
    """log p(x|y) is the mean of p(x|z1) over z and z1 drawn from the generative model, for every possible x."""
    torch.manual_seed(4)
    prior = FixedClassPrior(K, [0.6, 0.3, 0.1])
    m1 = M1((D,), latent_dim=3, hidden_dims=(8,))
    stack = M1M2.from_m1(m1, K, active=[True, False, True], latent_dim=2, hidden_dims=(8,), class_prior=prior)
    with torch.no_grad():
        for parameter in m1.decoder.parameters():  # p(x|z1) that depends on z1
            parameter.mul_(3.0)
        stack.m2.decoder.first.class_weight.mul_(5.0)
        for parameter in stack.m2.encoder.parameters():  # and a guide with tails: q(z|z1,y) is the prior, q(z1|x) broad
            parameter.zero_()
        m1.encoder.layers[-1].bias[3:] += 0.5
        x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * D)
        y = torch.arange(K).unsqueeze(-1)
        z1 = stack.decode_z1(y, stack.prior().sample((K, 100_000))).sample()  # (K, 100_000, L1)
        log_px = torch.stack([stack.decode_x(z1).log_prob(one) for one in x])  # (N, K, 100_000)
        by_class = log_px.double().logsumexp(-1) - math.log(100_000)
    found = log_likelihood(stack, x, num_samples=20_000)
    torch.testing.assert_close(found.log_px_given_y, by_class, atol=0.08, rtol=0.0)
    torch.testing.assert_close(found.log_px, (by_class + prior.log_pi).logsumexp(-1), atol=0.08, rtol=0.0)
    assert float(by_class.std(-1).max()) > 0.2  # classes make a difference here
    assert float(found.log_px.exp().sum()) == pytest.approx(1.0, abs=0.02)


class _Wide(nn.Module):
    """A decoder with 5,000 units inside that remembers how many numbers it held at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 5000), nn.Linear(5000, 8)
        self.sizes: list[int] = []

    def forward(self, z: Tensor) -> Tensor:
        inside = self.inner(z)
        self.sizes.append(inside.numel())
        return self.outer(inside)


@pytest.mark.parametrize(("limit", "largest"), [(60_000, 60_000), (1_200_000, 1_000_000), (1000, 10_000)])
def test_memory_stays_within_its_limit(limit: int, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of draws if one example exceeds the limit, else of examples; the first call finds the width with two."""
    monkeypatch.setattr("pyro_ssvae.evaluation.metrics._MAX_ELEMENTS", limit)
    m1 = M1((4,), latent_dim=3, hidden_dims=(8,), likelihood="gaussian", decoder=_Wide())
    log_likelihood(m1, torch.randn(5, 4), num_samples=100 if limit > 1000 else 3)
    assert max(m1.decoder.sizes) == largest


def test_width_is_what_each_draw_adds() -> None:
    image = (1, 28, 28)
    zeros = torch.zeros(1, *image)
    for module, width in (
        (M1(image, hidden_dims=(500, 500)), 784),
        (M1(image, hidden_dims=(500, 500), likelihood="gaussian"), 2 * 784),
        (M1(image, hidden_dims=(500, 900)), 900),
        (M2(image, 10, latent_dim=2), 10 * 784),  # its classifier is wider, but its input is x alone
    ):
        with torch.no_grad():
            assert _width(module.eval(), zeros) == width


def test_a_vamp_prior_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_ssvae.evaluation.metrics._SAMPLES_AT_A_TIME", 5)
    m1 = M1((6,), latent_dim=3, hidden_dims=(8,), prior=VampPrior(3, num_components=7))
    x = torch.rand(20, 6).round()
    counts: list[int] = []
    hook = m1.encoder.register_forward_hook(lambda layer, inputs, output: counts.append(len(output)))
    found = log_likelihood(m1, x, num_samples=50)
    hook.remove()
    assert counts.count(7) == 3  # two to find the width, one for all portions
    torch.manual_seed(0)
    expected = (log_weights_by_hand(m1, x, 2000).logsumexp(0) - math.log(2000)).mean()
    assert found.mean == pytest.approx(float(expected), abs=0.1)
    assert "forward" not in vars(m1.prior)


def test_random_state_scale_and_mode_are_respected() -> None:
    m2 = M2((6,), K, latent_dim=2, hidden_dims=(8,), dropout=0.5, classifier="mlp").train()
    x = torch.randint(0, 256, (7, 6), dtype=torch.uint8)
    state = torch.get_rng_state()
    found = log_likelihood(m2, x, num_samples=5, scale=255.0, binarisation="dynamic", seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert m2.training
    again = log_likelihood(m2, x, num_samples=5, scale=255.0, binarisation="dynamic", seed=2)
    assert torch.equal(found.log_px, again.log_px)


def test_bad_arguments() -> None:
    m1 = M1((6,), latent_dim=3, hidden_dims=(8,))
    with pytest.raises(TypeError, match="a DDGM has none.*annealed_log_normaliser"):
        log_likelihood(DDGM((2,)), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="zero examples"):
        log_likelihood(m1, torch.zeros(0, 6))
    with pytest.raises(ValueError, match="num_samples=0"):
        log_likelihood(m1, torch.zeros(1, 6), num_samples=0)
    with pytest.raises(ValueError, match=r"event_shape=\(6,\); got \(2, 3, 2\)"):
        log_likelihood(m1, torch.zeros(2, 3, 2))
    with pytest.raises(ValueError, match=r"scale=1.*Bernoulli"):
        log_likelihood(m1, torch.full((2, 6), 200, dtype=torch.uint8), scale=1.0)
    with pytest.raises(ValueError, match="12 values that are NaN.*in 2 of 2 examples"):
        log_likelihood(m1, torch.full((2, 6), torch.nan))
    counts = M1((6,), latent_dim=3, hidden_dims=(8,), likelihood="poisson")
    grey = torch.full((2, 6), 100, dtype=torch.uint8)
    with pytest.raises(ValueError, match="whole numbers"):
        log_likelihood(counts, grey, scale=255.0, num_samples=2)
    assert log_likelihood(counts, grey, scale=255.0, binarisation="dynamic", num_samples=2).log_px.isfinite().all()


def test_memory_does_not_grow_with_the_number_of_examples() -> None:
    def measure() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    model, x = (
        M2((1, 28, 28), 10, hidden_dims=(8,), latent_dim=20, pose=True, classifier="mlp"),
        torch.rand(300, 1, 28, 28),
    )
    log_likelihood(model, x[:20], num_samples=50)
    before = measure()
    log_likelihood(model, x, num_samples=50)
    assert measure() - before < 100  # MiB
