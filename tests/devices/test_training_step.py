"""A whole training step never makes the host wait for the device, which is what a CUDA graph may hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pyro_ssvae import TrainingConfig
from pyro_ssvae.data import BatchStream
from pyro_ssvae.training.config import make_fabric
from pyro_ssvae.training.step import TrainingStep
from tests.devices.cases import OBJECTIVES, make_data
from tests.devices.fake import OnDevice, needs_cuda_build

STEPS = 10


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_does_not_wait_for_the_device(name: str) -> None:
    """Gathering and binarising examples, losses, gradients, clipping, Adam, moving average and sums; run on the CPU."""
    objective = OBJECTIVES[name]()
    data = make_data(objective)
    config = TrainingConfig(device="cpu", compile="eager", ema_decay=0.9, gradient_clip=1.0, kl_peak=3.0)
    stream = BatchStream(data, batch_size=16, labelled_batch_size=5, binarisation="dynamic")
    step = TrainingStep(objective, stream, config, make_fabric(config), STEPS)
    step.check()  # validates shapes and supports, by values
    step(0)
    with OnDevice("cpu"):
        step(1)
        step(STEPS - 1)  # the last phase of a schedule may have a loss of its own
    assert step.take_means()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_validation_leaves_the_random_state_as_it_was(name: str) -> None:
    """A run that is interrupted is evaluated once more than others, and must go on with the same draws."""
    objective = OBJECTIVES[name]()
    before = torch.get_rng_state()
    assert objective.validate(make_data(objective)).metrics
    assert torch.equal(torch.get_rng_state(), before)


REFUSED = {
    "reading a number": lambda x: float(x.sum()),
    "asking whether": lambda x: bool(x.sum() > 0),
    "a mask as index": lambda x: x[x > 0],
    "setting by a mask": lambda x: x.index_put_((x > 0,), torch.zeros((), device=x.device)),
    "an index on the device": lambda x: x[x.argmax()],
    "finding elements": lambda x: x.nonzero(),
    "comparing tensors": lambda x: torch.equal(x, x),
    "distinct values": lambda x: x.unique(),
    "a number as a tensor": lambda x: x * torch.tensor(3.0),
    "a number as a tensor there": lambda x: x * torch.tensor(3.0, device=x.device),
    "a list as index": lambda x: x[[0, 1]],
    "a tensor of the host": lambda x: x + torch.ones(3).to(x.device),
    "a copy to the host": lambda x: x.cpu(),
}


@needs_cuda_build
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what: str) -> None:
    with FakeTensorMode(allow_non_fake_inputs=False):
        x: Tensor = torch.ones(3, device="cuda")
        with pytest.raises(AssertionError), OnDevice("cuda"):  # noqa: PT012
            REFUSED[what](x)


@needs_cuda_build
def test_what_is_allowed() -> None:
    with FakeTensorMode(allow_non_fake_inputs=False):
        x: Tensor = torch.ones(3, device="cuda")
        with OnDevice("cuda"):
            y = torch.where(x > 0.5, 2.0 * x, 0.0) ** 2 + torch.full((), 3.0, device=x.device)
            assert (y[x.argsort()] - y[None, :]).device.type == "cuda"
