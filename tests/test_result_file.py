"""The documentation lists every key of result.json and metrics.csv, and runs write no other."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_ssvae as ss
from pyro_ssvae.data import make_toy_data

PAGE = Path(__file__).parents[1] / "docs" / "result_file.md"


def documented(file: str) -> set[str]:
    rows = re.findall(r"^\| `([^`]+)` \| ([RM, ]+) \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(rows) > 80
    return {name for name, files in rows if file in files}


def build(kind: str) -> tuple[ss.SemiSupervisedData, object]:
    torch.manual_seed(0)
    if kind == "ddgm":
        data = make_toy_data("ring", num_train=300, num_validation=100, num_test=100)
        ddgm = ss.DDGM.for_data(data)
        return data, ss.EnergyObjective.for_data(ddgm, data, gradient_penalty=0.1)
    data = ss.SemiSupervisedData.from_name("digits", num_labels=50)
    if kind == "m1":
        data = data.without_labels()
        return data, ss.UnsupervisedELBO.for_data(ss.M1.for_data(data, latent_dim=2, hidden_dims=(8,)), data)
    return data, ss.SemiSupervisedELBO.for_data(ss.M2.for_data(data, latent_dim=2, hidden_dims=(8,)), data)


@pytest.mark.filterwarnings("ignore:Posterior collapse")
@pytest.mark.parametrize("kind", ["m2", "m1", "ddgm"])
def test_runs_write_documented_keys_of_documented_kinds(kind: str, tmp_path: Path) -> None:
    data, objective = build(kind)
    config = ss.TrainingConfig(max_steps=4, evaluate_every=2, device="cpu")
    run = ss.fit(objective, data, config, out=tmp_path / "run", progress=False)
    samples = 2 if kind != "ddgm" else 0
    ss.report(objective, data, run, figures=False, num_samples=samples)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result) <= documented("R"), set(result) - documented("R")
    assert {"model", "data", "seed", "steps", "train_seconds", "versions"} <= set(result)
    for name, value in result.items():
        if name.startswith("test/") and name != "test/class_control":
            assert value is None or isinstance(value, (int, float)), name
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        columns = set(next(csv.reader(file)))
    assert columns <= documented("M"), columns - documented("M")
    assert {"step", "epoch", "seconds", "learning_rate"} <= columns


def test_weights_of_the_kl_are_those_of_training_also_where_it_ends_early() -> None:
    data, objective = build("m2")
    config = ss.TrainingConfig(max_steps=1000, kl_warmup=0.5, kl_peak=1.0, max_minutes=1e-4, device="cpu")
    run = ss.fit(objective, data, config, progress=False)
    assert run.steps < 200
    weights = ss.report(objective, data, run, figures=False)["kl_weight"]
    assert weights == [config.kl_weight_at(int(tenth * run.steps / 10), 1000, len(data.x)) for tenth in range(10)]
    assert max(weights) < 0.5


class OwnNormal(torch.nn.Module):
    """No class of the package: x ~ N(z, 1), z ~ N(0, 1), q(z|x) = N(w x, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def model(self, x: torch.Tensor, *, size: int | None = None) -> None:
        with pyro.plate("data", size or len(x), subsample=x, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: torch.Tensor, *, size: int | None = None) -> None:
        with pyro.plate("data", size or len(x), subsample=x, dim=-1):
            pyro.sample("z", dist.Normal(self.weight * x, 1.0).to_event(1))


def test_report_of_any_module_with_model_and_guide() -> None:
    data = ss.SemiSupervisedData.from_arrays(torch.randn(300, 1), x_test=torch.randn(50, 1))
    objective = ss.UnsupervisedELBO.for_data(OwnNormal(), data)
    run = ss.fit(objective, data, ss.TrainingConfig(max_steps=5, device="cpu"), progress=False)
    result = ss.report(objective, data, run, figures=False)
    assert result["model"] == "OwnNormal"
    assert result["test/bound"] < 0.0


def fit_blobs(num_classes: int, labels: int, validation: int, **options: float) -> tuple[object, ...]:
    """Fit M2 to classes far apart, of which a classifier knows all from a few labels."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(160 + validation) % num_classes
    x = 4.0 * torch.eye(num_classes)[y] + 0.3 * torch.randn(len(y), num_classes, generator=generator)
    hidden = torch.where(torch.arange(160) < labels, y[:160], -1)
    held_out = {"x_validation": x[160:], "y_validation": y[160:]} if validation else {}
    data = ss.SemiSupervisedData.from_arrays(x[:160], hidden, x_test=x[:160], y_test=y[:160], **held_out)
    model = ss.M2.for_data(data, latent_dim=2, hidden_dims=(16,), likelihood="gaussian")
    objective = ss.SemiSupervisedELBO.for_data(model, data, **options)
    config = ss.TrainingConfig(max_steps=60, warmup_steps=5, evaluate_every=30, device="cpu")
    return objective, data, ss.fit(objective, data, config, progress=False)


@pytest.mark.parametrize("validation", [0, 60])
def test_a_fit_as_good_as_labels_alone_is_not_called_worse(validation: int) -> None:
    objective, data, run = fit_blobs(2, 20, validation)
    weights = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    state = torch.get_rng_state()
    result = ss.report(objective, data, run)
    assert (result["test/error"], result["test/error_labels_alone"], result["val/error_labels_alone"]) == (
        0.0,
        0.0,
        0.0,
    )
    assert result["worse_than_labels_alone"] is False
    assert all(torch.equal(weights[name], tensor) for name, tensor in objective.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("validation", "where"), [(0, "the labels, by cross-validation"), (60, "validation examples")])
def test_a_fit_that_ignores_its_labels_is_called_worse(validation: int, where: str) -> None:
    objective, data, run = fit_blobs(4, 24, validation, alpha=0.0, bound_weight=1e-6)
    with pytest.warns(
        UserWarning, match=rf"on the 24 labels alone, which errs on \d.\d% of {where}. Lower bound_weight"
    ):
        result = ss.report(objective, data, run)
    assert result["test/error"] > 0.4
    assert result["test/error_labels_alone"] < 0.03
    assert result["worse_than_labels_alone"] is True


def test_nothing_is_compared_without_unlabelled_examples_or_with_one_label_of_a_class() -> None:
    objective, data, run = fit_blobs(2, 160, 0)
    assert "worse_than_labels_alone" not in ss.report(objective, data, run)
    objective, data, run = fit_blobs(2, 3, 0)
    result = ss.report(objective, data, run)
    assert result["val/error_labels_alone"] is None
    assert result["worse_than_labels_alone"] is False


def test_nothing_is_compared_where_the_classifier_is_frozen() -> None:
    objective, data, run = fit_blobs(2, 20, 60)
    assert "worse_than_labels_alone" in ss.report(objective, data, run)
    objective.module.classifier.requires_grad_(False)
    assert "worse_than_labels_alone" not in ss.report(objective, data, run)


@pytest.mark.filterwarnings("ignore:The fit is worse")
def test_a_class_prior_that_contradicts_the_unlabelled_rows_is_told() -> None:
    """A tenth of the rows are of the second class, and half of the labels."""
    y = (torch.arange(300) % 10 == 0).long()
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0)) + 4.0 * y.unsqueeze(-1)
    shown = torch.cat([(y == k).nonzero().flatten()[:8] for k in (0, 1)])
    seen = torch.full((300,), -1).index_copy(0, shown, y[shown])
    data = ss.SemiSupervisedData.from_arrays(x, seen, class_names=["well", "ill"])
    config = ss.TrainingConfig(max_steps=5, device="cpu")
    for prior in ("uniform", ss.distributions.FixedClassPrior(2, [0.9, 0.1])):
        model = ss.M2.for_data(data, latent_dim=2, hidden_dims=(8,), likelihood="gaussian", class_prior=prior)
        objective = ss.SemiSupervisedELBO.for_data(model, data)
        run = ss.fit(objective, data, config, progress=False)
        if prior == "uniform":
            with pytest.warns(UserWarning, match=r"gives class ill a share of 50%.*class_prior='map'"):
                ss.report(objective, data, run)
        else:
            ss.report(objective, data, run)
