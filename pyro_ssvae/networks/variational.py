"""Encoders, decoders and classifiers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_ssvae._configurable import Configurable
from pyro_ssvae._math import softplus

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "ConditionalMLP",
    "ConvClassifier",
    "FactoredLinear",
    "check_widths",
    "get_activation",
    "make_classifier",
]


class Softplus(nn.Softplus):
    """The softplus activation, faster where no gradient is taken."""

    def forward(self, input: Tensor) -> Tensor:
        """Return log(1 + e^x) of every element."""
        return softplus(input)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": Softplus,
    "tanh": nn.Tanh,
}
"""Activations by name."""


def get_activation(name: str) -> nn.Module:
    """Return an activation by its name in ``ACTIVATIONS``."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r} is unknown; choose one of {', '.join(sorted(ACTIVATIONS))}.")
    return ACTIVATIONS[name]()


def check_widths(hidden_dims: Sequence[int], least: int = 0) -> tuple[int, ...]:
    """Return widths of hidden layers as a tuple, or raise ``ValueError``."""
    widths = tuple(int(width) for width in hidden_dims)
    if len(widths) < least or any(width < 1 for width in widths):
        raise ValueError(
            f"hidden_dims={tuple(hidden_dims)!r} must hold at least {least} positive widths, for example (500,)."
        )
    return widths


def _check_dropout(dropout: float) -> None:
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout={dropout} must lie in [0, 1).")


class _LastDimBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over every dimension but the last, so that a dimension of classes may come first."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(0, -2)).view(input.shape)


def _make_activation_layers(width: int, activation: str, batch_norm: bool, dropout: float) -> list[nn.Module]:
    """Return the layers after a hidden affine map: normalisation, activation, dropout."""
    _check_dropout(dropout)
    layers: list[nn.Module] = [_LastDimBatchNorm(width)] if batch_norm else []
    layers.append(get_activation(activation))
    if dropout:
        layers.append(nn.Dropout(dropout))
    return layers


class MLP(Configurable):
    """A multilayer perceptron over flattened examples.

    Args:
        event_shape: Shape of one example, such as ``(1, 28, 28)`` or ``(30,)``.
        out_features: Number of outputs.
        hidden_dims: Widths of the hidden layers; empty for an affine map.
        activation: A name in ``ACTIVATIONS``.
        batch_norm: Whether to normalise before each activation.
        dropout: Probability of dropping a hidden unit.

    Raises:
        ValueError: For widths below one, an unknown activation or a dropout outside [0, 1).

    Example:
        >>> MLP((1, 8, 8), 10, (32,))(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        out_features: int,
        hidden_dims: Sequence[int] = (500,),
        *,
        activation: str = "relu",
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.event_dim = len(event_shape)
        width = math.prod(event_shape)
        layers: list[nn.Module] = []
        for hidden in check_widths(hidden_dims):
            layers += [nn.Linear(width, hidden), *_make_activation_layers(hidden, activation, batch_norm, dropout)]
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` with shape ``(..., *event_shape)`` to ``(..., out_features)``."""
        output: Tensor = self.layers(x.flatten(-self.event_dim))
        return output


class FactoredLinear(nn.Module):
    r"""An affine map of a vector and a class, :math:`W_x x + W_y e_y + b`, that computes :math:`W_x x` once.

    Concatenating a one-hot class to ``x`` costs one full product per enumerated class. Written as a sum, the
    product with ``x`` (shape ``(B, in)``) is computed once and the class enters as an embedding, which
    broadcasts: ``y`` of shape ``(K, 1)`` gives ``(K, B, out)``.

    Args:
        in_features: Size of ``x``.
        num_classes: Number of classes ``K``.
        out_features: Size of the result.
    """

    def __init__(self, in_features: int, num_classes: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.class_weight = nn.Parameter(torch.empty(num_classes, out_features))
        # The initial distribution that nn.Linear would use for the concatenation of x and a one-hot y.
        bound = 1.0 / math.sqrt(in_features + num_classes)
        nn.init.uniform_(self.class_weight, -bound, bound)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map ``x`` ``(*batch, in)`` and integer ``y`` ``(*batch')`` to ``(*broadcast, out)``."""
        output: Tensor = self.linear(x) + F.embedding(y, self.class_weight)
        return output


class ConditionalMLP(nn.Module):
    """A multilayer perceptron of an example (or latent) and a class, whose first layer is a :class:`FactoredLinear`.

    It serves for q(z|x,y), with data as input, and for p(x|y,z), with latents as input.

    Args:
        event_shape: Shape of one input.
        num_classes: Number of classes ``K``.
        out_features: Number of outputs.
        hidden_dims: Widths of the hidden layers, at least one.
        activation: A name in ``ACTIVATIONS``.
        batch_norm: Whether to normalise before each activation, over examples and enumerated classes.
        dropout: Probability of dropping a hidden unit.

    Raises:
        ValueError: For no or non-positive widths, an unknown activation or a dropout outside [0, 1).

    Example:
        >>> net = ConditionalMLP((1, 8, 8), 10, 2 * 5)
        >>> net(torch.zeros(7, 1, 8, 8), torch.arange(10)[:, None]).shape  # ten classes, seven examples
        torch.Size([10, 7, 10])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        num_classes: int,
        out_features: int,
        hidden_dims: Sequence[int] = (500,),
        *,
        activation: str = "relu",
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.event_dim = len(event_shape)
        first, *rest = check_widths(hidden_dims, least=1)
        self.first = FactoredLinear(math.prod(event_shape), num_classes, first)
        self.rest = nn.Sequential(
            *_make_activation_layers(first, activation, batch_norm, dropout),
            MLP((first,), out_features, rest, activation=activation, batch_norm=batch_norm, dropout=dropout),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map inputs and classes to outputs.

        Args:
            x: Inputs with shape ``(*batch, *event_shape)``.
            y: Integer classes whose shape broadcasts against ``batch``: ``(B,)``, or ``(K, 1)`` under enumeration.

        Returns:
            Outputs with shape ``(*broadcast, out_features)``.
        """
        output: Tensor = self.rest(self.first(x.flatten(-self.event_dim), y))
        return output


def _make_conv_activation(channels: int, norm: str) -> list[nn.Module]:
    """Return the layers after a convolution: normalisation, activation."""
    if norm == "batch":
        return [nn.BatchNorm2d(channels), nn.ReLU()]
    if norm == "group":
        return [nn.GroupNorm(max(1, channels // 8), channels), nn.ReLU()]
    if norm == "none":
        return [nn.ReLU()]
    raise ValueError(f"norm={norm!r} must be one of batch, group, none.")


class ConvClassifier(Configurable):
    """A small convolutional classifier for images, from 8x8 upwards.

    Three convolutions, each normalised, and a linear map to logits.

    Args:
        event_shape: Shape of one image, ``(C, H, W)``.
        num_classes: Number of classes ``K``.
        channels: Output channels of the three convolutions.
        dropout: Probability of dropping a feature before the linear map.
        norm: ``"group"`` (statistics of single images), ``"batch"`` or ``"none"``. Batch statistics differ between
            clean and augmented images, which pass through the network in separate calls.

    Raises:
        ValueError: If the event is not an image of at least 6x6 pixels, or for an unknown ``norm``.

    Example:
        >>> ConvClassifier((1, 28, 28), 10)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        num_classes: int,
        *,
        channels: Sequence[int] = (16, 32, 64),
        dropout: float = 0.3,
        norm: str = "group",
    ) -> None:
        super().__init__()
        if len(event_shape) != 3 or min(event_shape[1:]) < 6:
            raise ValueError(
                f"A convolutional classifier needs images (C, H, W) of at least 6x6 pixels; got event_shape="
                f"{tuple(event_shape)!r}. Use classifier='mlp'."
            )
        _check_dropout(dropout)
        first, second, third = channels
        # The first layer halves large images only; about 7x7 or 4x4 remain.
        large = min(event_shape[1:]) >= 16
        features = nn.Sequential(
            nn.Conv2d(event_shape[0], first, 5 if large else 3, stride=2 if large else 1, padding=2 if large else 1),
            *_make_conv_activation(first, norm),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            *_make_conv_activation(second, norm),
            nn.Conv2d(second, third, 3, padding=1),
            *_make_conv_activation(third, norm),
            nn.Flatten(),
        )
        with torch.no_grad():
            width = features.eval()(torch.zeros(1, *event_shape)).shape[-1]
        features.train()
        self.layers = nn.Sequential(features, nn.Dropout(dropout), nn.Linear(width, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` to logits ``(B, K)``."""
        output: Tensor = self.layers(x)
        return output


def make_classifier(
    classifier: str | nn.Module,
    event_shape: Sequence[int],
    num_classes: int,
    *,
    hidden_dims: Sequence[int] = (500,),
    activation: str = "relu",
    batch_norm: bool = False,
    dropout: float | None = None,
) -> nn.Module:
    """Return a classifier q(y|x) by name, or the given module unchanged.

    Args:
        classifier: ``"auto"`` (convolutional for images, else an MLP), ``"conv"``, ``"mlp"`` or a module.
        event_shape: Shape of one example.
        num_classes: Number of classes ``K``.
        hidden_dims: Hidden widths of an MLP.
        activation: Activation of an MLP.
        batch_norm: Whether an MLP normalises before each activation.
        dropout: Probability of dropping a feature; ``None`` is 0.3 for a convolutional network, else 0.

    Raises:
        ValueError: For an unknown name, or ``"conv"`` for examples that are not images.
        TypeError: For anything that is neither a name nor a module.
    """
    if isinstance(classifier, nn.Module):
        return classifier
    if not isinstance(classifier, str):
        raise TypeError(f"classifier must be 'auto', 'conv', 'mlp' or a module, not {type(classifier).__name__}.")
    if classifier == "auto":
        classifier = "conv" if len(event_shape) == 3 and min(event_shape[1:]) >= 6 else "mlp"
    if dropout is None:
        dropout = 0.3 if classifier == "conv" else 0.0
    if classifier == "conv":
        return ConvClassifier(event_shape, num_classes, dropout=dropout)
    if classifier == "mlp":
        return MLP(event_shape, num_classes, hidden_dims, activation=activation, batch_norm=batch_norm, dropout=dropout)
    raise ValueError(f"classifier={classifier!r} is unknown; choose auto, conv or mlp, or pass a module.")
