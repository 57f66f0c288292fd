"""The loss of every update of every objective is computed on its device alone, without waiting for it.

On a machine without a GPU: the forward pass on fake tensors on ``cuda``, which have shapes, types and devices but no
values; forward and backward passes on ``meta``, which has no values either.
"""

from __future__ import annotations

import pyro
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pyro_ssvae.objectives import Objective
from tests.devices.cases import OBJECTIVES, get_updates, make_batch, with_m2
from tests.devices.fake import OnDevice, empty_like_on, needs_cuda_build, no_gpu

NEEDS_A_DRIVER: dict[str, str] = {
    "m2-dirichlet": "Found no NVIDIA driver",  # the sampler has no implementation for tensors without values
    "ddgm-gradient-penalty": "hasPrimaryContext",  # the loss contains a gradient, which needs a stream of the driver
    "ddgm-images-all": "hasPrimaryContext",
    "ddgm-langevin": "hasPrimaryContext",
}
"""Objectives whose forward pass fails on fake tensors on ``cuda``, with the error; all but the sampler runs on meta."""
NOT_ON_META: dict[str, str] = {"m2-dirichlet": "_sample_dirichlet"}
"""Objectives that fail on ``meta``, with the operation that is not implemented there."""


def compute_losses(objective: Objective, device: str, *, backward: bool) -> None:
    batch = make_batch(objective, device)
    groups = objective.groups()
    for update in get_updates(objective):
        with OnDevice(device):
            loss = update.loss(batch)
            tensors = [loss.total, *loss.terms.values()]
            if backward:
                parameters = [part for part in groups[update.group].parameters if part.requires_grad]
                gradients = torch.autograd.grad(loss.total, parameters, allow_unused=True)
                tensors += [gradient for gradient in gradients if gradient is not None]
                assert len(tensors) > 1 + len(loss.terms)
        assert loss.total.shape == ()
        assert not any(value.requires_grad for value in loss.terms.values())
        assert {tensor.device.type for tensor in tensors} == {device}


def compute_on_fake_cuda(name: str) -> None:
    objective = OBJECTIVES[name]()
    with FakeTensorMode(allow_non_fake_inputs=False), pyro.validation_enabled(False):
        compute_losses(empty_like_on(objective, "cuda").train(), "cuda", backward=False)


def compute_on_meta(name: str) -> None:
    objective = empty_like_on(OBJECTIVES[name](), "meta").train()
    with pyro.validation_enabled(False):
        compute_losses(objective, "meta", backward=True)


@pytest.fixture
def sampled_without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the sampler of the Dirichlet distribution return numbers of the right shape, type and device."""
    monkeypatch.setattr(torch, "_sample_dirichlet", torch.rand_like)
    monkeypatch.setattr(torch, "_dirichlet_grad", lambda x, concentration, total: x * concentration / total)


@needs_cuda_build
@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in NEEDS_A_DRIVER])
def test_forward_on_cuda(name: str) -> None:
    compute_on_fake_cuda(name)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in NOT_ON_META])
def test_forward_and_backward_on_meta(name: str) -> None:
    compute_on_meta(name)


@needs_cuda_build
@pytest.mark.usefixtures("sampled_without_values")
@pytest.mark.parametrize("name", NOT_ON_META)
def test_objective_apart_from_its_sampler(name: str) -> None:
    compute_on_fake_cuda(name)
    compute_on_meta(name)


@pytest.mark.parametrize("name", NEEDS_A_DRIVER)
@needs_cuda_build
@no_gpu
def test_objective_that_needs_a_driver(name: str) -> None:
    with pytest.raises(RuntimeError, match=NEEDS_A_DRIVER[name]):
        compute_on_fake_cuda(name)


def test_stock_elbo_waits_for_the_device_and_says_so() -> None:
    objective = with_m2(elbo="stock")
    assert not objective.compilable
    with pytest.raises(AssertionError, match="_local_scalar_dense"), pyro.validation_enabled(False):
        compute_losses(empty_like_on(objective, "meta"), "meta", backward=False)


@pytest.mark.parametrize("name", NOT_ON_META)
def test_objective_without_an_implementation_on_meta(name: str) -> None:
    with pytest.raises(NotImplementedError, match=NOT_ON_META[name]):
        compute_on_meta(name)
