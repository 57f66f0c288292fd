"""Several draws and importance-weighted bounds: by hand, in order, and as part of training."""

from __future__ import annotations

import math
from collections.abc import Callable
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
from tests.objectives.small import (
    D,
    K,
    L,
    LogNormalM1,
    assert_same_loss_and_gradients,
    make_examples,
    make_m1,
    make_m2,
    make_stack,
)

ACTIVE = [True, False, True]


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


def log_weights_by_hand(module: M2, x: Tensor, k: int) -> Tensor:
    """log p(x,y,z) - log q(z|x,y) of the draws that the generator gives next, shape (K, k, B)."""
    y = torch.arange(K).view(-1, 1, 1)
    if isinstance(module, ClassOfLatent):
        qz = module.q_z(x)
        z = qz.expand(torch.Size([k, len(x)])).rsample()
        log_py = module.top(z).log_softmax(-1).movedim(-1, 0)
    else:
        qz = module.encode(x, y)  # (K, 1, B)
        z = qz.expand(torch.Size([K, k, len(x)])).rsample()
        log_py = -math.log(K)
    return log_py + module.decode(y, z).log_prob(x) + module.prior().log_prob(z) - qz.log_prob(z)


@pytest.mark.parametrize("make", [make_m2, make_class_of_latent])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("size", [None, 20])
def test_bound_of_several_draws_by_hand(make: Callable[[], M2], weighted: bool, size: int | None) -> None:
    """Plain draws are averaged; a class that depends on the draws is weighed with them."""
    module, x, k = make(), make_examples(), 7
    elbo = StaticEnumELBO(num_particles=k, importance_weighted=weighted, analytic_kl=weighted)
    torch.manual_seed(3)
    loss = elbo.differentiable_loss(module.model, module.guide, x, size=size)
    torch.manual_seed(3)
    log_weights = log_weights_by_hand(module, x, k)
    bound = log_weights.logsumexp(1) - math.log(k) if weighted else log_weights.mean(1)
    log_q = module.classify(x).log_softmax(-1).T
    expected = (log_q.exp() * (log_q - bound)).sum() * (1 if size is None else size / len(x))
    assert_same_loss_and_gradients(loss, expected, module)


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
    "stack": lambda: make_stack(active=ACTIVE),
    "of_z": make_class_of_latent,
    "dirichlet": lambda: make_m2(class_prior="dirichlet"),
}


def mean_and_error(elbo: StaticEnumELBO, module: M1 | M2 | M1M2, x: Tensor, number: int = 50) -> tuple[float, float]:
    """The mean loss of an example over repeated draws, and its standard error."""
    functions = module.train().training_functions()
    with torch.no_grad():
        losses = torch.stack([elbo.differentiable_loss(*functions, x) / len(x) for _ in range(number)])
    return float(losses.mean()), float(losses.std()) / math.sqrt(number)


def bounds_by_number_of_draws(module: M1 | M2 | M1M2, x: Tensor, number: int) -> tuple[list[float], list[float]]:
    """Weighted bounds of 1, 5 and 50 draws, and their standard errors."""
    options = {"importance_weighted": True, "analytic_kl": False, "require_enumeration": False}
    elbos = (StaticEnumELBO(num_particles=k, **options) for k in (1, 5, 50))
    losses, errors = zip(*(mean_and_error(elbo, module, x, number) for elbo in elbos), strict=True)
    return [-loss for loss in losses], list(errors)


@pytest.mark.parametrize("name", MODULES)
def test_the_bound_rises_with_draws_towards_the_likelihood(name: str) -> None:
    module, x = MODULES[name](), make_examples(40)
    means, errors = bounds_by_number_of_draws(module, x.repeat(10, 1), 20)
    assert means[0] < means[1] - 3 * errors[1]
    assert means[1] < means[2] - 3 * errors[2]
    if name != "dirichlet":  # whose bound holds the KL of π as well
        assert means[2] < log_likelihood(module, x.float(), num_samples=5000).mean


def test_plain_bound_does_not_depend_on_the_number_of_draws() -> None:
    stack, x = make_stack(active=ACTIVE), make_examples(40).repeat(10, 1)
    elbos = (StaticEnumELBO(num_particles=k, analytic_kl=False) for k in (1, 10))
    (one, of_one), (ten, of_ten) = (mean_and_error(elbo, stack, x) for elbo in elbos)
    assert one == pytest.approx(ten, abs=4 * math.hypot(of_one, of_ten))
    assert of_ten < of_one / 2


def stacked_and_its_limit() -> tuple[M1M2, Tensor, float]:
    """A stack in stacked training, examples, and the mean of log p(z1) under q(z1|x): an upper limit of every bound."""
    stack, x = make_stack(active=ACTIVE).freeze_m1().train(), make_examples(10)
    with torch.no_grad():
        z1 = stack.encode_z1(x).sample((200,))  # (200, B, L1)
        y = torch.arange(K).view(-1, 1, 1, 1)
        z = stack.prior().sample((K, 300, 1, 1)).double()
        log_p = stack.decode_z1(y, z).log_prob(z1).logsumexp(1) - math.log(300)  # (K, 200, B)
        return stack, x, float((log_p.logsumexp(0) - math.log(K)).mean())


def test_the_stacked_bound_rises_with_draws_and_stays_below_its_limit() -> None:
    """z1 must be shared by the draws: drawn k times, it would make a bound of log E[p(z1)], which is far above."""
    stack, x, limit = stacked_and_its_limit()
    means, errors = bounds_by_number_of_draws(stack, x.repeat(10, 1), 50)
    assert means[0] < means[1] - 2 * math.hypot(*errors[:2])
    assert means[1] < means[2] + 2 * math.hypot(*errors[1:])
    assert means[2] < limit + 4 * errors[2]


@pytest.mark.parametrize("make", [make_m2, make_class_of_latent, lambda: make_stack(active=ACTIVE).freeze_m1()])
def test_top_k_inside_the_weighted_bound_is_unbiased(make: Callable[[], M2 | M1M2]) -> None:
    module, x = make(), make_examples().repeat(100, 1)
    elbos = (StaticEnumELBO(num_particles=3, importance_weighted=True, enumeration=name) for name in ("exact", "top-k"))
    (exact, error), (top_k, other) = (mean_and_error(elbo, module, x) for elbo in elbos)
    assert exact == pytest.approx(top_k, abs=4 * math.hypot(error, other))


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


class _OwnNormal(nn.Module):
    def forward(self) -> dist.TorchDistribution:
        return dist.Normal(torch.ones(L), 2.0).to_event(1)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (M1, {}, "in closed form"),
        (M1, {"prior": _OwnNormal()}, "in closed form"),
        (M1, {"prior": "vamp"}, "by samples"),
        (LogNormalM1, {}, "by samples"),
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
