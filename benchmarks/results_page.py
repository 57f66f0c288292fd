"""Write docs/results.md and its figure from the result files of finished runs."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Result = dict[str, Any]

_CURVES = {
    "pure-small-alpha-seed0": ("pure, small α", "#0072B2"),
    "pure-large-alpha-seed0": ("pure, large α", "#D55E00"),
    "default-100-seed0": ("default", "#009E73"),
}
_COLUMNS = {
    "validation_error": "validation error, %",
    "entropy_y": "H(q(y|x)), nats",
    "mutual_information": "mutual information of x and y, nats",
    "kl_z": "KL of z, nats",
}


def write_page(folder: Path, paths: list[Path]) -> None:
    """Write the page next to ``folder`` from the given result files."""
    results = {path.stem.rsplit("-", 1)[0]: json.loads(path.read_text()) for path in paths}
    sections = [
        _HEAD,
        _default_table(results),
        _worth(results),
        _pure_table(results),
        _equal(results),
        _digits(results),
    ]
    sections += [_pure(results, folder), _FOOT]
    page = "\n\n".join(section.strip() for section in sections if section)
    (folder.parent / "results.md").write_text(page + "\n")


def _group(results: dict[str, Result], name: str) -> list[Result]:
    return [result for key, result in results.items() if key.rsplit("-seed", 1)[0] == name]


def percent(values: list[float]) -> str:
    mean = f"{100 * statistics.mean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _default_table(results: dict[str, Result]) -> str:
    rows = []
    for n in (100, 600, 1000, 3000):
        group = _group(results, f"default-{n}")
        if group:
            rows.append(
                [
                    str(n),
                    ", ".join(str(result["seed"]) for result in group),
                    percent([result["test_error"] for result in group]),
                    percent([result["test_error_last"] for result in group]),
                    f"{statistics.mean(result['test_elbo'] for result in group):.1f}",
                    percent([result["class_control"]["analogies"] for result in group]),
                    str(group[0]["steps"]),
                    "/".join(f"{result['train_seconds']:.0f}" for result in group),
                    str(max(result["peak_memory_mib"] for result in group)),
                    _PUBLISHED[n],
                ]
            )
    if not rows:
        return ""
    one = (_group(results, "default-100") or list(results.values()))[0]
    header = [
        "labels", "label seeds", "test error, %", "at the last step, %", "test bound, nats", "class control, %",
        "steps", "seconds", "peak memory, MiB", "published M2, %",
    ]  # fmt: skip
    return (
        "## MNIST, default recipe\n\n"
        + table(header, rows)
        + f"\n\nAdd-ons to $J^\\alpha$: {', '.join(one['regularisers'])}. α = {one['objective']['alpha']:g}·N. "
        + f"Binarisation: {one['binarisation']}. Likelihood: {one['likelihood']}. Device: {one['device']}. "
        + f"PyTorch {one['versions']['torch'].split('+')[0]}, Pyro {one['versions']['pyro']}."
    )


def _pure_table(results: dict[str, Result]) -> str:
    names = {
        "pure-100": ("100", "`--pure`"),
        "pure-constant-kl-100": ("100", "`--pure`, the KL of z never weighed: J^α from the first step"),
        "pure-3000": ("3000", "`--pure`"),
    }
    rows = [
        [
            labels,
            words,
            percent([result["test_error"] for result in group]),
            percent([result["test_error_last"] for result in group]),
            " / ".join(f"{100 * result['test_error']:.2f}" for result in group),
            f"{statistics.mean(result['test_elbo'] for result in group):.1f}",
            str(group[0]["steps"]),
            "/".join(f"{result['train_seconds']:.0f}" for result in group),
            _PUBLISHED[int(labels)],
        ]
        for name, (labels, words) in names.items()
        if (group := _group(results, name))
    ]
    header = [
        "labels", "run", "test error, %", "at the last step, %", "by split", "test bound, nats", "steps", "seconds",
        "published M2, %",
    ]  # fmt: skip
    return _PURE_ROWS + "\n\n" + table(header, rows) if rows else ""


def _equal(results: dict[str, Result]) -> str:
    groups = {name: _group(results, f"equal-steps-{name}") for name in ("exact", "top-k", "exact-bf16", "top-k-bf16")}
    rows = [
        [
            name,
            percent([result["test_error"] for result in group]),
            " / ".join(f"{100 * result['test_error']:.2f}" for result in group),
            "/".join(f"{result['train_seconds']:.0f}" for result in group),
        ]
        for name, group in groups.items()
        if group
    ]
    if not rows:
        return ""
    steps = groups["exact"][0]["steps"]
    return (
        "## Exact, top-k and bf16 after equal numbers of steps\n\n"
        f"The pure objective at 100 labels, a schedule of {steps} steps:\n\n"
        + table(["path", "test error, %", "by split", "seconds"], rows)
        + ("" if groups["exact-bf16"] else "\n\nThe bf16 rows need a CPU with bf16 arithmetic, which this one lacks.")
    )


def _worth(results: dict[str, Result]) -> str:
    names = {
        "default-100": "default: labels, add-ons, bounds of all rows",
        "add-ons-alone-100": "add-ons alone: the same without any bound",
        "labels-alone-100": "labels alone: cross-entropy of the labelled rows, unaugmented",
    }
    groups = {name: _group(results, name) for name in names}
    if not all(groups.values()):
        return ""
    rows = [
        [
            words,
            percent([result["test_error"] for result in groups[name]]),
            percent([result["test_error_last"] for result in groups[name]]),
            " / ".join(f"{100 * result['test_error']:.2f}" for result in groups[name]),
        ]
        for name, words in names.items()
    ]
    errors = {name: [100 * result["test_error"] for result in group] for name, group in groups.items()}

    def gain(name: str) -> str:
        pairs = [a - b for a, b in zip(errors[name], errors["default-100"], strict=True)]
        spread = f" ± {statistics.stdev(pairs):.2f}" if len(pairs) > 1 else ""
        return f"**{statistics.mean(pairs):.2f}{spread}** points ({', '.join(f'{p:+.2f}' for p in pairs)})"

    return (
        "## What the unlabelled rows and the generative model are worth\n\n"
        "At 100 labels, with the same networks, label splits and number of steps:\n\n"
        + table(["trained on", "test error, %", "at the last step, %", "by split"], rows)
        + "\n\nPaired over the label splits (mean ± standard deviation of the difference):\n\n"
        + f"- the unlabelled rows, labels alone minus default: {gain('labels-alone-100')};\n"
        + f"- the generative model, add-ons alone minus default: {gain('add-ons-alone-100')}.\n\n"
        + "Where the second number is within its spread of zero, the bound does not help to classify: what it buys "
        + "is the generator, the bound on log p(x) and the class prior, at the same error."
    )


def _digits(results: dict[str, Result]) -> str:
    group = _group(results, "digits-100")
    if not group:
        return ""
    accuracy = [1 - result["test_error"] for result in group]
    last = [1 - result["test_error_last"] for result in group]
    spreading = [result["label_spreading"] for result in group]
    rows = [
        ["M2, default", percent(accuracy), " / ".join(f"{100 * a:.1f}" for a in accuracy)],
        ["M2, default, last step", percent(last), " / ".join(f"{100 * a:.1f}" for a in last)],
        ["`LabelSpreading`, best of its kernels", percent(spreading), " / ".join(f"{100 * a:.1f}" for a in spreading)],
    ]
    seconds = max(result["train_seconds"] for result in group)
    return (
        "## digits, 100 labels, offline\n\n"
        "The 8x8 digits that ship with scikit-learn; both methods have the same labels. `LabelSpreading` is given "
        "every training and validation row, and credited with the better of its two kernels on the test rows.\n\n"
        + table(["method", "test accuracy, %", "by split"], rows)
        + f"\n\nTraining took at most {seconds:.0f} s."
    )


def _pure(results: dict[str, Result], folder: Path) -> str:
    if not all(name in results for name in _CURVES):
        return ""
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    for axes, (column, label) in zip(figure.subplots(2, 2).flat, _COLUMNS.items(), strict=True):
        for name, (words, colour) in _CURVES.items():
            points = [(row["step"], row[column]) for row in results[name]["curves"] if column in row]
            factor = 100 if column == "validation_error" else 1
            axes.plot(*zip(*[(s, factor * v) for s, v in points], strict=True), color=colour, label=words)
        axes.set(xlabel="step", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        if column in ("entropy_y", "mutual_information"):
            axes.axhline(2.302585, color="grey", linewidth=0.8, linestyle=":")
            axes.annotate("log 10", (0.98, 2.302585), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    error = figure.axes[0]
    error.set_yscale("log")
    error.set_yticks([3, 5, 10, 20, 40], ["3", "5", "10", "20", "40"])
    error.minorticks_off()
    figure.axes[0].legend(frameon=False)
    figure.suptitle("Two ways in which pure M2 fails at 100 labels, and what cures them")
    figure.savefig(folder.parent / "_static" / "pure-m2.png", dpi=130)
    rows = []
    for name, (words, _) in _CURVES.items():
        result = results[name]
        final = result["curves"][-1]
        rows.append(
            [
                words,
                f"{result['objective']['alpha']:g}",
                f"{result['steps']}",
                f"{100 * final['validation_error']:.1f}",
                f"{final['entropy_y']:.2f}",
                f"{final['mutual_information']:.2f}",
                f"{final['kl_z']:.1f}",
            ]
        )
    header = [
        "run", "α/N", "steps", "validation error, %", "H(q(y\\|x)), nats", "mutual information, nats", "KL of z, nats",
    ]  # fmt: skip
    return _PURE + "\n\n" + table(header, rows) + "\n\n![Curves of two pure runs and the default](_static/pure-m2.png)"


_PUBLISHED = {100: "11.97 ± 1.71", 600: "4.94 ± 0.13", 1000: "3.60 ± 0.56", 3000: "3.92 ± 0.63"}

_HEAD = """
# Results

Every number on this page is made by one command and read from the result files beside it, in `docs/results/`:

```bash
python benchmarks/mnist_m2.py --splits 3 --jobs 2   # two cores, a run on each
```

**Protocol.** MNIST: the first 50,000 rows of the training file train, the last 10,000 validate, the 10,000 test rows
are evaluated once a run. Labels are drawn class-balanced by seed. Schedules are in steps. *Test error* is that of the
evaluation which validation picked, as the papers report it; *at the last step* no validation label was used at all. ±
is the standard deviation over label splits. The *bound* is the mean of −U(x) over test rows (higher is better), y
summed. *Class control* is the share of analogies (the style of a test image, decoded as every class) which the
model's own classifier reads as the class that was asked for; 10 would mean that the decoder ignores y. The recipe was
chosen on validation rows with the label seeds 10 to 15. One exception: an earlier weighting of the KL of z had been
run at label seed 0 (3.1 % test error) before it was given up for what did better, in validation error and in class
control, at seed 10. The published column is Kingma et al. (2014), Table 1, which is J^α on an MLP without add-ons: a
landmark, not the same setting.
"""

_PURE_ROWS = """
## Pure $J^\\alpha$

`python examples/m2.py --pure`: the paper's objective on the paper's networks (MLPs of 500 softplus units, 50 latents,
dynamically binarised pixels), no augmentation and no consistency term. The weight of the KL of z follows a schedule and
is 1 from 60 % of it on, which is when checkpoints begin to compete; one row does without. The recipe was chosen on
validation rows with the label seeds 10 to 12; validation curves of the label seeds 0 and 1 under a longer rise of that
weight had been seen when it was shortened.
"""

_PURE = """
## The two ways in which M2 fails, and what cures them

Two runs of $J^\\alpha$ and nothing else, at a constant learning rate. With a small weight of the cross-entropy the
bound decides: it explains the image by z alone, and $q(y \\mid x)$ stays next to the uniform distribution, at which the class
carries nothing and costs nothing; the error, having fallen for a while, rises again. With a large weight
$q(y \\mid x)$ is decided within a few hundred steps, before the decoder knows what a class looks like; from then on
its mistakes are what the decoder learns. Low entropy with a high error is the mark of the second failure, high
entropy that of the first.

The cure is to keep $q(y \\mid x)$ right while it becomes decided: a convolutional classifier whose labelled input is
augmented makes few mistakes to begin with, and the consistency term spreads labels along small deformations instead
of along pixel distances.
"""

_FOOT = """
## Literature

Numbers of others, for orientation: Pyro's M2 tutorial reports 93.19 ± 0.60 % accuracy at 100 labels (with its
auxiliary loss, an MLP, no add-ons), musyoku's Chainer M2 90.2 %. M1 and M1+M2 stand beside the numbers of their sources
on [a page of their own](results_m1).
"""
