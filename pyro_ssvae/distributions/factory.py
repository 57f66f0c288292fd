"""Likelihoods and priors by name, for arguments, command lines and saved models."""

from __future__ import annotations

from typing import Any

from torch import nn

from pyro_ssvae.distributions.discrete import Categorical, DiscretisedLogistic, NegativeBinomial, Poisson
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

__all__ = ["LIKELIHOODS", "PRIORS", "make_likelihood", "make_prior"]

LIKELIHOODS: dict[str, type[Likelihood]] = {
    kind.name: kind
    for kind in (
        Bernoulli,
        ContinuousBernoulli,
        Gaussian,
        Laplace,
        Categorical,
        DiscretisedLogistic,
        Poisson,
        NegativeBinomial,
    )
}
"""Likelihoods by name; :class:`Mixed` needs to be told its parts."""

PRIORS: dict[str, type[Prior]] = {
    kind.name: kind for kind in (StandardNormal, StudentT, MixtureOfGaussians, VampPrior, Flow)
}
"""Priors of inferred latents by name; :class:`Uniform`, ``"uniform"``, is for generators alone."""


def make_likelihood(likelihood: str | Likelihood, **config: Any) -> Likelihood:
    """Return a likelihood by name, or the given one unchanged.

    Args:
        likelihood: A name in ``LIKELIHOODS``, or a :class:`Likelihood`.
        **config: Arguments of the named likelihood.

    Raises:
        ValueError: For an unknown name.
        TypeError: For anything that is neither a name nor a :class:`Likelihood`.

    Example:
        >>> import torch
        >>> make_likelihood("bernoulli")(torch.zeros(4, 1, 8, 8), 2).event_shape
        torch.Size([8, 8])
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
            "likelihood='mixed' must be told which columns follow which distribution: hand in "
            "pyro_ssvae.distributions.Mixed([([0, 1], Gaussian()), ([2], Poisson())])."
        )
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood={likelihood!r} is unknown; choose one of {', '.join(LIKELIHOODS)}, or a Mixed.")
    return LIKELIHOODS[likelihood](**config)


def make_prior(prior: str | nn.Module | None, latent_dim: int, **config: Any) -> nn.Module:
    """Return a prior of z by name, or the given module unchanged.

    Args:
        prior: A name in ``PRIORS``, a module that returns a Pyro distribution with event shape
            ``(latent_dim,)`` when called, or ``None`` for the standard normal.
        latent_dim: Number of latents.
        **config: Arguments of the named prior.

    Raises:
        ValueError: For an unknown name, or a prior of this package over another number of latents.
        TypeError: For anything else.

    Example:
        >>> make_prior("mixture", 3, num_components=5)().event_shape
        torch.Size([3])
    """
    if prior is None:
        prior = StandardNormal.name
    if isinstance(prior, Prior) and prior.latent_dim != latent_dim:
        raise ValueError(f"The prior is over {prior.latent_dim} latents, the model has latent_dim={latent_dim}.")
    if isinstance(prior, nn.Module):
        return prior
    if not isinstance(prior, str):
        raise TypeError(f"prior must be a name or a module, not {type(prior).__name__}; names: {', '.join(PRIORS)}.")
    if prior == Uniform.name:
        return Uniform(latent_dim)
    if prior not in PRIORS:
        raise ValueError(f"prior={prior!r} is unknown; choose one of {', '.join(PRIORS)}.")
    return PRIORS[prior](latent_dim, **config)
