"""M1+M2: the bound by hand, stacked and joint training, use, saving."""

from __future__ import annotations

import math
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from torch import Tensor

import pyro_ssvae
from pyro_ssvae import M1, M1M2, M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, fit, report
from pyro_ssvae.data import Batch
from pyro_ssvae.models import data_plate
from pyro_ssvae.objectives import StaticEnumELBO

IMAGE, K = (1, 8, 8), 4


def make_m1(**options: object) -> M1:
    torch.manual_seed(0)
    return M1(IMAGE, **{"latent_dim": 5, "hidden_dims": (16,)} | options)


def make_stack(m1: M1 | None = None, **options: object) -> M1M2:
    m1 = make_m1() if m1 is None else m1
    torch.manual_seed(1)
    return M1M2(m1, **{"num_classes": K, "latent_dim": 3, "hidden_dims": (12,)} | options)


ACTIVE = [True, False, True, True, False]


def test_shapes(device: torch.device) -> None:
    stack = make_stack(active=ACTIVE).to(device)
    x, y = torch.rand(6, *IMAGE, device=device), torch.arange(6, device=device) % K
    assert stack.classify(x).shape == (6, K)
    assert stack.predict_proba(x).shape == stack.predict_proba(x, num_samples=8).shape == (6, K)
    assert stack.encode_z1(x).event_shape == (3,)
    every = torch.arange(K, device=device)[:, None]
    assert stack.encode(x, every).batch_shape == (K, 6)
    assert stack.decode(every, stack.encode(x, every).mean).batch_shape == (K, 6)
    images, classes = stack.generate(5, y=2)
    assert images.shape == (5, *IMAGE)
    assert classes.tolist() == [2] * 5
    assert stack.decode(y, stack.encode(x, y).mean).mean.shape == x.shape


def by_hand(stack: M1M2, x: Tensor, below: bool) -> Tensor:
    """The negative bound of unlabelled rows from the draws that the generator gives next, KLs by samples."""
    q_z1 = stack.encode_z1(x)
    z1 = q_z1.rsample()
    log_q = stack.classifier(z1).log_softmax(-1).T  # (K, B)
    y = torch.arange(K).unsqueeze(-1)
    qz = stack.encode_z(z1, y)
    z = qz.rsample()
    inner = stack.decode_z1(y, z).log_prob(z1) + stack.prior().log_prob(z) - qz.log_prob(z) - math.log(K)
    bound = (log_q.exp() * (inner - log_q)).sum(0)
    if below:
        bound = bound + stack.decode_x(z1).log_prob(x) - q_z1.log_prob(z1)
    return -bound.sum()


@pytest.mark.parametrize("joint", [False, True])
def test_bound_by_hand(joint: bool) -> None:
    stack = make_stack(active=ACTIVE).double().train()
    if joint:
        stack.join()
    x = torch.rand(6, *IMAGE).round().double()
    torch.manual_seed(3)
    loss = StaticEnumELBO(analytic_kl=False).differentiable_loss(stack.model, stack.guide, x)
    torch.manual_seed(3)
    expected = by_hand(stack, x, below=joint)
    torch.testing.assert_close(loss, expected)
    parameters = [p for p in stack.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(value, parameters, allow_unused=True) for value in (loss, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("joint", [False, True])
def test_equals_stock_trace_enum_elbo(joint: bool) -> None:
    stack = make_stack().double().train()
    if joint:
        stack.join()
    x = torch.rand(6, *IMAGE).round().double()
    values = []
    for elbo in (TraceEnum_ELBO(max_plate_nesting=1), StaticEnumELBO(analytic_kl=False)):
        torch.manual_seed(3)
        values.append(elbo.differentiable_loss(stack.model, stack.guide, x, size=30))
    torch.testing.assert_close(values[0], values[1], rtol=1e-10, atol=1e-10)


def test_stacked_training_leaves_m1_alone_and_evaluation_tells_the_whole_story() -> None:
    stack = make_stack()
    objective = SemiSupervisedELBO(stack, num_labelled=4, num_unlabelled=20)
    before = {name: tensor.clone() for name, tensor in stack.m1.state_dict().items()}
    x, y = torch.rand(12, *IMAGE).round(), torch.arange(4)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    stack.train()
    first = objective(Batch(x, x[:4], y)).item()
    for _ in range(80):
        loss = objective(Batch(x, x[:4], y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first
    assert all(torch.equal(tensor, before[name]) for name, tensor in stack.m1.state_dict().items())
    objective.eval()
    whole = objective.unlabelled_bound(x)
    objective.train()
    assert whole > objective.unlabelled_bound(x) + 20  # the pixels are in it
    stack.join()
    objective(Batch(x, x[:4], y)).backward()
    assert all(parameter.grad is not None for parameter in stack.m1.decoder.parameters())
    assert all(parameter.grad is not None for parameter in stack.m1.encoder.parameters())


def test_a_stacked_m1_with_batch_norm_is_frozen_too() -> None:
    stack = make_stack(make_m1(batch_norm=True)).train()
    objective = SemiSupervisedELBO(stack, num_labelled=4, num_unlabelled=20).train()
    before = {name: tensor.clone() for name, tensor in stack.m1.state_dict().items()}
    x, y = torch.rand(12, *IMAGE).round(), torch.arange(4)
    objective(Batch(x, x[:4], y))
    assert all(torch.equal(tensor, before[name]) for name, tensor in stack.m1.state_dict().items())
    assert not any(part.training for part in stack.m1.modules())
    assert stack.encoder.training
    stack.join()
    objective(Batch(x, x[:4], y))
    moved = {name for name, tensor in stack.m1.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.endswith("running_mean") for name in moved)
    assert not any(part.training for part in stack.eval().m1.modules())


class _Positive(M1):
    def encode(self, x: Tensor) -> pyro.distributions.TorchDistribution:
        distribution = super().encode(x).base_dist
        return pyro.distributions.LogNormal(distribution.loc, distribution.scale).to_event(1)


def test_a_posterior_that_is_not_normal_is_refused() -> None:
    stack = make_stack(_Positive(IMAGE, latent_dim=5, hidden_dims=(16,)))
    with pytest.raises(TypeError, match=r"_Positive\.encode returns another distribution"):
        stack.encode_z1(torch.rand(2, *IMAGE))


@pytest.mark.parametrize(
    "options", [{"class_prior": "dirichlet"}, {"prior": "vamp"}, {"prior": "flow", "class_prior": "dirichlet"}]
)
def test_priors_of_a_stack_are_trained(options: dict[str, object]) -> None:
    stack = make_stack(**options)
    x = torch.rand(12, *IMAGE).round()
    if options.get("prior") == "vamp":
        stack.prior.start_from(x)
    objective = SemiSupervisedELBO(stack, num_labelled=4, num_unlabelled=20)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = objective(Batch(x, x[:4], torch.arange(4)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])
    learned = [*stack.prior.parameters(), *stack.class_prior.parameters()]
    assert all(parameter.grad is not None for parameter in learned)
    assert sum(float(parameter.grad.abs().max()) > 0 for parameter in learned) > len(learned) / 2  # some units are idle
    objective.eval()
    assert math.isfinite(objective.unlabelled_bound(x))


def test_pruned_latents_are_zero_on_the_way_down() -> None:
    stack = make_stack(active=ACTIVE)
    z1 = torch.randn(2, 3)
    full = torch.zeros(2, 5)
    full[:, torch.tensor(ACTIVE)] = z1
    torch.testing.assert_close(stack.decode_x(z1).mean, stack.m1.decode(full).mean)
    x = torch.rand(2, *IMAGE)
    torch.testing.assert_close(stack.encode_z1(x).mean, stack.m1.encode(x).mean[:, torch.tensor(ACTIVE)])


def test_z1_is_drawn_in_training_and_its_mean_taken_after() -> None:
    stack = make_stack()
    x = torch.rand(3, *IMAGE)
    assert not torch.equal(stack.classify(x), stack.classify(x))
    stack.eval()
    assert torch.equal(stack.classify(x), stack.classify(x))
    averaged = stack.predict_proba(x, num_samples=20_000)
    z1 = stack.encode_z1(x).sample((20_000,))
    torch.testing.assert_close(averaged, stack.classifier(z1).softmax(-1).mean(0), atol=5e-3, rtol=0.0)


@pytest.mark.parametrize(
    "options", [{}, {"active": ACTIVE, "class_prior": "map", "prior": "mixture"}, {"classify_from": "x"}]
)
def test_save_and_load(options: dict[str, object], tmp_path: Path, device: torch.device) -> None:
    stack = make_stack(make_m1(likelihood="gaussian", batch_norm=True), **options).to(device).eval()
    x = torch.rand(4, *IMAGE)
    twin = pyro_ssvae.load(pyro_ssvae.save(stack, tmp_path))
    assert type(twin) is M1M2
    torch.testing.assert_close(twin.predict_proba(x), stack.predict_proba(x).cpu())
    torch.testing.assert_close(twin.m1.reconstruct(x), stack.m1.reconstruct(x).cpu())
    assert twin.config() == stack.config()


def test_a_stack_on_modules_of_ones_own_asks_for_its_m1(tmp_path: Path) -> None:
    stack = make_stack(make_m1(decoder=torch.nn.Linear(5, 64))).eval()
    pyro_ssvae.save(stack, tmp_path)
    with pytest.raises(ValueError, match="m1=<your M1 with its decoder>"):
        pyro_ssvae.load(tmp_path)
    twin = pyro_ssvae.load(tmp_path, m1=make_m1(decoder=torch.nn.Linear(5, 64)))
    x = torch.rand(4, *IMAGE)
    torch.testing.assert_close(twin.m1.reconstruct(x), stack.m1.reconstruct(x))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: make_stack(M2(IMAGE, K)), TypeError, "must be an M1"),
        (lambda: make_stack(active=[True]), ValueError, "mask of 5 latents"),
        (lambda: make_stack(active=[False] * 5), ValueError, "with 0 kept"),
        (lambda: make_stack(classify_from="z"), ValueError, "z1, x"),
        (lambda: make_stack(num_classes=1), ValueError, "at least 2"),
        (lambda: make_stack().predict(torch.rand(2, 64)), ValueError, r"\(1, 8, 8\)"),
        (lambda: make_stack().predict_proba(torch.rand(2, *IMAGE), num_samples=0), ValueError, "num_samples=0"),
    ],
)
def test_errors(call: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_stock_svi_trains_the_pair() -> None:
    pyro.clear_param_store()
    stack = make_stack()
    x = torch.rand(40, *IMAGE).round()
    svi = SVI(*pyro_ssvae.pyro_view(stack), pyro.optim.Adam({"lr": 3e-3}), TraceEnum_ELBO(max_plate_nesting=1))
    losses = [svi.step(x) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


class _Wide(M1M2):
    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        log_pi = self.class_prior.model()
        with data_plate(x, size):
            z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(3), 2.0).to_event(1))
            y = pyro.sample("y", pyro.distributions.Categorical(logits=log_pi), obs=y)
            pyro.sample("z1", self.decode_z1(y, z))


def test_swapping_by_argument_subclass_and_function() -> None:
    x = torch.rand(6, *IMAGE).round()
    stack = make_stack()
    wide = _Wide(stack.m1, K, latent_dim=3, hidden_dims=(12,))
    wide.load_state_dict(stack.state_dict())
    sizes = {"num_labelled": 0, "num_unlabelled": 6}
    losses = []
    for objective in (
        SemiSupervisedELBO(wide, **sizes),
        SemiSupervisedELBO(stack, **sizes, model=lambda x, y=None, *, size=None: _Wide.model(stack, x, y, size=size)),
        SemiSupervisedELBO(stack, **sizes),
    ):
        torch.manual_seed(2)
        losses.append(objective(Batch(x, None, None)).item())
    assert losses[0] == losses[1] != losses[2]
    student = make_stack(prior="student_t")
    assert SemiSupervisedELBO(student, **sizes)(Batch(x, None, None)).isfinite()


def test_fit_on_digits(tmp_path: Path) -> None:
    data = SemiSupervisedData.from_name("digits", num_labels=100)
    bare = data.without_labels()
    m1 = make_m1(latent_dim=8, hidden_dims=(64,), likelihood="gaussian")
    plain = {"kl_warmup": 0.0, "kl_peak": 1.0, "batch_size": 100}
    objective = pyro_ssvae.UnsupervisedELBO.for_data(m1, bare)
    fit(objective, bare, TrainingConfig(max_steps=800, **plain), progress=False)
    stack = make_stack(m1, num_classes=10, latent_dim=4, hidden_dims=(64,))
    objective = SemiSupervisedELBO.for_data(stack, data, pure=True, alpha=1.0)
    run = fit(objective, data, TrainingConfig(max_steps=800, **plain), out=tmp_path / "run", progress=False)
    result = report(objective, data, run)
    assert result["test/error"] < 0.25  # 0.16
    assert result["step_mode"] == "eager"
    assert (tmp_path / "run" / "figures" / "analogies.png").is_file()
    assert isinstance(pyro_ssvae.load(tmp_path / "run"), M1M2)
