import io
import itertools

import pytest
import torch

from pyro_ssvae import SemiSupervisedData
from pyro_ssvae.data import BatchStream, preparation


def make(num_unlabelled=23, num_labelled=6, seed=0):
    """Examples whose first value is their index over N; labelled ones are scattered."""
    generator = torch.Generator().manual_seed(seed)
    n = num_unlabelled + num_labelled
    x = torch.rand(n, 4, generator=generator)
    x[:, 0] = torch.arange(n) / n
    y = torch.full((n,), -1)
    labelled = torch.randperm(n, generator=generator)[:num_labelled]
    y[labelled] = torch.arange(num_labelled) % 3
    return SemiSupervisedData.from_arrays(x, y, num_classes=3)


def ids(x, data):
    return (x[:, 0] * len(data.x)).round().int().tolist()


def equal(a, b):
    return all(
        (p is None and q is None) or (p is not None and q is not None and torch.equal(p, q))
        for p, q in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("batch_size", [1, 5, 10, 23, 1000])
def test_every_pass_gives_every_example_once(device, batch_size):
    data = make()
    stream = BatchStream(data, batch_size=batch_size, labelled_batch_size=4, device=device)
    steps = -(-23 // min(batch_size, 23))
    assert stream.steps_per_epoch == steps
    orders = []
    for _ in range(3):
        batches = list(itertools.islice(stream, steps))
        sizes = [len(batch.x_unlabelled) for batch in batches]
        assert sizes == [min(batch_size, 23)] * (steps - 1) + [23 - min(batch_size, 23) * (steps - 1)]
        orders.append([index for batch in batches for index in ids(batch.x_unlabelled, data)])
        assert sorted(orders[-1]) == data.unlabelled_index.tolist()
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4, 2]), (6, [6]), (50, [6])])
def test_labelled_examples_are_iterated_independently(batch_size, sizes):
    data = make()
    stream = BatchStream(data, batch_size=3, labelled_batch_size=batch_size)
    for _ in range(4):
        batches = list(itertools.islice(stream, len(sizes)))
        assert [len(batch.x_labelled) for batch in batches] == sizes
        seen = [index for batch in batches for index in ids(batch.x_labelled, data)]
        assert sorted(seen) == data.labelled_index.tolist()
        labels = [y for batch in batches for y in batch.y_labelled.tolist()]
        assert labels == data.y[seen].tolist()


def test_order_of_unlabelled_examples_does_not_depend_on_labelled_ones():
    data = make()
    small, large = (BatchStream(data, batch_size=5, labelled_batch_size=n) for n in (1, 6))
    for a, b in itertools.islice(zip(small, large, strict=True), 12):
        assert torch.equal(a.x_unlabelled, b.x_unlabelled)


def test_one_labelled_example_per_class():
    data = make(num_labelled=3)
    for batch in itertools.islice(BatchStream(data, labelled_batch_size=3), 3):
        assert sorted(batch.y_labelled.tolist()) == [0, 1, 2]


def test_no_labelled_examples():
    with pytest.warns(UserWarning, match="clustering"):
        data = make(num_labelled=0)
    batch = next(BatchStream(data))
    assert batch.x_labelled is None
    assert batch.y_labelled is None
    assert batch.x_unlabelled.shape == (23, 4)


def test_no_unlabelled_examples():
    stream = BatchStream(make(num_unlabelled=0), labelled_batch_size=4)
    assert stream.steps_per_epoch == 2
    assert next(stream).x_unlabelled is None


@pytest.mark.parametrize("num_labelled", [3, 6])
def test_labels_of_unlabelled_examples_are_never_returned(num_labelled):
    data = make(num_labelled=num_labelled)
    for batch in itertools.islice(BatchStream(data, batch_size=4), 20):
        assert (batch.y_labelled >= 0).all()
        assert not set(ids(batch.x_labelled, data)) & set(ids(batch.x_unlabelled, data))


def test_eight_bit_examples_are_divided_by_the_scale(device):
    x = torch.arange(16, dtype=torch.uint8).reshape(8, 1, 2, 1)
    data = SemiSupervisedData.from_arrays(x, [0, 1, -1, -1, -1, -1, -1, -1], scale=16)
    batch = next(BatchStream(data, device=device))
    assert batch.x_unlabelled.dtype == torch.float32
    assert batch.x_unlabelled.device.type == device.type
    torch.testing.assert_close(batch.x_unlabelled.cpu().sort(0).values, x[2:] / 16)
    assert data.x.dtype == torch.uint8


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("binarisation", ["none", "static"])
def test_batches_are_the_same_on_every_device(monkeypatch, device, fits, binarisation):
    data = make()
    monkeypatch.setattr(preparation, "_fits_in_memory", lambda *_: fits)
    options = {"batch_size": 5, "labelled_batch_size": 4, "binarisation": binarisation, "seed": 2}
    here = BatchStream(data, **options)
    there = BatchStream(data, device=device, **options)
    assert there.resident == (fits or device.type == "cpu")
    for a, b in itertools.islice(zip(here, there, strict=True), 12):
        assert equal(a, [tensor.cpu() for tensor in b])


@pytest.mark.parametrize(("free", "fits"), [(799, False), (800, True)])
def test_training_examples_take_at_most_half_of_the_free_memory(monkeypatch, free, fits):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10**9))
    assert preparation._fits_in_memory(torch.zeros(100), torch.device("cuda:0")) == fits
    assert preparation._fits_in_memory(torch.zeros(100), torch.device("cpu"))


def test_dynamic_binarisation_is_drawn_afresh(device):
    data = make()
    stream = BatchStream(data, batch_size=23, device=device, binarisation="dynamic")
    rounds = [next(stream).x_unlabelled.cpu() for _ in range(400)]
    assert set(torch.cat(rounds).unique().tolist()) == {0.0, 1.0}
    assert len({tuple(r.mean(0).tolist()) for r in rounds}) > 100
    total = torch.stack(rounds).mean((0, 1))
    torch.testing.assert_close(total, data.x[data.unlabelled_index].mean(0), atol=0.03, rtol=0)


def test_static_binarisation_is_drawn_once():
    data = make()
    stream = BatchStream(data, batch_size=23, binarisation="static", seed=4)
    first, second = (next(stream).x_unlabelled for _ in range(2))
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert sorted(first.tolist()) == sorted(second.tolist())
    other = next(BatchStream(data, batch_size=23, binarisation="static", seed=5)).x_unlabelled
    assert sorted(first.tolist()) != sorted(other.tolist())


@pytest.mark.parametrize("binarisation", ["none", "static", "dynamic"])
@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("steps", [0, 1, 4, 5, 13])
def test_resuming_gives_the_same_batches(monkeypatch, device, binarisation, fits, steps):
    monkeypatch.setattr(preparation, "_fits_in_memory", lambda *_: fits)
    options = {"batch_size": 5, "labelled_batch_size": 4, "device": device, "binarisation": binarisation, "seed": 9}
    stream = BatchStream(make(), **options)
    for _ in range(steps):
        next(stream)
    file = io.BytesIO()
    torch.save(stream.state_dict(), file)
    expected = list(itertools.islice(stream, 12))
    file.seek(0)
    state = torch.load(file, weights_only=True, map_location=device)
    resumed = BatchStream(make(), **options)
    next(resumed)
    resumed.load_state_dict(state)
    assert all(equal(a, b) for a, b in zip(expected, resumed, strict=False))


def test_a_state_does_not_change_while_the_stream_goes_on():
    stream = BatchStream(make(), batch_size=5, binarisation="dynamic")
    next(stream)
    state = stream.state_dict()
    expected = [next(stream) for _ in range(12)]
    stream.load_state_dict(state)
    assert all(equal(a, next(stream)) for a in expected)


def test_streams_preserve_global_generators():
    before = torch.get_rng_state()
    for binarisation in ("dynamic", "static"):
        next(BatchStream(make(), binarisation=binarisation))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "data", "text"),
    [
        ({"seed": 1}, make(), "The state has seed=0, this stream 1; build"),
        ({"binarisation": "static"}, make(), "state has binarisation='none', this stream 'static'"),
        ({}, make(num_unlabelled=24), "23 unlabelled examples that are not the 24 unlabelled examples"),
        ({}, make(seed=1), "examples that are not"),
        ({}, make(num_labelled=5), "examples that are not"),
    ],
)
def test_states_of_other_streams_refused(options, data, text):
    stream = BatchStream(make())
    next(stream)
    other = BatchStream(data, **options)
    with pytest.raises(ValueError, match=text):
        other.load_state_dict(stream.state_dict())


@pytest.mark.parametrize("binarisation", ["none", "dynamic"])
def test_a_state_of_another_device_keeps_the_examples(recwarn, binarisation):
    stream = BatchStream(make(), batch_size=5, binarisation=binarisation)
    next(stream)
    state = stream.state_dict() | {"noise_device": "cuda"}
    expected = next(stream)
    stream.load_state_dict(state)
    batch = next(stream)
    assert equal(expected, batch) == (binarisation == "none")
    messages = [str(w.message) for w in recwarn.list]
    assert len(messages) == (binarisation == "dynamic")
    assert all("same examples follow, but their dynamic binarisation differs" in m for m in messages)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"batch_size": 0}, ValueError, "batch_size=0 is too small"),
        ({"labelled_batch_size": -3}, ValueError, "labelled_batch_size=-3 is too small"),
        ({"batch_size": 2.5}, TypeError, "batch_size=2.5 is of type float"),
        ({"binarisation": True}, ValueError, "binarisation=True must be one of"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"device": "nowhere"}, ValueError, "device='nowhere' is unknown"),
    ],
)
def test_arguments_refused(options, error, text):
    with pytest.raises(error, match=text):
        BatchStream(make(), **options)


@pytest.mark.parametrize("binarisation", ["static", "dynamic"])
def test_binarisation_outside_the_unit_interval(binarisation):
    data = SemiSupervisedData.from_arrays([[0.0], [3.0], [-1.0]], [0, 1, -1])
    with pytest.raises(ValueError, match=r"x / scale runs from -1 to 3 \(scale=1\)"):
        BatchStream(data, binarisation=binarisation)
    assert next(BatchStream(data)).x_unlabelled.tolist() == [[-1.0]]


@pytest.mark.parametrize(
    ("count", "size", "joined", "plain"),
    [
        (9, 4, [4, 5], [4, 4, 1]),
        (8, 4, [4, 4], [4, 4]),
        (3, 1, [1, 1, 1], [1, 1, 1]),
        (1, 4, [1], [1]),
        (5, 4, [5], [4, 1]),
    ],
)
def test_a_last_batch_of_one_is_joined_to_the_one_before(count, size, joined, plain):
    data = SemiSupervisedData.from_arrays(torch.arange(count)[:, None])
    for join_single, sizes in ((True, joined), (False, plain)):
        stream = BatchStream(data, batch_size=size, join_single=join_single)
        assert stream.steps_per_epoch == len(sizes)
        for _ in range(2):
            passed = [stream.next_indices().unlabelled for _ in sizes]
            assert [len(part) for part in passed] == sizes
            assert sorted(torch.cat(passed).tolist()) == list(range(count))


def test_joining_changes_no_order():
    data = SemiSupervisedData.from_arrays(torch.arange(9)[:, None])
    plain, joined = (BatchStream(data, batch_size=4, join_single=join) for join in (False, True))
    orders = [
        torch.cat([stream.next_indices().unlabelled for _ in range(n)]) for stream, n in ((plain, 6), (joined, 4))
    ]
    assert torch.equal(*orders)
