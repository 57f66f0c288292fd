"""Columns of the tables that estimators are given: their likelihoods, words, missing values, shares of the classes."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
from scipy import sparse
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

import pyro_ssvae as ss
from pyro_ssvae.distributions import Bernoulli, Gaussian, Mixed, NegativeBinomial
from pyro_ssvae.distributions.choice import choose_likelihood, describe_likelihood
from pyro_ssvae.estimators import DDGMDensity, M1M2Classifier, M1Transformer, M2Classifier
from tests.estimators.wine import FEW, QUICK, X


def test_the_likelihood_follows_the_columns() -> None:
    rng = np.random.default_rng(0)
    real, binary = rng.normal(size=(200, 2)), rng.integers(0, 2, (200, 1))
    counts = rng.negative_binomial(1, 0.1, (200, 2)) * rng.integers(0, 2, (200, 2))
    assert isinstance(choose_likelihood(real), Gaussian)
    assert isinstance(choose_likelihood(binary), Bernoulli)
    assert isinstance(choose_likelihood(counts), NegativeBinomial)
    mixed = choose_likelihood(np.hstack([real, binary, counts]))
    assert isinstance(mixed, Mixed)
    assert sorted(mixed.columns) == [[0, 1], [2], [3, 4]]
    assert describe_likelihood(mixed, 5) == "1 Bernoulli, 2 negative binomial, 2 Gaussian"
    holes = np.hstack([real, binary, counts, rng.integers(0, 4, (200, 1)), rng.uniform(size=(200, 1))])
    holes[rng.random(holes.shape) < 0.3] = np.nan
    holes[:, 1] = np.nan
    chosen = choose_likelihood(holes, {5: 4})
    assert describe_likelihood(chosen, 7) == "1 Bernoulli, 2 negative binomial, 3 Gaussian, 1 categorical (4 levels)"
    codes = rng.integers(0, 2, (200, 5)).astype(float)
    chosen = choose_likelihood(codes, {0: 3, 1: 2, 2: 3, 3: 4})
    assert describe_likelihood(chosen, 5) == "2 Bernoulli, 2 categorical (3 levels), 1 categorical (4 levels)"
    assert sorted(chosen.columns) == [[0, 2], [1, 4], [3]]
    reads = rng.negative_binomial(1, 1.0 / (1.0 + rng.gamma(0.5, 20.0, (1, 40))), (200, 40))
    assert describe_likelihood(choose_likelihood(reads), 40) == "40 negative binomial given the total of the row"
    for likelihood, wanted in (
        (choose_likelihood(reads), (40, None)),
        (choose_likelihood(np.hstack([reads] * 3)), (120, 30)),
    ):
        assert likelihood.offset
        assert (likelihood.columns, likelihood.components) == wanted
    assert "total" not in describe_likelihood(choose_likelihood(load_digits().data), 64)
    wrong = np.where(np.arange(40 * 200).reshape(200, 40) == 7, -1, reads)
    covariates = [rng.normal(size=(200, 1)), rng.integers(0, 2, (200, 1)), rng.integers(0, 5, (200, 1))]
    for table, levels, others in (
        (wrong, {}, "39 {}, 1 Gaussian"),
        (np.hstack([reads, *covariates]), {41: 2, 42: 5}, "1 Bernoulli, 40 {}, 1 Gaussian, 1 categorical (5 levels)"),
    ):
        chosen = describe_likelihood(choose_likelihood(table, levels), table.shape[1])
        assert chosen == others.format("negative binomial given the total of the row")
    black_and_white = rng.integers(0, 2, (50, 12, 12)).astype(float)
    for images in (black_and_white, black_and_white[:, None], 255 * black_and_white[:, None].astype(np.uint8)):
        assert isinstance(choose_likelihood(images), Bernoulli)


def test_every_row_tells_of_a_column_that_begins_with_whole_numbers() -> None:
    rng = np.random.default_rng(0)
    table = np.hstack([rng.normal(size=(3000, 1)), rng.integers(0, 2, (3000, 3))])
    table[2900, 1], table[2900, 2], table[2900, 3] = 0.5, 70.0, np.nan
    chosen = choose_likelihood(table)
    assert dict(zip((part.name for part in chosen.parts), chosen.columns, strict=True)) == {
        "bernoulli": [3],
        "negative_binomial": [2],
        "gaussian": [0, 1],
    }


def make_words(rows: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """Return a table of a number, a town that tells the class, and a word that follows from the town; and classes."""
    rng = np.random.default_rng(0)
    y = np.arange(rows) % 3
    town = np.where(rng.random(rows) < 0.95, y, rng.integers(0, 3, rows))
    number = 100.0 * town + 10.0 * rng.normal(size=rows)
    table = np.array(
        [[x, ("Bonn", "Kiel", "Ulm")[t], ("north", "south")[int(t != 1)]] for x, t in zip(number, town, strict=True)],
        dtype=object,
    )
    return table, y


def test_columns_of_words_and_missing_values(capsys: pytest.CaptureFixture[str]) -> None:
    complete, y = make_words()
    table = complete.copy()
    table[::5, 0], table[1::5, 1], table[2::10, 2], table[7::10, 2] = np.nan, None, "", float("nan")
    few = np.where(np.arange(len(y)) < 30, y, -1)
    model = M2Classifier(**QUICK, verbose=1).fit(table, few)
    assert "likelihood: 1 Bernoulli, 1 Gaussian, 1 categorical (3 levels)\n" in capsys.readouterr().out
    assert model.likelihood_ == "1 Bernoulli, 1 Gaussian, 1 categorical (3 levels)"
    assert {column: known.tolist() for column, known in model.categories_.items()} == {
        1: ["Bonn", "Kiel", "Ulm"],
        2: ["north", "south"],
    }
    assert model.score(table, y) > 0.9
    filled = model.impute(table)
    gone = np.array([[value is None or value == "" or value != value for value in row] for row in table])
    assert (filled[~gone] == table[~gone]).all()
    assert np.mean(filled[1::5, 1] == complete[1::5, 1]) > 0.9
    errors = (filled[::5, 0] - complete[::5, 0]).astype(float)
    assert np.std(errors) < 0.5 * np.std(complete[:, 0].astype(float))
    unknown, none = complete.copy(), complete.copy()
    unknown[:, 1], none[:, 1] = "Rome", None
    for predict in (model.predict_proba, model.score_samples):
        np.testing.assert_array_equal(predict(unknown[:9]), predict(none[:9]))
        with pytest.warns(UserWarning, match="Column 1 of X holds none of the words .*Bonn, Kiel, Ulm, but .* 'Rome'"):
            np.testing.assert_array_equal(predict(unknown), predict(none))
    np.testing.assert_array_equal(model.predict(complete.tolist()), model.predict(complete))
    assert set(model.sample(20)[0][:, 1]) <= {"Bonn", "Kiel", "Ulm"}
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).impute(table), filled)


@pytest.mark.parametrize(
    ("values", "kind"),
    [(pd.date_range("2020", periods=len(X)), "datetime64"), (pd.to_timedelta(range(len(X)), unit="h"), "timedelta64")]
    + [([[1, 2]] * len(X), "mixed")],
)
def test_columns_of_dates_and_lists_are_named(values: Any, kind: str) -> None:
    table = pd.DataFrame(X).rename(columns=str).assign(visit=values)
    with pytest.raises(TypeError, match=f"Column visit holds values of kind {kind}"):
        M2Classifier(**QUICK).fit(table, FEW)


@pytest.mark.parametrize("estimator", [M2Classifier(**QUICK), M1M2Classifier(**QUICK), M1Transformer(**QUICK)])
def test_missing_numbers_are_imputed(estimator: Any) -> None:
    rng = np.random.default_rng(0)
    holes = np.where(rng.random(X.shape) < 0.15, np.nan, X)
    model = estimator.fit(holes, FEW)
    filled = model.impute(holes)
    np.testing.assert_array_equal(filled[~np.isnan(holes)], holes[~np.isnan(holes)])
    gone = np.isnan(holes)
    by_mean = np.broadcast_to(np.nanmean(holes, 0), X.shape)
    assert np.mean((filled - X)[gone] ** 2) < 0.9 * np.mean((by_mean - X)[gone] ** 2)
    np.testing.assert_array_equal(model.impute(X), X)
    np.testing.assert_allclose(model.impute(holes[100:90:-1]), filled[100:90:-1], rtol=1e-9, err_msg="of other rows")
    assert np.isfinite(model.score_samples(holes, num_samples=5)).all()


def test_tables_of_many_counts(tmp_path: Path) -> None:
    """Classes differ in thirty of 150 columns; some entries are missing, and the saved model is the same."""
    rng = np.random.default_rng(0)
    y = np.arange(240) % 3
    excess = np.zeros((3, 150))
    excess[y[:90], np.arange(90)] = 1.0
    share = np.exp(0.5 * rng.normal(size=150) + excess[y])
    totals = rng.uniform(0.5, 2.0, (240, 1))
    table = rng.poisson(totals * rng.gamma(2.0, share / 2.0)).astype(float)
    few = np.where(np.arange(240) < 15, y, -1)
    model = M2Classifier(max_steps=100, random_state=0).fit(table, few)
    assert model.model_.likelihood.components == 30
    assert model.score(table[15:], y[15:]) > 0.85
    ss.save(model.model_, tmp_path / "model.pt")
    again = ss.load(tmp_path / "model.pt")
    x = torch.as_tensor(table[:20], dtype=torch.float32)
    torch.testing.assert_close(again.predict_proba(x), model.model_.predict_proba(x))
    holes = np.where(rng.random(table.shape) < 0.1, np.nan, table)
    model = M2Classifier(max_steps=20, random_state=0).fit(holes, few)
    filled = model.impute(holes[:20])
    assert np.isfinite(filled).all()
    assert np.isfinite(model.score_samples(holes[:20], num_samples=5)).all()


def test_shares_of_the_classes_are_estimated_from_unlabelled_rows() -> None:
    """Labels drawn class by class say nothing of them."""
    rng = np.random.default_rng(0)
    classes = (rng.random(400) < 0.1).astype(int)
    table = rng.normal(size=(400, 3)) + 6.0 * classes[:, None]
    table[::7, 0] = np.nan
    y = np.full(400, -1)
    for k in (0, 1):
        y[np.flatnonzero(classes == k)[:5]] = k
    options: dict[str, Any] = {"max_steps": 10, "random_state": 0}
    model = M2Classifier(**options).fit(table, y)
    assert model.model_.class_prior.mean().tolist() == pytest.approx([0.9, 0.1], abs=0.05)
    M2Classifier(**options, class_prior=[0.85, 0.15]).fit(table, y)
    names = np.array(["healthy", "ill", ""])
    with pytest.warns(UserWarning, match=r"gives class ill a share of 50%, .* (1\d|[5-9])% of the unlabelled"):
        model = M2Classifier(**options, class_prior="uniform").fit(table, names[y])
    assert model.model_.class_prior.mean().tolist() == [0.5, 0.5]


def test_labels_that_say_nothing_leave_the_shares_equal() -> None:
    """An estimate from columns that do not tell the classes apart is uncertain; over seeds it stays near 1/2."""
    gaps = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        y = np.full(300, -1)
        y[:10] = np.arange(10) % 2
        prior = M2Classifier(max_steps=1).fit(rng.normal(size=(300, 8)), y).model_.class_prior
        gaps.append(abs(float(prior.mean()[0]) - 0.5))
    assert np.mean(gaps) < 0.01  # 0.02 without shrinkage


def test_classifiers_that_favour_one_class_leave_the_shares_nearly_equal() -> None:
    """Rows of a wide class lie on both sides of a narrow one; by the labels left out the classifiers are biased."""
    gaps = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        wide, x = rng.random(400) < 0.5, rng.normal(size=(400, 20))
        y = np.full(400, -1)
        for k in (0, 1):
            y[np.flatnonzero(wide == k)[:5]] = k
        table = np.where(wide[:, None], 2.0 * x, x + 2.0 / np.sqrt(20.0))
        prior = M2Classifier(max_steps=1, random_state=0).fit(table, y).model_.class_prior
        gaps.append(abs(float(prior.mean()[0]) - 0.5))
    assert np.mean(gaps) < 0.05  # without the bias in the estimate of the error 0.08


def test_shares_of_large_tables_take_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are estimated from a sample, in half of ``max_time``, and not at all for very many classes."""
    fitted: list[tuple[str, int]] = []
    for kind in (LogisticRegression, RandomForestClassifier):

        def count(self: Any, x: Any, y: Any, wrapped: Any = kind.fit) -> Any:
            fitted.append((type(self).__name__[0], len(x)))
            return wrapped(self, x, y)

        monkeypatch.setattr(kind, "fit", count)
    rng = np.random.default_rng(0)
    y = (rng.random(25_000) < 0.1).astype(int)
    table = rng.normal(size=(25_000, 2)) + 4.0 * y[:, None]
    few = np.where((np.arange(25_000) < 5_000) & ((y == 1) | (np.arange(25_000) < 500)), y, -1)
    options: dict[str, Any] = {"max_steps": 1, "random_state": 0}
    model = M2Classifier(**options).fit(table, np.where(np.arange(25_000) < 5_000, y, -1))
    assert max(rows for _, rows in fitted[:12]) <= 2_002
    model = M2Classifier(**options).fit(table, few)
    assert model.model_.class_prior.mean().tolist() == pytest.approx([0.9, 0.1], abs=0.02)
    fitted.clear()
    with pytest.warns(UserWarning, match="gives class 1 a share of 50%"):
        model = M2Classifier(**options, max_time=1e-6).fit(table, few)
    assert model.model_.class_prior.mean().tolist() == [0.5, 0.5]
    assert {name for name, _ in fitted} == {"L"}  # of the warning about the class prior
    fitted.clear()
    many = np.repeat(np.arange(501), 4)
    labels = np.where(np.arange(len(many)) % 4 < 2, many, -1)
    M2Classifier(**options, latent_dim=2, hidden_dims=(4,)).fit(rng.normal(size=(len(many), 2)), labels)
    assert not fitted


def test_columns_with_a_large_mean_keep_their_differences() -> None:
    rng, y = np.random.default_rng(0), np.arange(300) % 2
    x = rng.normal(size=(300, 3)) + 3.0 * y[:, None] + [1e9, 0.0, -1e6]
    x[:, 2] = np.rint(x[:, 2])
    few = np.where(np.arange(300) < 30, y, -1)
    model = M2Classifier(**QUICK).fit(x, few)
    assert model.score(x, y) > 0.9
    assert (np.abs(model.sample(200)[0].mean(0) - x.mean(0)) < 1.0).all()
    holes = np.where(rng.random(x.shape) < 0.1, np.nan, x)
    filled = M2Classifier(**QUICK).fit(holes, few).impute(holes)
    np.testing.assert_array_equal(filled[~np.isnan(holes)], x[~np.isnan(holes)])
    assert np.abs(filled - x).max() < 10.0
    latents = M1Transformer(**QUICK).fit(x)
    assert np.abs(latents.inverse_transform(latents.transform(x)) - x).max() < 10.0
    assert np.abs(DDGMDensity(max_steps=50, random_state=0).fit(x).sample(100) - x.mean(0)).max() < 100.0
    with pytest.warns(UserWarning, match=r"The mean of column 0 \(1e\+09\) is more than 10,000 times"):
        ss.SemiSupervisedData.from_arrays(x[:, :2])


def test_a_value_far_from_all_others_is_named() -> None:
    table = X.copy()
    table[::20, 2] = -999
    rows = len(table[::20])
    words = (
        f"Column 2 has the value -999 in {rows} of {len(X)} rows, and others from {X[:, 2].min():g}.*leave the cells"
    )
    with pytest.warns(UserWarning, match=words):
        M1Transformer(max_steps=2, random_state=0).fit(table)
    with pytest.warns(UserWarning, match=words):
        ss.SemiSupervisedData.from_arrays(table)


def test_columns_with_one_word_or_no_value() -> None:
    table = pd.DataFrame({"a": X[:, 0], "word": np.where(np.arange(len(X)) % 2, "x", None)})
    samples, _ = M2Classifier(**QUICK).fit(table, FEW).sample(20)
    assert set(samples[:, 1]) == {"x"}
    with pytest.raises(ValueError, match="No row of X has a value in column word; leave such columns out"):
        M2Classifier(**QUICK).fit(table.assign(word=np.nan), FEW)


def test_partial_fit_counts_all_steps() -> None:
    model = M2Classifier(batch_size=64, class_prior="uniform", random_state=0)
    model.partial_fit(X, np.maximum(FEW, 0), classes=[0, 1, 2])  # without a warning that all are labelled
    steps, evaluations = model.n_iter_, len(model.history_)
    model.partial_fit(X, np.maximum(FEW, 0))
    assert (model.n_iter_, len(model.history_)) == (2 * steps, 2 * evaluations)


@pytest.mark.filterwarnings("ignore:y labels every example")
def test_tables_are_read_by_the_names_of_their_columns(tmp_path: Path) -> None:
    words, y = make_words(60)
    table = pd.DataFrame(words).rename(columns="column {}".format)
    model = M2Classifier(**QUICK | {"max_steps": 5}).fit(table, y)
    for part in (0, 30):
        table[part : part + 30].iloc[:, ::-1].to_parquet(tmp_path / f"{part}.parquet")
    np.testing.assert_allclose(model.predict_proba(tmp_path), model.predict_proba(table), rtol=1e-12)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(table.iloc[:, ::-1])


def test_rows_on_disk_have_the_predictions_of_rows_in_memory(tmp_path: Path) -> None:
    """In single precision seconds since 1970 are the same; a value is missing in no row that is sampled."""
    x = X + np.where(np.arange(X.shape[1]) == 0, 1.7e9, 0.0)
    model = M2Classifier(**QUICK | {"max_steps": 5}).fit(np.where(X > 2.0, np.nan, x), FEW)
    rows = np.tile(x, (40, 1))
    rows[1, 1] = np.nan
    np.save(tmp_path / "rows.npy", rows)
    expected = model.predict_proba(rows)
    for given in (tmp_path / "rows.npy", np.load(tmp_path / "rows.npy", mmap_mode="r")):
        np.testing.assert_allclose(model.predict_proba(given), expected, rtol=1e-12)


@pytest.mark.parametrize("convert", [sparse.csr_array, sparse.coo_matrix, lambda x: torch.tensor(x).requires_grad_()])
def test_sparse_matrices_and_tensors(convert: Any) -> None:
    brief = QUICK | {"max_steps": 5}
    x = np.where(X > 0.0, X, 0.0)
    dense, model = M2Classifier(**brief).fit(x, FEW), M2Classifier(**brief).fit(convert(x), FEW)
    np.testing.assert_array_equal(model.predict_proba(convert(x)), dense.predict_proba(x))
    assert DDGMDensity(max_steps=2).fit(convert(x)).score_samples(convert(x)).shape == (len(x),)


def test_tables_of_words_that_are_not_of_pandas() -> None:
    words, y = make_words(60)
    table = pd.DataFrame(words).rename(columns="column {}".format).astype({"column 0": float})
    brief, other = QUICK | {"max_steps": 5}, pyarrow.Table.from_pandas(table)
    few = np.where(np.arange(60) < 30, y, -1)
    expected = M2Classifier(**brief).fit(table, few).predict_proba(table)
    np.testing.assert_array_equal(M2Classifier(**brief).fit(other, few).predict_proba(other), expected)
    with pytest.raises(ValueError, match="feature names should match"):
        M2Classifier(**brief).fit(table, few).predict(other.select(other.column_names[::-1]))


def test_dates_are_refused() -> None:
    model = M1Transformer(**QUICK | {"max_steps": 5})
    with pytest.raises(TypeError, match=r"X has dtype datetime64\[D\]"):
        model.fit(np.arange(40).reshape(20, 2).astype("datetime64[D]"))
    table = pd.DataFrame(X, columns=[*"abcdefghijklm"])
    with pytest.raises(TypeError, match="Column a must hold numbers"):
        model.fit(table).transform(table.assign(a=pd.Timestamp(2020, 1, 1)))
    dates = pd.DataFrame({"visit": pd.date_range("2020", periods=40)})
    for table in (dates, dates.assign(a=1.0), dates - dates.iloc[0]):
        for given in (table, pyarrow.Table.from_pandas(table)):
            with pytest.raises(TypeError, match="Column visit must hold numbers"):
                DDGMDensity(max_steps=2).fit(given)
            with pytest.raises(TypeError, match="Column visit holds values of kind"):
                model.fit(given)
            with pytest.raises(TypeError, match="x has (columns that are not numeric: visit|dtype)"):
                ss.SemiSupervisedData.from_arrays(given)


def test_columns_that_may_not_be_trained_on_are_named() -> None:
    table = pd.DataFrame(X[:, :2], columns=["a", "b"])
    with pytest.raises(ValueError, match="Column word must hold numbers"):
        DDGMDensity(max_steps=2).fit(table.assign(word="x"))
    for estimator, value in ((DDGMDensity(), np.nan), (DDGMDensity(), np.inf), (M1Transformer(), 1e39)):
        with pytest.raises(ValueError, match=f"X holds {len(X)} values .* column b"):
            estimator.fit(table.assign(b=value))


def test_a_column_may_be_empty_in_the_rows_of_a_partial_fit() -> None:
    table = np.where(X > 2.5, np.nan, X)
    for estimator in (M2Classifier(random_state=0), M1Transformer(random_state=0)):
        estimator.partial_fit(table, FEW)
        steps = estimator.n_iter_
        table[:60, 3] = np.nan
        estimator.partial_fit(table[:60], FEW[:60])
        assert estimator.n_iter_ > steps
        assert np.isfinite(estimator.score_samples(table[:60], num_samples=2)).all()


def test_tables_of_eight_bits_may_have_missing_values_in_prediction() -> None:
    counts = np.random.default_rng(0).poisson(4.0, (60, 3)).astype(np.uint8)
    model = M2Classifier(**QUICK | {"max_steps": 5}).fit(counts, np.arange(60) % 3 - 1)
    with pytest.warns(UserWarning, match="Values are missing in column 0"):
        assert np.isfinite(model.predict_proba(np.where(counts == 4, np.nan, counts))).all()


def test_latents_that_do_not_vary_warn() -> None:
    with pytest.warns(UserWarning, match="Posterior collapse: none of the 2 latents varies"):
        M1Transformer(**QUICK | {"max_steps": 2}).fit(np.ones((20, 3)))


def test_numbers_of_samples_have_the_name_of_the_argument() -> None:
    model = M1Transformer(**QUICK | {"max_steps": 2}).fit(np.arange(20.0).reshape(10, 2))
    for wrong, error in ((0, ValueError), (2.0, TypeError)):
        with pytest.raises(error, match=rf"^n_samples={wrong}"):
            model.sample(wrong)
