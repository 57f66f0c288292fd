"""Models, diagnostics, evaluation and augmentations compute where the model lies, shown on ``cuda`` without a GPU.

The tensors have shapes, types and devices but no values (``FakeTensorMode``). Data come from the CPU, as in training.
A number that is read from a tensor is answered by a constant, so that what follows it runs too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from pyro_ssvae.data.preparation import binarise, convert_images, iterate_batches, rescale, threshold
from pyro_ssvae.distributions import Gaussian, Laplace, Mixed
from pyro_ssvae.evaluation import active_units, annealed_log_normaliser, class_control, evaluate_model, log_likelihood
from pyro_ssvae.evaluation.image_metrics import find_nearest
from pyro_ssvae.models.diagnostics import (
    classification_error,
    energy_diagnostics,
    latent_diagnostics,
    posterior_diagnostics,
    predict_batches,
)
from pyro_ssvae.objectives import AffineAugmentation, Consistency, NeighbourDensities
from pyro_ssvae.objectives.energy_terms import draw_negatives, shift_and_flip
from tests.devices.cases import IMAGE, NUM_CLASSES, OBJECTIVES
from tests.devices.fake import AnswerReadings, OnDevice, empty_like_on, needs_cuda_build, no_gpu

pytestmark = [needs_cuda_build, no_gpu]  # with a driver PyTorch would read and restore the random state of the GPU

TRAINING_ONLY = ("top-k", "particles", "importance", "sampled", "classifier-only")  # evaluation is the same for these
EVALUATED = [name for name in OBJECTIVES if not any(part in name for part in TRAINING_ONLY)]
CLASSES = [name for name in EVALUATED if name.startswith(("m2", "m1m2"))]
NO_CLASSES = [name for name in EVALUATED if name.startswith("m1-")]
EVALUATED_ALIKE = ("map", "laplace", "poisson", "discretised", "continuous", "student", "categorical", "gaussian")
MEASURED = [name for name in (*CLASSES, *NO_CLASSES) if not any(part in name for part in EVALUATED_ALIKE)]
ENERGIES = ["ddgm-nearest_neighbour", "ddgm-classes", "ddgm-prior-student_t", "ddgm-images-all"]


@pytest.fixture(autouse=True)
def _without_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what asks the driver: whether the device exists, and the random state of the GPU."""

    @contextmanager
    def device(_: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr("pyro_ssvae.data.preparation.as_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device", device)
    for name in ("get_rng_state", "set_rng_state", "manual_seed"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)


def run(name: str, function: Callable[[Any, Tensor], Any], answer: float = 1.0) -> Any:
    """Call a function with an objective on ``cuda`` and examples on the CPU, none of which have values."""
    objective = OBJECTIVES[name]()
    with FakeTensorMode(allow_non_fake_inputs=False), AnswerReadings(answer), pyro.validation_enabled(False):
        objective = empty_like_on(objective, "cuda").train()
        return function(objective, torch.rand(6, *objective.module.event_shape))


def make_data(x: Tensor) -> Any:
    """Return what evaluation reads of a data set; labels are all unknown where readings are answered by 0."""
    y = torch.zeros(len(x), dtype=torch.int64)
    nothing = torch.zeros(0, dtype=torch.int64)
    indices = {"labelled_index": nothing, "unlabelled_index": nothing, "class_names": ()}
    return SimpleNamespace(x=x, scale=1.0, x_validation=x, y_validation=y, x_test=x, y_test=y, **indices)


# Models.


@pytest.mark.parametrize("name", CLASSES)
def test_semi_supervised_model(name: str) -> None:
    def use(objective: Any, x: Tensor) -> list[Tensor]:
        model, x = objective.module, x.to("cuda")
        return [model.predict_proba(x), *model.generate(3), *model.generate(3, y=1)]

    probabilities, *generated = run(name, use)
    assert probabilities.shape == (6, NUM_CLASSES)
    assert {part.device.type for part in (probabilities, *generated)} == {"cuda"}


@pytest.mark.parametrize("name", NO_CLASSES)
def test_m1(name: str) -> None:
    def use(objective: Any, x: Tensor) -> list[Tensor]:
        m1 = objective.module
        paths = [m1.interpolate(x[:2], x[2:4]), m1.interpolate(x[0], x[1], spherical=True)]
        return [m1.transform(x), m1.transform(x, 2), m1.reconstruct(x), m1.generate(3), m1.traverse(x, 1), *paths]

    assert {part.device.type for part in run(name, use)} == {"cuda"}


@pytest.mark.parametrize("name", ENERGIES)
def test_ddgm(name: str) -> None:
    def use(objective: Any, x: Tensor) -> list[Tensor]:
        ddgm = objective.module
        a, b, c = torch.rand(3, 2, ddgm.latent_dim, device="cuda")
        new = [ddgm.sample(3), ddgm.generate_from(a), ddgm.interpolate(a, b), ddgm.analogy(a, b, c)]
        return [*new, ddgm.energy(x), ddgm.score_samples(x), ddgm.features(x)]

    assert {part.device.type for part in run(name, use)} == {"cuda"}


@pytest.mark.parametrize("name", ["ddgm-nearest_neighbour", "ddgm-images"])
def test_ddgm_with_gradients_on_meta(name: str) -> None:
    ddgm: Any = empty_like_on(OBJECTIVES[name](), "meta").module
    x = torch.rand(3, *ddgm.event_shape, device="meta")
    with pyro.validation_enabled(False):
        found = [ddgm.invert(x, space=space, steps=2) for space in ("features", "x")]
        found.append(ddgm.sample(3, langevin_steps=2))
    assert {part.device.type for part in found} == {"meta"}


# Diagnostics and evaluation.


@pytest.mark.parametrize("name", [*CLASSES, *NO_CLASSES, *ENERGIES])
def test_validate(name: str) -> None:
    metrics = run(name, lambda objective, x: objective.validate(make_data(x)), answer=0.0).metrics
    expected = "kl_z" if not name.startswith("ddgm") else "energy_gap"
    assert expected in metrics


@pytest.mark.parametrize("name", [name for name in MEASURED if name != "m2-dirichlet"])
def test_bound_and_test_metrics(name: str) -> None:
    def use(objective: Any, x: Tensor) -> list[Any]:
        bound = objective.mean_bound(x, binarisation="static", batch_size=4)
        return [
            bound,
            objective.unlabelled_bound(x.to("cuda")),
            evaluate_model(objective.module, objective, make_data(x)),
        ]

    bound, unlabelled, metrics = run(name, use)
    assert {type(bound), type(unlabelled)} == {float}
    assert ("active_units" if name in NO_CLASSES else "class_control") in metrics


def test_mixed_likelihood_takes_examples_of_a_data_set() -> None:
    likelihood = Mixed([([0, 2], Gaussian()), ([1], Laplace())])
    with FakeTensorMode(allow_non_fake_inputs=False), AnswerReadings(1.0):
        empty_like_on(likelihood, "cuda").check(torch.rand(6, 3))


@pytest.mark.parametrize("name", [*CLASSES, *NO_CLASSES])
def test_log_likelihood(name: str) -> None:
    options: dict[str, Any] = {"num_samples": 150, "binarisation": "threshold"}
    found = run(name, lambda objective, x: log_likelihood(objective.module, x, **options))
    assert found.log_px.shape == (6,)
    assert found.log_px.device.type == "cpu"


def test_diagnostics() -> None:
    def use(objective: Any, x: Tensor) -> list[Any]:
        model = objective.module
        return [predict_batches(model, x), class_control(model, x), posterior_diagnostics(model, x, batch_size=4)]

    probabilities, *_ = run("m2-images", use)
    assert probabilities.device.type == "cpu"
    run(
        "m1-prior-flow",
        lambda objective, x: [latent_diagnostics(objective.module, x), active_units(objective.module, x)],
    )
    run("ddgm-images", lambda objective, x: energy_diagnostics(objective.module, x))


# What only the tool cannot do, each with the error by which it fails.

NOT_WITHOUT_VALUES: dict[str, tuple[type[Exception], str, str, Callable[[Any, Tensor], Any]]] = {
    "bound with a Dirichlet class prior: its sampler needs a driver": (
        RuntimeError, "Found no NVIDIA driver", "m2-dirichlet",
        lambda objective, x: objective.mean_bound(x),
    ),
    "error on labelled examples: how many are labelled depends on values": (
        DynamicOutputShapeException, "nonzero", "m2-bernoulli",
        lambda objective, x: classification_error(objective.module, x, torch.zeros(6, dtype=torch.int64)),
    ),
    "samples after Langevin steps: gradients on cuda need a driver": (
        RuntimeError, "hasPrimaryContext", "ddgm-nearest_neighbour",
        lambda objective, x: objective.module.sample(3, langevin_steps=1),
    ),
    "inversion: gradients on cuda need a driver": (
        RuntimeError, "hasPrimaryContext", "ddgm-nearest_neighbour",
        lambda objective, x: objective.module.invert(x),
    ),
    "log Z: its random generator needs a driver": (
        RuntimeError, "driver", "ddgm-nearest_neighbour",
        lambda objective, x: annealed_log_normaliser(objective.module.energy_net, (2,), device="cuda"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_WITHOUT_VALUES)
def test_what_cannot_run_without_values(what: str) -> None:
    error, message, name, function = NOT_WITHOUT_VALUES[what]
    with pytest.raises(error, match=message):
        run(name, function)


# Data and augmentations.


def test_augmentations() -> None:
    def classify(x: Tensor) -> Tensor:
        return x.flatten(1)[:, :NUM_CLASSES]

    neighbours = NeighbourDensities(torch.rand(20, *IMAGE), torch.arange(20) % NUM_CLASSES, NUM_CLASSES)
    consistency = Consistency(NUM_CLASSES, neighbours=neighbours)
    with FakeTensorMode(allow_non_fake_inputs=False):
        empty_like_on(consistency, "cuda")
        x = torch.rand(5, *IMAGE, device="cuda")
        with OnDevice("cuda"):
            corrupted, _ = draw_negatives(x)
            images = [AffineAugmentation()(x), shift_and_flip(x, 0.25), corrupted, rescale(x, 255.0), threshold(x)]
            loss = consistency(classify, x)
    assert {image.shape for image in images} == {x.shape}
    assert loss.shape == ()


def test_prepared_examples() -> None:
    with FakeTensorMode(allow_non_fake_inputs=False), AnswerReadings(1.0):
        x = torch.rand(5, 3, 9, 9, device="cuda")
        kinds = ("none", "static", "threshold")
        given = {name: next(iterate_batches(x.cpu(), device="cuda", binarisation=name)) for name in kinds}
        converted = [convert_images(x, (channels, 8, 8)) for channels in (1, 3, 4)]
        distances, nearest = find_nearest(x, x)
        drawn = binarise(x)
    assert {part.device.type for part in (*given.values(), *converted, distances, nearest)} == {"cuda"}
    assert drawn.device.type == "cpu"  # so that it is the same for every device
