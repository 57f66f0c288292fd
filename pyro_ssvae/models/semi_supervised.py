"""Base class of generative models with classes: class prior, auxiliary classification model, generating by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ssvae._arguments import checked
from pyro_ssvae._arrays import as_labels
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.distributions import ClassPrior, Likelihood
from pyro_ssvae.distributions.choice import make_class_prior
from pyro_ssvae.models.base import data_plate, evaluation_mode, get_device
from pyro_ssvae.models.latent_variable import LatentVariableModel

__all__ = ["SemiSupervisedModel"]


class SemiSupervisedModel(LatentVariableModel, abstract=True):
    """Base class of models with a generative p(x|y,z); a subclass also defines ``classify``, ``encode`` and ``decode``.

    Args:
        event_shape: Shape of one example.
        num_classes: Number of classes ``K``, at least 2.
        latent_dim: Number of latents ``L``.
        likelihood: A name or a :class:`~pyro_ssvae.distributions.Likelihood`.
        prior: A name, a module that returns p(z) when called, or ``None`` for the standard normal.
        class_prior: A name or a :class:`~pyro_ssvae.distributions.ClassPrior`.
        missing: Whether examples may have missing values.

    Raises:
        ValueError: For an empty event shape, fewer than two classes, a non-positive ``latent_dim`` or unknown names.
        TypeError: For a likelihood or prior of the wrong type.
    """

    num_classes: int

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

    def encode(self, x: Tensor, y: Tensor) -> dist.TorchDistribution:
        """Return q(z|x,y), with event shape ``(L,)``, for x ``(B, *event_shape)`` and y ``(B,)`` or ``(K, 1)``."""
        raise NotImplementedError(f"{type(self).__name__} must define encode(x, y) -> distribution over z.")

    def decode(self, y: Tensor, z: Tensor) -> dist.TorchDistribution:
        """Return p(x|y,z), with event shape ``event_shape``, for y ``(B,)`` or ``(K, 1)`` and z ``(..., B, L)``."""
        raise NotImplementedError(f"{type(self).__name__} must define decode(y, z) -> distribution over x.")

    def _decode_posterior(self, x: Tensor, num_samples: int) -> tuple[Tensor, Any]:
        classes = torch.arange(self.num_classes, device=x.device).unsqueeze(-1)  # (K, 1)
        posterior = self.encode(x, classes)
        z = posterior.sample((num_samples,))  # (S, K, B, L)
        log_prior = self.prior().log_prob(z) + self.class_prior.mean().log().unsqueeze(-1)
        return log_prior - posterior.log_prob(z), self.decode(classes, z)

    @classmethod
    def _class_arguments(cls, data: SemiSupervisedData) -> dict[str, Any]:
        if data.num_classes is None:
            raise ValueError(
                f"{cls.__name__} needs the number of classes, and {data.name} has no labels. Give labels, or "
                "num_classes=K to cluster without any; M1 and DDGM need no classes."
            )
        return {"num_classes": data.num_classes}

    def classify_model(self, x: Tensor, y: Tensor, *, size: int | None = None) -> None:
        """Observe the classes of labelled examples under q(y|x), at site ``"y_aux"``: the last term of eq. 9.

        Args:
            x: Labelled examples with shape ``(B, *event_shape)``.
            y: Their classes, with shape ``(B,)``.
            size: Number of examples that the minibatch represents; ``None`` is ``B``.
        """
        with data_plate(x, size):
            pyro.sample("y_aux", dist.Categorical(logits=self.classify(x)), obs=y)

    @checked
    def generate(self, num_samples: int, y: int | str | Sequence[str] | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw z from its prior and decode it.

        Args:
            num_samples: Number of samples.
            y: A class for all samples, its number or name, classes with shape ``(num_samples,)``, or ``None`` to draw
                them from π.

        Returns:
            The means of p(x|y,z), with shape ``(num_samples, *event_shape)``, and the classes, ``(num_samples,)``.

        Raises:
            TypeError: For a number of samples or classes that are no integers.
            ValueError: For a non-positive number of samples, or classes of another shape or that the model lacks.
        """
        with torch.no_grad(), evaluation_mode(self):
            if y is None:
                classes = dist.Categorical(self.class_prior.mean()).sample((num_samples,))
            else:
                y = self._replace_names(y)
                classes = as_labels([y] * num_samples if np.ndim(y) == 0 else y, "y", num_samples)
                if int(classes.max()) >= self.num_classes:
                    raise ValueError(f"y={int(classes.max())} is no class; the model has 0 to {self.num_classes - 1}.")
                classes = classes.to(get_device(self))
            z = self.prior().sample((num_samples,))
            mean: Tensor = self.decode(classes, z).mean
            return mean, classes

    def _replace_names(self, y: Any) -> Any:
        """Return a class, or classes, with numbers in place of names."""
        if isinstance(y, (list, tuple)):
            return [self._replace_names(name) for name in y]
        if isinstance(y, str) and y not in self.class_names:
            known = ", ".join(self.class_names[:20]) or f"known by number alone, 0 to {self.num_classes - 1}"
            raise ValueError(f"y={y} is no class; the classes are {known}.")
        return self.class_names.index(y) if isinstance(y, str) else y
