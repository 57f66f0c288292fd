"""Command lines of the examples: their flags, and what the flags mean."""

from pyro_ssvae.cli.common import EXPECTED_ERRORS, load_data, name_run, settings, training_config
from pyro_ssvae.cli.ddgm import check_images, load_others, objective_options, parse_ddgm, parse_ddgm_2d
from pyro_ssvae.cli.m1 import parse_m1
from pyro_ssvae.cli.m1m2 import joint_config, m1_config, parse_m1_m2
from pyro_ssvae.cli.m2 import parse_m2

__all__ = [
    "EXPECTED_ERRORS",
    "check_images",
    "joint_config",
    "load_data",
    "load_others",
    "m1_config",
    "name_run",
    "objective_options",
    "parse_ddgm",
    "parse_ddgm_2d",
    "parse_m1",
    "parse_m1_m2",
    "parse_m2",
    "settings",
    "training_config",
]
