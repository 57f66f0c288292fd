"""Likelihoods and class priors against closed forms."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch.nn import functional as F

from pyro_ssvae import M2, SemiSupervisedELBO
from pyro_ssvae.data import Batch
from pyro_ssvae.distributions import (
    Bernoulli,
    ClassPrior,
    DirichletClassPrior,
    FixedClassPrior,
    Gaussian,
    Likelihood,
    MAPClassPrior,
)
from tests.objectives.small import take_steps


def test_gaussian_is_normal_with_floored_scale() -> None:
    params, x = torch.randn(4, 2, 3).double(), torch.randn(4, 3).double()
    distribution = Gaussian(min_scale=0.1)(params, 1)
    scale = 0.1 + F.softplus(params[:, 1])
    expected = dist.Normal(params[:, 0], scale).log_prob(x).sum(-1)
    torch.testing.assert_close(distribution.log_prob(x), expected)
    assert Gaussian(min_scale=0.1)(torch.full((1, 2, 3), -50.0), 1).base_dist.scale.min() >= 0.1


def test_likelihood_domains() -> None:
    Bernoulli().check(torch.tensor([0.0, 0.5, 1.0]))
    Gaussian().check(torch.tensor([-3.0, 300.0]))
    with pytest.raises(ValueError, match=r"\[-1, 0\.5\].*gaussian"):
        Bernoulli().check(torch.tensor([-1.0, 0.5]))
    with pytest.raises(ValueError, match="min_scale=0"):
        Gaussian(min_scale=0.0)
    with pytest.raises(NotImplementedError, match="Likelihood must define"):
        Likelihood()(torch.zeros(1), 1)


def test_class_prior_errors() -> None:
    for probs in ([0.5, 0.5], [0.5, 0.5, 0.0], [0.5, float("nan"), 0.5]):
        with pytest.raises(ValueError, match="3 positive finite"):
            FixedClassPrior(3, probs)
    with pytest.raises(ValueError, match="at least 1"):
        MAPClassPrior(3, concentration=0.5)
    with pytest.raises(ValueError, match="positive"):
        DirichletClassPrior(3, concentration=0.0)
    for call in (ClassPrior(3).model, ClassPrior(3).mean):
        with pytest.raises(NotImplementedError, match="must define"):
            call()


@pytest.mark.parametrize("class_prior", ["map", "dirichlet"])
def test_class_prior_recovers_imbalance(class_prior: str) -> None:
    """Examples of three well-separated classes, 70/20/10, six labels: π is found within four standard errors."""
    torch.manual_seed(1)
    pi = torch.tensor([0.7, 0.2, 0.1])
    n, width = 600, 12
    y = dist.Categorical(pi).sample((n,))
    centres = torch.eye(3).repeat_interleave(width // 3, -1) * 0.9 + 0.05
    x = torch.bernoulli(centres[y])
    labelled = torch.cat([(y == k).nonzero()[:2, 0] for k in range(3)])
    unlabelled = torch.ones(n, dtype=torch.bool).index_fill(0, labelled, False)
    m2 = M2((width,), 3, latent_dim=1, hidden_dims=(16,), class_prior=class_prior, classifier="mlp")
    objective = SemiSupervisedELBO(m2, num_labelled=6, num_unlabelled=n - 6)
    take_steps(objective, Batch(x[unlabelled], x[labelled], y[labelled]), 200)
    standard_error = (pi * (1 - pi) / n).sqrt()
    deviation = (m2.class_prior.mean().detach() - pi) / standard_error
    assert deviation.abs().max() < 4, deviation
    if class_prior == "dirichlet":
        # The posterior has the right precision: its total is of the order of the number of examples.
        assert n / 3 < m2.class_prior.log_total.exp() < 3 * n
