"""The command ``explore``: a page of a run, with the data that its flags name."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyro_ssvae.cli.commands import COMMANDS, parse_flags
from pyro_ssvae.cli.ddgm import load_images
from pyro_ssvae.cli.training import load_data
from pyro_ssvae.data import make_toy_data
from pyro_ssvae.data.dataset import SemiSupervisedData
from pyro_ssvae.errors import RunFolderError
from pyro_ssvae.explorer import explore
from pyro_ssvae.training import RunFolder

__all__ = ["add_explore", "load_run_data"]


def add_explore(commands: Any, load_model: Callable[[Path], Any]) -> None:
    """Add the command ``explore``; its model is loaded from the folder of a run."""
    parser = commands.add_parser("explore", help="write one HTML page in which the model runs, with a map of its data")
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of the run")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="the page to write (default: explorer.html in RUN)"
    )
    parser.add_argument("--num-rows", type=int, default=10_000, metavar="N", help="rows on the map (default: 10,000)")
    parser.add_argument(
        "--projection", choices=("pca", "umap"), default="pca", help="how latents become a map; umap needs umap-learn"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of rows (default: 0)")
    parser.set_defaults(function=lambda args: _explore(load_model, args))


def _explore(load_model: Callable[[Path], Any], args: argparse.Namespace) -> None:
    start = time.perf_counter()
    data = load_run_data(args.run)
    options = {"projection": args.projection, "num_rows": args.num_rows, "seed": args.seed}
    path = explore(load_model(args.run), data, args.out or args.run / "explorer.html", **options)
    size = path.stat().st_size / 1e6
    print(f"{path}: {size:.1f} MB, written in {time.perf_counter() - start:.0f} s; open it in a browser")


def load_run_data(folder: Path) -> SemiSupervisedData:
    """Return the data that the flags of a run name.

    Raises:
        RunFolderError: If the run was written by a Python program.
    """
    name = RunFolder(folder).read_config().get("command")
    if name not in COMMANDS:
        raise RunFolderError(f"{folder} was written by a Python program; call pyro_ssvae.explore or export in it.")
    flags = parse_flags(name, ["--resume", str(folder)])
    if name == "ddgm_2d":
        return make_toy_data(flags.data, seed=flags.seed)
    if name == "ddgm":
        return load_images(flags)[0]
    return load_data(flags).without_labels() if name == "m1" else load_data(flags)
