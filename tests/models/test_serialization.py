"""Recorded constructor arguments, saving and loading of models of the caller's own, and what models share."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_ssvae
from pyro_ssvae import DDGM, M1, M1M2, M2
from pyro_ssvae.distributions import (
    FixedClassPrior,
    Gaussian,
    Likelihood,
    Mixed,
    MixtureOfGaussians,
    Poisson,
    VampPrior,
)
from pyro_ssvae.models import LatentVariableModel, Model, SemiSupervisedModel, data_plate
from pyro_ssvae.networks import MLP


class LinearVAE(LatentVariableModel):
    """A model of the caller's own, with one linear layer each way."""

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int = 2,
        *,
        likelihood: str | Likelihood = "gaussian",
        bias: bool = True,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__(event_shape, latent_dim, likelihood, None)
        self.encoder = nn.Linear(self.event_size, 2 * latent_dim, bias=bias)
        self.decoder = nn.Linear(latent_dim, self.likelihood.num_params * self.event_size, bias=bias)
        self.head = head
        self._attach_prior()

    def model(self, x: Tensor, *, size: int | None = None) -> None:
        with data_plate(x, size):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self._make_likelihood(self.decoder(z), z.shape[:-1]), obs=x)

    def guide(self, x: Tensor, *, size: int | None = None) -> None:
        with data_plate(x, size):
            pyro.sample("z", self._make_posterior(self.encoder(x.flatten(1))))


class WiderVAE(LinearVAE):
    """A subclass with an argument of its own."""

    def __init__(self, width: int, *args: int, scale: float = 1.0, **options: object) -> None:
        super().__init__((width,), *args, **options)
        self.scale = scale


class ScaledM2(M2):
    """A subclass of a model of the library with an argument of its own."""

    def __init__(self, *args: object, scale: float = 1.0, **options: object) -> None:
        super().__init__(*args, **options)
        self.scale = scale


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize(
    "model",
    [
        LinearVAE((3, 2)),
        LinearVAE((3, 2), 4, bias=False),
        LinearVAE(event_shape=torch.Size((6,)), latent_dim=np.int64(3), likelihood=Gaussian(min_scale=0.2)),
        WiderVAE(5, 3, scale=0.5, bias=False),
        WiderVAE(scale=0.5, width=5),
    ],
)
@pytest.mark.parametrize("by_name", [True, False])
def test_a_model_of_ones_own_is_saved_and_loaded(model: LinearVAE, by_name: bool, tmp_path: Path) -> None:
    folder = pyro_ssvae.save(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = pyro_ssvae.load(folder) if by_name else pyro_ssvae.load(folder, cls=type(model))
    assert type(loaded) is type(model)
    assert same_weights(loaded, model)
    assert loaded.config() == model.config()
    assert getattr(loaded, "scale", None) == getattr(model, "scale", None)
    assert loaded.likelihood.name == model.likelihood.name


def test_arguments_are_recorded_however_they_are_given() -> None:
    expected = {"event_shape": [6], "latent_dim": 3, "likelihood": "gaussian", "bias": True, "head": None}
    for model in (LinearVAE((6,), 3), LinearVAE([6], latent_dim=3), LinearVAE(latent_dim=3, event_shape=(6,))):
        assert model.config() == {"format": 1, "class": "LinearVAE", "arguments": expected, "custom": {}}
    assert LinearVAE((6,)).config()["arguments"] == expected | {"latent_dim": 2}
    wide = WiderVAE(6, scale=2.0, bias=False).config()
    assert wide["arguments"] == {"width": 6, "scale": 2.0, "bias": False}
    arguments = ScaledM2((6,), 3, latent_dim=2).config()["arguments"]  # those of *args have no name
    assert arguments == {"*": [[6], 3], "latent_dim": 2, "scale": 1.0}


def test_modules_of_ones_own_are_named(tmp_path: Path) -> None:
    model = LinearVAE((6,), head=nn.Linear(6, 2))
    assert model.config()["custom"] == {"head": "Linear"}
    pyro_ssvae.save(model, tmp_path)
    with pytest.raises(ValueError, match="head=<your Linear>"):
        pyro_ssvae.load(tmp_path, cls=LinearVAE)
    assert same_weights(pyro_ssvae.load(tmp_path, head=nn.Linear(6, 2)), model)


def test_networks_wrapped_by_compile_are_saved_under_the_names_of_others(tmp_path: Path) -> None:
    plain = LinearVAE((6,), head=nn.Linear(6, 2))
    wrapped = LinearVAE((6,), head=torch.compile(nn.Linear(6, 2), backend="eager"))
    wrapped.encoder = torch.compile(wrapped.encoder, backend="eager")
    pyro_ssvae.save(wrapped, tmp_path)
    loaded = pyro_ssvae.load(tmp_path, head=plain.head)
    assert torch.equal(loaded.encoder.weight, wrapped.encoder.weight)
    assert torch.equal(loaded.head.weight, wrapped.head.weight)
    loaded = pyro_ssvae.load(tmp_path, head=torch.compile(nn.Linear(6, 2), backend="eager"))
    assert torch.equal(loaded.head.weight, wrapped.head.weight)
    with pytest.raises(TypeError, match="The model is wrapped by torch.compile. Pass the model itself; Training"):
        pyro_ssvae.UnsupervisedELBO(torch.compile(plain, backend="eager"), num_examples=9)


def test_a_subclass_of_a_library_model_loads_as_that_model(tmp_path: Path) -> None:
    mine = ScaledM2((6,), 3, latent_dim=2, hidden_dims=(8,), scale=0.5)
    pyro_ssvae.save(mine, tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["class"], saved["base"]["class"], saved["arguments"]["scale"]) == ("ScaledM2", "M2", 0.5)
    with pytest.warns(UserWarning, match="Pass cls=ScaledM2"):
        loaded = pyro_ssvae.load(tmp_path)
    assert type(loaded) is M2
    assert same_weights(loaded, mine)
    loaded = pyro_ssvae.load(tmp_path, cls=ScaledM2)
    assert (type(loaded), loaded.scale) == (ScaledM2, 0.5)
    assert same_weights(pyro_ssvae.load(tmp_path, cls=M2), mine)
    mine.head = nn.Linear(2, 3)
    pyro_ssvae.save(mine, tmp_path)
    with (
        pytest.warns(UserWarning, match="Pass cls=ScaledM2"),
        pytest.raises(ValueError, match="it holds head.bias, which the model has not; pass cls=ScaledM2"),
    ):
        pyro_ssvae.load(tmp_path)


@pytest.mark.parametrize(
    "build",
    [
        lambda: M2((6,), 3, class_prior=FixedClassPrior(3, torch.arange(1, 4)), classifier=MLP((6,), 3, (7,))),
        lambda: M1((3,), likelihood=Mixed([([0, 2], Gaussian(min_scale=0.1)), ([1], Poisson())])),
        lambda: M1((3,), latent_dim=2, prior=MixtureOfGaussians(2, num_components=4)),
        lambda: M1M2.from_m1(M1((1, 8, 8), prior="flow"), 3, prior="vamp", classify_from="x"),
        lambda: M1M2.from_m1(M1((6,)), 3, active=torch.arange(50) < 7, prior="mixture", class_prior="dirichlet"),
        lambda: DDGM((1, 8, 8), num_classes=3, prior="student_t"),
    ],
)
def test_parts_of_the_library_are_rebuilt(build: object, tmp_path: Path) -> None:
    model = build()
    loaded = pyro_ssvae.load(pyro_ssvae.save(model, tmp_path))
    assert same_weights(loaded, model)
    assert loaded.config() == model.config()


def test_a_class_that_was_not_imported(tmp_path: Path) -> None:
    pyro_ssvae.save(LinearVAE((6,)), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("LinearVAE", "Unseen"))
    with pytest.raises(ValueError, match=r"Unknown model 'Unseen'.*cls=Unseen"):
        pyro_ssvae.load(tmp_path)
    config.write_text(config.read_text().replace("Unseen", "Gaussian"))
    with pytest.raises(ValueError, match="Unknown model 'Gaussian'"):
        pyro_ssvae.load(tmp_path)


def test_a_class_with_the_name_of_a_library_model_does_not_replace_it(tmp_path: Path) -> None:
    mine = type("M1", (LinearVAE,), {"__module__": __name__})
    assert type(pyro_ssvae.load(pyro_ssvae.save(M1((6,)), tmp_path))) is M1
    folder = pyro_ssvae.save(mine((6,)), tmp_path / "mine")
    assert type(pyro_ssvae.load(folder, cls=mine)) is mine
    subclass = type("M2", (ScaledM2,), {"__module__": __name__})
    folder = pyro_ssvae.save(subclass((6,), 3, scale=0.5), tmp_path / "subclass")
    with pytest.warns(UserWarning, match="saved from M2, a subclass of M2 of this package"):
        assert type(pyro_ssvae.load(folder)) is M2
    loaded = pyro_ssvae.load(folder, cls=subclass)
    assert (type(loaded), loaded.scale) == (subclass, 0.5)


def test_models_without_classes_do_not_classify() -> None:
    m1, ddgm = M1((6,)), DDGM((2,))
    assert m1.num_classes is None
    assert ddgm.num_classes is None
    assert M2((6,), np.int64(4)).num_classes == M1M2.from_m1(m1, 4).num_classes == 4
    for method in ("classify", "predict", "predict_proba"):
        with pytest.raises(ValueError, match="no classes"):
            getattr(m1, method)(torch.rand(2, 6))
        with pytest.raises(ValueError, match="no classes"):
            getattr(ddgm, method)(torch.rand(2, 2))


class _ByEnergy(Model):
    """A classifier without a generative p(x|y,z)."""

    def __init__(self) -> None:
        super().__init__((4,), 2, None, num_classes=3)
        self.linear = nn.Linear(4, 3)

    def classify(self, x: Tensor) -> Tensor:
        return self.linear(x)


def test_any_model_with_classes_predicts() -> None:
    model, x = _ByEnergy(), torch.rand(5, 4)
    torch.testing.assert_close(model.predict_proba(x), model.linear(x).softmax(-1).detach())
    assert torch.equal(model.predict(x), model.linear(x).argmax(-1))
    assert not isinstance(model, SemiSupervisedModel)


def test_check_examples() -> None:
    DDGM((2,)).check_examples(torch.full((3, 2), -7.0))
    for model in (M1((2,)), M2((2,), 3), M1M2.from_m1(M1((2,)), 3)):
        model.check_examples(torch.rand(3, 2))
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            model.check_examples(torch.full((3, 2), -7.0))
    with pytest.raises(ValueError, match="counts"):
        M1((2,), likelihood="poisson").check_examples(torch.full((3, 2), 0.5))


def test_initialise_hands_examples_to_the_prior() -> None:
    x = torch.rand(5, 2)
    for model in (M1((2,), prior="vamp", likelihood="gaussian"), M2((2,), 3, prior="vamp", likelihood="gaussian")):
        model.initialise(x)
        assert torch.equal(model.prior.pseudo_inputs[:5], x)
    m1m2 = M1M2.from_m1(M1((2,)), 3, prior="vamp", active=torch.arange(50) < 7)
    m1m2.initialise(x)
    torch.testing.assert_close(m1m2.prior.pseudo_inputs[:5].detach(), m1m2.encode_z1(x).mean)
    for model in (M1((2,)), DDGM((2,)), M1((2,), prior=_OwnPrior())):
        model.initialise(x)  # nothing to set


class _OwnPrior(nn.Module):
    def forward(self) -> dist.TorchDistribution:
        return dist.Laplace(torch.zeros(50), 1.0).to_event(1)


def test_training_functions_are_model_and_guide() -> None:
    for model in (M1((2,)), M2((2,), 3), DDGM((2,)), M1M2.from_m1(M1((2,)), 3).unfreeze_m1()):
        assert model.training_functions() == (model.model, model.guide)
    m1m2 = M1M2.from_m1(M1((2,)), 3)
    assert m1m2.training_functions() == (m1m2.latent_model, m1m2.latent_guide)


@pytest.mark.slow
def test_models_are_importable_without_plotting_and_training_packages() -> None:
    """The models of the package alone: its parent is replaced by an empty package with the same path."""
    root = Path(pyro_ssvae.__file__).parent
    code = f"""
import sys, types
sys.modules["pyro_ssvae"] = package = types.ModuleType("pyro_ssvae")
package.__path__ = [{str(root)!r}]
import pyro_ssvae.models
print([name for name in ("matplotlib", "sklearn", "lightning_fabric", "lightning") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


class _Described(LinearVAE):
    def __init__(self, event_shape: tuple[int, ...], words: object = None) -> None:
        super().__init__(event_shape)
        self.words = words


@pytest.mark.parametrize(
    "words", [{"a": 1, "b": {"c": [2]}}, {0: "a", 1: "b"}, {"class": "a"}, {(0, 1): {None: 0.5}}, {}]
)
def test_dictionaries_among_the_arguments(words: object, tmp_path: Path) -> None:
    loaded = pyro_ssvae.load(pyro_ssvae.save(_Described((3,), words), tmp_path))
    assert loaded.words == words


@pytest.mark.parametrize("frozen", [True, False])
def test_whether_m1_is_frozen_is_saved(frozen: bool, tmp_path: Path) -> None:
    m1m2 = M1M2.from_m1(M1((3,), latent_dim=2), 3)
    if not frozen:
        m1m2.unfreeze_m1()
    loaded = pyro_ssvae.load(pyro_ssvae.save(m1m2, tmp_path))
    assert loaded.m1_frozen == frozen
    assert all(parameter.requires_grad != frozen for parameter in loaded.m1.parameters())
    assert not any(part.training for part in loaded.modules())


def test_a_prior_that_is_handed_in_belongs_to_the_loaded_model(tmp_path: Path) -> None:
    class Own(VampPrior):
        pass

    m1 = M1((3,), latent_dim=2, prior=Own(2, num_components=3))
    prior = Own(2, num_components=3)
    loaded = pyro_ssvae.load(pyro_ssvae.save(m1, tmp_path), prior=prior)
    assert loaded.prior is prior
    torch.testing.assert_close(prior().log_prob(torch.zeros(2)), m1.prior().log_prob(torch.zeros(2)))


class Counting(nn.Linear):
    """A network with a state that is no weight."""

    def __init__(self, state: object) -> None:
        super().__init__(4, 6)
        self.state = state

    def get_extra_state(self) -> object:
        return self.state

    def set_extra_state(self, state: object) -> None:
        self.state = state


def test_extra_states_are_saved_if_they_are_tensors(tmp_path: Path) -> None:
    data = pyro_ssvae.SemiSupervisedData.from_arrays(np.eye(4, dtype=np.float32))
    model = M1.for_data(data, latent_dim=3, encoder=Counting(torch.tensor([3.0])))
    loaded = pyro_ssvae.load(pyro_ssvae.save(model, tmp_path / "model"), encoder=Counting(torch.zeros(1)))
    assert loaded.encoder.state.tolist() == [3.0]
    model = M1.for_data(data, latent_dim=3, encoder=Counting({"calls": 3}))
    objective, config = pyro_ssvae.UnsupervisedELBO.for_data(model, data), pyro_ssvae.TrainingConfig(max_steps=1)
    for call in (
        lambda: pyro_ssvae.save(model, tmp_path / "other"),
        lambda: pyro_ssvae.fit(objective, data, config, out=tmp_path / "other", progress=False),
    ):
        with pytest.raises(TypeError, match=r"get_extra_state of Counting \(encoder\) returns the type dict, and"):
            call()
    assert not (tmp_path / "other").exists()
