"""Base classes of models whose examples follow a likelihood given latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pyro_ssvae._arguments import checked
from pyro_ssvae._arrays import as_labels
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.storage import sample_rows
from pyro_ssvae.distributions import Bernoulli, ClassPrior, Likelihood
from pyro_ssvae.distributions.choice import choose_image_likelihood, make_class_prior, make_likelihood, warn_of_codes
from pyro_ssvae.distributions.priors import Uniform
from pyro_ssvae.distributions.torch_distributions import draw_alike, impute, leave_out_missing
from pyro_ssvae.models.base import Model, fork_random_state, full_precision, get_device
from pyro_ssvae.models.generation import generate_x, mean_of
from pyro_ssvae.networks.images import choose_networks
from pyro_ssvae.networks.variational import evaluation_mode
from pyro_ssvae.presets import FEATURES

_MAX_LOG_SCALE = 15.0


class LatentVariableModel(Model, abstract=True):
    """Base class of models whose examples follow a likelihood given latents, and whose latents are inferred.

    Args:
        event_shape: As for :class:`Model`, like ``latent_dim``, ``prior`` and ``num_classes``.
        likelihood: A name in ``pyro_ssvae.distributions.LIKELIHOODS``, or a
            :class:`~pyro_ssvae.distributions.Likelihood`.
        missing: Whether examples, rows of a table, may have missing values (NaN), which are left out of the likelihood.

    Raises:
        ValueError: As for :class:`Model`, or for ``missing`` of images.
        TypeError: For a likelihood or prior of the wrong type.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int,
        likelihood: str | Likelihood,
        prior: str | nn.Module | None,
        num_classes: int | None = None,
        missing: bool = False,
    ) -> None:
        super().__init__(event_shape, latent_dim, prior, num_classes)
        if missing and len(self.event_shape) > 1:
            raise ValueError(f"missing=True is for rows of tables; images, {tuple(event_shape)}, must be complete.")
        if isinstance(self.prior, Uniform):
            raise ValueError("prior='uniform' has no density where a Gaussian guide reaches; take another prior of z.")
        self.likelihood = make_likelihood(likelihood)
        self.missing = missing
        for part in self.likelihood.modules():
            if isinstance(part, Likelihood):
                if vars(part).get("missing", missing) != missing:
                    raise ValueError(
                        f"The likelihood belongs to a model with missing={not missing}; give the one with "
                        f"missing={missing} a likelihood of its own."
                    )
                part.missing = missing

    @classmethod
    def _choose_arguments(cls, data: SemiSupervisedData, given: Mapping[str, Any]) -> dict[str, Any]:
        found = super()._choose_arguments(data, given)
        if data.feature_source is not None:
            found |= FEATURES.model
        elif len(data.event_shape) == 3:
            networks = choose_networks(data.event_shape)
            if networks != "mlp":
                found["networks"] = networks
            likelihood = choose_image_likelihood(sample_rows(data.x), data.scale)
            if "decoder" not in given and not isinstance(likelihood, Bernoulli):  # whose outputs would not fit another
                found["likelihood"] = likelihood
        elif data.categories and not isinstance(given.get("likelihood"), nn.Module):  # for_data has replaced "auto"
            warn_of_codes(data.categories)
        return found

    @property
    def _input_shape(self) -> torch.Size:
        """Shape of what encoders see of an example."""
        like = [*self.likelihood.buffers(), *self.likelihood.parameters(), torch.zeros(())][0]
        example = torch.zeros(1, *self.event_shape, device=like.device)
        return self.likelihood.network_input(example).shape[1:]

    @property
    def _classifier_shape(self) -> torch.Size:
        shape = self._input_shape
        return torch.Size([shape[0] - self.event_size]) if self.missing else shape

    def _classifier_input(self, x: Tensor) -> Tensor:
        """Return what classifiers see of ``x``: not which values are missing, by which few labels are told apart."""
        seen = self.likelihood.network_input(x)
        return seen[..., : -self.event_size] if self.missing else seen

    def check_examples(self, x: Tensor) -> None:
        """Raise ``ValueError`` if examples ``(B, *event_shape)`` lie outside the domain of the likelihood."""
        if self.missing and len(x):  # an observed value of the column stands for the missing ones
            least = torch.where(x.isnan(), torch.inf, x).amin(0)
            x = torch.where(x.isnan(), torch.where(least.isinf(), 0.0, least), x)
        self.likelihood.check(x)

    def fit_units(self, data: SemiSupervisedData) -> None:
        """Do what :meth:`Model.fit_units` does, and estimate the units of the likelihood."""
        super().fit_units(data)
        if data.event_shape == self.event_shape:
            self.likelihood.fit_units(sample_rows(data.x), data.scale)

    @checked
    def impute(self, x: ArrayLike, *, num_samples: int = 100, seed: int = 0) -> Tensor:
        """Return examples with their missing values (NaN) filled in.

        A missing value becomes its mean given the observed ones under the model, or the most probable level of a
        categorical column, by importance sampling from the guide (MIWAE, Mattei & Frellsen, 2019,
        https://arxiv.org/abs/1812.02633). Observed values are returned as they are. The densities are those of
        ``prior``, ``class_prior`` and ``decode``, also in a subclass with another ``model``. All examples have the same
        draws, moved and scaled by the posterior of each, so that what is filled in does not depend on the others.

        Args:
            x: Examples with shape ``(B, D)``, as for :meth:`Model.predict_proba`.
            num_samples: Draws of the latents per example (and class).
            seed: Seed of the draws; the caller's random state is left as it was.

        Raises:
            ValueError: As :meth:`Model.predict_proba`, for a model with ``missing=False`` too, and for values beside
                missing ones that lie outside of the domain of the likelihood.
        """

        def fill(x: Tensor) -> Tensor:
            if not x.isnan().any():
                return x
            self.check_examples(x)
            with fork_random_state(self, seed):
                log_weights, distribution = self._decode_posterior(x, num_samples)
            log_weights = log_weights + distribution.log_prob(x)  # of the observed values
            weights = log_weights.flatten(0, -2).softmax(0).view_as(log_weights)
            return torch.where(x.isnan(), impute(distribution, weights, x), x)

        copies = num_samples * self.likelihood.num_params * (self.num_classes or 1)
        with fork_random_state(self, seed):
            return self._map(fill, x, copies=copies)

    def _decode_posterior(self, x: Tensor, num_samples: int, groups: int = 1) -> tuple[Tensor, Any]:
        """Return log p - log q of draws, ``(..., B)``, and p(x|·) there; the examples of a group share their noise."""
        raise NotImplementedError(f"{type(self).__name__} must define _decode_posterior(x, num_samples).")

    def _make_posterior(self, params: Tensor) -> dist.TorchDistribution:
        """Return the diagonal Gaussian over z with location and log-scale ``(..., 2 * L)``."""
        _check_output(params, "encoder")
        if params.shape[-1] != 2 * self.latent_dim:
            raise ValueError(
                f"The encoder returned shape {tuple(params.shape)}; its last size must be {2 * self.latent_dim}, a "
                f"location and a log-scale for each of {self.latent_dim} latents."
            )
        return make_normal(params)

    def _make_likelihood(self, params: Tensor, batch_shape: torch.Size) -> dist.TorchDistribution:
        """Return the distribution over x with the decoder's outputs ``(*batch_shape, P * D)`` as parameters."""
        _check_output(params, "decoder")
        needed = self.likelihood.num_params * self.event_size
        if params.shape[-1] != needed and params.numel() != math.prod(batch_shape) * needed:
            raise ValueError(
                f"The decoder returned shape {tuple(params.shape)}; its last size must be {needed}, "
                f"{self.likelihood.num_params} parameter(s) of the likelihood {self.likelihood.name} for each of "
                f"{self.event_size} values."
            )
        params = _unflatten(full_precision(params), batch_shape, (self.likelihood.num_params, *self.event_shape))
        distribution: dist.TorchDistribution = self.likelihood(params, len(self.event_shape))
        return leave_out_missing(distribution) if self.missing else distribution


def _check_output(output: Any, role: str) -> None:
    if not isinstance(output, Tensor):
        raise TypeError(f"The {role} returned the type {type(output).__name__}, and one tensor is needed.")


def _unflatten(params: Tensor, batch_shape: torch.Size, shape: Sequence[int]) -> Tensor:
    """Return what a decoder returned as ``(*batch_shape, *shape)``, if its numbers are in that order."""
    size = math.prod(shape)
    outer = params.shape[:-1]
    if params.shape[-1] == size:
        with suppress(RuntimeError):  # of other dimensions than those of z and y, of which a network may leave out y
            return params.reshape(*outer, *shape).expand(*batch_shape, *shape)
    while outer and params.shape[len(outer) :].numel() < size:  # of a decoder that returns images
        outer = outer[:-1]
    kept = [number for number in outer if number != 1]
    if kept not in ([number for number in batch_shape if number != 1], [batch_shape.numel()]):
        raise ValueError(
            f"The decoder returned shape {tuple(params.shape)}, and {(*batch_shape, size)} is needed: first the "
            "dimensions of z and y, in their order (those of y count from the right, too)."
        )
    return params.reshape(*batch_shape, *shape)


def make_normal(params: Tensor) -> dist.TorchDistribution:
    """Return the diagonal Gaussian over vectors with location and log-scale ``(..., 2 * L)``."""
    loc, log_scale = full_precision(params).chunk(2, dim=-1)
    # Bounded, so that an example far from all training examples gives no infinite scale.
    return dist.Normal(loc, log_scale.clamp(-_MAX_LOG_SCALE, _MAX_LOG_SCALE).exp()).to_event(1)


class SemiSupervisedModel(LatentVariableModel, abstract=True):
    """Base class of models with a generative p(x|y,z).

    A subclass also defines ``classify(x)``, the logits of q(y|x), ``encode(x, y)``, q(z|x,y), and ``decode(y, z)``,
    p(x|y,z), for x ``(B, *event_shape)``, y ``(B,)`` or ``(K, 1)`` and z ``(..., B, L)``.

    Arguments and errors are those of :class:`LatentVariableModel`, with ``num_classes``, the number of classes ``K``,
    and ``class_prior``, p(y): a name or a :class:`~pyro_ssvae.distributions.ClassPrior`. ``bound_of_latents`` says
    whether the bound that is trained is one of latents instead of x.
    """

    num_classes: int
    bound_of_latents = False
    encode: Callable[..., Any]
    decode: Callable[..., Any]

    def __init__(
        self,
        event_shape: Sequence[int],
        num_classes: int,
        latent_dim: int,
        likelihood: str | Likelihood,
        prior: str | nn.Module | None,
        class_prior: str | ClassPrior,
        missing: bool = False,
    ) -> None:
        super().__init__(event_shape, latent_dim, likelihood, prior, num_classes, missing)
        self.class_prior = make_class_prior(class_prior, num_classes)

    def _decode_posterior(self, x: Tensor, num_samples: int, groups: int = 1) -> tuple[Tensor, Any]:
        classes = torch.arange(self.num_classes, device=x.device).unsqueeze(-1)  # (K, 1)
        posterior = self.encode(x, classes)
        z = draw_alike(posterior, (num_samples,), groups)  # (S, K, B, L)
        log_prior = self.prior().log_prob(z) + self.class_prior.mean().log().unsqueeze(-1)
        return log_prior - posterior.log_prob(z), self.decode(classes, z)

    @classmethod
    def _class_arguments(cls, data: SemiSupervisedData) -> dict[str, Any]:
        if data.num_classes is None:
            raise ValueError(
                f"{cls.__name__} needs the number of classes, and {data.name} has no labels. Give labels, or, "
                "to cluster without any, SemiSupervisedData.from_arrays(x, num_classes=K); M1 and DDGM need no classes."
            )
        return {"num_classes": data.num_classes}

    def _as_logits(self, logits: Tensor) -> Tensor:
        """Return what a classifier returned, in full precision, or raise ``ValueError`` for another number than K."""
        _check_output(logits, "classifier")
        if logits.shape[-1] != self.num_classes:
            raise ValueError(
                f"The classifier returned shape {tuple(logits.shape)}; its last size must be {self.num_classes}, a "
                "logit for each class."
            )
        return full_precision(logits)

    @checked
    def generate(self, num_samples: int, y: int | str | Sequence[str] | Tensor | None = None) -> tuple[Tensor, Any]:
        """Draw z from its prior; return the means of p(x|y,z), ``(num_samples, *event_shape)``, and the classes.

        A subclass with a ``model`` of its own generates by that function, with y set to the classes that are given.

        Args:
            num_samples: Number of samples.
            y: A class for all samples, its number or name, classes with shape ``(num_samples,)``, or ``None`` to draw
                them from π.

        Raises:
            TypeError: For a number of samples or classes that are no integers.
            ValueError: For a non-positive number of samples, or classes of another shape or that the model lacks.
        """
        with torch.no_grad(), evaluation_mode(self):
            classes = None
            if y is not None:
                y = self._replace_names(y)
                classes = as_labels([y] * num_samples if np.ndim(y) == 0 else y, "y", num_samples)
                if int(classes.max()) >= self.num_classes:
                    raise ValueError(f"y={int(classes.max())} is no class; the model has 0 to {self.num_classes - 1}.")
                classes = classes.to(get_device(self))
            generated, drawn = generate_x(self, num_samples, classes)
            return mean_of(generated), drawn

    def _replace_names(self, y: Any) -> Any:
        """Return a class, or classes, with numbers in place of names."""
        if isinstance(y, (list, tuple)) or (isinstance(y, np.ndarray) and y.dtype.kind in "UO"):
            return [self._replace_names(name) for name in y]
        if isinstance(y, str) and y not in self.class_names:
            known = ", ".join(self.class_names[:20]) or f"known by number alone, 0 to {self.num_classes - 1}"
            raise ValueError(f"y={y} is no class; the classes are {known}.")
        return self.class_names.index(y) if isinstance(y, str) else y
