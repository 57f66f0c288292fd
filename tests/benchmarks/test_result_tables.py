"""Tables of the result pages, from made-up results."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import blog_tables
import numpy as np
import pytest
import result_tables
import runs
import step
from columns import each, format_mean, mean, percent
from table_format import build_table, format_table, load_results

from pyro_ssvae import SemiSupervisedData

DOCS = Path(__file__).parents[2] / "docs"


def lines_of(table: str) -> list[list[str]]:
    """Return the cells of a table without its header."""
    rows = [re.split(r"(?<!\\)\|", line) for line in table.splitlines()[2:]]
    return [[cell.strip() for cell in row[1:-1]] for row in rows]


def test_results_are_grouped_by_configuration_in_the_order_of_seeds(tmp_path: Path) -> None:
    for name, seed in (("m2-a-100", 10), ("m2-a-100", 2), ("m2-a-100", 0), ("m2-a", 0)):
        (tmp_path / f"{name}-seed{seed}-0123456789.json").write_text(json.dumps({"seed": seed}))
    (tmp_path / "time-a.json").write_text("{}")
    found = {name: [result["seed"] for result in group] for name, group in load_results(tmp_path).items()}
    assert found == {"m2-a-100": [0, 2, 10], "m2-a": [0]}


def test_means_and_standard_deviations() -> None:
    values = [0.01, 0.02, 0.06]
    found = re.findall(r"[\d.]+", format_mean(values, 2, 100.0, max))
    expected = [100 * statistics.mean(values), 100 * statistics.stdev(values), 6.0]
    assert [float(one) for one in found] == pytest.approx(expected, abs=0.005)
    assert format_mean([0.5], 1) == "0.5"
    assert re.search(r"\d", format_mean([])) is None


def test_a_table_has_a_line_for_each_configuration_that_has_a_result() -> None:
    results = {"a": [{"error": 0.1}, {"error": 0.3}], "b": [{"other": 1.0}], "empty": []}
    rows = {"a": "first", "missing": "second", "empty": "third", "b": "fourth"}
    table = build_table(results, "", rows, {"mean": percent("error", 0), "each": each("error", 0), "x": mean("other")})
    lines = lines_of(table)
    assert [line[0] for line in lines] == ["first", "fourth"]
    assert lines[0][1:3] == ["20 ± 14", "10 / 30"]
    assert not any(char.isdigit() for char in lines[1][1])
    assert float(lines[1][3]) == 1.0
    assert format_table(["x"], []) == ""


def test_the_ablation_compares_the_same_label_splits() -> None:
    errors = {"default": (0.01, 0.03, 0.01), "regularisers-alone": (0.02, 0.05), "labels-alone": (0.2, 0.2, 0.2)}
    results = {
        f"m2-{name}-100": [
            {"seed": seed, "test/error": error, "test/error_last": error} for seed, error in enumerate(by_split)
        ]
        for name, by_split in errors.items()
    }
    first, second, third = lines_of(result_tables.m2_ablation(results))
    assert (first[1], first[-1], second[1]) == ("3", "", "2")
    # Two differences of 1 and 2 points: mean 1.5, standard error 0.5, and the quantile of t with one degree of freedom.
    mean, low, high, p = map(float, re.findall(r"-?[\d.]+", second[-1]))
    assert [mean, low, high, p] == pytest.approx([1.5, 1.5 - 12.71 * 0.5, 1.5 + 12.71 * 0.5, 0.2], abs=0.01)
    assert third[-1].startswith("18.33 [")


def test_real_samples_and_failed_seeds_are_shown() -> None:
    common = {"energy_distance": 0.5, "floor": [0.1, 0.2], "train_seconds": 1.0}
    results = {"ddgm-spiral-default": [common, {**common, "energy_distance": 0.9, "failed": "TrainingFailedError"}]}
    (line,) = lines_of(result_tables.TABLES["ddgm_spiral"](results))
    assert line[1].startswith("2, 1 ")
    assert "0.10 ± 0.20" in line


def test_the_step_table_compares_with_the_tutorial(tmp_path: Path) -> None:
    stored = {
        "10/0/1/0/tutorial": [10.0],
        "10/0/1/1/tutorial": [20.0, 90.0],
        "10/0/2/0/tutorial": "too slow",
        "10/0/1/0/ours": [5.0, 5.0, 5.0],
        "10/0/2/0/ours": [2.0, 3.0, 4.0],
    }
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / step.STORE).write_text(json.dumps(stored))
    found = step.make_tables(tmp_path)
    tutorial, ours = lines_of(found["step_10"])
    assert tutorial[3] == "too slow"
    assert [float(cell) for cell in ours[1:4]] == [5.0, 4.0, 3.0]
    assert ours[4] == "–"
    assert found["step_100"] == found["floor"] == ""


def test_pages_include_every_table_and_no_other(tmp_path: Path) -> None:
    pages = "\n".join(path.read_text() for path in DOCS.glob("*.md"))
    included = set(re.findall(r"\{include\} _generated/(\w+)\.md", pages))
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "results").mkdir()
    result_tables.write_tables(tmp_path)
    written = {path.stem: path.read_text() for path in (tmp_path / "_generated").glob("*.md")}
    assert included == set(written)
    assert len(set(written.values())) == 1  # nothing has been measured there


def test_committed_tables_are_those_of_the_committed_results(tmp_path: Path) -> None:
    for folder in ("results", "benchmarks"):
        (tmp_path / folder).symlink_to(DOCS / folder)
    result_tables.write_tables(tmp_path)
    for path in sorted((tmp_path / "_generated").glob("*.md")):
        table = path.read_text()
        assert table == (DOCS / "_generated" / path.name).read_text(), path.name
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, path.name


def test_cells_of_the_blog_tables_are_measured_once_and_stand_beside_the_blogs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels of two shades give the class away to the SVM on principal components."""
    (tmp_path / "results").mkdir()
    asked = []

    def load(name: str, *, num_labels: int, seed: int, data_dir: None) -> SemiSupervisedData:
        asked.append((name, num_labels, seed))
        y = np.arange(400) % 2
        x = (np.random.default_rng(seed).integers(0, 100, (400, 1, 10, 10)) + 100 * y[:, None, None, None]).astype("u1")
        return SemiSupervisedData.from_arrays(x, np.where(np.arange(400) < 40, y, -1), x_test=x, y_test=y)

    monkeypatch.setattr(blog_tables.SemiSupervisedData, "from_name", load)
    monkeypatch.setattr(runs, "write_tables", lambda: None)
    for seeds in "12":
        blog_tables.main(["--only", "mnist/pca_svm/100/*", "--seeds", seeds], tmp_path)
    assert asked == [("mnist", 100, 0), ("mnist", 100, 1)]
    cells = json.loads((tmp_path / blog_tables.STORE).read_text())
    assert [*cells] == ["mnist/pca_svm/100/0", "mnist/pca_svm/100/1"]
    assert all(cell["accuracy"] == 1.0 for cell in cells.values())
    lines = lines_of(blog_tables.make_tables(tmp_path)["blog_mnist"])
    assert lines[0] == ["PCA + SVM", "100.0 ± 0.0", "–", "–", "–", "–"]
    assert lines[1] == ["PCA + SVM, the blog", "69.2", "87.1", "89.1", "91.1", "92.9"]
    assert len(lines) == 5


def test_m2_on_pixels_of_cifar10_has_a_cell_at_4000_labels_and_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = {"accuracy": 0.5, "steps": 600, "seconds": 120}
    monkeypatch.setattr(blog_tables, "make_cell", lambda *_: cell)
    monkeypatch.setattr(runs, "write_tables", lambda: None)
    (tmp_path / "results").mkdir()
    blog_tables.main(["--only", "cifar10/m2/4000/*"], tmp_path)
    table = blog_tables.make_tables(tmp_path)["blog_cifar10_pixels"]
    assert lines_of(table) == [["4,000", "50.0%", "600", "120"]]


def test_settings_of_an_svm_are_chosen_by_cross_validation() -> None:
    """Only the first two of many columns tell the classes apart."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    x = np.concatenate([y[:, None] + 0.3 * rng.normal(size=(120, 2)), 3.0 * rng.normal(size=(120, 60))], 1)
    svm = blog_tables.fit_svm(x[:60], y[:60], 0, (2, 62))
    assert svm.width == 2
    assert svm.score(x[60:, :2], y[60:]) > 0.9
