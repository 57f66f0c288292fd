"""The estimators on real tables: labels of every kind, scikit-learn's tools around them, what they promise."""

import io
import pickle
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pyro_ssvae.errors import NonFiniteLossError
from pyro_ssvae.estimators import DDGMDensity, M1M2Classifier, M1Transformer, M2Classifier
from pyro_ssvae.evaluation import log_likelihood
from tests.estimators.wine import BRIEF, FEW, QUICK, X, Y


@pytest.fixture(scope="module")
def fitted() -> M2Classifier:
    return M2Classifier(**QUICK).fit(X, FEW)


@pytest.fixture(scope="module")
def briefly_fitted() -> M2Classifier:
    return M2Classifier(**BRIEF).fit(X, FEW)


@pytest.mark.parametrize("unlabelled", [None, np.nan, "", -1])
def test_labels_are_words(unlabelled: Any, briefly_fitted: M2Classifier) -> None:
    names = ["a", "b", "c"]
    labels = np.array([names[y] if y >= 0 else unlabelled for y in FEW], dtype=object)
    model = M2Classifier(**BRIEF).fit(X, labels)
    assert model.classes_.tolist() == names
    np.testing.assert_array_equal(model.predict(X), np.array(names)[briefly_fitted.predict(X)])
    np.testing.assert_array_equal(model.predict_proba(X), briefly_fitted.predict_proba(X))


@pytest.mark.parametrize("dtype", [object, "boolean"])
def test_labels_are_truth_values(dtype: Any) -> None:
    labels = pd.array(np.where(FEW >= 0, FEW > 0, None).tolist(), dtype)
    model = M2Classifier(**BRIEF).fit(X, labels)
    assert model.classes_.dtype == model.predict(X).dtype == bool
    assert model.score(X, labels) > 0.5


@pytest.mark.parametrize(("offset", "dtype"), [(3, int), (3, float), (0, np.int8)])
def test_labels_are_numbers_with_gaps(offset: int, dtype: Any, briefly_fitted: M2Classifier) -> None:
    labels = np.where(FEW >= 0, 4 * FEW + offset, -1).astype(dtype)
    model = M2Classifier(**BRIEF).fit(X, labels)
    assert model.classes_.tolist() == [offset, 4 + offset, 8 + offset]
    np.testing.assert_array_equal(model.predict(X), 4 * briefly_fitted.predict(X) + offset)
    np.testing.assert_array_equal(model.predict_proba(X), briefly_fitted.predict_proba(X))


def test_labels_are_masked_or_bytes(briefly_fitted: M2Classifier) -> None:
    model = M2Classifier(**BRIEF).fit(X, np.ma.masked_array(Y, FEW < 0))
    np.testing.assert_array_equal(model.predict(X), briefly_fitted.predict(X))
    strings = np.dtypes.StringDType(na_object=None) if hasattr(np.dtypes, "StringDType") else object  # new in NumPy 2
    for unlabelled, dtype in ((b"", "S1"), (None, strings)):
        labels = np.array([(b"a", b"b", b"c")[y] if y >= 0 else unlabelled for y in FEW], dtype=object)
        labels = labels.astype("S1") if dtype == "S1" else np.array([y and y.decode() for y in labels], dtype)
        assert M2Classifier(**BRIEF).fit(X, labels).classes_.tolist() == ["a", "b", "c"]


def test_labels_are_large_numbers() -> None:
    """Real numbers do not tell them apart."""
    few = [None if label < 0 else 2**60 + int(label) for label in FEW]
    for y in (few, pd.Series(few, dtype="Int64"), np.where(FEW < 0, -1, 2**60 + FEW)):
        classifier = M2Classifier(max_steps=1, class_prior="uniform").fit(X, y)
        assert classifier.classes_.tolist() == [2**60, 2**60 + 1, 2**60 + 2]
        assert (classifier.transduction_[FEW >= 0] == 2**60 + FEW[FEW >= 0]).all()


def test_given_labels_are_kept_and_others_predicted(fitted: M2Classifier) -> None:
    assert (fitted.transduction_[FEW >= 0] == FEW[FEW >= 0]).all()
    assert (fitted.transduction_[FEW < 0] == fitted.predict(X)[FEW < 0]).all()
    assert np.mean(fitted.transduction_ == Y) > 0.9


def test_a_class_without_a_label_is_named_by_classes() -> None:
    model = M2Classifier(**BRIEF, classes=[0, 1, 2]).fit(X, np.where(FEW == 2, -1, FEW))
    assert model.classes_.tolist() == [0, 1, 2]
    assert model.predict_proba(X).shape == (len(X), 3)


def test_probabilities_are_less_extreme_than_those_of_the_model(briefly_fitted: M2Classifier) -> None:
    temperature = 1.0 + 0.6 * min(1.0, 15 / (FEW >= 0).sum()) ** 0.5
    assert briefly_fitted.temperature_ == pytest.approx(temperature)
    raw = briefly_fitted.model_.predict_proba(X).numpy() ** (1.0 / temperature)
    found = briefly_fitted.predict_proba(X)
    np.testing.assert_allclose(found, raw / raw.sum(1, keepdims=True), atol=1e-4)
    np.testing.assert_allclose(np.exp(briefly_fitted.predict_log_proba(X)), found)


def test_without_labels_it_clusters() -> None:
    assert M2Classifier(**BRIEF, n_classes=3).fit(X, np.full(len(X), -1)).predict(X).max() <= 2
    words = r"n_classes=3 .* y has labels of 2 class\(es\): \[0, 1\]. Name all classes by"
    with pytest.raises(ValueError, match=words):
        M2Classifier(**BRIEF, n_classes=3).fit(X, np.where(FEW == 2, -1, FEW))
    with pytest.raises(ValueError, match="n_classes=K"):
        M2Classifier(**BRIEF).fit(X, np.full(len(X), -1))


def test_labels_for_all_examples_warn() -> None:
    with pytest.warns(UserWarning, match="y labels every example"):
        M2Classifier(**BRIEF).fit(X, Y)


def test_weights_of_examples_are_refused() -> None:
    with pytest.raises(TypeError, match="sample_weight"):
        M2Classifier(**QUICK).fit(X, FEW, sample_weight=np.ones(len(X)))  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("parameters", "error", "words"),
    [
        ({"max_steps": 2.5}, TypeError, "max_steps=2.5 is of type float; an integer of at least 1 is needed"),
        ({"max_time": "10"}, TypeError, "max_time='10' is of type str; a number is needed, above 0"),
        ({"hidden_dims": 16}, TypeError, "hidden_dims=16 is of type int; a sequence of integers is needed"),
        ({"n_classes": 0}, ValueError, "n_classes=0 is too small"),
        ({"consistency_weight": -1.0}, ValueError, "consistency_weight=-1.0 must be at least 0"),
        ({"callbacks": [None]}, TypeError, "callbacks=.None. is of type list; a list of functions"),
        ({"random_state": -1}, ValueError, "random_state=-1 is too small"),
        ({"class_prior": ["a", "b", "c"]}, TypeError, "probs=.* is of type list; 3 numbers are needed"),
        ({"classes": [0, 1]}, ValueError, r"classes=\[0, 1\] lacks: \[2\]"),
    ],
)
def test_wrong_parameters(parameters: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        M2Classifier(**BRIEF | parameters).fit(X, FEW)


def test_parameters_of_numpy_and_truth_values() -> None:
    given = {"max_steps": np.int64(3), "hidden_dims": [np.int64(4)], "learning_rate": np.float32(1e-3)}
    assert M2Classifier(**BRIEF | given, verbose=False).fit(X, FEW).n_iter_ == 3


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        ([[1.0, 2.0], [3.0]], r"DDGMDensity needs a table \(N, D\) or images \(N, C, H, W\) as X: .*inhomogeneous"),
        (np.zeros(9, "i4,f4"), "DDGMDensity needs a table"),
        ("abc", "DDGMDensity needs a table"),
        (np.ones((9, 1, 2, 2, 2)), r"DDGMDensity needs a table .* 5 dimensions, \(9, 1, 2, 2, 2\)"),
        (np.ma.masked_greater(X, 2.0), "X is a masked array, and hidden values cannot be trained on"),
        (X * 1e39, "^X holds 1766 values that are .* beyond float32, .* column 0, 1"),
    ],
)
def test_what_is_no_table_is_refused(examples: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        DDGMDensity(max_steps=3).fit(examples)


def test_columns_that_hold_other_objects_are_named() -> None:
    with pytest.raises(TypeError, match="Column 1 of X must hold numbers: .* not 'dict'"):
        M1Transformer(**BRIEF).fit(np.array([[1.0, {}], [2.0, {}]], dtype=object))
    words = pd.DataFrame(X).rename(columns=str).rename(columns={"0": "a"}).assign(a="x")
    model = M1Transformer(**BRIEF).fit(pd.DataFrame(X).rename(columns=str).rename(columns={"0": "a"}))
    with pytest.raises(ValueError, match="Column a must hold numbers"):
        model.transform(words)


def test_known_shares_of_the_classes() -> None:
    model = M2Classifier(**BRIEF, class_prior=[0.5, 0.3, 0.2]).fit(X, FEW)
    torch.testing.assert_close(model.model_.class_prior.mean(), torch.tensor([0.5, 0.3, 0.2]))


def test_the_same_seed_gives_the_same_numbers_and_leaves_the_random_state(briefly_fitted: M2Classifier) -> None:
    before = torch.get_rng_state()
    again = M2Classifier(**BRIEF).fit(X, FEW)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(again.predict_proba(X), briefly_fitted.predict_proba(X))
    np.testing.assert_array_equal(again.sample(5)[0], briefly_fitted.sample(5)[0])


def test_log_likelihood_agrees_with_the_library(fitted: M2Classifier) -> None:
    ours = fitted.score_samples(X, num_samples=2000)
    independent = log_likelihood(fitted.model_, torch.as_tensor(X, dtype=torch.float32), num_samples=2000)
    error = 2.0**0.5 * independent.standard_error.numpy()
    assert np.mean(np.abs(ours - independent.log_px.numpy()) < 4.0 * error) > 0.97


def test_log_likelihood_of_an_example_does_not_depend_on_others(fitted: M2Classifier) -> None:
    np.testing.assert_allclose(fitted.score_samples(X[5:8]), fitted.score_samples(X)[5:8], rtol=1e-10)


def test_arrays_that_are_reversed_or_cannot_be_written(fitted: M2Classifier) -> None:
    np.testing.assert_array_equal(fitted.predict_proba(X[:, ::-1]), fitted.predict_proba(X[:, ::-1].copy()))
    locked = X.copy()
    locked.setflags(write=False)  # as are those that pandas gives away
    np.testing.assert_array_equal(fitted.predict_proba(locked), fitted.predict_proba(X))


def test_samples_of_a_class_are_classified_as_it(fitted: M2Classifier) -> None:
    for label in fitted.classes_:
        x, y = fitted.sample(50, y=label)
        assert (y == label).all()
        assert np.mean(fitted.predict(x) == label) > 0.7
    with pytest.raises(ValueError, match=r"y=\[7\] is no class"):
        fitted.sample(2, y=7)


def test_training_goes_on_under_warm_start_and_partial_fit() -> None:
    model = M2Classifier(**BRIEF, warm_start=True).fit(X, FEW)
    first = model.model_
    before = {name: value.clone() for name, value in first.state_dict().items()}
    assert model.fit(X, FEW).model_ is first
    assert model.partial_fit(X[:60], FEW[:60]).model_ is first
    assert any(not torch.equal(before[name], value) for name, value in first.state_dict().items())
    assert model.classes_.tolist() == [0, 1, 2]


def test_a_fit_that_fails_leaves_no_half_of_a_model() -> None:
    model = M2Classifier(**BRIEF, warm_start=True).fit(X, FEW)
    before = model.predict_proba(X)
    with pytest.raises(ValueError, match=r"classes=\[0, 1, 2\] lacks: \[7\]"):
        model.fit(X, np.where(FEW == 2, 7, FEW))
    with pytest.raises(NonFiniteLossError):
        model.fit(X * 1e30, FEW)
    np.testing.assert_array_equal(model.predict_proba(X), before)
    with pytest.raises(ValueError, match="At least two classes"):
        model.set_params(warm_start=False).fit(X[:, :2], np.zeros(len(X)))
    with pytest.raises(NotFittedError):
        model.predict(X)
    stack = M1M2Classifier(**BRIEF, class_prior=[0.5, 0.5])  # for three classes
    with pytest.raises(ValueError, match="probs must hold 3"):
        stack.fit(X, FEW)
    with pytest.raises(NotFittedError):
        stack.predict(X)


def test_an_interrupted_fit_leaves_the_model_of_an_earlier_one() -> None:
    def interrupt(_: Any, metrics: dict[str, Any]) -> None:
        if metrics["step"] == 3:
            raise KeyboardInterrupt

    model = M2Classifier(**BRIEF, warm_start=True).fit(X, FEW)
    before = model.predict_proba(X)
    with pytest.raises(KeyboardInterrupt):
        model.set_params(callbacks=[interrupt]).fit(X, FEW)
    np.testing.assert_array_equal(model.predict_proba(X), before)


def test_threads_give_the_numbers_of_one_thread(fitted: M2Classifier) -> None:
    def compute(_: int) -> list[Any]:
        again = M2Classifier(**BRIEF).fit(X, FEW).predict_proba(X)
        return [again, fitted.score_samples(X, num_samples=5), fitted.sample(5)[0]]

    expected, *found = [compute(0), *joblib.Parallel(4, backend="threading")(map(joblib.delayed(compute), range(4)))]
    for values in found:
        for ours, theirs in zip(values, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("mark", [-1, None, "", np.nan])
def test_what_marks_unlabelled_examples_is_no_class(mark: Any) -> None:
    y = np.array([mark if known < 0 else f"wine {known}" for known in FEW], dtype=object)
    classes = np.array([mark, "wine 0", "wine 1", "wine 2"], dtype=object)
    model = M2Classifier(**BRIEF).partial_fit(X, y, classes)
    assert model.classes_.tolist() == ["wine 0", "wine 1", "wine 2"]
    model.partial_fit(X, y, classes[1:])
    with pytest.raises(ValueError, match=r"are not those of earlier calls: \['wine 0'"):
        model.partial_fit(X, y, ["wine 0", "wine 1"])


def test_labels_of_a_score_and_of_samples_are_checked(briefly_fitted: M2Classifier) -> None:
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        briefly_fitted.score(X, FEW[1:])
    with pytest.raises(TypeError, match=r"y has dtype datetime64\[D\]"):
        briefly_fitted.score(X, Y.astype("datetime64[D]"))
    with pytest.raises(ValueError, match="y is no rectangular array"):
        briefly_fitted.sample(2, y=[[0, 1], [2]])


def test_consistency_learns_from_unlabelled_examples() -> None:
    """Two classes that differ a little in each of 40 binary columns, with four labels each."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 600)
    x = (rng.random((600, 40)) < np.where(y[:, None] == 1, 0.7, 0.3)).astype(float)
    few = np.where(np.isin(np.arange(600), [*np.flatnonzero(y == 0)[:4], *np.flatnonzero(y == 1)[:4]]), y, -1)
    quick = QUICK | {"bound_weight": 0.0, "max_steps": 350, "learning_rate": 0.01}
    alone = M2Classifier(**quick, consistency_weight=0.0).fit(x, few).score(x, y)
    assert alone < 0.85 < 0.95 < M2Classifier(**quick).fit(x, few).score(x, y)


def test_time_limit_and_callbacks() -> None:
    seen: list[int] = []

    def record(_: Any, metrics: dict[str, Any]) -> None:
        seen.append(metrics["step"])

    model = M2Classifier(random_state=0, max_steps=9_000, max_time=0.5, callbacks=[record]).fit(X, FEW)
    assert 0 < model.n_iter_ < 9_000
    assert seen == [entry["step"] for entry in model.history_]


@pytest.mark.parametrize(
    "estimator", [M2Classifier(**BRIEF), M1M2Classifier(**BRIEF), M1Transformer(**BRIEF), DDGMDensity(max_steps=5)]
)
def test_pickle_and_clone(estimator: Any) -> None:
    fitted = estimator.fit(X, FEW)
    joblib.dump(fitted, stored := io.BytesIO())
    for again in (pickle.loads(pickle.dumps(fitted)), joblib.load(stored)):
        np.testing.assert_array_equal(again.score_samples(X), fitted.score_samples(X))
    assert not hasattr(clone(fitted), "model_")
    assert len(repr(fitted)) < 200


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:y labels every example")
def test_tools_of_scikit_learn() -> None:
    quick = QUICK | {"max_steps": 120}
    pipeline = make_pipeline(StandardScaler(), M2Classifier(**quick))
    assert cross_val_score(pipeline, X, Y, cv=3).mean() > 0.8
    search = GridSearchCV(M2Classifier(**quick), {"alpha": [1.0, 10.0]}, cv=2).fit(X, Y)
    assert search.best_params_["alpha"] in (1.0, 10.0)
    calibrated = CalibratedClassifierCV(M2Classifier(**quick), cv=2).fit(X, Y)
    assert calibrated.predict_proba(X).shape == (len(X), 3)
    features = make_pipeline(M1Transformer(**QUICK | {"max_steps": 1000}), LogisticRegression())
    assert features.fit(X, Y).score(X, Y) > 0.8
    assert features[0].get_feature_names_out().tolist() == ["m1transformer0", "m1transformer1", "m1transformer2"]


@pytest.mark.filterwarnings("ignore:y labels every example")
def test_search_calibration_and_tables_as_output() -> None:
    search = GridSearchCV(M2Classifier(**BRIEF), {"alpha": [1.0, 10.0]}, cv=2).fit(X, FEW)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.predict(X).shape == (len(X),)
    calibrated = CalibratedClassifierCV(search.best_estimator_, cv=2).fit(X, Y)
    np.testing.assert_allclose(calibrated.predict_proba(X).sum(1), 1.0)
    transformer = M1Transformer(**BRIEF).set_output(transform="pandas")
    table = transformer.fit_transform(pd.DataFrame(X, index=np.arange(len(X)) + 5))
    assert table.columns.tolist() == [f"m1transformer{latent}" for latent in range(3)]
    assert table.index.tolist() == list(range(5, len(X) + 5))


def test_m1_reconstructs_in_the_units_of_the_input() -> None:
    transformer = M1Transformer(**QUICK | {"max_steps": 250, "latent_dim": 8, "learning_rate": 0.01}).fit(X)
    error = np.mean((transformer.inverse_transform(transformer.transform(X)) - X) ** 2)
    assert error < 0.6  # standardised columns: the mean alone has 1
    with pytest.raises(ValueError, match=r"X has shape \(1, 3\); latents \(N, 8\) are needed"):
        transformer.inverse_transform([[0.0, 1.0, 2.0]])


@pytest.mark.slow
def test_images_of_eight_bits() -> None:
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 1, 8, 8) * 15).astype(np.uint8)
    few = np.where(np.arange(len(labels)) % 10 == 0, labels, -1)
    model = M2Classifier(max_steps=150, random_state=0, hidden_dims=(64,)).fit(images, few)
    assert model.score(images, labels) > 0.85
    samples, _ = model.sample(3, y=7)
    assert samples.shape == (3, 1, 8, 8)
    assert 20.0 < samples.max() <= 255.0


def test_the_mean_stands_for_missing_values_where_none_were_in_training(fitted: M2Classifier) -> None:
    holes, filled = X.copy(), X.copy()
    holes[3, 2], filled[3, 2] = np.nan, X[:, 2].mean()
    with pytest.warns(UserWarning, match="missing in column 2, and none were in training: the means of the columns"):
        probabilities = fitted.predict_proba(holes)
    np.testing.assert_allclose(probabilities, fitted.predict_proba(filled), rtol=1e-12)
    with pytest.warns(UserWarning, match="missing in column 2"):
        np.testing.assert_allclose(fitted.impute(holes), filled, rtol=1e-12, atol=1e-12)


def test_columns_of_too_many_words_are_refused() -> None:
    names = np.array([[f"name {row}", 1.0] for row in range(101)], dtype=object)
    with pytest.raises(ValueError, match="Column 0 of X holds 101 different words, such as 'name 0'; at most 100"):
        M1Transformer(**QUICK).fit(names)
    M1Transformer(**QUICK).fit(names[:100])
    names[1:, 0] = range(100)
    with pytest.raises(ValueError, match="Column 0 of X holds numbers and 1 other values, such as 'name 0'"):
        M1Transformer(**QUICK).fit(names)


def test_a_score_leaves_out_unlabelled_examples(fitted: M2Classifier) -> None:
    known = FEW >= 0
    assert fitted.score(X, FEW) == fitted.score(X[known], FEW[known])
    assert fitted.score(X, np.where(known, FEW, np.nan)) == fitted.score(X, FEW)
    with pytest.raises(ValueError, match="y has no label"):
        fitted.score(X, np.full(len(X), -1))
    scores = cross_val_score(M2Classifier(**QUICK | {"max_steps": 40}), X, FEW, cv=3)
    assert scores.min() > 0.6
