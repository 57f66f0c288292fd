"""What the page holds: networks, rows with their latents, classes and log p(x), the map, and words about them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_ssvae._arguments import as_count, as_seed
from pyro_ssvae._arrays import value_range
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.data.preparation import rescale
from pyro_ssvae.errors import MissingPackageError
from pyro_ssvae.explorer.networks import encode_rows, find_kind, make_page_networks, score_rows
from pyro_ssvae.export import Network
from pyro_ssvae.models.base import Model, fork_random_state

__all__ = ["Payload", "make_payload"]

Array = NDArray[Any]

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
    """Contents of a page.

    Attributes:
        meta: Words and numbers, JSON-ready.
        arrays: Arrays by name, little-endian.
        networks: Networks by name.
    """

    meta: dict[str, Any]
    arrays: dict[str, Array]
    networks: dict[str, Network]


def make_payload(
    model: Model, data: SemiSupervisedData, projection: str = "pca", num_rows: int = 10_000, seed: int = 0
) -> Payload:
    """Return what the page of a model holds; arguments and errors are those of :func:`pyro_ssvae.explore`."""
    num_rows, seed = as_count(num_rows, "num_rows", least=10), as_seed(seed)
    model = copy.deepcopy(model).cpu().float().eval()
    networks, kind = make_page_networks(model), find_kind(model)
    stored, y, is_test = _choose_rows(data, num_rows, np.random.default_rng(seed))
    num_classes = model.num_classes or 1
    draws = _draw(model, seed)
    with fork_random_state(model, seed), pyro.validation_enabled(False):
        found = [
            _evaluate(model, networks, rescale(x, data.scale), y, draws)
            for x, y in zip(stored.split(_BATCH), y.split(_BATCH), strict=True)
        ]
    latents, predicted, log_p = (np.concatenate(part) for part in zip(*found, strict=True))
    log_p += _log_prior(model)
    score = np.logaddexp.reduce(log_p, 1)
    arrays = {
        **_store_rows(stored, data.scale),
        "label": y.numpy().astype("<i2"),
        "predicted": predicted.astype("<i2"),
        "test": is_test.astype("u1"),
        "score": score.astype("<f4"),
        "prior": _draw_prior(model, seed).astype("<f4"),
        **{f"draws_{name}": part.numpy().astype("<f4") for name, part in draws.items()},
    }
    space = {"ddgm": "features", "m1m2": "z1"}.get(kind, "z")
    meta = {
        "kind": kind,
        "data": data.name,
        "numTraining": len(data.x),
        "numLabelled": data.num_labelled,
        "shape": list(data.event_shape),
        "image": _image_shape(data),
        "scale": data.scale,
        "space": space,
        "latentDim": model.latent_dim,
        "numDraws": len(draws.get("z", ())),
        "logPrior": _log_prior(model).tolist(),
        "unknownBelow": float(np.quantile(score[~is_test], _UNKNOWN_SHARE)),
        "classes": _name_classes(model, data),
        "missing": model.missing,
        "colours": _name_colours(num_classes if model.num_classes else data.num_classes or 1),
        "features": _describe_columns(model, data) if len(data.event_shape) == 1 else [],
        "ink": _measure_ink(rescale(stored[:2000], data.scale)),
        "range": [value / data.scale for value in value_range(data.x)],
        "rowScale": data.scale if stored.dtype == torch.uint8 else 255.0,
    }
    meta["map"] = _project(latents, stored, data, kind, projection, seed, arrays)
    return Payload(meta, arrays, networks)


def _choose_rows(data: SemiSupervisedData, number: int, random: np.random.Generator) -> tuple[Tensor, Tensor, Array]:
    """Return rows as stored, their labels, and whether they are test rows; all labelled training rows are among them.

    The order is random, so that no class covers the others.
    """
    y_test = data.y_test if len(data.y_test) else torch.empty(0, dtype=torch.int64)
    num_test = min(len(y_test), int(number * _TEST_SHARE))
    labelled = data.labelled_index.numpy()[:number]
    others = random.permutation(data.unlabelled_index.numpy())[: max(0, number - num_test - len(labelled))]
    test = random.permutation(len(y_test))[:num_test]
    train = np.concatenate([labelled, others])
    x = torch.cat([data.x[train], data.x_test[test].to(data.x.dtype)])
    y = torch.cat([data.y[train], y_test[test]])
    order = random.permutation(len(x))
    return x[order], y[order], (np.arange(len(x)) >= len(train))[order]


def _draw(model: Any, seed: int) -> dict[str, Tensor]:
    """Return the draws for log p(x), fewer where there are many values to decode."""
    if find_kind(model) == "ddgm":
        return {}
    num_classes = model.num_classes or 1
    number = max(1, min(_MAX_DRAWS, _DECODED_VALUES // (num_classes * model.event_size)))
    generator = torch.Generator().manual_seed(seed)
    draws = {"z": torch.randn(number, num_classes, model.latent_dim, generator=generator)}
    if find_kind(model) == "m1m2":
        draws["z1"] = torch.randn(number, len(model.active), generator=generator)
    return draws


def _evaluate(
    model: Any, networks: dict[str, Network], x: Tensor, y: Tensor, draws: dict[str, Tensor]
) -> tuple[Array, Array, Array]:
    """Return latents, predicted classes (-1 without classes) and log p(x|y) of rows."""
    predicted = model.classify(x).argmax(-1) if model.num_classes else torch.full_like(y, -1)
    latents = encode_rows(networks, x, torch.where(y < 0, predicted, y).clamp(min=0), model.num_classes or 1)
    log_p = score_rows(networks, x, draws, 1 if find_kind(model) == "ddgm" else model.num_classes or 1)
    return latents.numpy(), predicted.numpy(), log_p.double().numpy()


def _log_prior(model: Any) -> Array:
    prior = getattr(model, "class_prior", None)
    return np.zeros(1) if prior is None else prior.mean().detach().log().double().numpy()


def _store_rows(x: Tensor, scale: float) -> dict[str, Array]:
    """Return rows in 8 bits where they are whole numbers or pixels in [0, 1], else as numbers that the model sees."""
    values = rescale(x, scale).numpy()
    if x.dtype == torch.uint8:
        return {"rows8": x.numpy()}
    if x.dim() > 2 and values.min() >= 0.0 and values.max() <= 1.0:
        return {"rows8": np.round(values * 255.0).astype("u1")}
    return {"rows": values.astype("<f4")}


def _image_shape(data: SemiSupervisedData) -> list[int] | None:
    shape = data.event_shape
    if len(shape) == 3 and shape[0] in (1, 3):
        return list(shape)
    return [1, *shape] if len(shape) == 2 else None


def _name_classes(model: Model, data: SemiSupervisedData) -> list[str]:
    names = model.class_names or data.class_names
    return list(names) if names else [str(k) for k in range(model.num_classes or 0)]


def _name_colours(number: int) -> list[str]:
    from matplotlib.colors import to_hex

    from pyro_ssvae.plots.style import class_colours

    return [to_hex(colour) for colour in class_colours(number)]


def _describe_columns(model: Model, data: SemiSupervisedData) -> list[dict[str, Any]]:
    """Return name, range, mean and words of every column, in the numbers that the model sees."""
    x = (data.x.double() / data.scale).numpy()
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


def _draw_prior(model: Any, seed: int) -> Array:
    """Return draws from p(z), for samples and the range of sliders."""
    with fork_random_state(model, seed):
        draws: Array = model.prior().sample((_PRIOR_DRAWS,)).numpy()
    return draws


def _project(
    latents: Array,
    stored: Tensor,
    data: SemiSupervisedData,
    kind: str,
    projection: str,
    seed: int,
    arrays: dict[str, Array],
) -> dict[str, Any]:
    """Add the map and the latents to the arrays, and return how one follows from the other."""
    if kind == "ddgm" and stored[0].numel() == 2:
        latents = rescale(stored, data.scale).flatten(1).numpy()
        arrays["map"] = latents.astype("<f4")
        _store_latents(latents.astype(np.float64), arrays)
        return {"method": "plane", "axes": list(data.feature_names) or ["x1", "x2"]}
    latents = latents.astype(np.float64)
    if kind == "ddgm" and latents.shape[1] > _MAX_FEATURES:
        pca = _fit_pca(latents, _MAX_FEATURES, seed)
        arrays["reduce"], arrays["reduce_mean"] = (part.astype("<f4") for part in (pca.components_, pca.mean_))
        latents = pca.transform(latents)
    _store_latents(latents, arrays)
    space: Mapping[str, Any] = {"mean": latents.mean(0).tolist(), "sd": latents.std(0).tolist()}
    if projection == "umap":
        arrays["map"] = _run_umap(latents, seed).astype("<f4")
        return {"method": "umap", "axes": ["UMAP 1", "UMAP 2"], **space}
    if latents.shape[1] == 1:
        latents = np.column_stack([latents, np.zeros(len(latents))])
    pca = _fit_pca(latents, 2, seed)
    arrays["map"] = pca.transform(latents).astype("<f4")
    shares = np.nan_to_num(pca.explained_variance_ratio_)
    axes = [f"PC {number + 1} ({share:.0%} of the variance)" for number, share in enumerate(shares)]
    width = len(space["mean"])
    return {
        "method": "pca",
        "axes": axes,
        "centre": pca.mean_[:width].tolist(),
        "directions": pca.components_[:, :width].tolist(),
        **space,
    }


def _store_latents(latents: Array, arrays: dict[str, Array]) -> None:
    """Add latents in 16 bits, which are near enough for the map and for neighbours."""
    unit = (np.maximum(np.abs(latents).max(0), 1e-12) / 32767.0).astype("<f4")
    arrays["latents"] = np.clip(np.round(latents / unit), -32767, 32767).astype("<i2")
    arrays["latent_unit"] = unit


def _fit_pca(x: Array, number: int, seed: int) -> Any:
    from sklearn.decomposition import PCA

    with np.errstate(invalid="ignore"):  # equal rows have no variance
        return PCA(min(number, *x.shape), svd_solver="full", random_state=seed).fit(x)


def _run_umap(x: Array, seed: int) -> Array:
    try:
        from umap import UMAP
    except ImportError as error:
        raise MissingPackageError("projection='umap' needs umap-learn: pip install umap-learn.") from error
    points: Array = UMAP(random_state=seed).fit_transform(x)
    return points
