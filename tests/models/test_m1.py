"""M1: interface, use, saving, stock SVI, training by fit."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

import pyro_ssvae
from pyro_ssvae import M1, SemiSupervisedData, TrainingConfig, UnsupervisedELBO, fit, report
from pyro_ssvae.evaluation import active_units, evaluate_model
from pyro_ssvae.models.m1 import _on_arc

IMAGE = (1, 8, 8)


def make_m1(**options: object) -> M1:
    torch.manual_seed(0)
    arguments = {"latent_dim": 3, "hidden_dims": (16,)} | options
    return M1(arguments.pop("event_shape", IMAGE), **arguments)


@pytest.mark.parametrize("event_shape", [(1, 8, 8), (3, 8, 9), (30,)])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_shapes(event_shape: tuple[int, ...], batch_norm: bool, device: torch.device) -> None:
    m1 = make_m1(event_shape=event_shape, batch_norm=batch_norm, hidden_dims=(16, 12)).to(device)
    x = torch.rand(5, *event_shape, device=device)
    assert m1.transform(x).shape == (5, 3)
    assert m1.transform(x, num_samples=4).shape == (4, 5, 3)
    assert m1.reconstruct(x).shape == x.shape
    assert m1.generate(6).shape == (6, *event_shape)
    assert m1.interpolate(x[0], x[1], steps=7).shape == (7, *event_shape)
    assert m1.interpolate(x[:2], x[2:4], steps=7, spherical=True).shape == (7, 2, *event_shape)
    assert m1.traverse(x, 1).shape == (5, 5, *event_shape)
    assert torch.equal(m1.impute(x), x)
    assert m1.training


def test_interpolation_starts_and_ends_at_the_reconstructions() -> None:
    m1 = make_m1()
    x = torch.rand(4, *IMAGE)
    ends = m1.reconstruct(x)
    for spherical in (False, True):
        path = m1.interpolate(x[:2], x[2:], steps=5, spherical=spherical)
        torch.testing.assert_close(path[0], ends[:2], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(path[-1], ends[2:], atol=1e-4, rtol=1e-4)
    a, b = m1.transform(x[:1]), m1.transform(x[1:2])
    torch.testing.assert_close(m1.interpolate(x[0], x[1], steps=3)[1:2], m1.decode((a + b) / 2).mean)
    same = m1.interpolate(x[0], x[0], steps=3, spherical=True)  # no angle between equal examples
    torch.testing.assert_close(same, ends[:1].expand_as(same), atol=1e-5, rtol=1e-5)


def test_the_arc_keeps_the_length_of_latents_of_equal_length() -> None:
    a, b = (torch.nn.functional.normalize(torch.randn(6, 10), dim=-1) * 3 for _ in range(2))
    t = torch.linspace(0, 1, 9).view(-1, 1, 1)
    torch.testing.assert_close(_on_arc(a, b, t).norm(dim=-1), torch.full((9, 6), 3.0))


def test_traversal_changes_one_latent() -> None:
    m1 = make_m1()
    x = torch.rand(2, *IMAGE)
    z = m1.transform(x)
    z[:, 2] = -1.0
    torch.testing.assert_close(m1.traverse(x, 2, [-1.0, 4.0])[0], m1.decode(z).mean.detach())


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: make_m1(event_shape=()), ValueError, "event_shape"),
        (lambda: make_m1(latent_dim=0), ValueError, "latent_dim=0"),
        (lambda: make_m1(prior="nope"), ValueError, "normal, student_t"),
        (lambda: make_m1(likelihood="nope"), ValueError, "bernoulli"),
        (lambda: make_m1().transform(torch.rand(2, 64)), ValueError, r"\(1, 8, 8\)"),
        (lambda: make_m1().transform(torch.rand(2, *IMAGE), num_samples=0), ValueError, "num_samples=0"),
        (
            lambda: make_m1().predict(torch.rand(2, *IMAGE)),
            ValueError,
            r"no classes, .* transform\(x\), .* gives latents",
        ),
        (lambda: make_m1().generate(0), ValueError, "at least 1"),
        (lambda: make_m1().traverse(torch.rand(2, *IMAGE), 3), ValueError, "dim=3 .* at most 2"),
        (lambda: make_m1().traverse(torch.rand(2, *IMAGE), 1.0), TypeError, "dim=1.0 is of type float"),
        (lambda: make_m1().interpolate(torch.rand(IMAGE), torch.rand(IMAGE), steps=1), ValueError, "at least 2"),
        (lambda: make_m1().interpolate(torch.rand(IMAGE), torch.rand(2, *IMAGE)), ValueError, "one shape"),
    ],
)
def test_errors(call: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


class _Half(M1):
    """A subclass with another prior width."""

    def model(self, x: Tensor, *, size: int | None = None) -> None:
        with pyro_ssvae.models.data_plate(x, size):
            z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(3), 0.5).to_event(1))
            pyro.sample("x", self.decode(z), obs=x)


@pytest.mark.parametrize("options", [{}, {"batch_norm": True, "likelihood": "gaussian", "prior": "mixture"}])
def test_save_and_load(options: dict[str, object], tmp_path: Path, device: torch.device) -> None:
    m1 = make_m1(**options).to(device).eval()
    x = torch.rand(4, *IMAGE)
    loaded = pyro_ssvae.load(pyro_ssvae.save(m1, tmp_path))
    assert type(loaded) is M1
    torch.testing.assert_close(loaded.transform(x), m1.transform(x).cpu())
    assert loaded.config() == m1.config()
    mine = _Half(IMAGE, latent_dim=3, hidden_dims=(16,))
    folder = pyro_ssvae.save(mine, tmp_path / "half")
    assert type(pyro_ssvae.load(folder, cls=_Half)) is _Half
    with pytest.warns(UserWarning, match="Pass cls=_Half"):
        assert type(pyro_ssvae.load(folder)) is M1


@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceMeanField_ELBO()])
def test_stock_svi_trains_model_and_guide(elbo: object) -> None:
    pyro.clear_param_store()
    m1 = make_m1()
    x = torch.rand(40, *IMAGE).round()
    svi = SVI(*pyro_ssvae.pyro_view(m1), pyro.optim.Adam({"lr": 3e-3}), elbo)
    losses = [svi.step(x) for _ in range(40)]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert len(pyro.get_param_store()) == 0


def test_swapping_by_argument_subclass_and_function() -> None:
    x = torch.rand(6, *IMAGE).round()
    m1, half = make_m1(), _Half(IMAGE, latent_dim=3, hidden_dims=(16,))
    half.load_state_dict(m1.state_dict())
    batch = pyro_ssvae.data.Batch(x, None, None)
    losses = []
    for objective in (
        UnsupervisedELBO(half, num_examples=6),
        UnsupervisedELBO(m1, num_examples=6, model=lambda x, *, size=None: _Half.model(m1, x, size=size)),
        UnsupervisedELBO(m1, num_examples=6),
    ):
        torch.manual_seed(2)
        losses.append(objective(batch).item())
    assert losses[0] == losses[1] != losses[2]
    laplace = make_m1(likelihood="laplace")
    assert UnsupervisedELBO(laplace, num_examples=6)(batch).isfinite()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, M1, dict]:
    folder = tmp_path_factory.mktemp("m1") / "run"
    data = SemiSupervisedData.from_name("digits", num_labels="all").without_labels()
    m1 = make_m1(latent_dim=4, hidden_dims=(64,))
    objective = UnsupervisedELBO.for_data(m1, data)
    plain = {"kl_warmup": 0.0, "kl_peak": 1.0, "batch_size": 100}
    config = TrainingConfig(max_steps=400, learning_rate=3e-3, evaluate_every=100, **plain)
    run = fit(objective, data, config, out=folder, progress=False)
    return folder, m1, report(objective, data, run, num_samples=100)


def test_fit_and_report(run_folder: tuple[Path, M1, dict]) -> None:
    folder, m1, result = run_folder
    saved = json.loads((folder / "result.json").read_text())
    assert saved == result
    with (folder / "metrics.csv").open() as file:
        bounds = [float(row["val/bound"]) for row in csv.DictReader(file)]
    assert result["test/bound"] < result["test/log_likelihood"] < 0
    assert result["test/active_units"] == int(
        active_units(m1, SemiSupervisedData.from_name("digits").x_test, scale=16.0).sum()
    )
    assert result["test/active_units"] >= 2
    assert len(bounds) == 4
    assert bounds[-1] > bounds[0]
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names >= {"samples.png", "reconstructions.png", "interpolations.png", "traversals.png", "latent_map.png"}
    assert "test/class_control" not in result
    assert pyro_ssvae.load(folder).latent_dim == 4


def test_latents_carry_the_classes(run_folder: tuple[Path, M1, dict]) -> None:
    _, m1, _ = run_folder
    data = SemiSupervisedData.from_name("digits", num_labels="all")
    known = m1.transform(data.x / data.scale).numpy()
    test = m1.transform(data.x_test / data.scale).numpy()
    assert KNeighborsClassifier(5).fit(known, data.y).score(test, data.y_test) > 0.7  # 0.8


def test_units_in_use_are_those_whose_mean_varies() -> None:
    class Encoder(torch.nn.Module):
        """Means 0.05 x, 0.2 x and a constant; log-scales of any kind."""

        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.Parameter(torch.tensor([0.05, 0.2, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            means = x * self.weights + torch.tensor([0.0, 0.0, 7.0])
            return torch.cat([means, x.expand(-1, 3)], -1)

    m1 = M1((1,), latent_dim=3, likelihood="gaussian", encoder=Encoder())
    x = torch.tensor([-1.0, 1.0]).repeat(50).unsqueeze(-1)  # of variance one, so the means vary by 0.0025, 0.04 and 0
    assert active_units(m1, x).tolist() == [False, True, False]
    assert active_units(m1, 10 * x, scale=10.0).tolist() == [False, True, False]
    assert active_units(m1, 10 * x).tolist() == [True, True, False]
    m1.data_scale = 10.0
    assert active_units(m1, (10 * x).int()).tolist() == [False, True, False]
    assert active_units(m1, x.numpy()).tolist() == [False, True, False]


@pytest.mark.filterwarnings("error")
def test_a_single_example_tells_nothing_of_collapse() -> None:
    data = SemiSupervisedData.from_name("digits").without_labels()
    one = SemiSupervisedData.from_arrays(data.x, x_test=data.x_test[:1], scale=16.0)
    m1 = M1.for_data(one, latent_dim=3, hidden_dims=(8,))
    assert evaluate_model(m1, UnsupervisedELBO.for_data(m1, one), one)["active_units"] is None
    with pytest.raises(ValueError, match="pass at least two, not 1"):
        active_units(m1, data.x_test[:1])


def test_collapse_is_reported(tmp_path: Path) -> None:
    data = SemiSupervisedData.from_name("digits", num_labels="all").without_labels()
    m1 = make_m1()
    with torch.no_grad():
        for parameter in m1.encoder.layers[-1].parameters():
            parameter.zero_()  # q(z|x) is the prior
    m1.encoder.requires_grad_(False)
    objective = UnsupervisedELBO.for_data(m1, data)
    run = fit(objective, data, TrainingConfig(max_steps=5, kl_warmup=0.0, kl_peak=1.0), progress=False)
    with pytest.warns(UserWarning, match="Posterior collapse: none of the 3 latents"):
        assert report(objective, data, run)["test/active_units"] == 0


def test_labelled_data_is_refused() -> None:
    data = SemiSupervisedData.from_name("digits", num_labels=100)
    with pytest.raises(ValueError, match="data.without_labels"):
        UnsupervisedELBO.for_data(make_m1(), data)
    bare = data.without_labels()
    assert (bare.num_labelled, bare.num_unlabelled) == (0, len(data.x))
    assert torch.equal(bare.y_test, data.y_test)


@pytest.mark.parametrize("values", [2.0, "a", ("a",), None, [], [[1.0]], [float("nan")]])
def test_values_of_a_traverse_are_numbers(values: object) -> None:
    with pytest.raises(TypeError, match="values=.* is of type .*; finite numbers are needed"):
        make_m1().traverse(torch.rand(2, 1, 8, 8), 0, values)


def test_grey_values_of_a_table_and_collapsed_latents_warn() -> None:
    grey = torch.rand(40, 1) * torch.linspace(0.8, 1.0, 5)
    data = SemiSupervisedData.from_arrays(grey)
    with pytest.warns(UserWarning, match=r"a quarter of the values .*likelihood='auto' chooses"):
        m1 = M1.for_data(data, latent_dim=2, hidden_dims=(8,))
    M1.for_data(data, likelihood="auto")
    M1.for_data(SemiSupervisedData.from_arrays(grey.round()))
    with torch.no_grad():
        m1.encoder.layers[-1].weight.mul_(30.0)
        evaluate_model(m1, UnsupervisedELBO.for_data(m1, data), data)
        m1.encoder.layers[-1].weight.zero_()
    with pytest.warns(UserWarning, match="Posterior collapse: none of the 2 latents"):  # without test examples, too
        found = evaluate_model(m1, UnsupervisedELBO.for_data(m1, data), data)
    assert found == {"bound": None, "kl_z": None, "active_units": None}
    with pytest.raises(ValueError, match="For real numbers use likelihood='gaussian', for a table 'auto'"):
        m1.check_examples(grey + 1.0)
