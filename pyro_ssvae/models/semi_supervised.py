"""What models with classes share: predicting; and for generative ones class prior, auxiliary model, generating."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ssvae.distributions import ClassPrior, Likelihood
from pyro_ssvae.distributions.factory import make_class_prior
from pyro_ssvae.models.base import LatentVariableModel, Model, data_plate, evaluation_mode, get_device

__all__ = ["Classifier", "SemiSupervisedModel"]


class Classifier(Model):
    """What models share that say which class a row is of, by :meth:`classify`.

    Attributes:
        num_classes: Number of classes ``K``.
    """

    num_classes: int

    @property
    def has_classes(self) -> bool:
        """Whether the model was built with classes."""
        return True

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits of p(y|x) or q(y|x), with shape ``(B, K)``, for rows ``(B, *event_shape)``."""
        raise NotImplementedError(f"{type(self).__name__} must define classify(x) -> logits.")

    def predict(self, x: Tensor) -> Tensor:
        """Return the likeliest class of each row, with shape ``(B,)``."""
        return self.predict_proba(x).argmax(-1)

    def predict_proba(self, x: Tensor) -> Tensor:
        """Return the probabilities of classes, with shape ``(B, K)``, in evaluation mode.

        Args:
            x: Rows with shape ``(B, *event_shape)``, scaled as in training.

        Raises:
            ValueError: If rows have another shape than the model's.
        """
        self._check_rows(x)
        with torch.no_grad(), evaluation_mode(self):
            return self.classify(x.to(next(self.parameters()))).softmax(-1)


class SemiSupervisedModel(Classifier, LatentVariableModel):
    """Base class of the models that know classes. A subclass defines ``classify``, ``encode`` and ``decode`` too.

    Args:
        event_shape: Shape of one row.
        num_classes: Number of classes ``K``, at least 2.
        latent_dim: Number of latents ``L``.
        likelihood: A name or a :class:`~pyro_ssvae.distributions.Likelihood`.
        prior: A name, a module that returns p(z) when called, or ``None`` for the standard normal.
        class_prior: A name or a :class:`~pyro_ssvae.distributions.ClassPrior`.
        options: The constructor's other arguments, JSON-ready, for ``config``.
        modules: Those arguments that may hold modules of the caller's own, by name.

    Raises:
        ValueError: For an empty event shape, fewer than two classes, a non-positive ``latent_dim`` or unknown names.
        TypeError: For a likelihood or prior of the wrong type.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        num_classes: int,
        latent_dim: int,
        likelihood: str | Likelihood,
        prior: str | nn.Module | None,
        class_prior: str | ClassPrior,
        options: dict[str, Any],
        modules: dict[str, Any],
    ) -> None:
        options = {"num_classes": int(num_classes), **options}
        super().__init__(event_shape, latent_dim, likelihood, prior, options, modules)
        self.num_classes = int(num_classes)
        self.class_prior = make_class_prior(class_prior, num_classes)

    def encode(self, x: Tensor, y: Tensor) -> dist.TorchDistribution:
        """Return q(z|x,y), with event shape ``(L,)``, for x ``(B, *event_shape)`` and y ``(B,)`` or ``(K, 1)``."""
        raise NotImplementedError(f"{type(self).__name__} must define encode(x, y) -> distribution over z.")

    def decode(self, y: Tensor, z: Tensor) -> dist.TorchDistribution:
        """Return p(x|y,z), with event shape ``event_shape``, for y ``(B,)`` or ``(K, 1)`` and z ``(..., B, L)``."""
        raise NotImplementedError(f"{type(self).__name__} must define decode(y, z) -> distribution over x.")

    def classify_model(self, x: Tensor, y: Tensor, *, size: int | None = None) -> None:
        """The auxiliary model of eq. 9: an observed site ``"y_aux"`` under q(y|x), which learns from labels alone.

        Args:
            x: Labelled rows with shape ``(B, *event_shape)``.
            y: Their classes, with shape ``(B,)``.
            size: Number of rows the minibatch stands for; ``None`` is ``B``.
        """
        with data_plate(x, size):
            pyro.sample("y_aux", dist.Categorical(logits=self.classify(x)), obs=y)

    def generate(self, num_samples: int, y: int | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw z from its prior and decode it.

        Args:
            num_samples: Number of rows to draw.
            y: A class for all rows, classes with shape ``(num_samples,)``, or ``None`` to draw them from π.

        Returns:
            The means of p(x|y,z), with shape ``(num_samples, *event_shape)``, and the classes, ``(num_samples,)``.

        Raises:
            ValueError: For a non-positive number of samples, or classes of another shape or out of range.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be at least 1.")
        with torch.no_grad(), evaluation_mode(self):
            if y is None:
                y = dist.Categorical(self.class_prior.mean()).sample((num_samples,))
            y = torch.as_tensor(y, device=get_device(self))
            if y.shape not in ((), (num_samples,)) or not bool(((y >= 0) & (y < self.num_classes)).all()):
                raise ValueError(
                    f"y must be one class or {num_samples} classes from 0 to {self.num_classes - 1}; "
                    f"got shape {tuple(y.shape)} with values {y.flatten()[:8].tolist()}."
                )
            y = y.expand(num_samples)
            z = self.prior().sample((num_samples,))
            mean: Tensor = self.decode(y, z).mean
            return mean, y

    def _parts(self) -> dict[str, Any]:
        return {**super()._parts(), "class_prior": self.class_prior}
