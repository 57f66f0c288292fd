"""Command lines: the console script ``pyro-ssvae``, and what the examples share with it."""

from pyro_ssvae.cli.ddgm import load_images, record_movie, report_images, report_points
from pyro_ssvae.cli.training import load_data, make_m1, print_result, run_command, train_stages

__all__ = [
    "load_data",
    "load_images",
    "make_m1",
    "print_result",
    "record_movie",
    "report_images",
    "report_points",
    "run_command",
    "train_stages",
]
