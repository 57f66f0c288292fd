"""Write docs/results_ddgm.md from the result files of finished runs of DDGM."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from results_page import table

from pyro_ssvae.evaluation.images import ALTERATIONS

Result = dict[str, Any]

_WORDS = {"default": "the default recipe", "source": "the source document's recipe"}


def write_page(folder: Path) -> None:
    """Write the page next to ``folder`` from the result files there."""
    found: dict[str, list[Result]] = defaultdict(list)
    for path in sorted(folder.glob("ddgm-*.json")):
        result = json.loads(path.read_text())
        found[result["row"]["name"]].append(result)
    sections = [
        _HEAD,
        _part("In the plane", _PLANE, *(_plane(name, found) for name in ("ring", "spiral"))),
        _part(
            *("Digits", _IMAGES, _images(found), *_with(_SHARES, _shares(found)), *_with(_AUROC, _areas(found))),
            _figure("mnist-default", "samples", found),
            _figure("mnist-default", "refined", found),
        ),
        _part("Energies of classes", _CLASSES, _classes(found)),
        _part("Icons", _ICONS, _icons(found), _figure("icons-default", "nearest", found)),
    ]
    (folder.parent / "results_ddgm.md").write_text("\n\n".join(part.strip() for part in sections if part) + "\n")


def _part(title: str, words: str, *parts: str) -> str:
    """Return a section, or nothing where nothing has been measured."""
    if not any(part.startswith(("|", "###")) for part in parts):
        return ""
    return "\n\n".join(part.strip() for part in (f"## {title}", words, *parts) if part)


def _with(words: str, part: str) -> tuple[str, ...]:
    return (words, part) if part else ()


def _figure(name: str, kind: str, found: dict[str, list[Result]]) -> str:
    return f"![](results/ddgm-{name}-seed0-{kind}.png)" if found.get(name) else ""


def _images(found: dict[str, list[Result]]) -> str:
    names = ("frechet_distance", "least_share", "confidence")
    scales = ((1.0, 1), (100.0, 1), (1.0, 3))
    columns = [
        (f"{prefix}{name}", *scale) for prefix in ("", "refined_") for name, scale in zip(names, scales, strict=True)
    ]
    columns += [("frechet_floor", 1.0, 1), ("real_confidence", 1.0, 3), ("train_seconds", 1.0, 0)]
    rows = [
        [words, *(_spread(found[f"mnist-{recipe}"], *column) for column in columns)]
        for recipe, words in _WORDS.items()
        if found.get(f"mnist-{recipe}")
    ]
    header = [
        "", "Fréchet distance", "least class, %", "confidence",
        "refined: Fréchet distance", "least class, %", "confidence",
        "test images: Fréchet distance", "confidence", "seconds",
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


def _areas(found: dict[str, list[Result]]) -> str:
    of_recipe = {
        words: [result["auroc"] for result in found.get(f"mnist-{recipe}", []) if "auroc" in result]
        for recipe, words in _WORDS.items()
    }
    measured = {kind: None for areas in of_recipe.values() for area in areas for kind in area}
    kinds = [*ALTERATIONS, *(kind for kind in measured if kind not in ALTERATIONS)]
    rows = [[words, *(_spread(areas, kind, 1.0, 3) for kind in kinds)] for words, areas in of_recipe.items() if areas]
    return table(["", *kinds], rows) if rows else ""


def _classes(found: dict[str, list[Result]]) -> str:
    kinds = {"classes": "with everything else", "classes-labels-alone": "labels alone"}
    rows = [
        [words, _spread(found[name], "test_error", 100.0, 2), _spread(found[name], "train_seconds", 1.0, 0)]
        for name, words in kinds.items()
        if found.get(name)
    ]
    return table(["100 labels", "test error, %", "seconds"], rows) if rows else ""


def _icons(found: dict[str, list[Result]]) -> str:
    results = found.get("icons-default", [])
    rows = [
        [kind, *(f"{result['nearest_training_image'][kind]:.2f}" for result in results)]
        for kind in ("generated", "test", "validation")
        if all(kind in result["nearest_training_image"] for result in results)
    ]
    return table(["images", "nearest"], rows) if results else ""


def _plane(data: str, found: dict[str, list[Result]]) -> str:
    rows = []
    for recipe, words in _WORDS.items():
        results = found.get(f"{data}-{recipe}", [])
        if not results:
            continue
        rows.append(
            [
                words,
                *(_modes(results) if data == "ring" else []),
                _spread(results, "energy_distance"),
                _spread(results, "refined_energy_distance"),
                _floor(results, "floor"),
                _spread(results, "squared_mmd"),
                _floor(results, "mmd_floor"),
                _spread(results, "total_variation", 1.0, 3),
                _spread(results, "kl_divergence", 1.0, 3),
                _spread(results, "train_seconds", 1.0, 0),
            ]
        )
    if not rows:
        return ""
    header = [
        "", *(["modes of 10", "high quality, %", "refined, %", "least mode, %"] if data == "ring" else []),
        "energy distance ×1,000", "refined", "two real samples", "MMD² ×1,000", "two real samples", "total variation",
        "KL, nats", "seconds",
    ]  # fmt: skip
    parts = [f"### {data.capitalize()}", table(header, rows), _mode_shares(data, found), _normalisers(data, found)]
    return "\n\n".join(part for part in parts if part)


def _modes(results: list[Result]) -> list[str]:
    return [
        " / ".join(str(result["modes"]) for result in results),
        _spread(results, "high_quality", 100.0, 1),
        _spread(results, "refined_high_quality", 100.0, 1),
        _spread(results, "least_share", 100.0, 1),
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


def _floor(results: list[Result], name: str) -> str:
    """Return the mean over results of a floor's mean, ± its standard deviation in the first."""
    floors = [result[name] for result in results if result.get(name)]
    return f"{statistics.mean(mean for mean, _ in floors):.2f} ± {floors[0][1]:.2f}" if floors else "–"


def _spreads(shares: list[list[float]]) -> list[str]:
    """Return mean and spread over results of each of several shares, in percent."""
    return [_spread([{"share": share} for share in of_one], "share", 100.0, 1) for of_one in zip(*shares, strict=True)]


def _spread(results: list[Result], name: str, factor: float = 1.0, digits: int = 2) -> str:
    values = [factor * result[name] for result in results if result.get(name) is not None]
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


_HEAD = """
# Results of DDGM

Made by one command and read from the result files in `docs/results/`:

```bash
python benchmarks/ddgm.py --jobs 2
```

± is the standard deviation over seeds. *The source document's recipe* is trained and measured by the same code: one
learning rate for both sides, entropy from the scales of batch normalisation, no penalty.
"""

_PLANE = """
*High quality* is the share of 5,000 generated points within three standard deviations of a mode (real ones: 98.9 %),
*refined* after twenty Langevin steps, *two real samples* the distance before it between two sets of 5,000 real points:
its mean over ten pairs, ± the standard deviation of one. A mode counts, and has a share, by points of high quality
alone. *Total variation* and *KL* (of the truth to the model) are those of $e^{-E}/Z$ on a grid; the spiral has no
density, so both sides are smoothed there with a standard deviation of 0.1. *log Z* is taken on that grid and, to check
it, by annealed importance sampling with 500 chains. [The maths](maths) holds every formula.
"""

_IMAGES = """
The *Fréchet distance* is taken between the 64 features of a small classifier, trained in the same run, of 5,000
generated and of 5,000 training images, or of test and of training images. *Confidence* is the mean largest class
probability of that classifier; *least class* the share of the class that is generated least. *Refined* images are those
of z after twenty steps along the energy ([the maths](maths)).
"""

_SHARES = """
How often each class is generated, and how often it occurs among test images, as that classifier sees it:
"""

_AUROC = """
How well the energy alone tells test images from altered ones, as the area under the ROC curve (one half is chance):
uniform noise, permuted pixels, a shift by four pixels, a flip from left to right (digits 0, 1 and 8 left out), blank
images, images blurred with a standard deviation of two pixels, and images of other data where a column names them. The
default recipe has seen faded, blurred and stitched images in training; it has seen no noise, no permuted, shifted or
flipped ones, and no other data.
"""

_CLASSES = """
Energies of classes, E(x, y), trained from 100 labels with everything else unlabelled, beside the same network trained
on these labels alone (3,000 steps; the best one by validation error).
"""

_ICONS = """
Pictures at 64x64. *Nearest* is the median distance of up to 200 images to the nearest training image, which copies
would bring to nothing.
"""
