"""Landscapes and movies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from pyro_ssvae.models import DDGM
from pyro_ssvae.plots import Movie, plot_landscape


def test_a_movie_of_landscapes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ddgm = DDGM((2,))
    movie = Movie(frame_seconds=0.2)
    x = torch.randn(100, 2)
    for step in range(3):
        before = torch.get_rng_state()
        figure = plot_landscape(ddgm, x, num_samples=50, title=f"step {step}")
        assert torch.equal(torch.get_rng_state(), before)
        assert len(figure.axes) == 4
        movie.add(figure)
        torch.nn.init.normal_(ddgm.energy_net.bias)
    path = movie.save(tmp_path / "films" / "training.gif")
    with Image.open(path) as film:
        assert film.n_frames == len(movie) == 3
        assert film.info["duration"] == 200
        assert film.size[0] > film.size[1]


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        Movie().save(tmp_path / "empty.gif")
    with pytest.raises(ValueError, match="must be positive"):
        Movie(0.0)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        plot_landscape(DDGM((3,)), torch.zeros(5, 3))
