"""Train M1+M2 (Kingma et al. 2014): a semi-supervised model on the latents of a variational autoencoder.

    python examples/m1_m2.py                          # MNIST, 100 labels: M1 first, then the stack
    python examples/m1_m2.py --pure                   # the paper's objective and nothing else
    python examples/m1_m2.py --m1 runs/.../m1         # build on an M1 that is trained already
    python examples/m1_m2.py --joint-epochs 10        # then fine-tune everything, end to end
    python examples/m1_m2.py --resume runs/...        # continue, at the stage where it stopped

The stages are runs of their own, in the folders m1, stacked and joint of the run, each with its settings, metrics,
model, figures and result.json.

--max-epochs and --training.* are of the stacked stage; the joint one takes them too, but for its length and a tenth of
the learning rate. M1 has settings of its own, of which --m1-* are open. --max-minutes counts for each stage. With --m1,
what describes and trains M1 (--likelihood, --m1-*) would have no effect and is refused.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pyro

import pyro_ssvae as ss
from pyro_ssvae import M1, M1M2, SemiSupervisedELBO, UnsupervisedELBO, report
from pyro_ssvae.cli import EXPECTED_ERRORS, joint_config, load_data, m1_config, parse_m1_m2, settings, training_config
from pyro_ssvae.evaluation import active_units
from pyro_ssvae.training import RunFolder


class Stopped(Exception):
    """Training was interrupted; its state is saved."""


def run_stage(args: Any, objective: Any, data: Any, config: Any, stage: str) -> dict[str, Any]:
    """Train one stage, or go on with it where it stopped, and report it; done before, only read what it says."""
    folder = RunFolder(Path(args.out) / stage)
    if folder.result.is_file():
        objective.module.load_state_dict(ss.load(folder.path).state_dict())
        return folder.read_result()
    going_on = folder.checkpoint.is_file()
    if not going_on:
        folder.config.unlink(missing_ok=True)  # of a stage that was stopped before its first evaluation
    run = ss.fit(objective, data, config, out=folder.path, resume=going_on, settings=settings(args))
    if not run.finished:
        raise Stopped(run.stopped_by)
    return report(objective, data, run, seed=args.seed, num_samples=args.num_samples)


def make_m1(args: Any, data: Any) -> M1:
    """Return M1, p(z1)p(x|z1) with q(z1|x): the trained one that was handed in, or a new one."""
    if args.m1 is None:
        return M1(
            data.event_shape,
            latent_dim=args.m1_latent_dim,
            hidden_dims=args.m1_hidden_dims,
            likelihood=args.likelihood,
            prior=args.m1_prior,
        )
    below = Path(args.m1) / "m1"  # of an earlier run of this program
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        m1 = ss.load(below if below.is_dir() else args.m1)
    for warning in caught:  # a subclass, as in m1.py, is taken for the M1 that it is
        print(warning.message)
    if not isinstance(m1, M1):
        raise ValueError(f"--m1 {args.m1} holds a {type(m1).__name__}, and an M1 is needed.")
    if m1.event_shape != data.event_shape:
        rows = f"{tuple(m1.event_shape)}, and those of {data.name} have {tuple(data.event_shape)}"
        raise ValueError(f"--m1 {args.m1} is a model of rows of shape {rows}.")
    return m1


def train_m1(args: Any, data: Any) -> M1:
    """Return M1, trained on all rows without their labels."""
    rows = data.without_labels()
    pyro.set_rng_seed(args.seed)
    m1 = make_m1(args, rows)
    objective = UnsupervisedELBO.for_data(m1, rows)
    print(f"M1 on {len(rows.x)} rows")
    result = run_stage(args, objective, rows, m1_config(args, len(rows.x)), "m1")
    print(f"{result['train_seconds']:.0f} s of training", end="")
    print("" if result["test/bound"] is None else f", bound {result['test/bound']:.1f} nats per datum on test rows")
    return m1


def make_stack(args: Any, m1: M1, active: Any, data: Any) -> tuple[M1M2, SemiSupervisedELBO]:
    """Return M1+M2 on the active latents of M1, and J^alpha."""
    model = M1M2.from_m1(
        m1,
        data.num_classes,
        active=active,
        latent_dim=args.latent_dim,
        hidden_dims=args.hidden_dims,
        activation=args.activation,
        prior=args.prior,
        class_prior=args.class_prior,
        classify_from=args.classify_from,
    )
    objective = SemiSupervisedELBO.for_data(
        model,
        data,
        alpha=args.alpha,
        bound_weight=args.bound_weight,
        pure=args.pure,
        enumeration=args.enumeration,
        top_k=args.top_k,
        num_particles=args.num_particles,
        importance_weighted=args.importance_weighted,
    )
    return model, objective


def main(argv: list[str] | None = None) -> int:
    """Run the whole recipe and return the exit status."""
    args = parse_m1_m2(__doc__, argv)
    try:
        data = load_data(args, "m1m2")
        print(
            f"{data.name}: {data.num_labelled} labelled and {data.num_unlabelled} unlabelled rows to train on, ", end=""
        )
        print(f"{len(data.x_validation)} to validate, {len(data.x_test)} to test")
        # Every part is built once before anything is trained or written, so that mistakes are told at once.
        m1 = make_m1(args, data)
        make_stack(args, m1, None, data)
        m1_config(args, len(data.x))
        if args.joint_epochs:
            joint_config(args)
        if args.resume is None:
            RunFolder(args.out).create(settings(args))
        if args.m1 is None:
            m1 = train_m1(args, data)

        # Latents that do not vary from row to row carry nothing; what is above leaves them out.
        active = active_units(m1, data.x, scale=data.scale)
        if not active.any():
            print("No latent of M1 varies from row to row: it has collapsed, and a stack on it learns next to nothing.")
            print("Another --likelihood, a slower --training.kl_warmup, or a longer M1 often help.")
        if args.keep_inactive or not active.any():
            active[:] = True
        print(f"M1+M2 on {int(active.sum())} of {m1.latent_dim} latents")
        pyro.set_rng_seed(args.seed)  # the same stack, whether M1 was trained just now or before
        model, objective = make_stack(args, m1, active, data)
        tell("stacked", run_stage(args, objective, data, training_config(args), "stacked"))
        if args.joint_epochs:
            model.unfreeze_m1()
            tell("joint", run_stage(args, objective, data, joint_config(args), "joint"))
    except Stopped as stopped:
        print(f"Stopped by {stopped}. Go on with: python {sys.argv[0]} --resume {args.out}")
        return 130
    except EXPECTED_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"figures, models and numbers in the folders under {args.out}")
    return 0


def tell(name: str, result: dict[str, Any]) -> None:
    """Say in two lines how a stage went."""
    extra = " with " + " and ".join(result["regularisers"]) if result["regularisers"] else ", pure objective"
    print(f"{name}, {result['num_labels']} labels{extra}, {result['train_seconds']:.0f} s of training")
    if result["test/error"] is not None:
        print(f"test error {result['test/error']:.2%}, bound {result['test/bound']:.1f} nats per datum")
    if result.get("test/log_likelihood") is not None:
        error = result["test/log_likelihood_error"]  # none of a single sample
        print(f"log p(x) {result['test/log_likelihood']:.2f}{'' if error is None else f' ± {error:.2f}'} nats")


if __name__ == "__main__":
    sys.exit(main())
