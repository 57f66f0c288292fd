"""The bounds against sums written by hand, in double precision: values and every gradient."""

from __future__ import annotations

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor
from torch.nn import functional as F

from pyro_ssvae import M2, SemiSupervisedELBO
from pyro_ssvae.data import Batch
from pyro_ssvae.errors import EnumerationError
from pyro_ssvae.models import data_plate
from pyro_ssvae.models.m2 import ENUMERATE
from tests.objectives.small import (
    K,
    L,
    PointM2,
    assert_same_loss_and_gradients,
    draw_normals,
    gradients,
    make_examples,
    make_m2,
)


def bound_of_class(m2: M2, x: Tensor, y: Tensor, noise: Tensor, kl_weight: float = 1.0) -> Tensor:
    """L(x, y) of each example, written out; π uniform."""
    loc, log_scale = m2.encoder(x, y).chunk(2, -1)
    z = loc + log_scale.exp() * noise
    log_q = (-0.5 * noise**2 - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)
    log_pz = (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1)
    logits = m2.decoder(z, y)
    log_px = (x * logits - F.softplus(logits)).sum(-1)
    return -(log_px + kl_weight * (log_pz - log_q) - math.log(K))


def hand_unlabelled(m2: M2, x: Tensor, kl_weight: float = 1.0) -> Tensor:
    """U(x) of each example: five lines that enumeration must reproduce."""
    noise = draw_normals(K, len(x), L)
    log_q = m2.classify(x).log_softmax(-1)
    total = torch.zeros(len(x)).double()
    for k in range(K):
        y = torch.full((len(x),), k)
        total = total + log_q[:, k].exp() * (bound_of_class(m2, x, y, noise[k], kl_weight) + log_q[:, k])
    return total


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
def test_unlabelled_bound_is_the_sum_over_classes(batch: int, kl_weight: float) -> None:
    m2, x = make_m2(), make_examples(batch)
    objective = SemiSupervisedELBO(m2, num_labelled=0, num_unlabelled=batch, analytic_kl=False)
    objective.kl_weight = kl_weight
    torch.manual_seed(3)
    ours = objective(Batch(x, None, None))
    torch.manual_seed(3)
    assert_same_loss_and_gradients(ours, hand_unlabelled(m2, x, kl_weight).mean(), m2)


def test_objective_is_equation_9() -> None:
    m2, x_u, x_l = make_m2(), make_examples(5), make_examples(3, seed=4)
    y = torch.tensor([0, 3, 1])
    n_u, n_l, alpha = 50, 12, 7.0
    objective = SemiSupervisedELBO(m2, num_labelled=n_l, num_unlabelled=n_u, alpha=alpha, analytic_kl=False)
    torch.manual_seed(3)
    ours = objective(Batch(x_u, x_l, y))
    torch.manual_seed(3)
    unlabelled = hand_unlabelled(m2, x_u).sum() * n_u / 5
    labelled = bound_of_class(m2, x_l, y, draw_normals(3, L)).sum() * n_l / 3
    # J^alpha with alpha = c N, divided by N: the minibatch stands for n_u and n_l examples.
    j_alpha = unlabelled + labelled + alpha * (n_u + n_l) * F.cross_entropy(m2.classify(x_l), y)
    assert_same_loss_and_gradients(ours, j_alpha / (n_u + n_l), m2)


def test_auxiliary_term_trains_the_classifier_on_labels() -> None:
    """Fails if the auxiliary term is dropped: without it labelled examples do not change the classifier at all."""
    m2, x, y = make_m2(), make_examples(4), torch.tensor([0, 1, 2, 3])
    for alpha in (0.0, 5.0):
        objective = SemiSupervisedELBO(m2, num_labelled=4, num_unlabelled=0, alpha=alpha)
        loss = objective(Batch(None, x, y))
        expected = gradients(alpha * F.cross_entropy(m2.classify(x), y), m2)
        found = gradients(loss, m2)
        for name in (n for n, _ in m2.named_parameters() if n.startswith("classifier.")):
            torch.testing.assert_close(found[name], expected[name])
    assert found["classifier.layers.0.weight"].abs().max() > 0


@pytest.mark.parametrize("sizes", [(4, 4, 4), (5, 5, 2), (11, 1), (12,)])
def test_minibatch_bounds_average_to_the_full_bound(sizes: tuple[int, ...]) -> None:
    m2, x = make_m2(PointM2), make_examples(12)
    y = torch.arange(12) % K
    full = SemiSupervisedELBO(m2, num_labelled=12, num_unlabelled=12, alpha=2.0)
    expected = full(Batch(x, x, y))
    # Under uniform sampling a minibatch of size b contains each example equally often: weigh by b / N.
    parts = zip(x.split(sizes), y.split(sizes), sizes, strict=True)
    average = sum(size / 12 * full(Batch(part, part, labels)) for part, labels, size in parts)
    assert_same_loss_and_gradients(average, expected, m2)


@pytest.mark.parametrize("batches", [(True, True), (True, False), (False, True)])
def test_global_term_is_scored_once(batches: tuple[bool, bool]) -> None:
    x, y = make_examples(6), torch.arange(6) % K
    learned, fixed = make_m2(PointM2, class_prior="map"), make_m2(PointM2)
    batch = Batch(x if batches[0] else None, x if batches[1] else None, y if batches[1] else None)
    sizes = {"num_unlabelled": 6 * batches[0], "num_labelled": 6 * batches[1]}
    n = 6 * sum(batches)
    with_term = SemiSupervisedELBO(learned, **sizes)(batch)
    without = SemiSupervisedELBO(fixed, **sizes)(batch)
    log_prior = dist.Dirichlet(learned.class_prior.concentration).log_prob(learned.class_prior.mean())
    # At its start the point estimate is uniform, so the two differ by log p(pi) alone.
    torch.testing.assert_close(with_term, without - log_prior / n)


def test_dirichlet_posterior_enters_as_its_kl_divergence() -> None:
    m2, x, y = make_m2(PointM2, class_prior="dirichlet"), make_examples(6), torch.arange(6) % K
    m2.class_prior.logits.data = torch.tensor([0.5, 0.0, -0.5, 0.2]).double()
    m2.class_prior.log_total.data.fill_(math.log(30.0))
    objective = SemiSupervisedELBO(m2, num_labelled=6, num_unlabelled=0, alpha=0.0)
    torch.manual_seed(0)
    samples = torch.stack([objective(Batch(None, x, y)).detach() for _ in range(600)])
    posterior = m2.class_prior.posterior()
    prior = dist.Dirichlet(m2.class_prior.concentration)
    a = posterior.concentration
    expected_log_pi = a.digamma() - a.sum().digamma()
    with torch.no_grad():
        px = m2.decode(y, m2.encode(x, y).mean).log_prob(x)
        pz = m2.prior().log_prob(m2.encode(x, y).mean)
        kl = torch.distributions.kl_divergence(posterior, prior)
        expected = -((px + pz + expected_log_pi[y]).sum() - kl) / 6
    assert abs(samples.mean() - expected) < 4 * samples.std() / math.sqrt(len(samples))


def test_gradient_reaches_every_parameter() -> None:
    for options in ({}, {"class_prior": "map"}, {"class_prior": "dirichlet"}, {"likelihood": "gaussian"}):
        m2 = make_m2(**options)
        objective = SemiSupervisedELBO(m2, num_labelled=4, num_unlabelled=20)
        loss = objective(Batch(make_examples(5), make_examples(4), torch.tensor([0, 1, 2, 3])))
        for name, gradient in gradients(loss, m2).items():
            assert gradient.abs().max() > 0, (options, name)


def test_labelled_bound_does_not_warn_and_unlabelled_bound_requires_enumeration() -> None:
    m2, x = make_m2(), make_examples(4)
    labelled = SemiSupervisedELBO(m2, num_labelled=4, num_unlabelled=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labelled(Batch(None, x, torch.tensor([0, 1, 2, 3])))

    def forgetful(x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, size):
            if y is None:
                y = pyro.sample("y", dist.Categorical(logits=m2.classify(x)))
            pyro.sample("z", m2.encode(x, y))

    unlabelled = SemiSupervisedELBO(m2, num_labelled=0, num_unlabelled=4, guide=forgetful)
    for _ in range(2):  # also once Pyro's own validation is off
        unlabelled._validated = not unlabelled._validated
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(EnumerationError, match="enumerated no site"):
                unlabelled(Batch(x, None, None))


def test_plain_functions_as_model_and_guide() -> None:
    m2, x = make_m2(), make_examples(5)

    def model(x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, size):
            z = pyro.sample("z", m2.prior())
            y = pyro.sample("y", dist.Categorical(logits=torch.zeros(K).double()), obs=y)
            pyro.sample("x", m2.decode(y, z), obs=x)

    def guide(x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        with data_plate(x, size):
            if y is None:
                y = pyro.sample("y", dist.Categorical(logits=m2.classify(x)), infer=ENUMERATE)
            pyro.sample("z", m2.encode(x, y))

    torch.manual_seed(3)
    options = {"model": model, "guide": guide, "analytic_kl": False}
    ours = SemiSupervisedELBO(m2, num_labelled=0, num_unlabelled=5, **options)(Batch(x, None, None))
    torch.manual_seed(3)
    assert_same_loss_and_gradients(ours, hand_unlabelled(m2, x).mean(), m2)


def test_evaluated_bound_is_the_mean_of_u_without_the_global_term() -> None:
    x = make_examples(5)
    for prior in ("uniform", "map"):
        m2 = make_m2(PointM2, class_prior=prior)
        with torch.no_grad():
            bound = SemiSupervisedELBO(m2, num_labelled=0, num_unlabelled=999).unlabelled_bound(x)
            uniform = make_m2(PointM2)
            expected = TraceEnum_ELBO(max_plate_nesting=1).loss(uniform.model, uniform.guide, x) / 5
        assert bound == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_labelled": 0, "num_unlabelled": 0}, "not both be zero"),
        ({"num_labelled": -1, "num_unlabelled": 3}, "num_labelled=-1"),
        ({"num_labelled": 1, "num_unlabelled": 3, "alpha": -1.0}, "alpha=-1.0"),
    ],
)
def test_bad_arguments(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SemiSupervisedELBO(make_m2(), **arguments)


def test_empty_batch() -> None:
    with pytest.raises(ValueError, match="neither unlabelled nor labelled"):
        SemiSupervisedELBO(make_m2(), num_labelled=1, num_unlabelled=1)(Batch(None, None, None))


@pytest.mark.parametrize(
    ("x_labelled", "y_labelled", "words"),
    [
        (make_examples(5), torch.tensor([0]), "holds 5 examples and y_labelled 1 classes"),
        (make_examples(2), None, "holds 2 examples and y_labelled no classes"),
        (None, torch.tensor([0]), "holds no examples and y_labelled 1 classes"),
        (make_examples(3), torch.tensor([0, -1, 1]), "from -1 to 1; classes are 0 to 3.*x_unlabelled"),
        (make_examples(2), torch.tensor([0, K]), "from 0 to 4; classes are 0 to 3"),
        (make_examples(2), torch.tensor([0.0, 1.0]), "type torch.float32; integers"),
        (make_examples(2), torch.tensor([[0], [1]]), r"shape \(2, 1\)"),
        (make_examples(0), torch.tensor([]).long(), "neither unlabelled nor labelled"),
    ],
)
def test_labelled_examples_without_a_class_each_are_refused(
    x_labelled: Tensor | None, y_labelled: Tensor | None, words: str
) -> None:
    objective = SemiSupervisedELBO(make_m2(), num_labelled=3, num_unlabelled=5)
    with pytest.raises(ValueError, match=words):
        objective(Batch(make_examples(0), x_labelled, y_labelled))


def test_empty_parts_of_a_batch_are_left_out() -> None:
    objective, x, y = SemiSupervisedELBO(make_m2(), num_labelled=3, num_unlabelled=5), make_examples(3), torch.arange(3)
    for batch in (Batch(x, None, None), Batch(None, x, y)):
        empty = [part[:0] if given is None else given for part, given in zip((x, x, y), batch, strict=True)]
        torch.manual_seed(0)
        expected = objective(batch)
        torch.manual_seed(0)
        assert torch.equal(objective(Batch(*empty)), expected)


def test_a_batch_is_taken_in_the_precision_of_the_weights() -> None:
    objective = SemiSupervisedELBO(make_m2(), num_labelled=5, num_unlabelled=5)
    batch, losses = Batch(make_examples(), make_examples(seed=3), torch.arange(5) % K), []
    for given in (batch, batch.cast(torch.float32)):
        torch.manual_seed(4)
        losses.append(objective(given))
    assert losses[0].dtype == torch.float64
    assert losses[0] == losses[1]  # of examples that are zeros and ones


def test_classes_may_be_integers_of_any_size() -> None:
    objective, x, y = SemiSupervisedELBO(make_m2(), num_labelled=3, num_unlabelled=5), make_examples(3), torch.arange(3)
    losses = []
    for dtype in (torch.int64, torch.int32, torch.uint8):
        torch.manual_seed(0)
        losses.append(objective((x, x, y.to(dtype))))
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize(
    ("batch", "error", "words"),
    [
        (make_examples(3), TypeError, r"Batch\(x, None, None\); got the type Tensor"),
        ((make_examples(3).numpy(), None, None), TypeError, "x_unlabelled has the type ndarray"),
        ((make_examples(3)[0], None, None), ValueError, r"x_unlabelled has shape \(6,\).*shape \(B, 6\) are needed"),
        ((None, make_examples(3).int(), torch.arange(3)), ValueError, r"x_labelled.*torch.int32; floating.*data.scale"),
    ],
)
def test_batches_that_do_not_fit_are_refused(batch: object, error: type[Exception], words: str) -> None:
    objective = SemiSupervisedELBO(make_m2(), num_labelled=3, num_unlabelled=5)
    with pytest.raises(error, match=words):
        objective(batch)
