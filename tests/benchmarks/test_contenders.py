"""All contenders of the step benchmark compute the same bound as the package."""

from __future__ import annotations

import pyro
import pytest
import torch
from contenders import ALPHA, Contender, HandWritten, Ours, Sizes, TutorialPyro
from torch import Tensor
from torch.nn import functional as F

SIZES = Sizes(features=6, hidden=8, latent=3)
K = 4
CONTENDERS = [TutorialPyro, HandWritten, Ours]


def settings(**changes: object) -> dict[str, object]:
    return {"num_classes": K, "device": "cpu", "seed": 1, "sizes": SIZES} | changes


def examples(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(n, SIZES.features, generator=generator).round()
    return x, torch.arange(n) % K


def parameters(contender: Contender) -> list[Tensor]:
    module = contender.module if isinstance(contender, Ours) else contender.nets
    return list(module.parameters())


@torch.no_grad()
def enlarge_weights(contender: Contender) -> None:
    """Make weights large, so that classes and latents matter and the bounds differ between examples."""
    for parameter in parameters(contender):
        parameter.copy_(0.7 * torch.randn_like(parameter))


@torch.no_grad()
def copy_ours(ours: Ours) -> HandWritten:
    """HandWritten with the weights of an M2."""
    hand = HandWritten(**settings())
    state = ours.module.state_dict()
    names = {
        "classify_hidden": "classifier.layers.0",
        "classify_out": "classifier.layers.2",
        "encode_x": "encoder.first.linear",
        "decode_z": "decoder.first.linear",
    }
    for prefix in ("encoder.rest", "decoder.rest"):  # the index of the output layer may differ
        (last,) = {key.rsplit(".", 1)[0] for key in state if key.startswith(prefix)}
        names["encode_out" if prefix.startswith("encoder") else "decode_out"] = last
    for mine, theirs in names.items():
        for part in ("weight", "bias"):
            getattr(getattr(hand.nets, mine), part).copy_(state[f"{theirs}.{part}"])
    hand.nets.encode_y.copy_(state["encoder.first.class_weight"])
    hand.nets.decode_y.copy_(state["decoder.first.class_weight"])
    return hand


@torch.no_grad()
def copy_to_tutorial(hand: HandWritten) -> TutorialPyro:
    """TutorialPyro with the same weights: those of a concatenation are the factored ones side by side."""
    tutorial = TutorialPyro(**settings())
    mine, theirs = tutorial.nets, hand.nets
    copies = {
        mine.encoder_y[0]: theirs.classify_hidden,
        mine.encoder_y[2]: theirs.classify_out,
        mine.decoder[2]: theirs.decode_out,
    }
    for to, of in copies.items():
        to.load_state_dict(of.state_dict())
    for to, of, classes in (
        (mine.encoder_z[0], theirs.encode_x, theirs.encode_y),
        (mine.decoder[0], theirs.decode_z, theirs.decode_y),
    ):
        to.weight.copy_(torch.cat([of.weight, classes.T], 1))
        to.bias.copy_(of.bias)
    for head, part in ((mine.loc, slice(0, SIZES.latent)), (mine.log_scale, slice(SIZES.latent, None))):
        head.weight.copy_(theirs.encode_out.weight[part])
        head.bias.copy_(theirs.encode_out.bias[part])
    return tutorial


@torch.no_grad()
def assert_same_mean(first, second, draws: int = 100) -> None:
    """Compare the means of two random numbers within four standard errors of their difference."""
    a = torch.tensor([float(first()) for _ in range(draws)])
    b = torch.tensor([float(second()) for _ in range(draws)])
    error = ((a.var() + b.var()) / draws).sqrt()
    assert abs(a.mean() - b.mean()) < 4 * error + 1e-5 * b.mean().abs()
    assert error < 0.01 * b.mean().abs()  # or the comparison would pass whatever is compared


@pytest.fixture
def ours() -> Ours:
    contender = Ours(**settings())
    enlarge_weights(contender)
    return contender


def test_hand_written_deterministic_parts_are_exactly_those_of_our_m2(ours):
    hand, (x, y) = copy_ours(ours), examples(7)
    classes = torch.arange(K)[:, None]
    z = torch.randn(K, 7, SIZES.latent)
    torch.testing.assert_close(hand.nets.classify(x), ours.module.classify(x))
    for given, mine in ((classes, None), (y, y)):
        distribution = ours.module.encode(x, given).base_dist
        loc, log_scale = hand.nets.encode(x, mine)
        torch.testing.assert_close(loc, distribution.loc)
        torch.testing.assert_close(log_scale.exp(), distribution.scale)
    torch.testing.assert_close(hand.nets.decode(z, None), ours.module.decode(classes, z).base_dist.logits)


@pytest.mark.parametrize("labelled", [False, True])
def test_hand_written_loss_is_ours_in_expectation(ours, labelled):
    hand, (x, y) = copy_ours(ours), examples(6)
    batch = (x.repeat(50, 1), *((x, y) if labelled else ()))
    assert_same_mean(lambda: ours.loss(*batch), lambda: hand.loss(*batch))


@pytest.mark.parametrize("labelled", [False, True])
def test_tutorial_loss_is_hand_written_in_expectation(ours, labelled):
    hand, (x, y) = copy_ours(ours), examples(6)
    tutorial = copy_to_tutorial(hand)
    x, y = x.repeat(50, 1), y.repeat(50)
    if labelled:
        one_hot = F.one_hot(y, K).float()
        assert_same_mean(
            lambda: tutorial.svi.evaluate_loss(x, one_hot), lambda: hand.labelled_bound(x, y).sum(), draws=60
        )
        expected = ALPHA * F.cross_entropy(hand.nets.classify(x), y, reduction="sum")
        assert tutorial.auxiliary.evaluate_loss(x, one_hot) == pytest.approx(expected.item(), rel=1e-5)
    else:
        assert_same_mean(lambda: tutorial.svi.evaluate_loss(x), lambda: hand.unlabelled_bound(x).sum(), draws=60)
        assert tutorial.auxiliary.evaluate_loss(x) == 0.0


@pytest.mark.parametrize("kind", CONTENDERS)
@pytest.mark.parametrize("labelled", [False, True])
def test_a_step_moves_every_network(kind, labelled):
    contender = kind(**settings())
    before = [parameter.detach().clone() for parameter in parameters(contender)]
    x, y = examples(10)
    contender.step(x, *((x[:5], y[:5]) if labelled else ()))
    for old, new in zip(before, parameters(contender), strict=True):
        assert new.isfinite().all()
        assert not torch.equal(old, new)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONTENDERS)
def test_steps_lower_the_bound(kind):
    contender = kind(**settings())
    x, _ = examples(20)

    def bound() -> float:
        if isinstance(contender, TutorialPyro):
            return contender.svi.evaluate_loss(x)
        with torch.no_grad():
            return float(contender.loss(x))

    before = sum(bound() for _ in range(5))
    for _ in range(40):
        contender.step(x)
    assert sum(bound() for _ in range(5)) < before


def test_hand_written_bound_is_float32_under_bf16(ours):
    exact, half = copy_ours(ours), HandWritten(**settings(bf16=True))
    half.nets.load_state_dict(exact.nets.state_dict())
    x, y = examples(100)
    with half.autocast():
        loss = half.loss(x, x, y)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.loss(x, x, y).item(), rel=0.05)
    half.step(x, x, y)


def test_our_step_leaves_the_parameter_store_alone_and_the_tutorial_starts_with_an_empty_one():
    pyro.param("stale", torch.zeros(1))
    TutorialPyro(**settings())
    assert len(pyro.get_param_store()) == 0
    contender = Ours(**settings())
    contender.step(examples(5)[0])
    assert len(pyro.get_param_store()) == 0


@pytest.mark.gpu
def test_a_replayed_graph_takes_the_captured_steps():
    x, y = (part.cuda() for part in examples(40))
    graph = HandWritten(graph=True, **settings(device="cuda"))
    graph.step(x, x, y)
    eager = HandWritten(**settings(device="cuda"))
    with torch.no_grad():
        before = torch.stack([graph.loss(x, x, y) for _ in range(20)]).mean()
        for _ in range(200):
            graph.step(x, x, y)
        after = torch.stack([graph.loss(x, x, y) for _ in range(20)]).mean()
        start = torch.stack([eager.loss(x, x, y) for _ in range(20)]).mean()
    for _ in range(204):  # the graph took three steps before the capture and one replay
        eager.step(x, x, y)
    with torch.no_grad():
        reached = torch.stack([eager.loss(x, x, y) for _ in range(20)]).mean()
    assert after < before < start
    assert float(after) == pytest.approx(float(reached), rel=0.05)
