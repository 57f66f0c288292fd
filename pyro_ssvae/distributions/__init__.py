"""Distributions: likelihoods of x, priors of z and of the classes.

Those without arguments have a name only: the likelihood ``"continuous_bernoulli"`` and the prior ``"normal"``.
"""

from pyro_ssvae.distributions.choice import LIKELIHOODS, PRIORS
from pyro_ssvae.distributions.discrete import Categorical, DiscretisedLogistic, NegativeBinomial, Poisson
from pyro_ssvae.distributions.likelihoods import Bernoulli, Gaussian, Laplace, Likelihood, Mixed
from pyro_ssvae.distributions.priors import (
    ClassPrior,
    DirichletClassPrior,
    FixedClassPrior,
    Flow,
    MAPClassPrior,
    MixtureOfGaussians,
    StudentT,
    VampPrior,
)

__all__ = [
    "LIKELIHOODS",
    "PRIORS",
    "Bernoulli",
    "Categorical",
    "ClassPrior",
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
    "StudentT",
    "VampPrior",
]
