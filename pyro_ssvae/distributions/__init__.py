"""Distributions and heads: likelihoods of x, priors of z and of the classes."""

from pyro_ssvae.distributions.class_priors import (
    ClassPrior,
    DirichletClassPrior,
    FixedClassPrior,
    MAPClassPrior,
    make_class_prior,
)
from pyro_ssvae.distributions.likelihoods import Bernoulli, Gaussian, Likelihood, make_likelihood
from pyro_ssvae.distributions.priors import StandardNormal

__all__ = [
    "Bernoulli",
    "ClassPrior",
    "DirichletClassPrior",
    "FixedClassPrior",
    "Gaussian",
    "Likelihood",
    "MAPClassPrior",
    "StandardNormal",
    "make_class_prior",
    "make_likelihood",
]
