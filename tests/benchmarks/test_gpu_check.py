"""The GPU check keeps what it has measured, whatever happens afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gpu_check
import pytest


def test_lines_of_a_piece_are_kept_whatever_fails_and_no_part_starts_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(piece: Any) -> dict[str, Any]:
        monkeypatch.setitem(gpu_check.PIECES, "train", piece)
        try:
            status = gpu_check.main(["--only", "train", "--device", "cpu", "--tiny", "--out", str(tmp_path)])
        except KeyboardInterrupt:
            status = 130
        return {"status": status, **json.loads((tmp_path / "train.json").read_text())}

    def one_part_fails(report: gpu_check.Report) -> None:
        report.add("before", 1.0, "≤ 2", True)
        report.try_part("broken", lambda: 1 / 0)
        report.try_part("after", lambda: report.add("after", 3.0))

    def interrupted(report: gpu_check.Report) -> None:
        report.add("before", 1.0)
        raise KeyboardInterrupt

    found = run(one_part_fails)
    assert (found["status"], found["finished"]) == (1, True)
    assert [(line["what"], line["passed"]) for line in found["lines"]] == [
        ("before", True),
        ("broken", False),
        ("after", None),
    ]
    assert "ZeroDivisionError" in found["lines"][1]["value"]
    found = run(interrupted)
    assert (found["status"], found["finished"]) == (130, False)
    assert [line["what"] for line in found["lines"]] == ["before"]
    monkeypatch.setattr(gpu_check, "MINUTES", 0.0)
    started: list[str] = []
    found = run(lambda report: report.try_part("x", lambda: started.append("x")))
    assert (found["status"], started, len(found["lines"])) == (0, [], 1)
