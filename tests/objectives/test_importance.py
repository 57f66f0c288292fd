"""Several draws and importance-weighted bounds: by hand, in order, and as part of training."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_ssvae import M1, M1M2, M2, SemiSupervisedELBO, StaticEnumELBO, UnsupervisedELBO
from pyro_ssvae.data import Batch
from pyro_ssvae.errors import StaticELBOError
from pyro_ssvae.evaluation import log_likelihood
from pyro_ssvae.models import data_plate

D, L, K = 6, 3, 4


def make_examples(n: int = 5) -> Tensor:
    return torch.rand(n, D, generator=torch.Generator().manual_seed(2)).round().double()


def make_m1() -> M1:
    torch.manual_seed(1)
    return M1((D,), latent_dim=L, hidden_dims=(8,)).double()


def make_m2(**options: object) -> M2:
    torch.manual_seed(1)
    return M2((D,), K, **{"latent_dim": L, "hidden_dims": (8,), "classifier": "mlp"} | options).double()


def make_stack() -> M1M2:
    torch.manual_seed(1)
    m1 = M1((D,), latent_dim=L, hidden_dims=(8,))
    stack = M1M2.from_m1(m1, K, active=[True, False, True], latent_dim=2, hidden_dims=(8,))
    return stack.double().unfreeze_m1()


def log_weights_by_hand(m2: M2, x: Tensor, k: int) -> Tensor:
    """log p(x,z|y) - log q(z|x,y) of the draws that the generator gives next, shape (K, k, B)."""
    y = torch.arange(K).view(-1, 1, 1)
    qz = m2.encode(x, y)  # (K, 1, B)
    z = qz.expand(torch.Size([K, k, len(x)])).rsample()
    return m2.decode(y, z).log_prob(x) + m2.prior().log_prob(z) - qz.log_prob(z)


@pytest.mark.parametrize("size", [None, 20])
def test_importance_weighted_bound_of_m2_by_hand(size: int | None) -> None:
    m2, x, k = make_m2(), make_examples(), 7
    torch.manual_seed(3)
    loss = StaticEnumELBO(num_particles=k, importance_weighted=True).differentiable_loss(
        m2.model, m2.guide, x, size=size
    )
    torch.manual_seed(3)
    bound = log_weights_by_hand(m2, x, k).logsumexp(1) - math.log(k)  # (K, B)
    log_q = m2.classify(x).log_softmax(-1).T
    expected = (log_q.exp() * (log_q + math.log(K) - bound)).sum(0).sum() * (1 if size is None else size / len(x))
    torch.testing.assert_close(loss, expected)
    parameters = list(m2.parameters())
    ours, theirs = (torch.autograd.grad(value, parameters, retain_graph=True) for value in (loss, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


class ClassOfLatent(M2):
    """p(z) p(y|z) p(x|y,z), with a guide q(y|x) q(z|x) that draws z apart from the class."""

    def __init__(self) -> None:
        super().__init__((D,), K, latent_dim=L, hidden_dims=(8,), classifier="mlp")
        self.top = nn.Linear(L, K)

    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, size):
            z = pyro.sample("z", self.prior())
            y = pyro.sample("y", dist.Categorical(logits=self.top(z)), obs=y)
            pyro.sample("x", self.decode(y, z), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, size):
            if y is None:
                q_y = dist.Categorical(logits=self.classify(x))
                pyro.sample("y", q_y, infer={"enumerate": "parallel", "expand": False})
            pyro.sample("z", self.q_z(x))

    def q_z(self, x: Tensor) -> dist.TorchDistribution:
        return dist.Normal(x[:, :L] - 0.5, 0.8).to_event(1)


def make_class_of_latent() -> ClassOfLatent:
    torch.manual_seed(1)
    return ClassOfLatent().double()


@pytest.mark.parametrize("size", [None, 20])
def test_a_class_that_depends_on_the_draws_is_weighed_with_them(size: int | None) -> None:
    module, x, k = make_class_of_latent(), make_examples(), 7
    objective = SemiSupervisedELBO(
        module, num_labelled=0, num_unlabelled=size or 5, num_particles=k, importance_weighted=True
    )
    torch.manual_seed(3)
    loss = objective(Batch(x, None, None))
    torch.manual_seed(3)
    z = module.q_z(x).expand(torch.Size([k, 5])).rsample()
    log_p = module.decode(torch.arange(K).view(-1, 1, 1), z).log_prob(x) + module.top(z).log_softmax(-1).movedim(-1, 0)
    log_weights = log_p + module.prior().log_prob(z) - module.q_z(x).log_prob(z)  # (K, k, B)
    bound = log_weights.logsumexp(1) - math.log(k)
    log_q = module.classify(x).log_softmax(-1).T
    expected = (log_q.exp() * (log_q - bound)).sum(0).mean()
    torch.testing.assert_close(loss, expected)
    parameters = [p for p in module.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(v, parameters, retain_graph=True, allow_unused=True) for v in (loss, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_several_plain_draws_of_a_class_that_depends_on_them_are_their_mean() -> None:
    module, x, k = make_class_of_latent(), make_examples(), 7
    torch.manual_seed(3)
    loss = StaticEnumELBO(num_particles=k, analytic_kl=False).differentiable_loss(module.model, module.guide, x)
    torch.manual_seed(3)
    z = module.q_z(x).expand(torch.Size([k, 5])).rsample()
    log_p = module.decode(torch.arange(K).view(-1, 1, 1), z).log_prob(x) + module.top(z).log_softmax(-1).movedim(-1, 0)
    bound = (log_p + module.prior().log_prob(z) - module.q_z(x).log_prob(z)).mean(1)
    log_q = module.classify(x).log_softmax(-1).T
    torch.testing.assert_close(loss, (log_q.exp() * (log_q - bound)).sum())


def test_top_k_of_a_class_that_depends_on_the_draws_is_unbiased() -> None:
    module, x = make_class_of_latent(), make_examples().repeat(100, 1)
    options = {"num_particles": 3, "importance_weighted": True}
    exact, top_k = StaticEnumELBO(**options), StaticEnumELBO(enumeration="top-k", **options)
    with torch.no_grad():
        values = [
            torch.stack([elbo.differentiable_loss(module.model, module.guide, x) for _ in range(50)])
            for elbo in (exact, top_k)
        ]
    error = math.hypot(*(float(v.std()) / math.sqrt(50) for v in values))
    assert float(values[0].mean()) == pytest.approx(float(values[1].mean()), abs=4 * error)


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_weighted_draws_that_carry_no_information_leave_the_bound_as_it_is(drawn: bool, shared: bool) -> None:
    """Nothing drawn in the plate, or z from its prior; a class of each example, or one for the plate."""
    x = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    mean, log_q = torch.arange(3.0).double(), torch.tensor([0.5, 0.3, 0.2]).double().log()

    def draw(plate: pyro.plate, distribution: dist.TorchDistribution, **options: object) -> Tensor:
        with nullcontext() if shared else plate:
            y = pyro.sample("y", distribution, **options)
        if drawn:
            with plate:
                pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
        return y

    def model(x: Tensor) -> None:
        plate = data_plate(x, None)
        y = draw(plate, dist.Categorical(torch.ones(3).double()))
        with plate:
            pyro.sample("x", dist.Normal(mean[y], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        draw(data_plate(x, None), dist.Categorical(logits=log_q), infer={"enumerate": "parallel"})

    log_px = dist.Normal(mean[:, None], 1.0).log_prob(x).sum(1)  # (3,), of the plate
    kl = (log_q.exp() * (log_q + math.log(3))).sum() * (1 if shared else len(x))
    loss = StaticEnumELBO(num_particles=10, importance_weighted=True).loss(model, guide, x)
    assert loss == pytest.approx(float(kl - (log_q.exp() * log_px).sum()))


def test_several_draws_without_weights_are_their_mean() -> None:
    m2, x, k = make_m2(), make_examples(), 7
    torch.manual_seed(3)
    loss = StaticEnumELBO(num_particles=k, analytic_kl=False).differentiable_loss(m2.model, m2.guide, x)
    torch.manual_seed(3)
    bound = log_weights_by_hand(m2, x, k).mean(1)
    log_q = m2.classify(x).log_softmax(-1).T
    torch.testing.assert_close(loss, (log_q.exp() * (log_q + math.log(K) - bound)).sum())


def test_importance_weighted_bound_of_labelled_examples() -> None:
    m2, x, k = make_m2(), make_examples(), 7
    y = torch.tensor([0, 1, 2, 3, 0])
    elbo = StaticEnumELBO(num_particles=k, importance_weighted=True, require_enumeration=False)
    torch.manual_seed(3)
    loss = elbo.differentiable_loss(m2.model, m2.guide, x, y, size=20)
    torch.manual_seed(3)
    qz = m2.encode(x, y)
    z = qz.expand(torch.Size([k, 5])).rsample()
    log_weights = m2.decode(y, z).log_prob(x) + m2.prior().log_prob(z) - qz.log_prob(z) - math.log(K)
    torch.testing.assert_close(loss, -4 * (log_weights.logsumexp(0) - math.log(k)).sum())


MODULES = {
    "m1": make_m1,
    "m2": make_m2,
    "stack": make_stack,
    "of_z": make_class_of_latent,
    "dirichlet": lambda: make_m2(class_prior="dirichlet"),
}


@pytest.mark.parametrize("name", MODULES)
def test_the_bound_rises_with_draws_towards_the_likelihood(name: str) -> None:
    module, x = MODULES[name](), make_examples(40)
    copies = x.repeat(10, 1)
    module.train()
    means, errors = [], []
    for k in (1, 5, 50):
        elbo = StaticEnumELBO(num_particles=k, importance_weighted=True, analytic_kl=False, require_enumeration=False)
        with torch.no_grad():
            losses = (
                torch.stack([elbo.differentiable_loss(module.model, module.guide, copies) for _ in range(20)]) / 400
            )
        means.append(float(-losses.mean()))
        errors.append(float(losses.std()) / math.sqrt(20))
    assert means[0] < means[1] - 3 * errors[1]
    assert means[1] < means[2] - 3 * errors[2]
    if name != "dirichlet":  # whose bound holds the KL of π as well
        assert means[2] < log_likelihood(module, x.float(), num_samples=5000).mean


def test_plain_bound_does_not_depend_on_the_number_of_draws() -> None:
    module, x = make_stack(), make_examples(40).repeat(10, 1)
    means, errors = [], []
    for k in (1, 10):
        elbo = StaticEnumELBO(num_particles=k, analytic_kl=False)
        with torch.no_grad():
            losses = torch.stack([elbo.differentiable_loss(module.model, module.guide, x) / len(x) for _ in range(50)])
        means.append(float(losses.mean()))
        errors.append(float(losses.std()) / math.sqrt(50))
    assert means[0] == pytest.approx(means[1], abs=4 * math.hypot(*errors))
    assert errors[1] < errors[0] / 2


def stacked_and_its_limit() -> tuple[M1M2, Tensor, float]:
    """A stack in stacked training, examples, and the mean of log p(z1) under q(z1|x): an upper limit of every bound."""
    stack, x = make_stack().freeze_m1().train(), make_examples(10)
    with torch.no_grad():
        z1 = stack.encode_z1(x).sample((200,))  # (200, B, L1)
        y = torch.arange(K).view(-1, 1, 1, 1)
        z = stack.prior().sample((K, 300, 1, 1)).double()
        log_p = stack.decode_z1(y, z).log_prob(z1).logsumexp(1) - math.log(300)  # (K, 200, B)
        return stack, x, float((log_p.logsumexp(0) - math.log(K)).mean())


def test_the_stacked_bound_rises_with_draws_and_stays_below_its_limit() -> None:
    """z1 must be shared by the draws: drawn k times, it would make a bound of log E[p(z1)], which is far above."""
    stack, x, limit = stacked_and_its_limit()
    x = x.repeat(10, 1)
    means, errors = [], []
    for k in (1, 5, 50):
        elbo = StaticEnumELBO(num_particles=k, importance_weighted=True, analytic_kl=False)
        with torch.no_grad():
            losses = torch.stack([elbo.differentiable_loss(*stack.training_functions(), x) / len(x) for _ in range(50)])
        means.append(float(-losses.mean()))
        errors.append(float(losses.std()) / math.sqrt(50))
    assert means[0] < means[1] - 2 * math.hypot(*errors[:2])
    assert means[1] < means[2] + 2 * math.hypot(*errors[1:])
    assert means[2] < limit + 4 * errors[2]


def test_top_k_inside_the_weighted_bound_of_a_stack_is_unbiased() -> None:
    stack, x = make_stack().freeze_m1().train(), make_examples().repeat(50, 1)
    options = {"num_particles": 3, "importance_weighted": True}
    exact, top_k = StaticEnumELBO(**options), StaticEnumELBO(enumeration="top-k", **options)
    with torch.no_grad():
        values = [
            torch.stack([elbo.differentiable_loss(*stack.training_functions(), x) for _ in range(50)])
            for elbo in (exact, top_k)
        ]
    error = math.hypot(*(float(v.std()) / math.sqrt(50) for v in values))
    assert float(values[0].mean()) == pytest.approx(float(values[1].mean()), abs=4 * error)


def test_top_k_inside_the_weighted_bound_is_unbiased() -> None:
    m2, x = make_m2(), make_examples().repeat(100, 1)
    options = {"num_particles": 3, "importance_weighted": True}
    exact, top_k = StaticEnumELBO(**options), StaticEnumELBO(enumeration="top-k", **options)
    with torch.no_grad():
        values = [
            torch.stack([elbo.differentiable_loss(m2.model, m2.guide, x) for _ in range(50)]) for elbo in (exact, top_k)
        ]
    error = math.hypot(*(float(v.std()) / math.sqrt(50) for v in values))
    assert float(values[0].mean()) == pytest.approx(float(values[1].mean()), abs=4 * error)


def test_unsupported_combinations_are_refused() -> None:
    elbo = StaticEnumELBO(num_particles=3, importance_weighted=True, enumeration="top-k")
    stack = make_stack()
    with pytest.raises(StaticELBOError, match="depends on earlier draws"):
        elbo.differentiable_loss(stack.model, stack.guide, make_examples())
    with pytest.raises(ValueError, match="needs elbo='static'"):
        SemiSupervisedELBO(make_m2(), num_labelled=1, num_unlabelled=1, elbo="stock", num_particles=2)


def test_one_draw_cannot_be_importance_weighted() -> None:
    for build in (
        lambda: UnsupervisedELBO(make_m1(), num_examples=5, importance_weighted=True),
        lambda: SemiSupervisedELBO(make_m2(), num_labelled=1, num_unlabelled=5, importance_weighted=True),
    ):
        with pytest.raises(ValueError, match="num_particles=5"):
            build()


class _LogNormal(M1):
    def encode(self, x: Tensor) -> dist.TorchDistribution:
        distribution = super().encode(x).base_dist
        return dist.LogNormal(distribution.loc, distribution.scale).to_event(1)


class _OwnNormal(nn.Module):
    def forward(self) -> dist.TorchDistribution:
        return dist.Normal(torch.ones(L), 2.0).to_event(1)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (M1, {}, "in closed form"),
        (M1, {"prior": _OwnNormal()}, "in closed form"),
        (M1, {"prior": "vamp"}, "by samples"),
        (_LogNormal, {}, "by samples"),
    ],
)
def test_terms_say_how_the_kl_is_computed(kind: type[M1], options: dict[str, object], words: str) -> None:
    m1 = kind((D,), latent_dim=L, hidden_dims=(8,), **options)
    state = torch.get_rng_state()
    assert UnsupervisedELBO(m1, num_examples=5).describe().endswith(words)
    assert UnsupervisedELBO(m1, num_examples=5, analytic_kl=False).describe().endswith("by samples")
    assert torch.equal(torch.get_rng_state(), state)
    assert m1.training


def test_objectives_keep_the_classifier_term() -> None:
    m2, x = make_m2(), make_examples()
    y = torch.tensor([0, 1, 2, 3, 0])
    objective = SemiSupervisedELBO(
        m2, num_labelled=5, num_unlabelled=50, num_particles=4, importance_weighted=True, alpha=3.0
    )
    loss, parts = objective.losses(Batch(x, x, y))["all"]
    expected = -50 / 55 * parts["bound_unlabelled"] - 5 / 55 * parts["bound_labelled"]
    torch.testing.assert_close(loss, expected + 3.0 * parts["classification_loss"])
    torch.testing.assert_close(
        parts["classification_loss"], torch.nn.functional.cross_entropy(m2.classify(x), y).detach()
    )
    assert objective.config()["num_particles"] == 4
    assert "num_particles" not in SemiSupervisedELBO(m2, num_labelled=5, num_unlabelled=50).config()


def test_unsupervised_objective_is_the_bound_of_all_examples() -> None:
    m1, x = make_m1(), make_examples()
    objective = UnsupervisedELBO(m1, num_examples=50)
    torch.manual_seed(3)
    loss, terms = objective.loss(Batch(x, None, None))
    torch.manual_seed(3)
    qz = m1.encode(x)
    kl = torch.distributions.kl_divergence(qz, m1.prior().expand(qz.batch_shape))
    expected = (kl - m1.decode(qz.rsample()).log_prob(x)).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(terms["bound"], -expected.detach())
    objective.kl_weight = 0.0
    torch.manual_seed(3)
    without = objective(Batch(x, None, None))
    torch.testing.assert_close(without, expected - kl.mean())
    assert "closed form" in objective.describe()
    weighted = UnsupervisedELBO(m1, num_examples=50, num_particles=5, importance_weighted=True)
    assert "importance-weighted bound of 5" in weighted.describe()
    with pytest.raises(ValueError, match="without_labels"):
        objective(Batch(None, x, torch.zeros(5).long()))
