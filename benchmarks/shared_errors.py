"""Which test images of MNIST do models get wrong? Two tables, and a figure of the images that all defaults get wrong.

docs/worth.md has the commands that train the models.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from result_tables import write_tables
from runs import make_parser
from table_format import DOCS, format_table, load_json
from torch import Tensor

from pyro_ssvae import SemiSupervisedData, load
from pyro_ssvae.plots.style import new_image_grid, save_figure

STORE = "benchmarks/shared_errors.json"
_ROWS, _COLUMNS = 5, 8  # of the figure: pairs of classes, images of each
_DEFAULT = "m2-default-100"
_KINDS = {
    _DEFAULT: "default",
    "m2-no-neighbours-100": "without neighbours",
    "m2-regularisers-alone-100": "without the bound",
    "m2-regularisers-alone-no-neighbours-100": "without either",
}
_SHARES = {"mean": "one split, mean", "all": "every split", "any": "at least one split", "vote": "all splits, averaged"}


def measure(probabilities: dict[str, Tensor], y: Tensor) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Return shares of wrong images of the default, which images all of them get wrong, and as what.

    The shares come with error and most frequent mistake (class, prediction, images) of every model by its name.
    """
    runs = {}
    for name, one in probabilities.items():
        wrong = one.argmax(-1) != y
        (mistake,) = count_mistakes(y[wrong], one.argmax(-1)[wrong], 1)
        runs[name] = {"error": float(wrong.float().mean()), "mistake": mistake}
    found = torch.stack([one for name, one in probabilities.items() if name.startswith(f"{_DEFAULT}-seed")])
    wrong, sure = found.argmax(-1) != y, found.amax(-1) >= 0.9
    shared, predicted = wrong.all(0), found[0].argmax(-1)
    shares = {
        "models": len(found),
        "mean": float(wrong.float().mean()),
        "all": float(shared.float().mean()),
        "any": float(wrong.any(0).float().mean()),
        "vote": float((found.sum(0).argmax(-1) != y).float().mean()),
        "sure": float((wrong & sure).sum() / wrong.sum()),
        "pairs": count_mistakes(y[shared], predicted[shared], _ROWS),
        "runs": runs,
    }
    return shares, shared, predicted


def count_mistakes(y: Tensor, predicted: Tensor, most: int) -> list[list[int]]:
    """Return the most frequent pairs of class and prediction, with their numbers."""
    pairs = Counter(zip(y.tolist(), predicted.tolist(), strict=True))
    return [[*pair, number] for pair, number in pairs.most_common(most)]


def draw(pairs: list[list[int]], wrong: Tensor, predicted: Tensor, data: SemiSupervisedData) -> None:
    """Draw images that all models get wrong, a line for each of the most frequent pairs of classes."""
    tiles = np.ones((_ROWS, _COLUMNS, 28, 28, 3))
    for line, (y, other, _) in zip(tiles, pairs, strict=False):
        chosen = data.x_test[wrong & (data.y_test == y) & (predicted == other), 0][:_COLUMNS]
        line[: len(chosen)] = 1.0 - chosen.numpy()[..., None] / 255.0
    names = [f"{y}, predicted {other}: {number} images" for y, other, number in pairs]
    title = "Test images that the models of all label splits get wrong"
    save_figure(new_image_grid(tiles, title, "", row_names=names), DOCS / "_static" / "shared-errors.png")


def make_tables(docs: Path) -> dict[str, str]:
    """Return the tables of docs/worth.md, from the file of results."""
    found = load_json(docs / STORE, {})
    rows = [[words, f"{100.0 * found[key]:.2f}"] for key, words in _SHARES.items() if found]
    cells: dict[str, dict[str, str]] = defaultdict(dict)  # by seed and kind
    for name, run in found.get("runs", {}).items():
        kind, _, seed = name.partition("-seed")
        y, other, number = run["mistake"]
        cells[seed][kind] = f"{100.0 * run['error']:.2f}: {number} images of {y} taken for {other}"
    lines = [[seed, *(of_seed.get(kind, "") for kind in _KINDS)] for seed, of_seed in sorted(cells.items())]
    return {
        "shared_errors": format_table(["wrong by models of", "% of the test images"], rows),
        "frequent_errors": format_table(["seed", *_KINDS.values()], lines),
    }


def main() -> None:
    args = make_parser(__doc__).parse_args()
    folders = [folder for kind in _KINDS for folder in Path(args.keep or ".").glob(f"{kind}-seed*")]
    if not folders:
        raise SystemExit("There are no runs below --keep; docs/worth.md has the commands that train them.")
    data = SemiSupervisedData.from_name("mnist", num_labels=100, data_dir=args.data_dir)
    found = {folder.name: load(folder).predict_proba(data.x_test) for folder in sorted(folders)}
    shares, wrong, predicted = measure(found, data.y_test)
    (DOCS / STORE).write_text(json.dumps(shares, indent=1) + "\n")
    draw(shares["pairs"], wrong, predicted, data)
    write_tables()


if __name__ == "__main__":
    main()
