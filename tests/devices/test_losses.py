"""The loss of every update of every objective is computed on its device alone, without waiting for it.

On a machine without a GPU: the forward pass on fake tensors on ``cuda``, which have shapes, types and devices but no
values; forward and backward passes on ``meta``, which has no values either.
"""

from __future__ import annotations

import pyro
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pyro_ssvae.objectives import Objective
from tests.devices.cases import OBJECTIVES, get_updates, make_batch
from tests.devices.fake import OnDevice, empty_like_on

NO_DRIVER = "Found no NVIDIA driver"
NOT_ON_FAKE_CUDA: dict[str, str] = {
    "m2-dirichlet": "the sampler of the Dirichlet distribution has no implementation without values",
    "ddgm-gradient-penalty": "its forward pass contains a backward pass, which asks the driver for streams",
    "ddgm-images-all": "its forward pass contains a backward pass, which asks the driver for streams",
    "ddgm-langevin": "its forward pass contains a backward pass, which asks the driver for streams",
}
"""Objectives whose forward pass fails on fake tensors on ``cuda``, all for want of a driver, and why."""
NOT_ON_META: dict[str, str] = {"m2-dirichlet": "the sampler of the Dirichlet distribution has no implementation on meta"}
"""Objectives that fail on ``meta``, and why."""


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
    monkeypatch.setattr(torch, "_sample_dirichlet", lambda concentration: torch.rand_like(concentration))
    monkeypatch.setattr(torch, "_dirichlet_grad", lambda x, concentration, total: x * concentration / total)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in NOT_ON_FAKE_CUDA])
def test_forward_on_cuda(name: str) -> None:
    compute_on_fake_cuda(name)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in NOT_ON_META])
def test_forward_and_backward_on_meta(name: str) -> None:
    compute_on_meta(name)


@pytest.mark.usefixtures("sampled_without_values")
def test_dirichlet_class_prior_apart_from_its_sampler() -> None:
    compute_on_fake_cuda("m2-dirichlet")
    compute_on_meta("m2-dirichlet")


@pytest.mark.parametrize("name", NOT_ON_FAKE_CUDA)
def test_objective_that_needs_a_driver(name: str) -> None:
    with pytest.raises(RuntimeError, match=NO_DRIVER):
        compute_on_fake_cuda(name)


@pytest.mark.parametrize("name", NOT_ON_META)
def test_objective_without_an_implementation_on_meta(name: str) -> None:
    with pytest.raises(NotImplementedError, match="_sample_dirichlet"):
        compute_on_meta(name)
