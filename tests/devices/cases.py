"""An objective for every kind of model, bound and regulariser, and batches for it on any device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from pyro_ssvae import DDGM, M1, M1M2, M2, EnergyObjective, SemiSupervisedData, SemiSupervisedELBO, UnsupervisedELBO
from pyro_ssvae.data import Batch
from pyro_ssvae.distributions import LIKELIHOODS, PRIORS, Gaussian, Mixed, Poisson
from pyro_ssvae.objectives import AffineAugmentation, Consistency, Objective, Update
from pyro_ssvae.objectives.energy_terms import ENTROPIES

NUM_CLASSES, LATENT_DIM = 4, 2
NUM_UNLABELLED, NUM_LABELLED = 6, 3  # examples of a batch
IMAGE = (1, 8, 8)
SMALL: dict[str, Any] = {"latent_dim": LATENT_DIM, "hidden_dims": (8,)}
COMPONENTS: dict[str, dict[str, int]] = {"mixture": {"num_components": 5}, "vamp": {"num_components": 5}}


def make_m2(event_shape: tuple[int, ...] = (5,), **options: Any) -> M2:
    return M2(event_shape, NUM_CLASSES, **{**SMALL, **options})


def make_small_prior(name: str) -> torch.nn.Module:
    return PRIORS[name](LATENT_DIM, **COMPONENTS.get(name, {}))


def with_m2(model: dict[str, Any] | None = None, **options: Any) -> Objective:
    return SemiSupervisedELBO(make_m2(**(model or {})), num_labelled=10, num_unlabelled=50, **options)


def with_regularisers(**model: Any) -> Objective:
    parts = {"augmentation": AffineAugmentation(), "consistency": Consistency(NUM_CLASSES)}
    return with_m2({"event_shape": IMAGE, **model}, bound_batch_size=4, **parts)


def with_mixed_likelihood() -> Objective:
    return with_m2({"likelihood": Mixed([([0, 1, 2], Gaussian()), ([3, 4], Poisson())])})


def with_prior(name: str) -> Objective:
    return with_m2({"prior": make_small_prior(name)})


def with_m1(prior: str = "normal", model: dict[str, Any] | None = None, **options: Any) -> Objective:
    m1 = M1((5,), prior=make_small_prior(prior), **SMALL, **(model or {}))
    return UnsupervisedELBO(m1, num_examples=60, **options)


def with_m1m2(joint: bool = False, model: dict[str, Any] | None = None, **options: Any) -> Objective:
    m1 = M1(IMAGE, latent_dim=3, hidden_dims=(8,))
    m1m2 = M1M2.from_m1(m1, NUM_CLASSES, **{**SMALL, "active": [True, False, True], **(model or {})})
    module = m1m2.unfreeze_m1() if joint else m1m2
    return SemiSupervisedELBO(module, num_labelled=10, num_unlabelled=50, **options)


def with_ddgm(model: dict[str, Any] | None = None, **options: Any) -> Objective:
    arguments: dict[str, Any] = {"event_shape": (2,), **(model or {})}
    counts = {"num_unlabelled": 50, "num_labelled": 10 if "num_classes" in arguments else 0}
    return EnergyObjective(DDGM(**arguments), **counts, **options)


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    **{f"m2-{name}": partial(with_m2, {"likelihood": name}) for name in LIKELIHOODS},
    "m2-mixed": with_mixed_likelihood,
    **{f"m2-prior-{name}": partial(with_prior, name) for name in PRIORS},
    **{f"m2-{name}": partial(with_m2, {"class_prior": name}) for name in ("map", "dirichlet")},
    "m2-top-k": partial(with_m2, enumeration="top-k", top_k=2),
    "m2-sampled-kl": partial(with_m2, analytic_kl=False),
    "m2-particles": partial(with_m2, num_particles=3),
    "m2-importance-weighted": partial(with_m2, num_particles=3, importance_weighted=True),
    "m2-importance-weighted-top-k": partial(with_m2, num_particles=3, importance_weighted=True, enumeration="top-k"),
    "m2-classifier-only": partial(with_m2, bound_weight=0.0),
    "m2-images": with_regularisers,
    "m2-images-pose": partial(with_regularisers, pose=True, latent_dim=8),
    "m2-adgm": partial(with_m2, {"auxiliary_dim": 2}),
    "m2-sdgm": partial(with_m2, {"auxiliary_dim": 2, "skip": True}),
    "m2-sdgm-importance-weighted": partial(
        with_m2, {"auxiliary_dim": 2, "skip": True}, num_particles=3, importance_weighted=True
    ),
    "m2-images-map": partial(with_regularisers, class_prior="map", batch_norm=True, likelihood="gaussian"),
    **{f"m1-prior-{name}": partial(with_m1, name) for name in PRIORS},
    "m1-batch-norm": partial(with_m1, model={"batch_norm": True, "likelihood": "gaussian"}),
    "m1-particles": partial(with_m1, num_particles=3),
    "m1-importance-weighted": partial(with_m1, num_particles=3, importance_weighted=True),
    "m1m2-stacked": with_m1m2,
    "m1m2-stacked-top-k": partial(with_m1m2, enumeration="top-k"),
    "m1m2-stacked-map": partial(with_m1m2, model={"class_prior": "map", "classify_from": "x"}),
    "m1m2-joint": partial(with_m1m2, joint=True),
    "m1m2-joint-particles": partial(with_m1m2, joint=True, num_particles=3),
    **{f"ddgm-{name}": partial(with_ddgm, entropy=name) for name in ENTROPIES},
    "ddgm-prior-student_t": partial(with_ddgm, {"prior": "student_t"}),
    "ddgm-classes": partial(with_ddgm, {"num_classes": NUM_CLASSES}),
    "ddgm-shared-draws": partial(with_ddgm, shared_draws=True),
    "ddgm-mle": partial(with_ddgm, mle_fraction=0.2),
    "ddgm-gradient-penalty": partial(with_ddgm, gradient_penalty=0.1, penalty_fraction=0.5),
    "ddgm-langevin": partial(with_ddgm, langevin_steps=2),
    "ddgm-images": partial(with_ddgm, {"event_shape": IMAGE}),
    "ddgm-images-negative": partial(with_ddgm, {"event_shape": IMAGE}, negative_weight=0.1),
    "ddgm-images-shift": partial(with_ddgm, {"event_shape": IMAGE}, max_shift=0.25),
    "ddgm-images-all": partial(
        with_ddgm,
        {"event_shape": IMAGE, "num_classes": NUM_CLASSES},
        entropy="batch_norm", negative_weight=0.1, max_shift=0.25, gradient_penalty=0.1, shared_draws=True,
    ),
}  # fmt: skip
"""Functions that build an objective on the CPU, by name."""


def make_batch(objective: Objective, device: str) -> Batch:
    """Return a batch of zeros and ones, which lie in the domain of every likelihood."""
    shape = objective.module.event_shape
    labelled = NUM_LABELLED if objective.num_labelled else 0
    x = (torch.rand(NUM_UNLABELLED + labelled, *shape, device=device) < 0.5).to(torch.float32)
    if not labelled:
        return Batch(x, None, None)
    y = torch.arange(labelled, device=device)
    return Batch(x[labelled:], x[:labelled], y)


def get_updates(objective: Objective) -> list[Update]:
    """Return the updates of a step, and those of a step near the end of the schedule if these are others."""
    first, last = objective.updates(0.0), objective.updates(0.999)
    return first if last == first else [*first, *last]


def make_data(objective: Objective) -> SemiSupervisedData:
    """Return a data set of zeros and ones, with the numbers of examples for which the objective was built."""
    labelled, total = objective.num_labelled, objective.num_examples
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(total + 20, *objective.module.event_shape, generator=generator) < 0.5).to(torch.float32)
    held_out = {"x_validation": x[total:]}
    if not labelled:
        return SemiSupervisedData.from_arrays(x[:total], **held_out)
    y = torch.cat([torch.arange(labelled) % NUM_CLASSES, torch.full((total - labelled,), -1)])
    return SemiSupervisedData.from_arrays(x[:total], y, **held_out, y_validation=torch.arange(20) % NUM_CLASSES)
