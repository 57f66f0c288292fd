r"""M2: a semi-supervised generative model with a class and a style (Kingma et al. 2014, section 2).

Generative model of an example:

.. math:: z \sim N(0, I), \qquad y \sim \mathrm{Cat}(\pi), \qquad x \sim p_\theta(x \mid y, z)

Inference model:

.. math:: y \sim q_\phi(y \mid x), \qquad z \sim q_\phi(z \mid x, y)

Reference: Semi-supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed, Welling, 2014),
https://arxiv.org/abs/1406.5298, equations 2, 4 and 6 to 9.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.preparation import find_background
from pyro_ssvae.distributions import ClassPrior, Likelihood
from pyro_ssvae.models.base import ENUMERATE, data_plate, full_precision
from pyro_ssvae.models.latent_variable import SemiSupervisedModel
from pyro_ssvae.networks.images import make_classifier, make_networks
from pyro_ssvae.networks.pose import POSE_DIM

__all__ = ["M2"]

_LEAST_SIDE = 16  # pixels; on 8x8 digits pose latents made no difference


class M2(SemiSupervisedModel):
    """The M2 model and guide, for examples of any shape.

    Shapes in the comments: ``B`` examples, ``K`` classes, ``L`` latents. Under enumeration y has shape ``(K, 1)`` and
    everything that depends on it gains a leading ``K``.

    Args:
        event_shape: As for :class:`M1`, like ``latent_dim``, ``networks``, ``activation``, ``batch_norm``,
            ``likelihood``, ``prior`` and ``missing``.
        num_classes: Number of classes ``K``, at least 2.
        hidden_dims: Widths of the fully connected layers of encoder, decoder and an ``"mlp"`` classifier.
        dropout: Probability of dropping a feature of the classifier; ``None`` is 0 for an MLP, else 0.3.
        class_prior: ``"uniform"``, ``"map"``, ``"dirichlet"`` or a
            :class:`~pyro_ssvae.distributions.ClassPrior`.
        classifier: ``"auto"`` (an MLP, for images convolutional, or ``"resnet"`` with such networks), ``"conv"``,
            ``"resnet"``, ``"mlp"``, or a module that maps x ``(B, *event_shape)``, as ``likelihood.network_input``
            returns it, without the columns for what is missing, to logits ``(B, K)``. ``None`` builds none, for an
            :class:`~pyro_ssvae.M1M2` with its own.
        encoder: As for :class:`M1`, of x, with those columns, and y ``(B,)`` or ``(K, 1)``, for q(z|x,y).
        decoder: As for :class:`M1`, of z ``(..., B, latent_dim)`` and y.
        pose: As for :class:`M1`; :meth:`for_data` has it by default for grey images of 16 pixels a side or more on a
            plain background.

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
        networks: str = "mlp",
        hidden_dims: Sequence[int] = (500,),
        activation: str = "relu",
        batch_norm: bool = False,
        dropout: float | None = None,
        likelihood: str | Likelihood = "bernoulli",
        prior: str | nn.Module | None = None,
        class_prior: str | ClassPrior = "uniform",
        classifier: str | nn.Module | None = "auto",
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        pose: bool = False,
        missing: bool = False,
    ) -> None:
        super().__init__(event_shape, num_classes, latent_dim, likelihood, prior, class_prior, missing)
        mlp: dict[str, Any] = {"hidden_dims": hidden_dims, "activation": activation, "batch_norm": batch_norm}
        self.classifier = None
        if classifier is not None:
            name = "resnet" if classifier == "auto" and networks == "resnet" else classifier
            self.classifier = make_classifier(name, self._classifier_shape, num_classes, dropout=dropout, **mlp)
        shapes = (self._input_shape, self.event_shape, latent_dim, self.likelihood.num_params, num_classes)
        self.encoder, self.decoder = make_networks(
            networks, *shapes, encoder=encoder, decoder=decoder, pose=pose, **mlp
        )
        self._attach_prior()

    @classmethod
    def _choose_arguments(cls, data: SemiSupervisedData, given: Mapping[str, Any]) -> dict[str, Any]:
        found = super()._choose_arguments(data, given)
        if not {"decoder", "pose"} & given.keys() and "pose" in inspect.signature(cls).parameters:
            roomy = given.get("latent_dim", 2 * POSE_DIM) >= 2 * POSE_DIM  # latents that are left for the style
            found["pose"] = roomy and _shows_objects(data)
        return found

    # The generative model p(z) p(y|π) p(x|y,z) and the inference model q(y|x) q(z|x,y).

    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        """Sample from the generative model, with x and known y observed; arguments as for :class:`Model`."""
        log_pi = self.class_prior.model()  # (K,)
        with data_plate(x, size):
            z = pyro.sample("z", self.prior())  # (B, L), or (K, B, L) replayed from the guide
            y = pyro.sample("y", dist.Categorical(logits=log_pi), obs=y)  # (B,), or (K, 1)
            pyro.sample("x", self.decode(y, z), obs=x)  # (B, *event_shape)

    def guide(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        """Sample from the inference model, where an unknown y is enumerated; arguments as for :class:`Model`."""
        self.class_prior.guide()
        with data_plate(x, size):
            if y is None:
                y = pyro.sample("y", dist.Categorical(logits=self.classify(x)), infer=ENUMERATE)  # (K, 1)
            pyro.sample("z", self.encode(x, y))  # (B, L), or (K, B, L)

    # The conditional distributions; that of y as logits.

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits of q(y|x), with shape ``(B, K)``, for x ``(B, *event_shape)``.

        Raises:
            ValueError: For an M2 without a classifier.
        """
        if self.classifier is None:
            raise ValueError("This M2 was built with classifier=None, so it has no q(y|x).")
        return full_precision(self.classifier(self._classifier_input(x)))

    def encode(self, x: Tensor, y: Tensor) -> dist.TorchDistribution:
        """Return q(z|x,y), with event shape ``(L,)``, for x ``(B, *event_shape)`` and y ``(B,)`` or ``(K, 1)``."""
        return self._make_posterior(self.encoder(self.likelihood.network_input(x), y))

    def decode(self, y: Tensor, z: Tensor) -> dist.TorchDistribution:
        """Return p(x|y,z), with event shape ``event_shape``, for y ``(B,)`` or ``(K, 1)`` and z ``(..., B, L)``."""
        return self._make_likelihood(self.decoder(z, y), torch.broadcast_shapes(z.shape[:-1], y.shape))


def _shows_objects(data: SemiSupervisedData) -> bool:
    """Whether examples are grey images on a plain background, large enough to be moved by less than themselves."""
    shape = data.event_shape
    grey = len(shape) == 3 and shape[0] == 1 and min(shape[1:]) >= _LEAST_SIDE
    return grey and find_background(data.x, data.scale) is not None
