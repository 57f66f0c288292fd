"""The training commands: their flags, and defaults that follow from other flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_ssvae._arrays import as_images
from pyro_ssvae._io import suggest_conversion
from pyro_ssvae.cli.flags import Command, Flag, Flags, parse
from pyro_ssvae.data.images import has_colour
from pyro_ssvae.data.readers import is_on_disk, read_npz
from pyro_ssvae.data.storage import open_source
from pyro_ssvae.data.tables import is_table
from pyro_ssvae.data.toy import TOY_DATASETS
from pyro_ssvae.distributions import LIKELIHOODS, PRIORS
from pyro_ssvae.networks.images import NETWORKS
from pyro_ssvae.objectives.energy_terms import ENTROPIES
from pyro_ssvae.presets import (
    DDGM_TOY,
    FEATURES,
    M1_BELOW,
    M1_PRESETS,
    PURE,
    PURE_POSE,
    STACK,
    STACK_PURE,
    Preset,
    choose_ddgm,
)

_FindDefaults = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
_TABLES: dict[str, Any] = {"likelihood": "auto", "num_labels": "all"}  # defaults for tables
_NAMES = (
    "mnist, fashion_mnist, cifar10, digits, TABLE.csv, FILE.npz, a FOLDER of images, or rows in .npy, .parquet, "
    ".zarr, .h5ad"
)
_LABEL = "column of labels in a table, empty where unknown, or y.npy with all labels"


def _as_count_or_all(text: str) -> int | str:
    try:
        return "all" if text == "all" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, or all") from None


_DATA = (
    Flag("data", "mnist", _NAMES, metavar="DATA"),
    Flag("label", None, _LABEL, str, metavar="COLUMN"),
    Flag("test", None, "table of test rows (default: a tenth of 100 labelled rows or more)", str, rare=True),
    Flag("image_size", None, "side that images of a FOLDER are resized to (default: 32)", int, rare=True),
    Flag("on_error", "raise", "images of a FOLDER that cannot be read", choices=("raise", "skip"), rare=True),
    Flag("data_dir", None, "folder of the data sets (default: $PYRO_SSVAE_DATA, or else a cache)", str, metavar="DIR"),
)
_FEATURES = Flag(
    "features", None, "replace images by features of this network, as efficientnet_lite0", str, metavar="NAME"
)
_LABELS_HELP = "number of labels to keep, or all, which is the default for files and folders of your own"
_NUM_LABELS = Flag("num_labels", 100, _LABELS_HELP, _as_count_or_all, metavar="N")
_BY_DATA = ", by default chosen by the data"
_AUTO = "; auto, the default for tables: chosen by the data"
_LIKELIHOOD = Flag("likelihood", "bernoulli", "p(x|z)" + _AUTO, choices=["auto", *sorted(LIKELIHOODS)])
_PRIOR = Flag("prior", "normal", "p(z)", choices=sorted(PRIORS))
_CLASS_PRIOR = Flag("class_prior", "uniform", "p(y), fixed or learned", choices=("uniform", "map", "dirichlet"))
_LATENT_DIM = Flag("latent_dim", 50, "dimensions of z")
_NETWORKS = Flag(
    "networks", "auto", "encoder and decoder, by default conv for colour images, else mlp", choices=("auto", *NETWORKS)
)
_HIDDEN_DIMS = Flag("hidden_dims", [500], "widths of the hidden layers of encoder and decoder")
_ACTIVATION = Flag("activation", "relu", "activation of these layers", rare=True)
_NUM_SAMPLES = Flag("num_samples", 0, "draws per test example to estimate log p(x); 0: no estimate", least=0)
_DRAWS = (
    Flag("num_particles", 1, "draws of z per example (and class) in a step", rare=True),
    Flag("importance_weighted", False, "weight the draws by importance (IWAE) instead of averaging", rare=True),
)
_SEMI_SUPERVISED = (
    Flag("pure", False, "the paper's objective, without augmentation and consistency; other defaults"),
    Flag("alpha", 10.0, "weight of the mean cross-entropy of labels (paper: 0.1)", metavar="A"),
    Flag("bound_weight", None, "weight of the bounds, 1 in the paper" + _BY_DATA, float, rare=True),
    Flag("enumeration", "exact", "sum over y", choices=("exact", "top-k"), rare=True),
    Flag("top_k", 1, "classes summed exactly by --enumeration top-k; one of the others is drawn", rare=True),
    *_DRAWS,
)
_ENERGY = (
    Flag("entropy", "nearest_neighbour", "estimate of the generator's entropy", choices=list(ENTROPIES)),
    Flag("entropy_weight", 1.0, "weight of the entropy"),
    Flag("gradient_penalty", 0.0, "weight G of the penalty G/2 |dE/dx|^2 on data"),
    Flag("penalty_fraction", 1.0, "fraction of the batch on which this penalty is computed", rare=True),
    Flag("langevin_steps", 0, "Langevin steps of samples in the loss of the energy", rare=True),
    Flag("generator_rate", 3.0, "learning rate of the generator, relative to that of the energy"),
    Flag("generator_steps", 2, "updates of the generator for each of the energy"),
    Flag("shared_draws", False, "use the samples of the energy's update for the first of the generator's", rare=True),
    Flag("mle_fraction", 0.0, "last fraction of training for importance-weighted maximum likelihood of E", rare=True),
)


def parse_flags(command: str, argv: Sequence[str] | None = None, *, program: str | None = None) -> Flags:
    """Return the flags of a command, as ``"m2"``, from ``argv`` or the command line; help names the ``program``."""
    return parse(COMMANDS[command], argv, program)


def binarisation_for(likelihood: str, preset: Preset) -> str:
    """Return the binarisation of a preset under a Bernoulli likelihood, else none."""
    return str(preset.training["binarisation"]) if likelihood == "bernoulli" else "none"


def _use_preset(preset: Preset, **changes: Any) -> dict[str, Any]:
    training = {f"training.{name}": value for name, value in (preset.training | changes).items()}
    short = {"max_epochs": training.pop("training.max_epochs")} if "training.max_epochs" in training else {}
    return {**preset.model, **preset.objective, **short, **training}


def _find_m2(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    if not values["pure"]:
        return {}
    chosen = values["likelihood"] != "auto" or "likelihood" in given or _holds_rows(values["data"])
    likelihood = values["likelihood"] if chosen else "bernoulli"  # of binarised pixels
    preset = PURE_POSE if values["pose"] else PURE
    return {"likelihood": likelihood, **_use_preset(preset, binarisation=binarisation_for(likelihood, preset))}


def _find_m1m2(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    unused = [flag.option for flag in _M1M2["M1"] if flag.name != "m1" and flag.name in given]
    if values["m1"] is not None and unused:
        raise ValueError(f"{', '.join(unused)}: no effect with --m1, whose model is trained already.")
    return _use_preset(STACK_PURE if values["pure"] else STACK)


def _find_m1(values: dict[str, Any], _: dict[str, Any]) -> dict[str, Any]:
    preset = M1_PRESETS[values["preset"]]
    return _use_preset(preset, binarisation=binarisation_for(values["likelihood"], preset))


def _find_ddgm(values: dict[str, Any], _: dict[str, Any]) -> dict[str, Any]:
    shape, _ = _find_image_shape(values["data"])
    if shape[1:] == (0, 0):  # a folder, whose images are resized
        shape = (shape[0], *[values["image_size"] or 0] * 2)
    return _use_preset(choose_ddgm(shape))


def _find_image_shape(data: str) -> tuple[tuple[int, ...], Any]:
    """Return shape and dtype of the images that ``--data`` names; the shape is empty without images, or unreadable."""
    try:
        if is_on_disk(Path(data)):
            source = open_source(data)
            assert source is not None
            kind = np.uint8 if source.dtype == torch.uint8 else np.float32
            return tuple(source.shape[1:]) if source.dim() == 4 else (), kind
        if Path(data).is_dir():
            return (3 if has_colour(data) else 1, 0, 0), np.uint8
        if not data.endswith(".npz"):
            return ((3, 32, 32) if data == "cifar10" else (1, 28, 28)), np.uint8
        x = read_npz(Path(data), ["x_train"])["x_train"]
        return tuple(as_images(x).shape[1:]) if x.ndim in (3, 4) else (), x.dtype
    except (OSError, ValueError, TypeError, ImportError):  # which is told when the data is read
        return (), None


def _holds_rows(data: str) -> bool:
    """Return whether ``--data`` names a table, or a file or folder of rows that are no images."""
    return is_table(data) or (is_on_disk(Path(data)) and not _find_image_shape(data)[0])


def _for_own_data(find_defaults: _FindDefaults) -> _FindDefaults:
    """Return a function that also finds the defaults of a training command for a table or a folder of images."""

    def find(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        chosen = (_choose_for_rows if _holds_rows(values["data"]) else _choose_for_images)(values, given)
        return find_defaults(values | chosen | given, given) | chosen

    return find


def _choose_for_rows(values: dict[str, Any], _: dict[str, Any]) -> dict[str, Any]:
    known = values if "likelihood" in values else ()  # a DDGM, which is for images, has none
    return {name: value for name, value in _TABLES.items() if name in known}


def _choose_for_images(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    data = values["data"]
    chosen: dict[str, Any] = {}
    unused = [f"--{name}" for name in ("label", "test") if given.get(name) is not None]
    if unused and not is_on_disk(Path(data)):
        raise ValueError(
            f"{', '.join(unused)}: for tables and files of rows, and --data {data} is none."
            f"{suggest_conversion(Path(data))}"
        )
    if values.get("num_labels") and "num_labels" not in given and Path(data).exists():
        chosen["num_labels"] = "all"  # those of the user
    is_free = "likelihood" in values and "likelihood" not in given
    if values.get("features") is not None:
        chosen |= FEATURES.model if is_free else {}
        if "bound_weight" in values and not values["pure"]:
            chosen["bound_weight"] = FEATURES.objective["bound_weight"]
            chosen |= {f"training.{name}": value for name, value in FEATURES.training.items()}
    elif is_free:
        shape, dtype = _find_image_shape(data)
        if shape and shape[0] >= 3:
            chosen["likelihood"] = "discretised_logistic" if dtype == np.uint8 else "gaussian"
    return chosen


_M2: Mapping[str, Sequence[Flag]] = {
    "data": (*_DATA, _FEATURES, _NUM_LABELS),
    "model": (
        *(replace(_LIKELIHOOD, default="auto", help="p(x|y,z); auto: chosen by the data"), _PRIOR, _CLASS_PRIOR),
        Flag(
            "classifier",
            "auto",
            "q(y|x), by default conv for images, else mlp",
            choices=("auto", "conv", "mlp", "resnet"),
        ),
        *(_NETWORKS, _LATENT_DIM, _HIDDEN_DIMS, _ACTIVATION),
        Flag(
            "pose", None, "let the first six latents rotate, scale, shear and shift images" + _BY_DATA, bool, rare=True
        ),
    ),
    "objective": _SEMI_SUPERVISED,
}
_M1: Mapping[str, Sequence[Flag]] = {
    "preset": (Flag("preset", "kingma", "defaults of model and training", choices=list(M1_PRESETS)),),
    "data": (*_DATA, _FEATURES),
    "model": (
        *(_LIKELIHOOD, _PRIOR, _NETWORKS, _LATENT_DIM, _HIDDEN_DIMS, _ACTIVATION),
        Flag("batch_norm", False, "batch normalisation before each activation", rare=True),
    ),
    "objective": _DRAWS,
    "evaluation": (replace(_NUM_SAMPLES, default=500),),
}
_M1M2: Mapping[str, Sequence[Flag]] = {
    "data": (*_DATA, _FEATURES, _NUM_LABELS),
    "M1": (
        Flag("m1", None, "use the M1 of this run instead of training one", str, metavar="RUN"),
        replace(_LIKELIHOOD, help="p(x|z1)" + _AUTO),
        Flag("m1_epochs", M1_BELOW.training["max_epochs"], "passes over the data to train M1", least=1),
        Flag("m1_hidden_dims", M1_BELOW.model["hidden_dims"], "widths of the hidden layers of M1", rare=True),
        Flag("m1_latent_dim", M1_BELOW.model["latent_dim"], "dimensions of z1, inactive ones included", least=1),
    ),
    "model": (
        *(_PRIOR, _CLASS_PRIOR, replace(_LATENT_DIM, help="dimensions of z, above z1")),
        *(replace(_HIDDEN_DIMS, help="widths of the hidden layers above z1"), _ACTIVATION),
        Flag("classify_from", "x", "input of the classifier", choices=("z1", "x")),
    ),
    "objective": _SEMI_SUPERVISED,
    "stages": (Flag("joint_epochs", 0, "passes to train M1 and M2 jointly at the end", least=0),),
    "evaluation": (_NUM_SAMPLES,),
}
_DDGM: Mapping[str, Sequence[Flag]] = {
    "data": (
        replace(_DATA[0], help="mnist, fashion_mnist, cifar10, digits, FILE.npz, or a FOLDER of images"),
        *(replace(flag, rare=True) for flag in _DATA[1:3]),  # for tables, which are refused with an explanation
        *(*_DATA[3:], Flag("num_labels", 0, "labels that train energies of classes; 0 for one energy", least=0)),
    ),
    "objective": (
        Flag("alpha", 1.0, "weight of the mean cross-entropy of the labels", rare=True),
        *_ENERGY,
        Flag("negative_weight", 0.0, "weight of the loss on corrupted images (negative data augmentation)"),
        Flag("max_shift", 0.0, "largest random shift of images, as a fraction of their sides; for few images"),
    ),
    "evaluation": (
        Flag("num_samples", 5000, "images in each set that is compared", least=2),
        Flag("other_data", None, "other images, to be distinguished by the energy", str, metavar="DATA"),
    ),
}
_DDGM_2D: Mapping[str, Sequence[Flag]] = {
    "data": (Flag("data", "ring", "distribution of the points", choices=list(TOY_DATASETS)),),
    "objective": _ENERGY,
    "evaluation": (
        Flag("frames", 60, "frames of the movie of training, at most one per evaluation; 0 for none", least=0),
        Flag("num_samples", 5000, "points in each sample that is compared", least=2),
    ),
}
_M2_TEXT = """Train M2 (Kingma et al. 2014) on examples of which a few are labelled.

  PROGRAM                         # MNIST, 100 labels
  PROGRAM --data digits           # 8x8 digits of scikit-learn, in half a minute
  PROGRAM --data mine.npz --likelihood gaussian
  PROGRAM table.csv --label species
  PROGRAM rows.npy --label y.npy  # more than 1 GiB stay on disk
  PROGRAM --resume runs/NAME      # continue a run that was stopped"""
_M1_TEXT = f"""Train M1, a variational autoencoder (Kingma & Welling 2013).

  PROGRAM                         # MNIST, the M1 of Kingma et al. 2014
  PROGRAM --data digits --likelihood gaussian
  PROGRAM --resume runs/NAME      # continue a run that was stopped

presets:
{chr(10).join(f"  {name:8}{preset.description}" for name, preset in M1_PRESETS.items())}"""
_M1M2_TEXT = """Train M1+M2 (Kingma et al. 2014): M1 first, then M2 on its latents, then both for --joint-epochs.

  PROGRAM                         # MNIST, 100 labels
  PROGRAM --pure                  # the objective of the paper
  PROGRAM --m1 runs/NAME/m1       # with an M1 that has been trained
  PROGRAM --resume runs/NAME      # continue a run that was stopped

--max-epochs and --training.* are settings of M2 on the latents; --max-minutes is for each stage."""
_DDGM_TEXT = """Train a DDGM (Kim & Bengio 2016) on images: an energy model and a generator.

  PROGRAM                                 # MNIST; eleven minutes on two cores
  PROGRAM --data photos/ --image-size 64  # a folder of images
  PROGRAM --num-labels 100                # a classifier, too
  PROGRAM --other-data fashion_mnist      # test: does the energy distinguish them?
  PROGRAM --resume runs/NAME              # continue a run that was stopped"""
_DDGM_2D_TEXT = """Train a DDGM (Kim & Bengio 2016) on points in the plane, with a movie of training.

  PROGRAM                         # ten elongated Gaussians on a circle
  PROGRAM --data spiral
  PROGRAM --resume runs/NAME      # continue a run that was stopped"""

COMMANDS = {
    command.name: command
    for command in (
        Command("m2", _M2_TEXT, _M2, _for_own_data(_find_m2)),
        Command("m1", _M1_TEXT, _M1, _for_own_data(_find_m1)),
        Command("m1m2", _M1M2_TEXT, _M1M2, _for_own_data(_find_m1m2)),
        Command("ddgm", _DDGM_TEXT, _DDGM, _for_own_data(_find_ddgm)),
        Command("ddgm_2d", _DDGM_2D_TEXT, _DDGM_2D, lambda *_: _use_preset(DDGM_TOY)),
    )
}
