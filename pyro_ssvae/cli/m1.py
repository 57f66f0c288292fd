"""The command line of ``examples/m1.py``, and its presets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from pyro_ssvae.cli.common import add_parts, as_defaults, new_parser, parse
from pyro_ssvae.distributions import Bernoulli
from pyro_ssvae.presets import M1_PRESETS

__all__ = ["binarisation_for", "parse_m1"]


def m1_parser(description: str) -> ArgumentParser:
    """Return the parser of ``examples/m1.py``."""
    parser = new_parser("m1.py", description, labels=False)
    add = parser.add_argument
    words = "; ".join(f"{name}: {preset.words}" for name, preset in M1_PRESETS.items())
    add("--preset", choices=list(M1_PRESETS), default="kingma", help=f"defaults of all that follows. {words}")
    add_parts(parser, likelihood="p(x|z); under any but bernoulli the presets leave pixels unbinarised")
    add("--latent-dim", type=int, default=50, help="dimensions of z")
    add("--hidden-dims", type=list[int], default=[600, 600], help="hidden widths of encoder and decoder")
    add("--activation", type=str, default="softplus", help="of encoder and decoder")
    add("--batch-norm", action="store_true", help="normalise before each activation")
    add("--num-particles", type=int, default=1, metavar="S", help="draws of z per row and step")
    add("--importance-weighted", action="store_true", help="weigh the draws in one tighter bound (IWAE)")
    add("--num-samples", type=int, default=500, metavar="S", help="draws per test row behind log p(x); 0 for none")
    return parser


def parse_m1(description: str, argv: Sequence[str] | None = None) -> Namespace:
    """Return the flags of ``examples/m1.py``, completed from the preset and the run to resume."""
    parser = m1_parser(description)
    args = parse(parser, argv, _preset_defaults)
    if args.num_samples < 0:
        parser.error(f"--num-samples {args.num_samples} must be at least 0; 0 leaves log p(x) out.")
    return args


def binarisation_for(likelihood: str, preferred: str) -> str:
    """Return the default binarisation: the preferred one under a Bernoulli likelihood, else none.

    Args:
        likelihood: Its name.
        preferred: The recipe's choice.
    """
    return preferred if likelihood == Bernoulli.name else "none"


def _preset_defaults(args: Namespace, saved: dict[str, Any]) -> dict[str, Any]:
    recipe = M1_PRESETS[saved.get("preset", args.preset)]
    binarisation = binarisation_for(saved.get("likelihood", args.likelihood), recipe.training["binarisation"])
    training = recipe.training | {"binarisation": binarisation}
    return recipe.model | recipe.objective | as_defaults(training, args)
