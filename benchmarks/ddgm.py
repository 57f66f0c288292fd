"""Train DDGM on points, digits and icons by the package's presets and by the settings of its source, and measure both.

With --keep DIR, models and figures are kept below DIR; an interrupted run continues from there, and one whose result is
missing is measured again without training. The result of a run that fails says how it failed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pyro
import torch
from runs import RESULTS, Run, fit_and_report, get_settings, main
from table_format import Result
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized

from pyro_ssvae import DDGM, EnergyObjective, SemiSupervisedData
from pyro_ssvae.data import make_toy_data
from pyro_ssvae.data.preparation import convert_images, rescale, threshold
from pyro_ssvae.data.toy import TOY_DATASETS
from pyro_ssvae.errors import NonFiniteLossError, TrainingFailedError
from pyro_ssvae.evaluation import measure_image_model, measure_toy_model
from pyro_ssvae.models.diagnostics import classification_error
from pyro_ssvae.networks.energy import MLPFeatures, MLPGenerator, SoftplusExperts
from pyro_ssvae.plots import plot_landscape, plot_nearest, plot_samples
from pyro_ssvae.plots.style import save_figure
from pyro_ssvae.presets import DDGM_IMAGES, DDGM_PHOTOS, DDGM_TOY, Preset


def configurations(seeds: int | None = None) -> list[Run]:
    """Return every run; ``seeds`` (5 by default) for points in the plane, three at most for images."""
    all_seeds = range(5 if seeds is None else seeds)
    few = all_seeds[:3]
    source_images = replace(DDGM_SOURCE, training={**DDGM_SOURCE.training, "batch_size": 128})
    kinds: list[tuple[str, Iterable[int], str, Preset, int]] = [
        *((f"{data}-default", all_seeds, data, DDGM_TOY, 0) for data in TOY_DATASETS),
        ("mnist-default", few, "mnist", DDGM_IMAGES, 0),
        *((f"{data}-source", all_seeds, data, DDGM_SOURCE, 0) for data in TOY_DATASETS),
        ("mnist-source", few, "mnist", source_images, 0),
        ("classes", few, "mnist", DDGM_IMAGES, 100),
        ("classes-labels-alone", few, "mnist", DDGM_IMAGES, 100),
        ("icons-default", [0], "icons", DDGM_PHOTOS, 0),
    ]
    found = []
    for name, some_seeds, data, preset, num_labels in kinds:
        options = {"source_networks": name.endswith("-source"), "labels_only": name.endswith("labels-alone")}
        settings = {**get_settings(preset), "options": options}
        found += [Run("ddgm", name, seed, data, num_labels, **settings) for seed in some_seeds]
    return found


def train(run: Run, data_dir: str | None, keep: str | None) -> Result:
    data, with_labels = load_data(run, data_dir)
    pyro.set_rng_seed(run.seed)
    from_source = run.options["source_networks"]
    networks = source_networks(data.event_shape) if from_source else {}
    model = DDGM(data.event_shape, **run.model, num_classes=10 if run.num_labels else None, **networks)
    if from_source:
        initialise(model, rescale(data.x[:1000], data.scale))
    if run.options["labels_only"]:
        return train_on_labels(model, data, run.training["learning_rate"])
    objective = EnergyObjective.for_data(model, data, **run.objective)
    started = time.perf_counter()
    try:
        result = fit_and_report(run, objective, data, keep, resume=keep is not None)
    except (TrainingFailedError, NonFiniteLossError) as problem:
        seconds = round(time.perf_counter() - started, 1)
        result = {"failed": type(problem).__name__, "steps": problem.step, "train_seconds": seconds}
    if not all(bool(part.isfinite().all()) for part in model.parameters()):
        return result
    if run.seed == 0 and not run.path.exists():  # the page shows figures of this seed
        draw_figures(model, data, run)
    if run.data in TOY_DATASETS:
        return result | measure_toy_model(model, run.data, seed=run.seed)
    others = {}
    if run.data == "mnist":  # images of another data set, in the shape and pixel values of the training images
        cifar = SemiSupervisedData.from_name("cifar10", num_labels="all", data_dir=data_dir)
        x = convert_images(rescale(cifar.x_test, cifar.scale), data.event_shape)
        others = {"cifar10": threshold(x) if from_source else x}
    return result | measure_image_model(model, data, with_labels, others=others, seed=run.seed)


def load_data(run: Run, data_dir: str | None) -> tuple[SemiSupervisedData, SemiSupervisedData | None]:
    """Return the data of a run, and for digits the same data with all labels, for the reference classifier."""
    if run.data in TOY_DATASETS:
        return make_toy_data(run.data, seed=run.seed), None
    if run.data == "icons":
        assert data_dir is not None, "icons-default needs --data-dir with a folder of images"
        return SemiSupervisedData.from_folder(data_dir, image_size=64).without_labels(), None
    known = SemiSupervisedData.from_name("mnist", num_labels="all", data_dir=data_dir)
    if run.options["source_networks"]:  # trained and measured on binary pixels
        parts = {name: getattr(known, name) for name in ("x", "x_validation", "x_test")}
        known = replace(known, **{name: torch.where(x > 127, 255, 0).to(x) for name, x in parts.items()})
    if run.num_labels:
        return SemiSupervisedData.from_name("mnist", num_labels=run.num_labels, seed=run.seed, data_dir=data_dir), known
    return known.without_labels(), known


def draw_figures(model: DDGM, data: SemiSupervisedData, run: Run) -> None:
    """Draw what the page shows of a run: points over the energy, or generated images."""
    if run.data in TOY_DATASETS:
        save_figure(plot_landscape(model, data.x_test), RESULTS / f"{run.stem}-landscape.png")
    if run.name.startswith("mnist"):
        save_figure(plot_samples(model), RESULTS / f"{run.stem}-samples.png")
    if run.name in ("mnist-default", "icons-default"):
        save_figure(plot_nearest(model, rescale(data.x, data.scale)), RESULTS / f"{run.stem}-nearest.png")


def train_on_labels(model: DDGM, data: SemiSupervisedData, learning_rate: float, steps: int = 3000) -> Result:
    """Train the same network on the labelled examples alone, all of them in every step; validation picks the step."""
    x, y = rescale(data.x[data.labelled_index], data.scale), data.y[data.labelled_index]
    optimizer = torch.optim.Adam(model.energy_net.parameters(), lr=learning_rate)
    best, chosen, curves, started = 1.0, 1.0, [], time.perf_counter()
    for step in range(steps):
        loss = F.cross_entropy(model.train().classify(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            error = classification_error(model, data.x_validation, data.y_validation, scale=data.scale)
            curves.append({"step": step + 1, "val/error": error})
            if error < best:
                best = error
                chosen = classification_error(model, data.x_test, data.y_test, scale=data.scale)
    found = {"val/error": best, "test/error": chosen, "curves": curves}
    return {**found, "train_seconds": round(time.perf_counter() - started, 1)}


# Settings, networks and initial weights of the source (musyoku, in Chainer)

DDGM_SOURCE = Preset(
    objective={"entropy": "batch_norm", "generator_rate": 1.0, "generator_steps": 1},
    training={
        **DDGM_IMAGES.training, "max_steps": 15_000, "batch_size": 100, "learning_rate": 2e-4, "decay_start": 1.0,
        "ema_decay": 0.0,
    },
)  # fmt: skip
_STD = 0.05  # of the initial weights


class _InputNoise(nn.Module):
    """Add Gaussian noise to the input in training mode, as the source does for digits."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        return x + self.noise * torch.randn_like(x) if self.training else x


def source_networks(event_shape: Sequence[int]) -> dict[str, Any]:
    """Return the arguments of DDGM for points in the plane or for images."""
    if len(event_shape) == 1:
        return {
            "features": MLPFeatures(event_shape, (128,), 128),
            "experts": weight_norm(SoftplusExperts(128, 4)),
            "generator": MLPGenerator(4, event_shape, (128, 128)),
        }
    return {
        "latent_dim": 10,
        "prior": "uniform",
        "features": nn.Sequential(_InputNoise(0.3), MLPFeatures(event_shape, (1000, 500, 250), 128)),
        "experts": weight_norm(SoftplusExperts(128, 128)),
        "generator": MLPGenerator(10, event_shape, (500, 500), output="sigmoid"),
    }


@torch.no_grad()
def initialise(model: DDGM, x: Tensor) -> None:
    """Set the initial weights of a model with :func:`source_networks`, by a first batch ``(B, *event_shape)``.

    Scale and shift of each weight-normalised unit are set so that it has mean 0 and variance 1 on the batch (Salimans &
    Kingma, Weight Normalization, 2016, https://arxiv.org/abs/1602.07868, section 3).
    """
    for layer in model.generator.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=_STD)
            nn.init.zeros_(layer.bias)
    net, inputs = model.train().energy_net, []
    for layer in net.modules():  # in order: a layer's input depends on the layers before it
        if isinstance(layer, nn.Linear) and is_parametrized(layer):
            weight: Any = layer.parametrizations.weight
            nn.init.normal_(weight.original1, std=_STD)
            weight.original0.fill_(1.0)
            handle = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
            net(x)
            handle.remove()
            units = F.linear(inputs[-1], layer.weight)
            weight.original0.div_(units.std(0).unsqueeze(-1))
            layer.bias.copy_(-units.mean(0) / units.std(0))


if __name__ == "__main__":
    main(__doc__, configurations, train)
