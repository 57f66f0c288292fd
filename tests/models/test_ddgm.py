"""DDGM: the energy by hand, shapes, use, saving, Langevin dynamics."""

from __future__ import annotations

import math
from pathlib import Path

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch.nn import functional as F

import pyro_ssvae
from pyro_ssvae import DDGM
from pyro_ssvae.distributions import StudentT
from pyro_ssvae.models.ddgm import langevin, nearest_latents
from pyro_ssvae.networks.energy import ConvFeatures, ConvGenerator, EnergyNet, MLPGenerator, UpsampledConv2d


def make_ddgm(event_shape: tuple[int, ...] = (2,), **options: object) -> DDGM:
    torch.manual_seed(0)
    return DDGM(event_shape, **options)


@pytest.mark.parametrize("event_shape", [(2,), (30,), (1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 9, 30)])
def test_shapes(event_shape: tuple[int, ...], device: torch.device) -> None:
    ddgm = make_ddgm(event_shape).to(device)
    x = ddgm.sample(3)
    assert x.shape == (3, *event_shape)
    assert ddgm.energy(x).shape == ddgm.score_samples(x).shape == (3,)
    assert ddgm.features(x).abs().max() <= 1.0
    z = ddgm.prior().sample((2, 4))
    path = ddgm.interpolate(z[0], z[1], steps=5)
    assert path.shape == (5, 4, *event_shape)
    torch.testing.assert_close(path[-1], ddgm.generate_from(z[1]))
    if len(event_shape) == 3:
        assert isinstance(ddgm.energy_net.features, ConvFeatures)
        assert isinstance(ddgm.generator, ConvGenerator)
        assert 0.0 <= float(x.min()) <= float(x.max()) <= 1.0


def test_widths_of_networks_of_images() -> None:
    def widths(generator: ConvGenerator) -> list[int]:
        return [part.out_features for part in generator.modules() if isinstance(part, torch.nn.Linear)]

    assert widths(ConvGenerator(4, (1, 28, 28))) == [256, 256, 256, 128 * 7 * 7]
    assert widths(ConvGenerator(4, (3, 64, 64))) == [256, 256, 256 * 4 * 4]
    assert ConvFeatures((1, 32, 32)).layers[0].out_channels == 32
    assert ConvFeatures((3, 64, 64)).layers[0].out_channels == 16
    assert [ConvFeatures(shape).last.out_features for shape in ((1, 32, 32), (3, 64, 64))] == [128, 64]


def test_pixels_are_repeated_and_then_convolved() -> None:
    torch.manual_seed(0)
    layer, x = UpsampledConv2d(8, 3), torch.randn(2, 8, 5, 6)
    repeated = torch.nn.functional.interpolate(x, scale_factor=2.0)
    expected = torch.nn.functional.conv2d(repeated, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), expected)
    of_large, of_small = ConvGenerator(4, (1, 40, 51)), ConvGenerator(4, (1, 32, 32))
    assert of_large.eval()(torch.randn(2, 4)).shape == (2, 1, 40, 51)
    assert [any(isinstance(part, UpsampledConv2d) for part in net.modules()) for net in (of_large, of_small)] == [1, 0]


def test_linear_and_quadratic_terms_of_large_images_move_like_those_of_digits() -> None:
    """A step of Adam moves every number of b by as much: of a white image, they must not add up to more."""
    digits, large = make_ddgm((1, 28, 28)), make_ddgm((3, 64, 64), generator="mlp")
    moved = []
    for ddgm in (digits, large):
        white = torch.ones(1, *ddgm.event_shape)
        before, net = ddgm.energy(white), ddgm.energy_net
        assert white.square().sum() / net.sigma**2 == pytest.approx(78.4)
        torch.nn.init.constant_(net.bias, 1e-3)
        moved.append(float(before - ddgm.energy(white)))
    assert moved == pytest.approx([0.784, 0.784], abs=1e-4)
    assert make_ddgm((1, 8, 8)).energy_net.sigma == digits.energy_net.sigma


def test_energy_by_hand() -> None:
    ddgm = make_ddgm((3,), num_experts=5, sigma=2.0)
    net = ddgm.energy_net
    torch.nn.init.normal_(net.bias)
    x = torch.randn(7, 3)
    features = net.features(x)
    experts = sum(F.softplus(features @ net.experts.weight[i] + net.experts.bias[i]) for i in range(5))
    expected = x.square().sum(-1) / 4.0 - x @ net.bias - experts
    torch.testing.assert_close(ddgm.energy(x), expected.detach())


def test_energy_of_classes() -> None:
    net = EnergyNet((3,), torch.nn.Tanh(), 4, num_classes=6)
    x = torch.randn(7, 3)
    by_class = net.by_class(x)
    assert by_class.shape == (7, 6)
    torch.testing.assert_close((-net(x)).exp(), (-by_class).exp().sum(-1))


def test_model_scores_and_guide_draws() -> None:
    ddgm = make_ddgm().eval()
    x = torch.randn(6, 2)
    trace = poutine.trace(ddgm.model).get_trace(x)
    torch.testing.assert_close(trace.log_prob_sum(), -ddgm.energy_net(x).sum())
    scaled = poutine.trace(ddgm.model).get_trace(x, size=60)
    torch.testing.assert_close(scaled.log_prob_sum(), 10.0 * trace.log_prob_sum())
    drawn = poutine.trace(ddgm.guide).get_trace(x)
    z = drawn.nodes["z"]["value"]
    assert z.shape == (6, 4)
    assert float(z.abs().max()) <= 1.0
    torch.testing.assert_close(drawn.nodes["_RETURN"]["value"], ddgm.generator(z))


def test_quadratic_term_dominates_far_from_the_origin() -> None:
    ddgm = make_ddgm()
    radius = torch.tensor([10.0, 100.0, 1000.0])
    energy = ddgm.energy(torch.stack([radius, torch.zeros(3)], -1))
    assert bool((energy.diff() > 0).all())
    assert float(energy[2]) == pytest.approx(1e6, rel=1e-2)


@pytest.mark.parametrize("options", [{}, {"prior": "normal", "sigma": 2.0, "num_classes": 3, "latent_dim": 5}])
def test_save_and_load(options: dict[str, object], tmp_path: Path, device: torch.device) -> None:
    ddgm = make_ddgm(**options).to(device).eval()
    x = torch.randn(4, 2)
    twin = pyro_ssvae.load(pyro_ssvae.save(ddgm, tmp_path))
    assert type(twin) is DDGM
    torch.testing.assert_close(twin.energy(x), ddgm.energy(x).cpu())
    z = twin.prior().sample((4,))
    torch.testing.assert_close(twin.generate_from(z), ddgm.generate_from(z.to(device)).cpu())
    assert twin.config() == ddgm.config()


def test_langevin_dynamics_reach_a_gaussian() -> None:
    torch.manual_seed(0)
    x = langevin(lambda x: 0.5 * (x - 1.0).square().sum(-1) / 0.25, torch.zeros(20_000, 1), 400, 0.01)
    assert float(x.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(x.std()) == pytest.approx(0.5, abs=0.02)
    inside = langevin(lambda x: x.square().sum(-1), torch.ones(3, 1), 5, 0.5, bounds=(0.5, 1.0))
    assert bool(((inside >= 0.5) & (inside <= 1.0)).all())


def test_langevin_steps_lower_the_energy_of_samples() -> None:
    ddgm = make_ddgm(sigma=0.3)
    torch.manual_seed(1)
    drawn = ddgm.sample(2000)
    moved = ddgm.sample(2000, langevin_steps=50, step_size=0.005)
    assert float(ddgm.energy(moved).mean()) < float(ddgm.energy(drawn).mean())
    assert math.isfinite(float(moved.sum()))


class _SumOfAll(torch.nn.Module):
    """Experts that are summed too early: the energy of an example would depend on the others in its batch."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.sum(-1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make_ddgm(()), "event_shape"),
        (lambda: make_ddgm(latent_dim=0), "latent_dim=0"),
        (lambda: make_ddgm(num_experts=0), "num_experts=0"),
        (lambda: make_ddgm(sigma=0.0), "sigma=0.0"),
        (lambda: make_ddgm(features="vgg"), "features='vgg'"),
        (lambda: make_ddgm(generator="conv"), "at least 8x8"),
        (lambda: make_ddgm(output="relu"), "identity, sigmoid, tanh"),
        (lambda: make_ddgm(prior="nope"), "normal, student_t"),
        (lambda: make_ddgm().sample(0), "num_samples=0"),
        (lambda: make_ddgm().sample(1, langevin_steps=-1), "langevin_steps=-1"),
        (lambda: make_ddgm().invert(torch.zeros(1, 2), steps=-1), "steps=-1"),
        (lambda: make_ddgm().generate_from(torch.zeros(3, 5)), r"\(B, 4\); got \(3, 5\)"),
        (lambda: make_ddgm().interpolate(torch.zeros(2, 5), torch.zeros(2, 5)), r"\(B, 4\)"),
        (lambda: make_ddgm(experts=_SumOfAll()), r"experts must map \(B, 128\) to \(B, F\); for B=2 it gave \(2,\)"),
        (lambda: make_ddgm(features=torch.nn.Linear(3, 4)), r"features does not accept inputs of event shape \(2,\)"),
        (lambda: make_ddgm(features=torch.nn.Unflatten(-1, (1, 2))), r"features must map \(B, 2\) to \(B, F\)"),
        (lambda: make_ddgm(generator=torch.nn.Linear(4, 3)), r"generator must map \(B, 4\) to \(B, 2\); for B=2"),
        (lambda: make_ddgm(generator=torch.nn.Linear(5, 2)), r"generator does not accept inputs of event shape \(4,\)"),
        (lambda: make_ddgm().energy(torch.zeros(3, 3)), r"\(2,\)"),
        (lambda: make_ddgm().interpolate(torch.zeros(1, 4), torch.zeros(2, 4)), "alike"),
        (lambda: pyro_ssvae.M1((4,), prior="uniform"), "Gaussian guide"),
    ],
)
def test_errors(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_parts_of_ones_own() -> None:
    features, generator = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh()), MLPGenerator(4, (2,), (8,))
    ddgm = make_ddgm(features=features, generator=generator)
    assert ddgm.energy_net.experts.in_features == 3
    assert ddgm.config()["custom"] == {"features": "Sequential", "generator": "MLPGenerator"}
    with pytest.raises(TypeError, match="features must be"):
        make_ddgm(features=3)
    with pytest.raises(TypeError, match="experts is of type str, and must be a module"):
        make_ddgm(experts="linear")


def test_experts_of_ones_own() -> None:
    experts = torch.nn.Linear(128, 7)
    ddgm = make_ddgm(experts=experts)
    x = torch.randn(5, 2)
    net = ddgm.energy_net
    expected = x.square().sum(-1) - x @ net.bias - experts(net.features(x)).sum(-1)
    torch.testing.assert_close(ddgm.energy(x), expected.detach())
    assert ddgm.config()["custom"] == {"experts": "Linear"}


def test_the_model_scores_examples_of_known_classes() -> None:
    ddgm = make_ddgm(num_classes=3)
    x, y = torch.randn(4, 2), torch.tensor([2, 0, 1, 1])
    nodes = poutine.trace(ddgm.model).get_trace(x, y).nodes
    expected = -ddgm.energy_net.by_class(x)[torch.arange(4), y]
    torch.testing.assert_close(nodes["energy"]["fn"].log_factor, expected)


def test_moved_images_stay_images() -> None:
    ddgm = make_ddgm((1, 8, 8))
    x = ddgm.sample(3, langevin_steps=3, step_size=0.1)
    assert 0.0 <= float(x.min()) <= float(x.max()) <= 1.0
    with pytest.raises(ValueError, match=r"step_size=-1"):
        ddgm.sample(3, langevin_steps=1, step_size=-1.0)


def test_a_linear_generator_is_inverted() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 3)
    z = torch.randn(6, 3)
    prior = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    found = nearest_latents(z @ weight.T, lambda z: z @ weight.T, prior, steps=500)
    assert torch.allclose(found, z, atol=1e-2)


def test_latents_stay_in_the_support() -> None:
    prior = dist.Uniform(-torch.ones(2), 1.0).to_event(1)
    found = nearest_latents(torch.tensor([[3.0, -0.5]]), lambda z: z, prior)
    assert torch.allclose(found, torch.tensor([[1.0, -0.5]]), atol=1e-2)
    assert bool((found.abs() <= 1.0).all())


@pytest.mark.parametrize("space", ["features", "x"])
def test_descent_comes_nearer_than_the_best_draw(space: str) -> None:
    torch.manual_seed(0)
    ddgm = DDGM((2,))
    x = ddgm.sample(20)
    near = [ddgm.generate_from(ddgm.invert(x, space=space, steps=steps)) for steps in (0, 200)]
    if space == "features":
        x, near = ddgm.features(x), [ddgm.features(path) for path in near]
    before, after = ((path - x).square().sum(-1).mean() for path in near)
    assert float(after) < 0.1 * float(before)


@pytest.mark.parametrize("space", ["z", "features"])
def test_paths_and_analogies(space: str) -> None:
    torch.manual_seed(0)
    ddgm = DDGM((1, 8, 8), latent_dim=3)
    a, b = ddgm.prior().sample((2, 4))
    path = ddgm.interpolate(a, b, steps=5, space=space)
    assert path.shape == (5, 4, 1, 8, 8)
    assert torch.allclose(path[0], ddgm.generate_from(a), atol=1e-4)
    assert torch.allclose(path[-1], ddgm.generate_from(b), atol=1e-4)
    assert torch.allclose(ddgm.analogy(a, a, b, space=space), ddgm.generate_from(b), atol=1e-4)
    assert torch.allclose(ddgm.analogy(a, b, a, space=space), ddgm.generate_from(b), atol=1e-4)


def test_a_path_of_features_is_nearer_to_their_line() -> None:
    torch.manual_seed(0)
    ddgm = DDGM((2,))
    a, b = ddgm.prior().sample((2, 30))
    ends = [ddgm.features(ddgm.generate_from(z)) for z in (a, b)]
    middle = (ends[0] + ends[1]) / 2
    off = {
        space: float((ddgm.features(ddgm.interpolate(a, b, steps=3, space=space)[1]) - middle).square().sum(-1).mean())
        for space in ("z", "features")
    }
    assert off["features"] < off["z"]


def test_analogies_of_a_bounded_prior_stay_inside() -> None:
    ddgm = DDGM((2,), latent_dim=2, generator=torch.nn.Identity())
    a, b, c = torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 0.5]]), torch.tensor([[0.5, 0.25]])
    assert torch.equal(ddgm.analogy(a, b, c), torch.tensor([[1.0, 0.75]]))


def test_latents_that_do_not_fit_are_refused() -> None:
    ddgm = DDGM((2,))
    z = ddgm.prior().sample((3,))
    with pytest.raises(ValueError, match="space='pixels' must be one of features, x"):
        ddgm.invert(torch.zeros(1, 2), space="pixels")
    with pytest.raises(ValueError, match="must be one of features, z"):
        ddgm.interpolate(z, z, space="x")
    with pytest.raises(ValueError, match="one shape"):
        ddgm.analogy(z, z, z[:2])
    with pytest.raises(ValueError, match="shape"):
        ddgm.invert(torch.zeros(1, 3))


def test_latents_may_be_arrays() -> None:
    ddgm = make_ddgm().eval()
    a, b, c = (torch.rand(3, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    assert torch.equal(ddgm.generate_from(a.numpy()), ddgm.generate_from(a))
    assert torch.equal(ddgm.interpolate(a.numpy(), b.tolist(), steps=3), ddgm.interpolate(a, b, steps=3))
    assert torch.equal(ddgm.analogy(a.numpy(), b, c.double().numpy()), ddgm.analogy(a, b, c))


def test_latents_far_out_stay_where_they_are() -> None:
    ddgm = make_ddgm(prior=StudentT(4, df=1.0)).eval()
    z = torch.tensor([[30.0, 0.0, 0.0, 0.0]])
    x = ddgm.generate_from(z)
    found = nearest_latents(x, ddgm.generator, ddgm.prior(), start=z, steps=0)
    torch.testing.assert_close(found, z)


def test_examples_outside_of_the_range_of_the_generator_are_warned_about() -> None:
    warning = r"span \[-2, 3\], and the generator's samples lie in \[0.0, 1.0\]"
    values = torch.linspace(-2.0, 3.0, 1280)
    images = pyro_ssvae.SemiSupervisedData.from_arrays(values.view(20, 1, 8, 8))
    table = pyro_ssvae.SemiSupervisedData.from_arrays(values.view(64, 20))
    for data, given in ((images, {}), (table, {"output": "sigmoid"})):
        with pytest.warns(UserWarning, match=warning):
            DDGM.for_data(data, **given).check_data(data)


def test_the_generator_of_a_table_can_draw_its_values(tmp_path: Path) -> None:
    values = torch.linspace(-2.0, 3.0, 1280).view(64, 20)
    data = pyro_ssvae.SemiSupervisedData.from_arrays(values)
    ddgm = DDGM.for_data(data)
    ddgm.check_data(data)
    assert ddgm.sample(100).min() < 0.0
    pyro_ssvae.save(ddgm, tmp_path)
    assert pyro_ssvae.load(tmp_path).config()["arguments"]["output"] == "identity"
    within = pyro_ssvae.SemiSupervisedData.from_arrays((values + 2.0) / 5.0)
    assert DDGM.for_data(within).sample(100).min() >= 0.0


def test_columns_that_are_not_standardised_are_warned_about() -> None:
    """Their energy is constant, or diverges."""
    torch.manual_seed(0)
    x, given = torch.randn(200, 4), {"output": "identity"}
    from_arrays = pyro_ssvae.SemiSupervisedData.from_arrays
    data = from_arrays(x * torch.tensor([1.0, 1e-3, 1e5, 0.0]) + torch.tensor([200.0, 0.0, 0.0, 7.0]))
    with pytest.warns(UserWarning, match=r"standardise column 0 \(200 ± .*\), 1 \(.* ± 0.00.*\), 2 \(.*e\+05\)\."):
        DDGM.for_data(data, **given).check_data(data)
    for usual in (from_arrays(x), from_arrays(x > 2.0), pyro_ssvae.data.make_toy_data("ring", num_train=500)):
        DDGM.for_data(usual, **given).check_data(usual)
