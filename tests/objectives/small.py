"""Small models and examples in double precision, steps of training, and comparisons of losses with their gradients."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ssvae import M1, M1M2, M2
from pyro_ssvae.data import Batch
from pyro_ssvae.objectives import Objective

K, L, D = 4, 3, 6


def make_examples(n: int = 5, seed: int = 2) -> Tensor:
    return torch.rand(n, D, generator=torch.Generator().manual_seed(seed)).round().double()


def make_m1() -> M1:
    torch.manual_seed(1)
    return M1((D,), latent_dim=L, hidden_dims=(8,)).double()


def make_m2(kind: type[M2] = M2, num_classes: int = K, **options: object) -> M2:
    torch.manual_seed(1)
    return kind((D,), num_classes, **{"latent_dim": L, "hidden_dims": (8,), "classifier": "mlp"} | options).double()


def make_stack(**options: object) -> M1M2:
    torch.manual_seed(1)
    m1 = M1((D,), latent_dim=L, hidden_dims=(8,))
    return M1M2.from_m1(m1, K, latent_dim=2, hidden_dims=(8,), **options).double().unfreeze_m1()


def draw_normals(*shape: int) -> Tensor:
    """The standard normal draws that a reparameterised sample of this shape consumes."""
    return torch.normal(torch.zeros(shape).double(), torch.ones(shape).double())


def gradients(loss: Tensor, module: nn.Module) -> dict[str, Tensor]:
    """Gradients by the name of the parameter, zero where the loss does not depend on it."""
    trained = ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)
    names, parameters = zip(*trained, strict=True)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def assert_same_loss_and_gradients(ours: Tensor, theirs: Tensor, module: nn.Module) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    expected = gradients(theirs, module)
    for name, gradient in gradients(ours, module).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


class PointM2(M2):
    """q(z|x,y) a point, so that bounds carry no noise of z and can be compared exactly."""

    def encode(self, x: Tensor, y: Tensor) -> dist.TorchDistribution:
        return dist.Delta(super().encode(x, y).mean, event_dim=1)


class LogNormalM1(M1):
    """q(z|x) whose KL from p(z) has no closed form."""

    def encode(self, x: Tensor) -> dist.TorchDistribution:
        distribution = super().encode(x).base_dist
        return dist.LogNormal(distribution.loc, distribution.scale).to_event(1)


def take_steps(objective: Objective, batch: Batch, number: int, learning_rate: float = 1e-2) -> list[float]:
    """The losses of a batch in steps of Adam."""
    optimizer = torch.optim.Adam(objective.parameters(), lr=learning_rate)
    losses = []
    for _ in range(number):
        loss = objective(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
