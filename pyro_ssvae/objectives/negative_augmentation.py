r"""Rows that an energy must not like: images that have lost their content.

Maximum likelihood raises the energy where the generator is, and lowers it where data are. Nothing says what it should
be where neither is, and a blank image, which is smooth and of small norm, often ends up with the least energy of all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["NegativeAugmentation"]

_REACH = 8  # pixels on either side of a blurring kernel, at most


class NegativeAugmentation(nn.Module):
    r"""Raises the energy on faded, blurred, stitched and scrambled copies :math:`c(x)` of data, no further than needed.

    .. math:: \mathbb E\,\mathrm{softplus}\bigl(m(x) + E(x) - E(c(x))\bigr), \qquad
        m(x) = \min\bigl(\tfrac{1}{2\tau^2} \|c(x) - x\|^2,\, m_{\max}\bigr)

    The margin is the rise of energy around data of a Gaussian with standard deviation τ, up to a limit: copies that are
    nearly as good as the original may cost nearly as little. A quarter of the copies fade towards an even colour, black
    for half of those; a quarter are blurred; a quarter are stitched together from two rows along a straight line; and
    in a quarter tiles, a quarter or an eighth of the image high and wide, change places. A good generator shows the
    energy hardly anything that is wrong, so that must come from elsewhere (after Negative Data Augmentation, Sinha et
    al., 2021, https://arxiv.org/abs/2102.05113).

    Args:
        margin: Largest margin, in nats. Larger ones cost the generator: the energy is then busy with copies.
        spread: τ, in the units of rows.

    Raises:
        ValueError: For a non-positive margin or spread.
    """

    def __init__(self, margin: float = 3.0, spread: float = 1.0) -> None:
        super().__init__()
        if not (margin > 0.0 and spread > 0.0):
            raise ValueError(f"margin={margin} and spread={spread} must be positive.")
        self.margin, self.spread = margin, spread

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies, with the shape of ``x``, and their margins in nats, with shape ``(B,)``.

        Args:
            x: Images with shape ``(B, C, H, W)``, in [0, 1].

        Raises:
            ValueError: For rows that are no images.
        """
        if x.dim() != 4:
            raise ValueError(
                "Only images (C, H, W) fade, blur and are stitched or scrambled, and rows have shape "
                f"{tuple(x.shape[1:])}; set negative_weight=0."
            )
        x = x.detach()
        left, which, colour, black, across = torch.rand(5, len(x), 1, 1, 1, dtype=x.dtype, device=x.device)
        colour = torch.where(black < 0.5, torch.zeros_like(colour), colour)
        faded = colour + left * (x - colour)
        blurred = _blurred(x, 0.5 + 2.5 * torch.rand((), device=x.device))
        stitched = _stitched(x, 0.3 + 0.4 * left, across < 0.5)
        scrambled = torch.where(left < 0.5, _scrambled(x, 4), _scrambled(x, 8))
        copies = torch.where(which < 0.75, stitched, scrambled)
        copies = torch.where(which < 0.25, faded, torch.where(which < 0.5, blurred, copies))
        distance = (copies - x).square().flatten(1).sum(-1)
        return copies, (distance / (2.0 * self.spread**2)).clamp(max=self.margin)

    def config(self) -> dict[str, Any]:
        """Return every setting, JSON-ready, for results."""
        return {"copies": ["faded", "blurred", "stitched", "scrambled"], "margin": self.margin, "spread": self.spread}

    def loss(self, energy: Tensor, of_copies: Tensor, margin: Tensor) -> Tensor:
        """Return the term, a scalar in nats, from E(x), E(c(x)) and m(x), each with shape ``(B,)``."""
        return F.softplus(margin + energy - of_copies).mean()


def _stitched(x: Tensor, place: Tensor, across: Tensor) -> Tensor:
    """Return images of which a part of each side, or of each height, is of the row before."""
    down, along = (torch.linspace(0.0, 1.0, size, dtype=x.dtype, device=x.device) for size in x.shape[-2:])
    own = torch.where(across, down.view(-1, 1), along) < place
    return torch.where(own, x, x.roll(1, 0))


def _scrambled(x: Tensor, count: int) -> Tensor:
    """Return images of ``count`` tiles a side in a random order, another for each; what is left at an edge stays."""
    count = min(count, *x.shape[-2:])
    height, width = (size // count for size in x.shape[-2:])
    tile, area = (height, width), (count * height, count * width)
    tiles = F.unfold(x[..., : area[0], : area[1]], tile, stride=tile)  # (B, numbers of a tile, tiles)
    order = torch.rand(len(x), 1, count**2, device=x.device).argsort(-1).expand_as(tiles)
    scrambled = x.clone()
    scrambled[..., : area[0], : area[1]] = F.fold(tiles.gather(-1, order), area, tile, stride=tile)
    return scrambled


def _blurred(x: Tensor, scale: Tensor) -> Tensor:
    """Return images convolved with a Gaussian of a standard deviation in pixels; edges are continued."""
    channels = x.shape[1]
    reach = min(_REACH, x.shape[-1] - 1, x.shape[-2] - 1)
    place = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    kernel = (-0.5 * (place / scale) ** 2).exp()
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), kernel, groups=channels)
    return F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), kernel.transpose(-1, -2), groups=channels)
