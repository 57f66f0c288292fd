"""Label spreading: what the labels of similar images say about the class of an image.

``LabelSpreading`` of scikit-learn neither weights the edges by distance nor normalises the densities by class: with the
same 10,100 images of MNIST it errs on 8.3 and 7.8 % of the validation images (label seeds 22 and 33), this on 4.1 %.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.preparation import rescale

_MOST_LABELLED, _MOST_UNLABELLED = 5000, 10_000  # training images that are kept
_MOST_DENSITIES = 2_000_000  # unlabelled images times classes
_PART = 1000  # images that are prepared at a time
_SIDE = 32  # pixels of a side, to which larger images are reduced
_COMPONENTS = 50  # principal components in which neighbours are near
_NEIGHBOURS = 10
_SPREAD = 0.99  # share of a density that comes from the neighbours at every iteration
_ITERATIONS = 50
_LEAST_DENSITY = 0.02  # density of a class, as a fraction of the greatest one at the same image
_FOLDS = 5
_POWERS = np.linspace(0.0, 4.0, 17)
_LEAST_ACCURACY = 0.9  # on hidden labels, as a pseudo-label must be sure
_LEAST_LABELS = 20  # from which that accuracy is known well enough


class NeighbourDensities(nn.Module):
    r"""Densities of the classes at an image, from labels that were spread over the nearest neighbours of each image.

    The training images are the nodes of a graph, each joined to its nearest neighbours. With the matrix S of the
    normalised weights of the graph and the matrix Y of the labels, whose columns sum to one,

    .. math:: F \leftarrow a S F + (1 - a) Y, \qquad \log p(x \mid y) \approx w \log F_y(x) + \text{const}

    (Learning with Local and Global Consistency, Zhou et al., 2004, section 2). Each column of F is normalised; F at
    other images is the mean over their nearest nodes. Neighbours are sought in the first principal components of the
    images, after the shift and the slant of each image have been removed. The power w corrects what F takes for more
    or less certain than it is; w is chosen between 0 and 4 by cross-validation on the labelled examples.

    Args:
        images: Images of the graph, ``(N, C, H, W)``.
        y: Their labels, -1 where unknown, ``(N,)``.
        num_classes: Number of classes ``K``.
        background: Value of the pixels around what an image shows, after division by ``scale``.
        scale: Divisor of the images of the graph.

    Raises:
        ValueError: For other shapes than those of images, or fewer than two.

    Example:
        >>> data = SemiSupervisedData.from_name("digits", num_labels=100)
        >>> densities = NeighbourDensities(data.x, data.y, data.num_classes, scale=data.scale)
        >>> y = densities(rescale(data.x_validation, data.scale)).argmax(-1)
        >>> (y == data.y_validation).float().mean() > 0.9
        tensor(True)
    """

    nodes: Tensor
    densities: Tensor
    mean: Tensor
    components: Tensor

    def __init__(
        self, images: Tensor, y: Tensor, num_classes: int, *, background: float = 0.0, scale: float = 1.0
    ) -> None:
        super().__init__()
        if images.dim() != 4 or len(images) < 2:
            raise ValueError(f"Two images (N, C, H, W) or more are needed; got {tuple(images.shape)}.")
        self.background = background
        pixels = torch.cat([self._pixels(rescale(part, scale)) for part in images.split(_PART)])
        mean, components = _find_components(pixels.numpy())
        nodes = (pixels - mean) @ components
        self.num_neighbours = min(_NEIGHBOURS, len(images) - 1)
        weights = _join_neighbours(nodes.numpy(), self.num_neighbours)
        labels = y.numpy()
        self.power, self.accuracy = _cross_validate(weights, labels, num_classes)
        densities = torch.from_numpy(_spread(weights, labels, num_classes)).float()
        for name, value in {"nodes": nodes, "densities": densities, "mean": mean, "components": components}.items():
            self.register_buffer(name, value, persistent=False)  # the data determine them

    @classmethod
    def for_data(cls, data: SemiSupervisedData, *, background: float = 0.0) -> NeighbourDensities | None:
        """Return the densities of at most 10,000 unlabelled and 5,000 labelled training images, drawn at random.

        ``None`` for fewer than 20 labels or two of a class, and where the densities predict fewer than 90 % of the
        labels that cross-validation hides: pseudo-labels of a better classifier would become worse.
        """
        num_classes = data.num_classes or 0
        counts = data.y[data.y >= 0].bincount(minlength=num_classes)
        if not num_classes or counts.min() < 2 or counts.sum() < _LEAST_LABELS:
            return None
        generator = torch.Generator().manual_seed(data.seed)
        most = (_MOST_LABELLED, min(_MOST_UNLABELLED, _MOST_DENSITIES // num_classes))
        drawn = [
            index[torch.randperm(len(index), generator=generator)[:number]]
            for index, number in zip((data.labelled_index, data.unlabelled_index), most, strict=True)
        ]
        rows = torch.cat(drawn).sort().values
        found = cls(data.x[rows].cpu(), data.y[rows].cpu(), num_classes, background=background, scale=data.scale)
        return found if found.accuracy >= _LEAST_ACCURACY else None

    def config(self) -> dict[str, Any]:
        """Return the number of images in the graph, w, and the accuracy on hidden labels, JSON-ready."""
        return {"images": len(self.nodes), "power": self.power, "accuracy": self.accuracy}

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return ``w log F`` of images ``(B, C, H, W)``, ``(B, K)``, zero for the class of the greatest density."""
        with torch.autocast(x.device.type, enabled=False):
            position = (self._pixels(x.float()) - self.mean) @ self.components
            squares = torch.addmm((self.nodes**2).sum(1), position, self.nodes.T, alpha=-2.0)  # less |position|²
            nearest_squares, nearest = squares.topk(self.num_neighbours, largest=False)
            nearest_squares = (nearest_squares + (position**2).sum(1, keepdim=True)).clamp_min(0.0)
            weights = torch.exp(-nearest_squares / nearest_squares[:, -1:].clamp_min(1e-12))
            density = (weights[..., None] * self.densities[nearest]).sum(1)
            return self.power * _relative(density).log()

    def _pixels(self, x: Tensor) -> Tensor:
        """Return upright images of at most 32x32 pixels, ``(B, C·H·W)``."""
        x = make_upright(x, self.background)
        return F.adaptive_avg_pool2d(x, (min(x.shape[2], _SIDE), min(x.shape[3], _SIDE))).flatten(1)


def make_upright(x: Tensor, background: float = 0.0) -> Tensor:
    """Return images ``(B, C, H, W)`` with their centre of mass in the middle and without slant.

    The mass of a pixel is its difference from the background. The slant is the slope of the regression of the
    horizontal on the vertical coordinate.
    """
    mass = (x - background).abs().sum(1)
    mass = mass / mass.sum((1, 2), keepdim=True).clamp_min(1e-12)
    kind: dict[str, Any] = {"device": x.device, "dtype": x.dtype}
    down, along = (torch.linspace(1.0 / size - 1.0, 1.0 - 1.0 / size, size, **kind) for size in x.shape[-2:])
    rows, columns = mass.sum(2), mass.sum(1)
    middle_down, middle_along = rows @ down, columns @ along
    down = down - middle_down[:, None]
    slanted = (mass * along).sum(2) - rows * middle_along[:, None]  # of each row of pixels
    slope = (slanted * down).sum(1) / (rows * down**2).sum(1).clamp_min(1e-6)
    maps = torch.eye(2, 3, **kind).repeat(len(x), 1, 1)
    maps[:, 0, 1], maps[:, 0, 2], maps[:, 1, 2] = slope, middle_along, middle_down
    grid = F.affine_grid(maps, list(x.shape), align_corners=False)
    return F.grid_sample(x - background, grid, align_corners=False) + background


def _relative(density: Tensor) -> Tensor:
    """Return densities ``(N, K)`` as fractions of the greatest one of each row, at least 1/50."""
    return (density / density.amax(1, keepdim=True).clamp_min(1e-30)).clamp_min(_LEAST_DENSITY)


def _find_components(pixels: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Return the mean of the pixels, ``(D,)``, and their first principal components, ``(D, P)``."""
    from sklearn.decomposition import PCA  # imports much of scikit-learn

    pca = PCA(min(_COMPONENTS, *pixels.shape), random_state=0).fit(pixels)
    return torch.from_numpy(pca.mean_).float(), torch.from_numpy(pca.components_.T.copy()).float()


def _join_neighbours(nodes: NDArray[np.float32], number: int) -> Any:
    """Return the normalised weights S of the graph of nearest neighbours, a sparse matrix ``(N, N)``."""
    from scipy.sparse import diags
    from sklearn.neighbors import kneighbors_graph

    graph = kneighbors_graph(nodes, number, mode="distance")
    farthest = np.maximum(graph.data.reshape(-1, number).max(1), 1e-12)
    graph.data = np.exp(-((graph.data / farthest.repeat(number)) ** 2))
    graph = graph.maximum(graph.T)
    scale = diags(np.asarray(graph.sum(1)).ravel() ** -0.5)
    return (scale @ graph @ scale).tocsr()


def _spread(weights: Any, y: NDArray[np.int64], num_classes: int) -> NDArray[np.float64]:
    """Return F, ``(N, K)``; the column of a class without labels is zero."""
    labels = np.zeros((len(y), num_classes))
    known = np.flatnonzero(y >= 0)
    labels[known, y[known]] = 1.0
    labels /= np.maximum(labels.sum(0), 1.0)
    densities = labels
    for _ in range(_ITERATIONS):
        densities = _SPREAD * (weights @ densities) + (1.0 - _SPREAD) * labels
    return densities / np.maximum(densities.sum(0), 1e-30)


def _cross_validate(weights: Any, y: NDArray[np.int64], num_classes: int) -> tuple[float, float]:
    """Return the power under which hidden labels are likeliest, and the share of them that F predicts.

    They are spread from the labels of the other folds. Both are zero where no class has two labels.
    """
    known = np.flatnonzero(y >= 0)
    known = known[np.argsort(y[known], kind="stable")]  # so that each fold hides labels of every class
    densities, labels = [], []
    for fold in range(_FOLDS):
        visible = y.copy()
        visible[known[fold::_FOLDS]] = -1
        hidden = [row for row in known[fold::_FOLDS] if y[row] in visible]
        densities.append(_spread(weights, visible, num_classes)[hidden])
        labels.append(y[hidden])
    log_densities = _relative(torch.from_numpy(np.concatenate(densities))).log()
    answers = torch.from_numpy(np.concatenate(labels))
    if not len(answers):
        return 0.0, 0.0
    losses = [float(F.cross_entropy(power * log_densities, answers)) for power in _POWERS]
    return float(_POWERS[np.argmin(losses)]), float((log_densities.argmax(1) == answers).double().mean())
