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
        _part("Digits", _IMAGES, _images(found), _AUROC, _areas(found), _figure("mnist-default", "samples", found)),
        _part("Energies of classes", _CLASSES, _classes(found)),
        _part("Icons", _ICONS, _icons(found), _figure("icons-default", "nearest", found)),
    ]
    (folder.parent / "results_ddgm.md").write_text("\n\n".join(part.strip() for part in sections if part) + "\n")


def _part(title: str, words: str, *parts: str) -> str:
    """Return a section, or nothing where nothing has been measured."""
    if not any(part.startswith(("|", "###")) for part in parts):
        return ""
    return "\n\n".join(part.strip() for part in (f"## {title}", words, *parts) if part)


def _figure(name: str, kind: str, found: dict[str, list[Result]]) -> str:
    return f"![](results/ddgm-{name}-seed0-{kind}.png)" if found.get(name) else ""


def _images(found: dict[str, list[Result]]) -> str:
    names = ("frechet_distance", "frechet_floor", "least_share", "confidence", "real_confidence", "train_seconds")
    scales = ((1.0, 1), (1.0, 1), (100.0, 1), (1.0, 3), (1.0, 3), (1.0, 0))
    rows = [
        [words, *(_spread(found[f"mnist-{recipe}"], name, *scale) for name, scale in zip(names, scales, strict=True))]
        for recipe, words in _WORDS.items()
        if found.get(f"mnist-{recipe}")
    ]
    header = ["", "Fréchet distance", "test images", "least class, %", "confidence", "of test images", "seconds"]
    return table(header, rows) if rows else ""


def _areas(found: dict[str, list[Result]]) -> str:
    kinds = list(ALTERATIONS)
    rows = [
        [words, *(_spread([result["auroc"] for result in found[f"mnist-{recipe}"]], kind, 1.0, 3) for kind in kinds)]
        for recipe, words in _WORDS.items()
        if found.get(f"mnist-{recipe}")
    ]
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
        for kind in ("generated", "test")
    ]
    return table(["images", "nearest"], rows) if results else ""


def _plane(data: str, found: dict[str, list[Result]]) -> str:
    rows = []
    for recipe, words in _WORDS.items():
        results = found.get(f"{data}-{recipe}", [])
        if not results:
            continue
        modes = [
            " / ".join(str(result["modes"]) for result in results),
            _spread(results, "high_quality", 100.0, 1),
            _spread(results, "refined_high_quality", 100.0, 1),
            _spread(results, "least_share", 100.0, 1),
        ]
        rows.append(
            [
                words,
                *(modes if data == "ring" else []),
                _spread(results, "energy_distance"),
                _spread(results, "refined_energy_distance"),
                f"{statistics.mean(result['floor'][0] for result in results):.2f} ± {results[0]['floor'][1]:.2f}",
                _spread(results, "squared_mmd"),
                _spread(results, "total_variation"),
                _spread(results, "kl_divergence"),
                _spread(results, "train_seconds", 1.0, 0),
            ]
        )
    if not rows:
        return ""
    header = [
        "", *(["modes of 10", "high quality, %", "refined, %", "least mode, %"] if data == "ring" else []),
        "energy distance ×1,000", "refined", "two real samples", "MMD² ×1,000", "total variation", "KL, nats",
        "seconds",
    ]  # fmt: skip
    return f"### {data.capitalize()}\n\n" + table(header, rows)


def _spread(results: list[Result], name: str, factor: float = 1.0, digits: int = 2) -> str:
    values = [factor * result[name] for result in results]
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
*refined* after twenty Langevin steps, *two real samples* the energy distance between two sets of 5,000 real points.
*Total variation* and *KL* (of the truth to the model) are those of $e^{-E}/Z$ on a grid; the spiral has no density, so
both sides are smoothed there with a standard deviation of 0.1.
"""

_IMAGES = """
The *Fréchet distance* is taken between the 64 features of a small classifier, trained in the same run, of 5,000
generated and of 5,000 training images; *test images* is the same for test images. *Confidence* is the mean largest
class probability of that classifier; *least class* the share of the class that is generated least.
"""

_AUROC = """
How well the energy alone tells test images from altered ones, as the area under the ROC curve (one half is chance):
uniform noise, permuted pixels, a shift by four pixels, a flip from left to right (digits 0, 1 and 8 left out), blank
images, and images blurred with a standard deviation of two pixels. The default recipe has seen faded and blurred
images in training; it has seen no noise, no permuted, shifted or flipped ones.
"""

_CLASSES = """
Energies of classes, E(x, y), trained from 100 labels with everything else unlabelled, beside the same network trained
on these labels alone (3,000 steps; the best one by validation error).
"""

_ICONS = """
Pictures at 64x64. *Nearest* is the median distance of up to 200 images to the nearest training image, which copies
would bring to nothing.
"""
