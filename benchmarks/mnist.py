"""Train M2, M1 and M1+M2 on MNIST by the published protocols, and M2 on digits.

The pages of results name the commands. The pooled posterior, M1+M2 and the SVM read the model that they build on from
the folder of --keep: ``--only m1-flow --keep models`` trains it again if it is not there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import torch
from runs import Run, fit_and_report, get_settings, main
from sklearn.model_selection import GridSearchCV
from sklearn.semi_supervised import LabelSpreading
from sklearn.svm import SVC
from table_format import DOCS, Result
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_ssvae import M1, M1M2, M2, SemiSupervisedData, SemiSupervisedELBO, UnsupervisedELBO, load, report
from pyro_ssvae.data.labels import draw_label_split
from pyro_ssvae.evaluation import active_units, log_likelihood
from pyro_ssvae.models import Model
from pyro_ssvae.models.base import seeded
from pyro_ssvae.networks import MLP
from pyro_ssvae.networks.images import POSE_DIM
from pyro_ssvae.networks.variational import ACTIVATIONS
from pyro_ssvae.objectives import AffineAugmentation
from pyro_ssvae.plots.style import new_image_grid, save_figure
from pyro_ssvae.presets import M1_BELOW, M1_PRESETS, PURE, PURE_POSE, STACK, STACK_PURE

SAMPLES = 5000  # importance samples of M1 per example
BASE, POSE = "flow", "pose"  # M1 that M1+M2 builds on; classifiers on latents use the first


def configurations(seeds: int | None = None) -> list[Run]:
    """Return every run; ``seeds`` label splits (3 by default) where a configuration has several."""
    splits = range(3 if seeds is None else seeds)
    return [*_configure_m2(splits), *_configure_bayes(), *_configure_m1(), *_configure_m1m2(splits)]


def train(run: Run, data_dir: str | None, keep: str | None) -> Result:
    """Make one run by the function of its family."""
    if run.name == "svm":
        return {"svm": classify_latents(load_m1(keep), run.load(data_dir), run.seed)}
    if run.name == "pooled-100":
        return pool_posteriors(run, data_dir, keep)
    if run.name.startswith("bayes"):
        return train_for_bayes(run, data_dir, keep)
    if run.family == "m2":
        return train_m2(run, run.load(data_dir), keep)
    return train_m1(run, data_dir, keep) if run.family == "m1" else train_m1m2(run, data_dir, keep)


# M2


def _configure_m2(splits: Sequence[int]) -> list[Run]:
    alone: dict[str, Any] = {"options": {"pure": True}}
    pure, pose = ({**get_settings(preset), **alone} for preset in (PURE, PURE_POSE))
    constant_kl = {"kl_warmup": 0.0, "kl_peak": 1.0}
    default: dict[str, Any] = {"model": {"pose": True}}  # as for_data chooses for MNIST
    without: dict[str, Any] = {"options": {"neighbours": False}}  # in pseudo-labels
    longer: dict[str, Any] = default | {"objective": {"bound_weight": 0.1}, "training": {"max_steps": 8000}}
    kinds: dict[str, dict[str, Any]] = {"default": default, "no-pose": without, "long": longer}
    found = [Run("m2", f"{name}-{n}", num_labels=n, **kinds[name]) for name in kinds for n in (600, 1000, 3000)]
    found += [Run("m2", "pure-3000", num_labels=3000, **pure)]
    found += [Run("m2", "pure-constant-kl-100", **pure | {"training": PURE.training | constant_kl})]
    # J^alpha alone on MLPs, with an alpha that is too small or too large.
    plain = {**constant_kl, "binarisation": "dynamic", "decay_start": 1.0, "max_steps": 3000}
    for name, alpha, rate, model in (
        ("small", 0.1, 1e-3, {"classifier": "mlp", "activation": "softplus"}),
        ("large", 100.0, 2e-3, {"classifier": "mlp", "latent_dim": 10}),
    ):
        training = {**plain, "learning_rate": rate}
        found += [Run("m2", f"pure-{name}-alpha", model=model, objective={"alpha": alpha}, training=training, **alone)]
    no_bound: dict[str, Any] = {"objective": {"bound_weight": 0.0}}
    labels_only: dict[str, Any] = {"training": {"max_steps": 3000}, "options": {"pure": True, "labels_only": True}}
    steps = PURE.training | {"max_epochs": None, "max_steps": 20_000}
    kinds = {
        "default-20": {"num_labels": 20, **default},
        "default-100": default,
        "long-100": longer,
        "no-neighbours-100": default | without,
        "no-pose-100": without,
        "regularisers-alone-100": no_bound,
        "regularisers-alone-no-neighbours-100": no_bound | without,
        "labels-alone-100": no_bound | labels_only,
        "digits-default-100": {"data": "digits", "options": {"for_data": True}},
        "digits-100": {"data": "digits"},  # with a Bernoulli likelihood
        "pure-100": pure,
        "pure-pose-100": pose,
        "pure-conv-100": pose | {"model": PURE.model | {"classifier": "conv"}},  # the same without pose latents
    }
    for sums in ("exact", "top-k"):
        kinds[f"equal-steps-{sums}"] = pure | {"objective": PURE.objective | {"enumeration": sums}, "training": steps}
    found += [Run("m2", name, seed, **kind) for name, kind in kinds.items() for seed in splits]
    return [*found, Run("m2", "pooled-100", **default, options={"samples": 50})]


def train_m2(run: Run, data: SemiSupervisedData, keep: str | None) -> Result:
    labels_only = run.options.get("labels_only", False)
    if labels_only:
        data = replace(data, x=data.x[data.labelled_index], y=data.y[data.labelled_index])
    pyro.set_rng_seed(run.seed)
    if run.options.get("for_data"):
        model = M2.for_data(data, **run.model)
    else:
        model = M2(data.event_shape, data.num_classes, **run.model)
    pure = run.options.get("pure", labels_only)
    objective = SemiSupervisedELBO.for_data(model, data, pure=pure, **run.objective)
    leave_out_neighbours(run, objective)
    if "probability" in run.options:  # of an image to be augmented
        objective.augmentation.probability = objective.consistency.strong.probability = run.options["probability"]
    result = fit_and_report(run, objective, data, keep)
    if (run.name, run.seed) == ("pure-pose-100", 0):
        draw_poses(model, data.x_test[:400] / data.scale)
    return {**result, "label_spreading": measure_label_spreading(data)} if run.data == "digits" else result


def leave_out_neighbours(run: Run, objective: SemiSupervisedELBO) -> None:
    """Let pseudo-labels be those of q(y|x) alone, if the run says so."""
    if objective.consistency is not None and not run.options.get("neighbours", True):
        objective.consistency.neighbours = None


def pool_posteriors(run: Run, data_dir: str | None, keep: str | None) -> Result:
    """Return the test errors of q(y|x), of Bayes' rule p(y|x) and of q(y|x) p(y|x)^w of the M2 that was kept.

    The weight w is the best one on 100 validation examples and, as a limit, on the test examples themselves.
    """
    data, started = run.load(data_dir), time.perf_counter()
    model: Any = load_model(replace(run, name="default-100"), keep)
    weights = torch.tensor([0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0]).double()
    wrong, pooled = {}, {}
    for name, x, y in (("val", data.x_validation[:100], data.y_validation[:100]), ("test", data.x_test, data.y_test)):
        drawn = log_likelihood(model, x, num_samples=run.options["samples"], scale=data.scale, seed=run.seed)
        by_rule, by_network = drawn.class_posterior().double(), model.predict_proba(x).double()
        wrong[name] = [by_network.argmax(-1) != y, by_rule.argmax(-1) != y]
        logits = by_network.log() + weights[:, None, None] * by_rule.log().clamp_min(-1e3)  # (W, N, K)
        pooled[name] = (logits.argmax(-1) != y).double().mean(-1)
    error, bayes = wrong["test"]
    return {
        "test/error": float(error.double().mean()),
        "test/bayes_error": float(bayes.double().mean()),
        "test/both_wrong": float((error & bayes).double().mean()),
        "test/pooled_error": float(pooled["test"][pooled["val"].argmin()]),  # the smallest weight of equally good ones
        "test/pooled_error_limit": float(pooled["test"].min()),
        "likelihood_seconds": round(time.perf_counter() - started, 1),
    }


def draw_poses(model: M2, x: Tensor) -> None:
    """Draw what the pose latents do to images of a 2, a 4 and a 7, whose own pose is nearest to 0."""
    y = model.predict(x)
    with torch.no_grad():
        z = model.encode(x, y).mean  # (B, L)
        chosen = [int(z[:, :POSE_DIM].norm(dim=1).masked_fill(y != k, math.inf).argmin()) for k in (2, 4, 7)]
        values, rows = (-2.0, -1.0, 0.0, 1.0, 2.0), []
        for place in range(POSE_DIM):
            changed = z[chosen][:, None].repeat(1, len(values), 1)  # (3, 5, L)
            changed[..., :POSE_DIM] = 0.0
            changed[..., place] = torch.tensor(values)
            rows.append(model.decode(y[chosen][:, None].expand(3, 5), changed).mean.flatten(0, 1)[:, 0])
    names = ("angle", "zoom, horizontal", "zoom, vertical", "slant", "shift, horizontal", "shift, vertical")
    title, note = "The six latents of the pose", "means of p(x|y,z), one pose latent at the value above, the others 0"
    columns = [f"{value:g}" for value in values] * 3
    tiles = torch.stack(rows)[..., None].double().numpy()
    figure = new_image_grid(tiles, title, note, row_names=names, column_names=columns)
    save_figure(figure, DOCS / "_static" / "pose.png")


def measure_label_spreading(data: Any) -> float:
    """Return the test accuracy of scikit-learn's LabelSpreading on the same labels: the better of its two kernels."""
    x = torch.cat([data.x, data.x_validation]).flatten(1).numpy() / data.scale
    y = np.concatenate([data.y.numpy(), np.full(len(data.x_validation), -1)])
    x_test, kernels = data.x_test.flatten(1).numpy() / data.scale, [{"n_neighbors": 7}, {"gamma": 4.0}]
    methods = [LabelSpreading("knn" if "n_neighbors" in one else "rbf", max_iter=200, **one) for one in kernels]
    return max(float(method.fit(x, y).score(x_test, data.y_test.numpy())) for method in methods)


# M2 with every label, which classifies test examples by Bayes' rule, p(y|x) ∝ p(y) p(x|y), and by q(y|x)


class ClassDecoder(nn.Module):
    """A multilayer perceptron of latents whose first layer, :math:`W_y z + b_y`, has its own weights for each class."""

    def __init__(self, inputs: int, num_classes: int, outputs: int, hidden_dims: list[int], activation: str) -> None:
        super().__init__()
        first, *rest = hidden_dims
        bound = 1.0 / math.sqrt(inputs)  # of nn.Linear, for each class
        self.weight = nn.Parameter(torch.empty(first, num_classes * inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_classes, first).uniform_(-bound, bound))
        self.rest = nn.Sequential(ACTIVATIONS[activation](), MLP((first,), outputs, rest, activation=activation))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Map ``z`` ``(*batch, L)`` and integer ``y`` ``(*batch')`` to ``(*broadcast, outputs)``."""
        classes = torch.arange(len(self.bias), device=y.device)
        chosen = (y.unsqueeze(-1) == classes).to(z)  # F.one_hot would synchronise host and device
        by_class = (chosen.unsqueeze(-1) * z.unsqueeze(-2)).flatten(-2)  # z in the columns of its class, else zero
        return self.rest(F.linear(by_class, self.weight) + F.embedding(y, self.bias))


def _configure_bayes() -> list[Run]:
    """Return both runs: the published one, and a shorter one with fewer copies of each example that came before it."""
    options = {"samples": 500, "validation_samples": 50, "num_validation": 2500, "strength": 0.4}
    training = PURE.training | {"labelled_batch_size": 100, "learning_rate": 2e-3, "binarisation": "none"}
    training |= {"kl_warmup": 0.0, "kl_peak": 1.0}
    settings = {"num_labels": "all", "model": PURE.model | {"hidden_dims": [500, 500]}}
    long = settings | {"options": {**options, "copies": 9}, "training": {**training, "max_epochs": 13}}
    short = settings | {"options": {**options, "copies": 4}, "training": {**training, "max_epochs": 11}}
    return [Run("m2", "bayes", **long), Run("m2", "bayes-earlier", **short)]


def add_copies(data: SemiSupervisedData, copies: int, strength: float, seed: int) -> SemiSupervisedData:
    """Return the data with augmented copies of each training example, which carry its label."""
    augment, found = AffineAugmentation(strength=strength), [data.x]
    with seeded(seed):
        for _ in range(copies):
            parts = [augment(part / data.scale).clamp(0.0, 1.0) * data.scale for part in data.x.split(5000)]
            found.append(torch.cat([part.round().to(data.x.dtype) for part in parts]))
    return replace(data, x=torch.cat(found), y=data.y.repeat(copies + 1), split=None)


def train_for_bayes(run: Run, data_dir: str | None, keep: str | None) -> Result:
    options = run.options
    data = add_copies(run.load(data_dir), options["copies"], options["strength"], run.seed)
    pyro.set_rng_seed(run.seed)
    sizes, activation = run.model["hidden_dims"][::-1], run.model["activation"]
    decoder = ClassDecoder(50, data.num_classes, math.prod(data.event_shape), sizes, activation)
    model = M2(data.event_shape, data.num_classes, decoder=decoder, **run.model)
    result = fit_and_report(run, SemiSupervisedELBO.for_data(model, data, pure=True), data, keep)
    drawn: dict[str, Any] = {"scale": data.scale, "binarisation": run.training["binarisation"], "seed": run.seed}
    x, y = (part[: options["num_validation"]] for part in (data.x_validation, data.y_validation))
    on_validation = log_likelihood(model, x, num_samples=options["validation_samples"], **drawn)
    started = time.perf_counter()
    on_test = log_likelihood(model, data.x_test, num_samples=options["samples"], **drawn)
    seconds = round(time.perf_counter() - started, 1)
    for name, found, known in (("test", on_test, data.y_test), ("val", on_validation, y)):
        result[f"{name}/bayes_error"] = float((found.class_posterior().argmax(-1) != known).double().mean())
    result |= {"test/log_likelihood": on_test.mean, "test/log_likelihood_error": on_test.mean_error}
    return {**result, "test/log_likelihood_samples": options["samples"], "likelihood_seconds": seconds}


# M1


def _configure_m1() -> list[Run]:
    """Return the runs of M1 and of classifiers on its latents; there is one seed."""
    long: dict[str, Any] = {**M1_BELOW.training, "max_epochs": None, "max_minutes": 60.0}
    # A step with five importance samples costs two and a half steps with one, so the second stage is short.
    second = {"max_minutes": 24.0, "max_steps": 33_000, "kl_warmup": 0.0, "learning_rate": 5e-4, "decay_start": 0.3}
    weighted = {"objective": {"num_particles": 5, "importance_weighted": True}, "training": long | second}
    found = []
    for name, prior, training, options in (
        ("elbo", {}, {"max_steps": 200_000}, {}),
        ("iwae", {}, {"max_minutes": 36.0, "max_steps": 110_000}, {"second_stage": weighted}),
        (POSE, {"prior": "flow", "pose": True}, {"max_steps": 60_000, "max_minutes": None}, {"samples": 500}),
        (BASE, {"prior": "flow"}, {"max_steps": 150_000}, {}),
    ):
        model = {"hidden_dims": [500, 500], "latent_dim": 50, "activation": "softplus", **prior}
        settings = {"model": model, "training": long | training, "options": {"samples": SAMPLES, **options}}
        found.append(Run("m1", name, num_labels=0, **settings))
    found.append(Run("m1", "svm", num_labels="all", options={"m1": BASE, "m1_result": found[-1].path.stem}))
    for name, preset in M1_PRESETS.items():
        found.append(Run("m1", f"preset-{name}", num_labels=0, **get_settings(preset), options={"samples": 500}))
    return found


def train_m1(run: Run, data_dir: str | None, keep: str | None) -> Result:
    """Train M1 in one or two stages, of which the last is kept."""
    data = run.load(data_dir, "all").without_labels()
    pyro.set_rng_seed(run.seed)
    model = M1(data.event_shape, **run.model)
    stages, trained = [run], []
    if "second_stage" in run.options:
        stages.append(replace(run, **run.options["second_stage"]))
    for stage in stages:
        objective = UnsupervisedELBO.for_data(model, data, **stage.objective)
        trained.append(stage.fit(objective, data, keep if stage is stages[-1] else None))
    result = report(objective, data, trained[-1], num_samples=run.options["samples"])
    sums = {name: sum(getattr(one, name) for one in trained) for name in ("steps", "epochs", "train_seconds")}
    curves = [line for one in trained for line in one.metrics]
    return {**result, **{name: round(value, 3) for name, value in sums.items()}, "curves": curves}


def load_model(run: Run, keep: str | None) -> Model:
    """Return the model of a run from the folder that it was kept in; ``SystemExit`` if there is none."""
    folder, name = run.folder(keep), f"{run.family}-{run.name}"
    if folder is None or not folder.is_dir():
        raise SystemExit(f"First make the model: python benchmarks/mnist.py --only {name} --keep DIR; then --keep DIR.")
    return load(folder)


def load_m1(keep: str | None) -> Any:
    return load_model(Run("m1", BASE), keep)


def classify_latents(model: M1, data: SemiSupervisedData, seed: int) -> dict[str, dict[str, float]]:
    """Return test accuracies of an SVM on the latents, by number of labels.

    Latents are not standardised, because that would give latents that carry nothing the same weight as the others.
    Kernel widths are relative to the total variance of the latents, which a learned prior is free to choose.
    """
    z_test = model.transform(data.x_test / data.scale).numpy()
    accuracies = {}
    for number in (100, 500, 1000, 2000, 5000):
        chosen = torch.as_tensor(draw_label_split(data.y.numpy(), number, data.num_classes, seed=seed))
        z, y = model.transform(data.x[chosen] / data.scale).numpy(), data.y[chosen].numpy()
        widths = [share / float(z.var(0).sum()) for share in (0.3, 1.0, 3.0, 10.0)]
        svm = GridSearchCV(SVC(), {"C": [1.0, 10.0, 100.0], "gamma": widths}, cv=5).fit(z, y)
        accuracies[str(number)] = {"svm": float(svm.score(z_test, data.y_test.numpy()))}
    return accuracies


# M1+M2


def _configure_m1m2(splits: Sequence[int]) -> list[Run]:
    """Return the runs; the settings of the M1 that they build on enter through the name of that M1's result file."""
    bases = {run.name: run.path.stem for run in _configure_m1()}
    full_bound = {key: value for key, value in STACK.objective.items() if key != "bound_weight"}
    presets = {"pure": STACK_PURE, "default": STACK, "full-bound": replace(STACK, objective=full_bound)}
    found = []
    for name, preset in presets.items():
        options = {"pure": name == "pure", "m1": BASE, "m1_result": bases[BASE]}
        if name != "pure":
            options["neighbours"] = False
        for n, seed in [*((100, seed) for seed in splits), (600, 0), (1000, 0), (3000, 0)]:
            found.append(Run("m1m2", f"{name}-{n}", seed, num_labels=n, **get_settings(preset), options=options))
    pose: dict[str, Any] = {
        "model": STACK_PURE.model | {"classify_from": "x"},
        "objective": STACK_PURE.objective | {"alpha": 10.0},
        "training": STACK_PURE.training | {"max_steps": 12_000},
        "options": {"pure": True, "m1": POSE, "m1_result": bases[POSE]},
    }
    return [*found, *(Run("m1m2", "pure-pose-100", seed, **pose) for seed in splits)]


def train_m1m2(run: Run, data_dir: str | None, keep: str | None) -> Result:
    m1: Any = load_model(Run("m1", run.options["m1"]), keep)
    data = run.load(data_dir)
    active = active_units(m1, data.x, scale=data.scale)
    pyro.set_rng_seed(run.seed)
    model = M1M2.from_m1(m1, data.num_classes, active=active, **run.model)
    objective = SemiSupervisedELBO.for_data(model, data, pure=run.options["pure"], **run.objective)
    leave_out_neighbours(run, objective)
    return {**fit_and_report(run, objective, data, keep), "m1_active_units": int(active.sum())}


if __name__ == "__main__":
    main(__doc__, configurations, train)
