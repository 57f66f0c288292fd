"""Random arguments, tables and labels: each is refused by an error of the package, or gives a valid result.

Every case has a seed of its own, so that a failure can be repeated.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_ssvae as ss
from pyro_ssvae import distributions
from pyro_ssvae.estimators import DDGMDensity, M1M2Classifier, M1Transformer, M2Classifier
from tests.faults.generated import (
    EXAMPLES,
    LABELS,
    VALUES,
    Generator,
    attempt,
    check_data,
    choose,
    make_base,
    shorten,
    use_model,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SHAPE = (1, 8, 8)
METHODS = "predict predict_proba predict_log_proba transform impute score score_samples sample inverse_transform"


def check_settings(config: ss.TrainingConfig) -> None:
    total = config.total_steps(10)
    found = [total, config.evaluation_interval(total), config.kl_weight_at(0, total, 100)]
    found += [config.learning_rate_at(step, total) for step in (0, total - 1)]
    assert all(math.isfinite(number) for number in found)
    assert min(found[:2]) >= 1


def make_targets(root: Path) -> dict[str, tuple[Callable[..., Any], dict[str, Any], Callable[[Any], Any]]]:
    """Return functions, arguments that fit them, and what uses their results."""
    x, y = torch.rand(20, *SHAPE), torch.arange(20) % 3
    np.savez(root / "data.npz", x_train=x.numpy(), y_train=y.numpy())
    small: dict[str, Any] = {"latent_dim": 2, "hidden_dims": (8,)}
    energy: dict[str, Any] = {"event_shape": SHAPE, "latent_dim": 2, "num_experts": 3}
    m1, m2, ddgm = ss.M1(SHAPE, **small), ss.M2(SHAPE, 3, **small, classifier="mlp"), ss.DDGM(**energy)
    for model in (m1, m2, ddgm):
        model.eval()
    data = ss.SemiSupervisedData
    targets: dict[str, Any] = {
        "M2": (ss.M2, {"event_shape": SHAPE, "num_classes": 3, **small}, use_model),
        "M1": (ss.M1, {"event_shape": SHAPE, **small}, use_model),
        "DDGM": (ss.DDGM, energy, use_model),
        "M1M2.from_m1": (ss.M1M2.from_m1, {"m1": m1, "num_classes": 3, "latent_dim": 2}, use_model),
        "TrainingConfig": (ss.TrainingConfig, {}, check_settings),
        "SemiSupervisedELBO": (ss.SemiSupervisedELBO, {"module": m2, "num_unlabelled": 17, "num_labelled": 3}, repr),
        "UnsupervisedELBO": (ss.UnsupervisedELBO, {"module": m1, "num_examples": 20}, repr),
        "EnergyObjective": (ss.EnergyObjective, {"module": ddgm, "num_unlabelled": 20}, repr),
        "from_arrays": (data.from_arrays, {"x": x, "y": y}, check_data),
        "from_npz": (data.from_npz, {"path": root / "data.npz"}, check_data),
        "from_folder": (data.from_folder, {"path": root, "image_size": 8}, check_data),
        "from_name": (data.from_name, {"name": "digits", "download": False}, check_data),
        "for_data": (ss.M2.for_data, {"data": data.from_arrays(x, y, x_test=x, y_test=y)}, use_model),
        "load": (ss.load, {"folder": ss.save(m2, root / "model")}, use_model),
    }
    for method in (m2.generate, m1.generate, ddgm.sample):
        targets[f"{method.__qualname__} {len(targets)}"] = (method, {"num_samples": 2}, repr)
    for method in (m1.transform, m1.reconstruct, ddgm.score_samples, m2.predict, m2.predict_proba):
        targets[method.__qualname__] = (method, {"x": x}, repr)
    for name in distributions.__all__:
        if isinstance(kind := getattr(distributions, name), type) and not inspect.isabstract(kind):
            required = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
            if {*required} <= {"latent_dim", "num_classes", "levels", "dim"}:
                targets[name] = (kind, dict.fromkeys(required, 3), repr)
    return targets


def test_wrong_arguments_are_refused_or_work(tmp_path: Path) -> None:
    targets = make_targets(tmp_path)
    for number in range(1000):
        rng = np.random.default_rng((0, number))
        torch.manual_seed(number)
        name = list(targets)[number % len(targets)]
        function, arguments, use = targets[name]
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = [one.name for one in inspect.signature(function).parameters.values() if one.kind in kinds]
        names = [one for one in parameters if one not in ("module", "download")]
        chosen = rng.choice(names, size=min(len(names), 1 + int(rng.random() < 0.25)), replace=False)
        given = {str(one): choose(VALUES, rng) for one in chosen}
        words = f"case {number}: {name}({', '.join(f'{one}={shorten(value)}' for one, value in given.items())})"
        found = attempt(words, function, **arguments | given)
        if found is not None:
            attempt(f"{words} is accepted, then", use, found)


def vary(x: Any, y: Any, rng: Generator) -> tuple[Any, Any, str]:
    """Return strange examples and labels, and what they are."""
    kind, label = choose(list(EXAMPLES), rng), choose([*["numbers"] * 10, *LABELS], rng)
    return EXAMPLES[kind](x, rng), LABELS[label](y, rng), f"X={kind}, y={label}"


def make_estimator(rng: Generator, strange: bool) -> tuple[Any, str]:
    """Return an estimator that trains briefly, and the parameters that are strange."""
    kind = choose((M2Classifier, M1M2Classifier, M1Transformer, DDGMDensity), rng)
    names = list(kind().get_params())
    quick = {"max_steps": 3, "hidden_dims": (8,), "device": "cpu", "random_state": 0, "class_prior": "uniform"}
    chosen = rng.choice(names, size=int(rng.integers(1, 3)) if strange else 0, replace=False)
    given = {str(name): choose(VALUES, rng) for name in chosen}
    words = ", ".join(f"{name}={shorten(value)}" for name, value in given.items())
    return kind(**{name: value for name, value in (quick | {"max_time": 5.0} | given).items() if name in names}), words


def check_result(estimator: Any, name: str, found: Any, length: int, words: str) -> None:
    """Fail unless a method returned finite numbers, or classes, of the right shape."""
    classes = getattr(estimator, "classes_", np.arange(0))
    if name == "sample" and len(classes):
        found, labels = found
        assert np.isin(labels, classes).all(), words
    found = np.asarray(found)
    shapes = {"predict_proba": (length, len(classes)), "predict": (length,), "score": (), "score_samples": (length,)}
    assert found.shape == shapes.get(name, found.shape), words
    if name == "predict":
        assert np.isin(found, classes).all(), words
    elif found.dtype != object:
        assert (~np.isnan(found) if name == "predict_log_proba" else np.isfinite(found)).all(), words
    if name == "predict_proba":
        np.testing.assert_allclose(found.sum(1), 1.0, atol=1e-5, err_msg=words)


@pytest.mark.parametrize("part", range(4))
def test_estimators_refuse_strange_tables_or_work(part: int) -> None:
    for number in range(part, 240, 4):
        rng = np.random.default_rng((1, number))
        x, y = make_base(rng)
        strange = rng.random() < 0.2
        estimator, given = make_estimator(rng, strange)
        X, labels, words = (x, y, "numbers") if strange else vary(x, y, rng)
        words = f"case {number}: {type(estimator).__name__}({given}), {words}"
        if attempt(words, estimator.fit, X, labels) is None:
            continue
        later, _, kind = vary(x, y, rng) if rng.random() < 0.4 else (X, y, "the same")
        name = choose([one for one in METHODS.split() if hasattr(estimator, one)], rng)
        args = (3,) if name == "sample" else (later, y) if name == "score" else (later,)
        words = f"{words}, later {kind}: {name}"
        found = attempt(words, getattr(estimator, name), *args)
        if found is not None:
            length = 3 if name == "sample" else later.shape[0] if hasattr(later, "shape") else len(later)
            check_result(estimator, name, found, length, words)


SEPARATORS, ENCODINGS = (",", ",", ";", "\t", "|"), ("utf-8", "utf-8", "utf-8-sig", "utf-16", "cp1252")
FAULTS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "twice": lambda text: text.replace("c0", "y", 1),
    "no label": lambda text: text.replace("y", "z", 1),
    "no header": lambda text: text.partition("\n")[2],
    "short": lambda text: text.strip()[:-3],
    "long": lambda text: f"{text}1,2,3;4;5\t6\t7\n",
    "wide": lambda text: "".join(f"{line},{','.join(map(str, range(10_000)))}\n" for line in text.splitlines()[:4]),
    "blank": lambda text: f"\n\n{text}\n\n\n",
    "comment": lambda text: f"# made by\n{text}",
    "quote": lambda text: f'{text}"open',
    "null": lambda text: f"{text}\0",
    "nothing": lambda text: "",
    "header only": lambda text: text.partition("\n")[0],
    "decimal": lambda text: text.translate(str.maketrans(",.", ";,")),
    "long cell": lambda text: text.replace("c0", "c" * 2**17, 1),
}
"""Faults of the text of a table."""


def test_tables_are_refused_or_train_a_model(tmp_path: Path) -> None:
    for number in range(300):
        rng = np.random.default_rng((2, number))
        x, y, words = vary(*make_base(rng), rng)
        try:
            table = pd.DataFrame(x).rename(columns=lambda name: f"c{name}").assign(y=y)
        except Exception:  # no table
            table = pd.DataFrame(rng.normal(size=(12, 2)), columns=["c0", "c1"]).assign(y="a")
        source: Any = table
        if rng.random() < 0.6:
            fault, source = choose(list(FAULTS), rng), tmp_path / f"table{number}.csv"
            text = FAULTS[fault](table.to_csv(index=False, sep=choose(SEPARATORS, rng)))
            source.write_bytes(text.encode(choose(ENCODINGS, rng), "replace"))
            words = f"{words}, fault {fault}"
        words = f"case {number}: {words}"
        options = {"num_labels": choose(["all", 0, 1, 1000], rng), "balanced": bool(rng.random() < 0.5)}
        options |= {name: choose([0, None, 2, 100], rng) for name in ("num_validation", "num_test")}
        data = attempt(words, ss.SemiSupervisedData.from_table, source, "y", **options)
        if data is not None:
            check_data(data)
            kind = ss.M1 if data.num_classes is None else ss.M2
            small: dict[str, Any] = {"latent_dim": 2, "hidden_dims": (4,), "likelihood": "auto"}
            model = attempt(f"{words} is accepted, for_data", kind.for_data, data, **small)
            if model is not None:
                attempt(f"{words} is accepted, the model", use_model, model.eval())
