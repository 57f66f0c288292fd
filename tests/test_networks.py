"""Networks against plain concatenation and loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_ssvae import DDGM, M1, M2
from pyro_ssvae.distributions.torch_distributions import softplus
from pyro_ssvae.networks import MLP, ConditionalMLP
from pyro_ssvae.networks.images import POSE_DIM, ImageDecoder, ImageEncoder, PoseDecoder
from pyro_ssvae.networks.variational import ACTIVATIONS, ConvClassifier, FactoredLinear


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softplus_is_the_same_with_and_without_gradients(dtype: torch.dtype) -> None:
    x = torch.cat([torch.linspace(-30, 30, 2001), torch.tensor([-1e4, 1e4, 0.0])]).to(dtype)
    given = x.clone()
    with torch.no_grad():
        quick = softplus(x)
        unit = ACTIVATIONS["softplus"]()(x)
    exact = torch.logaddexp(x.double(), torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(quick.double(), exact, atol=2e-7 if dtype == torch.float32 else 1e-15, rtol=2e-7)
    torch.testing.assert_close(unit, quick)
    assert torch.equal(x, given)
    x.requires_grad_()
    softplus(x).sum().backward()
    torch.testing.assert_close(x.grad, x.detach().sigmoid())


def test_factored_linear_is_linear_over_the_concatenation() -> None:
    layer = FactoredLinear(5, 3, 4)
    x, y = torch.randn(6, 5), torch.tensor([0, 1, 2, 2, 1, 0])
    weight = torch.cat([layer.linear.weight, layer.class_weight.T], -1)
    expected = F.linear(torch.cat([x, F.one_hot(y, 3).float()], -1), weight, layer.linear.bias)
    torch.testing.assert_close(layer(x, y), expected)


@pytest.mark.parametrize("options", [{}, {"activation": "softplus"}, {"dropout": 0.5}])
def test_enumerated_classes_equal_a_loop(options: dict[str, object]) -> None:
    net = ConditionalMLP((2, 3), 4, 5, (8, 7), **options).eval()
    x = torch.randn(6, 2, 3)
    enumerated = net(x, torch.arange(4)[:, None])
    for k in range(4):
        torch.testing.assert_close(enumerated[k], net(x, torch.full((6,), k)))


def test_batch_norm_is_over_examples_and_enumerated_classes() -> None:
    net = ConditionalMLP((3,), 4, 5, (8,), batch_norm=True)
    hidden = net.first(torch.randn(6, 3), torch.arange(4)[:, None])
    normalised = net.rest[0](hidden)
    torch.testing.assert_close(normalised.mean((0, 1)), torch.zeros(8), atol=1e-6, rtol=0)


@pytest.mark.parametrize("event_shape", [(1, 28, 28), (1, 8, 8), (3, 32, 32), (1, 6, 9)])
def test_conv_classifier_treats_images_independently(event_shape: tuple[int, ...]) -> None:
    net = ConvClassifier(event_shape, 7, dropout=0.0)
    x = torch.rand(5, *event_shape)
    torch.testing.assert_close(net(x)[2:3], net(x[2:3]), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="classifier='mlp'"):
        ConvClassifier((1, 4, 4), 7)


def test_mlp_without_hidden_layers_is_linear() -> None:
    net = MLP((2, 2), 3, ())
    x = torch.randn(4, 2, 2)
    torch.testing.assert_close(net(x), net.layers[0](x.flatten(1)))


@pytest.mark.parametrize("networks", ["conv", "resnet"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 40, 64), (1, 9, 11)])
def test_networks_of_images_treat_classes_and_images_independently(networks: str, shape: tuple[int, ...]) -> None:
    model = M2(shape, 3, networks=networks, latent_dim=4, hidden_dims=(16,), likelihood="gaussian")
    x, classes = torch.rand(2, *shape), torch.arange(3)[:, None]
    posterior = model.encode(x, classes)
    z = posterior.mean
    decoded = model.decode(classes, z)
    assert (posterior.batch_shape, decoded.batch_shape, decoded.event_shape) == ((3, 2), (3, 2), shape)
    for k in range(3):
        y = torch.full((2,), k)
        torch.testing.assert_close(model.encode(x, y).mean, z[k])
        torch.testing.assert_close(model.decode(y, z[k]).mean, decoded.mean[k])
        torch.testing.assert_close(model.decode(y[:1], z[k, :1]).mean, decoded.mean[k, :1])
    changes = (model.decode(classes, z + 1.0).mean - decoded.mean).detach()
    assert (changes.flatten(2).std(-1) > 0.0).all()
    kind = ImageEncoder if networks == "resnet" else ConvClassifier
    assert isinstance(model.eval().classifier, kind)
    torch.testing.assert_close(model.classify(x)[:1], model.classify(x[:1]))


def test_encoder_and_decoder_of_images_have_no_classes_in_m1_and_may_be_replaced() -> None:
    m1 = M1((3, 16, 16), networks="resnet", latent_dim=3, hidden_dims=(8,))
    assert m1.reconstruct(torch.rand(2, 3, 16, 16)).shape == (2, 3, 16, 16)
    assert isinstance(m1.decoder, ImageDecoder)
    own = MLP((3, 16, 16), 6)
    assert M1((3, 16, 16), networks="conv", latent_dim=3, encoder=own).encoder is own


@pytest.mark.parametrize("networks", ["mlp", "conv"])
def test_the_pose_moves_what_the_other_latents_decode_to(networks: str) -> None:
    torch.manual_seed(0)
    model = M2((2, 9, 9), 3, networks=networks, latent_dim=8, hidden_dims=(16,), classifier="mlp", pose=True)
    classes, z = torch.arange(3)[:, None], torch.randn(4, 8)
    shape = (3, 4, 2, 9, 9)
    plain = model.decoder.decoder(z[:, 6:], classes).view(shape)

    def decode(pose: list[float]) -> Tensor:
        return model.decoder(torch.cat([torch.tensor(pose).expand(4, 6), z[:, 6:]], -1), classes).view(shape)

    torch.testing.assert_close(decode([0.0] * 6), plain)
    quarter, pixel = 0.5 * math.pi / 0.25, 1.0 / 9.0 / 0.05
    torch.testing.assert_close(decode([quarter, 0, 0, 0, 0, 0]), plain.rot90(1, (-2, -1)), atol=1e-4, rtol=0)
    torch.testing.assert_close(decode([0, 0, 0, 0, pixel, 0])[..., :-1], plain[..., 1:], atol=1e-4, rtol=0)
    torch.testing.assert_close(decode([0, 0, 0, 0, 0, -pixel])[..., 1:, :], plain[..., :-1, :], atol=1e-4, rtol=0)
    twice = decode([0, math.log(2.0) / 0.12, math.log(2.0) / 0.12, 0, 0, 0])  # every second pixel about the centre
    torch.testing.assert_close(twice[..., 2:7, 2:7], plain[..., ::2, ::2], atol=1e-4, rtol=0)
    slanted = decode([0, 0, 0, 1.0 / 0.2, 0, 0])  # a row moves by its height above the centre
    torch.testing.assert_close(slanted[..., 6, :7], plain[..., 6, 2:], atol=1e-4, rtol=0)
    together = model.decode(classes, z).mean
    for k in range(3):  # with a pose for each image
        torch.testing.assert_close(model.decode(torch.full((4,), k), z).mean, together[k])


def test_a_pose_needs_images_and_other_latents() -> None:
    with pytest.raises(ValueError, match="latent_dim=6 must be more than 6, the latents of the pose"):
        M1((1, 8, 8), latent_dim=6, pose=True)
    with pytest.raises(ValueError, match=r"pose=True is for images \(C, H, W\), and the examples have shape \(30,\)"):
        M2((30,), 3, pose=True)


def test_networks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="networks='lstm' must be one of auto, mlp, conv, resnet"):
        M1((1, 8, 8), networks="lstm")
    for shape in ((30,), (1, 6, 6)):
        with pytest.raises(ValueError, match="at least 8x8 pixels"):
            M2(shape, 3, networks="conv", classifier="mlp")


def test_dropout_keeps_the_wanted_share_and_the_mean() -> None:
    torch.manual_seed(0)
    net = MLP((401,), 1, (4001,), dropout=0.3)
    kept = net.layers[-2](torch.ones(50, 4001, requires_grad=True))
    assert kept.unique().tolist() == pytest.approx([0.0, 1.0 / 0.7])
    assert float((kept > 0.0).float().mean()) == pytest.approx(0.7, abs=0.005)
    assert torch.equal(net.eval().layers[-2](kept), kept)


def test_building_a_model_leaves_the_mode_of_its_parts() -> None:
    inner = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).eval()
    features = torch.nn.Sequential(inner, torch.nn.Tanh())
    DDGM((3,), features=features)
    assert [part.training for part in features.modules()] == [True, False, False, False, True]


@pytest.mark.parametrize("y", [(), (torch.arange(3),), (torch.arange(4).unsqueeze(-1),)])
def test_a_pose_of_a_decoder_that_returns_images(y: tuple[Tensor, ...]) -> None:
    class Images(torch.nn.Module):
        def forward(self, s: Tensor, *y: Tensor) -> Tensor:
            shape = torch.broadcast_shapes(s.shape[:-1], *(classes.shape for classes in y))
            return torch.arange(64.0).view(1, 8, 8).expand(*shape, 1, 8, 8)

    found = PoseDecoder(Images(), (1, 8, 8))(torch.zeros(3, POSE_DIM + 2), *y)
    batch = torch.broadcast_shapes((3,), *(classes.shape for classes in y))
    torch.testing.assert_close(found, torch.arange(64.0).expand(*batch, 64), atol=1e-4, rtol=0.0)


def test_channels_that_cannot_be_normalised_are_refused() -> None:
    for channels in (4, 12):
        with pytest.raises(ValueError, match=f"channels={channels} must be a multiple of 8"):
            ImageEncoder((1, 8, 8), 3, channels=channels)
