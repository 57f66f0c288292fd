r"""Networks of energy models and of their generators (Deep Directed Generative Models, Kim & Bengio, 2016)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from pyro_ssvae.networks.variational import check_widths, get_activation

__all__ = [
    "ConvFeatures",
    "ConvGenerator",
    "EnergyNet",
    "MLPFeatures",
    "MLPGenerator",
    "SoftplusExperts",
    "UpsampledConv2d",
    "make_features",
    "make_generator",
]

OUTPUTS: dict[str, type[nn.Module]] = {"identity": nn.Identity, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
"""What bounds a generator's rows."""

RANGES: dict[str, tuple[float, float] | None] = {"identity": None, "sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}
"""And between which values."""


DIGIT_SIZE = 28 * 28
"""Pixels of the images on which σ and the steps of b were chosen."""


class SoftplusExperts(nn.Linear):
    r"""Experts :math:`\mathrm{softplus}(W_i^\top f + c_i)` of features f, in nats.

    Args:
        in_features: Number of features ``F``.
        out_features: Number of experts ``M``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map features ``(B, F)`` to what each expert adds to −E, with shape ``(B, M)``."""
        return F.softplus(super().forward(input))


class EnergyNet(nn.Module):
    r"""A product of experts over the features of a row (Kim & Bengio, 2016, equation 6).

    .. math:: E(x) = \frac{\|x\|^2}{\sigma^2} - b^\top x - \sum_i \mathrm{softplus}\bigl(W_i^\top f(x) + c_i\bigr)

    The first term makes :math:`e^{-E}` integrable whatever the bounded features say. For rows of D > 784 numbers, b is
    784/D times the parameter ``bias``, whose steps then move E as far as on digits. With classes,

    .. math:: E(x, y) = E(x) \text{ as above } - u_y^\top f(x) - a_y, \qquad
        E(x) = -\log \textstyle\sum_y e^{-E(x, y)}

    Args:
        event_shape: Shape of one row.
        features: Maps rows ``(B, *event_shape)`` to features ``(B, F)``, best bounded ones.
        experts: Number of experts, or a module of your own that maps features ``(B, F)`` to what each adds to −E(x),
            with shape ``(B, M)``.
        sigma: σ, in the units of the rows.
        num_classes: Number of classes ``K``; ``None`` for none.

    Raises:
        ValueError: For no expert, a non-positive σ, or parts that do not fit the rows or each other.
        TypeError: For parts that are no modules.
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
        if not sigma > 0.0 or (isinstance(experts, int) and experts < 1):
            raise ValueError(f"num_experts={experts} must be at least 1, and sigma={sigma} positive.")
        self.features = features
        self.sigma = float(sigma)
        width = int(check_module(features, event_shape, (None,), "features")[-1])
        numbers = math.prod(event_shape)
        self.bias = nn.Parameter(torch.zeros(numbers))
        # A step of Adam moves every number of b alike, and the rows' common brightness makes these add up.
        self._bias_scale = min(1.0, DIGIT_SIZE / numbers)
        self.experts = SoftplusExperts(width, experts) if isinstance(experts, int) else experts
        check_module(self.experts, (width,), (None,), "experts")
        self.classes = None if num_classes is None else nn.Linear(width, num_classes)

    def by_class(self, x: Tensor) -> Tensor:
        """Return E(x, y) for every class, with shape ``(B, K)``; ``K = 1``, and E(x), without classes."""
        features = self.features(x)
        flat = x.flatten(1)
        linear = self._bias_scale * (flat @ self.bias)
        energy = flat.square().sum(-1) / self.sigma**2 - linear - self.experts(features).sum(-1)
        energy = energy.unsqueeze(-1)
        return energy if self.classes is None else energy - self.classes(features)

    def forward(self, x: Tensor) -> Tensor:
        """Return E(x), in nats, with shape ``(B,)``."""
        return -(-self.by_class(x)).logsumexp(-1)


class MLPFeatures(nn.Module):
    """Bounded features of flattened rows: weight-normalised layers, a tanh at the end, no batch normalisation.

    Statistics of a batch would make the energy of a row depend on the rows beside it.

    Args:
        event_shape: Shape of one row.
        hidden_dims: Widths of the hidden layers.
        feature_dim: Number of features.
        activation: A name in ``ACTIVATIONS``; one that passes gradients on everywhere.

    Raises:
        ValueError: For non-positive widths or an unknown activation.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        hidden_dims: Sequence[int] = (128,),
        feature_dim: int = 128,
        *,
        activation: str = "elu",
    ) -> None:
        super().__init__()
        width = math.prod(event_shape)
        layers: list[nn.Module] = [nn.Flatten()]
        for hidden in check_widths(hidden_dims):
            layers += [weight_norm(nn.Linear(width, hidden)), get_activation(activation)]
            width = hidden
        self.layers = nn.Sequential(*layers, weight_norm(nn.Linear(width, feature_dim)), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """Map rows ``(B, *event_shape)`` to features ``(B, F)`` in [-1, 1]."""
        output: Tensor = self.layers(x)
        return output


class ConvFeatures(nn.Module):
    """Bounded features of images: convolutions that halve them down to about 7x7 or 4x4, and a tanh at the end.

    Args:
        event_shape: Shape of one image, ``(C, H, W)``, of at least 8x8 pixels.
        channels: Channels of the first convolution; they double with each. ``None`` for 32 up to 32x32 pixels, else 16.
        feature_dim: Number of features. ``None`` for 128 up to 32x32 pixels, else 64.

    Raises:
        ValueError: If the event is not such an image.
    """

    def __init__(self, event_shape: Sequence[int], channels: int | None = None, feature_dim: int | None = None) -> None:
        super().__init__()
        _check_image(event_shape)
        channels = (32 if _is_small(event_shape) else 16) if channels is None else channels
        feature_dim = (128 if _is_small(event_shape) else 64) if feature_dim is None else feature_dim
        width, size = event_shape[0], tuple(event_shape[1:])
        layers: list[nn.Module] = []
        for number in range(_halvings(size)):
            out = channels * 2**number
            layers += [nn.Conv2d(width, out, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            width = out
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.last = nn.Linear(int(check_module(self.layers, event_shape, (None,), "features")[-1]), feature_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` to features ``(B, F)`` in [-1, 1]."""
        output: Tensor = self.last(self.layers(x)).tanh()
        return output


class MLPGenerator(nn.Module):
    """x = G(z) by fully connected layers with batch normalisation and ReLU.

    Args:
        latent_dim: Number of latents ``L``.
        event_shape: Shape of one row.
        hidden_dims: Widths of the hidden layers.
        output: ``"identity"``, ``"sigmoid"`` or ``"tanh"``, which bounds the rows.

    Raises:
        ValueError: For non-positive widths or an unknown ``output``.
    """

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
        """Map latents ``(B, L)`` to rows ``(B, *event_shape)``."""
        output: Tensor = self.layers(z).view(-1, *self.event_shape)
        return output


class UpsampledConv2d(nn.Conv2d):
    """Repeats every pixel, 2x2, and convolves with 3x3 weights, in four ninths of the multiplications.

    A transposed convolution with a stride gives neighbouring pixels different weights, and images a grid of dots
    (Deconvolution and Checkerboard Artifacts, Odena et al., 2016, https://doi.org/10.23915/distill.00003). Pixels are
    repeated by spacing them out and then summing 2x2 of them. That sum is linear, so it is taken over weights.

    Args:
        in_channels: Channels of what is given.
        out_channels: Channels of what is returned.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, in_channels, H, W)`` to images ``(B, out_channels, 2H, 2W)``."""
        summed = F.avg_pool2d(F.pad(self.weight, (1, 1, 1, 1)), 2, stride=1, divisor_override=1)
        return F.conv_transpose2d(x, summed.transpose(0, 1).flip(-1, -2), self.bias, stride=2, padding=1)


class ConvGenerator(nn.Module):
    """x = G(z) by fully connected layers and transposed convolutions, with batch normalisation and ReLU.

    Kinds of images lie apart, and z does not: the fully connected layers are where it can be pulled apart. Beyond 32x32
    pixels a transposed convolution, which leaves a grid of dots there, gives way to repeating pixels before an ordinary
    one, an :class:`UpsampledConv2d`.

    Args:
        latent_dim: Number of latents ``L``.
        event_shape: Shape of one image, ``(C, H, W)``, of at least 8x8 pixels.
        channels: Channels before the last convolution; they double with each layer towards z. ``None`` for 64 up to
            32x32 pixels, else 32.
        hidden_dims: Widths of the fully connected layers. ``None`` for three of 256 up to 32x32 pixels, else two.
        output: ``"identity"``, ``"sigmoid"`` or ``"tanh"``, which bounds the pixels.

    Raises:
        ValueError: If the event is not such an image, for non-positive widths or an unknown ``output``.
    """

    def __init__(
        self,
        latent_dim: int,
        event_shape: Sequence[int],
        channels: int | None = None,
        hidden_dims: Sequence[int] | None = None,
        *,
        output: str = "sigmoid",
    ) -> None:
        super().__init__()
        _check_image(event_shape)
        channels = (64 if _is_small(event_shape) else 32) if channels is None else channels
        hidden_dims = (256,) * (3 if _is_small(event_shape) else 2) if hidden_dims is None else hidden_dims
        sizes = [tuple(event_shape[1:])]
        for _ in range(_halvings(sizes[0])):
            sizes.append(tuple(math.ceil(side / 2) for side in sizes[-1]))
        sizes.reverse()  # from the smallest
        count = len(sizes) - 1
        transposed = partial(nn.ConvTranspose2d, kernel_size=4, stride=2, padding=1)
        doubling = transposed if _is_small(event_shape) else UpsampledConv2d
        widths = [channels * 2 ** (count - 1 - number) for number in range(count)]
        first, (layers, width) = widths[0] * math.prod(sizes[0]), _normalised(latent_dim, hidden_dims)
        layers += [
            _he(nn.Linear(width, first)),
            nn.Unflatten(-1, (widths[0], *sizes[0])),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        for number in range(count):
            small, large = sizes[number], sizes[number + 1]
            last = number == count - 1
            out = event_shape[0] if last else widths[number + 1]
            more = tuple(side - 2 * half for side, half in zip(large, small, strict=True))  # 0, or -1 for odd sides
            layers.append(doubling(widths[number], out))
            if any(more):
                layers.append(nn.ZeroPad2d((0, more[1], 0, more[0])))  # negative padding: cuts the last line off
            if not last:
                layers += [nn.BatchNorm2d(out), nn.ReLU()]
        self.layers = nn.Sequential(*layers, _output(output))

    def forward(self, z: Tensor) -> Tensor:
        """Map latents ``(B, L)`` to images ``(B, C, H, W)``."""
        output: Tensor = self.layers(z)
        return output


def make_features(features: str | nn.Module, event_shape: Sequence[int]) -> nn.Module:
    """Return a feature extractor by name, or the given module unchanged.

    Args:
        features: ``"auto"`` (convolutional for images of at least 8x8, else an MLP), ``"conv"``, ``"mlp"`` or a module.
        event_shape: Shape of one row.

    Raises:
        ValueError: For an unknown name, or ``"conv"`` on rows that are not images.
        TypeError: For anything that is neither a name nor a module.
    """
    name = _kind(features, event_shape, "features")
    if isinstance(name, nn.Module):
        return name
    if name == "conv":
        return ConvFeatures(event_shape)
    small = math.prod(event_shape) <= 16
    return MLPFeatures(event_shape) if small else MLPFeatures(event_shape, (512, 256), 128)


def make_generator(
    generator: str | nn.Module, latent_dim: int, event_shape: Sequence[int], *, output: str
) -> nn.Module:
    """Return a generator by name, or the given module unchanged.

    Args:
        generator: As in :func:`make_features`.
        latent_dim: Number of latents ``L``.
        event_shape: Shape of one row.
        output: What bounds the rows.

    Raises:
        ValueError: For an unknown name, or ``"conv"`` on rows that are not images.
        TypeError: For anything that is neither a name nor a module.
    """
    name = _kind(generator, event_shape, "generator")
    if isinstance(name, nn.Module):
        return name
    if name == "conv":
        return ConvGenerator(latent_dim, event_shape, output=output)
    small = math.prod(event_shape) <= 16
    return MLPGenerator(latent_dim, event_shape, (256, 256) if small else (500, 500), output=output)


def _kind(part: str | nn.Module, event_shape: Sequence[int], role: str) -> str | nn.Module:
    if isinstance(part, nn.Module):
        return part
    if not isinstance(part, str):
        raise TypeError(f"{role} must be 'auto', 'conv', 'mlp' or a module, not {type(part).__name__}.")
    if part == "auto":
        return "conv" if len(event_shape) == 3 and min(event_shape[1:]) >= 8 else "mlp"
    if part not in ("conv", "mlp"):
        raise ValueError(f"{role}={part!r} is unknown; choose auto, conv or mlp, or pass a module.")
    return part


def _halvings(size: Sequence[int]) -> int:
    """Return how often an image is halved: until its shorter side is below 8."""
    return max(1, math.ceil(math.log2((min(size) + 1) / 8)))


def _check_image(event_shape: Sequence[int]) -> None:
    if len(event_shape) != 3 or min(event_shape[1:]) < 8:
        raise ValueError(
            f"A convolutional network here needs images (C, H, W) of at least 8x8 pixels; got event_shape="
            f"{tuple(event_shape)!r}. Use 'mlp'."
        )


def _is_small(event_shape: Sequence[int]) -> bool:
    return max(event_shape[1:]) <= 32


def check_module(module: nn.Module, given: Sequence[int], wanted: Sequence[int | None], role: str) -> torch.Size:
    """Return the shape of what a module makes of a row of shape ``given``; ``None`` in ``wanted`` is any number.

    Raises:
        ValueError: If it takes no such rows, or makes others than wanted.
        TypeError: If it is no module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"{role} must be a module, not {type(module).__name__}.")
    training = module.training
    like = next(module.parameters(), torch.zeros(()))
    try:
        with torch.no_grad():
            found: Tensor = module.eval()(torch.zeros(2, *given).to(like))
    except RuntimeError as error:
        raise ValueError(f"{role} takes no rows of shape {tuple(given)}: {error}") from error
    finally:
        module.train(training)
    shape = tuple(found.shape)
    fits = len(shape) == len(wanted) + 1 and shape[0] == 2
    if not fits or any(want not in (None, got) for want, got in zip(wanted, shape[1:], strict=True)):
        numbers = ", ".join("F" if number is None else str(number) for number in wanted)
        raise ValueError(f"{role} must map (B, {', '.join(map(str, given))}) to (B, {numbers}); two rows gave {shape}.")
    return found.shape[1:]


def _normalised(width: int, hidden_dims: Sequence[int]) -> tuple[list[nn.Module], int]:
    """Return fully connected layers with batch normalisation and ReLU, and the width of the last."""
    layers: list[nn.Module] = []
    for hidden in check_widths(hidden_dims):
        layers += [_he(nn.Linear(width, hidden)), nn.BatchNorm1d(hidden), nn.ReLU()]
        width = hidden
    return layers, width


def _he(layer: nn.Linear) -> nn.Linear:
    nn.init.kaiming_normal_(layer.weight)
    return layer


def _output(name: str) -> nn.Module:
    if name not in OUTPUTS:
        raise ValueError(f"output={name!r} must be one of {', '.join(OUTPUTS)}.")
    return OUTPUTS[name]()
