"""The README: its Python runs as it is printed, its links lead somewhere, and it stays short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
    short = code.replace("data, out=", 'data, ss.TrainingConfig(max_steps=3, device="cpu"), out=')
    assert short != code
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(short + "\nobjective = ss.SemiSupervisedELBO.for_data(StudentTM2.for_data(data), data)", names)
    exec("bound = objective.unlabelled_bound(data.x_test.float() / data.scale)", names)
    assert (tmp_path / "runs" / "digits" / "result.json").is_file()
    assert names["images"].shape == (10, 1, 8, 8)
    assert names["bound"] > -1e6


def test_links_of_the_readme_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#\s]+)", README)
    missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert len(links) > 20
    assert not missing


def test_text_of_the_readme_has_at_most_500_words() -> None:
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    assert len(" ".join(line for line in text.splitlines() if not line.startswith("|")).split()) <= 500
