"""The base class of models whose examples follow a likelihood given latents that are inferred."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pyro_ssvae._arguments import checked
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.distributions import Likelihood
from pyro_ssvae.distributions.choice import make_likelihood
from pyro_ssvae.distributions.priors import Uniform
from pyro_ssvae.distributions.torch_distributions import impute, leave_out_missing
from pyro_ssvae.models.base import Model, fork_random_state, full_precision
from pyro_ssvae.networks.images import choose_networks
from pyro_ssvae.presets import FEATURES

__all__ = ["LatentVariableModel"]

_MAX_LOG_SCALE = 15.0


class LatentVariableModel(Model, abstract=True):
    """Base class of models whose examples follow a likelihood given latents, and whose latents are inferred.

    Args:
        event_shape: Shape of one example.
        latent_dim: Number of latents ``L``.
        likelihood: A name in ``pyro_ssvae.distributions.LIKELIHOODS``, or a
            :class:`~pyro_ssvae.distributions.Likelihood`.
        prior: A name, a module that returns p(z) when called, or ``None`` for the standard normal.
        num_classes: Number of classes ``K``, at least 2; ``None`` for a model without classes.
        missing: Whether examples, rows of a table, may have missing values (NaN), which are left out of the likelihood.

    Raises:
        ValueError: For an empty event shape, a non-positive ``latent_dim``, fewer than two classes or unknown names, or
            ``missing`` for images.
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
                part.missing = missing

    @classmethod
    def _choose_arguments(cls, data: SemiSupervisedData, given: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if data.feature_source is not None:
            found |= FEATURES.model
        elif choose_networks(data.event_shape) != "mlp":
            found["networks"] = choose_networks(data.event_shape)
            if "decoder" not in given:  # whose outputs would not fit another likelihood
                on_grid = data.x.dtype == torch.uint8 and data.scale == 255.0
                found["likelihood"] = "discretised_logistic" if on_grid else "gaussian"
        return {name: value for name, value in found.items() if name in inspect.signature(cls).parameters}

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
        """Remember the scale and the class names of a data set, and estimate the units of the likelihood."""
        super().fit_units(data)
        if data.event_shape == self.event_shape:
            self.likelihood.fit_units(data.x, data.scale)

    @checked
    def impute(self, x: ArrayLike, *, num_samples: int = 100, seed: int = 0) -> Tensor:
        """Return examples with their missing values (NaN) filled in.

        A missing value becomes its mean given the observed ones under the model, or the most probable level of a
        categorical column, by importance sampling from the guide (MIWAE, Mattei & Frellsen, 2019,
        https://arxiv.org/abs/1812.02633). Observed values are returned as they are.

        Args:
            x: Examples with shape ``(B, D)``, as for :meth:`Model.predict_proba`.
            num_samples: Draws of the latents per example (and class).
            seed: Seed of the draws; the caller's random state is left as it was.

        Raises:
            ValueError: As :meth:`Model.predict_proba`, for a model with ``missing=False`` too.
        """

        def fill(x: Tensor) -> Tensor:
            log_weights, distribution = self._decode_posterior(x, num_samples)
            log_weights = log_weights + distribution.log_prob(x)  # of the observed values
            weights = log_weights.flatten(0, -2).softmax(0).view_as(log_weights)
            return torch.where(x.isnan(), impute(distribution, weights, x), x)

        copies = num_samples * self.likelihood.num_params * (self.num_classes or 1)
        with fork_random_state(self, seed):
            return self._map(fill, x, copies=copies)

    def _decode_posterior(self, x: Tensor, num_samples: int) -> tuple[Tensor, Any]:
        """Return log-ratios of the densities of draws in model and guide, ``(..., B)``, and p(x|·) at the draws."""
        raise NotImplementedError(f"{type(self).__name__} must define _decode_posterior(x, num_samples).")

    def _make_posterior(self, params: Tensor) -> dist.TorchDistribution:
        """Return the diagonal Gaussian over z with location and log-scale ``(..., 2 * L)``."""
        loc, log_scale = full_precision(params).chunk(2, dim=-1)
        # Bounded, so that an example far from all training examples gives no infinite scale.
        return dist.Normal(loc, log_scale.clamp(-_MAX_LOG_SCALE, _MAX_LOG_SCALE).exp()).to_event(1)

    def _make_likelihood(self, params: Tensor, batch_shape: torch.Size) -> dist.TorchDistribution:
        """Return the distribution over x with the decoder's outputs ``(*batch_shape, P * D)`` as parameters."""
        needed = self.likelihood.num_params * self.event_size
        if params.shape[-1] != needed and params.numel() != math.prod(batch_shape) * needed:
            raise ValueError(
                f"The decoder returned shape {tuple(params.shape)}; its last size must be {needed}, "
                f"{self.likelihood.num_params} parameter(s) for each of {self.event_size} values."
            )
        params = full_precision(params).reshape(*batch_shape, self.likelihood.num_params, *self.event_shape)
        distribution: dist.TorchDistribution = self.likelihood(params, len(self.event_shape))
        return leave_out_missing(distribution) if self.missing else distribution
