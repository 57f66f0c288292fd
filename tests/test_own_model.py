"""A model of a user's own, defined in one file: it trains, reports, draws figures, and is saved and loaded."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import pyro_ssvae as ss
from pyro_ssvae.data import Batch
from pyro_ssvae.evaluation import evaluate_model
from pyro_ssvae.models import Model, data_plate
from pyro_ssvae.objectives import Loss, Objective, Validation
from pyro_ssvae.objectives.handlers import GlobalSites
from pyro_ssvae.plots import figures


class FactorAnalysis(Model):
    """x = W z + b + noise, with z ~ N(0, I): a linear Gaussian model with a linear Gaussian guide."""

    def __init__(self, event_shape: Sequence[int], *, latent_dim: int = 2, noise: float = 0.5) -> None:
        super().__init__(event_shape, latent_dim, None)
        self.noise = noise
        self.encoder = nn.Linear(self.event_size, 2 * latent_dim)
        self.decoder = nn.Linear(latent_dim, self.event_size)
        self._attach_prior()

    def model(self, x: Tensor, *, size: int | None = None) -> None:
        with data_plate(x, size):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(self.decoder(z), self.noise).to_event(1), obs=x)

    def guide(self, x: Tensor, *, size: int | None = None) -> None:
        with data_plate(x, size):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class FactorAnalysisELBO(Objective):
    def config(self) -> dict[str, Any]:
        return {"particles": 1}

    def loss(self, batch: Batch) -> Loss:
        total = self.bound(self._evaluation_elbo, GlobalSites(), batch.x_unlabelled, size=self.num_examples)
        return Loss(total / self.num_examples, {"bound": -total.detach() / self.num_examples})

    def validate(self, data: ss.SemiSupervisedData, **options: Any) -> Validation:
        bound = self.mean_bound(data.x_validation, scale=data.scale)
        return Validation({"bound": bound}, score=bound)


@evaluate_model.register
def _(model: FactorAnalysis, objective: Objective, data: ss.SemiSupervisedData, **options: Any) -> dict[str, Any]:
    return {"weight_norm": float(model.decoder.weight.detach().norm())}


@figures.register
def _(model: FactorAnalysis, data: ss.SemiSupervisedData, **options: Any) -> dict[str, Callable[[], Figure]]:
    def draw() -> Figure:
        figure = Figure()
        figure.subplots().imshow(model.decoder.weight.detach().numpy())
        return figure

    return {"loadings": draw}


def make_data(seed: int = 5) -> ss.SemiSupervisedData:
    generator = torch.Generator().manual_seed(0)
    z, noise = torch.randn(300, 2, generator=generator), torch.randn(300, 6, generator=generator)
    x = z @ torch.tensor([[2.0, 2.0, 2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0, 2.0, 2.0]]) + 0.5 * noise
    return ss.SemiSupervisedData.from_arrays(x[:200], x_validation=x[200:250], x_test=x[250:], seed=seed)


def test_own_model_and_objective_go_through_fit_report_figures_save_and_load(tmp_path: Path) -> None:
    data = make_data()
    model = FactorAnalysis.for_data(data, noise=0.5)
    objective = FactorAnalysisELBO(model, num_labelled=0, num_unlabelled=data.num_unlabelled)
    config = ss.TrainingConfig(max_steps=300, batch_size=50, learning_rate=0.02, evaluate_every=100, device="cpu")
    run = ss.fit(objective, data, config, out=tmp_path / "run", progress=False)
    bounds = [one["val/bound"] for one in run.metrics]
    assert bounds[-1] > bounds[0] + 1.0
    assert run.best_step == max(run.metrics, key=lambda one: one["val/bound"])["step"]
    result = ss.report(objective, data, run)
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["model"], result["seed"]) == ("FactorAnalysis", 5)
    assert result["test/weight_norm"] == pytest.approx(float(model.decoder.weight.detach().norm()))
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        assert {"train/loss", "train/bound", "val/bound"} <= set(next(csv.reader(file)))
    drawn = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert drawn == {"loadings.png", "training_curves.png"}
    for loaded in (ss.load(tmp_path / "run"), ss.load(tmp_path / "run", cls=FactorAnalysis)):
        assert isinstance(loaded, FactorAnalysis)
        assert loaded.noise == 0.5
        assert torch.equal(loaded.decoder.weight, model.decoder.weight)


def test_one_seed_governs_weights_and_training() -> None:
    def train(seed: int, config_seed: int | None = None) -> tuple[ss.FitResult, dict[str, Tensor]]:
        data = ss.SemiSupervisedData.from_name("digits", num_labels=50, seed=seed)
        model = ss.M2.for_data(data, latent_dim=2, hidden_dims=(8,), classifier="mlp")
        before = {name: value.clone() for name, value in model.state_dict().items()}
        objective = ss.SemiSupervisedELBO.for_data(model, data, pure=True)
        config = ss.TrainingConfig(max_steps=3, device="cpu", seed=config_seed)
        run = ss.fit(objective, data, config, progress=False)
        assert ss.report(objective, data, run, figures=False)["seed"] == run.config.seed
        return run, before

    torch.manual_seed(11)
    (run, weights), (again, weights_again), (other, weights_other) = train(1), train(1), train(2)
    assert (run.config.seed, other.config.seed, train(1, config_seed=7)[0].config.seed) == (1, 2, 7)
    for name, value in weights.items():
        assert torch.equal(value, weights_again[name])
        assert torch.equal(run.last_weights[name], again.last_weights[name])
    assert any(not torch.equal(value, weights_other[name]) for name, value in weights.items())
    assert any(not torch.equal(value, other.last_weights[name]) for name, value in run.last_weights.items())


class Mixture(Model):
    """x ~ N(centre of y, I), without a latent besides the class."""

    def __init__(self, event_shape: Sequence[int], num_classes: int) -> None:
        super().__init__(event_shape, 1, None, num_classes)
        self.centres = nn.Embedding(num_classes, self.event_size)
        self.classifier = nn.Linear(self.event_size, num_classes)

    @classmethod
    def _class_arguments(cls, data: ss.SemiSupervisedData) -> dict[str, Any]:
        return {"num_classes": data.num_classes}

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(x)

    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, size):
            y = pyro.sample("y", dist.Categorical(logits=torch.zeros(self.num_classes)), obs=y)
            pyro.sample("x", dist.Normal(self.centres(y), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, size):
            if y is None:
                pyro.sample("y", dist.Categorical(logits=self.classify(x)), infer={"enumerate": "parallel"})


def test_own_model_of_classes_alone_is_validated_and_reported(tmp_path: Path) -> None:
    y = torch.arange(150) % 3
    x = 4.0 * torch.eye(3)[y] + 0.3 * torch.randn(150, 3, generator=torch.Generator().manual_seed(0))
    seen, held_out = torch.where(torch.arange(90) < 30, y[:90], -1), {"x_validation": x[90:], "y_validation": y[90:]}
    data = ss.SemiSupervisedData.from_arrays(x[:90], seen, x_test=x[90:], y_test=y[90:], **held_out)
    model = Mixture.for_data(data)
    objective = ss.SemiSupervisedELBO.for_data(model, data, pure=True)
    config = ss.TrainingConfig(max_steps=60, batch_size=30, learning_rate=0.1, device="cpu")
    run = ss.fit(objective, data, config, out=tmp_path, progress=False)
    assert {"val/error", "val/entropy_y"} <= run.metrics[-1].keys()
    assert "val/kl_z" not in run.metrics[-1]
    assert ss.report(objective, data, run)["test/error"] < 0.1
    assert torch.equal(ss.load(tmp_path).predict(x), model.predict(x))


class _FlowM2(ss.M2):
    def encode(self, x: Tensor, y: Tensor, a: Tensor | None = None) -> Any:
        return dist.TransformedDistribution(super().encode(x, y).base_dist, dist.transforms.TanhTransform()).to_event(1)


class _FlowM1(ss.M1):
    def encode(self, x: Tensor) -> Any:
        return dist.TransformedDistribution(super().encode(x).base_dist, dist.transforms.TanhTransform()).to_event(1)


@pytest.mark.filterwarnings("ignore:Posterior collapse")
def test_a_posterior_without_a_mean_is_reported_by_draws(tmp_path: Path) -> None:
    data = ss.SemiSupervisedData.from_name("digits", num_labels=100)
    config = ss.TrainingConfig(max_steps=2, batch_size=100, device="cpu")
    m2 = _FlowM2.for_data(data, latent_dim=2, hidden_dims=(8,), classifier="mlp")
    objective = ss.SemiSupervisedELBO.for_data(m2, data)
    run = ss.fit(objective, data, config, out=tmp_path / "m2", progress=False)
    assert set(ss.report(objective, data, run)["test/class_control"]) == {"analogies", "samples"}

    unlabelled = data.without_labels()
    m1 = _FlowM1.for_data(unlabelled, latent_dim=2, hidden_dims=(8,))
    bound = ss.UnsupervisedELBO.for_data(m1, unlabelled)
    ss.report(bound, unlabelled, ss.fit(bound, unlabelled, config, out=tmp_path / "m1", progress=False))
    state, x = torch.get_rng_state(), data.x_test[:5]
    assert torch.equal(m1.transform(x), m1.transform(x))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        exact = m1.encode(x.float() / data.scale).sample((20_000,)).mean(0)
    torch.testing.assert_close(m1.transform(x), exact, atol=0.3, rtol=0.0)


class _NeedsUnlabelled(ss.SemiSupervisedELBO):
    def loss(self, batch: Batch) -> Loss:
        assert batch.x_unlabelled is not None
        total, terms = super().loss(batch)
        entropy = dist.Categorical(logits=self.module.classify(batch.x_unlabelled)).entropy().mean()
        return Loss(total + entropy, terms | {"entropy": entropy.detach()})


def test_a_loss_of_unlabelled_examples_is_reported_without_a_comparison(tmp_path: Path) -> None:
    data = ss.SemiSupervisedData.from_name("digits", num_labels=100)
    m2 = ss.M2.for_data(data, latent_dim=2, hidden_dims=(8,), classifier="mlp")
    objective = _NeedsUnlabelled.for_data(m2, data)
    run = ss.fit(objective, data, ss.TrainingConfig(max_steps=2, device="cpu"), out=tmp_path, progress=False)
    assert "test/error_labels_alone" not in ss.report(objective, data, run, figures=False)


class _Attention(nn.Module):
    """An encoder with the usual mask of an attention, minus infinity above the diagonal, as a buffer."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, 4)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(8))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1, 2)
        return self.out(((rows @ rows.mT + self.mask).softmax(-1) @ rows).flatten(1))


def test_a_mask_of_minus_infinity_is_kept(tmp_path: Path) -> None:
    """The average of the weights over steps leaves it as it is."""
    data = ss.SemiSupervisedData.from_name("digits").without_labels()
    m1 = ss.M1.for_data(data, latent_dim=2, hidden_dims=(8,), encoder=_Attention())
    config = ss.TrainingConfig(max_steps=4, device="cpu", ema_decay=0.9)
    ss.fit(ss.UnsupervisedELBO.for_data(m1, data), data, config, out=tmp_path, progress=False)
    loaded = ss.load(tmp_path, encoder=_Attention())
    torch.testing.assert_close(loaded.encoder.mask, _Attention().mask)
    torch.testing.assert_close(loaded.transform(data.x_test), m1.transform(data.x_test))
