"""Train M2 (Kingma et al. 2014) on images of which a few carry labels, and show what it learnt.

    python examples/m2.py                          # MNIST, 100 labels
    python examples/m2.py --data digits            # 8x8 digits that ship with scikit-learn, under a minute
    python examples/m2.py --data mine.npz --num-labels 500 --likelihood gaussian --max-minutes 5
    python examples/m2.py --resume runs/...        # continue a run that was stopped

Each run leaves a folder with its settings, metrics, model, figures and result.json.
"""

from __future__ import annotations

import sys

import pyro
import pyro.distributions as dist
from torch import Tensor

from pyro_ssvae import M2, SemiSupervisedELBO, fit, report
from pyro_ssvae.cli import EXPECTED_ERRORS, load_data, parse_m2, settings, training_config
from pyro_ssvae.models import data_plate


class MyM2(M2):
    """M2 with its generative story in view. Change a line of it, and the model is yours."""

    def model(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> None:
        """Say how rows come about: a style z, a class y, and pixels x given both.

        The guide (inherited) explains them the other way round: q(y|x), summed over where y is unknown, and q(z|x,y).
        """
        log_pi = self.class_prior.model()  # p(π): fixed, or learned under a Dirichlet
        with data_plate(x, size):  # B rows that stand for `size`
            z = pyro.sample("z", self.prior())  # p(z) = N(0, I)
            y = pyro.sample("y", dist.Categorical(logits=log_pi), obs=y)  # p(y|π)
            pyro.sample("x", self.decode(y, z), obs=x)  # p(x|y,z)


def main(argv: list[str] | None = None) -> int:
    """Run the whole story and return the exit status."""
    args = parse_m2(__doc__, argv)
    try:
        # Rows, of which --num-labels keep their label; the rest have y = -1.
        data = load_data(args)
        print(
            f"{data.name}: {data.num_labelled} labelled and {data.num_unlabelled} unlabelled rows to train on, ", end=""
        )
        print(f"{len(data.x_validation)} to validate, {len(data.x_test)} to test")

        # The module p(z)p(y|π)p(x|y,z) and q(y|x)q(z|x,y).
        pyro.set_rng_seed(args.seed)
        model = MyM2(
            data.event_shape,
            data.num_classes,
            latent_dim=args.latent_dim,
            hidden_dims=args.hidden_dims,
            activation=args.activation,
            likelihood=args.likelihood,
            prior=args.prior,
            class_prior=args.class_prior,
            classifier=args.classifier,
        )

        # J^α, in nats per datum; without --pure, augmentation and consistency of q(y|x) on top.
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

        # Train, then evaluate once on the test rows.
        run = fit(
            objective,
            data,
            training_config(args),
            out=args.out,
            resume=args.resume is not None,
            settings=settings(args),
        )
        if not run.finished:
            print(
                f"Stopped by {run.stopped_by} at step {run.steps}. Go on with: python {sys.argv[0]} --resume {args.out}"
            )
            return 130
        result = report(objective, data, run)
    except EXPECTED_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    extra = " with " + " and ".join(result["regularisers"]) if result["regularisers"] else ", pure objective"
    print(f"M2 on {data.name}, {data.num_labelled} labels{extra}, {result['train_seconds']:.0f} s of training")
    if result["test/error"] is not None:
        print(f"test error {result['test/error']:.2%}, bound {result['test/bound']:.1f} nats per datum")
    print(f"figures in {args.out}/figures, numbers in {args.out}/result.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
