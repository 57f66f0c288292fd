"""Loading of model folders that are damaged, or made to do harm."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import pyro_ssvae
from pyro_ssvae import M2, SemiSupervisedData


def _saved(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    folder = pyro_ssvae.save(M2((6,), 3, latent_dim=2, hidden_dims=(7,)), tmp_path / "model")
    return folder, json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"latent_dim": 10**7}, "at most 65536"),
        ({"latent_dim": 30_000}, "does not fit"),
        ({"hidden_dims": [60_000, 60_000]}, "does not fit"),
        ({"hidden_dims": [1] * 5000}, "more layers"),
        ({"hidden_dims": 3}, "hidden_dims"),
        ({"num_classes": 10**6}, "num_classes"),
        ({"event_shape": [10**9]}, "does not fit|too large|at most"),
        ({"nonsense": 1}, "cannot? be built|that can be built"),
    ],
)
def test_a_configuration_is_compared_with_the_weights_before_memory_is_taken(
    arguments: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder, config = _saved(tmp_path)
    config["arguments"] |= arguments
    (folder / "config.json").write_text(json.dumps(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=words):
        pyro_ssvae.load(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 99}, "format 99"),
        ({"format": True}, "config.json"),
        ({"parts": []}, "config.json"),
        ({"class": 3}, "config.json"),
        ({"class": "Nobody"}, "Unknown model 'Nobody'"),
        ({"arguments": []}, "config.json"),
        ({"custom": {"encoder": 3}}, "config.json"),
        ({"data": {"scale": 0, "range": [0, 1], "class_names": []}}, "config.json"),
        ({"data": {"scale": 1.0, "range": [0], "class_names": []}}, "config.json"),
        ({"data": {"scale": 1.0, "range": [0, 1], "class_names": [], "feature_names": [3]}}, "config.json"),
        ({"data": {"scale": 1.0, "range": [0, 1], "class_names": [], "categories": {"a": ["b"]}}}, "config.json"),
    ],
)
def test_damaged_entries_of_a_configuration_are_named(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder, config = _saved(tmp_path)
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=words):
        pyro_ssvae.load(folder)


@pytest.mark.parametrize("text", ["", "[]", "[" * 200_000, "\x00", '{"format": 1', '{"format": 1}'])
def test_a_configuration_that_is_no_json_object_or_names_no_class_is_refused(text: str, tmp_path: Path) -> None:
    folder, _ = _saved(tmp_path)
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json"):
        pyro_ssvae.load(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensor: tensor * float("nan"),
        lambda tensor: tensor / 0.0,
        lambda tensor: tensor.long(),
        lambda tensor: tensor > 0,
        lambda tensor: tensor[..., :-1].contiguous(),
        lambda tensor: None,
    ],
)
def test_weights_that_are_no_weights_are_refused(damage: Callable[[Tensor], Tensor | None], tmp_path: Path) -> None:
    folder, _ = _saved(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("weight"))
    changed = damage(tensors.pop(name))
    save_file(tensors if changed is None else tensors | {name: changed}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        pyro_ssvae.load(folder)


def test_a_missing_folder_unknown_parts_and_half_of_the_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No saved model"):
        pyro_ssvae.load(tmp_path / "nowhere")
    folder, _ = _saved(tmp_path)
    with pytest.raises(ValueError, match="nothing"):
        pyro_ssvae.load(folder, nothing=torch.nn.Identity())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ValueError, match="damaged"):
        pyro_ssvae.load(folder)


def test_units_of_the_data_are_loaded_with_the_weights(tmp_path: Path) -> None:
    """Buffers that a new model has not, because they are found from data."""
    x = 1000.0 + 50.0 * torch.randn(40, 6)
    data = SemiSupervisedData.from_arrays(x, torch.arange(40) % 3)
    model = M2.for_data(data, latent_dim=2, hidden_dims=(7,), likelihood="gaussian").eval()
    model.fit_units(data)
    loaded = pyro_ssvae.load(pyro_ssvae.save(model, tmp_path))
    assert torch.equal(loaded.classify(x), model.classify(x))
