"""The benchmark of cells: what methods see of counts, and its scripts on few cells of two distinct types."""

from __future__ import annotations

import sys
from pathlib import Path

import cells
import numpy as np
import pytest

STAND_IN = '''"""Named as scvi-tools: cells are of the type of the labelled cell that is the nearest."""
import numpy as np

settings = type("Settings", (), {})()


class Model:
    def __init__(self, table):
        self.x, self.y = table.X, np.asarray(table.obs["type"])

    setup_anndata = staticmethod(lambda table, labels_key: None)
    from_scvi_model = classmethod(lambda cls, first, unlabeled_category: first)

    def train(self, accelerator, enable_progress_bar):
        pass

    def predict(self, table):
        known = self.y != "unknown"
        return self.y[known][((table.X[:, None] - self.x[known]) ** 2).sum(-1).argmin(1)]


model = type("Models", (), {"SCVI": Model, "SCANVI": Model})()
'''
TABLE = "class AnnData:\n    def __init__(self, X):\n        self.X, self.obs = X, {}\n"


@pytest.fixture
def counts() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    y = np.arange(60) % 2
    rates = np.where(np.arange(24) % 2 == y[:, None], 20.0, 0.5)
    return random.poisson(rates * random.uniform(0.5, 2.0, (60, 1))), np.array(["B cell", "T cell"])[y]


def test_scripts_fit_each_method_once(
    tmp_path: Path, counts: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scvi.py").write_text(STAND_IN)
    (tmp_path / "anndata.py").write_text(TABLE)
    np.savez(tmp_path / "cells.npz", x=counts[0], y=counts[1])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    results = tmp_path / "fits.json"
    methods = [name for name in cells.NAMES if name in ("logistic", "scanvi")]
    given = ["--data", tmp_path / "cells.npz", "--scanvi-python", sys.executable, "--results", results, "--seeds", 3]
    monkeypatch.setattr(sys, "argv", ["cells.py", *map(str, given), "--methods", *methods])
    cells.main()
    fits = cells.load_fits(results)
    assert set(fits) == {f"{name}/3" for name in methods}
    assert all(one["accuracy"] == one["macro_f1"] == 1.0 for one in fits.values())
    monkeypatch.setattr(cells, "measure", None)  # nothing is fitted again
    cells.main()


def test_methods_see_counts_relative_to_the_total(counts: tuple[np.ndarray, np.ndarray]) -> None:
    x = counts[0].astype(float)
    seen, seen_test = cells.standardise(x, x[:5])
    assert seen.mean(0) == pytest.approx(0.0, abs=1e-9)
    assert seen.std(0) == pytest.approx(1.0)
    assert seen_test == pytest.approx(seen[:5])
    inner = [rows @ rows.T for rows in (seen, cells.find_components(x, x)[0])]
    assert np.corrcoef(inner[0].ravel(), inner[1].ravel())[0, 1] == pytest.approx(1.0)  # all 24 components are kept


def test_the_table_compares_on_the_splits_that_both_methods_have(tmp_path: Path) -> None:
    path = tmp_path / "cells.json"
    for seed, value in ((0, 0.8), (1, 0.8), (2, 0.2)):
        cells.keep_fit(path, f"m2/{seed}", {"accuracy": value, "macro_f1": 0.5, "seconds": 2.0})
    for seed in (0, 1):
        cells.keep_fit(path, f"scanvi/{seed}", {"accuracy": 0.6, "macro_f1": 0.4, "seconds": 1.0 + seed})
    ours, theirs = cells.make_tables(path)["cells"].splitlines()[2:]
    assert ours == "| `M2Classifier` | 3 | 60.0 ± 20.0 |  | 50.0 ± 0.0 |  | 2.0 |"
    assert theirs == "| SCANVI | 2 | 60.0 ± 0.0 | +20.0 ± 0.0 | 40.0 ± 0.0 | +10.0 ± 0.0 | 1.5 |"
