"""Metrics against sums written by hand, and what they must leave alone."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_ssvae import M2, SemiSupervisedELBO
from pyro_ssvae.evaluation import class_control
from pyro_ssvae.models.diagnostics import classification_error, posterior_diagnostics, predict_batches

IMAGE, K = (1, 8, 8), 4


def make_m2() -> M2:
    torch.manual_seed(0)
    return M2(IMAGE, K, latent_dim=3, hidden_dims=(16,))


def make_examples(n: int = 11) -> Tensor:
    return torch.randint(0, 17, (n, *IMAGE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_error_and_probabilities_of_stored_examples(device: torch.device) -> None:
    m2, x = make_m2().to(device), make_examples()
    probabilities = predict_batches(m2, x, scale=16.0, batch_size=4)
    torch.testing.assert_close(probabilities, m2.predict_proba(x.float() / 16.0).cpu())
    y = probabilities.argmax(-1)
    y[:3] = (y[:3] + 1) % K
    assert classification_error(m2, x, y, scale=16.0) == pytest.approx(3 / 11)
    y[3:5] = -1  # unknown
    assert classification_error(m2, x, y, scale=16.0) == pytest.approx(3 / 9)
    assert classification_error(m2, x, torch.full_like(y, -1), scale=16.0) is None
    assert classification_error(m2, x[:0], y[:0]) is None


def test_diagnostics_equal_explicit_sums(device: torch.device) -> None:
    m2, x = make_m2().to(device), make_examples()
    found = posterior_diagnostics(m2, x, scale=16.0, batch_size=4)
    m2.eval()
    with torch.no_grad():
        grey = x.float().to(device) / 16.0
        q = m2.classify(grey).softmax(-1)
        entropy = -(q * q.log()).sum(-1).mean()
        mean = q.mean(0)
        kl = torch.zeros(len(x), device=device)
        for k in range(K):
            distribution = m2.encode(grey, torch.full((len(x),), k, device=device)).base_dist
            kl += q[:, k] * (0.5 * (distribution.scale**2 + distribution.loc**2 - 1) - distribution.scale.log()).sum(-1)
    assert found["entropy_y"] == pytest.approx(float(entropy), rel=1e-5)
    assert found["mutual_information"] == pytest.approx(float(-(mean * mean.log()).sum() - entropy), rel=1e-4)
    assert found["kl_z"] == pytest.approx(float(kl.mean()), rel=1e-5)


def test_kl_without_closed_form_is_estimated() -> None:
    class Laplace(torch.nn.Module):
        def forward(self) -> dist.TorchDistribution:
            return dist.Laplace(torch.zeros(3), torch.ones(3)).to_event(1)

    m2 = M2(IMAGE, K, latent_dim=3, hidden_dims=(16,), prior=Laplace())
    assert math.isfinite(posterior_diagnostics(m2, make_examples(), scale=16.0)["kl_z"])


def test_bound_is_fixed_by_the_seed_and_preserves_random_state_and_mode(device: torch.device) -> None:
    m2, x = make_m2(), make_examples(40)
    objective = SemiSupervisedELBO(m2, num_labelled=1, num_unlabelled=39).to(device)
    m2.train()
    before = torch.get_rng_state()
    first, again, other = (objective.mean_bound(x, scale=16.0, binarisation="dynamic", seed=s) for s in (0, 0, 1))
    assert first == again
    assert first != other
    assert torch.equal(before, torch.get_rng_state())
    assert m2.training
    # Binary pixels drawn with grey intensities: the bound of the grey values is the expectation.
    grey = objective.mean_bound(x, scale=16.0, seed=0)
    assert grey == pytest.approx(first, rel=0.02)


def test_class_control_of_decoders_that_use_and_ignore_the_class(device: torch.device) -> None:
    """The classifier reads the brightest of K rows of pixels; one decoder draws row y, another always row 0."""

    class Reader(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 100 * x[:, 0, :K].mean(-1)

    class Writer(torch.nn.Module):
        def __init__(self, uses_class: bool) -> None:
            super().__init__()
            self.uses_class = uses_class

        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            y = (y if self.uses_class else torch.zeros_like(y)).expand(torch.broadcast_shapes(z.shape[:-1], y.shape))
            lit = torch.nn.functional.one_hot(y, 8).float() * 20 - 10
            return lit.unsqueeze(-1).expand(*lit.shape, 8).flatten(-2)

    for uses_class, expected in ((True, 1.0), (False, 1 / K)):
        m2 = M2(IMAGE, K, latent_dim=3, hidden_dims=(8,), classifier=Reader(), decoder=Writer(uses_class)).to(device)
        before = torch.get_rng_state()
        found = class_control(m2, make_examples(), scale=16.0)
        assert found == {"analogies": pytest.approx(expected), "samples": pytest.approx(expected)}
        assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("data_scale", [16.0, None])
def test_integers_are_divided_as_in_training(data_scale: float | None) -> None:
    m2, x = make_m2().eval(), make_examples()
    m2.data_scale = data_scale
    objective = SemiSupervisedELBO(m2, num_labelled=1, num_unlabelled=39)
    scale = data_scale or 255.0
    assert objective.mean_bound(x) == objective.mean_bound(x, scale=scale) == objective.mean_bound(x.float() / scale)
    assert class_control(m2, x) == class_control(m2, x, scale=scale)
    for function in (objective.mean_bound, lambda x: class_control(m2, x)):
        with pytest.raises(ValueError, match="pass at least one"):
            function(x[:0])
