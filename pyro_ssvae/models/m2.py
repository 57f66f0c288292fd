r"""M2: a semi-supervised generative model with a class and a style (Kingma et al. 2014, section 2).

Generative model of an example:

.. math:: z \sim N(0, I), \qquad y \sim \mathrm{Cat}(\pi), \qquad x \sim p_\theta(x \mid y, z)

Inference model:

.. math:: y \sim q_\phi(y \mid x), \qquad z \sim q_\phi(z \mid x, y)

Reference: Semi-supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed, Welling, 2014),
https://arxiv.org/abs/1406.5298, equations 2, 4 and 6 to 9.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pyro_ssvae._arguments import checked
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.preparation import find_background
from pyro_ssvae.distributions import ClassPrior, Likelihood
from pyro_ssvae.distributions.torch_distributions import draw_alike
from pyro_ssvae.models.base import ENUMERATE, data_plate
from pyro_ssvae.models.generation import mean_of
from pyro_ssvae.models.latent_variable import SemiSupervisedModel, make_normal
from pyro_ssvae.networks.images import POSE_DIM, make_classifier, make_networks
from pyro_ssvae.networks.variational import AuxiliaryNetworks, join

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
        auxiliary_dim: Number of auxiliary latents a, by which q(y|x) and q(z|x,y) become mixtures: an auxiliary deep
            generative model (ADGM, Maaløe et al., 2016, https://arxiv.org/abs/1602.05473), with the
            guide q(a|x) q(y|a,x) q(z|a,x,y) and the further factor p(a|x,y,z) of the model. It needs fully connected
            networks. An ``encoder`` gets x and a in one row, ``(..., B, D + A)``.
        skip: Whether x depends on a, as in the skip deep generative model of that paper (SDGM), p(a|y,z) p(x|a,y,z). A
            ``decoder`` gets z and a in one row, ``(..., B, L + A)``.

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
        auxiliary_dim: int = 0,
        skip: bool = False,
        missing: bool = False,
    ) -> None:
        super().__init__(event_shape, num_classes, latent_dim, likelihood, prior, class_prior, missing)
        mlp: dict[str, Any] = {"hidden_dims": hidden_dims, "activation": activation, "batch_norm": batch_norm}
        seen, classified = self._input_shape, self._classifier_shape
        self.auxiliary, self.skip = None, skip
        if auxiliary_dim:
            if networks != "mlp" or classifier not in ("auto", "mlp"):
                raise ValueError(
                    f"auxiliary_dim={auxiliary_dim} needs networks='mlp' and classifier='mlp', which see x and a in "
                    f"one row; got networks={networks!r}, classifier={classifier!r}."
                )
            sizes = (classified.numel(), latent_dim, auxiliary_dim, num_classes)
            self.auxiliary = AuxiliaryNetworks(*sizes, of_x=not skip, **mlp)
            seen, classified = (torch.Size([shape.numel() + auxiliary_dim]) for shape in (seen, classified))
        elif skip:
            raise ValueError("skip=True passes the auxiliary latents to p(x|a,y,z), so it needs auxiliary_dim=50, say.")
        self.classifier = None
        if classifier is not None:
            name = "resnet" if classifier == "auto" and networks == "resnet" else classifier
            self.classifier = make_classifier(name, classified, num_classes, dropout=dropout, **mlp)
        shapes = (seen, self.event_shape, latent_dim, self.likelihood.num_params, num_classes)
        mlp |= {"pose": pose, "auxiliary_dim": auxiliary_dim if skip else 0}
        self.encoder, self.decoder = make_networks(networks, *shapes, encoder=encoder, decoder=decoder, **mlp)
        self._attach_prior()

    @classmethod
    def _choose_arguments(cls, data: SemiSupervisedData, given: Mapping[str, Any]) -> dict[str, Any]:
        found = super()._choose_arguments(data, given)
        if not {"decoder", "pose", "auxiliary_dim"} & given.keys():
            roomy = given.get("latent_dim", 2 * POSE_DIM) >= 2 * POSE_DIM  # latents that are left for the style
            found["pose"] = roomy and _shows_objects(data)
        return found

    # The generative model p(z) p(y|π) p(x|y,z) and the inference model q(y|x) q(z|x,y); with an auxiliary latent,
    # p(z) p(y|π) p(x|y,z) p(a|x,y,z), or p(z) p(y|π) p(a|y,z) p(x|a,y,z), and q(a|x) q(y|a,x) q(z|a,x,y).

    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        """Sample from the generative model, with x and known y observed; arguments as for :class:`Model`."""
        log_pi = self.class_prior.model()  # (K,)
        with data_plate(x, size):
            z = pyro.sample("z", self.prior())  # (B, L), or (K, B, L) replayed from the guide
            y = pyro.sample("y", dist.Categorical(logits=log_pi), obs=y)  # (B,), or (K, 1)
            a = [pyro.sample("a", self.decode_a(y, z, x))] if self.skip else []  # (B, A)
            pyro.sample("x", self.decode(y, z, *a), obs=x)  # (B, *event_shape)
            if self.auxiliary is not None and not self.skip:
                pyro.sample("a", self.decode_a(y, z, x))  # (B, A)

    def guide(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        """Sample from the inference model, where an unknown y is enumerated; arguments as for :class:`Model`."""
        self.class_prior.guide()
        with data_plate(x, size):
            a = [] if self.auxiliary is None else [pyro.sample("a", self.encode_a(x))]  # (B, A)
            if y is None:
                y = pyro.sample("y", dist.Categorical(logits=self.classify(x, *a)), infer=ENUMERATE)  # (K, 1)
            pyro.sample("z", self.encode(x, y, *a))  # (B, L), or (K, B, L)

    # The conditional distributions; that of y as logits.

    def classify(self, x: Tensor, a: Tensor | None = None) -> Tensor:
        """Return the logits of q(y|x), with shape ``(B, K)``, for x ``(B, *event_shape)``.

        With auxiliary latents it is q(y|a,x), ``(..., B, K)``, for a ``(..., B, A)``; ``None`` is a draw of q(a|x) in
        training, else its mean.

        Raises:
            ValueError: For an M2 without a classifier, or with one of another number of outputs than K.
        """
        if self.classifier is None:
            raise ValueError("This M2 was built with classifier=None, so it has no q(y|x).")
        seen = self._classifier_input(x)
        if self.auxiliary is not None:
            if a is None:
                a = self.encode_a(x).rsample() if self.training else mean_of(self.encode_a(x))
            seen = join(seen, a)
        return self._as_logits(self.classifier(seen))

    def encode(self, x: Tensor, y: Tensor, a: Tensor | None = None) -> dist.TorchDistribution:
        """Return q(z|x,y), with event shape ``(L,)``, for x ``(B, *event_shape)`` and y ``(B,)`` or ``(K, 1)``.

        With auxiliary latents it is q(z|a,x,y); ``None`` is the mean of q(a|x).
        """
        seen = self.likelihood.network_input(x)
        if self.auxiliary is not None:
            seen = join(seen, mean_of(self.encode_a(x)) if a is None else a)
        return self._make_posterior(self.encoder(seen, y))

    def decode(self, y: Tensor, z: Tensor, a: Tensor | None = None) -> dist.TorchDistribution:
        """Return p(x|y,z), with event shape ``event_shape``, for y ``(B,)`` or ``(K, 1)`` and z ``(..., B, L)``.

        With ``skip`` it is p(x|a,y,z); ``None`` is the mean of p(a|y,z).
        """
        shape = torch.broadcast_shapes(z.shape[:-1], y.shape)
        if self.skip:
            a = mean_of(self.decode_a(y, z)) if a is None else a
            shape = torch.broadcast_shapes(shape, a.shape[:-1])
            z = torch.cat([z.expand(*shape, -1), a.expand(*shape, -1)], -1)
        return self._make_likelihood(self.decoder(z, y), shape)

    # Those of the auxiliary latents.

    def encode_a(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(a|x), with event shape ``(A,)``, for x ``(B, *event_shape)``.

        Raises:
            ValueError: For an M2 without auxiliary latents.
        """
        return make_normal(self._auxiliary.encoder(self._classifier_input(x).flatten(1)))

    def decode_a(self, y: Tensor, z: Tensor, x: Tensor | None = None) -> dist.TorchDistribution:
        """Return p(a|x,y,z), or with ``skip`` p(a|y,z), with event shape ``(A,)``; arguments as for :meth:`decode`.

        Raises:
            ValueError: For an M2 without auxiliary latents, or without x where it is needed.
        """
        auxiliary = self._auxiliary
        if x is None and not self.skip:
            raise ValueError("p(a|x,y,z) needs x; only with skip=True is it p(a|y,z).")
        seen = None if x is None else self._classifier_input(x).flatten(1)
        return make_normal(auxiliary(z, y, seen))

    @property
    def _auxiliary(self) -> AuxiliaryNetworks:
        if self.auxiliary is None:
            raise ValueError("This M2 has no auxiliary latents; build it with auxiliary_dim=50, say.")
        return self.auxiliary

    @checked
    def predict_proba(self, x: ArrayLike, num_samples: int | None = None) -> Tensor:
        """Return q(y|x) as :meth:`Model.predict_proba`, or the mean of q(y|a,x) over ``num_samples`` draws of a.

        Raises:
            ValueError: As there, or for ``num_samples`` of an M2 without auxiliary latents.
        """
        if num_samples is None:
            return super().predict_proba(x)

        def classify(x: Tensor) -> Tensor:
            return self.classify(x, self.encode_a(x).sample((num_samples,))).softmax(-1).mean(0)

        return self._map(classify, x, copies=num_samples)

    def _decode_posterior(self, x: Tensor, num_samples: int, groups: int = 1) -> tuple[Tensor, Any]:
        if self.auxiliary is None:
            return super()._decode_posterior(x, num_samples, groups)
        classes = torch.arange(self.num_classes, device=x.device).unsqueeze(-1)  # (K, 1)
        q_a = self.encode_a(x)
        a = draw_alike(q_a, (num_samples, 1), groups)  # (S, 1, B, A)
        q_z = self.encode(x, classes, a)
        z = draw_alike(q_z, groups=groups)  # (S, K, B, L)
        log_prior = self.prior().log_prob(z) + self.class_prior.mean().log().unsqueeze(-1)
        log_ratio = log_prior - q_z.log_prob(z) + self.decode_a(classes, z, x).log_prob(a) - q_a.log_prob(a)
        return log_ratio, self.decode(classes, z, *([a] if self.skip else []))


def _shows_objects(data: SemiSupervisedData) -> bool:
    """Whether examples are grey images on a plain background, large enough to be moved by less than themselves."""
    shape = data.event_shape
    grey = len(shape) == 3 and shape[0] == 1 and min(shape[1:]) >= _LEAST_SIDE
    return grey and find_background(data.x, data.scale) is not None
