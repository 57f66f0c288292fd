"""Numbers of a trained model: error, bound, and how q(y|x) and q(z|x,y) behave."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_ssvae.data import SemiSupervisedData, iterate_batches
from pyro_ssvae.models import DDGM, M1, Model, SemiSupervisedModel
from pyro_ssvae.models.base import evaluation_mode, fork_random_state, get_device
from pyro_ssvae.objectives import Objective

__all__ = [
    "active_units",
    "class_control",
    "classification_error",
    "energy_diagnostics",
    "latent_diagnostics",
    "mean_bound",
    "posterior_diagnostics",
    "predict_batches",
    "validation_metrics",
]

_DIAGNOSED_ROWS = 1000  # validation rows behind the curves of KL and entropy
_ACTIVE_VARIANCE = 0.01  # of posterior means, from which a latent counts as in use


def predict_batches(model: Model, x: Tensor, *, scale: float = 1.0, batch_size: int = 2000) -> Tensor:
    """Return q(y|x) of many rows, in batches, on the CPU.

    Args:
        model: The model.
        x: Rows with shape ``(N, *event_shape)``, as stored (8-bit allowed).
        scale: Divides ``x``.
        batch_size: Rows at a time.

    Returns:
        Probabilities with shape ``(N, K)``.
    """
    rows = _batches(model, x, scale=scale, batch_size=batch_size)
    return torch.cat([model.predict_proba(batch).cpu() for batch in rows])


def classification_error(model: Model, x: Tensor, y: Tensor, *, scale: float = 1.0) -> float:
    """Return the share of rows whose likeliest class under q(y|x) is not ``y``, as a fraction.

    Args:
        model: The model.
        x: Rows with shape ``(N, *event_shape)``, as stored.
        y: Classes with shape ``(N,)``.
        scale: Divides ``x``.

    Raises:
        ValueError: If there are no rows.
    """
    if len(x) == 0:
        raise ValueError("The error of zero rows is not defined; hand in validation or test rows.")
    return float((predict_batches(model, x, scale=scale).argmax(-1) != y.cpu()).double().mean())


def mean_bound(
    objective: Objective,
    x: Tensor,
    *,
    scale: float = 1.0,
    binarisation: str = "none",
    seed: int = 0,
    batch_size: int = 500,
) -> float:
    """Return the mean bound of log p(x) over rows, in nats per datum (higher is better), with one draw of z.

    Classes, where the model has some, are summed: -U(x).

    Args:
        objective: The objective whose module is evaluated, in evaluation mode.
        x: Rows with shape ``(N, *event_shape)``, as stored.
        scale: Divides ``x``.
        binarisation: As in training; ``"dynamic"`` and ``"static"`` both draw each pixel once, fixed by the seed.
        seed: Of the binarisation and of the draws of z; the caller's random state is left as it was.
        batch_size: Rows at a time.
    """
    total = 0.0
    with fork_random_state(objective, seed):
        options = {"scale": scale, "batch_size": batch_size, "binarisation": binarisation, "seed": seed}
        for batch in _batches(objective, x, **options):
            total -= objective.unlabelled_bound(batch) * len(batch)
    return total / len(x)


def class_control(model: SemiSupervisedModel, x: Tensor, *, scale: float = 1.0, seed: int = 0) -> dict[str, float]:
    """Return how far the class decides what is generated: the share of images that the classifier reads as asked.

    M2 can classify well while its decoder ignores y, because z may carry the class as well; this number tells.
    ``analogies`` decodes the style of each row with every class, ``samples`` styles from the prior. One is perfect,
    1/K means that y is ignored. It leans on the model's own classifier.

    Args:
        model: The model.
        x: Rows with shape ``(N, *event_shape)``, as stored, whose styles are used.
        scale: Divides ``x``.
        seed: Of the styles drawn from the prior; the caller's random state is left as it was.
    """
    device = get_device(model)
    classes = torch.arange(model.num_classes, device=device).unsqueeze(-1)  # (K, 1)
    right = {"analogies": 0, "samples": 0}
    with fork_random_state(model, seed):
        for batch in _batches(model, x, scale=scale, batch_size=250):
            y = model.classify(batch).argmax(-1)
            styles = {
                "analogies": model.encode(batch, y).mean.expand(model.num_classes, -1, -1),
                "samples": model.prior().sample((model.num_classes, len(batch))),
            }
            for name, z in styles.items():
                images = model.decode(classes, z).mean.flatten(0, 1)
                read = model.classify(images).argmax(-1).view(model.num_classes, -1)
                right[name] += int((read == classes).sum())
    return {name: count / (model.num_classes * len(x)) for name, count in right.items()}


@torch.no_grad()
def posterior_diagnostics(
    model: SemiSupervisedModel, x: Tensor, *, scale: float = 1.0, batch_size: int = 500
) -> dict[str, float]:
    """Return the three curves that tell how M2 fails, all in nats.

    ``entropy_y`` is the mean of H(q(y|x)): log K when the class is ignored, zero when every row is decided.
    ``mutual_information`` is H(mean of q(y|x)) minus it: log K for a confident and balanced classifier.
    ``kl_z`` is the mean of Σ_y q(y|x) KL(q(z|x,y) ‖ p(z)): what the latents carry.

    Args:
        model: The model.
        x: Rows with shape ``(N, *event_shape)``, as stored.
        scale: Divides ``x``.
        batch_size: Rows at a time.
    """
    device = get_device(model)
    classes = torch.arange(model.num_classes, device=device).unsqueeze(-1)  # (K, 1)
    entropy, kl, mass = 0.0, 0.0, torch.zeros(model.num_classes, device=device)
    with evaluation_mode(model):
        for batch in _batches(model, x, scale=scale, batch_size=batch_size):
            qy = dist.Categorical(logits=model.classify(batch))
            kl_of_class = _kl_to_prior(model, model.encode(batch, classes))  # (K, B)
            entropy += float(qy.entropy().sum())
            kl += float((qy.probs.T * kl_of_class).sum())
            mass += qy.probs.sum(0)
    marginal = float(dist.Categorical(probs=mass / len(x)).entropy())
    return {
        "entropy_y": entropy / len(x),
        "mutual_information": marginal - entropy / len(x),
        "kl_z": kl / len(x),
    }


@torch.no_grad()
def latent_diagnostics(model: M1, x: Tensor, *, scale: float = 1.0, batch_size: int = 1000) -> dict[str, float]:
    """Return what the latents of a model without classes carry.

    ``kl_z`` is the mean of KL(q(z|x) ‖ p(z)) in nats, ``active_units`` the number of latents in use
    (:func:`active_units`).

    Args:
        model: The model.
        x: Rows with shape ``(N, *event_shape)``, as stored.
        scale: Divides ``x``.
        batch_size: Rows at a time.
    """
    kl, means = 0.0, []
    with evaluation_mode(model):
        for batch in _batches(model, x, scale=scale, batch_size=batch_size):
            qz = model.encode(batch)
            kl += float(_kl_to_prior(model, qz).sum())
            means.append(qz.mean.cpu())
    return {"kl_z": kl / len(x), "active_units": int(_active(means).sum())}


@torch.no_grad()
def energy_diagnostics(model: DDGM, x: Tensor, *, scale: float = 1.0, seed: int = 0) -> dict[str, float]:
    """Return how data and as many generated rows compare.

    ``energy_of_data`` and ``energy_of_samples`` are mean energies in nats, ``energy_difference`` the first minus the
    second, and ``std_ratio`` the root of the total variance of samples over that of the data: near 1 for a
    generator that covers the data, near 0 for one that has collapsed. It is left out where it is unknown: for a single
    row, or rows that are all the same.

    Args:
        model: The model.
        x: Rows with shape ``(N, *event_shape)``, as stored.
        scale: Divides ``x``.
        seed: Of the samples; the caller's random state is left as it was.
    """
    rows = torch.cat(list(_batches(model, x, scale=scale)))
    with fork_random_state(model, seed):
        samples = model.sample(len(rows))
    of_data, of_samples = model.energy(rows).mean(), model.energy(samples).mean()
    found = {
        "energy_of_data": float(of_data),
        "energy_of_samples": float(of_samples),
        "energy_difference": float(of_data - of_samples),
    }
    spread, of_rows = (float(z.flatten(1).var(0, unbiased=False).sum().sqrt()) for z in (samples, rows))
    return found | ({"std_ratio": spread / of_rows} if of_rows > 0.0 else {})


@torch.no_grad()
def active_units(
    model: M1, x: Tensor, *, scale: float = 1.0, threshold: float = _ACTIVE_VARIANCE, batch_size: int = 1000
) -> Tensor:
    r"""Return which latents of M1 are in use: :math:`\mathrm{Var}_x\, \mathbb E_{q(z|x)}[z_j] > \text{threshold}`.

    Importance Weighted Autoencoders (Burda et al., 2015, https://arxiv.org/abs/1509.00519), section 5.2. The authors
    of M1+M2 keep the same ones: those with a standard deviation of the posterior mean above 0.1.

    Args:
        model: The model.
        x: Rows with shape ``(N, *event_shape)``, as stored.
        scale: Divides ``x``.
        threshold: Of the variance.
        batch_size: Rows at a time.

    Returns:
        A mask with shape ``(L,)``, on the CPU.
    """
    rows = _batches(model, x, scale=scale, batch_size=batch_size)
    return _active([model.transform(batch).cpu() for batch in rows], threshold)


def validation_metrics(
    objective: Objective, data: SemiSupervisedData, *, binarisation: str = "none", seed: int = 0
) -> tuple[dict[str, float], float | None]:
    """Return what an evaluation says about validation rows, and one number, higher being better, to choose by.

    With classes: error and :func:`posterior_diagnostics`, chosen by error. Without: bound and
    :func:`latent_diagnostics`, chosen by the bound. Of an energy model :func:`energy_diagnostics`, for lack of
    validation rows on up to 1,000 training rows drawn by the seed, and the latest is chosen.

    Args:
        objective: The objective, whose module is evaluated.
        data: The rows.
        binarisation: As in training.
        seed: Of binarisation and draws.

    Raises:
        ValueError: Without validation rows, but for an energy model.
    """
    x, module = data.x_validation, objective.module
    if not len(x) and not isinstance(module, DDGM):
        raise ValueError("There are no validation rows to evaluate on; hand in data that holds some out.")
    few = x[:_DIAGNOSED_ROWS]
    if isinstance(module, DDGM):
        if not len(x):
            order = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(seed))
            few = data.x[order[:_DIAGNOSED_ROWS]]
        energies = energy_diagnostics(module, few, scale=data.scale, seed=seed)
        if module.num_classes is None or not len(x):
            return energies, None
        error = classification_error(module, x, data.y_validation, scale=data.scale)
        return {"validation_error": error, **energies}, None
    if isinstance(module, SemiSupervisedModel):
        error = classification_error(module, x, data.y_validation, scale=data.scale)
        return {"validation_error": error, **posterior_diagnostics(module, few, scale=data.scale)}, -error
    bound = mean_bound(objective, x, scale=data.scale, binarisation=binarisation, seed=seed)
    found = {"validation_bound": bound}
    if isinstance(module, M1):
        found |= latent_diagnostics(module, few, scale=data.scale)
    return found, bound


def _active(means: list[Tensor], threshold: float = _ACTIVE_VARIANCE) -> Tensor:
    return torch.cat(means).var(0) > threshold


def _batches(module: nn.Module, x: Tensor, **options: Any) -> Iterator[Tensor]:
    """Return the rows in batches on the device of a module and in its precision."""
    like = next(module.parameters())
    return (batch.to(like) for batch in iterate_batches(x, device=like.device, **options))


def _kl_to_prior(model: Model, qz: dist.TorchDistribution) -> Tensor:
    """Return KL(q(z|x,y) ‖ p(z)) where it is registered, else a one-sample estimate, with the batch shape of q."""
    prior = model.prior()
    try:
        return torch.distributions.kl_divergence(qz, prior.expand(qz.batch_shape))
    except NotImplementedError:  # how kl_divergence says that there is no closed form
        z = qz.sample()
        difference: Tensor = qz.log_prob(z) - prior.log_prob(z)
        return difference
