"""Every loss runs on a device other than the CPU: forward on a fake CUDA device, backward on the meta device.

No GPU is needed. Fake tensors carry a device and no values, so a tensor that is created on the CPU and meets one on
CUDA raises an error, as it would on a GPU. Values cannot be read back, as they cannot while a CUDA graph is captured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from pyro_ssvae import (
    DDGM,
    M1,
    M1M2,
    M2,
    EnergyObjective,
    SemiSupervisedELBO,
    UnsupervisedELBO,
)
from pyro_ssvae.data import Batch
from pyro_ssvae.distributions import LIKELIHOODS, PRIORS
from pyro_ssvae.objectives import ENTROPIES, AffineAugmentation, Consistency, Objective

IMAGE, K, B = (1, 8, 8), 3, 6
LATENT_PRIORS = [name for name in PRIORS if name != "uniform"]  # which has no density where a Gaussian guide reaches

NEEDS_DRIVER = {
    "m2 dirichlet": "the sampler torch._sample_dirichlet has no kernel for fake and meta tensors",
    "ddgm points": "Langevin steps and the gradient penalty differentiate within the forward pass",
    "ddgm images": "the gradient penalty differentiates within the forward pass",
}
"""What fake CUDA tensors cannot run, and why; on the meta device only the first cannot."""


def make_m2(event_shape: tuple[int, ...] = IMAGE, **options: Any) -> M2:
    torch.manual_seed(0)
    return M2(event_shape, K, **{"latent_dim": 2, "hidden_dims": (8,), "classifier": "mlp"} | options)


def semi_supervised(m2: nn.Module, **options: Any) -> SemiSupervisedELBO:
    return SemiSupervisedELBO(m2, num_labelled=20, num_unlabelled=80, **options)


def make_stack(joint: bool) -> M1M2:
    m1m2 = M1M2.from_m1(M1(IMAGE, latent_dim=4, hidden_dims=(8,)), K, latent_dim=2, hidden_dims=(8,))
    if joint:
        m1m2.unfreeze_m1()
    return m1m2


def energy(event_shape: tuple[int, ...], classes: bool = False, **options: Any) -> EnergyObjective:
    torch.manual_seed(0)
    ddgm = DDGM(event_shape, num_classes=K if classes else None)
    return EnergyObjective(ddgm, num_unlabelled=80, num_labelled=20 if classes else 0, **options)


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "m2": lambda: semi_supervised(make_m2()),
    "m2 conv": lambda: semi_supervised(make_m2(classifier="conv")),
    "m2 top-k": lambda: semi_supervised(make_m2(), enumeration="top-k"),
    "m2 particles": lambda: semi_supervised(make_m2(), num_particles=2),
    "m2 importance": lambda: semi_supervised(make_m2(), num_particles=2, importance_weighted=True),
    "m2 map": lambda: semi_supervised(make_m2(class_prior="map")),
    "m2 dirichlet": lambda: semi_supervised(make_m2(class_prior="dirichlet")),
    "m2 regularisers": lambda: semi_supervised(
        make_m2(), augmentation=AffineAugmentation(), consistency=Consistency(K), bound_batch_size=4
    ),
    "m1m2 stacked": lambda: semi_supervised(make_stack(joint=False)),
    "m1m2 joint": lambda: semi_supervised(make_stack(joint=True)),
    "ddgm points": lambda: energy((2,), gradient_penalty=0.1, langevin_steps=2),
    "ddgm importance": lambda: energy((2,), mle_fraction=0.5),
    "ddgm negatives": lambda: energy(IMAGE, negative_weight=1.0),
    "ddgm images": lambda: energy(IMAGE, gradient_penalty=0.1, penalty_fraction=0.5, negative_weight=1.0),
    "ddgm shifts": lambda: energy(IMAGE, max_shift=0.1, shared_draws=True),
    "ddgm classes": lambda: energy(IMAGE, classes=True),
    **{f"m2 {name}": (lambda name=name: semi_supervised(make_m2(likelihood=name))) for name in LIKELIHOODS},
    **{f"m2 prior {name}": (lambda name=name: semi_supervised(make_m2(prior=name))) for name in LATENT_PRIORS},
    **{
        f"m1 prior {name}": (
            lambda name=name: UnsupervisedELBO(
                M1(IMAGE, latent_dim=2, hidden_dims=(8,), prior=name), num_examples=100, num_particles=2
            )
        )
        for name in LATENT_PRIORS
    },
    **{f"ddgm entropy {name}": (lambda name=name: energy((2,), entropy=name)) for name in ENTROPIES},
}


class _Losses(nn.Module):
    """The losses of all updates at one point of the schedule, as a module with the objective's parameters."""

    def __init__(self, objective: Objective, progress: float) -> None:
        super().__init__()
        self.objective = objective
        self.progress = progress

    def forward(self, batch: Batch) -> list[Tensor]:
        found = []
        with pyro.validation_enabled(False):
            for update in self.objective.updates(self.progress):
                total, terms = update.loss(batch)
                found += [total, *terms.values()]
        return found


def make_batch(objective: Objective, device: str) -> Batch:
    shape = tuple(objective.module.event_shape)
    x = torch.zeros(B, *shape, device=device)
    if not objective.num_labelled:
        return Batch(x, None, None)
    return Batch(x, torch.zeros(4, *shape, device=device), torch.zeros(4, dtype=torch.int64, device=device))


def run_on_fake_cuda(objective: Objective, progress: float) -> list[Tensor]:
    losses = _Losses(objective, progress).train()
    parts = [*losses.named_parameters(), *losses.named_buffers()]
    with FakeTensorMode():
        state = {name: torch.zeros(part.shape, dtype=part.dtype, device="cuda") for name, part in parts}
        for name, parameter in losses.named_parameters():
            state[name].requires_grad_(parameter.requires_grad)
        return functional_call(losses, state, (make_batch(objective, "cuda"),))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_run_on_fake_cuda(name: str) -> None:
    objective = OBJECTIVES[name]()
    if name in NEEDS_DRIVER:
        with pytest.raises(RuntimeError, match="NVIDIA driver|hasPrimaryContext"):
            run_on_fake_cuda(objective, 0.0)
        return
    for progress in (0.0, 0.9):
        found = run_on_fake_cuda(objective, progress)
        assert found
        assert {value.device.type for value in found} == {"cuda"}


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if "dirichlet" not in name])
def test_gradients_run_on_meta(name: str) -> None:
    objective = OBJECTIVES[name]().to("meta").train()
    batch = make_batch(objective, "meta")
    groups = objective.groups()
    for progress in (0.0, 0.9):
        for update in objective.updates(progress):
            with pyro.validation_enabled(False):
                loss = update.loss(batch).total
            parameters = [part for part in groups[update.group].parameters if part.requires_grad]
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            assert any(gradient is not None for gradient in gradients)
            assert all(gradient.device.type == "meta" for gradient in gradients if gradient is not None)


def test_a_tensor_from_the_cpu_is_noticed() -> None:
    """The tests above can fail: a model that creates a tensor on the CPU does."""

    class Careless(M2):
        def decode(self, y: Tensor, z: Tensor) -> Any:
            return super().decode(y, z + torch.zeros(self.latent_dim))

    torch.manual_seed(0)
    objective = semi_supervised(Careless(IMAGE, K, latent_dim=2, hidden_dims=(8,), classifier="mlp"))
    with pytest.raises((RuntimeError, TypeError)) as caught:  # Pyro fails to raise the first error again
        run_on_fake_cuda(objective, 0.0)
    messages = [str(caught.value), str(caught.value.__context__)]
    assert any("cuda:0 and cpu" in message for message in messages), messages


def test_generators_and_predictions_run_on_fake_cuda() -> None:
    class Use(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> list[Tensor]:
            if isinstance(self.model, DDGM):
                return [self.model.sample(3), self.model.energy(x), self.model.features(x)]
            if isinstance(self.model, M1):
                drawn = [self.model.generate(3), self.model.transform(x), self.model.reconstruct(x)]
                return [*drawn, self.model.interpolate(x, x), self.model.traverse(x, 0)]
            return [
                self.model.predict_proba(x),
                self.model.predict(x),
                self.model.encode(x, self.model.predict(x)).mean,
            ]

    for model in (make_m2(), M1(IMAGE, latent_dim=2, hidden_dims=(8,)), make_stack(joint=False), DDGM(IMAGE)):
        use = Use(model)
        parts = [*use.named_parameters(), *use.named_buffers()]
        with FakeTensorMode(), pyro.validation_enabled(False):
            state = {name: torch.zeros(part.shape, dtype=part.dtype, device="cuda") for name, part in parts}
            found = functional_call(use, state, (torch.zeros(B, *IMAGE, device="cuda"),))
        assert {value.device.type for value in found} == {"cuda"}, type(model).__name__
