"""The README: its Python runs as it is printed, its links lead somewhere, and it stays short."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
    short = code.replace("data, out=", 'data, ss.TrainingConfig(max_steps=3, device="cpu"), out=')
    assert short != code
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(short + "\nobjective = ss.SemiSupervisedELBO.for_data(StudentTM2.for_data(data), data)", names)
    exec("bound = objective.unlabelled_bound(data.x_test.float() / data.scale)", names)
    assert (tmp_path / "runs" / "digits" / "result.json").is_file()
    assert names["images"].shape == (10, 1, 8, 8)
    assert math.isfinite(float(names["bound"]))


def test_links_of_the_readme_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#\s]+)", README)
    missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert len(links) > 20
    assert not missing


def test_the_readme_says_how_to_run_the_tests() -> None:
    assert 'pip install -e ".[test]" && python -m pytest\n' in README


def test_the_readme_stays_short() -> None:
    assert len(README.split()) <= 500
