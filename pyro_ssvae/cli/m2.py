"""The command line of ``examples/m2.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from pyro_ssvae.cli.common import add_parts, as_defaults, new_parser, parse
from pyro_ssvae.presets import PURE

__all__ = ["add_objective", "parse_m2"]


def add_objective(parser: ArgumentParser, pure: str) -> None:
    """Add the flags of J^alpha and the regularisers; ``pure`` describes what else ``--pure`` changes."""
    add = parser.add_argument
    add("--pure", action="store_true", help=f"J^alpha and no other term: no augmentation, no consistency. {pure}")
    add("--alpha", type=float, default=10.0, help="weight c of the mean cross-entropy; the paper's alpha is c*N, c=0.1")
    add("--bound-weight", type=float, default=1.0, metavar="W", help="factor of the bounds; 1 in J^alpha")
    add(
        "--enumeration",
        choices=["exact", "top-k"],
        default="exact",
        help="sum over every class, or over the likeliest ones and one drawn among the rest (unbiased, far faster "
        "with many classes)",
    )
    add("--top-k", type=int, default=1, metavar="K", help="classes summed exactly under --enumeration top-k")
    add("--num-particles", type=int, default=1, metavar="S", help="draws of z per example and class")
    add(
        "--importance-weighted",
        action="store_true",
        help="combine the draws in one tighter bound (IWAE) instead of averaging",
    )


def m2_parser(description: str) -> ArgumentParser:
    """Return the parser of ``examples/m2.py``."""
    parser = new_parser("m2.py", description)
    add_objective(
        parser,
        "Other defaults become those that suit it: MLPs, softplus, top-k, 40 epochs in small binarised batches. The "
        "weight of the KL of z still has its schedule; for none: --training.kl_warmup 0 --training.kl_peak 1",
    )
    add_parts(parser)
    add = parser.add_argument
    add("--class-prior", choices=["uniform", "map", "dirichlet"], default="uniform", help="p(y|pi)p(pi)")
    add("--classifier", choices=["auto", "conv", "mlp"], default="auto", help="q(y|x); auto is conv for images")
    add("--latent-dim", type=int, default=50, help="dimensions of z")
    add("--hidden-dims", type=list[int], default=[500], help="hidden widths of encoder and decoder, as [500,500]")
    add("--activation", type=str, default="relu", help="of encoder, decoder and an mlp classifier")
    return parser


def parse_m2(description: str, argv: Sequence[str] | None = None) -> Namespace:
    """Return the flags of ``examples/m2.py``, completed from the run to resume."""
    return parse(m2_parser(description), argv, _pure_defaults)


def _pure_defaults(args: Namespace, saved: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe for the pure objective as defaults, where that is asked for."""
    if not (args.pure or saved.get("pure")):
        return {}
    return PURE.model | PURE.objective | as_defaults(PURE.training, args)
