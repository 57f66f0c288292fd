"""What a user may hand to a model: arrays, lists and tables, in the units of the training data."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

import pyro_ssvae
from pyro_ssvae import DDGM, M1, M1M2, M2, EnergyObjective, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, fit
from pyro_ssvae.distributions import Gaussian, Mixed, Poisson
from pyro_ssvae.evaluation import log_likelihood


class Table:
    """A table as pandas has them, convertible to an array."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return self.values


def make_digits() -> SemiSupervisedData:
    return SemiSupervisedData.from_name("digits", num_labels=50)


def make_m2(data: SemiSupervisedData, **options: object) -> M2:
    return M2.for_data(data, latent_dim=2, hidden_dims=(8,), **options)


X = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "rows", [X, X.numpy(), X.tolist(), X.double(), X.double().numpy(), Table(X.numpy()), Table(X.numpy().astype("f8"))]
)
def test_arrays_lists_and_tables(rows: object) -> None:
    m2, m1, ddgm = M2((6,), 3), M1((6,), latent_dim=2), DDGM((6,), num_classes=3)
    torch.testing.assert_close(m2.predict_proba(rows), m2.predict_proba(X))
    assert torch.equal(m2.predict(rows), m2.predict(X))
    torch.testing.assert_close(m1.transform(rows), m1.transform(X))
    torch.testing.assert_close(m1.reconstruct(rows), m1.reconstruct(X))
    torch.testing.assert_close(m1.interpolate(rows, rows), m1.interpolate(X, X))
    assert m1.traverse(rows, 0).shape == (5, 5, 6)
    for name in ("energy", "score_samples", "features", "predict_proba"):
        torch.testing.assert_close(getattr(ddgm, name)(rows), getattr(ddgm, name)(X))
    stack = M1M2.from_m1(m1, 3)
    assert stack.predict_proba(rows, num_samples=4).shape == (5, 3)
    ours, theirs = (log_likelihood(m1, x, num_samples=3).log_px for x in (rows, X))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_examples_that_are_not_finite_are_counted(bad: float) -> None:
    x = X.clone()
    x[1, 2] = x[3] = bad
    for call in (M2((6,), 3).predict, M1((6,)).transform, DDGM((6,)).energy, lambda x: log_likelihood(M1((6,)), x)):
        with pytest.raises(ValueError, match="in 2 of 5 examples"):
            call(x)
        with pytest.raises(ValueError, match="holds 7 values that are NaN"):
            call(x.numpy())


def test_integers_are_divided_by_the_scale_of_training(tmp_path: Path) -> None:
    data = make_digits()
    m2 = make_m2(data)
    loaded = pyro_ssvae.load(pyro_ssvae.save(m2, tmp_path))
    assert (loaded.data_scale, loaded.class_names) == (16.0, tuple("0123456789"))
    assert loaded.config() == m2.config()
    x = data.x_test[:20]
    expected = m2.predict_proba(x.float() / 16.0)
    for rows in (x, x.numpy(), x.long().numpy(), x.tolist()):
        torch.testing.assert_close(loaded.predict_proba(rows), expected)
    found = log_likelihood(loaded, x, num_samples=3).log_px
    assert torch.equal(found, log_likelihood(m2, x, num_samples=3, scale=16.0).log_px)
    assert torch.equal(found, log_likelihood(m2, x.float() / 16.0, num_samples=3).log_px)
    untrained = M2((1, 8, 8), 10)
    pixels = torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)
    torch.testing.assert_close(untrained.predict_proba(pixels), untrained.predict_proba(torch.ones(2, 1, 8, 8)))


@pytest.mark.parametrize("name", ["bernoulli", "continuous_bernoulli", "discretised_logistic"])
def test_values_outside_of_the_unit_interval_are_refused(name: str) -> None:
    data = make_digits()
    m2 = make_m2(data, likelihood=name)
    with pytest.raises(ValueError, match=r"spans \[0, 16\].*divided by 16: give x / 16"):
        m2.predict(data.x_test.float())
    with pytest.raises(ValueError, match=r"values in \[0, 1\]. Scale x as in training"):
        M2((6,), 3, likelihood=name).predict(-X)
    m2.predict(m2.generate(50)[0])  # its own means are inside


@pytest.mark.parametrize("build", [lambda d: make_m2(d, likelihood="gaussian"), lambda d: DDGM.for_data(d)])
def test_a_forgotten_scale_is_warned_about(build: object) -> None:
    data = make_digits()
    model = build(data)
    with pytest.warns(UserWarning, match=r"up to 16, the training examples to 1.*give x / 16"):
        model.predict(data.x_test.float())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(data.x_test.float() / 16.0)
        model.predict(data.x_test.float() / 16.0 + 0.5)


def test_bytes_for_a_model_of_images_between_0_and_1_are_warned_about() -> None:
    data = make_digits()
    x = data.x.float() / data.x.max()
    model = M2.for_data(SemiSupervisedData.from_arrays(x, data.y), likelihood="gaussian", hidden_dims=(8,))
    with pytest.warns(UserWarning, match="up to 255, the training examples to 1. Scale x as in training"):
        model.predict((255 * x[:9]).to(torch.uint8))


def test_a_stack_and_its_m1_know_the_scale() -> None:
    data = make_digits()
    m1 = M1.for_data(data, latent_dim=2, hidden_dims=(8,))
    for stack in (M1M2.from_m1(m1, 10), M1M2.for_data(data, m1=m1)):
        assert (stack.data_scale, stack.class_names) == (16.0, data.class_names)


def test_large_inputs_are_computed_in_batches() -> None:
    sizes = []

    class Recorded(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x.flatten(1))

    m2 = M2((3, 32, 32), 4, classifier=Recorded(3072, 4), hidden_dims=(4,))
    x = torch.randint(256, (1500, 3, 32, 32), dtype=torch.uint8)
    found = m2.predict_proba(x)
    assert sum(sizes) == 1500
    assert max(sizes) * 3072 <= 2**18  # so that the layers of a batch fit into the caches of a CPU
    torch.testing.assert_close(found, torch.cat([m2.predict_proba(part) for part in x.split(100)]))
    assert m2.predict(x[:0]).shape == (0,)
    m1 = M1((3, 32, 32), latent_dim=2, hidden_dims=(4,))
    assert m1.transform(x, num_samples=2).shape == (2, 1500, 2)


def test_a_pass_over_many_short_rows_is_divided_too() -> None:
    sizes = []

    class Recorded(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x)

    m2 = M2((2,), 3, classifier=Recorded(2, 3), hidden_dims=(4,), likelihood="gaussian")
    x = torch.randn(50_001, 2)
    found = m2.predict_proba(x)
    assert sum(sizes) == 50_001
    assert max(sizes) <= 2**11
    torch.testing.assert_close(found[-3:], m2.predict_proba(x[-3:]))


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
def test_double_precision_by_default() -> None:
    data = make_digits()
    config = TrainingConfig(max_steps=5, compile="eager", device="cpu", binarisation="dynamic")
    m2 = make_m2(data, prior="vamp")
    fit(SemiSupervisedELBO.for_data(m2, data), data, config, progress=False)
    assert m2.predict_proba(data.x_test[:3]).dtype == torch.float64
    assert log_likelihood(m2, data.x_test[:3], num_samples=2).log_px.isfinite().all()
    assert m2.class_prior.mean().dtype == torch.float64
    assert TraceEnum_ELBO(max_plate_nesting=1).loss(m2.model, m2.guide, data.x_test[:3] / data.scale) > 0.0


@pytest.mark.usefixtures("double")
def test_double_precision_of_other_models() -> None:
    data = make_digits()
    config = TrainingConfig(max_steps=3, compile="eager", device="cpu")
    stack = M1M2.for_data(data, m1=M1.for_data(data, latent_dim=3, hidden_dims=(8,)), prior="vamp", hidden_dims=(8,))
    fit(SemiSupervisedELBO.for_data(stack, data), data, config, progress=False)
    assert stack.predict_proba(data.x_test[:3]).dtype == torch.float64
    table = SemiSupervisedData.from_arrays(X)
    ddgm = DDGM.for_data(table)
    fit(EnergyObjective.for_data(ddgm, table), table, config, progress=False)
    assert ddgm.energy(table.x).dtype == torch.float64


def test_negative_numbers_are_no_counts() -> None:
    counts = torch.poisson(torch.full((40, 3), 2.0))
    data = SemiSupervisedData.from_arrays(counts, torch.arange(40) % 2)
    model = M2.for_data(data, likelihood="negative_binomial", latent_dim=2, hidden_dims=(4,))
    model.predict(counts)
    with pytest.raises(ValueError, match=r"x holds -3, and the likelihood of the model is of counts 0, 1, 2"):
        model.predict(torch.where(counts == counts.max(), -3.0, counts))


def test_logarithms_of_counts_are_no_counts() -> None:
    counts = torch.poisson(torch.full((40, 3), 2.0))
    table = torch.cat([counts, torch.linspace(-1.0, 1.0, 40).unsqueeze(-1)], -1)
    parts = Mixed([([0, 1, 2], Poisson()), ([3], Gaussian())])
    data = SemiSupervisedData.from_arrays(table, torch.arange(40) % 2)
    model = M2.for_data(data, likelihood=parts, latent_dim=2, hidden_dims=(4,), missing=True)
    model.predict(table)
    logarithms = torch.cat([counts.log1p(), table[:, 3:]], -1)
    with pytest.warns(UserWarning, match="x holds values that are not whole, such as .*, and the model was trained on"):
        model.predict(logarithms)
    logarithms[:, 3] = torch.nan
    with pytest.warns(UserWarning, match="not whole"), pytest.raises(ValueError, match="Poisson needs counts"):
        model.impute(logarithms)
    with pytest.raises(ValueError, match="x holds -.*, and the likelihood of the model is of counts"):
        model.predict(torch.cat([-counts - 1.0, table[:, 3:]], -1))


@pytest.mark.parametrize("names", [[5, 3, 1, 0], pd.MultiIndex.from_product([["u", "v"], [1, 2]])])
def test_columns_whose_names_are_no_texts(names: object) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    table = pd.DataFrame({"a": rows[:, 0], "b": ["x", "y"] * 20, "c": rows[:, 1], "kind": np.arange(40) % 2})
    table.columns = names
    *features, label = map(str, table.columns)
    data = SemiSupervisedData.from_table(table, label)
    assert data.feature_names == tuple(features)
    model = M2.for_data(data, latent_dim=2, hidden_dims=(8,), likelihood="auto")
    expected = model.predict_proba(data.x)
    for given in (table, table.iloc[:, :3], table.iloc[:, [2, 0, 1]]):
        torch.testing.assert_close(model.predict_proba(given), expected)
    with pytest.raises(ValueError, match="The table has no column"):
        model.predict_proba(table.iloc[:, 1:])
    unnamed = pd.DataFrame(data.x.numpy())
    torch.testing.assert_close(model.predict_proba(unnamed), expected)
