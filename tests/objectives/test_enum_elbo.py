"""The static bound against stock Pyro, and top-k enumeration against the exact sum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
from torch import Tensor, nn

from pyro_ssvae import M2, SemiSupervisedELBO, StaticEnumELBO, pyro_view
from pyro_ssvae.data import Batch
from pyro_ssvae.errors import EnumerationError, StaticELBOError
from pyro_ssvae.evaluation import log_likelihood
from pyro_ssvae.models import data_plate
from pyro_ssvae.models.m2 import ENUMERATE
from pyro_ssvae.objectives.handlers import EnumerateClass
from tests.objectives.small import (
    D,
    K,
    L,
    PointM2,
    assert_same_loss_and_gradients,
    gradients,
    make_examples,
    make_m2,
    make_stack,
)


class Ladder(nn.Module):
    """A module as a user might write it: two latents, one above the other, the upper one drawn last by the guide.

    Model p(z) p(y) p(z1|z,y) p(x|z1), guide q(z1|x) q(y|z1) q(z|z1,y); everything is one affine map.
    """

    def __init__(self, one_hot: bool = False, mark: Callable[..., Any] | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.one_hot = one_hot
        self.to_z1 = nn.Linear(D, L)
        self.to_y = nn.Linear(L, K)
        self.to_z = nn.Linear(L + K, 2)
        self.from_z = nn.Linear(2 + K, L)
        self.from_z1 = nn.Linear(L, D)
        self.double()
        self.guide = mark(self._guide) if mark else self._guide

    def _class(self, logits: Tensor) -> Any:
        return (dist.OneHotCategorical if self.one_hot else dist.Categorical)(logits=logits)

    def _with_class(self, z: Tensor, y: Tensor) -> Tensor:
        hot = y if self.one_hot else torch.eye(K).to(z)[y]
        shape = torch.broadcast_shapes(z.shape[:-1], hot.shape[:-1])
        return torch.cat([z.expand(*shape, -1), hot.expand(*shape, -1)], -1)

    def model(self, x: Tensor, *, size: int | None = None) -> None:
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            y = pyro.sample("y", self._class(x.new_zeros(K)))
            z1 = pyro.sample("z1", dist.Normal(self.from_z(self._with_class(z, y)), 0.7).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.from_z1(z1)).to_event(1), obs=x)

    def _guide(self, x: Tensor, *, size: int | None = None) -> None:
        with data_plate(x, size):
            z1 = pyro.sample("z1", dist.Normal(self.to_z1(x), 0.3).to_event(1))
            y = pyro.sample("y", self._class(self.to_y(z1)), infer=ENUMERATE)
            pyro.sample("z", dist.Normal(self.to_z(self._with_class(z1, y)), 0.5).to_event(1))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "m2": make_m2,
    "m2, gaussian": lambda: make_m2(likelihood="gaussian"),
    "m2, map": lambda: make_m2(class_prior="map"),
    "m2, dirichlet": lambda: make_m2(class_prior="dirichlet"),
    "m1m2": make_stack,
    "ladder": Ladder,
    "ladder, one-hot": lambda: Ladder(one_hot=True),
    "ladder, all marked": lambda: Ladder(mark=config_enumerate),
}


def value_and_gradient(elbo: Any, module: nn.Module, x: Tensor) -> Tensor:
    """The loss and the gradient in one vector."""
    loss = elbo.differentiable_loss(module.model, module.guide, x, size=20)
    return torch.cat([loss.detach().reshape(1), *(part.flatten() for part in gradients(loss, module).values())])


@pytest.mark.parametrize("name", MODULES)
def test_equals_stock_trace_enum_elbo(name: str) -> None:
    module, x = MODULES[name](), make_examples()
    torch.manual_seed(3)
    stock = value_and_gradient(TraceEnum_ELBO(max_plate_nesting=1), module, x)
    torch.manual_seed(3)
    ours = value_and_gradient(StaticEnumELBO(analytic_kl=False), module, x)
    torch.testing.assert_close(ours, stock, rtol=1e-10, atol=1e-10)


def within_four_standard_errors(draw: Callable[[], Tensor], expected: Tensor, number: int) -> None:
    """Compare means along a few directions; the first is the value itself."""
    directions = torch.randn(len(expected), 9, generator=torch.Generator().manual_seed(7)).double()
    directions[:, 0] = 0.0
    directions[0] = 0.0
    directions[0, 0] = 1.0
    samples = torch.stack([draw() @ directions for _ in range(number)])
    error = samples.std(0) / math.sqrt(number)
    assert ((samples.mean(0) - expected @ directions).abs() <= 4 * error + 1e-9).all()


@pytest.mark.parametrize(
    ("name", "elbo", "exact"),
    [
        *((name, StaticEnumELBO(), TraceEnum_ELBO(max_plate_nesting=1)) for name in ("m2", "m2, map", "ladder")),
        ("ladder", StaticEnumELBO(enumeration="top-k"), StaticEnumELBO()),
    ],
)
def test_estimates_are_equal_on_average(name: str, elbo: Any, exact: Any) -> None:
    """The closed-form KL against the stock ELBO, and top-k against the exact sum, with noise in z."""
    module, x = MODULES[name](), make_examples(3).repeat(5, 1)
    torch.manual_seed(4)
    with pyro.validation_enabled(False):
        zero = torch.zeros_like(value_and_gradient(exact, module, x))
        within_four_standard_errors(
            lambda: value_and_gradient(elbo, module, x) - value_and_gradient(exact, module, x), zero, 50
        )


def test_analytic_kl_reduces_the_variance() -> None:
    module, x = make_m2(), make_examples()
    torch.manual_seed(0)
    deviations = [
        torch.stack([elbo.differentiable_loss(module.model, module.guide, x).detach() for _ in range(200)]).std()
        for elbo in (StaticEnumELBO(), StaticEnumELBO(analytic_kl=False))
    ]
    assert deviations[0] < deviations[1]


def test_a_latent_drawn_last_by_the_guide_gets_no_closed_form() -> None:
    """In the ladder z1 comes first in the guide, and p(z1|z,y) hangs on it: E[KL(q(z1|x) || p(z1|z,y))] is wrong."""
    module, x = Ladder(), make_examples()
    seen = []
    kl = torch.distributions.kl.kl_divergence

    def spy(p: Any, q: Any) -> Tensor:
        seen.append(p.event_shape[0])
        return kl(p, q)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_ssvae.objectives.enum_elbo.kl_divergence", spy)
        StaticEnumELBO().differentiable_loss(module.model, module.guide, x)
    assert seen == [2]  # z alone, not z1 of size L


def test_objective_with_the_stock_elbo_is_the_same() -> None:
    m2, batch = make_m2(), Batch(make_examples(), make_examples(3), torch.tensor([0, 3, 1]))
    losses = []
    for elbo in ("static", "stock"):
        objective = SemiSupervisedELBO(m2, num_labelled=12, num_unlabelled=50, elbo=elbo, analytic_kl=False)
        objective.kl_weight = 0.3
        torch.manual_seed(3)
        losses.append(objective(batch))
    assert_same_loss_and_gradients(*losses, m2)


def test_trains_under_stock_svi() -> None:
    pyro.clear_param_store()
    m2, x = make_m2(), make_examples(20)
    svi = SVI(*pyro_view(m2), pyro.optim.Adam({"lr": 1e-2}), StaticEnumELBO(enumeration="top-k"))
    losses = [svi.step(x) for _ in range(100)]
    assert sum(losses[-20:]) < 0.95 * sum(losses[:20])


def make_still(num_classes: int = K) -> M2:
    m2 = make_m2(PointM2, num_classes, class_prior="map")  # all noise comes from the drawn class
    with torch.no_grad():  # far from uniform, as a trained classifier is, and with costs that differ between classes
        for parameter in m2.parameters():
            parameter.mul_(3.0)
        m2.class_prior.logits.copy_(torch.linspace(-1.0, 1.0, num_classes))
    return m2


@pytest.mark.parametrize(("num_classes", "top_k"), [(K, 1), (K, 2), (300, 1)])
def test_top_k_is_exact_on_average(num_classes: int, top_k: int) -> None:
    module, x = make_still(num_classes), make_examples(4).repeat(10, 1)
    expected = value_and_gradient(StaticEnumELBO(), module, x)
    elbo = StaticEnumELBO(enumeration="top-k", top_k=top_k)
    torch.manual_seed(5)
    with pyro.validation_enabled(False):
        within_four_standard_errors(lambda: value_and_gradient(elbo, module, x), expected, 80)


@pytest.mark.parametrize("top_k", [K - 1, K, 50])
def test_top_k_of_all_but_one_is_exact(top_k: int) -> None:
    module, x = make_still(), make_examples()
    ours = value_and_gradient(StaticEnumELBO(enumeration="top-k", top_k=top_k), module, x)
    torch.testing.assert_close(ours, value_and_gradient(StaticEnumELBO(), module, x), rtol=1e-12, atol=1e-12)


def test_the_drawn_class_is_never_among_the_exact_ones_and_follows_the_rest() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0]).expand(20_000, K).double()
    handler = EnumerateClass(top_k=2)
    torch.manual_seed(0)
    with handler, pyro.plate("data", len(logits), dim=-1):
        y = pyro.sample("y", dist.Categorical(logits=logits), infer=ENUMERATE)
    assert y.shape == (3, len(logits))
    assert (y[0] == 1).all()
    assert (y[1] == 2).all()
    share = (y[2] == 0).double().mean()
    expected = 1 / (1 + math.exp(-1.0))
    assert set(y[2].tolist()) == {0, 3}
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / len(logits))


def test_a_certain_classifier_gives_an_exact_finite_gradient() -> None:
    module, x = make_still(), make_examples()
    with torch.no_grad():
        module.classifier.layers[-1].weight.mul_(1e4)
    elbo = StaticEnumELBO(enumeration="top-k")
    first, second = value_and_gradient(elbo, module, x), value_and_gradient(elbo, module, x)
    assert first.isfinite().all()
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first, value_and_gradient(StaticEnumELBO(), module, x))


class _Closed(nn.Module):
    """Logits of which some are minus infinity."""

    def __init__(self, closed: list[bool]) -> None:
        super().__init__()
        self.linear = nn.Linear(D, K)
        self.closed = torch.tensor(closed)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).masked_fill(self.closed, -torch.inf)


@pytest.mark.parametrize("closed", [[False, True, True, True], [True, True, False, True], [True, False, False, True]])
def test_classes_of_probability_zero_are_left_out(closed: list[bool]) -> None:
    """Top-k is exact, too, where at most one class is left to draw."""
    torch.manual_seed(1)
    module, x = make_m2(PointM2, classifier=_Closed(closed)), make_examples()
    stock = value_and_gradient(TraceEnum_ELBO(max_plate_nesting=1), module, x)
    assert stock.isfinite().all()
    for enumeration in ("exact", "top-k"):
        ours = value_and_gradient(StaticEnumELBO(analytic_kl=False, enumeration=enumeration), module, x)
        torch.testing.assert_close(ours, stock, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("enumeration", ["exact", "top-k"])
def test_networks_in_bf16_leave_the_bound_in_fp32_and_close(enumeration: str) -> None:
    torch.manual_seed(1)
    m2 = M2((784,), 10, latent_dim=20, hidden_dims=(100,), classifier="mlp")
    batch = Batch(torch.rand(20, 784).round(), torch.rand(10, 784).round(), torch.arange(10))
    objective = SemiSupervisedELBO(m2, num_labelled=100, num_unlabelled=900, enumeration=enumeration)
    losses, slopes = [], []
    for enabled in (False, True):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, terms = objective.loss(batch)
        assert loss.dtype == torch.float32
        assert all(value.dtype == torch.float32 for value in terms.values())
        losses.append(float(loss.detach()))
        slopes.append(torch.cat([part.flatten() for part in gradients(loss, m2).values()]))
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert nn.functional.cosine_similarity(slopes[0], slopes[1], dim=0) > 0.99


# Out of reach.


def _make_functions(**parts: Any) -> tuple[Callable[..., None], Callable[..., None]]:
    """A module whose guide has a class y, an optional second site, and whose model has an optional third."""

    def model(x: Tensor) -> None:
        with data_plate(x, None):
            y = pyro.sample("y", dist.Categorical(logits=torch.zeros(K)))
            if "second" in parts:
                pyro.sample("w", SITES[parts["second"]](x))
            if "third" in parts:
                pyro.sample("v", SITES[parts["third"]](x))
            pyro.sample("x", dist.Normal(y[..., None].double(), 1.0).to_event(parts.get("event", 1)), obs=x)

    def guide(x: Tensor) -> None:
        with data_plate(x, None):
            pyro.sample("y", dist.Categorical(logits=torch.zeros(K)), infer=parts.get("infer", ENUMERATE))
            if "second" in parts:
                pyro.sample("w", SITES[parts["second"]](x), infer=parts.get("second_infer", {}))

    return model, guide


SITES: dict[str, Callable[[Tensor], Any]] = {
    "poisson": lambda x: dist.Poisson(x.new_ones(len(x))),
    "coin": lambda x: dist.Bernoulli(logits=x.new_zeros(len(x))),
    "normal": lambda x: dist.Normal(x.new_zeros(len(x)), 1.0),
}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"second": "poisson"}, "'w' of the guide is a Poisson, which is not reparameterised"),
        ({"second": "coin", "second_infer": ENUMERATE}, "both 'y' and 'w'"),
        ({"third": "normal"}, "'v' is in the model but not in the guide"),
        ({"infer": {"enumerate": "sequential"}}, "parallel"),
        ({"second": "normal", "second_infer": {"enumerate": "parallel"}, "infer": {}}, "'w' is to be enumerated"),
        ({"event": 0}, "do not line up"),
    ],
)
def test_unsupported_models_are_refused_with_the_reason(parts: dict[str, Any], words: str) -> None:
    model, guide = _make_functions(**parts)
    with pyro.validation_enabled(False), pytest.raises(StaticELBOError, match=words) as caught:
        StaticEnumELBO().differentiable_loss(model, guide, torch.zeros(5, 5))
    assert "elbo='stock'" in str(caught.value)


class _Outside(M2):
    """x is sampled one indentation too far left."""

    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, size):
            z = pyro.sample("z", self.prior())
            y = pyro.sample("y", dist.Categorical(logits=self.class_prior.model()), obs=y)
        pyro.sample("x", self.decode(y, z), obs=x)


class _Nested(M2):
    """The columns of x are a plate of their own, where the class and the draws of z are put."""

    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, size):
            z = pyro.sample("z", self.prior())
            y = pyro.sample("y", dist.Categorical(logits=self.class_prior.model()), obs=y)
            loc = self.decode(y, z).mean.mean(-1)
            with pyro.plate("columns", D, dim=-2):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x.T)


@pytest.mark.parametrize("kind", [_Outside, _Nested])
@pytest.mark.parametrize("num_particles", [1, D])  # as many classes and draws as columns: Pyro refuses other numbers
def test_sites_outside_of_the_one_plate_are_refused(kind: type[M2], num_particles: int) -> None:
    m2, x = kind((D,), D, latent_dim=L, hidden_dims=(8,)).double(), make_examples()
    objective = SemiSupervisedELBO(m2, num_labelled=9, num_unlabelled=9, num_particles=num_particles)
    for batch in (Batch(x, None, None), Batch(None, x, torch.tensor([0, 1, 2, 3, 0]))):
        with pytest.raises(StaticELBOError, match="'x' does not lie in the one plate.*with data_plate"):
            objective(batch)
    for examples in (x, x[:1]):
        with pytest.raises(StaticELBOError, match=r"'x' (does not lie in|lies outside of) the.*with data_plate"):
            log_likelihood(m2, examples, num_samples=D)
    with pytest.raises(ValueError, match='site "x"'):
        TraceEnum_ELBO(max_plate_nesting=1).loss(m2.model, m2.guide, x)


def test_missing_enumeration_is_an_error() -> None:
    model, guide = _make_functions(infer={})
    with pytest.raises(EnumerationError, match="enumerated no site"):
        StaticEnumELBO().differentiable_loss(model, guide, torch.zeros(5, 2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"enumeration": "topk"}, "must be one of exact, top-k"),
        ({"top_k": 0}, "top_k=0"),
        ({"num_particles": 0}, "num_particles=0"),
        ({"elbo": "stock", "enumeration": "top-k"}, "needs elbo='static'"),
        ({"elbo": "fast"}, "must be one of static, stock"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SemiSupervisedELBO(make_m2(), num_labelled=0, num_unlabelled=5, **options)
