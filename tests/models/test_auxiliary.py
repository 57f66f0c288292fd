"""M2 with auxiliary latents (ADGM and SDGM): bounds by hand and by stock Pyro, log p(x) in closed form, use, saving."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor
from torch.nn import functional as F

import pyro_ssvae
from pyro_ssvae import M1, M1M2, M2, SemiSupervisedData, SemiSupervisedELBO, StaticEnumELBO, TrainingConfig, fit
from pyro_ssvae.evaluation import log_likelihood
from pyro_ssvae.export import make_networks, trace
from tests.objectives.small import D, K, L, assert_same_loss_and_gradients, draw_normals, make_examples

A = 2
SKIP = pytest.mark.parametrize("skip", [False, True])


def make_m2(skip: bool, **options: object) -> M2:
    torch.manual_seed(1)
    arguments = {"latent_dim": L, "hidden_dims": (8,), "auxiliary_dim": A, "skip": skip, "event_shape": (D,)} | options
    return M2(num_classes=K, **arguments)


def normal(x: Tensor, params: Tensor) -> Tensor:
    """log N(x; location, scale), written out, for parameters that hold the location and the log-scale."""
    loc, log_scale = params.chunk(2, -1)
    return (-0.5 * ((x - loc) / log_scale.exp()) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)


def bound_of_class(m2: M2, x: Tensor, y: Tensor, a: Tensor, noise: Tensor) -> Tensor:
    """log p(x, a, y, z) - log q(z|a,x,y) of each example at one draw of z; π uniform."""
    loc, log_scale = m2.encoder(torch.cat([x, a], -1), y).chunk(2, -1)
    z = loc + log_scale.exp() * noise
    own = m2.auxiliary
    if m2.skip:
        logits, of_a = m2.decoder(torch.cat([z, a], -1), y), own.decoder(z, y)
    else:
        logits = m2.decoder(z, y)
        of_a = own.decoder.rest(own.decoder.first(z, y) + x @ own.of_x.weight.T)
    log_px = (x * logits - F.softplus(logits)).sum(-1)
    log_pz = normal(z, torch.zeros(2 * L).double())
    return log_px + log_pz + normal(a, of_a) - math.log(K) - normal(z, torch.cat([loc, log_scale], -1))


def hand_unlabelled(m2: M2, x: Tensor) -> Tensor:
    """The negative bound, from the draws that the generator gives next: the sum over classes for a drawn a."""
    q_a = m2.auxiliary.encoder(x)
    loc, log_scale = q_a.chunk(2, -1)
    a = loc + log_scale.exp() * draw_normals(len(x), A)
    log_q = m2.classifier(torch.cat([x, a], -1)).log_softmax(-1)
    noise, total = draw_normals(K, len(x), L), -normal(a, q_a)
    for k in range(K):
        y = torch.full((len(x),), k)
        total = total + log_q[:, k].exp() * (bound_of_class(m2, x, y, a, noise[k]) - log_q[:, k])
    return -total.sum()


@SKIP
def test_bound_is_the_sum_over_classes_for_a_drawn_a(skip: bool) -> None:
    m2, x = make_m2(skip).double(), make_examples(5)
    torch.manual_seed(3)
    ours = StaticEnumELBO(analytic_kl=False).differentiable_loss(m2.model, m2.guide, x)
    torch.manual_seed(3)
    assert_same_loss_and_gradients(ours, hand_unlabelled(m2, x), m2)


@SKIP
@pytest.mark.parametrize("labelled", [False, True])
def test_bound_is_that_of_stock_pyro(skip: bool, labelled: bool) -> None:
    m2, x = make_m2(skip).double(), make_examples(5)
    examples = (x, torch.arange(5) % K) if labelled else (x,)
    losses = []
    for elbo in (
        StaticEnumELBO(analytic_kl=False, require_enumeration=not labelled),
        TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=not labelled),
    ):
        torch.manual_seed(3)
        losses.append(elbo.differentiable_loss(m2.model, m2.guide, *examples, size=20))
    assert_same_loss_and_gradients(*losses, m2)


@SKIP
def test_closed_form_kl_and_several_draws_agree_on_average(skip: bool) -> None:
    m2, x = make_m2(skip).double(), make_examples(2)
    with torch.no_grad():
        exact, sampled, weighted, top = (
            torch.stack([elbo.differentiable_loss(m2.model, m2.guide, x) for _ in range(40)])
            for elbo in (
                StaticEnumELBO(num_particles=50),
                StaticEnumELBO(num_particles=50, analytic_kl=False),
                StaticEnumELBO(num_particles=50, importance_weighted=True),
                StaticEnumELBO(num_particles=50, enumeration="top-k", top_k=1),
            )
        )
    for other in (sampled, top):
        assert abs(exact.mean() - other.mean()) < 4 * (exact.var() / 40 + other.var() / 40).sqrt()
    assert weighted.mean() < exact.mean()


@SKIP
def test_log_likelihood_integrates_the_auxiliary_latents_out(skip: bool) -> None:
    """With p(x|·) that depends on nothing drawn, log p(x) is known, whatever q(a|x) and p(a|·) are."""
    m2, x = make_m2(skip).double().eval(), make_examples(3)
    with torch.no_grad():
        for parameter in m2.decoder.parameters():
            parameter.zero_()
        m2.auxiliary.decoder.rest[-1].layers[-1].bias[A:] = -0.5
    found = log_likelihood(m2, x, num_samples=4000)
    error = (found.log_px - D * math.log(0.5)).abs()
    assert (error < 5 * found.standard_error.clamp_min(1e-3)).all()
    assert found.standard_error.max() < 0.1


@SKIP
def test_shapes_and_use(skip: bool, device: torch.device) -> None:
    m2 = make_m2(skip, event_shape=(1, 4, 5)).to(device)
    x, y = torch.rand(6, 1, 4, 5, device=device), torch.arange(6, device=device) % K
    assert m2.classify(x).shape == m2.predict_proba(x).shape == m2.predict_proba(x, num_samples=7).shape == (6, K)
    every = torch.arange(K, device=device)[:, None]
    qz = m2.encode(x, every)
    assert (qz.batch_shape, qz.event_shape) == ((K, 6), (L,))
    px = m2.decode(every, qz.mean)
    assert (px.batch_shape, px.event_shape) == ((K, 6), (1, 4, 5))
    images, classes = m2.generate(5, y=2)
    assert images.shape == (5, 1, 4, 5)
    assert classes.tolist() == [2] * 5
    assert m2.decode(y, m2.encode(x, y).mean).mean.shape == x.shape


def test_prediction_averages_over_draws() -> None:
    m2, x = make_m2(False).double().eval(), make_examples(4)
    with torch.no_grad():
        a = m2.encode_a(x).sample((5000,))
        expected = m2.classify(x, a).softmax(-1).mean(0)
    sizes: list[int] = []
    m2.classifier.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    found = m2.predict_proba(x, num_samples=5000)
    m2.predict_proba(x.repeat(250, 1), num_samples=500)
    assert max(sizes) <= 5000 * K  # draws take memory for a few examples at a time
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)
    torch.testing.assert_close(m2.predict_proba(x), m2.classify(x, m2.encode_a(x).mean).softmax(-1).detach())
    assert (m2.predict_proba(x) - found).abs().max() > 1e-4  # the mean of q(a|x) is another prediction


@SKIP
def test_save_and_load(skip: bool, tmp_path: Path) -> None:
    m2, x = make_m2(skip), make_examples(4).float()
    loaded = pyro_ssvae.load(pyro_ssvae.save(m2, tmp_path))
    torch.testing.assert_close(loaded.predict_proba(x), m2.predict_proba(x))
    assert loaded.config() == m2.config()


@SKIP
def test_training_and_missing_values(skip: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 2
    x = torch.randn(200, 4, generator=generator) + 3.0 * y[:, None]
    x[::7, 1] = float("nan")
    data = SemiSupervisedData.from_arrays(x, torch.where(torch.arange(200) < 20, y, -1), x_test=x, y_test=y)
    m2 = M2.for_data(data, latent_dim=2, auxiliary_dim=2, skip=skip, hidden_dims=(16,), likelihood="gaussian")
    objective = SemiSupervisedELBO.for_data(m2, data, pure=True)
    fit(objective, data, TrainingConfig(max_steps=80, learning_rate=2e-2, device="cpu"), progress=False)
    assert (m2.predict(x) == y).double().mean() > 0.9
    filled = m2.impute(x, num_samples=50)
    assert (filled[::7, 1] - 3.0 * y[::7]).abs().mean() < 1.2
    torch.testing.assert_close(filled[1], x[1])
    torch.testing.assert_close(m2.impute(x[7:9], num_samples=50), filled[7:9])


@SKIP
def test_networks_for_other_programs(skip: bool) -> None:
    """With ``skip``, p(x|y,z) is an integral over a, and no network."""
    networks = make_networks(make_m2(skip))
    assert ("likelihood" in networks) is not skip
    program = trace(networks["classifier"]).module()
    x = make_examples(5).float()
    torch.testing.assert_close(program(x), make_m2(skip).predict_proba(x))


def test_pose_and_skip_share_the_decoder() -> None:
    m2 = make_m2(True, event_shape=(1, 8, 8), latent_dim=8, pose=True)
    assert m2.generate(3)[0].shape == (3, 1, 8, 8)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: make_m2(True, auxiliary_dim=0), "skip=True passes the auxiliary latents"),
        (lambda: make_m2(False, auxiliary_dim=-1), "auxiliary_dim=-1"),
        (lambda: make_m2(False, event_shape=(3, 8, 8), networks="conv"), "needs networks='mlp'"),
        (lambda: make_m2(False, classifier=torch.nn.Linear(D, K)), "classifier='mlp'"),
        (lambda: make_m2(False, auxiliary_dim=0).encode_a(make_examples(2).float()), "no auxiliary latents"),
        (
            lambda: make_m2(False, auxiliary_dim=0).predict_proba(torch.zeros(2, D), num_samples=3),
            "no auxiliary latents",
        ),
        (lambda: make_m2(False).decode_a(torch.zeros(2).long(), torch.zeros(2, L)), "needs x"),
        (lambda: M1M2(M1((9,), latent_dim=D), make_m2(False, likelihood="gaussian")), "auxiliary_dim=0"),
    ],
)
def test_errors(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
