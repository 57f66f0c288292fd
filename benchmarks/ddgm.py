"""Train DDGM on points, digits and icons, by the default recipe and by that of the source document, and measure both.

    python benchmarks/ddgm.py --jobs 2                       # every row: ring, spiral, MNIST, class energies; hours
    python benchmarks/ddgm.py --only ring-default --only ring-source
    python benchmarks/ddgm.py --icons DIR --only icons-default   # a folder of pictures, at 64x64
    python benchmarks/ddgm.py --table                        # only rewrite docs/results_ddgm.md

Each finished run is kept as docs/results/NAME-HASH.json, where HASH is that of its settings, and is not run again.
With --keep DIR, models and figures are kept under DIR/NAME-SEED; an interrupted run goes on from there, and one whose
result is missing is measured again without training. A run that collapses or diverges is kept too, and says so.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from ddgm_source import source_parts, start
from results_page_ddgm import SHEETS, write_page
from runs import add_flags, digest, make
from torch import Tensor
from torch.nn import functional as F

from pyro_ssvae import (
    DDGM,
    EnergyObjective,
    NonFiniteLossError,
    SemiSupervisedData,
    TrainingConfig,
    TrainingFailedError,
    fit,
)
from pyro_ssvae.data import make_toy_data, prepare
from pyro_ssvae.data.preparation import convert_images
from pyro_ssvae.data.toy import TOY_DATASETS
from pyro_ssvae.evaluation import measure_image_model, measure_toy_model
from pyro_ssvae.plots import plot_generated, plot_landscape, plot_nearest
from pyro_ssvae.plots.style import save_figure
from pyro_ssvae.presets import DDGM_IMAGES, DDGM_PHOTOS, DDGM_SOURCE, DDGM_TOY, Preset
from pyro_ssvae.training import report

RESULTS = Path(__file__).parents[1] / "docs" / "results"
IMAGE = (1, 28, 28)


@dataclass(frozen=True)
class Row:
    """One row of the page, for one seed."""

    name: str
    seed: int
    data: str
    recipe: Preset
    num_labels: int = 0

    @property
    def path(self) -> Path:
        """Where its result is kept: the name holds a hash of every setting, defaults included."""
        model = build(self, (2,) if self.data in TOY_DATASETS else (3, 64, 64) if self.data == "icons" else IMAGE)
        objective = EnergyObjective(model, num_unlabelled=1, num_labelled=self.num_labels, **self.recipe.objective)
        settings = {
            **asdict(self),
            "model": [str(model), model.energy_net.sigma],
            "objective": objective.config(),
            "training": TrainingConfig(**self.recipe.training).to_dict(),
        }
        return RESULTS / f"ddgm-{self.name}-seed{self.seed}-{digest(settings)}.json"


def rows(seeds: int) -> list[Row]:
    """Return every row, the most wanted first; ``seeds`` of points in the plane, three of images at most."""
    source_of_images = replace(DDGM_SOURCE, training={**DDGM_SOURCE.training, "batch_size": 128})
    some = min(seeds, 3)
    return [
        *(Row(f"{data}-default", seed, data, DDGM_TOY) for data in TOY_DATASETS for seed in range(seeds)),
        *(Row("mnist-default", seed, "mnist", DDGM_IMAGES) for seed in range(some)),
        *(Row(f"{data}-source", seed, data, DDGM_SOURCE) for data in TOY_DATASETS for seed in range(seeds)),
        *(Row("mnist-source", seed, "mnist", source_of_images) for seed in range(some)),
        *(Row("classes", seed, "mnist", DDGM_IMAGES, num_labels=100) for seed in range(some)),
        *(Row("classes-labels-alone", seed, "mnist", DDGM_IMAGES, num_labels=100) for seed in range(some)),
        Row("icons-default", 0, "icons", DDGM_PHOTOS),
    ]


def build(row: Row, event_shape: tuple[int, ...]) -> DDGM:
    """Return the model of a row."""
    options: dict[str, Any] = {**row.recipe.model, "num_classes": 10 if row.num_labels else None}
    if row.name.endswith("-source"):
        options |= source_parts(event_shape)
    return DDGM(event_shape, **options)


def train(icons: str | None, row: Row, data_dir: str | None, keep: str | None, threads: int) -> dict[str, Any]:
    """Train one row and return its result."""
    torch.set_num_threads(threads)
    data, known = load(row, icons, data_dir)
    pyro.set_rng_seed(row.seed)
    model = build(row, data.event_shape)
    if row.name.endswith("-source"):
        start(model, prepare(data.x[:1000], scale=data.scale))
    described = {"row": asdict(row)}
    if row.name.endswith("labels-alone"):
        return described | train_on_labels(model, data, TrainingConfig(**row.recipe.training))
    objective = EnergyObjective.for_data(model, data, **row.recipe.objective)
    out = Path(keep) / f"{row.name}-{row.seed}" if keep else None
    config, started = TrainingConfig(seed=row.seed, **row.recipe.training), time.perf_counter()
    try:
        run = fit(objective, data, config, out=out, resume=out is not None and out.exists())
        described |= {**report(objective, data, run, seed=row.seed), "curves": run.metrics}
    except (TrainingFailedError, NonFiniteLossError) as problem:
        seconds = round(time.perf_counter() - started, 1)
        described |= {"failed": type(problem).__name__, "steps": problem.step, "train_seconds": seconds}
    if not all(bool(part.isfinite().all()) for part in model.parameters()):
        return described
    if row.seed == 0:  # those that the page shows
        draw(model, data, row)
    if row.data in TOY_DATASETS:
        return described | measure_toy_model(model, row.data, seed=row.seed)
    return described | measure_image_model(model, data, known, others=load_others(row, data, data_dir), seed=row.seed)


def load_others(row: Row, data: SemiSupervisedData, data_dir: str | None) -> dict[str, Tensor]:
    """Return images that are no digits, as a model of digits would see them."""
    if row.data != "mnist":
        return {}
    others = SemiSupervisedData.from_name("cifar10", num_labels="all", data_dir=data_dir)
    x = convert_images(prepare(others.x_test, scale=others.scale), data.event_shape)
    return {others.name: prepare(x, binarisation="threshold") if row.name == "mnist-source" else x}


def load(row: Row, icons: str | None, data_dir: str | None) -> tuple[SemiSupervisedData, SemiSupervisedData | None]:
    """Return the data of a row, and the same with all its labels for the judge of digits."""
    if row.data in TOY_DATASETS:
        return make_toy_data(row.data, seed=row.seed), None
    if row.data == "icons":
        assert icons is not None  # else there is no such row
        return SemiSupervisedData.from_folder(icons, image_size=64).without_labels(), None
    known = SemiSupervisedData.from_name("mnist", num_labels="all", data_dir=data_dir)
    if row.name == "mnist-source":  # trained, and judged, on pixels that are on or off
        known = replace(known, **{name: _on_or_off(getattr(known, name)) for name in ("x", "x_validation", "x_test")})
    if row.num_labels:
        return SemiSupervisedData.from_name("mnist", num_labels=row.num_labels, seed=row.seed, data_dir=data_dir), known
    return known.without_labels(), known


def _on_or_off(x: Tensor) -> Tensor:
    return torch.where(x > 127, 255, 0).to(x)


def draw(model: DDGM, data: SemiSupervisedData, row: Row) -> None:
    """Draw what the page shows of a row: points over the energy, or sheets of images."""
    stem = f"ddgm-{row.name}-seed{row.seed}"
    if row.data in TOY_DATASETS:
        save_figure(plot_landscape(model, data.x_test), RESULTS / f"{stem}-landscape.png")
        return
    sheets = {
        "samples": lambda: plot_generated(model),
        "nearest": lambda: plot_nearest(model, prepare(data.x, scale=data.scale)),
    }
    for kind in SHEETS.get(row.name, {}):
        save_figure(sheets[kind](), RESULTS / f"{stem}-{kind}.png")


def train_on_labels(model: DDGM, data: SemiSupervisedData, config: TrainingConfig, steps: int = 3000) -> dict[str, Any]:
    """Train the same network on the labelled rows alone, all of them at every step; the best step by validation."""
    x = prepare(data.x[data.labelled_index], scale=data.scale)
    y = data.y[data.labelled_index]
    optimizer = torch.optim.Adam(model.energy_net.parameters(), lr=config.learning_rate)
    best, chosen, started = 1.0, 1.0, time.perf_counter()
    curves: list[dict[str, float]] = []
    for step in range(steps):
        loss = F.cross_entropy(model.train().classify(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            validation = _error(model, data.x_validation, data.y_validation, data.scale)
            curves.append({"step": step + 1, "validation_error": validation})
            if validation < best:
                best, chosen = validation, _error(model, data.x_test, data.y_test, data.scale)
    seconds = round(time.perf_counter() - started, 1)
    return {"validation_error": best, "test_error": chosen, "train_seconds": seconds, "curves": curves}


def _error(model: DDGM, x: Tensor, y: Tensor, scale: float) -> float:
    return float((model.predict(prepare(x, scale=scale)).cpu() != y).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, metavar="K", help="seeds 0 to K-1 of each row")
    parser.add_argument("--icons", metavar="DIR", help="a folder of pictures for the row of icons")
    add_flags(parser)
    args = parser.parse_args()
    wanted = [row for row in rows(args.seeds) if args.icons or row.data != "icons"]
    make(parser, args, wanted, partial(train, args.icons))
    write_page(RESULTS)


if __name__ == "__main__":
    sys.exit(main())
