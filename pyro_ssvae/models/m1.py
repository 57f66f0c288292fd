r"""M1: a variational autoencoder (Kingma & Welling 2013; Kingma et al. 2014, section 2).

Generative model of an example:

.. math:: z \sim p(z), \qquad x \sim p_\theta(x \mid z)

Inference model:

.. math:: z \sim q_\phi(z \mid x) = N(\mu_\phi(x), \mathrm{diag}\,\sigma^2_\phi(x))

Reference: Semi-supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed, Welling, 2014),
https://arxiv.org/abs/1406.5298, equations 1 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pyro_ssvae._arguments import as_count, checked, show
from pyro_ssvae._arrays import to_numpy
from pyro_ssvae.distributions import Likelihood
from pyro_ssvae.distributions.torch_distributions import draw_alike
from pyro_ssvae.models.base import data_plate
from pyro_ssvae.models.generation import decode_means, generate_x, mean_of
from pyro_ssvae.models.latent_variable import LatentVariableModel
from pyro_ssvae.networks.images import make_networks
from pyro_ssvae.networks.variational import evaluation_mode


class M1(LatentVariableModel):
    """The M1 model and guide, for examples of any shape. It has no classes; its latents are features for a classifier.

    Shapes in the comments: ``B`` examples, ``L`` latents.

    Args:
        event_shape: Shape of one example, for example ``(1, 28, 28)`` for images or ``(30,)`` for a table.
        latent_dim: Number of latents ``L``.
        networks: Encoder and decoder: ``"mlp"``, or for images of at least 8x8 pixels ``"conv"`` or ``"resnet"``
            (convolutions with residual blocks). ``"auto"``, the default of :meth:`for_data`, is ``"conv"`` for images
            in colour, else ``"mlp"``.
        hidden_dims: Widths of the fully connected layers of the encoder; the decoder has them in reverse. 600-600 in
            the paper.
        activation: Activation of these layers, for example ``"relu"``.
        batch_norm: Whether these layers normalise before each activation.
        likelihood: A name in ``pyro_ssvae.distributions.LIKELIHOODS``, or a
            :class:`~pyro_ssvae.distributions.Likelihood`.
        prior: A name in ``pyro_ssvae.distributions.PRIORS``, or a module that returns p(z) when called; standard
            normal when ``None``.
        encoder: A module that maps x ``(B, *event_shape)``, as ``likelihood.network_input`` returns it, to
            ``(B, 2 * latent_dim)``, the location and log-scale of q(z|x); that of ``networks`` when ``None``.
        decoder: A module that maps z ``(..., latent_dim)`` to the likelihood's parameters, ``(..., P * D)`` for
            ``P = likelihood.num_params`` and ``D`` elements of an example; that of ``networks`` when ``None``.
        pose: Whether the first six latents are the pose of an image: they turn, zoom, slant and shift what ``decoder``
            makes of the others.
        missing: Whether examples may have missing values (NaN), which are left out of the likelihood; the networks see
            what is missing. :meth:`for_data` sets it by the data.

    Raises:
        ValueError: For an empty event shape, a non-positive ``latent_dim`` or unknown names.
        TypeError: For a likelihood or prior of the wrong type.

    Example:
        >>> m1 = M1((1, 8, 8), latent_dim=5, hidden_dims=(32,))
        >>> x = torch.rand(4, 1, 8, 8)
        >>> m1.transform(x).shape, m1.reconstruct(x).shape, m1.generate(3).shape
        (torch.Size([4, 5]), torch.Size([4, 1, 8, 8]), torch.Size([3, 1, 8, 8]))
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        latent_dim: int = 50,
        networks: str = "mlp",
        hidden_dims: Sequence[int] = (600, 600),
        activation: str = "softplus",
        batch_norm: bool = False,
        likelihood: str | Likelihood = "bernoulli",
        prior: str | nn.Module | None = None,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        pose: bool = False,
        missing: bool = False,
    ) -> None:
        super().__init__(event_shape, latent_dim, likelihood, prior, missing=missing)
        mlp: dict[str, Any] = {"hidden_dims": hidden_dims, "activation": activation, "batch_norm": batch_norm}
        shapes = (self._input_shape, self.event_shape, latent_dim, self.likelihood.num_params)
        self.encoder, self.decoder = make_networks(
            networks, *shapes, encoder=encoder, decoder=decoder, pose=pose, **mlp
        )
        self._attach_prior()

    # The generative model p(z) p(x|z) and the inference model q(z|x).

    def model(self, x: Tensor, *, size: int | None = None) -> None:
        """Sample a minibatch from the generative model, with x observed; arguments as for :class:`Model`."""
        with data_plate(x, size):
            z = pyro.sample("z", self.prior())  # (B, L)
            pyro.sample("x", self.decode(z), obs=x)  # (B, *event_shape)

    def guide(self, x: Tensor, *, size: int | None = None) -> None:
        """Sample the latents of a minibatch from the inference model; arguments as for :class:`Model`."""
        with data_plate(x, size):
            pyro.sample("z", self.encode(x))  # (B, L)

    # The conditional distributions.

    def encode(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), with event shape ``(L,)``, for x ``(B, *event_shape)``."""
        return self._make_posterior(self.encoder(self.likelihood.network_input(x)))

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """Return p(x|z), with event shape ``event_shape``, for z ``(..., L)``."""
        return self._make_likelihood(self.decoder(z), z.shape[:-1])

    def _decode_posterior(self, x: Tensor, num_samples: int, groups: int = 1) -> tuple[Tensor, Any]:
        posterior = self.encode(x)
        z = draw_alike(posterior, (num_samples,), groups)  # (S, B, L)
        return self.prior().log_prob(z) - posterior.log_prob(z), self.decode(z)

    # Use of a trained model.

    @checked
    def transform(self, x: ArrayLike, num_samples: int | None = None) -> Tensor:
        """Return the latents of examples, in evaluation mode: the features for a classifier on top of M1.

        Args:
            x: Examples with shape ``(B, *event_shape)``, as for :meth:`Model.predict_proba`, which names the errors.
            num_samples: ``None`` for means of q(z|x), ``(B, L)``, else the number of draws, ``(num_samples, B, L)``.
        """
        if num_samples is None:
            return self._map(lambda x: mean_of(self.encode(x)), x)
        return self._map(lambda x: self.encode(x).sample((num_samples,)), x, dim=1)

    def reconstruct(self, x: ArrayLike) -> Tensor:
        """Return the means of p(x|z) at the means of q(z|x), with the shape of ``x``; errors as :meth:`transform`."""
        return self._means(self.transform(x))

    @checked
    def generate(self, num_samples: int) -> Tensor:
        """Draw z from its prior and return the means of p(x|z), with shape ``(num_samples, *event_shape)``.

        A subclass with a ``model`` of its own generates by that function.
        """
        with torch.no_grad(), evaluation_mode(self):
            return mean_of(generate_x(self, num_samples)[0])

    @checked
    def interpolate(self, start: ArrayLike, end: ArrayLike, *, steps: int = 8, spherical: bool = False) -> Tensor:
        r"""Decode points on the line between the latents of two examples.

        Args:
            start: One example, ``event_shape``, or several, ``(B, *event_shape)``.
            end: The other ends, with the shape of ``start``.
            steps: Number of points, both ends included; at least 2.
            spherical: Whether to follow the arc between both latents, which keeps the norm that draws from a normal
                prior typically have, instead of the straight line
                (Sampling Generative Networks, White, 2016, https://arxiv.org/abs/1609.04468).

        Returns:
            Means of p(x|z), with shape ``(steps, *event_shape)``, or ``(steps, B, *event_shape)`` for several.

        Raises:
            ValueError: For fewer than two steps, or examples that do not fit the model or each other.
        """
        if steps < 2:
            raise ValueError(f"steps={steps} must be at least 2, for both ends.")
        ends = [x if isinstance(x, Tensor) else to_numpy(x, "start or end") for x in (start, end)]
        shape, other = (tuple(x.shape) for x in ends)
        if shape != other:
            raise ValueError(f"start and end must have one shape; got {shape} and {other}.")
        single = len(shape) == len(self.event_shape)
        a, b = (self.transform(x[None] if single else x) for x in ends)  # (B, L)
        t = torch.linspace(0.0, 1.0, steps, device=a.device, dtype=a.dtype).view(-1, 1, 1)
        z = _on_arc(a, b, t) if spherical else a + t * (b - a)
        path = self._means(z)
        return path.squeeze(1) if single else path

    def traverse(
        self, x: ArrayLike, dim: int, values: Tensor | Sequence[float] = (-3.0, -1.5, 0.0, 1.5, 3.0)
    ) -> Tensor:
        """Return the means of p(x|z), ``(V, B, *event_shape)``, with one latent set to ``V`` values.

        The others are at the means of q(z|x) of examples x ``(B, *event_shape)``. ``ValueError`` if there is no latent
        ``dim``, counted from 0, or the examples do not fit, ``TypeError`` if ``values`` are no finite numbers.
        """
        dim = as_count(dim, "dim", least=-self.latent_dim, most=self.latent_dim - 1)
        z = self.transform(x)
        try:
            settings = torch.as_tensor(values, dtype=z.dtype, device=z.device)
        except (TypeError, ValueError, RuntimeError):
            settings = z.new_empty(0)
        if settings.dim() != 1 or not len(settings) or not settings.isfinite().all():
            raise TypeError(f"{show('values', values)}; finite numbers are needed, such as (-1.0, 0.0, 1.0).")
        z = z.expand(len(settings), *z.shape).clone()
        z[..., dim] = settings.unsqueeze(-1)
        return self._means(z)

    def _means(self, z: Tensor) -> Tensor:
        with torch.no_grad(), evaluation_mode(self):
            return decode_means(self, None, z)


def _on_arc(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Return points between ``a`` and ``b`` ``(B, L)`` along the arc between them, at fractions ``t`` ``(S, 1, 1)``."""
    angle = nn.functional.cosine_similarity(a, b, dim=-1).clamp(-1.0, 1.0).acos().unsqueeze(-1)  # (B, 1)
    sine = angle.sin()
    arc = ((1.0 - t) * angle).sin() / sine * a + (t * angle).sin() / sine * b
    return torch.where(sine.abs() < 1e-4, a + t * (b - a), arc)  # the arc is not unique where the sine is 0
