"""Sites of models of one's own: distributions whose KL Pyro gives otherwise, penalties, and plates of other sizes."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from pyro_ssvae import (
    M1,
    M2,
    SemiSupervisedData,
    SemiSupervisedELBO,
    StaticEnumELBO,
    TrainingConfig,
    UnsupervisedELBO,
    fit,
)
from pyro_ssvae.data import Batch
from pyro_ssvae.errors import StaticELBOError
from pyro_ssvae.models import data_plate
from pyro_ssvae.models.m2 import ENUMERATE

K, L, D = 3, 2, 5
FIRST, LAST = torch.arange(6) < 4, torch.arange(6) > 1


def make(kind: type[Any] = M2, **options: Any) -> Any:
    torch.manual_seed(1)
    return kind((D,), K, latent_dim=L, hidden_dims=(8,), classifier="mlp", **options)


def make_examples(n: int = 6) -> Tensor:
    return torch.rand(n, D, generator=torch.Generator().manual_seed(2)).round()


class _Delta(M2):
    """A posterior through an invertible map, as Pyro's guides of ``pyro.infer.autoguide`` have it."""

    def guide(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, size):
            if y is None:
                y = pyro.sample("y", dist.Categorical(logits=self.classify(x)), infer=ENUMERATE)
            u = pyro.sample("u", self.encode(x, y), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u.sinh(), log_density=-u.cosh().log().sum(-1), event_dim=1))


class _Masked(M2):
    masks: Any = (FIRST, LAST)

    def encode(self, x: Tensor, y: Tensor, a: Tensor | None = None) -> Any:
        return super().encode(x, y).mask(self.masks[0])


class _MaskedPrior(nn.Module):
    def __init__(self, mask: Any) -> None:
        super().__init__()
        self.mask = mask

    def forward(self) -> Any:
        return dist.Normal(torch.zeros(L), 1.0).to_event(1).mask(self.mask)


class _Unmasked(_Masked):
    masks = (False, False)


class _Folded(M2):
    def encode(self, x: Tensor, y: Tensor, a: Tensor | None = None) -> Any:
        return dist.FoldedDistribution(super().encode(x, y).base_dist).to_event(1)


class _FoldedPrior(nn.Module):
    def forward(self) -> Any:
        return dist.FoldedDistribution(dist.Normal(torch.full((L,), 0.5), 1.0)).to_event(1)


@pytest.mark.parametrize(
    ("kind", "prior"),
    [
        (_Delta, None),
        (_Masked, _MaskedPrior(LAST)),
        (_Unmasked, _MaskedPrior(False)),
        (_Folded, _FoldedPrior()),
    ],
)
def test_distributions_whose_kl_is_no_mean_over_draws_equal_stock_pyro(kind: type[M2], prior: Any) -> None:
    m2, x = make(kind, prior=prior), make_examples()
    found = []
    for elbo in (StaticEnumELBO(), TraceEnum_ELBO(max_plate_nesting=1)):
        torch.manual_seed(3)
        loss = elbo.differentiable_loss(m2.model, m2.guide, x)
        gradients = torch.autograd.grad(loss, list(m2.parameters()), allow_unused=True)
        found.append([loss.detach(), *(torch.zeros(()) if part is None else part for part in gradients)])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


class _Penalised(M2):
    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        pyro.factor("penalty", torch.tensor(-10.0))
        super().model(x, y, size=size)


def test_observed_sites_outside_of_the_plate_are_scored_once() -> None:
    """As log p(pi) is; they are no part of the bound on log p(x)."""
    x, y = make_examples(), torch.arange(6) % K
    found = []
    for kind in (_Penalised, M2):
        objective = SemiSupervisedELBO(make(kind), num_labelled=6, num_unlabelled=14)
        torch.manual_seed(3)
        found.append([objective(Batch(x, x, y)).item(), objective.mean_bound(x, batch_size=2)])
    assert found[0] == pytest.approx([found[1][0] + 10.0 / 20, found[1][1]])


class _WithoutSize(M1):
    def model(self, x: Tensor, *, size: int | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z), obs=x)


class _WithoutPlate(M1):
    def model(self, x: Tensor, *, size: int | None = None) -> None:
        z = pyro.sample("z", self.prior().expand([len(x)]).to_event(1))
        pyro.sample("x", self.decode(z).to_event(1), obs=x)

    def guide(self, x: Tensor, *, size: int | None = None) -> None:
        pyro.sample("z", self.encode(x).to_event(1))


class _PlateOfLatents(M1):
    def model(self, x: Tensor, *, size: int | None = None) -> None:
        with pyro.plate("components", 4):
            pyro.sample("centres", dist.Normal(torch.zeros(4, L), 1.0).to_event(1))
        super().model(x, size=size)

    def guide(self, x: Tensor, *, size: int | None = None) -> None:
        with pyro.plate("components", 4):
            pyro.sample("centres", dist.Normal(torch.zeros(4, L), 1.0).to_event(1))
        super().guide(x, size=size)


def test_a_plate_of_the_data_set_is_refused_for_all_examples_at_once_too() -> None:
    """Its latents would be drawn and scored for labelled and unlabelled examples apart."""
    m1 = _PlateOfLatents((D,), latent_dim=L, hidden_dims=(8,))
    for size in (6, 600):
        with pytest.raises(StaticELBOError, match=r"'centres' lies in a plate of 4 .* in no plate.*\.to_event"):
            UnsupervisedELBO(m1, num_examples=size)(Batch(make_examples(), None, None))


@pytest.mark.parametrize(
    ("kind", "words"),
    [(_WithoutSize, "6 examples stand for 6, and they stand for 600"), (_WithoutPlate, "lies in a plate")],
)
def test_plates_that_do_not_scale_the_bound_of_a_minibatch_are_refused(kind: type[M1], words: str) -> None:
    m1 = kind((D,), latent_dim=L, hidden_dims=(8,))
    objective = UnsupervisedELBO(m1, num_examples=600)
    with pytest.raises(StaticELBOError, match=words):
        objective(Batch(make_examples(), None, None))


def test_a_plate_without_size_is_right_for_all_examples_at_once() -> None:
    m1 = _WithoutSize((D,), latent_dim=L, hidden_dims=(8,))
    assert UnsupervisedELBO(m1, num_examples=6)(Batch(make_examples(), None, None)).isfinite()


def test_evaluation_needs_a_plate_too() -> None:
    m1 = _WithoutPlate((D,), latent_dim=L, hidden_dims=(8,))
    with pytest.raises(StaticELBOError, match="lies in a plate"):
        UnsupervisedELBO(m1, num_examples=6).mean_bound(make_examples())


class _Noise(PyroModule):
    """A decoder with a scale for each column, a constrained parameter of Pyro."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.mean = nn.Linear(L, D)
        self.scale = PyroParam(torch.full((D,), scale), dist.constraints.positive)

    def forward(self, z: Tensor) -> Tensor:
        mean = self.mean(z)
        return torch.cat([mean, self.scale.log().expand_as(mean)], -1)


def test_parameters_of_pyro_belong_to_one_model() -> None:
    data = SemiSupervisedData.from_arrays(make_examples(40))
    config = TrainingConfig(max_steps=3, device="cpu")

    def train(scale: float) -> M1:
        m1 = M1((D,), latent_dim=L, likelihood="gaussian", decoder=_Noise(scale))
        fit(UnsupervisedELBO.for_data(m1, data), data, config, progress=False)
        return m1

    with pytest.raises(ValueError, match="^decoder.scale is a PyroParam.*module_local_params=True"):
        train(1.0)
    with pyro.settings.context(module_local_params=True):
        one, other = train(1.0), train(9.0)
        assert one.decode(torch.zeros(1, L)).stddev.max() < 0.7 < other.decode(torch.zeros(1, L)).stddev.min()


class _Observes(M2):
    def guide(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, size):
            y = pyro.sample("y", dist.Categorical(logits=self.classify(x)), obs=y, infer=ENUMERATE)
            pyro.sample("z", self.encode(x, y))


@pytest.mark.filterwarnings("ignore:Found non-auxiliary vars in guide but not model")
@pytest.mark.parametrize("elbo", ["static", "stock"])
def test_a_guide_that_observes_the_class_is_refused(elbo: str) -> None:
    objective = SemiSupervisedELBO(make(_Observes), num_labelled=6, num_unlabelled=6, elbo=elbo)
    x, y = make_examples(), torch.arange(6) % K
    objective(Batch(x, None, None))
    with pytest.raises(StaticELBOError, match="Site 'y' is observed in the guide.*`if y is None:`"):
        objective(Batch(x, x, y))
