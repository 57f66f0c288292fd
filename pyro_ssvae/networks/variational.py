"""Encoders, decoders and classifiers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_ssvae._arguments import check_choice, checked
from pyro_ssvae._configurable import Configurable
from pyro_ssvae.distributions.torch_distributions import softplus


class Softplus(nn.Softplus):
    """The softplus activation, faster where no gradient is taken."""

    def forward(self, input: Tensor) -> Tensor:
        """Return log(1 + e^x) of every element."""
        return softplus(input)


class Dropout(nn.Dropout):
    """Dropout that takes 16 random bits for an element on the CPU, where a random number for each takes longer."""

    def forward(self, input: Tensor) -> Tensor:
        """Set elements to zero with probability ``p``, to 1/65,536, and divide the others by ``1 - p``."""
        if not self.training or self.p == 0.0 or input.device.type != "cpu" or input.dim() == 0:
            return super().forward(input)
        *front, width = input.shape
        # The 64 bits of Tensor.random_(-(2**63), None), which torch.fx cannot trace.
        drawn = torch.randint(-(2**63), 2**63 - 1, (*front, -(-width // 4))).bitwise_xor_(-(2**63))
        bits = drawn.view(torch.int16)
        kept = bits[..., :width] >= min(round(self.p * 2**16), 2**16 - 1) - 2**15
        return input * kept.to(input.dtype).mul_(1.0 / (1.0 - self.p))


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


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode, and restore the mode of each of its submodules afterwards."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def check_module(module: nn.Module, given: Sequence[int], wanted: Sequence[int | None], role: str) -> torch.Size:
    """Return the event shape of what a module makes of inputs of a shape; in ``wanted``, ``None`` is any size."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{role} must be a module, not {type(module).__name__}.")
    like = next(module.parameters(), torch.zeros(()))
    try:
        with torch.no_grad(), evaluation_mode(module):
            shape = module(torch.zeros(2, *given).to(like)).shape
    except RuntimeError as error:
        raise ValueError(f"{role} does not accept inputs of event shape {tuple(given)}: {error}") from error
    fits = len(shape) == len(wanted) + 1 and shape[0] == 2
    if not fits or any(want not in (None, got) for want, got in zip(wanted, shape[1:], strict=True)):
        sizes, found = ", ".join("F" if size is None else str(size) for size in wanted), tuple(shape)
        raise ValueError(f"{role} must map (B, {', '.join(map(str, given))}) to (B, {sizes}); for B=2 it gave {found}.")
    return shape[1:]


def resolve_network(
    network: str | nn.Module,
    event_shape: Sequence[int],
    role: str,
    least_side: int,
    known: Sequence[str] = ("conv", "mlp"),
) -> str | nn.Module:
    """Return a known name, or the module; ``"auto"`` is ``"conv"`` for large enough images, else ``"mlp"``."""
    if isinstance(network, nn.Module):
        return network
    if not isinstance(network, str):
        names = ", ".join(map(repr, ("auto", *known)))
        raise TypeError(f"{role} must be {names} or a module, not {type(network).__name__}.")
    if network == "auto":
        return "conv" if len(event_shape) == 3 and min(event_shape[1:]) >= least_side else "mlp"
    if network not in known:
        raise ValueError(f"{role}={network!r} is unknown; choose auto, {' or '.join(known)}, or pass a module.")
    return network


class _LastDimBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over every dimension but the last, so that a dimension of classes may come first."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(0, -2)).view(input.shape)


def _make_activation_layers(width: int, activation: str, batch_norm: bool, dropout: float) -> list[nn.Module]:
    check_choice("activation", activation, sorted(ACTIVATIONS))
    layers: list[nn.Module] = [_LastDimBatchNorm(width)] if batch_norm else []
    layers.append(ACTIVATIONS[activation]())
    return [*layers, Dropout(dropout)] if dropout else layers


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
        widths = (math.prod(event_shape), *hidden_dims)
        layers: list[nn.Module] = []
        for width, hidden in pairwise(widths):
            layers += [nn.Linear(width, hidden), *_make_activation_layers(hidden, activation, batch_norm, dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` with shape ``(..., *event_shape)`` to ``(..., out_features)``."""
        return self.layers(x.flatten(-self.event_dim))


class FactoredLinear(nn.Module):
    r"""An affine map of a vector and a class, :math:`W_x x + W_y e_y + b`, that computes :math:`W_x x` once.

    Concatenating a one-hot class to ``x`` costs one full product per enumerated class. Here the class enters as an
    embedding, which broadcasts: ``x`` ``(B, in)`` and ``y`` ``(K, 1)`` give ``(K, B, out)``.
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
        return self.linear(x) + F.embedding(y, self.class_weight)


@checked
class ConditionalMLP(nn.Module):
    """A multilayer perceptron of an example (or latent) and a class, whose first layer is a :class:`FactoredLinear`.

    It serves for q(z|x,y), with data as input, and for p(x|y,z), with latents as input. The arguments not named here,
    and the errors, are those of :class:`MLP`.

    Args:
        num_classes: Number of classes ``K``.
        hidden_dims: Widths of the hidden layers, at least one.
        batch_norm: Whether to normalise before each activation, over examples and enumerated classes.

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
        if not hidden_dims:
            raise ValueError("hidden_dims=() must hold at least one width, for example (500,).")
        first, *rest = hidden_dims
        self.first = FactoredLinear(math.prod(event_shape), num_classes, first)
        self.rest = nn.Sequential(
            *_make_activation_layers(first, activation, batch_norm, dropout),
            MLP((first,), out_features, rest, activation=activation, batch_norm=batch_norm, dropout=dropout),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map ``(*batch, *event_shape)`` and classes, ``(B,)`` or ``(K, 1)``, to ``(*broadcast, out_features)``."""
        return self.rest(self.first(x.flatten(-self.event_dim), y))


class ConvClassifier(Configurable):
    """A classifier of images of at least 6x6 pixels: three convolutions to 16, 32 and 64 channels, and a linear map.

    Group normalisation, as statistics of a batch would differ between clean and augmented images, which pass in
    separate calls. ``dropout`` drops features before the linear map. Other examples raise ``ValueError``.
    """

    def __init__(self, event_shape: Sequence[int], num_classes: int, *, dropout: float = 0.3) -> None:
        super().__init__()
        if len(event_shape) != 3 or min(event_shape[1:]) < 6:
            raise ValueError(
                f"A convolutional classifier needs images (C, H, W) of at least 6x6 pixels; got event_shape="
                f"{tuple(event_shape)!r}. Use classifier='mlp'."
            )
        # The first layer halves large images only; about 7x7 or 4x4 remain.
        first = (5, 2, 2) if min(event_shape[1:]) >= 16 else (3, 1, 1)  # size of the kernel, stride, padding
        layers: list[nn.Module] = []
        for given, channels, shape in ((event_shape[0], 16, first), (16, 32, (3, 2, 1)), (32, 64, (3, 1, 1))):
            layers += [nn.Conv2d(given, channels, *shape), nn.GroupNorm(channels // 8, channels), nn.ReLU()]
        features = nn.Sequential(*layers, nn.Flatten())
        width = int(check_module(features, event_shape, (None,), "classifier")[-1])
        self.layers = nn.Sequential(features, Dropout(dropout), nn.Linear(width, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` to logits ``(B, K)``."""
        return self.layers(x)


class AuxiliaryNetworks(nn.Module):
    """The networks of q(a|x), ``encoder``, and of p(a|x,y,z), or p(a|y,z) without x, when called.

    The generative side has the hidden widths in reverse, and depends on the D values of x if ``of_x`` is set.
    """

    def __init__(
        self,
        num_inputs: int,
        latent_dim: int,
        auxiliary_dim: int,
        num_classes: int,
        *,
        of_x: bool,
        hidden_dims: Sequence[int],
        **options: Any,
    ) -> None:
        super().__init__()
        backwards = tuple(hidden_dims)[::-1]
        self.encoder = MLP((num_inputs,), 2 * auxiliary_dim, hidden_dims, **options)
        self.decoder = ConditionalMLP((latent_dim,), num_classes, 2 * auxiliary_dim, backwards, **options)
        # Adds W x to the first layer, so that the product is computed once for all classes and draws of z.
        self.of_x = nn.Linear(num_inputs, backwards[0], bias=False) if of_x else None

    def forward(self, z: Tensor, y: Tensor, x: Tensor | None = None) -> Tensor:
        """Map z ``(..., B, L)``, y ``(B,)`` or ``(K, 1)`` and x ``(B, D)`` to parameters ``(..., B, 2 * A)``."""
        first = self.decoder.first(z, y)
        return self.decoder.rest(first if self.of_x is None else first + self.of_x(x))


def join(x: Tensor, a: Tensor) -> Tensor:
    """Return x ``(B, *event_shape)`` and a ``(..., B, A)`` in one row, ``(..., B, D + A)``."""
    return torch.cat([x.flatten(1).expand(*a.shape[:-1], -1), a], -1)
