"""Write the tables of the result pages from result files: docs/_generated/NAME.md, which the pages include.

    python benchmarks/result_tables.py              # every table
    python benchmarks/result_tables.py --figures    # and the figures

A configuration without a result is left out of its table.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import mean as take_mean

import numpy as np
from columns import average, count_seeds, each, get_values, last, mean, percent
from scipy.stats import ttest_rel
from table_format import DOCS, Column, Result, Results, build_table, format_table, load_results

from pyro_ssvae.plots.style import new_figure, save_figure, set_title, style_axes

Table = Callable[[Results], str]

# Published numbers. Kingma et al. (2014), Table 1: test errors by number of labels, %.
M2_PAPER = {100: "11.97 ± 1.71", 600: "4.94 ± 0.13", 1000: "3.60 ± 0.56", 3000: "3.92 ± 0.63"}
M1M2_PAPER = {100: "3.33 ± 0.14", 600: "2.59 ± 0.05", 1000: "2.40 ± 0.02", 3000: "2.18 ± 0.04"}
TSVM_PAPER = {100: "11.82 ± 0.25", 600: "5.72 ± 0.05", 1000: "4.24 ± 0.07", 3000: "3.49 ± 0.04"}
BURDA = {"elbo": "86.76 (VAE, k = 1)", "iwae": "85.54 (IWAE, k = 5)"}  # Burda et al. (2015), Table 1

ERROR = {"test error, %": percent("test/error"), "at the last step, %": percent("test/error_last")}
BOUND = {"test bound, nats": average("test/bound")}
MINUTES = {"minutes of training": average("train_seconds", 0, 1 / 60)}
SECONDS = {"seconds": mean("train_seconds", 0)}
PAPER: dict[str, Column] = {"published M2, %": lambda group: M2_PAPER.get(group[0]["num_labels"], "")}
TRAINING = {"steps": average("steps", 0), "seconds of training": each("train_seconds", 0, 1.0)}
RUNS: dict[str, Column] = {"test error by seed, %": each("test/error"), **TRAINING}


def table(first: str, rows: dict[str, str], columns: dict[str, Column]) -> Table:
    return lambda results: build_table(results, first, rows, columns)


# M2

_BY_LABELS = {f"m2-default-{n}": str(n) for n in (20, *M2_PAPER)}
_BY_LABELS |= {f"m2-no-pose-{n}": f"{n}, without pose latents and neighbours" for n in M2_PAPER}
_BY_LABELS |= {f"m2-long-{n}": f"{n}, 8,000 steps, a tenth of the bound" for n in M2_PAPER}
_PURE = {"m2-pure-100": "`--pure`, 100 labels", "m2-pure-constant-kl-100": "without KL annealing, 100 labels"}
_PURE |= {"m2-pure-3000": "`--pure`, 3,000 labels", "m2-pure-pose-100": "`--pure --pose`, 100 labels"}
_PURE |= {"m2-pure-conv-100": "the same without pose latents, 100 labels"}
_POOLED = {"q(y\\|x)": each("test/error"), "Bayes' rule": each("test/bayes_error"), "both": each("test/both_wrong")}
_POOLED |= {"pooled": each("test/pooled_error"), "pooled, best weight": each("test/pooled_error_limit")}
_CONTROL = {"class control, %": percent(lambda one: one.get("test/class_control", {}).get("analogies"))}
_SUMS = {f"m2-equal-steps-{name}": name for name in ("exact", "top-k")}
_DIGITS_ROWS = {"m2-digits-default-100": "discretised logistic, the default", "m2-digits-100": "Bernoulli"}
_DIGITS_COLUMNS: dict[str, Column] = {
    "splits": count_seeds,
    **ERROR,
    "`LabelSpreading`, %": percent(lambda one: 1.0 - one["label_spreading"]),
    "KL of z, nats": mean(lambda one: one["curves"][-1]["val/kl_z"], 1),
    "class control, %": percent(lambda one: one["test/class_control"]["samples"], 1),
    "test bound, nats": mean("test/bound", 1),
}
_ALPHAS = {"m2-pure-small-alpha": "α too small", "m2-pure-large-alpha": "α too large"}
_ALPHAS |= {"m2-no-pose-100": "default, without pose latents and neighbours"}
_DIAGNOSTICS: dict[str, Column] = {
    "α/N": lambda group: f"{group[0]['objective']['alpha']:g}",
    "validation error, %": last("val/error", 1, 100.0),
    "H(q(y\\|x)), nats": last("val/entropy_y", 2),
    "mutual information, nats": last("val/mutual_information", 2),
    "KL of z, nats": last("val/kl_z", 1),
}


def m2_ablation(results: Results) -> str:
    """Return errors of what a model is trained on, and how much they exceed those of the default on the same splits."""
    default = {one["seed"]: one for one in results.get("m2-default-100", [])}

    def exceed(group: list[Result]) -> str:
        pairs = [(one, default[one["seed"]]) for one in group if one["seed"] in default]
        if group[0] in default.values() or len(pairs) < 2:
            return ""
        ours, theirs = ([100.0 * one["test/error"] for one in runs] for runs in zip(*pairs, strict=True))
        test = ttest_rel(ours, theirs)
        low, high = test.confidence_interval()
        return f"{np.mean(ours) - np.mean(theirs):.2f} [{low:.2f}, {high:.2f}], p = {test.pvalue:.2g}"

    rows = {
        "m2-default-100": "labels, the bound and both regularisers (the default)",
        "m2-regularisers-alone-100": "the same without the bound",
        "m2-no-neighbours-100": "the default without neighbours",
        "m2-regularisers-alone-no-neighbours-100": "without neighbours and the bound",
        "m2-no-pose-100": "without neighbours and pose latents",
        "m2-pure-100": "labels and the bound, without regularisers (`--pure`)",
        "m2-pure-pose-100": "labels and the bound, with pose latents (`--pure --pose`)",
        "m2-labels-alone-100": "cross-entropy of the labelled examples alone, without augmentation",
    }
    columns = {"splits": count_seeds, **ERROR, "difference from the first row, points": exceed}
    return build_table(results, "trained on", rows, columns)


# M1 and M1+M2

_M1 = {"m1-elbo": "bound, one sample", "m1-flow": "bound, flow prior", "m1-pose": "bound, flow prior, pose latents"}
_M1 |= {"m1-iwae": "bound, then importance-weighted, k = 5"}
_M1_PRESETS = {f"m1-preset-{name}": f"`{name}`" for name in ("kingma", "nitta", "nnabla", "musyoku")}
_M1M2 = {"pure": "`--pure`", "pure-pose": "pure, pose latents", "default": "default"}
_M1M2 |= {"full-bound": "default with the full bound"}
_M1M2_ROWS = {f"m1m2-{name}-{n}": f"{words}, {n} labels" for name, words in _M1M2.items() for n in M1M2_PAPER}


def _log_px(group: list[Result]) -> str:
    return f"{-group[0]['test/log_likelihood']:.2f} ± {group[0]['test/log_likelihood_error']:.3f}"


_NEGATIVE_BOUND = {"negative bound, nats": average("test/bound", 2, -1.0)}
_ESTIMATING = average("likelihood_seconds", 1, 1 / 60)
_M1_COLUMNS: dict[str, Column] = {
    "−log p(x), nats": _log_px,
    **_NEGATIVE_BOUND,
    "active latents": average("test/active_units", 0),
    "effective samples, median": average("test/effective_samples", 0),
    "steps": average("steps", 0),
    **MINUTES,
    "Burda et al. (2015), −log p(x)": lambda group: BURDA.get(group[0]["configuration"]["name"], "–"),
}
_PRESET_COLUMNS: dict[str, Column] = {
    "binarisation": lambda group: group[0]["binarisation"],
    **_NEGATIVE_BOUND,
    "of it KL": average("test/kl_z", 2),
    "of it −E[log p(x\\|z)]": average(lambda one: -one["test/bound"] - one["test/kl_z"], 2),
    "−log p(x), nats": _log_px,
    **MINUTES,
}
_BAYES: dict[str, Column] = {
    "copies of each example": lambda group: str(group[0]["configuration"]["options"]["copies"]),
    "Bayes' rule: test error, %": percent("test/bayes_error"),
    "validation error, %": percent("val/bayes_error"),
    "q(y\\|x): test error, %": percent("test/error"),
    **MINUTES,
    "minutes of estimating": _ESTIMATING,
}
_M1_TIMES = {
    "time-likelihood": "log p(x) of 10,000 examples by 5,000 samples each",
    "time-stack-pure": "training M1+M2 with 100 labels, `--pure`",
    "time-stack-default": "training M1+M2 with 100 labels, default",
}


def by_labels(name: str, kinds: dict[str, str], numbers: Iterable[int], results: Results) -> list[list[str]]:
    """Return test errors of some kinds of runs in a line for each number of labels."""
    groups = {n: [results.get(name.format(kind, n), []) for kind in kinds] for n in numbers}
    return [[str(n), *map(percent("test/error"), of_n)] for n, of_n in groups.items() if any(of_n)]


def m1m2(results: Results) -> str:
    rows = by_labels("m1m2-{}-{}", _M1M2, M1M2_PAPER, results)
    published = ["published M1+M2, %", "published M1 + TSVM, %"]
    header = ["labels", *(f"{words}, %" for words in _M1M2.values()), *published]
    return format_table(header, [[*row, M1M2_PAPER[int(row[0])], TSVM_PAPER[int(row[0])]] for row in rows])


def grey_images(data: str, kinds: dict[str, str], results: Results) -> str:
    """Return test errors of M2, and of the methods of scikit-learn, whose errors are in one result of each split."""
    rows, names = by_labels(f"{data}-{{}}-{{}}", kinds, (100, 1000), results), ()
    for row in rows:
        splits = [one["test/errors"] for one in results[f"{data}-scikit-learn-{row[0]}"]]
        names = tuple(splits[0])
        row += [percent(name)(splits) for name in names]
    return format_table(["test error, %, by labels", *kinds.values(), *names], rows)


# Photographs

_GREY = {"default": "M2, default", "regularisers-alone": "no bound", "labels-alone": "labels alone"}
_FASHION = _GREY | {"all-changed": "no bound, all images changed"}
_WEIGHTS = {f"cifar-bound-{weight}": weight for weight in ("1", "0.1", "0.01", "0")}
_BY_WEIGHT: dict[str, Column] = {
    "validation error, %": each("val/error", 1),
    "bound, nats": each("val/bound", 0, 1.0),
    "KL of z, nats": each(lambda one: one["val/kl_z"] if one["val/bound"] else None, 1, 1.0),
    "class control, %": each(lambda one: one["val/class_control"] and one["val/class_control"]["samples"], 0),
}


# DDGM


def _floor(group: list[Result]) -> str:
    """Return the mean of the means and the root mean square of the standard deviations of real samples."""
    means, deviations = zip(*get_values(group, "floor"), strict=True)
    return f"{take_mean(means):.2f} ± {take_mean(one**2 for one in deviations) ** 0.5:.2f}"


def _log_z_gap(unit: str, digits: int, group: list[Result]) -> str:
    """Return the largest difference of both estimates, divided by what ``unit`` names."""
    known = [one for one in group if "log_z_ais" in one]
    return f"{max(abs(one['log_z_ais'] - one['log_z_grid']) / one.get(unit, 1.0) for one in known):.{digits}f}"


_RING: dict[str, Column] = {
    "seeds": count_seeds,
    "modes of 10": each("modes", 0, 1.0),
    "high quality, %": percent("high_quality", 1, min),
    "after Langevin steps, %": percent("langevin_high_quality", 1, min),
}
_TOY: dict[str, Column] = {
    "energy distance ×1,000": mean("energy_distance"),
    "after Langevin steps": mean("langevin_energy_distance"),
    "two real samples": _floor,
    "total variation": mean("total_variation", 3, 1.0, max),
    "KL, nats": mean("kl_divergence", 3, 1.0, max),
    **SECONDS,
}
_LOG_Z: dict[str, Column] = {
    "on a grid": mean("log_z_grid"),
    "by annealing": mean("log_z_ais"),
    "largest difference": partial(_log_z_gap, "", 3),
    "in standard errors": partial(_log_z_gap, "log_z_ais_error", 1),
}
_DIGITS: dict[str, Column] = {
    "seeds": count_seeds,
    "Fréchet distance": mean("frechet_distance", 2, 1.0, max),
    "rarest class, %": percent("least_share", 1, min),
    "confidence": mean("confidence", 3, 1.0, min),
    "test images: Fréchet distance": mean("frechet_floor"),
    "their confidence": mean("real_confidence", 3),
    **SECONDS,
}
_CLASS_RUNS = {"ddgm-classes": "100 labels and every other example"}
_CLASS_RUNS |= {"ddgm-classes-labels-alone": "the 100 labels alone"}
_CLASSES: dict[str, Column] = {"seeds": count_seeds, "test error, %": percent("test/error", 2, max), **SECONDS}
_GAPS = {"training icons": last("train/energy_gap", 0), "held-out icons": mean("test/energy_gap", 0)}
_EXAMPLES = {"ring": "ddgm_2d", "spiral": "ddgm_2d", "mnist": "ddgm"}
_EXAMPLES = {f"time-{name}": f"`python examples/{file}.py --data {name}`" for name, file in _EXAMPLES.items()}
_EXAMPLE_TIMES = {"minutes": average("seconds", 1, 1 / 60), "of it training": average("train_seconds", 1, 1 / 60)}
_METHODS = {"time-ours": "this package, `--pure`", "time-tutorial": "stock Pyro, as in its tutorial"}


def _settings(*names: str) -> dict[str, str]:
    """Return the configurations of DDGM on these data sets, and what their rows are called."""
    prefixes = {data: f"{data}, " if len(names) > 1 else "" for data in names}
    kinds = {"default": "preset", "source": "settings of the source"}
    return {f"ddgm-{data}-{kind}": prefixes[data] + words for data in names for kind, words in kinds.items()}


def ddgm_auroc(data: str, results: Results) -> str:
    areas = {name: get_values(results.get(name, []), "auroc") for name in _settings(data)}
    columns = {kind: mean(kind, 3) for found in areas.values() for one in found for kind in one}
    return build_table(areas, "", _settings(data), columns)


def ddgm_icons(results: Results) -> str:
    found = [one["nearest_training_image"] for one in results.get("ddgm-icons-default", [])]
    distances: Results = {kind: get_values(found, kind) for kind in ("generated", "test")}
    columns = {"least": mean("least"), "5 % quantile": mean("low"), "median": mean("median")}
    rows = {"generated": "generated icons", "test": "held-out icons"}
    return build_table(distances, "distance to the nearest training icon", rows, columns)


def time_to_error(results: Results) -> str:
    rows = []
    for name, words in _METHODS.items():
        for one in results.get(name, []):
            reached = next((seconds for seconds, error in one["curve"] if error <= 0.05), math.nan)
            least = 100 * min(error for _, error in one["curve"])
            rows.append(
                [words, str(one["configuration"]["seed"]), f"{reached:.0f}", f"{one['steps']:,}", f"{least:.2f}"]
            )
    return format_table(["", "seed", "seconds to 5 % error", "steps", "least error, %"], rows)


TABLES: dict[str, Table] = {  # by the name of their file
    "m2_default": table("labels", _BY_LABELS, {"label splits": count_seeds, **ERROR, **BOUND, **_CONTROL, **PAPER}),
    "m2_default_runs": table("labels", _BY_LABELS, RUNS),
    "m2_ablation": m2_ablation,
    "m2_pooled": table("error of", {"m2-pooled-100": "seed 0, %"}, _POOLED),
    "m2_pure": table("run", _PURE, {**ERROR, **BOUND, **PAPER}),
    "m2_pure_runs": table("run", _PURE, RUNS),
    "m2_enumeration": table("sum over classes", _SUMS, {"test error, %": percent("test/error"), **RUNS}),
    "m2_digits": table("likelihood", _DIGITS_ROWS, _DIGITS_COLUMNS),
    "m2_failures": table("run", _ALPHAS, _DIAGNOSTICS),
    "m1_likelihood": table("trained by", _M1, _M1_COLUMNS),
    "m1_presets": table("preset", _M1_PRESETS, _PRESET_COLUMNS),
    "m1m2": m1m2,
    "m1m2_runs": table("run", _M1M2_ROWS, {**RUNS, **BOUND}),
    "grey_cifar": partial(grey_images, "cifar-grey", _GREY),
    "fashion": partial(grey_images, "fashion", _FASHION),
    "bound_weight": table("weight of the bound", _WEIGHTS, _BY_WEIGHT),
    "m1_bayes": table("passes", {"m2-bayes-earlier": "11", "m2-bayes": "13"}, _BAYES),
    "m1_times": table("", _M1_TIMES, {"seconds": average("seconds", 0), "test error, %": percent("test/error")}),
    "ddgm_ring": table("", _settings("ring"), {**_RING, **_TOY}),
    "ddgm_spiral": table("", _settings("spiral"), {"seeds": count_seeds, **_TOY}),
    "ddgm_log_z": table("log Z, nats", _settings("ring", "spiral"), _LOG_Z),
    "ddgm_digits": table("", _settings("mnist"), _DIGITS),
    "ddgm_digits_auroc": partial(ddgm_auroc, "mnist"),
    "ddgm_classes": table("trained on", _CLASS_RUNS, _CLASSES),
    "ddgm_icons": ddgm_icons,
    "ddgm_icons_auroc": partial(ddgm_auroc, "icons"),
    "ddgm_icons_energies": table("energy less that of generated icons, nats", {"ddgm-icons-default": "preset"}, _GAPS),
    "ddgm_times": table("command", _EXAMPLES, _EXAMPLE_TIMES),
    "time_to_error": time_to_error,
}


def write_tables(docs: Path = DOCS) -> None:
    """Write every table below ``docs/_generated``, from the files in ``docs/results`` and ``docs/benchmarks``."""
    results = load_results(docs / "results")
    found = {name: make(results) for name, make in TABLES.items()}
    modules = "blog_tables", "options", "scale", "scale_processes", "shared_errors", "step", "tables"
    for module in modules:  # which import this one
        found |= import_module(module).make_tables(docs)
    (docs / "_generated").mkdir(exist_ok=True)
    for name, content in found.items():
        (docs / "_generated" / f"{name}.md").write_text((content or "*Not measured yet.*") + "\n")


def draw_curves(path: Path, title: str, runs: dict[str, str], columns: dict[str, str], ticks: Sequence[int]) -> None:
    """Draw validation metrics during training, a line for each seed; the first of them on a logarithmic axis."""
    results, width = load_results(DOCS / "results"), min(2, len(columns))
    figure = new_figure(5.0 * width, 3.1 * len(columns) / width)
    panes = np.ravel(figure.subplots(len(columns) // width, width))
    for axes, (column, label) in zip(panes, columns.items(), strict=True):
        for colour, (name, words) in zip(_COLOURS, runs.items(), strict=False):
            for seed, result in enumerate(results[name]):
                lines = [line for line in result["curves"] if column in line]
                values = [(100.0 if column == "val/error" else 1.0) * line[column] for line in lines]
                axes.plot([line["step"] for line in lines], values, color=colour, label="" if seed else words)
        axes.set(xlabel="step", ylabel=label)
        style_axes(axes, grid=True)
    first = figure.axes[0]
    first.set_yscale("log")
    first.set_yticks(ticks, map(str, ticks))
    first.minorticks_off()
    first.legend(frameon=False, fontsize=8)
    set_title(figure, title)
    save_figure(figure, path)


_COLOURS = ("#0072B2", "#D55E00", "#009E73")
_METRICS = {
    "val/error": "validation error, %",
    "val/entropy_y": "H(q(y|x)), nats",
    "val/mutual_information": "mutual information of x and y, nats",
    "val/kl_z": "KL of z, nats",
}


if __name__ == "__main__":
    write_tables()
    if "--figures" in sys.argv:
        failures = "M2 at 100 labels with too small and too large a weight of the cross-entropy"
        draw_curves(DOCS / "_static" / "pure-m2.png", failures, _ALPHAS, _METRICS, (2, 3, 5, 10, 20, 40))
        error = {"val/error": _METRICS["val/error"]}
        path = DOCS / "results" / "ddgm-classes.png"
        draw_curves(path, "Energies of classes from 100 labels", _CLASS_RUNS, error, (2, 3, 5, 10, 20, 50))
