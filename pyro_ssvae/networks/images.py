"""Convolutional and residual encoders, decoders and classifiers of images, and affine maps of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_ssvae._arguments import check_choice, checked
from pyro_ssvae.networks.energy import check_image, count_halvings
from pyro_ssvae.networks.variational import MLP, ConditionalMLP, ConvClassifier, Dropout, check_module, resolve_network

POSE_DIM = 6  # latents of a pose
_SCALES = (0.25, 0.12, 0.12, 0.2, 0.05, 0.05)  # radians, two logarithms of zooms, a slope, and fractions of the image


def make_affine_maps(pose: Tensor) -> Tensor:
    """Return maps from output to input coordinates, each in [-1, 1], ``(B, 2, 3)``.

    ``pose`` ``(6, B)`` holds the angle in radians, the logarithms of the zooms of both axes, the shear as a slope, and
    translations as fractions of the image's size.
    """
    angle, shear = pose[0], pose[3]
    zoom_x, zoom_y = pose[1:3].exp()
    cos, sin = angle.cos(), angle.sin()
    # An image spans two units of the grid, so that a shift by a fraction is twice that fraction.
    shift_x, shift_y = 2.0 * pose[4:6]
    row_x = torch.stack([zoom_x * cos, zoom_x * (shear * cos - sin), shift_x], -1)
    row_y = torch.stack([zoom_y * sin, zoom_y * (shear * sin + cos), shift_y], -1)
    return torch.stack([row_x, row_y], -2)


class PoseDecoder(nn.Module):
    r"""A decoder whose image is moved, turned, zoomed and slanted by the first six latents (the pose t of an example).

    .. math:: z = (t, s), \qquad x \sim p(x \mid \mathrm{warp}(f(s, y), A(t)))

    with the decoder f, whose outputs are sampled bilinearly at the coordinates that the affine map A(t) gives; a
    standard normal t turns by 0.25 radians and shifts by a twentieth of the image (one standard deviation). As the
    guide infers t, examples that differ by their pose share s and y: what augmentation teaches a classifier is here
    part of the generative model (spatial transformers, Jaderberg et al., 2015, https://arxiv.org/abs/1506.02025).
    """

    def __init__(self, decoder: nn.Module, event_shape: Sequence[int]) -> None:
        super().__init__()
        if len(event_shape) != 3:
            raise ValueError(f"pose=True is for images (C, H, W), and the examples have shape {tuple(event_shape)}.")
        self.decoder = decoder
        self._image_shape = tuple(event_shape)
        self.scales: Tensor
        self.register_buffer("scales", torch.tensor(_SCALES), persistent=False)

    def forward(self, z: Tensor, *y: Tensor) -> Tensor:
        """Map latents ``(..., B, L)``, and classes ``(B,)`` or ``(K, 1)``, to ``(..., B, P * D)``."""
        batch = torch.broadcast_shapes(z.shape[:-1], *(classes.shape for classes in y))
        flat = self.decoder(z[..., POSE_DIM:], *y).flatten(len(batch))  # it may have returned images
        pose = (z[..., :POSE_DIM] * self.scales).expand(*flat.shape[:-1], POSE_DIM)
        images = flat.reshape(-1, flat.shape[-1] // math.prod(self._image_shape[1:]), *self._image_shape[1:])
        maps = make_affine_maps(pose.reshape(-1, POSE_DIM).T.to(images))
        grid = F.affine_grid(maps, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False).reshape(flat.shape)


NETWORKS = ("mlp", "conv", "resnet")
"""Names of the networks of a model."""


class _Residual(nn.Module):
    """Two convolutions whose result is added to the input, each after normalisation and activation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(_activate(channels), nn.Conv2d(channels, channels, 3, padding=1)),
            *(_activate(channels), nn.Conv2d(channels, channels, 3, padding=1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _activate(channels: int) -> nn.Module:
    if channels % 8:
        raise ValueError(f"channels={channels} must be a multiple of 8, which are normalised together.")
    # Group normalisation: statistics of a batch would differ between clean, augmented and enumerated examples.
    return nn.Sequential(nn.GroupNorm(channels // 8, channels), nn.ReLU())


@checked
class ImageEncoder(nn.Module):
    """Numbers from an image, and from its class where there are classes: q(z|x), q(z|x,y), or logits of q(y|x).

    A convolution at full size, then halvings down to about 7x7 or 4x4 pixels with twice as many channels each; before
    each halving and at the end there is a residual block, if wanted; then fully connected layers with the options of
    :class:`MLP`. What depends on the image alone is computed once for all classes.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        out_features: int,
        num_classes: int | None = None,
        *,
        residual: bool = False,
        channels: int = 32,
        hidden_dims: Sequence[int] = (256,),
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        check_image(event_shape)
        layers: list[nn.Module] = [nn.Conv2d(event_shape[0], channels, 3, padding=1)]
        for _ in range(count_halvings(event_shape[1:])):
            layers += [_Residual(channels)] if residual else []
            layers += [_activate(channels), nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)]
            channels *= 2
        layers += [_Residual(channels)] if residual else []
        self.features = nn.Sequential(*layers, _activate(channels), nn.Flatten(), Dropout(dropout))
        width = int(check_module(self.features, event_shape, (None,), "encoder")[-1])
        self.head = _make_head((width,), out_features, num_classes, hidden_dims, options)

    def forward(self, x: Tensor, *y: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)``, and classes ``(B,)`` or ``(K, 1)``, to ``(..., out_features)``."""
        return self.head(self.features(x), *y)


@checked
class ImageDecoder(nn.Module):
    """The parameters of the pixels of an image from latents, and from a class where there are classes.

    Fully connected layers give a small image, which is doubled, with half as many channels each time; after each
    doubling there is a convolution or a residual block. Arguments and errors are those of :class:`ImageEncoder`.
    """

    def __init__(
        self,
        latent_dim: int,
        event_shape: Sequence[int],
        num_params: int,
        num_classes: int | None = None,
        *,
        residual: bool = False,
        channels: int = 32,
        hidden_dims: Sequence[int] = (256,),
        **options: Any,
    ) -> None:
        super().__init__()
        check_image(event_shape)
        count = count_halvings(event_shape[1:])
        sizes = [tuple(math.ceil(side / 2**number) for side in event_shape[1:]) for number in range(count + 1)]
        small = (channels * 2**count, *sizes[-1])
        self.head = _make_head((latent_dim,), math.prod(small), num_classes, hidden_dims, options)
        layers: list[nn.Module] = [nn.Unflatten(-1, small)]
        for number in reversed(range(count)):
            width = channels * 2**number
            layers += [_Residual(2 * width)] if residual else []
            layers += [_activate(2 * width), _Doubled(2 * width, width, sizes[number])]
        layers += [_Residual(channels)] if residual else []
        self.layers = nn.Sequential(
            *layers, _activate(channels), nn.Conv2d(channels, num_params * event_shape[0], 3, padding=1), nn.Flatten()
        )

    def forward(self, z: Tensor, *y: Tensor) -> Tensor:
        """Map latents ``(..., B, L)``, and classes ``(B,)`` or ``(K, 1)``, to ``(..., B, P * D)``."""
        small = self.head(z, *y)
        return self.layers(small.flatten(0, -2)).view(*small.shape[:-1], -1)


class _Doubled(nn.ConvTranspose2d):
    """A transposed convolution that doubles both sides of an image, less one where the side wanted is odd."""

    def __init__(self, in_channels: int, out_channels: int, size: Sequence[int]) -> None:
        super().__init__(in_channels, out_channels, 4, stride=2, padding=1)
        self._size = tuple(size)

    def forward(self, x: Tensor, output_size: Any = None) -> Tensor:
        """Map images ``(B, in_channels, h, w)`` to ``(B, out_channels, *size)``."""
        height, width = self._size
        return super().forward(x)[..., :height, :width]


def _make_head(
    shape: Sequence[int],
    out_features: int,
    num_classes: int | None,
    hidden_dims: Sequence[int],
    options: dict[str, Any],
) -> nn.Module:
    if num_classes is None:
        return MLP(shape, out_features, hidden_dims, **options)
    return ConditionalMLP(shape, num_classes, out_features, hidden_dims, **options)


def make_classifier(
    classifier: str | nn.Module,
    event_shape: Sequence[int],
    num_classes: int,
    *,
    dropout: float | None = None,
    **options: Any,
) -> nn.Module:
    """Return a classifier q(y|x) by name, or the given module unchanged.

    ``"auto"`` is ``"conv"`` for images, else ``"mlp"``, with ``options`` of :class:`MLP`; ``"resnet"`` is an
    :class:`ImageEncoder` with residual blocks. ``dropout`` of ``None`` is 0.3 for a network of images, else 0. An
    unknown name, or one of images for other examples, raises ``ValueError``, another type ``TypeError``.
    """
    classifier = resolve_network(classifier, event_shape, "classifier", least_side=6, known=("conv", "mlp", "resnet"))
    if isinstance(classifier, nn.Module):
        return classifier
    if dropout is None:
        dropout = 0.0 if classifier == "mlp" else 0.3
    if classifier == "conv":
        return ConvClassifier(event_shape, num_classes, dropout=dropout)
    if classifier == "resnet":
        channels = 32 if max(event_shape[1:], default=1) <= 32 else 16
        return ImageEncoder(event_shape, num_classes, residual=True, channels=channels, hidden_dims=(), dropout=dropout)
    return MLP(event_shape, num_classes, dropout=dropout, **options)


def make_networks(
    networks: str,
    input_shape: Sequence[int],
    event_shape: Sequence[int],
    latent_dim: int,
    num_params: int,
    num_classes: int | None = None,
    *,
    hidden_dims: Sequence[int],
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
    pose: bool = False,
    auxiliary_dim: int = 0,
    **options: Any,
) -> tuple[nn.Module, nn.Module]:
    """Return encoder and decoder of a model by name, or the given modules unchanged.

    The encoder sees ``input_shape`` of an example, and returns two numbers for each latent; the decoder returns
    ``num_params`` numbers for each element of ``event_shape``, from the latents, the first six of which are the pose if
    ``pose`` is set (:class:`PoseDecoder`), and ``auxiliary_dim`` further inputs right of them. Both also get one of
    ``num_classes`` classes, unless that is ``None``. ``hidden_dims`` are the widths of fully connected layers of the
    encoder, and in reverse of the decoder; ``options`` are further ones of :class:`MLP`.
    """
    if pose and latent_dim <= POSE_DIM:
        raise ValueError(f"latent_dim={latent_dim} must be more than {POSE_DIM}, the latents of the pose.")
    check_choice("networks", networks, ("auto", *NETWORKS))
    networks = choose_networks(event_shape) if networks == "auto" else networks
    residual, smaller = networks == "resnet", 1 if max(event_shape[1:], default=1) <= 32 else 2
    if encoder is None and networks == "mlp":
        encoder = _make_head(input_shape, 2 * latent_dim, num_classes, hidden_dims, options)
    elif encoder is None:
        of_images = {"residual": residual, "channels": (16 if residual else 32) // smaller, **options}
        encoder = ImageEncoder(input_shape, 2 * latent_dim, num_classes, hidden_dims=hidden_dims, **of_images)
    inputs, backwards = latent_dim + auxiliary_dim - (POSE_DIM if pose else 0), tuple(hidden_dims)[::-1]
    if decoder is None and networks == "mlp":
        decoder = _make_head((inputs,), num_params * math.prod(event_shape), num_classes, backwards, options)
    elif decoder is None:
        of_images = {"residual": residual, "channels": 16 // smaller, **options}
        decoder = ImageDecoder(inputs, event_shape, num_params, num_classes, hidden_dims=backwards, **of_images)
    return encoder, PoseDecoder(decoder, event_shape) if pose else decoder


def choose_networks(event_shape: Sequence[int]) -> str:
    """Return ``"conv"`` for images in colour of at least 8x8 pixels, else ``"mlp"``."""
    return "conv" if len(event_shape) == 3 and event_shape[0] >= 3 and min(event_shape[1:]) >= 8 else "mlp"
