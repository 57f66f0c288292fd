"""The figures of a run: which are written, how, and when not."""

from __future__ import annotations

import dataclasses
import errno
import importlib
import os

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from pyro_ssvae import DDGM, M1, M2, SemiSupervisedData
from pyro_ssvae.errors import RunFolderError
from pyro_ssvae.plots import figures
from pyro_ssvae.plots.figures import save_figures
from pyro_ssvae.plots.style import new_figure

MODULE = importlib.import_module("pyro_ssvae.plots.figures")  # not the function of that name
IMAGES = ["samples", "analogies", "reconstructions"]
CLASSES = ["latent_map", "confusion_matrix", "reliability"]


def make_data(event_shape=(1, 8, 8), held_out="test", num_classes=3):
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(24, *event_shape, generator=generator) * 255).to(torch.uint8)
    y = torch.arange(24) % num_classes
    hidden = y[:12].clone()
    hidden[6:] = -1
    rest = {f"x_{held_out}": x[12:], f"y_{held_out}": y[12:]} if held_out else {}
    names = ["ant", "bee", "cow", *"defg"][:num_classes]
    rest |= {"num_classes": num_classes, "class_names": names, "scale": 255.0}
    return SemiSupervisedData.from_arrays(x[:12], hidden, **rest)


def make_model(data, **options):
    torch.manual_seed(1)
    options = {"latent_dim": 3, "hidden_dims": (6,), "classifier": "mlp"} | options
    return M2(data.event_shape, data.num_classes, **options)


def write_metrics(folder, text="step,train/loss\n1,2.0\n2,1.0\n"):
    path = folder / "metrics.csv"
    path.write_text(text, encoding="utf-8")
    return path


def stems(paths):
    return [path.stem for path in paths]


def test_a_run_on_images(tmp_path):
    data = make_data()
    model = make_model(data)
    paths = save_figures(model, data, write_metrics(tmp_path), tmp_path / "run" / "figures")
    assert stems(paths) == [*IMAGES, *CLASSES, "training_curves"]
    assert sorted(paths) == sorted((tmp_path / "run" / "figures").iterdir())
    for path in paths:
        height, width, channels = imread(path).shape
        assert min(height, width) > 100
        assert channels in (3, 4)
    assert model.training


def test_a_run_on_a_table(tmp_path):
    data = make_data((16,))  # a square number, and yet no image
    paths = save_figures(make_model(data), data, None, str(tmp_path))
    assert stems(paths) == ["feature_means", *CLASSES]


@pytest.mark.usefixtures("unrendered")
def test_without_test_examples(tmp_path):
    data = make_data((5,), held_out="validation")
    paths = save_figures(make_model(data), data, None, tmp_path)
    assert stems(paths) == ["feature_means", *CLASSES]
    data = make_data(held_out=None)
    assert stems(save_figures(make_model(data), data, None, tmp_path)) == IMAGES


def test_curves_need_an_evaluation(tmp_path):
    data = make_data((5,), held_out=None)
    for metrics in (tmp_path / "none.csv", write_metrics(tmp_path, "step,train/loss\n")):
        paths = save_figures(make_model(data), data, metrics, tmp_path / "f")
        assert stems(paths) == ["feature_means"]


def test_files_are_the_same_bytes_and_replace_older_ones(tmp_path):
    data = make_data(held_out=None)
    model = make_model(data)
    first = {p: p.read_bytes() for p in save_figures(model, data, None, tmp_path, seed=4)}
    torch.rand(5)
    state = torch.get_rng_state()
    again = save_figures(model, data, None, tmp_path, seed=4)
    assert {path: path.read_bytes() for path in again} == first
    assert torch.equal(torch.get_rng_state(), state)
    other = save_figures(model, data, None, tmp_path, seed=5)
    assert other[0].read_bytes() != first[other[0]]


def test_a_full_disk_leaves_the_old_figure_and_no_temporary_file(tmp_path, monkeypatch):
    data = make_data((5,), held_out=None)
    (path,) = save_figures(make_model(data), data, None, tmp_path)
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunFolderError, match=r"Cannot write the figure .*No space left"):
        save_figures(make_model(data), data, None, tmp_path, seed=1)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_that_does_not_fit_is_refused(tmp_path):
    data, other = make_data(), make_data((1, 4, 4))
    with pytest.raises(ValueError, match="Pass the data that the model was trained on"):
        save_figures(make_model(other), data, None, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_values_beyond_the_unit_interval_are_not_clipped(tmp_path, monkeypatch):
    ranges = []

    def record(model, **options):
        ranges.append(options["value_range"])
        raise StopIteration

    monkeypatch.setattr(MODULE, "plot_samples", record)
    for low, high, expected in ((-2.0, 3.0, (-2.0, 3.0)), (0.2, 0.9, (0.0, 1.0))):
        x = torch.linspace(low, high, 4 * 16).reshape(4, 1, 4, 4)
        data = SemiSupervisedData.from_arrays(x, [0, 1, -1, -1])
        with pytest.raises(StopIteration):
            save_figures(make_model(data, likelihood="gaussian"), data, None, tmp_path)
        assert ranges[-1] == pytest.approx(np.array(expected))


def test_a_model_on_a_device_with_more_classes_than_the_data(tmp_path, device):
    data = make_data()
    model = M2(data.event_shape, 5, latent_dim=2, hidden_dims=(6,), classifier="mlp").to(device)
    assert len(save_figures(model, data, None, tmp_path)) == 6
    assert next(model.parameters()).device.type == device.type


@pytest.mark.parametrize(("step", "effect"), [(0.12, "explains 1.0%"), (0.05, "explains 0.2%"), (0.13, None)])
@pytest.mark.parametrize("empty", [False, True])
def test_a_class_without_effect_is_named(step, effect, empty):
    """One column may have no value in the test examples."""
    x = torch.tensor([-1.0, 1.0]).repeat(6)[:, None].expand(-1, 5)
    x_test = x.index_fill(1, torch.tensor([4]), torch.nan) if empty else x
    data = SemiSupervisedData.from_arrays(x, torch.arange(12) % 3, x_test=x_test, y_test=torch.arange(12) % 3)
    model = make_model(data, likelihood="gaussian", missing=True)
    model.decode = lambda y, z: torch.distributions.Normal(step * y[:, None].expand(-1, 5), 1.0)
    note = figures(model, data)["feature_means"]().axes[0].get_title(loc="left")
    assert ("y is hardly used" in note) == (effect is not None)
    assert (effect or "") in note


@pytest.mark.parametrize("factor", [0.0, 200.0])
@pytest.mark.parametrize("make", [make_model, lambda data: M1(data.event_shape, latent_dim=3, hidden_dims=(6,))])
def test_latents_that_carry_nothing_are_named(make, factor):
    data = make_data()
    model = make(data)
    for parameter in model.encoder.parameters():
        parameter.data *= factor
    drawings = figures(model, data)
    for name in ("samples", "reconstructions", "latent_map"):
        note = drawings[name]().axes[0].get_title(loc="left")
        assert ("z is hardly used" in note) == (factor == 0.0)


ENERGIES = ["features_and_latents", "samples", "nearest", "interpolations", "analogies", "energies"]


def make_ddgm(data, **options):
    torch.manual_seed(1)
    return DDGM(data.event_shape, **{"latent_dim": 3} | options)


@pytest.mark.slow
def test_a_run_of_an_energy_model(tmp_path):
    data = make_data()
    state = torch.get_rng_state()
    ddgm = make_ddgm(data, num_classes=4)  # one more than the data has
    torch.set_rng_state(state)
    paths = save_figures(ddgm, data, write_metrics(tmp_path), tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert stems(paths) == [*ENERGIES, "confusion_matrix", "reliability", "training_curves"]
    assert ddgm.training


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize(
    ("shape", "held_out", "expected"),
    [
        ((1, 8, 8), None, ENERGIES[:4]),
        ((2,), "test", ["features_and_latents", "interpolations", "confusion_matrix", "reliability"]),
        ((5,), None, ["features_and_latents"]),
    ],
)
def test_an_energy_model_of_other_shapes(tmp_path, shape, held_out, expected):
    data = make_data(shape, held_out)
    assert stems(save_figures(make_ddgm(data, num_classes=3), data, None, tmp_path)) == expected


def test_an_energy_model_without_classes_has_no_matrix(tmp_path):
    data = make_data((2,))
    assert stems(save_figures(make_ddgm(data), data, None, tmp_path)) == ["features_and_latents", "interpolations"]


def test_analogies_are_drawn_for_known_classes(monkeypatch):
    seen = []

    def record(model, x, y, **options):
        seen.append((x, y))
        raise StopIteration

    monkeypatch.setattr(MODULE, "plot_analogies", record)
    x = torch.linspace(0.0, 1.0, 40).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    y = torch.tensor([0, 1, 2, 2]).repeat(10)
    for classes, seed in ((y, 0), (y, 0), (y, 1), (torch.zeros(40, dtype=torch.int64), 0)):
        data = SemiSupervisedData.from_arrays(x[:3], [0, 1, 2], x_test=x, y_test=classes).without_labels()
        with pytest.raises(StopIteration):
            figures(make_ddgm(data), data, seed=seed)["analogies"]()
    chosen = y[(seen[0][0][:, 0, 0, 0] * 39.0).round().long()].view(-1, 3)
    assert len(chosen) == 6
    assert (chosen[:, 0] == chosen[:, 1]).all()
    assert (chosen[:, 0] != chosen[:, 2]).all()
    assert len(chosen[:, 0].unique()) == 3
    rows = seen[0][0].view(-1, 3, 64)
    assert (rows[:, 0] != rows[:, 1]).any(-1).all()  # a is not b
    assert torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[0][0], seen[2][0])
    assert torch.equal(seen[0][1], chosen.flatten())
    assert len(seen[3][0]) == 18


M1_FIGURES = ["samples", "reconstructions", "interpolations", "traversals", "latent_map"]


@pytest.mark.parametrize(
    ("shape", "held_out", "expected"),
    [((1, 8, 8), "test", M1_FIGURES), ((1, 8, 8), None, ["samples"]), ((5,), "validation", ["latent_map"])],
)
def test_a_run_of_m1(tmp_path, shape, held_out, expected):
    data = make_data(shape, held_out).without_labels()
    m1 = M1(data.event_shape, latent_dim=2, hidden_dims=(6,))
    state = torch.get_rng_state()
    assert stems(save_figures(m1, data, None, tmp_path)) == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert m1.training


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize(("shape", "num_known"), [((1, 8, 8), 0), ((5,), 3)])
def test_held_out_examples_of_unknown_class(tmp_path, shape, num_known):
    data = make_data(shape)
    y_test = torch.full_like(data.y_test, -1)
    y_test[:num_known] = data.y_test[:num_known]
    data = dataclasses.replace(data, y_test=y_test)
    needing_labels = CLASSES[1:] if num_known else []
    for make, expected in (
        (make_model, [*(IMAGES if len(shape) == 3 else ["feature_means"]), "latent_map"]),
        (lambda data: make_ddgm(data, num_classes=3), ENERGIES if len(shape) == 3 else ENERGIES[:1]),
    ):
        assert stems(save_figures(make(data), data, None, tmp_path)) == [*expected, *needing_labels]
    m1 = M1(data.event_shape, latent_dim=2, hidden_dims=(6,))
    assert stems(save_figures(m1, data, None, tmp_path))[-1] == "latent_map"


def test_a_class_of_the_users_own_registers_its_figures(tmp_path):
    class Subclass(M2):
        pass

    class Mine(torch.nn.Module):
        pass

    data = make_data((5,), held_out=None)
    options = {"seed": 3}
    assert figures(Mine(), data, **options) == {}
    assert stems(save_figures(Mine(), data, write_metrics(tmp_path), tmp_path)) == ["training_curves"]
    m2 = Subclass(data.event_shape, data.num_classes, hidden_dims=(6,))
    assert list(figures(m2, data, **options)) == ["feature_means"]  # inherited

    @figures.register(Mine)
    @figures.register(Subclass)
    def _(model, data, *, seed):
        assert seed == 3
        return {"mine": lambda: new_figure(2.0, 2.0)}

    for model in (Mine(), m2):
        assert stems(save_figures(model, data, write_metrics(tmp_path), tmp_path, **options)) == [
            "mine",
            "training_curves",
        ]
