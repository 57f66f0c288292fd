"""M2's interface, saving, independence of instances, and training by stock Pyro."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn

import pyro_ssvae
from pyro_ssvae import M1, M1M2, M2, SemiSupervisedData, SemiSupervisedELBO, StaticEnumELBO
from pyro_ssvae.data import Batch
from pyro_ssvae.distributions import Bernoulli, FixedClassPrior, Gaussian, Likelihood
from tests.objectives.small import take_steps

IMAGE = (1, 8, 8)


def make_m2(**options: object) -> M2:
    arguments = {"latent_dim": 3, "hidden_dims": (16,)} | options
    torch.manual_seed(0)
    return M2(arguments.pop("event_shape", IMAGE), arguments.pop("num_classes", 10), **arguments)


@pytest.mark.parametrize("event_shape", [(1, 8, 8), (3, 8, 9), (8, 8), (30,)])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_shapes(event_shape: tuple[int, ...], likelihood: str, device: torch.device) -> None:
    m2 = make_m2(event_shape=event_shape, num_classes=4, likelihood=likelihood).to(device)
    x, y = torch.rand(5, *event_shape, device=device), torch.tensor([0, 1, 2, 3, 0], device=device)
    assert m2.classify(x).shape == (5, 4)
    assert m2.predict(x).shape == (5,)
    torch.testing.assert_close(m2.predict_proba(x).sum(-1), torch.ones(5, device=device))
    qz = m2.encode(x, y)
    assert (qz.batch_shape, qz.event_shape) == ((5,), (3,))
    px = m2.decode(y, qz.sample())
    assert (px.batch_shape, px.event_shape) == ((5,), event_shape)
    samples, classes = m2.generate(6)
    assert samples.shape == (6, *event_shape)
    assert classes.shape == (6,)
    assert samples.device.type == device.type
    every = torch.arange(4, device=device)[:, None]
    assert m2.decode(every, m2.encode(x, every).sample()).batch_shape == (4, 5)


@pytest.mark.parametrize(
    ("batch_norm", "dropout", "hidden"), [(True, 0.0, (16,)), (False, 0.3, (8, 12)), (True, 0.2, (8, 8, 8))]
)
def test_every_kind_of_network_trains(
    batch_norm: bool, dropout: float, hidden: tuple[int, ...], device: torch.device
) -> None:
    m2 = make_m2(batch_norm=batch_norm, dropout=dropout, hidden_dims=hidden, classifier="mlp", activation="softplus")
    objective = SemiSupervisedELBO(m2, num_labelled=4, num_unlabelled=40).to(device)
    x = torch.rand(9, *IMAGE, device=device).round()
    first, *_, last = take_steps(objective, Batch(x[4:], x[:4], torch.arange(4, device=device)), 30, 3e-3)
    assert last < first


def test_predicting_preserves_mode_and_gradients() -> None:
    m2 = make_m2(dropout=0.5)
    m2.train()
    m2.decoder.eval()
    x = torch.rand(4, *IMAGE)
    torch.testing.assert_close(m2.predict_proba(x), m2.predict_proba(x))  # no dropout
    assert m2.training
    assert not m2.decoder.training
    assert not m2.predict_proba(x).requires_grad


def test_generate_of_a_class_and_of_the_prior() -> None:
    m2 = make_m2(num_classes=3, class_prior=FixedClassPrior(3, [0.7, 0.2, 0.1]))
    assert m2.generate(4, y=2)[1].tolist() == [2, 2, 2, 2]
    assert m2.generate(2, y=torch.tensor([1, 0]))[1].tolist() == [1, 0]
    m2.class_names = ("benign", "malignant", "unsure")
    assert m2.generate(2, y="malignant")[1].tolist() == [1, 1]
    assert m2.generate(2, y=["unsure", "benign"])[1].tolist() == [2, 0]
    assert m2.generate(2, y=np.array(["unsure", "benign"]))[1].tolist() == [2, 0]
    torch.manual_seed(0)
    share = m2.generate(4000)[1].bincount(minlength=3) / 4000
    error = (share * (1 - share) / 4000).sqrt()
    assert ((share - torch.tensor([0.7, 0.2, 0.1])).abs() < 4 * error).all()


class _Narrow(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros(len(x), 5)


class _Pair(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(x), 3), torch.zeros(len(x), 3)


class _Transposed(nn.Module):
    def __init__(self, *size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return torch.zeros(z.shape[-2], len(y), *self.size)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: make_m2(event_shape=()), ValueError, "event_shape"),
        (lambda: make_m2(latent_dim=0), ValueError, "latent_dim=0"),
        (lambda: make_m2(num_classes=1), ValueError, "at least 2"),
        (lambda: make_m2(hidden_dims=()), ValueError, "hidden_dims"),
        (lambda: make_m2(activation="nope"), ValueError, "softplus"),
        (lambda: make_m2(dropout=1.0), ValueError, "dropout"),
        (lambda: make_m2(likelihood="nope"), ValueError, "bernoulli, gaussian"),
        (lambda: make_m2(likelihood=3), TypeError, "Likelihood"),
        (lambda: make_m2(class_prior="nope"), ValueError, "uniform, map, dirichlet"),
        (lambda: make_m2(class_prior=3), TypeError, "ClassPrior"),
        (lambda: make_m2(class_prior=FixedClassPrior(3)), ValueError, "3 classes"),
        (lambda: make_m2(classifier="nope"), ValueError, "auto, conv or mlp"),
        (lambda: make_m2(classifier=3), TypeError, "module"),
        (lambda: make_m2(event_shape=(30,), classifier="conv"), ValueError, "mlp"),
        (
            lambda: make_m2(classifier=nn.Linear(8, 1)).predict_proba(torch.rand(2, *IMAGE)),
            ValueError,
            r"classifier returned shape \(2, 1, 8, 1\); its last size must be 10",
        ),
        (
            lambda: make_m2(encoder=_Narrow()).encode(torch.rand(2, *IMAGE), torch.arange(2)),
            ValueError,
            r"encoder returned shape \(2, 5\); its last size must be 6, a location and a log-scale for each of 3",
        ),
        (
            lambda: make_m2(encoder=_Pair()).encode(torch.rand(2, *IMAGE), torch.arange(2)),
            TypeError,
            "encoder returned the type tuple",
        ),
        *(
            (
                lambda size=size: make_m2(decoder=_Transposed(*size)).decode(
                    torch.arange(10)[:, None], torch.zeros(4, 3)
                ),
                ValueError,
                r"decoder returned shape \(4, 10, .*, and \(10, 4, 64\) is needed",
            )
            for size in ((64,), IMAGE, (1, 1, 64))
        ),
        (lambda: make_m2().predict(torch.rand(2, 64)), ValueError, r"\(1, 8, 8\)"),
        (lambda: make_m2().generate(0), ValueError, "at least 1"),
        (lambda: make_m2().generate(2, y=10), ValueError, "0 to 9"),
        (
            lambda: make_m2().generate(2, y="cat"),
            ValueError,
            "y=cat is no class; the classes are known by number alone",
        ),
        (lambda: make_m2().generate(2, y=torch.zeros(3).long()), ValueError, "3 labels for 2 examples"),
    ],
)
def test_errors(call: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


class _WithoutClass(nn.Module):
    def __init__(self, shape: tuple[int, ...], num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.shape, self.linear = shape, nn.Linear(num_inputs, num_outputs)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.linear(x.flatten(1)).reshape(-1, *self.shape)


def test_networks_may_leave_the_class_out() -> None:
    torch.manual_seed(0)
    m2 = make_m2(encoder=_WithoutClass((6,), 64, 6), decoder=_WithoutClass((64,), 3, 64))
    x = torch.rand(4, *IMAGE).round()
    bounds = []
    for elbo in (StaticEnumELBO(analytic_kl=False), TraceEnum_ELBO(max_plate_nesting=1)):
        torch.manual_seed(1)
        bounds.append(elbo.loss(m2.model, m2.guide, x))
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-5)
    images = make_m2(decoder=_WithoutClass((1, 8, 8), 3, 64))  # (B, 1, 8, 8), as of a transposed convolution
    assert images.decode(torch.arange(4), torch.zeros(4, 3)).mean.shape == (4, *IMAGE)


class _Mine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


class _MyEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.y = nn.Linear(64, 6), nn.Embedding(10, 6)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.x(x.flatten(1)) + self.y(y)


class _MyLikelihood(Likelihood):
    num_params = 1
    name = "laplace"

    def forward(self, params: Tensor, event_dim: int) -> dist.Distribution:
        return dist.Laplace(params.squeeze(-1 - event_dim), 1.0).to_event(event_dim)


def test_own_modules() -> None:
    m2 = make_m2(classifier=_Mine(), encoder=_MyEncoder(), likelihood=_MyLikelihood())
    x = torch.rand(4, *IMAGE)
    loss = SemiSupervisedELBO(m2, num_labelled=0, num_unlabelled=4)(Batch(x, None, None))
    loss.backward()
    assert m2.encoder.y.weight.grad.abs().min() > 0


class _SubM2(M2):
    pass


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"classifier": "mlp", "activation": "softplus", "batch_norm": True, "dropout": 0.1},
        {"likelihood": Gaussian(min_scale=0.2), "class_prior": "map"},
        {"class_prior": "dirichlet", "event_shape": (30,)},
        {"class_prior": FixedClassPrior(10, range(1, 11)), "hidden_dims": (8, 9)},
        {"pose": True, "latent_dim": 7},
    ],
)
def test_save_and_load(options: dict[str, object], tmp_path: Path, device: torch.device) -> None:
    m2 = make_m2(**options).to(device).eval()
    x = torch.rand(4, *m2.event_shape)
    folder = pyro_ssvae.save(m2, tmp_path / "run" / "model")
    for place in (folder, folder.parent):
        loaded = pyro_ssvae.load(place)
        assert type(loaded) is M2
        assert not loaded.training
        torch.testing.assert_close(loaded.predict_proba(x), m2.predict_proba(x).cpu())
        torch.testing.assert_close(loaded.class_prior.mean(), m2.class_prior.mean().cpu())
        assert loaded.config() == m2.config()
    assert pyro_ssvae.load(folder, device=device).predict_proba(x).device.type == device.type
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_load_subclass_and_own_modules(tmp_path: Path) -> None:
    own = {"classifier": _Mine(), "likelihood": _MyLikelihood()}
    m2 = _SubM2(IMAGE, 10, latent_dim=3, hidden_dims=(16,), **own)
    folder = pyro_ssvae.save(m2, tmp_path)
    with pytest.raises(ValueError, match="classifier=<your _Mine>, likelihood=<your _MyLikelihood>"):
        pyro_ssvae.load(folder, cls=_SubM2)
    with pytest.warns(UserWarning, match="pass cls=_SubM2|Pass cls=_SubM2"):
        pyro_ssvae.load(folder, classifier=_Mine(), likelihood=_MyLikelihood())
    loaded = pyro_ssvae.load(folder, cls=_SubM2, classifier=_Mine(), likelihood=_MyLikelihood())
    assert type(loaded) is _SubM2
    x = torch.rand(4, *IMAGE)
    torch.testing.assert_close(loaded.predict_proba(x), m2.predict_proba(x))


def test_two_models_never_interfere() -> None:
    pyro.clear_param_store()
    first, second = make_m2(class_prior="dirichlet"), make_m2(class_prior="dirichlet")
    before = {name: tensor.clone() for name, tensor in second.state_dict().items()}
    objective = SemiSupervisedELBO(first, num_labelled=2, num_unlabelled=4)
    take_steps(objective, Batch(torch.rand(4, *IMAGE), torch.rand(2, *IMAGE), torch.tensor([0, 1])), 1, 0.1)
    assert len(pyro.get_param_store()) == 0
    for name, tensor in second.state_dict().items():
        assert torch.equal(tensor, before[name])
    changed = [not torch.equal(t, before[name]) for name, t in first.named_parameters()]
    assert all(changed)


@pytest.mark.parametrize(
    "class_prior", ["uniform", *(pytest.param(name, marks=pytest.mark.slow) for name in ("map", "dirichlet"))]
)
def test_stock_svi_trains_model_and_guide(class_prior: str) -> None:
    """Pyro's own SVI, optimiser and ELBOs on the untouched module: what Pyro users will try first."""
    pyro.clear_param_store()
    m2 = make_m2(class_prior=class_prior)
    x = torch.rand(40, *IMAGE, generator=torch.Generator().manual_seed(1)).round()
    y = torch.arange(40) % 10
    before = {name: tensor.clone() for name, tensor in m2.named_parameters()}
    model, guide, classify = pyro_ssvae.pyro_view(m2, "model", "guide", "classify_model")
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 3e-3}), TraceEnum_ELBO(max_plate_nesting=1))
    labels = SVI(classify, lambda *args, **kwargs: None, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO())
    losses = [(svi.step(x), labels.step(x, y)) for _ in range(40)]
    assert losses[-1][0] < losses[0][0]
    assert losses[-1][1] < losses[0][1]
    assert len(pyro.get_param_store()) == 0
    for name, tensor in m2.named_parameters():
        assert not torch.equal(tensor, before[name]), name
    assert type(m2) is M2


def test_grey_values_are_allowed_by_bernoulli() -> None:
    m2 = make_m2(likelihood=Bernoulli())
    assert torch.isfinite(
        SemiSupervisedELBO(m2, num_labelled=0, num_unlabelled=3)(Batch(torch.rand(3, *IMAGE), None, None))
    )


def test_images_to_predict_may_have_channels_last_or_none():
    for event_shape, move in (((3, 8, 6), lambda x: x.movedim(1, -1)), ((1, 8, 6), lambda x: x[:, 0])):
        model, x = M2(event_shape, 3, latent_dim=2, hidden_dims=(8,)), torch.rand(5, *event_shape)
        for given in (move(x), move(x).numpy()):
            torch.testing.assert_close(model.predict_proba(given), model.predict_proba(x))
    model, x = M2((8, 6), 3, latent_dim=2, hidden_dims=(8,)), torch.rand(5, 8, 6)
    torch.testing.assert_close(model.predict_proba(x.numpy()), model.predict_proba(x))


def test_images_in_colour_have_networks_likelihood_and_augmentation_of_their_own(tmp_path: Path) -> None:
    y = torch.arange(80) % 2
    x = torch.randint(0, 60, (80, 3, 8, 8), dtype=torch.uint8)
    x[y == 1, 0] += 150
    data = pyro_ssvae.SemiSupervisedData.from_arrays(x, torch.where(torch.arange(80) < 20, y, -1), x_test=x, y_test=y)
    model = M2.for_data(data, latent_dim=2, hidden_dims=(16,))
    assert (model.likelihood.name, model.config()["arguments"]["networks"]) == ("discretised_logistic", "conv")
    objective = SemiSupervisedELBO.for_data(model, data)
    assert "crop" in objective.config()["augmentation"]
    pyro_ssvae.fit(objective, data, pyro_ssvae.TrainingConfig(max_steps=40, device="cpu"), progress=False)
    assert (model.predict(x) == y).double().mean() > 0.9
    torch.testing.assert_close(
        pyro_ssvae.load(pyro_ssvae.save(model, tmp_path)).classify(x / 255.0), model.classify(x / 255.0)
    )
    floats = pyro_ssvae.SemiSupervisedData.from_arrays(x / 255.0, y)
    assert M2.for_data(floats, latent_dim=2, hidden_dims=(16,)).likelihood.name == "gaussian"
    grey = pyro_ssvae.SemiSupervisedData.from_arrays(x[:, :1], y)
    plain = M2.for_data(grey, latent_dim=2, hidden_dims=(16,))
    assert plain.config()["arguments"].get("networks", "mlp") == "mlp"
    assert "crop" in SemiSupervisedELBO.for_data(plain, grey).config()["augmentation"]  # it fills the frame


def test_the_likelihood_of_grey_images_and_the_weight_of_its_bound_follow_their_values() -> None:
    def choose(x: Tensor, scale: float | None = None, **options: Any) -> tuple[str, float]:
        data = SemiSupervisedData.from_arrays(x, torch.arange(40) % 2, scale=scale)
        model = M2.for_data(data, latent_dim=2, hidden_dims=(8,), **options)
        assert model.decode(torch.arange(40) % 2, torch.zeros(40, 2)).log_prob(x / data.scale).isfinite().all()
        return model.likelihood.name, SemiSupervisedELBO.for_data(model, data).bound_weight

    black_and_white = torch.randint(0, 2, (40, 1, 8, 8), dtype=torch.uint8) * 255
    grey = torch.randint(0, 17, (40, 1, 8, 8), dtype=torch.uint8)
    assert choose(black_and_white) == ("bernoulli", 1.0)
    assert choose(grey, 16.0) == choose(grey, 16.0, likelihood="auto") == ("discretised_logistic", 0.1)
    assert choose(grey * 15) == ("discretised_logistic", 0.1)
    assert choose(grey / 16.0) == ("gaussian", 0.1)
    assert choose(grey * 15.0) == choose(grey - 8.0) == ("gaussian", 0.1)
    few = torch.where(torch.arange(64).view(8, 8) < 50, black_and_white, grey * 15)
    assert choose(few)[0] == "bernoulli"
    assert choose(grey, 16.0, likelihood="bernoulli") == ("bernoulli", 1.0)
    colour = grey.expand(-1, 3, -1, -1)
    assert choose(colour, 16.0) == ("discretised_logistic", 0.01)
    data = SemiSupervisedData.from_arrays(grey, torch.arange(40) % 2, scale=16.0)
    assert SemiSupervisedELBO.for_data(M2.for_data(data), data, bound_weight=1.0).bound_weight == 1.0
    assert SemiSupervisedELBO.for_data(M2.for_data(data), data, pure=True).bound_weight == 1.0
    small: dict[str, Any] = {"latent_dim": 2, "hidden_dims": (8,)}
    stack = M1M2.for_data(data, m1=M1.for_data(data, **small), **small)  # whose bound is one of latents
    assert stack.likelihood.name == "discretised_logistic"
    assert SemiSupervisedELBO.for_data(stack, data).bound_weight == 1.0


def test_images_on_a_plain_background_have_pose_latents_by_default() -> None:
    def has_pose(x: Tensor, **options: Any) -> bool:
        data = SemiSupervisedData.from_arrays(x, torch.arange(40) % 2)
        return bool(M2.for_data(data, hidden_dims=(8,), **options).config()["arguments"].get("pose", False))

    digits = torch.zeros(40, 1, 16, 16)
    digits[..., 5:11, 5:11] = torch.rand(40, 1, 6, 6)
    assert has_pose(digits)
    assert has_pose(digits, networks="conv", likelihood="gaussian")
    assert not has_pose(torch.rand(40, 1, 16, 16))  # as photographs
    assert not has_pose(digits[..., 4:12, 4:12])  # too small
    assert not has_pose(digits.expand(-1, 3, -1, -1))  # in colour
    assert not has_pose(digits, latent_dim=2)
    assert not has_pose(digits, pose=False)
    assert not has_pose(digits, decoder=nn.Bilinear(50, 2, 256))
    assert not has_pose(digits.flatten(1))
