"""The documentation lists every key of result.json and metrics.csv, and runs write no other."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch

import pyro_ssvae as ss
from pyro_ssvae.data import make_toy_data

PAGE = Path(__file__).parents[1] / "docs" / "result_file.md"


def documented(file: str) -> set[str]:
    rows = re.findall(r"^\| `([^`]+)` \| ([RM, ]+) \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(rows) > 80
    return {name for name, files in rows if file in files}


def build(kind: str) -> tuple[ss.SemiSupervisedData, object]:
    torch.manual_seed(0)
    if kind == "ddgm":
        data = make_toy_data("ring", num_train=300, num_validation=100, num_test=100)
        ddgm = ss.DDGM.for_data(data)
        return data, ss.EnergyObjective.for_data(ddgm, data, entropy="mutual_information", gradient_penalty=0.1)
    data = ss.SemiSupervisedData.from_name("digits", num_labels=50)
    if kind == "m1":
        data = data.without_labels()
        return data, ss.UnsupervisedELBO.for_data(ss.M1.for_data(data, latent_dim=2, hidden_dims=(8,)), data)
    return data, ss.SemiSupervisedELBO.for_data(ss.M2.for_data(data, latent_dim=2, hidden_dims=(8,)), data)


@pytest.mark.filterwarnings("ignore:Posterior collapse")
@pytest.mark.parametrize("kind", ["m2", "m1", "ddgm"])
def test_runs_write_documented_keys_of_documented_kinds(kind: str, tmp_path: Path) -> None:
    data, objective = build(kind)
    config = ss.TrainingConfig(max_steps=4, evaluate_every=2, device="cpu")
    run = ss.fit(objective, data, config, out=tmp_path / "run", progress=False)
    samples = 2 if kind != "ddgm" else 0
    ss.report(objective, data, run, figures=False, num_samples=samples)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result) <= documented("R"), set(result) - documented("R")
    assert {"model", "data", "seed", "steps", "train_seconds", "versions"} <= set(result)
    for name, value in result.items():
        if name.startswith("test/") and name != "test/class_control":
            assert value is None or isinstance(value, (int, float)), name
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        columns = set(next(csv.reader(file)))
    assert columns <= documented("M"), columns - documented("M")
    assert {"step", "epoch", "seconds", "learning_rate"} <= columns
