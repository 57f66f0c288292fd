"""Which test images of MNIST do models get wrong? Two tables, and a figure of the images that all defaults get wrong.

docs/worth.md has the commands that train the models.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from result_tables import write_tables
from table_format import DOCS, format_table, load_json
from torch import Tensor

from pyro_ssvae import SemiSupervisedData, load
from pyro_ssvae.plots.style import new_image_grid, save_figure

STORE = "benchmarks/shared_errors.json"
FIGURE = DOCS / "_static" / "shared-errors.png"
_ROWS, _COLUMNS = 5, 8  # of the figure: pairs of classes, images of each
_DEFAULT = "m2-default-100"
_KINDS = {
    _DEFAULT: "default",
    "m2-no-neighbours-100": "without neighbours",
    "m2-regularisers-alone-100": "without the bound",
    "m2-regularisers-alone-no-neighbours-100": "without either",
}


def get_kind(name: str) -> str:
    """Return the name of a run without its seed."""
    return name.partition("-seed")[0]


def measure(probabilities: dict[str, Tensor], y: Tensor) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Return shares of wrong images of the default, which images all of them get wrong, and as what.

    The shares come with error and most frequent mistake (class, prediction, images) of every model by its name.
    """

    def count(wrong: Tensor, predicted: Tensor, most: int) -> list[list[int]]:
        pairs = Counter(zip(y[wrong].tolist(), predicted[wrong].tolist(), strict=True))
        return [[*pair, number] for pair, number in pairs.most_common(most)]

    runs = {}
    for name, one in probabilities.items():
        wrong = one.argmax(-1) != y
        runs[name] = {"error": float(wrong.float().mean()), "mistake": count(wrong, one.argmax(-1), 1)[0]}
    found = torch.stack([one for name, one in probabilities.items() if get_kind(name) == _DEFAULT])
    wrong, sure = found.argmax(-1) != y, found.amax(-1) >= 0.9
    shared, predicted = wrong.all(0), found[0].argmax(-1)
    shares = {
        "models": len(found),
        "mean": float(wrong.float().mean()),
        "all": float(shared.float().mean()),
        "any": float(wrong.any(0).float().mean()),
        "vote": float((found.sum(0).argmax(-1) != y).float().mean()),
        "sure": float((wrong & sure).sum() / wrong.sum()),
        "pairs": count(shared, predicted, _ROWS),
        "runs": runs,
    }
    return shares, shared, predicted


def draw(pairs: list[list[int]], wrong: Tensor, predicted: Tensor, data: SemiSupervisedData) -> None:
    """Draw images that all models get wrong, a line for each of the most frequent pairs of classes."""
    tiles = np.ones((_ROWS, _COLUMNS, 28, 28, 3))
    for line, (y, other, _) in zip(tiles, pairs, strict=False):
        chosen = data.x_test[wrong & (data.y_test == y) & (predicted == other), 0][:_COLUMNS]
        line[: len(chosen)] = 1.0 - chosen.numpy()[..., None] / 255.0
    names = [f"{y}, predicted {other}: {number} images" for y, other, number in pairs]
    title = "Test images that the models of all label splits get wrong"
    save_figure(new_image_grid(tiles, title, "", row_names=names), FIGURE)


def make_tables(docs: Path) -> dict[str, str]:
    """Return the tables of docs/worth.md, from the file of results."""
    found = load_json(docs / STORE, {})
    words = {"mean": "one split, mean", "all": "every split", "any": "at least one split"}
    words["vote"] = "all splits, averaged"
    rows = [[name, f"{100.0 * found[key]:.2f}"] for key, name in words.items() if found]
    runs: dict[str, dict[str, str]] = {}
    for name, run in found.get("runs", {}).items():
        kind, seed = get_kind(name), name.partition("-seed")[2]
        y, other, number = run["mistake"]
        runs.setdefault(seed, {})[kind] = f"{100.0 * run['error']:.2f}: {number} images of {y} taken for {other}"
    lines = [[seed, *(cells.get(kind, "") for kind in _KINDS)] for seed, cells in sorted(runs.items())]
    return {
        "shared_errors": format_table(["wrong by models of", "% of the test images"], rows),
        "frequent_errors": format_table(["seed", *_KINDS.values()], lines),
    }


def main() -> None:
    """Measure, draw, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of M2 on MNIST")
    parser.add_argument("--data-dir", help="folder of MNIST")
    args = parser.parse_args()
    data = SemiSupervisedData.from_name("mnist", num_labels=100, data_dir=args.data_dir)
    folders = sorted((run for run in args.runs if get_kind(run.name) in _KINDS), key=lambda run: run.name)
    found = {folder.name: load(folder).predict_proba(data.x_test) for folder in folders}
    shares, wrong, predicted = measure(found, data.y_test)
    (DOCS / STORE).write_text(json.dumps(shares, indent=1) + "\n")
    draw(shares["pairs"], wrong, predicted, data)
    write_tables()
    print(json.dumps(shares))


if __name__ == "__main__":
    main()
