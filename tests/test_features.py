"""Features of images: computed once, kept in files, and used by models that then take images."""

import sys

import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_sample_images
from torch import nn
from torchvision import models

import pyro_ssvae as ss
from pyro_ssvae import M2, SemiSupervisedData, SemiSupervisedELBO
from pyro_ssvae.data.features import make_source
from pyro_ssvae.errors import DataUnavailableError, MissingPackageError


class Halves(nn.Module):
    """Counts its calls; features are the means of the halves of each channel."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.factor * nn.functional.adaptive_avg_pool2d(x, (2, 1)).flatten(1)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = rng.integers(0, 100, (60, 8, 8, 3), dtype=np.uint8)
    x[y == 1, :4] += 150
    hidden = np.where(np.arange(60) < 20, y, -1)
    return SemiSupervisedData.from_arrays(x, hidden, x_test=x[:10], y_test=y[:10])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_SSVAE_DATA", str(tmp_path))
    return tmp_path / "features"


def test_features_are_those_of_the_network_and_computed_once(data, folder):
    network = Halves()
    found = data.with_features(network, progress=False)
    expected = (data.x / 255.0).unflatten(2, (2, 4)).mean((3, 4)).flatten(1)
    torch.testing.assert_close(found.x, expected)
    assert (found.event_shape, found.scale, found.x_validation.shape) == ((6,), 1.0, (0, 6))
    torch.testing.assert_close(found.x_test, expected[:10])
    assert torch.equal(found.y, data.y)
    calls = network.calls
    again = data.with_features(network, progress=False)
    assert network.calls == calls
    assert torch.equal(again.x, found.x)
    assert len([*folder.iterdir()]) == 2
    # Other weights, images or resolutions have files of their own.
    network.factor.data.fill_(2.0)
    torch.testing.assert_close(data.with_features(network, progress=False).x, 2.0 * expected)
    data.with_features(network, resolution=16, progress=False)
    assert network.calls > calls
    assert len([*folder.iterdir()]) == 6


def test_images_that_would_be_clamped_are_refused(data, folder):
    floats = data.x.float()
    for x in (floats, floats / 127.5 - 1.0):
        with pytest.raises(ValueError, match=r"images span \[.*\], and features are .* in \[0, 1\].*scale=255"):
            SemiSupervisedData.from_arrays(x, data.y).with_features(Halves(), resolution=16, progress=False)
    expected = data.with_features(Halves(), resolution=16, progress=False)
    for x, scale in ((floats, 255.0), (floats / 255.0, None)):
        found = SemiSupervisedData.from_arrays(x, data.y, scale=scale)
        torch.testing.assert_close(found.with_features(Halves(), resolution=16, progress=False).x, expected.x)


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(data, folder, monkeypatch, capsys):
    monkeypatch.setattr("pyro_ssvae.data.features._PART", 20)
    monkeypatch.setattr("pyro_ssvae.data.features._SECONDS", 0.0)
    found = data.with_features(Halves())
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [["features by Halves", f"part {n}/4"] for n in (1, 2, 3, 4)]
    assert torch.equal(data.with_features(Halves(), progress=False).x, found.x)
    assert capsys.readouterr().err == ""


def test_a_damaged_file_is_computed_again(data, folder):
    found = data.with_features(Halves(), progress=False)
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:150])
    assert torch.equal(data.with_features(Halves(), progress=False).x, found.x)
    assert all(np.load(file).shape[1] == 6 for file in folder.iterdir())


def test_an_interrupted_computation_goes_on(data, folder, monkeypatch):
    monkeypatch.setattr("pyro_ssvae.data.features._PART", 20)

    class Stops(Halves):
        def forward(self, x):
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().forward(x)

    with pytest.raises(KeyboardInterrupt):
        data.with_features(network := Stops(), cache=folder / "mine", progress=False)
    assert len([*(folder / "mine").iterdir()]) == 2
    network.calls = 10
    data.with_features(network, cache=folder / "mine", progress=False)
    assert network.calls == 12  # one piece of the training images, and the test images


def test_maps_of_features_are_averaged_and_grey_images_are_kept(folder):
    data = SemiSupervisedData.from_arrays(np.arange(4 * 36, dtype=np.uint8).reshape(4, 6, 6))
    with torch.no_grad():
        (network := nn.Conv2d(1, 3, 1)).bias.zero_()
    found = data.with_features(network, progress=False).x
    expected = (data.x / 255.0).mean((1, 2, 3), keepdim=False)[:, None] * network.weight.flatten()
    torch.testing.assert_close(found, expected.detach())


def test_grey_images_need_no_axis_of_channels(folder):
    x = np.random.default_rng(0).integers(0, 255, (20, 8, 8), dtype=np.uint8)
    found = SemiSupervisedData.from_arrays(x, np.arange(20) % 2).with_features(Halves(), progress=False)
    model = M2.for_data(found, latent_dim=2, hidden_dims=(16,))
    torch.testing.assert_close(model.predict_proba(x), model.predict_proba(found.x))


def test_models_of_features_take_images(data, folder, tmp_path):
    found = data.with_features(network := Halves(), progress=False)
    model = M2.for_data(found, latent_dim=2, hidden_dims=(16,))
    assert model.likelihood.name == "gaussian"
    objective = SemiSupervisedELBO.for_data(model, found)
    assert objective.regularisers == ["augmentation", "consistency"]
    run = ss.fit(objective, found, ss.TrainingConfig(max_steps=100, learning_rate=0.01, device="cpu"), progress=False)
    expected = model.predict_proba(found.x_test)
    assert (expected.argmax(1) == data.y_test).sum() >= 9
    torch.testing.assert_close(model.predict_proba(data.x_test), expected)
    torch.testing.assert_close(model.predict_proba(data.x_test.permute(0, 2, 3, 1).numpy()), expected)
    torch.testing.assert_close(model.predict_proba(data.x_test / 255.0), expected)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        model.predict(data.x_test.float())
    with pytest.raises(ValueError, match=r"images of shape \(8, 8\), the model was trained on \(3, 8, 8\)"):
        model.predict(data.x_test[:, 0])
    with pytest.raises(ValueError, match=r"trained on \(3, 8, 8\)"):
        model.predict(data.x_test[..., :6])
    assert ss.report(objective, found, run, figures=False)["features"]["image_shape"] == [3, 8, 8]
    loaded = ss.load(ss.save(model, tmp_path / "model"))
    torch.testing.assert_close(loaded.predict_proba(found.x_test), expected)
    with pytest.raises(ValueError, match="by a module of yours"):
        loaded.predict(data.x_test)
    loaded.feature_source = found.feature_source
    torch.testing.assert_close(loaded.predict_proba(data.x_test), expected)
    network.factor.data.fill_(2.0)
    with pytest.raises(ValueError, match="other weights"):
        loaded.predict(data.x_test)


def test_efficientnet_has_its_weights_and_models_take_images_after_loading(folder, tmp_path):
    """Its features tell photographs from noise: the first images of the two classes of scikit-learn's photographs."""
    photos = [image[:420:14, :630:21].astype(np.uint8) for image in load_sample_images().images]
    x = np.stack([*photos, *(photo[::-1] for photo in photos)])
    data = SemiSupervisedData.from_arrays(x, [0, 1, -1, -1])
    found = data.with_features("efficientnet_lite0", resolution=64, progress=False)
    assert found.event_shape == (1280,)
    assert found.feature_source.config()["resolution"] == 64
    model = M2.for_data(found, latent_dim=2, hidden_dims=(8,))
    loaded = ss.load(ss.save(model, tmp_path / "model"))
    torch.testing.assert_close(loaded.predict_proba(x), model.predict_proba(found.x))


@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k"])
def test_weights_that_cannot_be_downloaded(name, data, folder, monkeypatch):
    def fails(*_, **__):
        raise OSError("no\nnetwork")

    monkeypatch.setattr(models, "get_model", fails)
    monkeypatch.setattr(timm, "create_model", fails)
    with pytest.raises(
        DataUnavailableError, match=rf"weights of {name} cannot be had: OSError: no network. "
    ) as caught:
        data.with_features(name, progress=False)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "convnext_tiny"])
def test_networks_of_torchvision_lose_their_last_layer(name, monkeypatch):
    make = models.get_model
    monkeypatch.setattr(models, "get_model", lambda name, weights: make(name))
    source, network = make_source(name, None, (3, 16, 16), 255.0)
    widths = {"resnet18": 512, "mobilenet_v3_small": 1024, "convnext_tiny": 768}
    with torch.no_grad():
        assert network.module(torch.zeros(1, 3, 64, 64)).shape == (1, widths[name])
    assert source.resolution == 64
    assert network.side == 224
    assert max(network.mean) < 0.5


def test_what_is_no_network_is_refused(data, folder, monkeypatch):
    with pytest.raises(ValueError, match="'resnet19' is unknown.*Did you mean resnet18"):
        data.with_features("resnet19")
    with pytest.raises(TypeError, match="network"):
        data.with_features(3)
    with pytest.raises(ValueError, match=r"finite features \(B, F\)"):
        data.with_features(nn.Conv2d(3, 2, 1).requires_grad_(False).apply(lambda m: m.bias.fill_(torch.nan)))
    with pytest.raises(ValueError, match="does not accept these images"):
        data.with_features(nn.Conv2d(1, 2, 1), progress=False)
    table = SemiSupervisedData.from_arrays(np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"images \(C, H, W\)"):
        table.with_features(Halves())
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPackageError, match=r"pyro-ssvae\[features\]"):
        data.with_features("resnet18.a1_in1k")
