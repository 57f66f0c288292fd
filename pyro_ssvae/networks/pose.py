r"""Affine maps of images, and a decoder of images whose first latents are such a map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POSE_DIM = 6  # latents of a pose
_SCALES = (0.25, 0.12, 0.12, 0.2, 0.05, 0.05)  # radians, two logarithms of zooms, a slope, and fractions of the image


def make_affine_maps(pose: Tensor) -> Tensor:
    """Return maps from output to input coordinates, each in [-1, 1], with shape ``(B, 2, 3)``.

    Args:
        pose: Angle in radians, logarithms of the zooms of both axes, shear as a slope, and translations as fractions of
            the image's size, with shape ``(6, B)``.
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

    Args:
        decoder: A module that maps s ``(..., L - 6)``, and classes, to the parameters of the pixels ``(..., P * D)``.
        event_shape: Shape of one image, ``(C, H, W)``.

    Raises:
        ValueError: If the event is no image.
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
        flat = self.decoder(z[..., POSE_DIM:], *y)
        pose = (z[..., :POSE_DIM] * self.scales).expand(*flat.shape[:-1], POSE_DIM)
        images = flat.reshape(-1, flat.shape[-1] // math.prod(self._image_shape[1:]), *self._image_shape[1:])
        maps = make_affine_maps(pose.reshape(-1, POSE_DIM).T.to(images))
        grid = F.affine_grid(maps, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False).reshape(flat.shape)
