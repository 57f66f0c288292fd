"""log p(x) and the class posterior of models with sites of their own, against sums and integrals by hand."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor, nn

from pyro_ssvae import StaticEnumELBO
from pyro_ssvae.errors import StaticELBOError
from pyro_ssvae.evaluation import log_likelihood
from pyro_ssvae.models import data_plate

D, K = 3, 4


class Sites(nn.Module):
    """A latent number z, a class y and x ~ N(μ_y + w_y z, 1); the prior of y is flat, of x or of z."""

    def __init__(self, prior: str = "flat", *, guided_by_y: bool = False, slope: float = 1.0) -> None:
        super().__init__()
        self.prior, self.guided_by_y = prior, guided_by_y
        self.mean = nn.Parameter(torch.randn(K, D).double())
        self.weight = nn.Parameter(slope * torch.randn(K, D).double())
        self.of_x, self.of_z = nn.Linear(D, K).double(), nn.Linear(1, K).double()

    def logits(self, x: Tensor, z: Tensor) -> Tensor:
        if self.prior == "flat":
            return torch.zeros(K).double()
        return 2.0 * (self.of_x(x) if self.prior == "x" else self.of_z(z.unsqueeze(-1)))

    def x_given(self, y: Tensor, z: Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.mean[y] + self.weight[y] * z.unsqueeze(-1), 1.0).to_event(1)

    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            y = pyro.sample("y", dist.Categorical(logits=self.logits(x, z)), obs=y)
            pyro.sample("x", self.x_given(y, z), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, size):
            if y is None:
                q_y = dist.Categorical(logits=self.of_x(x))
                y = pyro.sample("y", q_y, infer={"enumerate": "parallel", "expand": False})
            loc = 0.1 * y.double() if self.guided_by_y else 0.0
            pyro.sample("z", dist.Normal(x.new_zeros(()) + loc, 1.2 if self.guided_by_y else 1.0))

    @torch.no_grad()
    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, y) by the trapezoidal rule, shape (N, K)."""
        z = torch.linspace(-8.0, 8.0, 4001).double().view(-1, 1, 1)
        log_py = self.logits(x.unsqueeze(1), z).log_softmax(-1).expand(*z.shape[:1], len(x), 1, K).squeeze(-2)
        log_p = self.x_given(torch.arange(K), z).log_prob(x.unsqueeze(1)) + log_py
        return (log_p + dist.Normal(0.0, 1.0).log_prob(z)).logsumexp(0) + math.log(16.0 / 4000.0)


def make_examples(n: int = 5) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(2)).double()


def test_a_class_prior_of_the_example_is_its_own() -> None:
    """z explains nothing and is drawn from its prior, so no noise is left."""
    module, x = Sites("x", slope=0.0), make_examples()
    log_py = module.of_x(x).mul(2.0).log_softmax(-1).detach()
    log_px_given_y = dist.Normal(module.mean, 1.0).to_event(1).log_prob(x.unsqueeze(1)).detach()
    found = log_likelihood(module, x, num_samples=3)
    torch.testing.assert_close(found.log_px, (log_py + log_px_given_y).logsumexp(-1))
    torch.testing.assert_close(found.log_prior, log_py)
    torch.testing.assert_close(found.log_px_given_y, log_px_given_y)
    torch.testing.assert_close(found.log_joint, log_py + log_px_given_y)
    torch.testing.assert_close(found.class_posterior(), (log_py + log_px_given_y).softmax(-1))
    alone = torch.cat([log_likelihood(module, row, num_samples=3).log_px for row in x.split(1)])
    torch.testing.assert_close(found.log_px, alone)


def test_a_class_prior_of_the_example_in_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = Sites("x", slope=0.0), make_examples(50)
    whole = log_likelihood(module, x, num_samples=3)
    monkeypatch.setattr("pyro_ssvae.evaluation.metrics._MAX_ELEMENTS", 100)
    parts = log_likelihood(module, x, num_samples=3)
    torch.testing.assert_close(parts.log_px, whole.log_px)
    torch.testing.assert_close(parts.log_prior, whole.log_prior)


@pytest.mark.parametrize("prior", ["flat", "x", "z"])
@pytest.mark.parametrize("guided_by_y", [False, True])
@pytest.mark.parametrize("common_draws", [False, True])
def test_priors_of_the_class_against_integrals(
    prior: str, guided_by_y: bool, common_draws: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_ssvae.evaluation.metrics._SAMPLES_AT_A_TIME", 1999)  # and a last portion of one draw
    torch.manual_seed(4)
    module, x = Sites(prior, guided_by_y=guided_by_y), make_examples()
    log_joint = module.log_joint(x)
    found = log_likelihood(module, x, num_samples=1999 * 10 + 1, common_draws=common_draws)
    torch.testing.assert_close(found.log_px, log_joint.logsumexp(-1), atol=0.04, rtol=0.0)
    torch.testing.assert_close(found.class_posterior(), log_joint.softmax(-1), atol=0.02, rtol=0.0)
    torch.testing.assert_close(found.log_joint.logsumexp(-1), found.log_px)
    if prior == "z":
        assert found.log_prior is None
        assert found.log_px_given_y is None
    else:
        assert found.log_prior.shape == (len(x), K)
        torch.testing.assert_close(found.log_px_given_y + found.log_prior, found.log_joint)


def test_one_draw_of_a_class_that_depends_on_it() -> None:
    module, x = Sites("z"), make_examples()
    found = log_likelihood(module, x, num_samples=1, seed=3)
    torch.default_generator.manual_seed(3)
    with torch.no_grad():
        z = dist.Normal(torch.zeros(1, 5).double(), 1.0).sample()  # from its prior, so that its densities cancel
        log_py = module.of_z(z.unsqueeze(-1)).mul(2.0).log_softmax(-1).movedim(-1, 0)
        log_p = log_py + module.x_given(torch.arange(K).view(-1, 1, 1), z).log_prob(x)  # (K, 1, B)
    torch.testing.assert_close(found.log_px, log_p.squeeze(1).logsumexp(0))
    torch.testing.assert_close(found.class_posterior(), log_p.squeeze(1).softmax(0).T)


class _TwoClasses(Sites):
    def guide(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        super().guide(x, y, size=size)
        with pyro.plate("more", len(x), dim=-1):
            pyro.sample("w", dist.Categorical(logits=self.of_x(x)), infer={"enumerate": "parallel"})


class _ClassOfGuide(Sites):
    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", self.x_given(torch.tensor(0), z), obs=x)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (_TwoClasses, "enumerates both 'y' and 'w'.*log_likelihood sums over one class"),
        (_ClassOfGuide, r"enumerates 'y'.*log_likelihood needs p\(y\)"),
    ],
)
def test_classes_that_cannot_be_summed(kind: type[Sites], words: str) -> None:
    with pytest.raises(StaticELBOError, match=words) as caught:
        log_likelihood(kind(), make_examples(), num_samples=2)
    assert "stock" not in str(caught.value)


class _SharedScale(Sites):
    """A latent number w that all examples share."""

    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(w * z.unsqueeze(-1), x.new_ones(D)).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))


def test_a_latent_that_all_examples_share_is_refused_unless_it_is_conditioned() -> None:
    module, x = _SharedScale(), make_examples()
    with pytest.raises(StaticELBOError, match=r"'w' is the same for all examples.*poutine.condition"):
        log_likelihood(module, x, num_samples=2)
    for name in ("model", "guide"):
        setattr(module, name, poutine.condition(getattr(module, name), data={"w": torch.tensor(0.0)}))
    found = log_likelihood(module, x, num_samples=2).log_px
    torch.testing.assert_close(found, dist.Normal(0.0, 1.0).log_prob(x).sum(-1))


class _Hidden(Sites):
    """Sites of which the named ones are masked or scaled, in model and guide or in one of them."""

    names: tuple[str, ...] = ("x",)
    owners: tuple[str, ...] = ("model", "guide")
    size: int | None = None

    def handle(self, x: Tensor) -> AbstractContextManager[object]:
        return poutine.mask(mask=x[:, 0] < 0)

    def of(self, owner: str, name: str, x: Tensor) -> AbstractContextManager[object]:
        return self.handle(x) if name in self.names and owner in self.owners else nullcontext()

    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, self.size):
            with self.of("model", "z", x):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with self.of("model", "y", x):
                y = pyro.sample("y", dist.Categorical(logits=self.logits(x, z)), obs=y)
            with self.of("model", "x", x):
                pyro.sample("x", self.x_given(y, z), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, self.size):
            with self.of("guide", "y", x):
                q_y = dist.Categorical(logits=self.of_x(x))
                pyro.sample("y", q_y, infer={"enumerate": "parallel", "expand": False})
            with self.of("guide", "z", x):
                pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0 if "z" not in self.names else 1.2))


def make_hidden(prior: str = "flat", **attributes: object) -> _Hidden:
    torch.manual_seed(4)
    module = _Hidden(prior)
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


@pytest.mark.parametrize("prior", ["flat", "x", "z"])
def test_a_masked_x_leaves_the_likelihood_of_nothing(prior: str) -> None:
    module, x = make_hidden(prior), make_examples(20)
    seen = x[:, 0] < 0
    found = log_likelihood(module, x, num_samples=50)
    plain = log_likelihood(make_hidden(prior, names=()), x, num_samples=50)
    torch.testing.assert_close(found.log_px[~seen], torch.zeros(int((~seen).sum())).double())
    assert torch.equal(found.log_px[seen], plain.log_px[seen])
    if prior == "x":
        torch.testing.assert_close(found.class_posterior()[~seen], plain.log_prior[~seen].exp())
    without_x = log_likelihood(make_hidden(prior, handle=lambda x: poutine.mask(mask=False)), x, num_samples=50)
    torch.testing.assert_close(without_x.log_px, torch.zeros(20).double())


@pytest.mark.parametrize("prior", ["flat", "x", "z"])
def test_examples_that_are_masked_as_a_whole(prior: str) -> None:
    """As in training, where they add nothing to the bound."""
    module, x = make_hidden(prior, names=("x", "y", "z")), make_examples(20)
    seen = x[:, 0] < 0
    found = log_likelihood(module, x, num_samples=20_000)
    torch.testing.assert_close(found.log_px[~seen], torch.zeros(int((~seen).sum())).double())
    torch.testing.assert_close(found.class_posterior()[~seen], module.of_x(x).softmax(-1).detach()[~seen])
    torch.testing.assert_close(found.log_px[seen], module.log_joint(x).logsumexp(-1)[seen], atol=0.04, rtol=0.0)
    assert found.log_prior is None
    elbo = StaticEnumELBO(num_particles=5, importance_weighted=True)
    assert elbo.loss(module.model, module.guide, x[~seen]) == pytest.approx(0.0, abs=1e-12)


def test_the_likelihood_is_that_of_one_example_whatever_the_plate_stands_for() -> None:
    x = make_examples()
    found, plain = (log_likelihood(make_hidden(names=(), size=size), x, num_samples=10) for size in (100, None))
    torch.testing.assert_close(found.log_px, plain.log_px)


@pytest.mark.parametrize("scale", [0.5, torch.tensor([0.5, 1.0, 1.0, 1.0, 1.0]).double()])
def test_scaled_densities_are_no_likelihood(scale: float | Tensor) -> None:
    def handle(x: Tensor) -> AbstractContextManager[object]:
        return poutine.scale(scale=scale if isinstance(scale, float) else scale[: len(x)])

    for name in "xyz":
        with pytest.raises(ValueError, match=f"'{name}' of the model is scaled.*Leave poutine.scale out"):
            log_likelihood(make_hidden(names=(name,), handle=handle), make_examples(), num_samples=2)
    ones = make_hidden(handle=lambda x: poutine.scale(scale=x.new_ones(len(x))))
    plain = log_likelihood(make_hidden(names=()), make_examples(), num_samples=2)
    torch.testing.assert_close(log_likelihood(ones, make_examples(), num_samples=2).log_px, plain.log_px)


@pytest.mark.parametrize("owner", ["model", "guide"])
@pytest.mark.parametrize("name", ["y", "z"])
def test_latent_sites_are_masked_in_both_or_neither(owner: str, name: str) -> None:
    module = make_hidden(names=(name,), owners=(owner,), handle=lambda x: poutine.mask(mask=False))
    with pytest.raises(ValueError, match=f"'{name}' is not masked alike in model and guide"):
        log_likelihood(module, make_examples(), num_samples=2)
