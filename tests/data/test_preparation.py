import numpy as np
import pytest
import torch

from pyro_ssvae import M2, SemiSupervisedData
from pyro_ssvae.data.preparation import binarise, iterate_batches


@pytest.fixture
def grey():
    return torch.randint(0, 256, (5000, 3), dtype=torch.uint8)


@pytest.mark.parametrize("batch_size", [1, 7, 20, 100])
def test_examples_come_in_order(device, batch_size):
    x = torch.arange(40, dtype=torch.uint8).reshape(20, 2)
    batches = list(iterate_batches(x, scale=40.0, batch_size=batch_size, device=device))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    prepared = torch.cat(batches)
    assert prepared.dtype == torch.float32
    assert prepared.device.type == device.type
    torch.testing.assert_close(prepared.cpu(), x / 40)


def test_no_examples():
    assert list(iterate_batches(torch.zeros(0, 3), binarisation="static")) == []


@pytest.mark.parametrize("binarisation", ["static", "dynamic"])
def test_binarisation_is_the_same_for_every_batch_size_and_device(device, binarisation, grey):
    options = {"scale": 255.0, "binarisation": binarisation, "seed": 3}
    (prepared,) = iterate_batches(grey, batch_size=len(grey), **options)
    for batch_size in (999, 5000):
        batches = list(iterate_batches(grey, batch_size=batch_size, device=device, **options))
        assert torch.equal(torch.cat(batches).cpu(), prepared)
    assert torch.equal(binarise(grey, scale=255.0, seed=3).float(), prepared)


def test_binarisation_has_the_right_mean_and_depends_on_the_seed(grey):
    x = grey[:1].repeat(20_000, 1)
    drawn = binarise(x, scale=255.0)
    assert set(drawn.unique().tolist()) <= {0, 1}
    torch.testing.assert_close(drawn.float().mean(0), grey[0] / 255, atol=0.02, rtol=0)
    assert not torch.equal(drawn, binarise(x, scale=255.0, seed=1))


def test_extremes_stay_as_they_are():
    x = torch.tensor([[0, 255]], dtype=torch.uint8).repeat(1000, 1)
    assert binarise(x, scale=255.0).float().mean(0).tolist() == [0.0, 1.0]


def test_the_global_generator_is_preserved(grey):
    before = torch.get_rng_state()
    binarise(grey, scale=255.0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("x", "scale", "seen"),
    [
        (torch.tensor([[0.0, 2.0]]), 1.0, "from 0 to 2"),
        (torch.tensor([[-0.5, 1.0]]), 1.0, "from -0.5 to 1"),
        (torch.tensor([[0, 255]], dtype=torch.uint8), 16.0, "from 0 to 15.9375"),
        (torch.tensor([[float("nan")]]), 1.0, "from nan to nan"),
    ],
)
def test_binarisation_outside_the_unit_interval(x, scale, seen):
    with pytest.raises(ValueError, match=f"needs values in .* {seen} .*scale"):
        iterate_batches(x, scale=scale, binarisation="static")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"binarisation": "maybe"}, ValueError, "must be one of none, static, dynamic"),
        ({"batch_size": 0}, ValueError, "batch_size=0 is too small"),
        ({"batch_size": 2.0}, TypeError, "batch_size=2.0 is of type float"),
        ({"device": "tpu9"}, ValueError, "device='tpu9' is unknown"),
        ({"binarisation": "static", "seed": -1}, ValueError, "seed=-1"),
    ],
)
def test_arguments_refused_before_the_first_batch(arguments, error, text):
    with pytest.raises(error, match=text):
        iterate_batches(torch.zeros(2, 2), **arguments)


def test_cuda_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs CUDA.*Use the CPU"):
        iterate_batches(torch.zeros(2, 2), device="cuda")


@pytest.mark.parametrize(
    ("shape", "values", "scale"),
    [
        ((2, 4), [0, 1, 1, 0, 1, 0, 0, 0], 1.0),
        ((2, 4), [0, 3, 16, 0, 254, 0, 1, 2], 1.0),
        ((2, 4), [0, 3, 16, 0, 255, 0, 1, 2], 255.0),
        ((2, 2, 2), [0, 1, 1, 0, 1, 0, 0, 0], 1.0),
        ((2, 2, 2), [0, 3, 16, 0, 99, 0, 1, 2], 255.0),
    ],
)
def test_only_pixels_of_8_bits_are_divided(tmp_path, shape, values, scale):
    x = np.array(values, dtype=np.uint8).reshape(shape)
    data = SemiSupervisedData.from_arrays(x, [0, 1])
    assert data.scale == scale
    np.savez(tmp_path / "x.npz", x_train=x)
    np.save(tmp_path / "x.npy", x)
    assert SemiSupervisedData.from_npz(tmp_path / "x.npz").scale == scale
    assert SemiSupervisedData.from_arrays(np.load(tmp_path / "x.npy", mmap_mode="r"), [0, 1]).scale == scale
    model = M2.for_data(data, likelihood="auto")
    torch.testing.assert_close(model.predict_proba(x), model.predict_proba(x.astype(np.float32) / scale))


def test_8_bit_images_of_fewer_bits_warn():
    with pytest.warns(UserWarning, match="no value exceeds 16.*pass scale=16"):
        assert SemiSupervisedData.from_arrays(np.full((3, 2, 2), 16, np.uint8)).scale == 255.0


@pytest.mark.parametrize("shape", [(50, 3), (3, 50), (1, 9)])
def test_time_series_are_probably_no_images(shape):
    with pytest.warns(UserWarning, match=r"taken as grey images, .* as a table: x.reshape\(len\(x\), -1\)"):
        assert SemiSupervisedData.from_arrays(np.zeros((4, *shape))).event_shape == (1, *shape)


def test_grey_volumes_under_a_bernoulli_likelihood_warn():
    data = SemiSupervisedData.from_arrays(torch.rand(10, 1, 4, 5, 6), num_classes=2, y=[0, 1] * 5)
    with pytest.warns(UserWarning, match="latents are hardly used; likelihood='gaussian' suits them"):
        M2.for_data(data)
