"""Exported networks: their files against the model, without PyTorch, and in the C++ program."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import pyro_ssvae as ss
from pyro_ssvae.distributions import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    Gaussian,
    Laplace,
    Likelihood,
    Mixed,
    NegativeBinomial,
    Poisson,
)
from tests.commands import TINY as FLAGS
from tests.commands import Call

ROOT = Path(__file__).parents[1]
TINY = {"latent_dim": 3, "hidden_dims": (8,)}


def make_mixed_model(*kinds: Likelihood) -> tuple[ss.M2, np.ndarray]:
    """Return an M2 of a table with missing values, of two columns for each likelihood, and the table."""
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.integers(0, 2, (90, 2)) for _ in kinds]).astype(np.float32)
    x[:, :2] += rng.normal([3.0, 1e4], [1.0, 200.0], (90, 2))
    x[rng.random(x.shape) < 0.2] = np.nan
    data = ss.SemiSupervisedData.from_arrays(x, ["rye", "oat", "maize"] * 30)
    mixed = Mixed([([2 * number, 2 * number + 1], kind) for number, kind in enumerate(kinds)])
    return ss.M2.for_data(data, likelihood=mixed, **TINY), x


def largest(report: dict) -> dict[str, float]:
    return {
        file: found["difference"] for network in report["networks"].values() for file, found in network["files"].items()
    }


def run(file: Path, **inputs: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(file)
    outputs = session.run(None, {name: value.detach().numpy() for name, value in inputs.items()})
    return [torch.from_numpy(output) for output in outputs]


def test_files_of_a_table_with_missing_values_agree_with_the_model_also_without_torch(tmp_path: Path) -> None:
    model, x = make_mixed_model(Gaussian(), Categorical(2, 1.0, one_hot=True))
    report = ss.export(model, tmp_path / "exported", x)
    assert report["not_exported"] == {}
    names = ("classifier", "encoder", "decoder", "likelihood")
    assert largest(report).keys() == {f"{name}.{kind}" for name in names for kind in ("onnx", "pt2")}
    assert max(largest(report).values()) < 1e-3  # of means up to 10,000
    assert json.loads((tmp_path / "exported" / "export.json").read_text()) == json.loads(json.dumps(report))
    assert (report["class_names"], report["event_shape"]) == (("maize", "oat", "rye"), [4])

    lines = re.search(r"\n(import json.*?)```", (ROOT / "docs" / "export.md").read_text(), re.S)[1]
    assert len([line for line in lines.splitlines() if line]) <= 10
    np.save(tmp_path / "x.npy", x[:1])  # one row, because the batch dimension is dynamic
    code = f"import sys\nsys.modules['torch'] = None\n{lines}\nnp.save('probabilities.npy', probabilities)"
    printed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    wanted = model.predict_proba(x[:1])
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy"), wanted, atol=1e-6)
    assert printed.stdout.split()[0] == report["class_names"][int(wanted.argmax())]

    # Of the outputs, what the check of `export` itself cannot see: that they are what their names say.
    y = torch.eye(3)[[2, 0]]
    mean, scale = run(tmp_path / "exported" / "encoder.onnx", x=torch.from_numpy(x[:2]), y=y)
    posterior = model.eval().encode(torch.from_numpy(x[:2]), torch.tensor([2, 0])).base_dist
    torch.testing.assert_close((mean, scale), (posterior.loc.detach(), posterior.scale.detach()))
    likelihood = run(tmp_path / "exported" / "likelihood.onnx", x=torch.from_numpy(x[:2]), y=y, z=mean)[0]
    log_prob = model.decode(torch.tensor([2, 0]), mean).log_prob(torch.from_numpy(x[:2]))
    torch.testing.assert_close(likelihood, log_prob.detach(), rtol=1e-4, atol=1e-4)


class Unpredictable(nn.Module):
    """A network whose operations depend on the numbers that it is given."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.mean() > 0 else self.linear(-x)


def test_what_cannot_be_exported_is_named_with_the_reason(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "encoder.onnx").write_bytes(b"of an earlier export")
    (tmp_path / "encoder.py").write_text("# of the user")
    networks = {"encoder": Unpredictable(4, 6), "decoder": Unpredictable(3, 8)}
    report = ss.export(ss.M1((4,), likelihood="gaussian", **networks, **TINY), tmp_path)
    assert (report["networks"], report["not_exported"].keys()) == ({}, {"encoder", "decoder", "likelihood"})
    assert "data-dependent" in report["not_exported"]["encoder"]
    assert {path.name for path in tmp_path.iterdir()} == {"export.json", "encoder.py"}
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ValueError, match="x holds no examples"):
        ss.export(ss.M1((4,), likelihood="gaussian", **TINY), tmp_path, np.zeros((0, 4)))


def test_the_command_exports_the_energy_and_the_generator_of_a_ddgm(tmp_path: Path, call: Call) -> None:
    x, z = torch.randn(50, 2), torch.rand(5, 4)
    data = ss.SemiSupervisedData.from_arrays(x)
    model = ss.DDGM.for_data(data)
    config = ss.TrainingConfig(max_steps=1, max_epochs=None, device="cpu")
    ss.fit(ss.EnergyObjective.for_data(model, data), data, config, out=tmp_path / "run")
    printed = call("export", tmp_path / "run", "--to", tmp_path / "exported").out
    assert "compared with the model on examples that it generates" in printed
    assert re.search(r"energy\.onnx +\d\.\d\d MB +largest difference \d\.\de-0[5-9]", printed)
    torch.testing.assert_close(run(tmp_path / "exported" / "energy.onnx", x=x)[0], model.energy(x))
    program = torch.export.load(tmp_path / "exported" / "generator.pt2").module()
    torch.testing.assert_close(program(z), model.generate_from(z))


def test_examples_and_folders_are_named_by_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(70, 2)))
    model = ss.M1((2,), likelihood="gaussian", **TINY)
    assert ss.export(model, "~/exported", "~/x.npy")["examples"] == 64
    assert (tmp_path / "exported" / "encoder.onnx").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Posterior collapse")  # one epoch teaches little
def test_the_command_compares_on_test_examples_of_the_run(tmp_path: Path, call: Call) -> None:
    call("train", "m1", *FLAGS, "--num-samples", "0", "--out", tmp_path / "run")
    printed = call("export", tmp_path / "run", "--to", tmp_path / "exported").out
    assert "compared with the model on examples of its data" in printed
    assert json.loads((tmp_path / "exported" / "export.json").read_text())["scale"] == 16.0


@pytest.mark.slow
def test_a_ddgm_with_classes_is_as_it_was_after_an_export(tmp_path: Path) -> None:
    model, x = ss.DDGM((2,), num_classes=3), torch.randn(5, 2)
    before = model.predict_proba(x)
    assert ss.export(model, tmp_path, x)["networks"].keys() == {"classifier", "energy", "generator"}
    torch.testing.assert_close(run(tmp_path / "classifier.onnx", x=x)[0], before)
    assert torch.equal(model.predict_proba(x), before)


@pytest.mark.slow
def test_a_table_with_columns_of_every_kind(tmp_path: Path) -> None:
    kinds = (Gaussian(), Laplace(), Poisson(), NegativeBinomial(), Categorical(2, 1.0, one_hot=True), Bernoulli())
    model, x = make_mixed_model(*kinds)
    report = ss.export(model, tmp_path, x)
    assert (report["not_exported"], len(largest(report))) == ({}, 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood(name: str, tmp_path: Path) -> None:
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x = (255 * x).round() / (1 if name in ("poisson", "negative_binomial") else 255)
    model = ss.M1.for_data(ss.SemiSupervisedData.from_arrays(x), likelihood=name, **TINY)
    report = ss.export(model, tmp_path, x)
    assert (report["not_exported"], len(largest(report))) == ({}, 6)


@pytest.mark.slow
@pytest.mark.parametrize("classify_from", ["z1", "x"])
def test_m1m2_with_inactive_latents(classify_from: str, tmp_path: Path) -> None:
    m1 = ss.M1((1, 8, 8), **TINY)
    model = ss.M1M2.from_m1(m1, 4, active=[True, False, True], classify_from=classify_from, **TINY)
    x = torch.rand(6, 1, 8, 8)
    report = ss.export(model, tmp_path, x)
    assert report["not_exported"] == {}
    (probabilities,) = run(tmp_path / "classifier.onnx", x=x)
    torch.testing.assert_close(probabilities, model.predict_proba(x))
    z1, _ = run(tmp_path / "encoder_z1.onnx", x=x)
    assert z1.shape == (6, 2)
    torch.testing.assert_close(run(tmp_path / "decoder_z1.onnx", z1=z1)[0], model.eval().decode_x(z1).mean.detach())


@pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
def test_the_c_plus_plus_program_gives_the_numbers_of_python(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    header = np.array([2051, *pixels.shape], dtype=">i4").tobytes()
    (tmp_path / "images").write_bytes(header + pixels.tobytes())
    model = ss.M1((1, 28, 28), latent_dim=5, hidden_dims=(16,)).eval().requires_grad_(False)
    x = torch.from_numpy(pixels[:, None] > 127).float()
    ss.export(model, tmp_path / "exported", x, aoti=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the environment need not be active
    cmake, build = str(shutil.which("cmake", path=path)), tmp_path / "build"
    source, python = ROOT / "examples" / "cpp", f"-DPython_EXECUTABLE={sys.executable}"
    subprocess.run([cmake, "-S", source, "-B", build, python], check=True)
    subprocess.run([cmake, "--build", build], check=True)
    posterior = model.encode(x).base_dist
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    torch.manual_seed(3)
    draw = posterior.loc + posterior.scale * torch.randn(30, 5)
    for z, seed in ((posterior.loc, []), (draw, ["--seed", "3"])):
        command = [build / "bound", tmp_path / "exported", tmp_path / "images", *seed]
        printed = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
        found = [float(number) for number in re.findall(r"(-?\d+\.\d+)", printed)]
        likelihood = model.decode(z).log_prob(x)
        wanted = [float(part.mean()) for part in (likelihood, kl, likelihood - kl)]
        assert found == pytest.approx(wanted, abs=1e-4)
        sheet = (tmp_path / "sheet.pgm").read_bytes()
        assert sheet.startswith(b"P5\n280 168\n255\n")
        grey = np.frombuffer(sheet, np.uint8, offset=15).reshape(6, 28, 10, 28).transpose(0, 2, 1, 3)
        assert (grey[0] == 255 * x[:10, 0].numpy()).all()
        means = model.decode(z).mean[:10, 0].numpy()
        assert np.abs(grey[1] - 255 * means).max() <= 0.51
    wrong = subprocess.run([*command[:2], tmp_path / "sheet.pgm"], capture_output=True, text=True)
    assert (wrong.returncode, "no idx file" in wrong.stderr) == (2, True)
