"""Networks of energy models and of their generators (Deep Directed Generative Models, Kim & Bengio, 2016)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from pyro_ssvae._arguments import check_choice, checked
from pyro_ssvae.networks.variational import check_module, resolve_network

RANGES: dict[str, tuple[float, float] | None] = {"identity": None, "sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}
"""Ranges of samples by the name of the generator's last layer; ``None`` for unbounded ones."""

MNIST_SIZE = 28 * 28  # pixels of the images for which the defaults of σ and of the scale of b were chosen


class SoftplusExperts(nn.Linear):
    r"""Experts :math:`\mathrm{softplus}(W_i^\top f + c_i)` of features f, in nats."""

    def forward(self, input: Tensor) -> Tensor:
        """Map features ``(B, F)`` to what each of M experts adds to −E, ``(B, M)``."""
        return F.softplus(super().forward(input))


@checked
class EnergyNet(nn.Module):
    r"""A product of experts over features of x (Kim & Bengio, 2016, equation 6).

    .. math:: E(x) = \frac{\|x\|^2}{\sigma^2} - b^\top x - \sum_i \mathrm{softplus}\bigl(W_i^\top f(x) + c_i\bigr)

    With bounded features, the first term makes :math:`e^{-E}` integrable. For x of D > 784 elements, b is 784/D times
    the parameter ``bias``, so that a step of the optimiser changes E as much as for MNIST. With classes,

    .. math:: E(x, y) = E(x) \text{ as above } - u_y^\top f(x) - a_y, \qquad
        E(x) = -\log \textstyle\sum_y e^{-E(x, y)}

    ``features`` maps x ``(B, *event_shape)`` to ``(B, F)``, preferably bounded; ``experts`` is a number, or a module
    that maps features to the terms of the sum, ``(B, M)``; ``sigma`` is in the units of x. Sizes that are not positive,
    and modules that do not fit, raise ``ValueError``, what is no module ``TypeError``.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        features: nn.Module,
        experts: int | nn.Module,
        *,
        sigma: float = 1.0,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(experts, int) and experts < 1:
            raise ValueError(f"num_experts={experts} must be at least 1.")
        self.features = features
        self.sigma = float(sigma)
        width = int(check_module(features, event_shape, (None,), "features")[-1])
        size = math.prod(event_shape)
        self.bias = nn.Parameter(torch.zeros(size))
        # Adam changes every element of b by the same amount, and with a common brightness of images these add up.
        self._bias_scale = min(1.0, MNIST_SIZE / size)
        self.experts = SoftplusExperts(width, experts) if isinstance(experts, int) else experts
        check_module(self.experts, (width,), (None,), "experts")
        self.classes = None if num_classes is None else nn.Linear(width, num_classes)

    def by_class(self, x: Tensor) -> Tensor:
        """Return E(x, y) for every class, with shape ``(B, K)``; ``K = 1``, and E(x), without classes."""
        features, flat = self.features(x), x.flatten(1)
        linear = self._bias_scale * (flat @ self.bias)
        energy = (flat.square().sum(-1) / self.sigma**2 - linear - self.experts(features).sum(-1)).unsqueeze(-1)
        return energy if self.classes is None else energy - self.classes(features)

    def forward(self, x: Tensor) -> Tensor:
        """Return E(x), in nats, with shape ``(B,)``."""
        return -(-self.by_class(x)).logsumexp(-1)


@checked
class MLPFeatures(nn.Module):
    """Features in [-1, 1] of flattened inputs, by weight-normalised layers.

    There is no batch normalisation, with which the energy of an example would depend on the rest of the batch.
    """

    def __init__(self, event_shape: Sequence[int], hidden_dims: Sequence[int] = (128,), feature_dim: int = 128) -> None:
        super().__init__()
        widths = (math.prod(event_shape), *hidden_dims)
        layers: list[nn.Module] = [nn.Flatten()]
        for width, next_width in pairwise(widths):
            layers += [weight_norm(nn.Linear(width, next_width)), nn.ELU()]
        self.layers = nn.Sequential(*layers, weight_norm(nn.Linear(widths[-1], feature_dim)), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """Map x ``(B, *event_shape)`` to features ``(B, F)`` in [-1, 1]."""
        return self.layers(x)


class ConvFeatures(nn.Module):
    """Features in [-1, 1] of images of at least 8x8 pixels, by convolutions of stride 2 down to about 7x7 or 4x4.

    Up to 32x32 pixels there are 128 features and 32 channels after the first convolution, otherwise 64 and 16; each
    further convolution doubles the number of channels.
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        check_image(event_shape)
        channels, feature_dim = (32, 128) if max(event_shape[1:]) <= 32 else (16, 64)
        widths = [event_shape[0], *(channels * 2**number for number in range(count_halvings(event_shape[1:])))]
        layers: list[nn.Module] = []
        for width, next_width in pairwise(widths):
            layers += [nn.Conv2d(width, next_width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.last = nn.Linear(int(check_module(self.layers, event_shape, (None,), "features")[-1]), feature_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` to features ``(B, F)`` in [-1, 1]."""
        return self.last(self.layers(x)).tanh()


@checked
class MLPGenerator(nn.Module):
    """x = G(z) by fully connected layers with batch normalisation and ReLU, and a last layer named in ``RANGES``."""

    def __init__(
        self,
        latent_dim: int,
        event_shape: Sequence[int],
        hidden_dims: Sequence[int] = (256, 256),
        *,
        output: str = "identity",
    ) -> None:
        super().__init__()
        layers, width = _normalised(latent_dim, hidden_dims)
        self.layers = nn.Sequential(*layers, nn.Linear(width, math.prod(event_shape)), _output(output))
        self.event_shape = torch.Size(event_shape)

    def forward(self, z: Tensor) -> Tensor:
        """Map latents ``(B, L)`` to samples ``(B, *event_shape)``."""
        return self.layers(z).view(-1, *self.event_shape)


class UpsampledConv2d(nn.Conv2d):
    """Upsample by a factor of 2 to the nearest pixel and convolve with a 3x3 kernel.

    Unlike a transposed convolution with a stride, this leaves no checkerboard artefacts (Odena et al., 2016,
    https://doi.org/10.23915/distill.00003). It is computed as a transposed convolution whose 4x4 kernel holds sums of
    2x2 weights, in four ninths of the multiplications.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, in_channels, H, W)`` to images ``(B, out_channels, 2H, 2W)``."""
        summed = 4.0 * F.avg_pool2d(F.pad(self.weight, (1, 1, 1, 1)), 2, stride=1)
        return F.conv_transpose2d(x, summed.transpose(0, 1).flip(-1, -2), self.bias, stride=2, padding=1)


class ConvGenerator(nn.Module):
    """Images G(z) of at least 8x8 pixels: fully connected layers, convolutions, batch normalisation and ReLU.

    The fully connected layers help to map the continuous distribution of z to separate clusters of images. The
    convolutions are transposed up to 32x32 pixels; beyond, where these leave checkerboard artefacts, they are
    :class:`UpsampledConv2d`. The last layer, ``output``, is named in ``RANGES``.
    """

    def __init__(self, latent_dim: int, event_shape: Sequence[int], *, output: str = "sigmoid") -> None:
        super().__init__()
        check_image(event_shape)
        small = max(event_shape[1:]) <= 32
        channels = 64 if small else 32  # before the last convolution, doubled for each one before it
        count = count_halvings(event_shape[1:])
        # From the smallest; each halving rounds up.
        sizes = [[math.ceil(side / 2**n) for side in event_shape[1:]] for n in reversed(range(count + 1))]
        transposed = partial(nn.ConvTranspose2d, kernel_size=4, stride=2, padding=1)
        upsample = transposed if small else UpsampledConv2d
        widths = [*(channels * 2**n for n in reversed(range(count))), event_shape[0]]
        layers, last = _normalised(latent_dim, (256,) * (3 if small else 2))
        layers += [_he(nn.Linear(last, widths[0] * math.prod(sizes[0]))), nn.Unflatten(-1, (widths[0], *sizes[0]))]
        for number in range(count):
            layers += [nn.BatchNorm2d(widths[number]), nn.ReLU(), upsample(widths[number], widths[number + 1])]
            excess = [side - 2 * half for side, half in zip(sizes[number + 1], sizes[number], strict=True)]
            if any(excess):  # -1 for an odd side: negative padding removes the last line
                layers.append(nn.ZeroPad2d((0, excess[1], 0, excess[0])))
        self.layers = nn.Sequential(*layers, _output(output))

    def forward(self, z: Tensor) -> Tensor:
        """Map latents ``(B, L)`` to images ``(B, C, H, W)``."""
        return self.layers(z)


def make_features(features: str | nn.Module, event_shape: Sequence[int]) -> nn.Module:
    """Return features of x by name, or as given; ``"auto"`` is ``"conv"`` for large enough images, else ``"mlp"``."""
    features = resolve_network(features, event_shape, "features", least_side=8)
    if isinstance(features, nn.Module):
        return features
    if features == "conv":
        return ConvFeatures(event_shape)
    return MLPFeatures(event_shape, *(() if math.prod(event_shape) <= 16 else ((512, 256), 128)))


def make_generator(
    generator: str | nn.Module, latent_dim: int, event_shape: Sequence[int], *, output: str
) -> nn.Module:
    """Return a generator by name, or as given; names are those of :func:`make_features`."""
    generator = resolve_network(generator, event_shape, "generator", least_side=8)
    if isinstance(generator, nn.Module):
        return generator
    if generator == "conv":
        return ConvGenerator(latent_dim, event_shape, output=output)
    widths = (256, 256) if math.prod(event_shape) <= 16 else (500, 500)
    return MLPGenerator(latent_dim, event_shape, widths, output=output)


def count_halvings(size: Sequence[int]) -> int:
    """Return how many halvings bring the shorter side of an image below 8 pixels."""
    return max(1, math.ceil(math.log2((min(size) + 1) / 8)))


def check_image(event_shape: Sequence[int]) -> None:
    """Raise ``ValueError`` for what is no image of at least 8x8 pixels."""
    if len(event_shape) != 3 or min(event_shape[1:]) < 8:
        raise ValueError(
            f"A convolutional network here needs images (C, H, W) of at least 8x8 pixels; got event_shape="
            f"{tuple(event_shape)!r}. Use 'mlp'."
        )


def _normalised(width: int, hidden_dims: Sequence[int]) -> tuple[list[nn.Module], int]:
    """Return fully connected layers with batch normalisation and ReLU, and the width of the last."""
    layers: list[nn.Module] = []
    for hidden in hidden_dims:
        layers += [_he(nn.Linear(width, hidden)), nn.BatchNorm1d(hidden), nn.ReLU()]
        width = hidden
    return layers, width


def _he(layer: nn.Linear) -> nn.Linear:
    nn.init.kaiming_normal_(layer.weight)
    return layer


def _output(name: str) -> nn.Module:
    layers = {"identity": nn.Identity, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
    check_choice("output", name, layers)
    return layers[name]()
