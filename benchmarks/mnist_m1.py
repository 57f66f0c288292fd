"""Train M1 on MNIST and estimate log p(x) of the test examples; train the presets of examples/m1.py.

    python benchmarks/mnist_m1.py --jobs 2                  # every configuration, two at a time: hours
    python benchmarks/mnist_m1.py --only elbo --only iwae

With --keep DIR, models are kept under DIR/NAME-seed0, where benchmarks/mnist_m1m2.py and benchmarks/mnist_svm.py find
the one that they build on. A model that --only names and that is not under DIR is trained again; its result file stays
as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyro
from runs import Result, Run, main

import pyro_ssvae
from pyro_ssvae import M1, UnsupervisedELBO, report
from pyro_ssvae.presets import M1_BELOW, M1_PRESETS

SAMPLES = 5000  # importance samples per example
BASE = "flow"  # the M1 that M1+M2 and the classifiers on latents build on

_BURDA: dict[str, Any] = {"hidden_dims": [500, 500], "latent_dim": 50, "activation": "softplus"}
_LONG: dict[str, Any] = {**M1_BELOW.training, "max_epochs": None, "max_minutes": 60.0}


def configurations(seeds: int | None = None) -> list[Run]:
    """Return every run; there is one seed, whatever ``seeds``."""
    # A step with five importance samples costs two and a half steps with one, so the second stage is short.
    second = {"max_minutes": 24.0, "max_steps": 33_000, "kl_warmup": 0.0, "learning_rate": 5e-4, "decay_start": 0.3}
    weighted = {"objective": {"num_particles": 5, "importance_weighted": True}, "training": _LONG | second}
    return [
        _configure("elbo", _BURDA, {"max_steps": 200_000}),
        _configure("iwae", _BURDA, {"max_minutes": 36.0, "max_steps": 110_000}, second_stage=weighted),
        _configure("vamp", _BURDA | {"prior": "vamp"}, {"max_steps": 60_000}),
        _configure("flow", _BURDA | {"prior": "flow"}, {"max_steps": 150_000}),
    ] + [
        Run("m1", f"preset-{name}", 0, "mnist", 0, one.model, one.objective, one.training, {"samples": 500})
        for name, one in M1_PRESETS.items()
    ]


def _configure(name: str, model: dict[str, Any], training: dict[str, Any], **options: Any) -> Run:
    return Run("m1", name, 0, "mnist", 0, model, {}, _LONG | training, {"samples": SAMPLES, **options})


def find_configuration(name: str) -> Run:
    return next(run for run in configurations() if run.name == name)


def load_model(keep: str | None, name: str = BASE) -> M1:
    """Return the trained M1 of a configuration from the folder that it was kept in.

    Raises:
        SystemExit: If it was not kept there.
    """
    folder = find_configuration(name).folder(keep)
    if folder is None or not folder.is_dir():
        raise SystemExit(f"No M1 to build on: python benchmarks/mnist_m1.py --only {name} --keep DIR, then --keep DIR.")
    model = pyro_ssvae.load(folder)
    assert isinstance(model, M1)
    return model


def train(run: Run, data_dir: str | None, keep: str | None) -> Result:
    """Train one run, in one or two stages of which the last is kept, and return its result."""
    data = run.load(data_dir, "all").without_labels()
    pyro.set_rng_seed(run.seed)
    model = M1(data.event_shape, **run.model)
    stages = [run, *(replace(run, **run.options[key]) for key in ("second_stage",) if key in run.options)]
    trained = []
    for stage in stages:
        objective = UnsupervisedELBO.for_data(model, data, **stage.objective)
        trained.append(stage.fit(objective, data, keep if stage is stages[-1] else None))
    result = report(objective, data, trained[-1], num_samples=run.options["samples"])
    sums = {name: sum(getattr(one, name) for one in trained) for name in ("steps", "epochs", "train_seconds")}
    curves = [line for one in trained for line in one.metrics]
    return {**result, **{name: round(value, 3) for name, value in sums.items()}, "curves": curves}


def train_again(name: str, data_dir: str | None, keep: str) -> None:
    """Train the model of a configuration that has a result but no run folder, and keep the folder."""
    run = find_configuration(name)
    folder = run.folder(keep)
    if run.path.exists() and folder is not None and not folder.is_dir():
        result = train(replace(run, options={**run.options, "samples": 0}), data_dir, keep)
        print(f"{name}, trained again: bound {result['test/bound']:.2f} nats")


if __name__ == "__main__":
    args = main(__doc__, configurations, train)
    for name in (args.only or ()) if args.keep else ():
        train_again(name, args.data_dir, args.keep)
