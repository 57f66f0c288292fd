"""Settings that go together.

The defaults of :class:`~pyro_ssvae.M2`, :class:`~pyro_ssvae.SemiSupervisedELBO` and :class:`~pyro_ssvae.TrainingConfig`
are those for M2 with regularisers. A preset lists what differs from the defaults for another purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "DDGM_IMAGES",
    "DDGM_PHOTOS",
    "DDGM_TOY",
    "FEATURES",
    "M1_BELOW",
    "M1_PRESETS",
    "PURE",
    "PURE_POSE",
    "STACK",
    "STACK_PURE",
    "Preset",
    "choose_ddgm",
]


@dataclass(frozen=True)
class Preset:
    """Arguments that differ from the defaults.

    Args:
        model: Arguments of the model.
        objective: Arguments of the objective's ``for_data``; ``pure`` is left to the caller.
        training: Arguments of :class:`~pyro_ssvae.TrainingConfig`.
        description: What it is, in one line.

    Example:
        >>> from pyro_ssvae import M2
        >>> M2((1, 28, 28), 10, **PURE.model).config()["arguments"]["activation"]
        'softplus'
    """

    model: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    description: str = ""


PURE = Preset(
    model={"classifier": "mlp", "activation": "softplus", "pose": False},
    objective={"alpha": 10.0, "enumeration": "top-k"},
    training={
        "max_epochs": 40, "batch_size": 50, "labelled_batch_size": 50, "learning_rate": 3e-3,
        "decay_start": 0.5, "kl_warmup": 0.04, "kl_peak": 4.0, "kl_anneal_end": 0.6, "ema_decay": 0.999,
        "binarisation": "dynamic", "evaluate_every": 500,
    },
)  # fmt: skip
"""M2 under J^α alone, with the networks of the paper (MLPs of 500 softplus units) on binarised pixels. The weight of
the KL of z rises to a peak of 4, falls, and is 1 in the last 40 % of the schedule."""

PURE_POSE = Preset(
    model={**PURE.model, "classifier": "conv", "pose": True},
    objective=PURE.objective,
    training={**PURE.training, "max_epochs": None, "max_steps": 8000},
)
"""The same with pose latents and a convolutional classifier, in fewer steps."""

_PLAIN: dict[str, Any] = {"warmup_steps": 0, "kl_warmup": 0.0, "kl_peak": 1.0}

_SOURCE: dict[str, Any] = {
    **_PLAIN, "max_epochs": 60, "batch_size": 100, "learning_rate": 3e-4, "decay_start": 1.0, "ema_decay": 0.0,
    "binarisation": "none",
}  # fmt: skip

M1_PRESETS = {
    "kingma": Preset(
        model={"hidden_dims": [600, 600], "latent_dim": 50, "activation": "softplus"},
        training={
            **_PLAIN, "warmup_steps": 500, "max_epochs": 180, "batch_size": 100, "learning_rate": 1e-3,
            "decay_start": 0.5, "ema_decay": 0.999, "binarisation": "dynamic",
        },
        description="M1 of Kingma et al. 2014: 600-600 softplus, 50 latents, dynamically binarised pixels",
    ),
    "nitta": Preset(
        model={"hidden_dims": [300, 300], "latent_dim": 50, "activation": "softplus"},
        training={**_SOURCE, "max_epochs": 30, "learning_rate": 1e-3},
        description="300-300 softplus, 50 latents, grey values, 30 epochs",
    ),
    "nnabla": Preset(
        model={"hidden_dims": [500, 500], "latent_dim": 50, "activation": "elu"},
        training={**_SOURCE, "binarisation": "threshold"},
        description="500-500 ELU, 50 latents, pixels binarised at 0.5",
    ),
    "musyoku": Preset(
        model={"hidden_dims": [600, 600], "latent_dim": 2, "activation": "softplus", "batch_norm": True},
        training={**_SOURCE, "gradient_clip": 1.0},
        description="600-600 softplus with batch norm, 2 latents, for a map of the latents",
    ),
}  # fmt: skip
"""Settings of M1 by the source they follow; no weight averaging or learning rate decay where the source has none.

What a source does not state is our choice: the schedule of ``kingma``, optimiser and epochs of ``nnabla``, epochs of
``musyoku``. The batch normalisation that musyoku also applies to the pixels is left out."""

M1_BELOW = Preset(
    model={"hidden_dims": [500, 500], "latent_dim": 50, "activation": "softplus", "prior": "flow"},
    training={
        **M1_PRESETS["kingma"].training, "max_epochs": 300, "learning_rate": 2e-3, "weight_decay": 0.1,
        "kl_warmup": 0.3, "decay_start": 0.4, "ema_decay": 0.9995,
    },
)  # fmt: skip
"""M1 for M1+M2. A learned prior lets the latents keep the clusters of the data, a slow warm-up of the KL leaves more
latents active, and weight decay delays overfitting."""

STACK_PURE = Preset(
    model={"classify_from": "z1", "latent_dim": 16, "activation": "relu"},
    objective={"alpha": 1.0, "enumeration": "top-k"},
    training={
        **_PLAIN, "warmup_steps": 200, "max_steps": 20_000, "batch_size": 200, "labelled_batch_size": 50,
        "learning_rate": 3e-3, "decay_start": 0.5, "ema_decay": 0.999, "binarisation": "none",
    },
)  # fmt: skip
"""M2 on the latents of M1 under J^α alone: q(y|z1), few latents z, z1 sampled anew at every step."""

STACK = Preset(
    model={"classify_from": "x", "latent_dim": 8, "activation": "relu"},
    objective={"alpha": 10.0, "bound_weight": 0.1},
    training={"kl_warmup": 0.0, "kl_peak": 1.0},
)
"""M2 on the latents of M1 with regularisers: a convolutional q(y|x), augmentation and consistency.

The bounds have a tenth of their weight in J^α, so that q(y|x) need not follow clusters of z1 that disagree with the
classes."""

FEATURES = Preset(
    model={"likelihood": "gaussian"},
    objective={"bound_weight": 0.01, "bound_batch_size": 48},
    training={"learning_rate": 1e-3, "gradient_clip": 10.0},
)
"""M1 and M2 of features of images. ``for_data`` takes the arguments of model and objective for such data.

The bound of a thousand features has a hundredth of its weight in J^α: otherwise its differences between classes, of
hundreds of nats, decide q(y|x), and not the labels. At a larger learning rate and without clipping, single examples
can take the bound to minus millions of nats."""

_DDGM: dict[str, Any] = {**_PLAIN, "final_learning_rate": 0.0, "gradient_clip": 10.0, "ema_decay": 0.999}

DDGM_TOY = Preset(
    objective={"gradient_penalty": 0.003, "langevin_steps": 10, "mle_fraction": 0.1},
    training={
        **_DDGM, "max_steps": 12_000, "batch_size": 512, "learning_rate": 1e-3, "decay_start": 0.4,
        "evaluate_every": 100,
    },
)  # fmt: skip
"""DDGM of points in the plane.

The nearest-neighbour entropy of thin structures needs large batches. In the last tenth of the schedule only the energy
is trained, by its importance-weighted likelihood."""

_IMAGES: dict[str, Any] = {
    "gradient_penalty": 0.07, "penalty_fraction": 0.25, "negative_weight": 1.0, "entropy_weight": 0.3,
    "generator_rate": 2.0, "generator_steps": 1,
}  # fmt: skip

DDGM_IMAGES = Preset(
    objective={**_IMAGES, "shared_draws": True},
    training={**_DDGM, "max_steps": 8000, "batch_size": 128, "learning_rate": 1e-3, "decay_start": 0.5},
)  # fmt: skip
"""DDGM of grey images up to 32x32 pixels: one update of the generator, at twice the learning rate, for each of the
energy's, on the same samples."""

DDGM_PHOTOS = Preset(
    objective={**_IMAGES, "gradient_penalty": 0.1, "max_shift": 0.0625},
    training={**DDGM_IMAGES.training, "max_steps": 6000, "batch_size": 64, "learning_rate": 5e-4},
)  # fmt: skip
"""DDGM of images in colour, or larger than 32x32 pixels, and of few examples: with a lower learning rate, against
saturated features where the background is white, and random shifts and flips, against memorised images."""


def is_photo(event_shape: Sequence[int]) -> bool:
    """Return whether examples of a shape are images in colour or larger than 32x32 pixels."""
    return len(event_shape) == 3 and (event_shape[0] > 1 or max(event_shape[1:]) > 32)


def choose_ddgm(event_shape: Sequence[int]) -> Preset:
    """Return the preset of a DDGM for examples of a shape: rows of a table, images, or photographs.

    Example:
        >>> choose_ddgm((3, 32, 32)) is DDGM_PHOTOS
        True
    """
    if len(event_shape) == 1:
        return DDGM_TOY
    return DDGM_PHOTOS if is_photo(event_shape) else DDGM_IMAGES
