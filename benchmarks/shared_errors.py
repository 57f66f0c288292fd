"""Which test images of MNIST do models get wrong? Two tables, and a figure of the images that all defaults get wrong.

python benchmarks/mnist.py --only m2-default-100 --only 'm2-*neighbours-100' --seeds 10 --keep runs
python benchmarks/mnist.py --only m2-regularisers-alone-100 --seeds 10 --keep runs
python benchmarks/shared_errors.py runs/m2-*-100-seed* --data-dir DIR
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from runs import DOCS
from table_format import format_table, load_json

from pyro_ssvae import SemiSupervisedData, load
from pyro_ssvae.plots.style import new_figure, save_figure, set_title

STORE = DOCS / "benchmarks" / "shared_errors.json"
FIGURE = DOCS / "_static" / "shared-errors.png"
_ROWS, _COLUMNS = 5, 8  # of the figure: pairs of classes, images of each
_DEFAULT = "m2-default-100"
_KINDS = {_DEFAULT: "default", "m2-no-neighbours-100": "without neighbours"}
_KINDS |= {
    "m2-regularisers-alone-100": "without the bound",
    "m2-regularisers-alone-no-neighbours-100": "without either",
}


def find_mistakes(folders: list[Path], data: SemiSupervisedData) -> dict[str, Any]:
    """Return error, most frequent mistake (class, prediction, images) by the name of the run folder."""
    found = {}
    for folder in folders:
        predicted = load(folder).predict(data.x_test)
        wrong = predicted != data.y_test
        ((pair, number),) = _count(wrong, predicted, data).most_common(1)
        found[folder.name] = {"error": float(wrong.float().mean()), "mistake": [*pair, number]}
    return found


def measure(folders: list[Path], data: SemiSupervisedData) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """Return shares of wrong images, which images all models get wrong, and their classes by the first model."""
    found = [load(folder).predict_proba(data.x_test) for folder in folders]
    wrong = torch.stack([one.argmax(-1) != data.y_test for one in found])
    sure = torch.stack([one.amax(-1) >= 0.9 for one in found])
    shares = {
        "models": len(folders),
        "mean": float(wrong.float().mean()),
        "all": float(wrong.all(0).float().mean()),
        "any": float(wrong.any(0).float().mean()),
        "vote": float((sum(found).argmax(-1) != data.y_test).float().mean()),
        "sure": float((wrong & sure).sum() / wrong.sum()),
        "pairs": [
            [*pair, number] for pair, number in _count(wrong.all(0), found[0].argmax(-1), data).most_common(_ROWS)
        ],
    }
    return shares, wrong.all(0), found[0].argmax(-1)


def _count(wrong: torch.Tensor, predicted: torch.Tensor, data: SemiSupervisedData) -> Counter[tuple[int, int]]:
    """Return how many of some wrong images have which class and which prediction."""
    return Counter(zip(data.y_test[wrong].tolist(), predicted[wrong].tolist(), strict=True))


def draw(pairs: list[list[int]], wrong: torch.Tensor, predicted: torch.Tensor, data: SemiSupervisedData) -> None:
    """Draw images that all models get wrong, a line for each of the most frequent pairs of classes."""
    figure = new_figure(6.0, 0.75 * _ROWS + 0.5)
    grid = figure.subplots(_ROWS, _COLUMNS)
    for axes in grid.flat:
        axes.axis("off")
    for line, (y, other, number) in zip(grid, pairs, strict=False):
        line[0].set_title(f"{y}, predicted {other}: {number} images", loc="left", fontsize=8)
        chosen = (wrong & (data.y_test == y) & (predicted == other)).nonzero()[:_COLUMNS, 0]
        for axes, image in zip(line, data.x_test[chosen, 0], strict=False):
            axes.imshow(np.asarray(image), cmap="gray_r")
    set_title(figure, "Test images that the models of all label splits get wrong")
    save_figure(figure, FIGURE)


def make_tables(folder: Path) -> dict[str, str]:
    """Return the table of docs/worth.md, from the file of results in a folder."""
    found = load_json(folder / STORE.name, {})
    words = {
        "mean": "one split, mean",
        "all": "every split",
        "any": "at least one split",
        "vote": "all splits, averaged",
    }
    rows = [[name, f"{100.0 * found[key]:.2f}"] for key, name in words.items() if found]
    runs: dict[str, dict[str, str]] = {}
    for name, run in found.get("runs", {}).items():
        kind, _, seed = name.partition("-seed")
        y, other, number = run["mistake"]
        runs.setdefault(seed, {})[kind] = f"{100.0 * run['error']:.2f}: {number} images of {y} taken for {other}"
    lines = [[seed, *(cells.get(kind, "") for kind in _KINDS)] for seed, cells in sorted(runs.items())]
    return {
        "shared_errors": format_table(["wrong by models of", "% of the test images"], rows),
        "frequent_errors": format_table(["seed", *_KINDS.values()], lines),
    }


def main() -> None:
    """Measure, draw, and write the table."""
    from result_tables import write_tables

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of M2 on MNIST")
    parser.add_argument("--data-dir", help="folder of MNIST")
    args = parser.parse_args()
    data = SemiSupervisedData.from_name("mnist", num_labels=100, data_dir=args.data_dir)
    shares, wrong, predicted = measure([run for run in args.runs if run.name.startswith(f"{_DEFAULT}-seed")], data)
    shares["runs"] = find_mistakes([run for run in args.runs if run.name.partition("-seed")[0] in _KINDS], data)
    STORE.write_text(json.dumps(shares, indent=1) + "\n")
    draw(shares["pairs"], wrong, predicted, data)
    write_tables(DOCS)
    print(json.dumps(shares))


if __name__ == "__main__":
    main()
