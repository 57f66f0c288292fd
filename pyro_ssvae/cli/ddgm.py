"""The command lines of ``examples/ddgm_2d.py`` and ``examples/ddgm.py``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from pyro_ssvae.cli.common import as_defaults, new_parser, parse
from pyro_ssvae.data import PLANE_NAMES
from pyro_ssvae.objectives import ENTROPIES
from pyro_ssvae.recipes import DDGM_IMAGES, DDGM_PLANE, Recipe

__all__ = ["objective_options", "parse_ddgm", "parse_ddgm_2d"]

_OBJECTIVE = (
    "entropy",
    "entropy_weight",
    "gradient_penalty",
    "energy_penalty",
    "langevin_steps",
    "langevin_step_size",
    "generator_rate",
    "generator_steps",
    "critic_rate",
    "contrast_weight",
)


def ddgm_2d_parser(description: str) -> ArgumentParser:
    """Return the parser of ``examples/ddgm_2d.py``."""
    parser = new_parser("ddgm_2d.py", description, labels=False, data=PLANE_NAMES)
    _add_objective(parser)
    add = parser.add_argument
    add("--frames", type=int, default=60, metavar="F", help="frames of the movie of training; 0 for none")
    add("--num-samples", type=int, default=5000, metavar="S", help="points generated for the measures")
    add("--refine", type=int, default=20, metavar="L", help="Langevin steps of refined points")
    return parser


def ddgm_parser(description: str) -> ArgumentParser:
    """Return the parser of ``examples/ddgm.py``."""
    parser = new_parser("ddgm.py", description, labels=False)
    add = parser.add_argument
    add("--num-labels", type=int, default=0, metavar="N", help="rows whose labels train energies of classes; 0: none")
    add("--alpha", type=float, default=1.0, help="weight of their mean cross-entropy")
    _add_objective(parser)
    add("--contrast-weight", type=float, default=0.0, metavar="W", help="weight of faded and blurred images")
    add("--num-samples", type=int, default=5000, metavar="S", help="images generated for the measures")
    return parser


def _add_objective(parser: ArgumentParser) -> None:
    """Add the flags of the two losses."""
    add = parser.add_argument
    add("--entropy", choices=list(ENTROPIES), default="nearest_neighbour", help="estimate of the generator's entropy")
    add("--entropy-weight", type=float, default=1.0, metavar="W", help="factor of the entropy")
    add("--gradient-penalty", type=float, default=0.0, metavar="G", help="weight of G/2 |dE/dx|^2 on data")
    add("--energy-penalty", type=float, default=0.0, metavar="W", help="weight of the mean square of energies")
    add("--langevin-steps", type=int, default=0, metavar="L", help="steps of generated rows before they are raised")
    add("--langevin-step-size", type=float, default=0.001, metavar="H", help="size of these steps")
    add(
        "--generator-rate",
        type=float,
        default=3.0,
        metavar="R",
        help="its learning rate over the energy's",
    )
    add("--generator-steps", type=int, default=2, metavar="S", help="steps of the generator for each of the energy")
    add("--critic-rate", type=float, default=1.0, metavar="R", help="learning rate of the entropy's networks, likewise")


def parse_ddgm_2d(description: str, argv: Sequence[str] | None = None) -> Namespace:
    """Return the flags of ``examples/ddgm_2d.py``, completed from the recipe and the run to resume."""
    return parse(ddgm_2d_parser(description), argv, partial(_of_recipe, DDGM_PLANE))


def parse_ddgm(description: str, argv: Sequence[str] | None = None) -> Namespace:
    """Return the flags of ``examples/ddgm.py``, completed from the recipe and the run to resume."""
    return parse(ddgm_parser(description), argv, partial(_of_recipe, DDGM_IMAGES))


def _of_recipe(recipe: Recipe, args: Namespace, saved: dict[str, Any]) -> dict[str, Any]:
    return recipe.model | recipe.objective | as_defaults(recipe.training, args)


def objective_options(args: Namespace) -> dict[str, Any]:
    """Return the arguments of :class:`pyro_ssvae.objectives.EnergyObjective` that the flags ask for."""
    return {name: args[name] for name in _OBJECTIVE if name in args}
