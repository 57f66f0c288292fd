"""Fixtures shared by all tests: fixed seeds, one thread, every device that is there."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for programs that tests start while others run in parallel

import pyro
import pytest
import torch

_DEVICES = ["cpu"]
if torch.cuda.is_available():
    _DEVICES.append(pytest.param("cuda", marks=pytest.mark.gpu))


@pytest.fixture(autouse=True)
def _seeded_and_single_threaded():
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)  # seeds torch, numpy and random


@pytest.fixture(params=_DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture
def call(capsys):
    """Give the words of a command to ``pyro-ssvae`` in this process, check its status, and return what it printed."""
    from pyro_ssvae.cli.main import main

    def give(*words, status=0):
        capsys.readouterr()
        found = main([*map(str, words)])
        printed = capsys.readouterr()
        assert found == status, printed.err
        return printed

    return give


@pytest.fixture
def unrendered(monkeypatch):
    """Figures are drawn, and their files left empty: rendering takes most of the time of a short run."""
    monkeypatch.setattr("pyro_ssvae.plots.style.to_png", lambda figure: b"")


@pytest.fixture(params=["traced", pytest.param("compiled", marks=pytest.mark.slow)])
def traced_or_compiled(request, monkeypatch):
    """Steps that would be compiled run as traced; with ``-m slow`` Inductor compiles them, which takes a minute."""
    if request.param == "traced":
        monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
