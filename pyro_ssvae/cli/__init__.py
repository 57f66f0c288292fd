"""Command lines: their flags, what the flags mean, and the console script ``pyro-ssvae``."""

from pyro_ssvae.cli.commands import fit_options, model_options, objective_options, run_command, run_stage
from pyro_ssvae.cli.common import load_data, name_run, settings, training_config
from pyro_ssvae.cli.ddgm import (
    check_images,
    energy_options,
    load_others,
    parse_ddgm,
    parse_ddgm_2d,
    report_images,
    report_points,
    start_movie,
)
from pyro_ssvae.cli.m1 import parse_m1
from pyro_ssvae.cli.m1m2 import joint_config, parse_m1_m2, select_latents, start_stages, train_m1
from pyro_ssvae.cli.m2 import parse_m2

__all__ = [
    "check_images",
    "energy_options",
    "fit_options",
    "joint_config",
    "load_data",
    "load_others",
    "model_options",
    "name_run",
    "objective_options",
    "parse_ddgm",
    "parse_ddgm_2d",
    "parse_m1",
    "parse_m1_m2",
    "parse_m2",
    "report_images",
    "report_points",
    "run_command",
    "run_stage",
    "select_latents",
    "settings",
    "start_movie",
    "start_stages",
    "train_m1",
    "training_config",
]
