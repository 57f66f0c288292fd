"""Distributions: likelihoods of x, priors of z and of the classes."""

from pyro_ssvae.distributions.class_priors import ClassPrior, DirichletClassPrior, FixedClassPrior, MAPClassPrior
from pyro_ssvae.distributions.counts import NegativeBinomial, Poisson
from pyro_ssvae.distributions.discrete import Categorical, DiscretisedLogistic
from pyro_ssvae.distributions.factory import LIKELIHOODS, PRIORS
from pyro_ssvae.distributions.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian, Laplace, Likelihood
from pyro_ssvae.distributions.mixed import Mixed
from pyro_ssvae.distributions.priors import (
    Flow,
    MixtureOfGaussians,
    Prior,
    StandardNormal,
    StudentT,
    Uniform,
    VampPrior,
)

__all__ = [
    "LIKELIHOODS",
    "PRIORS",
    "Bernoulli",
    "Categorical",
    "ClassPrior",
    "ContinuousBernoulli",
    "DirichletClassPrior",
    "DiscretisedLogistic",
    "FixedClassPrior",
    "Flow",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "MAPClassPrior",
    "Mixed",
    "MixtureOfGaussians",
    "NegativeBinomial",
    "Poisson",
    "Prior",
    "StandardNormal",
    "StudentT",
    "Uniform",
    "VampPrior",
]
