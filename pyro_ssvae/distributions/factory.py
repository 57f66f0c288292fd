"""Likelihoods, priors and class priors by name, for arguments, command lines and saved models."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from pyro_ssvae.distributions.class_priors import ClassPrior, DirichletClassPrior, FixedClassPrior, MAPClassPrior
from pyro_ssvae.distributions.counts import NegativeBinomial, Poisson
from pyro_ssvae.distributions.discrete import Categorical, DiscretisedLogistic
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

__all__ = ["LIKELIHOODS", "PRIORS", "make_class_prior", "make_likelihood", "make_prior"]

_CONTINUOUS: tuple[type[Likelihood], ...] = (Bernoulli, ContinuousBernoulli, Gaussian, Laplace)
_DISCRETE: tuple[type[Likelihood], ...] = (Categorical, DiscretisedLogistic, Poisson, NegativeBinomial)
LIKELIHOODS = {kind.name: kind for kind in (*_CONTINUOUS, *_DISCRETE)}
"""Likelihoods by name; not :class:`Mixed`, whose parts have no default."""

PRIORS: dict[str, type[Prior]] = {
    kind.name: kind for kind in (StandardNormal, StudentT, MixtureOfGaussians, VampPrior, Flow)
}
"""Priors of inferred latents by name; not :class:`Uniform`, ``"uniform"``, which is for generators alone."""

_CLASS_PRIORS: dict[str, type[ClassPrior]] = {
    "uniform": FixedClassPrior,
    "fixed": FixedClassPrior,
    "map": MAPClassPrior,
    "dirichlet": DirichletClassPrior,
}


def make_likelihood(likelihood: str | Likelihood, **config: Any) -> Likelihood:
    """Return a likelihood by name (one in ``LIKELIHOODS``, with its arguments), or the given one unchanged.

    Raises:
        ValueError: For an unknown name.
        TypeError: For anything that is neither a name nor a :class:`Likelihood`.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if not isinstance(likelihood, str):
        raise TypeError(
            f"likelihood must be a name or a Likelihood, not {type(likelihood).__name__}; "
            f"names: {', '.join(LIKELIHOODS)}."
        )
    if likelihood == Mixed.name and "parts" in config:
        return Mixed([(columns, make_likelihood(**dict(part))) for columns, part in config["parts"]])
    if likelihood == Mixed.name:
        raise ValueError(
            "likelihood='mixed' does not say which columns follow which distribution: pass "
            "pyro_ssvae.distributions.Mixed([([0, 1], Gaussian()), ([2], Poisson())])."
        )
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood={likelihood!r} is unknown; choose one of {', '.join(LIKELIHOODS)}, or a Mixed.")
    return LIKELIHOODS[likelihood](**config)


def make_prior(prior: str | nn.Module | None, latent_dim: int, **config: Any) -> nn.Module:
    """Return a prior of z by name, or the given module unchanged.

    Args:
        prior: A name in ``PRIORS``, ``"uniform"``, a module that returns a Pyro distribution with event shape
            ``(latent_dim,)`` when called, or ``None`` for the standard normal.
        latent_dim: Number of latents.
        **config: Arguments of the named prior.

    Raises:
        ValueError: For an unknown name, or a :class:`Prior` over another number of latents.
        TypeError: For anything else.
    """
    prior = StandardNormal.name if prior is None else prior
    if isinstance(prior, Prior) and prior.latent_dim != latent_dim:
        raise ValueError(f"The prior is over {prior.latent_dim} latents, the model has latent_dim={latent_dim}.")
    if isinstance(prior, nn.Module):
        _check_call(prior, "prior", "a distribution over z")
        return prior
    if not isinstance(prior, str):
        raise TypeError(f"prior must be a name or a module, not {type(prior).__name__}; names: {', '.join(PRIORS)}.")
    if prior == Uniform.name:
        return Uniform(latent_dim)
    if prior not in PRIORS:
        raise ValueError(f"prior={prior!r} is unknown; choose one of {', '.join(PRIORS)}.")
    return PRIORS[prior](latent_dim, **config)


def make_class_prior(class_prior: str | ClassPrior, num_classes: int, **config: Any) -> ClassPrior:
    """Return a class prior by name (``"uniform"``, ``"map"`` or ``"dirichlet"``), or the given one unchanged.

    Raises:
        ValueError: For an unknown name, or a prior over another number of classes.
        TypeError: For anything that is neither a name nor a :class:`ClassPrior`.
    """
    if isinstance(class_prior, ClassPrior):
        if class_prior.num_classes != num_classes:
            raise ValueError(f"class_prior is over {class_prior.num_classes} classes but the model has {num_classes}.")
        return class_prior
    if not isinstance(class_prior, str):
        raise TypeError(
            f"class_prior must be a name or a ClassPrior, not {type(class_prior).__name__}; for known "
            "probabilities pass FixedClassPrior(num_classes, probs)."
        )
    if class_prior not in _CLASS_PRIORS:
        raise ValueError(f"class_prior={class_prior!r} is unknown; choose uniform, map or dirichlet.")
    return _CLASS_PRIORS[class_prior](num_classes, **config)


def _check_call(module: nn.Module, name: str, returns: str) -> None:
    """Raise ``TypeError`` for a module that cannot be called without arguments."""
    try:
        inspect.signature(module.forward).bind()
    except TypeError as error:
        raise TypeError(
            f"{name}, a {type(module).__name__}, must return {returns} when called without arguments: {error}."
        ) from error
