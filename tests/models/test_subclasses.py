"""Subclasses of M2: what they generate by a model of their own, and the defaults that ``for_data`` chooses for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_ssvae
from pyro_ssvae import M2, SemiSupervisedData
from pyro_ssvae.distributions import FixedClassPrior
from pyro_ssvae.models import data_plate
from pyro_ssvae.models.diagnostics import class_control
from pyro_ssvae.models.generation import decode_means
from pyro_ssvae.plots import plot_samples

IMAGE = (1, 8, 8)


class _StyleByClass(M2):
    """The centre of z is ten times the class, and x follows z alone, with a mean of z[0]."""

    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, size):
            y = pyro.sample("y", dist.Categorical(logits=self.class_prior.model()), obs=y)
            z = pyro.sample("z", dist.Normal(10.0 * y.unsqueeze(-1).expand(*y.shape, 3), 0.1).to_event(1))
            mean = z[..., :1, None, None].expand(*z.shape[:-1], *IMAGE)
            pyro.sample("x", dist.Normal(mean, 2.0).to_event(3), obs=x)


class _OtherNames(M2):
    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, size):
            pyro.sample("image", dist.Normal(torch.zeros(IMAGE), 1.0).to_event(3), obs=x)


def test_a_subclass_generates_by_its_own_model() -> None:
    torch.manual_seed(0)
    m2 = _StyleByClass(IMAGE, 3, latent_dim=3, hidden_dims=(16,), class_prior=FixedClassPrior(3, [0.7, 0.2, 0.1]))
    for y in (2, torch.tensor([0, 1, 2, 1]), None):
        x, classes = m2.generate(4 if y is not None else 1000, y)
        assert (x - 10.0 * classes.view(-1, 1, 1, 1)).abs().max() < 0.5
    torch.testing.assert_close(classes.bincount() / 1000, torch.tensor([0.7, 0.2, 0.1]), atol=0.05, rtol=0.0)
    z = torch.full((3, 5, 3), 7.0)
    assert torch.equal(decode_means(m2, torch.arange(3).unsqueeze(-1), z), torch.full((3, 5, *IMAGE), 7.0))
    m2.classify = lambda x: -(x.mean((1, 2, 3)).unsqueeze(-1) - 10.0 * torch.arange(3)).abs()
    assert class_control(m2, torch.rand(5, *IMAGE))["samples"] == 1.0
    assert plot_samples(m2, num_columns=2, value_range=(0.0, 20.0)) is not None


def test_a_model_with_other_sites_generates_by_prior_and_decoder_and_says_so() -> None:
    torch.manual_seed(0)
    m2 = _OtherNames(IMAGE, 3, latent_dim=3, hidden_dims=(16,))
    with pytest.warns(UserWarning, match="_OtherNames.model has no site x"):
        x, _ = m2.generate(2, 1)
    assert x.shape == (2, *IMAGE)


class _PassesOn(M2):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.centre = nn.Embedding(self.num_classes, self.latent_dim)


class _SetsNetworks(_PassesOn):
    def __init__(self, event_shape: tuple[int, ...], num_classes: int, **options: Any) -> None:
        super().__init__(event_shape, num_classes, networks="mlp", **options)


def test_subclasses_that_pass_arguments_on_have_the_defaults_of_their_base(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (60, 3, 32, 32), generator=generator, dtype=torch.uint8)
    data = SemiSupervisedData.from_arrays(x, torch.arange(60) % 3)
    plain, passes, sets = (cls.for_data(data, latent_dim=2) for cls in (M2, _PassesOn, _SetsNetworks))
    assert plain.likelihood.name == passes.likelihood.name == sets.likelihood.name == "discretised_logistic"
    assert type(plain.encoder) is type(passes.encoder)
    assert type(sets.encoder) is type(M2(IMAGE, 3).encoder)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, passes.state_dict()[name])
    pyro_ssvae.save(passes, tmp_path)
    loaded = pyro_ssvae.load(tmp_path, cls=_PassesOn)
    assert torch.equal(loaded.centre.weight, passes.centre.weight)

    rows = torch.randn(60, 4, generator=generator)
    rows[::7, 1] = torch.nan
    table = SemiSupervisedData.from_arrays(rows, torch.arange(60) % 3)
    assert _PassesOn.for_data(table, latent_dim=2).missing
    with pytest.raises(TypeError, match="multiple values"):
        _SetsNetworks.for_data(data, networks="conv")


class _ClassOfExample(M2):
    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, size):
            z = pyro.sample("z", self.prior())
            y = pyro.sample("y", dist.Categorical(logits=10.0 * x[:, 0, 0, :3]), obs=y)
            pyro.sample("x", self.decode(y, z), obs=x)


@pytest.mark.filterwarnings("error")
def test_generating_by_a_class_of_the_example_warns() -> None:
    m2 = _ClassOfExample(IMAGE, 3, latent_dim=3, hidden_dims=(16,))
    with pytest.warns(UserWarning, match=r"p\(y\|x\) of _ClassOfExample.model depends on x.*y=\.\.\."):
        m2.generate(2)
    m2.generate(2, y=1)
    _StyleByClass(IMAGE, 3, latent_dim=3, hidden_dims=(16,)).generate(20)


class _IndexedByExample(_StyleByClass):
    """Takes x for an index, of which only 0 exists."""

    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        nn.functional.one_hot(x.flatten(1)[:, 0].long(), 1)
        super().model(x, y, size=size)


@pytest.mark.parametrize("class_prior", ["uniform", "map", "dirichlet"])
def test_generating_runs_the_own_model_at_zeros_alone_if_it_takes_no_other_values(class_prior: str) -> None:
    m2 = _IndexedByExample(IMAGE, 3, latent_dim=3, hidden_dims=(16,), class_prior=class_prior)
    x, y = m2.generate(4)
    assert x.shape == (4, *IMAGE)
    assert y.shape == (4,)


class _Spread(M2):
    """x is standard normal around an offset of the data set, which the guide has learned to be 50."""

    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        with data_plate(x, size):
            y = pyro.sample("y", dist.Categorical(logits=self.class_prior.model()), obs=y)
            pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(offset.expand(*y.shape, *IMAGE), 1.0).to_event(3), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        pyro.sample("offset", dist.Normal(50.0, 0.01))
        super().guide(x, y, size=size)


@pytest.mark.parametrize("y", [None, 1])
def test_latents_of_the_data_set_are_generated_as_the_guide_has_learned_them(y: int | None) -> None:
    m2 = _Spread(IMAGE, 3, latent_dim=3, hidden_dims=(16,))
    x, _ = m2.generate(4, y)
    assert (x - 50.0).abs().max() < 0.1
    x = decode_means(m2, torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 5, 3))
    assert x.shape == (2, 5, *IMAGE)
    assert (x - 50.0).abs().max() < 0.1
