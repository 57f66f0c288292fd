"""Random changes of examples, which keep their class: of grey images, of photographs and of rows of tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_ssvae._configurable import Configurable, describe
from pyro_ssvae._division import gather_rows
from pyro_ssvae.networks.images import make_affine_maps
from pyro_ssvae.objectives.energy_terms import draw_positions, gather_pixels

BRIGHTNESS = 0.05
"""Default standard deviation of changes of brightness, where x fills [0, 1]."""


class Augmentation(Configurable, abstract=True):
    """Base class of random changes of the examples of a batch, which keep their shape."""

    name = "augmentation"

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return describe(self)["arguments"]


class _ImageAugmentation(Augmentation, abstract=True):
    """Base class of augmentations of images, of which some stay as they are."""

    probability: float

    def forward(self, x: Tensor) -> Tensor:
        """Return augmented images with the shape of ``x``, ``(B, C, H, W)``."""
        if x.dim() != 4:
            raise ValueError(f"{type(self).__name__} needs images (B, C, H, W), and the examples are {tuple(x.shape)}.")
        changed = self._change(x)
        if self.probability == 1.0:
            return changed
        return torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < self.probability, changed, x)

    def _change(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class AffineAugmentation(_ImageAugmentation):
    """A random affine map for each image of a batch, by bilinear sampling; ``fill`` is what lies outside the image.

    Args:
        rotation: Standard deviation of the angle, in radians.
        log_scale: Standard deviation of the logarithm of the zoom, drawn for each axis.
        shear: Standard deviation of the shear, as a slope.
        shift: Standard deviation of the translation, as a fraction of the image's size.
        strength: Factor of all four.
        fill: Value of the pixels outside the image, in the units of x.
        probability: Probability of an image to be changed at all.

    Raises:
        ValueError: For a probability outside [0, 1].

    Example:
        >>> AffineAugmentation(strength=0.0)(torch.ones(2, 1, 8, 8)).mean()
        tensor(1.)
    """

    def __init__(
        self,
        rotation: float = 0.15,
        log_scale: float = 0.08,
        shear: float = 0.15,
        shift: float = 0.04,
        strength: float = 1.0,
        fill: float = 0.0,
        probability: float = 1.0,
    ) -> None:
        super().__init__()
        self.rotation, self.log_scale, self.shear, self.shift = rotation, log_scale, shear, shift
        self.strength, self.fill, self.probability = strength, fill, probability

    def _change(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.maps(x), list(x.shape), align_corners=False)
        if not self.fill:
            return F.grid_sample(x, grid, align_corners=False)
        return F.grid_sample(x - self.fill, grid, align_corners=False) + self.fill

    def maps(self, x: Tensor) -> Tensor:
        """Draw maps from output to input coordinates, each in [-1, 1], for images ``(B, C, H, W)``: ``(B, 2, 3)``."""
        draws = torch.randn(6, x.shape[0], device=x.device, dtype=x.dtype) * self.strength
        scales = (self.rotation, self.log_scale, self.log_scale, self.shear, self.shift, self.shift)
        return make_affine_maps(torch.stack([scale * draw for scale, draw in zip(scales, draws, strict=True)]))


class PhotoAugmentation(_ImageAugmentation):
    """A random crop, flip and change of colours for each photograph of a batch.

    The crop has the size of the image and is taken from the image with mirrored margins. Colours are changed by the
    same amounts in all pixels of an image. The last of four channels is opacity, and keeps its values.

    Args:
        crop: Largest shift of the crop, as a fraction of the height and of the width.
        flip: Probability of exchanging left and right.
        brightness: Standard deviation of what is added, in the units of x.
        contrast: Standard deviation of the logarithm of the factor of differences from the mean pixel.
        saturation: That of the factor of differences from grey.
        strength: Factor of all but ``flip``.
        probability: Probability of an image to be changed at all.

    Raises:
        ValueError: For a probability outside [0, 1].

    Example:
        >>> PhotoAugmentation()(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        crop: float = 0.125,
        flip: float = 0.5,
        brightness: float = BRIGHTNESS,
        contrast: float = 0.15,
        saturation: float = 0.2,
        strength: float = 1.0,
        probability: float = 1.0,
    ) -> None:
        super().__init__()
        self.crop, self.flip, self.strength, self.probability = crop, flip, strength, probability
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation

    def _change(self, x: Tensor) -> Tensor:
        down, along = (self._positions(x, size) for size in x.shape[-2:])
        x = gather_pixels(x, down, along, self.flip)
        added, contrast, saturation = torch.randn(3, len(x), 1, 1, 1, device=x.device, dtype=x.dtype) * self.strength
        x, opacity = (x[:, :3], x[:, 3:]) if x.shape[1] == 4 else (x, x[:, :0])
        grey = x.mean(1, keepdim=True)
        x = grey + (self.saturation * saturation).exp() * (x - grey)
        mean = grey.mean((2, 3), keepdim=True)
        x = mean + (self.contrast * contrast).exp() * (x - mean) + self.brightness * added
        return torch.cat([x, opacity], 1) if opacity.shape[1] else x

    def _positions(self, x: Tensor, size: int) -> Tensor:
        positions = draw_positions(x, size, min(round(self.crop * self.strength * size), size - 1)).abs()
        return size - 1 - (size - 1 - positions).abs()


class ColumnAugmentation(Augmentation):
    """Random changes of the rows of a table: values of other rows of the batch, and noise; missing values stay missing.

    Args:
        swap: Probability of a value to be replaced by that of another row in the same column; one for each column, or
            one for all.
        noise: Standard deviation of the noise in the units of x, likewise.

    Raises:
        ValueError: For a probability outside [0, 1], or negative noise.

    Example:
        >>> ColumnAugmentation(swap=[1.0, 0.0])(torch.ones(3, 2)).sum()
        tensor(6.)
    """

    swap: Tensor
    noise: Tensor

    def __init__(self, swap: float | Sequence[float] = 0.2, noise: float | Sequence[float] = 0.0) -> None:
        super().__init__()
        for given, values, most in (("swap", swap, 1.0), ("noise", noise, math.inf)):
            numbers = torch.as_tensor(values, dtype=torch.get_default_dtype())
            if not ((numbers >= 0.0) & (numbers <= most) & numbers.isfinite()).all():
                raise ValueError(f"{given}={values} must be at least 0 and {'at most 1' if most == 1 else 'finite'}.")
            self.register_buffer(given, numbers)
        self._swaps, self._adds = bool(self.swap.any()), bool(self.noise.any())

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, in single precision."""
        return {"swap": self.swap.tolist(), "noise": self.noise.tolist()}

    def forward(self, x: Tensor) -> Tensor:
        """Return changed rows with the shape of ``x``, ``(B, D)``."""
        if self._swaps:
            rows = gather_rows(x)
            others = rows.gather(0, torch.randint(len(rows), x.shape, device=x.device))
            x = torch.where(torch.rand(x.shape, device=x.device) < self.swap, others, x)
        return x + self.noise * torch.randn_like(x) if self._adds else x
