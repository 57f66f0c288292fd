"""The explorer: what a page holds, and that it computes in a browser what Python does."""

from __future__ import annotations

import gzip
import json
import re
import sys
import warnings
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_ssvae as ss
from pyro_ssvae.cli.main import main
from pyro_ssvae.data import make_toy_data
from pyro_ssvae.evaluation import log_likelihood
from pyro_ssvae.explorer.payload import make_payload
from tests.browser import Browser

SMALL = {"latent_dim": 4, "hidden_dims": (16,)}


def make_digits():
    return ss.SemiSupervisedData.from_name("digits", num_labels=30)


def make_rows():
    random = np.random.default_rng(0)
    kind = np.arange(120) % 2
    table = pd.DataFrame({"width": 10.0 * kind + random.normal(size=120), "colour": np.array(["red", "blue"])[kind]})
    table["depth"] = random.normal(size=120)
    table.loc[::7, "depth"] = np.nan
    table["kind"] = np.array(["small", "large"])[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that words become codes
        return ss.SemiSupervisedData.from_table(table, "kind", num_labels=20, num_test=20)


def make_model(name):
    """Return a model of each kind, with its data."""
    if name == "toy":
        data = make_toy_data("ring")
        return ss.DDGM.for_data(data), data
    if name == "table":
        data = make_rows()
        return ss.M2.for_data(data, likelihood="auto", **SMALL), data
    data = make_digits()
    if name == "m2":
        return ss.M2.for_data(data, **SMALL), data
    if name == "ddgm":
        return ss.DDGM.for_data(data), data
    m1 = ss.M1.for_data(data.without_labels(), likelihood="bernoulli", **SMALL)
    if name == "m1":
        return m1, data.without_labels()
    active = torch.tensor([True, False, True, True])
    return ss.M1M2.from_m1(m1, 10, active=active, latent_dim=3, hidden_dims=(16,)), data


def seen_rows(payload):
    """Return the rows of a page as the model sees them."""
    arrays = payload.arrays
    return torch.tensor(arrays["rows"] if "rows" in arrays else arrays["rows8"] / payload.meta["rowScale"]).float()


@pytest.mark.parametrize("name", ["m1", "m2", "m1m2", "table"])
def test_a_page_holds_latents_classes_and_log_likelihoods_of_its_rows(name):
    model, data = make_model(name)
    model.eval()
    payload = make_payload(model, data, num_rows=100)
    arrays, x = payload.arrays, seen_rows(payload)
    json.dumps(payload.meta, allow_nan=False)

    assert ((arrays["label"] >= 0) & (arrays["test"] == 0)).sum() == data.num_labelled
    assert arrays["test"].sum() == 20
    classes = ()
    if name != "m1":
        np.testing.assert_array_equal(arrays["predicted"], model.predict(x))
        classes = (torch.tensor(np.where(arrays["label"] < 0, arrays["predicted"], arrays["label"])).long(),)
    with torch.no_grad():
        mean = model.encode_z1(x).mean if name == "m1m2" else model.encode(x, *classes).mean
    latents = arrays["latents"] * arrays["latent_unit"]
    np.testing.assert_allclose(latents, mean, atol=1e-3)
    directions, centre = np.array(payload.meta["map"]["directions"]), np.array(payload.meta["map"]["centre"])
    np.testing.assert_allclose(arrays["map"], (latents - centre) @ directions.T, atol=1e-2)
    found = log_likelihood(model, x, num_samples=100)
    assert abs(float((torch.tensor(arrays["score"]) - found.log_px).mean())) < 0.5
    below = arrays["score"][arrays["test"] == 0] < payload.meta["unknownBelow"]
    assert below.sum() == pytest.approx(0.01 * len(below), abs=1)


def test_rows_are_drawn_from_all_classes_of_a_sorted_folder():
    y = np.repeat(np.arange(3), 100)
    data = ss.SemiSupervisedData.from_arrays(np.zeros((300, 2)) + y[:, None], y, x_test=np.zeros((50, 2)))
    arrays = make_payload(ss.M2.for_data(data, likelihood="gaussian", **SMALL), data, num_rows=50).arrays
    assert (len(arrays["label"]), arrays["test"].sum()) == (50, 10)
    assert set(arrays["label"][arrays["test"] == 0]) == {0, 1, 2}


def test_a_page_of_a_ddgm_holds_energies_and_for_points_the_plane():
    model, data = make_model("toy")
    payload = make_payload(model, data, num_rows=100)
    x = seen_rows(payload)
    np.testing.assert_allclose(payload.arrays["score"], -model.energy(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(payload.arrays["map"], x, rtol=1e-6)
    assert payload.meta["map"]["method"] == "plane"
    model, data = make_model("ddgm")
    payload = make_payload(model, data, num_rows=100)
    np.testing.assert_allclose(payload.arrays["score"], -model.energy(seen_rows(payload)), rtol=1e-4, atol=1e-3)
    assert payload.arrays["latents"].shape == (100, 50)


def test_columns_have_their_names_words_and_means():
    model, data = make_model("table")
    columns = {column["name"]: column for column in make_payload(model, data, num_rows=50).meta["features"]}
    assert columns["colour"]["words"] == ["blue", "red"]
    assert columns["depth"]["mean"] == pytest.approx(float(np.nanmean(data.x[:, 2])), abs=1e-5)


@pytest.mark.filterwarnings("ignore:Columns of words")
def test_a_page_is_small_and_loads_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pyro_ssvae.explorer.as_onnx", lambda *_: b"")
    monkeypatch.setattr("pyro_ssvae.data.features._SECONDS", 0.0)
    data = make_rows()
    model = ss.M1.for_data(data.without_labels(), latent_dim=2, hidden_dims=(4,), likelihood="gaussian")
    path = ss.explore(model, data.without_labels(), tmp_path / "new" / "explorer.html")
    told = [line.split("  ")[:2] for line in capsys.readouterr().err.splitlines()]
    assert told == [["log p(x) of rows", "part 1/1"], *(["networks of the page", f"part {n}/2"] for n in (1, 2))]
    page = path.read_text()
    assert path.stat().st_size < 6e6
    assert "default-src 'none'" in page
    written = re.sub(r'<script type="text/plain".*?</script>', "", page)
    assert set(re.findall(r"https?://[^\s\"'<)]+", written)) <= {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"\bfetch\(|XMLHttpRequest|<link[^>]+stylesheet|\ssrc=|@import", written)
    assert "<!--" not in written


def test_vendored_files_are_those_of_the_list():
    folder = files("pyro_ssvae.explorer") / "vendor"
    version = re.search(r"onnxruntime-web\) ([\d.]+),", (folder / "README.md").read_text())[1]
    script = gzip.decompress((folder / "ort.wasm.bundle.min.mjs.gz").read_bytes()).decode()
    assert f"ONNX Runtime Web v{version}" in script
    assert "MIT License" in (folder / "LICENSE").read_text()


def test_what_cannot_be_explored_is_refused(tmp_path, monkeypatch):
    model, data = make_model("table")
    with pytest.raises(ValueError, match="shape"):
        ss.explore(model, make_digits(), tmp_path / "page.html")
    with pytest.raises(ValueError, match="projection='tsne'"):
        ss.explore(model, data, tmp_path / "page.html", projection="tsne")
    with pytest.raises(ValueError, match="num_rows"):
        ss.explore(model, data, tmp_path / "page.html", num_rows=1)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ss.errors.MissingPackageError, match="umap-learn"):
        ss.explore(model, data, tmp_path / "page.html", projection="umap")
    ss.save(model, tmp_path / "run")
    assert main(["explore", str(tmp_path / "run")]) == 2


# In Chromium.


def open_page(name, folder):
    model, data = make_model(name)
    path = ss.explore(model, data, folder / "explorer.html", num_rows=200)
    return model.eval(), Browser(path, folder / "profile")


def as_tensor(found, shape):
    """Return an array of the page, which JSON has as an object, as a tensor."""
    values = [found[key] for key in sorted(found, key=int)] if isinstance(found, dict) else found
    return torch.tensor(values).float().view(-1, *shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m1", "m2", "m1m2", "ddgm", "toy", "table"])
def test_the_page_computes_what_python_does(name, tmp_path):
    model, browser = open_page(name, tmp_path)
    with browser:
        rows = "[0, 1, 2].map((i) => explorer.rowValues(i))"
        x = as_tensor([v for row in browser.run(rows) for v in as_tensor(row, ()).tolist()], model.event_shape)
        found = browser.run(f"Promise.all({rows}.map((x) => explorer.assess(x)))")
        stored = browser.run("Array.from(explorer.ROWS.score.slice(0, 3))")
        z = browser.run("explorer.state.latents")
        decoded = as_tensor(browser.run("explorer.state.decoded"), model.event_shape)
        assert browser.messages == []
    assert [part["score"] for part in found] == pytest.approx(stored, rel=1e-4, abs=1e-3)
    if model.num_classes:
        shares = torch.tensor([part["probabilities"] for part in found])
        torch.testing.assert_close(shares, model.predict_proba(x), rtol=1e-3, atol=1e-5)
    if name in ("ddgm", "toy"):
        expected = model.generate_from(as_tensor(z, (model.latent_dim,)))
        torch.testing.assert_close(decoded, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_clicks_keys_and_drawings_give_what_python_gives(tmp_path):
    model, browser = open_page("m2", tmp_path)
    with browser:
        place = """(() => { const box = document.getElementById("map").getBoundingClientRect();
            const [x, y] = explorer.toScreen(explorer.ROWS.map[2 * %d], explorer.ROWS.map[2 * %d + 1]);
            return [box.x + x, box.y + y]; })()"""
        settled = "new Promise((done) => setTimeout(() => done(explorer.state), 600))"
        browser.click(*browser.run(place % (7, 7)))
        kept = browser.run(settled)
        browser.click(*browser.run(place % (9, 9)), modifiers=8)
        assert browser.run(settled)["end"] >= 0
        browser.run("document.getElementById('map').focus()")
        for key in ("ArrowLeft", "ArrowUp", "+", "Enter"):
            browser.key(key)
        moved = browser.run(settled)
        assert "example" in browser.run("document.getElementById('live').textContent")
        browser.run("document.getElementById('pad').scrollIntoView()")
        box = "(({x, y, width}) => [x, y, width])(document.getElementById('pad').getBoundingClientRect())"
        x, y, side = browser.run(box)
        browser.mouse("Moved", x + 0.3 * side, y + 0.2 * side)
        browser.mouse("Pressed", x + 0.3 * side, y + 0.2 * side, buttons=1)
        for across, down in [(0.7, 0.2), (0.5, 0.5), (0.4, 0.9)]:
            browser.mouse("Moved", x + across * side, y + down * side, buttons=1)
        browser.mouse("Released", x + 0.4 * side, y + 0.9 * side)
        browser.run(settled)
        seen, answer = browser.run("explorer.pad.values"), browser.run("explorer.pad.answer")
        assert browser.messages == []
    assert kept["row"] >= 0
    for state in (kept, moved):
        z, y = as_tensor(state["latents"], (4,)), torch.tensor([state["y"]])
        with torch.no_grad():
            expected = model.decode(y, z).mean
        torch.testing.assert_close(as_tensor(state["decoded"], (1, 8, 8)), expected, rtol=0, atol=1 / 255)
    drawn = as_tensor(seen, (1, 8, 8))
    assert 0.05 < drawn.mean() < 0.8
    assert answer["y"] == int(model.predict(drawn))
    torch.testing.assert_close(
        torch.tensor([answer["probabilities"]]), model.predict_proba(drawn), rtol=1e-3, atol=1e-5
    )


@pytest.mark.slow
def test_sliders_of_columns_change_the_answer_and_say_why(tmp_path):
    model, browser = open_page("table", tmp_path)
    with browser:
        browser.run("explorer.setRow([12.0, 1, 0.5])")
        browser.run("""(() => { const slider = document.querySelector("#columns input"); slider.value = -2;
            slider.dispatchEvent(new Event("input")); })()""")
        own = browser.run("new Promise((done) => setTimeout(() => done(explorer.own), 600))")
        features = browser.run("explorer.META.features")
        assert browser.messages == []
    x = torch.tensor([list(own["values"].values())])
    assert x[0, 0] == pytest.approx(-2.0, abs=0.1)
    replaced = x.repeat(4, 1)
    for column in range(3):
        replaced[column, column] = features[column]["mean"]
    log_odds = model.predict_proba(replaced)[:, own["answer"]["y"]].logit()
    torch.testing.assert_close(torch.tensor(own["reasons"]), log_odds[3] - log_odds[:3], rtol=1e-2, atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Posterior collapse")
def test_the_command_writes_the_page_of_a_run(tmp_path):
    run = tmp_path / "run"
    flags = ["--data=digits", f"--out={run}", "--latent-dim=2", "--hidden-dims=[8]", "--training.max_steps=2"]
    assert main(["train", "m1", *flags, "--num-samples=0"]) == 0
    assert main(["explore", str(run), "-o", str(tmp_path / "page.html"), "--num-rows", "50"]) == 0
    with Browser(tmp_path / "page.html", tmp_path / "profile", dark=True) as browser:
        assert browser.run("explorer.ROWS.count") == 50
        assert browser.messages == []
