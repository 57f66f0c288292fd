r"""M1+M2: a semi-supervised model of the latents of an M1 (Kingma et al. 2014, section 2, "Stacked model").

Generative story, for each row; ``z`` is the paper's z2:

.. math::

    z \sim p(z), \qquad y \sim \mathrm{Cat}(\pi), \qquad z_1 \sim p_\theta(z_1 \mid y, z), \qquad
    x \sim p_\theta(x \mid z_1)

Recognition story:

.. math:: z_1 \sim q_\phi(z_1 \mid x), \qquad y \sim q_\phi(y \mid z_1), \qquad z \sim q_\phi(z \mid z_1, y)

Reference: Semi-supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed, Welling, 2014),
https://arxiv.org/abs/1406.5298.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from torch import Tensor, nn

from pyro_ssvae.distributions import ClassPrior, Gaussian
from pyro_ssvae.distributions.torch_distributions import as_independent_normal
from pyro_ssvae.models.base import ENUMERATE, data_plate, evaluation_mode, full_precision
from pyro_ssvae.models.m1 import M1
from pyro_ssvae.models.semi_supervised import SemiSupervisedModel
from pyro_ssvae.networks import ConditionalMLP
from pyro_ssvae.networks.variational import make_classifier

__all__ = ["M1M2"]

_CLASSIFIED = ("z1", "x")


class M1M2(SemiSupervisedModel):
    """The M1+M2 model/guide module: M2 on the latents of an M1, down to x.

    It is trained in two ways. *Stacked* (the paper's): M1 was trained before and stays as it is, so p(x|z1) and
    q(z1|x) are constants; z1 is drawn afresh at every step, and only the part above it is computed. *Joint*: all
    parameters follow the bound of x. :meth:`stack` and :meth:`join` choose; a new one is stacked. Evaluation mode
    always tells the whole story, down to x, with z1 at its mean where a single value is wanted. A stacked M1 stays in
    evaluation mode.

    Shapes in the comments: ``B`` rows, ``K`` classes, ``L`` latents z, ``L1`` latents z1.

    Args:
        m1: A trained M1.
        num_classes: Number of classes ``K``, at least 2.
        active: Which latents of M1 are modelled, as a mask with shape ``(m1.latent_dim,)``; all where ``None``. The
            others, which carry nothing, are zero on the way down.
            :func:`pyro_ssvae.evaluation.active_units` finds them.
        latent_dim: Number of latents z, ``L``.
        hidden_dims: Hidden widths of the networks above z1.
        activation: Activation of those networks, a name in ``pyro_ssvae.networks.ACTIVATIONS``.
        batch_norm: Whether those networks normalise before each activation.
        dropout: Probability of dropping a feature of the classifier; ``None`` is 0.3 for a convolutional one, else 0.
        min_scale: Smallest standard deviation of p(z1|y,z).
        prior: A name in ``pyro_ssvae.distributions.PRIORS``, or a module that returns p(z) when called.
        class_prior: ``"uniform"``, ``"map"``, ``"dirichlet"`` or a :class:`~pyro_ssvae.distributions.ClassPrior`.
        classify_from: ``"z1"`` for the paper's q(y|z1), ``"x"`` for a classifier q(y|x) of the rows themselves.
        classifier: ``"auto"``, ``"conv"``, ``"mlp"``, or a module that maps what it is given to logits ``(..., K)``.

    Raises:
        ValueError: For a mask of another shape or without a latent, fewer than two classes, or unknown names.
        TypeError: If ``m1`` is no M1.

    Example:
        >>> m1 = M1((1, 8, 8), latent_dim=4, hidden_dims=(16,))
        >>> stack = M1M2(m1, num_classes=10, latent_dim=3, hidden_dims=(16,))
        >>> stack.predict(torch.rand(5, 1, 8, 8)).shape, stack.generate(2, y=7)[0].shape
        (torch.Size([5]), torch.Size([2, 1, 8, 8]))
    """

    active: Tensor
    placing: Tensor

    def __init__(
        self,
        m1: M1,
        num_classes: int,
        *,
        active: Tensor | Sequence[bool] | None = None,
        latent_dim: int = 50,
        hidden_dims: Sequence[int] = (500,),
        activation: str = "relu",
        batch_norm: bool = False,
        dropout: float | None = None,
        min_scale: float = 0.05,
        prior: str | nn.Module | None = None,
        class_prior: str | ClassPrior = "uniform",
        classify_from: str = "z1",
        classifier: str | nn.Module = "auto",
    ) -> None:
        if not isinstance(m1, M1):
            raise TypeError(f"m1 must be an M1, trained before; got {type(m1).__name__}.")
        if classify_from not in _CLASSIFIED:
            raise ValueError(f"classify_from={classify_from!r} must be one of {', '.join(_CLASSIFIED)}.")
        mask = torch.ones(m1.latent_dim) if active is None else torch.as_tensor(active)
        mask = mask.bool().cpu()
        if mask.shape != (m1.latent_dim,) or not bool(mask.any()):
            raise ValueError(
                f"active must be a mask of {m1.latent_dim} latents, at least one of them kept; got shape "
                f"{tuple(mask.shape)} with {int(mask.sum())} kept."
            )
        options: dict[str, Any] = {
            "active": mask.tolist(),
            "hidden_dims": list(hidden_dims),
            "activation": activation,
            "batch_norm": batch_norm,
            "dropout": dropout,
            "min_scale": min_scale,
            "classify_from": classify_from,
        }
        if isinstance(classifier, str):
            options["classifier"] = classifier
        super().__init__(
            m1.event_shape,
            num_classes,
            latent_dim,
            m1.likelihood,
            prior,
            class_prior,
            options,
            {"classifier": classifier},
        )
        self.m1 = m1
        self.classify_from = classify_from
        width = int(mask.sum())
        self.register_buffer("active", mask.nonzero().squeeze(-1), persistent=False)  # (L1,), positions in M1's z
        # Puts z1 back among the latents of M1, with zeros for the rest.
        self.register_buffer("placing", torch.eye(m1.latent_dim)[mask], persistent=False)  # (L1, m1.latent_dim)
        mlp: dict[str, Any] = {"activation": activation, "batch_norm": batch_norm}
        classified = self.event_shape if classify_from == "x" else torch.Size((width,))
        self.classifier = make_classifier(
            classifier, classified, num_classes, hidden_dims=hidden_dims, dropout=dropout, **mlp
        )
        self.encoder = ConditionalMLP((width,), num_classes, 2 * latent_dim, hidden_dims, **mlp)
        self.z1_likelihood = Gaussian(min_scale=min_scale)
        self.decoder = ConditionalMLP((latent_dim,), num_classes, 2 * width, tuple(hidden_dims)[::-1], **mlp)
        self._complete()
        self.stack()

    # Two ways of training.

    def stack(self) -> M1M2:
        """Keep M1 as it is, in evaluation mode; in training mode, only what lies above z1 is computed."""
        self.stacked = True
        self.m1.requires_grad_(False)
        self.m1.eval()
        return self

    def join(self) -> M1M2:
        """Train everything, M1 included, on the bound of x."""
        self.stacked = False
        self.m1.requires_grad_(True)
        self.m1.train(self.training)
        return self

    def train(self, mode: bool = True) -> M1M2:
        """Set training or evaluation mode; a stacked M1 stays in evaluation mode, running statistics and all."""
        super().train(mode)
        if self.stacked:
            self.m1.eval()
        return self

    @property
    def only_above(self) -> bool:
        """Whether only what lies above z1 is computed, as in stacked training: a story of your own asks it too.

        The density of z1 under the guide and the site ``x`` are constants then. At evaluation the story must reach
        down to ``x``, or its bound is not of rows.
        """
        return self.stacked and self.training

    # The generative story p(z) p(y|π) p(z1|y,z) p(x|z1) and the recognition story q(z1|x) q(y|z1) q(z|z1,y).

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
            z1 = pyro.sample("z1", self.decode_z1(y, z))  # (B, L1)
            if not self.only_above:
                pyro.sample("x", self.decode_x(z1), obs=x)  # (B, *event_shape)

    def guide(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        """The recognition story of a minibatch; where y is not known it is enumerated, exactly.

        Args:
            x: Rows with shape ``(B, *event_shape)``.
            y: Integer classes with shape ``(B,)``, or ``None`` where they are not known.
            size: Number of rows the minibatch stands for; ``None`` is ``B``.
        """
        self.class_prior.guide()
        with data_plate(x, size):
            # A stacked q(z1|x) is a constant of the bound: z1 is drawn from it, and its density left out.
            with poutine.mask(mask=not self.only_above):
                z1 = pyro.sample("z1", self.encode_z1(x))  # (B, L1)
            if y is None:
                logits = self._logits(x, z1)
                y = pyro.sample("y", dist.Categorical(logits=logits), infer=ENUMERATE)  # (K, 1)
            pyro.sample("z", self.encode_z(z1, y))  # (B, L), or (K, B, L)

    # The parts, as logits and distributions.

    def encode_z1(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z1|x), with event shape ``(L1,)``, for x ``(B, *event_shape)``.

        Raises:
            TypeError: If the posterior of M1 is not made of independent normal distributions.
        """
        qz = as_independent_normal(self.m1.encode(x))
        if qz is None:
            raise TypeError(
                f"M1M2 takes z1 from a diagonal Gaussian q(z1|x), and {type(self.m1).__name__}.encode returns another "
                "distribution. Return dist.Normal(loc, scale).to_event(1) there, or override encode_z1 and decode_z1 of M1M2."
            )
        return dist.Normal(qz.loc.index_select(-1, self.active), qz.scale.index_select(-1, self.active)).to_event(1)

    def encode_z(self, z1: Tensor, y: Tensor) -> dist.TorchDistribution:
        """Return q(z|z1,y), with event shape ``(L,)``, for z1 ``(B, L1)`` and y ``(B,)`` or ``(K, 1)``."""
        return self._posterior(self.encoder(z1, y))

    def decode_z1(self, y: Tensor, z: Tensor) -> dist.TorchDistribution:
        """Return p(z1|y,z), with event shape ``(L1,)``, for y ``(B,)`` or ``(K, 1)`` and z ``(..., B, L)``."""
        params = full_precision(self.decoder(z, y))
        shape = torch.broadcast_shapes(z.shape[:-1], y.shape)
        distribution: dist.TorchDistribution = self.z1_likelihood(params.reshape(*shape, 2, -1), 1)
        return distribution

    def decode_x(self, z1: Tensor) -> dist.TorchDistribution:
        """Return p(x|z1), with event shape ``event_shape``, for z1 ``(..., L1)``."""
        return self.m1.decode(z1 @ self.placing)

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits of q(y|x), with shape ``(B, K)``: q(y|z1) at a draw of z1 in training, else at its mean."""
        if self.classify_from == "x":
            return full_precision(self.classifier(x))
        q_z1 = self.encode_z1(x)
        return self._logits(x, q_z1.rsample() if self.training else q_z1.mean)

    def encode(self, x: Tensor, y: Tensor) -> dist.TorchDistribution:
        """Return q(z|z1,y) at the mean of q(z1|x), for x ``(B, *event_shape)`` and y ``(B,)`` or ``(K, 1)``."""
        return self.encode_z(self.encode_z1(x).mean, y)

    def decode(self, y: Tensor, z: Tensor) -> dist.TorchDistribution:
        """Return p(x|z1) at the mean of p(z1|y,z), for y ``(B,)`` or ``(K, 1)`` and z ``(..., B, L)``."""
        return self.decode_x(self.decode_z1(y, z).mean)

    def predict_proba(self, x: Tensor, num_samples: int | None = None) -> Tensor:
        """Return q(y|x), with shape ``(B, K)``, in evaluation mode.

        Args:
            x: Rows with shape ``(B, *event_shape)``, scaled as in training.
            num_samples: Draws of z1 to average q(y|z1) over; ``None`` for its value at the mean of q(z1|x).

        Raises:
            ValueError: If rows have another shape than the model's, or ``num_samples`` is not positive.
        """
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be at least 1, or None for the mean of q(z1|x).")
        if num_samples is None or self.classify_from == "x":
            return super().predict_proba(x)
        self._check_rows(x)
        with torch.no_grad(), evaluation_mode(self):
            x = x.to(next(self.parameters()))
            z1 = self.encode_z1(x).sample((num_samples,))
            return self._logits(x, z1).softmax(-1).mean(0)

    def _logits(self, x: Tensor, z1: Tensor) -> Tensor:
        return full_precision(self.classifier(x if self.classify_from == "x" else z1))

    def _parts(self) -> dict[str, Any]:
        parts = super()._parts()
        del parts["likelihood"]  # M1's own
        return parts

    def config(self) -> dict[str, Any]:
        """Return what :func:`pyro_ssvae.load` needs to rebuild the model and the M1 below it, JSON-ready."""
        config = super().config()
        del config["arguments"]["event_shape"]
        config["parts"]["m1"] = self.m1.config()
        return config
