"""The GPU check keeps what it has measured, whatever happens afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gpu_check
import gpu_pieces
import pytest


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: Any) -> tuple[int, dict[str, Any]]:
    monkeypatch.setitem(gpu_pieces.PIECES, "train", piece)
    command = ["--only", "train", "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    try:
        status = gpu_check.main(command)
    except KeyboardInterrupt:
        status = 130
    return status, json.loads((tmp_path / "train.json").read_text())


def test_a_part_that_fails_is_a_line_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def piece(report: gpu_check.Report, options: gpu_check.Options) -> None:
        report.add("before", 1.0, "≤ 2", True)
        report.try_part("broken", lambda: 1 / 0)
        report.try_part("after", lambda: report.add("after", 3.0))

    status, found = run(tmp_path, monkeypatch, piece)
    assert status == 1
    assert found["finished"]
    assert [line["what"] for line in found["lines"]] == ["before", "broken", "after"]
    assert [line["passed"] for line in found["lines"]] == [True, False, None]
    assert "ZeroDivisionError" in found["lines"][1]["value"]


def test_an_interrupted_piece_leaves_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def piece(report: gpu_check.Report, options: gpu_check.Options) -> None:
        report.add("before", 1.0)
        raise KeyboardInterrupt

    status, found = run(tmp_path, monkeypatch, piece)
    assert status == 130
    assert not found["finished"]
    assert [line["what"] for line in found["lines"]] == ["before"]


def test_no_part_starts_after_the_time_of_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "MINUTES", 0.0)
    started: list[str] = []
    status, found = run(
        tmp_path, monkeypatch, lambda report, options: report.try_part("x", lambda: started.append("x"))
    )
    assert (status, started, len(found["lines"])) == (0, [], 1)
