"""M1+M2: the bound by hand, stacked and joint training, use, saving."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from torch import Tensor

import pyro_ssvae
from pyro_ssvae import M1, M1M2, M2, SemiSupervisedData, SemiSupervisedELBO, StaticEnumELBO, TrainingConfig, fit, report
from pyro_ssvae.data import Batch
from pyro_ssvae.models import data_plate
from tests.objectives.small import LogNormalM1, assert_same_loss_and_gradients, take_steps

IMAGE, K = (1, 8, 8), 4


def make_m1(**options: object) -> M1:
    torch.manual_seed(0)
    return M1(IMAGE, **{"latent_dim": 5, "hidden_dims": (16,)} | options)


def make_stack(m1: M1 | None = None, **options: object) -> M1M2:
    m1 = make_m1() if m1 is None else m1
    torch.manual_seed(1)
    return M1M2.from_m1(m1, **{"num_classes": K, "latent_dim": 3, "hidden_dims": (12,)} | options)


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
    """The negative bound of unlabelled examples from the draws that the generator gives next, KLs by samples."""
    q_z1 = stack.encode_z1(x)
    z1 = q_z1.rsample()
    log_q = stack.m2.classifier(z1).log_softmax(-1).T  # (K, B)
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
        stack.unfreeze_m1()
    x = torch.rand(6, *IMAGE).round().double()
    torch.manual_seed(3)
    loss = StaticEnumELBO(analytic_kl=False).differentiable_loss(*stack.training_functions(), x)
    torch.manual_seed(3)
    assert_same_loss_and_gradients(loss, by_hand(stack, x, below=joint), stack)


def test_stacked_training_does_not_change_m1_and_evaluation_includes_x() -> None:
    stack = make_stack()
    objective = SemiSupervisedELBO(stack, num_labelled=4, num_unlabelled=20)
    before = {name: tensor.clone() for name, tensor in stack.m1.state_dict().items()}
    x, y = torch.rand(12, *IMAGE).round(), torch.arange(4)
    first, *_, last = take_steps(objective.train(), Batch(x, x[:4], y), 80)
    assert last < first
    assert all(torch.equal(tensor, before[name]) for name, tensor in stack.m1.state_dict().items())
    latents_alone = StaticEnumELBO().loss(stack.latent_model, stack.latent_guide, x) / len(x)
    for mode in (True, False):
        assert objective.train(mode).unlabelled_bound(x) > latents_alone + 20  # the pixels are in it
    stack.unfreeze_m1()
    objective(Batch(x, x[:4], y)).backward()
    assert all(parameter.grad is not None for parameter in stack.m1.parameters())


def test_a_frozen_m1_with_batch_norm_is_frozen_too() -> None:
    stack = make_stack(make_m1(batch_norm=True)).train()
    objective = SemiSupervisedELBO(stack, num_labelled=4, num_unlabelled=20).train()
    before = {name: tensor.clone() for name, tensor in stack.m1.state_dict().items()}
    x, y = torch.rand(12, *IMAGE).round(), torch.arange(4)
    objective(Batch(x, x[:4], y))
    assert all(torch.equal(tensor, before[name]) for name, tensor in stack.m1.state_dict().items())
    assert not any(part.training for part in stack.m1.modules())
    assert all(part.training for part in stack.m2.modules())
    stack.unfreeze_m1()
    objective(Batch(x, x[:4], y))
    moved = {name for name, tensor in stack.m1.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.endswith("running_mean") for name in moved)
    assert not any(part.training for part in stack.eval().m1.modules())


def test_a_posterior_that_is_not_normal_is_refused() -> None:
    stack = make_stack(LogNormalM1(IMAGE, latent_dim=5, hidden_dims=(16,)))
    with pytest.raises(TypeError, match=r"LogNormalM1\.encode returns another distribution"):
        stack.encode_z1(torch.rand(2, *IMAGE))


@pytest.mark.parametrize(
    "options", [{"class_prior": "dirichlet"}, {"prior": "vamp"}, {"prior": "flow", "class_prior": "dirichlet"}]
)
def test_priors_of_a_stack_are_trained(options: dict[str, object]) -> None:
    stack = make_stack(**options)
    x = torch.rand(12, *IMAGE).round()
    stack.initialise(x)
    if options.get("prior") == "vamp":
        pseudo_inputs = stack.prior.pseudo_inputs[:12].detach()
        torch.testing.assert_close(pseudo_inputs, stack.encode_z1(x).mean.detach())
    objective = SemiSupervisedELBO(stack, num_labelled=4, num_unlabelled=20)
    losses = take_steps(objective, Batch(x, x[:4], torch.arange(4)), 40)
    assert sum(losses[-5:]) < sum(losses[:5])
    learned = [*stack.prior.parameters(), *stack.class_prior.parameters()]
    assert all(parameter.grad is not None for parameter in learned)
    assert sum(float(parameter.grad.abs().max()) > 0 for parameter in learned) > len(learned) / 2  # some units are idle
    objective.eval()
    assert math.isfinite(objective.unlabelled_bound(x))


def test_inactive_latents_of_m1_are_zero_in_the_decoder() -> None:
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
    torch.testing.assert_close(averaged, stack.m2.classify(z1).softmax(-1).mean(0), atol=5e-3, rtol=0.0)


@pytest.mark.parametrize(
    "options", [{}, {"active": ACTIVE, "class_prior": "map", "prior": "mixture"}, {"classify_from": "x"}]
)
def test_save_and_load(options: dict[str, object], tmp_path: Path, device: torch.device) -> None:
    stack = make_stack(make_m1(likelihood="gaussian", batch_norm=True), **options).to(device).eval()
    x = torch.rand(4, *IMAGE)
    loaded = pyro_ssvae.load(pyro_ssvae.save(stack, tmp_path))
    assert type(loaded) is M1M2
    torch.testing.assert_close(loaded.predict_proba(x), stack.predict_proba(x).cpu())
    torch.testing.assert_close(loaded.m1.reconstruct(x), stack.m1.reconstruct(x).cpu())
    assert loaded.config() == stack.config()


def test_loading_a_stack_with_custom_modules_requires_them(tmp_path: Path) -> None:
    own = M1M2(make_m1(), make_latent_m2(classifier=None), classifier=torch.nn.Sequential(torch.nn.Flatten()))
    pyro_ssvae.save(own, tmp_path)
    with pytest.raises(ValueError, match=r"folder, classifier=<your Sequential>\)"):
        pyro_ssvae.load(tmp_path)
    own = M1M2(make_m1(), make_latent_m2(classifier=torch.nn.Linear(5, K)))
    pyro_ssvae.save(own, tmp_path)
    with pytest.raises(ValueError, match="m2=<your M2 with its classifier>"):
        pyro_ssvae.load(tmp_path)
    stack = make_stack(make_m1(decoder=torch.nn.Linear(5, 64))).eval()
    pyro_ssvae.save(stack, tmp_path)
    with pytest.raises(ValueError, match="m1=<your M1 with its decoder>"):
        pyro_ssvae.load(tmp_path)
    loaded = pyro_ssvae.load(tmp_path, m1=make_m1(decoder=torch.nn.Linear(5, 64)))
    x = torch.rand(4, *IMAGE)
    torch.testing.assert_close(loaded.m1.reconstruct(x), stack.m1.reconstruct(x))


def test_stock_svi_trains_model_and_guide() -> None:
    pyro.clear_param_store()
    stack = make_stack()
    x = torch.rand(40, *IMAGE).round()
    view = pyro_ssvae.pyro_view(stack, "latent_model", "latent_guide")
    svi = SVI(*view, pyro.optim.Adam({"lr": 3e-3}), TraceEnum_ELBO(max_plate_nesting=1))
    losses = [svi.step(x) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


class _Wide(M1M2):
    """A wider p(z) in stacked training alone."""

    def latent_model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        log_pi = self.class_prior.model()
        with data_plate(x, size):
            z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(3), 2.0).to_event(1))
            y = pyro.sample("y", pyro.distributions.Categorical(logits=log_pi), obs=y)
            pyro.sample("z1", self.decode_z1(y, z))


class _WideEverywhere(M1M2):
    """A wider p(z) in training and evaluation."""

    def sample_z1(self, log_pi: Tensor, y: Tensor | None) -> Tensor:
        z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(3), 2.0).to_event(1))
        y = pyro.sample("y", pyro.distributions.Categorical(logits=log_pi), obs=y)
        return pyro.sample("z1", self.decode_z1(y, z))


def seeded(call: object, *args: object) -> float:
    torch.manual_seed(2)
    with torch.no_grad():
        return float(call(*args))


def test_swapping_by_argument_subclass_and_function() -> None:
    x = torch.rand(6, *IMAGE).round()
    batch = Batch(x, None, None)
    stack = make_stack()
    wide, everywhere = (kind.from_m1(stack.m1, K, latent_dim=3, hidden_dims=(12,)) for kind in (_Wide, _WideEverywhere))
    wide.load_state_dict(stack.state_dict())
    everywhere.load_state_dict(stack.state_dict())
    sizes = {"num_labelled": 0, "num_unlabelled": 6}
    plain, by_subclass, by_hook = (SemiSupervisedELBO(model, **sizes) for model in (stack, wide, everywhere))
    function = functools.partial(_Wide.latent_model, stack)
    by_function = SemiSupervisedELBO(stack, **sizes, model=function, guide=stack.latent_guide)
    losses = [seeded(objective, batch) for objective in (by_subclass, by_function, by_hook, plain)]
    assert losses[0] == losses[1] == losses[2] != losses[3]
    # Evaluation is of the whole model, which latent_model is no part of and sample_z1 is.
    bounds = [seeded(objective.eval().unlabelled_bound, x) for objective in (by_subclass, plain, by_hook)]
    assert bounds[0] == bounds[1] != bounds[2]
    student = make_stack(prior="student_t")
    assert SemiSupervisedELBO(student, **sizes)(batch).isfinite()


def test_a_function_is_used_for_training_and_evaluation() -> None:
    """With a model of x given, the frozen M1 adds a constant to the loss; the gradients are those of M2 alone."""
    stack, x = make_stack(), torch.rand(6, *IMAGE).round()
    whole = SemiSupervisedELBO(stack, num_labelled=0, num_unlabelled=6, model=stack.model)
    latent = SemiSupervisedELBO(stack, num_labelled=0, num_unlabelled=6)
    found = []
    for objective in (whole, latent):
        torch.manual_seed(2)
        loss = objective(Batch(x, None, None))
        found.append((loss, torch.autograd.grad(loss, list(stack.m2.parameters()))))
    assert found[0][0].item() > found[1][0].item() + 20
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b)


def test_a_module_without_training_functions_trains_on_its_model() -> None:
    stack = make_stack().unfreeze_m1()

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = stack
            self.model, self.guide, self.classify_model = stack.model, stack.guide, stack.classify_model

    batch = Batch(torch.rand(6, *IMAGE).round(), None, None)
    plain, own = (SemiSupervisedELBO(part, num_labelled=0, num_unlabelled=6) for part in (Plain(), stack))
    assert seeded(plain, batch) == seeded(own, batch)


@pytest.mark.parametrize("classify_from", ["z1", "x"])
def test_from_m1_composes_m1_and_m2(classify_from: str) -> None:
    m1 = make_m1()
    stack = make_stack(m1, active=ACTIVE, classify_from=classify_from)
    m2 = make_latent_m2(3, classifier=None if classify_from == "x" else "mlp")
    assert (stack.m1 is m1, type(stack.m2), stack.m2.event_shape) == (True, M2, m2.event_shape)
    composed = M1M2(m1, m2, active=ACTIVE, classifier=stack.classifier)
    composed.load_state_dict(stack.state_dict())
    x = torch.rand(6, *IMAGE).round()
    batch = Batch(x, x[:4], torch.arange(4))
    losses = [seeded(SemiSupervisedELBO(part, num_labelled=4, num_unlabelled=20), batch) for part in (stack, composed)]
    assert losses[0] == losses[1]
    assert torch.equal(stack.predict(x), composed.predict(x))
    assert (stack.prior, stack.class_prior, stack.likelihood) == (stack.m2.prior, stack.m2.class_prior, m1.likelihood)


def make_latent_m2(width: int = 5, **options: object) -> M2:
    return M2((width,), K, **{"latent_dim": 3, "hidden_dims": (12,), "likelihood": "gaussian"} | options)


class _OwnModel(M2):
    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        pass


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
        (lambda: M1M2(make_m1(), make_m1()), TypeError, r"M1M2\.from_m1"),
        (lambda: M1M2(make_latent_m2(), make_latent_m2()), TypeError, "must be an M1"),
        (lambda: M1M2(make_m1(), make_latent_m2(), active=ACTIVE), ValueError, r"event_shape=\(3,\)"),
        (lambda: M1M2(make_m1(), make_latent_m2(likelihood="bernoulli")), ValueError, "real numbers"),
        (lambda: M1M2(make_m1(), make_latent_m2(likelihood="poisson")), ValueError, "real numbers"),
        (lambda: M1M2(make_m1(), make_latent_m2(classifier=None)), ValueError, "with a classifier"),
        (lambda: M1M2(make_m1(), make_latent_m2(), classifier=torch.nn.Linear(64, K)), ValueError, "without one"),
        (lambda: M1M2(make_m1(), _OwnModel((5,), K, likelihood="gaussian")), ValueError, "_OwnModel overrides"),
        (lambda: make_latent_m2(classifier=None).classify(torch.rand(2, 5)), ValueError, "no q"),
    ],
)
def test_errors(call: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_fit_on_digits(tmp_path: Path) -> None:
    data = SemiSupervisedData.from_name("digits", num_labels=100)
    bare = data.without_labels()
    m1 = make_m1(latent_dim=8, hidden_dims=(64,), likelihood="gaussian")
    plain = {"kl_warmup": 0.0, "kl_peak": 1.0, "batch_size": 100, "learning_rate": 3e-3}
    objective = pyro_ssvae.UnsupervisedELBO.for_data(m1, bare)
    fit(objective, bare, TrainingConfig(max_steps=300, **plain), progress=False)
    stack = make_stack(m1, num_classes=10, latent_dim=4, hidden_dims=(64,))
    objective = SemiSupervisedELBO.for_data(stack, data, pure=True, alpha=1.0)
    run = fit(objective, data, TrainingConfig(max_steps=300, **plain), out=tmp_path / "run", progress=False)
    result = report(objective, data, run)
    assert result["test/error"] < 0.25  # 0.16
    assert result["step_mode"] == "eager"
    assert (tmp_path / "run" / "figures" / "analogies.png").is_file()
    assert isinstance(pyro_ssvae.load(tmp_path / "run"), M1M2)


class _ModelAlone(M1M2):
    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        super().model(x, y, size=size)


class _GuideAlone(M1M2):
    def guide(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        super().guide(x, y, size=size)


class _OwnZ1(M1M2):
    def sample_z1(self, log_pi: Tensor, y: Tensor | None) -> Tensor:
        return super().sample_z1(log_pi, y)


class _ModelAboveOwnZ1(_OwnZ1):
    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        super().model(x, y, size=size)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (_ModelAlone, "override sample_z1"),
        (_ModelAboveOwnZ1, "override sample_z1"),
        (_GuideAlone, "sample_y_and_z"),
    ],
)
def test_a_change_that_training_would_ignore_is_refused(kind: type[M1M2], words: str) -> None:
    stack = kind.from_m1(M1(IMAGE, latent_dim=3, hidden_dims=(8,)), K)
    with pytest.raises(ValueError, match=f"While M1 is frozen.*{words}"):
        SemiSupervisedELBO(stack, num_labelled=0, num_unlabelled=6)(Batch(torch.rand(6, *IMAGE), None, None))
    assert stack.unfreeze_m1().training_functions() == (stack.model, stack.guide)
