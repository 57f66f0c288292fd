"""Write docs/results_ddgm.md from the result files of finished runs of DDGM."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from results_page import table

Result = dict[str, Any]

_WORDS = {"default": "the default recipe", "source": "the source document's recipe"}


def write_page(folder: Path) -> None:
    """Write the page next to ``folder`` from the result files there."""
    found: dict[str, list[Result]] = defaultdict(list)
    for path in sorted(folder.glob("ddgm-*.json")):
        result = json.loads(path.read_text())
        found[result["row"]["name"]].append(result)
    sections = [_HEAD, *(_plane(name, found) for name in ("ring", "spiral"))]
    (folder.parent / "results_ddgm.md").write_text("\n\n".join(part.strip() for part in sections if part) + "\n")


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
    return f"## {data.capitalize()}\n\n" + table(header, rows)


def _spread(results: list[Result], name: str, factor: float = 1.0, digits: int = 2) -> str:
    values = [factor * result[name] for result in results]
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


_HEAD = """
# Results of DDGM

Made by one command and read from the result files in `docs/results/`:

```bash
python benchmarks/ddgm_plane.py --jobs 2
```

Points in the plane, ± the standard deviation over seeds. *High quality* is the share of 5,000 generated points within
three standard deviations of a mode (real ones: 98.9 %), *refined* after ten Langevin steps, *two real samples* the
energy distance between two sets of 5,000 real points. *Total variation* and *KL* (of the truth to the model) are those
of $e^{-E}/Z$ on a grid; the spiral has no density, so both sides are smoothed there with a standard deviation of 0.1.
"""
