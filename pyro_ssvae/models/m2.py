r"""M2: a semi-supervised generative model with a class and a style (Kingma et al. 2014, section 2).

Generative story, for each row:

.. math:: z \sim N(0, I), \qquad y \sim \mathrm{Cat}(\pi), \qquad x \sim p_\theta(x \mid y, z)

Recognition story:

.. math:: y \sim q_\phi(y \mid x), \qquad z \sim q_\phi(z \mid x, y)

Reference: Semi-supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed, Welling, 2014),
https://arxiv.org/abs/1406.5298, equations 2, 4 and 6 to 9.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ssvae.distributions import (
    ClassPrior,
    Likelihood,
    StandardNormal,
    make_class_prior,
    make_likelihood,
)
from pyro_ssvae.models.base import ENUMERATE, data_plate, device_of, evaluation_mode, full_precision
from pyro_ssvae.networks import ConditionalMLP, make_classifier

__all__ = ["M2"]


class M2(nn.Module):
    """The M2 model/guide pair, for rows of any shape.

    Shapes in the comments: ``B`` rows, ``K`` classes, ``L`` latents. Under enumeration y has shape ``(K, 1)`` and
    everything that depends on it gains a leading ``K``.

    Args:
        event_shape: Shape of one row, for example ``(1, 28, 28)`` for images or ``(30,)`` for a table.
        num_classes: Number of classes ``K``, at least 2.
        latent_dim: Number of latents ``L``.
        hidden_dims: Hidden widths of encoder, decoder and an ``"mlp"`` classifier.
        activation: Activation of those networks, a name in :data:`pyro_ssvae.networks.ACTIVATIONS`.
        batch_norm: Whether those networks normalise before each activation.
        dropout: Probability of dropping a feature of the classifier; ``None`` is 0.3 for a convolutional one, else 0.
        likelihood: ``"bernoulli"``, ``"gaussian"`` or a :class:`~pyro_ssvae.distributions.Likelihood`.
        prior: A module that returns p(z) when called; standard normal when ``None``.
        class_prior: ``"uniform"``, ``"map"``, ``"dirichlet"`` or a
            :class:`~pyro_ssvae.distributions.ClassPrior`.
        classifier: ``"auto"`` (convolutional for images, else an MLP), ``"conv"``, ``"mlp"``, or a module that maps
            x ``(B, *event_shape)`` to logits ``(B, K)``.
        encoder: A module that maps x ``(B, *event_shape)`` and y ``(B,)`` or ``(K, 1)`` to ``(..., 2 * latent_dim)``,
            the location and log-scale of q(z|x,y); a :class:`~pyro_ssvae.networks.ConditionalMLP` when ``None``.
        decoder: A module that maps z ``(..., B, latent_dim)`` and y to the likelihood's raw numbers, ``(..., P * D)``
            for ``P = likelihood.num_params`` and ``D`` elements of an event; a ``ConditionalMLP`` when ``None``.

    Raises:
        ValueError: For an empty event shape, fewer than two classes, a non-positive ``latent_dim`` or unknown names.
        TypeError: For a network, likelihood or prior of the wrong type.

    Example:
        >>> m2 = M2((1, 8, 8), num_classes=10, latent_dim=5, hidden_dims=(32,))
        >>> x = torch.rand(4, 1, 8, 8)
        >>> m2.classify(x).shape, m2.predict(x).shape
        (torch.Size([4, 10]), torch.Size([4]))
        >>> m2.generate(3, y=7)[0].shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        num_classes: int,
        *,
        latent_dim: int = 50,
        hidden_dims: Sequence[int] = (500,),
        activation: str = "relu",
        batch_norm: bool = False,
        dropout: float | None = None,
        likelihood: str | Likelihood = "bernoulli",
        prior: nn.Module | None = None,
        class_prior: str | ClassPrior = "uniform",
        classifier: str | nn.Module = "auto",
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not event_shape or any(size < 1 for size in event_shape):
            raise ValueError(
                f"event_shape={tuple(event_shape)!r} must hold positive sizes, for example (1, 28, 28) or (30,)."
            )
        if latent_dim < 1:
            raise ValueError(f"latent_dim={latent_dim} must be at least 1.")
        self.event_shape = torch.Size(event_shape)
        self.num_classes = int(num_classes)
        self.latent_dim = int(latent_dim)
        self._options = {
            "latent_dim": latent_dim,
            "hidden_dims": list(hidden_dims),
            "activation": activation,
            "batch_norm": batch_norm,
            "dropout": dropout,
        }
        if isinstance(classifier, str):
            self._options["classifier"] = classifier
        parts = {"prior": prior, "classifier": classifier, "encoder": encoder, "decoder": decoder}
        self._own = {name: type(part).__name__ for name, part in parts.items() if isinstance(part, nn.Module)}
        mlp: dict[str, Any] = {"activation": activation, "batch_norm": batch_norm}
        self.class_prior = make_class_prior(class_prior, num_classes)
        self.likelihood = make_likelihood(likelihood)
        self.prior = StandardNormal(latent_dim) if prior is None else prior
        self.classifier = make_classifier(
            classifier, self.event_shape, num_classes, hidden_dims=hidden_dims, dropout=dropout, **mlp
        )
        if encoder is None:
            encoder = ConditionalMLP(self.event_shape, num_classes, 2 * latent_dim, hidden_dims, **mlp)
        if decoder is None:
            decoder = ConditionalMLP(
                (latent_dim,),
                num_classes,
                self.likelihood.num_params * math.prod(self.event_shape),
                tuple(hidden_dims)[::-1],
                **mlp,
            )
        self.encoder = encoder
        self.decoder = decoder

    # The generative story p(z) p(y|π) p(x|y,z) and the recognition story q(y|x) q(z|x,y).

    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        """The generative story of a minibatch.

        Args:
            x: Rows with shape ``(B, *event_shape)``.
            y: Integer classes with shape ``(B,)``, or ``None`` where they are not known.
            size: Number of rows the minibatch stands for; ``None`` is ``B``.
        """
        log_pi = self.class_prior.model()  # (K,)
        with data_plate(x, size):
            z = pyro.sample("z", self.prior())  # (B, L), or (K, B, L) replayed from the guide
            y = pyro.sample("y", dist.Categorical(logits=log_pi), obs=y)  # (B,), or (K, 1)
            pyro.sample("x", self.decode(y, z), obs=x)  # (B, *event_shape)

    def guide(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        """The recognition story of a minibatch; where y is not known it is enumerated, exactly.

        Args:
            x: Rows with shape ``(B, *event_shape)``.
            y: Integer classes with shape ``(B,)``, or ``None`` where they are not known.
            size: Number of rows the minibatch stands for; ``None`` is ``B``.
        """
        self.class_prior.guide()
        with data_plate(x, size):
            if y is None:
                y = pyro.sample("y", dist.Categorical(logits=self.classify(x)), infer=ENUMERATE)  # (K, 1)
            pyro.sample("z", self.encode(x, y))  # (B, L), or (K, B, L)

    def classify_model(self, x: Tensor, y: Tensor, *, size: int | None = None) -> None:
        """The auxiliary model of eq. 9: an observed site ``"y_aux"`` under q(y|x), which learns from labels alone.

        Args:
            x: Labelled rows with shape ``(B, *event_shape)``.
            y: Their classes, with shape ``(B,)``.
            size: Number of rows the minibatch stands for; ``None`` is ``B``.
        """
        with data_plate(x, size):
            pyro.sample("y_aux", dist.Categorical(logits=self.classify(x)), obs=y)

    # The parts, as logits and distributions.

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits of q(y|x), with shape ``(B, K)``, for rows ``(B, *event_shape)``."""
        return full_precision(self.classifier(x))

    def encode(self, x: Tensor, y: Tensor) -> dist.TorchDistribution:
        """Return q(z|x,y), with event shape ``(L,)``, for x ``(B, *event_shape)`` and y ``(B,)`` or ``(K, 1)``."""
        loc, log_scale = full_precision(self.encoder(x, y)).chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def decode(self, y: Tensor, z: Tensor) -> dist.TorchDistribution:
        """Return p(x|y,z), with event shape ``event_shape``, for y ``(B,)`` or ``(K, 1)`` and z ``(..., B, L)``."""
        params = full_precision(self.decoder(z, y))
        batch_shape = torch.broadcast_shapes(z.shape[:-1], y.shape)
        params = params.reshape(*batch_shape, self.likelihood.num_params, *self.event_shape)
        px: dist.TorchDistribution = self.likelihood(params, len(self.event_shape))
        return px

    # Use.

    def predict(self, x: Tensor) -> Tensor:
        """Return the likeliest class of each row under q(y|x), with shape ``(B,)``."""
        return self.predict_proba(x).argmax(-1)

    def predict_proba(self, x: Tensor) -> Tensor:
        """Return q(y|x), with shape ``(B, K)``, in evaluation mode.

        Args:
            x: Rows with shape ``(B, *event_shape)``, scaled as in training.

        Raises:
            ValueError: If rows have another shape than the model's.
        """
        self._check_rows(x)
        with torch.no_grad(), evaluation_mode(self):
            return self.classify(x.to(next(self.parameters()))).softmax(-1)

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
            y = torch.as_tensor(y, device=device_of(self))
            if y.shape not in ((), (num_samples,)) or not bool(((y >= 0) & (y < self.num_classes)).all()):
                raise ValueError(
                    f"y must be one class or {num_samples} classes from 0 to {self.num_classes - 1}; "
                    f"got shape {tuple(y.shape)} with values {y.flatten()[:8].tolist()}."
                )
            y = y.expand(num_samples)
            z = self.prior().sample((num_samples,))
            mean: Tensor = self.decode(y, z).mean
            return mean, y

    def config(self) -> dict[str, Any]:
        """Return what :func:`pyro_ssvae.load` needs to rebuild the model, JSON-ready."""
        parts: dict[str, Likelihood | ClassPrior] = {
            "likelihood": self.likelihood,
            "class_prior": self.class_prior,
        }
        library = {
            name: {name: part.name, **part.config()}
            for name, part in parts.items()
            if type(part).__module__.startswith("pyro_ssvae.")
        }
        own = {name: type(part).__name__ for name, part in parts.items() if name not in library}
        return {
            "format": 1,
            "base": "M2",
            "class": type(self).__name__,
            "arguments": {
                "event_shape": list(self.event_shape),
                "num_classes": self.num_classes,
                **self._options,
            },
            "parts": library,
            "custom": self._own | own,
        }

    def _check_rows(self, x: Tensor) -> None:
        if x.shape[1:] != self.event_shape:
            raise ValueError(
                f"Rows must have shape {tuple(self.event_shape)}, so x must be (B, "
                f"{', '.join(map(str, self.event_shape))}); got {tuple(x.shape)}."
            )
        if not x.is_floating_point():
            raise TypeError(
                f"Rows must be floating point, scaled as in training; got {x.dtype}. For 8-bit pixels divide by 255."
            )
