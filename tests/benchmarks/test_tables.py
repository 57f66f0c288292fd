"""The comparisons on tables: what methods see, fits that are made once, tables of made-up fits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
import table_methods
import tables

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


@pytest.mark.slow
def test_each_method_is_fitted_once(
    tmp_path: Path, counts: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scvi.py").write_text(STAND_IN)
    (tmp_path / "anndata.py").write_text(TABLE)
    np.savez(tmp_path / "cells.npz", x=counts[0], y=counts[1])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(runs, "write_tables", lambda: None)
    (tmp_path / "benchmarks").mkdir()
    store = tmp_path / "benchmarks" / "cells.json"
    given = ["cells", "--data-dir", str(tmp_path), "--scanvi-python", sys.executable, "--seeds", "1"]
    for name in ("logistic", "scanvi"):
        given += ["--only", f"{name}/*"]
    tables.main(given, tmp_path)
    fits = json.loads(store.read_text())
    assert set(fits) == {"logistic/0", "scanvi/0"}
    assert all(one["accuracy"] == one["macro_f1"] == 1.0 for one in fits.values())
    store.write_text('{"logistic/0": {}, "scanvi/0": {}}')
    tables.main(given, tmp_path)
    assert store.read_text() == '{"logistic/0": {}, "scanvi/0": {}}'


def test_methods_see_counts_relative_to_the_total(counts: tuple[np.ndarray, np.ndarray]) -> None:
    x = counts[0].astype(float)
    seen, seen_test = table_methods.standardise_counts(x, x[:5])
    assert seen.mean(0) == pytest.approx(0.0, abs=1e-9)
    assert seen.std(0) == pytest.approx(1.0)
    assert seen_test == pytest.approx(seen[:5])
    inner = [rows @ rows.T for rows in (seen, table_methods.find_components(x, x)[0])]
    assert np.corrcoef(inner[0].ravel(), inner[1].ravel())[0, 1] == pytest.approx(1.0)  # all 24 components are kept


def test_rows_of_unequal_classes_and_their_calibration_error() -> None:
    x, seen, x_test, y_test = table_methods.make_unequal_rows(0)
    assert (len(x), len(x_test), np.bincount(seen + 1).tolist()) == (2000, 1000, [1980, 10, 10])
    assert y_test.mean() == pytest.approx(0.05, abs=0.02)
    assert x_test[y_test == 1].mean(0)[:4] - x_test[y_test == 0].mean(0)[:4] == pytest.approx([1.5] * 4, abs=0.5)
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]])
    assert table_methods.calibration_error(probabilities, np.array([0, 1, 0, 0])) == pytest.approx(0.35)


def test_cross_validation_chooses_settings_and_prefers_the_first_of_equals() -> None:
    """A penalty so strong that every row gets the same probabilities."""
    x, y = np.arange(40.0)[:, None] - 19.5, np.repeat([0, 1], 20)
    seen = table_methods.hide_labels(y, 5, lambda rows: rows[::3])
    method = table_methods.METHODS["logistic"]._replace(settings=[{"C": 1e-12}, {"C": 1.0}, {"C": 2.0}])
    noisy = np.concatenate([x, 100.0 * np.random.default_rng(0).normal(size=(40, 3))], 1)
    assert method._choose(x, seen, 0) == {"C": 1e-12}  # a small weight is right too
    assert method.fit(noisy, seen, 0).C in (1e-12, 1.0, 2.0)
    assert method.fit(x, seen, 0).score(x, y) == 1.0


def test_tables_of_made_up_fits(tmp_path: Path) -> None:
    def lines(name: str, fits: dict[str, dict[str, float]], table: str) -> list[str]:
        (tmp_path / "benchmarks" / f"{name}.json").write_text(json.dumps(fits))
        return tables.make_tables(tmp_path)[table].splitlines()[2:]

    (tmp_path / "benchmarks").mkdir()
    scores = {"macro_f1": 0.5, "calibration_error": 0.1}
    unequal = {f"auto/{seed}": {"accuracy": 0.8 + 0.1 * seed, **scores} for seed in (0, 1)}
    assert lines("unequal", unequal, "unequal") == ["| `M2Classifier` | 85.0 ± 5.0 | 50.0 ± 0.0 | 10.0 ± 0.0 |"]
    holes = {"m2_of_all": 0.9, "logistic_of_all": 0.8, "logistic": 0.7, "error_m2": 0.5, "error_mean": 1.0}
    fits = {f"wine/{seed}": holes | {"m2": 0.8 - 0.1 * seed, "error_neighbours": 0.6} for seed in (0, 1)}
    assert lines("missing", fits, "missing_accuracy") == [
        "| wine | 2 | 90.0 | 75.0 | -15.0 ± 5.0 | 80.0 | 70.0 | -10.0 ± 0.0 |"
    ]
    assert lines("missing", fits, "missing_errors") == ["| wine | **0.500** | 1.000 | 0.600 |"]
    values = (("m2", 0.8, 2.0), ("m2", 0.8, 2.0), ("m2", 0.2, 2.0), ("scanvi", 0.6, 1.0), ("scanvi", 0.6, 2.0))
    cells = {f"{name}/{n % 3}": {"accuracy": a, "macro_f1": 0.5, "seconds": s} for n, (name, a, s) in enumerate(values)}
    assert lines("cells", cells, "cells") == [  # on the splits that both methods have
        "| `M2Classifier` | 3 | 60.0 ± 20.0 |  | 50.0 ± 0.0 |  | 2.0 |",
        "| SCANVI | 2 | 60.0 ± 0.0 | +20.0 ± 0.0 | 50.0 ± 0.0 | +0.0 ± 0.0 | 1.5 |",
    ]
