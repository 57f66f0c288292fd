"""Priors of z: densities that integrate to one, samples that follow them, copies, saving."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch

import pyro_ssvae
from pyro_ssvae import M1, M2, SemiSupervisedELBO, UnsupervisedELBO
from pyro_ssvae.data import Batch
from pyro_ssvae.distributions import (
    PRIORS,
    Flow,
    MixtureOfGaussians,
    Prior,
    StandardNormal,
    StudentT,
    VampPrior,
    make_prior,
)

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


@pytest.mark.parametrize("name", NAMES)
def test_models_with_it_train_copy_and_save(name: str, tmp_path: Path) -> None:
    x, y = torch.rand(9, 6).round(), torch.arange(3)
    m1, m2 = (
        M1((6,), latent_dim=2, hidden_dims=(8,), prior=name),
        M2((6,), 3, latent_dim=2, hidden_dims=(8,), prior=name),
    )
    pairs = {
        "m1": (m1, UnsupervisedELBO(m1, num_rows=30), Batch(x, None, None)),
        "m2": (m2, SemiSupervisedELBO(m2, num_labelled=3, num_unlabelled=30), Batch(x, x[:3], y)),
    }
    for where, (pair, objective, batch) in pairs.items():
        optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
        losses = []
        for _ in range(40):
            loss = objective(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert sum(losses[-5:]) < sum(losses[:5])
        assert all(parameter.grad is not None for parameter in pair.prior.parameters())
        twin = pyro_ssvae.load(pyro_ssvae.save(pair, tmp_path / where))
        z = torch.randn(4, 2)
        for other in (twin, copy.deepcopy(pair)):
            torch.testing.assert_close(other.prior().log_prob(z), pair.prior().log_prob(z))
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
