"""What the page holds: networks, rows with their latents, classes and log p(x), the map, and words about them.

Its networks are those of the export, with log-densities as further outputs. log p(x) is estimated by importance
sampling from the guide, with draws that the page holds, so that Python and the page compute the same number.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pyro_ssvae._arguments import as_count, check_choice
from pyro_ssvae._arrays import CHANNELS, value_range
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.features import track
from pyro_ssvae.data.preparation import rescale
from pyro_ssvae.data.storage import sample_rows
from pyro_ssvae.errors import MissingPackageError
from pyro_ssvae.export import Network, make_networks
from pyro_ssvae.models.base import Model, fork_random_state
from pyro_ssvae.models.ddgm import DDGM
from pyro_ssvae.models.latent_variable import SemiSupervisedModel
from pyro_ssvae.models.m1 import M1
from pyro_ssvae.models.m1m2 import M1M2

Array = NDArray[Any]

_KINDS = {DDGM: "ddgm", M1: "m1", M1M2: "m1m2", SemiSupervisedModel: "m2"}
_TEST_SHARE = 0.2  # of the rows
_BATCH = 500
_MAX_DRAWS = 32
_DECODED_VALUES = 65_000  # per row, over draws and classes, for log p(x)
_UNKNOWN_SHARE = 0.01  # of training rows, whose log p(x) is below the limit
_MAX_FEATURES = 50  # dimensions kept for the rows of a DDGM
_PRIOR_DRAWS = 500
_INK = 0.2  # least value of a pixel that belongs to what is drawn, in [0, 1]


@dataclass(frozen=True)
class Payload:
    """Contents of a page: words and numbers, JSON-ready, little-endian arrays by name, and networks by name."""

    meta: dict[str, Any]
    arrays: dict[str, Array]
    networks: dict[str, Network]


def make_payload(
    model: Model,
    data: SemiSupervisedData,
    projection: str = "pca",
    num_rows: int = 10_000,
    seed: int = 0,
    progress: bool = False,
) -> Payload:
    """Return what the page of a model holds; arguments and errors are those of :func:`pyro_ssvae.explore`."""
    check_choice("projection", projection, ("pca", "umap"))
    num_rows = as_count(num_rows, "num_rows", least=10)
    model = copy.deepcopy(model).cpu().float().eval()
    kind, networks = _find_kind(model), _make_page_networks(model)
    rows, y, is_test = _choose_rows(data, num_rows, np.random.default_rng(seed))
    draws = _draw(model, kind, seed)
    pairs = zip(rows.split(_BATCH), y.split(_BATCH), strict=True)
    pieces = track(pairs, "log p(x) of rows", -(-len(rows) // _BATCH), progress)
    latents, predicted, log_p = _evaluate(model, networks, pieces, data.scale, draws, seed)
    prior = getattr(model, "class_prior", None)
    log_prior = np.zeros(1) if prior is None else prior.mean().detach().log().double().numpy()
    score = np.logaddexp.reduce(log_p + log_prior, 1)
    if kind == "ddgm" and data.x[0].numel() == 2:
        points = rescale(rows, data.scale).flatten(1).numpy()
        arrays = {"map": points.astype("<f4"), **_store_latents(points.astype(np.float64))}
        axes: dict[str, Any] = {"method": "plane", "axes": list(data.feature_names) or ["x1", "x2"]}
    else:
        axes, arrays = _project(latents.astype(np.float64), kind, projection, seed)
    with fork_random_state(model, seed):
        samples = model.prior().sample((_PRIOR_DRAWS,)).numpy()  # also for the range of sliders
    arrays |= {
        **_store_rows(rows, data.scale),
        "label": y.numpy().astype("<i2"),
        "predicted": predicted.astype("<i2"),
        "test": is_test.astype("u1"),
        "score": score.astype("<f4"),
        "prior": samples.astype("<f4"),
        **{f"draws_{name}": part.numpy().astype("<f4") for name, part in draws.items()},
    }
    meta = {
        **_describe_model(model, kind, data),
        **_describe_data(data, rows),
        "numDraws": len(draws.get("z", ())),
        "logPrior": log_prior.tolist(),
        "unknownBelow": float(np.quantile(score[~is_test], _UNKNOWN_SHARE)),
        "map": axes,
    }
    return Payload(meta, arrays, networks)


# Words.


def _find_kind(model: Model) -> str:
    """Return ``"m1"``, ``"m2"``, ``"m1m2"`` or ``"ddgm"``; raise ``TypeError`` for a model of another kind."""
    for base in type(model).__mro__:
        if base in _KINDS:
            return _KINDS[base]
    raise TypeError(f"The explorer is for M1, M2, M1M2 and DDGM; {type(model).__name__} is none of them.")


def _describe_model(model: Model, kind: str, data: SemiSupervisedData) -> dict[str, Any]:
    from matplotlib.colors import to_hex

    from pyro_ssvae.plots.style import class_colours

    return {
        "kind": kind,
        "space": {"ddgm": "features", "m1m2": "z1"}.get(kind, "z"),
        "latentDim": model.latent_dim,
        "classes": list(model.class_names or data.class_names or map(str, range(model.num_classes or 0))),
        "colours": [to_hex(colour) for colour in class_colours(model.num_classes or data.num_classes or 1)],
        "features": _describe_columns(model, data) if len(data.event_shape) == 1 else [],
    }


def _describe_data(data: SemiSupervisedData, rows: Tensor) -> dict[str, Any]:
    shape = data.event_shape
    is_image = len(shape) == 2 or (len(shape) == 3 and shape[0] in CHANNELS)
    return {
        "data": data.name,
        "numTraining": len(data.x),
        "numLabelled": data.num_labelled,
        "shape": list(shape),
        "image": [1, *shape][-3:] if is_image else None,
        "scale": data.scale,
        "ink": _measure_ink(rescale(rows[:2000], data.scale)),
        "range": [value / data.scale for value in value_range(sample_rows(data.x))],
        "rowScale": data.scale if rows.dtype == torch.uint8 else 255.0,
    }


def _describe_columns(model: Model, data: SemiSupervisedData) -> list[dict[str, Any]]:
    """Return name, range, mean and words of every column, in the numbers that the model sees."""
    x = (sample_rows(data.x).double() / data.scale).numpy()
    names = model.feature_names or tuple(f"x{column + 1}" for column in range(x.shape[1]))
    columns = []
    for name, values in zip(names, x.T, strict=True):
        known = values[~np.isnan(values)]
        known = known if len(known) else np.zeros(1)
        words = list(model.categories.get(name, ()))
        whole = bool((known == np.round(known)).all())
        low, high = np.quantile(known, [0.0, 1.0])
        centre = float(np.bincount(known.astype(int)).argmax()) if words else float(known.mean())
        numbers = {"low": float(low), "high": float(high), "mean": centre, "sd": float(known.std())}
        columns.append({"name": name, "words": words, "whole": whole, **numbers})
    return columns


def _measure_ink(x: Tensor) -> dict[str, float] | None:
    """Return the usual size of what grey images show, and the centre of its mass, as fractions of the side.

    ``None`` unless these are grey images on black, for which a drawing is moved and scaled to the same.
    """
    if x.dim() != 4 or x.shape[1] != 1 or float(x[:, :, 0].median()) > 0.05 or not 0.0 <= x.min() <= x.max() <= 1.0:
        return None
    sides, centres = [], []
    for image in x[:, 0].numpy():
        rows, columns = np.nonzero(image > _INK)
        if len(rows):
            weights = image[rows, columns]
            sides.append(max(np.ptp(rows), np.ptp(columns)) + 1)
            centres.append((np.average(columns, weights=weights) + 0.5, np.average(rows, weights=weights) + 0.5))
    if not sides:
        return None
    height, width = x.shape[2:]
    (across, down) = np.mean(centres, 0)
    return {"side": float(np.mean(sides)) / max(height, width), "x": across / width, "y": down / height}


# Rows.


def _choose_rows(data: SemiSupervisedData, number: int, random: np.random.Generator) -> tuple[Tensor, Tensor, Array]:
    """Return rows as stored, their labels, and whether they are test rows; labelled training rows come before others.

    The order is random, so that no class covers the others.
    """
    y_test = data.y_test if len(data.y_test) else torch.empty(0, dtype=torch.int64)
    num_test = min(len(y_test), int(number * _TEST_SHARE))
    labelled = data.labelled_index.numpy()
    if len(labelled) > number - num_test:  # in folders they are sorted by class
        labelled = random.permutation(labelled)[: number - num_test]
    others = random.permutation(data.unlabelled_index.numpy())[: number - num_test - len(labelled)]
    test = random.permutation(len(y_test))[:num_test]
    train = np.concatenate([labelled, others])
    x = torch.cat([data.x[train], data.x_test[test].to(data.x.dtype)])
    y = torch.cat([data.y[train], y_test[test]])
    order = random.permutation(len(x))
    return x[order], y[order], (np.arange(len(x)) >= len(train))[order]


def _store_rows(x: Tensor, scale: float) -> dict[str, Array]:
    """Return rows in 8 bits where they are whole numbers or pixels in [0, 1], else as numbers that the model sees."""
    values = rescale(x, scale).numpy()
    if x.dtype == torch.uint8:
        return {"rows8": x.numpy()}
    if x.dim() > 2 and values.min() >= 0.0 and values.max() <= 1.0:
        return {"rows8": np.round(values * 255.0).astype("u1")}
    return {"rows": values.astype("<f4")}


def _draw(model: Any, kind: str, seed: int) -> dict[str, Tensor]:
    """Return the draws for log p(x), fewer where there are many values to decode.

    They are standard normal: ``z``, ``(S, K, L)``, and for M1+M2 ``z1``, ``(S, L1)``, shared by all rows.
    """
    if kind == "ddgm":
        return {}
    num_classes = model.num_classes or 1
    number = max(1, min(_MAX_DRAWS, _DECODED_VALUES // (num_classes * model.event_size)))
    generator = torch.Generator().manual_seed(seed)
    draws = {"z": torch.randn(number, num_classes, model.latent_dim, generator=generator)}
    if kind == "m1m2":
        draws["z1"] = torch.randn(number, len(model.active), generator=generator)
    return draws


def _evaluate(
    model: Any,
    networks: dict[str, Network],
    pieces: Iterable[tuple[Tensor, Tensor]],
    scale: float,
    draws: dict[str, Tensor],
    seed: int,
) -> tuple[Array, Array, Array]:
    """Return what the map shows of every row, the predicted class (-1 without classes) and log p(x|y), or -E(x).

    Pieces are rows as stored, with their labels.
    """
    found = []
    with fork_random_state(model, seed), pyro.validation_enabled(False):
        for stored, y in pieces:
            x = rescale(stored, scale)
            predicted = model.classify(x).argmax(-1) if model.num_classes else torch.full_like(y, -1)
            if "energy" in networks:
                energy, latents = networks["energy"](x)
                log_p = -energy.unsqueeze(-1)
            else:
                number, known = model.num_classes or 1, torch.where(y < 0, predicted, y).clamp(min=0)
                latents = networks["encoder"](x, *_given(networks["encoder"], known, number))[0]
                log_p = torch.stack([_score_class(networks, x, draws, k, number) for k in range(number)], -1)
            found.append((latents.numpy(), predicted.numpy(), log_p.double().numpy()))
    latents, predicted, log_p = (np.concatenate(part) for part in zip(*found, strict=True))
    return latents, predicted, log_p


def _score_class(networks: dict[str, Network], x: Tensor, draws: dict[str, Tensor], k: int, num_classes: int) -> Tensor:
    """Return log p(x|y), ``(B,)``, of one class ``y``, as the mean over draws of p(x,z|y) / q(z|x,y)."""
    y = torch.full((len(x),), k)
    mean, scale = networks["encoder"](x, *_given(networks["encoder"], y, num_classes))
    given = _given(networks["decoder"], y, num_classes)
    weights = []
    for number, upper in enumerate(draws["z"][:, k]):
        noise = draws["z1"][number] if "z1" in draws else upper
        z = mean + scale * noise
        weight = networks["decoder"](*given, z, x)[1] - _log_normal(noise, scale)
        if "z1" in draws:
            classes = _given(networks["upper_encoder"], y, num_classes)
            above, width = networks["upper_encoder"](z, *classes)
            weight += networks["upper_decoder"](*classes, above + width * upper, z)[1] - _log_normal(upper, width)
        weights.append(weight)
    return torch.stack(weights).logsumexp(0) - math.log(len(weights))


def _given(network: Network, y: Tensor, num_classes: int) -> tuple[Tensor, ...]:
    """Return the classes as the network takes them, if it does."""
    return (F.one_hot(y, num_classes).float(),) if "y" in network.inputs else ()


def _log_normal(noise: Tensor, scale: Tensor) -> Tensor:
    """Return the log-density of ``mean + scale * noise``, summed over the last dimension."""
    return (-0.5 * noise.square() - scale.log() - 0.5 * math.log(2.0 * math.pi)).sum(-1)


# The map.


def _project(latents: Array, kind: str, projection: str, seed: int) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return how the map follows from the latents, and the arrays of both."""
    arrays: dict[str, Array] = {}
    if kind == "ddgm" and latents.shape[1] > _MAX_FEATURES:
        pca = _fit_pca(latents, _MAX_FEATURES, seed)
        arrays["reduce"], arrays["reduce_mean"] = (part.astype("<f4") for part in (pca.components_, pca.mean_))
        latents = pca.transform(latents)
    arrays |= _store_latents(latents)
    found: dict[str, Any] = {"method": projection, "mean": latents.mean(0).tolist(), "sd": latents.std(0).tolist()}
    if projection == "umap":
        arrays["map"] = _run_umap(latents, seed).astype("<f4")
        return found | {"axes": ["UMAP 1", "UMAP 2"]}, arrays
    width = latents.shape[1]
    if width == 1:
        latents = np.pad(latents, ((0, 0), (0, 1)))
    pca = _fit_pca(latents, 2, seed)
    arrays["map"] = pca.transform(latents).astype("<f4")
    shares = np.nan_to_num(pca.explained_variance_ratio_)
    found["axes"] = [f"PC {number} ({share:.0%} of the variance)" for number, share in enumerate(shares, 1)]
    found["centre"], found["directions"] = pca.mean_[:width].tolist(), pca.components_[:, :width].tolist()
    return found, arrays


def _store_latents(latents: Array) -> dict[str, Array]:
    """Return latents in 16 bits, which are near enough for the map and for neighbours."""
    unit = (np.maximum(np.abs(latents).max(0), 1e-12) / 32767.0).astype("<f4")
    return {"latents": np.clip(np.round(latents / unit), -32767, 32767).astype("<i2"), "latent_unit": unit}


def _fit_pca(x: Array, number: int, seed: int) -> Any:
    from sklearn.decomposition import PCA

    with np.errstate(invalid="ignore"):  # equal rows have no variance
        return PCA(min(number, *x.shape), svd_solver="full", random_state=seed).fit(x)


def _run_umap(x: Array, seed: int) -> Array:
    try:
        from umap import UMAP
    except ImportError as error:
        raise MissingPackageError("projection='umap' needs umap-learn: pip install umap-learn.") from error
    return UMAP(random_state=seed).fit_transform(x)


# Networks.


def _make_page_networks(model: Model) -> dict[str, Network]:
    """Return the networks of a model on the CPU, in evaluation mode, by name.

    - ``classifier``: x to the probabilities of the classes;
    - ``encoder``: x (and y) to mean and scale of q(z|x,y); of M1+M2: x to those of q(z1|x);
    - ``decoder``: z (and y) and x to the mean of p(x|y,z) and log p(x,z|y); of M1+M2: z1 and x, and log p(x|z1);
    - ``upper_encoder`` and ``upper_decoder`` of M1+M2: the same for z given z1;
    - ``energy`` and ``generator`` of a DDGM: x to E(x) and features, and z to x.
    """
    found = make_networks(model)
    found.pop("likelihood", None)  # the decoder has it as an output
    own: Any = model
    if _find_kind(model) == "ddgm":
        net, inputs = own.energy_net, found["energy"].inputs
        energy = Network(lambda x: (net(x), net.features(x).flatten(1)), inputs, "energy", "features")
        return found | {"energy": energy}
    if _find_kind(model) == "m1m2":
        return _make_stacked(own, found)

    def decode(*given: Tensor) -> tuple[Tensor, Tensor]:
        *y, z, x = given
        below = own.decode(*(part.argmax(-1) for part in y), z)
        return below.mean, below.log_prob(x) + model.prior().log_prob(z)

    inputs = {**found["decoder"].inputs, "x": tuple(model.event_shape)}
    return found | {"decoder": Network(decode, inputs, "mean", "log_p")}


def _make_stacked(model: M1M2, found: dict[str, Network]) -> dict[str, Network]:
    z1, z, y = {"z1": (len(model.active),)}, {"z": (model.latent_dim,)}, {"y": (model.num_classes,)}
    x = {"x": tuple(model.event_shape)}

    def encode_upper(z1: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        posterior: Any = model.encode_z(z1, y.argmax(-1))
        return posterior.base_dist.loc, posterior.base_dist.scale

    def decode(z1: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        below = model.decode_x(z1)
        return below.mean, below.log_prob(x)

    def decode_upper(y: Tensor, z: Tensor, z1: Tensor) -> tuple[Tensor, Tensor]:
        below = model.decode_z1(y.argmax(-1), z)
        return below.mean, below.log_prob(z1) + model.prior().log_prob(z)

    return {
        "classifier": found["classifier"],
        "encoder": found["encoder_z1"],
        "decoder": Network(decode, z1 | x, "mean", "log_p"),
        "upper_encoder": Network(encode_upper, z1 | y, "mean", "scale"),
        "upper_decoder": Network(decode_upper, y | z | z1, "mean", "log_p"),
    }
