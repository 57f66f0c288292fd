"""Landscapes, interpolations in the plane, and movies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_ssvae import DDGM
from pyro_ssvae.plots import plot_interpolations, plot_landscape
from pyro_ssvae.plots.ddgm import Movie, plot_energies
from pyro_ssvae.plots.style import new_figure


def test_a_movie_of_landscapes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ddgm = DDGM((2,))
    movie = Movie()
    x = torch.randn(100, 2)
    for step in range(3):
        before = torch.get_rng_state()
        figure = plot_landscape(ddgm, x, num_samples=50, title=f"step {step}")
        assert torch.equal(torch.get_rng_state(), before)
        assert len(figure.axes) == 4
        movie.add(figure, step)
        torch.nn.init.normal_(ddgm.energy_net.bias)
    path = movie.save(tmp_path / "films" / "training.gif")
    with Image.open(path) as film:
        assert film.n_frames == len(movie) == 3
        assert film.info["duration"] == 150
        assert film.size[0] > film.size[1]


def test_a_landscape_holds_the_data() -> None:
    torch.manual_seed(0)
    ddgm = DDGM((2,))
    for scale, low, high in ((0.1, 4.5, 4.5), (10.0, 20.0, 60.0)):
        x = scale * torch.randn(100, 2)
        *panels, _ = plot_landscape(ddgm, x, num_samples=50).axes
        assert {axes.get_xlim() for axes in panels} == {axes.get_ylim() for axes in panels}
        (limits,) = {axes.get_xlim() for axes in panels}
        assert low <= limits[1] == -limits[0] <= high
        assert float(x.abs().max()) < limits[1]
        assert tuple(panels[2].images[0].get_extent()) == limits * 2
    ddgm = DDGM((2,), latent_dim=2, prior="normal", generator=torch.nn.Identity())
    start, end = torch.tensor([[0.0, 20.0]]), torch.tensor([[-30.0, 0.0]])
    for axes in plot_interpolations(ddgm, start, end).axes:
        assert axes.get_xlim()[0] < -30.0


def test_interpolations_in_the_plane() -> None:
    torch.manual_seed(0)
    ddgm = DDGM((2,), latent_dim=2, prior="normal", generator=torch.nn.Identity())
    start, end = ddgm.prior().sample((2, 3))
    by_z, by_features = plot_interpolations(ddgm, start, end).axes
    lines = [torch.tensor(line.get_xydata()) for line in by_z.lines[::3]]  # each with a ring and a dot
    for path, first, last in zip(lines, start, end, strict=True):  # x = z: straight lines with even steps
        torch.testing.assert_close(path[[0, -1]], torch.stack([first, last]), check_dtype=False)
        torch.testing.assert_close(path.diff(dim=0), path.diff(dim=0).mean(0).expand(24, 2), atol=1e-5, rtol=0.0)
    curves = [torch.tensor(line.get_xydata()) for line in by_features.lines[::3]]
    for path, line in zip(curves, lines, strict=True):  # other ways, the same ends
        torch.testing.assert_close(path[[0, -1]], line[[0, -1]], atol=0.05, rtol=0.0)
    assert not torch.allclose(torch.stack(curves), torch.stack(lines), atol=0.01)


def film(steps: list[int]) -> Movie:
    movie = Movie()
    for step in steps:
        figure = new_figure(2.0, 1.0)
        figure.suptitle(f"Step {step:,}")
        movie.add(figure, step)
    return movie


def pixels(movie: Movie) -> list[np.ndarray]:
    return [np.asarray(frame.convert("RGB")) for frame in movie._frames]


def test_a_movie_is_resumed(tmp_path: Path) -> None:
    steps = list(range(0, 60_000, 1000))  # more than fit into one block of a GIF's comment
    movie = film(steps)
    again = Movie.load(movie.save(tmp_path / "training.gif"))
    assert again.steps == steps
    for one, other in zip(pixels(movie), pixels(again), strict=True):
        np.testing.assert_array_equal(one, other)
    again.cut(2000)
    assert (again.steps, len(again)) == ([0, 1000], 2)
    again.add(new_figure(2.0, 1.0), 1001)
    assert again.steps == [0, 1000, 1001]


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        plot_landscape(DDGM((3,)), torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"x has shape \(5, 3\)"):
        plot_landscape(DDGM((2,)), torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"need examples \(C, H, W\), not \(8, 8\)"):
        plot_energies(DDGM((8, 8)), torch.zeros(5, 8, 8))
    (tmp_path / "training.gif").write_bytes(b"nonsense")
    Image.new("L", (8, 8)).save(tmp_path / "other.gif")
    for name in ("training.gif", "other.gif"):
        with pytest.raises(ValueError, match=f"{name} is no movie of training"):
            Movie.load(tmp_path / name)
