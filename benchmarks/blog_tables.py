"""The tables of bjlkeng's blog on semi-supervised learning, on MNIST and CIFAR-10, and ours beside them.

    python benchmarks/blog_tables.py --only 'cifar10/m1_svm/*' --keep runs  # trains one M1 for all labels

A cell, DATA/METHOD/LABELS/SEED, is the test accuracy of one method by one number of labels and one split; it is written
to docs/results/blog_tables.json as soon as it is known, and not made again.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from columns import percent
from numpy.typing import NDArray
from runs import make_fits, make_parser
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC
from table_format import DOCS, fill_table, format_table, load_json, load_results

from pyro_ssvae import M1, M2, SemiSupervisedData, SemiSupervisedELBO, TrainingConfig, UnsupervisedELBO, fit
from pyro_ssvae.models.diagnostics import classification_error
from pyro_ssvae.networks.images import ImageEncoder
from pyro_ssvae.plots import plot_samples
from pyro_ssvae.plots.style import save_figure
from pyro_ssvae.presets import FEATURES

Array = NDArray[Any]
Cells = dict[str, dict[str, Any]]  # by "DATA/METHOD/LABELS/SEED"

STORE = "results/blog_tables.json"
NETWORK = "efficientnet_lite0"
LABELS = {"mnist": (100, 500, 1000, 2000, 5000), "cifar10": (1000, 2000, 5000, 10_000, 25_000)}
BLOG: dict[str, dict[str, tuple[float | None, ...]]] = {  # accuracies, %, in the order of LABELS
    "mnist": {
        "pca_svm": (69.2, 87.1, 89.1, 91.1, 92.9),
        "cnn": (26.2, 92.1, 93.4, 95.5, 97.8),
        "m1_svm": (62.8, 88.5, 90.5, 92.1, 93.3),
        "m2": (None, None, 97.5, None, None),
    },
    "cifar10": {
        "pca_svm": (35.6, 38.4, 42.0, 44.6, 48.2),
        "cnn": (43.3, 48.4, 61.0, 67.3, 76.7),
        "m1_svm": (32.1, 36.2, 37.5, 38.9, 40.9),
        "m2": (42.0, None, None, None, None),
        "features_svm": (66.1, 68.4, 72.8, 75.1, 77.3),
    },
}
# Settings of M2 on pixels of CIFAR-10: a schedule of minutes on one core, and the default weight of the bound.
PIXELS = (
    {"max_steps": 600, "batch_size": 64, "labelled_batch_size": 32, "evaluate_every": 150},
    {"enumeration": "top-k", "bound_batch_size": 16, "bound_weight": 0.01},
)
PIXELS_LABELS = (1000, 4000)  # of the cells in a table of their own
_CHOSEN_ON = 2000  # labelled examples by which settings of an SVM are chosen
_WIDTHS = (20, 50, 100)  # numbers of components


# Methods: each returns test accuracy and what else there is to say, of data with some labels.


def fit_svm(x: Array, y: Array, seed: int, widths: tuple[int, ...] = ()) -> Any:
    """Fit an SVM by settings, and a number of leading columns, that cross-validation chooses."""
    some = np.random.default_rng(seed).permutation(len(y))[:_CHOSEN_ON]
    best: tuple[float, int, Any] = (-1.0, 0, None)
    for width in widths or (x.shape[1],):
        gammas = [share / float(x[:, :width].var(0).sum()) for share in (0.3, 1.0, 3.0)]
        search = GridSearchCV(SVC(), {"C": [1.0, 10.0], "gamma": gammas}, cv=5 if len(y) <= 1000 else 3)
        search.fit(x[some, :width], y[some])
        best = max(best, (search.best_score_, width, search.best_params_), key=lambda one: one[0])
    _, width, settings = best
    svm = SVC(**settings).fit(x[:, :width], y)
    svm.width = width
    return svm


def score_svm(x: Array, x_test: Array, data: SemiSupervisedData, widths: tuple[int, ...] = ()) -> dict[str, Any]:
    """Return the test accuracy of an SVM on the labelled of all training rows ``(N, D)``."""
    known = data.labelled_index.numpy()
    svm = fit_svm(x[known], data.y.numpy()[known], data.seed, widths)
    accuracy = float(svm.score(x_test[:, : svm.width], data.y_test.numpy()))
    return {"accuracy": accuracy, "C": svm.C, "gamma": svm.gamma, "columns": svm.width}


def pca_svm(data: SemiSupervisedData, keep: Path | None) -> dict[str, Any]:
    """Classify by an SVM on principal components of all training images, by which 10,000 are found."""
    x, x_test = (one.flatten(1).numpy() / np.float32(data.scale) for one in (data.x, data.x_test))
    components = PCA(max(_WIDTHS), random_state=0).fit(x[:10_000])
    return score_svm(components.transform(x), components.transform(x_test), data, _WIDTHS)


def features_svm(data: SemiSupervisedData, keep: Path | None) -> dict[str, Any]:
    """Classify by an SVM on standardised pretrained features."""
    data = data.with_features(NETWORK)
    mean, std = data.x.mean(0), data.x.std(0).clamp(min=1e-3)
    return score_svm(*(((one - mean) / std).numpy() for one in (data.x, data.x_test)), data)


def m1_svm(data: SemiSupervisedData, keep: Path | None) -> dict[str, Any]:
    """Classify by an SVM on the latents of an M1, which is trained without labels, once for each split."""
    folder = None if keep is None else keep / f"{data.name}-m1-seed{data.seed}"
    unlabelled = data.without_labels()
    model = M1.for_data(unlabelled, latent_dim=64, hidden_dims=[500], networks="conv")
    config = TrainingConfig(max_steps=8000, batch_size=100, learning_rate=1e-3, kl_peak=1.0, device="cpu")
    run = fit(UnsupervisedELBO.for_data(model, unlabelled), unlabelled, config, out=folder, resume=folder is not None)
    x, x_test = (model.transform(one).numpy() for one in (data.x, data.x_test))
    return {**score_svm(x, x_test, data), "train_seconds": round(run.train_seconds)}


def cnn(data: SemiSupervisedData, keep: Path | None) -> dict[str, Any]:
    """Train a classifier on the augmented labelled images alone."""
    known = data.labelled_index
    data = replace(data, x=data.x[known], y=data.y[known], split=None)
    residual = {"residual": True, "channels": 16, "hidden_dims": (), "dropout": 0.3}
    network = ImageEncoder(data.event_shape, 10, **residual) if data.name == "cifar10" else "auto"
    training = {"max_steps": min(5000, max(2000, len(known))), "labelled_batch_size": 64, "learning_rate": 2e-3}
    return train_m2(data, training, {"bound_weight": 0.0, "consistency": None}, classifier=network)


def m2(data: SemiSupervisedData, keep: Path | None) -> dict[str, Any]:
    """Train M2 with its default settings, but on pixels of CIFAR-10 for fewer steps of smaller batches."""
    if data.name != "cifar10":
        return train_m2(data)
    samples = Path(DOCS, "results", f"blog-cifar10-m2-{data.num_labelled}-seed{data.seed}.png")
    return train_m2(data, *PIXELS, samples)


def features_m2(data: SemiSupervisedData, keep: Path | None) -> dict[str, Any]:
    """Train M2 with its default settings on pretrained features, for 1,000 steps, and 3,000 from 10,000 labels."""
    steps = 1000 if data.num_labelled < 10_000 else 3000
    return train_m2(data.with_features(NETWORK), {**FEATURES.training, "max_steps": steps})


def train_m2(
    data: SemiSupervisedData, training: Any = None, objective: Any = None, samples: Path | None = None, **model: Any
) -> dict[str, Any]:
    """Train M2 and return its accuracy; a figure of samples of each class is drawn, if ``samples`` names a file."""
    torch.manual_seed(data.seed)
    module = M2.for_data(data, **model)
    config = TrainingConfig(**(training or {}), device="cpu")
    trained = SemiSupervisedELBO.for_data(module, data, **(objective or {}))
    for augmentation in (trained.augmentation, getattr(trained.consistency, "strong", None)):
        if hasattr(augmentation, "probability"):
            augmentation.probability = 1.0  # by default half of the photographs stay as they are
    run = fit(trained, data, config)
    if samples is not None:
        save_figure(plot_samples(module, class_names=data.class_names, seed=data.seed), samples)
    error = classification_error(module, data.x_test, data.y_test, scale=data.scale) or 0.0
    return {"accuracy": 1.0 - error, "steps": run.steps, "train_seconds": round(run.train_seconds)}


METHODS: dict[str, tuple[str, Callable[[SemiSupervisedData, Path | None], dict[str, Any]]]] = {
    "pca_svm": ("PCA + SVM", pca_svm),
    "cnn": ("CNN on the labels alone", cnn),
    "m1_svm": ("M1 + SVM", m1_svm),
    "m2": ("M2", m2),
    "features_svm": ("pretrained features + SVM", features_svm),
    "features_m2": ("pretrained features + M2", features_m2),
}


# Results


def load_cells(docs: Path) -> Cells:
    """Return the cells of the file, and those that other result files hold already: M2 and M1 + SVM on MNIST."""
    found: Cells = {}
    published = load_results(docs / "results")
    for labels in LABELS["mnist"]:
        for one in published.get(f"m2-default-{labels}", []):
            found[f"mnist/m2/{labels}/{one['seed']}"] = {"accuracy": 1.0 - one["test/error"]}
        for one in published.get("m1-svm", []):
            found[f"mnist/m1_svm/{labels}/0"] = {"accuracy": one["svm"][str(labels)]["svm"]}
    return found | load_json(docs / STORE, {})


def make_cell(name: str, method: str, labels: int, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    started = time.perf_counter()
    data = SemiSupervisedData.from_name(name, num_labels=labels, seed=seed, data_dir=args.data_dir)
    cell = METHODS[method][1](data, Path(args.keep) if args.keep else None)
    return {**cell, "seconds": round(time.perf_counter() - started), "threads": torch.get_num_threads()}


def make_table(cells: Cells, data: str) -> str:
    """Return accuracies by method and number of labels, ours and those of the blog."""
    rows = []
    for method, (words, _) in METHODS.items():
        keys = [f"{data}/{method}/{labels}/" for labels in LABELS[data]]
        groups = [[cell for name, cell in sorted(cells.items()) if name.startswith(key)] for key in keys]
        if any(groups):
            rows.append([words, *map(percent("accuracy", 1), groups)])
        if method in BLOG[data]:
            rows.append([f"{words}, the blog", *(f"{one:.1f}" if one else "–" for one in BLOG[data][method])])
    header = ["accuracy, %", *(f"{labels:,} labels" for labels in LABELS[data])]
    return format_table(header, rows) if any(key.startswith(data) for key in cells) else ""


def make_tables(docs: Path) -> dict[str, str]:
    """Return the tables by the name of their file, with one of M2 on pixels of CIFAR-10."""
    cells = load_cells(docs)
    found = {f"blog_{data}": make_table(cells, data) for data in LABELS}
    keys = {labels: f"cifar10/m2/{labels}/0" for labels in PIXELS_LABELS}
    pixels = [{"labels": labels, **cells[key]} for labels, key in keys.items() if key in cells]
    columns = {"labels": "{labels:,}", "test accuracy": "{accuracy:.1%}", "steps": "{steps}", "seconds": "{seconds}"}
    return found | {"blog_cifar10_pixels": fill_table(pixels, columns)}


def main(argv: list[str] | None = None, docs: Path = DOCS) -> None:
    """Make the missing cells, and write tables."""
    args = make_parser(__doc__).parse_args(argv)
    known, wanted = load_cells(docs), {}
    for name, method, seed in itertools.product(LABELS, METHODS, range(args.seeds or 1)):
        for labels in sorted({*LABELS[name], *(PIXELS_LABELS if (name, method) == ("cifar10", "m2") else ())}):
            if (key := f"{name}/{method}/{labels}/{seed}") not in known:
                wanted[key] = partial(make_cell, name, method, labels, seed, args)
    make_fits(docs / STORE, wanted, args.only)


if __name__ == "__main__":
    main()
