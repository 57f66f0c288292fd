"""Write the tables of the result pages from result files: docs/_generated/NAME.md, which the pages include.

    python benchmarks/result_tables.py              # every table
    python benchmarks/result_tables.py --figures    # and the figures

A configuration without a result is left out of its table.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

from table_format import (
    Column,
    Result,
    Results,
    average,
    build_table,
    count_seeds,
    each,
    format_mean,
    format_table,
    get_values,
    last,
    load_results,
    mean,
    percent,
)

# Published numbers. Kingma et al. (2014), Table 1: test errors by number of labels, %.
M2_PAPER = {100: "11.97 ± 1.71", 600: "4.94 ± 0.13", 1000: "3.60 ± 0.56", 3000: "3.92 ± 0.63"}
M1M2_PAPER = {100: "3.33 ± 0.14", 600: "2.59 ± 0.05", 1000: "2.40 ± 0.02", 3000: "2.18 ± 0.04"}
TSVM_PAPER = {100: "11.82 ± 0.25", 600: "5.72 ± 0.05", 1000: "4.24 ± 0.07", 3000: "3.49 ± 0.04"}
BURDA = {"elbo": "86.76 (VAE, k = 1)", "iwae": "85.54 (IWAE, k = 5)"}  # Burda et al. (2015), Table 1
BLOG_SVM = {"100": 62.8, "500": 88.5, "1000": 90.5, "2000": 92.1, "5000": 93.3}  # bjlkeng's M1 + SVM, accuracy, %

ERROR = {"test error, %": percent("test/error"), "at the last step, %": percent("test/error_last")}
BOUND = {"test bound, nats": average("test/bound")}
PUBLISHED_M2: dict[str, Column] = {"published M2, %": lambda group: M2_PAPER[group[0]["num_labels"]]}
RUNS: dict[str, Column] = {
    "test error by seed, %": each("test/error"),
    "at the last step, %": each("test/error_last"),
    "steps": average("steps", 0),
    "seconds of training": each("train_seconds", 0, 1.0),
    "peak memory, MiB": lambda group: f"{max(get_values(group, 'peak_memory_mib')):,}",
}

# M2

_BY_LABELS = {f"m2-default-{n}": str(n) for n in M2_PAPER}
_BY_SPLIT = {"test error, %": ERROR["test error, %"], "by split, %": each("test/error")}
_PURE = {"m2-pure-100": "`--pure`, 100 labels", "m2-pure-constant-kl-100": "without KL annealing, 100 labels"}
_PURE |= {"m2-pure-3000": "`--pure`, 3,000 labels"}


def _class_control(group: list[Result]) -> str:
    return format_mean([one["analogies"] for one in get_values(group, "test/class_control")], 2, 100.0)


_DEFAULT = {"label splits": count_seeds, **ERROR, **BOUND, "class control, %": _class_control, **PUBLISHED_M2}


def m2_ablation(results: Results) -> str:
    default = get_values(results.get("m2-default-100", []), "test/error")

    def exceed(group: list[Result]) -> str:
        errors = get_values(group, "test/error")
        return "" if errors == default else format_mean([a - b for a, b in zip(errors, default, strict=False)], 2, 100)

    rows = {
        "m2-default-100": "labels, the two extra losses, the bound of every example",
        "m2-regularisers-alone-100": "the same without the bound",
        "m2-labels-alone-100": "cross-entropy of the labelled examples alone, without augmentation",
    }
    columns = {**ERROR, **_BY_SPLIT, "more than the first line, points": exceed}
    return build_table(results, "trained on", rows, columns)


def m2_digits(results: Results) -> str:
    group = results.get("m2-digits-100", [])
    methods = {
        "M2": [{"accuracy": 1.0 - one["test/error"]} for one in group],
        "M2, at the last step": [{"accuracy": 1.0 - one["test/error_last"]} for one in group],
        "`LabelSpreading`, the better of its two kernels": [{"accuracy": one["label_spreading"]} for one in group],
    }
    columns = {"test accuracy, %": percent("accuracy"), "by split, %": each("accuracy", 1)}
    return build_table(methods, "method", {name: name for name in methods}, columns)


_ALPHAS = {"m2-pure-small-alpha": "α too small", "m2-pure-large-alpha": "α too large", "m2-default-100": "default"}
_DIAGNOSTICS: dict[str, Column] = {
    "α/N": lambda group: f"{group[0]['objective']['alpha']:g}",
    "validation error, %": last("val/error", 1, 100.0),
    "H(q(y\\|x)), nats": last("val/entropy_y", 2),
    "mutual information, nats": last("val/mutual_information", 2),
    "KL of z, nats": last("val/kl_z", 1),
}


# M1 and M1+M2

_M1 = {
    "m1-elbo": "bound, one sample",
    "m1-flow": "bound, flow prior",
    "m1-vamp": "bound, VampPrior",
    "m1-iwae": "bound, then importance-weighted, k = 5",
}


def _log_px(group: list[Result]) -> str:
    return f"{-group[0]['test/log_likelihood']:.2f} ± {group[0]['test/log_likelihood_error']:.3f}"


def _steps_of_schedule(group: list[Result]) -> str:
    used = group[0]["configuration"]
    stages = [used, *(used["options"][key] for key in ("second_stage",) if key in used["options"])]
    return f"{group[0]['steps']:,} of {sum(stage['training']['max_steps'] for stage in stages):,}"


_NEGATIVE_BOUND = {"negative bound, nats": average("test/bound", 2, -1.0)}
_MINUTES = {"minutes of training": average("train_seconds", 0, 1 / 60)}
_M1_COLUMNS: dict[str, Column] = {
    "−log p(x), nats": _log_px,
    **_NEGATIVE_BOUND,
    "active latents": average("test/active_units", 0),
    **_MINUTES,
    "Burda et al. (2015), −log p(x)": lambda group: BURDA.get(group[0]["configuration"]["name"], "–"),
}
_M1_DETAILS: dict[str, Column] = {
    "epochs": average("epochs", 0),
    "steps": _steps_of_schedule,
    "effective samples, median": average("test/effective_samples", 0),
    "minutes of estimating log p(x)": average("likelihood_seconds", 1, 1 / 60),
}
_PRESETS = ("kingma", "nitta", "nnabla", "musyoku")
_M1_PRESETS: dict[str, Column] = {
    "binarisation": lambda group: group[0]["binarisation"],
    **_NEGATIVE_BOUND,
    "of it KL": average("test/kl_z", 2),
    "of it −E[log p(x\\|z)]": lambda group: f"{-group[0]['test/bound'] - group[0]['test/kl_z']:.2f}",
    "−log p(x), nats": _log_px,
    **_MINUTES,
}
_M1M2 = {"pure": "`--pure`, %", "default": "default, %", "full-bound": "default with the full bound, %"}
_M1M2_RUNS = {
    "test error by split, %": each("test/error"),
    "at the last step, %": percent("test/error_last"),
    **BOUND,
    **{name: RUNS[name] for name in ("steps", "seconds of training")},
}


def m1_svm(results: Results) -> str:
    rows = [
        [number, f"{100 * both['svm']:.1f}", f"{100 * both['logistic']:.1f}", f"{BLOG_SVM[number]:.1f}"]
        for result in results.get("m1-svm", [])
        for number, both in result["svm"].items()
    ]
    return format_table(["labels", "SVM, %", "logistic regression, %", "M1 + SVM of the blog, %"], rows)


def m1m2(results: Results) -> str:
    rows = []
    for n in M1M2_PAPER:
        groups = [results.get(f"m1m2-{name}-{n}", []) for name in _M1M2]
        if any(groups):
            rows.append([str(n), *(percent("test/error")(group) for group in groups), M1M2_PAPER[n], TSVM_PAPER[n]])
    return format_table(["labels", *_M1M2.values(), "published M1+M2, %", "published M1 + TSVM, %"], rows)


def _m1m2_rows(name: str) -> dict[str, str]:
    normal = {"m1m2-pure-normal-100": "100, M1 with a normal prior"} if name == "pure" else {}
    return {f"m1m2-{name}-{n}": str(n) for n in M1M2_PAPER} | normal


_BAYES: dict[str, Column] = {
    "copies of each example": lambda group: str(group[0]["configuration"]["options"]["copies"]),
    "Bayes' rule: test error, %": percent("test/bayes_error"),
    "validation error, %": percent("val/bayes_error"),
    "q(y\\|x): test error, %": percent("test/error"),
    **_MINUTES,
    "minutes of estimating": average("likelihood_seconds", 1, 1 / 60),
}

# DDGM


def _in_deviations(key: str) -> Column:
    """How far the worst seed lies above two real samples, in standard deviations of their distance."""

    def column(group: list[Result]) -> str:
        known = [(one[key] - one["floor"][0]) / one["floor"][1] for one in group if one.get(key) is not None]
        return f"{max(known):.1f}" if known else "–"

    return column


def _floor(key: str) -> Column:
    """The mean of the means and the root mean square of the standard deviations of real samples."""

    def column(group: list[Result]) -> str:
        if not (floors := get_values(group, key)):
            return "–"
        means, deviations = zip(*floors, strict=True)
        return f"{statistics.mean(means):.2f} ± {statistics.mean(one**2 for one in deviations) ** 0.5:.2f}"

    return column


def _find_log_z_gap(group: list[Result], unit: str = "") -> float:
    """Return the largest difference of both estimates, divided by what ``unit`` names."""
    known = [one for one in group if "log_z_ais" in one]
    return max(abs(one["log_z_ais"] - one["log_z_grid"]) / one.get(unit, 1.0) for one in known)


SECONDS = {"seconds": mean("train_seconds", 0)}
_RING: dict[str, Column] = {
    "seeds": count_seeds,
    "modes of 10": each("modes", 0, 1.0),
    "high quality, %": percent("high_quality", 1, min),
    "after Langevin steps, %": percent("langevin_high_quality", 1, min),
}
_TOY: dict[str, Column] = {
    "energy distance ×1,000": mean("energy_distance"),
    "two real samples": _floor("floor"),
    "total variation": mean("total_variation", 3, 1.0, max),
    "KL, nats": mean("kl_divergence", 3, 1.0, max),
    **SECONDS,
}
_TOY_DETAILS: dict[str, Column] = {
    "least mode, %": percent("least_share", 1, min),
    "worst energy distance, in s": _in_deviations("energy_distance"),
    "after Langevin steps: energy distance ×1,000": mean("langevin_energy_distance"),
    "worst, in s": _in_deviations("langevin_energy_distance"),
    "MMD² ×1,000": mean("squared_mmd"),
    "two real samples": _floor("mmd_floor"),
}
_LOG_Z: dict[str, Column] = {
    "on a grid": mean("log_z_grid"),
    "by annealing": mean("log_z_ais"),
    "largest difference": lambda group: f"{_find_log_z_gap(group):.3f}",
    "in standard errors": lambda group: f"{_find_log_z_gap(group, 'log_z_ais_error'):.1f}",
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


def _share(number: int) -> Column:
    return lambda group: format_mean([shares[number] for shares in get_values(group, "shares")], 1, 100.0)


_SHARES = {str(number): _share(number) for number in range(10)}


def _settings(*names: str) -> dict[str, str]:
    """Return the configurations of DDGM on these data sets, and what their rows are called."""
    found = {}
    for data in names:
        prefix = f"{data}, " if len(names) > 1 else ""
        found |= {f"ddgm-{data}-default": f"{prefix}preset", f"ddgm-{data}-source": f"{prefix}settings of the source"}
    return found


def ddgm_digits_classes(results: Results) -> str:
    shares = {name: [{"shares": one["class_shares"]} for one in results.get(name, [])] for name in _settings("mnist")}
    real = results.get("ddgm-mnist-default", [])[:1]
    shares["real"] = [{"shares": one["real_class_shares"]} for one in real]
    rows = {**_settings("mnist"), "real": "test images"}
    return build_table(shares, "share of each class, %", rows, _SHARES)


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


_FILES = {"ring": "ddgm_2d", "spiral": "ddgm_2d", "mnist": "ddgm"}
_EXAMPLES = {f"time-{name}": f"`python examples/{file}.py --data {name}`" for name, file in _FILES.items()}
_M1_TIMES = {
    "time-likelihood": "log p(x) of 10,000 examples by 5,000 samples each",
    "time-stack-pure": "training M1+M2 with 100 labels, `--pure`",
    "time-stack-default": "training M1+M2 with 100 labels, default",
}


def time_to_error(results: Results) -> str:
    rows = []
    for name, words in (("time-ours", "this package, `--pure`"), ("time-tutorial", "stock Pyro, as in its tutorial")):
        for one in results.get(name, []):
            reached = next((seconds for seconds, error in one["curve"] if error <= 0.05), None)
            at, least = min(one["curve"], key=lambda point: point[1])
            cells = ["–" if reached is None else f"{reached:.0f}", f"{one['steps']:,}", f"{100 * least:.2f}"]
            rows.append([words, str(one["configuration"]["seed"]), *cells, f"{at:.0f}"])
    return format_table(["", "seed", "seconds to 5 % error", "steps", "least error, %", "after seconds"], rows)


def _table(first: str, rows: dict[str, str], columns: dict[str, Column]) -> Callable[[Results], str]:
    return lambda results: build_table(results, first, rows, columns)


TABLES: dict[str, Callable[[Results], str]] = {  # by the name of their file
    "m2_default": _table("labels", _BY_LABELS, _DEFAULT),
    "m2_default_runs": _table("labels", _BY_LABELS, RUNS),
    "m2_ablation": m2_ablation,
    "m2_pure": _table("run", _PURE, {**ERROR, **BOUND, **PUBLISHED_M2}),
    "m2_pure_runs": _table("run", _PURE, RUNS),
    "m2_enumeration": _table(
        "sum over classes",
        {f"m2-equal-steps-{name}": name for name in ("exact", "top-k")},
        {**_BY_SPLIT, "seconds of training": RUNS["seconds of training"]},
    ),
    "m2_digits": m2_digits,
    "m2_failures": _table("run", _ALPHAS, _DIAGNOSTICS),
    "m1_likelihood": _table("trained by", _M1, _M1_COLUMNS),
    "m1_likelihood_runs": _table("trained by", _M1, _M1_DETAILS),
    "m1_presets": _table("preset", {f"m1-preset-{name}": f"`{name}`" for name in _PRESETS}, _M1_PRESETS),
    "m1_svm": m1_svm,
    "m1m2": m1m2,
    **{f"m1m2_{name.replace('-', '_')}_runs": _table("labels", _m1m2_rows(name), _M1M2_RUNS) for name in _M1M2},
    "m1_bayes": _table("passes", {"m2-bayes-earlier": "11", "m2-bayes": "13"}, _BAYES),
    "ddgm_ring": _table("", _settings("ring"), {**_RING, **_TOY}),
    "ddgm_spiral": _table("", _settings("spiral"), {"seeds": count_seeds, **_TOY}),
    "ddgm_toy_details": _table("", _settings("ring", "spiral"), _TOY_DETAILS),
    "ddgm_ring_modes": _table("share of each mode, %", _settings("ring"), _SHARES),
    "ddgm_log_z": _table("log Z, nats", _settings("ring", "spiral"), _LOG_Z),
    "ddgm_digits": _table("", _settings("mnist"), _DIGITS),
    "ddgm_digits_classes": ddgm_digits_classes,
    "ddgm_digits_auroc": partial(ddgm_auroc, "mnist"),
    "ddgm_classes": _table("trained on", _CLASS_RUNS, _CLASSES),
    "ddgm_icons": ddgm_icons,
    "time_to_error": time_to_error,
    "ddgm_times": _table(
        "command",
        _EXAMPLES,
        {"minutes": average("seconds", 1, 1 / 60), "of it training": average("train_seconds", 1, 1 / 60)},
    ),
    "m1_times": _table("", _M1_TIMES, {"seconds": average("seconds", 0), "test error, %": percent("test/error")}),
    "ddgm_icons_energies": _table(
        "energy less that of generated icons, nats",
        {"ddgm-icons-default": "preset"},
        {"training icons": last("train/energy_gap", 0), "held-out icons": mean("test/energy_gap", 0)},
    ),
    "ddgm_icons_auroc": partial(ddgm_auroc, "icons"),
}


def write_tables(docs: Path) -> None:
    """Write every table below ``docs/_generated``, from the files in ``docs/results`` and ``docs/benchmarks``."""
    import blog_tables
    from faults import make_fault_table
    from grey_cifar import make_grey_tables
    from step_tables import make_step_tables

    results, measured = load_results(docs / "results"), docs / "benchmarks"
    found = {name: table(results) for name, table in TABLES.items()} | make_grey_tables(results)
    found |= make_step_tables(measured) | make_fault_table(measured)
    for name in ("tables", "missing", "unequal", "cells"):
        found |= importlib.import_module(name).make_tables(measured / f"{name}.json")
    found |= blog_tables.make_tables(docs / "results" / "blog_tables.json")
    (docs / "_generated").mkdir(exist_ok=True)
    for name, content in found.items():
        (docs / "_generated" / f"{name}.md").write_text((content or "*Not measured yet.*") + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", action="store_true", help="draw the figures too")
    args = parser.parse_args()
    docs = Path(__file__).parents[1] / "docs"
    write_tables(docs)
    if args.figures:
        from figures import draw_figures

        draw_figures(docs)


if __name__ == "__main__":
    main()
