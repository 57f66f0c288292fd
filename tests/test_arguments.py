"""Arguments of a wrong type or value are refused in one line, which says what was given and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyro_ssvae as ss
from pyro_ssvae.networks import MLP
from pyro_ssvae.networks.energy import EnergyNet, MLPFeatures
from pyro_ssvae.objectives import AffineAugmentation, Consistency

NAN = float("nan")
X = np.random.default_rng(0).random((8, 5), dtype=np.float32)
Y = np.array([0, 1, 2, -1, -1, -1, -1, -1])


def make_data() -> ss.SemiSupervisedData:
    return ss.SemiSupervisedData.from_arrays(X, Y)


def make_m2(**options: Any) -> ss.M2:
    return ss.M2(**{"event_shape": (5,), "num_classes": 3, "latent_dim": 2, "hidden_dims": (4,), **options})


def make_m1(**options: Any) -> ss.M1:
    return ss.M1(**{"event_shape": (5,), "latent_dim": 2, "hidden_dims": (4,), **options})


def make_objective(**options: Any) -> ss.SemiSupervisedELBO:
    return ss.SemiSupervisedELBO.for_data(make_m2(), make_data(), **options)


def refuse(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"max_steps": 1.5}, TypeError, "max_steps=1.5 is of type float; an integer of at least 1"),
        ({"batch_size": True}, TypeError, "batch_size=True is of type bool"),
        ({"batch_size": np.True_}, TypeError, "batch_size="),
        ({"device": []}, TypeError, r"device=\[\] is of type list; a string"),
        ({"device": 2}, TypeError, "device=2 is of type int"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate='fast' is of type str; a number is needed, above 0"),
        ({"learning_rate": NAN}, ValueError, "learning_rate=nan must be a finite number, above 0"),
        ({"learning_rate": 10**400}, ValueError, "learning_rate=inf"),
        ({"gradient_clip": [1.0]}, TypeError, "gradient_clip"),
        ({"kl_weight": -1.0}, ValueError, "kl_weight=-1.0 must be at least 0"),
        ({"ema_decay": 1.0}, ValueError, "ema_decay=1.0 must be at least 0 and below 1"),
        ({"max_steps": 10**30}, ValueError, "max_steps=10*0...0* is too large; it must be at most 2147483647"),
        ({"batch_size": None}, TypeError, "batch_size=None is of type NoneType"),
        ({"seed": 2**32}, ValueError, "seed=4294967296 is too large"),
        ({"binarisation": 1}, TypeError, "binarisation=1 is of type int"),
        ({"max_step": 3}, TypeError, "TrainingConfig has no argument max_step. Did you mean max_steps"),
        ({"devices": 2}, TypeError, "no argument devices. It is an argument of fit"),
        ({"patience": np.zeros((40, 40))}, TypeError, "patience="),
    ],
)
def test_settings_of_training(values: dict[str, Any], error: type[Exception], words: str) -> None:
    refuse(lambda: ss.TrainingConfig(**values), error, words)


def test_numbers_of_numpy_and_pytorch_become_those_of_python() -> None:
    config = ss.TrainingConfig(max_steps=np.int64(3), learning_rate=torch.tensor(0.5), weight_decay=0, seed=np.uint8(2))
    assert [type(value) for value in (config.max_steps, config.learning_rate, config.seed)] == [int, float, int]
    assert (config.max_steps, config.learning_rate, config.weight_decay, config.seed) == (3, 0.5, 0, 2)
    model = make_m2(hidden_dims=np.array([4, 3]), event_shape=torch.Size((5,)), batch_norm=np.True_)
    assert model.config()["arguments"]["hidden_dims"] == [4, 3]
    assert model.config()["arguments"]["batch_norm"] is True
    assert ss.TrainingConfig(device=torch.device("cpu")).device == "cpu"


@pytest.mark.parametrize("make", [make_m1, make_m2])
@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"hidden_dims": (0,)}, ValueError, r"hidden_dims\[0\]=0 is too small; it must be at least 1"),
        ({"hidden_dims": (4, 2.5)}, TypeError, r"hidden_dims\[1\]=2.5 is of type float"),
        ({"hidden_dims": 500}, TypeError, "hidden_dims=500 is of type int; a sequence of integers"),
        ({"hidden_dims": "500"}, TypeError, "hidden_dims='500' is of type str"),
        ({"hidden_dims": np.array(3)}, TypeError, "a sequence of integers"),
        ({"latent_dim": 10**9}, ValueError, "latent_dim=1000000000 is too large; it must be at most 65536"),
        ({"latent_dim": "5"}, TypeError, "latent_dim='5'"),
        ({"latent_dim": NAN}, TypeError, "latent_dim=nan is of type float"),
        ({"event_shape": 5}, TypeError, "event_shape=5"),
        ({"event_shape": (5, -1)}, ValueError, r"event_shape\[1\]=-1"),
        ({"event_shape": (10**12,)}, ValueError, r"event_shape\[0\]=10+ is too large"),
        ({"batch_norm": "yes"}, TypeError, "batch_norm='yes' is of type str; True or False"),
        ({"activation": None}, TypeError, "activation=None is of type NoneType; a string"),
        ({"encoder": "conv"}, TypeError, "encoder is of type str, and must be a module"),
        ({"hiden_dims": (3,)}, TypeError, "no argument hiden_dims. Did you mean hidden_dims"),
    ],
)
def test_constructors(make: Callable[..., Any], values: dict[str, Any], error: type[Exception], words: str) -> None:
    refuse(lambda: make(**values), error, words)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: make_m2(num_classes=3.0), TypeError, "num_classes=3.0"),
        (lambda: make_m2(num_classes=10**8), ValueError, "num_classes=100000000 is too large"),
        (lambda: make_m2(dropout=NAN), ValueError, "dropout=nan"),
        (lambda: ss.DDGM((2,), sigma=NAN), ValueError, "sigma=nan"),
        (lambda: ss.DDGM((2,), num_experts=1.5), TypeError, "num_experts=1.5"),
        (lambda: ss.DDGM(2), TypeError, "event_shape=2"),
        (lambda: ss.M1M2.from_m1(make_m1(), "3"), TypeError, "num_classes='3'"),
        (lambda: ss.M1M2.from_m1(make_m1(), 3, active="ab"), TypeError, "active has dtype"),
        (lambda: ss.M1M2.from_m1(make_m1(), 3, min_scale=NAN), ValueError, "min_scale=nan"),
        (lambda: MLP((5,), 2.5), TypeError, "out_features=2.5"),
        (lambda: MLPFeatures((5,), feature_dim=0), ValueError, "feature_dim=0"),
        (lambda: EnergyNet((5,), torch.nn.Linear(5, 2), 3, sigma="1"), TypeError, "sigma='1'"),
        (lambda: AffineAugmentation(rotation=NAN), ValueError, "rotation=nan"),
        (lambda: Consistency(3, align=None), TypeError, "align=None"),
        (lambda: make_m1().generate(2.5), TypeError, "num_samples=2.5"),
        (lambda: make_m1().transform(torch.zeros(1, 5), "a"), TypeError, "num_samples='a'"),
        (lambda: make_m2().generate(2, y="a"), ValueError, "y=a is no class"),
        (lambda: make_m2().generate(2, y=0.5), ValueError, "labels are whole numbers"),
        (lambda: make_m2().generate(2, y=[0, 3]), ValueError, "y=3 is no class; the model has 0 to 2"),
        (lambda: make_m2().generate(2, y=-1), ValueError, "every label must be known"),
        (lambda: ss.DDGM((2,)).sample(NAN), TypeError, "num_samples=nan"),
        (lambda: ss.DDGM((2,)).sample(2, step_size=NAN), ValueError, "step_size=nan"),
        (lambda: ss.load(5), TypeError, "folder=5 is of type int; a path"),
        (lambda: ss.load("there", device=3), TypeError, "device=3"),
        (lambda: ss.load("there", device="mps"), ValueError, "device='mps' is not supported; use one device"),
        (lambda: ss.load("there", cls="M2"), TypeError, "cls='M2' must be a class"),
        (lambda: ss.save(make_data(), "there"), TypeError, "must be a model, for example M2"),
    ],
)
def test_functions_and_parts(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    refuse(call, error, words)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: make_objective(alpha=NAN), ValueError, "alpha=nan must be a finite number, at least 0"),
        (lambda: make_objective(alpha="large"), TypeError, "alpha='large'"),
        (lambda: make_objective(bound_batch_size=0), ValueError, "bound_batch_size=0"),
        (lambda: make_objective(top_k=1.5), TypeError, "top_k=1.5"),
        (lambda: make_objective(pure="yes"), TypeError, "pure='yes'"),
        (lambda: make_objective(class_weight=[1, 2, 3]), TypeError, "no argument class_weight. .*have no weights"),
        (
            lambda: ss.SemiSupervisedELBO.for_data(make_data(), make_m2()),
            TypeError,
            "module is of type SemiSup.*a module",
        ),
        (
            lambda: ss.SemiSupervisedELBO.for_data(make_m2(), X),
            TypeError,
            r"data is of type ndarray.*from_arrays\(x, y\)",
        ),
        (lambda: ss.UnsupervisedELBO.for_data(make_m1(), (X, Y)), TypeError, "data is of type tuple"),
        (lambda: ss.UnsupervisedELBO(make_m1(), num_examples=0), ValueError, "num_examples=0"),
        (lambda: ss.EnergyObjective.for_data(ss.DDGM((5,)), None), TypeError, "data is of type NoneType"),
        (lambda: ss.EnergyObjective(ss.DDGM((5,)), num_unlabelled=3, mle_fraction=NAN), ValueError, "mle_fraction=nan"),
    ],
)
def test_objectives(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    refuse(call, error, words)


def test_images_without_classes_name_the_objective_that_is_due() -> None:
    data = ss.SemiSupervisedData.from_arrays(np.zeros((4, 1, 8, 8)))
    m1 = ss.M1.for_data(data, latent_dim=2, hidden_dims=(4,))
    refuse(
        lambda: ss.SemiSupervisedELBO.for_data(m1, data), ValueError, "M1 has no classes.*UnsupervisedELBO is for M1"
    )


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: ss.fit(make_m2(), make_data()),
            TypeError,
            r"is of type M2, and must be an objective: .*for_data\(model",
        ),
        (lambda: ss.fit(make_objective(), X), TypeError, "data is of type ndarray"),
        (lambda: ss.fit(make_objective(), make_data(), {"max_steps": 3}), TypeError, "config is of type dict"),
        (lambda: ss.fit(make_objective()), TypeError, "fit: missing a required argument: 'data'"),
        (lambda: ss.fit(make_objective(), make_data(), out=3), TypeError, "out=3"),
        (lambda: ss.fit(make_objective(), make_data(), resume=1), TypeError, "resume=1"),
        (lambda: ss.fit(make_objective(), make_data(), sample_weight=[1.0]), TypeError, "sample_weight. .*no weights"),
        (lambda: ss.report(make_objective(), make_data(), None), TypeError, "run is of type NoneType.*fit"),
    ],
)
def test_fit_and_report(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    refuse(call, error, words)


@pytest.mark.parametrize("device", ["mps", "cuda:0,1", "xpu", "2"])
def test_devices_that_do_not_train(device: str) -> None:
    config = ss.TrainingConfig(device=device)
    refuse(lambda: ss.fit(make_objective(), make_data(), config), ValueError, f"device='{device}' is .* use one device")


def test_what_is_not_supported_is_said() -> None:
    from_arrays = ss.SemiSupervisedData.from_arrays
    refuse(lambda: from_arrays(X, Y + 0.25), ValueError, r"y\[0\] is 0.25; .*\(regression\) is not supported")
    images = np.full((2, 1, 3, 3), np.nan)
    refuse(lambda: from_arrays(images), ValueError, "values that are NaN.*Leave out those examples, or fill")
    refuse(lambda: from_arrays(X, Y, sample_weight=Y), TypeError, "no argument sample_weight. .*have no weights")
    more = from_arrays(X, np.where(np.arange(8) == 7, 3, Y))
    refuse(lambda: ss.fit(make_objective(), more), ValueError, "has 3 classes, the data 4.*gets no further classes")


def test_a_class_of_ones_own_is_not_checked(tmp_path: Path) -> None:
    class Shifted(ss.M2):
        def __init__(self, *args: Any, offset: int = 0, **options: Any) -> None:
            super().__init__(*args, **options)
            self.offset = offset

    assert Shifted((5,), 3, hidden_dims=(4,), offset=-2.5).offset == -2.5
    refuse(lambda: Shifted((5,), 3, hidden_dims=(0,)), ValueError, r"hidden_dims\[0\]=0")
