"""Likelihoods, priors and class priors by name, and a likelihood chosen by the values of a table."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pyro_ssvae._arrays import choose_scale
from pyro_ssvae._warnings import warn
from pyro_ssvae.distributions import discrete, likelihoods, priors
from pyro_ssvae.distributions.discrete import Categorical, NegativeBinomial
from pyro_ssvae.distributions.likelihoods import Bernoulli, Gaussian, Likelihood, Mixed, are_grey, group_columns
from pyro_ssvae.distributions.priors import ClassPrior, DirichletClassPrior, FixedClassPrior, MAPClassPrior, Prior

LIKELIHOODS: dict[str, type[Likelihood]] = {
    kind.name: kind
    for kind in (
        *(Bernoulli, likelihoods.ContinuousBernoulli, Gaussian, likelihoods.Laplace),
        *(Categorical, discrete.DiscretisedLogistic, discrete.Poisson, NegativeBinomial),
    )
}
"""Likelihoods by name; not :class:`Mixed`, whose parts have no default."""

PRIORS: dict[str, type[Prior]] = {
    kind.name: kind
    for kind in (priors.StandardNormal, priors.StudentT, priors.MixtureOfGaussians, priors.VampPrior, priors.Flow)
}
"""Priors of inferred latents by name; not ``"uniform"``, on [-1, 1], which is for generators alone."""

_CLASS_PRIORS = {"uniform": FixedClassPrior, "map": MAPClassPrior, "dirichlet": DirichletClassPrior}

_COUNT_ZEROS = 0.2  # fraction of zeros from which whole numbers are taken for counts
_AT_ONCE = 2**22  # values of a table that are looked at
_FIRST_ROWS = 1000
_LEAST_LEVELS = 8  # values from which whole numbers may be counts
_COUNT_TABLE = 20  # columns from which rows of counts are taken for samples of different size
_COUNT_SHARE = 0.9  # of the columns of such a table
_PIXELS = 0.1  # share of columns with the largest value, up to which they are no pixels
_MANY_COLUMNS, _COMPONENTS = 100, 30  # networks see components of counts in more columns; chosen on cells


def make_likelihood(likelihood: str | Likelihood) -> Likelihood:
    """Return a likelihood by name, with an error for unknown ones, or the given one unchanged, if it is complete."""
    if isinstance(likelihood, Likelihood):
        if not hasattr(likelihood, "num_params"):
            kind = type(likelihood).__name__
            raise TypeError(f"{kind} must define num_params, how many numbers the decoder returns for a value of x.")
        return likelihood
    return find_kind(likelihood, "likelihood", LIKELIHOODS, "a Likelihood, such as Mixed([([0], Gaussian()), ...])")()


def make_prior(prior: str | nn.Module | None, latent_dim: int) -> nn.Module:
    """Return a prior of ``latent_dim`` latents by name (``None``: the standard normal), or the given module."""
    if not isinstance(prior, nn.Module):
        kinds = PRIORS | {priors.Uniform.name: priors.Uniform}
        return find_kind("normal" if prior is None else prior, "prior", kinds, "a module")(latent_dim)
    if isinstance(prior, Prior) and prior.latent_dim != latent_dim:
        raise ValueError(f"The prior is over {prior.latent_dim} latents, the model has latent_dim={latent_dim}.")
    try:
        inspect.signature(prior.forward).bind()
    except TypeError as error:
        raise TypeError(
            f"prior, a {type(prior).__name__}, must return a distribution over z when called without arguments: "
            f"{error}."
        ) from error
    return prior


def make_class_prior(class_prior: str | ClassPrior, num_classes: int) -> ClassPrior:
    """Return a prior of ``num_classes`` classes by name, or the given one."""
    if not isinstance(class_prior, ClassPrior):
        kinds = "a ClassPrior, for known probabilities FixedClassPrior(num_classes, probs)"
        return find_kind(class_prior, "class_prior", _CLASS_PRIORS, kinds)(num_classes)
    if class_prior.num_classes != num_classes:
        raise ValueError(f"class_prior is over {class_prior.num_classes} classes but the model has {num_classes}.")
    return class_prior


def find_kind(value: Any, role: str, kinds: Mapping[str, Any], other: str) -> Any:
    """Return the class of a name."""
    if not isinstance(value, str):
        raise TypeError(f"{role} must be a name or {other}, not {type(value).__name__}; names: {', '.join(kinds)}.")
    if value not in kinds:
        raise ValueError(f"{role}={value!r} is unknown; choose one of {', '.join(kinds)}, or pass {other}.")
    return kinds[value]


def choose_image_likelihood(x: Tensor, scale: float) -> Likelihood:
    """Return Bernoulli for grey images of which at most a quarter of the values lies between 0.1 and 0.9.

    Other images, and those in colour, are discretised logistic where they are whole numbers of 8 bits, else Gaussian,
    as are all with values outside [0, 1]. A Bernoulli likelihood explains a grey value as chance, and leaves z
    unused where most values are grey. Images x are as stored, ``(N, C, H, W)``, and divided by ``scale``.
    """
    low, high = x.aminmax()
    if not (low >= 0.0 and high <= scale):
        return Gaussian()
    if x.shape[1] < 3 and not are_grey(x, scale):
        return Bernoulli()
    if x.dtype == torch.uint8 and scale == round(scale):
        return discrete.DiscretisedLogistic(levels=round(scale) + 1)
    return Gaussian()


def choose_likelihood(x: NDArray[Any], levels: Mapping[int, int] | None = None) -> Likelihood:
    """Return a likelihood, a :class:`Mixed` one where columns differ; missing values (NaN) are left out.

    Images have that of :func:`choose_image_likelihood`, those of other numbers than uint8 unscaled. Columns of zeros
    and ones, codes of two words among them, are Bernoulli; other codes, whose numbers of ``levels`` are given by
    column, categorical; counts (whole numbers from zero, a fifth of them zeros) negative binomial; all other real
    numbers, also positive ones and those in [0, 1], Gaussian. Tables of counts are negative binomial given the total of
    the row, with one dispersion for each column: those of whole numbers from zero in 20 columns or more, a fifth of
    them zeros, of which few columns attain the maximum, as pixels do; a tenth of the columns may be others. Of more
    than 100 such columns networks see the first 30 principal components.
    """
    if x.ndim > 2:
        images = torch.from_numpy(x if x.ndim > 3 else x[:, None])
        return choose_image_likelihood(images, choose_scale(images))
    sizes = np.array([(levels or {}).get(column, -1) for column in range(x.shape[1])])  # -1: no codes
    nominal = sizes > 2
    binary, whole, zeros, largest = _describe_columns(x)
    binary, whole = binary & ~nominal, whole & (sizes < 0)
    counts, of_counts = _find_counts(binary, whole, zeros, largest)
    parts: list[tuple[Likelihood, Any]] = [
        (Bernoulli(), binary & ~counts),
        (of_counts, counts),
        (Gaussian(), ~binary & ~counts & ~nominal),
        # Columns with the same number of levels together: each part adds to the time of a step.
        *((Categorical(size, 1.0, one_hot=True), sizes == size) for size in dict.fromkeys(sizes[nominal].tolist())),
    ]
    found = [(np.flatnonzero(columns).tolist(), part) for part, columns in parts if columns.any()]
    return found[0][1] if len(found) == 1 else Mixed(found)


def warn_of_codes(categories: Mapping[str, tuple[str, ...]]) -> None:
    """Warn that a model takes the codes of words as numbers, given the words of each column."""
    sizes = ", ".join(f"{name} ({len(words)})" for name, words in list(categories.items())[:10])
    advice = "likelihood='auto' gives them a categorical likelihood."
    warn(f"Columns of words are read as numbers, their codes: {sizes}. {advice}")


def _describe_columns(x: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return for each column whether values are 0 or 1, whether whole from 0, the share of zeros, and the largest."""
    # A column with a fraction in its first rows holds real numbers, and only the others are looked at further.
    kept = np.flatnonzero(_describe_rows(x[:_FIRST_ROWS])[2])
    split = np.array_split(x, min(len(x), 1 + x.size // _AT_ONCE))  # copies of a part are few
    parts = zip(*(_describe_rows(part[:, kept]) for part in split), strict=True)
    missing, binary, whole, zeros, largest = (np.stack(part) for part in parts)
    observed = len(x) - missing.sum(0)
    found = np.zeros((4, x.shape[1]))
    found[0, kept], found[1, kept] = binary.all(0) & (observed > 0), whole.all(0)
    found[2, kept], found[3, kept] = zeros.sum(0) / np.maximum(observed, 1), largest.max(0)
    return found[0] > 0, found[1] > 0, found[2], found[3]


def _describe_rows(x: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return for each column: missing values, whether others are 0 or 1, and whole from 0; zeros; the largest value."""
    missing = np.isnan(x)
    x = np.where(missing, 0.0, x)  # zero is allowed by each of the following
    binary, whole = ((x == 0) | (x == 1)).all(0), ((x >= 0) & (x == np.round(x))).all(0)
    return missing.sum(0), binary, whole, ((x == 0) & ~missing).sum(0), x.max(0)


def _find_counts(
    binary: NDArray[Any], whole: NDArray[Any], zeros: NDArray[Any], largest: NDArray[Any]
) -> tuple[NDArray[Any], Likelihood]:
    """Return which columns hold counts, and their likelihood: given the total of the row in a table of counts."""
    number = int(whole.sum())
    counts = whole & ~binary & (zeros >= _COUNT_ZEROS) & (largest >= _LEAST_LEVELS)
    is_table = number >= max(_COUNT_TABLE, _COUNT_SHARE * len(whole)) and counts.any()
    if is_table and zeros[whole].mean() >= _COUNT_ZEROS:
        if (largest[whole] == largest[whole].max()).mean() <= _PIXELS:
            components = _COMPONENTS if number > _MANY_COLUMNS else None
            return whole, NegativeBinomial(offset=True, columns=number, components=components)
    return counts, NegativeBinomial()


def describe_likelihood(likelihood: Likelihood, columns: int) -> str:
    """Return in words how many columns follow which distribution: ``12 Gaussian, 1 categorical (4 levels)``."""
    numbers: dict[str, int] = {}
    for own, part in group_columns(likelihood, columns):
        kind = re.sub("gaussian|laplace|bernoulli|poisson", lambda word: word[0].title(), part.name.replace("_", " "))
        kind += f" ({part.levels} levels)" if isinstance(part, Categorical) else ""
        kind += " given the total of the row" if getattr(part, "offset", False) else ""
        numbers[kind] = numbers.get(kind, 0) + len(own)
    return ", ".join(f"{number} {kind}" for kind, number in numbers.items())


def check_counts(likelihood: Any, x: Tensor, scale: float = 1.0) -> None:
    """Raise ``ValueError`` for negative values of ``x / scale`` where counts were trained on, and warn of fractions."""
    for columns, part in group_columns(likelihood, x.shape[-1]):
        if not getattr(part, "of_counts", False):
            continue
        values = x[..., columns].nan_to_num(0.0) / scale
        if (low := float(values.min())) < 0.0:
            raise ValueError(f"x holds {low:g}, and the likelihood of the model is of counts 0, 1, 2, ...")
        off = (values - values.round()).abs()
        if not (off <= 1e-3).all():
            warn(
                f"x holds values that are not whole, such as {float(values.flatten()[off.argmax()]):g}, and the "
                "model was trained on counts: give counts, not their logarithms or shares."
            )
