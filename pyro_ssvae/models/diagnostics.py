"""Diagnostics of a model on a data set: predictions, classification error, class control, KL of the latents, energies.

All functions take a model and examples x ``(N, *event_shape)`` as stored (8-bit allowed), which are divided by
``scale``, work in batches, put the model in evaluation mode, and leave its mode and the random state as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyro_ssvae._arguments import as_scale
from pyro_ssvae.data.preparation import iterate_batches
from pyro_ssvae.models.base import Model, as_input, fork_random_state, get_device
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.models.generation import decode_means, generate_x, mean_of
from pyro_ssvae.models.latent_variable import SemiSupervisedModel
from pyro_ssvae.models.m1 import M1

NUM_DIAGNOSED = 1000
"""Validation examples behind diagnostics that are computed at every evaluation."""

_ACTIVE_VARIANCE = 0.01
_MIN_STD_RATIO = 0.05  # standard deviation of samples over that of the data
_PATIENCE = 5  # consecutive evaluations below it; at the start of training a generator may have few modes
_MAX_ENERGY_GAP = 1e4  # nats between mean energies of data and samples
_MAX_ENERGY = 1e6  # nats, of data: float32 does not resolve differences between such numbers


def iterate_batches_for(module: nn.Module, x: Tensor, **options: Any) -> Iterator[Tensor]:
    """Yield examples in batches on the device of a module and in its precision, with options of ``iterate_batches``."""
    like = next(module.parameters())
    return (batch.to(like) for batch in iterate_batches(x, device=like.device, **options))


def find_scale(module: Any, x: Tensor, scale: float | None) -> float:
    """Return a scale that is given; else what integers were divided by in training, and 1 for other numbers."""
    if scale is not None:
        return scale
    return as_scale(None if x.is_floating_point() else getattr(module, "data_scale", None), x)


def predict_batches(model: Model, x: Tensor, *, scale: float = 1.0, batch_size: int = 2000) -> Tensor:
    """Return q(y|x) of many examples, probabilities with shape ``(N, K)``, on the CPU."""
    batches = iterate_batches_for(model, x, scale=scale, batch_size=batch_size)
    return torch.cat([model.predict_proba(batch).cpu() for batch in batches])


def classification_error(model: Model, x: Tensor, y: Tensor, *, scale: float = 1.0) -> float | None:
    """Return the fraction of wrong predictions; examples of unknown class (-1) do not count, ``None`` if all are."""
    known = y.cpu() >= 0
    if not known.any():
        return None
    predicted = predict_batches(model, x[known.to(x.device)], scale=scale).argmax(-1)
    return float((predicted != y.cpu()[known]).double().mean())


def class_control(
    model: SemiSupervisedModel, x: Tensor, *, scale: float | None = None, seed: int = 0
) -> dict[str, float]:
    """Return how often the model's own classifier assigns a generated example to the class it was generated from.

    M2 can classify well while its decoder ignores y, because z may carry the class too. 1 means that the class
    controls what is generated, 1/K that the decoder ignores it.

    Args:
        model: The model, with ``K`` classes.
        x: Examples with shape ``(N, *event_shape)``, as stored.
        scale: Divides ``x``; if ``None``, integers are divided by the ``data_scale`` of the model.
        seed: Seed of the draws of z.

    Returns:
        ``analogies``, for z encoded from each example and decoded with every class, and ``samples``, for z drawn from
        the prior, or where a subclass has a ``model`` of its own, by that function.

    Raises:
        ValueError: For zero examples.
    """
    if not len(x):
        raise ValueError("class_control compares classes of generated examples; pass at least one example x.")
    scale = find_scale(model, x, scale)
    classes = torch.arange(model.num_classes, device=get_device(model)).unsqueeze(-1)  # (K, 1)
    correct = {"analogies": 0, "samples": 0}
    with fork_random_state(model, seed):
        for batch in iterate_batches_for(model, x, scale=scale, batch_size=250):
            y = model.classify(batch).argmax(-1)
            z = mean_of(model.encode(batch, y)).expand(model.num_classes, -1, -1)
            every = classes.expand(-1, len(batch)).flatten()
            generated = {
                "analogies": decode_means(model, classes, z).flatten(0, 1),
                "samples": mean_of(generate_x(model, len(every), every)[0]),
            }
            for name, examples in generated.items():
                predicted = model.classify(examples).argmax(-1).view(model.num_classes, -1)
                correct[name] += int((predicted == classes).sum())
    return {name: count / (model.num_classes * len(x)) for name, count in correct.items()}


def posterior_diagnostics(
    model: SemiSupervisedModel, x: Tensor, *, scale: float = 1.0, batch_size: int = 500
) -> dict[str, float]:
    """Return how q(y|x) and q(z|x,y) behave, in nats.

    ``entropy_y`` is the mean of H(q(y|x)): log K where the class is ignored, 0 where every class is certain;
    ``mutual_information``, H(mean of q(y|x)) minus ``entropy_y``: log K for a confident and balanced classifier;
    ``kl_z``, the mean of Σ_y q(y|x) KL(q(z|x,y) ‖ p(z)): the information in the latents, left out of a model without
    a method ``encode``.
    """
    classes = torch.arange(model.num_classes, device=get_device(model)).unsqueeze(-1)  # (K, 1)
    entropy, kl, mass = 0.0, 0.0, torch.zeros(model.num_classes, device=classes.device)
    has_latents = hasattr(model, "encode") and hasattr(model, "prior")
    with fork_random_state(model, seed=0):  # the estimate of the KL may draw z
        for batch in iterate_batches_for(model, x, scale=scale, batch_size=batch_size):
            qy = dist.Categorical(logits=model.classify(batch))
            entropy += float(qy.entropy().sum())
            if has_latents:
                kl += float((qy.probs.T * _kl_to_prior(model, model.encode(batch, classes))).sum())  # (K, B)
            mass += qy.probs.sum(0)
    marginal = float(dist.Categorical(probs=mass / len(x)).entropy())
    entropy /= len(x)
    found = {"entropy_y": entropy, "mutual_information": marginal - entropy}
    return found | ({"kl_z": kl / len(x)} if has_latents else {})


def latent_diagnostics(model: nn.Module, x: Tensor, *, scale: float = 1.0) -> dict[str, float]:
    """Return how much information the latents of M1 carry; nothing for other models.

    ``kl_z`` is the mean of KL(q(z|x) ‖ p(z)) in nats, and ``active_units`` the number of :func:`active_units`, left out
    for a single example.
    """
    if not isinstance(model, M1):
        return {}
    kl, means = 0.0, []
    with fork_random_state(model, seed=0):  # the estimate of the KL may draw z
        for batch in iterate_batches_for(model, x, scale=scale, batch_size=1000):
            qz = model.encode(batch)
            kl += float(_kl_to_prior(model, qz).sum())
            means.append(mean_of(qz).cpu())
    found = {"kl_z": kl / len(x)}
    return found | ({"active_units": int(_vary(torch.cat(means)).sum())} if len(x) > 1 else {})


def active_units(model: M1, x: Tensor, *, scale: float | None = None) -> Tensor:
    r"""Return which latents of M1 are active: :math:`\mathrm{Var}_x\, \mathbb E_{q(z|x)}[z_j] > 0.01`.

    Importance Weighted Autoencoders (Burda et al., 2015, https://arxiv.org/abs/1509.00519), section 5.2. The authors
    of M1+M2 keep the same latents: those whose posterior means have a standard deviation above 0.1.

    Args:
        model: The model, with ``L`` latents.
        x: Examples with shape ``(N, *event_shape)``, as stored.
        scale: Divides ``x``; if ``None``, integers are divided by the ``data_scale`` of the model.

    Returns:
        A mask with shape ``(L,)``, on the CPU.

    Raises:
        ValueError: For fewer than two examples.
    """
    x, scale = as_input(model, x, scale)
    if len(x) < 2:
        raise ValueError(f"Latents are active if they vary between examples; pass at least two, not {len(x)}.")
    batches = iterate_batches_for(model, x, scale=scale, batch_size=1000)
    return _vary(torch.cat([model.transform(batch).cpu() for batch in batches]))


def _vary(means: Tensor) -> Tensor:
    return means.var(0) > _ACTIVE_VARIANCE


def energy_diagnostics(model: DDGM, x: Tensor, *, scale: float = 1.0, seed: int = 0) -> dict[str, float]:
    """Compare data with an equal number of generated samples, drawn by the seed.

    ``energy_data`` and ``energy_samples`` are mean energies in nats, ``energy_gap`` is the first minus the second, and
    ``std_ratio`` the total standard deviation of the samples divided by that of the data: near 1 for a generator that
    covers the data, near 0 for a collapsed one, left out where all examples are equal.
    """
    data = torch.cat(list(iterate_batches_for(model, x, scale=scale)))
    with fork_random_state(model, seed):
        samples = model.sample(len(data))
        # Not by model.energy, which refuses samples that are not finite: these show that training has failed.
        energy_data, energy_samples = model.energy_net(data).mean(), model.energy_net(samples).mean()
    found = {
        "energy_data": float(energy_data),
        "energy_samples": float(energy_samples),
        "energy_gap": float(energy_data - energy_samples),
    }
    std_samples, std_data = (float(part.flatten(1).var(0, unbiased=False).sum().sqrt()) for part in (samples, data))
    return found | ({"std_ratio": std_samples / std_data} if std_data > 0.0 else {})


def find_failure(history: Sequence[dict[str, float]]) -> str | None:
    """Return why the training of an energy model must stop, or ``None`` if it may go on.

    Training has failed if the standard deviation of samples was below 5 % of that of the data in five consecutive
    evaluations, if the mean energies of data and samples differ by more than 10,000 nats, or if the mean energy of data
    is beyond a million nats. ``history`` holds the values of the evaluations so far, by the names ``"val/std_ratio"``,
    ``"train/energy_gap"`` and ``"train/energy_data"``; missing ones are not checked.
    """
    recent = history[-_PATIENCE:]
    if len(recent) == _PATIENCE and all(map(has_collapsed, recent)):
        return (
            f"the generator has collapsed: its samples have {recent[-1]['val/std_ratio']:.2%} of the standard "
            "deviation of the data. A larger entropy_weight, another entropy, or a slower generator often helps"
        )
    newest = history[-1] if history else {}
    gap, energy = abs(newest.get("train/energy_gap", 0.0)), abs(newest.get("train/energy_data", 0.0))
    if gap > _MAX_ENERGY_GAP:
        far = f"data and samples are {gap:.3g} nats apart"
    elif energy > _MAX_ENERGY:
        far = f"those of data are {energy:.3g} nats away from 0"
    else:
        return None
    return f"energies diverge: {far}. A lower learning rate or a larger gradient_penalty often helps"


def has_collapsed(values: dict[str, float]) -> bool:
    """Return whether the samples of an evaluation have less than 5 % of the standard deviation of the data."""
    return values.get("val/std_ratio", 1.0) < _MIN_STD_RATIO


def _kl_to_prior(model: Model, qz: dist.TorchDistribution) -> Tensor:
    """Return KL(q(z|x,y) ‖ p(z)) in closed form if registered, else a one-sample estimate, in the batch shape of q."""
    prior = model.prior()
    try:
        return torch.distributions.kl_divergence(qz, prior.expand(qz.batch_shape))
    except NotImplementedError:  # raised by kl_divergence where no closed form is registered
        z = qz.sample()
        return qz.log_prob(z) - prior.log_prob(z)


def get_class_names(model: Any) -> Sequence[str]:
    """Return the names of the classes of a model, which are numbers if it knows none."""
    return model.class_names or tuple(map(str, range(model.num_classes or 0)))
