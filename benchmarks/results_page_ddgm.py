"""Write docs/results_ddgm.md from the result files of finished runs of DDGM."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from results_page import table

from pyro_ssvae.evaluation.image_metrics import CORRUPTIONS
from pyro_ssvae.plots.style import ACCENT, FAINT, new_figure, save_figure, set_title, style_axes

Result = dict[str, Any]

_WORDS = {"default": "the default recipe", "source": "the source document's recipe"}

SHEETS = {
    "mnist-default": {
        "samples": "Digits as drawn",
        "nearest": "Digits above the training image nearest to each",
    },
    "mnist-source": {"samples": "Digits of the source document's recipe"},
    "icons-default": {
        "nearest": "Generated icons, each above the training icon nearest to it (those: Twitter emoji, CC-BY 4.0)"
    },
}
"""Sheets of images that the page shows, by row."""

_HEADS = {"classes": "with everything else", "classes-labels-alone": "labels alone"}


def write_page(folder: Path) -> None:
    """Write the page next to ``folder`` from the result files there."""
    found: dict[str, list[Result]] = defaultdict(list)
    for path in sorted(folder.glob("ddgm-*.json")):
        result = json.loads(path.read_text())
        found[result["row"]["name"]].append(result)
    sections = [
        _HEAD,
        _part("In the plane", _PLANE, *(_plane(name, found, folder) for name in ("ring", "spiral"))),
        _part(
            *("Digits", _IMAGES, _images(found)),
            *_with(_SHARES, _shares(found)),
            *_with(_AUROC, _areas(found, "mnist")),
            *_sheets("mnist-default", folder),
            *_sheets("mnist-source", folder),
        ),
        _part("Energies of classes", _CLASSES, _classes(found), _class_curves(found, folder)),
        _part(
            *("Icons", _ICONS, _icons(found)),
            *_with(_ICON_AUROC, _areas(found, "icons")),
            *_sheets("icons-default", folder),
        ),
        _part("How long it takes", _TIMES, _times(folder)),
    ]
    (folder.parent / "results_ddgm.md").write_text("\n\n".join(part.strip() for part in sections if part) + "\n")


def _part(title: str, words: str, *parts: str) -> str:
    """Return a section, or nothing where nothing has been measured."""
    if not any(part.startswith(("|", "###")) for part in parts):
        return ""
    return "\n\n".join(part.strip() for part in (f"## {title}", words, *parts) if part)


def _with(words: str, part: str) -> tuple[str, ...]:
    return (words, part) if part else ()


def _figure(name: str, kind: str, words: str, folder: Path) -> str:
    """Return a figure with a caption, or nothing where it was not drawn."""
    file = folder / f"ddgm-{name}-seed0-{kind}.png"
    return f"![{words}](results/{file.name})\n\n*{words} (seed 0).*" if file.exists() else ""


def _sheets(name: str, folder: Path) -> list[str]:
    return [_figure(name, kind, words, folder) for kind, words in SHEETS[name].items()]


def _images(found: dict[str, list[Result]]) -> str:
    names = ("frechet_distance", "least_share", "confidence")
    scales = ((1.0, 2), (100.0, 1), (1.0, 3))
    worst = (max, min, min)
    columns: list[tuple[Any, ...]] = [
        (f"{prefix}{name}", *scale, of)
        for prefix in ("", "refined_")
        for name, scale, of in zip(names, scales, worst, strict=True)
    ]
    columns += [("frechet_floor", 1.0, 2), ("real_confidence", 1.0, 3), ("train_seconds", 1.0, 0)]
    rows = [
        [
            words,
            _seeds(found[f"mnist-{recipe}"]),
            *(_spread(found[f"mnist-{recipe}"], *column) for column in columns),
            _machine(found[f"mnist-{recipe}"]),
        ]
        for recipe, words in _WORDS.items()
        if found.get(f"mnist-{recipe}")
    ]
    header = [
        "", "seeds", "Fréchet distance", "least class, %", "confidence",
        "refined: Fréchet distance", "least class, %", "confidence",
        "test images: Fréchet distance", "confidence", "seconds", "on",
    ]  # fmt: skip
    return table(header, rows) if rows else ""


def _shares(found: dict[str, list[Result]]) -> str:
    """Return the table of how often each class is generated, with a last row of test images."""
    rows, real = [], []
    for recipe, words in _WORDS.items():
        results = [result for result in found.get(f"mnist-{recipe}", []) if "class_shares" in result]
        if results:
            rows.append([words, *_spreads([result["class_shares"] for result in results])])
            real = [result["real_class_shares"] for result in results if "real_class_shares" in result] or real
    if not rows:
        return ""
    if real:
        rows.append(["test images", *(f"{100.0 * share:.1f}" for share in real[0])])
    return table(["class, %", *(str(number) for number in range(len(rows[0]) - 1))], rows)


def _areas(found: dict[str, list[Result]], data: str) -> str:
    of_recipe = {
        words: [result["auroc"] for result in found.get(f"{data}-{recipe}", []) if "auroc" in result]
        for recipe, words in _WORDS.items()
    }
    measured = {kind: None for areas in of_recipe.values() for area in areas for kind in area}
    kinds = [*CORRUPTIONS, *(kind for kind in measured if kind not in CORRUPTIONS)]
    rows = [[words, *(_spread(areas, kind, 1.0, 3) for kind in kinds)] for words, areas in of_recipe.items() if areas]
    return table(["", *kinds], rows) if rows else ""


def _classes(found: dict[str, list[Result]]) -> str:
    rows = [
        [
            words,
            _seeds(found[name]),
            _spread(found[name], "test_error", 100.0, 2, max),
            _spread(found[name], "train_seconds", 1.0, 0),
        ]
        for name, words in _HEADS.items()
        if found.get(name)
    ]
    return table(["100 labels", "seeds", "test error, %", "seconds"], rows) if rows else ""


def _class_curves(found: dict[str, list[Result]], folder: Path) -> str:
    """Draw how validation errors fall, a line for each seed, and return the figure with its caption."""
    curves = {name: [result["curves"] for result in found.get(name, []) if "curves" in result] for name in _HEADS}
    if not all(curves.values()):
        return ""
    figure = new_figure(6.0, 3.2)
    axes = figure.subplots()
    for (name, words), colour in zip(_HEADS.items(), (ACCENT, FAINT), strict=True):
        for number, rows in enumerate(curves[name]):
            errors = [100.0 * row["validation_error"] for row in rows]
            axes.plot([row["step"] for row in rows], errors, color=colour, label="" if number else words)
    axes.set_yscale("log")
    axes.set_yticks([2, 3, 5, 10, 20, 50], ["2", "3", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.set_xlabel("steps")
    axes.set_ylabel("validation error, %")
    style_axes(axes, grid=True)
    axes.legend(frameon=False, fontsize=8)
    set_title(figure, "Energies of classes from 100 labels", "A line for each seed; logarithmic axis.")
    save_figure(figure, folder / "ddgm-classes.png")
    return f"![Validation errors during training](results/ddgm-classes.png)\n\n*{_CURVES}*"


def _icons(found: dict[str, list[Result]]) -> str:
    results = found.get("icons-default", [])
    rows = []
    for kind in ("generated", "test", "validation"):
        distances = [result["nearest_training_image"].get(kind) for result in results]
        if distances and all(distances):
            rows.append([kind, *(_spread(distances, name) for name in ("least", "low", "median"))])
    if not rows:
        return ""
    parts = [table(["distance to the nearest training image", "least", "5 % lie below", "median"], rows)]
    known = [result for result in results if result.get("curves")]
    gaps = [["training icons", *(f"{result['curves'][-1]['energy_gap']:.0f}" for result in known)]]
    gaps.append(["held-out icons", *(f"{result['energy_difference']:.0f}" for result in known)])
    header = ["energy less that of generated icons, nats", *(f"seed {result['row']['seed']}" for result in known)]
    if known:
        minutes = " / ".join(f"{result['train_seconds'] / 60.0:.0f}" for result in known)
        parts += [table(header, gaps), f"Training took {minutes} minutes ({_machine(known)})."]
    return "\n\n".join(parts)


def _times(folder: Path) -> str:
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("time-ddgm-*.json"))]
    rows = [
        [
            f"`{result['command']}`",
            f"{result['seconds'] / 60.0:.1f}",
            f"{result['train_seconds'] / 60.0:.1f}",
            result["device"],
        ]
        for result in results
    ]
    return table(["command", "minutes", "of it training", "on"], rows) if rows else ""


def _plane(data: str, found: dict[str, list[Result]], folder: Path) -> str:
    rows = []
    for recipe, words in _WORDS.items():
        results = found.get(f"{data}-{recipe}", [])
        if not results:
            continue
        rows.append(
            [
                words,
                _seeds(results),
                *(_modes(results) if data == "ring" else []),
                _spread(results, "energy_distance"),
                _apart(results, "energy_distance"),
                _spread(results, "refined_energy_distance"),
                _apart(results, "refined_energy_distance"),
                _floor(results, "floor"),
                _spread(results, "squared_mmd"),
                _floor(results, "mmd_floor"),
                _spread(results, "total_variation", 1.0, 3, max),
                _spread(results, "kl_divergence", 1.0, 3, max),
                _spread(results, "train_seconds", 1.0, 0),
                _machine(results),
            ]
        )
    if not rows:
        return ""
    header = [
        "", "seeds", *(["modes of 10", "high quality, %", "refined, %", "least mode, %"] if data == "ring" else []),
        "energy distance ×1,000", "worst, in s", "refined", "worst, in s", "two real samples ± s", "MMD² ×1,000",
        "two real samples", "total variation", "KL, nats", "seconds", "on",
    ]  # fmt: skip
    parts = [f"### {data.capitalize()}", table(header, rows), _mode_shares(data, found), _normalisers(data, found)]
    for recipe, words in _WORDS.items():
        caption = f"Data, points drawn over the density, and the energy: {words}"
        parts.append(_figure(f"{data}-{recipe}", "landscape", caption, folder))
    return "\n\n".join(part for part in parts if part)


def _modes(results: list[Result]) -> list[str]:
    return [
        " / ".join(str(result["modes"]) for result in results),
        _spread(results, "high_quality", 100.0, 1, min),
        _spread(results, "refined_high_quality", 100.0, 1, min),
        _spread(results, "least_share", 100.0, 1, min),
    ]


def _mode_shares(data: str, found: dict[str, list[Result]]) -> str:
    rows = []
    for recipe, words in _WORDS.items():
        shares = [result["shares"] for result in found.get(f"{data}-{recipe}", []) if "shares" in result]
        if shares:
            rows.append([words, *_spreads(shares)])
    return table(["share of each mode, %", *(str(number) for number in range(len(rows[0]) - 1))], rows) if rows else ""


def _normalisers(data: str, found: dict[str, list[Result]]) -> str:
    rows = []
    for recipe, words in _WORDS.items():
        results = [result for result in found.get(f"{data}-{recipe}", []) if "log_z_ais" in result]
        if results:
            apart = [abs(result["log_z_ais"] - result["log_z_grid"]) for result in results]
            errors = [gap / result["log_z_ais_error"] for gap, result in zip(apart, results, strict=True)]
            columns = (_spread(results, name) for name in ("log_z_grid", "log_z_ais"))
            rows.append([words, *columns, f"{max(apart):.3f}", f"{max(errors):.1f}"])
    header = ["log Z, nats", "by grid", "by annealing", "apart at most", "in standard errors"]
    return table(header, rows) if rows else ""


def _seeds(results: list[Result]) -> str:
    """Return how many seeds there are, and how many of them came to nothing."""
    failed = sum("failed" in result for result in results)
    return f"{len(results)}, {failed or 'none'} collapsed"


def _machine(results: list[Result]) -> str:
    """Return the devices that results were made on."""
    return ", ".join(sorted({result["device"] for result in results if "device" in result})) or "–"


def _apart(results: list[Result], name: str) -> str:
    """Return how far the worst seed lies above two real samples, in standard deviations of their distance."""
    known = [result for result in results if result.get("floor") and result.get(name) is not None]
    return f"{max((result[name] - result['floor'][0]) / result['floor'][1] for result in known):.1f}" if known else "–"


def _floor(results: list[Result], name: str) -> str:
    """Return the mean over results of a floor's mean, ± the root of its mean variance."""
    floors = [result[name] for result in results if result.get(name)]
    if not floors:
        return "–"
    spread = statistics.mean(spread**2 for _, spread in floors) ** 0.5
    return f"{statistics.mean(mean for mean, _ in floors):.2f} ± {spread:.2f}"


def _spreads(shares: list[list[float]]) -> list[str]:
    """Return mean and spread over results of each of several shares, in percent."""
    return [_spread([{"share": share} for share in of_one], "share", 100.0, 1) for of_one in zip(*shares, strict=True)]


def _spread(
    results: list[Result],
    name: str,
    factor: float = 1.0,
    digits: int = 2,
    worst: Callable[[list[float]], float] | None = None,
) -> str:
    """Return mean ± standard deviation over results, and the worst of them in brackets."""
    values = [factor * result[name] for result in results if result.get(name) is not None]
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    last = f" ({worst(values):.{digits}f})" if worst is not None and len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}{last}"


_HEAD = """
# Results of DDGM

Made by one command and read from the result files in `docs/results/`:

```bash
python benchmarks/ddgm.py --jobs 2
```

± is the standard deviation over seeds, and in brackets stands the worst seed. *The source document's recipe* is
trained and measured by the same code, in the source's own sizes: one learning rate for both sides, entropy from the
scales of batch normalisation, no penalty, 15,000 steps. A seed has *collapsed* where training was stopped for it, and
is measured as it was then. The default recipes are `DDGM_TOY`, `DDGM_IMAGES` and, of icons, `DDGM_PHOTOS` of
`pyro_ssvae.presets`, whose docstrings say on which seeds they were chosen. Seconds are of training, on the cores
named; where that is one, another run went on beside it.
"""

_PLANE = """
*High quality* is the share of 5,000 generated points within three standard deviations of a mode (real ones: 98.9 %),
*refined* after twenty Langevin steps, *two real samples* the distance before it between two sets of 5,000 real
points: its mean over ten pairs, ± the standard deviation s of one; *worst, in s* says how many of these the worst
seed lies above. A mode counts, and has a share, by points of high quality alone. *Total variation* and *KL* (of the
truth to the model) are those of $e^{-E}/Z$ on a grid; the spiral has no density, so both sides are smoothed there
with a standard deviation of 0.1. *log Z* is taken on that grid and, to check it, by annealed importance sampling with
500 chains. Where an energy has nearly all its mass in one narrow well, as the source's of the ring has, chains do
not weigh it right, and their standard error does not tell. [The maths](maths) holds every formula.

The source's energies start with units of mean 0 and variance 1 over a first batch, by weight normalisation; from the
usual start of linear layers the same recipe went from mode to mode of the ring, and covered only some.
"""

_IMAGES = """
The *Fréchet distance* is taken between the 64 features of a small classifier, trained in the same run, of 5,000
generated and of 5,000 training images, or of test and of training images. That of one module of sets has a standard
deviation of 0.3 to 0.5 between draws; here it is the mean over all pairs of ten sets of training images with ten of
generated, two of test or one of refined images. *Confidence* is the mean largest class probability of that
classifier; *least class* the share of the class that is generated least. *Refined* images are those of z after twenty
steps along the energy ([the maths](maths)). The source document trains on pixels that are on or off, with noise of
standard deviation 0.3 on what the energy sees; its row is judged on such pixels too, by a judge trained on them.
"""

_SHARES = """
How often each class is generated, and how often it occurs among test images, as that classifier sees it:
"""

_AUROC = """
How well the energy alone tells test images from corrupted ones, as the area under the ROC curve (one half is chance):
uniform noise, permuted pixels, a shift by four pixels, a flip from left to right (digits 0, 1 and 8 left out), blank
images, images blurred with a standard deviation of two pixels, and images of other data: CIFAR-10 in grey, at 28x28.
The default recipe has seen faded, blurred, stitched and scrambled images (tiles of three or seven pixels) in training;
it has seen no noise, no permuted, shifted or flipped ones, and no other data.
"""

_CLASSES = """
Energies of classes, E(x, y), trained from 100 labels with everything else unlabelled, beside the same network trained
on these labels alone (3,000 steps, of which the best one by validation error counts).
"""

_CURVES = (
    "Validation errors during training. Of the labels alone the step of least validation error counts, of the others "
    "the last one."
)

_ICONS = """
686 icons of animals, people and smileys at 64x64; 550 of them train, and those held out stand beside the generated
ones: distances of up to 200 images to the nearest training image, which copies would bring to nothing. Some icons
occur twice, or nearly so: these are the held-out ones at distance 0. The energy of so few rows learns to tell them from
held-out ones, as the second table says, though it sees them moved and mirrored at random (`max_shift`). Icons: Twitter
emoji, © Twitter and contributors, [CC-BY 4.0](https://creativecommons.org/licenses/by/4.0/); made by
`python benchmarks/ddgm.py --icons DIR`.
"""

_ICON_AUROC = """
How well the energy tells held-out icons from corrupted ones, as for digits. It has seen its training icons moved and
mirrored, and notices neither well. Blurred ones it has seen too, yet tells from held-out icons little better than by
chance: energies of so few rows do not carry over to other icons.
"""

_TIMES = """
Whole commands, from start to figures, on all cores and with nothing beside them (`python benchmarks/times_ddgm.py`).
"""
